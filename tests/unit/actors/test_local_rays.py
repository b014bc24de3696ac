"""The Rays of a user on a machine, told by their processes; real ones are in tests/e2e."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.cluster import head, local
from actors.cluster.job_client import JobClient
from dvpo_ray.errors import ConfigError, RunError, UserInputError

LASTS = "import sys; sys.stdin.read()"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Path]:
    """The folder of a session, with processes that carry the command lines of Ray's and end with the test."""
    folder = tmp_path / "ray" / "session_1"
    folder.mkdir(parents=True)
    lines = (
        ["--gcs_server_port=7001", "--node-ip-address=192.0.2.7", f"--session-dir={folder}"],
        ["--host=127.0.0.1", "--port=7002", "--gcs-address=192.0.2.7:7001", f"--session-dir={folder}"],
    )
    started = [subprocess.Popen([sys.executable, "-c", LASTS, *line], stdin=subprocess.PIPE) for line in lines]
    yield folder
    for process in started:
        process.communicate(b"", timeout=30)


def found(folder: Path) -> list[local.Session]:
    return [one for one in local.sessions() if one.folder == folder]


def test_a_session_says_where_its_state_and_dashboard_are(session: Path) -> None:
    assert found(session) == [local.Session(session, "192.0.2.7:7001", "http://127.0.0.1:7002")]
    assert local.named_here("session_1") is not None and local.named_here("session_of_nobody") is None
    assert head.running_in(session.parents[1]) == found(session)[0]


def test_all_of_a_session_ends_and_nothing_else(session: Path) -> None:
    (one,) = found(session)
    with subprocess.Popen([sys.executable, "-c", LASTS, "--session-dir=/elsewhere"], stdin=subprocess.PIPE) as other:
        assert len(one.processes()) == 2
        head.end(one)
        assert one.processes() == [] and other.poll() is None
        other.communicate(b"", timeout=30)
    with pytest.raises(UserInputError, match="no Ray of yours runs in"):
        head.stop_head(session.parents[1])


def test_without_an_address_this_users_ray_is_taken_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    one = local.Session(Path("/tmp/a/ray/session_1"), "127.0.0.1:1", "http://127.0.0.1:1")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(local, "sessions", lambda: [])
    with pytest.raises(RunError, match="no Ray of yours runs on this machine: start one by `dvpo cluster start`"):
        JobClient(None)
    monkeypatch.setattr(local, "sessions", lambda: [one, one])
    with pytest.raises(RunError, match="2 Rays of yours run on this machine .*name one by its address"):
        JobClient(None)
    monkeypatch.setattr(local, "sessions", lambda: [one])
    with pytest.raises(RunError, match="no Ray dashboard answers at http://127.0.0.1:1: "):
        JobClient(None)


def test_the_address_of_the_environment_is_named_when_nothing_answers_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(RunError, match=r"answers at http://127\.0\.0\.1:1 \(RAY_API_SERVER_ADDRESS\): "):
        JobClient(None)


def test_a_folder_too_long_for_sockets_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 40)
    with pytest.raises(ConfigError, match="which leaves 39 for it: name a shorter one"):
        head.start_head(long, 2, None, None)
    assert not long.exists()
    local.check_socket_room(Path("/tmp/ray-4294967294/ray"))
    local.check_socket_room(Path("/tmp/a-folder-of-tests/dvpo-ray-abcdefgh/r"), dashboard=False)
