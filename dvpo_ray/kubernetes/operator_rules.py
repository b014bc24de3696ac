"""What KubeRay and Kueue ask of a RayJob or RayCluster beyond its schema. One function a rule; each yields (what, remedy).

Those of KubeRay are in its ``ray-operator/controllers/ray/utils/validation.go``: an object that breaks one is accepted by the
API server and then fails in the operator.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from dvpo_ray.kubernetes.manifests import PREEMPTIBLE, ROLE, RayObject, items, tree

Problem = tuple[str, str]
LONGEST = {"RayJob": 47, "RayCluster": 50}
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
QUEUE = "kueue.x-k8s.io/queue-name"
# Kueue takes 8 sets of pods; the head and the submitter are two of them.
MOST_QUEUED_GROUPS = 6
NEVER_DELETED = "DeleteNone"


def name_is_a_short_label(ray: RayObject) -> Iterator[Problem]:
    """Pods and services are named after it."""
    most = LONGEST[ray.kind]
    if len(ray.name) > most or not DNS_LABEL.fullmatch(ray.name):
        yield (
            f"name '{ray.name}' ({len(ray.name)} characters) will not do",
            f"take at most {most} small letters, digits and hyphens that begin with a letter",
        )


def suspension_needs_shutdown(ray: RayObject) -> Iterator[Problem]:
    """A job that a queue can take back must give its cluster up."""
    if not ray.job.get("suspend"):
        return
    if ray.job.get("shutdownAfterJobFinishes") is not True:
        yield "suspend without shutdownAfterJobFinishes", "set shutdownAfterJobFinishes: true"
    if ray.job.get("clusterSelector"):
        yield "suspend with clusterSelector", "give the job a cluster of its own in rayClusterSpec"


def deletion_has_one_rule_book(ray: RayObject) -> Iterator[Problem]:
    """Deletion rules, shutdown and suspension are different ways to end a cluster."""
    strategy, shutdown = tree(ray.job.get("deletionStrategy")), ray.job.get("shutdownAfterJobFinishes") is True
    rules = [tree(rule) for rule in items(strategy.get("deletionRules"))]
    if rules and (shutdown or ray.job.get("suspend")):
        yield "deletionRules with shutdownAfterJobFinishes or suspend", "keep one of them"
    if not shutdown and ray.job.get("ttlSecondsAfterFinished"):
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes", "set shutdownAfterJobFinishes: true"
    policies = [tree(strategy.get(when)).get("policy") for when in ("onSuccess", "onFailure")]
    if ray.autoscaling and "DeleteWorkers" in policies + [rule.get("policy") for rule in rules]:
        yield "DeleteWorkers with autoscaling, which would start them again", "take DeleteCluster"
    if shutdown and NEVER_DELETED in policies:
        yield "shutdownAfterJobFinishes with DeleteNone", "keep one of them"


def a_retry_goes_on(ray: RayObject) -> Iterator[Problem]:
    """A retry gets a new cluster: only a volume carries checkpoints over, and only --resume auto takes them up."""
    if not ray.job.get("backoffLimit"):
        return
    if "--resume auto" not in str(ray.job.get("entrypoint")):
        yield "backoffLimit, but the entrypoint begins anew each time", "add --resume auto to the entrypoint"
    volumes = [tree(volume) for pod in ray.pods() if pod.role == "head" for volume in items(pod.spec.get("volumes"))]
    if not any("persistentVolumeClaim" in volume for volume in volumes):
        yield "backoffLimit, but the head has no volume that outlives it", "mount a persistentVolumeClaim for the runs"
    if ray.job.get("submissionMode") == "InteractiveMode" or ray.job.get("clusterSelector"):
        yield "backoffLimit with InteractiveMode or clusterSelector", "set backoffLimit: 0"


def the_submitter_is_ours(ray: RayObject) -> Iterator[Problem]:
    """The operator's own submitter keeps its privileges: a namespace that is `restricted` refuses it, and no job starts."""
    mode = ray.job.get("submissionMode", "K8sJobMode")
    if ray.job and mode == "K8sJobMode" and "submitterPodTemplate" not in ray.job:
        yield "no submitterPodTemplate: the operator's own keeps privileges", "give one, as `dvpo k8s render` does"
    if mode == "SidecarMode":
        yield "SidecarMode, whose container keeps privileges", "take K8sJobMode with a submitterPodTemplate"


def a_queue_wants_fixed_sizes(ray: RayObject) -> Iterator[Problem]:
    """Kueue admits a job as a whole."""
    if not ray.job.get("suspend"):
        return
    if ray.autoscaling:
        yield "a queued job with autoscaling", "set enableInTreeAutoscaling: false"
    if len(ray.workers) > MOST_QUEUED_GROUPS:
        yield f"a queued job with {len(ray.workers)} worker groups", f"take at most {MOST_QUEUED_GROUPS}"


