"""Admission: from a source to token ids. Every row read is either kept or a dead letter, and the counts reconcile."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from dvpo_ray.data.dead_letters import DeadLetters
from dvpo_ray.data.encode import encode_answer, encode_prompt
from dvpo_ray.data.formats import Messages, parse_demonstration, parse_pair, parse_prompt, row_group, row_id
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.sources import Source, iter_raw_rows
from dvpo_ray.data.text_limits import cut_to_fit, refuse_what_cannot_fit
from dvpo_ray.data.turn_end import turn_end
from dvpo_ray.errors import DataError

T = TypeVar("T")
Overlong = Literal["reject", "truncate_answer"]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids. ``prompt_text`` is its last turn, for people; ``prompt_key`` identifies the whole prompt.

    ``group`` is what it has in common with others, such as its subject, where its row says so.
    """

    row_id: str
    prompt_text: str
    prompt_ids: tuple[int, ...]
    prompt_key: str
    group: str | None = field(default=None, kw_only=True)

    @property
    def kin(self) -> str:
        """What it shares with prompts that it is not independent of: its group, or without one the prompt itself."""
        return self.prompt_key if self.group is None else self.group


@dataclass(frozen=True)
class EncodedPair(EncodedPrompt):
    """A preference pair as token ids; answers end with the token that ends the model's turns unless they were truncated."""

    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


@dataclass(frozen=True)
class EncodedDemonstration(EncodedPrompt):
    """A prompt and a good answer to it as token ids; the answer ends as those of pairs do."""

    answer_ids: tuple[int, ...]


@dataclass
class LoadCounts:
    """Rows read, kept and rejected by reason."""

    read: int = 0
    kept: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    @property
    def bad_share(self) -> float:
        """Share of rows that were rejected."""
        return sum(self.rejected.values()) / self.read if self.read else 0.0

    def check(self) -> None:
        """The books balance."""
        assert self.read == self.kept + sum(self.rejected.values()), f"rows do not reconcile: {self}"


def load_pairs(
    source: str | Source,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    max_answer_tokens: int,
    dead_letters: DeadLetters,
    overlong: Overlong = "reject",
    limit: int | None = None,
) -> tuple[list[EncodedPair], LoadCounts]:
    """Preference pairs of a source; ``limit`` stops after so many good rows.

    Raises:
        DataError: the source cannot be read at all.
        ModelError: as ``turn_end``.
    """
    end_id = turn_end(tokenizer).end_id

    def build(identity: str, row: Mapping[str, Any]) -> EncodedPair:
        prompt, chosen, rejected = parse_pair(row)
        _check_text(chosen, rejected)
        answers = [
            _answer_ids(tokenizer, text, end_id, max_answer_tokens, overlong, name)
            for name, text in (("chosen", chosen), ("rejected", rejected))
        ]
        if answers[0] == answers[1]:
            raise BadRow(Reason.EQUAL_ANSWERS, f"the answers are the same in their first {max_answer_tokens} tokens")
        base = _encode(identity, row, prompt, tokenizer, max_prompt_tokens)
        return EncodedPair(**vars(base), chosen_ids=answers[0], rejected_ids=answers[1])

    return _load(source, limit, dead_letters, build)


def load_demonstrations(
    source: str | Source,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    max_answer_tokens: int,
    dead_letters: DeadLetters,
    overlong: Overlong = "reject",
    limit: int | None = None,
) -> tuple[list[EncodedDemonstration], LoadCounts]:
    """Prompts with good answers, of a source; ``limit`` stops after so many good rows.

    Raises:
        DataError: the source cannot be read at all.
        ModelError: as ``turn_end``.
    """
    end_id = turn_end(tokenizer).end_id

    def build(identity: str, row: Mapping[str, Any]) -> EncodedDemonstration:
        prompt, text = parse_demonstration(row)
        _check_text(text)
        answer = _answer_ids(tokenizer, text, end_id, max_answer_tokens, overlong, "answer")
        return EncodedDemonstration(**vars(_encode(identity, row, prompt, tokenizer, max_prompt_tokens)), answer_ids=answer)

    return _load(source, limit, dead_letters, build)


def load_prompts(
    source: str | Source,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    dead_letters: DeadLetters,
    limit: int | None = None,
) -> tuple[list[EncodedPrompt], LoadCounts]:
    """Prompts of a source; ``limit`` stops after so many good rows.

    Raises:
        DataError: the source cannot be read at all.
    """

    def build(identity: str, row: Mapping[str, Any]) -> EncodedPrompt:
        return _encode(identity, row, parse_prompt(row), tokenizer, max_prompt_tokens)

    return _load(source, limit, dead_letters, build)


