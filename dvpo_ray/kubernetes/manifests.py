"""Manifests as plain trees: read strictly, and seen as what the rules are about. Wrong shapes are for the schema to name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from dvpo_ray.errors import UserInputError

Tree = dict[str, Any]
PART_OF = {"app.kubernetes.io/part-of": "dvpo-ray"}
JOB, GANG, ROLE = "dvpo-ray/job", "dvpo-ray/gang", "dvpo-ray/role"
PREEMPTIBLE = "dvpo-ray/preemptible"
MERGE = "tag:yaml.org,2002:merge"
BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
DECIMAL = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


@dataclass(frozen=True)
class Finding:
    """A broken rule: where it is broken, what is wrong, how to mend it. ``file`` is empty for what came from none."""

    rule: str
    where: str
    message: str
    remedy: str
    file: str = ""

    def __str__(self) -> str:
        where = f"{self.file}: {self.where}" if self.file else self.where
        return f"{where}: {self.message}: {self.remedy} [{self.rule}]"


@dataclass(frozen=True)
class PodTemplate:
    """One kind of pod of a Ray object. ``role`` is ``head``, ``worker`` or ``submitter``; ``labels`` are those of Ray's node,
    ``pod_labels`` those of the pod, ``group`` the name of a worker's group."""

    where: str
    role: str
    spec: Tree
    autoscaling: bool = False
    labels: Tree = field(default_factory=dict)
    pod_labels: Tree = field(default_factory=dict)
    group: str = ""

    @property
    def containers(self) -> list[Tree]:
        """All containers, those that run before the others included."""
        return [tree(one) for key in ("initContainers", "containers") for one in items(self.spec.get(key))]


@dataclass(frozen=True)
class RayObject:
    """A RayJob (``job`` is its spec) or a RayCluster (``job`` is empty)."""

    kind: str
    name: str
    annotations: Tree
    job: Tree
    cluster: Tree

    @property
    def where(self) -> str:
        """How findings name it."""
        return f"{self.kind} {self.name}"

    @property
    def autoscaling(self) -> bool:
        """Whether Ray's autoscaler runs beside the head."""
        return self.cluster.get("enableInTreeAutoscaling") is True

    @property
    def head(self) -> Tree:
        """The head group."""
        return tree(self.cluster.get("headGroupSpec"))

    @property
    def workers(self) -> list[Tree]:
        """The worker groups."""
        return [tree(group) for group in items(self.cluster.get("workerGroupSpecs"))]

    def pods(self) -> Iterator[PodTemplate]:
        """Every kind of pod it makes."""
        if self.head:
            yield self._pod("head", "head", self.head.get("template"))
        for group in self.workers:
            name = str(group.get("groupName", "?"))
            yield self._pod("worker", f"group {name}", group.get("template"), tree(group.get("labels")), name)
        if "submitterPodTemplate" in self.job:
            yield self._pod("submitter", "submitter", self.job["submitterPodTemplate"])

    def _pod(self, role: str, where: str, template: Any, labels: Tree | None = None, group: str = "") -> PodTemplate:
        found = tree(template)
        pod_labels = tree(tree(found.get("metadata")).get("labels"))
        autoscaling = self.autoscaling and role == "head"
        return PodTemplate(f"{self.where}, {where}", role, tree(found.get("spec")), autoscaling, labels or {}, pod_labels, group)


def read_manifests(path: Path) -> list[Tree]:
    """All objects of a YAML file (``-`` is standard input); those of a List, as `kubectl get -o yaml` prints it, one by one.

    Raises:
        UserInputError: it cannot be read, is no YAML, names a key twice, or holds something that is no manifest.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(f"{path}: cannot read the manifest: {error}") from error
    try:
        documents = [document for document in yaml.load_all(text, Loader=_StrictLoader) if document is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none; brackets without end
        raise UserInputError(f"{path}: not valid YAML: {error}") from error
    if not documents:
        raise UserInputError(f"{path}: holds no manifest")
    found: list[Tree] = []
    for number, document in enumerate(documents, 1):
        if isinstance(document, dict) and document.get("kind") == "List":
            inner = [(f"{number}, item {index},", item) for index, item in enumerate(items(document.get("items")), 1)]
        else:
            inner = [(str(number), document)]
        for place, one in inner:
            if not isinstance(one, dict) or not isinstance(one.get("kind"), str):
                raise UserInputError(f"{path}: document {place} has no kind: every document must be a Kubernetes object")
            found.append(one)
    return found


def ray_object(document: Mapping[str, Any]) -> RayObject | None:
    """A document as a Ray object; None when it is another kind."""
    kind = document.get("kind")
    if not str(document.get("apiVersion")).startswith("ray.io/") or kind not in ("RayJob", "RayCluster"):
        return None
    metadata, spec = tree(document.get("metadata")), tree(document.get("spec"))
    job = spec if kind == "RayJob" else {}
    cluster = tree(spec.get("rayClusterSpec")) if kind == "RayJob" else spec
    return RayObject(str(kind), str(metadata.get("name", "")), tree(metadata.get("annotations")), job, cluster)


def tree(value: Any) -> Tree:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def quantity(value: Any) -> float | None:
    """A Kubernetes quantity as a number; None when it is none. ``500m`` is 0.5, ``2Gi`` is 2147483648."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:[eE]\d+)?)([KMGTPE]i|[numkMGTPE]?)", str(value))
    return None if found is None else float(Decimal(found[1]) * Decimal(str((BINARY | DECIMAL)[found[2]])))


# libyaml reads ten times as fast; a PyYAML built without it has no such loader.
class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as an API server takes it: a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # Keys that come in by `<<` may be there already: those that are written win.
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands more than once", node.start_mark)
        return super().construct_mapping(node, deep)
