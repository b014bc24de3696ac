"""Whether the engines serve what the learner trains, seen before rows are spent on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from actors.cluster.calls import get
from actors.rollout.pool import RolloutPool
from dvpo_ray.config.sections import ClusterSection, GenerationSection, settled
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.errors import LearnerLostError, ServedModelError
from dvpo_ray.stages import retry_lost_rows
from dvpo_ray.types import PlainSampling, RolloutRequest, RowId, Trajectory

ROWS, TOKENS = 8, 16
START, FIRST_UPDATE = "at the start", "after the first weight update"


class ReadsLogProbs(Protocol):
    """A learner that says how likely it finds answers."""

    def log_probs(self, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], temperature: float) -> list[np.ndarray]:
        """Log-probs of the tokens of responses, each [T]."""
        ...


class Probe:
    """Lets the engines go on with a few short prompts, and the learner read the same tokens.

    Engines that hold other weights than the learner, or compute the model otherwise, sample from another policy than the one that
    is trained. The steps' own gap of log-probs says so too, but after a step's rows, and a wrong layer of little weight is small
    beside the rounding of a long run.
    """

    def __init__(
        self,
        prompts: Sequence[EncodedPrompt],
        rollouts: RolloutPool,
        learner: ReadsLogProbs,
        section: GenerationSection,
        cluster: ClusterSection,
        say: Callable[[str], None],
    ) -> None:
        """``section`` says how the engines generate; ``prompts`` are some of the run's, of which the shortest are taken."""
        self._sampling = PlainSampling(min(TOKENS, section.max_new_tokens), section.temperature)
        self._bound = settled(section.max_probe_gap)
        self._prompts = sorted(prompts, key=lambda prompt: len(prompt.prompt_ids))[:ROWS]
        self._rollouts, self._learner, self._cluster, self._say = rollouts, learner, cluster, say
        # What was found, in nats a token, by when it was looked.
        self.gaps: dict[str, float] = {}

    def at_start(self) -> None:
        """Compare the model that engines and learner have started on.

        Raises:
            ServedModelError: the engines' log-probs are not the learner's.
        """
        try:
            self._look(START)
        except LearnerLostError as error:
            # The training starts it again, and the first update is looked at.
            self._say(str(error))

    def after_update(self, version: int) -> None:
        """Compare what the engines were just sent, the first time; later calls do nothing.

        Raises:
            ServedModelError: the engines' log-probs are not the learner's.
        """
        if FIRST_UPDATE not in self.gaps:
            self._look(FIRST_UPDATE)

    def _look(self, when: str) -> None:
        engines = self._rollouts.count
        answers = retry_lost_rows(lambda: self._answers(engines))
        if not answers:
            self._say(f"{when}, engines and learner were not compared: not all answers came")
            return
        prompts, responses = [answer.prompt_ids for answer in answers], [answer.response_ids for answer in answers]
        expected = self._learner.log_probs(prompts, responses, self._sampling.temperature)
        rows = [np.abs(answer.log_probs - other) for answer, other in zip(answers, expected, strict=True)]
        # Rows are dealt to engines in turn: the worst engine counts.
        by_engine = [rows[engine::engines] for engine in range(engines)]
        gap = max(float(np.concatenate(some).mean()) for some in by_engine if some)
        self.gaps[when] = gap
        if not gap <= self._bound:
            raise ServedModelError(
                f"{when}, an engine's log-probs of the same {sum(map(len, rows))} tokens are {gap:.3g} nats from the learner's "
                f"on average, more than rollout.max_probe_gap ({self._bound:g}): the engines do not serve the policy that is "
                "trained. Look for a model folder that is not the same on all nodes, a model type that vLLM computes otherwise "
                "than transformers, or an engine of other numbers than its number type says (quantised: raise "
                "rollout.max_probe_gap)"
            )
        self._say(f"{when}, engines and learner are {gap:.2g} nats a token apart (at most {self._bound:g})")

    def _answers(self, engines: int) -> list[Trajectory]:
        """Every engine's answers to the prompts, in the order that they were asked for; none when some are missing: the run
        is being stopped, or rows missed their deadlines."""
        prompts = itertools.islice(itertools.cycle(self._prompts), ROWS * engines)
        requests = [
            RolloutRequest(
                RowId(0, number, prompt.row_id, 0, "probe"), tuple(prompt.prompt_ids), seed=number, plain=self._sampling
            )
            for number, prompt in enumerate(prompts)
        ]
        handles = list(self._rollouts.generate(requests))
        found: list[Trajectory] = get(handles, self._cluster.call_timeout_s, "a rollout actor", "answering the probe")
        return sorted(found, key=lambda answer: answer.row) if len(found) == len(requests) else []
