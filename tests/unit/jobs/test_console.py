"""What a person sees on a terminal."""

from __future__ import annotations

import io
import json
import re
import threading

import pytest
from rich.console import Console

from dvpo_ray.runs.run import Event
from jobs.cli.console import (
    alive,
    headline,
    job_progress,
    progress,
    progress_bar,
    show_checks,
    show_replay,
    show_result,
    show_rows,
)


@pytest.mark.parametrize("kind", ["phase", "warning"])
def test_brackets_in_a_text_are_shown_as_they_are(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal ...
    monkeypatch.setenv("TERM", "dumb")  # ... without colours between the letters
    with progress(as_json=False, run="x") as listener:
        listener(Event(kind, "asking [/x] [bold]"))
    assert "asking [/x] [bold]" in capsys.readouterr().err


def test_brackets_in_tables_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows([{"run": "runs/[bold]x[/x]", "gold": 0.5}])
    show_checks([{"status": "ok", "name": "[red]name", "found": "[/found]", "remedy": "[none]"}], as_json=False)
    row = {"row": "[/r]", "tokens": 3, "loss": 1.0, "gradient_norm": 2.0, "not_finite": ""}
    show_replay({"all": [row], "rows": 1, "rows_not_finite": 0, "step": 4})
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("runs/[bold]x[/x]", "[red]name", "[/found]", "[none]", "[/r]"))


def test_the_share_of_answers_cut_stands_in_lines_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(
        {"gold_after": 0.5, "win_rate": 1.0, "win_rate_ci95": [0.84, 1.0], "cut_share_after": 0.25, "kept_best_by": "mean gold"}
    )
    shown = capsys.readouterr().out
    assert re.search(r"win rate, 95% interval +0\.840 to 1\.000\n", shown)
    assert re.search(r"share of answers cut at max_new_tokens +0\.250\n", shown)
    assert re.search(r"checkpoints kept by keep_best +mean gold\n", shown)
    assert headline({"eval/gold": 0.5, "eval/cut_share": 0.25}) == "gold 0.500  cut 0.250"
    assert "cut 0.125" in headline({"answer/tokens": 30.0, "answer/cut_share": 0.125})
    show_rows([{"run": "a", "cut_share": None}])
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "-"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_time_left_is_shown_on_any_terminal(width: int) -> None:
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    bar = progress_bar(console)
    bar.add_task(
        "value 0.659  KL/token 0.329  entropy 2.626  tokens 28.156  learn", total=20, completed=7, left="about 12 min left"
    )
    with console.capture() as captured:
        console.print(bar.get_renderable())
    (line,) = captured.get().splitlines()
    assert "about 12 min left" in line and "7/20" in line and "value 0." in line


def test_a_job_that_tells_nothing_for_long_shows_that_it_lives() -> None:
    told: list[Event] = []
    enough = threading.Event()

    def shown(event: Event) -> None:
        told.append(event)
        if sum(one.kind == "alive" for one in told) == 2:
            enough.set()

    with alive(shown, first_s=0.02) as listener:
        listener(Event("stage", "learn", 5, 9, left=600.0))
        assert enough.wait(20)
    assert told[0].kind == "stage"
    assert [event.text for event in told[1:3]] == ["step 5, learn: for 0 s"] * 2
    assert (told[1].step, told[1].total) == (5, 9) and 599 < (told[2].left or 0) < (told[1].left or 0) < 600


def test_the_time_left_is_shown_to_people_and_machines(capsys: pytest.CaptureFixture[str]) -> None:
    step = Event("step", "", 3, 9, {"loss/value": 0.5}, left=250.0)
    for as_json in (False, True):
        with job_progress(as_json, "x") as listener:
            listener(step)
            listener(Event("stopping", "stopping: soon"))
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["  3/9  loss 0.500  about 5 min left", "stopping: soon"]
    first, second = map(json.loads, shown.out.splitlines())
    assert first["seconds_left"] == 250.0 and (second["event"], second["text"]) == ("stopping", "stopping: soon")
