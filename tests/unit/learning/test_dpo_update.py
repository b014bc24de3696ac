"""Scores of answers, the loss of their pairs, and the order in which pairs come."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dvpo_ray.config import DpoRecipe
from dvpo_ray.config.dpo import DpoTraining
from dvpo_ray.config.loading import build
from dvpo_ray.data import EncodedPair
from dvpo_ray.learning.dpo_update import answer_scores, loss
from dvpo_ray.learning.pairs import batches, labelled

LOG_PROBS = torch.tensor([-1.0, -2.0, -4.0, -1.0, -1.0, -3.0])
LENGTHS = np.array([2, 1, 3])


def settings(**dpo: Any) -> DpoTraining:
    return build(DpoRecipe, {"dpo": {"data": {"source": "x"}} | dpo}).dpo


@pytest.mark.parametrize(("average", "expected"), [(False, [-3, -4, -5]), (True, [-1.5, -4, -5 / 3])])
def test_scores_of_answers_by_hand(average: bool, expected: list[float]) -> None:
    assert answer_scores(LOG_PROBS, LENGTHS, average).tolist() == pytest.approx(expected)


def test_loss_and_metrics_by_hand() -> None:
    """Log-ratios of the first pair 1 and -1, of the second 0 and .5: margins 2 and -.5, at beta .5 logits 1 and -.25."""
    scores = torch.tensor([-2.0, -4.0, -1.0, -1.5], requires_grad=True)
    reference = torch.tensor([-3.0, -3.0, -1.0, -2.0])
    total, sums = loss(scores, reference, settings(beta=0.5))
    expected = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.25))
    assert float(total.detach()) == pytest.approx(expected, abs=1e-6)
    found = {name: float(value) for name, value in sums.items()}
    assert found.pop("loss/dpo") == pytest.approx(expected, abs=1e-6)
    assert found == pytest.approx({"dpo/margin": 0.75, "dpo/accuracy": 1, "dpo/chosen": 1, "dpo/rejected": -0.5})
    total.backward()
    assert scores.grad is not None
    # d loss / d chosen = -beta sigmoid(-logit), and the opposite for the rejected answer
    pulls = [0.5 / (1 + math.exp(1)), 0.5 / (1 + math.exp(-0.25))]
    assert scores.grad.tolist() == pytest.approx([-pulls[0], pulls[0], -pulls[1], pulls[1]], abs=1e-6)


def test_ipo_and_smoothing_are_taken_from_the_recipe() -> None:
    scores, reference = torch.tensor([-2.0, -4.0]), torch.tensor([-3.0, -3.0])
    assert float(loss(scores, reference, settings(loss="ipo", beta=0.25))[0]) == pytest.approx(0), "a margin of 1 / (2 beta)"
    smoothed, plain = (float(loss(scores, reference, settings(label_smoothing=s))[0]) for s in (0.25, 0.0))
    assert smoothed - plain == pytest.approx(0.25 * 0.1 * 2, abs=1e-6), "log sigmoid(x) - log sigmoid(-x) = x"


def test_ipo_asks_the_same_of_long_answers_as_of_short_ones() -> None:
    """Every token of the chosen answer gained 1 nat, of the rejected one 0, in answers of 2 tokens and of 20: h is 1 nat a token.

    At beta 0.5 that is the margin wanted, 1 / (2 beta) = 1. Of sums, h is 2 and 20, which would cost 1 and 361.
    """
    dpo = settings(loss="ipo", beta=0.5)
    for tokens, summed in ((2, 1.0), (20, 361.0)):
        lengths = np.array([tokens, tokens])
        after, before = torch.tensor([-1.0] * tokens + [-2.0] * tokens), torch.full((2 * tokens,), -2.0)
        for average, expected in ((dpo.average_log_probs, 0.0), (False, summed)):
            scores = [answer_scores(log_probs, lengths, average) for log_probs in (after, before)]
            assert float(loss(*scores, dpo)[0]) == pytest.approx(expected, abs=1e-5)


def test_every_pair_comes_once_an_epoch_in_an_order_of_the_seed() -> None:
    found = batches(rows=10, size=4, epochs=2, seed=3)
    assert [rows.size for rows in found] == [4, 4, 2, 4, 4, 2]
    first, second = np.concatenate(found[:3]), np.concatenate(found[3:])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert [rows.tolist() for rows in batches(10, 4, 2, 3)] == [rows.tolist() for rows in found]
    assert np.concatenate(batches(10, 4, 1, 4)).tolist() != first.tolist()


def test_a_pair_becomes_two_labelled_answers() -> None:
    chosen, rejected = labelled(EncodedPair("r", "p", (1, 2), "k", (3, 4, 5), (6,)))
    assert (chosen.response_ids.tolist(), chosen.label, chosen.tokens) == ([3, 4, 5], 1.0, 5)
    assert (rejected.response_ids.tolist(), rejected.label, rejected.tokens) == ([6], -1.0, 3)
