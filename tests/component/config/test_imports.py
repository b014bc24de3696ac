"""What fresh processes import."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = ("config", "data", "types", "errors", "runs.prometheus", "kubernetes", "submission.package")


@pytest.mark.parametrize("module", [*(f"dvpo_ray.{name}" for name in LIGHT), "jobs.cli.main"])
def test_light_layers_stay_light(module: str) -> None:
    heavy = ("torch", "ray", "vllm", "deepspeed", "transformers", "actors.learner", "actors.rollout", "jobs.train_policy")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_the_library_never_imports_actors_or_jobs() -> None:
    code = (
        "import sys, pkgutil, importlib, dvpo_ray\n"
        "for m in pkgutil.walk_packages(dvpo_ray.__path__, 'dvpo_ray.'): importlib.import_module(m.name)\n"
        "print([m for m in ('ray', 'vllm', 'deepspeed', 'actors', 'jobs') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "[]"
