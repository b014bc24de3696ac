"""Reward models: what scores an answer, what is refused, and that nothing is loaded that no recipe names."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.scorer.actor import ScorerActor
from dvpo_ray.config.rewards import FunctionReward, ModelReward, RewardSettings
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.errors import ModelError
from dvpo_ray.learning.batching import pad_sequences
from dvpo_ray.models.reward_model import read_reward_seal
from dvpo_ray.models.token_reader import ValueReader, freeze
from dvpo_ray.models.value_model import ValueModel, load_value_model
from dvpo_ray.types import ScoredBatch, Trajectory
from jobs.models import base_model, verified_rewards, verified_value_model
from tests.support.decided import scorer_section
from tests.support.fakes import row
from tests.support.sealed import sealed_as

PROMPTS = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
RESPONSES = [np.array([9, 10], np.int32), np.array([11, 12, 13], np.int32)]
SECTION = ModelSection(attention="eager")


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tokenizer: Any) -> Path:
    return sealed_as("reward", tmp_path_factory.mktemp("reward"), tiny_model, tokenizer, seed=0)


@pytest.fixture(scope="module")
def value_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tokenizer: Any) -> Path:
    return sealed_as("td", tmp_path_factory.mktemp("value"), tiny_model, tokenizer, seed=1)


def scorer_of(base: Path, rewards: dict[str, RewardSettings], value: Path | None = None) -> ScorerActor:
    folder = None if value is None else str(value)
    return ScorerActor(str(base), folder, SECTION, scorer_section(), 1.0, rewards)


def scored(scorer: ScorerActor, finished: tuple[str, str] = ("stop", "stop")) -> ScoredBatch:
    rows = enumerate(zip(PROMPTS, RESPONSES, finished, strict=True))
    answers = [
        Trajectory(row(f"r{i}"), p, r, np.zeros(r.size, np.float32), np.zeros(r.size, np.int32), how) for i, (p, r, how) in rows
    ]
    return scorer.score(None, *answers)


def columns(scored: ScoredBatch) -> np.ndarray:
    """Scores [B, rewards], in the order of the recipe."""
    return np.stack([channel.flat for channel in scored.channels.values()], axis=1)


def token_values(folder: Path, responses: list[np.ndarray] = RESPONSES) -> list[np.ndarray]:
    """q_1..q_T of each answer, from a reader of the test's own."""
    reader = freeze(ValueReader(load_value_model(folder, torch.float32, "eager")))
    batch = pad_sequences(PROMPTS, responses)
    flat = reader(batch.input_ids, batch.attention_mask, batch.with_prompt_end).numpy()
    return [flat[1:3], flat[4:7]]


def test_models_score_whole_answers_in_the_columns_of_the_recipe(
    tiny_model: Path, reward_folder: Path, value_folder: Path
) -> None:
    rewards: dict[str, RewardSettings] = {
        "taste": ModelReward(folder=str(reward_folder)),
        "length": FunctionReward(function="tests.support.fakes:answer_lengths"),
        "gvm": ModelReward(folder=str(value_folder), score="mean"),
    }
    scorer = scorer_of(tiny_model, rewards)
    found = columns(scored(scorer))
    assert found[:, 0] == pytest.approx([q[-1] for q in token_values(reward_folder)], abs=1e-4)
    assert found[:, 2] == pytest.approx([q.mean() for q in token_values(value_folder)], abs=1e-4)
    assert np.array_equal(columns(scored(scorer)), found), "from the cache"
    assert scorer.cache_hits() == 2


def test_an_answer_cut_at_the_limit_is_scored_where_reward_models_are_trained(
    tiny_model: Path, reward_folder: Path, value_folder: Path, tokenizer: Any
) -> None:
    rewards: dict[str, RewardSettings] = {
        "taste": ModelReward(folder=str(reward_folder)),
        "as_it_is": ModelReward(folder=str(reward_folder), end_cut_answers=False),
        "gvm": ModelReward(folder=str(value_folder)),
    }
    found = columns(scored(scorer_of(tiny_model, rewards), ("length", "stop")))
    ended = [np.array([9, tokenizer.eos_token_id], np.int32), RESPONSES[1]]
    assert found[:, 0] == pytest.approx([q[-1] for q in token_values(reward_folder, ended)], abs=1e-4)
    assert found[:, 1] == pytest.approx([q[-1] for q in token_values(reward_folder)], abs=1e-4)
    assert found[:, 2] == pytest.approx([q[-1] for q in token_values(value_folder)], abs=1e-4)
    assert abs(found[0, 0] - found[0, 1]) > 1e-3, "else the test could not fail"


