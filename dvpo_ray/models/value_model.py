"""The Global Value Model: a language model's backbone with one output, its folder, and ``gvm.json`` that seals it.

The folder is one of Hugging Face: the backbone as ``AutoModel`` opens it, and beside its weights those of the head,
``score.weight`` [1, H] and ``score.bias`` [1]. Where transformers has a token classifier of the family,
``AutoModelForTokenClassification`` opens it as well, and folders that one saved are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from torch import Tensor, nn

from dvpo_ray.data.chat_template import said
from dvpo_ray.errors import ModelError
from dvpo_ray.io.disk import write_text
from dvpo_ray.models.folder import check_files, check_weights, hash_files, tensor_files
from dvpo_ray.models.loading import load_whole, model_config
from dvpo_ray.models.token_reader import kernel_for, load_policy, no_dropout

SEAL = "gvm.json"
WEIGHT, BIAS = "score.weight", "score.bias"


class ValueModelSeal(BaseModel):
    """What ``gvm.json`` records."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1] = Field(1, description="Version of this record.")
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"), description="UTC time.")
    base_model: str = Field(description="Name or folder of the language model it was grown from.")
    base_revision: str | None = Field(None, description="Commit of that model, when it is from the Hugging Face Hub.")
    tokenizer_sha256: str = Field(description="Hash of vocabulary and special tokens.")
    chat_template_sha256: str = Field(description="Hash of the chat template and its arguments.")
    chat_template_kwargs: dict[str, Any] = Field({}, description="Arguments of the chat template.")
    data_sha256: str = Field(description="Fingerprint of the training pairs and answers.")
    pairs: int = Field(description="Training pairs.")
    answers: int = Field(0, description="Training answers that are in no pair, with labels of their own.")
    target: dict[str, Any] = Field(description="Target kind and its settings, lambda resolved.")
    value_mean: float = Field(description="Mean of values on held-out answers: of all tokens, or a reward model's last ones.")
    value_std: float = Field(description="Standard deviation of the same values (calibration).")
    held_out_pairs: int = Field(description="Pairs held out for the accuracies.")
    held_out_accuracy: dict[str, float] = Field(
        description="Share of held-out pairs ranked right, by aggregate of token values; empty when none is held out."
    )
    files: dict[str, str] = Field(description="sha256 of every other file in the folder.")

    @property
    def is_reward_model(self) -> bool:
        """Whether only the value at an answer's end was trained."""
        return self.target.get("type") == "reward"


class TokenValues(NamedTuple):
    """What a value model's ``forward`` gives: ``logits`` [B, L, 1]."""

    logits: Tensor


class ValueModel(nn.Module):
    """The backbone of a causal language model, of any family, and a linear head of one output."""

    # A module that transformers made, with its configuration.
    model: Any

    def __init__(self, backbone: Any, score: nn.Linear) -> None:
        super().__init__()
        self.model = backbone
        self.score = score

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the weights."""
        return self.score.weight.dtype

    @property
    def base_model(self) -> Any:
        """The backbone, by the name that language models have for theirs."""
        return self.model

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        """Compute activations again in the backward pass; ``options`` of torch's checkpoint."""
        self.model.gradient_checkpointing_enable(options)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> TokenValues:
        """A value after every token of ``input_ids`` [B, L]."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        return TokenValues(self.score(output.last_hidden_state))

    def save_pretrained(self, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the folder that ``load_value_model`` reads."""
        state = self.state_dict() if state_dict is None else state_dict
        self.config.num_labels = 1
        self.model.save_pretrained(folder, state_dict={name.removeprefix("model."): tensor for name, tensor in state.items()})


