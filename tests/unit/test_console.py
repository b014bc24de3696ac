"""What a person sees on a terminal."""

from __future__ import annotations

import pytest

from dvpo_ray.console import progress
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
