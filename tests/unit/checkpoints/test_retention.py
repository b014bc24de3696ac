"""Which checkpoints stay: the newest, those at a distance, and the best by held-out score."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvpo_ray.checkpoints.retention import Retention
from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.errors import ConfigError
from dvpo_ray.runs.folder import run_folder
from tests.unit.checkpoints.test_checkpoints import checkpoint
from tests.unit.checkpoints.test_copies import live, with_records
from tests.unit.loop.test_recovery import ChainStages, recipe


@settings(max_examples=60, deadline=None)
@given(scores=st.dictionaries(st.integers(1, 30), st.none() | st.floats(-1, 1)), numbers=st.tuples(*[st.integers(0, 4)] * 3))
def test_retention(scores: dict[int, float | None], numbers: tuple[int, int, int]) -> None:
    last, every, best = numbers[0] + 1, numbers[1], numbers[2]
    kept = Retention(last, every, best).kept(scores)
    assert set(sorted(scores)[-last:]) <= kept
    assert {step for step in scores if every and step % every == 0} <= kept
    scored = sorted((step for step, score in scores.items() if score is not None), key=lambda step: (-scores[step], -step))  # type: ignore[operator]
    assert set(scored[:best]) <= kept
    assert len(kept - set(sorted(scores)[-last:]) - {s for s in scores if every and s % every == 0}) <= best


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=1)
    for step, score in ((1, 0.3), (2, 0.9), (3, float("nan")), (4, 0.5), (5, None)):
        with_records(store, step, score)
    assert sorted(folder.name for folder in tmp_path.glob("step-*")) == ["step-00000002", "step-00000005"]
    assert checkpoint(store, 6).name == "step-00000006"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"checkpoint": {"every": 0, "copy_to": "file:///x"}}, "copy_to without effect"),
        ({"checkpoint": {"every": 2, "keep_best": 1}}, "set evaluation.every"),
        ({"checkpoint": {"every": 2, "keep_best": 1}, "evaluation": {"source": "e"}}, "set evaluation.every"),
        (
            {"checkpoint": {"every": 2, "keep_best": 1}, "evaluation": {"source": "e", "every": 5}},
            "be 10, not before the last, 9",
        ),
    ],
)
def test_what_can_have_no_effect_is_refused(policy: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(tmp_path, every=2, **policy)
    recipe(tmp_path, every=2, checkpoint={"every": 2, "keep_best": 1}, evaluation={"source": "e", "every": 4})


def test_scores_of_evaluated_steps_reach_the_checkpoints(tmp_path: Path) -> None:
    checkpoints = {"every": 1, "keep_last": 1, "keep_best": 1}
    config = recipe(tmp_path, every=1, checkpoint=checkpoints, evaluation={"source": "e", "every": 2})
    live(config, ChainStages(), lambda step: {2: 0.1, 4: 0.8, 6: 0.3, 8: 0.2}[step])
    store = CheckpointStore(run_folder(config) / "checkpoints")
    kept = {folder.name: store.open(folder).score for folder in store.folder.glob("step-*")}
    assert kept == {"step-00000004": 0.8, "step-00000009": None}
