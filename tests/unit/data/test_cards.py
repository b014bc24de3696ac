"""Subsets and splits of a downloaded dataset, as the header of its README.md names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dvpo_ray.data import Source
from dvpo_ray.data.sources import iter_raw_rows
from dvpo_ray.errors import DataError

TWO = """
- config_name: rated
  default: true
  data_files:
  - split: train
    path: data/*-rated.jsonl
  - split: held
    path: [more/a.jsonl, "more/b*.jsonl"]
- config_name: plain
  data_dir: old
"""


def card(folder: Path, configs: str, *names: str) -> Path:
    """A folder with files of one row each, which says the file's name, and a card."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"prompt": name}) + "\n")
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs:{configs}---\n# A dataset\n", encoding="utf-8-sig")
    return folder


def prompts(source: Path, split: str | None = None, subset: str | None = None, data_dir: str | None = None) -> list[str]:
    return [str((raw.row or {})["prompt"]) for raw in iter_raw_rows(Source(str(source), split, subset, data_dir))]


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    names = ["data/0-rated.jsonl", "data/1-rated.jsonl", "data/0-plain.jsonl", "more/a.jsonl", "more/b1.jsonl", "more/c.jsonl"]
    return card(tmp_path, TWO, *names, "old/train.jsonl", "old/test.jsonl")


def test_a_card_names_the_files_of_subsets_and_splits(snapshot: Path) -> None:
    assert prompts(snapshot, "train") == ["data/0-rated.jsonl", "data/1-rated.jsonl"]
    assert prompts(snapshot, "held", "rated") == ["more/a.jsonl", "more/b1.jsonl"]
    assert prompts(snapshot, "test", "plain") == ["old/test.jsonl"]
    with pytest.raises(DataError, match="subset rated' has the splits held, train: name one of them"):
        prompts(snapshot)


def test_a_folder_may_be_named_relative_to_the_current_one(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(snapshot.parent)
    assert prompts(Path(snapshot.name), "train") == ["data/0-rated.jsonl", "data/1-rated.jsonl"]


def test_a_subset_that_the_card_does_not_name_is_refused(snapshot: Path) -> None:
    with pytest.raises(DataError, match=r"has no subset 'old', only 'rated', 'plain' \(README.md\)"):
        prompts(snapshot, "train", "old")
    assert prompts(snapshot, "train", data_dir="old") == ["old/train.jsonl"], "a folder of it is named as such"


def test_several_subsets_without_a_default_are_refused_by_name(tmp_path: Path) -> None:
    card(
        tmp_path,
        "\n- config_name: en\n  data_files: en.jsonl\n- config_name: fr\n  data_files: fr.jsonl\n",
        "en.jsonl",
        "fr.jsonl",
    )
    with pytest.raises(DataError, match=r"has the subsets 'en', 'fr' \(README.md\): name one of them, as in `subset = \"en\"`"):
        prompts(tmp_path)
    assert prompts(tmp_path, subset="fr") == ["fr.jsonl"]


def test_a_card_without_files_leaves_them_to_their_names(tmp_path: Path) -> None:
    card(tmp_path, "\n- config_name: default\n", "data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl")
    assert prompts(tmp_path, "test") == ["data/test-00000-of-00001.jsonl"]


def test_a_readme_without_subsets_is_none(tmp_path: Path) -> None:
    card(tmp_path, "\n- config_name: x\n", "one.jsonl")
    (tmp_path / "README.md").write_text("# Notes\n\nconfigs:\n- of mine\n")
    assert prompts(tmp_path) == ["one.jsonl"]


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (
            "\n- config_name: x\n  data_files: gone/*.jsonl\n",
            "has no file 'gone/*.jsonl', which README.md names for split 'train'",
        ),
        ("\n- config_name: x\n  data_files: ../*.jsonl\n", "'../*.jsonl' points outside the folder; it is not trusted"),
        ("\n- config_name: x\n  data_files: /etc/*\n", "'/etc/*' points outside the folder"),
        ("\n- config_name: x\n  data_files: hf://datasets/a/b\n", "'hf://datasets/a/b' points outside the folder"),
        ("\n- config_name: x\n  data_dir: ../y\n", "'../y' points outside the folder"),
        ("\n- config_name: x\n  data_files: 3\n", "README.md: the header, which names the subsets of the data, cannot be read"),
        ("\n- name: x\n", "README.md: the header, which names the subsets of the data, cannot be read"),
        ("\n- config_name: [x\n", "README.md: the header, which names the subsets of the data, cannot be read"),
        ("\n- config_name: x\n  data_files: README.md\n", "none of the files that its card names is of a known kind"),
        (
            "\n- config_name: x\n  default: true\n- config_name: y\n  default: true\n",
            "Dataset has several default configs: 'x' and 'y'. Name one of its subsets as `subset`",
        ),
    ],
)
def test_a_card_that_does_not_fit_is_refused(configs: str, message: str, tmp_path: Path) -> None:
    card(tmp_path, configs, "one.jsonl")
    with pytest.raises(DataError) as caught:
        prompts(tmp_path)
    assert message in str(caught.value)
