"""A Ray started by `dvpo cluster start` beside other users of the machine, and what is said of one that is open to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors.cluster.local import refuse_open, sessions
from dvpo_ray.errors import RunError
from tests.support.ray_cluster import ROOT, run

pytestmark = pytest.mark.integration
TIMEOUT_S = 240


@pytest.fixture
def folder() -> Iterator[Path]:
    # Sockets below it: its name must be short.
    made = Path(tempfile.mkdtemp(prefix="dvpo-head-"))
    yield made
    shutil.rmtree(made)


def dvpo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of somebody whose home holds nothing."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "DVPO_"))}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return run(
        [sys.executable, "-m", "jobs.cli.main", *words], home, kept | {"HOME": str(home), "PYTHONPATH": str(ROOT)}, TIMEOUT_S
    )


def what_another_user_reaches(session: Path) -> list[str]:
    command = [sys.executable, "-m", "tests.support.another_user", str(session)]
    found: list[str] = json.loads(
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    )
    return found


def test_another_user_enters_nothing_of_a_ray_that_was_started_for_one(folder: Path) -> None:
    started = dvpo(folder, "cluster", "start", "--folder", str(folder), "--num-cpus", "2", "--object-store-mb", "100", "--json")
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        said = json.loads(started.stdout)
        session = next(one for one in sessions() if str(one.folder.parent) == said["files"])
        assert session.closed_by == folder.resolve() and session.dashboard == said["dashboard"]
        refuse_open(session.folder)
        assert json.loads(dvpo(folder, "jobs", "list", "--address", said["dashboard"], "--json").stdout) == {"jobs": []}
        assert_logs_of_an_actor_that_died_are_kept(folder, said["address"])
        again = dvpo(folder, "cluster", "start", "--folder", str(folder))
        assert again.returncode == 2 and "already, its dashboard at" in again.stderr
        if os.geteuid() == 0:
            assert what_another_user_reaches(session.folder) == []
            # As `ray start` leaves it.
            folder.chmod(0o755)
            assert {"lists .", "writes runtime_resources"} <= set(what_another_user_reaches(session.folder))
            assert session.closed_by is None
            with pytest.raises(RunError, match="start one by `dvpo cluster start`"):
                refuse_open(session.folder)
            folder.chmod(0o700)
    finally:
        stopped = dvpo(folder, "cluster", "stop", "--folder", str(folder))
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    left = [one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or ())]
    assert left == []


DRIVER = """
import sys
from pathlib import Path
from actors.cluster.token import use_token
use_token()
from actors.cluster.session import keep_logs, ray_session, start_actor
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.errors import ActorDiedError
from dvpo_ray.runs.run import failures
from actors.cluster.calls import get
from tests.support.failing import Dying

with ray_session(ClusterSection(address=sys.argv[1])), failures(Path("logs"), keep_logs):
    actor = start_actor(Dying, "scorer-7", {}, 0).remote()
    get(actor.die.remote(), 60, "scorer-7", "scoring")
"""


def assert_logs_of_an_actor_that_died_are_kept(folder: Path, address: str) -> None:
    environment = dict(os.environ) | {"HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    done = run([sys.executable, "-c", DRIVER, address], folder / "home", environment, TIMEOUT_S)
    assert "logs: logs\nthe last of scorer-7-" in done.stderr and "  my last words" in done.stderr, done.stderr
    (log,) = (folder / "home" / "logs").glob("scorer-7-*.err")
    assert "my last words" in log.read_text()
