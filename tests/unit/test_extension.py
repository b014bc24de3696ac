"""Parts of one's own, in a package outside the tree: the one that docs/extending.md shows, installed from its code blocks."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dvpo_ray
from actors.learner.conformance import check_training_backend
from actors.scorer.actor import ScorerActor
from dvpo_ray import registry
from dvpo_ray.config import PolicyRecipe, dump_resolved
from dvpo_ray.config.algorithms import ALGORITHMS
from dvpo_ray.config.backends import BACKENDS
from dvpo_ray.config.environments import ENVIRONMENTS
from dvpo_ray.config.loading import build
from dvpo_ray.config.plans import PLANS
from dvpo_ray.config.references import functions
from dvpo_ray.config.refresh import REFRESHES
from dvpo_ray.config.rewards import REWARDS, FunctionReward
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.config.trainers import TRAINERS
from dvpo_ray.environments import EnvironmentRow
from dvpo_ray.errors import ConfigError
from dvpo_ray.learning.trainer import make_trainer
from dvpo_ray.runs.run import Run
from dvpo_ray.stages import Weights
from dvpo_ray.testing import (
    check_algorithm,
    check_environment,
    check_plan,
    check_refresh,
    check_reward,
    check_trainer,
    plan_context,
    trainer_context,
)
from dvpo_ray.testing.fakes import IdleStages
from dvpo_ray.types import (
    BucketTargets,
    Ragged,
    RolloutRequest,
    RowId,
    ScoredBatch,
    ScorerVersion,
    ServedWeights,
    Trajectory,
)
from tests.support.decided import scorer_section
from tests.support.fakes import drive, numbered, shuffled
from tests.support.sealed import sealed_as

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
BLOCK = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", re.S)
ENTRY = re.compile(r'\[project\.entry-points\."dvpo_ray\.plugins"\]\n(.*?)\n*```', re.S)
REGISTRIES = (ALGORITHMS, BACKENDS, ENVIRONMENTS, PLANS, REFRESHES, REWARDS, TRAINERS)


def installed(folder: Path) -> Path:
    """The package of the page, as pip leaves it."""
    text = PAGE.read_text(encoding="utf-8")
    for name, code in BLOCK.findall(text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")
    entry = ENTRY.search(text)
    assert entry is not None
    facts = folder / "my_extension-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: my-extension\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[dvpo_ray.plugins]\n{entry[1]}\n".replace('"', ""))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("site"))


@pytest.fixture
def extension(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """It is installed, and nothing of it is known yet."""
    monkeypatch.syspath_prepend(str(folder))
    for one in REGISTRIES:
        monkeypatch.setattr(one, "known", dict(one.known))
    registry.load_plugins.cache_clear()
    yield folder
    registry.load_plugins.cache_clear()
    for name in [name for name in sys.modules if "my_extension" in name.partition(".")[0]]:
        del sys.modules[name]


def recipe(**policy: Any) -> PolicyRecipe:
    tree = {"value_model": "v", "data": {"source": "p.jsonl"}, "rewards": {"short": {"type": "brevity"}}}
    return build(PolicyRecipe, {"policy": tree | policy})


EVERYTHING = {
    "advantage": {"type": "reinforce", "baseline": 0.5},
    "plan": {"type": "hardest", "again": 2},
    "refresh": {"type": "takeover", "folder": "second", "after_step": 2},
    "trainer": {"type": "evolution", "sigma": 0.25},
}
PLACES = {
    "advantage": "my_extension.reinforce:Reinforce",
    "plan": "my_extension.hardest:Hardest",
    "refresh": "my_extension.takeover:Takeover",
    "trainer": "my_extension.evolution:Evolution",
}


def test_a_recipe_finds_every_part_by_the_name_that_a_plug_in_gave_it(extension: Path) -> None:
    assert "my_extension" in {one.name for one in entry_points(group="dvpo_ray.plugins")}
    found = recipe(**EVERYTHING)
    for name, place in PLACES.items():
        settings = getattr(found.policy, name)
        assert f"{type(settings).__module__}:{type(settings).__qualname__}" == place
        assert settings.type == EVERYTHING[name]["type"]
    assert found.policy.rewards["short"] == FunctionReward(function="my_extension.brevity:brevity")
    assert build(PolicyRecipe, json.loads(dump_resolved(found))) == found
    with pytest.raises(
        ConfigError, match=r"policy\.plan: type = 'hardst' is no rollout plan: one of candidates, hardest, resets"
    ):
        recipe(plan={"type": "hardst"})
    with pytest.raises(ConfigError, match=r"plan\.again: Input should be greater than or equal to 0; got -1"):
        recipe(plan={"type": "hardest", "again": -1})


def test_and_by_its_place(extension: Path) -> None:
    settings = {name: EVERYTHING[name] | {"type": place} for name, place in PLACES.items()}
    found = recipe(**settings, rewards={"short": {"function": "my_extension.brevity:brevity"}})
    assert {name: getattr(found.policy, name).type for name in PLACES} == PLACES
    assert functions(found) == {f"policy.{name}.type": place for name, place in PLACES.items()} | {
        "policy.advantage.implementation": "my_extension.reinforce_algorithm:ReinforceAlgorithm",
        "policy.rewards.short.function": "my_extension.brevity:brevity",
    }
    assert build(PolicyRecipe, json.loads(dump_resolved(found))) == found


def test_an_advantage(extension: Path) -> None:
    check_algorithm(recipe(**EVERYTHING).policy.advantage)


def test_a_reward(extension: Path) -> None:
    check_reward(recipe().policy.rewards["short"])


def test_a_plan(extension: Path) -> None:
    settings = recipe(**EVERYTHING).policy.plan
    check_plan(settings)
    check_plan(settings, plan_context(settings, seed=3, off_policy={"max_staleness": 0}))


def test_a_scorer_refresh(extension: Path, tmp_path: Path, tiny_model: Path, tokenizer: Any) -> None:
    """It announces a real sealed model by the hash by which a scorer knows it."""
    sealed_as("td", tmp_path, tiny_model, tokenizer, seed=0)
    settings = recipe(refresh={"type": "takeover", "folder": str(tmp_path), "after_step": 2}).policy.refresh
    (version,) = check_refresh(settings)
    assert (version.number, version.folder) == (1, str(tmp_path))
    scorer = ScorerActor(str(tiny_model), None, ModelSection(attention="eager"), scorer_section(), 1.0)
    assert scorer.parameter_hash(version) == {"value": version.parameters_sha256}


@pytest.mark.integration
@pytest.mark.usefixtures("process_group")
def test_a_training_backend(extension: Path) -> None:
    """With the recipe's whole length it is AdamW as it is; with a share of it, its steps are others."""
    check_training_backend(recipe(learner={"backend": {"type": "steady"}}).policy.learner.backend)
    with pytest.raises(AssertionError):
        check_training_backend(recipe(learner={"backend": {"type": "steady", "clip_share": 0.01}}).policy.learner.backend)


