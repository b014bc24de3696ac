"""A run on real Ray, vLLM and DeepSpeed whose rows are episodes of several turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.train_policy import train_policy
from tests.support.real import ROLLOUT, MakePolicyRecipe, assert_books_balance, metrics

pytestmark = pytest.mark.integration


def test_a_run_learns_from_episodes(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    """Rollout, scorer, learner and evaluation of rows of several turns, some of which their environment fails in."""
    policy: dict[str, Any] = {
        "steps": 3,
        "environment": {
            "type": "tests.support.environments:Scripted",
            "script": ["say well?", "raise tape"],
            "max_turns": 2,
        },
        "rollout": ROLLOUT | {"max_new_tokens": 60, "engine": ROLLOUT["engine"] | {"max_model_len": 192}},
    }
    recipe = policy_recipe(tmp_path, "episodes", **policy)
    result = train_policy(recipe)
    folder = tmp_path / "episodes"
    assert_books_balance(folder, 3)
    steps = [line for line in metrics(folder) if "seconds/step" in line]
    assert all("reward/environment" in line and "environment/failed_share" in line for line in steps)
    assert max(line["environment/failed_share"] for line in steps) > 0
    assert all(line["gap/abs_log_prob"] < 1e-3 for line in steps), "engine and learner read the same tokens as the policy's"
    ends = {json.loads(line)["end_state"] for line in (folder / "evaluations.jsonl").read_text().splitlines()}
    assert ends & {"crashed", "length", "stop"}
    assert result["steps"] == 3
