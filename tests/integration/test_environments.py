"""Episodes of several turns on a real engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.rollout.pool import RolloutPool
from dvpo_ray.data import ChatEncoder, TurnJoiner
from dvpo_ray.data.messages import Message
from dvpo_ray.types import RolloutRequest, Trajectory
from tests.support.engines import answers_of, log_probs_of, requests, weights_of
from tests.support.environments import Scripted

pytestmark = pytest.mark.integration
SCRIPTED = Scripted(script=("say well?", "earn 0.5", "end 1"), max_turns=3)


def episodes(count: int, seed: int = 0) -> list[RolloutRequest]:
    return [replace(one, environment=SCRIPTED, max_new_tokens=150) for one in requests(count, seed=seed)]


def test_episodes_are_what_the_engine_wrote_and_the_environment_said(
    rollouts: RolloutPool, tiny_model: Path, tokenizer: Any
) -> None:
    """Log-probs and tokens of every turn are those of one pass over the whole row; what was said stands where it was said."""
    asked = episodes(48)
    answers = answers_of(rollouts, asked)
    expected = log_probs_of(weights_of(tiny_model, 1.0), tiny_model, answers)
    joiner, end = TurnJoiner(tokenizer), ChatEncoder(tokenizer).end.end_id
    said = [joiner.between((Message("tool", text),), end) for text in ("well?", "more")]
    assert max(len(answer.turns) for answer in answers) >= 2, "no answer had a second turn"
    for answer, log_probs in zip(answers, expected, strict=True):
        own = answer.action_mask
        assert np.abs(answer.log_probs - log_probs)[own].max() <= 1e-3 and not answer.log_probs[~own].any()
        assert answer.response_ids[~own].tolist() == [one for text in said[: len(answer.turns) - 1] for one in text]
        assert answer.end_state in ("stop", "length") and set(answer.versions.tolist()) == {0}
        ends = [turn - len(text) - 1 for turn, text in zip(answer.turns[1:], said, strict=False)]
        assert all(answer.response_ids[place] == end for place in ends), "the model ended these turns by itself"
        # A turn that was cut earned nothing; one whose reply had no room did.
        places = zip([*ends, answer.response_ids.size - 1], (0.0, 0.5, 1.0), strict=False)
        assert earned(answer) == {place: given for place, given in places if given and answer.response_ids[place] == end}
    again = answers_of(rollouts, asked[::-1])[::-1]
    assert [a.response_ids.tolist() for a in answers] == [a.response_ids.tolist() for a in again]


def earned(answer: Trajectory) -> dict[int, float]:
    assert answer.rewards is not None
    return {int(place): float(answer.rewards[place]) for place in np.flatnonzero(answer.rewards)}
