"""Arguments of chat templates: what prompts become, what answers lose, what a value model remembers, and what is ignored."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.sections import TEMPLATE_OWN, ModelSection
from dvpo_ray.data import (
    ChatEncoder,
    DeadLetters,
    ignored_arguments,
    load_pairs,
    load_tokenizer,
    template_hash,
    tokenizer_hash,
    turn_end,
)
from dvpo_ray.data.chat_template import with_arguments
from dvpo_ray.data.messages import Message
from dvpo_ray.data.thinking import RETHOUGHT, THOUGHT, UNTHOUGHT
from dvpo_ray.errors import ConfigError, ModelError
from dvpo_ray.models.value_model import ValueModelSeal, check_fits
from dvpo_ray.runs.run import Event
from jobs.models import base_model
from tests.unit.data.conftest import Make

# As Qwen3's: thoughts of the last answer are shown, an answer without any gets an empty one, and with `enable_thinking = false`
# the prompt already has it.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}"
    "{% set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m['content'] else '' %}"
    "{% set said = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
FAMILY = (QWEN3, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", None, "<|im_end|>", [])
ASKED = (Message("user", "a question"),)
OFF = {"enable_thinking": False}
EMPTY = "<think>\n\n</think>\n\n"


def pairs_of(tokenizer: Any, folder: Path, **row: str) -> tuple[str, dict[str, int]]:
    """The chosen answer of a row as it is trained on, and what was counted."""
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "p", "rejected": "bad"} | row) + "\n")
    with DeadLetters(folder / "dead") as dead:
        pairs, counts = load_pairs(
            str(folder / "rows.jsonl"), tokenizer, max_prompt_tokens=200, max_answer_tokens=200, dead_letters=dead
        )
    (pair,) = pairs
    return tokenizer.decode(pair.prompt_ids + pair.chosen_ids).partition("<|im_start|>assistant\n")[2], counts.notes


def test_prompts_are_written_with_the_arguments(make: Make) -> None:
    tokenizer, folder = make(FAMILY)
    plain, given = (ChatEncoder(load_tokenizer(folder, arguments=one)).prompt(ASKED) for one in ({}, OFF))
    assert tokenizer.decode(plain) == "<|im_start|>user\na question<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(given) == tokenizer.decode(plain) + EMPTY
    forged = (Message("user", "hi<|im_end|>"),)
    assert tokenizer.decode(ChatEncoder(with_arguments(tokenizer, OFF)).prompt(forged)).endswith(EMPTY)
    assert turn_end(with_arguments(tokenizer, OFF)).end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_thinking_stands_once(make: Make, tmp_path: Path) -> None:
    tokenizer, _ = make(FAMILY)
    with_arguments(tokenizer, OFF)
    assert pairs_of(tokenizer, tmp_path, chosen="good") == (f"{EMPTY}good<|im_end|>", {})
    assert pairs_of(tokenizer, tmp_path, chosen=f"{EMPTY}good") == (f"{EMPTY}good<|im_end|>", {UNTHOUGHT: 1})
    thinks = "<think>\nhm\n</think>\n\ngood"
    assert pairs_of(tokenizer, tmp_path, chosen=thinks) == (f"{EMPTY}{thinks}<|im_end|>", {RETHOUGHT: 1}), "no thought is lost"
    with_arguments(tokenizer, {})
    assert pairs_of(tokenizer, tmp_path, chosen=thinks) == (f"{thinks}<|im_end|>", {})
    assert pairs_of(tokenizer, tmp_path, chosen="good")[0] == f"{EMPTY}good<|im_end|>", "as the template writes it"


def test_thinking_that_an_argument_opens(make: Make, tmp_path: Path) -> None:
    ended = "enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    opening = QWEN3.replace(ended, "think %}<think>\n")
    tokenizer, _ = make((opening, *FAMILY[1:]))
    thinks = "<think>\nhm\n</think>\n\ngood"
    assert pairs_of(with_arguments(tokenizer, {"think": True}), tmp_path, chosen=thinks) == (f"{thinks}<|im_end|>", {THOUGHT: 1})


def test_the_hash_knows_the_arguments_and_is_as_ever_without(make: Make) -> None:
    import hashlib

    tokenizer, _ = make(FAMILY)
    bare = hashlib.sha256(QWEN3.encode()).hexdigest()
    assert template_hash(tokenizer) == template_hash(with_arguments(tokenizer, {})) == bare
    hashes = {template_hash(with_arguments(tokenizer, one)) for one in (OFF, {"enable_thinking": True}, {"enable_thinking": 0})}
    assert len(hashes) == 3 and bare not in hashes
    two = [template_hash(with_arguments(tokenizer, one)) for one in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
    assert two[0] == two[1], "their order is none"


def test_arguments_that_change_nothing_are_named(make: Make) -> None:
    tokenizer, folder = make(FAMILY)
    assert ignored_arguments(tokenizer) == []
    assert ignored_arguments(with_arguments(tokenizer, OFF | {"enable_thinkin": False, "date": "today"})) == [
        "enable_thinkin",
        "date",
    ]
    assert ignored_arguments(with_arguments(tokenizer, {"enable_thinking": True})) == ["enable_thinking"], "it is the default"
    with_arguments(tokenizer, OFF).save_pretrained(folder / "again")
    assert ChatEncoder(load_tokenizer(folder / "again")).prompt(ASKED) == ChatEncoder(load_tokenizer(folder)).prompt(ASKED)
    tokenizer.chat_template = None
    assert ignored_arguments(tokenizer) == ["enable_thinking"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": [1]}, r"model\.chat_template_kwargs: x = \[1\]: expected text, a finite number, true or false"),
        ({"x": {"y": 1}}, "x = .'y': 1.: expected text"),
        ({"x": float("nan")}, "x = nan: expected text, a finite number"),
        ({"a-b": 1}, "'a-b' is no name of a template's variable"),
        ({"tools": "none"}, "'tools' is filled in by this service: leave it out"),
        ("enable_thinking", "model.chat_template_kwargs: Input should be a valid dictionary"),
    ],
)
def test_what_no_template_can_be_given_is_refused(given: Any, said: str) -> None:
    tree = {"model": {"chat_template_kwargs": given}, "policy": {"value_model": "v", "data": {"source": "p.jsonl"}}}
    with pytest.raises(ConfigError, match=said):
        build(PolicyRecipe, tree)


def test_scalars_stay_what_they_are() -> None:
    given = {"a": True, "b": 1, "c": 0.5, "d": "x"}
    found = ModelSection(chat_template_kwargs=given).chat_template_kwargs
    assert found == given and [type(one) for one in found.values()] == [bool, int, float, str]


def test_the_names_that_transformers_takes_itself_are_known() -> None:
    from transformers import PreTrainedTokenizerBase

    taken = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"self", "kwargs"}
    assert taken | {"messages"} == TEMPLATE_OWN


def sealed(**more: Any) -> ValueModelSeal:
    """A seal as `gvm.json` has it."""
    content = {
        "base_model": "m",
        "data_sha256": "d" * 64,
        "pairs": 1,
        "target": {"type": "td"},
        "value_mean": 0.0,
        "value_std": 1.0,
        "held_out_pairs": 1,
        "held_out_accuracy": {},
        "files": {"model.safetensors": "f" * 64},
    }
    return ValueModelSeal.model_validate_json(json.dumps(content | more))


def test_a_value_model_of_other_arguments_is_refused_with_the_reason(make: Make) -> None:
    tokenizer, _ = make(FAMILY)
    words, bare = tokenizer_hash(tokenizer), template_hash(tokenizer)
    off = template_hash(with_arguments(tokenizer, OFF))
    of_off = sealed(tokenizer_sha256=words, chat_template_sha256=off, chat_template_kwargs=OFF)
    check_fits(of_off, words, off, "v", OFF)
    with pytest.raises(ModelError, match=r"model\.chat_template_kwargs = \{enable_thinking = false\}, and the policy has none: "):
        check_fits(of_off, words, bare, "v")
    earlier = sealed(tokenizer_sha256=words, chat_template_sha256=bare)
    check_fits(earlier, words, bare, "v")
    assert earlier.base_revision is None
    with pytest.raises(ModelError, match=r"model\.chat_template_kwargs = none, and the policy has \{enable_thinking = false\}"):
        check_fits(earlier, words, off, "v", OFF)
    with pytest.raises(ModelError, match="another chat template"):
        check_fits(of_off, words, "0" * 64, "v", OFF)


def test_a_job_warns_of_an_argument_that_the_template_ignores(tiny_model: Path) -> None:
    events: list[Event] = []
    base = base_model(ModelSection(path=str(tiny_model), chat_template_kwargs=OFF), events.append)
    (warning,) = [event.text for event in events if event.kind == "warning"]
    assert warning.startswith("model.chat_template_kwargs.enable_thinking: the model's chat template writes the same without it")
    assert base.origin["chat_template_kwargs"] == OFF
    assert "chat_template_kwargs" not in base_model(ModelSection(path=str(tiny_model))).origin
