"""Single messages of Open Assistant, put together into trees."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.data import DeadLetters, LoadCounts, Reading, load_demonstrations, load_pairs, load_preferences, load_prompts
from tests.support.real import write_lines

LIMITS: dict[str, Any] = {"max_prompt_tokens": 400}
BOTH: dict[str, Any] = LIMITS | {"max_answer_tokens": 99}


def message(name: str, parent: str | None, text: str, rank: int | None = None, **more: Any) -> dict[str, Any]:
    """As the Hub has them, where every row has every column."""
    role = "prompter" if name.count(".") % 2 == 0 else "assistant"
    row = {"message_id": name, "parent_id": parent, "message_tree_id": name.split(".")[0], "text": text, "role": role}
    return row | {"rank": rank, "deleted": False, "review_result": None, "lang": "en", "tree_state": "ready_for_export"} | more


TREE = [
    message("t", None, "How?"),
    message("t.0", "t", "So.", 0, review_result=True),
    message("t.1", "t", "Not so.", 1),
    message("t.2", "t", "Maybe."),
    message("t.3", "t", "Rubbish", 2, deleted=True),
    message("t.4", "t", "Spam", 3, review_result=False),
    message("t.0.0", "t.0", "And then?"),
    message("t.0.0.0", "t.0.0", "Thus.", 1),
    message("t.0.0.1", "t.0.0", "Like this.", 0),
]
OTHER = [message("u", None, "Why?"), message("u.0", "u", "Because.", 0), message("u.1", "u", "Why not.", 1)]
PAIRS = [("How?", "So.", "Not so."), ("And then?", "Like this.", "Thus."), ("Why?", "Because.", "Why not.")]


def load(folder: Path, rows: list[Any], tokenizer: Any, **more: Any) -> tuple[list[tuple[str, str, str]], LoadCounts]:
    with DeadLetters(folder / "dead.jsonl") as dead:
        found, counts = load_pairs(str(write_lines(folder / "m.jsonl", rows)), tokenizer, dead_letters=dead, **BOTH, **more)
    return [(one.prompt_text, *(tokenizer.decode(x[:-1]) for x in (one.chosen_ids, one.rejected_ids))) for one in found], counts


def nested(rows: list[dict[str, Any]], parent: str | None) -> list[dict[str, Any]]:
    """Messages as the dataset's file of trees has them."""
    return [row | {"replies": nested(rows, row["message_id"])} for row in rows if row["parent_id"] == parent]


def test_messages_are_read_as_their_trees_are(tmp_path: Path, tokenizer: Any) -> None:
    trees = [{"message_tree_id": one["message_id"], "prompt": one} for one in nested(TREE + OTHER, None)]
    found: list[list[Any]] = []
    for rows in (TREE + OTHER, trees):
        source = str(write_lines(tmp_path / "m.jsonl", rows))
        with DeadLetters(None) as dead:
            found.append(
                [
                    load_pairs(source, tokenizer, dead_letters=dead, **BOTH)[0],
                    load_preferences(source, tokenizer, dead_letters=dead, **BOTH)[0],
                    load_prompts(source, tokenizer, dead_letters=dead, **LIMITS)[0],
                    load_demonstrations(source, tokenizer, dead_letters=dead, **BOTH)[0],
                ]
            )
    assert found[0] == found[1]
    assert [one.row_id for one in found[0][0]] == ["t/0", "t/1", "u"]


def test_what_is_left_out_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [*TREE, *OTHER, message("t.3.0", "t.3", "Why rubbish?"), message("t.3.0.0", "t.3.0", "Hm.", 0)]
    found, counts = load(tmp_path, rows, tokenizer)
    assert found == PAIRS
    assert (counts.read, counts.kept, counts.rejected) == (14, 14, {})
    assert counts.shapes == {"open_assistant_messages": 14} and counts.unread == ("lang", "tree_state")
    notes = {
        "messages that were deleted": 1,
        "messages that a review refused": 1,
        "messages that follow from those": 2,
        "answers without a rank": 1,
    }
    assert counts.notes == notes
    trees = [{"message_tree_id": one["message_id"], "prompt": one} for one in nested(rows, None)]
    assert load(tmp_path, trees, tokenizer)[1].notes == notes, "of a file of trees too"


