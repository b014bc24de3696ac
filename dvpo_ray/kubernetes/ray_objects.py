"""The RayJob or RayCluster of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

import yaml

from dvpo_ray.config import Recipe
from dvpo_ray.kubernetes.additions import add, section_of
from dvpo_ray.kubernetes.manifests import JOB, PART_OF, ROLE, Tree
from dvpo_ray.kubernetes.network import start_params
from dvpo_ray.kubernetes.nodes import gpu_selector
from dvpo_ray.kubernetes.operator_rules import QUEUE
from dvpo_ray.kubernetes.pods import RECIPES, PodMaker, autoscaler_options
from dvpo_ray.kubernetes.secrets import refuse_missing_tokens, secret_environment
from dvpo_ray.kubernetes.sizing import GIB, SMALLEST_STORE_GIB, Group, Sizing
from dvpo_ray.kubernetes.stopping import StopTimes, stop_times
from dvpo_ray.submission.package import COMMANDS, STOP_WAIT

RETRIES = 3
KEPT_AFTER_S = 600
# The operator's name of the head's group.
HEAD_GROUP = "headgroup"


@dataclass(frozen=True)
class JobMaker:
    """Makes the Ray object of one job; ``claim`` and ``secret`` name the volume of its runs and the Secret of its tokens."""

    name: str
    recipe: Recipe
    sizing: Sizing
    image: str
    claim: str
    secret: str | None

    @property
    def times(self) -> StopTimes:
        """What a stop may take."""
        return stop_times(self.recipe, self.sizing.plans)

    def job(self, autoscaling: bool, queue: str | None) -> Tree:
        """A job that is tried again, or one that waits in a queue of Kueue's.

        Raises:
            UserInputError: what the recipe adds to pods, or the tokens that it reads, do not fit together.
        """
        command = COMMANDS[type(self.recipe)][1]
        spec: Tree = {
            "entrypoint": f"dvpo {command} {RECIPES}/recipe.toml --resume auto --json",
            "metadata": {"run": self.recipe.run.name, "command": f"dvpo {command}"},
            # The job server kills a job so long after it has asked it to stop; Ray's own default is 3 s.
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": {STOP_WAIT: str(self.times.job)}}),
            "submissionMode": "K8sJobMode",
            "preRunningDeadlineSeconds": self.recipe.kubernetes.start_deadline_s,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEPT_AFTER_S,
            "backoffLimit": RETRIES,
        }
        head = self._object("RayJob")
        if queue is not None:
            head["metadata"]["labels"] |= {QUEUE: queue}
            spec["suspend"] = True
        submitter = self._pods.submitter()
        add(submitter, section_of(self.recipe.kubernetes, "submitter"), self.name, "submitter")
        return head | {"spec": spec | {"submitterPodTemplate": submitter, "rayClusterSpec": self._cluster(autoscaling)}}

    def cluster(self, autoscaling: bool) -> Tree:
        """A cluster that people work on. It outlives its head; a job that loses its head loses its driver, and is tried again."""
        spec = self._cluster(autoscaling)
        spec["gcsFaultToleranceOptions"] = {"backend": "rocksdb", "storage": {"size": "1Gi"}}
        return self._object("RayCluster") | {"spec": spec}

    @property
    def _pods(self) -> PodMaker:
        return PodMaker(self.name, self.image, self.claim, self.times)

    def _object(self, kind: str) -> Tree:
        return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": self.name, "labels": PART_OF | {JOB: self.name}}}

    def _cluster(self, autoscaling: bool) -> Tree:
        cluster: Tree = {
            "rayVersion": metadata.version("ray"),
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": autoscaling,
        }
        if autoscaling:
            cluster["autoscalerOptions"] = autoscaler_options()
        # The dashboard must be reached through the head's service; token and NetworkPolicy say by whom.
        start = {"num-cpus": "0", "dashboard-host": "0.0.0.0", "object-store-memory": str(SMALLEST_STORE_GIB * GIB)}
        head = self._with_additions(self._pods.head(autoscaling), "head", HEAD_GROUP)
        cluster["headGroupSpec"] = {"serviceType": "ClusterIP", "rayStartParams": start | start_params(), "template": head}
        cluster["workerGroupSpecs"] = [self._group(group, autoscaling) for group in self.sizing.groups]
        return cluster

    def _group(self, group: Group, autoscaling: bool) -> Tree:
        if group.role in ("", "scorer"):
            refuse_missing_tokens(self.recipe, group.role, self.secret)
        start = {"num-cpus": str(max(group.cpus, group.actors)), "object-store-memory": str(group.store_gib * GIB)}
        found: Tree = {
            "groupName": group.name,
            "replicas": group.pods,
            "minReplicas": group.pods,
            "maxReplicas": group.most if autoscaling else group.pods,
            "rayStartParams": start | start_params(),
        }
        if group.role:
            found["labels"] = {ROLE: group.role}
        template = self._pods.worker(group)
        selector = gpu_selector(self.recipe.kubernetes, group, self.sizing.device)
        if selector:
            template["spec"]["nodeSelector"] = selector
        return found | {"template": self._with_additions(template, group.role, group.name)}

    def _with_additions(self, template: Tree, role: str, group: str) -> Tree:
        container = template["spec"]["containers"][0]
        variables, sources = secret_environment(self.recipe, role, self.secret)
        container["env"] += variables
        if sources:
            container["envFrom"] = sources
        add(template, section_of(self.recipe.kubernetes, role), self.name, group)
        return template
