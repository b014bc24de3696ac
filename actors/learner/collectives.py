"""The process group of a learner's ranks, and sums of a few numbers over it."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def join_process_group(rank: int, world: int, address: str, port: int, threads: int) -> torch.device:
    """Set up this process as one rank (NCCL where there is a GPU, else Gloo); returns its device.

    Threads and what finds the group in the environment are set here and nowhere else. All ``world`` ranks must call it; a process
    that is in a group stays in that one.
    """
    use_cuda = torch.cuda.is_available()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", MASTER_ADDR=address, MASTER_PORT=str(port))
    torch.set_num_threads(threads or os.cpu_count() or 1)
    device = torch.device("cuda", 0) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if use_cuda else "gloo")
    return device


def all_reduce(values: dict[str, float], operation: str = "sum") -> dict[str, float]:
    """Sum or maximum of named numbers over all ranks."""
    names = sorted(values)
    tensor = torch.tensor([values[name] for name in names], dtype=torch.float64)
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    dist.all_reduce(tensor, op=dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX)
    return dict(zip(names, tensor.tolist(), strict=True))
