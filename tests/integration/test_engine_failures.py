"""Real engines that fail in several ways: what they met themselves is what the driver is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from actors.rollout.engine_tables import architectures, cpu_head_sizes
from actors.rollout.pool import RolloutPool
from dvpo_ray.config import PipelineRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.errors import ActorDiedError, ActorFailedError, ConfigError, PermanentFailureError
from dvpo_ray.planning.preflight import longest_context
from dvpo_ray.runs.run import Event
from jobs.pipeline import run_pipeline
from tests.support.engines import MODEL, answers_of, requests, settings
from tests.support.real import value_tree

pytestmark = [pytest.mark.integration, pytest.mark.fresh]
Altered = Callable[..., Path]


@pytest.fixture
def altered(tiny_model: Path, tmp_path: Path) -> Altered:
    """The tiny model with other settings, and random weights."""

    def make(**changes: Any) -> Path:
        config = LlamaConfig.from_pretrained(tiny_model, **changes)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "altered")
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "altered")
        return tmp_path / "altered"

    return make


def started(folder: Path, ray: ClusterSection, max_restarts: int = 0, **engine: Any) -> RolloutPool:
    rollout = settings(max_restarts=max_restarts).rollout
    rollout = rollout.model_copy(update={"engine": rollout.engine.model_copy(update=engine)})
    return RolloutPool(str(folder), MODEL, rollout, ray, seed=0)


@pytest.mark.slow
def test_a_head_size_that_kernels_lack_is_told_when_answers_are_asked_for(ray: ClusterSection, altered: Altered) -> None:
    """vLLM starts with it, and fails at the first token."""
    pool = started(altered(head_dim=20), ray)
    try:
        pool.wait_ready()
        with pytest.raises(PermanentFailureError) as raised:
            answers_of(pool, requests(1))
    finally:
        pool.stop()
    told = str(raised.value)
    assert "rollout-0" in told and "to mend it: take a model.path with another size of attention heads" in told
    assert "Unsupported CPU attention configuration: head_dim=20" in told
    assert "in EngineCore (pid " in told and "vllm/_custom_ops.py" in told, "the innermost frames"
    assert "above" not in told


def test_a_cache_too_small_for_one_row_is_told(ray: ClusterSection, altered: Altered) -> None:
    pool = started(altered(max_position_embeddings=65536), ray, max_model_len=65536, kv_cache_mib=16)
    try:
        with pytest.raises(PermanentFailureError) as raised:
            pool.wait_ready()
    finally:
        pool.stop()
    told = str(raised.value)
    assert "rollout-0: the engine did not start: ValueError: To serve at least one request" in told
    assert "to mend it: raise rollout.engine.kv_cache_mib" in told
    assert "in EngineCore (pid " in told and "kv_cache_utils.py" in told
    assert "root cause" not in told


def test_a_length_beyond_the_models_is_refused_once_with_the_engines_sentence_and_the_key(
    ray: ClusterSection, tiny_model: Path
) -> None:
    pool = started(tiny_model, ray, max_restarts=3, max_model_len=1024)
    try:
        with pytest.raises(PermanentFailureError) as raised:
            pool.wait_ready()
    finally:
        pool.stop()
    told = str(raised.value)
    assert told.startswith("rollout-0: the engine did not start: "), "and none was started in its place"
    assert "User-specified max_model_len (1024) is greater than the derived max_model_len (max_position_embeddings=512" in told
    assert "to mend it: lower rollout.engine.max_model_len" in told
    assert "serializ" not in told and "input_value" not in told


@pytest.mark.slow
def test_broken_weights_are_told(ray: ClusterSection, altered: Altered) -> None:
    folder = altered()
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    pool = started(folder, ray)
    try:
        with pytest.raises(ActorFailedError, match="rollout-0: the engine did not start: .*SafetensorError: .*") as raised:
            pool.wait_ready()
    finally:
        pool.stop()
    assert "root cause" not in str(raised.value)


@pytest.mark.slow
def test_an_engine_that_is_killed_is_named_and_counts_as_a_death(ray: ClusterSection, tiny_model: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    pool = started(tiny_model, ray)
    try:
        pool.wait_ready()
        ours = set(psutil.Process().children(recursive=True)) - before
        (engine,) = (process for process in ours if process.cmdline()[:1] == ["VLLM::EngineCore"])
        engine.kill()
        with pytest.raises(ActorDiedError) as raised:
            answers_of(pool, requests(1))
    finally:
        pool.stop()
    told = str(raised.value)
    assert f"EngineCore (pid {engine.pid})" in told and "as when they are killed" in told and "GB of memory are free now" in told


def test_a_pipeline_refuses_such_a_model_before_it_trains_anything(
    pairs: Path, prompts: tuple[Path, Path], altered: Altered, tmp_path: Path
) -> None:
    folder = altered(head_dim=20)
    tree = value_tree(folder, pairs, tmp_path)
    policy = {"steps": 1, "data": {"source": str(prompts[0]), "max_prompt_tokens": 64}}
    told: list[Event] = []
    engine = {"max_model_len": 2048}
    with pytest.raises(
        ConfigError, match=r"heads have 20 numbers.*; policy.rollout.engine.max_model_len \(2048\).*512"
    ) as raised:
        run_pipeline(
            build(PipelineRecipe, tree | {"policy": policy | {"rollout": {"max_new_tokens": 12, "engine": engine}}}), told.append
        )
    assert "take a model with one of these sizes" in str(raised.value)
    assert not told and not list(tmp_path.glob("*/value")), "nothing was begun"


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 128},
    ],
)
def test_lengths_are_refused_where_vllm_refuses_them(rope: dict[str, Any], altered: Altered) -> None:
    from vllm.config import ModelConfig

    folder = altered(rope_parameters=rope)
    longest = int(longest_context(AutoConfig.from_pretrained(folder).get_text_config().to_dict())[0])
    assert ModelConfig(model=str(folder), max_model_len=longest).max_model_len == longest
    with pytest.raises(ValueError, match="is greater than the derived max_model_len"):
        ModelConfig(model=str(folder), max_model_len=longest + 1)


def test_tables_read_from_the_source_are_those_of_vllm() -> None:
    from vllm.model_executor.models.registry import _MULTIMODAL_MODELS, _TEXT_GENERATION_MODELS
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert cpu_head_sizes() == set(CPUAttentionBackend.get_supported_head_sizes())
    assert architectures() == {*_TEXT_GENERATION_MODELS, *_MULTIMODAL_MODELS}
