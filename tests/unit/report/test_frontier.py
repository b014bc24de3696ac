"""Curves across runs: the frontier of gold against KL, and the best of n."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.errors import ConfigError, DataError
from dvpo_ray.evaluation.best_of import best_of_curve, check_choosable
from dvpo_ray.evaluation.held_out import EvaluatedAnswer, Evaluation
from dvpo_ray.report.frontier import draw_best_of, frontier, write_frontier


def line(step: int, gold: float, kl: float) -> dict[str, Any]:
    interval = {"eval/gold_ci95_low": gold - 0.1, "eval/gold_ci95_high": gold + 0.1}
    return {"step": step, "eval/gold": gold, "eval/kl_per_answer": kl, **interval}


def policy_run(folder: Path, *lines: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def test_what_no_other_point_beats() -> None:
    """By rising KL: (0, .2) first, (1, .1) is worse, (2, .5) is best so far, (3, .5) costs more for the same, (4, .6) again."""
    points = [{"kl_per_answer": kl, "gold": gold} for kl, gold in ((4, 0.6), (0, 0.2), (3, 0.5), (1, 0.1), (2, 0.5), (2, 0.4))]
    assert frontier(points) == [1, 4, 0]


def test_runs_demos_and_evaluations_in_one_plot(tmp_path: Path) -> None:
    run = policy_run(tmp_path / "dvpo", line(0, 0.2, 0.0), {"step": 1, "time": 3.0}, line(4, 0.7, 3.0) | {"eval/cut_share": 0.25})
    policy_run(tmp_path / "demo" / "policy", line(0, 0.2, 0.0), line(4, 0.5, 4.0))
    single = tmp_path / "ppo-eval"
    single.mkdir()
    facts = {"gold": 0.6, "gold_ci95_low": 0.5, "gold_ci95_high": 0.65, "kl_per_answer": 2.0, "cut_share": 0.5}
    (single / "result.json").write_text(json.dumps(facts))
    out = tmp_path / "plots" / "frontier.svg"
    found = write_frontier([run, tmp_path / "demo", single], out)
    assert [(row["run"], row["step"], row["gold"], row["on_frontier"]) for row in found["points"]] == [
        ("dvpo", 0, 0.2, True),
        ("dvpo", 4, 0.7, True),
        ("demo", 0, 0.2, False),
        ("demo", 4, 0.5, False),
        ("ppo-eval", 0, 0.6, True),
    ]
    assert [row["cut_share"] for row in found["points"]] == [None, 0.25, None, None, 0.5]
    page = out.read_text()
    assert page.startswith("<svg") and all(f">{name}</text>" in page for name in ("dvpo", "demo", "ppo-eval", "frontier"))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [policy_run(tmp_path / seed / "policy", line(0, 0.2, 0.0)) for seed in ("a", "b")]
    assert len({row["run"] for row in write_frontier(runs, tmp_path / "f.svg")["points"]}) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no evaluation with gold"),
        ([{"step": 0, "eval/kl_per_answer": 1.0}], "holds no evaluation with gold"),
        ([line(0, 0.1, 0.2) | {"eval/kl_per_answer": None}], "row 1: 'eval/kl_per_answer' is 'None'"),
    ],
)
def test_a_run_without_gold_is_named(lines: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"run.*{message}"):
        write_frontier([policy_run(tmp_path / "run", *lines)], tmp_path / "f.svg")


def evaluation(golds: dict[str, list[float | None]], values: dict[str, list[float]]) -> Evaluation:
    answers = [
        EvaluatedAnswer(f"{prompt}/{i}", prompt, prompt, "x", gold, 0.0, "stop", ["x"], [0.0, value], [0.0])
        for prompt in golds
        for i, (gold, value) in enumerate(zip(golds[prompt], values[prompt], strict=True))
    ]
    return Evaluation(0, answers)


def test_best_of_n_by_gold_and_by_value() -> None:
    """Two prompts with gold 0, 1 and 0, 3. The value is right about the first and wrong about the second.

    Best of 2 by gold: (1 + 3) / 2 = 2; by value: (1 + 0) / 2; one answer: (0.5 + 1.5) / 2 = 1 however it is chosen.
    """
    found = evaluation({"p": [0.0, 1.0], "q": [0.0, 3.0]}, {"p": [0.1, 0.2], "q": [0.9, 0.8]})
    one, two = best_of_curve(found, [1, 2], with_value=True)
    assert [one[name] for name in ("gold_by_gold", "gold_by_value", "value_by_value")] == pytest.approx([1.0, 1.0, 0.5])
    assert [two[name] for name in ("gold_by_gold", "gold_by_value", "value_by_value")] == pytest.approx([2.0, 0.5, 0.55])
    assert two["gold_by_gold_ci95"] == (1.0, 3.0), "prompts are resampled, not answers"
    assert (one["kl_at_most"], two["kl_at_most"]) == pytest.approx((0.0, math.log(2) - 0.5))
    page = draw_best_of([one, two])
    assert all(f">{name}</text>" in page for name in ("gold by gold", "gold by value", "value by value"))


def test_best_of_n_by_what_there_is() -> None:
    without_gold = evaluation({"p": [None, None]}, {"p": [0.1, 0.2]})
    row = best_of_curve(without_gold, [2], with_value=True)[0]
    assert row["value_by_value"] == pytest.approx(0.2) and not any(name.startswith("gold") for name in row)
    check_choosable("some:gold", None)
    check_choosable(None, "gvm")
    with pytest.raises(ConfigError, match="nothing to choose answers by"):
        check_choosable(None, None)


def test_the_best_of_n_is_over_groups_and_says_how_many_answers_were_cut() -> None:
    """Two prompts of one subject: there is one group to resample, and the interval is a point; of two subjects it is not."""
    found = evaluation({"p": [0.0, 1.0], "q": [0.0, 3.0]}, {"p": [0.1, 0.2], "q": [0.9, 0.8]})
    answers = [replace(answer, group="sea", end_state="length") for answer in found.answers]
    row = best_of_curve(Evaluation(0, [*answers[:3], found.answers[3]]), [2], with_value=False)[0]
    assert row["gold_by_gold_ci95"] == (1.0, 3.0) and row["cut_share"] == 0.75
    assert best_of_curve(Evaluation(0, answers), [2], with_value=False)[0]["gold_by_gold_ci95"] == (2.0, 2.0)
