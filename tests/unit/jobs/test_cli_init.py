"""``dvpo init`` writes recipes that can be used, and ``dvpo run`` does what a recipe asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dvpo_ray.config import PipelineRecipe, ValueRecipe, load_recipe
from jobs.cli.main import app


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_a_recipe_is_written_for_what_options_say(tmp_path: Path) -> None:
    file = tmp_path / "new" / "mine.toml"
    options = ("--model", "org/some-model", "--pairs", 'odd "pairs".jsonl', "--devices", "cpu:2:16", "--output", str(file))
    code, output = invoke("init", *options)
    assert code == 0 and f"dvpo run {file}" in output.replace("\n", "")
    recipe = load_recipe(PipelineRecipe, file)
    assert recipe.run.name == "mine" and recipe.model.path == "org/some-model"
    assert recipe.value.data.source == recipe.policy.data.source == 'odd "pairs".jsonl'
    assert invoke("config", "check", str(file))[0] == 0
    code, output = invoke("init", *options)
    assert code == 2 and "is there already" in output
    assert invoke("init", *options, "--prompts", "p.jsonl", "--overwrite")[0] == 0
    assert load_recipe(PipelineRecipe, file).policy.data.source == "p.jsonl"


def test_what_is_missing_is_named_where_nobody_can_be_asked(tmp_path: Path) -> None:
    code, output = invoke("init", "--model", "m", "--output", str(tmp_path / "mine.toml"))
    assert code == 2 and "--pairs is missing" in output and not (tmp_path / "mine.toml").exists()


def test_a_name_that_no_run_can_have_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "my recipe.toml"
    code, output = invoke("init", "--model", "m", "--pairs", "p", "--devices", "cpu:2:16", "--output", str(file))
    assert code == 2 and "run.name" in output and not file.exists()


def test_several_gpus_are_split_as_the_planner_finds_best(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "mine.toml"
    code, output = invoke("init", "--model", str(tiny_model), "--pairs", "p", "--devices", "8xH100-80GB", "--output", str(file))
    assert code == 0, output
    policy = load_recipe(PipelineRecipe, file).policy
    assert 2 < policy.rollout.actors + policy.scorer.actors + policy.learner.ranks <= 8
    assert policy.rollout.gpu_share == policy.learner.gpu_share == 1 and policy.rollout.prompts_per_step == 512
    assert "split as `dvpo plan` finds best" in file.read_text()


def test_run_does_what_the_sections_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("jobs.pretrain_value.pretrain_value", lambda recipe, listener: asked.append(recipe) or {"done": True})
    file = tmp_path / "mine.toml"
    file.write_text('[value]\ndata = {source = "x.jsonl"}\n')
    code, output = invoke("run", str(file), "--set", "run.seed=5", "--resume", "auto", "--json")
    assert code == 0 and json.loads(output.splitlines()[-1]) == {"done": True}
    assert type(asked[0]) is ValueRecipe and (asked[0].run.seed, asked[0].run.resume) == (5, "auto")
