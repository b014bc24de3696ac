"""Policy training as a Ray job: prompts and a frozen value model in, an aligned policy out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.rollout.pool import RolloutPool
from actors.scorer.pool import ScorerPool
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.rewards import VALUE
from dvpo_ray.config.sections import AnswersSection
from dvpo_ray.data import EncodedDemonstration, EncodedPrompt
from dvpo_ray.evaluation.held_out import Evaluation, Evaluator
from dvpo_ray.learning.ptx import Demonstrations
from dvpo_ray.learning.trainer import Trainer, TrainerContext, make_trainer
from dvpo_ray.loop.driver import Driver
from dvpo_ray.loop.trajectory_log import TrajectoryLog
from dvpo_ray.models.lora import ADAPTERS
from dvpo_ray.rollouts.base import PlanContext, make_plan
from dvpo_ray.rollouts.observed import ObservedPlan
from dvpo_ray.rollouts.refresh import ScorerRefresh
from dvpo_ray.runs.folder import EVALUATIONS, recorded_steps, step_seconds
from dvpo_ray.runs.run import LOGS, Listener, Run
from jobs.cli import main as cli
from jobs.held_out import evaluate, figures, kept_by, make_evaluator
from jobs.inputs import read_answers, read_policy_rows
from jobs.models import BaseModel, verified_models
from jobs.preflight import check_engines
from jobs.probe import Probe
from jobs.session import Session, leaving, running_actors, session

POLICY = "policy"
ENGINES = "engines.json"


@dataclass
class ActorStages:
    """The stages as Ray actors."""

    rollouts: RolloutPool
    scorers: ScorerPool
    learner: Trainer

    def draining(self) -> set[str]:
        """Which of learner and driver are on nodes that are being drained."""
        return leaving(self.learner)

    def busy_seconds(self) -> dict[str, float]:
        """Mean time in which the processes of each stage had work, in seconds since they started."""
        return {name: getattr(self, name).busy_seconds() for name in ("rollouts", "scorers", "learner")}


# Starts the actors of a recipe on a model, for the length of the block.
StartStages = Callable[[PolicyRecipe, BaseModel, Sequence[EncodedDemonstration], Run], AbstractContextManager[ActorStages]]


def train_policy(
    recipe: PolicyRecipe, listener: Listener = lambda event: None, stages: StartStages | None = None
) -> dict[str, Any]:
    """Evaluate, train, evaluate again, save; returns what ``result.json`` holds. ``stages`` starts the actors, or gives some that
    are there already.

    Raises:
        RunStoppedError: the run was asked to stop, and did after a checkpoint.
    """
    verify = partial(verified_models, listener=listener)
    with session(recipe, recipe.policy.checkpoint, listener, verify, check_engines) as s:
        recipe, base, run = s.recipe, s.base, s.run
        policy = recipe.policy
        prompts, demonstrations = read_policy_rows(policy, base, run.folder, run.phase)
        trained_on = [*prompts, *demonstrations]
        planned_with: list[EncodedDemonstration] = []

        def read(section: AnswersSection) -> list[EncodedDemonstration]:
            rows = read_answers(section, base, run.folder, run.phase)
            planned_with.extend(rows)
            return rows

        plan = ObservedPlan(make_plan(PlanContext(prompts, policy, recipe.run.seed, read)), policy.off_policy.max_staleness)
        s.check_data([*trained_on, *planned_with], policy.steps)
        held_out = _HeldOut.of(s, trained_on)
        kept_best_by = kept_by(policy.checkpoint, policy.evaluation, run)
        refresh: ScorerRefresh = policy.refresh.build()
        if s.checkpoint is not None:
            run.take_clocks(s.checkpoint)
        with s.training(), (stages or started_stages)(recipe, base, demonstrations, run) as actors:
            hashes = actors.scorers.value_hash()
            probe = Probe(prompts, actors.rollouts, actors.learner, policy.rollout, recipe.cluster, run.phase)
            probe.at_start()
            evaluate_after = partial(held_out.evaluate, actors)
            if 0 not in held_out.done:
                evaluate_after(0)
            run.phase(f"training for {policy.steps} steps of {policy.rollout.rows_per_step} answers")
            checkpointer = s.checkpointer(actors.learner)
            began, busy_before = time.time(), actors.busy_seconds()
            log = TrajectoryLog(run, actors.scorers, base.tokenizer, recipe.run, policy.steps)
            driver = Driver(
                policy, actors, plan, run, checkpointer, evaluate_after, s.data_sha256, probe.after_update, refresh, log
            )
            with closing(log):
                driver.train(s.checkpoint)
            with checkpointer.measuring():
                seconds, busy_after = time.time() - began, actors.busy_seconds()
                cache_hits = actors.scorers.cache_hits()
                if policy.steps not in held_out.done:
                    evaluate_after(policy.steps)
            saved = (run.folder / POLICY).resolve()
            with s.saving(POLICY):
                facts = base.origin | {"steps": policy.steps, "gvm_parameters_sha256": hashes.get(VALUE, "")}
                actors.learner.save(str(saved), facts)
        measured = {
            "policy": str(saved),
            "seconds_training": seconds,
            # A process that was started again counts from its new start.
            "idle_share": {name: 1 - max(0.0, busy_after[name] - busy_before[name]) / seconds for name in busy_after},
            "effective_time_share": run.effective_time_share,
            "score_cache_hits": cache_hits,
            "probe_gaps": probe.gaps,
            **kept_best_by,
        }
        return s.result(_figures(s, hashes) | figures(held_out.done) | measured)


@dataclass
class _HeldOut:
    """A run's evaluations by trained steps, and who makes them; without an evaluator there are none."""

    evaluator: Evaluator | None
    every: int
    run: Run
    done: dict[int, Evaluation]

    @classmethod
    def of(cls, s: Session[PolicyRecipe], trained_on: Sequence[EncodedPrompt]) -> _HeldOut:
        """Those that the recipe asks for, with what was evaluated before the checkpoint that the run goes on from.

        Raises:
            DataError: a held-out prompt is trained on, or the model cannot read it.
        """
        policy, section = s.recipe.policy, s.recipe.policy.evaluation
        evaluator = make_evaluator(
            section, policy.data, policy.advantage, s.base, s.run.folder, trained_on, s.recipe.run.seed, policy.environment
        )
        done = evaluator.known(s.run.folder / EVALUATIONS, s.checkpoint.step) if s.checkpoint and evaluator else {}
        return cls(evaluator, section.every if section else 0, s.run, done)

    def evaluate(self, actors: ActorStages, step: int) -> float | None:
        """Evaluate the policy of ``step`` trained steps, which the engines serve; returns its score."""
        if self.evaluator is None:
            return None
        self.done[step] = evaluate(self.evaluator, step, actors.rollouts, actors.scorers, self.run, self.every)
        return self.done[step].score


