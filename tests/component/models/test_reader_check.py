"""Readers against the whole forward pass of tiny random models of families that do more than a backbone and an output layer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from actors.learner.backend import make_backend
from actors.scorer.actor import ScorerActor
from dvpo_ray.config.backends import DeepSpeedSettings
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.errors import ModelError
from dvpo_ray.learning.batching import SequenceBatch, pad_sequences
from dvpo_ray.models import token_reader
from dvpo_ray.models.reader_check import check_reader
from dvpo_ray.models.token_reader import PolicyReader, ValueReader, freeze, kernel_for, load_policy, no_dropout
from dvpo_ray.models.value_model import load_value_model, new_value_model
from tests.support.decided import learner_section, scorer_section

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 1,
}
CAPS = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0}
# Of the class, its configuration, and by how much at least the output layer alone is off, in nats.
FAMILIES: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}, 0.0),
    "granite": ("GraniteForCausalLM", "GraniteConfig", {"logits_scaling": 4.0, "embedding_multiplier": 3.0}, 0.05),
    "cohere": ("CohereForCausalLM", "CohereConfig", {"logit_scale": 0.25}, 0.05),
    "granitemoe": ("GraniteMoeForCausalLM", "GraniteMoeConfig", {"logits_scaling": 4.0, "output_router_logits": True}, 0.05),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", CAPS, 0.05),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", CAPS | {"sliding_window": 8}, 0.05),
    "opt": ("OPTForCausalLM", "OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}, 0.0),
    "recurrent_gemma": ("RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", {"lru_width": 64, "logits_soft_cap": 1.0}, 0.05),
}


def made(class_name: str, config_name: str, seed: int = 0, **changes: Any) -> Any:
    """A random model in float32."""
    config = getattr(transformers, config_name)(**SIZES | changes)
    no_dropout(config)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    return getattr(transformers, class_name)(config).eval()


def family(name: str) -> Any:
    class_name, config_name, changes, _ = FAMILIES[name]
    return made(class_name, config_name, **changes)


def rows(shared: int = 0, lengths: tuple[int, ...] = (5, 3, 9)) -> SequenceBatch:
    numbers = np.random.default_rng(0)
    beginning = numbers.integers(2, 300, shared)
    prompts = [np.concatenate([beginning, numbers.integers(2, 300, 3 + i)]) for i in range(len(lengths))]
    return pad_sequences(prompts, [numbers.integers(2, 300, n) for n in lengths])


def read(reader: PolicyReader, batch: SequenceBatch) -> Tensor:
    return reader(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)[0]


def by_forward(model: Any, batch: SequenceBatch, temperature: float = 1.0) -> Tensor:
    """Log-probs by the model's own forward pass, without anything of the reader's."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    log_p = torch.log_softmax(logits.flatten(0, 1)[batch.before_response] / temperature, -1)
    return log_p.gather(1, batch.targets[:, None]).squeeze(1)


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_are_those_of_the_models_own_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = family(name), rows()
    # Several chunks, the last one short.
    monkeypatch.setattr(token_reader, "HEAD_CHUNK", 4)
    model.requires_grad_(False)
    expected = by_forward(model, batch, 0.7)
    bare = PolicyReader(model, 0.7)
    bare.bare_head = True
    off = float((read(bare, batch) - expected).abs().max())
    least = FAMILIES[name][3]
    assert off > least if least else off < 1e-4, "else the test could not fail"
    reader = PolicyReader(model, 0.7)
    check_reader(reader)
    assert float((read(reader, batch) - expected).abs().max()) < 1e-3
    assert not reader.bare_head


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["llama", "granite", "cohere", "granitemoe", "gemma2", "gemma3"])
def test_gradients_are_those_of_the_models_own_forward(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_reader, "HEAD_CHUNK", 4)
    model, batch = family(name), rows()
    if training:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    found = []
    for log_probs in (read(PolicyReader(model), batch), by_forward(model, batch)):
        weights = torch.linspace(-1, 1, len(log_probs))
        model.zero_grad()
        (log_probs * weights).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-4


class Peeking(transformers.LlamaForCausalLM):
    """Makes its logits of more than hidden states."""

    def forward(self, input_ids: Tensor | None = None, **options: Any) -> Any:
        output = super().forward(input_ids=input_ids, **options)
        assert input_ids is not None, "it wants to see the ids"
        output.logits = output.logits + SHIFT * torch.sin(torch.arange(320.0))
        return output


SHIFT = 1.0


