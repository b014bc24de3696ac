"""Buckets of weights sent by the learner's rank 0 to all processes of all engines at once: NCCL between GPUs, Gloo without.

The processes meet in a group of their own, beside those of DeepSpeed and vLLM. It lasts while the same engines are sent to; one
that dies breaks it, and the next sending makes another. NCCL refuses two processes on one GPU: learner and engines need GPUs of
their own.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dvpo_ray.rows import Channel, Receivers

NCCL, GLOO = "nccl", "gloo"


class Group:
    """The processes that meet at ``channel``, of which this one is ``rank``; they meet at the first broadcast."""

    def __init__(self, channel: Channel, rank: int, device: torch.device, store: dist.Store) -> None:
        self.channel = channel
        self._rank = rank
        self._device = device
        self._store = store
        # A torch without CUDA has no class for groups of NCCL.
        self._members: Any = None

    def broadcast(self, data: Tensor) -> None:
        """Send, or receive, all of ``data``; returns when it is done.

        Raises:
            RuntimeError: a process did not come in time, or is gone.
        """
        if self._members is None:
            self._members = self._meet()
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        self._members.broadcast([data], options).wait()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _meet(self) -> Any:
        patience, size = timedelta(seconds=self.channel.timeout_s), self.channel.size
        if self.channel.backend == GLOO:
            return dist.ProcessGroupGloo(self._store, self._rank, size, patience)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = patience
        with torch.cuda.device(self._device):
            return dist.ProcessGroupNCCL(self._store, self._rank, size, options)

    def abort(self) -> None:
        """Give up what is under way; Gloo does so by itself when its time is over."""
        if self._members is not None and self.channel.backend == NCCL:
            self._members.abort()


class Sender:
    """Rank 0's side. Sending goes on in a thread: the receivers are called after they were told where to meet."""

    def __init__(self, address: str, device: torch.device, timeout_s: float) -> None:
        self._backend = NCCL if device.type == "cuda" else GLOO
        self._address = address
        self._device = device
        self._timeout_s = timeout_s
        self._receivers: Receivers | None = None
        self._group: Group | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._sent: Future[None] = Future()

    def buffer(self, size: int, receivers: Receivers) -> Tensor:
        """Room for the next bucket [bytes] (uint8) on the learner's device, to be filled before ``send``.

        Waits for the last one when it goes to the same receivers. Others do not wait for it any more: it is given up.
        """
        if self._group is not None and not (receivers == self._receivers and self._was_sent()):
            self._group.abort()
            self._group = None
        if self._group is None:
            self._receivers, self._group = receivers, self._open(receivers)
            # What was given up may still be read from the old one.
            self._buffer = torch.empty(0, dtype=torch.uint8)
        if self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._buffer[:size]

    def send(self, data: Tensor) -> Channel:
        """Begin to send what ``buffer`` gave; returns where the receivers meet."""
        assert self._group is not None
        self._sent = Future()
        threading.Thread(target=_carry_out, args=(self._group, data, self._sent), name="broadcast", daemon=True).start()
        return self._group.channel

    def close(self) -> None:
        """Leave the group; what is still under way is given up."""
        if self._group is not None:
            self._group.abort()
            self._group = None

    def _was_sent(self) -> bool:
        error: BaseException | None
        try:
            error = self._sent.exception(timeout=2 * self._timeout_s)
        except TimeoutError as late:
            error = late
        if error is not None:
            logging.getLogger(__name__).warning("a broadcast of weights broke off: %r", error)
        return error is None

    def _open(self, receivers: Receivers) -> Group:
        size, patience = 1 + len(receivers.engines) * receivers.workers, timedelta(seconds=self._timeout_s)
        store = dist.TCPStore(self._address, 0, size, is_master=True, timeout=patience, wait_for_workers=False)
        return Group(Channel(self._backend, self._address, store.port, size, self._timeout_s), 0, self._device, store)


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
        if self._buffer.numel() < size or self._buffer.device.type != device.type:
            self._buffer = torch.empty(size, dtype=torch.uint8, device=device)
        data = self._buffer[:size]
        try:
            self._group.broadcast(data)
        except RuntimeError:
            self.close()
            raise
        return data

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.abort()
            self._group = None
