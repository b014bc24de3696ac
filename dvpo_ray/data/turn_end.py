"""Which token ends a model's turns: one answer for data, engines and reward models alike.

``tokenizer.eos_token`` is not always it: Gemma ends turns with ``<end_of_turn>``, Phi-3 with ``<|end|>``, GLM-4 with what opens
the next turn (``<|user|>``). The chat template shows the token, and the generation config names those at which the model was
meant to stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_ray.data.chat_template import TEMPLATE_ERRORS, templated
from dvpo_ray.errors import DataError, ModelError
from dvpo_ray.io.json_files import read_object

# In this order, as engines do: the first that is there counts.
CONFIGS = ("generation_config.json", "config.json")
QUESTION, ANSWER, NEXT = "dvpoQuestion", "dvpoAnswer", "dvpoNext"


@dataclass(frozen=True)
class TurnEnd:
    """``end_id`` is put after answers that are encoded; a model that samples any of ``stop_ids`` (it is among them, they are
    sorted) has ended its turn.

    Example: Phi-3 has ``TurnEnd(32007, (32000, 32001, 32007))``.
    """

    end_id: int
    stop_ids: tuple[int, ...]


def turn_end(tokenizer: Any, folder: Path | None = None) -> TurnEnd:
    """How a model's turns end, by its tokenizer, its chat template and the configs in ``folder`` (default: the folder that the
    tokenizer was loaded from).

    Without a chat template, or with one that writes no special token after an assistant's turn, it is the tokenizer's end of
    sequence.

    Raises:
        ModelError: nothing says which token it is, or a config's ``eos_token_id`` is none.
    """
    where = Path(tokenizer.name_or_path or ".") if folder is None else folder
    stops = _configured(where) if folder is not None or tokenizer.name_or_path else set()
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    end = _written_end(tokenizer, stops)
    if end is None:
        end = tokenizer.eos_token_id
    if end is None and len(stops) == 1:
        end = min(stops)
    if end is None:
        writes = "writes no special token after an assistant's turn" if tokenizer.chat_template else "is missing"
        raise ModelError(
            f"model folder '{where}' does not say which token ends an answer: its chat template {writes}, its tokenizer has no "
            f"eos_token, and its configs name {sorted(stops) or 'no'} eos_token_id; set eos_token in tokenizer_config.json"
        )
    return TurnEnd(int(end), tuple(sorted(stops | {int(end)})))


def _configured(folder: Path) -> set[int]:
    """End-of-sequence ids of the first config that is in a folder; none without one."""
    path = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if path is None:
        return set()
    try:
        content = read_object(path)
    except DataError as error:
        raise ModelError(str(error)) from error
    # Models of text and pictures keep what is about text in a part of their config.
    inner = content.get("text_config")
    given = content.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, Mapping) else None)
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(type(one) is int and one >= 0 for one in ids):
        raise ModelError(f"{path}: eos_token_id is {str(given)[:80]}, expected a token id or a list of them")
    return set(ids)


def _written_end(tokenizer: Any, stops: Set[int]) -> int | None:
    """The token that the chat template writes after an assistant's turn; None when it writes none that is special.

    Some templates write nothing there, and the next turn's opening ends the answer, if it is one to stop at.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    end = _token_after(tokenizer, _after_answer(tokenizer, turns), stops)
    if end is not None:
        return end
    following = _after_answer(tokenizer, [*turns, {"role": "user", "content": NEXT}])
    opening = _token_after(tokenizer, following, stops)
    return opening if opening in stops else None


def _after_answer(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    """What the template writes after the assistant's words; nothing when it refuses the conversation, or leaves them out."""
    try:
        text = str(templated(tokenizer, turns, tokenize=False))
    except ModelError:
        raise
    except TEMPLATE_ERRORS:
        return ""
    return text.rpartition(ANSWER)[2] if ANSWER in text else ""


def _token_after(tokenizer: Any, text: str, stops: Set[int]) -> int | None:
    """The special token, or one of ``stops``, that a text begins with, white space aside."""
    added = tokenizer.added_tokens_decoder
    known = {token.content: number for number, token in added.items() if token.special or number in stops}
    found = [content for content in known if text.lstrip().startswith(content)]
    return known[max(found, key=len)] if found else None
