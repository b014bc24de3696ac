"""The wheel carries what a user needs who has no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("dvpo_ray", "actors", "jobs")


def test_the_wheel_holds_code_data_recipes_and_templates(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in PARTS:
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, timeout=120, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("dvpo_ray-*.whl"))) as wheel:
        packed = set(wheel.namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for name in PARTS
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - packed == set()


def pythons() -> dict[str, str]:
    """Where the Pythons are that the project is for, as far as this machine has them; this one at least."""
    found = {sys.version.split()[0].rpartition(".")[0]: sys.executable}
    for version in ("3.11", "3.12", "3.13"):
        here = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
        other = str(here[-1]) if here else shutil.which(f"python{version}")
        if other is not None:
            found.setdefault(version, other)
    return found


@pytest.mark.parametrize("version", sorted(pythons()))
def test_no_warnings_of_our_own(version: str, tmp_path: Path) -> None:
    tree = [str(ROOT / name) for name in (*PARTS, "benchmarks", "scripts", "tests")]
    command = [pythons()[version], "-W", "error", "-m", "compileall", "-q", "-f", *tree]
    done = subprocess.run(command, env=os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
