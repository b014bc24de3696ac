"""The check of training backends: those of the project pass it, alone and as two ranks, and faults are named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from actors.learner import conformance
from actors.learner.collectives import join_process_group
from actors.learner.conformance import check_training_backend
from actors.learner.fsdp.backend import FsdpBackend
from actors.learner.rank import free_port
from dvpo_ray.config.backends import FsdpSettings
from tests.support.layer_engines import BACKENDS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("process_group")]


@pytest.mark.parametrize("name", BACKENDS)
def test_the_projects_own_pass(name: str) -> None:
    check_training_backend(BACKENDS[name])


def one_of_two(rank: int, port: int) -> None:
    join_process_group(rank, 2, "127.0.0.1", port, 1)
    for name in ("fsdp", "fsdp-gradients"):
        check_training_backend(BACKENDS[name])


def test_fsdp_passes_as_two_ranks() -> None:
    """A weight of one row lies on one rank only, and five rows are not halved."""
    processes = torch.multiprocessing.start_processes(one_of_two, (free_port(),), nprocs=2, join=False, start_method="spawn")
    while not processes.join(timeout=300):
        pass


class Unclipped(FsdpBackend):
    """Forgets to clip."""

    def __init__(self, settings: Any, reader: Any, config: Any, total_steps: int) -> None:
        super().__init__(settings, reader, config.model_copy(update={"grad_clip": 1e9}), total_steps)


class Forgetful(FsdpBackend):
    """Keeps gradients that were to be discarded."""

    def discard(self) -> None:
        """Nothing."""


class Halved(FsdpBackend):
    """Writes half of each piece."""

    def pieces(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The first half."""
        return ((name, tensor[: (tensor.numel() + 1) // 2]) for name, tensor in super().pieces())


class Trained(FsdpBackend):
    """Knows only what it trains."""

    @contextmanager
    def whole(self, names: Any) -> Iterator[dict[str, torch.Tensor]]:
        """Without frozen ones."""
        with super().whole(names) as tensors:
            yield {name: tensor.new_empty(0) if name.startswith("frozen") else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (Unclipped, "weights after two steps"),
        (Forgetful, "step 1: gradient norm"),
        (Halved, r"pieces\(\) holds"),
        (Trained, "frozen parameters"),
    ],
)
def test_a_fault_is_named(fault: type, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "make_backend", fault)
    with pytest.raises(AssertionError, match=named):
        check_training_backend(FsdpSettings())
