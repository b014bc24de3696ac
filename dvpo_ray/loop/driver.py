r"""The driver: rows flow one way, weights flow back once a step.

plan --> rollouts (vLLM) --> scorers (frozen value + reference) --> learner --> weights back to rollouts, outcomes to the plan
\__________ the prefetcher, up to max_staleness steps ahead _____/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dvpo_ray.checkpoints.store import Checkpoint
from dvpo_ray.config.kl import AdaptiveKl, KlControlConfig
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.rewards import VALUE
from dvpo_ray.errors import RECOVERABLE_ERRORS, CheckpointError, FrozenValueChangedError, NonFiniteUpdateError
from dvpo_ray.loop.checkpointer import Checkpointer, LoopHooks
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
from dvpo_ray.stages import Stages
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
        self._data_sha256 = data_sha256
        self._on_sync = on_sync
        self._kl = KlControl(config.kl.control, config.rollout.rows_per_step)
        self._refresh = refresh
        self._trajectories = trajectories
        self._scorers = ScorerSchedule(config.off_policy.max_staleness)
        self._sealed = stages.scorers.value_hash()
        checkpointer.serve(
            LoopHooks(
                state=self._state,
                draining=stages.draining,
                check=HealthMonitor(config.health).check,
                evaluates=self._evaluates,
                evaluate=evaluate,
                skipped=SKIPPED,
            )
        )
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
        expected = dict(self._sealed) if last is None else {**self._sealed, VALUE: last.parameters_sha256}
        with self._run.stop.finishing(rest):
            _check_unchanged(expected, self._stages.scorers.value_hash(last))

    def _train_from(self, first: int) -> None:
        config, run, checkpointer = self._config, self._run, self._checkpointer
        checkpointer.stop_if_asked(first)
        lead = config.off_policy.max_staleness
        with (
            run.stop.finishing(run.pace.plan_of_step),
            RolloutPrefetcher(
                self._stages, self._plan, self._scorers.of, self.ledger, run, first, config.steps, lead, config.streaming
            ) as prefetch,
        ):
            for step in range(first, config.steps):
                self._train_step(step, prefetch)
            checkpointer.finish()

    def _train_step(self, step: int, prefetch: RolloutPrefetcher) -> None:
        """One step (counted from 0), an arrow of the picture a line."""
        stages, ledger, checkpointer = self._stages, self.ledger, self._checkpointer
        dump = partial(self._dump, step, prefetch)
        with checkpointer.keeping(step):
            record, scored = prefetch.take(step)
        with record.span("learn"), _dumping(dump):
            result = stages.learner.step(step, self._kl.beta, scored)
        with record.span("sync"):
            served = stages.rollouts.sync(stages.learner.weights(result.version))
        self._on_sync(result.version)
        ledger.settle(result, prefetch.given_up(step))
        with checkpointer.keeping(step + 1):
            self._observe(step, result)
        record.close(result, ledger.check(), served)
        if self._trajectories is not None:
            self._trajectories.keep(prefetch.taken, result)
        checkpointer.after_step(step, result.metrics, dump)
        prefetch.advance(step + 1)

    def _observe(self, step: int, result: StepResult) -> None:
        """Tell plan, KL control and scorer refresh what became of a step's rows."""
        self._plan.observe(step, result.rows)
        self._kl.observe(result.metrics["kl/per_answer"])
        version = None if self._refresh is None else self._refresh.after(step, result.rows)
        if version is not None:
            version = self._scorers.numbered(version)
            # Loaded and verified here, before rows depend on it.
            self._stages.scorers.value_hash(version)
            self._scorers.announce(step, version)
            self._run.phase(f"after step {step + 1}, value model {version.number} ('{version.folder}') takes over")

    def _evaluates(self, steps: int) -> bool:
        """Whether so many trained steps are evaluated here: the last are when all is trained."""
        section = self._config.evaluation
        every = section.every if section is not None else 0
        return every > 0 and steps % every == 0 and steps != self._config.steps

    def _dump(self, step: int, prefetch: RolloutPrefetcher) -> Path:
        """Write the rows of a step (counted from 0) for ``dvpo debug replay``."""
        rows = ScoredBatch.concat(self._stages.scorers.fetch(prefetch.taken))
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
        }

    def _go_back(self, checkpoint: Checkpoint | None) -> int:
        """Bring everything to a checkpoint (to the start when there is none); returns the steps trained then."""
        step = 0 if checkpoint is None else checkpoint.step
        if checkpoint is not None:
            if checkpoint.part("value_sha256", dict[str, str]) != self._sealed:
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


@contextmanager
def _dumping(dump: Callable[[], Path]) -> Iterator[None]:
    """Keep a step's rows when the learner gives up on its updates."""
    try:
        yield
    except NonFiniteUpdateError as error:
        raise NonFiniteUpdateError(f"{error}; the rows of the last: {dump()}") from error


def _check_unchanged(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    if found != expected:
        changed = [
            f"{name}: {expected.get(name, 'none')} became {found.get(name, 'none')}"
            for name in sorted({*expected, *found})
            if expected.get(name) != found.get(name)
        ]
        raise FrozenValueChangedError(
            f"parameters of the frozen value or reward models changed during the run: {'; '.join(changed)}"
        )


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
