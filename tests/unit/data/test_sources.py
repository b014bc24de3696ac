"""Folders, splits, names and datasets of the Hub: what is meant is read, what is not clear is refused with the remedy."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dvpo_ray.config.loading import build, load_recipe
from dvpo_ray.config.recipes import PolicyRecipe, ValueRecipe
from dvpo_ray.config.sections import EvaluationSection, ModelSection, PairsSection
from dvpo_ray.data import ChatEncoder, DeadLetters, Reading, Source, load_pairs, load_prompts
from dvpo_ray.data.shapes import Prompted
from dvpo_ray.data.sources import iter_raw_rows, names_a_path
from dvpo_ray.data.split_names import split_of
from dvpo_ray.data.text_limits import longest_token
from dvpo_ray.errors import ConfigError, DataError
from dvpo_ray.models.limits import Limits
from dvpo_ray.models.packaged import ModelPlace
from jobs.cli.main import app
from tests.support.real import write_lines


def lay(folder: Path, *names: str) -> Path:
    """Files of one row each, which says the file's name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"prompt": [name]}), path)
        else:
            path.write_text(json.dumps({"prompt": name}) + "\n")
    return folder


def prompts(source: Path | str, split: str | None = None, **places: Any) -> list[str]:
    return [str((raw.row or {})["prompt"]) for raw in iter_raw_rows(Source(str(source), split, **places))]


SNAPSHOT = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet")


def test_a_downloaded_dataset_is_read_by_split(tmp_path: Path) -> None:
    lay(tmp_path, *SNAPSHOT, "dataset_infos.json", ".cache/huggingface/x.json", ".hidden.jsonl")
    (tmp_path / "README.md").write_text("# A dataset")
    (tmp_path / "LICENSE.txt").write_text("free")
    assert prompts(tmp_path, "train") == list(SNAPSHOT[:2])
    assert prompts(tmp_path, "test") == [SNAPSHOT[2]]
    assert prompts(tmp_path / "data", "test") == [SNAPSHOT[2]]
    with pytest.raises(DataError, match=r'has the splits test, train: name one of them, as in `split = "train"`'):
        prompts(tmp_path)
    with pytest.raises(DataError, match="has the splits test, train, and none or several are meant by split = 'validation'"):
        prompts(tmp_path, "validation")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("hh-Train.jsonl.gz", "train"),
        ("pairs_test_2.csv", "test"),
        ("a.valid.json", "validation"),
        ("dev/0000.parquet", "validation"),
        ("val-00000-of-00001.parquet", "validation"),
        ("eval.jsonl", "eval"),
        ("train_prefs-00000-of-00001.parquet", "train_prefs"),
        ("train-00000-of-00001-4d7a.parquet", "train"),
        ("data/en/train/part.jsonl", "train"),
        ("contest.jsonl", None),
        ("latest.jsonl", None),
        ("pairs.jsonl", None),
    ],
)
def test_the_name_of_a_file_says_its_split(name: str, split: str | None) -> None:
    assert split_of(Path(name)) == split


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (("train.jsonl", "valid.jsonl"), "validation", ["valid.jsonl"]),
        (("train.jsonl", "validation.jsonl"), "dev", ["validation.jsonl"]),
        (("train/a.jsonl", "test/a.jsonl"), "test", ["test/a.jsonl"]),
        (("data/train/a.jsonl", "data/test/a.jsonl"), "train", ["data/train/a.jsonl"]),
        (("data/en/0.jsonl", "data/fr/0.jsonl"), None, ["data/en/0.jsonl", "data/fr/0.jsonl"]),
        (
            ("part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"),
            None,
            ["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"],
        ),
        (("mine_train-00000-of-00001.jsonl", "mine_test-00000-of-00001.jsonl"), "test", ["mine_test-00000-of-00001.jsonl"]),
        (("a.jsonl", "b.JSONL", "notes.md"), None, ["a.jsonl", "b.JSONL"]),
    ],
)
def test_files_of_a_folder(names: tuple[str, ...], split: str | None, found: list[str], tmp_path: Path) -> None:
    lay(tmp_path, *names)
    assert prompts(tmp_path, split) == found


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (("a.jsonl",), "train", "no name of a file says a split; leave `split` out"),
        (
            ("train_sft-00000-of-00001.jsonl", "train_prefs-00000-of-00001.jsonl"),
            "train",
            "has the splits train_prefs, train_sft, and",
        ),
        (("a.jsonl", "b.jsonl.zst"), None, "holds 'b.jsonl.zst', which is of no known kind: unpack it by `zstd -d`"),
        (("data/a.jsonl.zst",), None, "holds 'a.jsonl.zst', which is of no known kind: unpack it by `zstd -d`"),
        (("a.jsonl", "a.jsonl.gz"), None, "holds 'a.jsonl' and 'a.jsonl.gz', likely the same rows twice"),
        (("a.csv", "a.parquet"), None, "holds 'a.csv' and 'a.parquet', likely the same rows twice"),
        (("a.jsonl", "data/b.jsonl"), None, "in files of its own and in 'data': name what is meant, as in `data_dir = \"data\"`"),
        (("one/train.jsonl", "two/train.jsonl"), None, "in its folders 'one', 'two': name one of them as `data_dir`"),
        (("a.txt",), None, "no file of a known kind, but 'a.txt': write one JSON object a line"),
        (("README.md",), None, "no saved dataset and no file of a known kind: .jsonl"),
    ],
)
def test_a_folder_of_which_it_is_not_clear_what_is_meant_is_refused(
    names: tuple[str, ...], split: str | None, message: str, tmp_path: Path
) -> None:
    lay(tmp_path, *names)
    with pytest.raises(DataError) as caught:
        prompts(tmp_path, split)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_folders_that_lead_back_to_themselves_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, "data/in/a.jsonl")
    (tmp_path / "data" / "in" / "again").symlink_to(tmp_path / "data")
    with pytest.raises(DataError, match="leads back to itself"):
        prompts(tmp_path)


