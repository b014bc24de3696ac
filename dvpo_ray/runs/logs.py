"""Log records as JSON lines, for whoever collects the output of many runs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

# What a record may carry besides its text: `logger.warning(..., extra={"row": ...})`.
FIELDS = ("step", "row", "actor")


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, run, text, and the fields that the record carries."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "run": self._run,
            "text": record.getMessage(),
        }
        content |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


def log_as_json(run: str) -> None:
    """Send this process's log to standard error as JSON lines, warnings included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(run))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
