"""Plans, channels and refreshes that are not the default ones, together in a run on real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.config.refresh import RefreshSettings
from dvpo_ray.models.frozen_hash import value_parameters_sha256
from dvpo_ray.rewards import RewardRow
from dvpo_ray.types import RowOutcome, ScorerVersion
from jobs.train_policy import train_policy
from tests.support.real import ROLLOUT, MakePolicyRecipe, assert_books_balance, metrics, write_lines

pytestmark = pytest.mark.integration


class TwiceSettings(RefreshSettings):
    """The value model in `folder` takes over after the second step."""

    implementation = "tests.integration.test_seams:Twice"

    folder: str


class Twice:
    """Announces the same parameters again, as a version of their own."""

    def __init__(self, settings: TwiceSettings) -> None:
        self._folder = settings.folder

    def after(self, step: int, rows: Sequence[RowOutcome]) -> ScorerVersion | None:
        assert all(row.rewards.keys() == {"letters", "vowels"} for row in rows)
        if step != 1:
            return None
        return ScorerVersion(1, self._folder, value_parameters_sha256(self._folder, "float32"))


async def early_letters(rows: Sequence[RewardRow]) -> list[float | None]:
    """Share of early letters; abstains from answers without any letter."""
    await asyncio.sleep(0)
    letters = ["".join(filter(str.isalpha, row.answer)) for row in rows]
    return [sum(letter in "abcdef" for letter in text) / len(text) if text else None for text in letters]


def test_resets_spans_abstaining_rewards_and_a_new_value_model(
    policy_recipe: MakePolicyRecipe, value: dict[str, Any], tmp_path: Path
) -> None:
    rows = [{"prompt": f"say {i}", "completion": "abcdef" * 2} for i in range(24)]
    good = write_lines(tmp_path / "good.jsonl", rows)
    policy: dict[str, Any] = {
        "steps": 4,
        "plan": {
            "type": "resets",
            "fraction": 1.0,
            "data": {"source": str(good), "max_prompt_tokens": 64, "max_answer_tokens": 32},
        },
        "rewards": {
            "letters": {"function": "tests.integration.test_seams:early_letters"},
            "vowels": {"type": "spans", "pattern": "[aeiou]", "reward": 0.1, "weight": 0.5},
        },
        "refresh": {"type": "tests.integration.test_seams:TwiceSettings", "folder": value["value_model"]},
        "checkpoint": {"every": 2},
        "rollout": ROLLOUT | {"max_new_tokens": 16},
        "evaluation": None,
    }
    recipe = policy_recipe(tmp_path, "seams", **policy)
    train_policy(recipe)
    folder = tmp_path / "seams"
    assert_books_balance(folder, 4)
    steps = [line for line in metrics(folder) if "seconds/step" in line]
    assert all(step["reward/vowels"] > 0 for step in steps), "the given beginnings have vowels"
    assert all(step["gap/abs_log_prob"] < 1e-3 for step in steps), "given tokens are in the context and in no loss"
    newest = CheckpointStore(folder / "checkpoints").newest()
    assert newest is not None and newest.state["scorers"][0][0] == 2
    assert newest.state["scorers"][0][1]["number"] == 1
