"""Buckets of weights sent by the learner's rank 0 to all processes of all engines at once: NCCL between GPUs, Gloo without.

The processes meet in a group of their own, beside those of DeepSpeed and vLLM. It lasts while the same engines are sent to; one
that dies breaks it, and the next sending makes another. NCCL refuses two processes on one GPU: learner and engines need GPUs of
their own. The path of NCCL has not been run yet.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dvpo_ray.types import BucketTargets, Channel

NCCL, GLOO = "nccl", "gloo"
# What makes a wait for NCCL end with an error when its time is over; without it torch ends the whole process.
BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"


class Group:
    """The processes that meet at ``channel``, of which this one is ``rank``; they meet at the first broadcast."""

    def __init__(self, channel: Channel, rank: int, device: torch.device, store: dist.Store) -> None:
        self.channel = channel
        self._rank = rank
        self._device = device
        self._store = store
        # A torch without CUDA has no class for groups of NCCL.
        self._members: Any = None
        self._given_up = threading.Event()

    def broadcast(self, data: Tensor) -> None:
        """Send, or receive, all of ``data``; returns when it is done.

        Raises:
            RuntimeError: a process did not come in time, or is gone.
        """
        if self._members is None:
            self._members = self._meet()
        if self._given_up.is_set():
            raise RuntimeError("the broadcast was given up")
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        self._members.broadcast([data], options).wait()

    def _meet(self) -> Any:
        patience, size = timedelta(seconds=self.channel.timeout_s), self.channel.size
        # NCCL would wait for ever for one that does not come.
        self._store.set(f"here-{self._rank}", "")
        self._store.wait([f"here-{rank}" for rank in range(size)], patience)
        if self.channel.backend == GLOO:
            return dist.ProcessGroupGloo(self._store, self._rank, size, patience)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = patience
        with torch.cuda.device(self._device), blocking_waits():
            return dist.ProcessGroupNCCL(self._store, self._rank, size, options)

    def abort(self) -> None:
        """Give up what is under way; Gloo does so by itself when its time is over."""
        self._given_up.set()
        if self._members is not None and self.channel.backend == NCCL:
            try:
                self._members.abort()
            except RuntimeError as error:
                logging.getLogger(__name__).warning("a broken broadcast could not be taken down: %r", error)


@contextmanager
def blocking_waits() -> Iterator[None]:
    """Groups of NCCL made within the block wait as ``BLOCKING_WAIT`` says."""
    before = os.environ.get(BLOCKING_WAIT)
    os.environ[BLOCKING_WAIT] = "1"
    try:
        yield
    finally:
        del os.environ[BLOCKING_WAIT]
        os.environ |= {} if before is None else {BLOCKING_WAIT: before}


def grown(buffer: Tensor, size: int, device: torch.device) -> Tensor:
    """The buffer, or a new one when it has less than ``size`` bytes or is elsewhere."""
    if buffer.numel() >= size and buffer.device.type == device.type:
        return buffer
    return torch.empty(size, dtype=torch.uint8, device=device)


class Sender:
    """Rank 0's side. Sending goes on in a thread: the receivers are called after they were told where to meet."""

    def __init__(self, address: str, device: torch.device, timeout_s: float) -> None:
        self._backend = NCCL if device.type == "cuda" else GLOO
        self._address = address
        self._device = device
        self._timeout_s = timeout_s
        self._receivers: BucketTargets | None = None
        self._group: Group | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._sent: Future[None] = Future()

    def buffer(self, size: int, receivers: BucketTargets) -> Tensor:
        """Room for the next bucket [bytes] (uint8) on the learner's device, to be filled before ``send``.

        Waits for the last one when it goes to the same receivers. Others do not wait for it any more: it is given up.
        """
        if self._group is not None and not (receivers == self._receivers and self._was_sent()):
            self.close()
        if self._group is None:
            self._receivers, self._group = receivers, self._open(receivers)
            # What was given up may still be read from the old one.
            self._buffer = torch.empty(0, dtype=torch.uint8)
            self._sent = Future()
            self._sent.set_result(None)
        self._buffer = grown(self._buffer, size, self._device)
        return self._buffer[:size]

    def send(self, data: Tensor) -> Channel:
        """Begin to send what ``buffer`` gave; returns where the receivers meet."""
        assert self._group is not None
        self._sent = Future()
        threading.Thread(target=_carry_out, args=(self._group, data, self._sent), name="broadcast", daemon=True).start()
        return self._group.channel

    def close(self) -> None:
        """Leave the group; what is still under way is given up."""
        group, self._group = self._group, None
        if group is not None:
            group.abort()

    def _was_sent(self) -> bool:
        error: BaseException | None
        try:
            error = self._sent.exception(timeout=2 * self._timeout_s)
        except TimeoutError as late:
            error = late
        if error is not None:
            logging.getLogger(__name__).warning("a broadcast of weights broke off: %r", error)
        return error is None

    def _open(self, receivers: BucketTargets) -> Group:
        size, patience = 1 + len(receivers.engines) * receivers.workers, timedelta(seconds=self._timeout_s)
        store = dist.TCPStore(self._address, 0, size, is_master=True, timeout=patience, wait_for_workers=False)
        channel = Channel(uuid.uuid4().hex, self._backend, self._address, store.port, size, self._timeout_s)
        return Group(channel, 0, self._device, store)


def _carry_out(group: Group, data: Tensor, sent: Future[None]) -> None:
    try:
        group.broadcast(data)
    except BaseException as error:
        sent.set_exception(error)
    else:
        sent.set_result(None)


class Receiver:
    """The side of one process of an engine."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._group: Group | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def receive(self, channel: Channel, rank: int, size: int) -> Tensor:
        """What is sent next through ``channel`` [bytes] (uint8); the memory is used again for the one after it.

        Raises:
            RuntimeError: nothing came in time, or the sender is gone.
        """
        device = self._device if channel.backend == NCCL else torch.device("cpu")
        if self._group is None or self._group.channel != channel:
            self.close()
            patience = timedelta(seconds=channel.timeout_s)
            store = dist.TCPStore(channel.address, channel.port, channel.size, is_master=False, timeout=patience)
            self._group = Group(channel, rank, device, store)
        self._buffer = grown(self._buffer, size, device)
        data = self._buffer[:size]
        try:
            self._group.broadcast(data)
        except RuntimeError:
            self.close()
            raise
        return data

    def close(self) -> None:
        """Leave the group."""
        group, self._group = self._group, None
        if group is not None:
            group.abort()
