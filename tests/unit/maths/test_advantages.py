"""D1 of the design: hand-derived advantages, the algebra of the released recursion, and invariances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.maths.advantages import (
    dvpo_gae,
    dvpo_onestep,
    dvpo_released,
    dvpo_static,
    group_relative,
    leave_one_out,
    sequence_rewards,
)

Q = torch.tensor([[0.1, 0.3, 0.2, 0.6]])
K = torch.tensor([[0.0, -0.1, 0.05]])
MASK = torch.ones(1, 3)


def rows(tokens: int, batch: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens + 1, generator=generator).double(), torch.randn(batch, tokens, generator=generator).double()


def test_gae_by_hand() -> None:
    # deltas: 0+.3-.1 = .2;  -.1+.2-.3 = -.2;  .05+.6-.2 = .45.  A3 = .45; A2 = -.2+.5*.45 = .025; A1 = .2+.5*.025 = .2125
    assert torch.allclose(dvpo_gae(Q, K, MASK, 0.5), torch.tensor([[0.2125, 0.025, 0.45]]))


def test_onestep_by_hand() -> None:
    assert torch.allclose(dvpo_onestep(Q, K, MASK), torch.tensor([[0.2, -0.2, 0.45]]))


def test_static_by_hand() -> None:
    # q_t plus the sum of k from t on: .3 + (0 -.1 +.05) = .25;  .2 + (-.1+.05) = .15;  .6 + .05 = .65
    assert torch.allclose(dvpo_static(Q, K, MASK), torch.tensor([[0.25, 0.15, 0.65]]))


def test_released_by_hand() -> None:
    # V = q_0..q_2 = .1, .3, .2, then 0. deltas: 0+.3-.1 = .2;  -.1+.2-.3 = -.2;  .05+0-.2 = -.15
    # A3 = -.15;  A2 = -.2 - .075 = -.275;  A1 = .2 - .1375 = .0625
    assert torch.allclose(dvpo_released(Q, K, MASK, 0.5, whiten_values=False), torch.tensor([[0.0625, -0.275, -0.15]]))


def test_released_whitens_each_answer_by_hand() -> None:
    # V = 1, 3: mean 2, variance 1 -> -1, 1. deltas: 1-(-1) = 2; 0-1 = -1. lam 0: A = deltas.
    q = torch.tensor([[1.0, 3.0, 9.0]])
    found = dvpo_released(q, torch.zeros(1, 2), torch.ones(1, 2), 0.0, whiten_values=True)
    assert torch.allclose(found, torch.tensor([[2.0, -1.0]]), atol=1e-6)


@given(tokens=st.integers(1, 40), lam=st.floats(0, 1), seed=st.integers(0, 99))
def test_released_identity(tokens: int, lam: float, seed: int) -> None:
    """A_t = -V_t + (1 - lam) sum_l lam^(l-1) V_{t+l}, without KL."""
    q, _ = rows(tokens, seed=seed)
    zero = torch.zeros(4, tokens).double()
    found = dvpo_released(q, zero, torch.ones(4, tokens), lam, whiten_values=False)
    v = q[:, :-1]
    expected = torch.stack(
        [
            -v[:, t] + (1 - lam) * sum((lam ** (j - t - 1) * v[:, j] for j in range(t + 1, tokens)), torch.zeros(4))
            for t in range(tokens)
        ],
        1,
    )
    assert torch.allclose(found, expected, atol=1e-6)


@given(tokens=st.integers(1, 40), lam=st.floats(0, 1))
def test_gae_weights_on_values_add_up_to_one(tokens: int, lam: float) -> None:
    """A_t + q_{t-1} is an average of the later values: with all of them equal to 1 it is 1, at the last token too."""
    # Row t is for token t+1: q_0..q_t, the values before it, are 0.
    q = torch.ones(tokens, tokens + 1).double().triu(1)
    found = dvpo_gae(q, torch.zeros(tokens, tokens).double(), torch.ones(tokens, tokens), lam)
    assert found.diagonal().tolist() == pytest.approx([1.0] * tokens, abs=1e-9)


def test_gae_at_lambda_zero_is_onestep_and_at_one_is_last_value_minus_baseline() -> None:
    q, k = rows(9)
    mask = torch.ones(4, 9)
    assert torch.allclose(dvpo_gae(q, k, mask, 0.0), dvpo_onestep(q, k, mask))
    assert torch.allclose(dvpo_gae(q, torch.zeros_like(k), mask, 1.0), q[:, -1:] - q[:, :-1])


ESTIMATORS = {
    "dvpo_gae": lambda q, k, m: dvpo_gae(q, k, m, 0.95),
    "dvpo_onestep": dvpo_onestep,
    "dvpo_static": dvpo_static,
    "dvpo_released": lambda q, k, m: dvpo_released(q, k, m, 0.95, whiten_values=False),
    "dvpo_released_whitened": lambda q, k, m: dvpo_released(q, k, m, 0.95, whiten_values=True),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_padding_and_order_do_not_matter(name: str) -> None:
    estimate = ESTIMATORS[name]
    q, k = rows(12)
    lengths = torch.tensor([12, 5, 1, 8])
    mask = (torch.arange(12)[None] < lengths[:, None]).double()
    found = estimate(q, k, mask)
    for i, n in enumerate(lengths.tolist()):
        alone = estimate(q[i : i + 1, : n + 1], k[i : i + 1, :n], torch.ones(1, n).double())
        assert torch.allclose(found[i, :n], alone[0], atol=1e-12)
        assert not found[i, n:].any()
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(estimate(q[order], k[order], mask[order]), found[order])
    garbage = torch.where(torch.cat([torch.ones(4, 1), mask], 1) > 0, q, 1e6)
    assert torch.allclose(estimate(garbage, k * mask, mask), found, atol=1e-9)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"q \[B, T\+1\]"):
        dvpo_gae(Q[:, :-1], K, MASK, 0.95)


def test_sequence_rewards_by_hand() -> None:
    # Two answers of 3 and 1 tokens. Last: .6 - .05 = .55 and .3 + .2 = .5. Mean of (.3, .2, .6) = 11/30, less .05.
    q = torch.tensor([[0.1, 0.3, 0.2, 0.6], [0.1, 0.3, 9.0, 9.0]])
    k = torch.tensor([[0.0, -0.1, 0.05], [0.2, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert torch.allclose(sequence_rewards(q, k, mask, "last"), torch.tensor([0.55, 0.5]))
    assert torch.allclose(sequence_rewards(q, k, mask, "mean"), torch.tensor([11 / 30 - 0.05, 0.5]))


GROUPS = torch.tensor([0, 1, 0, 0, 1, 2])
REWARDS = torch.tensor([1.0, 5.0, 2.0, 6.0, 5.0, 7.0])


def test_group_relative_by_hand() -> None:
    # Group 0 holds 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3 = 14/3. Group 1 has no spread, group 2 one answer.
    mask = torch.ones(6, 2)
    mask[0, 1] = 0
    std = (14 / 3) ** 0.5
    centred = torch.tensor([-2.0, 0.0, -1.0, 3.0, 0.0, 0.0])[:, None] * mask
    assert torch.allclose(group_relative(REWARDS, mask, GROUPS, "none"), centred)
    assert torch.allclose(group_relative(REWARDS, mask, GROUPS, "std"), centred / std)


@pytest.mark.parametrize("reward", [0.1, 30.1, 700.3])
def test_equal_rewards_say_nothing_however_they_are_rounded(reward: float) -> None:
    found = group_relative(torch.full((6,), reward), torch.ones(6, 2), torch.zeros(6), "std")
    assert torch.equal(found, torch.zeros(6, 2))


def test_leave_one_out_by_hand() -> None:
    # Group 0: 1 - (2+6)/2 = -3; 2 - (1+6)/2 = -1.5; 6 - (1+2)/2 = 4.5. Group 1: 0. An answer alone: 0.
    found = leave_one_out(REWARDS, torch.ones(6, 1), GROUPS)
    assert torch.allclose(found[:, 0], torch.tensor([-3.0, 0.0, -1.5, 4.5, 0.0, 0.0]))


@given(seed=st.integers(0, 99), shift=st.floats(-5, 5))
def test_what_a_prompt_adds_to_all_its_answers_changes_nothing(seed: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    reward, group = torch.randn(12, generator=generator).double(), torch.randint(0, 3, (12,), generator=generator)
    mask = torch.ones(12, 4).double()
    moved = reward + shift * (group == 1)
    for estimate in (lambda r: group_relative(r, mask, group, "std"), lambda r: leave_one_out(r, mask, group)):
        assert torch.allclose(estimate(reward), estimate(moved), atol=1e-6)


@pytest.mark.parametrize("rewards", [[1.0, 3.0], [1.0, 2.0, 4.0, 5.0], [0.2, -0.4, 0.9, 0.1, 0.0, 0.5, 0.5, -1.0]])
def test_grpo_is_verls_times_the_root_of_n_over_n_minus_1(rewards: list[float]) -> None:
    """verl divides by torch.std, whose sum of squares is divided by n - 1, plus 1e-6.

    Of 1, 3: mean 2, s = 1, S = sqrt(2): 1 / (1 / sqrt(2)) = 1.4142. Of 1, 2, 4, 5: mean 3, squares 4 + 1 + 1 + 4 = 10,
    s = sqrt(10 / 4), S = sqrt(10 / 3): sqrt(4 / 3) = 1.1547. Of 8: sqrt(8 / 7) = 1.0690.
    """
    scores, n = torch.tensor(rewards).double(), len(rewards)
    found = group_relative(scores, torch.ones(n, 1).double(), torch.zeros(n, dtype=torch.int64), "std")[:, 0]
    verl = (scores - scores.mean()) / (scores.std() + 1e-6)
    factor = {2: 1.4142136, 4: 1.1547005, 8: 1.0690450}[n]
    nonzero = verl.abs() > 1e-9
    assert (found[nonzero] / verl[nonzero]).tolist() == pytest.approx([factor] * int(nonzero.sum()), rel=1e-5)


def test_grpo_of_four_by_hand() -> None:
    # 1, 2, 4, 5: mean 3, population deviation sqrt(10 / 4) = 1.5811
    found = group_relative(torch.tensor([1.0, 2.0, 4.0, 5.0]), torch.ones(4, 1), torch.zeros(4, dtype=torch.int64), "std")
    assert found[:, 0].tolist() == pytest.approx([-1.264911, -0.632456, 0.632456, 1.264911], abs=1e-6)
