"""Ray itself: an embedded or an existing cluster, and the environment its actors are started with."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from actors.own_folder import own_folder
from actors.watchdog import LATE_AFTER
from dvpo_ray.cluster_token import make_token, protect_token
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.errors import RunError

EMBEDDED_FOLDER = "DVPO_EMBEDDED_RAY"
RAY_LOGS = "/tmp/ray/session_latest/logs/worker-*"
LATE_SHARE = 0.9


@contextmanager
def ray_session(cluster: ClusterSection) -> Iterator[None]:
    """Connect to Ray for the length of the block; an embedded Ray is started before and stopped after it.

    Raises:
        RunError: the address cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    if cluster.address:
        protect_token()
        try:
            ray.init(address=cluster.address, log_to_driver=False)
        except ConnectionError as error:
            raise RunError(
                f"no Ray cluster at '{cluster.address}': {error}; start one with `ray start --head`, or leave cluster.address "
                "out for an embedded one"
            ) from error
        except AuthenticationError as error:
            raise RunError(
                f"the Ray cluster at '{cluster.address}' asks for its token: put it into the environment as RAY_AUTH_TOKEN, or "
                "name its file in RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    with own_folder("dvpo-ray-") as folder:
        start_embedded(cluster, folder)
        os.environ[EMBEDDED_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[EMBEDDED_FOLDER]
            ray.shutdown()


def start_embedded(cluster: ClusterSection, folder: str) -> None:
    """Start a Ray of our own on this machine: loopback only, small, its files in ``folder``."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray turns token authentication on by itself, which is what we want, and warns of it.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Actors import this very package, whether it is installed or run from a checkout.
    paths = [str(Path(__file__).resolve().parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    make_token()
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


def keep_logs(target: Path) -> str:
    """Copy what the actors of an embedded Ray wrote to ``target``; on a cluster the logs stay with Ray. Returns where they are.

    For runs that fail: an embedded Ray takes its logs along when it stops.
    """
    folder = os.environ.get(EMBEDDED_FOLDER)
    if folder is None:
        return f"with Ray, on the nodes of its actors: {RAY_LOGS}, or the dashboard's page of the actor"
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
    """An actor class ready for ``.remote(...)``: named, one logical CPU, and a share of GPUs where the cluster has any."""
    resources = {"num_cpus": 1, "num_gpus": gpus if cluster_has_gpus() else 0}
    return ray.remote(kind).options(name=name, **resources, runtime_env={"env_vars": environment}, **options)
