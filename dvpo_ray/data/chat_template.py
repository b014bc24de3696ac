"""A tokenizer's chat template with the arguments that a recipe gives it, such as ``enable_thinking``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from dvpo_ray.errors import ModelError
from dvpo_ray.io.time_limit import OutOfTimeError, within

# What a template may do with a conversation that it was not written for.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
MOST_S = 30.0
MOST_WRITTEN = 256 * 2**20
Arguments = Mapping[str, bool | int | float | str]
_ASKED, _ANSWERED = {"role": "user", "content": "dvpoQuestion"}, {"role": "assistant", "content": "dvpoAnswer"}
_SYSTEM = {"role": "system", "content": "dvpoSystem"}
_THOUGHT = _ANSWERED | {"content": "<think>\ndvpoThought\n</think>\n\ndvpoAnswer"}
_TOOL = {"type": "function", "function": {"name": "dvpoTool", "description": "dvpo", "parameters": {"type": "object"}}}
# Conversations in which an argument that does anything is likely to show.
PROBES: tuple[Sequence[Mapping[str, Any]], ...] = (
    [_ASKED],
    [_SYSTEM, _ASKED],
    [_ASKED, _ANSWERED],
    [_ASKED, _THOUGHT, _ASKED],
    [_SYSTEM, _ASKED, _THOUGHT],
)


def load_tokenizer(folder: Path, trust_remote_code: bool = False, arguments: Arguments | None = None) -> Any:
    """The tokenizer of a model folder, whose chat template gets ``arguments`` whenever it is applied here."""
    from transformers import AutoTokenizer

    return with_arguments(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code), arguments or {})


def with_arguments(tokenizer: Any, arguments: Arguments) -> Any:
    """The same tokenizer, which from now on carries the arguments of its chat template; they are not saved with it."""
    tokenizer.chat_template_kwargs = dict(arguments)
    return tokenizer


def arguments_of(tokenizer: Any) -> dict[str, Any]:
    """The arguments that a tokenizer carries for its chat template."""
    return dict(getattr(tokenizer, "chat_template_kwargs", {}))


def templated(tokenizer: Any, turns: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """What the chat template makes of a conversation, with the tokenizer's arguments; ``options`` of ``apply_chat_template``.

    Raises:
        one of TEMPLATE_ERRORS: it refuses the conversation, or fails.
        ModelError: it takes too long, or writes too much.
    """
    return _applied(tokenizer, turns, arguments_of(tokenizer) | options)


def _applied(tokenizer: Any, turns: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Any:
    """The template is a program that came with the model: what it may take is limited."""
    try:
        found = within(MOST_S, lambda: tokenizer.apply_chat_template(turns, **options))
    except (OutOfTimeError, MemoryError) as error:
        problem = f"took longer than {MOST_S:g} s" if isinstance(error, OutOfTimeError) else "asked for more memory than there is"
    else:
        if len(found) <= MOST_WRITTEN:
            return found
        problem = f"wrote more than {MOST_WRITTEN:,} characters"
    raise ModelError(
        f"the chat template of the model {problem} for a conversation of {sum(len(str(turn)) for turn in turns):,} characters: "
        "mend chat_template in its folder, or take another model"
    )


def ignored_arguments(tokenizer: Any) -> list[str]:
    """Those of a tokenizer's arguments without which its chat template writes the same, in all of ``PROBES``."""
    given = arguments_of(tokenizer)
    written = list(_written(tokenizer, given))
    return [name for name in given if list(_written(tokenizer, {k: v for k, v in given.items() if k != name})) == written]


def _written(tokenizer: Any, arguments: Mapping[str, Any]) -> Iterator[str]:
    """What the template writes of every probe, or how it refuses it."""
    if not tokenizer.chat_template:
        return
    for turns in PROBES:
        for options in ({}, {"add_generation_prompt": True}, {"tools": [_TOOL]}):
            try:
                yield str(_applied(tokenizer, turns, {**arguments, **options, "tokenize": False}))
            except ModelError:
                raise
            except TEMPLATE_ERRORS as error:
                yield repr(error)


def said(arguments: Mapping[str, Any]) -> str:
    """Arguments as a recipe gives them, for messages."""
    pairs = ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in sorted(arguments.items()))
    return f"{{{pairs}}}" if pairs else "none"
