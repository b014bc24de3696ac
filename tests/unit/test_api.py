"""What ``import dvpo_ray`` offers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dvpo_ray
from dvpo_ray.config import DpoRecipe, PipelineRecipe, PolicyRecipe, RewardRecipe, ValueRecipe
from dvpo_ray.errors import ConfigError, UserInputError
from tests.support.real import write_lines

DATA = '{source = "x.jsonl"}'


def recipe_file(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"value.data = {DATA}\npolicy.data = {DATA}\n", PipelineRecipe),
        (f"value.data = {DATA}\n", ValueRecipe),
        (f'value = {{data = {DATA}, target = {{type = "reward"}}}}\n', RewardRecipe),
        (f'policy = {{data = {DATA}, value_model = "v"}}\n', PolicyRecipe),
        (f"dpo.data = {DATA}\n", DpoRecipe),
    ],
)
def test_the_sections_of_a_recipe_say_its_kind(tmp_path: Path, text: str, kind: type) -> None:
    assert type(dvpo_ray.load_recipe(recipe_file(tmp_path, text))) is kind


def test_overrides_are_a_mapping_or_texts(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, f"dpo.data = {DATA}\n")
    for overrides in ({"run.seed": 7, "run.name": "a-b"}, ["run.seed=7", "run.name=a-b"]):
        recipe = dvpo_ray.load_recipe(file, overrides)
        assert (recipe.run.seed, recipe.run.name) == (7, "a-b")


def test_overrides_are_taken_as_they_are(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, f"dpo.data = {DATA}\nmodel.revision = 'v1'\n")
    given = {"run.output_dir": tmp_path, "model.chat_template_kwargs": {"enable_thinking": False}, "model.revision": None}
    recipe = dvpo_ray.load_recipe(file, given)
    assert recipe.run.output_dir == tmp_path and recipe.model.revision is None
    assert recipe.model.chat_template_kwargs == {"enable_thinking": False}


def test_a_recipe_of_no_kind_is_refused_by_name(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, f"dpo.data = {DATA}\nvalue.data = {DATA}\n")
    with pytest.raises(
        ConfigError, match=r"mine\.toml: needs \[value\], \[policy\], both, or \[dpo\], and has \['dpo', 'value'\]"
    ):
        dvpo_ray.load_recipe(file)


def test_a_run_is_given_to_the_job_of_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("jobs.train_dpo.train_dpo", lambda recipe, listener: given.append((recipe, listener)) or {"done": True})
    recipe = dvpo_ray.load_recipe(recipe_file(tmp_path, f"dpo.data = {DATA}\n"))
    assert dvpo_ray.run(recipe, print) == {"done": True} and given == [(recipe, print)]


def test_what_a_run_has_left_is_read_while_it_goes_on(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"holds no run: no config\.json"):
        dvpo_ray.read_run(tmp_path)
    (tmp_path / "config.json").write_text('{"run": {"seed": 3}}')
    assert dvpo_ray.read_run(tmp_path).metrics == [] and dvpo_ray.read_run(tmp_path).result is None
    (tmp_path / "policy").mkdir()
    write_lines(tmp_path / "policy" / "metrics.jsonl", [{"step": 0, "value/mean": 0.5}])
    (tmp_path / "result.json").write_text(json.dumps({"steps": 1}))
    run = dvpo_ray.read_run(str(tmp_path))
    assert run.config["run"] == {"seed": 3} and run.metrics == [{"step": 0, "value/mean": 0.5}]
    assert run.evaluations == [] and run.result == {"steps": 1}


def test_the_import_is_light() -> None:
    code = (
        "import sys, dvpo_ray; dvpo_ray.load_recipe('demo');"
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'typer') if m in sys.modules], dir(dvpo_ray))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.startswith("[]") and "read_run" in said
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        dvpo_ray.nothing  # noqa: B018