def test_rows_of_files_with_one_name_have_ids_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    lay(tmp_path, "data/en/0.jsonl", "data/fr/0.jsonl")
    with DeadLetters(None) as letters:
        rows, counts = load_prompts(str(tmp_path), tokenizer, max_prompt_tokens=99, dead_letters=letters)
    assert [row.row_id for row in rows] == ["data/en/0.jsonl:1", "data/fr/0.jsonl:1"] and not counts.rejected


def test_one_file_has_the_split_that_its_name_says(tmp_path: Path) -> None:
    lay(tmp_path, "x.jsonl", "x_dev.jsonl")
    assert prompts(tmp_path / "x_dev.jsonl", "validation") == ["x_dev.jsonl"]
    for name, split in (("x.jsonl", "train"), ("x_dev.jsonl", "train")):
        with pytest.raises(DataError, match=rf"{name}' is one file and has no splits; leave `split` out \(got 'train'\)"):
            prompts(tmp_path / name, split)
    with pytest.raises(DataError, match=r"is one file: leave `subset` out \(got 'en'\)"):
        prompts(tmp_path / "x.jsonl", subset="en")


def test_a_folder_within_a_folder_is_named_by_data_dir_or_subset(tmp_path: Path) -> None:
    lay(tmp_path, "one/train.jsonl", "two/in/test.jsonl")
    assert prompts(tmp_path, data_dir="one") == ["one/train.jsonl"]
    assert prompts(tmp_path, "test", subset="in", data_dir="two") == ["two/in/test.jsonl"]
    with pytest.raises(DataError, match=r"has no folder 'three' \(subset\), only 'one', 'two'"):
        prompts(tmp_path, subset="three")
    with pytest.raises(DataError, match=r"'\.\./x' leads out of folder"):
        prompts(tmp_path / "one", data_dir="../x")
    with pytest.raises(DataError, match="has no revisions: leave `revision` out"):
        prompts(tmp_path, revision="main")


def test_saved_datasets_have_splits_too(tmp_path: Path) -> None:
    one = {name: datasets.Dataset.from_list([{"prompt": name}]) for name in ("train", "validation")}
    datasets.DatasetDict(one).save_to_disk(tmp_path / "two")
    one["train"].save_to_disk(tmp_path / "one")
    assert prompts(tmp_path / "two", "valid") == ["validation"]
    with pytest.raises(DataError, match="has the splits train, validation: name one of them"):
        prompts(tmp_path / "two")
    assert prompts(tmp_path / "one") == ["train"]
    with pytest.raises(DataError, match="is one dataset and has no splits; leave `split` out"):
        prompts(tmp_path / "one", "train")
    file = next((tmp_path / "one").glob("*.arrow"))
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    with pytest.raises(DataError, match=rf"{file.name} is a Git LFS pointer.*git lfs pull"):
        prompts(tmp_path / "one")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("org/name-v0.1", False),
        ("org/llama-3.1-data", False),
        ("org/name", False),
        ("glue", False),
        ("org/name.jsonl", True),
        ("org/name.JSON.GZ", True),
        ("org/name.zip", True),
        ("pairs.jsonl", True),
        ("pairs.v2", True),
        ("a/b/c", True),
        ("org/..", True),
        ("./name", True),
        ("~/name", True),
        ("$DATA/name", True),
        ("/data", True),
    ],
)
def test_names_of_the_hub_are_told_from_paths(name: str, path: bool) -> None:
    assert names_a_path(name) is path


