"""What a recipe leaves to the devices: one number type a role, and settings that suit the kind of device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from dvpo_ray.config import PipelineRecipe, PolicyRecipe, load_recipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.sections import settled
from dvpo_ray.planning import device_defaults
from dvpo_ray.planning.device_defaults import ROLES, number_types, settle
from dvpo_ray.planning.node_facts import NodeFacts, measure_node
from dvpo_ray.planning.shapes import ModelShape

FAST = NodeFacts("fast CPU", False, 3.0, 64e9, 100.0)
SLOW = NodeFacts("slow CPU", False, 0.13, 24e9, 138.0)
H200 = NodeFacts("NVIDIA H200", True, 2.0, 141e9)
V100 = NodeFacts("Tesla V100", True, 0.0, 16e9)
SMOLLM2 = ModelShape(30, 576, 1536, 9, 3, 64, 49152, True)


def everywhere(*nodes: NodeFacts) -> dict[str, list[NodeFacts]]:
    return {role: list(nodes) for role in ROLES}


def demo(*overrides: str) -> PipelineRecipe:
    return load_recipe(PipelineRecipe, "demo", list(overrides))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (everywhere(FAST), "bfloat16"),
        (everywhere(SLOW), "float32"),
        # One that cannot is enough.
        (everywhere(FAST, SLOW, FAST), "float32"),
        (everywhere(H200), "bfloat16"),
        # Older than Ampere.
        (everywhere(V100), "float32"),
        # None is up yet.
        ({}, "bfloat16"),
    ],
)
def test_a_role_takes_bfloat16_only_if_all_its_nodes_multiply_it(nodes: Mapping[str, Sequence[NodeFacts]], expected: str) -> None:
    recipe, chosen = settle(demo(), nodes, SMOLLM2)
    assert chosen.number_types == dict.fromkeys(ROLES, expected)
    assert expected in chosen.text
    assert recipe.value.learner.dtype == recipe.policy.learner.dtype == recipe.policy.scorer.dtype == expected
    assert recipe.policy.rollout.engine.dtype == expected


def test_roles_on_other_nodes_take_other_types() -> None:
    _, chosen = settle(demo(), {"learner": [H200], "scorer": [V100], "rollout": [SLOW]}, SMOLLM2)
    assert chosen.number_types == {"learner": "bfloat16", "scorer": "float32", "rollout": "float32"}
    assert "NVIDIA H200 has bfloat16 units" in chosen.text and "Tesla V100 is older than Ampere" in chosen.text
    assert "bfloat16 at 0.13 times the speed of float32 on slow CPU" in chosen.text


def test_what_the_recipe_says_stays_and_a_run_keeps_what_it_began_with() -> None:
    given = ("policy.learner.dtype=bfloat16", "policy.learner.token_budget=700", "model.attention=sdpa")
    recipe, chosen = settle(demo(*given), everywhere(SLOW), SMOLLM2)
    assert chosen.number_types == {"learner": "bfloat16", "scorer": "float32", "rollout": "float32"}
    assert (recipe.policy.learner.token_budget, recipe.model.attention) == (700, "sdpa")
    kept, again = settle(demo(), everywhere(SLOW), SMOLLM2, kept=dict.fromkeys(ROLES, "bfloat16"))
    assert again.number_types == dict.fromkeys(ROLES, "bfloat16") and "as the run began" in again.text
    assert number_types(kept) == again.number_types


def test_settings_of_a_cpu_and_of_a_gpu() -> None:
    """On a GPU a step of the demo is one forward pass of one micro-batch; on a CPU padding costs more than passes."""
    cpu, gpu = (settle(demo(), everywhere(node), SMOLLM2)[0] for node in (SLOW, H200))
    assert (cpu.model.attention, cpu.model.share_prefix) == ("eager", "on")
    assert (gpu.model.attention, gpu.model.share_prefix) == ("sdpa", "off")
    assert (cpu.policy.learner.token_budget, cpu.policy.learner.max_padding) == (1024, 0.15)
    assert (gpu.policy.learner.token_budget, gpu.policy.learner.max_padding) == (16384, 1.0)
    assert (cpu.policy.scorer.token_budget, gpu.policy.scorer.token_budget) == (4096, 32768)
    longer = demo("policy.data.max_prompt_tokens=300", "policy.rollout.engine.max_model_len=512")
    assert settle(longer, everywhere(SLOW), SMOLLM2)[0].model.attention == "sdpa"


def test_a_budget_holds_what_must_stay_together_and_no_more_than_a_gpu_has_room_for() -> None:
    """A layer of a 7B model keeps 34 x 4096 bytes a token, 32 layers 4.46 MB: a quarter of 24 GB holds 1,346 tokens, so 16,384 is
    halved to 1,024. A pair of rows of 1,000 + 500 tokens needs 3,000 all the same."""
    shape, small = ModelShape(32, 4096, 11008, 32, 32, 128, 32000, False), NodeFacts("L4", True, 2.0, 24e9)
    recipe, _ = settle(demo(), everywhere(small, H200), shape)
    assert recipe.policy.learner.token_budget == 1024
    pairs = demo("value.data.max_prompt_tokens=1000", "value.data.max_answer_tokens=500")
    assert settle(pairs, everywhere(small), shape)[0].value.learner.token_budget == 3000
    assert settle(pairs, everywhere(SLOW), SMOLLM2)[0].value.learner.token_budget == 3000


def test_the_cpu_engines_cache_holds_the_rows_it_takes_at_once() -> None:
    """A token of SmolLM2 takes 2 x 30 layers x 3 heads x 64 numbers: 46,080 bytes in float32. 32 rows of one block of 128 tokens,
    and vLLM's own block, are 4,224 tokens: 185.6 MiB, half of it in bfloat16."""
    slow, fast = (settle(demo(), everywhere(node), SMOLLM2)[0].policy.rollout.engine.kv_cache_mib for node in (SLOW, FAST))
    assert (slow, fast) == (186, 93)
    rows = demo("policy.rollout.engine.max_num_seqs=4096", "policy.rollout.prompts_per_step=4096")
    assert settled(settle(rows, everywhere(SLOW), SMOLLM2)[0].policy.rollout.engine.kv_cache_mib) * 2**20 == pytest.approx(
        3e9, rel=1e-3
    )
    assert settle(demo(), everywhere(SLOW))[0].policy.rollout.engine.kv_cache_mib == device_defaults.KV_CACHE_MIB


