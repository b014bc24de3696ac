"""How a node of Ray's ends without losing a job's work: `dvpo jobs drain`, the preStop hook of pods.

Whoever deletes a cluster tells all its pods to end at the same moment, and no job beforehand. The head's hook asks the jobs to
checkpoint and end, and tells the others that it did; those keep their node until the jobs have ended. A node that is taken away
alone tells Ray, so that ranks on it checkpoint every step and go on elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, ip_address
from threading import Event
from typing import Any, Protocol

import psutil
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from ray.dashboard.utils import ray_address_to_api_server_url
from ray.exceptions import RpcError

from actors.cluster.job_client import JobClient
from dvpo_ray.errors import RunError, UserInputError

log = logging.getLogger(__name__)

POLL_S = 1.0
# A dashboard that does not answer for so long is gone, and its jobs with it.
GONE_S = 130.0
# How long somebody is told again who does not answer, before the wait begins.
TELL_S = 30.0
GCS_TIMEOUT_S = 10.0
RAYLET = "raylet"
NAMESPACE, ENDS_BY = b"dvpo", b"ends_by"
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")


class JobServer(Protocol):
    """The part of ``JobClient`` that is used here."""

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs."""

    def stop(self, job: str) -> bool:
        """Ask one to end."""


class Notices(Protocol):
    """What the nodes of a cluster tell each other."""

    def cluster_ends(self, within_s: float) -> None:
        """All of the cluster ends, so many seconds from now at the latest."""

    def cluster_is_ending(self) -> bool:
        """Whether that was said, and is not long past."""

    def this_node_ends(self, within_s: float) -> None:
        """This node ends: nothing new is started here, and what runs is to move."""


@dataclass(frozen=True)
class LocalNode:
    """The node of Ray's on this machine: its id, and the address of the cluster's state by number."""

    node_id: str
    state: str

    @classmethod
    def find(cls) -> LocalNode | None:
        """The only one here; None where no Ray runs.

        Raises:
            UserInputError: there are several.
        """
        found = [process for process in psutil.process_iter(["name"]) if process.info["name"] == RAYLET]
        if len(found) > 1:
            raise UserInputError(f"{len(found)} nodes of Ray run here: draining is for a machine, or pod, with one")
        return cls.of(found[0]) if found else None

    @classmethod
    def of(cls, raylet: psutil.Process) -> LocalNode:
        """That of a process of Ray's node."""
        flags = dict(argument.lstrip("-").split("=", 1) for argument in raylet.cmdline()[1:] if "=" in argument)
        flags = {name.replace("-", "_"): value for name, value in flags.items()}
        host, _, port = flags["gcs_address"].rpartition(":")
        # The head may be known by a name, which is not served any more when it ends: the connection to it still stands.
        peers = [one.raddr for one in raylet.net_connections("tcp") if one.raddr and one.raddr.port == int(port)]
        return cls(flags["node_id"], f"{_written(peers[0].ip) if peers else host}:{port}")


def _written(address: str) -> str:
    """An IP address as it stands before a port; the kernel gives those of IPv4 as `::ffff:10.0.0.7`."""
    found = ip_address(address)
    if isinstance(found, IPv4Address):
        return address
    return f"[{address}]" if found.ipv4_mapped is None else str(found.ipv4_mapped)


class RayNotices:
    """Notices by way of the cluster's own state."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._state = GcsClient(address=node.state)

    def cluster_ends(self, within_s: float) -> None:
        """As ``Notices`` says."""
        ends_by = str(time.time() + within_s).encode()
        with self._explained():
            self._state.internal_kv_put(ENDS_BY, ends_by, True, NAMESPACE, GCS_TIMEOUT_S)

    def cluster_is_ending(self) -> bool:
        """As ``Notices`` says."""
        with self._explained():
            found = self._state.internal_kv_get(ENDS_BY, NAMESPACE, GCS_TIMEOUT_S)
        return found is not None and time.time() < float(found)

    def this_node_ends(self, within_s: float) -> None:
        """As ``Notices`` says.

        Raises:
            RunError: Ray does not take the notice.
        """
        deadline = int(1000 * (time.time() + within_s))
        with self._explained():
            accepted, why = self._state.drain_node(self._node.node_id, DRAIN_NODE_REASON_PREEMPTION, "its pod ends", deadline)
        if not accepted:
            raise RunError(f"Ray does not take the notice that node {self._node.node_id} ends: {why}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RpcError as error:
            raise RunError(f"the cluster's state at {self._node.state} does not answer: {error}") from error


def connect(node: LocalNode) -> JobClient:
    """The job server of a node's cluster.

    Raises:
        RunError: it does not answer.
    """
    try:
        return JobClient(ray_address_to_api_server_url(node.state))
    except ValueError as error:
        raise RunError(f"the cluster's state at {node.state} does not say where its dashboard is: {error}") from error


@dataclass
class Drain:
    """Keeps a node until its cluster's jobs have ended, at most ``wait_s`` seconds."""

    server: JobServer
    notices: Notices
    wait_s: float
    pause: Callable[[float], object] = lambda seconds: Event().wait(seconds)
    clock: Callable[[], float] = time.monotonic

    def head(self) -> dict[str, str]:
        """Stop all jobs and wait for their ends; returns how each ended.

        Raises:
            RunError: one has not ended in time.
        """
        asked = self._active(self.server.jobs())
        for job in asked:
            self._told(partial(self.server.stop, job))
        self._told(partial(self.notices.cluster_ends, self.wait_s))
        return self._until_the_end(asked, lambda waited: False)

    def worker(self, alone_s: float | None) -> dict[str, str]:
        """Wait for the ends of all jobs; returns how each ended. A node whose cluster does not end waits for ``alone_s`` seconds,
        and where that is None as long as any.

        Raises:
            RunError: one has not ended in time.
        """
        self._told(partial(self.notices.this_node_ends, self.wait_s))

        def left_alone(waited: float) -> bool:
            return alone_s is not None and waited >= alone_s and not self.notices.cluster_is_ending()

        return self._until_the_end(None, left_alone)

    def _told(self, tell: Callable[[], object]) -> None:
        """Tell somebody, again and again while that fails, for ``TELL_S`` at most; then wait all the same."""
        began = self.clock()
        while True:
            try:
                tell()
                return
            except RunError as error:
                if self.clock() - began >= TELL_S:
                    log.warning("%s", error)
                    return
            self.pause(POLL_S)

    def _until_the_end(self, asked: list[str] | None, enough: Callable[[float], bool]) -> dict[str, str]:
        """``asked`` are the jobs to wait for; None is those that are active when the server first answers."""
        began = answered = self.clock()
        while True:
            now = self.clock()
            try:
                found = self.server.jobs()
                asked, answered = self._active(found) if asked is None else asked, now
                active = [job for job in self._active(found) if job in asked]
                if not active or enough(now - began):
                    return {job["job"]: job["status"] for job in found if job["job"] in asked}
            except RunError:
                if now - answered >= GONE_S:
                    return dict.fromkeys(asked or (), "GONE")
                active = asked or ["the cluster's jobs"]
            if now - began >= self.wait_s:
                raise RunError(
                    f"{', '.join(active)}: not ended {self.wait_s:g} s after the notice; what was done since the last checkpoint "
                    "may be lost: raise kubernetes.stop_wait_s, and render the job again"
                )
            self.pause(POLL_S)

    def _active(self, found: Sequence[Mapping[str, Any]]) -> list[str]:
        return [job["job"] for job in found if job["status"] not in ENDED]
