"""Broadcast over Gloo: all get what was sent, a group that broke does not hold up the next."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from actors.weights.broadcast import Receiver, Sender
from dvpo_ray.types import BucketTargets, Channel

CPU = torch.device("cpu")
LOOPBACK = "127.0.0.1"
BOTH = BucketTargets(("rollout-0", "rollout-1"), 1)


def content(seed: int, size: int = 100_000) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def sent(sender: Sender, receivers: BucketTargets, data: torch.Tensor) -> Channel:
    room = sender.buffer(data.numel(), receivers)
    room.copy_(data)
    return sender.send(room)


def received(ends: list[Receiver], channel: Channel, size: int) -> list[torch.Tensor]:
    with ThreadPoolExecutor(len(ends)) as threads:
        calls = [threads.submit(end.receive, channel, rank, size) for rank, end in enumerate(ends, start=1)]
    return [call.result() for call in calls]


def test_all_receive_every_bucket_through_one_group_and_others_through_another() -> None:
    sender, ends = Sender(LOOPBACK, CPU, 30.0), [Receiver(CPU), Receiver(CPU)]
    channels = []
    for seed, size in enumerate((100_000, 40, 200_000)):
        data = content(seed, size)
        channels.append(sent(sender, BOTH, data))
        assert all(torch.equal(found, data) for found in received(ends, channels[-1], size))
    assert channels[0] == channels[1] == channels[2]
    alone = sent(sender, replace(BOTH, engines=("rollout-1",)), content(9))
    assert alone != channels[0]
    assert torch.equal(received(ends[1:], alone, 100_000)[0], content(9))
    sender.close()
    for end in ends:
        end.close()


def test_one_that_does_not_come_breaks_the_group_and_the_next_one_serves_the_others() -> None:
    sender, end = Sender(LOOPBACK, CPU, 1.0), Receiver(CPU)
    broken = sent(sender, BOTH, content(1))
    with pytest.raises(RuntimeError):
        end.receive(broken, 1, 100_000)
    channel = sent(sender, replace(BOTH, engines=("rollout-0",), attempt=1), content(2))
    assert channel != broken
    assert torch.equal(end.receive(channel, 1, 100_000), content(2))
    sender.close()
    end.close()


def test_a_group_whose_sending_failed_is_not_used_again(caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender(LOOPBACK, CPU, 0.5)
    first = sent(sender, BOTH, content(1))
    second = sent(sender, BOTH, content(2))
    assert first != second
    assert "a broadcast of weights broke off" in caplog.text
    sender.close()
