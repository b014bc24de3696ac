"""Ray itself: an embedded or an existing cluster, and the environment its actors are started with."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray.exceptions import AuthenticationError

from actors.cluster.actor_logs import keep_actor_logs
from actors.cluster.family import children, end_family
from actors.cluster.hosting import find_host
from actors.cluster.local import START, check_socket_room, own_session
from actors.cluster.picklable_errors import with_picklable_errors
from actors.cluster.scratch import scratch_dir
from actors.cluster.token import make_token, protect_token
from actors.cluster.watchdog import LATE_AFTER
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.errors import RunError
from dvpo_ray.runs.stopping import current, keeping_handlers

# How often Ray's waits let this process look for signals, in milliseconds: by itself once a second.
SIGNALS_LOOKED_FOR = "RAY_get_check_signal_interval_milliseconds"
ERROR = re.compile(r"error|fatal|exception| [EC] ", re.IGNORECASE)
EMBEDDED_FOLDER = "DVPO_EMBEDDED_RAY"
LATE_SHARE = 0.9
# How often a thread of OpenMP looks before it sleeps: enough on a quiet machine, where a step of 1.0 s takes as long with it.
# Beside one busy process it takes 4.1 s, with threads that spin at niceness 15 31 s (benchmarks.neighbours).
SPINS = "10000"


@contextmanager
def ray_session(cluster: ClusterSection) -> Iterator[None]:
    """Connect to Ray for the length of the block; an embedded Ray is started before and stopped after it.

    Raises:
        RunError: the address cannot be reached, or Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault(SIGNALS_LOOKED_FOR, "100")
    stop = current()
    if cluster.address:
        protect_token()
        try:
            with keeping_handlers():
                ray.init(address=_address(cluster.address), log_to_driver=False)
        except ConnectionError as error:
            raise RunError(
                f"no Ray cluster at '{cluster.address}': {error}; {START}, or leave cluster.address out for an embedded one"
            ) from error
        except AuthenticationError as error:
            raise RunError(
                f"the Ray cluster at '{cluster.address}' asks for its token: put it into the environment as RAY_AUTH_TOKEN, or "
                "name its file in RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token"
            ) from error
        try:
            yield
        finally:
            with stop.ending():
                ray.shutdown()
        return
    end_ray = partial(end_family, children())
    with scratch_dir("dvpo-ray-") as folder, stop.at_once(partial(shutil.rmtree, folder, True)), stop.at_once(end_ray):
        try:
            # Ray makes its own folder open to everyone: the closed one is that above it.
            inner = str(Path(folder) / "r")
            start_embedded(cluster, inner)
            os.environ[EMBEDDED_FOLDER] = inner
            yield
        finally:
            with stop.ending():
                whole = os.environ.pop(EMBEDDED_FOLDER, None) is not None
                ray.shutdown()
                # What was started of one that did not come up is not known to Ray.
                if not whole:
                    end_ray()


def _address(asked: str) -> str:
    """Where to connect to; "auto" is RAY_ADDRESS or this user's own Ray. Ray itself would take one of any user of the machine."""
    return own_session().address if asked == "auto" and not os.environ.get("RAY_ADDRESS") else asked


def start_embedded(cluster: ClusterSection, folder: str) -> None:
    """Start a Ray of our own on this machine: loopback only, small, its files in ``folder``."""
    check_socket_room(Path(folder), cluster.dashboard)
    os.environ.update(ray_environment())
    # Ray turns token authentication on by itself, which is what we want, and warns of it.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Actors import this very package, whether it is installed or run from a checkout.
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    make_token()
    try:
        with keeping_handlers(), _own_process_group():
            ray.init(
                num_cpus=cluster.num_cpus,
                include_dashboard=cluster.dashboard,
                dashboard_host="127.0.0.1",
                object_store_memory=cluster.object_store_mb * 2**20,
                log_to_driver=False,
                _temp_dir=folder,
                _node_ip_address="127.0.0.1",
                configure_logging=False,
            )
    # A node that is late is a plain Exception of Ray's.
    except Exception as error:
        raise RunError(
            f"Ray did not start on this machine: {_first_line(error)}; what its processes said:\n{_last_words(Path(folder))}\n"
            "see that processes of earlier runs have ended, that memory and /dev/shm have room (`dvpo doctor`), and start again"
        ) from error


