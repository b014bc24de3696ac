"""A run's records read back, and the tables the report makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dvpo_ray.errors import DataError, UserInputError
from dvpo_ray.io.json_files import REMEDY, check_numbers, read_object, read_records
from dvpo_ray.metrics import Figure, Metric, metric_of
from dvpo_ray.runs.declarations import read_declarations

B = TypeVar("B", bound=BaseModel)
STAGES = ("rollout", "score", "learn", "sync")
NEEDED = {
    "seconds/rollout": ("step", "seconds/step", *(f"seconds/{stage}" for stage in STAGES)),
    "eval/gold": ("step", "eval/gold_ci95_low", "eval/gold_ci95_high"),
}


class ShownAnswer(BaseModel):
    """What the report shows of a row of ``evaluations.jsonl``."""

    model_config = ConfigDict(strict=True, frozen=True)

    step: int
    prompt: str
    answer: str
    gold: float | None
    tokens: list[str]
    values: list[float] = Field(min_length=1)
    advantages: list[float]

    @model_validator(mode="after")
    def _validate_lengths(self) -> Self:
        sizes = len(self.tokens), len(self.values) - 1, len(self.advantages)
        if len(set(sizes)) != 1:
            raise ValueError(f"tokens, values but the first, and advantages number {sizes}")
        return self


class Intervals(BaseModel):
    """The intervals that the report shows of ``result.json``."""

    model_config = ConfigDict(strict=True, frozen=True)

    gold_before_ci95: list[float] = Field([0, 0], min_length=2, max_length=2)
    gold_after_ci95: list[float] = Field([0, 0], min_length=2, max_length=2)


@dataclass(frozen=True)
class RunRecords:
    """What a run left in its folder; a pipeline's value and policy runs lie in folders of these names below it.

    Attributes:
        metrics: the declarations by which ``lines`` are shown.
        figures: those by which ``result`` is.
        lines: metrics of every step and evaluation, of a pipeline those of its policy.
        value_lines: metrics of a pipeline's value pretraining.
    """

    folder: Path
    name: str
    result: dict[str, Any]
    config_text: str
    metrics: dict[str, Metric]
    figures: dict[str, Figure]
    lines: list[dict[str, Any]]
    value_lines: list[dict[str, Any]]
    answers: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> RunRecords:
        """Read a run of any kind.

        Raises:
            UserInputError: there is no ``result.json``.
            DataError: a record is not as the run wrote it; names the file, the line or row, and the field.
        """
        result = folder / "result.json"
        if not result.is_file():
            raise UserInputError(f"'{folder}' holds no finished run: no result.json; give the folder of a run that ended")
        value = folder / "value" if (folder / "value").is_dir() else folder
        policy = folder / "policy" if (folder / "policy" / "metrics.jsonl").is_file() else folder
        metrics, figures = read_declarations(folder, value, policy)
        facts, config = read_object(result), folder / "config.json"
        _checked(Intervals, {name: facts[name] for name in Intervals.model_fields if name in facts}, str(result))
        read_object(config)
        return cls(
            folder=folder,
            name=folder.resolve().name,
            result=facts,
            config_text=config.read_text(encoding="utf-8"),
            metrics=metrics,
            figures=figures,
            lines=read_metrics(policy / "metrics.jsonl", metrics),
            value_lines=read_metrics(value / "metrics.jsonl", metrics) if value != policy else [],
            answers=_answers(policy / "evaluations.jsonl"),
        )

    @property
    def policy_steps(self) -> list[dict[str, Any]]:
        """Steps whose stages were timed."""
        return [line for line in self.lines if "seconds/rollout" in line]

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
    if len(before) != len(after):
        raise DataError(f"'{records.folder}': {len(before)} answers before training, {len(after)} after it; {REMEDY}")
    pairs = list(zip(before, after, strict=True))
    stride = max(1, len(pairs) // count)
    return [{"prompt": a["prompt"], "before": a, "after": b} for a, b in pairs[::stride][:count]]


def colour_tokens(records: RunRecords, count: int) -> list[dict[str, Any]]:
    """Answers whose tokens carry a colour for their value and one for their advantage: best and worst by last value.

    There are none when no value model read them: their values are 0.
    """
    read = [row for row in records.answers_at(first=False) if any(row["values"])]
    rows = sorted(read, key=lambda row: row["values"][-1])
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
    return [{"stage": stage, "seconds": seconds, "share": seconds / total if total else 0.0} for stage, seconds in means.items()]


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


def read_metrics(path: Path, known: dict[str, Metric] | None = None) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; none when there is no file. ``known`` are declarations, by default this process's.

    Raises:
        DataError: naming a row without the numbers that its kind has, or with something else where a chart shows a number.
    """
    rows = read_records(path)
    for number, row in enumerate(rows, 1):
        charted = [key for key in row if (metric := metric_of(key, known)) is not None and metric.chart]
        needed = [name for mark, names in NEEDED.items() if mark in row for name in names]
        check_numbers(row, ("step", *charted, *needed) if charted else tuple(needed), f"{path}, row {number}")
    return rows


def _answers(path: Path) -> list[dict[str, Any]]:
    rows = enumerate(read_records(path), 1)
    return [_checked(ShownAnswer, row, f"{path}, row {number}").model_dump() for number, row in rows]


def _checked(kind: type[B], content: dict[str, Any], where: str) -> B:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{where}: {'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}; {REMEDY}") from error
