"""Readers against plain forward passes; the value model's seal; model folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.scorer.actor import ScorerActor
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.data import template_hash, tokenizer_hash
from dvpo_ray.errors import ModelError
from dvpo_ray.learning.batching import pad_sequences
from dvpo_ray.models import token_reader
from dvpo_ray.models.folder import check_model_folder, write_manifest, written_atomically
from dvpo_ray.models.token_reader import PolicyReader, ValueReader, freeze, load_policy, parameter_hash
from dvpo_ray.models.value_model import check_fits, load_value_model, new_value_model, read_seal, seal
from dvpo_ray.types import Trajectory
from tests.support.decided import scorer_section
from tests.support.fakes import row


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Any:
    return load_policy(tiny_model, torch.float32, "eager")


def sequences(shared: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    beginning = rng.integers(2, 300, shared)
    prompts = [np.concatenate([beginning, rng.integers(2, 300, 3 + i)]) for i in range(4)]
    return prompts, [rng.integers(2, 300, n) for n in (1, 9, 4, 6)]


def test_log_probs_equal_a_plain_forward_of_each_row(policy: Any) -> None:
    prompts, responses = sequences(0)
    batch = pad_sequences(prompts, responses)
    found, entropy = PolicyReader(policy, 0.7)(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
    expected, entropies = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor(np.concatenate([prompt, response]))[None]
        log_p = torch.log_softmax(policy(ids).logits[0] / 0.7, -1)
        expected += [log_p[prompt.size - 1 + t, token] for t, token in enumerate(response)]
        entropies += [-(log_p[prompt.size - 1 + t].exp() * log_p[prompt.size - 1 + t]).sum() for t in range(response.size)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)
    assert torch.allclose(entropy, torch.stack(entropies), atol=1e-4)


def test_training_mode_leaves_nothing_to_chance(tiny_model: Path, tmp_path: Path) -> None:
    """Gradient checkpointing needs that mode; a base model's dropout would make log-probs depend on it."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    ids = torch.arange(2, 40)[None]
    for model in (load_policy(folder, torch.float32, "eager"), new_value_model(folder, "eager", torch.float32)):
        model.train()
        hidden = [model.model(ids).last_hidden_state for _ in range(2)]
        assert torch.equal(*hidden)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_rows_give_the_values_and_gradients_of_padded_ones(tiny_model: Path, attention: str) -> None:
    batch = pad_sequences(*sequences(0))
    policy, value = load_policy(tiny_model, torch.float32, attention), new_value_model(tiny_model, attention, torch.float32)
    torch.nn.init.normal_(value.score.weight, generator=torch.Generator().manual_seed(0))
    results = []
    for packed in (False, True):
        for model in (policy, value):
            model.zero_grad()
        reader = PolicyReader(policy, 0.7, packed=packed)
        log_probs, entropy = reader(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
        values = ValueReader(value, packed=packed)(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
        (log_probs.sum() + values.square().sum()).backward()
        gradients = [p.grad.clone() for model in (policy, value) for p in model.parameters() if p.grad is not None]
        results.append((log_probs, entropy, values, gradients))
    padded, packed_ones = results
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(padded[:3], packed_ones[:3], strict=True))
    for a, b in zip(padded[3], packed_ones[3], strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * float(a.abs().max())


def test_a_shared_beginning_changes_neither_values_nor_gradients(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pad_sequences(*sequences(20))
    assert token_reader.shared_prefix(batch.input_ids, batch.before_response) == 20
    reader = PolicyReader(policy)
    results = []
    for least in (8, 10**9):
        monkeypatch.setattr(token_reader, "MIN_SHARED_PREFIX", least)
        policy.zero_grad()
        log_probs, _ = reader(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
        log_probs.sum().backward()
        results.append((log_probs.detach(), [p.grad.clone() for p in policy.parameters() if p.grad is not None]))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_the_shared_beginning_ends_before_any_wanted_position() -> None:
    same = [np.arange(2, 30)] * 3
    batch = pad_sequences(same, [np.array([7])] * 3)
    assert token_reader.shared_prefix(batch.input_ids, batch.before_response) == 27


def test_a_new_value_model_says_zero_everywhere_and_reads_q0_to_qT(tiny_model: Path) -> None:
    model = new_value_model(tiny_model, "eager", torch.float32)
    reader = ValueReader(model.eval())
    batch = pad_sequences(*sequences(0))
    values = reader(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
    assert values.shape == (1 + 9 + 4 + 6 + 4,)
    assert not values.any()
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} <= {0.0}
    torch.nn.init.normal_(model.score.weight)
    values = reader(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
    plain = model(batch.input_ids, attention_mask=batch.attention_mask).logits.flatten()[batch.with_prompt_end]
    assert torch.allclose(values, plain, atol=1e-5)


def test_padding_and_prompt_length_of_others_do_not_change_values(tiny_model: Path) -> None:
    model = new_value_model(tiny_model, "eager", torch.float32)
    torch.nn.init.normal_(model.score.weight)
    reader = freeze(ValueReader(model))
    prompts, responses = sequences(0)
    together = pad_sequences(prompts, responses)
    alone = pad_sequences(prompts[:1], responses[:1])
    with torch.no_grad():
        a = reader(together.input_ids, together.attention_mask, together.with_prompt_end)[:2]
        b = reader(alone.input_ids, alone.attention_mask, alone.with_prompt_end)
    assert torch.allclose(a, b, atol=1e-5)


def test_the_id_used_for_padding_does_not_matter(tiny_model: Path) -> None:
    reader = PolicyReader(load_policy(tiny_model, torch.float32, "eager"))
    gradients = []
    for pad_id in (0, 7):
        batch = pad_sequences(*sequences(0), pad_id=pad_id)
        reader.zero_grad()
        reader(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)[0].sum().backward()
        gradients.append([p.grad.clone() for p in reader.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.fixture
def sealed(tmp_path: Path, tiny_model: Path, tokenizer: Any) -> Path:
    model = new_value_model(tiny_model, "eager", torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    facts = {
        "base_model": "tiny",
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "chat_template_sha256": template_hash(tokenizer),
    }
    numbers = {"data_sha256": "0", "pairs": 2, "target": {"type": "mc"}, "value_mean": 0.0, "value_std": 1.0, "held_out_pairs": 1}
    seal(tmp_path, **facts, **numbers, held_out_accuracy={"mean": 1.0, "last": 1.0})
    return tmp_path


def test_a_seal_reads_back_and_the_model_is_what_was_saved(sealed: Path, tokenizer: Any) -> None:
    record = read_seal(sealed)
    assert record.pairs == 2
    check_fits(record, tokenizer_hash(tokenizer), template_hash(tokenizer), sealed)
    hashes = {parameter_hash(load_value_model(sealed, torch.float32, "eager")) for _ in range(2)}
    assert len(hashes) == 1


def test_an_altered_value_model_is_refused(sealed: Path) -> None:
    weights = sealed / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors was altered"):
        read_seal(sealed)
    weights.unlink()
    with pytest.raises(ModelError, match="is missing although gvm.json names it"):
        read_seal(sealed)


def test_a_seal_that_points_outside_its_folder_is_refused(sealed: Path) -> None:
    content = json.loads((sealed / "gvm.json").read_text())
    content["files"]["../secret"] = "0"
    (sealed / "gvm.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="points outside the folder"):
        read_seal(sealed)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_seal_is_refused(sealed: Path, damage: str) -> None:
    (sealed / "gvm.json").write_text(damage)
    with pytest.raises(ModelError, match="the seal is damaged"):
        read_seal(sealed)


def test_another_tokenizer_or_template_is_refused(sealed: Path, tokenizer: Any) -> None:
    record = read_seal(sealed)
    with pytest.raises(ModelError, match="another tokenizer"):
        check_fits(record, "f" * 64, template_hash(tokenizer), sealed)
    with pytest.raises(ModelError, match="another chat template"):
        check_fits(record, tokenizer_hash(tokenizer), "f" * 64, sealed)


def test_a_changed_parameter_changes_the_hash(policy: Any) -> None:
    before = parameter_hash(policy)
    with torch.no_grad():
        parameter = next(policy.parameters())
        saved = parameter[0, 0].clone()
        parameter[0, 0] += 1e-3
        assert parameter_hash(policy) != before
        parameter[0, 0] = saved
    assert parameter_hash(policy) == before


def test_model_folders_are_checked(tmp_path: Path, tiny_model: Path) -> None:
    assert check_model_folder(tiny_model) == tiny_model
    with pytest.raises(ModelError, match="does not exist"):
        check_model_folder(tmp_path / "none")
    with pytest.raises(ModelError, match=r"lacks config\.json, tokenizer\.json, \*\.safetensors"):
        check_model_folder(tmp_path)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with written_atomically(target) as folder:
        (folder / "a").write_text("1")
        write_manifest(folder, {"steps": 3})
    assert json.loads((target / "manifest.json").read_text())["steps"] == 3
    with pytest.raises(RuntimeError, match="power cut"), written_atomically(target) as folder:
        (folder / "a").write_text("2")
        raise RuntimeError("power cut")
    assert (target / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_log_prob_and_its_gradient_equal_the_built_in_ones(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_reader, "CACHED_LOGITS", 3 * 50)  # blocks of three rows, the last one short
    torch.manual_seed(0)
    logits = (torch.randn(8, 50) * 4).requires_grad_()
    targets, upstream = torch.randint(0, 50, (8,)), torch.randn(8)
    log_prob, entropy = token_reader.TokenLogProb.apply(logits, targets, temperature, True)
    (found,) = torch.autograd.grad((log_prob * upstream).sum(), logits)
    log_p = torch.log_softmax(logits / temperature, -1)
    expected = log_p.gather(1, targets[:, None]).squeeze(1)
    (wanted,) = torch.autograd.grad((expected * upstream).sum(), logits)
    assert torch.allclose(log_prob, expected, atol=1e-5)
    assert torch.allclose(entropy, -(log_p.exp() * log_p).sum(-1), atol=1e-5)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not entropy.requires_grad


@pytest.mark.parametrize(
    ("attention", "packing", "packed"),
    [("sdpa", "auto", False), ("flash_attention_2", "auto", True), ("eager", "on", True), ("flash_attention_2", "off", False)],
)
def test_packing_follows_the_kernel_unless_the_recipe_says(attention: Any, packing: Any, packed: bool) -> None:
    assert ModelSection(attention=attention, packing=packing).packed is packed


def test_a_scorer_gives_the_same_scores_packed(tiny_model: Path) -> None:
    answers = [
        Trajectory(row(f"r{i}"), p, r, np.zeros(r.size, np.float32), np.zeros(r.size, np.int32), "stop")
        for i, (p, r) in enumerate(zip(*sequences(0), strict=True))
    ]
    found = []
    for packing in ("off", "on"):
        scorer = ScorerActor(str(tiny_model), None, ModelSection(attention="sdpa", packing=packing), scorer_section(), 1.0)
        found.append(scorer.score(None, *answers).ref_log_probs.flat)
        assert scorer._reference.packed is (packing == "on")
    assert found[0] == pytest.approx(found[1], abs=1e-5)
