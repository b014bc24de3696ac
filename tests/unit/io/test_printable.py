"""Text of others as a terminal may show it."""

from __future__ import annotations

import pytest

from dvpo_ray.io.printable import printable
from dvpo_ray.runs.run import Event
from jobs.cli import console
from jobs.cli.commands import guard

CLEARED = "\x1b[2J\x1b]0;title\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer, 日本\n\tx", "plain, größer, 日本\n\tx"),
        (CLEARED, r"\x1b[2J\x1b]0;title\x07"),
        ("a\r\nb\rc", "a\nb\\rc"),
        ("\u202etxt.exe\x9b1A\x00", r"\u202etxt.exe\x9b1A\x00"),
        ("half \ud83d of a pair", r"half \ud83d of a pair"),
    ],
)
def test_a_terminal_gets_no_orders(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_nothing_that_others_wrote_gives_a_terminal_orders(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> dict[str, str]:
        from dvpo_ray.errors import RunError

        raise RunError(f"the service said {CLEARED}")

    with console.progress(False, "run") as listener:
        for kind in ("phase", "warning"):
            listener(Event(kind, f"dataset {CLEARED}"))
    console.show_result({"columns": CLEARED})
    console.show_rows([{"row": CLEARED}])
    console.show_checks([{"name": "x", "status": "ok", "found": CLEARED, "remedy": ""}], as_json=False)
    console.show_jobs([dict.fromkeys(("job", "status", "run", "recipe", "started", "ended"), f"{CLEARED}\n")])
    with pytest.raises(BaseException, match="1"):
        guard(failing, as_json=False)
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\x07" not in said.out + said.err
    assert (said.out + said.err).count("title") == 12