def test_a_dataset_of_the_hub_is_asked_for_with_all_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*names: Any, **places: Any) -> Any:
        asked.append((names, places))
        return datasets.DatasetDict({"train_prefs": datasets.Dataset.from_list([{"prompt": "a"}])})

    monkeypatch.setattr("datasets.load_dataset", load)
    assert prompts("org/name-v0.1", "train_prefs", subset="en", data_dir="d", revision="r") == ["a"]
    assert asked == [(("org/name-v0.1", "en"), {"data_dir": "d", "revision": "r"})]
    with pytest.raises(DataError, match="'org/name-v0.1' has the splits train_prefs, and none or several are meant"):
        prompts("org/name-v0.1", "train")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ConnectionError("Couldn't reach 'org/name' on the Hub"), "hf download --repo-type dataset org/name --local-dir DIR"),
        (ValueError("Config name is missing. Please pick one among ['a', 'b']"), "Name one of its subsets as `subset`"),
        (RuntimeError("Dataset scripts are no longer supported, but found name.py"), 'revision = "refs/convert/parquet"'),
        (OSError("'org/name' is a gated dataset on the Hub."), "accept its terms on the Hub"),
    ],
)
def test_a_dataset_that_the_hub_does_not_give_is_refused_with_the_remedy(
    error: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*names: Any, **places: Any) -> Any:
        raise error

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(DataError, match="'org/name' is no file or folder here") as caught:
        prompts("org/name")
    assert remedy in str(caught.value)


def test_home_and_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "a.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    for name in ("~/a.jsonl", "$PLACE/a.jsonl", "${PLACE}/a.jsonl", "$HOME/a.jsonl"):
        assert prompts(name) == ["a.jsonl"]
        section = EvaluationSection(source=name)
        assert section.source == str(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="the environment variable 'NOWHERE' is not set"):
        prompts("$NOWHERE/a.jsonl")
    tree: dict[str, Any] = {"value": {"data": {"source": "$NOWHERE/a"}}, "model": {"path": "~nobody-of-that-name/m"}}
    with pytest.raises(ConfigError) as caught:
        build(ValueRecipe, tree)
    assert "value.data.source: '$NOWHERE/a': the environment variable 'NOWHERE' is not set" in str(caught.value)
    assert "model.path: '~nobody-of-that-name/m': there is no home folder '~nobody-of-that-name'" in str(caught.value)
    found = build(
        PolicyRecipe,
        {
            "run": {"output_dir": "~/runs"},
            "model": {"path": "~/m"},
            "policy": {"value_model": "$PLACE/v", "data": {"source": "x"}},
        },
    )
    assert (str(found.run.output_dir), found.model.path) == (str(tmp_path / "runs"), str(tmp_path / "m"))
    assert found.policy.value_model == str(tmp_path / "v")


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[value]\ndata = {source = "x.jsonl"}\n', encoding="utf-8-sig")
    assert load_recipe(ValueRecipe, file).value.data.source == "x.jsonl"


def test_another_split_is_held_out(tmp_path: Path, tokenizer: Any) -> None:
    from jobs.inputs import read_evaluation_prompts, read_pairs
    from jobs.models import BaseModel

    for name in ("train", "test"):
        row = {"prompt": name, "chosen": "a", "rejected": "b"}
        write_lines(tmp_path / f"{name}.jsonl", [row | {"prompt": f"{name} {i}"} for i in range(3)])
    limits: dict[str, Any] = {"max_prompt_tokens": 99, "max_answer_tokens": 9}
    section = PairsSection(source=str(tmp_path), split="train", validation_split="test", **limits)
    apart = PairsSection(source=str(tmp_path / "train.jsonl"), validation_source=str(tmp_path), validation_split="test", **limits)
    for one in (section, apart):
        train, held_out, counts = read_pairs(one, tokenizer, tmp_path / "run")
        assert {pair.prompt_text[:5] for pair in train} == {"train"} and counts.read == 3
        assert [pair.prompt_text for pair in held_out] == ["test 0", "test 1", "test 2"]
    evaluation = EvaluationSection(source=str(tmp_path), split="test", max_prompts=2)
    base = BaseModel(ModelPlace(tmp_path), ModelSection(path="m"), tokenizer, Limits(320, 64, "n_positions"))
    found = read_evaluation_prompts(evaluation, section, base, tmp_path / "run", train)
    assert [prompt.prompt_text for prompt in found] == ["test 0", "test 1"]
    with pytest.raises(DataError, match=rf"'{tmp_path}', row 'test.jsonl:1': .* tokens, the model was made for 4"):
        few = replace(base, limits=Limits(320, 4, "n_positions"))
        read_evaluation_prompts(evaluation, section, few, tmp_path / "run", train)
    with pytest.raises(ValueError, match="validation_split and split are both 'train': name another split"):
        PairsSection(source="x", split="train", validation_split="train")


