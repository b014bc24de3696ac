"""Tokenizers in the manner of model families, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The template, the special tokens (ids from 0 on), the tokenizer's end of sequence, what configs name, the end, all that stop.
Family = tuple[str, list[str], str | None, list[str] | str | None, str, list[str]]
Make = Callable[[Family], tuple[Any, Path]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A tokenizer of a family, loaded from a folder with a generation config."""

    def made(family: Family) -> tuple[Any, Path]:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        template, special, eos, configured, *_ = family
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        raw.train_from_iterator([], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet))
        fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos, bos_token="<bos>" if "<bos>" in special else None)
        fast.chat_template = template or None
        fast.save_pretrained(tmp_path)
        if configured is not None:
            ids = [special.index(one) for one in configured] if isinstance(configured, list) else special.index(configured)
            (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        # A config's default, that engines do not read beside a generation config.
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 200} if configured is not None else {}))
        return AutoTokenizer.from_pretrained(tmp_path, config=None), tmp_path

    return made
