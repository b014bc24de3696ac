"""The planner against hand counts, a measured run, and its own simulation."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dvpo_ray.config import PolicyRecipe, dump_resolved
from dvpo_ray.config.backends import DeepSpeedSettings
from dvpo_ray.config.loading import build
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import LearnerSection
from dvpo_ray.errors import ModelError, UserInputError
from dvpo_ray.planning import ModelShape, make_plan, parse_devices
from dvpo_ray.planning.calibration import calibrated, recipe_of
from dvpo_ray.planning.compare import online_critic
from dvpo_ray.planning.devices import CATALOGUE
from dvpo_ray.planning.memory import GB, processes, trained_bytes
from dvpo_ray.planning.plan import Split, best_split, cluster_of, with_split
from dvpo_ray.planning.simulate import Cluster, simulate
from dvpo_ray.planning.times import Efficiency, Workload, stage_seconds, step_seconds
from jobs.cli.main import app
from tests.support.decided import decided, learner_section

LLAMA_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
SMOLLM2_135M = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def training(**policy: Any) -> PolicyTraining:
    tree = {"value_model": "g", "data": {"source": "x", "max_prompt_tokens": 512}} | policy
    for role in ("learner", "scorer"):
        tree[role] = {"token_budget": 4096, "max_padding": 0.05} | tree.get(role, {})
    return decided(build(PolicyRecipe, {"policy": tree}), CATALOGUE["h100-80gb"].facts).policy


def test_reward_models_are_counted_in_the_scorer() -> None:
    shape, device = ModelShape.of(SMOLLM2_135M), parse_devices("1xH100-80GB").device
    bytes_of, seconds_of = [], []
    for rewards in ({}, {"taste": {"type": "model", "folder": "m"}, "own": {"function": "a:b"}}):
        policy = training(rewards=rewards)
        bytes_of.append(next(p for p in processes(policy, shape, "sdpa", device) if p.name == "scorer").total)
        seconds_of.append(stage_seconds(policy, shape, device, Efficiency(), Workload.of(policy))["score"])
    assert bytes_of[1] - bytes_of[0] == 2 * shape.value_parameters, "one more model in bfloat16"
    assert seconds_of[1] > 1.3 * seconds_of[0], "a third forward pass, without logits"


@pytest.mark.parametrize(
    ("backend", "devices", "holders"),
    [
        ("shared_memory", "1xH100-80GB", set()),
        ("broadcast", "2xH100-80GB", {"learner rank", "engine worker"}),
        ("shared_memory", "cpu:2:24", {"learner rank"}),
        ("broadcast", "cpu:2:24", {"learner rank", "engine worker"}),
    ],
)
def test_a_bucket_of_weights_is_counted_where_it_lies(backend: str, devices: str, holders: set[str]) -> None:
    alone, transfer = {"gpu_share": 1.0}, {"backend": backend, "bucket_mib": 64}
    shape, policy = ModelShape.of(SMOLLM2_135M), training(transfer=transfer, rollout=alone, learner=alone)
    found = {p.name: p.parts.get("bucket of weights") for p in processes(policy, shape, "sdpa", parse_devices(devices).device)}
    assert {name: size for name, size in found.items() if size} == dict.fromkeys(holders, 64 * 2**20)


def eight_gpus(**policy: Any) -> PolicyTraining:
    return training(
        rollout={"actors": 3, "prompts_per_step": 128, "max_new_tokens": 512},
        scorer={"actors": 1},
        learner={"ranks": 4, "backend": {"zero_stage": 3}, "gradient_checkpointing": True},
        **policy,
    )


def sharing(stage: int, ranks: int, dtype: str) -> LearnerSection:
    return learner_section(ranks=ranks, dtype=dtype, backend=DeepSpeedSettings.model_validate({"zero_stage": stage}))


def test_parameters_are_those_of_the_models() -> None:
    assert ModelShape.of(LLAMA_8B).parameters == 8_030_261_248
    assert ModelShape.of(SMOLLM2_135M).parameters == 134_515_008


def test_a_configuration_of_another_family_is_named() -> None:
    with pytest.raises(ModelError, match="no 'num_attention_heads'"):
        ModelShape.of({"n_head": 12})


def test_devices_by_name() -> None:
    group = parse_devices("8xa100-80gb")
    assert (group.count, group.device.name, group.device.memory) == (8, "A100-80GB", 80 * GB)
    assert parse_devices("cpu:2:24").device.is_cpu
    for text in ("8xTPU", "0xL4-24GB", "cpu:2"):
        with pytest.raises(UserInputError, match="COUNTxNAME with one of A100-40GB"):
            parse_devices(text)


def test_model_state_by_hand() -> None:
    """Mixed precision: weights 2, float32 gradient 4, optimizer 12 bytes a parameter; of four ranks ZeRO 1 shards the 12, 2 the
    gradient as well, 3 all, with a flat copy of the gradient. In float32 4 + 4 + 8, and the copy at ZeRO 1 as well."""
    totals = [sum(trained_bytes(1e9, sharing(stage, 4, "bfloat16")).values()) / GB for stage in range(4)]
    assert totals == pytest.approx([18, 2 + 4 + 3, 2 + 1 + 3, 0.5 + 1 + 4])
    assert sum(trained_bytes(1e9, sharing(0, 1, "float32")).values()) / GB == pytest.approx(16)
    assert sum(trained_bytes(1e9, sharing(1, 4, "float32")).values()) / GB == pytest.approx(4 + 4 + 3)


def test_model_state_with_adapters_by_hand() -> None:
    """SmolLM2-135M, rank 16: inputs and outputs of its seven linear layers sum to 1152 + 768 + 768 + 1152 + 3 x 2112 = 10,176,
    times 16 times 30 layers. The base needs 2 bytes a parameter, adapters 18."""
    config, shape = training(lora={"rank": 16}), ModelShape.of(SMOLLM2_135M)
    assert shape.trained_parameters(config.lora) == 4_884_480
    only_q = training(lora={"rank": 16, "target_modules": ["self_attn.q_proj"]}).lora
    assert shape.trained_parameters(only_q) == 1152 * 16 * 30
    parts = processes(config, shape, "sdpa", parse_devices("1xL4-24GB").device)[0].parts
    state = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert state == 2 * 134_515_008 + 18 * 4_884_480
    full = processes(training(), shape, "sdpa", parse_devices("1xL4-24GB").device)[0].parts
    assert full["activations"] == parts["activations"]


def test_a_step_with_adapters_has_two_passes_for_three() -> None:
    shape, group = ModelShape.of(LLAMA_8B), parse_devices("8xH200-141GB")
    times = []
    for config in (training(), training(lora={"rank": 8})):
        # No memory traffic: what is left is arithmetic, 3 passes and 4 of the head against 2 and 3.
        stages = stage_seconds(config, shape, group.device, Efficiency(bandwidth=1e9), Workload.of(config))
        times.append(stages["learn"])
    assert 2 / 3 < times[1] / times[0] < 3 / 4


def test_a_pretraining_loss_costs_its_rows_in_every_update() -> None:
    """As many rows as answers, as long, in each of two updates of one pass: 1 + 2 times the arithmetic, and old log-probs beside
    a third of one of them."""
    data = {"source": "x", "max_prompt_tokens": 512, "max_answer_tokens": 256}
    ppo, shape, device = {"mini_batches": 2}, ModelShape.of(LLAMA_8B), parse_devices("8xH200-141GB").device
    seconds = []
    for ptx in (None, {"data": data, "rows_per_step": 32}):
        config = training(ppo=ppo, ptx=ptx)
        seconds.append(stage_seconds(config, shape, device, Efficiency(bandwidth=1e9), Workload.of(config))["learn"])
    assert seconds[1] / seconds[0] == pytest.approx((3 + 1 / 3) / (1 + 1 / 3), rel=0.02)


def test_what_does_not_fit_is_refused_with_its_remedy() -> None:
    config = training(rollout={"actors": 1}, learner={"ranks": 1, "gradient_checkpointing": True})
    plan = make_plan(config, ModelShape.of(LLAMA_8B), "sdpa", parse_devices("8xA100-80GB"), Workload.of(config))
    assert any("learner rank needs" in p and "raise learner.backend.zero_stage (now 0)" in p for p in plan.problems)
    config = eight_gpus()
    fits = make_plan(config, ModelShape.of(LLAMA_8B), "sdpa", parse_devices("8xH200-141GB"), Workload.of(config))
    assert fits.problems == []


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_best_split_is_no_slower_than_any_other(staleness: int) -> None:
    config, shape = eight_gpus(off_policy={"max_staleness": staleness}), ModelShape.of(LLAMA_8B)
    group, work = parse_devices("8xH200-141GB"), Workload.of(config, 256)
    plan = make_plan(config, shape, "sdpa", group, work)
    assert plan.best is not None and plan.best.devices <= 8
    for rollouts, scorers, ranks in product(range(1, 7), repeat=3):
        if rollouts + scorers + ranks <= 8:
            other = with_split(config, Split(rollouts, scorers, ranks, 8))
            if not make_plan(other, shape, "sdpa", group, work).problems:
                stages = stage_seconds(other, shape, group.device, Efficiency(), work)
                assert plan.best_step <= step_seconds(stages, staleness, shared_devices=False) + 1e-9


def test_a_thousand_devices_are_split_too() -> None:
    config = eight_gpus()
    work = Workload(16_000, 512, 256)
    group = parse_devices("1000xH200-141GB")
    best = best_split(config, ModelShape.of(LLAMA_8B), "sdpa", group, work, Efficiency())
    assert best is not None and 990 <= best.devices <= 1000


def test_an_engine_may_use_its_share_of_a_gpu() -> None:
    config = eight_gpus()
    plan = make_plan(config, ModelShape.of(LLAMA_8B), "sdpa", parse_devices("8xA100-40GB"), Workload.of(config))
    assert any("engine worker needs" in problem and "it may use 20 GB" in problem for problem in plan.problems)


def test_running_ahead_is_advised_where_stages_wait() -> None:
    config = eight_gpus()
    shape, group = ModelShape.of(LLAMA_8B), parse_devices("8xH200-141GB")
    plan = make_plan(config, shape, "sdpa", group, Workload.of(config))
    assert any("max_staleness=1" in advice for advice in plan.advice)
    ahead = eight_gpus(off_policy={"max_staleness": 1})
    assert make_plan(ahead, shape, "sdpa", group, Workload.of(ahead)).step < plan.step


def test_calibration_reproduces_the_run() -> None:
    config = training(rollout={"prompts_per_step": 32, "max_new_tokens": 40}, scorer={"rows_per_call": 32})
    shape, device = ModelShape.of(SMOLLM2_135M), parse_devices("cpu:2:24").device
    work = Workload.of(config, 34)
    seconds = {"rollout": 2.5, "score": 2.1, "learn": 5.2, "sync": 0.6}
    efficiency = calibrated(config, shape, device, work, seconds)
    assert stage_seconds(config, shape, device, efficiency, work) == pytest.approx(seconds, rel=0.02)


def test_only_runs_whose_stages_were_timed_apart_calibrate(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="holds no policy run"):
        recipe_of(tmp_path)
    tree: dict[str, Any] = {"policy": {"value_model": "g", "data": {"source": "x"}, "scorer": {"rows_per_call": 32}}}
    (tmp_path / "config.json").write_text(dump_resolved(build(PolicyRecipe, tree)))
    assert recipe_of(tmp_path).policy.rollout.rows_per_step == 32
    tree["policy"]["off_policy"] = {"max_staleness": 1}
    (tmp_path / "config.json").write_text(dump_resolved(build(PolicyRecipe, tree)))
    with pytest.raises(UserInputError, match="overlapped"):
        recipe_of(tmp_path)


def test_an_online_critic_costs_a_second_training() -> None:
    config, shape, device = eight_gpus(), ModelShape.of(LLAMA_8B), parse_devices("8xA100-80GB").device
    work = Workload.of(config)
    extra = online_critic(config, shape, device, Efficiency(), work)
    own = stage_seconds(config, shape, device, Efficiency(), work)
    assert 0.7 * own["learn"] < extra.learning < own["learn"]
    assert 0.3 * own["score"] < extra.scoring < 0.6 * own["score"]


SIMPLE = Cluster(
    engines=4,
    rows_at_once=16,
    decode_base=0.01,
    decode_per_row=0.0005,
    prefill_per_row=0.002,
    scorers=2,
    rows_per_call=8,
    score_per_row=0.02,
    learn=1.5,
    sync=0.2,
    rows_per_step=64,
    answer_mean=100,
    answer_max=100,
    answer_spread=0.0,
)


def test_without_staleness_a_simulated_step_is_the_sum_of_its_stages() -> None:
    """All answers are equally long: 16 rows an engine at once, then 4 batches a scorer, then the learner."""
    rollout = 16 * 0.002 + 100 * (0.01 + 16 * 0.0005)
    expected = rollout + 4 * 8 * 0.02 + 1.5 + 0.2
    assert simulate(SIMPLE).seconds_per_step == pytest.approx(expected, rel=0.02)


def test_with_staleness_the_slowest_stage_sets_the_pace() -> None:
    ahead = vars(SIMPLE) | {"max_staleness": 1}
    stages = {"rollout": 16 * 0.002 + 1.8, "score": 8 * 0.02, "learn": 1.5, "sync": 0.2}
    bound = step_seconds(stages, 1, shared_devices=False)
    assert bound <= simulate(Cluster(**ahead)).seconds_per_step <= 1.15 * bound
    slow_learner = simulate(Cluster(**ahead | {"learn": 5.0}))
    assert slow_learner.seconds_per_step == pytest.approx(5.2, rel=0.02)
    assert slow_learner.idle["learn"] < 0.1 < slow_learner.idle["rollout"]


def test_unequal_answers_cost_time_that_staleness_wins_back() -> None:
    spread = vars(SIMPLE) | {"answer_spread": 0.8, "answer_max": 400}
    equal, unequal = simulate(SIMPLE), simulate(Cluster(**spread))
    assert unequal.seconds_per_step > 1.2 * equal.seconds_per_step
    assert simulate(Cluster(**spread | {"max_staleness": 2})).seconds_per_step < 0.8 * unequal.seconds_per_step


def test_failures_restart_rows_and_all_steps_are_done() -> None:
    failing = simulate(Cluster(**vars(SIMPLE) | {"mean_time_to_failure": 40.0, "restart": 5.0}))
    assert failing.failures > 0 and failing.rows_restarted > 0
    assert len(failing.steps) == 40
    assert failing.seconds_per_step > simulate(SIMPLE).seconds_per_step


PPO = {"advantage": {"type": "ppo"}, "rewards": {"x": {"type": "function", "function": "a:b"}}}


def test_a_critic_is_planned_for_ppo_alone() -> None:
    shape, group = ModelShape.of(LLAMA_8B), parse_devices("16xH100-80GB")
    dvpo, ppo = eight_gpus(), eight_gpus(**PPO)
    named = [{one.name: one for one in processes(policy, shape, "sdpa", group.device)} for policy in (dvpo, ppo)]
    assert "critic rank" not in named[0] and named[1]["critic rank"].count == 4
    assert named[0]["scorer"].parts["value model"] > 0 == named[1]["scorer"].parts["value model"]
    assert named[1]["critic rank"].parts["optimizer"] == pytest.approx(16 * shape.value_parameters / 4)
    plans = [make_plan(policy, shape, "sdpa", group, Workload.of(policy)) for policy in (dvpo, ppo)]
    assert plans[1].stages["learn"] > 1.5 * plans[0].stages["learn"]
    assert plans[1].stages["score"] < plans[0].stages["score"]
    for policy, plan in zip((dvpo, ppo), plans, strict=True):
        assert plan.best is not None
        ranks = policy.trained_models * plan.best.ranks
        assert plan.best.devices == plan.best.rollouts + plan.best.scorers + ranks <= 16


@given(
    engines=st.integers(1, 6),
    at_once=st.integers(1, 20),
    scorers=st.integers(1, 4),
    rows=st.integers(1, 60),
    staleness=st.integers(0, 3),
    spread=st.floats(0, 1),
    failing=st.booleans(),
    seed=st.integers(0, 10),
)
def test_every_simulation_ends_with_shares_of_time(
    engines: int, at_once: int, scorers: int, rows: int, staleness: int, spread: float, failing: bool, seed: int
) -> None:
    varied = {
        "engines": engines,
        "rows_at_once": at_once,
        "scorers": scorers,
        "rows_per_step": rows,
        "max_staleness": staleness,
        "answer_spread": spread,
        "mean_time_to_failure": 30.0 if failing else 0.0,
        "restart": 2.0,
    }
    outcome = simulate(Cluster(**vars(SIMPLE) | varied), steps=6, seed=seed)
    assert len(outcome.steps) == 6 and all(seconds > 0 for seconds in outcome.steps)
    assert all(-1e-6 <= share <= 1 for share in outcome.idle.values())


def test_simulation_and_formula_agree_on_a_real_shape() -> None:
    config, shape = eight_gpus(), ModelShape.of(LLAMA_8B)
    device, work = parse_devices("8xH200-141GB").device, Workload.of(config)
    formula = step_seconds(stage_seconds(config, shape, device, Efficiency(), work), 0, shared_devices=False)
    cluster = cluster_of(config, shape, device, Efficiency(), work)
    equal = Cluster(**vars(cluster) | {"answer_spread": 0.0})
    # The simulation scores while answers are still generated, so it may be faster by most of a scoring.
    assert simulate(equal).seconds_per_step == pytest.approx(formula, rel=0.1)


def test_the_command_prints_a_plan_and_refuses_what_cannot_fit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[policy]\nvalue_model = "g"\n[policy.data]\nsource = "x"\n[policy.rollout]\nactors = 3\nprompts_per_step = 16\n'
        "[policy.learner]\nranks = 4\nbackend = { zero_stage = 3 }\ngradient_checkpointing = true\n"
    )
    command = ["plan", str(recipe), "--model", str(tmp_path), "--devices"]
    shown = CliRunner().invoke(app, [*command, "8xH200-141GB"])
    assert shown.exit_code == 0, shown.output
    for part in ("8030 M parameters on 8 x H200-141GB", "learner rank", "slowest stage", "online critic", "64"):
        assert part in shown.output
    as_json = CliRunner().invoke(app, [*command, "8xH200-141GB", "--json"])
    found = json.loads(as_json.output)
    assert found["step_seconds"] == pytest.approx(sum(found["seconds"].values()))
    refused = CliRunner().invoke(app, [*command, "8xL4-24GB"])
    assert refused.exit_code == 2
    assert "does not fit" in refused.output and "learner rank needs" in refused.output
    value = CliRunner().invoke(app, ["plan", "hh-harmless-value", "--devices", "8xL4-24GB", "-s", "value.data.source=x"])
    assert value.exit_code == 2 and "plan a recipe with [policy]" in value.output


def test_splits_change_only_the_numbers_of_processes() -> None:
    config = eight_gpus()
    plan = make_plan(config, ModelShape.of(LLAMA_8B), "sdpa", parse_devices("8xH200-141GB"), Workload.of(config))
    assert plan.best is not None
    changed = with_split(config, plan.best)
    assert changed.rollout.actors == plan.best.rollouts and changed.rollout.engine == config.rollout.engine
