"""Held-out evaluation of a policy: gold, KL, length and values of answers to prompts it never trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from dvpo_ray.algorithms import Signals, make_algorithm
from dvpo_ray.config.algorithms import AlgorithmSettings
from dvpo_ray.config.environments import EnvironmentSettings
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.environments import check_prompts
from dvpo_ray.errors import ActorFailedError, DataError
from dvpo_ray.io.json_files import read_records
from dvpo_ray.learning.batching import to_padded
from dvpo_ray.maths.seeds import sampling_seed
from dvpo_ray.maths.statistics import bootstrap_ci95, mean_ci95, share_ci95, win_indicators, win_rate
from dvpo_ray.rewards.base import whole_scores
from dvpo_ray.rewards.functions import called
from dvpo_ray.runs.folder import keep_records
from dvpo_ray.stages import Rollouts, Scorers, retry_lost_rows
from dvpo_ray.types import RolloutRequest, RowId, ScoredBatch

Gold = Callable[[Sequence[str], Sequence[str]], list[float]]


@dataclass(frozen=True)
class EvaluatedAnswer:
    """One held-out answer. ``values`` is q_0..q_T, ``advantages`` per token before whitening, ``kl`` summed in nats over the
    tokens that the policy wrote, of which there are ``written``; ``group`` is its prompt's, where prompts say so."""

    row_id: str
    prompt_id: str
    prompt: str
    answer: str
    gold: float | None
    kl: float
    end_state: str
    tokens: list[str]
    values: list[float]
    advantages: list[float]
    group: str | None = None
    written: int | None = None


ROW = TypeAdapter(EvaluatedAnswer)


@dataclass(frozen=True)
class Evaluation:
    """All answers of one evaluation, in a fixed order so that two evaluations can be compared row by row."""

    step: int
    answers: list[EvaluatedAnswer]

    def summary(self) -> dict[str, float]:
        """Means over answers, with 95% intervals of gold and of the share that was cut, over groups of prompts."""
        tokens = sum(len(a.tokens) for a in self.answers)
        written = sum(len(a.tokens) if a.written is None else a.written for a in self.answers)
        cut = [float(a.end_state == "length") for a in self.answers]
        least, most = share_ci95(cut, self.kin)
        result = {
            "kl_per_token": sum(a.kl for a in self.answers) / written,
            "kl_per_answer": float(np.mean([a.kl for a in self.answers])),
            "tokens": tokens / len(self.answers),
            "cut_share": float(np.mean(cut)),
            "cut_share_ci95_low": least,
            "cut_share_ci95_high": most,
            "value_mean": float(np.mean([np.mean(a.values[1:]) for a in self.answers])),
            "value_last": float(np.mean([a.values[-1] for a in self.answers])),
        }
        if self.golds is not None:
            low, high = mean_ci95(self.golds, self.kin)
            result |= {"gold": float(np.mean(self.golds)), "gold_ci95_low": low, "gold_ci95_high": high}
        return result

    @property
    def score(self) -> float:
        """The one number by which steps are compared: mean gold, or without a gold function the mean last value."""
        scores = self.golds if self.golds is not None else [a.values[-1] for a in self.answers]
        return float(np.mean(scores))

    @property
    def kin(self) -> list[str]:
        """Of each answer, what it shares with those it is not independent of: its prompt's group, or without one its prompt."""
        return [a.prompt_id if a.group is None else a.group for a in self.answers]

    @property
    def golds(self) -> list[float] | None:
        """Gold scores, or None when there is no gold function."""
        scores = [a.gold for a in self.answers if a.gold is not None]
        return scores if len(scores) == len(self.answers) else None

    def rows(self) -> list[dict[str, Any]]:
        """Plain rows for a JSON lines file."""
        return [{"step": self.step} | asdict(answer) for answer in self.answers]


def read_evaluations(path: Path, last_step: int) -> dict[int, Evaluation]:
    """Evaluations after at most ``last_step`` steps, by step, from the rows that ``Evaluation.rows`` gave.

    Raises:
        DataError: naming the row, and the field that is not as it was written.
    """
    answers: dict[int, list[EvaluatedAnswer]] = {}
    for number, row in enumerate(read_records(path), 1):
        try:
            step = TypeAdapter(int).validate_python(row.pop("step", None), strict=True)
            if step <= last_step:
                # As JSON: strict validation of Python objects takes no dictionary for a dataclass.
                answers.setdefault(step, []).append(ROW.validate_json(json.dumps(row), strict=True))
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"])) or "step"
            raise DataError(f"{path}, row {number}: {field}: {error.errors()[0]['msg']}; start the run anew") from error
    return {step: Evaluation(step, rows) for step, rows in answers.items()}