def ray_environment() -> dict[str, str]:
    """Environment variables of a Ray that is started here; what is set already stays."""
    # Ray's own choice of niceness, 15, gives every other program of the machine the right of way.
    chosen = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_worker_niceness": "0"}
    return {name: os.environ.get(name, value) for name, value in chosen.items()}


@contextmanager
def _own_process_group() -> Iterator[None]:
    """Ray's processes that are started in the block do not get the signals that a terminal, `timeout` or `kill` sends to the
    process group of this one, which needs them until it ends. Ray blocks SIGINT in them, but not SIGTERM."""
    ordinary = services.ConsolePopen
    services.ConsolePopen = partial(ordinary, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = ordinary


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))


def _last_words(folder: Path) -> str:
    """The last line of each of the logs of an embedded Ray's processes that holds an error."""
    words = []
    for log in sorted((folder / "session_latest" / "logs").glob("*.*")):
        lines = [line for line in log.read_text(errors="replace").splitlines() if ERROR.search(line)] if log.is_file() else []
        words += [f"  {log.name}: {lines[-1].strip()}"] if lines else []
    return "\n".join(words) or "  nothing"


def keep_logs(target: Path) -> str:
    """Copy what this job's actors wrote to ``target``. Returns where it is, and what those that died wrote last.

    For runs that fail: an embedded Ray takes its logs along when it stops, and on a cluster they lie with each actor's node.
    """
    folder = os.environ.get(EMBEDDED_FOLDER)
    if folder is None:
        return keep_actor_logs(target)
    logs = Path(folder) / "session_latest" / "logs"
    target.mkdir(parents=True, exist_ok=True)
    for log in sorted([*logs.glob("worker-*.out"), *logs.glob("worker-*.err")]):
        if log.stat().st_size:
            shutil.copy(log, target)
    return str(target)


def actor_environment(threads: int, call_timeout_s: float = 0.0) -> dict[str, str]:
    """Environment variables of a compute actor, whose log tells where it hangs before a call on it times out.

    Ray would set OMP_NUM_THREADS to the actor's logical CPUs. On CPU, memory is kept by the allocator instead of going back
    to the kernel after every large tensor: fresh pages cost more than the arithmetic on them (a training step of the demo
    model is 1.7 times faster; docs/performance.md).
    """
    environment = {
        "OMP_NUM_THREADS": str(threads or os.cpu_count() or 1),
        "GOMP_SPINCOUNT": SPINS,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        LATE_AFTER: str(LATE_SHARE * call_timeout_s),
    }
    if not cluster_has_gpus():
        environment |= {
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(2**40),
            "MALLOC_ARENA_MAX": "1",
        }
    return environment


def engine_environment(threads: int, eager: bool) -> dict[str, str]:
    """Environment variables of a rollout actor and of the vLLM processes under it.

    Even an ``eager`` engine compiles the counting of tokens' ranks, which on CPU takes a C++ compiler, to save a millisecond of a
    decoding step.
    """
    environment = {
        "OMP_NUM_THREADS": str(threads or os.cpu_count() or 1),
        "GOMP_SPINCOUNT": SPINS,
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        # A process that a signal ends, as for an instruction its processor lacks, says where it was.
        "PYTHONFAULTHANDLER": "1",
    }
    if eager and not cluster_has_gpus():
        environment["TORCH_COMPILE_DISABLE"] = "1"
    return environment


def cluster_has_gpus() -> bool:
    """Whether actors run on GPUs. The driver's own machine does not say: the head of a cluster has none."""
    return bool(ray.cluster_resources().get("GPU", 0))


def nodes_for(role: str, cluster: ClusterSection) -> dict[str, Any]:
    """The option of ``start_actor`` that keeps an actor on nodes of its role, where the recipe says which label tells them."""
    return {} if cluster.role_label is None else {"label_selector": {cluster.role_label: role}}


def start_actor(kind: type, name: str, environment: dict[str, str], gpus: float, **options: Any) -> Any:
    """An actor class ready for ``.remote(...)``: named, one logical CPU, and a share of GPUs where the cluster has any. What it
    raises is told in words (``actors.cluster.picklable_errors``)."""
    resources = {"num_cpus": 1, "num_gpus": gpus if cluster_has_gpus() else 0}
    host = find_host(kind, name, environment, options)
    if host is not None:
        return host
    return ray.remote(with_picklable_errors(kind)).options(
        name=name, **resources, runtime_env={"env_vars": environment}, **options
    )