def test_messages_come_in_any_order(tmp_path: Path, tokenizer: Any) -> None:
    rows = TREE + OTHER
    random.Random(3).shuffle(rows)
    assert sorted(load(tmp_path, rows, tokenizer)[0]) == sorted(PAIRS)


def test_messages_without_the_ones_above_them_are_dead_letters(tmp_path: Path, tokenizer: Any) -> None:
    """One whose parent is missing, one that answers it, two that answer each other, and one that is there twice."""
    lost = [message("v.0", "v", "a", 0), message("v.0.0", "v.0", "b"), message("x.0", "y.0", "c"), message("y.0", "x.0", "d")]
    found, counts = load(tmp_path, [*TREE, *lost, *OTHER, OTHER[1]], tokenizer)
    assert found == PAIRS and counts.rejected == {"no_parent": 4, "duplicate_id": 1} and counts.read == 17
    letters = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert {letter["line"]: letter["reason"] for letter in letters} == {
        17: "duplicate_id",
        **dict.fromkeys((10, 11, 12, 13), "no_parent"),
    }
    assert "parent_id 'v'" in letters[1]["detail"] and '"v.0"' in letters[1]["excerpt"]


def test_first_messages_may_lack_the_column_of_parents(tmp_path: Path, tokenizer: Any) -> None:
    """As in Open Assistant's own exports, which leave out what is none."""
    rows = [{key: value for key, value in row.items() if value is not None} for row in TREE + OTHER]
    assert any("parent_id" not in row for row in rows)
    assert load(tmp_path, rows, tokenizer)[0] == PAIRS


@pytest.mark.parametrize("name", ["", None, float("nan")])
def test_messages_without_an_id_are_dead_letters(tmp_path: Path, tokenizer: Any, name: Any) -> None:
    """One of them would be its own parent."""
    found, counts = load(tmp_path, [*TREE, message("x", None, "a") | {"message_id": name}, *OTHER], tokenizer)
    assert found == PAIRS and counts.rejected == {"missing_field": 1}


def test_trees_that_compare_nothing_are_dead_letters_message_by_message(tmp_path: Path, tokenizer: Any) -> None:
    gone = [message("d", None, "Gone?", deleted=True), message("d.0", "d", "a", 0), message("d.1", "d", "b", 1)]
    alone = [message("e", None, "Alone?"), message("e.0", "e", "a", 0)]
    found, counts = load(tmp_path, OTHER + gone + alone, tokenizer)
    assert found == PAIRS[2:] and counts.rejected == {"missing_field": 5} and counts.kept == 3
    details = Counter(json.loads(line)["detail"] for line in (tmp_path / "dead.jsonl").read_text().splitlines())
    assert details == {
        "the tree has no beginning, which is one of the messages that were deleted": 3,
        "the tree has no turn with several ranked answers": 2,
    }


@pytest.mark.parametrize("shape", ["auto", "open_assistant_messages"])
def test_columns_of_messages_have_the_names_that_the_recipe_gives(shape: str, tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"body" if key == "text" else key: value for key, value in row.items()} for row in OTHER]
    found, _ = load(tmp_path, rows, tokenizer, reading=Reading(shape, {"text": "body"}))
    assert found == PAIRS[2:]


@pytest.mark.parametrize("columns", [{}, {"prompt": "ask"}])
def test_other_rows_among_messages_are_read_by_their_own_shapes(columns: dict[str, str], tmp_path: Path, tokenizer: Any) -> None:
    rows = [*OTHER, {columns.get("prompt", "prompt"): "p", "chosen": "a", "rejected": "b"}, "no object"]
    found, counts = load(tmp_path, rows, tokenizer, reading=Reading(columns=columns))
    assert sorted(found) == [("Why?", "Because.", "Why not."), ("p", "a", "b")]
    assert counts.shapes == {"pair": 1, "open_assistant_messages": 3} and counts.rejected == {"not_an_object": 1}


def test_tables_of_messages_are_read_too(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(TREE), tmp_path / "m.parquet")
    with DeadLetters(None) as dead:
        found, counts = load_pairs(str(tmp_path / "m.parquet"), tokenizer, dead_letters=dead, **BOTH)
    assert len(found) == 2 and not counts.rejected
