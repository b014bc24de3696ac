"""How nodes end: what the head's hook and those of the others do, against a dashboard of our own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from actors.cluster.drain import GONE_S, Drain, LocalNode
from actors.cluster.job_client import JobClient
from dvpo_ray.errors import RunError


@dataclass
class Cluster:
    """A cluster in which time passes only while someone waits; ``changes`` are the statuses of jobs from a time on."""

    changes: dict[str, list[tuple[float, str]]]
    ends_after_stop_s: float = 0.0
    answers_until: float = float("inf")
    ending: float = float("inf")
    now: float = 0.0
    stopped: dict[str, float] = field(default_factory=dict)
    notices: list[tuple[str, float]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def jobs(self) -> list[dict[str, Any]]:
        if self.now >= self.answers_until:
            raise RunError("no Ray dashboard answers")
        return [{"job": job, "status": self._status(job)} for job in self.changes]

    def _status(self, job: str) -> str:
        if job in self.stopped and self.now >= self.stopped[job] + self.ends_after_stop_s:
            return "STOPPED"
        return [status for since, status in self.changes[job] if since <= self.now][-1]

    def stop(self, job: str) -> bool:
        self.stopped[job] = self.now
        return True

    def cluster_ends(self, within_s: float) -> None:
        self.notices.append(("cluster", within_s))

    def cluster_is_ending(self) -> bool:
        return self.now >= self.ending

    def this_node_ends(self, within_s: float) -> None:
        self.notices.append(("node", within_s))

    def drain(self, wait_s: float) -> Drain:
        return Drain(self, self, wait_s, self.pause, self.clock)


RUNNING = [(0.0, "RUNNING")]


def test_the_head_stops_all_jobs_and_waits_until_they_have_ended() -> None:
    cluster = Cluster({"old": [(0.0, "SUCCEEDED")], "a": RUNNING, "b": [(0.0, "PENDING")]}, ends_after_stop_s=40)
    assert cluster.drain(100).head() == {"a": "STOPPED", "b": "STOPPED"}
    assert set(cluster.stopped) == {"a", "b"} and cluster.now == 40
    assert cluster.notices == [("cluster", 100)], "the others are told before any job is stopped"


def test_a_job_that_does_not_end_in_time_is_told_by_name() -> None:
    cluster = Cluster({"a": RUNNING}, ends_after_stop_s=200)
    with pytest.raises(RunError, match=r"a: not ended 100 s after the notice; .* raise kubernetes\.stop_wait_s"):
        cluster.drain(100).head()
    assert cluster.now == 100


def test_a_node_stays_while_its_ending_cluster_checkpoints() -> None:
    cluster = Cluster({"a": [(0.0, "RUNNING"), (90.0, "STOPPED")]}, ending=3)
    assert cluster.drain(300).worker(alone_s=60) == {"a": "STOPPED"}
    assert cluster.now == 90 and cluster.notices == [("node", 300)]


def test_a_node_that_holds_no_state_leaves_early_when_it_is_taken_away_alone() -> None:
    cluster = Cluster({"a": RUNNING})
    assert cluster.drain(300).worker(alone_s=60) == {"a": "RUNNING"}
    assert cluster.now == 60 and not cluster.stopped


def test_a_node_of_the_gang_stays_as_long_as_it_may_when_it_is_taken_away_alone() -> None:
    """Its ranks checkpoint every step from the notice on."""
    cluster = Cluster({"a": RUNNING})
    with pytest.raises(RunError, match="not ended 300 s"):
        cluster.drain(300).worker(alone_s=None)


@pytest.mark.parametrize("jobs", [{}, {"old": [(0.0, "FAILED")]}])
def test_nobody_waits_for_an_idle_cluster(jobs: dict[str, list[tuple[float, str]]]) -> None:
    cluster = Cluster(jobs)
    assert cluster.drain(300).worker(None) == {} and cluster.drain(300).head() == {} and cluster.now == 0


def test_a_job_that_came_since_keeps_nobody() -> None:
    cluster = Cluster({"a": [(0.0, "RUNNING"), (5.0, "SUCCEEDED")], "new": [(0.0, "STOPPED"), (3.0, "RUNNING")]})
    assert cluster.drain(300).worker(None) == {"a": "SUCCEEDED"} and cluster.now == 5


def test_a_cluster_whose_head_is_gone_is_not_waited_for() -> None:
    cluster = Cluster({"a": RUNNING}, answers_until=10)
    assert cluster.drain(300).worker(None) == {"a": "GONE"}
    assert cluster.now == pytest.approx(10 + GONE_S, abs=2)


class Dashboard(BaseHTTPRequestHandler):
    """The part of Ray's job server that is asked; jobs end at the second look after they were stopped."""

    jobs: dict[str, str]
    tokens: set[str]

    def do_GET(self) -> None:
        self.tokens.add(self.headers.get("Authorization", ""))
        if urlsplit(self.path).path == "/api/version":
            return self._reply({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": "s"})
        self._reply([self._details(job, status) for job, status in self.jobs.items()])
        self.jobs |= {job: "STOPPED" for job, status in self.jobs.items() if status == "STOPPING"}

    def do_POST(self) -> None:
        job = urlsplit(self.path).path.split("/")[3]
        self.jobs[job] = "STOPPING"
        self._reply({"stopped": True})

    def _details(self, job: str, status: str) -> dict[str, Any]:
        status = "RUNNING" if status == "STOPPING" else status
        return {"type": "SUBMISSION", "submission_id": job, "status": status, "entrypoint": "x", "metadata": {}}

    def _reply(self, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def dashboard(**jobs: str) -> Iterator[tuple[str, type[Dashboard]]]:
    kind = type("OneDashboard", (Dashboard,), {"jobs": dict(jobs), "tokens": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", kind
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_rays_job_server_is_spoken_to_as_it_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with dashboard(mine="RUNNING", done="SUCCEEDED") as (url, kind):
        told = Cluster({})
        assert Drain(JobClient(url), told, 60, told.pause, told.clock).head() == {"mine": "STOPPED"}
        assert kind.jobs == {"mine": "STOPPED", "done": "SUCCEEDED"} and told.notices == [("cluster", 60)]


def test_a_node_is_read_from_its_process() -> None:
    class Raylet:
        peers: tuple[tuple[str, int], ...] = (("10.0.0.9", 1), ("10.0.0.7", 6379))

        def cmdline(self) -> list[str]:
            return ["raylet", "--node_id=ab12", "--gcs-address=head-svc.dvpo.svc:6379", "--flag"]

        def net_connections(self, kind: str) -> list[Any]:
            address = type("Address", (), {"__init__": lambda self, ip, port: self.__dict__.update(ip=ip, port=port)})
            return [type("Connection", (), {"raddr": address(*peer)})() for peer in self.peers]

    raylet: Any = Raylet()
    assert LocalNode.of(raylet) == LocalNode("ab12", "10.0.0.7:6379"), "names end with the head's readiness"
    raylet.peers = (("::ffff:10.0.0.7", 6379),)
    assert LocalNode.of(raylet).state == "10.0.0.7:6379", "as the kernel gives it"
    raylet.peers = (("fd00::7", 6379),)
    assert LocalNode.of(raylet).state == "[fd00::7]:6379"
    raylet.peers = ()
    assert LocalNode.of(raylet) == LocalNode("ab12", "head-svc.dvpo.svc:6379")


@pytest.mark.parametrize(("head", "gang"), [(True, True), (False, True), (False, False)])
def test_hooks_of_rendered_pods_are_commands_of_ours(head: bool, gang: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from dvpo_ray.kubernetes.stopping import StopTimes, drain_hook
    from jobs.cli.main import app

    name, *words = drain_hook(StopTimes(300), head, gang)["preStop"]["exec"]["command"]
    monkeypatch.setattr(LocalNode, "find", lambda: None)
    done = CliRunner().invoke(app, [*words, "--json"])
    assert name == "dvpo" and done.exit_code == 0 and json.loads(done.output) == {"jobs": {}}, done.output
