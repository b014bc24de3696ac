"""A run's records read back, and the tables the report makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_ray.errors import UserInputError

STAGES = ("rollout", "score", "learn", "sync")


@dataclass(frozen=True)
class RunRecords:
    """What a run left in its folder; a demo's value and policy runs lie in folders of these names below it."""

    folder: Path
    name: str
    result: dict[str, Any]
    config_text: str
    value_steps: list[dict[str, Any]]
    policy_steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    answers: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> RunRecords:
        """Read a run of any kind.

        Raises:
            UserInputError: there is no ``result.json``.
        """
        result = folder / "result.json"
        if not result.is_file():
            raise UserInputError(f"'{folder}' holds no finished run: no result.json; give the folder of a run that ended")
        value = folder / "value" if (folder / "value").is_dir() else folder
        policy = folder / "policy" if (folder / "policy" / "metrics.jsonl").is_file() else folder
        lines = _json_lines(policy / "metrics.jsonl")
        return cls(
            folder=folder,
            name=folder.resolve().name,
            result=json.loads(result.read_text()),
            config_text=(folder / "config.json").read_text(),
            value_steps=[line for line in _json_lines(value / "metrics.jsonl") if "loss/value" in line],
            policy_steps=[line for line in lines if "seconds/rollout" in line],
            evaluations=[line for line in lines if any(key.startswith("eval/") for key in line)],
            answers=_json_lines(policy / "evaluations.jsonl"),
        )

    def answers_at(self, first: bool) -> list[dict[str, Any]]:
        """Held-out answers before training, or after it."""
        if not self.answers:
            return []
        steps = [row["step"] for row in self.answers]
        wanted = min(steps) if first else max(steps)
        return [row for row in self.answers if row["step"] == wanted]


def compare_answers(records: RunRecords, count: int) -> list[dict[str, Any]]:
    """Answers before and after to the same prompts, spread evenly over the held-out set."""
    before, after = records.answers_at(first=True), records.answers_at(first=False)
    pairs = list(zip(before, after, strict=True))
    stride = max(1, len(pairs) // count)
    return [{"prompt": a["prompt"], "before": a, "after": b} for a, b in pairs[::stride][:count]]


def colour_tokens(records: RunRecords, count: int) -> list[dict[str, Any]]:
    """Answers whose tokens carry a colour for their value and one for their advantage: best and worst by last value."""
    rows = sorted(records.answers_at(first=False), key=lambda row: row["values"][-1])
    if not rows:
        return []
    chosen = rows[: count // 2] + rows[-(count - count // 2) :]
    return [
        {
            "prompt": row["prompt"],
            "gold": row["gold"],
            "by_value": _coloured(row["tokens"], row["values"][1:]),
            "by_advantage": _coloured(row["tokens"], row["advantages"]),
        }
        for row in chosen
    ]


def where_the_time_went(records: RunRecords) -> list[dict[str, Any]]:
    """Mean seconds of each stage of a step, and its share."""
    steps = records.policy_steps[1:] or records.policy_steps
    if not steps:
        return []
    total = sum(step["seconds/step"] for step in steps) / len(steps)
    means = {stage: sum(step[f"seconds/{stage}"] for step in steps) / len(steps) for stage in STAGES}
    means["driver"] = total - sum(means.values())
    return [{"stage": stage, "seconds": seconds, "share": seconds / total} for stage, seconds in means.items()]


def _coloured(tokens: list[str], numbers: list[float]) -> list[dict[str, Any]]:
    scale = max((abs(number) for number in numbers), default=1.0) or 1.0
    return [
        {"text": token, "number": number, "colour": _diverging(number / scale)}
        for token, number in zip(tokens, numbers, strict=True)
    ]


def _diverging(x: float) -> str:
    """Blue for positive, orange for negative, white at 0; x in [-1, 1]."""
    red, green, blue = (33, 113, 181) if x > 0 else (217, 95, 14)
    return f"rgba({red},{green},{blue},{min(1.0, abs(x)) * 0.7:.2f})"


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
