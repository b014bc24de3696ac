"""What a chat template writes between two of the model's turns: around the replies that it is given.

What the model wrote is never encoded again. Its turn's tokens stay as they were sampled, and only what follows them is encoded:
from the end of its turn, over the replies, to where its next turn begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from dvpo_ray.data.encode import ChatEncoder, marked_turns
from dvpo_ray.data.messages import Message, Messages
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.errors import ModelError

ASKED, ANSWERED, REPLY = "dvpoQuestion", "dvpoAnswer", "dvpoReply"
OTHER_ANSWER, NO_ROLE, TOOL = "dvpoSecond", "dvporole", "tool"
QUESTION = {"role": "user", "content": ASKED}


class TurnJoiner:
    """A tokenizer whose chat template was looked into once, for conversations that go on after the model's turn.

    ``stop_ids`` are the tokens by which a model ends its turn.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Raises ModelError when there is no template, when it does not show where an answer ends and a reply begins, or as
        ``turn_end`` does."""
        self._where = f"model folder '{tokenizer.name_or_path}'"
        if not tokenizer.chat_template:
            raise ModelError(
                f"{self._where} has no chat template, by which replies to the model are written: set chat_template in "
                "tokenizer_config.json, or leave policy.environment out"
            )
        self.tokenizer = tokenizer
        self._encoder = ChatEncoder(tokenizer)
        self.stop_ids = self._encoder.end.stop_ids
        self._check()

    def between(self, messages: Messages, last_id: int) -> list[int]:
        """Token ids from the end of the model's turn, whose last token is ``last_id``, over these messages, to its next turn.

        The token that ends its turn is among them where the model did not write it. Messages of the role ``tool`` are the user's
        where the template does not know that role.

        Raises:
            BadRow: the template refuses them, or they hold control words that the tokenizer cannot read as text.
        """
        turns = [self._known(message).turn for message in messages]
        if any(self._encoder.controls(turn["content"]) for turn in turns):
            marked, said = marked_turns(turns)
            ids = self._encoder.filled(self._after_answer(marked), said)
        else:
            ids = self._encoder.ids(self._after_answer(turns))
        return self._without_end(ids, last_id)

    def before(self, messages: Messages, prompt_ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """A prompt without what opens the model's turn, and the token ids of messages that follow it, up to the model's turn.

        Raises:
            BadRow: the template refuses them, or the prompt does not end as it writes prompts.
        """
        turns = [self._known(message).turn for message in messages]
        closed = self._encoder.rendered([QUESTION], add_generation_prompt=False)
        opened = self._encoder.rendered([QUESTION])
        marked, said = marked_turns(turns)
        whole = self._encoder.rendered([QUESTION, *marked])
        opening = self._encoder.ids(opened[len(closed) :]) if opened.startswith(closed) else []
        kept = len(prompt_ids) - len(opening)
        if not (opened.startswith(closed) and whole.startswith(closed) and list(prompt_ids[kept:]) == opening and kept > 0):
            raise BadRow(Reason.BAD_CONVERSATION, "the chat template does not show where messages after the prompt belong")
        return list(prompt_ids[:kept]), self._encoder.filled(whole[len(closed) :], said)

    def _check(self) -> None:
        """Raises ModelError when replies cannot be told from the model's turn."""
        reply = {"role": "user", "content": REPLY}
        try:
            text = self._encoder.rendered([QUESTION, _answer(ANSWERED), reply])
            other = self._encoder.rendered([QUESTION, _answer(OTHER_ANSWER), reply])
        except BadRow as error:
            raise ModelError(f"{self._where}: {error.detail}; replies of an environment need question, answer, reply") from error
        before, _, after = text.partition(ANSWERED)
        shown_once = text.count(ANSWERED) == after.count(REPLY) == 1 and REPLY not in before
        if not shown_once or after.startswith(REPLY) or other.partition(OTHER_ANSWER)[2] != after:
            raise ModelError(
                f"{self._where}: of a question, an answer and a reply its chat template writes {text[:200]!r}, in which the "
                "reply cannot be told from the answer: mend it, or leave policy.environment out"
            )

    def _after_answer(self, turns: Sequence[dict[str, Any]]) -> str:
        text = self._encoder.rendered([QUESTION, _answer(ANSWERED), *turns])
        _, found, after = text.partition(ANSWERED)
        if not found:
            raise BadRow(Reason.BAD_CONVERSATION, "the chat template leaves out the answer before these replies")
        return after

    def _without_end(self, ids: list[int], last_id: int) -> list[int]:
        """Without the end of the model's turn, where the model ended it by itself."""
        if last_id not in self.stop_ids:
            return ids
        first = next((i for i, one in enumerate(ids) if self.tokenizer.decode([one]).strip()), 0)
        return ids[first + 1 :] if ids[first : first + 1] in ([last_id], [self._closing]) else ids

    @cached_property
    def _closing(self) -> int | None:
        """The token that the template writes after an answer; None where the next turn's opening ends it."""
        text = self._encoder.rendered([QUESTION, _answer(ANSWERED)], add_generation_prompt=False)
        words = self.tokenizer.decode([self._encoder.end.end_id])
        return self._encoder.end.end_id if text.partition(ANSWERED)[2].lstrip().startswith(words) else None

    def _known(self, message: Message) -> Message:
        return Message("user", message.content) if message.role == TOOL and not self._knows_tools else message

    @cached_property
    def _knows_tools(self) -> bool:
        """Whether the template writes what a tool says otherwise than what any other role says that it was not written for."""
        try:
            of_tool = self._after_answer([{"role": TOOL, "content": REPLY}])
        except BadRow:
            return False
        try:
            of_nobody = self._after_answer([{"role": NO_ROLE, "content": REPLY}])
        except BadRow:
            return REPLY in of_tool
        return REPLY in of_tool and of_tool.lower() != of_nobody.lower().replace(NO_ROLE, TOOL)


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}
