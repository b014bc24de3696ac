r"""The driver: rows flow one way, weights flow back once a step.

plan --> rollouts (vLLM) --> scorers (frozen value + reference) --> learner --> weights back to rollouts, outcomes to the plan
\__________ the prefetcher, up to max_staleness steps ahead _____/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dvpo_ray.checkpoints.store import Checkpoint
from dvpo_ray.config.kl import AdaptiveKl, KlControlConfig
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.errors import (
    AS_ASKED,
    RECOVERABLE_ERRORS,
    CheckpointError,
    DvpoError,
    FrozenValueChangedError,
    NonFiniteUpdateError,
    RunError,
    RunStoppedError,
)
from dvpo_ray.loop.checkpointer import Checkpointer
from dvpo_ray.loop.dumps import write_dump
from dvpo_ray.loop.health import HealthMonitor
from dvpo_ray.loop.ledger import Ledger
from dvpo_ray.loop.prefetch import RolloutPrefetcher
from dvpo_ray.loop.restarts import Restarts
from dvpo_ray.loop.scorer_schedule import ScorerSchedule
from dvpo_ray.loop.trajectory_log import TrajectoryLog
from dvpo_ray.maths.kl_control import next_coefficient
from dvpo_ray.rollouts.observed import ObservedPlan
from dvpo_ray.rollouts.refresh import ScorerRefresh
from dvpo_ray.runs.folder import DUMPS
from dvpo_ray.runs.run import Run
from dvpo_ray.stages import Handle, Stages
from dvpo_ray.types import ScoredBatch, StepResult

# Counts of a step's updates that were withheld, and of which model.
SKIPPED = {"loss/skipped_updates": "policy", "critic/skipped_updates": "critic"}
NonNegativeFinite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Driver:
    """Trains a policy for ``config.steps`` steps."""

    def __init__(
        self,
        config: PolicyTraining,
        stages: Stages,
        plan: ObservedPlan,
        run: Run,
        checkpointer: Checkpointer,
        evaluate: Callable[[int], float | None] = lambda step: None,
        data_sha256: str = "",
        on_sync: Callable[[int], None] = lambda version: None,
        refresh: ScorerRefresh | None = None,
        trajectories: TrajectoryLog | None = None,
    ) -> None:
        """``stages`` are the actors, or fakes; ``evaluate`` is called with the number of finished steps when
        ``evaluation.every`` asks for it, unless the run is to stop, and returns their held-out score; ``data_sha256`` is the
        fingerprint of what is trained on, for checkpoints. ``on_sync`` is called with the version that all engines have just
        taken. ``plan`` says which rows steps ask for, ``refresh`` when another value model takes over;
        ``trajectories`` keeps some of them."""
        self._config = config
        self._stages = stages
        self._plan = plan
        self.ledger = Ledger()
        self._run = run
        self._checkpointer = checkpointer
        self._evaluate = evaluate
        self._data_sha256 = data_sha256
        self._on_sync = on_sync
        self._kl = KlControl(config.kl.control, config.rollout.rows_per_step)
        self._refresh = refresh
        self._trajectories = trajectories
        self._scorers = ScorerSchedule(config.off_policy.max_staleness)
        self._sealed = stages.scorers.value_hash()
        self._health = HealthMonitor(config.health)
        self._restarts = Restarts(stages.learner, config.learner.max_restarts, run, checkpointer)

    def train(self, checkpoint: Checkpoint | None = None) -> None:
        """Train from the start, or from a checkpoint. Learner ranks that die are started again, on the newest checkpoint.

        Raises:
            FrozenValueChangedError: the value model or a reward model is not bit for bit what it was at the start.
            CheckpointError: the checkpoint was made under another value model.
            RunStoppedError: the run was asked to stop, and did after a checkpoint.
        """
        rest = partial(self._run.pace.plan_of_rest, "a look at the frozen models", None)
        go_back = checkpoint is not None
        while True:
            try:
                self._train_from(self._go_back(checkpoint) if go_back else 0)
                break
            except RECOVERABLE_ERRORS as error:
                self._restarts.restart(error)
                checkpoint, go_back = self._checkpointer.store.newest() or checkpoint, True
        last = self._scorers.of(self._config.steps - 1)
        expected = self._sealed if last is None else ",".join([last.parameters_sha256, *self._sealed.split(",")[1:]])
        with self._run.stop.finishing(rest):
            found = self._stages.scorers.value_hash(last)
        if found != expected:
            raise FrozenValueChangedError(
                f"parameters of the frozen value or reward models changed during the run: {expected} became {found}"
            )

    def _train_from(self, first: int) -> None:
        config, run = self._config, self._run
        self._check_wanted(first)
        lead = config.off_policy.max_staleness
        with (
            run.stop.finishing(run.pace.plan_of_step),
            RolloutPrefetcher(
                self._stages, self._plan, self._scorers.of, self.ledger, run, first, config.steps, lead, config.streaming
            ) as feed,
        ):
            for step in range(first, config.steps):
                self._train_step(step, feed)
                self._check_wanted(step + 1)
                feed.advance(step + 1)
            self._checkpointer.finish()

    def _train_step(self, step: int, feed: RolloutPrefetcher) -> None:
        stages, ledger, run, checkpointer = self._stages, self.ledger, self._run, self._checkpointer
        with self._keeping(step):
            record, scored = feed.take(step)
        consumed: list[Handle] = []
        with record.span("learn"), self._dumping(step, consumed):
            result = stages.learner.step(step, self._kl.beta, _tee(scored, consumed))
        with record.span("sync"):
            served = stages.rollouts.sync(stages.learner.weights(result.version))
        self._on_sync(result.version)
        ledger.trained_rows(result.trained)
        ledger.dead_letter_rows([*result.dropped, *feed.given_up(step)])
        self._observe(step, result)
        self._kl.observe(result.metrics["kl/per_answer"])
        record.close(result, ledger.check(), served)
        if self._trajectories is not None:
            self._trajectories.keep(consumed, result)
        withheld = [name for name in SKIPPED if result.metrics.get(name)]
        if withheld:
            what = " and ".join(SKIPPED[name] for name in withheld)
            run.warn(step, f"an update of the {what} was not finite and was withheld; its rows: {self._dump(step, consumed)}")
        for alarm in self._health.check(result.metrics):
            run.warn(step, alarm)
        checkpointer.finish()
        leaving = self._leaving(step)
        # Who asked the run to stop waits for the checkpoint, and not for a score of it.
        score = None if run.stopping else self._evaluate_when_due(step + 1)
        if checkpointer.due(step + 1) or run.stopping or leaving:
            self._begin_checkpoint(step + 1, score)
        if leaving or run.stopping:
            checkpointer.finish()

    def _observe(self, step: int, result: StepResult) -> None:
        """Tell plan and scorer refresh what became of a step's rows."""
        self._plan.observe(step, result.rows)
        version = None if self._refresh is None else self._refresh.after(step, result.rows)
        if version is not None:
            # Loaded and verified here, before rows depend on it.
            self._stages.scorers.value_hash(version)
            self._scorers.announce(step, version)
            self._run.phase(f"after step {step + 1}, value model {version.number} ('{version.folder}') takes over")

    def _check_wanted(self, steps: int) -> None:
        """Go no further than ``steps`` trained steps when the run is to stop.

        Raises:
            RunStoppedError: it is.
        """
        if self._run.stopping:
            self.keep(steps)
            if not steps:
                raise self._run.stop.stopped()
            raise RunStoppedError(f"stopped after step {steps} of {self._config.steps}{AS_ASKED}")

    def keep(self, steps: int) -> None:
        """See to a checkpoint of ``steps`` trained steps, which were the last."""
        self._checkpointer.finish()
        if steps and self._run.pace.checkpointed != steps:
            self._begin_checkpoint(steps, None)
            self._checkpointer.finish()

    @contextmanager
    def _keeping(self, steps: int) -> Iterator[None]:
        """Checkpoint ``steps`` trained steps when what follows fails: the learner, which is not at work in it, is as it was."""
        try:
            yield
        except (*RECOVERABLE_ERRORS, RunStoppedError):
            raise
        except DvpoError:
            try:
                self.keep(steps)
                if steps:
                    self._run.phase(f"{steps} steps are checkpointed: --resume auto goes on after them")
            except RunError as trouble:
                self._run.warn(steps, f"the {steps} steps so far could not be checkpointed: {trouble}")
            raise

    def _begin_checkpoint(self, steps: int, score: float | None) -> None:
        self._checkpointer.begin(steps, self._state(steps) | {"score": score})

    def _leaving(self, step: int) -> set[str]:
        """Which of learner and driver are on machines that will be taken away: the learner's work is checkpointed every step from
        now on, and the driver's end is that of the run, which goes on elsewhere."""
        leaving = self._stages.draining()
        if leaving:
            self._run.warn(step, f"the machine of the {' and the '.join(sorted(leaving))} will be taken away: checkpointing")
        if "driver" in leaving:
            self._run.stopping = True
        return leaving

    def _evaluate_when_due(self, step: int) -> float | None:
        section = self._config.evaluation
        if not section or not section.every or step % section.every or step == self._config.steps:
            return None
        with self._keeping(step), self._run.stop.cutting(self._run.pace.plan_of_checkpoint):
            score = self._evaluate(step)
            self._run.restart_clock()
            return score
        return None

    @contextmanager
    def _dumping(self, step: int, consumed: list[Handle]) -> Iterator[None]:
        """Keep a step's rows when the learner gives up on its updates."""
        try:
            yield
        except NonFiniteUpdateError as error:
            raise NonFiniteUpdateError(f"{error}; the rows of the last: {self._dump(step, consumed)}") from error

    def _dump(self, step: int, consumed: list[Handle]) -> Path:
        """Write the rows of a step (counted from 0) for ``dvpo debug replay``."""
        rows = ScoredBatch.concat(self._stages.scorers.fetch(consumed))
        return write_dump(self._run.folder / DUMPS / f"step-{step + 1:08d}.npz", rows, step, self._kl.beta)

    def _state(self, step: int) -> dict[str, Any]:
        """What the driver itself must remember after so many steps."""
        return {
            "step": step,
            "kl_coefficient": self._kl.beta,
            "ledger": self.ledger.state(),
            "plan": self._plan.state(step),
            "value_sha256": self._sealed,
            "scorers": self._scorers.state(),
            "data_sha256": self._data_sha256,
        } | self._run.facts()

    def _go_back(self, checkpoint: Checkpoint | None) -> int:
        """Bring everything to a checkpoint (to the start when there is none); returns the steps trained then."""
        step = 0 if checkpoint is None else checkpoint.step
        if checkpoint is not None:
            if checkpoint.part("value_sha256", str) != self._sealed:
                raise CheckpointError(
                    f"checkpoint '{checkpoint.folder}' was made under another value model or other reward models: name those "
                    "of its run, or start anew"
                )
            self._stages.learner.load_checkpoint(str(checkpoint.folder.resolve()))
        self._kl = KlControl(self._config.kl.control, self._config.rollout.rows_per_step)
        self._kl.beta = checkpoint.part("kl_coefficient", NonNegativeFinite) if checkpoint else self._kl.beta
        self.ledger.restore(checkpoint.part("ledger", dict) if checkpoint else Ledger.EMPTY, step)
        self._scorers.restore(checkpoint.part("scorers", list) if checkpoint else [])
        if checkpoint is None:
            self._plan.restart()
        else:
            self._plan.restore(checkpoint.part("plan", dict), step)
        self._stages.rollouts.sync(self._stages.learner.weights(step))
        self._on_sync(step)
        self._run.go_back(checkpoint)
        return step


def _tee(batches: Iterator[Handle], consumed: list[Handle]) -> Iterator[Handle]:
    """Pass handles on and remember them."""
    for batch in batches:
        consumed.append(batch)
        yield batch


class KlControl:
    """The KL coefficient of each step."""

    def __init__(self, control: KlControlConfig, rows_per_step: int) -> None:
        self._control = control
        self._rows = rows_per_step
        self.beta = control.coefficient

    def observe(self, kl_per_answer: float) -> None:
        """Adapt to the KL of the step just trained."""
        if isinstance(self._control, AdaptiveKl):
            self.beta = next_coefficient(self.beta, kl_per_answer, self._control.target, self._control.horizon, self._rows)
