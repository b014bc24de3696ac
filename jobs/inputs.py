"""The rows that a job trains on and is measured with: read, counted, and checked against the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import AnswersSection, DataSection, EvaluationSection, PairsSection, PtxSection, SourceSection
from dvpo_ray.data import (
    DeadLetters,
    EncodedDemonstration,
    EncodedPair,
    EncodedPrompt,
    LoadCounts,
    Preference,
    Reading,
    Source,
    disjoint,
    load_demonstrations,
    load_pairs,
    load_preferences,
    load_prompts,
    refuse_if_too_bad,
    split_by_prompt,
)
from dvpo_ray.environments import check_prompts
from dvpo_ray.runs.folder import DEAD_LETTERS
from jobs.models import BaseModel

Row = TypeVar("Row")
Prompt = TypeVar("Prompt", bound=EncodedPrompt)
Tell = Callable[[str], None]


def read_pairs(
    section: PairsSection, tokenizer: Any, folder: Path, tell: Tell = lambda text: None
) -> tuple[list[EncodedPair], list[EncodedPair], LoadCounts]:
    """Training pairs, held-out pairs on other prompts, and the counts of the training source; ``tell`` is told what was found."""
    return _read_apart(load_pairs, section, tokenizer, folder, tell)


def read_preferences(
    section: PairsSection,
    tokenizer: Any,
    folder: Path,
    tell: Tell = lambda text: None,
    label_scale: tuple[float, float] | None = None,
) -> tuple[list[Preference], list[Preference], LoadCounts]:
    """As ``read_pairs``, with answers that are in no pair and have labels of their own; ratings are on ``label_scale``."""
    return _read_apart(partial(load_preferences, label_scale=label_scale), section, tokenizer, folder, tell)


def _read_apart(
    load: Callable[..., tuple[list[Prompt], LoadCounts]], section: PairsSection, tokenizer: Any, folder: Path, tell: Tell
) -> tuple[list[Prompt], list[Prompt], LoadCounts]:
    """Rows to train on, held-out rows on other prompts, and the counts of the former."""
    limits: dict[str, Any] = {
        "max_prompt_tokens": section.max_prompt_tokens,
        "max_answer_tokens": section.max_answer_tokens,
        "overlong": section.overlong,
        "reading": reading_of(section),
    }
    source, apart = source_of(section), _held_out_source(section)
    with DeadLetters(folder / DEAD_LETTERS) as letters:
        rows, counts = load(source, tokenizer, dead_letters=letters, limit=section.limit, **limits)
        refuse_if_too_bad(counts, section.max_bad_share, source, folder / DEAD_LETTERS)
        tell(f"{section.source}: {counts.said('pairs')}")
        if apart is None:
            train, held_out = split_by_prompt(rows, section.validation_share, 0)
            return train, held_out, counts
        held_out, held_counts = load(apart, tokenizer, dead_letters=letters, **limits)
        refuse_if_too_bad(held_counts, section.max_bad_share, apart, folder / DEAD_LETTERS)
        tell(f"held out, {apart}: {held_counts.said('pairs')}")
    disjoint(rows, held_out)
    return rows, held_out, counts


def reading_of(section: SourceSection) -> Reading:
    """How a section's rows are read."""
    return Reading(section.format, section.columns)


def source_of(section: SourceSection) -> Source:
    """What a section says of where its rows come from."""
    return Source(section.source, section.split, section.subset, section.data_dir, section.revision)


def _held_out_source(section: PairsSection) -> Source | None:
    """Where held-out pairs come from; None when a share of the others is held out."""
    if section.validation_source is not None:
        return Source(section.validation_source, section.validation_split)
    return None if section.validation_split is None else replace(source_of(section), split=section.validation_split)


def read_prompts(section: DataSection, tokenizer: Any, folder: Path, tell: Tell = lambda text: None) -> list[EncodedPrompt]:
    """Prompts to train on."""
    return _read_rows(load_prompts, section, tokenizer, folder, "prompts", tell)


def read_policy_rows(
    policy: PolicyTraining, base: BaseModel, folder: Path, tell: Tell = lambda text: None
) -> tuple[list[EncodedPrompt], list[EncodedDemonstration]]:
    """Prompts to train a policy on, and demonstrations for its pretraining loss, where it has one.

    Raises:
        DataError: one is none that the model can read, or lacks a column that the environment needs.
        ModelError: an environment could not speak through the chat template.
    """
    prompts = read_prompts(policy.data, base.tokenizer, folder, tell)
    base.limits.check_rows(prompts, policy.data.source)
    if policy.environment is not None:
        check_prompts(policy.environment, prompts, base.tokenizer, policy.data.source)
    demonstrations = read_demonstrations(policy.ptx, base.tokenizer, folder, tell)
    if policy.ptx is not None:
        base.limits.check_rows(demonstrations, policy.ptx.data.source)
    return prompts, demonstrations


def read_demonstrations(
    section: PtxSection | None, tokenizer: Any, folder: Path, tell: Tell = lambda text: None
) -> list[EncodedDemonstration]:
    """Prompts with good answers for the pretraining loss; none without one."""
    if section is None:
        return []
    data = section.data
    limits = {"max_answer_tokens": data.max_answer_tokens, "overlong": data.overlong}
    return _read_rows(load_demonstrations, data, tokenizer, folder, "demonstrations", tell, **limits)


def read_answers(
    section: AnswersSection, base: BaseModel, folder: Path, tell: Tell = lambda text: None
) -> list[EncodedDemonstration]:
    """Prompts with good answers, or with the chosen ones of pairs.

    Raises:
        DataError: one is none that the model can read.
    """
    limits = {"max_answer_tokens": section.max_answer_tokens, "overlong": section.overlong}
    rows = _read_rows(load_demonstrations, section, base.tokenizer, folder, "good answers", tell, **limits)
    base.limits.check_rows(rows, section.source)
    return rows


def _read_rows(
    load: Callable[..., tuple[list[Row], LoadCounts]],
    section: DataSection,
    tokenizer: Any,
    folder: Path,
    what: str,
    tell: Tell,
    **limits: Any,
) -> list[Row]:
    """All usable rows of a source; those that are not go to the dead letters, and too many of them are refused."""
    source = source_of(section)
    with DeadLetters(folder / DEAD_LETTERS) as letters:
        rows, counts = load(
            source,
            tokenizer,
            max_prompt_tokens=section.max_prompt_tokens,
            dead_letters=letters,
            limit=section.limit,
            reading=reading_of(section),
            **limits,
        )
        refuse_if_too_bad(counts, section.max_bad_share, source, folder / DEAD_LETTERS)
        tell(f"{section.source}: {counts.said(what)}")
    return rows


def read_evaluation_prompts(
    section: EvaluationSection, data: DataSection, base: BaseModel, folder: Path, trained_on: Sequence[EncodedPrompt]
) -> list[EncodedPrompt]:
    """Held-out prompts.

    Raises:
        DataError: one is among those trained on, or the model cannot read it.
    """
    place = {name: getattr(section, name) for name in SourceSection.model_fields}
    prompts = read_prompts(data.model_copy(update=place | {"limit": section.max_prompts}), base.tokenizer, folder)
    base.limits.check_rows(prompts, section.source)
    disjoint(trained_on, prompts)
    return prompts
