"""Learning logic: batching, prepared advantages, the loss, and value targets, against slow or hand-made references."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.config.algorithms import ALGORITHMS, DvpoGae
from dvpo_ray.config.kl import FixedKl, KlSection
from dvpo_ray.config.targets import BtTarget, McTarget, RewardTarget, TdTarget
from dvpo_ray.config.updates import OffPolicySection, PpoUpdateSection
from dvpo_ray.learning import policy_update, value_update
from dvpo_ray.learning.batching import micro_batches, pad_sequences, share_rows, to_flat, to_padded
from dvpo_ray.types import Ragged
from tests.support.fakes import scored_batch

KL = KlSection(control=FixedKl(coefficient=0.1))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(50, 400))
def test_micro_batches_hold_every_row_once_within_budget(lengths: list[int], budget: int) -> None:
    groups = micro_batches(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(group) * max(lengths[i] for i in group) <= budget for group in groups)


@given(
    lengths=st.lists(st.integers(20, 400), min_size=1, max_size=60),
    budget=st.integers(400, 4000),
    share=st.floats(0.0, 0.5),
)
def test_padding_stays_below_the_share_asked_for(lengths: list[int], budget: int, share: float) -> None:
    groups = micro_batches(lengths, budget, share)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    padded = [len(group) * max(lengths[i] for i in group) for group in groups]
    assert max(padded) <= budget
    assert 1 - sum(lengths) / sum(padded) <= share + 1e-12


def test_less_padding_takes_more_micro_batches() -> None:
    lengths = [20] * 5 + [400] * 5
    assert len(micro_batches(lengths, 4000, 0.5)) == 1
    assert sorted(map(len, micro_batches(lengths, 4000, 0.05))) == [5, 5]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7), budget=st.integers(30, 100))
def test_cuts_are_the_best_of_all(lengths: list[int], budget: int) -> None:
    """Against every way to cut the sorted rows: no grouping as small has less padding, up to the taste for even groups."""
    sizes = sorted(lengths, reverse=True)
    found = micro_batches(lengths, budget, 1.0)

    def padded(cuts: tuple[int, ...]) -> float:
        edges = [0, *cuts, len(sizes)]
        costs = [(b - a) * sizes[a] for a, b in pairwise(edges)]
        return sum(costs) if max(costs) <= budget else float("inf")

    fewest = next(
        n for n in range(len(sizes)) if any(padded(cuts) < float("inf") for cuts in combinations(range(1, len(sizes)), n))
    )
    assert len(found) == fewest + 1
    least = min(padded(cuts) for cuts in combinations(range(1, len(sizes)), fewest))
    assert sum(len(group) * max(lengths[i] for i in group) for group in found) <= least + 0.01 * budget * len(found) + 1e-9


def test_a_row_over_the_budget_is_named() -> None:
    with pytest.raises(ValueError, match="row of 51 tokens does not fit the token budget of 50"):
        micro_batches([3, 51], 50)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), ranks=st.integers(1, 6))
def test_shares_are_fair(lengths: list[int], ranks: int) -> None:
    shares = share_rows(lengths, ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths)


def test_positions_by_hand() -> None:
    batch = pad_sequences([np.array([5, 6]), np.array([7])], [np.array([8]), np.array([9, 10, 11])])
    assert batch.input_ids.tolist() == [[5, 6, 8, 0], [7, 9, 10, 11]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    # row 0: the token before 8 stands at 1; row 1 (offset 4): those before 9, 10, 11 at 4, 5, 6
    assert batch.before_response.tolist() == [1, 4, 5, 6]
    assert batch.with_prompt_end.tolist() == [1, 2, 4, 5, 6, 7]
    assert batch.targets.tolist() == [8, 9, 10, 11]


def test_ragged_to_padded_and_back_with_gradient() -> None:
    flat = torch.arange(5.0, requires_grad=True)
    padded, mask = to_padded(flat, np.array([2, 3]))
    assert padded.tolist() == [[0, 1, 0], [2, 3, 4]]
    assert to_flat(padded, mask).tolist() == [0, 1, 2, 3, 4]
    (padded**2).sum().backward()
    assert flat.grad is not None
    assert flat.grad.tolist() == [0, 2, 4, 6, 8]


def test_prepare_whitens_over_the_global_batch_and_ignores_row_order() -> None:
    scored = scored_batch([7, 1, 12, 4])
    prepared, metrics = policy_update.prepare(scored, 0, DvpoGae(), KL, beta=0.1)
    assert abs(prepared.advantages.flat.mean()) < 1e-6
    assert prepared.advantages.flat.std() == pytest.approx(1, abs=1e-5)
    order = [2, 0, 3, 1]
    other, _ = policy_update.prepare(scored.take(order), 0, DvpoGae(), KL, beta=0.1)
    for row, i in zip(other.advantages.rows(), order, strict=True):
        assert np.allclose(row, prepared.advantages.rows()[i], atol=1e-6)
    assert metrics["answer/tokens"] == 6


def test_prepare_by_hand() -> None:
    scored = scored_batch([1])
    scored = type(scored)(
        **vars(scored)
        | {
            "values": Ragged.of([[0.2, 0.9]], np.float32),
            "log_probs": Ragged.of([[-1.0]], np.float32),
            "ref_log_probs": Ragged.of([[-2.0]], np.float32),
        }
    )
    prepared, _ = policy_update.prepare(scored, 0, DvpoGae(whitening="none"), KL, beta=0.1)
    # k = -0.1 * (-1 + 2) = -0.1;  A = -0.1 + 0.9 - 0.2 = 0.6
    assert prepared.advantages.flat.tolist() == pytest.approx([0.6])
    in_loss = KL.model_copy(update={"placement": "loss"})
    prepared, _ = policy_update.prepare(scored, 0, DvpoGae(whitening="none"), in_loss, beta=0.1)
    assert prepared.advantages.flat.tolist() == pytest.approx([0.7])


def test_loss_gradient_of_the_first_pass_is_the_policy_gradient() -> None:
    """With the old policy equal to the current one the ratio is 1 and d loss / d log pi = -A."""
    prepared, _ = policy_update.prepare(scored_batch([3, 2]), 0, DvpoGae(), KL, beta=0.1)
    log_probs = torch.randn(5, requires_grad=True)
    tokens = policy_update.TokenBatch.of(prepared, [0, 1], None, "cpu")
    ppo, off_policy = PpoUpdateSection(), OffPolicySection()
    total, sums = policy_update.loss(log_probs, torch.zeros(5), tokens, DvpoGae(), ppo, KL, off_policy, 0.1)
    total.backward()
    assert torch.allclose(log_probs.grad, -torch.from_numpy(prepared.advantages.flat))
    assert float(sums["ppo/clip_share"]) == 0 == float(sums["ppo/approx_kl"])


def test_kl_in_the_loss_pulls_towards_the_reference() -> None:
    prepared, _ = policy_update.prepare(scored_batch([4]), 0, DvpoGae(), KL, beta=0.0)
    tokens = policy_update.TokenBatch.of(prepared, [0], None, "cpu")
    settings = KL.model_copy(update={"placement": "loss"})
    gradients = []
    for beta in (0.0, 0.5):
        log_probs = tokens.ref_log_probs.clone() + 0.3
        log_probs.requires_grad_(True)
        ppo, off_policy = PpoUpdateSection(), OffPolicySection()
        total, _ = policy_update.loss(log_probs, torch.zeros(4), tokens, DvpoGae(), ppo, settings, off_policy, beta)
        total.backward()
        gradients.append(log_probs.grad)
    # d/dx of beta * (exp(ref - x) - 1 - ref + x) = beta * (1 - exp(-0.3))
    assert torch.allclose(gradients[1] - gradients[0], torch.full((4,), 0.5 * (1 - np.exp(-0.3))).float(), atol=1e-6)


def test_kl_in_the_loss_pulls_no_harder_at_a_token_that_the_policy_has_given_up() -> None:
    """50 nats below the reference k3 would pull with e^50; it pulls as at 2.61 nats, with e^2.61 - 1 = 12.61, and is finite."""
    prepared, _ = policy_update.prepare(scored_batch([4]), 0, DvpoGae(), KL, beta=0.0)
    tokens = replace(policy_update.TokenBatch.of(prepared, [0], None, "cpu"), advantages=torch.zeros(4))
    log_probs = (tokens.ref_log_probs - 50).requires_grad_(True)
    settings, off_policy = KL.model_copy(update={"placement": "loss"}), OffPolicySection()
    total, sums = policy_update.loss(log_probs, torch.zeros(4), tokens, DvpoGae(), PpoUpdateSection(), settings, off_policy, 0.5)
    total.backward()
    assert log_probs.grad is not None and log_probs.grad.tolist() == pytest.approx([-0.5 * 12.610869] * 4, rel=1e-5)
    # 10 at d = 2.610869 and 12.610869 for each nat beyond
    assert float(total.detach()) == pytest.approx(4 * 0.5 * (10 + 12.610869 * (50 - 2.610869)), rel=1e-5)
    assert all(torch.isfinite(value) for value in sums.values())


def test_the_gap_of_engine_and_learner_by_hand() -> None:
    """The learner finds one token 0.3 nats likelier, one 80: k3 is e^0.3 - 1.3, and e^20 - 21, where ratios are held."""
    prepared, _ = policy_update.prepare(scored_batch([2]), 0, DvpoGae(), KL, beta=0.0)
    tokens = policy_update.TokenBatch.of(prepared, [0], None, "cpu")
    log_probs = tokens.engine_log_probs + torch.tensor([0.3, 80.0])
    _, sums = policy_update.loss(log_probs, torch.zeros(2), tokens, DvpoGae(), PpoUpdateSection(), KL, OffPolicySection(), 0.0)
    assert float(sums["gap/abs_log_prob"]) == pytest.approx(80.3, rel=1e-5)
    assert float(sums["gap/kl_k3"]) == pytest.approx(4.851652e8, rel=1e-5)


def test_mini_batches_are_the_same_on_every_rank() -> None:
    a, b = (policy_update.mini_batch_units(12, 3, (0, 5, 1)) for _ in range(2))
    assert [part.tolist() for part in a] == [part.tolist() for part in b]
    assert sorted(np.concatenate(a).tolist()) == list(range(12))


def test_every_estimator_is_registered() -> None:
    assert sorted(ALGORITHMS.known) == ["dvpo_gae", "dvpo_onestep", "dvpo_released", "dvpo_static", "grpo", "p3o", "ppo", "rloo"]


def test_lambda_is_chosen_by_answer_length() -> None:
    assert value_update.resolve_target(TdTarget(), 35).lam == 0.95
    assert value_update.resolve_target(BtTarget(), 200).lam == 1.0
    assert value_update.resolve_target(TdTarget(lam=0.9), 200).lam == 0.9


def test_value_targets_and_bt_loss_by_hand() -> None:
    lengths = np.array([1, 1])
    values = torch.tensor([0.0, 0.4, 0.0, -0.2], requires_grad=True)
    labels = torch.tensor([1.0, -1.0])
    goals = value_update.targets(values, lengths, labels, TdTarget(lam=0.5))
    # G_1 = z; G_0 = .5 z + .5 q_1
    assert goals.tolist() == pytest.approx([0.7, 1.0, -0.6, -1.0])
    assert value_update.targets(values, lengths, labels, McTarget()).tolist() == [1, 1, -1, -1]
    td = 0.5 * ((0.7**2 + 0.6**2) / 2 + (0.6**2 + 0.8**2) / 2)
    bt = td + 2.0 * np.log(1 + np.exp(-0.6))
    found = value_update.loss(values, goals, lengths, BtTarget(lam=0.5, coefficient=2.0))
    assert float(found) == pytest.approx(bt, abs=1e-6)
    found.backward()
    assert values.grad is not None and values.grad.abs().sum() > 0


def test_a_reward_model_learns_from_last_values_alone_and_from_zero() -> None:
    """Last values .3 and -.2 differ by .5; each of the two answers counts -log sigmoid(.5). At equal values the gradient is
    -+ 2 sigmoid(0) = -+1, so a head of zeros begins to move."""
    lengths = np.array([2, 1])
    values = torch.tensor([9.0, 9.0, 0.3, 9.0, -0.2])
    goals = value_update.targets(values, lengths, torch.tensor([1.0, -1.0]), RewardTarget())
    assert float(value_update.loss(values, goals, lengths, RewardTarget())) == pytest.approx(2 * np.log(1 + np.exp(-0.5)))
    zeros = torch.zeros(5, requires_grad=True)
    value_update.loss(zeros, goals, lengths, RewardTarget()).backward()
    assert zeros.grad is not None
    assert zeros.grad.tolist() == [0, 0, -1, 0, 1]


def test_pair_accuracy_ignores_the_prompt_position() -> None:
    chosen = [np.array([-9.0, 0.5, 0.1]), np.array([0.0, 0.2])]
    rejected = [np.array([9.0, 0.2, 0.3]), np.array([0.0, 0.2])]
    found = value_update.pair_accuracy(chosen, rejected)
    assert (found["mean"], found["last"]) == (0.75, 0.25)
