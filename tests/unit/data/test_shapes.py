"""Every shape of rows is recognised and read right, whatever it is used for, and nothing is left out in silence."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.data import (
    DeadLetters,
    EncodedAnswer,
    EncodedPair,
    LoadCounts,
    Reading,
    fingerprint,
    load_demonstrations,
    load_pairs,
    load_preferences,
    load_prompts,
)
from dvpo_ray.data.messages import Message
from dvpo_ray.data.shapes import SHAPES, recognise
from dvpo_ray.errors import DataError
from scripts.dataset_shapes import BEGIN, END, table
from tests.unit.data.shape_examples import ASK, BAD, BOTH, DEMONSTRATIONS, EXAMPLES, GOOD, PAIRS, Example, said, user

LIMITS: dict[str, Any] = {"max_prompt_tokens": 400}
BOTH_LIMITS: dict[str, Any] = LIMITS | {"max_answer_tokens": 200}


def write(folder: Path, rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def names(examples: tuple[Example, ...]) -> list[str]:
    return [example.name for example in examples]


@pytest.mark.parametrize("example", PAIRS, ids=names(PAIRS))
def test_pairs(example: Example, tmp_path: Path, tokenizer: Any) -> None:
    with DeadLetters(tmp_path / "dead") as dead:
        pairs, counts = load_pairs(write(tmp_path, example.rows), tokenizer, dead_letters=dead, **BOTH_LIMITS)
    texts = [tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in (p.chosen_ids, p.rejected_ids)) for p in pairs]
    assert tuple(texts) == example.pairs
    assert counts.rejected == dict(example.rejected)
    assert counts.read == len(example.rows) == counts.kept + sum(counts.rejected.values())
    assert counts.shapes == ({example.shape: len(example.rows)} if pairs else {})
    assert len({pair.row_id for pair in pairs}) == len(pairs) == counts.made


@pytest.mark.parametrize("example", PAIRS, ids=names(PAIRS))
def test_labels(example: Example, tmp_path: Path, tokenizer: Any) -> None:
    """Beside the very pairs, answers that are in none have labels, and no row is lost for want of a pair."""
    source = write(tmp_path, example.rows)
    with DeadLetters(None) as dead:
        pairs, _ = load_pairs(source, tokenizer, dead_letters=dead, **BOTH_LIMITS)
        found, counts = load_preferences(source, tokenizer, dead_letters=dead, **BOTH_LIMITS)
    assert [one for one in found if isinstance(one, EncodedPair)] == pairs
    alone = [one for one in found if isinstance(one, EncodedAnswer)]
    assert tuple((tokenizer.decode(one.answer_ids, skip_special_tokens=True), one.label) for one in alone) == example.labels
    assert counts.rejected == {} and counts.read == counts.kept == len(example.rows)
    assert (counts.made, sum(counts.labelled.values())) == (len(pairs), len(alone))
    if not alone:
        assert found == pairs and fingerprint(found) == fingerprint(pairs), "what has pairs alone is trained on as before"


DEMONSTRATED = tuple(example for example in PAIRS + DEMONSTRATIONS if example.demonstration)


@pytest.mark.parametrize("example", DEMONSTRATED, ids=names(DEMONSTRATED))
def test_demonstrations(example: Example, tmp_path: Path, tokenizer: Any) -> None:
    with DeadLetters(None) as dead:
        found, counts = load_demonstrations(write(tmp_path, example.rows), tokenizer, dead_letters=dead, **BOTH_LIMITS)
    assert [tokenizer.decode(one.answer_ids, skip_special_tokens=True) for one in found] == [example.demonstration]
    assert counts.rejected == {}


@pytest.mark.parametrize("example", EXAMPLES, ids=names(EXAMPLES))
def test_prompts(example: Example, tmp_path: Path, tokenizer: Any) -> None:
    """Whatever a row compares or shows, its prompt can be asked."""
    rows = example.rows if SHAPES[example.shape].assembly else example.rows[:1]
    with DeadLetters(None) as dead:
        found, counts = load_prompts(write(tmp_path, rows), tokenizer, dead_letters=dead, **LIMITS)
        expected, _ = load_prompts(
            write(tmp_path, [{"prompt": [m.turn for m in example.prompt]}]), tokenizer, dead_letters=dead, **LIMITS
        )
    assert [(one.prompt_ids, one.prompt_key) for one in found] == [(one.prompt_ids, one.prompt_key) for one in expected]
    assert counts.rejected == {}


@pytest.mark.parametrize("example", PAIRS + DEMONSTRATIONS, ids=names(PAIRS + DEMONSTRATIONS))
def test_shapes_are_recognised_by_most_rows(example: Example) -> None:
    use = "pairs" if example in PAIRS else "demonstrations"
    assert recognise([{"other": 1}, *example.rows * 2], use).name == example.shape  # type: ignore[arg-type]


def test_every_shape_has_an_example() -> None:
    assert {example.shape for example in EXAMPLES} == set(SHAPES)
    assert len(EXAMPLES) >= 50


def test_the_docs_have_the_table() -> None:
    text = Path("docs/datasets.md").read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table().strip(), "python -m scripts.dataset_shapes"


def load(folder: Path, rows: Any, tokenizer: Any, **more: Any) -> tuple[list[Any], LoadCounts]:
    with DeadLetters(folder / "dead") as dead:
        return load_pairs(write(folder, rows), tokenizer, dead_letters=dead, **BOTH_LIMITS, **more)


def test_shared_ids_are_no_row_ids(tmp_path: Path, tokenizer: Any) -> None:
    """Three pairs to each of 20 prompts: 60 rows with 20 ids."""
    rows = [
        {"prompt_id": f"p{i // 3}", "prompt": f"ask {i // 3}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(60)
    ]
    pairs, counts = load(tmp_path, rows, tokenizer)
    assert len(pairs) == counts.kept == 60 and len({pair.row_id for pair in pairs}) == 60
    assert [pair.row_id for pair in pairs[:4]] == ["p0", "p0#2", "p0#3", "p1"]


@pytest.mark.parametrize("empty", ["", "  ", float("nan"), None])
def test_empty_ids_are_none(empty: Any, tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"id": empty, "prompt": f"ask {i}"} | BOTH for i in range(5)]
    pairs, counts = load(tmp_path, rows, tokenizer)
    assert [pair.row_id for pair in pairs] == [f"rows.jsonl:{i}" for i in range(1, 6)] and not counts.rejected


def test_answers_without_a_partner_and_ties_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    rated = [("a", "x", 3), ("b", "x", 1), ("a", "y", 1), ("b", "y", 1), ("c", "z", 4)]
    rows = [
        {"prompt": prompt, "response": f"{answer}{score}{i}", "score": score} for i, (prompt, answer, score) in enumerate(rated)
    ]
    pairs, counts = load(tmp_path, rows, tokenizer)
    assert len(pairs) == 1 and counts.rejected == {"tie": 2, "no_partner": 1} and counts.read == 5
    assert Counter(json.loads(line)["reason"] for line in (tmp_path / "dead").read_text().splitlines()) == counts.rejected


def test_columns_have_the_names_that_the_recipe_gives(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"ask": ASK, "meta": {"best": GOOD}, "worst": BAD, "notes": "n"}]
    reading = Reading(columns={"prompt": "ask", "chosen": "meta.best", "rejected": "worst"})
    pairs, counts = load(tmp_path, rows, tokenizer, reading=reading)
    assert tokenizer.decode(pairs[0].chosen_ids, skip_special_tokens=True) == GOOD
    assert counts.unread == ("notes",)


def test_another_rating_can_be_named(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": ASK, "response": GOOD, "helpfulness": 1, "correctness": 4},
        {"prompt": ASK, "response": BAD, "helpfulness": 4, "correctness": 1},
    ]
    pairs, _ = load(tmp_path, rows, tokenizer, reading=Reading(columns={"score": "correctness"}))
    assert tokenizer.decode(pairs[0].chosen_ids, skip_special_tokens=True) == GOOD


def test_an_unknown_format_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="format = 'chatml' is no known shape of rows; take one of .*'helpsteer3'"):
        load(tmp_path, [{"prompt": ASK} | BOTH], tokenizer, reading=Reading("chatml"))


def test_rows_of_several_shapes_are_each_read_by_their_own(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": ASK} | BOTH, {"chosen": [user(), said(GOOD)], "rejected": [user(), said(BAD)]}, {"prompt": ASK}]
    pairs, counts = load(tmp_path, rows, tokenizer)
    assert len(pairs) == 2 and counts.shapes == {"pair": 1, "pair_of_talks": 1} and counts.rejected == {"missing_field": 1}


def test_what_is_said_names_shape_rows_and_columns(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"id": i, "prompt": f"ask {i}", "source": "web", "group": "g"} | BOTH for i in range(3)]
    assert load(tmp_path, rows, tokenizer)[1].said("pairs") == "pair: 3 rows, 3 pairs; columns not read: source"


def test_space_before_an_answer_is_kept_and_space_after_it_is_not(tmp_path: Path, tokenizer: Any) -> None:
    pairs, _ = load(tmp_path, [{"prompt": ASK, "chosen": "    return 1\n\n", "rejected": "return 2"}], tokenizer)
    assert tokenizer.decode(pairs[0].chosen_ids, skip_special_tokens=True) == "    return 1"


def test_tools_and_tool_turns_reach_the_template(tmp_path: Path, tokenizer: Any) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": "eggs"}}}]}
    turns = [user(), call, {"role": "tool", "content": "7 minutes", "name": "look"}]
    tokenizer = type(tokenizer).from_pretrained(tokenizer.save_pretrained(tmp_path / "t") and tmp_path / "t")
    tokenizer.chat_template = (
        "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{{ m.tool_calls | tojson if m.tool_calls else '' }}{{ m.name or '' }};{% endfor %}"
    )
    tools = [{"type": "function", "function": {"name": "look"}}]
    with DeadLetters(None) as dead:
        found, _ = load_prompts(
            write(tmp_path, [{"messages": turns, "tools": json.dumps(tools)}]), tokenizer, dead_letters=dead, **LIMITS
        )
    text = tokenizer.decode(found[0].prompt_ids)
    assert '"name": "look"' in text.partition("user:")[0], "the tools offered"
    assert '"at": "eggs"' in text and "tool:7 minuteslook;" in text


def test_an_answer_that_calls_a_tool_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    call = said("") | {"tool_calls": [{"function": {"name": "look"}}]}
    _, counts = load(tmp_path, [{"chosen": [user(), call], "rejected": [user(), said(BAD)]}], tokenizer)
    assert counts.rejected == {"wrong_type": 1}
    assert "tool_calls" in (tmp_path / "dead").read_text()


def test_nested_answers_of_a_tree_have_their_conversations(tmp_path: Path, tokenizer: Any) -> None:
    def ranked(*texts: str) -> list[dict[str, Any]]:
        return [{"text": text, "role": "assistant", "rank": n, "replies": []} for n, text in enumerate(texts)]

    deep = {"text": "And two?", "role": "prompter", "replies": ranked("Twice as many.", "Same.")}
    first = ranked(GOOD, BAD)
    first[0]["replies"] = [deep]
    pairs, _ = load(tmp_path, [{"prompt": {"text": ASK, "role": "prompter", "replies": first}}], tokenizer)
    assert [pair.row_id for pair in pairs] == ["rows.jsonl:1/0", "rows.jsonl:1/1"]
    assert tokenizer.decode(pairs[1].prompt_ids).count("<|im_start|>") == 4
    assert Message("user", "And two?").content == pairs[1].prompt_text


def test_tools_beside_messages_are_offered_whatever_the_row_is_read_for(tmp_path: Path, tokenizer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        tokenizer, "chat_template", "{{ tools | tojson if tools else 'none' }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    row = {
        "input": {"messages": [user()], "tools": [{"name": "look"}]},
        "preferred_output": [said(GOOD)],
        "non_preferred_output": [said(BAD)],
    }
    source = write(tmp_path, [row])
    with DeadLetters(None) as dead:
        prompts, _ = load_prompts(source, tokenizer, dead_letters=dead, **LIMITS)
        pairs, _ = load_pairs(source, tokenizer, dead_letters=dead, **BOTH_LIMITS)
    assert "look" in tokenizer.decode(prompts[0].prompt_ids) and prompts[0].prompt_ids == pairs[0].prompt_ids
