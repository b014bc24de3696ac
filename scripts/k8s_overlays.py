"""Writes what is generated under k8s/: the jobs of the overlays from their recipes, and the alert rules. Run by `make k8s`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from dvpo_ray.config import PipelineRecipe, PolicyRecipe, Recipe
from dvpo_ray.kubernetes.render import Flavour, Request, render

ROOT = Path(__file__).resolve().parents[1]
OVERLAYS = Path("k8s/overlays")
ALERTS = Path("k8s/components/monitoring/alerts.yaml")
# `kustomize edit set image` gives the real one; `dvpo k8s check` refuses this one.
IMAGE = "registry.example/dvpo-ray@sha256:" + 64 * "0"
LARGE = "gpu-large"
JOBS: tuple[tuple[str, str, type[Recipe], Request], ...] = (
    ("cpu-demo/job.yaml", "demo", PipelineRecipe, Request("cpu:2:20", IMAGE)),
    ("gpu-small/job.yaml", "k8s/overlays/gpu-small/recipe.toml", PipelineRecipe, Request("1xL4-24GB", IMAGE)),
    (
        "gpu-small/interactive/cluster.yaml",
        "k8s/overlays/gpu-small/recipe.toml",
        PipelineRecipe,
        Request("1xL4-24GB", IMAGE, Flavour.INTERACTIVE),
    ),
    (
        "gpu-large/job.yaml",
        "k8s/overlays/gpu-large/recipe.toml",
        PolicyRecipe,
        Request("16xH100-80GB", IMAGE, model=ROOT / OVERLAYS / LARGE / "model"),
    ),
    (
        "gpu-large/kueue/job.yaml",
        "k8s/overlays/gpu-large/recipe.toml",
        PolicyRecipe,
        Request("16xH100-80GB", IMAGE, Flavour.KUEUE, model=ROOT / OVERLAYS / LARGE / "model"),
    ),
)


def generated() -> Iterator[tuple[Path, str]]:
    """(path in the repository, content) of every generated file."""
    for name, recipe, kind, request in JOBS:
        source = str(ROOT / recipe) if "/" in recipe else recipe
        header = f"# Generated from the recipe `{recipe}` by `make k8s`; do not edit.\n"
        yield OVERLAYS / name, header + render(kind, source, [], request)
    yield ALERTS, alert_rules()


def alert_rules() -> str:
    """The alert rules as the Prometheus operator takes them."""
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    content = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "dvpo", "namespace": "dvpo", "labels": {"release": "prometheus"}},
        "spec": rules,
    }
    header = "# Generated from deploy/prometheus/alerts.yml by `make k8s`; do not edit.\n"
    return header + yaml.safe_dump(content, sort_keys=False, width=120)


def main() -> None:
    """Write all of them."""
    for path, content in generated():
        (ROOT / path).write_text(content, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