@contextmanager
def started_stages(
    recipe: PolicyRecipe, base: BaseModel, demonstrations: Sequence[EncodedDemonstration], run: Run
) -> Iterator[ActorStages]:
    """Start Ray and all actors at once, wait for them, and take everything down again."""
    policy, cluster, seed = recipe.policy, recipe.cluster, recipe.run.seed
    folder, model = str(base.place), recipe.model
    with running_actors(cluster, run.folder / LOGS, run.stop) as started:
        run.phase(
            f"starting {policy.rollout.actors} rollout actor(s), {policy.scorer.actors} scorer(s), "
            f"{policy.learner.ranks} learner rank(s)"
        )
        started.append(rollouts := RolloutPool(folder, model, policy.rollout, cluster, seed, run.folder / ENGINES))
        rollouts.settle_on_gpus()
        # A value model that nothing reads is not loaded either.
        value, temperature = policy.value_model if policy.advantage.reads_values else None, policy.rollout.temperature
        started.append(scorers := ScorerPool(folder, value, model, policy.scorer, temperature, cluster, policy.rewards))
        shown = Demonstrations.of(demonstrations) if demonstrations else None
        started.append(learner := make_trainer(TrainerContext(folder, model, policy, cluster, seed, scorers.fetch, shown)))
        learner.wait_ready()
        scorers.wait_ready()
        rollouts.wait_ready()
        learner.connect(rollouts)
        run.doubt([rollouts, scorers, learner])
        yield ActorStages(rollouts, scorers, learner)


def _figures(s: Session[PolicyRecipe], hashes: Mapping[str, str]) -> dict[str, Any]:
    """What a result says of the steps, and of the models that scored, whose ``hashes`` are given."""
    policy, steps = s.recipe.policy, recorded_steps(s.run.folder)
    found: dict[str, Any] = {"steps": policy.steps, "algorithm": policy.advantage.type, **step_seconds(steps)}
    if steps:
        found["logprob_gap_mean"] = sum(line["gap/abs_log_prob"] for line in steps) / len(steps)
        found["logprob_gap_kl_k3"] = sum(line["gap/kl_k3"] for line in steps) / len(steps)
    if s.seal is not None:
        measured = s.seal.held_out_accuracy
        found |= {f"gvm_pair_accuracy_{how}": measured[how] for how in ("mean", "last") if how in measured}
        found["gvm_parameters_sha256"] = hashes[VALUE]
    rewards = {name: sha256 for name, sha256 in hashes.items() if name != VALUE}
    if rewards:
        found["reward_parameters_sha256"] = rewards
    if policy.lora is not None:
        found["adapters"] = str((s.run.folder / ADAPTERS).resolve())
    return found


# A Ray job: `python -m jobs.train_policy RECIPE [--set KEY=VALUE]`.
if __name__ == "__main__":
    cli.main(["policy", "train", *sys.argv[1:]])
