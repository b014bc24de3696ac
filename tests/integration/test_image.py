"""The steps that build the image, carried out in a folder of their own, where no bare Debian can be made (test_image_root.py does
more): what they make runs without this checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.dockerfile import CAN, ROOT, stages

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif("DVPO_TEST_IMAGE" not in os.environ, reason="sets up another 4 GB environment: set DVPO_TEST_IMAGE=1"),
    pytest.mark.skipif(CAN, reason="test_image_root.py does the same, and more"),
]


def test_the_steps_of_the_image_make_an_environment_that_runs(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "dvpo"
    source.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for instruction, arguments in stages()[1]:
        arguments = arguments.replace("/opt/dvpo", str(target)).replace("${ENGINE}", "cpu")
        if instruction == "ENV":
            environment |= dict(pair.split("=") for pair in arguments.split())
        elif instruction == "COPY":
            *names, place = arguments.split()
            for name in names:
                copy(ROOT / name, source / place if len(names) == 1 else source / name)
        elif instruction == "RUN":
            subprocess.run(arguments, shell=True, cwd=source, env=environment, check=True, timeout=900)
    shutil.rmtree(source)
    home = tmp_path / "home"
    home.mkdir()
    runtime = {"PATH": f"{target}/bin:/usr/bin:/bin", "HOME": str(home), "DVPO_CACHE_DIR": str(tmp_path / "cache")}
    command = [str(target / "bin" / "dvpo"), "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=runtime, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {check["status"] for check in json.loads(done.stdout)["checks"]} <= {"ok", "warn"}
    shown = subprocess.run([command[0], "config", "check", "demo", "--json"], cwd=tmp_path, env=runtime, timeout=60, check=False)
    assert shown.returncode == 0
    assert not (target / "bin" / "pytest").exists(), "the image holds what runs the project, not what tests it"


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
