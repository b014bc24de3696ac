"""Policy training as a Ray job: prompts and a frozen value model in, an aligned policy out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.cluster.metrics import RayTracker
from actors.cluster.nodes import draining, this_node
from actors.cluster.session import keep_logs, ray_session
from actors.rollout.pool import RolloutPool
from actors.scorer.pool import ScorerPool
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.rewards import model_rewards
from dvpo_ray.data import EncodedDemonstration, fingerprint
from dvpo_ray.evaluation.held_out import Evaluation
from dvpo_ray.learning.ptx import Demonstrations
from dvpo_ray.learning.trainer import Trainer, TrainerContext, make_trainer
from dvpo_ray.loop.checkpointer import Checkpointer
from dvpo_ray.loop.driver import Driver
from dvpo_ray.loop.trajectory_log import TrajectoryLog
from dvpo_ray.models.lora import ADAPTERS
from dvpo_ray.models.value_model import ValueModelSeal
from dvpo_ray.rollouts.base import PlanContext, make_plan
from dvpo_ray.rollouts.observed import ObservedPlan
from dvpo_ray.rollouts.refresh import ScorerRefresh
from dvpo_ray.runs.folder import EVALUATIONS, locked, recorded_steps, run_folder, step_seconds
from dvpo_ray.runs.memory import MemoryMonitor
from dvpo_ray.runs.run import NUMBER_TYPES, RESULT, Listener, Run
from jobs.cli import main as cli
from jobs.held_out import evaluate, figures, kept_by, make_evaluator
from jobs.inputs import read_answers, read_policy_rows
from jobs.models import BaseModel, base_model, settle_devices, verified_models
from jobs.preflight import check_engines
from jobs.probe import Probe
from jobs.session import (
    check_same_data,
    copier_of,
    copies,
    copying,
    find_checkpoint,
    finishing_run,
    job,
    kept_models,
    prepare_copies,
    resumes_in_place,
    saving,
    store_of,
)

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
        found = {"learner": self.learner.draining(), "driver": draining([this_node()])}
        return {name for name, soon in found.items() if soon}

    def busy_seconds(self) -> dict[str, float]:
        """Mean time in which the processes of each stage had work, in seconds since they started."""
        return {name: getattr(self, name).busy_seconds() for name in ("rollouts", "scorers", "learner")}


def train_policy(recipe: PolicyRecipe, listener: Listener = lambda event: None) -> dict[str, Any]:
    """Evaluate, train, evaluate again, save; returns what ``result.json`` holds."""
    with job(listener), locked(run_folder(recipe)):
        return _train_policy(recipe, listener)


def _train_policy(recipe: PolicyRecipe, listener: Listener) -> dict[str, Any]:
    store = store_of(run_folder(recipe), recipe.policy.checkpoint)
    copier = copier_of(store, recipe.policy.checkpoint)
    checkpoint = find_checkpoint(recipe, store, copier)
    base = base_model(recipe.model, listener, kept_models(checkpoint))
    recipe, gvm = verified_models(recipe, base, listener)
    recipe, chosen = settle_devices(recipe, base, checkpoint)
    check_engines(recipe, base.folder, listener)
    prepare_copies(recipe, checkpoint, copier)
    policy = recipe.policy
    in_place = resumes_in_place(recipe, checkpoint)
    run = Run(recipe, policy.steps, listener, in_place=in_place, trackers=[RayTracker(recipe.run.name)])
    run.phase(chosen.text)
    try:
        if checkpoint is not None and run.in_place:
            run.rewind(checkpoint.step)
            store.abandon_after(checkpoint.step)
        prompts, demonstrations = read_policy_rows(policy, base, run.folder, run.phase)
        section, advantage, trained_on = policy.evaluation, policy.advantage, [*prompts, *demonstrations]
        data_sha256 = fingerprint(trained_on)
        check_same_data(checkpoint, data_sha256)
        evaluator = make_evaluator(
            section, policy.data, advantage, base, run.folder, trained_on, recipe.run.seed, policy.environment
        )
        kept_best_by = kept_by(policy.checkpoint, section, run)
        rollout = policy.rollout
        read = partial(read_answers, base=base, folder=run.folder, tell=run.phase)
        plan = ObservedPlan(make_plan(PlanContext(prompts, policy, recipe.run.seed, read)), policy.off_policy.max_staleness)
        refresh: ScorerRefresh = policy.refresh.build()
        evaluations = evaluator.known(run.folder / EVALUATIONS, checkpoint.step) if checkpoint and evaluator else {}
        if checkpoint is not None:
            run.take_clocks(checkpoint)
        with (
            MemoryMonitor(os.getpid()) as memory,
            copying(copier, run),
            _stages(recipe, base, demonstrations, run) as stages,
        ):
            value_hash, *reward_hashes = stages.scorers.value_hash().split(",")
            engines, learner = stages.rollouts, stages.learner
            probe = Probe(prompts, engines, learner, rollout, recipe.cluster, run.phase)
            probe.at_start()

            def evaluate_after(step: int) -> float | None:
                if evaluator is None:
                    return None
                every = section.every if section else 0
                evaluations[step] = evaluate(evaluator, step, stages.rollouts, stages.scorers, run, every)
                return evaluations[step].score

            if 0 not in evaluations:
                evaluate_after(0)
            run.phase(f"training for {policy.steps} steps of {rollout.rows_per_step} answers")
            run.pace.checkpoint_bytes = base.checkpoint_bytes
            checkpointer = Checkpointer(store, stages.learner, run, policy.checkpoint.every, policy.steps, copier)
            loop_began, busy_before = time.time(), stages.busy_seconds()
            log = TrajectoryLog(run, stages.scorers, base.tokenizer, recipe.run, policy.steps)
            driver = Driver(
                policy, stages, plan, run, checkpointer, evaluate_after, data_sha256, probe.after_update, refresh, log
            )
            with closing(log):
                driver.train(checkpoint)
            with finishing_run(run, driver.keep):
                loop_seconds, busy_after = time.time() - loop_began, stages.busy_seconds()
                cache_hits = stages.scorers.cache_hits()
                if policy.steps not in evaluations:
                    evaluate_after(policy.steps)
            with saving(run, POLICY):
                saved = (run.folder / POLICY).resolve()
                facts = base.origin | {"steps": policy.steps, "gvm_parameters_sha256": value_hash}
                stages.learner.save(str(saved), facts)
        result = _result(recipe, gvm, evaluations, run.folder, value_hash)
        result |= {
            "policy": str(saved),
            "seconds_total": run.seconds,
            "seconds_training": loop_seconds,
            # A process that was started again counts from its new start.
            "idle_share": {name: 1 - max(0.0, busy_after[name] - busy_before[name]) / loop_seconds for name in busy_after},
            "effective_time_share": run.effective_time_share,
            "score_cache_hits": cache_hits,
            "probe_gaps": probe.gaps,
            "peak_memory_gb": memory.peak_gb,
            "peak_memory_by_process_gb": memory.peak_by_process_gb,
            NUMBER_TYPES: run.number_types,
            **copies(copier),
            **kept_best_by,
        }
        if reward_hashes:
            result["reward_parameters_sha256"] = dict(zip(model_rewards(policy.rewards), reward_hashes, strict=True))
        if policy.lora is not None:
            result["adapters"] = str(saved.with_name(ADAPTERS))
        run.write_json(RESULT, result)
        return result
    finally:
        run.close()


@contextmanager
def _stages(
    recipe: PolicyRecipe,
    base: BaseModel,
    demonstrations: Sequence[EncodedDemonstration],
    run: Run,
) -> Iterator[ActorStages]:
    """Start Ray and all actors at once, wait for them, and take everything down again."""
    policy, cluster, seed = recipe.policy, recipe.cluster, recipe.run.seed
    folder, model = str(base.place), recipe.model
    with ray_session(cluster), run.failures(keep_logs):
        run.phase(
            f"starting {policy.rollout.actors} rollout actor(s), {policy.scorer.actors} scorer(s), "
            f"{policy.learner.ranks} learner rank(s)"
        )
        started: list[Any] = []
        try:
            started.append(rollouts := RolloutPool(folder, model, policy.rollout, cluster, seed, run.folder / ENGINES))
            rollouts.settle_on_gpus()
            # A value model that nothing reads is not loaded either.
            value, temperature = policy.value_model if policy.advantage.reads_values else None, policy.rollout.temperature
            started.append(scorers := ScorerPool(folder, value, model, policy.scorer, temperature, cluster, policy.rewards))
            shown = Demonstrations.of(demonstrations) if demonstrations else None
            context = TrainerContext(folder, model, policy, cluster, seed, scorers.fetch, shown)
            started.append(learner := make_trainer(context))
            learner.wait_ready()
            scorers.wait_ready()
            rollouts.wait_ready()
            learner.connect(rollouts)
            run.doubt([rollouts, scorers, learner])
            yield ActorStages(rollouts, scorers, learner)
        finally:
            with run.stop.ending():
                for pool in started:
                    pool.stop()


def _result(
    recipe: PolicyRecipe, gvm: ValueModelSeal | None, evaluations: Mapping[int, Evaluation], folder: Path, value_hash: str
) -> dict[str, Any]:
    steps = recorded_steps(folder)
    result: dict[str, Any] = {
        "seed": recipe.run.seed,
        "steps": recipe.policy.steps,
        "algorithm": recipe.policy.advantage.type,
        **step_seconds(steps),
    }
    if steps:
        result["logprob_gap_mean"] = sum(line["gap/abs_log_prob"] for line in steps) / len(steps)
        result["logprob_gap_kl_k3"] = sum(line["gap/kl_k3"] for line in steps) / len(steps)
    if gvm is not None:
        measured = gvm.held_out_accuracy
        result |= {f"gvm_pair_accuracy_{how}": measured[how] for how in ("mean", "last") if how in measured}
        result["gvm_parameters_sha256"] = value_hash
    return result | figures(evaluations)


def main() -> None:
    """Entry point of a Ray job: ``python -m jobs.train_policy RECIPE [--set KEY=VALUE]``."""
    sys.argv[1:1] = ["policy", "train"]
    cli.main()


if __name__ == "__main__":
    main()