def test_a_backend_by_name_and_by_place(extension: Path) -> None:
    for name in ("steady", "my_extension.steady:Steady"):
        found = recipe(learner={"backend": {"type": name, "clip_share": 0.5}})
        settings = found.policy.learner.backend
        assert (settings.type, settings.clip_share, settings.shards_weights) == (name, 0.5, True)  # type: ignore[attr-defined]
        assert build(PolicyRecipe, json.loads(dump_resolved(found))) == found


def test_a_trainer_without_gradients(extension: Path) -> None:
    check_trainer(recipe(**EVERYTHING).policy.trainer)


class ToyStages(IdleStages):
    """Engines that answer from a table of logits, changed by each candidate's noise, and a scorer that likes one token."""

    LIKED, TOKENS, SYMBOLS = 3, 6, 8

    def __init__(self, learner: Any, seed: int, sigma: float) -> None:
        self.rollouts = self.scorers = self
        self.learner = learner
        self.noise = importlib.import_module("my_extension.evolution").noise
        self.seed, self.sigma = seed, sigma
        self.logits, self.version = np.zeros(self.SYMBOLS, dtype=np.float32), 0

    def sync(self, weights: Weights) -> ServedWeights:
        """Take the table from its bucket."""
        (bucket,) = [weights.bucket(index, BucketTargets(("toy",), 1)) for index in range(weights.count)]
        self.logits, self.version = bucket.data.view(np.float32), weights.version
        return ServedWeights(weights.version, bucket.digest, bucket.digest, 0.0, bucket.bytes)

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Trajectory]:
        for request in requests:
            assert request.candidate is not None
            changed = self.logits + self.sigma * self.noise(self.seed, request.row.step, request.candidate, self.SYMBOLS)
            log_probs = changed - np.logaddexp.reduce(changed)
            draw = np.random.default_rng(request.seed)
            ids = draw.choice(self.SYMBOLS, size=self.TOKENS, p=np.exp(log_probs) / np.exp(log_probs).sum())
            versions = np.full(self.TOKENS, self.version, dtype=np.int32)
            prompt = np.array(request.prompt_ids)
            yield Trajectory(request.row, prompt, ids, log_probs[ids], versions, "stop", group_id=request.group_id)

    def score(self, answers: Iterable[Trajectory], version: ScorerVersion | None = None) -> Iterator[ScoredBatch]:
        rows = list(answers)

        def ragged(name: str, dtype: type) -> Ragged:
            return Ragged.of([getattr(one, name) for one in rows], dtype)

        uniform = np.full(self.TOKENS, -np.log(self.SYMBOLS), dtype=np.float32)
        yield ScoredBatch(
            rows=tuple(one.row for one in rows),
            group_ids=np.array([one.group_id for one in rows]),
            prompt_ids=ragged("prompt_ids", np.int32),
            response_ids=ragged("response_ids", np.int32),
            action_mask=ragged("action_mask", np.bool_),
            log_probs=ragged("log_probs", np.float32),
            versions=ragged("versions", np.int32),
            values=Ragged.of([np.zeros(self.TOKENS + 1) for _ in rows], np.float32),
            ref_log_probs=Ragged.of([uniform for _ in rows], np.float32),
            end_states=tuple(one.end_state for one in rows),
            channels={"liked": Ragged.of([[np.mean(one.response_ids == self.LIKED)] for one in rows], np.float32)},
        )

    def wait(self, handles: Sequence[ScoredBatch]) -> None:
        """Everything is scored at once."""

    def fetch(self, handles: Iterable[ScoredBatch]) -> list[ScoredBatch]:
        return list(handles)

    def value_hash(self, version: ScorerVersion | None = None) -> dict[str, str]:
        return {"value": "sealed"}


