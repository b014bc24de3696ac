"""From a source to token ids: preference pairs, labelled answers, demonstrations and prompts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from dvpo_ray.data.admission import Admission, LoadCounts, Reading, check_text
from dvpo_ray.data.columns import ReadRow
from dvpo_ray.data.dead_letters import DeadLetters
from dvpo_ray.data.encode import ChatEncoder
from dvpo_ray.data.encoded import EncodedAnswer, EncodedDemonstration, EncodedPair, EncodedPrompt, Preference
from dvpo_ray.data.formats import row_group
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes import Prompted, Scale, best_answer, has_pairs, labels_in, pairs_in
from dvpo_ray.data.sources import Source, iter_raw_rows
from dvpo_ray.data.text_limits import cut_to_fit, refuse_what_cannot_fit
from dvpo_ray.errors import DataError

T = TypeVar("T")
Overlong = Literal["reject", "truncate_answer"]
# A text, the prompt it answers and its name, to token ids.
Fit = Callable[..., tuple[int, ...]]
AS_FOUND = Reading()


def load_pairs(
    source: str | Source,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    max_answer_tokens: int,
    dead_letters: DeadLetters,
    overlong: Overlong = "reject",
    limit: int | None = None,
    reading: Reading = AS_FOUND,
) -> tuple[list[EncodedPair], LoadCounts]:
    """Preference pairs of a source; ``limit`` stops after so many.

    Raises:
        DataError: the source cannot be read at all.
        ModelError: as ``turn_end``.
    """
    chat = ChatEncoder(tokenizer)
    fit = partial(_fit_answer, chat, limit=max_answer_tokens, overlong=overlong)

    def build(identity: str, row: ReadRow, found: Prompted) -> list[EncodedPair]:
        return _pairs(identity, row, found, chat, max_prompt_tokens, max_answer_tokens, fit)

    return _counted(chat, Admission("pairs", dead_letters, reading, build).run(iter_raw_rows(source), limit))


def load_preferences(
    source: str | Source,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    max_answer_tokens: int,
    dead_letters: DeadLetters,
    overlong: Overlong = "reject",
    limit: int | None = None,
    reading: Reading = AS_FOUND,
    label_scale: Scale | None = None,
) -> tuple[list[Preference], LoadCounts]:
    """The pairs of ``load_pairs``, and the answers that are in none with labels of their own (``shapes.labels_in``).

    Those of a source that has pairs alone are the same, in the same order. ``label_scale``: lowest and highest rating.

    Raises:
        DataError: the source cannot be read at all.
        ModelError: as ``turn_end``.
    """
    chat = ChatEncoder(tokenizer)
    fit = partial(_fit_answer, chat, limit=max_answer_tokens, overlong=overlong)
    labelled: Counter[str] = Counter()
    left_out: Counter[str] = Counter()

    def build(identity: str, row: ReadRow, found: Prompted) -> list[Preference]:
        compared = has_pairs(found)
        answers = labels_in(found, label_scale)
        made: list[Preference] = []
        if compared:
            made += _pairs(identity, row, found, chat, max_prompt_tokens, max_answer_tokens, fit)
        bad: list[BadRow] = []
        for n, (text, label, why) in enumerate(answers):
            name = f"{identity}/answer{n}" if compared or len(answers) > 1 else identity
            try:
                check_text(text)
                ids = fit(text, found, name="answer")
                base = _encode(name, row, found, chat, max_prompt_tokens)
            except BadRow as error:
                bad.append(error)
                continue
            made.append(EncodedAnswer(**vars(base), answer_ids=ids, label=label))
            labelled[why] += 1
        if not made:
            raise bad[0]
        left_out.update(f"labelled answers that were left out, {one.reason}" for one in bad)
        return made

    rows, counts = _counted(chat, Admission("pairs", dead_letters, reading, build).run(iter_raw_rows(source), limit))
    counts.labelled = dict(labelled)
    counts.made -= sum(labelled.values())
    counts.notes.update(left_out)
    return rows, counts


def load_demonstrations(
    source: str | Source,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    max_answer_tokens: int,
    dead_letters: DeadLetters,
    overlong: Overlong = "reject",
    limit: int | None = None,
    reading: Reading = AS_FOUND,
) -> tuple[list[EncodedDemonstration], LoadCounts]:
    """Prompts with good answers, of a source; ``limit`` stops after so many.

    Raises:
        DataError: the source cannot be read at all.
        ModelError: as ``turn_end``.
    """
    chat = ChatEncoder(tokenizer)

    def build(identity: str, row: ReadRow, found: Prompted) -> list[EncodedDemonstration]:
        text = best_answer(found)
        check_text(text)
        answer = _fit_answer(chat, text, found, limit=max_answer_tokens, overlong=overlong, name="answer")
        return [EncodedDemonstration(**vars(_encode(identity, row, found, chat, max_prompt_tokens)), answer_ids=answer)]

    return _counted(chat, Admission("demonstrations", dead_letters, reading, build).run(iter_raw_rows(source), limit))


def load_prompts(
    source: str | Source,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    dead_letters: DeadLetters,
    limit: int | None = None,
    reading: Reading = AS_FOUND,
) -> tuple[list[EncodedPrompt], LoadCounts]:
    """Prompts of a source, with the other columns of their rows; ``limit`` stops after so many.

    Raises:
        DataError: the source cannot be read at all.
        ModelError: the chat template cannot be used.
    """
    chat = ChatEncoder(tokenizer)

    def build(identity: str, row: ReadRow, found: Prompted) -> list[EncodedPrompt]:
        prompt = _encode(identity, row, found, chat, max_prompt_tokens)
        return [replace(prompt, columns=row.others(chat.notes))]

    return _counted(chat, Admission("prompts", dead_letters, reading, build).run(iter_raw_rows(source), limit))


def _counted(chat: ChatEncoder, read: tuple[list[T], LoadCounts]) -> tuple[list[T], LoadCounts]:
    """With what the encoder did to rows in the books."""
    read[1].notes.update({note: count for note, count in chat.notes.items() if count})
    return read


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


def _pairs(
    identity: str, row: ReadRow, found: Prompted, chat: ChatEncoder, max_prompt_tokens: int, max_answer_tokens: int, fit: Fit
) -> list[EncodedPair]:
    pairs = pairs_in(found)
    made = []
    for n, texts in enumerate(pairs):
        check_text(*texts)
        answers = [fit(text, found, name=name) for name, text in zip(("chosen", "rejected"), texts, strict=True)]
        if answers[0] == answers[1]:
            raise BadRow(Reason.EQUAL_ANSWERS, f"the answers are the same in their first {max_answer_tokens} tokens")
        base = _encode(identity if len(pairs) == 1 else f"{identity}/{n}", row, found, chat, max_prompt_tokens)
        made.append(EncodedPair(**vars(base), chosen_ids=answers[0], rejected_ids=answers[1]))
    return made


def _encode(identity: str, row: ReadRow, found: Prompted, chat: ChatEncoder, max_prompt_tokens: int) -> EncodedPrompt:
    group, prompt = row_group(row), found.prompt
    check_text(*(text for message in prompt for text in (message.role, message.content)), group or "")
    # Templates leave out parts of earlier answers.
    said = [message.content for message in prompt if message.role != "assistant"]
    refuse_what_cannot_fit(chat.tokenizer, said, max_prompt_tokens, "the prompt")
    ids = chat.prompt(prompt, found.tools)
    if len(ids) > max_prompt_tokens:
        raise BadRow(Reason.TOO_LONG, f"the prompt has {len(ids)} tokens, the limit is {max_prompt_tokens}")
    if not ids or min(ids) < 0 or max(ids) >= len(chat.tokenizer):
        raise BadRow(Reason.UNKNOWN_TOKEN, f"token ids must be in [0, {len(chat.tokenizer)})")
    turns: list[Any] = [[m.role, m.content.strip(), *([m.more] if m.more else [])] for m in prompt]
    key = hashlib.sha256(json.dumps([*turns, found.tools] if found.tools else turns).encode()).hexdigest()
    return EncodedPrompt(identity, prompt[-1].content, tuple(ids), key, group=group)


def _fit_answer(chat: ChatEncoder, text: str, found: Prompted, *, limit: int, overlong: Overlong, name: str) -> tuple[int, ...]:
    if overlong == "reject":
        refuse_what_cannot_fit(chat.tokenizer, [text], limit, f"'{name}'")
    beginning = cut_to_fit(chat.tokenizer, text, limit)
    if beginning is not None:
        return tuple(chat.answer(beginning, found)[:-1][:limit])
    ids = chat.answer(text, found)
    if len(ids) <= limit:
        return tuple(ids)
    if overlong == "truncate_answer":
        return tuple(ids[:limit])
    raise BadRow(Reason.TOO_LONG, f"'{name}' has {len(ids)} tokens, the limit is {limit}")
