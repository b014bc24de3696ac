"""Recipes: strictness, overrides, cross-section checks, redaction, and light imports."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from dvpo_ray.config import DpoRecipe, PipelineRecipe, PolicyRecipe, RewardRecipe, ValueRecipe, dump_resolved, load_recipe
from dvpo_ray.config.base import Secret, Section
from dvpo_ray.config.loading import build, shipped_recipes, to_toml, walk_fields
from dvpo_ray.config.references import secrets
from dvpo_ray.config.sections import LoraSection
from dvpo_ray.errors import ConfigError
from dvpo_ray.runs.folder import check_same_run

MINIMAL = '[policy]\nvalue_model = "gvm"\n[policy.data]\nsource = "prompts.jsonl"\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(MINIMAL)
    return path


def test_every_shipped_recipe_loads() -> None:
    kinds = {"demo": PipelineRecipe, "demo-dpo": DpoRecipe, "hh-harmless-value": ValueRecipe}
    assert "demo" in shipped_recipes()
    for name in shipped_recipes():
        load_recipe(kinds.get(name, PipelineRecipe), name)


def test_overrides_by_dotted_path(recipe: Path) -> None:
    config = load_recipe(
        PolicyRecipe,
        recipe,
        [
            "policy.learner.learning_rate=3e-6",
            "run.name=try-2",
            "policy.kl.control={type='adaptive', target=3.0}",
            "policy.steps=7",
        ],
    )
    assert config.policy.learner.learning_rate == 3e-6
    assert config.run.name == "try-2"
    assert config.policy.kl.control.type == "adaptive"
    assert config.policy.steps == 7


def test_adapters_are_asked_for_by_any_of_their_keys(recipe: Path) -> None:
    def lora_of(*overrides: str) -> LoraSection | None:
        return load_recipe(PolicyRecipe, recipe, [f"policy.lora.{override}" for override in overrides]).policy.lora

    assert lora_of() is None
    chosen = lora_of('target_modules=["q_proj", "v_proj"]', "alpha=8")
    assert chosen == LoraSection(rank=16, alpha=8, target_modules=("q_proj", "v_proj"))
    assert chosen.scale == 8 / 16
    rooted = lora_of("rank=64", "rslora=true")
    assert rooted is not None and rooted.scale == 32 / 8


def test_labels_of_answers_in_no_pair_are_for_value_models(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[value]\ndata = {source = "x"}\n')
    value = load_recipe(ValueRecipe, path).value
    assert (value.labels, value.label_scale) == ("all", None)
    assert load_recipe(ValueRecipe, path, ["value.label_scale=[0, 4]"]).value.label_scale == (0, 4)
    assert load_recipe(RewardRecipe, path).value.labels == "pairs"
    assert load_recipe(ValueRecipe, path, ["value.target.type=reward"]).value.labels == "pairs"
    with pytest.raises(ConfigError, match="labels = 'all' without effect: a reward model learns from pairs"):
        load_recipe(RewardRecipe, path, ["value.labels=all"])
    with pytest.raises(ConfigError, match="label_scale without effect: pairs have no labels of their own"):
        load_recipe(ValueRecipe, path, ["value.labels=pairs", "value.label_scale=[0, 4]"])
    with pytest.raises(ConfigError, match=r"label_scale is \[4.0, 4.0\]: give the lowest rating, then the highest"):
        load_recipe(ValueRecipe, path, ["value.label_scale=[4, 4]"])


def test_a_reward_recipe_trains_a_reward_model_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[value.data]\nsource = "pairs.jsonl"\n')
    assert load_recipe(RewardRecipe, path).value.target.type == "reward"
    with pytest.raises(ConfigError, match=r"target\.type = 'mc' trains a value model: .* or use `dvpo value train`"):
        load_recipe(RewardRecipe, path, ["value.target.type=mc"])
    with pytest.raises(ConfigError, match="makes a reward model, which is no value model: .* `dvpo reward train`"):
        load_recipe(PipelineRecipe, "demo", ["value.target.type=reward"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dpo.loss=hinge", r"dpo\.loss: .*'sigmoid' or 'ipo'; got 'hinge'"),
        ("dpo.beta=0", r"dpo\.beta: .*greater than 0"),
        ("dpo={loss='ipo', label_smoothing=0.1}", r"label_smoothing \(0\.1\) has no effect on loss = 'ipo': leave it out"),
        ("dpo.checkpoint.keep_best=1", r"keep_best needs scores of steps under way: set evaluation\.every"),
        (
            "dpo={evaluation={source='p'}, rollout={max_new_tokens=600}}",
            r"= 1112 exceeds rollout\.engine\.max_model_len \(1024\)",
        ),
        ("dpo.learner.token_budget=100", r"learner\.token_budget \(100\) is smaller than the longest pair"),
        ("dpo.rollout.prompts_per_step=4", r"dpo\.rollout\.prompts_per_step: unknown key"),
    ],
)
def test_mistakes_of_dpo_recipes_are_named(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[dpo.data]\nsource = "pairs.jsonl"\n')
    assert load_recipe(DpoRecipe, path).dpo.beta == 0.1
    with pytest.raises(ConfigError, match=message):
        load_recipe(DpoRecipe, path, [override])


def test_ipo_averages_log_probs_unless_it_is_told_not_to(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[dpo.data]\nsource = "pairs.jsonl"\n')

    def averaged(*overrides: str) -> bool:
        return load_recipe(DpoRecipe, path, overrides).dpo.average_log_probs

    assert not averaged() and averaged("dpo.loss=ipo")
    assert averaged("dpo.average_log_probs=true") and not averaged("dpo.loss=ipo", "dpo.average_log_probs=false")


def test_an_ipo_run_of_summed_log_probs_is_gone_on_with_only_as_one(tmp_path: Path) -> None:
    """What was recorded before log-probs were averaged by default: `false`, with either loss."""
    path, saved = tmp_path / "r.toml", tmp_path / "config.json"
    path.write_text('[dpo.data]\nsource = "pairs.jsonl"\n')
    for loss in ("sigmoid", "ipo"):
        saved.write_text(dump_resolved(load_recipe(DpoRecipe, path, [f"dpo.loss={loss}", "dpo.average_log_probs=false"])))
        if loss == "sigmoid":
            check_same_run(load_recipe(DpoRecipe, path), saved)
    with pytest.raises(ConfigError, match=r"dpo\.average_log_probs was False, this recipe says True"):
        check_same_run(load_recipe(DpoRecipe, path, ["dpo.loss=ipo"]), saved)
    check_same_run(load_recipe(DpoRecipe, path, ["dpo.loss=ipo", "dpo.average_log_probs=false"]), saved)


def test_a_recipe_of_any_letters_is_written_as_it_was_read() -> None:
    tree = {"run": {"name": 'a\N{ROCKET}b\x7f\x85\u2028"\\\t\n'}, "seeds": [1, True, 0.5, "\N{ROCKET}"]}
    assert tomllib.loads(to_toml(tree)) == tree
    with pytest.raises(ConfigError, match=r"run\.output_dir: text that is not Unicode: 'a\\udcff'"):
        load_recipe(PipelineRecipe, "demo", ["run.output_dir=a\udcff"])
    assert load_recipe(PipelineRecipe, "demo", ["run.output_dir=\N{ROCKET}"]).run.output_dir == Path("\N{ROCKET}")


def test_secrets_are_found_in_sections_and_in_sections_by_name() -> None:
    class Service(Section):
        key: Secret | None = None

    class Services(Section):
        own: Service
        named: dict[str, Service]

    sections = Services(own=Service(key="a"), named={"first": Service(), "second": Service(key="b")})
    assert list(secrets(sections)) == ["own.key", "named.second.key"]


def test_changing_a_type_drops_the_old_ones_settings() -> None:
    config = load_recipe(PipelineRecipe, "demo", ["policy.advantage.type=dvpo_static"])
    assert config.policy.advantage.type == "dvpo_static"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "policy.learner.lerning_rate=1e-6",
            r"policy\.learner\.lerning_rate: unknown key; did you mean 'policy\.learner\.learning_rate'",
        ),
        ("policy.advantage.lamda=0.9", r"did you mean 'policy\.advantage\.lam'"),
        ("policy.steps=0", r"policy\.steps: .*greater than or equal to 1; got 0"),
        ("policy.steps=3.5", r"policy\.steps: "),
        ("run.name='../up'", r"run\.name: "),
        ("policy.rollout.engine.max_model_len=256", "answers would be cut silently"),
        ("policy.ppo.mini_batches=5", r"mini_batches \(5\) does not divide"),
        ("policy.learner.token_budget=100", r"learner\.token_budget \(100\) is smaller"),
        ("policy.evaluation={source='x', gold='not a path'}", "package.module:function"),
        ("policy.advantage={type='rloo'}", r"'rloo' compares the answers of a prompt: rollout\.answers_per_prompt \(1\)"),
        ("policy.rewards={x={type='function'}}", r"policy\.rewards\.x\.(function\.)?function: .*required"),
        ("policy.rewards={x={function='no path'}}", "package.module:function"),
        ("policy.rewards={x={type='model'}}", r"policy\.rewards\.x\.(model\.)?folder: .*required"),
        ("policy.rewards={x={type='model', folder='m', score='p10'}}", r"score: .*'last' or 'mean'; got 'p10'"),
        (
            "policy.rewards={x={type='http', url='http://x', patience_s=590}}",
            r"rewards\.x\.patience_s \(590\) \+ timeout_s \(30\) is not below cluster\.call_timeout_s \(600\)",
        ),
        ("cluster.address='ray://head:10001'", "that of Ray Client, which cannot stream answers"),
        ("policy.lora.target_modules=[]", r"at least 1 item"),
        ("policy.lora.dropout=1.0", r"policy\.lora\.dropout: .*less than 1; got 1\.0"),
        ("steps", "not of the form"),
    ],
)
def test_mistakes_are_named(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(PolicyRecipe, recipe, [override])


def test_all_mistakes_are_reported_together(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 mistake\(s\)"):
        load_recipe(PolicyRecipe, recipe, ["policy.steps=0", "run.sead=1"])


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[policy\n")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
        load_recipe(PolicyRecipe, path)
    with pytest.raises(ConfigError, match="no recipe 'nowhere'.*demo"):
        load_recipe(PolicyRecipe, "nowhere")


def test_secrets_are_redacted(recipe: Path) -> None:
    config = load_recipe(PolicyRecipe, recipe, ["tracking.wandb_api_key=hunter2"])
    assert "hunter2" not in dump_resolved(config)
    assert json.loads(dump_resolved(config))["tracking"]["wandb_api_key"] == "**redacted**"
    assert config.tracking.wandb_api_key is not None
    assert config.tracking.wandb_api_key.get_secret_value() == "hunter2"


def test_configuration_is_frozen(recipe: Path) -> None:
    config = load_recipe(PolicyRecipe, recipe)
    with pytest.raises(ValidationError):
        config.policy.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("kind", [ValueRecipe, RewardRecipe, PolicyRecipe, DpoRecipe, PipelineRecipe])
def test_every_field_is_described(kind: type) -> None:
    assert [path for path, field in walk_fields(kind) if not field.description] == []


def test_a_broadcast_needs_gpus_of_their_own(recipe: Path) -> None:
    broadcast = ["policy.transfer.backend=broadcast"]
    with pytest.raises(ConfigError, match=r"set rollout.gpu_share and learner.gpu_share to 1"):
        load_recipe(PolicyRecipe, recipe, broadcast)
    with pytest.raises(ConfigError, match=r"set learner.gpu_share to 1"):
        load_recipe(PolicyRecipe, recipe, [*broadcast, "policy.rollout.engine.tensor_parallel=2"])
    load_recipe(PolicyRecipe, recipe, [*broadcast, "policy.rollout.gpu_share=1", "policy.learner.gpu_share=1"])


@pytest.mark.parametrize("filtered", ["top_p = 0.9", "top_k = 40", "min_p = 0.05", "repetition_penalty = 1.1"])
@pytest.mark.parametrize(
    ("ratio", "remedy"),
    [
        ('ppo.old_log_probs = "engine"', "ppo.old_log_probs = 'learner'"),
        ("off_policy.max_staleness = 1", "off_policy.correction = 'none'"),
    ],
)
def test_filtered_sampling_and_ratios_to_the_engine_do_not_go_together(
    filtered: str, ratio: str, remedy: str, tmp_path: Path
) -> None:
    """An engine's log-probs are those of what the filter leaves."""
    path = tmp_path / "r.toml"
    path.write_text(MINIMAL + f"[policy.rollout]\n{filtered}\n")
    assert load_recipe(PolicyRecipe, path).policy.rollout.filters == [filtered.split()[0]]
    key, _, value = ratio.partition(" = ")
    with pytest.raises(ConfigError, match=f"rollout.{filtered.split()[0]} makes the engine's probabilities .*{remedy}"):
        load_recipe(PolicyRecipe, path, [f"policy.{key}={value}"])


