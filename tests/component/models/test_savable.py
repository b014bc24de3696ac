"""What can fail when a trained model is saved fails before it is trained; tokenizers with several chat templates are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from actors.learner.saving import save_pretrained
from dvpo_ray.config.backends import DeepSpeedSettings
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.data import template_hash
from dvpo_ray.errors import ModelError
from dvpo_ray.models.folder import check_files, check_model_folder, hash_files
from dvpo_ray.models.token_reader import load_policy
from jobs.models import base_model


@pytest.fixture
def several(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with named chat templates."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages }}"}
    tokenizer.save_pretrained(folder)
    assert (folder / "additional_chat_templates" / "tool_use.jinja").is_file()
    return folder


def unsharded(model: Any) -> Any:
    """What saving asks of a training backend, of a model that is whole."""
    parameters = dict(model.named_parameters())

    def whole(names: Sequence[str]) -> AbstractContextManager[dict[str, Tensor]]:
        return nullcontext({name: parameters[name] for name in names})

    return SimpleNamespace(model=model, settings=DeepSpeedSettings(), whole=whole)


def save(base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    model = load_policy(base, torch.float32, "eager")
    save_pretrained(unsharded(model), folder, base, False, {"steps": 3})


def test_all_chat_templates_are_saved_and_in_the_manifest(several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(several, tmp_path / "saved", monkeypatch)
    folder = check_model_folder(tmp_path / "saved")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    template = "additional_chat_templates/tool_use.jinja"
    assert template in files
    assert set(transformers.AutoTokenizer.from_pretrained(folder).chat_template) == {"default", "tool_use"}
    (folder / template).write_text("{{ other }}")
    with pytest.raises(ModelError, match=r"tool_use\.jinja was altered"):
        check_model_folder(folder)


def test_conversations_are_encoded_with_the_default_template(several: Path, tiny_model: Path) -> None:
    base, plain = (base_model(ModelSection(path=str(folder))) for folder in (several, tiny_model))
    assert template_hash(base.tokenizer) == template_hash(plain.tokenizer)


@pytest.mark.parametrize("name", ["a/../../b", "a//b", "/b", "..", "a/"])
def test_a_manifest_leads_to_no_file_outside_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="points outside the folder"):
        check_files(tmp_path, {name: "0"}, "manifest.json")


def test_other_sub_folders_are_no_part_of_a_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    assert hash_files(folder) == hash_files(tiny_model)


def test_a_generation_config_that_cannot_be_saved_is_refused_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6, "eos_token_id": 1}))
    with pytest.raises(ModelError, match=r"(?s)could be trained but not saved again \(ValueError: .*temperature"):
        base_model(ModelSection(path=str(folder)))
