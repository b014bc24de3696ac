"""Families of models, each as a tiny random one: the whole way from a folder to log-probs, values, engines and back.

The lines of the table in docs/models.md are what these models say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dvpo_ray.learning.batching import SequenceBatch, pad_sequences
from dvpo_ray.models.loading import check_tensors, model_config
from dvpo_ray.models.reader_check import check_reader
from dvpo_ray.models.stored_names import StoredNames
from dvpo_ray.models.token_reader import PolicyReader, ValueReader, freeze, load_policy, parameter_hash
from dvpo_ray.models.value_model import load_value_model, new_value_model
from scripts.model_table import FAMILIES, HEADER, PAGE, made, row_of


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of so small models would wait for one another, the longer the busier the machine is."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows() -> SequenceBatch:
    numbers = np.random.default_rng(0)
    prompts = [numbers.integers(3, 300, n) for n in (12, 10, 11)]
    return pad_sequences(prompts, [numbers.integers(3, 300, n) for n in (5, 3, 7)])


def whole_forward(model: Any, batch: SequenceBatch) -> Tensor:
    """The model's own logits of each row by itself, without padding, flat as those of the batch [B*L, V]."""
    lengths = batch.attention_mask.sum(1).tolist()
    found = []
    for ids, length in zip(batch.input_ids, lengths, strict=True):
        logits = model(input_ids=ids[None, :length], use_cache=False).logits[0]
        found.append(torch.nn.functional.pad(logits, (0, 0, 0, len(ids) - length)))
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_family_from_its_folder_to_its_folder(family: str, tmp_path: Path) -> None:
    made(family).save_pretrained(tmp_path / "base")
    check_tensors(tmp_path / "base", model_config(tmp_path / "base"))
    policy, batch = load_policy(tmp_path / "base", torch.float32, "eager"), rows()
    assert row_of(policy) in PAGE.read_text(encoding="utf-8").splitlines(), "run `python -m scripts.model_table`"
    reader = freeze(PolicyReader(policy))
    check_reader(reader)
    found, _ = reader(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
    log_p = torch.log_softmax(whole_forward(policy, batch)[batch.before_response], -1)
    assert torch.allclose(found, log_p.gather(1, batch.targets[:, None]).squeeze(1), atol=1e-3)

    names = StoredNames(policy, dict(policy.named_parameters()))
    sent = names.stored(dict(policy.named_parameters()))
    policy.save_pretrained(tmp_path / "again")
    stored = load_file(tmp_path / "again" / "model.safetensors")
    buffers = {name for name, _ in policy.named_buffers()}
    assert {spec.name for spec in names.specs} == set(sent) == set(stored) - buffers
    assert all(torch.equal(sent[name], stored[name]) for name in sent)
    assert parameter_hash(load_policy(tmp_path / "again", torch.float32, "eager")) == parameter_hash(policy)

    value = new_value_model(tmp_path / "base", "eager", torch.float32)
    torch.nn.init.normal_(value.score.weight, generator=torch.Generator().manual_seed(0))
    values = ValueReader(value)
    check_reader(values)
    flat = values(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
    expected = whole_forward(value, batch).flatten()[batch.with_prompt_end]
    assert float(flat.abs().max()) > 0.1 and torch.allclose(flat, expected, atol=1e-3)
    value.save_pretrained(tmp_path / "value")
    assert parameter_hash(load_value_model(tmp_path / "value", torch.float32, "eager")) == parameter_hash(value)


def test_the_table_names_these_families_and_no_others() -> None:
    _, _, after = PAGE.read_text(encoding="utf-8").partition(HEADER)
    assert len(list(takewhile(lambda line: line.startswith("|"), after.splitlines()))) == len(FAMILIES)