def test_a_text_that_cannot_fit_is_refused_before_it_is_made_tokens(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No token of this tokenizer is longer than 64 characters, so 10 tokens hold 640 at most."""
    assert longest_token(tokenizer) == 64
    rows = [{"prompt": "p", "chosen": "y" * 641, "rejected": "b"}, {"prompt": "q" * 641, "chosen": "a", "rejected": "b"}]
    source = str(write_lines(tmp_path / "a.jsonl", rows))
    limits: dict[str, Any] = {"max_prompt_tokens": 10, "max_answer_tokens": 10}
    longest = 0

    def spied(chat: ChatEncoder, text: str, asked: Prompted) -> list[int]:
        nonlocal longest
        longest = max(longest, len(text))
        return [*chat.tokenizer(text, add_special_tokens=False)["input_ids"], 1]

    monkeypatch.setattr(ChatEncoder, "answer", spied)
    monkeypatch.setattr(ChatEncoder, "prompt", lambda *given: pytest.fail("it was made tokens"))
    with DeadLetters(tmp_path / "dead.jsonl") as letters:
        _, counts = load_pairs(source, tokenizer, dead_letters=letters, **limits)
    assert counts.rejected == {"too_long": 2} and longest == 1
    found = [json.loads(line)["detail"] for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert found[0] == "'chosen' has 641 characters, more than 10 tokens, the limit, can hold"
    assert found[1].startswith("the prompt has 641 characters")
    monkeypatch.undo()
    source = str(write_lines(tmp_path / "b.jsonl", [{"prompt": "p", "chosen": "abc" * 9999, "rejected": "b"}]))
    with DeadLetters(None) as letters:
        limits["max_prompt_tokens"] = 99
        (pair,), _ = load_pairs(source, tokenizer, dead_letters=letters, overlong="truncate_answer", **limits)
    assert tokenizer.decode(pair.chosen_ids) == "abcabcabca"


def test_value_eval_takes_a_split_and_shows_the_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def evaluate(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments)
        rows = {"read": 4, "kept": 3, "rejected": {"too_long": 1}}
        accuracy = {"accuracy": {"mean": 0.75, "last": 0.5}, "accuracy_mean_ci95": (0.5, 0.9)}
        return {"value_model": "m", "pairs": 3, "rows": rows, **accuracy}

    monkeypatch.setitem(sys.modules, "jobs.evaluate", SimpleNamespace(evaluate_value=evaluate))
    command = ["value", "eval", "m", "--data", "d", "--split", "test", "--max-bad-share", "0.3"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert asked == [(Path("m"), Source("d", "test"), 512, 512, 0.3, None, Reading())]
    more = ["--subset", "en", "--format", "pair", "--columns", "prompt=ask", "--columns", "chosen=meta.best"]
    assert CliRunner().invoke(app, [*command, *more]).exit_code == 0
    reading = Reading("pair", {"prompt": "ask", "chosen": "meta.best"})
    assert asked[1][1:] == (Source("d", "test", "en"), 512, 512, 0.3, None, reading)
    refused = CliRunner().invoke(app, [*command, "--columns", "ask"])
    assert refused.exit_code != 0 and "--columns ask: give NAME=COLUMN" in " ".join(refused.output.split())
    lines = dict(line.rsplit("  ", 1) for line in result.output.splitlines())
    shown = {key.strip(): value for key, value in lines.items()}
    assert shown["pair accuracy, mean value"] == "0.750" and shown["rows left out, too_long"] == "1"
    assert shown["pair accuracy, mean value, 95% interval"] == "0.500 to 0.900"
    assert json.loads(CliRunner().invoke(app, [*command, "--json"]).output)["accuracy"] == {"mean": 0.75, "last": 0.5}
