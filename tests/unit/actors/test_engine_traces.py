"""What engines leave behind: where their sockets are, and what is removed of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from actors.cluster import session
from actors.rollout import leftovers
from actors.rollout.leftovers import LONGEST_FOLDER, SOCKET_FOLDER, clear, keep_sockets_together, traces_of_children
from dvpo_ray.types import EngineLeftovers


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; the engine's variable is as before afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(SOCKET_FOLDER, "")
    return tmp_path


def test_sockets_are_kept_together_and_removed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "LONGEST_FOLDER", 1000)
    assert traces_of_children().sockets == ()
    keep_sockets_together()
    folder = Path(os.environ[SOCKET_FOLDER])
    assert folder.parent == temporary and traces_of_children().sockets == (str(folder),)
    (folder / "a-socket").touch()
    clear(EngineLeftovers(sockets=traces_of_children().sockets))
    assert list(temporary.iterdir()) == []
    clear(EngineLeftovers(sockets=(str(folder),)))


def test_a_socket_has_a_path_that_the_system_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (LONGEST_FOLDER - 5))
    monkeypatch.setenv(SOCKET_FOLDER, "")
    keep_sockets_together()
    folder = Path(os.environ[SOCKET_FOLDER])
    try:
        assert len(str(folder)) <= LONGEST_FOLDER and folder.is_dir()
    finally:
        clear(EngineLeftovers(sockets=traces_of_children().sockets))
    assert not folder.exists()


@pytest.mark.parametrize("name", ["others", "../dvpo-zmq-x/..", "dvpo-zmq-x/y"])
def test_no_other_folder_is_removed(temporary: Path, name: str) -> None:
    (temporary / "others").mkdir()
    (temporary / "dvpo-zmq-x" / "y").mkdir(parents=True)
    before = sorted(temporary.rglob("*"))
    clear(EngineLeftovers(sockets=(str(temporary / name),)))
    assert sorted(temporary.rglob("*")) == before


@pytest.mark.parametrize(("eager", "gpus", "compiles"), [(True, False, False), (False, False, True), (True, True, True)])
def test_only_eager_engines_on_cpu_compile_nothing(
    monkeypatch: pytest.MonkeyPatch, eager: bool, gpus: bool, compiles: bool
) -> None:
    monkeypatch.setattr(session, "cluster_has_gpus", lambda: gpus)
    assert ("TORCH_COMPILE_DISABLE" not in session.engine_environment(0, eager)) == compiles
