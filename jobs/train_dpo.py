"""Direct preference optimisation as a Ray job: preference pairs in, an aligned policy out."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from actors.learner.policy_gang import DpoLearner
from actors.rollout.pool import RolloutPool
from actors.scorer.pool import ScorerPool
from dvpo_ray.config import DpoRecipe
from dvpo_ray.config.algorithms import DvpoGae
from dvpo_ray.config.dpo import DpoTraining
from dvpo_ray.data import EncodedPair
from dvpo_ray.errors import ConfigError
from dvpo_ray.evaluation.held_out import Evaluation, Evaluator
from dvpo_ray.learning.pairs import batches, labelled
from dvpo_ray.loop.offline import PairTrainer
from dvpo_ray.maths.statistics import share_ci95, win_indicators
from dvpo_ray.models.lora import ADAPTERS
from dvpo_ray.runs.folder import EVALUATIONS, recorded_steps, step_seconds
from dvpo_ray.runs.run import LOGS, Listener, Run
from jobs.cli import main as cli
from jobs.held_out import evaluate, figures, kept_by, make_evaluator
from jobs.inputs import read_pairs
from jobs.preflight import check_engines
from jobs.probe import Probe
from jobs.session import Session, leaving, running_actors, session
from jobs.train_policy import ENGINES, POLICY

PAIRS_PER_CALL = 256


@dataclass
class HeldOut:
    """Held-out evaluations by trained steps, and who makes them; without an evaluator there are none."""

    evaluator: Evaluator | None
    every: int
    done: dict[int, Evaluation]
    rollouts: RolloutPool | None = None
    scorers: ScorerPool | None = None
    probe: Probe | None = None

    @classmethod
    def of(cls, s: Session[DpoRecipe], train: Sequence[EncodedPair]) -> HeldOut:
        """Those that the recipe asks for, with what was evaluated before the checkpoint that the run goes on from.

        Raises:
            DataError: a held-out prompt is trained on, or the model cannot read it.
        """
        dpo = s.recipe.dpo
        # There is no value model: values, and advantages of whatever kind, are 0.
        evaluator = make_evaluator(dpo.evaluation, dpo.data, DvpoGae(), s.base, s.run.folder, train, s.recipe.run.seed)
        done = evaluator.known(s.run.folder / EVALUATIONS, s.checkpoint.step) if s.checkpoint and evaluator else {}
        return cls(evaluator, dpo.evaluation.every if dpo.evaluation else 0, done)

    def look(self, step: int, learner: DpoLearner, run: Run) -> float | None:
        """Evaluate the policy of ``step`` trained steps, and return its score, unless nobody asks for it."""
        if self.evaluator is None or self.rollouts is None or self.scorers is None:
            return None
        if step:
            self.rollouts.sync(learner.weights(step))
            if self.probe is not None:
                self.probe.after_update(step)
        self.done[step] = evaluate(self.evaluator, step, self.rollouts, self.scorers, run, self.every)
        return self.done[step].score

    def look_once(self, step: int, learner: DpoLearner, run: Run) -> None:
        """The same, unless it is done."""
        if step not in self.done:
            self.look(step, learner, run)

    def due(self, step: int) -> bool:
        """Whether so many trained steps are evaluated while training goes on."""
        return bool(self.every) and step % self.every == 0


def train_dpo(recipe: DpoRecipe, listener: Listener = lambda event: None) -> dict[str, Any]:
    """Evaluate, train, evaluate again, save; returns what ``result.json`` holds.

    Raises:
        RunStoppedError: the run was asked to stop, and did after a checkpoint.
    """
    generates = recipe.dpo.evaluation is not None
    with session(recipe, recipe.dpo.checkpoint, listener, check_engines=check_engines if generates else None) as s:
        recipe, base, run = s.recipe, s.base, s.run
        dpo = recipe.dpo
        train, validation, counts = read_pairs(dpo.data, base.tokenizer, run.folder, run.phase)
        base.limits.check_rows(train, dpo.data.source)
        base.limits.check_rows(validation, dpo.data.held_out_source)
        steps = batches(len(train), dpo.pairs_per_step, dpo.epochs, recipe.run.seed)
        s.check_data(train, len(steps))
        _check_best(dpo, len(steps))
        held_out = HeldOut.of(s, train)
        kept_best_by = kept_by(dpo.checkpoint, dpo.evaluation, run)
        run.phase(f"{len(train)} pairs to train on, {len(validation)} held out; starting {dpo.learner.ranks} learner rank(s)")
        with s.training(), _started(s, held_out) as learner:
            gained = _train(s, learner, steps, train, validation, held_out)
            saved = (run.folder / POLICY).resolve()
            with s.saving(POLICY):
                learner.save(str(saved), base.origin | {"steps": len(steps), "data_sha256": s.data_sha256})
        found = {
            "steps": len(steps),
            "algorithm": "dpo",
            "pairs": len(train),
            "rows": {"read": counts.read, "kept": counts.kept, "rejected": counts.rejected},
            "held_out_pairs": len(validation),
            **_accuracy(gained, validation),
            **figures(held_out.done),
            "policy": str(saved),
            **step_seconds(recorded_steps(run.folder)),
            **kept_best_by,
        }
        if held_out.probe is not None:
            found["probe_gaps"] = held_out.probe.gaps
        if dpo.lora is not None:
            found["adapters"] = str(saved.with_name(ADAPTERS))
        return s.result(found)


def _check_best(dpo: DpoTraining, total: int) -> None:
    """Checkpoints can only be compared when some are made of steps that are evaluated.

    Raises:
        ConfigError: none will be.
    """
    every = dpo.evaluation.every if dpo.evaluation else 0
    if dpo.checkpoint.keep_best and math.lcm(dpo.checkpoint.every, every) >= total:
        raise ConfigError(
            f"dpo.checkpoint.keep_best without effect: of {total} steps none before the last is both checkpointed (every "
            f"{dpo.checkpoint.every}) and evaluated (every {every}); make one a divisor of the other"
        )


def _train(
    s: Session[DpoRecipe],
    learner: DpoLearner,
    steps: Sequence[np.ndarray],
    train: Sequence[EncodedPair],
    validation: Sequence[EncodedPair],
    held_out: HeldOut,
) -> np.ndarray:
    """Train, with evaluations before, meanwhile and after; returns what the log-probs of held-out pairs gained [P, 2]."""
    run = s.run
    run.phase("reading all answers with the reference, which is the policy before its first step")
    reference, validation_reference = _scores(learner, train), _scores(learner, validation)
    held_out.look_once(0, learner, run)

    def learn(step: int, rows: np.ndarray) -> dict[str, float]:
        pairs = [labelled(train[i]) for i in rows]
        return learner.call("step", pairs, reference[rows], doing=f"DPO step {step}")[0]

    PairTrainer(
        row_ids=[pair.row_id for pair in train],
        batches=steps,
        data_sha256=s.data_sha256,
        learn=learn,
        learner=learner,
        run=run,
        checkpointer=(checkpointer := s.checkpointer(learner)),
        draining=partial(leaving, learner),
        evaluates=held_out.due,
        evaluate=lambda done: held_out.look(done, learner, run),
    ).train(s.checkpoint)
    with checkpointer.measuring():
        held_out.look_once(len(steps), learner, run)
        run.phase("measuring pair accuracy on held-out prompts")
        gained = _scores(learner, validation) - validation_reference
    return gained


@contextmanager
def _started(s: Session[DpoRecipe], held_out: HeldOut) -> Iterator[DpoLearner]:
    """Start Ray, the learner, and engines and scorers when there is an evaluation; take everything down again."""
    dpo, cluster, model, seed = s.recipe.dpo, s.recipe.cluster, s.recipe.model, s.recipe.run.seed
    folder, run = str(s.base.place), s.run
    with running_actors(cluster, run.folder / LOGS, run.stop) as started:
        if held_out.evaluator is not None:
            started.append(rollouts := RolloutPool(folder, model, dpo.rollout, cluster, seed, run.folder / ENGINES))
            rollouts.settle_on_gpus()
        started.append(learner := DpoLearner(folder, model, dpo, cluster, seed, run.total_steps))
        learner.begin_start()
        if held_out.evaluator is not None:
            started.append(scorers := ScorerPool(folder, None, model, dpo.scorer, dpo.rollout.temperature, cluster))
            held_out.rollouts, held_out.scorers = rollouts, scorers
            scorers.wait_ready()
            rollouts.wait_ready()
        learner.wait_ready()
        run.doubt([learner] if held_out.evaluator is None else [rollouts, learner, scorers])
        if held_out.evaluator is not None:
            learner.connect(rollouts)
            held_out.probe = Probe(held_out.evaluator.prompts, rollouts, learner, dpo.rollout, cluster, run.phase)
            held_out.probe.at_start()
        yield learner


def _scores(learner: DpoLearner, pairs: Sequence[EncodedPair]) -> np.ndarray:
    """Log-probs of chosen and rejected answers under the current policy, float64 [P, 2]."""
    parts = []
    # One call for all would pass any deadline when there are many.
    for first in range(0, len(pairs), PAIRS_PER_CALL):
        answers = [answer for pair in pairs[first : first + PAIRS_PER_CALL] for answer in labelled(pair)]
        found: dict[int, float] = {}
        for share in learner.call("scores", answers, doing="reading answers"):
            found |= share
        parts.append(np.array([found[i] for i in range(len(answers))]).reshape(-1, 2))
    return np.concatenate(parts)


def _accuracy(gained: np.ndarray, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    """Share of held-out pairs whose chosen answer gained more than the rejected one on the reference [P, 2]; ties count half."""
    right = win_indicators(gained[:, 0].tolist(), gained[:, 1].tolist())
    return {
        "dpo_pair_accuracy": float(np.mean(right)),
        "dpo_pair_accuracy_ci95": share_ci95(right, [pair.kin for pair in pairs]),
    }


# A Ray job: `python -m jobs.train_dpo RECIPE [--set KEY=VALUE]`.
if __name__ == "__main__":
    cli.main(["dpo", "train", *sys.argv[1:]])
