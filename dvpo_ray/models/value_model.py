"""The Global Value Model on disk: an ordinary token classifier with one label, and ``gvm.json`` that seals it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from dvpo_ray.errors import ModelError
from dvpo_ray.models.folder import check_files, check_weights, hash_files
from dvpo_ray.models.token_reader import kernel_for, no_dropout

SEAL = "gvm.json"


class ValueModelSeal(BaseModel):
    """What ``gvm.json`` records."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1] = Field(1, description="Version of this record.")
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"), description="UTC time.")
    base_model: str = Field(description="Name or folder of the language model it was grown from.")
    tokenizer_sha256: str = Field(description="Hash of vocabulary and special tokens.")
    chat_template_sha256: str = Field(description="Hash of the chat template.")
    data_sha256: str = Field(description="Fingerprint of the training pairs.")
    pairs: int = Field(description="Training pairs.")
    target: dict[str, Any] = Field(description="Target kind and its settings, lambda resolved.")
    value_mean: float = Field(description="Mean of values on held-out answers: of all tokens, or a reward model's last ones.")
    value_std: float = Field(description="Standard deviation of the same values (calibration).")
    held_out_pairs: int = Field(description="Pairs held out for the accuracies.")
    held_out_accuracy: dict[str, float] = Field(description="Share of held-out pairs ranked right, by aggregate of token values.")
    files: dict[str, str] = Field(description="sha256 of every other file in the folder.")

    @property
    def is_reward_model(self) -> bool:
        """Whether only the value at an answer's end was trained."""
        return self.target.get("type") == "reward"


def new_value_model(base: Path, attention: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """A token classifier grown from a language model: zero-initialised head, all dropout 0.

    A zero head makes the first values exactly 0, so the first targets are exactly the discounted label.
    """
    from transformers import AutoConfig, AutoModelForTokenClassification

    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    no_dropout(config)
    # Architectures that are not told have a rate of their own for the head.
    config.classifier_dropout = 0.0
    config.num_labels = 1
    options = {"dtype": dtype, "attn_implementation": kernel_for(config, attention), "trust_remote_code": trust_remote_code}
    model = AutoModelForTokenClassification.from_pretrained(base, config=config, use_safetensors=True, **options)
    _head(model, base)
    nn.init.zeros_(model.score.weight)
    if model.score.bias is not None:
        nn.init.zeros_(model.score.bias)
    return model


def seal(folder: Path, **facts: Any) -> ValueModelSeal:
    """Write ``gvm.json`` into a saved model folder, with the sha256 of every file in it."""
    record = ValueModelSeal(**facts, files=hash_files(folder, exclude=(SEAL,)))
    (folder / SEAL).write_text(record.model_dump_json(indent=2) + "\n")
    return record


def read_seal(folder: str | Path) -> ValueModelSeal:
    """Read and verify ``gvm.json``: its form, and every file's sha256.

    Raises:
        ModelError: the folder is not a sealed value model, or a file does not match.
    """
    path = Path(folder) / SEAL
    if not path.is_file():
        raise ModelError(f"'{folder}' is not a value model: it has no {SEAL}; make one with `dvpo value train`")
    try:
        record = ValueModelSeal.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise ModelError(f"{path}: {where}: {first['msg']}; the seal is damaged, train again or copy the folder again") from error
    if not any(name.endswith(".safetensors") for name in record.files):
        raise ModelError(f"{path}: names no safetensors file; the seal is damaged")
    check_files(path.parent, record.files, SEAL)
    check_weights(path.parent)
    return record


def check_fits(record: ValueModelSeal, tokenizer_sha256: str, chat_template_sha256: str, folder: str | Path) -> None:
    """Refuse a value model that reads other tokens, or another chat form, than the policy writes."""
    for what, mine, theirs in (
        ("tokenizer", record.tokenizer_sha256, tokenizer_sha256),
        ("chat template", record.chat_template_sha256, chat_template_sha256),
    ):
        if mine != theirs:
            raise ModelError(
                f"value model '{folder}' was trained with another {what} (sha256 {mine[:16]}...) than the policy has "
                f"({theirs[:16]}...): its values would be meaningless; train it from this policy's base model"
            )


def refuse_reward_model(record: ValueModelSeal, field: str, folder: str | Path, remedy: str) -> None:
    """Refuse a reward model where a setting needs the values of all tokens."""
    if record.is_reward_model:
        raise ModelError(
            f"{field}: '{folder}' is a reward model, whose values of unfinished answers were never trained: {remedy}"
        )


def load_value_model(folder: Path, dtype: torch.dtype, attention: str, trust_remote_code: bool = False) -> Any:
    """A sealed value model's network; call ``read_seal`` first."""
    from transformers import AutoConfig, AutoModelForTokenClassification

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    options = {"dtype": dtype, "attn_implementation": kernel_for(config, attention), "trust_remote_code": trust_remote_code}
    model = AutoModelForTokenClassification.from_pretrained(folder, config=config, use_safetensors=True, **options)
    _head(model, folder)
    return model


def _head(model: Any, folder: Path) -> nn.Module:
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ModelError(f"'{folder}': its token classifier has no one-label linear head named `score`; use another model family")
    return head
