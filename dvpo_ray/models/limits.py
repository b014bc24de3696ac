"""Token ids and positions that a model has, against those that a tokenizer and rows ask for.

An id without an embedding, or a position beyond a learned table, is an index error in the middle of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_ray.errors import DataError, ModelError
from dvpo_ray.planning.preflight import longest_context


@dataclass(frozen=True)
class Limits:
    """Ids are below ``vocabulary``, rows no longer than ``positions`` tokens (named by ``key``). Example: GPT-2 has
    ``Limits(50257, 1024, "n_positions")``."""

    vocabulary: float
    positions: float
    key: str

    @classmethod
    def of(cls, config: Any) -> Limits:
        """Of a model's configuration, infinite where it does not tell."""
        text = config.get_text_config()
        return cls(getattr(text, "vocab_size", None) or math.inf, *longest_context(text.to_dict()))

    def check_tokenizer(self, tokenizer: Any, folder: Path) -> None:
        """Refuse a tokenizer that writes ids which the model has no embedding for.

        Special tokens that neither the chat template nor the tokenizer itself writes are let pass (Gemma 3's for pictures, in
        models of text alone): ``check_rows`` finds those that a text spells.

        Raises:
            ModelError: naming the first of them.
        """
        added, roles = tokenizer.added_tokens_decoder, ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
        written = {getattr(tokenizer, f"{role}_token_id", None) for role in roles}

        def unwritten(token: str, number: int) -> bool:
            special = number in added and added[number].special
            return special and number not in written and token not in str(tokenizer.chat_template)

        numbers = tokenizer.get_vocab().items()
        beyond = sorted(
            (number, token) for token, number in numbers if number >= self.vocabulary and not unwritten(token, number)
        )
        if beyond:
            number, token = beyond[0]
            raise ModelError(
                f"model folder '{folder}': its tokenizer writes {len(beyond)} tokens that the model has no embedding for: "
                f"'{token}' is {number}, config.json says vocab_size = {self.vocabulary}; give the model more with "
                "resize_token_embeddings(len(tokenizer)) in transformers, and save it and the tokenizer again"
            )

    def check_rows(self, rows: Iterable[Any], source: str) -> None:
        """Refuse encoded rows (prompts, pairs or demonstrations) that the model cannot read.

        Raises:
            DataError: naming the first of them.
        """
        for row in rows:
            answers = [getattr(row, name) for name in ("chosen_ids", "rejected_ids", "answer_ids") if hasattr(row, name)]
            self._check_row(row.row_id, row.prompt_ids, answers or [()], source)

    def _check_row(self, row_id: str, prompt: Sequence[int], answers: Sequence[Sequence[int]], source: str) -> None:
        highest = max(max(ids) for ids in (prompt, *answers) if len(ids))
        if highest >= self.vocabulary:
            raise DataError(
                f"'{source}', row '{row_id}': token id {highest}, the model has embeddings of {self.vocabulary}: take the "
                "special token out of its text, or give the model more embeddings (resize_token_embeddings)"
            )
        length = len(prompt) + max(map(len, answers))
        if length > self.positions:
            raise DataError(
                f"'{source}', row '{row_id}': {length} tokens, the model was made for {self.positions:g} ({self.key}): lower "
                "max_prompt_tokens and max_answer_tokens, or take another model"
            )