def test_texts_that_stop_an_answer_filter_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(MINIMAL + '[policy.rollout]\nstop = ["\\n\\n", "###"]\n')
    rollout = load_recipe(PolicyRecipe, path, ["policy.ppo.old_log_probs=engine"]).policy.rollout
    assert rollout.stop == ["\n\n", "###"] and not rollout.filters
    path.write_text(MINIMAL + '[policy.rollout]\nstop = [""]\n')
    with pytest.raises(ConfigError, match="rollout.stop"):
        load_recipe(PolicyRecipe, path)


@pytest.mark.parametrize("url", ["s3://bucket/runs", "file:///runs", "memory://runs"])
def test_a_run_does_not_go_into_a_folder_called_after_a_url(url: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.output_dir.*is a URL.*checkpoint\.copy_to takes URLs"):
        build(DpoRecipe, {"run": {"output_dir": url}, "dpo": {"data": {"source": "pairs.jsonl"}}})


@pytest.mark.parametrize("url", ["memory://run", "simplecache::memory://run"])
def test_no_checkpoint_is_copied_into_memory(url: str) -> None:
    with pytest.raises(ConfigError, match=r"copy_to.*is the memory of the driver, which ends with it"):
        build(DpoRecipe, {"dpo": {"data": {"source": "pairs.jsonl"}, "checkpoint": {"every": 1, "copy_to": url}}})
