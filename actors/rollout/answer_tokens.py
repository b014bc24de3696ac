"""The tokens of an answer as they come: given, sampled, and said by an environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dvpo_ray.errors import ActorFailedError
from dvpo_ray.types import RolloutRequest, RowId, Trajectory, Written

# Of a token that nobody sampled: it gets that of a neighbour.
UNKNOWN = -1


class AnswerTokens:
    """The answer to a request, which begins with the tokens that were forced and those that were written before."""

    def __init__(self, request: RolloutRequest, prompt_ids: Sequence[int] | None = None, opening_ids: Sequence[int] = ()) -> None:
        """``opening_ids`` come before all, after ``prompt_ids``, which then are in place of those of the request."""
        self._request = request
        self.prompt_ids = request.prompt_ids if prompt_ids is None else prompt_ids
        self.ids: list[int] = []
        self._log_probs: list[float] = []
        self._versions: list[int] = []
        self._sampled: list[bool] = []
        self._turns: list[int] = []
        self._earned: dict[int, float] = {}
        self.said(opening_ids)
        self.said(request.forced_ids)
        if request.resumed:
            self.wrote(request.resumed)

    @property
    def all_ids(self) -> list[int]:
        """Prompt and answer so far."""
        return [*self.prompt_ids, *self.ids]

    def said(self, ids: Sequence[int]) -> None:
        """Tokens that the policy did not write."""
        self.ids += ids
        self._log_probs += [0.0] * len(ids)
        self._versions += [UNKNOWN] * len(ids)
        self._sampled += [False] * len(ids)

    def wrote(self, written: Written) -> None:
        """A turn of the policy; where the last token was its own, too, more of the same turn."""
        if not (self._sampled and self._sampled[-1]):
            self._turns.append(len(self.ids))
        self.ids += written.ids
        self._log_probs += written.log_probs
        self._versions += written.versions
        self._sampled += [True] * len(written.ids)

    def earned(self, reward: float) -> None:
        """What the turn that was just written earned, at its last token."""
        self._earned[len(self.ids) - 1] = reward

    def earned_nothing(self) -> None:
        """No turn earned anything."""
        self._earned.clear()

    def trajectory(self, end_state: str, rewarded: bool = False) -> Trajectory:
        """The answer; with rewards of its tokens where an environment gave them."""
        request = self._request
        rewards = None
        if rewarded:
            rewards = np.zeros(len(self.ids), dtype=np.float32)
            rewards[list(self._earned)] = list(self._earned.values())
        return Trajectory(
            row=request.row,
            prompt_ids=np.asarray(self.prompt_ids, dtype=np.int32),
            response_ids=np.asarray(self.ids, dtype=np.int32),
            log_probs=np.asarray(self._log_probs, dtype=np.float32),
            versions=_filled(self._versions),
            end_state=end_state,
            group_id=request.group_id,
            action_mask=np.asarray(self._sampled, dtype=bool),
            turns=tuple(self._turns),
            rewards=rewards,
            columns=request.columns,
        )


def _filled(versions: Sequence[int]) -> np.ndarray:
    """Tokens that nobody sampled are as old as the next that was, those at the end as the last [T]."""
    found = np.asarray(versions, dtype=np.int32)
    sampled = np.flatnonzero(found != UNKNOWN)
    following = np.searchsorted(sampled, np.arange(found.size)).clip(max=sampled.size - 1)
    return found[sampled[following]]


def sampled_by(output: Any, row: RowId) -> Written:
    """What an engine wrote in one output.

    Raises:
        ActorFailedError: it does not say which weights sampled it.
    """
    log_probs = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
    if output.weight_versions is None:
        raise ActorFailedError(f"row {row}: the engine did not say which weight version sampled it")
    versions = np.zeros(len(output.token_ids), dtype=np.int32)
    for span in output.weight_versions:
        versions[span.start : span.end] = int(span.version)
    return Written(tuple(output.token_ids), tuple(log_probs), tuple(versions.tolist()))