@pytest.mark.parametrize(
    ("dtype", "shift", "refused"),
    [
        (torch.float32, 0.0, False),
        (torch.float32, 1e-2, True),
        (torch.bfloat16, 0.0, False),
        (torch.bfloat16, 0.01, False),
        (torch.bfloat16, 0.5, True),
    ],
)
def test_what_is_not_the_models_own_is_refused(
    dtype: torch.dtype, shift: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SHIFT", shift)
    torch.manual_seed(0)
    reader = PolicyReader(Peeking(transformers.LlamaConfig(**SIZES | {"initializer_range": 0.02})).to(dtype).eval())
    if refused:
        with pytest.raises(ModelError, match=r"model type 'llama': its log-probabilities, .* off those of its own forward"):
            check_reader(reader)
    else:
        check_reader(reader)
    assert reader.bare_head, "its own way of making logits cannot run by itself"


def test_a_model_without_a_backbone_is_refused_by_name() -> None:
    model = made("LlamaForCausalLM", "LlamaConfig")
    type(model).base_model_prefix, before = "body", type(model).base_model_prefix
    try:
        with pytest.raises(ModelError, match="model type 'llama' cannot be read"):
            check_reader(PolicyReader(model))
    finally:
        type(model).base_model_prefix = before


def test_a_model_whose_weights_are_not_finite_is_no_fault_of_the_reader() -> None:
    model = made("LlamaForCausalLM", "LlamaConfig")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    check_reader(PolicyReader(model))


@pytest.mark.parametrize(
    ("class_name", "config_name", "rope", "limit"),
    [
        ("LlamaForCausalLM", "LlamaConfig", {"rope_type": "dynamic", "factor": 4.0}, 64),
        (
            "Phi3ForCausalLM",
            "Phi3Config",
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0 + i for i in range(8)],
            },
            32,
        ),
        ("LlamaForCausalLM", "LlamaConfig", {"rope_type": "linear", "factor": 4.0}, sys.maxsize),
        ("LlamaForCausalLM", "LlamaConfig", {"rope_type": "yarn", "factor": 4.0}, sys.maxsize),
    ],
)
def test_rows_beyond_a_trained_length_are_read_whole_where_it_matters(
    class_name: str, config_name: str, rope: dict[str, Any], limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    # Phi-3's configuration keeps the length in a field of its own, which goes before that of the scaling.
    trained = {} if config_name != "Phi3Config" else {"original_max_position_embeddings": limit}
    model = made(class_name, config_name, rope_parameters={"rope_theta": 10000.0} | rope, **trained)
    # The beginning ends before the length, and the rows after it.
    batch, short = rows(shared=min(limit, 64) - 4, lengths=(30, 20, 25)), rows(shared=10)
    reader = PolicyReader(model)
    with torch.no_grad():
        expected = by_forward(model, batch)
        unchecked = float((read(reader, batch) - expected).abs().max())
        with caplog.at_level(logging.WARNING):
            check_reader(reader)
        assert float((read(reader, batch) - expected).abs().max()) < 1e-3
        assert float((read(reader, short) - by_forward(model, short)).abs().max()) < 1e-3
    assert reader.shared_up_to == limit and reader.share_prefix
    if limit == sys.maxsize:
        assert unchecked < 1e-3 and not caplog.records
    else:
        assert unchecked > 0.05, "else the test could not fail"
        assert [record.getMessage().count(f"rows longer than {limit} tokens") for record in caplog.records] == [1]


def passes(model: Any) -> list[tuple[int, ...]]:
    """Shapes of ids that its backbone is given from now on."""
    seen: list[tuple[int, ...]] = []

    def watch(_: Any, __: Any, given: dict[str, Any]) -> None:
        seen.append(tuple(given["input_ids"].shape))

    model.base_model.register_forward_pre_hook(watch, with_kwargs=True)
    return seen


def test_models_whose_caches_cannot_be_repeated_read_rows_whole(caplog: pytest.LogCaptureFixture) -> None:
    hybrid = {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
    model, batch = made("JambaForCausalLM", "JambaConfig", **hybrid), rows(shared=12)
    reader = PolicyReader(model)
    with caplog.at_level(logging.WARNING):
        check_reader(reader)
    assert [record.getMessage()[:20] for record in caplog.records if "jamba" in record.getMessage()] == ["model type 'jamba': "]
    assert not reader.share_prefix
    seen = passes(model)
    with torch.no_grad():
        assert float((read(reader, batch) - by_forward(model, batch)).abs().max()) < 1e-3
    assert seen == [tuple(batch.input_ids.shape)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_can_share_go_on_sharing(dtype: torch.dtype) -> None:
    model, batch = family("gemma2").to(dtype), rows(shared=12)
    reader = PolicyReader(model)
    check_reader(reader)
    seen = passes(model)
    with torch.no_grad():
        read(reader, batch)
    assert reader.share_prefix and [shape[1] for shape in seen] == [12, batch.input_ids.shape[1] - 12]


def test_packed_rows_that_see_each_other_are_refused() -> None:
    check_reader(PolicyReader(family("gemma2"), packed=True))
    model = made("MambaForCausalLM", "MambaConfig")
    check_reader(PolicyReader(model, share_prefix=False))
    with pytest.raises(ModelError, match=r"model type 'mamba' .* cannot read packed rows .* model\.packing = 'off'"):
        check_reader(PolicyReader(model, packed=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Llama", "Gemma2"])
def test_values_are_checked_though_a_new_head_says_zero(name: str, dtype: torch.dtype) -> None:
    model = made(f"{name}ForTokenClassification", f"{name}Config", num_labels=1).to(dtype)
    torch.nn.init.zeros_(model.score.weight)
    check_reader(ValueReader(model))
    assert not model.score._forward_hooks
    halved = model.forward
    model.forward = lambda **given: SimpleNamespace(logits=halved(**given).logits / 2)
    with pytest.raises(ModelError, match=rf"model type '{name.lower()}': its values, read from .* off those of its own"):
        check_reader(ValueReader(model))


def saved(model: Any, folder: Path, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


Ways = dict[str, Callable[[Path], object]]


def wrap(folder: Path) -> object:
    reader = PolicyReader(load_policy(folder, torch.float32, "eager"))
    wrapped = SimpleNamespace(initialize=lambda model, **_: (SimpleNamespace(module=model),))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("actors.learner.deepspeed.engine.join_deepspeed", lambda: None)
        patched.setitem(sys.modules, "deepspeed", wrapped)
        patched.setattr("torch.distributed.get_world_size", lambda: 1)
        return make_backend(DeepSpeedSettings(zero_stage=1), reader, learner_section(), 1)


def score(folder: Path) -> object:
    return ScorerActor(str(folder), None, ModelSection(attention="eager"), scorer_section(), 1.0).start()


LOADERS: Ways = {"learner": wrap, "scorer": score}


@pytest.mark.parametrize("who", LOADERS)
def test_whoever_loads_a_model_checks_its_reader(
    who: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(family("granite"), tmp_path, tokenizer)
    LOADERS[who](folder)
    monkeypatch.setattr(token_reader, "own_logits", lambda model, hidden: model.lm_head(hidden))
    with pytest.raises(ModelError, match="model type 'granite'"):
        LOADERS[who](folder)


def test_a_cap_on_attention_is_kept(tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """torch's kernel leaves it out in silence: `sdpa` then means eager, and says so."""
    folder, batch = saved(family("gemma2"), tmp_path, tokenizer), rows()
    dropped = family("gemma2")
    dropped.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = by_forward(load_policy(folder, torch.float32, "eager"), batch)
        assert float((by_forward(dropped, batch) - expected).abs().max()) > 0.05, "else the test could not fail"
        with caplog.at_level(logging.WARNING):
            found = read(freeze(PolicyReader(load_policy(folder, torch.float32, "sdpa"))), batch)
        assert float((found - expected).abs().max()) < 1e-3
    assert [record.getMessage() for record in caplog.records] == [
        "model type 'gemma2' caps its attention logits at 2, which attention = 'sdpa' cannot do: 'eager' is used instead"
    ]
    value = new_value_model(folder, "sdpa", torch.float32)
    assert value.config._attn_implementation == "eager"
    value.save_pretrained(tmp_path / "value")
    assert load_value_model(tmp_path / "value", torch.float32, "sdpa").config._attn_implementation == "eager"


def test_other_models_and_kernels_are_left_as_asked_for() -> None:
    assert kernel_for(transformers.LlamaConfig(), "sdpa") == "sdpa"
    assert kernel_for(transformers.Gemma2Config(), "flash_attention_2") == "flash_attention_2"
    assert kernel_for(transformers.Gemma2Config(attn_logit_softcapping=None), "sdpa") == "sdpa"


def test_noise_in_routers_is_turned_off() -> None:
    config = transformers.PhimoeConfig()
    assert config.router_jitter_noise > 0
    no_dropout(config)
    assert config.router_jitter_noise == 0