def test_a_cut_answer_ends_as_the_template_ends_turns(
    tiny_model: Path, reward_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Not as texts end, where these are two tokens (here the template's `<|im_end|>`, and `<|im_start|>`)."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|im_start|>"}))
    found = (
        scored(scorer_of(folder, {"taste": ModelReward(folder=str(reward_folder))}), ("length", "stop")).channels["taste"].flat
    )
    end, other = (np.array([9, tokenizer.convert_tokens_to_ids(one)], np.int32) for one in ("<|im_end|>", "<|im_start|>"))
    assert found[0] == pytest.approx(token_values(reward_folder, [end, RESPONSES[1]])[0][-1], abs=1e-4)
    assert abs(found[0] - token_values(reward_folder, [other, RESPONSES[1]])[0][-1]) > 1e-3, "else the test could not fail"


def test_the_hash_covers_every_frozen_model_that_scores(tiny_model: Path, reward_folder: Path, value_folder: Path) -> None:
    scorer = scorer_of(tiny_model, {"taste": ModelReward(folder=str(reward_folder))}, value_folder)
    before = scorer.parameter_hash()
    assert list(before) == ["value", "taste"] and len(set(before.values())) == 2
    with torch.no_grad():
        scorer._reward_models["taste"]._reader.model.score.weight[0, 0] += 1
    after = scorer.parameter_hash()
    assert after["value"] == before["value"] and after["taste"] != before["taste"]


def test_no_model_is_loaded_that_no_reward_names(tiny_model: Path) -> None:
    before = [found for found in gc.get_objects() if isinstance(found, ValueModel)]
    scorer = scorer_of(tiny_model, {"length": FunctionReward(function="tests.support.fakes:answer_lengths")})
    assert scorer.start() == {}
    after = [found for found in gc.get_objects() if isinstance(found, ValueModel)]
    assert [found for found in after if all(found is not known for known in before)] == []


def test_values_of_a_reward_model_are_not_averaged(reward_folder: Path, value_folder: Path) -> None:
    assert read_reward_seal("x", ModelReward(folder=str(value_folder), score="mean"), value_folder).target == {"type": "td"}
    with pytest.raises(ModelError, match=r"policy\.rewards\.x: .* is a reward model, .* take score = 'last'"):
        read_reward_seal("x", ModelReward(folder=str(reward_folder), score="mean"), reward_folder)


def test_a_reward_model_is_no_value_model(tiny_model: Path, reward_folder: Path, value_folder: Path) -> None:
    base = base_model(ModelSection(path=str(tiny_model)))
    folder, record = verified_value_model(str(value_folder), base)
    assert folder == str(value_folder) and not record.is_reward_model
    with pytest.raises(ModelError, match=r"policy\.value_model: .* of unfinished answers .* \[policy\.rewards\.NAME\]"):
        verified_value_model(str(reward_folder), base)


def test_reward_models_of_a_recipe_are_checked_and_named_in_full(
    tiny_model: Path, reward_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = base_model(ModelSection(path=str(tiny_model)))
    monkeypatch.chdir(reward_folder.parent)
    found = verified_rewards({"taste": ModelReward(folder=reward_folder.name)}, base)["taste"]
    assert isinstance(found, ModelReward) and found.folder == str(reward_folder)
    base.tokenizer.add_tokens(["<new>"])
    with pytest.raises(ModelError, match="another tokenizer"):
        verified_rewards({"taste": ModelReward(folder=str(reward_folder))}, base)
    with pytest.raises(ModelError, match=r"has no gvm\.json"):
        verified_rewards({"taste": ModelReward(folder=str(tmp_path))}, base)
