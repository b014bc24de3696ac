"""Episodes: the policy and an environment take turns over one engine, token in and token out.

Nothing that the policy wrote is ever encoded again: its tokens stay as they were sampled, and what the environment says is
encoded by itself, as the chat template writes it between two turns (``dvpo_ray.data.turn_joins``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from actors.rollout.answer_tokens import AnswerTokens
from dvpo_ray.config.environments import CRASHED
from dvpo_ray.data import TurnJoiner
from dvpo_ray.data.messages import Messages
from dvpo_ray.data.reasons import BadRow
from dvpo_ray.environments import EnvironmentRow
from dvpo_ray.environments.guarded import GuardedEnvironment, Tell
from dvpo_ray.types import RolloutRequest, Trajectory, Written

STOP, LENGTH, TURNS = "stop", "length", "turns"
# Takes the number of a turn, all tokens before it, and how many it may have at most; gives the turn's and why it ended.
Write = Callable[[int, list[int], int], Awaitable[tuple[Written, str]]]


class Episode:
    """One row: turns of the policy, and what an environment says between them.

    ``most_tokens`` bounds all tokens after the prompt together, those of the environment too. What it says only stays when the
    policy has room for at least one more token.
    """

    def __init__(self, request: RolloutRequest, most_tokens: int, joiner: TurnJoiner, write: Write, tell: Tell) -> None:
        """Raises ConfigError when the environment cannot be imported; ``tell`` hears of its failures."""
        self._request = request
        self._most_tokens = most_tokens
        self._joiner = joiner
        self._write = write
        prompt = joiner.tokenizer.decode(request.prompt_ids, skip_special_tokens=True)
        row = EnvironmentRow(request.row, prompt, request.columns, request.seed)
        self._environment = GuardedEnvironment(request.environment, row, tell)
        self._tokens = AnswerTokens(request)
        # Where the policy's message begins among the answer's tokens: with those that it was forced to begin with.
        self._begins = 0

    async def run(self) -> Trajectory:
        """The whole episode; its environment is closed however it ends."""
        try:
            end_state = await self._played()
        finally:
            await self._environment.close()
        if end_state == CRASHED:
            self._tokens.earned_nothing()
        return self._tokens.trajectory(end_state, rewarded=True)

    async def _played(self) -> str:
        """Take turns until something ends the episode; returns what.

        One that could not begin has a turn of the policy all the same: a row has at least one token.
        """
        ended = self._begun(await self._environment.reset())
        for turn in range(self._request.environment.max_turns):
            tokens = self._tokens
            written, reason = await self._write(turn, tokens.all_ids, self._most_tokens - len(tokens.ids))
            tokens.wrote(written)
            if ended or reason != STOP:
                return ended or reason
            reply = await self._environment.step(self._message())
            if reply is None:
                return self._environment.ended
            tokens.earned(reply.reward)
            if reply.done:
                return reply.end_state or STOP
            if turn + 1 < self._request.environment.max_turns and (ended := self._said(reply.messages)):
                return ended
        return TURNS

    def _begun(self, messages: Messages) -> str:
        """Put messages between the prompt and the answer; returns what ends the episode before it has begun."""
        if self._environment.ended or not messages:
            return self._environment.ended
        try:
            prompt_ids, opening_ids = self._joiner.before(messages, self._request.prompt_ids)
        except BadRow as error:
            self._environment.fail(error, "says before the first turn what cannot be written")
            return self._environment.ended
        if len(opening_ids) + len(self._tokens.ids) >= self._most_tokens:
            return LENGTH
        self._tokens = AnswerTokens(self._request, prompt_ids, opening_ids)
        self._begins = len(opening_ids)
        return ""

    def _said(self, messages: Messages) -> str:
        """Put what the environment says after the policy's turn; returns what ends the episode instead."""
        try:
            ids = self._joiner.between(messages, self._tokens.ids[-1])
        except BadRow as error:
            self._environment.fail(error, "says what cannot be written")
            return self._environment.ended
        if len(self._tokens.ids) + len(ids) >= self._most_tokens:
            return LENGTH
        self._tokens.said(ids)
        self._begins = len(self._tokens.ids)
        return ""

    def _message(self) -> str:
        """What the policy wrote in its turn, without the token that ended it."""
        ids = self._tokens.ids[self._begins :]
        text: str = self._joiner.tokenizer.decode(ids[:-1] if ids[-1] in self._joiner.stop_ids else ids)
        return text
