"""Recipes choose a training backend, and planning asks it what ranks share."""

from __future__ import annotations

from typing import Any

import pytest

from actors.learner.deepspeed.engine import DeepSpeedBackend
from actors.learner.fsdp.backend import FsdpBackend
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.backends import BackendSettings, DeepSpeedSettings, FsdpSettings
from dvpo_ray.config.loading import build
from dvpo_ray.config.sections import LearnerSection
from dvpo_ray.errors import ConfigError
from dvpo_ray.planning.memory import trained_bytes
from dvpo_ray.registry import load_entry_point
from tests.support.decided import learner_section


class OneRank(BackendSettings):
    """A plug-in's: it cannot share anything."""

    type: str = "one-rank"
    level: int = 1

    def check(self, learner: LearnerSection) -> None:
        """Refuse several ranks."""
        if learner.ranks > 1:
            raise ValueError(f"backend.type = 'one-rank' cannot share work: set ranks (now {learner.ranks}) to 1")


def learner(**given: Any) -> LearnerSection:
    return build(PolicyRecipe, {"policy": {"value_model": "g", "data": {"source": "x"}, "learner": given}}).policy.learner


def test_recipes_choose_by_type() -> None:
    assert learner().backend == DeepSpeedSettings()
    assert learner(backend={"zero_stage": 3}).backend == DeepSpeedSettings(zero_stage=3)
    assert learner(backend={"type": "fsdp"}).backend == FsdpSettings()
    own = learner(backend={"type": f"{__name__}:OneRank", "level": 2}).backend
    assert isinstance(own, OneRank) and own.level == 2


def test_what_works_by_the_settings_is_there() -> None:
    assert load_entry_point(DeepSpeedSettings.implementation) is DeepSpeedBackend
    assert load_entry_point(FsdpSettings.implementation) is FsdpBackend


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"zero_stage": 2}, r"policy\.learner\.zero_stage: unknown key; did you mean 'policy\.learner\.backend\.zero_stage'\?"),
        ({"backend": {"type": "fsdp", "zero_stage": 2}}, r"policy\.learner\.backend.*zero_stage"),
        ({"backend": {"type": "megatron"}}, r"'megatron' is no training backend: one of deepspeed, fsdp, or a class of your own"),
        ({"backend": {"zero_stage": 4}}, r"policy\.learner\.backend.*zero_stage"),
        ({"backend": {"type": f"{__name__}:OneRank"}, "ranks": 2}, r"policy\.learner: .*set ranks \(now 2\) to 1"),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        learner(**given)


def test_bytes_under_fsdp_by_hand() -> None:
    """Of four ranks in bfloat16: weights 2/4, moments and masters 12/4; a whole float32 sum of gradients and the reduced quarter
    of it, or the quarter alone."""
    for settings, expected in ((FsdpSettings(), 0.5 + 4 + 4), (FsdpSettings(shard_gradients=True), 0.5 + 1 + 3)):
        section = learner_section(ranks=4, dtype="bfloat16", backend=settings)
        assert sum(trained_bytes(1e9, section).values()) / 1e9 == pytest.approx(expected)


def test_every_backend_says_what_it_still_can_share() -> None:
    assert [DeepSpeedSettings(zero_stage=stage).remedy() for stage in (0, 3)] == ["raise learner.backend.zero_stage (now 0)", ""]
    assert FsdpSettings(shard_gradients=True).remedy() == ""
    assert "shard_gradients" in FsdpSettings().remedy()


def test_a_common_beginning_is_read_once_where_ranks_may_make_other_passes() -> None:
    allowed = [
        [settings.reads_prefix_once(ranks) for ranks in (1, 2)]
        for settings in (DeepSpeedSettings(), DeepSpeedSettings(zero_stage=1), FsdpSettings())
    ]
    assert allowed == [[True, True], [True, False], [False, False]]
