"""What a person sees on a terminal."""

from __future__ import annotations

import pytest

from dvpo_ray.console import progress, show_checks, show_replay, show_rows
from dvpo_ray.run import Event


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
