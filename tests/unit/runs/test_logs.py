"""Logs for machines: every line is an object that says which run, row and actor it is about."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from dvpo_ray.runs.logs import JsonLines


def test_a_record_carries_what_is_known_of_it() -> None:
    record = logging.makeLogRecord(
        {"name": "actors.rollout.pool", "levelname": "WARNING", "msg": "%s hangs", "args": ("rollout-0",), "row": "3/7:p/0"}
    )
    line = json.loads(JsonLines("mine").format(record))
    assert (line["run"], line["level"], line["text"], line["row"]) == ("mine", "warning", "rollout-0 hangs", "3/7:p/0")
    assert "actor" not in line and line["time"].endswith("+00:00")


def test_everything_a_process_logs_is_json_even_python_warnings_and_errors() -> None:
    code = (
        "import logging, warnings; from dvpo_ray.runs.logs import log_as_json; log_as_json('mine')\n"
        "warnings.warn('old')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('x').exception('failed', extra={'step': 4})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["py.warnings", "x"]
    assert lines[1]["step"] == 4 and "ZeroDivisionError" in lines[1]["error"]
