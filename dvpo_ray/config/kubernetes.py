"""What a cluster's owner adds to the pods of a rendered job (`dvpo k8s render`): where they run, what they mount, how they stop.

Whatever comes more than once has a name of your own, so that a role's section and an override add to those of all pods.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from dvpo_ray.config.base import Section
from dvpo_ray.io.secrets import names_a_secret

LABEL_NAME = r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, StringConstraints(pattern=rf"^{LABEL_NAME}$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
OwnName = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,253}$")]
KeyOfObject = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-a-z0-9.]*:[-._A-Za-z0-9]+$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Weight = Annotated[int, Field(ge=1, le=100)]
Effect = Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
# What the renderer mounts and says itself.
OWN_MOUNTS = ("/tmp", "/dev/shm", "/runs", "/etc/dvpo")
OWN_VOLUMES = ("tmp", "shm", "runs", "recipe")
OWN_VARIABLES = ("HOME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
OWN_LABELS = ("dvpo-ray/", "ray.io/", "kueue.x-k8s.io/", "app.kubernetes.io/part-of")
PLANNED_RESOURCES = ("cpu", "memory", "nvidia.com/gpu", "ephemeral-storage")


class TolerationSection(Section):
    """A taint of nodes that pods bear."""

    key: LabelKey = Field(description="The taint's key.")
    value: LabelValue | None = Field(None, description="The taint's value; none bears any.")
    effect: Effect | None = Field(None, description="The taint's effect; none bears any.")


class NodeTermSection(Section):
    """A condition on labels of nodes."""

    key: LabelKey = Field(description="The label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field("In", description="What must hold of it.")
    values: list[LabelValue] = Field([], description="What it is compared with; of `Exists` and `DoesNotExist` nothing.")
    weight: Weight | None = Field(
        None, description="How much it is wished for (1 to 100); none: pods run on no other node, and all such terms must hold."
    )

    @model_validator(mode="after")
    def _validate_values(self) -> Self:
        wanted = {"Exists": (0, 0), "DoesNotExist": (0, 0), "Gt": (1, 1), "Lt": (1, 1)}.get(self.operator, (1, 10**6))
        if not wanted[0] <= len(self.values) <= wanted[1]:
            how_many = "at least one" if wanted[1] > 1 else "one" if wanted[1] else "none"
            raise ValueError(f"operator = '{self.operator}' with {len(self.values)} values: give {how_many}")
        return self


class PodTermSection(Section):
    """Which pods are near each other or apart."""

    topology_key: LabelKey = Field(description="Label of nodes that says what near is, `kubernetes.io/hostname` or a rack's.")
    labels: dict[LabelKey, LabelValue] = Field(
        {}, description="Of the other pods; none: those of this job in the same group of pods."
    )
    apart: bool = Field(False, description="Keep away from them instead.")
    weight: Weight | None = Field(None, description="How much it is wished for (1 to 100); none: it must be so.")


class SpreadSection(Section):
    """How evenly the pods of a group are spread."""

    topology_key: LabelKey = Field(description="Label of nodes over whose values they are spread, a zone's for example.")
    max_skew: int = Field(1, ge=1, description="Largest difference between two of them.")
    required: bool = Field(False, description="Start no pod that would break it, instead of the least uneven choice.")


class VolumeSection(Section):
    """A volume beside that of the runs: one of a claim, a Secret, a ConfigMap, or an empty folder of some size."""

    path: str = Field(pattern=r"^/[^:]*[^/:]$", description="Where containers see it.")
    claim: ObjectName | None = Field(None, description="PersistentVolumeClaim.")
    secret: ObjectName | None = Field(None, description="Secret, a file a key.")
    config_map: ObjectName | None = Field(None, description="ConfigMap, a file a key.")
    empty_gib: int | None = Field(None, ge=1, description="Size of a folder of the node's disk that ends with the pod, in GiB.")
    sub_path: str | None = Field(None, min_length=1, description="A folder within the volume; none is all of it.")
    read_only: bool = Field(True, description="Whether it can only be read; an empty folder can be written.")

    @model_validator(mode="after")
    def _validate_source(self) -> Self:
        given = [name for name in ("claim", "secret", "config_map", "empty_gib") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a volume is one of claim, secret, config_map and empty_gib; got {given or 'none of them'}")
        if any(self.path == own or self.path.startswith(f"{own}/") for own in OWN_MOUNTS if own != "/runs"):
            raise ValueError(f"path = '{self.path}' is within what is mounted already ({', '.join(OWN_MOUNTS)}): take another")
        if self.path == "/runs":
            raise ValueError("path = '/runs' is the volume of the runs: name that one with --claim")
        return self


class PodSection(Section):
    """What is added to pods. Names of a role's section go before those of all pods."""

    node_selector: dict[LabelKey, LabelValue] = Field({}, description="Labels that their nodes must have.")
    tolerations: dict[OwnName, TolerationSection] = Field({}, description="Taints of nodes that they bear.")
    node_affinity: dict[OwnName, NodeTermSection] = Field({}, description="Conditions on labels of their nodes.")
    pod_affinity: dict[OwnName, PodTermSection] = Field({}, description="Pods to be near to, or away from.")
    spread: dict[OwnName, SpreadSection] = Field({}, description="How the pods of a group are spread over nodes.")
    env: dict[Variable, str] = Field({}, description="Environment variables. Nothing secret: they stand in the manifest.")
    secret_env: dict[Variable, KeyOfObject] = Field(
        {}, description='Environment variables from a Secret: `{HF_TOKEN = "SECRET:KEY"}`.'
    )
    env_secrets: list[ObjectName] = Field([], description="Secrets whose keys are all environment variables.")
    env_config_maps: list[ObjectName] = Field([], description="ConfigMaps whose keys are all environment variables.")
    volumes: dict[OwnName, VolumeSection] = Field({}, description="Volumes beside that of the runs.")
    image_pull_secrets: list[ObjectName] = Field([], description="Secrets that open the image's registry.")
    annotations: dict[LabelKey, str] = Field({}, description="Annotations of pods.")
    labels: dict[LabelKey, LabelValue] = Field({}, description="Labels of pods beside the project's own.")
    service_account: ObjectName | None = Field(
        None, description="Service account, for a cloud's workload identity; its token is not mounted."
    )
    priority_class: ObjectName | None = Field(None, description="PriorityClass in place of the project's own.")
    runtime_class: ObjectName | None = Field(None, description="RuntimeClass, `nvidia` for example.")
    scheduler: ObjectName | None = Field(None, description="Scheduler in place of Kubernetes' own.")
    resources: dict[LabelKey, Annotated[int, Field(ge=1)]] = Field(
        {}, description='More devices for each pod, as in `{"rdma/hca" = 1}`; CPUs, memory and GPUs are the plan\'s.'
    )

    @field_validator("env")
    @classmethod
    def _refuse_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if names_a_secret(name):
                raise ValueError(f"'{name}' would stand in the manifest: take it from a Secret, with secret_env or env_secrets")
        return env

    @field_validator("env", "secret_env")
    @classmethod
    def _refuse_own_variables(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if name in OWN_VARIABLES:
                raise ValueError(f"'{name}' is set by the project or the operator: leave it out")
        return env

    @field_validator("volumes")
    @classmethod
    def _refuse_own_volumes(cls, volumes: dict[str, VolumeSection]) -> dict[str, VolumeSection]:
        for name in volumes:
            if name in OWN_VOLUMES:
                raise ValueError(f"volume '{name}' is one of the project's own: take another name")
        return volumes

    @field_validator("labels")
    @classmethod
    def _refuse_own_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        for name in labels:
            if name.startswith(OWN_LABELS):
                raise ValueError(f"label '{name}' is set by the project or the operator: leave it out")
        return labels

    @field_validator("resources")
    @classmethod
    def _refuse_planned(cls, resources: dict[str, int]) -> dict[str, int]:
        for name in resources:
            if name in PLANNED_RESOURCES:
                raise ValueError(
                    f"resource '{name}' follows from the plan: leave it out, and see `--devices` of `dvpo k8s render`"
                )
        return resources


class EgressSection(Section):
    """A place outside the job that its pods may reach: a network, or the pods of a namespace."""

    cidr: str | None = Field(None, description="Network, as in `10.20.0.0/16`.")
    namespace: ObjectName | None = Field(None, description="Namespace of this cluster.")
    ports: list[Port] = Field(min_length=1, description="TCP ports there.")

    @model_validator(mode="after")
    def _validate_place(self) -> Self:
        if (self.cidr is None) == (self.namespace is None):
            raise ValueError("give either cidr or namespace")
        if self.cidr is not None:
            try:
                ipaddress.ip_network(self.cidr)
            except ValueError as error:
                raise ValueError(f"cidr = '{self.cidr}' is no network: {error}") from error
        return self


class KubernetesSection(Section):
    """A job on Kubernetes: `dvpo k8s render` puts it into the manifests, and nothing else reads it."""

    stop_wait_s: Literal["auto"] | Annotated[int, Field(ge=60)] = Field(
        "auto",
        description="Longest wait for a job to checkpoint and end when it is stopped, or its pods are deleted, in seconds. "
        "`auto`: four planned steps, the planned checkpoint and its copies; at least 300, and no longer than all stages' own "
        "deadlines together.",
    )
    start_deadline_s: int = Field(
        3600,
        ge=60,
        description="Longest wait for pods and images until the job runs, in seconds; a job whose pods find no room fails then.",
    )
    gpu_label: LabelKey = Field(
        "nvidia.com/gpu.product",
        description="Label of nodes that tells their GPUs' kind; the default is that of NVIDIA's GPU feature discovery.",
    )
    gpu_product: LabelValue | None = Field(
        None,
        min_length=1,
        description="Its value on the nodes to use; none is that of the SXM board of the kind in `--devices`.",
    )
    egress: dict[OwnName, EgressSection] = Field({}, description="What pods of the job may reach outside it.")
    all: PodSection = Field(default_factory=PodSection, description="Added to all pods of a job.")
    head: PodSection = Field(default_factory=PodSection, description="Added to the head, where the driver is.")
    learner: PodSection = Field(default_factory=PodSection, description="Added to the pods of learner ranks.")
    scorer: PodSection = Field(default_factory=PodSection, description="Added to the pods of scorers.")
    rollout: PodSection = Field(default_factory=PodSection, description="Added to the pods of engines.")
