"""The head on a backbone: its folder, folders that earlier versions wrote, and what transformers makes of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from dvpo_ray.errors import ModelError
from dvpo_ray.models import value_model
from dvpo_ray.models.token_reader import parameter_hash
from dvpo_ray.models.value_model import load_value_model, new_value_model
from scripts.tiny_families import SIZES, made

IDS = torch.tensor([[5, 9, 200, 31, 7]])
CLASSIFIERS = ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Phi3", "StableLm"]


@pytest.mark.parametrize("family", CLASSIFIERS)
@torch.no_grad()
def test_folders_of_earlier_versions_are_read_as_they_were(family: str, tmp_path: Path) -> None:
    kind = getattr(transformers, f"{family}ForTokenClassification")
    torch.manual_seed(0)
    config = kind.config_class(**SIZES | {"num_labels": 1, "classifier_dropout": 0.0})
    config._attn_implementation = "eager"
    old = kind(config).eval()
    torch.nn.init.normal_(old.score.weight)
    torch.nn.init.normal_(old.score.bias)
    old.save_pretrained(tmp_path)
    model = load_value_model(tmp_path, torch.float32, "eager")
    assert torch.allclose(model(IDS).logits, old(IDS).logits, atol=1e-3)
    assert parameter_hash(model) == parameter_hash(old), "names of weights are those that they had"


@torch.no_grad()
def test_transformers_opens_new_folders_where_it_has_a_classifier(tmp_path: Path) -> None:
    made("Llama").save_pretrained(tmp_path / "base")
    model = new_value_model(tmp_path / "base", "eager", torch.float32)
    torch.nn.init.normal_(model.score.weight)
    torch.nn.init.normal_(model.score.bias)
    model.save_pretrained(tmp_path / "value")
    opened, info = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "value", output_loading_info=True)
    assert not any(info.values())
    assert torch.allclose(opened(IDS).logits, model(IDS).logits, atol=1e-3)


@torch.no_grad()
def test_the_loader_of_the_documentation_reads_it(tmp_path: Path) -> None:
    made("GPTNeoX").save_pretrained(tmp_path / "base")
    model = new_value_model(tmp_path / "base", "eager", torch.float32)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "value")
    page = (Path(__file__).resolve().parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    found = {"folder": str(tmp_path / "value"), "input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    exec(code, found)
    assert torch.allclose(found["values"], model(IDS).logits.squeeze(-1), atol=1e-5)  # type: ignore[arg-type]


def test_nothing_of_the_vocabularys_output_is_kept(tmp_path: Path) -> None:
    made("Llama", tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    model = new_value_model(tmp_path / "base", "eager", torch.float32)
    assert [name for name, p in model.named_parameters() if p.shape[0] == SIZES["vocab_size"]] == ["model.embed_tokens.weight"]
    model.save_pretrained(tmp_path / "value")
    stored = set(load_file(tmp_path / "value" / "model.safetensors"))
    assert {"score.weight", "score.bias", "norm.weight"} < stored and not any("lm_head" in name for name in stored)


def test_the_head_is_as_wide_as_what_the_output_layer_reads(tmp_path: Path) -> None:
    """OPT-350m projects its last hidden states to the width of its embeddings."""
    made("OPT").save_pretrained(tmp_path)
    assert new_value_model(tmp_path, "eager", torch.float32).score.in_features == 64


def test_it_keeps_the_number_type_and_can_checkpoint(tmp_path: Path) -> None:
    made("Qwen2").save_pretrained(tmp_path / "base")
    model = new_value_model(tmp_path / "base", "eager", torch.bfloat16)
    assert model.dtype == torch.bfloat16 and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.base_model.is_gradient_checkpointing
    model.save_pretrained(tmp_path / "value")
    assert load_value_model(tmp_path / "value", torch.float32, "eager").dtype == torch.float32


def test_a_backbone_that_could_not_be_opened_again_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("Llama").save_pretrained(tmp_path)
    monkeypatch.setattr(value_model, "_opens_again", lambda backbone: False)
    with pytest.raises(ModelError, match="AutoModel does not open the backbone of model type 'llama'"):
        new_value_model(tmp_path, "eager", torch.float32)
