"""A learner's step on a real model reads the device as often, however many micro-batches it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from actors.dpo_learner import DpoLearnerRank
from actors.rank import free_port
from actors.value_learner import ValueLearnerRank
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.learning.pairs import LabelledAnswer, Pair
from tests.host_reads import HostReads
from tests.ranks import policy, rank_of, train
from tests.real import dpo_recipe, value_recipe

MODEL = ModelSection(attention="eager")
pytestmark = pytest.mark.integration


@pytest.fixture
def group() -> Iterator[None]:
    """Whatever group a rank joins is left again."""
    threads = torch.get_num_threads()
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def pairs_of(count: int) -> list[Pair]:
    generator = np.random.default_rng(0)

    def answer(label: float) -> LabelledAnswer:
        return LabelledAnswer(generator.integers(2, 300, 6), generator.integers(2, 300, 7), label)

    return [(answer(1.0), answer(0.0)) for _ in range(count)]


def reads_in(step: Callable[[], object]) -> int:
    step()
    with HostReads() as reads:
        step()
    return reads.count


def value_reads(model: Path, folder: Path, budget: int) -> int:
    learner = {"dtype": "float32", "token_budget": budget}
    value = value_recipe(model, folder, folder, learner=learner).value
    rank = ValueLearnerRank(0, 1, str(model), MODEL, value, 0, 10)
    rank.start("127.0.0.1", free_port())
    return reads_in(lambda: rank.step(pairs_of(8), value.target))


def dpo_reads(model: Path, folder: Path, budget: int) -> int:
    learner = {"dtype": "float32", "token_budget": budget}
    dpo = dpo_recipe(model, folder, folder, "dpo", learner=learner).dpo
    rank = DpoLearnerRank(0, 1, str(model), MODEL, dpo, 0, 10)
    rank.start("127.0.0.1", free_port())
    return reads_in(lambda: rank.step(pairs_of(8), np.zeros((8, 2))))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("reads", [value_reads, dpo_reads])
def test_pairs(tiny_model: Path, tmp_path: Path, reads: Callable[[Path, Path, int], int]) -> None:
    """One pair a micro-batch, or all in one."""
    assert reads(tiny_model, tmp_path, 26) == reads(tiny_model, tmp_path, 10_000)


@pytest.mark.usefixtures("one_process")
def test_rows(tiny_model: Path) -> None:
    few, many = (
        rank_of(tiny_model, policy(learner={"dtype": "float32", "token_budget": budget}), None) for budget in (10_000, 20)
    )
    assert reads_in(lambda: train(few, 0)) == reads_in(lambda: train(many, 0))
