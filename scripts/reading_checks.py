"""Checks of one family that need no training: how readers read it, and what sealed folders hold.

Each takes a model folder and an empty one, and gives what the table says: ``yes``, another way that the product takes, or
``refused``. An ``AssertionError`` means that the product is wrong about the family.

Legend: B rows of L tokens, V words, N tokens of all answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dvpo_ray.errors import ModelError
from dvpo_ray.learning.batching import SequenceBatch, pad_sequences
from dvpo_ray.models.loading import check_tensors, model_config
from dvpo_ray.models.reader_check import check_reader
from dvpo_ray.models.stored_names import StoredNames
from dvpo_ray.models.token_reader import PolicyReader, ValueReader, load_policy, parameter_hash
from dvpo_ray.models.value_model import load_value_model, new_value_model, read_seal, seal

YES, NO, WHOLE, REFUSED = "yes", "no", "whole rows", "refused"
# In float32, of log-probs in nats and of values of a head of norm 1.
TOLERANCE = 1e-3
Reader = TypeVar("Reader", PolicyReader, ValueReader)


def policy_of(folder: Path) -> Any:
    """The model in a folder, as learners load it."""
    return load_policy(folder, torch.float32, "eager")


def rows(common: int = 0) -> SequenceBatch:
    """Three rows of other lengths, whose first ``common`` tokens are the same."""
    numbers = np.random.default_rng(0)
    prompts = [numbers.integers(3, 300, n) for n in (12, 10, 11)]
    for prompt in prompts:
        prompt[:common] = prompts[0][:common]
    return pad_sequences(prompts, [numbers.integers(3, 300, n) for n in (5, 3, 7)])


def whole_forward(model: Any, batch: SequenceBatch) -> Tensor:
    """The model's own logits of each row by itself, without padding, flat as those of the batch [B*L, V]."""
    lengths = batch.attention_mask.sum(1).tolist()
    found = []
    for ids, length in zip(batch.input_ids, lengths, strict=True):
        logits = model(input_ids=ids[None, :length], use_cache=False).logits[0]
        found.append(torch.nn.functional.pad(logits, (0, 0, 0, len(ids) - length)))
    return torch.cat(found)


def own_log_probs(model: Any, batch: SequenceBatch) -> Tensor:
    """Log-probs of the answers' tokens [N] by the model's own forward pass."""
    log_p = torch.log_softmax(whole_forward(model, batch)[batch.before_response], -1)
    return log_p.gather(1, batch.targets[:, None]).squeeze(1)


def read(reader: PolicyReader, batch: SequenceBatch) -> Tensor:
    """Log-probs of the answers' tokens [N] by a reader."""
    found: Tensor = reader(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)[0]
    return found


