"""Devices to plan for: what they hold, compute and move."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from dvpo_ray.errors import UserInputError
from dvpo_ray.planning.node_facts import NodeFacts, measure_node

GB = 1e9


@dataclass(frozen=True)
class Device:
    """One accelerator, or one machine's CPU.

    ``memory`` in bytes, ``flops`` dense bfloat16 operations a second (0 where it has no instructions for them), ``bandwidth``
    bytes a second of its memory, ``float32_flops`` operations a second on float32 numbers, without TF32.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    float32_flops: float
    is_cpu: bool = False
    cores: int = 0

    def speed(self, dtype: str) -> float:
        """Operations a second on numbers of a type."""
        return self.flops or EMULATED * self.float32_flops if dtype == "bfloat16" else self.float32_flops

    @property
    def facts(self) -> NodeFacts:
        """The device as ``device_defaults`` sees it."""
        speed = self.flops / self.float32_flops or EMULATED
        return NodeFacts(self.name, not self.is_cpu, speed, self.memory, self.float32_flops / 1e9 if self.is_cpu else 0.0)


@dataclass(frozen=True)
class DeviceGroup:
    """So many devices of one kind."""

    count: int
    device: Device


# Vendors' data sheets: memory, dense bfloat16 peak, memory bandwidth, float32 peak.
CATALOGUE = {
    device.name.lower(): device
    for device in (
        Device("A100-40GB", 40 * GB, 312e12, 1.555e12, 19.5e12),
        Device("A100-80GB", 80 * GB, 312e12, 2.039e12, 19.5e12),
        Device("H100-80GB", 80 * GB, 989e12, 3.35e12, 67e12),
        Device("H200-141GB", 141 * GB, 989e12, 4.8e12, 67e12),
        Device("B200-180GB", 180 * GB, 2250e12, 7.7e12, 75e12),
        Device("L4-24GB", 24 * GB, 121e12, 0.3e12, 30.3e12),
        Device("L40S-48GB", 48 * GB, 362e12, 0.864e12, 91.6e12),
        Device("RTX4090-24GB", 24 * GB, 165e12, 1.008e12, 82.6e12),
    )
}
# A core, measured on two of them (benchmarks/RESULTS.md), no vendor's figures: bfloat16 with AVX-512 instructions for it, and
# float32 with AVX2. Without such instructions bfloat16 is emulated, at this share of the speed of float32.
CPU_CORE_FLOPS = 0.4e12
CPU_CORE_FLOAT32_FLOPS = 0.069e12
EMULATED = 0.13
CPU_BANDWIDTH = 30e9


def parse_devices(text: str) -> DeviceGroup:
    """``8xA100-80GB``, ``A100-80GB``, ``cpu:CORES:MEMORY_GB``, or ``here``: this machine's CPU as measured, or its GPUs.

    A CPU is taken for one without instructions for bfloat16, unless ``:bf16`` follows.

    Raises:
        UserInputError: naming the known devices.
    """
    if text.lower() == "here":
        return _this_machine()
    cpu = re.fullmatch(r"cpu:([1-9]\d*):(\d+(?:\.\d+)?)(:bf16)?", text.lower())
    if cpu:
        cores, memory = int(cpu[1]), float(cpu[2]) * GB
        flops = cores * CPU_CORE_FLOPS if cpu[3] else 0.0
        name = f"CPU, {cores} cores"
        return DeviceGroup(1, Device(name, memory, flops, CPU_BANDWIDTH, cores * CPU_CORE_FLOAT32_FLOPS, True, cores))
    found = re.fullmatch(r"(?:(\d+)x)?([a-z0-9-]+)", text.lower())
    if not found or found[2] not in CATALOGUE or found[1] == "0":
        known = ", ".join(device.name for device in CATALOGUE.values())
        raise UserInputError(
            f"devices '{text}' are not known: write COUNTxNAME with one of {known}, cpu:CORES:MEMORY_GB (with :bf16 where the "
            "processor has AVX512-BF16 or AMX), or `here` for this machine"
        )
    return DeviceGroup(int(found[1] or 1), CATALOGUE[found[2]])


def _this_machine() -> DeviceGroup:
    """This machine's CPU as measured, or its GPUs, where the catalogue knows them.

    Raises:
        UserInputError: its GPU is not in the catalogue.
    """
    facts = measure_node()
    if not facts.is_gpu:
        float32 = facts.gflops * 1e9
        flops = float32 * facts.bfloat16_speed if facts.multiplies_bfloat16 else 0.0
        cores = len(os.sched_getaffinity(0))
        return DeviceGroup(1, Device(facts.name, facts.memory, flops, CPU_BANDWIDTH, float32, True, cores))
    import torch

    words = set(re.split(r"[^a-z0-9]+", facts.name.lower()))
    fitting = [device for device in CATALOGUE.values() if device.name.split("-")[0].lower() in words]
    if not fitting:
        raise UserInputError(f"this machine's '{facts.name}' is not in the catalogue: name a device like it with --devices")
    device = min(fitting, key=lambda one: abs(one.memory - facts.memory))
    return DeviceGroup(torch.cuda.device_count(), device)
