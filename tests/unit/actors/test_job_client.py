"""The client of Ray's job server where there is none; with a real one it is tested in tests/e2e."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import requests
from ray.job_submission import JobDetails, JobStatus, JobType

from actors.cluster import job_client
from dvpo_ray.errors import ConfigError, RunError, UserInputError
from dvpo_ray.runs import status
from dvpo_ray.submission.package import Submission
from jobs.cli.cluster import _status_of, end_of_stop
from jobs.cli.console import show_jobs


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


class SilentServer:
    """Sends a line and then nothing, or ``last`` when all ``statuses`` were asked for, in their order."""

    def __init__(self, *statuses: str, breaks: bool = False, last: str = "") -> None:
        self.statuses, self.breaks, self.last = list(statuses), breaks, last

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "step 1\n"
        if self.last:
            while self.statuses:
                await asyncio.sleep(0.01)
            yield self.last
            return
        if self.breaks:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        await asyncio.Event().wait()

    def get_job_info(self, job: str) -> JobDetails:
        status = self.statuses.pop(0) if self.statuses else "SUCCEEDED"
        if status == "lost":
            raise requests.ConnectTimeout("timed out")
        return JobDetails(type=JobType.SUBMISSION, submission_id=job, status=JobStatus(status), entrypoint="x")


def following(server: SilentServer, monkeypatch: pytest.MonkeyPatch) -> tuple[job_client.JobClient, list[str]]:
    monkeypatch.setattr(job_client, "SILENCE_S", 0.05)
    client = job_client.JobClient.__new__(job_client.JobClient)
    client._client, client._where = server, "http://h"  # type: ignore[assignment]
    return client, []


def test_a_connection_that_broke_without_a_word_does_not_hang_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    client, written = following(SilentServer("RUNNING", "RUNNING", "SUCCEEDED", "SUCCEEDED"), monkeypatch)
    assert client.follow("x", written.append)["status"] == "SUCCEEDED"
    assert written == ["step 1\n"]
    client, written = following(SilentServer("RUNNING", "RUNNING", "lost"), monkeypatch)
    with pytest.raises(RunError, match="^no Ray dashboard answers at http://h: timed out"):
        client.follow("x", written.append)
    client, written = following(SilentServer("RUNNING", "RUNNING", breaks=True), monkeypatch)
    with pytest.raises(RunError, match="ended before the job did, which goes on"):
        client.follow("x", written.append)


def test_the_last_lines_of_a_job_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be on their way when the job is asked after and has ended."""
    client, written = following(SilentServer("RUNNING", "SUCCEEDED", last="step 2\n"), monkeypatch)
    assert client.follow("x", written.append)["status"] == "SUCCEEDED"
    assert written == ["step 1\n", "step 2\n"]


def test_a_reader_that_has_gone_is_not_taken_for_a_cluster_that_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(text: str) -> None:
        raise BrokenPipeError

    client, _ = following(SilentServer("RUNNING"), monkeypatch)
    with pytest.raises(BrokenPipeError):
        client.follow("x", gone)


