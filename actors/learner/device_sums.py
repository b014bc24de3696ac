"""Sums of numbers that a device computes one micro-batch after the other, and that the host needs once a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class DeviceSums:
    """Adds up named scalars without waiting for them.

    ``float(scalar)`` after each micro-batch would stop the host until the device is done, so that the device then waits for the
    next micro-batch to be prepared. Sums are taken by the host in float64, in the order in which the numbers came.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """``names``: sums that are 0 when nothing is added to them."""
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._times: dict[str, list[float]] = defaultdict(list)
        for name in names:
            self._values[name] = []

    def add(self, values: Mapping[str, Tensor], times: float = 1.0) -> None:
        """Add ``times`` each of ``values``, scalar tensors that lie on one device."""
        for name, value in values.items():
            self._values[name].append(value.detach())
            self._times[name].append(times)

    def read(self) -> dict[str, float]:
        """All sums; waits for the device once."""
        filled = [torch.stack(values).double() for values in self._values.values() if values]
        numbers = iter(torch.cat(filled).tolist() if filled else [])
        sums = dict.fromkeys(self._values, 0.0)
        for name in sums:
            for times in self._times[name]:
                sums[name] += next(numbers) * times
        return sums
