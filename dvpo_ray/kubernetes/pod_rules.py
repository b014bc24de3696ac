"""What every pod of ours keeps to, so that breaking into one gains little. One function a rule; each yields (what, remedy)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from dvpo_ray.io.secrets import names_a_secret
from dvpo_ray.kubernetes.manifests import JOB, PREEMPTIBLE, PodTemplate, items, quantity, tree
from dvpo_ray.kubernetes.operator_rules import Problem

DIGEST = re.compile(r"[^@]+@sha256:([0-9a-f]{64})")
SHM = "/dev/shm"
GPU = "nvidia.com/gpu"


def requests_equal_limits(pod: PodTemplate) -> Iterator[Problem]:
    """Ray plans with what the limits say: a pod that has less is killed in the middle of its work."""
    for container in pod.containers:
        resources = tree(container.get("resources"))
        requests, limits = tree(resources.get("requests")), tree(resources.get("limits"))
        missing = [name for name in ("cpu", "memory") if name not in requests or name not in limits]
        name = container.get("name")
        if missing:
            yield f"container {name} has no requests and limits of {' and '.join(missing)}", "give both, and equal"
        elif {key: quantity(one) for key, one in requests.items()} != {key: quantity(one) for key, one in limits.items()}:
            yield f"container {name} requests {requests}, its limits are {limits}", "make them equal"


def runs_without_root(pod: PodTemplate) -> Iterator[Problem]:
    """Of a process that is broken into, root is worth most."""
    of_pod = tree(pod.spec.get("securityContext"))
    for container in pod.containers:
        context = of_pod | tree(container.get("securityContext"))
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
            yield f"container {container.get('name')} may run as root", "set runAsNonRoot: true and runAsUser to another than 0"


def has_no_privileges(pod: PodTemplate) -> Iterator[Problem]:
    """What the Pod Security Standard `restricted` asks for, and a root file system that cannot be written."""
    of_pod = tree(pod.spec.get("securityContext"))
    for container in pod.containers:
        own = tree(container.get("securityContext"))
        wrong = {
            "allowPrivilegeEscalation: false": own.get("allowPrivilegeEscalation") is not False,
            "capabilities.drop: [ALL]": "ALL" not in items(tree(own.get("capabilities")).get("drop")),
            "readOnlyRootFilesystem: true": own.get("readOnlyRootFilesystem") is not True,
            "capabilities.add to nothing": bool(tree(own.get("capabilities")).get("add")),
            "privileged: false": own.get("privileged") is True,
            "seccompProfile.type: RuntimeDefault": tree((of_pod | own).get("seccompProfile")).get("type") != "RuntimeDefault",
        }
        missing = [what for what, is_wrong in wrong.items() if is_wrong]
        if missing:
            yield f"container {container.get('name')} keeps privileges", f"set {', '.join(missing)}"
    shared = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(key)]
    shared += [f"hostPath of volume {tree(one).get('name')}" for one in items(pod.spec.get("volumes")) if "hostPath" in tree(one)]
    ports = [tree(port) for container in pod.containers for port in items(container.get("ports"))]
    shared += [f"hostPort {port['hostPort']}" for port in ports if port.get("hostPort")]
    if shared:
        yield f"shares {', '.join(shared)} with its node", "leave them out"


def has_no_service_account(pod: PodTemplate) -> Iterator[Problem]:
    """Only the autoscaler speaks to Kubernetes."""
    if pod.spec.get("automountServiceAccountToken") is not (pod.role == "head" and pod.autoscaling):
        wanted = "true, for the autoscaler" if pod.role == "head" and pod.autoscaling else "false"
        yield (
            f"automountServiceAccountToken is {pod.spec.get('automountServiceAccountToken')}",
            f"set automountServiceAccountToken: {wanted}",
        )


def image_is_pinned(pod: PodTemplate) -> Iterator[Problem]:
    """A tag is whatever was pushed last; a retry must run the same code."""
    for container in pod.containers:
        for what, remedy in image_problems(str(container.get("image"))):
            yield f"container {container.get('name')}: {what}", remedy


def image_problems(image: str) -> Iterator[Problem]:
    """Why an image will not do: it has no digest, or that of the files under k8s/, which is to be replaced."""
    found = DIGEST.fullmatch(image)
    if found is None:
        yield f"image '{image}' is not pinned", "name it as NAME@sha256:DIGEST"
    elif set(found[1]) == {"0"}:
        yield (
            f"image '{image}' is a placeholder",
            "give yours: `images:` in kustomization.yaml, which `kustomize edit set image NAME=YOURS@sha256:DIGEST` writes",
        )


def shared_memory_is_memory(pod: PodTemplate) -> Iterator[Problem]:
    """Ray's object store and vLLM live in /dev/shm, which a container has 64 MiB of by default; it counts as the pod's memory."""
    if pod.role == "submitter":
        return
    volumes = {str(tree(volume).get("name")): tree(tree(volume).get("emptyDir")) for volume in items(pod.spec.get("volumes"))}
    # Ray's is the first; containers that run before it have their own needs.
    container = tree((items(pod.spec.get("containers")) or [{}])[0])
    mounts = {str(tree(mount).get("mountPath")): str(tree(mount).get("name")) for mount in items(container.get("volumeMounts"))}
    volume = volumes.get(mounts.get(SHM, ""), {})
    limit = quantity(tree(tree(container.get("resources")).get("limits")).get("memory"))
    size = quantity(volume.get("sizeLimit"))
    if volume.get("medium") != "Memory" or size is None:
        yield f"{SHM} is the default of 64 MiB", f"mount an emptyDir with medium: Memory and a sizeLimit at {SHM}"
    elif limit is not None and size >= limit:
        yield f"{SHM} may grow to the whole memory of the pod ({volume['sizeLimit']})", "make sizeLimit smaller than the limit"


def environment_is_text(pod: PodTemplate) -> Iterator[Problem]:
    """YAML takes an unquoted 1 or true for something else; and a secret has no place in a manifest."""
    for container in pod.containers:
        for variable in map(tree, items(container.get("env"))):
            name, value = str(variable.get("name")), variable.get("value")
            if value is not None and not isinstance(value, str):
                yield f"environment variable {name} is {value!r}, no text", f'write "{value}" in quotes'
            if value and names_a_secret(name):
                yield f"environment variable {name} stands in the manifest", "take it from a Secret with valueFrom.secretKeyRef"


def ports_differ(pod: PodTemplate) -> Iterator[Problem]:
    """Of two ports with one name or number, one is not reached."""
    for container in pod.containers:
        ports = [tree(port) for port in items(container.get("ports"))]
        for key in ("name", "containerPort"):
            found = [port[key] for port in ports if key in port]
            for double in sorted({str(one) for one in found if found.count(one) > 1}):
                yield f"container {container.get('name')} has two ports of {key} {double}", "give each its own"


def is_watched(pod: PodTemplate) -> Iterator[Problem]:
    """The PodMonitor finds pods by a port of this name."""
    ports = [tree(port).get("name") for container in pod.containers for port in items(container.get("ports"))]
    if pod.role != "submitter" and "metrics" not in ports:
        yield "no container has a port named metrics", "add containerPort 8080 named metrics, where Ray offers its metrics"


def variables_differ(pod: PodTemplate) -> Iterator[Problem]:
    """Of two variables of one name the last one counts, whoever wrote the first."""
    for container in pod.containers:
        names = [str(tree(one).get("name")) for one in items(container.get("env"))]
        for double in sorted({name for name in names if names.count(name) > 1}):
            yield f"container {container.get('name')} sets {double} twice", "leave one of them"


def mounts_have_volumes(pod: PodTemplate) -> Iterator[Problem]:
    """The operator takes such a pod, and Kubernetes then refuses it, again and again."""
    volumes = [tree(volume).get("name") for volume in items(pod.spec.get("volumes"))]
    for container in pod.containers:
        mounts = [tree(mount) for mount in items(container.get("volumeMounts"))]
        for name in sorted({str(mount.get("name")) for mount in mounts if mount.get("name") not in volumes}):
            yield f"container {container.get('name')} mounts '{name}', which is no volume of the pod", "add it under volumes"
        paths = [str(mount.get("mountPath")) for mount in mounts]
        for double in sorted({path for path in paths if paths.count(path) > 1}):
            yield f"container {container.get('name')} mounts two volumes at {double}", "give each its own path"


def gpus_are_of_one_kind(pod: PodTemplate) -> Iterator[Problem]:
    """In a pool of several kinds a gang would be as fast as its slowest, and a plan for 80 GB would meet 40."""
    limits = [tree(tree(container.get("resources")).get("limits")) for container in pod.containers]
    if not any(quantity(one.get(GPU, 0)) for one in limits):
        return
    affinity = tree(tree(pod.spec.get("affinity")).get("nodeAffinity"))
    required = tree(affinity.get("requiredDuringSchedulingIgnoredDuringExecution"))
    terms = [tree(one) for term in items(required.get("nodeSelectorTerms")) for one in items(tree(term).get("matchExpressions"))]
    named = {str(one.get("key")) for one in terms if one.get("operator") == "In"} | set(tree(pod.spec.get("nodeSelector")))
    if not named - {PREEMPTIBLE}:
        yield (
            "asks for GPUs of any kind",
            "name the label of their nodes in nodeSelector, nvidia.com/gpu.product for example (kubernetes.gpu_label)",
        )


def belongs_to_a_job(pod: PodTemplate) -> Iterator[Problem]:
    """Network and disruption budget know a job's pods by this label."""
    if not pod.pod_labels.get(JOB):
        yield f"has no label {JOB}", "give all pods of a job the job's name as its value"


POD_RULES: tuple[Callable[[PodTemplate], Iterator[Problem]], ...] = (
    requests_equal_limits,
    runs_without_root,
    has_no_privileges,
    has_no_service_account,
    image_is_pinned,
    shared_memory_is_memory,
    environment_is_text,
    ports_differ,
    is_watched,
    variables_differ,
    mounts_have_volumes,
    gpus_are_of_one_kind,
    belongs_to_a_job,
)
