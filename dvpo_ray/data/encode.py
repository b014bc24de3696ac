"""Text to token ids, with the tokenizer's own chat template."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from jinja2 import TemplateError

from dvpo_ray.data.formats import Messages
from dvpo_ray.data.reasons import BadRow, Reason


def encode_prompt(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of a prompt up to where the answer begins; without a chat template, the plain text of its turns.

    Raises:
        BadRow: the chat template refuses the conversation, for example its roles or their order.
    """
    if not tokenizer.chat_template:
        text = "\n".join(m.content for m in messages) + "\n"
        return list(tokenizer(text, add_special_tokens=True)["input_ids"])
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))
    except TemplateError as error:
        raise BadRow(Reason.BAD_CONVERSATION, f"the chat template refuses the conversation: {error}") from error


def encode_answer(tokenizer: Any, text: str, end_id: int) -> list[int]:
    """Token ids of an answer and of the token that ends it (see ``turn_end``)."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], end_id]


def template_hash(tokenizer: Any) -> str:
    """sha256 of the chat template (empty when there is none)."""
    return hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 of the vocabulary and the special tokens."""
    content = json.dumps([sorted(tokenizer.get_vocab().items()), sorted(tokenizer.special_tokens_map.items())], default=str)
    return hashlib.sha256(content.encode()).hexdigest()
