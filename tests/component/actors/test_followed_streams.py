"""A process that follows its own streams, and those of a child."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLLOW = """
import os, sys
from actors.rollout.engine_log import EngineLog
log = EngineLog()
os.write(2, b"Traceback (most recent call last):\\n  File 'x', line 1, in f\\nKeyError: 'before'\\n")
log.follow()
os.write(1, b"out\\n")
code = 'import sys; print("child"); raise ValueError("of the child")'
import subprocess
subprocess.run([sys.executable, "-c", code])
from actors.rollout.engine_log import first_error
import time
deadline = time.monotonic() + 20
while (said := first_error(log.text())) is None and time.monotonic() < deadline:
    time.sleep(0.01)
open(sys.argv[1], "w").write(str(said))
log.mark()
assert first_error(log.text()) is None
"""


@pytest.mark.parametrize("to_files", [True, False])
def test_streams_are_read_whether_they_are_files_or_not_and_still_go_where_they_went(to_files: bool, tmp_path: Path) -> None:
    result = tmp_path / "said"
    command = [sys.executable, "-c", FOLLOW, str(result)]
    if to_files:
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            subprocess.run(command, stdout=out, stderr=err, check=True, timeout=60)
        out_text, err_text = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    else:
        done = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True)
        out_text, err_text = done.stdout, done.stderr
    assert result.read_text() == "ValueError: of the child\n  at <string>:1 in <module>"
    assert sorted(out_text.split()) == ["child", "out"]
    assert "before" in err_text and "of the child" in err_text
