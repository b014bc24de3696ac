"""Ray's job server: submit a run, look at it, follow it, stop it. Errors say what to do."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NoReturn
from urllib.parse import urlsplit

import aiohttp
import psutil
import requests
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE
from ray.exceptions import AuthenticationError, RpcError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from actors.cluster.local import START, named_here, own_session, refuse_open
from dvpo_ray.config.sections import RUN_NAME
from dvpo_ray.errors import ConfigError, DvpoError, RunError, UserInputError
from dvpo_ray.io.secrets import masked
from dvpo_ray.submission.package import Submission

# A package passes through the dashboard and into the store of the cluster's state: the smaller of their limits holds.
UPLOAD_LIMIT = min(DASHBOARD_CLIENT_MAX_SIZE, GCS_STORAGE_MAX_SIZE)
URL = re.compile(r"https?://[^@\s]+")
# Networks inside a machine, of containers and virtual machines: every such machine has the same address there.
BRIDGE = re.compile(r"br-[0-9a-f]{12}|(?:cni|docker|podman|virbr)-?\d+")
# What may stand in the path of a URL as it is.
JOB = re.compile(r"[^\s/?#%]+")
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# Ray says it of a head whose agent did not come up, with the status of any fault of its own.
NO_AGENT = "No available agent"
TIMEOUT_S = 60.0
# A job that prints nothing for so long is asked after: a connection that broke in between does not say so.
SILENCE_S = 60.0
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")


class _RefusedError(RuntimeError):
    """The job server answered with an error; ``status`` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP status {status}: {text}")
        self.status = status


class _PatientClient(JobSubmissionClient):
    """Ray's client, which by itself waits for a reply for ever, and tells an error's status in a text alone."""

    def _raise_error(self, r: requests.Response) -> NoReturn:
        raise _RefusedError(r.status_code, r.text)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, **({"timeout": TIMEOUT_S} | options))

    def session_name(self) -> str:
        """The name of the folder of the cluster's files.

        Raises:
            RuntimeError: the cluster does not say.
        """
        reply = self._do_request("GET", "/api/version")
        if reply.status_code != requests.codes.ok:
            self._raise_error(reply)
        return str(reply.json()["session_name"])