def check_near(found: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Raises AssertionError, telling how far numbers are off."""
    gap = float((found - expected).detach().abs().max())
    assert gap <= tolerance, f"{what}: {gap:.3g} off"


def check_gradients(reader: PolicyReader, batch: SequenceBatch) -> None:
    """Compare the gradient of all weights of a mean log-prob with that of the model's own forward pass."""
    model = reader.model
    found, expected = (
        torch.autograd.grad(log_probs.mean(), list(model.parameters()), allow_unused=True)
        for log_probs in (read(reader, batch), own_log_probs(model, batch))
    )
    norm = torch.stack([one.norm() for one in expected if one is not None]).norm()
    for (name, parameter), one, other in zip(model.named_parameters(), found, expected, strict=True):
        zero = torch.zeros_like(parameter)
        gap = (one if one is not None else zero) - (other if other is not None else zero)
        assert gap.norm() <= TOLERANCE * norm, f"gradient of '{name}': {float(gap.norm() / norm):.3g} off"


def log_probs(base: Path, room: Path) -> str:
    """Log-probs and their gradients are those of whole passes over rows by themselves."""
    check_tensors(base, model_config(base))
    reader = PolicyReader(policy_of(base), share_prefix=False)
    check_reader(reader)
    check_near(read(reader, rows()), own_log_probs(reader.model, rows()), "log-probs")
    check_gradients(reader, rows())
    return YES


def shared_prefix(base: Path, room: Path) -> str:
    """The common beginning of rows is read once, or rows are read in whole where it cannot be."""
    reader, batch = PolicyReader(policy_of(base)), rows(common=9)
    check_reader(reader)
    check_near(read(reader, batch), own_log_probs(reader.model, batch), "log-probs of rows that begin alike")
    check_gradients(reader, batch)
    return YES if reader.share_prefix else WHOLE


def packing(base: Path, room: Path) -> str:
    """Rows laid end to end are read as they are by themselves, or the reader is refused where it is made."""
    reader = PolicyReader(policy_of(base), packed=True)
    try:
        check_reader(reader)
    except ModelError as error:
        kind = reader.model.config.model_type
        assert str(error).startswith(f"model type '{kind}' ") and "cannot read packed rows" in str(error), str(error)
        return REFUSED
    check_near(read(reader, rows()), own_log_probs(reader.model, rows()), "log-probs of packed rows")
    check_gradients(reader, rows())
    return YES


def stored_names(base: Path, room: Path) -> str:
    """What engines are sent is what a saved folder holds; ``yes`` if names or shapes differ from those in memory."""
    policy = policy_of(base)
    names = StoredNames(policy, dict(policy.named_parameters()))
    sent = names.stored(dict(policy.named_parameters()))
    policy.save_pretrained(room)
    stored = load_file(room / "model.safetensors")
    assert {spec.name for spec in names.specs} == set(sent) == set(stored) - {name for name, _ in policy.named_buffers()}
    assert all(torch.equal(sent[name], stored[name]) for name in sent)
    assert parameter_hash(policy_of(room)) == parameter_hash(policy)
    return YES if set(sent) != {name for name, _ in policy.named_parameters()} else NO


def value_model(base: Path, room: Path) -> str:
    """Values are those of whole passes, also of rows that begin alike, and after the folder was saved and loaded."""
    values = ValueReader(_valued(base))
    check_reader(values)
    for batch in (rows(), rows(common=9)):
        found = values(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
        expected = whole_forward(values.model, batch).flatten()[batch.with_prompt_end]
        assert float(found.detach().abs().max()) > 0.1
        check_near(found, expected, "values")
    values.model.save_pretrained(room)
    assert parameter_hash(load_value_model(room, torch.float32, "eager")) == parameter_hash(values.model)
    return YES


def sealed(base: Path, room: Path) -> str:
    """A sealed folder is read again, and not once any of its files was altered."""
    model = _valued(base)
    model.save_pretrained(room)
    seal_with_facts(room, base)
    assert read_seal(room).base_model == str(base)
    assert parameter_hash(load_value_model(room, torch.float32, "eager")) == parameter_hash(model)
    for name in ("model.safetensors", "config.json"):
        before = (room / name).read_bytes()
        (room / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        try:
            read_seal(room)
        except ModelError as error:
            assert f"{room / name} was altered" in str(error), str(error)
        else:
            raise AssertionError(f"'{name}' was altered and its seal still holds")
        (room / name).write_bytes(before)
    read_seal(room)
    return YES


def seal_with_facts(folder: Path, base: Path) -> None:
    """Seal a value model of the tiny tokenizer."""
    facts = {"tokenizer_sha256": "0", "chat_template_sha256": "0", "data_sha256": "0", "pairs": 4, "target": {"type": "td"}}
    figures = {"value_mean": 0.0, "value_std": 1.0, "held_out_pairs": 1, "held_out_accuracy": {"mean": 1.0}}
    seal(folder, base_model=str(base), **facts, **figures)


def _valued(base: Path) -> Any:
    """A value model whose head is not 0, as a new one's is."""
    model = new_value_model(base, "eager", torch.float32)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.score.weight /= model.score.weight.norm()
    return model