def test_every_auto_of_every_shipped_recipe_is_decided() -> None:
    def autos(tree: Any, path: str = "") -> list[str]:
        if isinstance(tree, dict):
            return [found for key, value in tree.items() for found in autos(value, f"{path}.{key}")]
        return [path] if tree == "auto" else []

    for node in (SLOW, H200):
        recipe, _ = settle(demo(), everywhere(node), SMOLLM2)
        left = autos(recipe.model_dump(mode="json"))
        # These are about data, about which nodes actors are on and how long pods wait, not about devices.
        formats = {f".{section}.format" for section in ("value.data", "policy.data", "policy.evaluation")}
        others = {".model.packing", ".value.target.lam", ".policy.transfer.backend", ".kubernetes.stop_wait_s"}
        assert set(left) == others | formats


def test_what_is_not_decided_is_not_used() -> None:
    with pytest.raises(AssertionError, match="device defaults"):
        settled(build(PolicyRecipe, {"policy": {"value_model": "v", "data": {"source": "x"}}}).policy.learner.token_budget)


def test_this_machine_is_measured_and_not_believed() -> None:
    facts = measure_node()
    assert facts is measure_node(), "once a process"
    assert facts.bfloat16_speed > 0 or facts.is_gpu
    assert facts.is_gpu or 1 < facts.gflops < 1e5
    assert facts.memory > 1e9 and facts.name