def the_head_computes_nothing(ray: RayObject) -> Iterator[Problem]:
    """An actor that fills the head's memory takes the cluster down."""
    found = tree(ray.head.get("rayStartParams")).get("num-cpus")
    if ray.cluster and found != "0":
        yield f"the head offers num-cpus {found!r}", 'set rayStartParams num-cpus: "0"'


def autoscaling_is_version_2(ray: RayObject) -> Iterator[Problem]:
    """Version 2 knows what an idle actor is; it needs pods that end when Ray does."""
    if not ray.autoscaling:
        return
    if tree(ray.cluster.get("autoscalerOptions")).get("version") != "v2":
        yield "autoscaling without autoscalerOptions.version v2", "set autoscalerOptions.version: v2"
    for pod in ray.pods():
        if pod.role != "submitter" and pod.spec.get("restartPolicy", "Never") != "Never":
            yield f"restartPolicy {pod.spec['restartPolicy']} with autoscaling", "set restartPolicy: Never"


def replicas_are_in_order(ray: RayObject) -> Iterator[Problem]:
    """minReplicas <= replicas <= maxReplicas."""
    for group in ray.workers:
        given = [group.get(key) for key in ("minReplicas", "replicas", "maxReplicas")]
        sizes = [size for size in given if isinstance(size, int)]
        if sizes != sorted(sizes) or any(size < 0 for size in sizes):
            yield (
                f"group {group.get('groupName')} has minReplicas, replicas, maxReplicas {sizes}",
                "take minReplicas <= replicas <= maxReplicas",
            )


def group_names_differ(ray: RayObject) -> Iterator[Problem]:
    """Pods are counted by the name of their group."""
    names = [group.get("groupName") for group in ray.workers]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield f"two groups are named '{name}'", "give every group a name of its own"


def access_needs_a_token(ray: RayObject) -> Iterator[Problem]:
    """Who reaches the dashboard runs code in the cluster."""
    if not ray.cluster:
        return
    mode = tree(ray.cluster.get("authOptions")).get("mode")
    if mode != "token":
        yield f"authOptions.mode is {mode!r}: whoever reaches the cluster runs code in it", "set authOptions.mode: token"
    found = re.match(r"(\d+)\.(\d+)", str(ray.cluster.get("rayVersion")))
    if mode == "token" and (found is None or (int(found[1]), int(found[2])) < (2, 52)):
        yield (
            f"token authentication with rayVersion {ray.cluster.get('rayVersion')!r}",
            "name the image's, 2.52 or later",
        )


def the_dashboard_stays_inside(ray: RayObject) -> Iterator[Problem]:
    """Nothing of Ray is offered outside the Kubernetes cluster."""
    if ray.head.get("enableIngress"):
        yield "the head's ingress is on", "leave enableIngress out, and use `kubectl port-forward`"
    service = tree(tree(ray.head.get("headService")).get("spec")).get("type", "ClusterIP")
    for found in (ray.head.get("serviceType", "ClusterIP"), service):
        if found != "ClusterIP":
            yield f"the head's service is a {found}", "set serviceType: ClusterIP, and use `kubectl port-forward`"


def fault_tolerance_has_one_store(ray: RayObject) -> Iterator[Problem]:
    """KubeRay refuses two words on where the state of the head lives."""
    options = tree(ray.cluster.get("gcsFaultToleranceOptions"))
    if options and "ray.io/ft-enabled" in ray.annotations:
        yield "gcsFaultToleranceOptions and the annotation ray.io/ft-enabled", "leave the annotation out"
    if options.get("backend") == "rocksdb" and {"redisAddress", "redisUsername", "redisPassword"} & set(options):
        yield "gcsFaultToleranceOptions names rocksdb and a Redis", "keep one of them"


def the_gang_is_not_preempted(ray: RayObject) -> Iterator[Problem]:
    """A learner rank that is taken away costs all ranks the steps since the last checkpoint."""
    for pod in ray.pods():
        keys = [tree(one).get("key") for one in items(pod.spec.get("tolerations"))]
        gang = pod.role == "head" or pod.labels.get(ROLE) == "learner"
        if gang and (PREEMPTIBLE in keys or None in keys):
            yield f"{pod.where} tolerates preemptible nodes", f"leave the toleration of {PREEMPTIBLE} to rollouts and scorers"


OPERATOR_RULES: tuple[Callable[[RayObject], Iterator[Problem]], ...] = (
    name_is_a_short_label,
    suspension_needs_shutdown,
    deletion_has_one_rule_book,
    a_retry_goes_on,
    the_submitter_is_ours,
    a_queue_wants_fixed_sizes,
    the_head_computes_nothing,
    autoscaling_is_version_2,
    replicas_are_in_order,
    group_names_differ,
    access_needs_a_token,
    the_dashboard_stays_inside,
    fault_tolerance_has_one_store,
    the_gang_is_not_preempted,
)
