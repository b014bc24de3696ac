"""The checks for plug-ins: the project's own parts pass them, and what is wrong is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from dvpo_ray.algorithms.base import PolicyGradient, Signals
from dvpo_ray.config.algorithms import (
    AlgorithmSettings,
    DvpoGae,
    DvpoOnestep,
    DvpoReleased,
    DvpoStatic,
    Grpo,
    P3o,
    Ppo,
    Rloo,
)
from dvpo_ray.config.plans import PlanSettings, Resets, Shuffled
from dvpo_ray.config.refresh import Never, RefreshSettings
from dvpo_ray.config.rewards import FunctionReward, SpanReward
from dvpo_ray.config.sections import AnswersSection
from dvpo_ray.config.trainers import TrainerSettings
from dvpo_ray.errors import RewardError
from dvpo_ray.learning.local_trainer import LocalTrainer
from dvpo_ray.learning.trainer import TrainerContext
from dvpo_ray.rollouts.base import PlanContext
from dvpo_ray.rollouts.shuffled import ShuffledPlan
from dvpo_ray.testing import check_algorithm, check_plan, check_refresh, check_reward, check_settings, check_trainer
from dvpo_ray.types import RolloutRequest, RowOutcome, ScoredBatch, ScorerVersion

HERE = __name__


@pytest.mark.parametrize(
    "settings",
    [DvpoGae(), DvpoOnestep(), DvpoStatic(), DvpoReleased(), Grpo(), Rloo(), P3o(), P3o(clip="joint"), Ppo()],
    ids=lambda one: one.type,
)
def test_the_algorithms_that_are_there_pass(settings: AlgorithmSettings) -> None:
    check_algorithm(settings)


@pytest.mark.parametrize("settings", [Shuffled(), Resets(data=AnswersSection(source="x"))], ids=lambda one: one.type)
def test_the_plans_that_are_there_pass(settings: PlanSettings) -> None:
    check_plan(settings)


def test_the_other_parts_that_are_there_pass() -> None:
    check_reward(SpanReward(pattern="o"))
    assert check_refresh(Never()) == []


class Forward(AlgorithmSettings):
    """Says that it reads no values, and does."""

    implementation = f"{HERE}:ForwardAlgorithm"
    wrong: str = "values"

    @property
    def reads_values(self) -> bool:
        return self.wrong != "values"


class ForwardAlgorithm(PolicyGradient[Forward]):
    def advantages(self, signals: Signals) -> Tensor:
        if self.settings.wrong == "padding":
            return signals.kl_bt - signals.kl_bt.mean(1, keepdim=True)
        if self.settings.wrong == "groups":
            return signals.kl_bt - signals.kl_bt.sum() / signals.mask_bt.sum() * (signals.group_b[:, None] + 1)
        if self.settings.wrong == "shape":
            return signals.q_bt
        if self.settings.wrong == "changes":
            signals.kl_bt.add_(1.0)
        return signals.kl_bt + signals.q_bt[:, :-1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("values", "changes by up to 1 with values, though reads_values is False"),
        ("padding", "with padding"),
        ("groups", "with what groups are called"),
        ("shape", r"gives \(8, 6\), expected a tensor \[B, T\] = \(8, 5\)"),
        ("changes", r"changes signals\.kl_bt"),
    ],
)
def test_an_algorithm_that_is_wrong_is_told(wrong: str, said: str) -> None:
    with pytest.raises(AssertionError, match=f"ForwardAlgorithm.advantages.*{said}"):
        check_algorithm(Forward(wrong=wrong))


def placed(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    return [float(i) for i in range(len(answers))]


def short(rows: Sequence[Any]) -> list[float]:
    return [0.0]


def test_a_reward_that_is_wrong_is_told() -> None:
    with pytest.raises(AssertionError, match=r"scored '4' \[0\.0\], and \[3\.0\] among the same answers in another order"):
        check_reward(FunctionReward(function=f"{HERE}:placed"))
    check_reward(FunctionReward(function=f"{HERE}:placed"), tolerance=None)
    with pytest.raises(RewardError, match="returned 1 numbers for 4 answers"):
        check_reward(FunctionReward(function=f"{HERE}:short"))


class Forgetful(PlanSettings):
    """Asks for the best prompt again, and forgets it with a restart."""

    implementation = f"{HERE}:ForgetfulPlan"
    wrong: str = "state"


class ForgetfulPlan(ShuffledPlan):
    observes = True
    made = 0

    def __init__(self, settings: Forgetful, context: PlanContext) -> None:
        super().__init__(settings, context)
        self.wrong = settings.wrong
        self.best = 0
        type(self).made += 1

    def requests(self, step: int) -> list[RolloutRequest]:
        rows = super().requests(step)
        if self.wrong == "seed":
            return [replace(row, seed=self.made) for row in rows]
        if self.wrong == "rows":
            return [replace(row, row=replace(row.row, step=0)) for row in rows]
        return [replace(row, seed=self.best) for row in rows]

    def observe(self, step: int, rows: Sequence[RowOutcome]) -> None:
        self.best += len(rows)

    def state(self) -> dict[str, Any]:
        return {"json": {1, 2}} if self.wrong == "json" else {}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("state", r"restored after step 2, asks for other rows.*in step 2 rows of the same ids differ.*must be in state"),
        ("seed", r"asks for other rows when it is made anew"),
        ("rows", r"names a row .*: the step of its id is 0"),
        ("json", r"state\(\) is no JSON"),
    ],
)
def test_a_plan_that_is_wrong_is_told(wrong: str, said: str) -> None:
    with pytest.raises(AssertionError, match=f"ForgetfulPlan.*{said}"):
        check_plan(Forgetful(wrong=wrong))


class Twice(RefreshSettings):
    """Counts from 1 every time."""

    implementation = f"{HERE}:TwiceRefresh"


class TwiceRefresh:
    def __init__(self, settings: Twice) -> None:
        pass

    def after(self, step: int, rows: Sequence[RowOutcome]) -> ScorerVersion | None:
        return ScorerVersion(1, "folder", "0" * 64)


def test_a_refresh_that_is_wrong_is_told() -> None:
    with pytest.raises(AssertionError, match=r"TwiceRefresh\.after gives number 1 after 1 value models"):
        check_refresh(Twice())


class Memory(TrainerSettings):
    """Keeps something beside its parameters."""

    implementation = f"{HERE}:MemoryTrainer"


class MemoryTrainer(LocalTrainer):
    def __init__(self, settings: Memory, context: TrainerContext) -> None:
        super().__init__(context)
        self.momentum = 0.0

    def initial(self) -> dict[str, np.ndarray]:
        return {"w": np.zeros(4, dtype=np.float32)}

    def update(self, step: int, beta: float, scored: ScoredBatch) -> dict[str, float]:
        self.momentum += 1.0
        self.parameters["w"] += np.float32(self.momentum)
        return {}

    def log_probs(self, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], temperature: float) -> list[np.ndarray]:
        return [np.zeros(tokens.size, dtype=np.float32) for tokens in responses]

    def save(self, folder: str, facts: dict[str, object]) -> None:
        raise AssertionError("not reached")


class Unready(TrainerSettings):
    """Builds what is no trainer."""

    implementation = f"{HERE}:TwiceRefresh"

    def build(self, *given: Any) -> Any:
        return TwiceRefresh(Twice())


def test_a_trainer_that_is_wrong_is_told() -> None:
    with pytest.raises(AssertionError, match=r"trained on from a checkpoint, it ends with other weights"):
        check_trainer(Memory())
    with pytest.raises(AssertionError, match=r"TwiceRefresh has no begin_checkpoint: see dvpo_ray\.learning\.trainer\.Trainer"):
        check_trainer(Unready())


class Odd(PlanSettings):
    """JSON makes a text of its number."""

    implementation = f"{HERE}:ForgetfulPlan"
    numbers: tuple[int, ...] = ()


def test_settings_that_do_not_survive_json_are_told() -> None:
    with pytest.raises((AssertionError, ValueError), match="numbers"):
        check_settings(Odd(numbers=(1, 2)))
