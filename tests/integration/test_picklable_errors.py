"""What actors raise, as it reaches whoever called them, and how often it is tried again. Real actors of Ray's, without models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray as ray_module

from actors.cluster.calls import actor_errors, get
from actors.cluster.session import actor_environment, start_actor
from actors.learner.gang import RestartableGang
from actors.scorer.pool import ScorerPool
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.rewards import FunctionReward
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.errors import ActorDiedError, ActorFailedError, DataError, LearnerLostError, PermanentFailureError, RewardError
from dvpo_ray.runs.run import Run
from dvpo_ray.types import RowId, StepResult, Trajectory
from tests.support.decided import scorer_section
from tests.support.engines import MODEL
from tests.support.failing import FailingActor, FailingAsyncActor, FailingRank
from tests.support.fakes import FakeStages, drive, numbered, shuffled

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def failing(ray: ClusterSection) -> Iterator[Any]:
    """An actor that fails as asked."""
    actor = start_actor(FailingActor, "failing", actor_environment(1), 0).remote()
    yield actor
    ray_module.kill(actor)


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("needs more", ActorFailedError, "NeedsMore: 1 layers, expected 2"),
        ("holds lock", ActorFailedError, "HoldsLock: the lock is mine"),
        ("no pickle", ActorFailedError, "NoPickle: never to be sent"),
        ("no text", ActorFailedError, "NoText: (a text that fails with KeyError)"),
        ("chain", PermanentFailureError, "ValueError: no such layer (from KeyError: 'layer')"),
        ("index", PermanentFailureError, "IndexError: list index out of range"),
        ("passing", ActorFailedError, "RuntimeError: Connection closed by peer"),
    ],
)
def test_whatever_an_actor_raises_is_told(failing: Any, how: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(ActorFailedError) as raised:
        get(failing.fail.remote(how), 60, "an actor", "failing")
    told = str(raised.value)
    assert type(raised.value) is kind
    assert told.startswith(f"failing failed while failing: {text}") and "tests/support/failing.py:" in told and " in fail" in told
    assert "picklable_errors.py" not in told and "isn't serializable" not in told and "deserialize" not in told
    assert get(failing.pid.remote(), 60, "an actor", "living on")


def test_a_huge_text_is_cut_and_our_own_errors_are_as_they_were(failing: Any) -> None:
    with pytest.raises(PermanentFailureError) as raised:
        get(failing.fail.remote("huge"), 60, "an actor", "failing")
    assert len(str(raised.value)) < 2000
    with pytest.raises(DataError, match=r"^row 3 of 'x' is empty; fill it$"):
        get(failing.fail.remote("ours"), 60, "an actor", "failing")


@pytest.mark.parametrize("how", ["exit", "killed"])
def test_what_ends_a_process_still_does(how: str) -> None:
    actor = start_actor(FailingActor, f"failing-{how}", actor_environment(1), 0).remote()
    with pytest.raises(ActorDiedError):
        get(actor.fail.remote(how), 60, "an actor", "failing")


def test_coroutines_and_streams_tell_as_well() -> None:
    actor = start_actor(FailingAsyncActor, "failing-async", actor_environment(1), 0).remote()
    with pytest.raises(PermanentFailureError, match="failing-async failed while waiting: IndexError"):
        get(actor.fail.remote("index"), 60, "an actor", "waiting")
    stream = actor.stream.options(num_returns="streaming").remote("needs more")
    assert get(next(stream), 60, "an actor", "streaming") == 1
    with (
        pytest.raises(ActorFailedError, match="failing-async failed while streaming: NeedsMore"),
        actor_errors("it", "streaming"),
    ):
        get(next(stream), 60, "an actor", "streaming")
    ray_module.kill(actor)


class FailingGang(RestartableGang):
    """Ranks without models, which may be started again three times."""

    rank_class = FailingRank
    name = "failing-learner"

    @property
    def starts(self) -> int:
        """How often they were started."""
        return self._starts


class GangStages(FakeStages):
    """A learner that is a real gang, and fails at its second step."""

    def __init__(self, gang: FailingGang, how: str) -> None:
        super().__init__(value_hashes=("sealed",) * 100)
        self._gang, self._how = gang, how

    def step(self, step: int, beta: float, scored: Iterable[list[str]]) -> StepResult:
        """As asked."""
        if step == 1:
            self._gang.call("fail", self._how, doing=f"training step {step}")
        return super().step(step, beta, scored)

    def restart(self) -> None:
        """Start the gang again."""
        self._gang.restart()


@pytest.mark.parametrize(
    ("how", "starts", "kind", "end"),
    [
        ("index", 1, PermanentFailureError, "so it was tried once"),
        ("unknown", 2, PermanentFailureError, "it was tried again once, and failed in the same way"),
        ("killed", 4, LearnerLostError, "died while training step 1"),
    ],
)
def test_a_learner_is_started_again_only_where_that_may_help(
    ray: ClusterSection, tmp_path: Path, how: str, starts: int, kind: type[Exception], end: str
) -> None:
    tree = {
        "run": {"output_dir": str(tmp_path), "name": "r"},
        "tracking": {"tensorboard": False},
        "policy": {"steps": 3, "value_model": "g", "data": {"source": "x"}, "rollout": {"prompts_per_step": 2}},
    }
    config = build(PolicyRecipe, tree)
    gang = FailingGang("no model", MODEL, config.policy, ray, 0)
    gang.wait_ready()
    run = Run(config, 3)
    try:
        with pytest.raises(ActorFailedError) as raised:
            drive(config.policy, GangStages(gang, how), shuffled(numbered(4), config.policy), run)
    finally:
        run.close()
        gang.stop()
    assert type(raised.value) is kind and end in str(raised.value)
    assert gang.starts == starts


def scorers(folder: Path, cluster: ClusterSection, **rewards: FunctionReward) -> ScorerPool:
    pool = ScorerPool(str(folder), None, MODEL, scorer_section(rows_per_call=1), 1.0, cluster, rewards)
    pool.wait_ready()
    return pool


def answer(token: int) -> Any:
    one = np.ones(1, dtype=np.float32)
    ids = np.array([token], dtype=np.int32)
    return ray_module.put(
        Trajectory(RowId(0, 0, "r0", 0), np.array([3, 4], dtype=np.int32), ids, -one, np.zeros(1, dtype=np.int32), "stop")
    )


def test_a_token_that_the_model_has_not_is_scored_once(ray: ClusterSection, tiny_model: Path) -> None:
    pool = scorers(tiny_model, ray)
    try:
        with pytest.raises(PermanentFailureError, match="scorer-0 failed while scoring: IndexError: index out of range in self"):
            pool.wait(list(pool.score([answer(99999)])))
        pool.wait(list(pool.score([answer(5)])))
    finally:
        pool.stop()


def test_a_reward_that_fails_is_told_with_its_place(ray: ClusterSection, tiny_model: Path) -> None:
    pool = scorers(tiny_model, ray, taste=FunctionReward(function="tests.support.failing:reward"))
    try:
        with pytest.raises(RewardError) as raised:
            pool.wait(list(pool.score([answer(5)])))
    finally:
        pool.stop()
    told = str(raised.value)
    function = "tests.support.failing:reward"
    assert told.startswith(f"reward 'taste': {function} failed on 1 answers: HoldsLock: no opinion on 1 answers\n  at ")
    assert "tests/support/failing.py:" in told and "mend the function" in told
