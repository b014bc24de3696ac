"""Names for parts of one's own."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from zipfile import ZipFile

import pytest

import dvpo_ray
from dvpo_ray.config import PolicyRecipe, dump_resolved
from dvpo_ray.config.base import FixedOnResume
from dvpo_ray.config.loading import build, load_recipe
from dvpo_ray.config.plans import PLANS, PlanSettings, Shuffled
from dvpo_ray.config.references import fixed_settings, functions
from dvpo_ray.config.rewards import REWARDS, RewardSettings
from dvpo_ray.errors import ConfigError
from dvpo_ray.runs.folder import check_same_run
from dvpo_ray.submission.package import Options, SubmissionRequest, build_package

HERE = __name__


class Slow(PlanSettings):
    """The shuffled plan with a setting that a run keeps."""

    implementation = "dvpo_ray.rollouts.shuffled:ShuffledPlan"

    pace: FixedOnResume[int] = 1
    note: str = ""


class Empty(PlanSettings):
    """Says of nothing what it builds."""


def terse(prompts: list[str], answers: list[str]) -> list[float]:
    """A reward."""
    return [0.0] * len(answers)


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of one test are unknown to others."""
    for registry in (PLANS, REWARDS):
        monkeypatch.setattr(registry, "known", dict(registry.known))


def recipe(**policy: object) -> PolicyRecipe:
    return build(PolicyRecipe, {"policy": {"value_model": "v", "data": {"source": "p.jsonl"}} | policy})


def test_a_registered_class_is_written_by_its_place() -> None:
    assert dvpo_ray.register_plan("slow")(Slow) is Slow
    found = recipe(plan={"type": "slow", "pace": 3})
    assert found.policy.plan == Slow(type=f"{HERE}:Slow", pace=3)
    assert json.loads(dump_resolved(found))["policy"]["plan"] == {"type": f"{HERE}:Slow", "pace": 3, "note": ""}
    assert functions(found) == {"policy.plan.type": f"{HERE}:Slow"}
    assert pickle.loads(pickle.dumps(found)) == found


def test_settings_that_are_given_themselves_are_written_by_name_or_place() -> None:
    assert recipe(plan=Slow(pace=2)).policy.plan.type == f"{HERE}:Slow"
    assert recipe(plan=Shuffled()).policy.plan.type == "shuffled"


def test_a_registered_function_is_a_reward_of_type_function() -> None:
    assert dvpo_ray.register_reward("terse")(terse) is terse
    found = recipe(rewards={"a": {"type": "terse", "weight": 0.5}}).policy.rewards["a"]
    assert found.model_dump() == {"type": "function", "function": f"{HERE}:terse", "weight": 0.5}
    with pytest.raises(ConfigError, match=r"`function` is given by type = 'terse'.*leave it out"):
        recipe(rewards={"a": {"type": "terse", "function": "other:one"}})


def test_what_other_processes_cannot_import_is_refused() -> None:
    class Local(PlanSettings):
        implementation = "dvpo_ray.rollouts.shuffled:ShuffledPlan"

    with pytest.raises(ConfigError, match=r"Local' is defined in a script, a notebook or a function.*move it to the top"):
        dvpo_ray.register_plan("local")(Local)
    with pytest.raises(ConfigError, match=r"reward function '.*<lambda>' is defined in a script"):
        dvpo_ray.register_reward("local")(lambda rows: [0.0] * len(rows))
    with pytest.raises(ConfigError, match=r"move it to the top"):
        recipe(plan=Local())


def test_a_script_is_told_to_move_its_parts(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import dvpo_ray\n\n@dvpo_ray.register_reward('mine')\ndef mine(prompts, answers):\n    return [0.0] * len(answers)\n"
    )
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert said.returncode == 1 and "reward function 'mine' is defined in a script" in said.stderr