class Evaluator:
    """Answers the same prompts with the same seeds whenever it is asked."""

    def __init__(
        self,
        prompts: Sequence[EncodedPrompt],
        answers_per_prompt: int,
        gold: str | None,
        advantage: AlgorithmSettings,
        tokenizer: Any,
        seed: int,
        environment: EnvironmentSettings | None = None,
    ) -> None:
        if environment is not None:
            check_prompts(environment, prompts, tokenizer, "evaluation.source")
        self._prompts = list(prompts)
        self._gold = None if gold is None else called("evaluation.gold", gold)
        self._advantage = advantage
        self._tokenizer = tokenizer
        self._requests = [
            RolloutRequest(
                RowId(0, i, p.row_id, n, "eval"),
                tuple(p.prompt_ids),
                sampling_seed(seed, "evaluate", i, n),
                group_id=i,
                environment=environment,
                columns=p.columns,
            )
            for i, p in enumerate(prompts)
            for n in range(answers_per_prompt)
        ]

    @property
    def prompts(self) -> list[EncodedPrompt]:
        """The prompts it answers."""
        return list(self._prompts)

    def known(self, path: Path, last_step: int) -> dict[int, Evaluation]:
        """The evaluations of this evaluator in a run's records, after at most ``last_step`` steps, by step.

        One that was cut short, because its run was killed while it was written, is taken back: it is made again.

        Raises:
            DataError: the prompts are not those of now; answers to different ones cannot be compared.
        """
        found = read_evaluations(path, last_step)
        asked = [(str(request.row), self._prompt_of(request).prompt_text) for request in self._requests]
        for number, (step, evaluation) in enumerate(found.items(), 1):
            answered = [(answer.row_id, answer.prompt) for answer in evaluation.answers]
            # The last one only may be without its end.
            if answered != asked[: len(answered)] or (len(answered) < len(asked) and number < len(found)):
                raise DataError(
                    f"{path}: the held-out prompts answered after {step} steps are not those of evaluation.source now: bring "
                    "those back, or start the run anew"
                )
        whole = {step: evaluation for step, evaluation in found.items() if len(evaluation.answers) == len(asked)}
        if len(whole) < len(found):
            keep_records(path, lambda row: row["step"] in whole)
        return whole

    def run(self, step: int, rollouts: Rollouts, scorers: Scorers) -> Evaluation:
        """Generate, score and judge all answers with the weights the engines serve now; those lost with a node are made again."""
        scored = ScoredBatch.concat(retry_lost_rows(lambda: scorers.fetch(scorers.score(rollouts.generate(self._requests)))))
        lost = rollouts.given_up(self._requests)
        if lost:
            raise ActorFailedError(f"{len(lost)} held-out prompts were not answered in time, for example {lost[0]}")
        order = {row: i for i, row in enumerate(scored.rows)}
        scored = scored.take([order[request.row] for request in self._requests])
        prompts = [self._prompt_of(request) for request in self._requests]
        response_ids, values = scored.response_ids.rows(), scored.values.rows()
        log_probs, ref_log_probs = scored.actions.log_probs.rows(), scored.actions.ref_log_probs.rows()
        texts = [self._tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in response_ids]
        golds = self._golds([p.prompt_text for p in prompts], texts)
        token_advantages = self._advantages(scored)
        answers = [
            EvaluatedAnswer(
                row_id=str(scored.rows[i]),
                prompt_id=prompts[i].row_id,
                prompt=prompts[i].prompt_text,
                answer=texts[i],
                gold=golds[i],
                kl=float((log_probs[i] - ref_log_probs[i]).sum()),
                end_state=scored.end_states[i],
                tokens=[self._tokenizer.decode([token]) for token in response_ids[i]],
                values=[round(float(q), 4) for q in values[i]],
                advantages=[round(float(a), 4) for a in token_advantages[i]],
                group=prompts[i].group,
                written=int(scored.actions.lengths[i]),
            )
            for i in range(len(scored))
        ]
        return Evaluation(step, answers)

    def _prompt_of(self, request: RolloutRequest) -> EncodedPrompt:
        return self._prompts[request.row.slot]

    def _golds(self, prompts: Sequence[str], texts: Sequence[str]) -> Sequence[float | None]:
        """Gold of each answer, None without a gold function.

        Raises:
            RewardError: it failed, or gave something other than a finite number for each.
        """
        if self._gold is None:
            return [None] * len(texts)
        return whole_scores("evaluation.gold", self._gold(prompts, texts), len(texts))

    def _advantages(self, scored: ScoredBatch) -> list[np.ndarray]:
        """Advantages without KL and without whitening, as the value model alone gives them; 0 where the policy did not write."""
        actions = scored.actions
        q_bt, _ = to_padded(actions.values.flat, actions.lengths + 1)
        _, mask_bt = to_padded(actions.log_probs.flat, actions.lengths)
        nothing_bt, nothing_b = torch.zeros_like(mask_bt), torch.zeros(len(scored))
        signals = Signals(q_bt, nothing_bt, nothing_bt, nothing_b, mask_bt, torch.from_numpy(scored.group_ids))
        a_bt = make_algorithm(self._advantage).advantages(signals)
        found = []
        for row, written in zip(torch.unbind(a_bt), scored.action_mask.rows(), strict=True):
            numbers = np.zeros(written.size)
            numbers[written.astype(bool)] = row[: int(written.sum())].numpy()
            found.append(numbers)
        return found


def compare(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Gold before and after on the same prompts: its gain and the win rate, with 95% intervals."""
    if before.golds is None or after.golds is None:
        return {}
    gain = [b - a for a, b in zip(before.golds, after.golds, strict=True)]
    low, high = bootstrap_ci95(gain, after.kin)
    return {
        "gold_gain": float(np.mean(gain)),
        "gold_gain_ci95_low": low,
        "gold_gain_ci95_high": high,
        "win_rate": win_rate(after.golds, before.golds),
        "win_rate_ci95": list(share_ci95(win_indicators(after.golds, before.golds), after.kin)),
    }
