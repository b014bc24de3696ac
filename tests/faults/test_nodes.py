"""Whole machines are taken away, with every actor on them: the run goes on elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.chaos import without_none
from dvpo_ray.config import dump_resolved
from tests.support.real import ROLLOUT, STEPS, MakePolicyRecipe, assert_books_balance, metrics

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_machines_are_taken_away_with_and_without_notice(policy_recipe: MakePolicyRecipe, straight: Path, tmp_path: Path) -> None:
    """Rollout, scorer and learner start anew on other nodes, twice; only the death without notice is charged to the budgets.

    The recipe's checkpoints are too rare to matter: those that the run goes back to were made because of the notice.
    """
    recipe = policy_recipe(
        tmp_path,
        "moved",
        evaluation=None,
        checkpoint={"every": 100},
        rollout=ROLLOUT | {"max_restarts": 1},
        scorer={"dtype": "float32", "rows_per_call": 8, "max_restarts": 1},
        learner={"dtype": "float32", "learning_rate": 5e-3, "token_budget": 512, "max_restarts": 1},
    )
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(without_none(json.loads(dump_resolved(recipe)))))
    environment = {key: text for key, text in os.environ.items() if not key.startswith(("RAY_", "DVPO_EMBEDDED"))}
    command = [sys.executable, "-m", "tests.faults.lost_nodes", str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    warnings = [line["text"] for line in said if line["event"] == "warning"]
    assert warnings and all("machine of the learner will be taken away" in text for text in warnings)
    lost = [line["text"] for line in said if "starting the learner again" in line["text"]]
    assert ["preempted" in text for text in lost] == [True, False], lost
    back = [line["text"] for line in said if "going on after step" in line["text"]]
    assert len(back) == 2 and not any("after step 0" in text for text in back), back
    assert_books_balance(tmp_path / "moved", STEPS)
    for a, b in zip(metrics(straight), metrics(tmp_path / "moved"), strict=True):
        for name in ("value/last", "kl/per_token", "optimizer/grad_norm", "loss/policy"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), (a["step"], name)
