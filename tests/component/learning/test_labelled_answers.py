"""Answers that are in no pair beside pairs: their targets, their micro-batches, and the step that is taken on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.learner.value import ValueLearnerRank
from dvpo_ray.config import ValueRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.config.targets import BtTarget, McTarget, TargetConfig, TdTarget
from dvpo_ray.data import EncodedAnswer, EncodedPair
from dvpo_ray.learning import value_update
from dvpo_ray.learning.pairs import Unit, labelled, unit
from dvpo_ray.models.token_reader import ValueReader
from dvpo_ray.models.value_model import new_value_model
from tests.support.decided import decided
from tests.support.ranks import GradientBackend

pytestmark = pytest.mark.usefixtures("one_process")
BUDGET = 60


def ids(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(int(i) for i in rng.integers(2, 300, count))


def pairs(count: int) -> list[Unit]:
    rng = np.random.default_rng(0)
    sizes = [(3 + i % 5, 1 + i % 7, 9 - i % 5) for i in range(count)]
    return [unit(EncodedPair(str(i), "", ids(rng, p), str(i), ids(rng, a), ids(rng, b))) for i, (p, a, b) in enumerate(sizes)]


def alone(*labels: float) -> list[Unit]:
    rng = np.random.default_rng(1)
    return [unit(EncodedAnswer(str(i), "", ids(rng, 4), str(i), ids(rng, 2 + 5 * i), label)) for i, label in enumerate(labels)]


def rank_of(folder: Path, rank: int = 0, world: int = 1) -> ValueLearnerRank:
    torch.manual_seed(0)
    learner = {"dtype": "float32", "token_budget": BUDGET}
    tree = {"data": {"source": "x", "max_prompt_tokens": 8, "max_answer_tokens": 22}, "learner": learner}
    value = decided(build(ValueRecipe, {"value": tree})).value
    made = ValueLearnerRank(rank, world, str(folder), ModelSection(attention="eager"), value, 3, 1)
    model = new_value_model(folder, "eager", torch.float32).eval()
    with torch.no_grad():
        model.score.weight.normal_(0, 0.5)
    made.backend = GradientBackend(ValueReader(model))  # type: ignore[arg-type, assignment]
    return made


def one_by_one(folder: Path, units: list[Unit], target: TargetConfig) -> tuple[dict[str, Tensor], float]:
    """Gradient and value of the mean loss of an answer, each unit in a pass of its own."""
    rank = rank_of(folder)
    reader = rank.backend.reader
    answers = sum(map(len, units))
    loss = torch.zeros(())
    for one in units:
        batch = rank.pad_answers(one)
        values = reader(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
        labels = torch.tensor([answer.label for answer in one])
        goals = value_update.targets(values, batch.response_lengths, labels, target)
        loss = loss + value_update.loss(values, goals, batch.response_lengths, target, in_pairs=len(one) == 2) / answers
    loss.backward()
    return {name: p.grad.clone() for name, p in reader.model.named_parameters() if p.grad is not None}, float(loss.detach())


def test_the_target_of_an_answer_of_a_tie_by_hand() -> None:
    """q = .2, -.4, .6 and z = 0 at lambda .5: G_2 = 0; G_1 = .5 * 0 + .5 * .6 = .3; G_0 = .5 * .3 + .5 * -.4 = -.05."""
    values, lengths = torch.tensor([0.2, -0.4, 0.6]), np.array([2])
    goals = value_update.targets(values, lengths, torch.tensor([0.0]), TdTarget(lam=0.5))
    assert goals.tolist() == pytest.approx([-0.05, 0.3, 0.0])
    assert value_update.targets(values, lengths, torch.tensor([0.0]), McTarget()).tolist() == [0, 0, 0]
    # Half the mean of the squares .25, -.7 and .6.
    expected = 0.5 * (0.25**2 + 0.7**2 + 0.6**2) / 3
    for target in (TdTarget(lam=0.5), BtTarget(lam=0.5)):
        assert float(value_update.loss(values, goals, lengths, target, in_pairs=False)) == pytest.approx(expected)


def test_a_label_between_moves_the_target_between() -> None:
    """z = 1/3 with a head of zeros at lambda .9: .9^2 / 3, .9 / 3, 1 / 3."""
    found = value_update.targets(torch.zeros(3), np.array([2]), torch.tensor([1 / 3]), TdTarget(lam=0.9))
    assert found.tolist() == pytest.approx([0.27, 0.3, 1 / 3])


def test_units_of_rows() -> None:
    pair = EncodedPair("r", "", (1, 2), "k", (3, 4), (5,))
    assert [answer.label for answer in unit(pair)] == [1, -1]
    assert all(a.response_ids.tolist() == b.response_ids.tolist() for a, b in zip(unit(pair), labelled(pair), strict=True))
    (answer,) = unit(EncodedAnswer("r", "", (1, 2), "k", (3, 4, 5), -0.5))
    assert (answer.label, answer.tokens, answer.response_ids.tolist()) == (-0.5, 5, [3, 4, 5])
    with pytest.raises(AssertionError, match="the label 1.5 is not in"):
        EncodedAnswer("r", "", (1,), "k", (2,), 1.5)


def test_pairs_alone_are_planned_as_ever(tiny_model: Path) -> None:
    for world in (1, 2):
        for number in range(world):
            rank = rank_of(tiny_model, number, world)
            assert rank.plan_units(pairs(13)) == rank.plan_pairs(pairs(13))


@pytest.mark.parametrize("world", [1, 2])
def test_micro_batches_hold_pairs_or_answers_and_fit_the_budget(tiny_model: Path, world: int) -> None:
    units = [*pairs(5), *alone(0, 0, 1, -1), *pairs(2)]
    planned = [rank_of(tiny_model, number, world).plan_units(units) for number in range(world)]
    assert sorted(i for groups in planned for group in groups for i in group) == list(range(len(units)))
    for group in (group for groups in planned for group in groups if group):
        assert len({len(units[i]) for i in group}) == 1
        answers = [answer for i in group for answer in units[i]]
        assert len(answers) * max(answer.tokens for answer in answers) <= BUDGET
    assert len({len(groups) for groups in planned}) == 1, "as many passes on every rank"


@pytest.mark.parametrize("target", [TdTarget(lam=0.9), BtTarget(lam=0.9, coefficient=0.5), McTarget()], ids=lambda one: one.type)
@pytest.mark.parametrize("units", [pairs(7), alone(0, 1, -0.5), [*alone(0, 0, 1), *pairs(4)]], ids=["pairs", "alone", "both"])
def test_a_step_weighs_every_answer_alike(tiny_model: Path, units: list[Unit], target: TargetConfig) -> None:
    expected, loss = one_by_one(tiny_model, units, target)
    rank = rank_of(tiny_model)
    metrics = rank.step(units, target)
    (found,) = rank.backend.steps  # type: ignore[attr-defined]
    assert metrics["loss/value"] == pytest.approx(loss, rel=1e-5)
    assert set(found) == set(expected)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-5) for name in found)


def test_several_ranks_add_up_to_one(tiny_model: Path) -> None:
    units = [*alone(0, 0, 1), *pairs(4)]
    expected, _ = one_by_one(tiny_model, units, TdTarget(lam=0.9))
    shares: list[Any] = []
    for number in range(2):
        rank = rank_of(tiny_model, number, 2)
        rank.step(units, TdTarget(lam=0.9))
        shares += rank.backend.steps  # type: ignore[attr-defined]
    assert all(torch.allclose(shares[0][name] + shares[1][name], expected[name], rtol=1e-3, atol=1e-5) for name in expected)


def test_concordance_of_values_with_labels() -> None:
    """Of labels 1, 0, 0, -1 five couples differ. Mean values .5, .5, .1, .3: 1 ties with the first 0, beats the second and -1;
    the first 0 beats -1, the second does not: 3.5 of 5."""
    values = [np.array([9.0, mean]) for mean in (0.5, 0.5, 0.1, 0.3)]
    assert value_update.label_concordance(values, [1, 0, 0, -1])["mean"] == pytest.approx(0.7)
    assert value_update.label_concordance(values, [1, 1, 1, 1]) == {} == value_update.label_concordance([], [])