class JobClient:
    """The job server of one cluster. The token comes from the environment or a file (``actors.cluster.token``)."""

    upload_limit = UPLOAD_LIMIT

    def __init__(self, address: str | None) -> None:
        """``address``: the dashboard's URL; none takes RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this user's Ray on this machine.

        Raises:
            ConfigError: the address is no URL.
            RunError: no cluster answers there, or it refuses, or none is named and this user has none here.
        """
        if address is not None:
            if not URL.fullmatch(address):
                shown = address.rpartition("@")[2]
                raise ConfigError(f"--address '{shown}': give the dashboard's URL without a password: http://127.0.0.1:8265")
            os.environ["RAY_API_SERVER_ADDRESS"] = address  # what is asked for goes before RAY_ADDRESS
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        named = next((f"{masked(os.environ[name])} ({name})" for name in ADDRESSES if os.environ.get(name)), None)
        if address is None and named is None:
            # Ray itself would take the Ray of any user of the machine, and send it the token.
            session = own_session()
            address = session.dashboard or session.address
        self._where = address or named
        with self._explained():
            self._client = _PatientClient(address)
            self.address: str = self._client.get_address()

    def is_here(self) -> bool:
        """Whether the cluster's head is this machine, as far as addresses tell."""
        with self._explained():
            heads = [node.node_ip for node in list_nodes(self.address, filters=[("is_head_node", "=", "True")])]
        mine = own_addresses(psutil.net_if_addrs())
        return any(lies_here(head, self.address, mine) for head in heads)

    def refuse_open_session(self) -> None:
        """Refuse a cluster of this machine whose files other users of it can enter. Those of a Ray in a container are not looked
        at: their folder is none of this machine.

        Raises:
            RunError: as ``refuse_open``.
        """
        with self._explained():
            name = self._client.session_name()
        folder = named_here(name)
        if folder is not None:
            refuse_open(folder)

    def submit(self, submission: Submission, job: str) -> None:
        """Upload the package and start the job under a name.

        Raises:
            ConfigError: the name cannot be one.
            UserInputError: there is a job of that name.
            RunError: the cluster refuses.
        """
        if not re.fullmatch(RUN_NAME.removesuffix("$"), job):
            raise ConfigError(
                f"--job-id '{job}': letters, digits, '.', '_' and '-', at most 63, beginning with a letter or digit"
            )
        if any(one["job"] == job for one in self.jobs()):
            raise UserInputError(f"there is a job of that name on this cluster, '{job}': take another --job-id")
        with self._explained():
            self._client.submit_job(
                entrypoint=submission.command,
                submission_id=job,
                runtime_env={"working_dir": str(submission.package), "env_vars": submission.environment},
                metadata=submission.metadata,
            )

    def jobs(self) -> list[dict[str, Any]]:
        """Submitted jobs, the newest first."""
        with self._explained():
            found = [summary(job) for job in self._client.list_jobs() if job.type is JobType.SUBMISSION]
        return sorted(found, key=lambda job: job["started"] or "", reverse=True)

    def drivers(self) -> list[str]:
        """Ids of the programs under way that were not submitted but connected to the cluster themselves."""
        with self._explained():
            running = [job for job in self._client.list_jobs() if job.type is JobType.DRIVER and not job.status.is_terminal()]
        return sorted(str(job.job_id) for job in running)

    def job(self, job: str) -> dict[str, Any]:
        """What is known of a job."""
        with self._explained(job):
            return summary(self._client.get_job_info(job))

    def logs(self, job: str) -> str:
        """What a job has printed."""
        with self._explained(job):
            return self._client.get_job_logs(job)

    def follow(self, job: str, write: Callable[[str], None]) -> dict[str, Any]:
        """Write what a job prints, from its beginning until it ends; returns what is known of it then.

        Raises:
            RunError: the connection was lost; the job goes on.
        """

        async def tail() -> None:
            lines = self._client.tail_job_logs(job)
            following = asyncio.ensure_future(anext(lines))
            ended = False
            try:
                while True:
                    done, _ = await asyncio.wait({following}, timeout=SILENCE_S)
                    if not done:
                        if ended:  # its last lines had time to come
                            return
                        ended = _has_ended(await asyncio.to_thread(self.job, job))
                        continue
                    try:
                        text = following.result()
                    except (StopAsyncIteration, RuntimeError):  # the end of the log, or of the connection
                        return
                    write(text)
                    following = asyncio.ensure_future(anext(lines))
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                await lines.aclose()

        self.job(job)
        with self._explained(job):
            asyncio.run(tail())
        found = self.job(job)
        if not _has_ended(found):
            raise RunError(
                f"the connection to job '{job}' ended before the job did, which goes on: `dvpo jobs logs {job} --follow`"
            )
        return found

    def stop(self, job: str) -> bool:
        """Ask a job to checkpoint and end; False when it had ended."""
        with self._explained(job):
            return self._client.stop_job(job)

    @contextmanager
    def _explained(self, job: str | None = None) -> Iterator[None]:
        """Turn Ray's errors, and those of the libraries under it, into ours."""
        if job is not None and not JOB.fullmatch(job):
            raise UserInputError(f"'{job}' is no name of a job; `dvpo jobs list` shows those that are")
        try:
            yield
        except (DvpoError, BrokenPipeError):  # ours already; and nobody reads what we print, which is no fault of the cluster
            raise
        except AuthenticationError as error:
            raise RunError(self._refusal(str(error).partition("\n")[0])) from error
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise RunError(self._refusal(error.message)) from error
            raise RunError(f"the cluster at {self._where} does not send the log of '{job}': {error.message}") from error
        except (ConnectionError, RpcError, requests.RequestException, aiohttp.ClientError) as error:
            raise RunError(
                f"no Ray dashboard answers at {self._where}: {error}; {START}, forward its port, or correct --address"
            ) from error
        except (RuntimeError, RayStateApiException) as error:
            if isinstance(error, _RefusedError) and error.status == HTTPStatus.NOT_FOUND and job is not None:
                raise UserInputError(f"no job '{job}' on this cluster; `dvpo jobs list` shows those that are") from error
            if NO_AGENT in str(error):
                raise RunError(
                    f"the head of the cluster at {self._where} takes no jobs: its agent does not run, most often because another "
                    "Ray on that machine, an embedded one too, has its port (52365). End that one and start the cluster again, "
                    f"or {START}, which takes a free port"
                ) from error
            raise RunError(f"the cluster at {self._where} refuses: {error}") from error

    def _refusal(self, what: str) -> str:
        return (
            f"the cluster at {self._where} asks for its token ({what}): put it into the environment as RAY_AUTH_TOKEN, or name "
            "its file in RAY_AUTH_TOKEN_PATH; never on a command line, which others can read"
        )


def own_addresses(interfaces: Mapping[str, Sequence[Any]]) -> set[str]:
    """The IP addresses of a machine, given what psutil says of its interfaces, but for those of networks inside it."""
    addresses = [one for name, some in interfaces.items() if not BRIDGE.fullmatch(name) for one in some]
    return {one.address for one in addresses if one.family in (socket.AF_INET, socket.AF_INET6)}


def lies_here(head: str, dashboard: str, mine: Collection[str]) -> bool:
    """Whether a head at an IP address is this machine, which has the addresses ``mine``.

    Every machine has the loopback ones, and any may have the link-local ones: they tell nothing. A head that has no other can be
    reached from its own machine alone, which is this one if the dashboard's URL leads to loopback too and is not forwarded.
    """
    ip, door = _ip(head), _ip(urlsplit(dashboard).hostname or "")
    if ip is not None and ip.is_loopback:
        return door is not None and door.is_loopback
    return head in mine and not (ip is not None and ip.is_link_local)


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is named by; None when it has a name."""
    try:
        return ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None


def summary(job: JobDetails) -> dict[str, Any]:
    """What people and programs are shown of a job. Its environment is not among it."""
    metadata = job.metadata or {}
    return {
        "job": job.submission_id,
        "status": job.status.value,
        **{name: metadata.get(name) for name in ("run", "run_folder", "recipe", "command", "git_commit")},
        "started": _time(job.start_time),
        "ended": _time(job.end_time),
        "exit_code": job.driver_exit_code,
        "message": (job.message or "").partition("\n")[0],
    }


def _has_ended(found: Mapping[str, Any]) -> bool:
    return JobStatus(found["status"]).is_terminal()


def _time(milliseconds: int | None) -> str | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
