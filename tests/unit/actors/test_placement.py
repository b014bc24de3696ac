"""What actors are started with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from actors.cluster.family import children, end_family
from actors.cluster.session import EMBEDDED_FOLDER, nodes_for, ray_session
from actors.rollout.actor import thread_binding
from dvpo_ray.config.sections import ClusterSection, EngineSection, RolloutSection
from dvpo_ray.errors import RunError
from dvpo_ray.io.closed_folders import closed_folder_above
from dvpo_ray.runs.stopping import heeding


def test_only_a_lone_engine_with_all_cores_is_bound_to_them() -> None:
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    assert thread_binding(RolloutSection()) == cores
    assert thread_binding(RolloutSection(cpu_threads=1)) == "nobind"
    assert thread_binding(RolloutSection(actors=2)) == "nobind"
    assert thread_binding(RolloutSection(engine=EngineSection(tensor_parallel=2))) == "nobind"


def test_actors_are_kept_on_nodes_of_their_role_only_when_the_recipe_names_the_label() -> None:
    assert nodes_for("scorer", ClusterSection()) == {}
    assert nodes_for("scorer", ClusterSection(role_label="dvpo-ray/role")) == {"label_selector": {"dvpo-ray/role": "scorer"}}


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray runs, as far as this project knows; the one that other tests use goes on."""
    monkeypatch.setattr("actors.cluster.session.ray.is_initialized", lambda: False)
    monkeypatch.setattr("actors.cluster.session.ray.shutdown", lambda: None)
    monkeypatch.setattr("actors.cluster.session.make_token", lambda: None)
    # Tests' folders have long names.
    monkeypatch.setattr("actors.cluster.session.check_socket_room", lambda folder, dashboard: None)
    monkeypatch.delenv(EMBEDDED_FOLDER, raising=False)


@pytest.mark.usefixtures("no_ray")
def test_a_ray_that_does_not_start_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def late(_temp_dir: str, **options: object) -> None:
        assert closed_folder_above(Path(_temp_dir).parent) is not None
        logs = Path(_temp_dir) / "session_latest" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.out").write_text("[1 I 2] well\n[1 C 2] no room in /dev/shm\n[1 I 2] bye\n")
        raise Exception("The current node timed out during startup. This could be anything.\nmore")

    monkeypatch.setattr("actors.cluster.session.ray.init", late)
    with pytest.raises(RunError) as found, ray_session(ClusterSection()):
        pass
    assert "Ray did not start on this machine: The current node timed out during startup." in str(found.value)
    assert "raylet.out: [1 C 2] no room in /dev/shm" in str(found.value) and "`dvpo doctor`" in str(found.value)
    assert list(tmp_path.iterdir()) == []


FAMILY = """
import multiprocessing.shared_memory, os, subprocess, sys
from pathlib import Path
memory = multiprocessing.shared_memory.SharedMemory(create=True, size=8)
Path(sys.argv[1], f"dvpo-zmq-{os.getpid()}-x").mkdir()
Path(sys.argv[1], "vllm_dist_x").touch()
child = subprocess.Popen(["sleep", "1000"])
print(memory.name, child.pid, flush=True)
child.wait()
"""


def test_a_family_is_ended_with_all_that_it_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("actors.cluster.family._other_engines", lambda killed: False)
    older = tmp_path / "vllm_dist_of_others"
    older.touch()
    os.utime(older, (1.0, 1.0))
    other = subprocess.Popen(["sleep", "1000"])
    parent = subprocess.Popen([sys.executable, "-c", FAMILY, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    name, child = parent.stdout.readline().split()
    family = [psutil.Process(parent.pid), psutil.Process(int(child))]
    assert Path("/dev/shm", name).exists()
    end_family(children() - {parent.pid})
    assert not Path("/dev/shm", name).exists() and list(tmp_path.iterdir()) == [older]
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive and other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.usefixtures("no_ray")
def test_ray_does_not_take_the_signals_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("actors.cluster.session.ray.init", lambda **options: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    with heeding(lambda text: None) as stop, ray_session(ClusterSection()):
        assert signal.getsignal(signal.SIGTERM) == stop.obey
