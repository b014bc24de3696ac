"""What the tests of manifests share: every object this project ships or renders, and the three judges of it."""

from __future__ import annotations

import copy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from dvpo_ray.kubernetes import check
from dvpo_ray.kubernetes.manifests import Tree
from scripts.k8s_overlays import IMAGE, JOBS, OVERLAYS, ROOT
from tests.support.crds import CustomResources

DIGEST = "sha256:" + "5d" * 32
OVERLAY_NAMES = sorted({str(Path(name).parent) for name, *_ in JOBS})


def needs_kubectl() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on this machine")


def built(overlay: str, folder: Path, image: str | None = f"registry.test/dvpo@{DIGEST}") -> list[Tree]:
    """An overlay as `kubectl kustomize` builds it, with an image of our own put in as the guide says."""
    copied = folder / "k8s"
    shutil.copytree(ROOT / "k8s", copied)
    place = copied / OVERLAYS.relative_to("k8s") / overlay
    if image is not None:
        name, digest = image.split("@")
        replaced = [{"name": IMAGE.split("@")[0], "newName": name, "digest": digest}]
        file = place / "kustomization.yaml"
        file.write_text(file.read_text() + yaml.safe_dump({"images": replaced}))
    done = subprocess.run(["kubectl", "kustomize", str(place)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def by_rules(documents: list[Tree]) -> list[str]:
    return [str(finding) for finding in check(documents)]


@cache
def native_schemas() -> Any:
    """`kubernetes-validate`, which would read its definitions, 2 MB, anew for every document."""
    import kubernetes_validate

    utils = kubernetes_validate.utils
    utils.schema_contents = cache(utils.schema_contents)
    return kubernetes_validate


def by_schema(documents: list[Tree]) -> list[str]:
    """`kubernetes-validate --strict` knows the native kinds."""
    kubernetes_validate, found = native_schemas(), []
    for document in documents:
        try:
            kubernetes_validate.validate(copy.deepcopy(document), "1.32", strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            continue
        except kubernetes_validate.ValidationError as error:
            found.append(f"{document['kind']}: {error.message}")
    return found


@cache
def _custom_resources() -> CustomResources:
    return CustomResources()


def by_crds(documents: list[Tree]) -> list[str]:
    """KubeRay's own schemas know its kinds."""
    return [problem for document in documents for problem in _custom_resources().problems(document)]