def refuse_if_too_bad(counts: LoadCounts, max_bad_share: float, source: str | Source, dead_letter_path: Path | None) -> None:
    """Stop before anything starts when too many rows were lost, or none is left; None when no file holds the dead letters.

    Raises:
        DataError: with the counts and where the dead letters lie.
    """
    listed = "the rows" if dead_letter_path is None else f"the rows listed in {dead_letter_path}"
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.rejected.items()))
    if counts.kept == 0:
        raise DataError(f"'{source}': none of {counts.read} rows can be used ({reasons or 'it is empty'}); mend {listed}")
    if counts.bad_share > max_bad_share:
        raise DataError(
            f"'{source}': {counts.read - counts.kept} of {counts.read} rows ({counts.bad_share:.1%}) cannot be used, more than "
            f"max_bad_share = {max_bad_share:.1%} allows ({reasons}); mend {listed}, raise a length "
            "limit, or raise max_bad_share"
        )


def _load(
    source: str | Source, limit: int | None, dead_letters: DeadLetters, build: Callable[[str, Mapping[str, Any]], T]
) -> tuple[list[T], LoadCounts]:
    kept: list[T] = []
    counts = LoadCounts()
    rejected: Counter[str] = Counter()
    seen: set[str] = set()
    for raw in iter_raw_rows(source):
        if limit is not None and len(kept) >= limit:
            break
        counts.read += 1
        identity = raw.place
        try:
            if raw.row is None:
                raise BadRow(raw.problem or Reason.NOT_AN_OBJECT, raw.detail)
            identity = row_id(raw.row, identity)
            _check_text(identity)
            if identity in seen:
                raise BadRow(Reason.DUPLICATE_ID, f"an earlier row has the id '{identity}'")
            kept.append(build(identity, raw.row))
            seen.add(identity)
        except BadRow as bad:
            rejected[bad.reason] += 1
            dead_letters.add(raw, identity, bad.reason, bad.detail)
    counts.kept = len(kept)
    counts.rejected = dict(rejected)
    counts.check()
    return kept, counts


def _encode(identity: str, row: Mapping[str, Any], prompt: Messages, tokenizer: Any, max_prompt_tokens: int) -> EncodedPrompt:
    group = row_group(row)
    _check_text(*(text for message in prompt for text in (message.role, message.content)), group or "")
    # Templates leave out parts of earlier answers.
    said = [message.content for message in prompt if message.role != "assistant"]
    refuse_what_cannot_fit(tokenizer, said, max_prompt_tokens, "the prompt")
    ids = encode_prompt(tokenizer, prompt)
    if len(ids) > max_prompt_tokens:
        raise BadRow(Reason.TOO_LONG, f"the prompt has {len(ids)} tokens, the limit is {max_prompt_tokens}")
    if not ids or min(ids) < 0 or max(ids) >= len(tokenizer):
        raise BadRow(Reason.UNKNOWN_TOKEN, f"token ids must be in [0, {len(tokenizer)})")
    key = hashlib.sha256(json.dumps([[m.role, m.content.strip()] for m in prompt]).encode()).hexdigest()
    return EncodedPrompt(identity, prompt[-1].content, tuple(ids), key, group=group)


def _check_text(*texts: str) -> None:
    """Refuse lone surrogates, which JSON can spell and nothing can encode."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow(Reason.BAD_UTF8, f"character {error.start} is {text[error.start]!a}: {error.reason}") from error


def _answer_ids(tokenizer: Any, text: str, end_id: int, limit: int, overlong: Overlong, name: str) -> tuple[int, ...]:
    if overlong == "reject":
        refuse_what_cannot_fit(tokenizer, [text], limit, f"'{name}'")
    beginning = cut_to_fit(tokenizer, text, limit)
    if beginning is not None:
        return tuple(encode_answer(tokenizer, beginning, end_id)[:-1][:limit])
    ids = encode_answer(tokenizer, text, end_id)
    if len(ids) <= limit:
        return tuple(ids)
    if overlong == "truncate_answer":
        return tuple(ids[:limit])
    raise BadRow(Reason.TOO_LONG, f"'{name}' has {len(ids)} tokens, the limit is {limit}")
