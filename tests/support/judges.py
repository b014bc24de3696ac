"""A judge behind a real HTTP service, and evaluations by it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dvpo_ray.judging.endpoint import JudgeSettings
from dvpo_ray.judging.judge import Consent, compare_answers
from tests.support.services import Reply, Service

QUESTIONS = 6


def completion(text: str | None, finish_reason: str = "stop") -> Reply:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    return 200, {}, json.dumps({"choices": choices, "usage": {"prompt_tokens": 100, "completion_tokens": 10}})


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """The answers that a request shows as A and B."""
    found = re.findall(r"<Answer .>\n(.*)\n</Answer .>", body["messages"][1]["content"])
    return found[0], found[1]


def likes_good(body: dict[str, Any]) -> Reply:
    """A judge that finds the answer that begins with "good", wherever it is shown."""
    return completion(f"Well.\n[[{'A' if shown(body)[0].startswith('good') else 'B'}]]")


def judged(service: Service, answers: tuple[Path, Path], consent: Consent | None = None, **settings: Any) -> dict[str, Any]:
    """Good answers against bad ones."""
    given = {"concurrency": 2, "timeout_s": 5.0, "patience_s": 5.0} | settings
    judge = JudgeSettings(f"{service.address}/v1/", "judge-1", **given)
    return compare_answers(*answers, "jsonl", None, judge, answers[0].with_name("verdicts.jsonl"), consent or Consent(yes=True))
