"""A tokenizer and rows against the ids and positions that a model has."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.data import EncodedDemonstration, EncodedPair, EncodedPrompt
from dvpo_ray.errors import DataError, ModelError
from dvpo_ray.models.limits import Limits
from dvpo_ray.models.packaged import ModelPlace
from jobs.inputs import read_policy_rows
from jobs.models import BaseModel, base_model
from tests.support.real import write_lines

LIMITS = Limits(320, 16, "n_positions")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.GPT2Config(), Limits(50257, 1024, "n_positions")),
        (transformers.LlamaConfig(vocab_size=7, max_position_embeddings=9), Limits(7, 9, "max_position_embeddings")),
        (transformers.MambaConfig(vocab_size=7), Limits(7, math.inf, "")),
    ],
)
def test_limits_are_those_of_the_configuration(config: Any, expected: Limits) -> None:
    assert Limits.of(config) == expected


def with_tokens(base: Path, folder: Path, *tokens: str | AddedToken) -> Path:
    shutil.copytree(base, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # Some ids below the end of the vocabulary are free.
    free = [f"<filler{i}>" for i in range(320 - len(tokenizer))]
    tokenizer.add_tokens([*free, *tokens])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_larger_than_the_embedding_is_refused_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    base_model(ModelSection(path=str(with_tokens(tiny_model, tmp_path / "full"))))
    folder = with_tokens(tiny_model, tmp_path / "more", "<new>", "<newer>")
    with pytest.raises(
        ModelError, match=r"2 tokens that the model has no embedding for: '<new>' is 320, .* vocab_size = 320; .*"
    ):
        base_model(ModelSection(path=str(folder)))


def test_a_special_token_that_nothing_writes_is_let_pass(tiny_model: Path, tmp_path: Path) -> None:
    picture = AddedToken("<picture>", special=True)
    folder = with_tokens(tiny_model, tmp_path / "pictures", picture)
    base = base_model(ModelSection(path=str(folder)))
    ids = base.tokenizer("see <picture>")["input_ids"]
    assert max(ids) == 320
    with pytest.raises(DataError, match=r"'rows', row 'r1': token id 320, the model has embeddings of 320"):
        base.limits.check_rows([EncodedPrompt("r0", "", (1, 2), ""), EncodedPrompt("r1", "", tuple(ids), "")], "rows")
    base.tokenizer.pad_token = "<picture>"
    with pytest.raises(ModelError, match="'<picture>' is 320"):
        base.limits.check_tokenizer(base.tokenizer, folder)
    base.tokenizer.pad_token = base.tokenizer.eos_token
    base.tokenizer.chat_template = "<picture>{{ messages }}"
    with pytest.raises(ModelError, match="'<picture>' is 320"):
        base.limits.check_tokenizer(base.tokenizer, folder)


def test_rows_that_cannot_be_read_are_told_with_their_own_source(tmp_path: Path, tokenizer: Any) -> None:
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "p"}])
    shown = write_lines(tmp_path / "shown.jsonl", [{"prompt": "q", "completion": "r" * 40}])
    data: dict[str, Any] = {"source": str(shown), "max_answer_tokens": 60}
    policy = build(PolicyRecipe, {"policy": {"value_model": "v", "data": {"source": str(prompts)}, "ptx": {"data": data}}}).policy
    place, section = ModelPlace(tmp_path), ModelSection(path="m")
    enough, few = (BaseModel(place, section, tokenizer, Limits(320, size, "n_positions")) for size in (200, 40))
    found = read_policy_rows(policy, enough, tmp_path / "run")
    assert [len(rows) for rows in found] == [1, 1]
    with pytest.raises(DataError, match=rf"'{shown}', row 'shown.jsonl:1': .* the model was made for 40"):
        read_policy_rows(policy, few, tmp_path / "run")


def test_rows_longer_than_the_positions_are_refused() -> None:
    long, fits = tuple(range(9)), tuple(range(7))
    rows: list[Any] = [
        EncodedPrompt("prompt", "", (1,) * 17, ""),
        EncodedPair("pair", "", long, "", chosen_ids=fits, rejected_ids=(*fits, 8)),
        EncodedDemonstration("demonstration", "", long, "", answer_ids=(*fits, 8)),
    ]
    for row in rows:
        with pytest.raises(DataError, match=rf"row '{row.row_id}': 17 tokens, the model was made for 16 \(n_positions\)"):
            LIMITS.check_rows([row], "rows")
    LIMITS.check_rows([EncodedPair("pair", "", long, "", chosen_ids=fits, rejected_ids=fits)], "rows")
    with pytest.raises(DataError, match="token id 400"):
        LIMITS.check_rows([EncodedPair("pair", "", long, "", chosen_ids=fits, rejected_ids=(400,))], "rows")
