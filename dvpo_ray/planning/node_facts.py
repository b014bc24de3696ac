"""What one machine multiplies how fast, measured on it."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

# GPUs from this compute capability on (Ampere) multiply bfloat16; PyTorch emulates it on older ones and says that it is there.
BFLOAT16_CAPABILITY = (8, 0)
SIDE = 512
REPEATS = 5
# An emulated product can take a hundred times as long as one in float32: such a one is not repeated.
HOPELESS = 20.0


@dataclass(frozen=True)
class NodeFacts:
    """One machine as a place for actors.

    ``bfloat16_speed`` is how many times faster it multiplies bfloat16 than float32 matrices (0 for a GPU that has no such units;
    of other GPUs not measured, 2). ``gflops`` are measured float32 operations a second in billions, all cores together, 0 for a
    GPU. ``memory`` is that of one device, in bytes.
    """

    name: str
    is_gpu: bool
    bfloat16_speed: float
    memory: float
    gflops: float = 0.0

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether bfloat16 is worth its rounding here."""
        return self.bfloat16_speed >= 1.0

    @property
    def why(self) -> str:
        """What the choice of a number type rests on."""
        if not self.is_gpu:
            return f"bfloat16 at {self.bfloat16_speed:.2f} times the speed of float32 on {self.name}"
        return f"{self.name} {'has' if self.multiplies_bfloat16 else 'is older than Ampere and has no'} bfloat16 units"


@cache
def measure_node() -> NodeFacts:
    """Facts of the machine that this process is on; takes a tenth of a second on a CPU, once a process."""
    import torch

    if torch.cuda.is_available():
        speed = 2.0 if torch.cuda.get_device_capability(0) >= BFLOAT16_CAPABILITY else 0.0
        return NodeFacts(torch.cuda.get_device_name(0), True, speed, float(torch.cuda.get_device_properties(0).total_memory))
    float32 = _product_seconds(torch.float32)
    return NodeFacts(
        processor_name(),
        False,
        float32 / _product_seconds(torch.bfloat16, HOPELESS * float32),
        float(psutil.virtual_memory().total),
        2 * SIDE**3 / float32 / 1e9,
    )


def _product_seconds(dtype: Any, hopeless: float = 0.0) -> float:
    """The shortest of a few products of square matrices, in seconds: what else runs here can only make it longer. Given up after
    one that takes longer than ``hopeless``."""
    import torch

    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    best = float("inf")
    # The first also packs code and memory.
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
        if hopeless and best > hopeless:
            break
    return best


def processor_name() -> str:
    """What the processor calls itself, with the widest instructions for matrices that its flags name."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.is_file() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    found = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f" {name} " in f"{text} ".replace("\n", " ")]
    return f"{names[0] if names else platform.processor() or platform.machine()} ({found[0] if found else 'no known flags'})"
