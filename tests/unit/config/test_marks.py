"""Marks of settings: what submission, manifests and resumed runs find without a list of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from pydantic import Field

from dvpo_ray.config import DpoRecipe, PipelineRecipe, PolicyRecipe
from dvpo_ray.config.base import DataSource, FixedOnResume, ModelFolder, PythonFunction, Section, WrittenPlace
from dvpo_ray.config.loading import build, dump_resolved, load_recipe
from dvpo_ray.config.references import data_sources, fixed_on_resume, functions, models, places
from dvpo_ray.errors import ConfigError
from dvpo_ray.runs.folder import check_same_run
from dvpo_ray.submission.package import COMMANDS, Options, SubmissionRequest, build_package
from scripts.config_reference import reference

DATA = "package:dvpo_ray/demo/data/train_pairs.jsonl.gz"


class Teacher(Section):
    """A made-up section."""

    model: ModelFolder | None = Field(None, description="A model.")
    rows: DataSource = Field("rows.jsonl", description="Rows of the teacher.")
    judge: PythonFunction | None = Field(None, description="A function.")
    log: WrittenPlace | None = Field(None, description="Where it writes.")
    strength: FixedOnResume[float] = Field(1.0, description="How much it counts.")


class TaughtRecipe(DpoRecipe):
    """A recipe with that section, and others of it by name."""

    teacher: Teacher = Field(default_factory=Teacher, description="The teacher.")
    others: dict[str, Teacher] = Field({}, description="More of them.")


def taught(folder: Path, **teacher: Any) -> TaughtRecipe:
    run = {"output_dir": str(folder / "runs")}
    dpo = {"data": {"source": DATA}}
    return build(TaughtRecipe, {"run": run, "dpo": dpo, "teacher": teacher, "others": {"second": {"judge": "mine:own"}}})


def test_a_made_up_section_is_found_by_its_marks(tmp_path: Path) -> None:
    recipe = taught(tmp_path, model="some-model", judge="mine:score", log="logs", rows="teach.jsonl")
    assert models(recipe)["teacher.model"] == "some-model"
    assert data_sources(recipe)["teacher.rows"] == "teach.jsonl" and data_sources(recipe)["others.second.rows"] == "rows.jsonl"
    assert functions(recipe) == {"teacher.judge": "mine:score", "others.second.judge": "mine:own"}
    assert [place for place in places(recipe) if place[0] == "teacher.log"] == [("teacher.log", "", "logs")]
    assert "teacher.strength" in fixed_on_resume(TaughtRecipe)


def test_its_data_and_functions_go_along_with_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # How such a job is started is another matter.
    monkeypatch.setitem(COMMANDS, TaughtRecipe, COMMANDS[DpoRecipe])
    for name in ("rows.jsonl", "mine.py"):
        (tmp_path / name).write_text("")

    def packed(teacher: str, *include: Path) -> list[str]:
        text = f'dpo.data.source = "{DATA}"\nothers.second.judge = "installed:own"\n[teacher]\n{teacher}\n'
        (tmp_path / "mine.toml").write_text(text)
        asked = SubmissionRequest("mine.toml", (), TaughtRecipe, load_recipe(TaughtRecipe, "mine.toml"))
        package = tmp_path / "package.zip"
        package.unlink(missing_ok=True)
        build_package(asked, Options(limit=2**30, here=True, include=include), package)
        with ZipFile(package) as archive:
            return archive.namelist()

    assert {"mine.py", "rows.jsonl"} < set(packed('judge = "mine:score"', Path("mine.py")))
    with pytest.raises(ConfigError, match=r"teacher\.judge = 'mine:score': 'mine\.py' lies in"):
        packed('judge = "mine:score"')
    with pytest.raises(ConfigError, match=r"teacher\.rows = 'none\.jsonl' does not exist"):
        packed('rows = "none.jsonl"')


def test_a_resumed_run_keeps_what_is_fixed(tmp_path: Path) -> None:
    saved = tmp_path / "config.json"
    saved.write_text(dump_resolved(taught(tmp_path)))
    check_same_run(taught(tmp_path, log="elsewhere"), saved)
    with pytest.raises(ConfigError, match=r"teacher\.strength was 1\.0, this recipe says 2\.0"):
        check_same_run(taught(tmp_path, strength=2.0), saved)


def test_marked_settings_of_the_recipes_that_are_there() -> None:
    data = {"source": "p.jsonl"}
    policy = {
        "data": data,
        "value_model": "v",
        "ptx": {"data": {"source": "d.jsonl"}},
        "evaluation": {"source": "e.jsonl", "gold": "g:g"},
        "rewards": {"a": {"function": "r:r"}, "b": {"type": "model", "folder": "m"}},
        "advantage": {"type": "ppo", "critic": {"initial": "c"}},
        "checkpoint": {"copy_to": "s3://bucket/run"},
    }
    recipe = build(PolicyRecipe, {"policy": policy, "tracking": {"mlflow_uri": "mlruns"}})
    assert set(data_sources(recipe)) == {"policy.data.source", "policy.ptx.data.source", "policy.evaluation.source"}
    wanted = {"model.path", "policy.value_model", "policy.advantage.critic.initial", "policy.rewards.b.folder"}
    assert set(models(recipe)) == wanted
    assert functions(recipe) == {"policy.evaluation.gold": "g:g", "policy.rewards.a.function": "r:r"}
    assert list(places(recipe)) == [("tracking.mlflow_uri", "", "mlruns")]
    assert {"run.seed", "model.path", "policy.data", "policy.advantage.type", "policy.lora.rank"} < set(
        fixed_on_resume(PolicyRecipe)
    )
    assert "policy.data.source" not in fixed_on_resume(PipelineRecipe), "a whole section is compared once"


def test_marks_do_not_show_in_the_reference() -> None:
    assert "Mark" not in reference() and "FixedOnResume" not in reference()
