"""Questions of one or more turns put to the rollout engines: a turn is asked once the one before is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dvpo_ray.config.sections import RolloutSection
from dvpo_ray.data.encode import encode_prompt
from dvpo_ray.data.messages import Message
from dvpo_ray.data.reasons import BadRow
from dvpo_ray.errors import ActorFailedError, DataError, RowsLostError
from dvpo_ray.judging.answer_file import AnswerFile, SavedAnswer
from dvpo_ray.judging.formats import Question
from dvpo_ray.maths.seeds import sampling_seed
from dvpo_ray.stages import Handle, Rollouts, retry_lost_rows
from dvpo_ray.types import RolloutRequest, RowId, Trajectory


@dataclass
class Conversation:
    """A question and what was said so far. Of each answer: its text, its length in tokens, and whether the limit cut it."""

    question: Question
    said: list[Message] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)


class Interviewer:
    """Asks engines; ``fetch`` gets the answer behind a handle, ``rollout`` says how long prompts and answers may be.

    ``file`` keeps answers as they come, and what it holds is not asked for.
    """

    def __init__(
        self, tokenizer: Any, rollout: RolloutSection, seed: int, fetch: Callable[[Handle], Trajectory], file: AnswerFile
    ) -> None:
        self._tokenizer = tokenizer
        self._rollout = rollout
        self._seed = seed
        self._fetch = fetch
        self._file = file

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions that cannot fit, before any engine starts: with answers of full length between their turns.

        Raises:
            DataError: naming the question, its tokens and the limit.
        """
        for question in questions:
            said: list[Message] = []
            for turn, messages in enumerate(question.turns):
                said += messages
                self._encode(question, said, turn * self._rollout.max_new_tokens)
                said.append(Message("assistant", ""))

    def ask(self, questions: Sequence[Question], rollouts: Rollouts, asked: Callable[[int], None]) -> list[Conversation]:
        """Answer all turns of all questions, within the file's context; ``asked`` is told how many answers there are whenever it
        grows. Answers lost with a node are made again.

        Raises:
            DataError: a later turn does not fit after the answers before it.
            ActorFailedError: an answer was given up, or lost again and again.
        """
        conversations = [Conversation(question) for question in questions]
        # In portions, after each of which progress is told: what the engines answer at the same time.
        at_once = self._rollout.actors * self._rollout.engine.max_num_seqs
        done = 0
        for turn in range(max(len(question.turns) for question in questions)):
            open_ones = [one for one in conversations if turn < len(one.question.turns)]
            for first in range(0, len(open_ones), at_once):
                self._ask_turn(turn, first, open_ones[first : first + at_once], rollouts)
                done += len(open_ones[first : first + at_once])
                asked(done)
        return conversations

    def _ask_turn(self, turn: int, first: int, conversations: Sequence[Conversation], rollouts: Rollouts) -> None:
        requests = []
        for i, one in enumerate(conversations, first):
            one.said += one.question.turns[turn]
            seed = sampling_seed(self._seed, "ask", turn, i)
            requests.append(
                RolloutRequest(RowId(0, i, one.question.key, turn, "judge"), self._encode(one.question, one.said), seed)
            )
        retry_lost_rows(lambda: self._get_missing(requests, rollouts))
        for request, one in zip(requests, conversations, strict=True):
            answer = self._file.find(request)
            if answer is None:
                raise ActorFailedError(f"question '{one.question.key}', turn {turn + 1}: not answered in time")
            one.said.append(Message("assistant", answer.text))
            one.answers.append(answer.text)
            one.tokens.append(answer.tokens)
            one.cut.append(answer.cut)

    def _get_missing(self, requests: Sequence[RolloutRequest], rollouts: Rollouts) -> None:
        """Ask for the answers that the file does not hold, and keep them there.

        Raises:
            RowsLostError: some were lost; the others are kept.
        """
        missing = {request.row: request for request in requests if self._file.find(request) is None}
        lost: RowsLostError | None = None
        # To the end, whatever is lost: engines refuse a row that is asked for while it is still under way.
        for handle in rollouts.generate(list(missing.values())) if missing else ():
            try:
                answer = self._fetch(handle)
            except RowsLostError as error:
                lost = error
            else:
                self._keep(missing[answer.row], answer)
        if lost is not None:
            raise lost

    def _keep(self, request: RolloutRequest, answer: Trajectory) -> None:
        text = self._tokenizer.decode(answer.response_ids, skip_special_tokens=True).strip()
        cut = answer.end_state == "length"
        self._file.add(SavedAnswer(key=self._file.key(request), text=text, tokens=int(answer.response_ids.size), cut=cut))

    def _encode(self, question: Question, said: Sequence[Message], beside: int = 0) -> tuple[int, ...]:
        """Token ids of a conversation, which fit an engine together with ``beside`` more tokens and an answer."""
        try:
            ids = tuple(encode_prompt(self._tokenizer, tuple(said)))
        except BadRow as bad:
            raise DataError(f"question '{question.key}': {bad.detail}") from bad
        needed, limit = len(ids) + beside + self._rollout.max_new_tokens, self._rollout.engine.max_model_len
        if needed > limit:
            raise DataError(
                f"question '{question.key}' may take {needed} tokens (its turns, and answers of "
                f"{self._rollout.max_new_tokens}), more than policy.rollout.engine.max_model_len ({limit}): raise it, or lower "
                "policy.rollout.max_new_tokens"
            )
        return ids
