"""A metric is declared once: console, report, Prometheus and docs show it without another edit."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from actors.cluster import metrics as actor_metrics
from dvpo_ray import metrics as registry
from dvpo_ray.config.base import Section
from dvpo_ray.errors import DataError
from dvpo_ray.evaluation.held_out import EvaluatedAnswer, Evaluation
from dvpo_ray.evaluation.metrics import METRICS as EVALUATION_METRICS
from dvpo_ray.metrics import Figure, Gauge, Metric, declare, metric_of, metrics, plug_ins
from dvpo_ray.report import write_report
from dvpo_ray.runs.declarations import DECLARATIONS, read_declarations, save_declarations
from dvpo_ray.runs.prometheus import run_metrics, table
from jobs.cli.console import headline, show_result
from scripts.metric_reference import page

ROOT = Path(__file__).resolve().parents[3]
WORDS = Metric("brevity/words", "Mean words.", "words", console="words", chart="Brevity", gauge="my_words")
SHARES = Metric("brevity_of/*", "Share of short answers by kind.", chart="Short answers")
FIGURE = Figure("brevity_after", "brevity after", digits=1, card=True)
STEPS = [{"step": i, "brevity/words": 7.0 + i, "brevity_of/poems": 0.5, "brevity_of/jokes": 0.25} for i in range(3)]


@pytest.fixture
def nothing_added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test declares is forgotten after it."""
    monkeypatch.setattr(registry, "_METRICS", {})
    monkeypatch.setattr(registry, "_FIGURES", {})
    yield


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in STEPS))
    (tmp_path / "result.json").write_text(json.dumps({"brevity_after": 8.25}))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.usefixtures("nothing_added")
def test_a_made_up_metric_is_shown_everywhere(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class BrevitySettings(Section):
        METRICS: ClassVar[tuple[Metric | Figure, ...]] = (WORDS, SHARES, FIGURE)

    assert BrevitySettings.METRICS[0] in plug_ins()
    assert headline({"brevity/words": 7.5, "seconds/step": 1.0}) == "s/step 1.000  words 7.500"
    show_result({"brevity_after": 8.25})
    assert capsys.readouterr().out == "brevity after  8.2\n"
    html = write_report(run_folder).read_text()
    assert "<b>8.2</b><span>brevity after" in html
    assert re.findall(r"<h3>(.*?)</h3>", html) == ["Brevity", "Short answers"]
    assert "poems</text>" in html and "jokes</text>" in html
    sent: list[tuple[str, float, dict[str, str]]] = []
    monkeypatch.setattr(actor_metrics.GAUGES, "set", lambda metric, value, labels: sent.append((metric.name, value, labels)))
    actor_metrics.RayTracker("mine").log(0, STEPS[0])
    assert sent == [("my_words", 7.0, {"run": "mine"})]
    assert "| `ray_my_words` | gauge | `run` | Mean words. | driver, every step |" in table()
    assert "| `brevity/words` | words | Mean words. | every step | words | Brevity | `ray_my_words` |" in page()


@pytest.mark.usefixtures("nothing_added")
def test_a_report_needs_no_plug_in(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Metric("brevity/lines", "Mean lines.", gauge=Gauge("my_lengths", "Lengths.", "of"), series="lines")
    declare(WORDS, SHARES, FIGURE, shared)
    save_declarations(run_folder)
    monkeypatch.setattr(registry, "_METRICS", {})
    monkeypatch.setattr(registry, "_FIGURES", {})
    assert read_declarations()[0].keys() == metrics().keys()
    assert [read_declarations(run_folder)[0][one.key] for one in (WORDS, SHARES, shared)] == [WORDS, SHARES, shared]
    assert "<h3>Brevity</h3>" in write_report(run_folder).read_text()
    (run_folder / DECLARATIONS).write_text('{"metrics": [{"key": "a/b"}], "figures": []}')
    with pytest.raises(DataError, match=rf"{DECLARATIONS}: 0\.meaning: .*required"):
        write_report(run_folder)


def test_runs_without_plug_ins_keep_no_declarations(tmp_path: Path) -> None:
    save_declarations(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_numbers_in_charts_must_be_numbers(run_folder: Path) -> None:
    (run_folder / "metrics.jsonl").write_text('{"step": 0, "loss/dpo": 1.0}\n{"step": 1, "loss/dpo": "low"}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, row 2: 'loss/dpo' is 'low', expected a number"):
        write_report(run_folder)


@pytest.mark.usefixtures("nothing_added")
def test_declarations_that_clash_are_refused() -> None:
    declare(WORDS)
    declare(WORDS)
    with pytest.raises(ValueError, match="'brevity/words' is declared already"):
        declare(Metric("brevity/words", "Another."))
    with pytest.raises(ValueError, match="'kl/beta' is declared already"):
        declare(Metric("kl/beta", "Another."))
    declare(Metric("brevity/more", "More words.", gauge="dvpo_entropy"))
    with pytest.raises(ValueError, match=r"gauge 'dvpo_entropy' shows .* already"):
        run_metrics()


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "words", "meaning": "Words."},
        {"key": "a/b", "meaning": "no sentence"},
        {"key": "a/b", "meaning": "B.", "gauge": "x", "series": "y"},
        {"key": "a/b", "meaning": "B.", "gauge": Gauge("x", "X.", "of")},
        {"key": "a/*", "meaning": "All.", "gauge": "x"},
    ],
)
def test_a_declaration_without_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"metric '{re.escape(wrong['key'])}'"):
        Metric(**wrong)


def test_the_page_of_metrics_is_up_to_date() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == page(), "run `make docs`"


def keys_in(path: Path) -> Iterator[str]:
    """What looks like a metric's key in the code of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[a-z]+/[a-z0-9_]+", node.value):
            yield node.value


def made_in(folder: Path) -> list[Path]:
    """Modules but those of declarations."""
    return [path for path in folder.rglob("*.py") if path.name != "metrics.py"]


def test_whatever_is_recorded_is_declared() -> None:
    makers = ("dvpo_ray/learning", "dvpo_ray/loop", "dvpo_ray/runs", "dvpo_ray/evaluation", "actors/learner", "jobs")
    found = {key: str(path) for maker in makers for path in made_in(ROOT / maker) for key in keys_in(path)}
    assert len(found) > 40
    assert {key: place for key, place in found.items() if metric_of(key) is None} == {}


def test_whatever_an_evaluation_says_is_declared() -> None:
    answer = EvaluatedAnswer("eval/a/0", "a", "p", "x", 0.5, 0.1, "stop", ["x"], [0.0, 0.5], [0.1])
    summary = Evaluation(3, [answer, answer]).summary()
    assert all(np.isfinite(list(summary.values())))
    assert {f"eval/{name}" for name in (*summary, "seconds")} == {metric.key for metric in EVALUATION_METRICS}
