"""A recipe made ready for a Ray job: what goes along, what is refused, and that nothing secret does. No Ray is started."""

from __future__ import annotations

import os
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.errors import ConfigError
from dvpo_ray.submission.package import CODE, RECIPE, ROOT, STOP_WAIT, Options, Submission, build_package, git_commit, parse
from tests.support.real import write_lines

MIB = 2**20
HERE = Options(limit=100 * MIB, here=True)
AWAY = Options(limit=100 * MIB, here=False)
PAIRS = 'data = {source = "pairs.jsonl"}'
VALUE = f'[run]\nname = "mine"\n[value]\n{PAIRS}\n'
POLICY = (
    '[policy]\nvalue_model = "runs/value/value-model"\ndata = {source = "package:dvpo_ray/demo/data/train_prompts.jsonl.gz"}\n'
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, with a recipe and its data."""
    inner = tmp_path / "project"
    inner.mkdir()
    monkeypatch.chdir(inner)
    write_lines(inner / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    (inner / "mine.toml").write_text(VALUE)
    return inner


def packed(folder: Path, options: Options = HERE, *overrides: str, recipe: str = "mine.toml") -> Submission:
    return build_package(parse(recipe, overrides), options, folder.parent / "package.zip")


def names(submission: Submission) -> set[str]:
    with zipfile.ZipFile(submission.package) as archive:
        return set(archive.namelist())


def settings(submission: Submission) -> dict[str, Any]:
    with zipfile.ZipFile(submission.package) as archive:
        return tomllib.loads(archive.read(RECIPE).decode())


def test_the_package_holds_the_code_the_recipe_and_its_data(folder: Path) -> None:
    submission = packed(folder, HERE, "value.epochs=3")
    wanted = {
        str(path.relative_to(ROOT))
        for name in CODE
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names(submission) == wanted | {RECIPE, "pairs.jsonl"}
    found = settings(submission)
    assert found["value"] == {"data": {"source": "pairs.jsonl"}, "epochs": 3}
    assert found["cluster"] == {"address": "auto"}
    assert submission.command == f"python -m jobs.pretrain_value {RECIPE}"
    assert submission.run_folder == str(folder / "runs" / "mine")
    assert submission.metadata["run"] == "mine" and submission.metadata["recipe"] == "mine.toml"
    assert submission.metadata.get("git_commit") == git_commit(ROOT)


def test_the_sections_say_which_training(folder: Path) -> None:
    (folder / "policy.toml").write_text(POLICY)
    (folder / "neither.toml").write_text("[run]\n")
    assert packed(folder, recipe="policy.toml").command == f"python -m jobs.train_policy {RECIPE}"
    assert packed(folder, recipe="demo").command == f"python -m jobs.pipeline {RECIPE}"
    (folder / "dpo.toml").write_text('[dpo.data]\nsource = "pairs.jsonl"\n')
    pairs = packed(folder, recipe="dpo.toml")
    assert pairs.command == f"python -m jobs.train_dpo {RECIPE}" and "pairs.jsonl" in names(pairs)
    (folder / "reward.toml").write_text('[value.data]\nsource = "pairs.jsonl"\n')
    asked = parse("reward.toml", reward=True)
    assert asked.recipe.value.target.type == "reward"
    assert build_package(asked, HERE, folder / "x.zip").command == f"python -m jobs.train_reward {RECIPE}"
    with pytest.raises(ConfigError, match=r"policy\.toml: --reward takes a recipe with \[value\] alone"):
        parse("policy.toml", reward=True)
    with pytest.raises(ConfigError, match=r"neither\.toml: needs \[value\], \[policy\], both, or \[dpo\], and has none of them"):
        parse("neither.toml")


def test_with_the_code_in_the_image_only_recipe_and_data_go_along(folder: Path) -> None:
    submission = packed(folder, Options(limit=MIB, here=True, image=True, as_json=True))
    assert names(submission) == {RECIPE, "pairs.jsonl"}
    assert submission.command == f"dvpo value train {RECIPE} --json"
    assert "git_commit" not in submission.metadata


def test_the_same_content_makes_the_same_package(folder: Path) -> None:
    first = packed(folder).package.read_bytes()
    (folder / "pairs.jsonl").touch()
    assert packed(folder).package.read_bytes() == first


def test_hidden_files_and_compiled_ones_stay(folder: Path) -> None:
    for name in ("mine/scores.py", "mine/.env", "mine/.git/config", "mine/__pycache__/scores.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("TOKEN=hunter2")
    submission = packed(folder, Options(limit=100 * MIB, here=True, include=(Path("mine"), Path("pairs.jsonl"))))
    assert {name for name in names(submission) if name.startswith("mine")} == {"mine/scores.py"}


def test_a_package_larger_than_the_cluster_takes_is_refused_by_its_largest_file(folder: Path) -> None:
    write_lines(folder / "pairs.jsonl", [{"prompt": "x" * 5000, "chosen": str(i), "rejected": "c"} for i in range(9)])
    with pytest.raises(ConfigError, match=r"larger than the 0\.0 MiB that the cluster takes.*absolute path"):
        packed(folder, Options(limit=1000, here=True))
    (folder / "noise.jsonl").write_bytes(bytes(range(256)) * 8000)
    options = Options(limit=3 * MIB, here=True, include=(Path("noise.jsonl"),))
    assert "noise.jsonl" in names(packed(folder, options)), "what packs well may be large"
    (folder / "noise.jsonl").write_bytes(os.urandom(4 * MIB))
    with pytest.raises(ConfigError, match=r"larger than the 3\.0 MiB .* most of it is 'noise\.jsonl'"):
        packed(folder, options)


def test_what_cannot_be_read_is_named_not_left_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(top: Path, onerror: Any) -> Any:
        onerror(PermissionError(13, "Permission denied", str(top)))
        return iter(())

    (folder / "mine").mkdir()
    options = Options(limit=100 * MIB, here=True, image=True, include=(Path("mine"),))
    with monkeypatch.context() as patch:
        patch.setattr("dvpo_ray.submission.archive.os.walk", closed)
        with pytest.raises(ConfigError, match=r"'mine' cannot go along: .*Permission denied.*: correct its permissions"):
            packed(folder, options)
    (folder / "mine" / os.fsdecode(b"caf\xe9.py")).touch()
    with pytest.raises(ConfigError, match=r"'mine' cannot go along: .*surrogates not allowed"):
        packed(folder, options)


def test_a_file_beyond_what_a_plain_entry_holds_goes_along(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine.txt").write_bytes(bytes(3000))
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", 1000)
    submission = packed(folder, Options(limit=100 * MIB, here=True, image=True, include=(Path("mine.txt"),)))
    with zipfile.ZipFile(submission.package) as archive:
        assert archive.read("mine.txt") == bytes(3000)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("value.data.source=other.jsonl", r"value\.data\.source = 'other\.jsonl' does not exist in "),
        ("value.data.source=../package.zip", r"value\.data\.source = '\.\./package\.zip' is not below "),
        ("value.data.source=a/../../package.zip", r"is not below |does not exist"),
        ("value.data.validation_source=~/x", r"validation_source = '~/x' does not exist"),
        ("value.data.source=$HOME/nothing/x.jsonl", r"source = '\$HOME/nothing/x\.jsonl' does not exist: it is '/"),
    ],
)
def test_data_that_would_not_be_there_is_refused(folder: Path, override: str, message: str) -> None:
    (folder.parent / "package.zip").touch()
    (folder / "a").mkdir()
    with pytest.raises(ConfigError, match=message):
        packed(folder, HERE, override)


def test_data_of_the_cluster_stays_where_it_is(folder: Path) -> None:
    submission = packed(folder, AWAY, "run.output_dir=/runs", "model.path=/models/m", "value.data.source=/data/pairs.jsonl")
    assert "pairs.jsonl" not in names(submission)
    assert settings(submission)["value"]["data"] == {"source": "/data/pairs.jsonl"}
    assert submission.run_folder == "/runs/mine"


def test_names_with_variables_are_filled_in_for_a_cluster_on_this_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(folder))
    named = ("value.data.source=$PLACE/pairs.jsonl", "model.path=${PLACE}/model")
    found = settings(packed(folder, HERE, *named))
    assert found["value"]["data"]["source"] == str(folder / "pairs.jsonl") and found["model"]["path"] == str(folder / "model")
    with pytest.raises(
        ConfigError, match=r"value\.data\.source = '\$PLACE/pairs\.jsonl' is '/.* on this machine, and the cluster"
    ):
        packed(folder, AWAY, "run.output_dir=/runs", *named)


def test_what_a_run_keeps_or_reads_in_a_folder_is_named_for_the_cluster(folder: Path) -> None:
    (folder / "policy.toml").write_text(POLICY)
    found = settings(packed(folder, HERE, "run.resume=runs/x/checkpoints/step-00000001", recipe="policy.toml"))
    assert found["run"] == {"resume": str(folder / "runs/x/checkpoints/step-00000001"), "output_dir": str(folder / "runs")}
    assert found["policy"]["value_model"] == str(folder / "runs/value/value-model")
    assert "model" not in found, "the packaged model has the same name everywhere"
    for override in ("run.name=a", "run.output_dir=/runs"):
        with pytest.raises(ConfigError, match=r"is relative to a folder of this machine, .* --set [a-z_.]+=/"):
            packed(folder, AWAY, override, recipe="policy.toml")


@pytest.mark.parametrize(
    ("key", "given", "sent"),
    [
        ("value.checkpoint.copy_to", "away", "FOLDER/away"),
        ("value.checkpoint.copy_to", "file://away", "file://FOLDER/away"),
        ("value.checkpoint.copy_to", "s3://bucket/run", None),
        ("value.checkpoint.copy_to", "/away", None),
        ("tracking.mlflow_uri", "file:mlruns", "file:FOLDER/mlruns"),
        ("tracking.mlflow_uri", "sqlite:///mlflow.db", "sqlite:///FOLDER/mlflow.db"),
        ("tracking.mlflow_uri", "sqlite:////mlflow.db", None),
        ("tracking.mlflow_uri", "http://127.0.0.1:5000", None),
        ("tracking.mlflow_uri", "databricks", None),
    ],
)
def test_what_a_run_writes_elsewhere_does_not_go_with_the_jobs_folder(
    folder: Path, key: str, given: str, sent: str | None
) -> None:
    section, _, name = key.rpartition(".")
    found: Any = settings(packed(folder, HERE, f"{key}={given}"))
    for part in section.split("."):
        found = found[part]
    assert found[name] == (given if sent is None else sent.replace("FOLDER", str(folder)))
    if sent is not None:
        with pytest.raises(ConfigError, match=rf"{key} = '{given}' is relative to a folder of this machine, .* --set {key}="):
            packed(folder, AWAY, "run.output_dir=/runs", "model.path=/m", f"{key}={given}")


def test_a_recipe_of_any_letters_goes_along(folder: Path) -> None:
    name = "run\N{ROCKET}\x7f\\end"
    found = settings(packed(folder, HERE, f"run.output_dir={name}"))
    assert found["run"]["output_dir"] == str(folder / name)


def test_a_function_of_ones_own_must_go_along(folder: Path) -> None:
    (folder / "policy.toml").write_text(POLICY)
    (folder / "scores.py").write_text("")
    reward = 'policy.rewards.mine={function = "scores:good"}'
    with pytest.raises(ConfigError, match=r"policy\.rewards\.mine\.function = 'scores:good'.* add --include scores\.py"):
        packed(folder, HERE, reward, recipe="policy.toml")
    options = Options(limit=100 * MIB, here=True, include=(Path("scores.py"),))
    assert "scores.py" in names(packed(folder, options, reward, recipe="policy.toml"))
    (folder / "lib").mkdir()
    (folder / "lib" / "gold.py").write_text("")
    (folder / "lib" / "pairs.jsonl").write_text((folder / "pairs.jsonl").read_text())
    beside = 'policy.rewards.mine={function = "lib.gold:good"}'
    with pytest.raises(ConfigError, match=r"add --include lib/gold\.py"):
        packed(folder, HERE, beside, "policy.data.source=lib/pairs.jsonl", recipe="policy.toml")
    options = Options(limit=100 * MIB, here=True, include=(Path("lib"),))
    assert "lib/gold.py" in names(packed(folder, options, beside, recipe="policy.toml"))


@pytest.mark.parametrize("image", [False, True])
def test_our_own_functions_go_along_from_the_checkout_too(folder: Path, monkeypatch: pytest.MonkeyPatch, image: bool) -> None:
    monkeypatch.chdir(ROOT)
    submission = build_package(parse("demo"), Options(limit=100 * MIB, here=True, image=image), folder.parent / "package.zip")
    assert names(submission) >= ({RECIPE} if image else {RECIPE, "dvpo_ray/demo/gold.py"})


@pytest.mark.parametrize("path", ["../package.zip", "/etc/passwd", ".", "nowhere"])
def test_only_what_is_below_the_folder_goes_along(folder: Path, path: str) -> None:
    (folder.parent / "package.zip").touch()
    with pytest.raises(ConfigError, match=f"--include = '{path}'"):
        packed(folder, Options(limit=MIB, here=True, include=(Path(path),)))


def test_nothing_of_the_package_is_replaced(folder: Path) -> None:
    (folder / "jobs").mkdir()
    (folder / "jobs" / "pipeline.py").write_text("")
    with pytest.raises(ConfigError, match=r"'jobs/pipeline\.py' would be in the job's package twice"):
        packed(folder, Options(limit=100 * MIB, here=True, include=(Path("jobs"),)))


def test_a_job_that_is_stopped_gets_the_time_it_needs(folder: Path) -> None:
    """The deadlines of all its stages: 4 calls, the answers of a step, and those of an evaluation with its weights and scores."""
    assert packed(folder, HERE, "cluster.call_timeout_s=90.6").environment == {STOP_WAIT: "363"}
    copies = ("value.checkpoint.copy_to=file:///away", "value.checkpoint.copy_wait_s=30.0", "cluster.call_timeout_s=90.0")
    assert packed(folder, HERE, *copies).environment == {STOP_WAIT: "390"}
    (folder / "policy.toml").write_text(POLICY)
    times = ("cluster.call_timeout_s=10.0", "policy.rollout.row_timeout_s=7.0", "policy.off_policy.max_staleness=2")
    assert packed(folder, HERE, *times, recipe="policy.toml").environment == {STOP_WAIT: str(4 * 10 + 3 * 7)}
    evaluation = "policy.evaluation.source=pairs.jsonl"
    assert packed(folder, HERE, *times, evaluation, recipe="policy.toml").environment == {STOP_WAIT: str(6 * 10 + 4 * 7)}


def test_secrets_do_not_go_along(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.wandb_api_key would be readable") as caught:
        parse("mine.toml", ["tracking.wandb_api_key=hunter2"])
    assert "hunter2" not in str(caught.value)


def test_a_recipe_of_another_cluster_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.address = 'head:6379'.*--address"):
        parse("mine.toml", ["cluster.address=head:6379"])


def test_what_is_shown_of_a_job_is_text(folder: Path) -> None:
    submission = packed(folder)
    assert all(isinstance(value, str) for value in (submission.metadata | submission.environment).values())


@pytest.mark.parametrize(
    ("link", "target", "problem"),
    [
        ("data/notes.jsonl", "../../secret", "leads out of"),
        ("data/notes.jsonl", "../.env", "leads to a hidden file"),
        ("data/notes.jsonl", "nowhere", "leads to no file"),
        ("data/inner", "../..", "leads to no file"),
        ("data", "../elsewhere", "leads out of"),
    ],
)
def test_a_link_takes_nothing_along_that_would_stay(link: str, target: str, problem: str, folder: Path) -> None:
    (folder.parent / "secret").write_text("hunter2")
    (folder / ".env").write_text("hunter2")
    (folder.parent / "elsewhere").mkdir()
    for inner in (folder / "data", folder.parent / "elsewhere"):
        inner.mkdir(exist_ok=True)
        write_lines(inner / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    if link == "data":
        (folder / "data").rename(folder / "kept")
    (folder / link).symlink_to(target)
    with pytest.raises(ConfigError, match=f"'{link}' is a link that {problem}") as found:
        packed(folder, HERE, 'value.data.source="data"')
    assert "put the file itself there" in str(found.value) and "hunter2" not in str(found.value)


def test_a_link_to_what_may_go_along_is_a_file_of_its_own(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "pairs.jsonl").symlink_to("../pairs.jsonl")
    assert "data/pairs.jsonl" in names(packed(folder, HERE, 'value.data.source="data"'))
