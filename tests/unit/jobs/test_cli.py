"""The command line: exit codes, JSON for machines, errors that say what to mend."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.cluster.local import Session
from dvpo_ray import __version__
from jobs.cli.doctor import examine
from jobs.cli.main import app, main


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_bad_input_is_exit_code_2(tmp_path: Path) -> None:
    code, output = invoke("policy", "train", "nowhere")
    assert code == 2
    assert "no recipe 'nowhere'" in output
    code, output = invoke("demo", "--set", "policy.stepz=3", "--json")
    assert code == 2
    assert json.loads(output)["error"] == "ConfigError"
    assert "did you mean 'policy.steps'" in json.loads(output)["message"]
    assert invoke("report", str(tmp_path))[0] == 2
    assert invoke("config", "check", "demo", "--kind", "nonsense")[0] == 2


def test_the_command_says_its_name_and_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = invoke("--version")
    assert (code, output) == (0, f"dvpo {__version__}\n")
    monkeypatch.setattr("sys.argv", ["/somewhere/dvpo_ray/cli.py", "policy", "train", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "Usage: dvpo policy train [OPTIONS]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("train_policy", "policy train"),
        ("pretrain_value", "value train"),
        ("train_reward", "reward train"),
        ("train_dpo", "dpo train"),
        ("pipeline", "demo"),
    ],
)
def test_a_job_by_its_module_is_its_command(
    module: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [f"jobs/{module}.py", "--help"])
    monkeypatch.delitem(sys.modules, f"jobs.{module}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jobs.{module}", run_name="__main__")
    assert ended.value.code == 0 and sys.argv[1:] == ["--help"]
    assert f"Usage: dvpo {command} [OPTIONS]" in capsys.readouterr().out


def test_config_commands() -> None:
    code, output = invoke("config", "show", "demo", "--set", "policy.steps=3")
    assert code == 0
    assert json.loads(output)["policy"]["steps"] == 3
    code, output = invoke("config", "schema", "--kind", "policy")
    assert code == 0
    assert "PolicyTraining" in json.loads(output)["$defs"]
    assert invoke("config", "check", "demo")[0] == 0


@pytest.fixture
def no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what else this user does on the machine the doctor is told nothing."""
    monkeypatch.setattr("jobs.cli.doctor.sessions", lambda: [])


def test_doctor_names_a_ray_that_others_can_enter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sessions = [Session(tmp_path / name, "127.0.0.1:1", None) for name in ("open", "closed")]
    monkeypatch.setattr("jobs.cli.doctor.sessions", lambda: sessions)
    monkeypatch.setattr("actors.cluster.local.closed_folder_above", lambda path: tmp_path if path.name == "closed" else None)
    checks = [check for check in examine() if check["name"] == "Ray's files"]
    assert [check["status"] for check in checks] == ["fail", "ok"]
    assert "start one by `dvpo cluster start`" in checks[0]["remedy"]


@pytest.mark.usefixtures("no_other_ray")
def test_doctor_finds_this_environment_sound() -> None:
    code, output = invoke("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(output)["checks"]}
    assert code == 0
    assert checks["vLLM build"]["status"] == "ok"
    assert checks["deepspeed"]["found"] == "0.19.8"


def test_doctor_names_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    code, output = invoke("doctor", "--json")
    assert code == 1
    assert "Ray" in json.loads(output)["message"]


def test_doctor_asks_for_a_compiler_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    for found, status in (("/usr/bin/g++", "ok"), (None, "warn")):
        monkeypatch.setattr("jobs.cli.doctor.shutil.which", lambda name, found=found: found)
        (check,) = [check for check in examine() if check["name"].endswith(" compiler")]
        assert check["name"] == "C++ compiler" and check["status"] == status
        assert ("enforce_eager" in check["remedy"]) == (found is None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "H100")
    monkeypatch.delenv("CC", raising=False)
    for found, status in (("/usr/bin/gcc", "ok"), (None, "fail")):
        monkeypatch.setattr("jobs.cli.doctor.shutil.which", lambda name, found=found: found)
        (check,) = [check for check in examine() if check["name"] == "C compiler"]
        assert check["status"] == status and ("libc6-dev" in check["remedy"]) == (found is None)


def test_eval_of_a_recipe_needs_no_command() -> None:
    for words in (("eval", "policy", "nowhere"), ("eval", "nowhere"), ("eval", "--json", "nowhere")):
        code, output = invoke(*words)
        assert code == 2 and "no recipe 'nowhere'" in output
    assert "frontier" in invoke("eval", "--help")[1]


def test_numbers_of_best_of_are_checked() -> None:
    for given in ("1,x", "0,2", ""):
        code, output = invoke("eval", "best-of", "nowhere", "--n", given)
        assert code == 2 and "no list of positive numbers" in " ".join(output.split())


def test_a_frontier_from_the_command_line(tmp_path: Path) -> None:
    facts = {"gold": 0.6, "gold_ci95_low": 0.5, "gold_ci95_high": 0.65, "kl_per_answer": 2.0}
    (tmp_path / "result.json").write_text(json.dumps(facts))
    code, output = invoke("eval", "frontier", str(tmp_path), "--out", str(tmp_path / "f.svg"))
    assert code == 0 and "0.650" in output and (tmp_path / "f.svg").is_file()
    code, output = invoke("eval", "frontier", str(tmp_path / "nowhere"), "--json")
    assert code == 2 and "holds no evaluation with gold" in json.loads(output)["message"]


@pytest.mark.parametrize(
    "words",
    [
        ("init", "--output", "s3://bucket/r.toml"),
        ("eval", "frontier", "runs", "--out", "gs://bucket/f.svg"),
        ("eval", "answers", "demo", "--questions", "q", "--format", "jsonl", "--out", "s3://bucket/a.jsonl"),
        ("value", "eval", "v", "--data", "d", "--dead-letters", "s3://bucket/dead.jsonl"),
        ("cluster", "start", "--folder", "s3://bucket/ray"),
    ],
)
def test_a_url_is_no_file_to_write(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 2 and "is a URL" in done.output
    assert list(tmp_path.iterdir()) == []