def test_an_environment(extension: Path) -> None:
    settings = recipe(environment={"type": "guess"}).policy.environment
    assert settings is not None
    row = EnvironmentRow(RowId(0, 0, "p", 0), "Guess.", {"word": "blue"})
    turns = asyncio.run(check_environment(settings.build(), row, ["red", "it is blue"], ends=True))
    assert [turn.reward for turn in turns] == [0.0, 1.0]


def test_a_policy_learns_without_gradients(extension: Path, tmp_path: Path) -> None:
    """Evolution strategies in the real driver: uniform over eight tokens at first, a liked one has 1/8 of the answer."""
    trainer = {"type": "evolution", "symbols": ToyStages.SYMBOLS, "sigma": 0.5, "learning_rate": 2.0}
    rollout = {"prompts_per_step": 4, "answers_per_prompt": 8}
    found = recipe(trainer=trainer, plan={"type": "candidates"}, rollout=rollout, steps=40)
    found = found.model_copy(update={"run": found.run.model_copy(update={"output_dir": tmp_path})})
    learner = make_trainer(trainer_context(found.policy.trainer, seed=5, rollout=rollout))
    stages = ToyStages(learner, 5, 0.5)
    run = Run(found, found.policy.steps)
    drive(found.policy, stages, shuffled(numbered(6), found.policy), run)
    run.close()
    rewards = [line["evolution/reward"] for line in dvpo_ray.read_run(run.folder).metrics]
    assert np.mean(rewards[:3]) < 0.3 and np.mean(rewards[-3:]) > 0.7, rewards
    assert stages.version == 40 and int(np.argmax(stages.logits)) == ToyStages.LIKED


def test_a_fresh_process_knows_the_plug_in(folder: Path, tmp_path: Path) -> None:
    """As the command line does, it imports nothing of the package itself."""
    (tmp_path / "mine.toml").write_text('policy = {value_model = "v", data.source = "p", plan = {type = "hardest", again = 3}}\n')
    code = (
        "import dvpo_ray, pickle; plan = dvpo_ray.load_recipe('mine.toml').policy.plan;"
        "print(type(pickle.loads(pickle.dumps(plan))))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(PAGE.parents[1])])}
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert said.stdout.strip() == "<class 'my_extension.hardest.Hardest'>", said.stderr


def test_the_checks_of_the_page(extension: Path) -> None:
    importlib.import_module("test_my_extension").test_my_extension()
