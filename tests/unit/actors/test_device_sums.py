"""Sums of scalars of micro-batches: as if each had been read at once, with one read."""

from __future__ import annotations

import torch

from actors.learner.device_sums import DeviceSums
from tests.support.host_reads import HostReads


def test_sums_are_those_of_the_numbers_read_one_by_one() -> None:
    """0.1 in float32 is 0.10000000149011612: float64 sums of float32 numbers, in their order."""
    scalars = torch.rand(50, generator=torch.Generator().manual_seed(0)).unbind()
    one, other = 0.0, 0.0
    sums = DeviceSums(["nothing"])
    for scalar in scalars:
        sums.add({"one": scalar})
        sums.add({"other": scalar.bfloat16()}, times=3)
        one += float(scalar)
        other += float(scalar.bfloat16()) * 3
    assert sums.read() == {"nothing": 0.0, "one": one, "other": other}
    single = DeviceSums()
    single.add({"x": torch.tensor(0.1)})
    assert single.read() == {"x": 0.10000000149011612}


def test_nothing_is_read_before_the_end_and_no_graph_is_kept() -> None:
    weight = torch.ones((), requires_grad=True)
    sums = DeviceSums()
    with HostReads() as reads:
        for number in range(100):
            sums.add({"a": weight * number, "b": weight + number})
        assert reads.count == 0
        assert sums.read() == {"a": 4950.0, "b": 5050.0}
    assert not any(value.requires_grad for values in sums._values.values() for value in values)
