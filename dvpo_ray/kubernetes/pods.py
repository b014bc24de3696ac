"""Pod templates: what head, workers and submitter have in common, and where they differ."""

from __future__ import annotations

from dvpo_ray.kubernetes.manifests import PREEMPTIBLE, Tree
from dvpo_ray.kubernetes.sizing import HEAD_CPUS, HEAD_MEMORY_GIB, SMALLEST_STORE_GIB, Group

USER = 1000
RUNS = "/runs"
RECIPES = "/etc/dvpo"
METRICS_PORT = 8080
HEAD_PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": METRICS_PORT}
PART_OF = {"app.kubernetes.io/part-of": "dvpo-ray"}
JOB, GANG = "dvpo-ray/job", "dvpo-ray/gang"
NO_PRIVILEGES: Tree = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
# The root file system cannot be written: what libraries keep at home goes to /tmp, converted models to the volume.
ENVIRONMENT = {
    "HOME": "/tmp",
    "DVPO_CACHE_DIR": f"{RUNS}/.cache",
    "RAY_USAGE_STATS_ENABLED": "0",
}
TMP = {"name": "tmp", "mountPath": "/tmp"}


def head_template(job: str, image: str, claim: str, autoscaling: bool, secret: str | None) -> Tree:
    """The head: Ray's own processes and the driver. Secrets of trackers go to the driver alone."""
    container = _ray_container("ray-head", image, _resources(HEAD_CPUS, HEAD_MEMORY_GIB), HEAD_PORTS)
    container["volumeMounts"].append({"name": "recipe", "mountPath": RECIPES, "readOnly": True})
    if secret is not None:
        container["envFrom"] = [{"secretRef": {"name": secret}}]
    spec = _pod(container, claim, SMALLEST_STORE_GIB + 1, "dvpo-gang", autoscaling)
    spec["volumes"].append({"name": "recipe", "configMap": {"name": f"{job}-recipe"}})
    spec["affinity"] = _kept_off_preemptible()
    return {"metadata": {"labels": _labels(job, gang=True)}, "spec": spec}


def worker_template(job: str, image: str, claim: str, group: Group) -> Tree:
    """A worker of a group; rollouts and scorers may be on nodes that are taken away."""
    resources = _resources(group.cpus, group.memory_gib, group.gpus)
    container = _ray_container("ray-worker", image, resources, {"metrics": METRICS_PORT})
    spec = _pod(container, claim, group.shm_gib, "dvpo-gang" if group.is_gang else "dvpo-replaceable", autoscaling=False)
    tolerated = ["nvidia.com/gpu"] if group.gpus else []
    spec["affinity"] = _kept_off_preemptible() if group.is_gang else _drawn_to_preemptible()
    tolerated += [] if group.is_gang else [PREEMPTIBLE]
    if tolerated:
        spec["tolerations"] = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in tolerated]
    return {"metadata": {"labels": _labels(job, group.is_gang)}, "spec": spec}


def submitter_template(job: str, image: str) -> Tree:
    """Hands the job to the head and follows its log."""
    container = {
        "name": "ray-job-submitter",
        "image": image,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": _resources(1, 1),
        "securityContext": NO_PRIVILEGES,
        "volumeMounts": [TMP],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": _pod_security(),
        "priorityClassName": "dvpo-gang",
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    return {"metadata": {"labels": _labels(job, gang=False)}, "spec": spec}


def autoscaler_options() -> Tree:
    """The autoscaler, which the operator adds to the head as a container."""
    return {
        "version": "v2",
        "idleTimeoutSeconds": 300,
        "resources": _resources(1, 1),
        "securityContext": NO_PRIVILEGES,
        "volumeMounts": [TMP],
    }


def _ray_container(name: str, image: str, resources: Tree, ports: dict[str, int]) -> Tree:
    return {
        "name": name,
        "image": image,
        "env": [{"name": key, "value": value} for key, value in ENVIRONMENT.items()],
        "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
        "resources": resources,
        "securityContext": NO_PRIVILEGES,
        "volumeMounts": [TMP, {"name": "shm", "mountPath": "/dev/shm"}, {"name": "runs", "mountPath": RUNS}],
    }


def _pod(container: Tree, claim: str, shm_gib: int, priority: str, autoscaling: bool) -> Tree:
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": autoscaling,
        "securityContext": _pod_security(),
        "priorityClassName": priority,
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": claim}},
        ],
    }


def _pod_security() -> Tree:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _resources(cpus: int, memory_gib: int, gpus: int = 0) -> Tree:
    amounts = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {"requests": amounts, "limits": amounts}


def _labels(job: str, gang: bool) -> Tree:
    return PART_OF | {JOB: job, GANG: str(gang).lower()}


def _kept_off_preemptible() -> Tree:
    term = {"matchExpressions": [{"key": PREEMPTIBLE, "operator": "DoesNotExist"}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def _drawn_to_preemptible() -> Tree:
    wish = {"weight": 100, "preference": {"matchExpressions": [{"key": PREEMPTIBLE, "operator": "Exists"}]}}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}}
