"""Text to token ids, with the tokenizer's own chat template.

What people write is text, never control: a prompt that holds the template's own words for a turn opens none. And what is encoded
is what an engine would see and sample: an answer's tokens are those that follow its prompt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from dvpo_ray.data.chat_template import TEMPLATE_ERRORS, arguments_of, templated
from dvpo_ray.data.messages import Message, Messages
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes import Prompted
from dvpo_ray.data.thinking import Thinking
from dvpo_ray.data.turn_end import TurnEnd, turn_end
from dvpo_ray.errors import ModelError

FOLDED = "system messages put before the first question, for want of a system turn"
ENDED = "answers that ended in the end mark already"
CONTROL = "prompts and answers with control words in them, read as text"
SYSTEM, ASKED, ANSWERED = "dvpoSystem", "dvpoQuestion", "dvpoAnswer"


def encode_prompt(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of a prompt up to where the answer begins; without a chat template, the plain text of its turns.

    Raises:
        BadRow: the chat template refuses the conversation, for example its roles or their order.
        ModelError: the chat template cannot be used at all.
    """
    return ChatEncoder(tokenizer).prompt(messages)


class ChatEncoder:
    """A tokenizer with its chat template, looked into once. ``notes`` counts what it did to rows, by kind."""

    def __init__(self, tokenizer: Any) -> None:
        """Look at a tokenizer.

        Raises:
            ModelError: it has several chat templates and none of them is the default.
        """
        refuse_nameless_templates(tokenizer)
        self.tokenizer = tokenizer
        self.notes: Counter[str] = Counter()

    def prompt(self, messages: Messages, tools: str = "") -> list[int]:
        """As ``encode_prompt``; ``tools`` is a JSON list of what the template may offer."""
        if not self.tokenizer.chat_template:
            return self._plain(messages)
        turns = self._turns(messages)
        if len(turns) < len(messages):
            self.notes[FOLDED] += 1
        if any(self.controls(turn["content"]) for turn in turns):
            self.notes[CONTROL] += 1
            return self._encoded_in_parts(turns, tools)
        return self._applied(turns, tools, add_generation_prompt=True)

    def answer(self, text: str, asked: Prompted) -> list[int]:
        """Token ids of an answer to a prompt, and of the token that ends it (see ``turn_end``)."""
        shown = self._without_end(text)
        if self._thinking is not None:
            shown, note = self._thinking.without(shown)
            self.notes.update([note] if note else [])
        if self.controls(shown):
            self.notes[CONTROL] += 1
            return [*self.as_text(shown), self.end.end_id]
        if self._answers_join:
            found = self._following(shown, asked)
            if found is not None:
                return found
        return [*self.ids(shown), self.end.end_id]

    @cached_property
    def end(self) -> TurnEnd:
        """What ends the model's turns.

        Raises:
            ModelError: as ``turn_end``.
        """
        return turn_end(self.tokenizer)

    @cached_property
    def _special(self) -> dict[str, int]:
        """The control words of the vocabulary with their ids."""
        added = self.tokenizer.added_tokens_decoder
        return {token.content: number for number, token in added.items() if token.special and token.content.strip()}

    @cached_property
    def _control_words(self) -> re.Pattern[str] | None:
        words = sorted(self._special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words))) if words else None

    def controls(self, text: str) -> bool:
        """Whether a text has words in it that are control words of the vocabulary."""
        return self._control_words is not None and self._control_words.search(text) is not None

    def _plain(self, messages: Messages) -> list[int]:
        text = "\n".join(m.content for m in messages) + "\n"
        if self.controls(text):
            self.notes[CONTROL] += 1
            frame = list(self.tokenizer("", add_special_tokens=True)["input_ids"])
            begins = [one for one in frame[:1] if one == self.tokenizer.bos_token_id]
            return [*begins, *self.as_text(text)]
        ids = list(self.tokenizer(text, add_special_tokens=True)["input_ids"])
        # A tokenizer that ends whatever it is given would end the prompt before its answer.
        while len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        return ids

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of what the chat template wrote."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def as_text(self, text: str) -> list[int]:
        """Token ids of a text whose control words are words.

        Raises:
            BadRow: the tokenizer cannot tell them apart.
        """
        ids = list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        if set(ids) & set(self._special.values()):
            found = self._control_words.search(text) if self._control_words else None
            word = found.group() if found else ""
            raise BadRow(Reason.CONTROL_WORD, f"the text has the control word '{word}', which the tokenizer cannot read as text")
        return ids

    def _turns(self, messages: Messages) -> list[dict[str, Any]]:
        """Messages as the template takes them; one without a system turn gets it before the first question."""
        if len(messages) > 1 and messages[0].role == "system" and self._folds:
            first = messages[1]
            joined = Message(first.role, f"{messages[0].content}\n\n{first.content}", first.more)
            messages = (joined, *messages[2:])
        return [message.turn for message in messages]

    @cached_property
    def _folds(self) -> bool:
        """Whether the template has no system turn: it refuses one, or leaves it out."""
        asked = {"role": "user", "content": ASKED}
        try:
            text = self.rendered([{"role": "system", "content": SYSTEM}, asked])
        except BadRow:
            try:
                return ASKED in self.rendered([asked])
            except BadRow:
                return False
        return SYSTEM not in text and ASKED in text

    @cached_property
    def _thinking(self) -> Thinking | None:
        """What the template itself writes of an answer's thinking."""
        try:
            text = self.rendered([{"role": "user", "content": ASKED}]) if self.tokenizer.chat_template else ""
        except BadRow:
            return None
        return Thinking.of(text)

    @cached_property
    def _answers_join(self) -> bool:
        """Whether an answer's first tokens are others beside its prompt than alone, as with SentencePiece."""
        if not self.tokenizer.chat_template:
            return False
        asked = Prompted((Message("user", ASKED),))
        try:
            found = self._following(ANSWERED, asked)
        except BadRow:
            return False
        return found is not None and found != [*self.ids(ANSWERED), self.end.end_id]

    def _following(self, text: str, asked: Prompted) -> list[int] | None:
        """What the answer adds to its prompt's tokens, up to the token that ends it; None where it does not follow them."""
        turns = self._turns(asked.prompt)
        before = self._applied(turns, asked.tools, add_generation_prompt=True)
        whole = self._applied([*turns, {"role": "assistant", "content": text}], asked.tools, add_generation_prompt=False)
        if whole[: len(before)] != before:
            return None
        added = whole[len(before) :]
        if self.end.end_id not in added:
            return None
        last = max(i for i, one in enumerate(added) if one == self.end.end_id)
        # Some templates write a space between an answer and its end.
        while last and not self.tokenizer.decode(added[last - 1 : last]).strip():
            last -= 1
        return [*added[:last], self.end.end_id]

    def _without_end(self, text: str) -> str:
        marks = [word for word, number in self._special.items() if number in self.end.stop_ids]
        ended = text.rstrip()
        while mark := next((mark for mark in marks if ended.endswith(mark)), ""):
            ended = ended.removesuffix(mark).rstrip()
        if ended == text.rstrip():
            return text
        self.notes[ENDED] += 1
        return ended

    def _applied(self, turns: list[dict[str, Any]], tools: str, *, add_generation_prompt: bool) -> list[int]:
        return list(self._templated(turns, tools, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False))

    def rendered(self, turns: list[dict[str, Any]], tools: str = "", add_generation_prompt: bool = True) -> str:
        """What the chat template writes of a conversation, by default up to where the model's turn begins.

        Raises:
            BadRow: it refuses it, or fails.
        """
        return str(self._templated(turns, tools, add_generation_prompt=add_generation_prompt, tokenize=False))

    def _templated(self, turns: list[dict[str, Any]], tools: str, **options: Any) -> Any:
        """What the chat template makes of a conversation.

        Raises:
            BadRow: it refuses it, or fails.
            ModelError: it takes too long, or writes too much.
        """
        with_tools = {"tools": json.loads(tools)} if tools else {}
        try:
            return templated(self.tokenizer, turns, **options, **with_tools)
        except ModelError:
            raise
        except TEMPLATE_ERRORS as error:
            raise BadRow(Reason.BAD_CONVERSATION, f"the chat template refuses the conversation: {error}") from error

    def _encoded_in_parts(self, turns: list[dict[str, Any]], tools: str) -> list[int]:
        """The template's own words as such, and what was said between them as text.

        Raises:
            BadRow: the template does not show what was said as it is.
        """
        marked, said = marked_turns(turns)
        return self.filled(self.rendered(marked, tools), said)

    def filled(self, text: str, said: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of what a template wrote of marked turns (``marked_turns``), with what was said in place of each mark.

        Raises:
            BadRow: a mark is not there once, in its place.
        """
        rest, ids = text, []
        for mark, content in said:
            before, found, rest = rest.partition(mark)
            if not found or mark in rest:
                raise BadRow(
                    Reason.CONTROL_WORD, "a turn has a control word of the chat template, which does not show turns as they are"
                )
            ids += [*self.ids(before), *self.as_text(content)]
        return [*ids, *self.ids(rest)]


def marked_turns(turns: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Turns whose words are marks, and (mark, words) of each: a template writes marks as they are."""
    said = [
        (f"dvpo{i}turn{hashlib.sha256(turn['content'].encode()).hexdigest()[:12]}", turn["content"])
        for i, turn in enumerate(turns)
    ]
    return [dict(turn) | {"content": mark} for turn, (mark, _) in zip(turns, said, strict=True)], said


def refuse_nameless_templates(tokenizer: Any) -> None:
    """Of several chat templates one must be the default.

    Raises:
        ModelError: naming them.
    """
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        names = ", ".join(sorted(templates))
        raise ModelError(
            f"model folder '{tokenizer.name_or_path}': its chat templates are {names}, and none is 'default'; choose one: "
            "tokenizer.chat_template = tokenizer.chat_template[NAME], tokenizer.save_pretrained(FOLDER)"
        )


def template_hash(tokenizer: Any) -> str:
    """sha256 of the chat template (empty when there is none), and of the arguments that it is given, if there are any."""
    found = tokenizer.chat_template or ""
    text, arguments = found if isinstance(found, str) else json.dumps(found, sort_keys=True), arguments_of(tokenizer)
    content = json.dumps([text, arguments], sort_keys=True) if arguments else text
    return hashlib.sha256(content.encode()).hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 of the vocabulary and the special tokens."""
    content = json.dumps([sorted(tokenizer.get_vocab().items()), sorted(tokenizer.special_tokens_map.items())], default=str)
    return hashlib.sha256(content.encode()).hexdigest()
