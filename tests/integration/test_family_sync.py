"""What engines on this machine make of every family is what is recorded of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.family_sync import read_found
from scripts.tiny_families import FAMILIES


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_served_as_the_record_says(family: str, tmp_path: Path) -> None:
    """In a process of its own: vLLM changes classes of transformers in the one that it starts in."""
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "scripts.family_sync", "--only", family, "--found", str(found)]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"DS_ACCELERATOR": "cpu"})
    assert read_found(found)[family].status == read_found()[family].status, f"run `python -m scripts.family_sync --only {family}`"