def test_what_is_registered_must_be_a_part() -> None:
    with pytest.raises(ConfigError, match=r"rollout plan 'odd': .*terse.* is no class derived from .*\.PlanSettings"):
        dvpo_ray.register_plan("odd")(terse)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match=r"rollout plan 'empty': set implementation = .* in Empty"):
        dvpo_ray.register_plan("empty")(Empty)
    with pytest.raises(ConfigError, match=r"says? .*what it builds: set implementation"):
        Empty().build()
    with pytest.raises(ConfigError, match=r"a name begins with a letter"):
        dvpo_ray.register_plan("a:b")(Slow)
    with pytest.raises(ConfigError, match=r"rollout plan 'shuffled' is registered twice"):
        dvpo_ray.register_plan("shuffled")(Slow)
    assert issubclass(REWARDS.find("function")[0], RewardSettings)


def test_a_module_may_be_imported_again() -> None:
    again = type("Slow", (Slow,), {"__module__": HERE, "__qualname__": "Slow"})
    dvpo_ray.register_plan("slow")(Slow)
    dvpo_ray.register_plan("slow")(again)
    assert PLANS.find("slow")[0] is again


def test_its_settings_are_kept_by_a_resumed_run(tmp_path: Path) -> None:
    found = recipe(plan=Slow(pace=2))
    assert {"policy.plan.type", "policy.plan.pace"} < set(fixed_settings(found))
    saved = tmp_path / "config.json"
    saved.write_text(dump_resolved(found))
    check_same_run(recipe(plan=Slow(pace=2, note="new")), saved)
    with pytest.raises(ConfigError, match=r"policy\.plan\.pace was 2, this recipe says 3"):
        check_same_run(recipe(plan=Slow(pace=3)), saved)


def test_another_process_reads_the_resolved_recipe(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(
        textwrap.dedent(
            """
            import dvpo_ray
            from dvpo_ray.config.plans import PlanSettings

            @dvpo_ray.register_plan("quick")
            class Quick(PlanSettings):
                implementation = "dvpo_ray.rollouts.shuffled:ShuffledPlan"
                pace: int = 1
            """
        )
    )
    (tmp_path / "mine.toml").write_text(
        'policy = {value_model = "v", data = {source = "p"}, plan = {type = "quick", pace = 4}}\n'
    )
    write = "import parts, dvpo_ray, sys; from dvpo_ray.config import dump_resolved; r = dvpo_ray.load_recipe('mine.toml')"
    read = (
        "import json, sys; from dvpo_ray.config import PolicyRecipe; from dvpo_ray.config.loading import build;"
        "r = build(PolicyRecipe, json.load(open('c.json')))"
    )
    for code in (f"{write}; open('c.json', 'w').write(dump_resolved(r))", f"{read}; assert r.policy.plan.pace == 4, r"):
        # The project from where it is, the part from the current folder.
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)


def test_a_part_that_lies_here_goes_along_with_a_job_or_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_plan.py").write_text(
        "from dvpo_ray.config.plans import PlanSettings\n\nclass Own(PlanSettings):\n"
        "    implementation = 'dvpo_ray.rollouts.shuffled:ShuffledPlan'\n"
    )
    (tmp_path / "p.jsonl").write_text("")
    (tmp_path / "mine.toml").write_text(
        f'run.output_dir = "{tmp_path}"\nmodel.path = "smollm2-135m-instruct"\n'
        f'policy = {{value_model = "{tmp_path}", data = {{source = "p.jsonl"}}, plan = {{type = "own_plan:Own"}}}}\n'
    )
    asked = SubmissionRequest("mine.toml", (), PolicyRecipe, load_recipe(PolicyRecipe, "mine.toml"))
    with pytest.raises(
        ConfigError, match=r"policy\.plan\.type = 'own_plan:Own': 'own_plan\.py' lies in .*--include own_plan\.py"
    ):
        build_package(asked, Options(limit=2**30, here=True), tmp_path / "a.zip")
    build_package(asked, Options(limit=2**30, here=True, include=(Path("own_plan.py"),)), tmp_path / "b.zip")
    with ZipFile(tmp_path / "b.zip") as archive:
        assert {"own_plan.py", "p.jsonl"} < set(archive.namelist())
