"""Real processes killed while they checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dvpo_ray.checkpoints.store import CheckpointStore


def test_a_killed_checkpoint_never_leaves_what_cannot_be_resumed(tmp_path: Path) -> None:
    """50 processes that do nothing but checkpoint, each killed at a random moment."""
    killer = Path(__file__).parent / "checkpoint_killer.py"
    environment = os.environ | {"PYTHONPATH": str(killer.parents[3])}
    command = [sys.executable, str(killer), str(tmp_path), "50"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    newest = CheckpointStore(tmp_path).newest()
    assert newest is not None and newest.step >= 50
