"""The driver's order of work, its books, its KL control, and the frozen value model's guard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.errors import ActorFailedError, ConfigError, FrozenValueChangedError
from dvpo_ray.runs.run import Run
from tests.support.fakes import FakeStages, drive, numbered, shuffled


def recipe(tmp_path: Path, **policy: object) -> PolicyRecipe:
    tree = {
        "run": {"output_dir": str(tmp_path), "name": "r"},
        "tracking": {"tensorboard": False},
        "policy": {"steps": 3, "value_model": "g", "data": {"source": "x"}, "rollout": {"prompts_per_step": 4}} | policy,
    }
    return build(PolicyRecipe, tree)


def run_driver(config: PolicyRecipe, stages: FakeStages) -> list[dict[str, float]]:
    run = Run(config, config.policy.steps)
    drive(config.policy, stages, shuffled(numbered(6), config.policy), run)
    run.close()
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_one_step_is_five_arrows(tmp_path: Path) -> None:
    stages = FakeStages()
    lines = run_driver(recipe(tmp_path), stages)
    assert stages.calls == [call for n in (1, 2, 3) for call in ("generate", "score", "learn", f"sync {n}")]
    assert [line["ledger/trained"] for line in lines] == [4, 8, 12]
    assert all(line["ledger/in_flight"] == 0 for line in lines)
    trace = json.loads((tmp_path / "r" / "timeline.json").read_text())["traceEvents"]
    assert [span["name"] for span in trace[:4]] == ["rollout", "score", "learn", "sync"]


def test_adaptive_kl_follows_the_measured_kl(tmp_path: Path) -> None:
    stages = FakeStages()
    kl = {"control": {"type": "adaptive", "coefficient": 0.1, "target": 6.0, "horizon": 40}}
    run_driver(recipe(tmp_path, kl=kl), stages)
    # 12 nats against a target of 6: error clipped to 0.2, so beta grows by 1 + 0.2 * 4 / 40 = 1.02 a step
    assert stages.betas == pytest.approx([0.1, 0.102, 0.10404])


def test_a_value_model_that_changed_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(FrozenValueChangedError, match="sealed.*other"):
        run_driver(recipe(tmp_path), FakeStages(value_hashes=("sealed", "other")))


def test_an_earlier_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    run_driver(recipe(tmp_path), FakeStages())
    with pytest.raises(ConfigError, match=r"already holds a run.*run\.overwrite=true"):
        Run(recipe(tmp_path), 1)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    config = recipe(tmp_path)
    section = config.run.model_copy(update={"name": "foreign", "overwrite": True})
    with pytest.raises(ConfigError, match="not a run folder"):
        Run(config.model_copy(update={"run": section}), 1)
    assert (foreign / "thesis.txt").read_text() == "precious"


def test_a_run_never_deletes_what_it_needs(tmp_path: Path) -> None:
    run_driver(recipe(tmp_path), FakeStages())
    needed = tmp_path / "r" / "value-model"
    needed.mkdir()
    config = recipe(tmp_path, value_model=str(needed))
    section = config.run.model_copy(update={"overwrite": True})
    with pytest.raises(ConfigError, match="would delete '.*value-model', which this run needs"):
        Run(config.model_copy(update={"run": section}), 1)
    assert needed.is_dir()


def test_a_failed_run_keeps_logs_and_names_them(tmp_path: Path) -> None:
    run = Run(recipe(tmp_path), 3)
    kept: list[Path] = []
    with (
        pytest.raises(ActorFailedError, match=r"(?s)learner-0 died.*logs: .*r/logs"),
        run.failures(lambda folder: kept.append(folder) or str(folder)),
    ):
        raise ActorFailedError("learner-0 died")
    run.close()
    assert kept == [tmp_path / "r" / "logs"]