def new_value_model(base: Path, attention: str, dtype: torch.dtype, trust_remote_code: bool = False) -> ValueModel:
    """A value model grown from a language model: zero-initialised head, all dropout 0.

    A zero head makes the first values exactly 0, so the first targets are exactly the discounted label.

    Raises:
        ModelError: as ``load_policy``, or the backbone cannot be told from the rest of the model.
    """
    policy = load_policy(base, dtype, attention, trust_remote_code)
    backbone = policy.base_model
    _take_code_along(backbone)
    if not _opens_again(backbone):
        raise ModelError(
            f"'{base}': AutoModel does not open the backbone of model type '{policy.config.model_type}' by itself, so a value "
            "model could be saved but not loaded; use a model of another family"
        )
    # Some families project the last hidden states to another width.
    output = policy.get_output_embeddings()
    width = policy.config.get_text_config().hidden_size if output is None else output.weight.shape[-1]
    score = nn.Linear(width, 1, dtype=dtype)
    nn.init.zeros_(score.weight)
    nn.init.zeros_(score.bias)
    return ValueModel(backbone, score)


def _opens_again(backbone: Any) -> bool:
    """Whether ``AutoModel`` makes a backbone's class of its configuration."""
    from transformers import MODEL_MAPPING

    return backbone.is_remote_code() or MODEL_MAPPING.get(type(backbone.config), None) is type(backbone)


def _take_code_along(backbone: Any) -> None:
    """Let a backbone of code of its own be saved with that code, when the folder names it for ``AutoModel``."""
    named = "AutoModel" in (getattr(backbone.config, "auto_map", None) or {})
    if named and not type(backbone).__module__.startswith("transformers."):
        type(backbone).register_for_auto_class("AutoModel")


def seal(folder: Path, **facts: Any) -> ValueModelSeal:
    """Write ``gvm.json`` into a saved model folder, with the sha256 of every file in it."""
    record = ValueModelSeal(**facts, files=hash_files(folder, exclude=(SEAL,)))
    write_text(folder / SEAL, record.model_dump_json(indent=2) + "\n")
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


def check_fits(
    record: ValueModelSeal,
    tokenizer_sha256: str,
    chat_template_sha256: str,
    folder: str | Path,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a value model that reads other tokens, or another chat form, than the policy writes.

    Raises:
        ModelError: naming what differs: the tokenizer, the chat template, or the arguments that it is given.
    """
    for what, mine, theirs in (
        ("tokenizer", record.tokenizer_sha256, tokenizer_sha256),
        ("chat template", record.chat_template_sha256, chat_template_sha256),
    ):
        if mine == theirs:
            continue
        its, ours = record.chat_template_kwargs, dict(chat_template_kwargs or {})
        if what == "chat template" and its != ours:
            raise ModelError(
                f"value model '{folder}' was trained with model.chat_template_kwargs = {said(its)}, and the policy has "
                f"{said(ours)}: its values would be meaningless; give the policy the same, or train the value model again"
            )
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


def load_value_model(folder: Path, dtype: torch.dtype, attention: str, trust_remote_code: bool = False) -> ValueModel:
    """A sealed value model's network; call ``read_seal`` first.

    Raises:
        ModelError: the folder has no head of one output, or is not whole.
    """
    from transformers import AutoModel

    score = _stored_head(folder)
    config = model_config(folder, trust_remote_code)
    no_dropout(config)
    options = {"dtype": dtype, "attn_implementation": kernel_for(config, attention), "trust_remote_code": trust_remote_code}
    backbone = load_whole(AutoModel, folder, config, beside=(WEIGHT, BIAS), **options)
    return ValueModel(backbone, score.to(dtype)).eval()


def _stored_head(folder: Path) -> nn.Linear:
    stored = tensor_files(folder)
    found = {}
    for name in (WEIGHT, BIAS):
        if name in stored:
            with safe_open(stored[name], framework="pt") as file:
                found[name.removeprefix("score.")] = file.get_tensor(name)
    weight = found.get("weight")
    if weight is None or weight.dim() != 2 or weight.shape[0] != 1:
        shape = "none" if weight is None else f"one of shape {list(weight.shape)}"
        raise ModelError(
            f"'{folder}': a value model has a tensor '{WEIGHT}' of shape [1, hidden size], here is {shape}; make one with "
            "`dvpo value train` or `dvpo reward train`"
        )
    head = nn.Linear(weight.shape[1], 1, bias="bias" in found)
    head.load_state_dict(found)
    return head
