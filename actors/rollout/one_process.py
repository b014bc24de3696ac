"""An engine on a CPU whose only worker lives in the process of the engine's core.

vLLM gives that worker a process of its own, so that OpenMP's variables are set before torch is loaded there. Set before the core
starts, they are there as well: a start imports vLLM once less (12 of 46 s with a tiny model on two cores), and no step of the
engine passes through a queue.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.executor.uniproc_executor import UniProcExecutor

# The cores that vLLM's worker gets a thread on each, "0,1", or "nobind". GNU's OpenMP, which torch brings along and vLLM loads
# first, looks for the others.
BINDING, THREADS, CORES = "VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY"


class OneProcessExecutor(UniProcExecutor):
    """vLLM's executor for one worker. Under its own name, "uni", vLLM replaces it on a CPU."""


ONE_PROCESS = f"{OneProcessExecutor.__module__}.{OneProcessExecutor.__name__}"


@contextmanager
def bound_threads(args: Any) -> Iterator[None]:
    """An engine with these arguments (``AsyncEngineArgs``) that starts in the block computes on the cores of ``BINDING``."""
    cores = os.environ.get(BINDING, "nobind")
    if args.distributed_executor_backend != ONE_PROCESS or cores == "nobind":
        yield
        return
    names = cores.split(",")
    before = {name: os.environ.get(name) for name in (THREADS, CORES)}
    os.environ.update({THREADS: str(len(names)), CORES: " ".join(names)})
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})
        for name in (name for name, value in before.items() if value is None):
            del os.environ[name]
