"""Pod templates: what head, workers and submitter have in common, and where they differ."""

from __future__ import annotations

from dataclasses import dataclass

from dvpo_ray.kubernetes.manifests import GANG, JOB, PART_OF, PREEMPTIBLE, Tree
from dvpo_ray.kubernetes.network import HEAD_PORTS, METRICS
from dvpo_ray.kubernetes.sizing import HEAD_CPUS, HEAD_MEMORY_GIB, SMALLEST_STORE_GIB, Group
from dvpo_ray.kubernetes.stopping import StopTimes, drain_hook

USER = 1000
RUNS = "/runs"
RECIPES = "/etc/dvpo"
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


@dataclass(frozen=True)
class PodMaker:
    """Makes the pods of one job; ``claim`` names the volume of its runs."""

    job: str
    image: str
    claim: str
    times: StopTimes

    def head(self, autoscaling: bool) -> Tree:
        """The head: Ray's own processes and the driver."""
        container = self._container("ray-head", _resources(HEAD_CPUS, HEAD_MEMORY_GIB), HEAD_PORTS)
        container["lifecycle"] = drain_hook(self.times, head=True, gang=True)
        container["volumeMounts"].append({"name": "recipe", "mountPath": RECIPES, "readOnly": True})
        spec = self._pod(container, SMALLEST_STORE_GIB + 1, "dvpo-gang", autoscaling)
        spec["volumes"].append({"name": "recipe", "configMap": {"name": f"{self.job}-recipe"}})
        spec["affinity"] = _kept_off_preemptible()
        return {"metadata": {"labels": _labels(self.job, gang=True)}, "spec": spec}

    def worker(self, group: Group) -> Tree:
        """A worker of a group; rollouts and scorers may be on nodes that are taken away."""
        resources = _resources(group.cpus, group.memory_gib, group.gpus)
        container = self._container("ray-worker", resources, {"metrics": METRICS})
        container["lifecycle"] = drain_hook(self.times, head=False, gang=group.is_gang)
        spec = self._pod(container, group.shm_gib, "dvpo-gang" if group.is_gang else "dvpo-replaceable", autoscaling=False)
        spec["affinity"] = _kept_off_preemptible() if group.is_gang else _drawn_to_preemptible()
        tolerated = (["nvidia.com/gpu"] if group.gpus else []) + ([] if group.is_gang else [PREEMPTIBLE])
        if tolerated:
            spec["tolerations"] = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in tolerated]
        return {"metadata": {"labels": _labels(self.job, group.is_gang)}, "spec": spec}

    def submitter(self) -> Tree:
        """Hands the job to the head and follows its log; when it ends, the job goes on."""
        container = {
            "name": "ray-job-submitter",
            "image": self.image,
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
        return {"metadata": {"labels": _labels(self.job, gang=False)}, "spec": spec}

    def _container(self, name: str, resources: Tree, ports: dict[str, int]) -> Tree:
        return {
            "name": name,
            "image": self.image,
            "env": [{"name": key, "value": value} for key, value in ENVIRONMENT.items()],
            "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
            "resources": resources,
            "securityContext": NO_PRIVILEGES,
            "volumeMounts": [TMP, {"name": "shm", "mountPath": "/dev/shm"}, {"name": "runs", "mountPath": RUNS}],
        }

    def _pod(self, container: Tree, shm_gib: int, priority: str, autoscaling: bool) -> Tree:
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.times.grace,
            "automountServiceAccountToken": autoscaling,
            "securityContext": _pod_security(),
            "priorityClassName": priority,
            "containers": [container],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}},
                {"name": "runs", "persistentVolumeClaim": {"claimName": self.claim}},
            ],
        }


def autoscaler_options() -> Tree:
    """The autoscaler, which the operator adds to the head as a container."""
    return {
        "version": "v2",
        "idleTimeoutSeconds": 300,
        "resources": _resources(1, 1),
        "securityContext": NO_PRIVILEGES,
        "volumeMounts": [TMP],
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
