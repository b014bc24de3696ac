"""Devices to plan for: what they hold, compute and move."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dvpo_ray.errors import UserInputError

GB = 1e9


@dataclass(frozen=True)
class Device:
    """One accelerator, or one machine's CPU: bytes, dense bfloat16 operations a second, bytes a second of its memory."""

    name: str
    memory: float
    flops: float
    bandwidth: float
    is_cpu: bool = False


@dataclass(frozen=True)
class DeviceGroup:
    """So many devices of one kind."""

    count: int
    device: Device


# Vendors' data sheets: memory, dense bfloat16 peak, memory bandwidth.
CATALOGUE = {
    device.name.lower(): device
    for device in (
        Device("A100-40GB", 40 * GB, 312e12, 1.555e12),
        Device("A100-80GB", 80 * GB, 312e12, 2.039e12),
        Device("H100-80GB", 80 * GB, 989e12, 3.35e12),
        Device("H200-141GB", 141 * GB, 989e12, 4.8e12),
        Device("B200-180GB", 180 * GB, 2250e12, 7.7e12),
        Device("L4-24GB", 24 * GB, 121e12, 0.3e12),
        Device("L40S-48GB", 48 * GB, 362e12, 0.864e12),
        Device("RTX4090-24GB", 24 * GB, 165e12, 1.008e12),
    )
}
# A core with AVX-512 bfloat16 instructions, measured on two of them (benchmarks/RESULTS.md): not a vendor's figure.
CPU_CORE_FLOPS = 0.4e12
CPU_BANDWIDTH = 30e9


def parse_devices(text: str) -> DeviceGroup:
    """``8xA100-80GB``, ``A100-80GB``, or ``cpu:CORES:MEMORY_GB``.

    Raises:
        UserInputError: naming the known devices.
    """
    cpu = re.fullmatch(r"cpu:(\d+):(\d+(?:\.\d+)?)", text.lower())
    if cpu:
        cores, memory = int(cpu[1]), float(cpu[2]) * GB
        return DeviceGroup(1, Device(f"CPU, {cores} cores", memory, cores * CPU_CORE_FLOPS, CPU_BANDWIDTH, is_cpu=True))
    found = re.fullmatch(r"(?:(\d+)x)?([a-z0-9-]+)", text.lower())
    if not found or found[2] not in CATALOGUE or found[1] == "0":
        known = ", ".join(device.name for device in CATALOGUE.values())
        raise UserInputError(f"devices '{text}' are not known: write COUNTxNAME with one of {known}, or cpu:CORES:MEMORY_GB")
    return DeviceGroup(int(found[1] or 1), CATALOGUE[found[2]])
