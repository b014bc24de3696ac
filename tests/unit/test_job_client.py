"""The client of Ray's job server where there is none; with a real one it is tested in tests/e2e."""

from __future__ import annotations

import socket

import pytest

from actors import job_client
from dvpo_ray.console import show_jobs
from dvpo_ray.errors import ConfigError, RunError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client puts into the environment is taken back."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")


def test_a_server_that_never_answers_does_not_hang_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_client, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RunError, match=rf"no Ray dashboard answers at {url}: .*timed out"):
            job_client.JobClient(url)


def test_what_is_asked_for_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(RunError, match="no Ray dashboard answers at http://127.0.0.1:1: .*127.0.0.1:1"):
        job_client.JobClient("http://127.0.0.1:1")


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "auto", "ray://head:10001", "os://x", "http://me:password@head:8265"])
def test_an_address_is_a_url_without_a_password(address: str) -> None:
    with pytest.raises(ConfigError, match="give the dashboard's URL without a password") as caught:
        job_client.JobClient(address)
    assert "me:" not in str(caught.value)


def test_a_list_of_jobs_has_one_line_each_and_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": None}
    jobs = [{"job": name, "status": "RUNNING", "run": name, "recipe": "r.toml", **times} for name in ("a" * 63, "b")]
    show_jobs(jobs)
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["job", "status", "run", "recipe", "started", "ended"]
    assert first.split() == ["a" * 63, "RUNNING", "a" * 63, "r.toml", times["started"]]
    assert second.index("RUNNING") == first.index("RUNNING") == head.index("status")