@pytest.mark.parametrize("name", ["", "a b", "../jobs", "a?b", "a#b", "a%2fb"])
def test_what_cannot_be_a_jobs_name_is_not_put_into_a_url(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = following(SilentServer(), monkeypatch)
    for ask in (client.job, client.logs, client.stop, lambda job: client.follow(job, print)):
        with pytest.raises(UserInputError, match="is no name of a job; `dvpo jobs list`"):
            ask(name)


MINE = {"127.0.0.1", "::1", "169.254.1.1", "fe80::1", "10.0.0.7"}


@pytest.mark.parametrize(
    ("head", "dashboard", "here"),
    [
        ("10.0.0.7", "http://127.0.0.1:8265", True),
        ("10.0.0.8", "http://127.0.0.1:8265", False),  # forwarded
        ("169.254.1.1", "http://127.0.0.1:8265", False),
        ("fe80::1", "http://127.0.0.1:8265", False),
        ("127.0.0.1", "http://127.0.0.1:8265", True),
        ("127.0.0.1", "http://localhost:8265", True),
        ("::1", "http://[::1]:8265", True),
        ("127.0.0.1", "http://head.example:8265", False),
        ("127.0.0.1", "http://10.0.0.8:8265", False),
    ],
)
def test_addresses_that_many_machines_have_do_not_tell_where_a_head_is(head: str, dashboard: str, here: bool) -> None:
    assert job_client.lies_here(head, dashboard, MINE) is here


def test_the_address_of_a_bridge_is_none_of_the_machines_own() -> None:
    named = {"eth0": "10.0.0.7", "br-ex": "10.0.0.8", "docker0": "172.17.0.1"}
    named |= {"br-0123456789ab": "172.18.0.1", "virbr0": "192.168.122.1"}
    interfaces = {name: [SimpleNamespace(family=socket.AF_INET, address=ip)] for name, ip in named.items()}
    interfaces["eth0"].append(SimpleNamespace(family=socket.AF_PACKET, address="00:16:3e:00:00:01"))
    assert job_client.own_addresses(interfaces) == {"10.0.0.7", "10.0.0.8"}


def test_what_a_stopped_job_wrote_of_its_end_is_told_and_else_its_last_words() -> None:
    stopped = "stopped after step 3 of 9, as asked: --resume auto goes on"
    assert end_of_stop(status.JobStatus(state="stopped", began=1.0, exit_code=143, message=stopped), "step 3\nlast\n") == stopped
    assert end_of_stop(status.JobStatus(state="finished", began=1.0, exit_code=0), "step 9\n") == "it had come to its end"
    assert end_of_stop(status.JobStatus(state="failed", began=1.0, exit_code=1, message="no space"), "") == "no space"
    killed = end_of_stop(status.JobStatus(state="running", began=1.0), f"{stopped}\nKilled\n\n")
    assert killed == "it was killed before it could say how it ended; the last it printed: Killed"
    unsaid = "its run's folder does not say how it ended; "
    assert end_of_stop(None, "step 3\n") == f"{unsaid}the last it printed: step 3"
    assert end_of_stop(None, "") == f"{unsaid}it had printed nothing"


START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(("here", "after", "known"), [(True, 0.5, True), (True, -1.0, False), (False, 0.5, False)])
def test_only_what_this_very_job_wrote_is_its_status(tmp_path: Path, here: bool, after: float, known: bool) -> None:
    (tmp_path / status.STATUS).write_text(status.JobStatus(state="stopped", began=START + after).model_dump_json())
    job = {"run_folder": str(tmp_path), "started": "2026-01-01T00:00:00+00:00"}
    client = SimpleNamespace(is_here=lambda: here)
    assert (_status_of(client, job) is not None) is known
    assert _status_of(client, job | {"run_folder": None}) is None


def test_a_job_that_there_is_none_of_is_told_by_the_status_of_the_reply() -> None:
    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            version = self.path == "/api/version"
            body = json.dumps({"ray_version": ray.__version__}).encode() if version else b"a text that says nothing"
            self.send_response({"/api/version": 200, "/api/jobs/gone": 404}.get(self.path, 500))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = job_client.JobClient(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UserInputError, match="no job 'gone' on this cluster"):
            client.job("gone")
        with pytest.raises(RunError, match="refuses: HTTP status 500: a text that says nothing"):
            client.job("other")
        server.shutdown()


def test_a_list_of_jobs_has_one_line_each_and_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": None}
    jobs = [{"job": name, "status": "RUNNING", "run": name, "recipe": "r.toml", **times} for name in ("a" * 63, "b")]
    show_jobs(jobs)
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["job", "status", "run", "recipe", "started", "ended"]
    assert first.split() == ["a" * 63, "RUNNING", "a" * 63, "r.toml", times["started"]]
    assert second.index("RUNNING") == first.index("RUNNING") == head.index("status")


def test_a_head_whose_agent_has_lost_its_port_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later.")

    client = object.__new__(job_client.JobClient)
    client._where = "http://127.0.0.1:8265"
    client._client = SimpleNamespace(submit_job=refuses, list_jobs=lambda: [])  # type: ignore[assignment]
    submission = Submission("runs/mine", "python", Path("package.zip"), {}, {})
    with pytest.raises(RunError, match=r"at http://127\.0\.0\.1:8265 takes no jobs: .*another Ray .*port \(52365\)"):
        client.submit(submission, "mine")
