"""A trained model as an ordinary Hugging Face folder, whatever backend trains it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from actors.learner.backend import TrainingBackend
from dvpo_ray.models.folder import write_manifest, written_atomically
from dvpo_ray.models.lora import merged_state, save_adapters


def save_pretrained(
    backend: TrainingBackend,
    folder: Path,
    base: Path,
    trust_remote_code: bool,
    extra: dict[str, object] | None = None,
    adapters: Path | None = None,
) -> None:
    """Write an ordinary Hugging Face folder with the tokenizer of ``base``, and a manifest when ``extra`` is given.

    A model with adapters is written merged, and they by themselves to the folder ``adapters``. Rank 0 writes, all ranks take
    part.
    """
    from transformers import AutoTokenizer

    state = whole_state(backend)
    if dist.get_rank() != 0:
        return
    model = backend.model
    with written_atomically(folder) as temporary:
        model.save_pretrained(temporary, state_dict=merged_state(model, state))
        AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code).save_pretrained(temporary)
        if extra is not None:
            write_manifest(temporary, extra)
    if adapters is not None:
        with written_atomically(adapters) as temporary:
            revision = (extra or {}).get("base_revision")
            named = str(base if extra is None or revision is None else extra["base_model"])
            save_adapters(model, state, temporary, named, None if revision is None else str(revision))


@torch.no_grad()
def whole_state(backend: TrainingBackend) -> dict[str, Tensor]:
    """The model's state on rank 0, empty on the others: whole parameters, tied ones under each of their names, and buffers.

    Sharded parameters are gathered one after the other, and kept in the memory of rank 0's host.
    """
    model, state = backend.model, dict[str, Tensor]()
    writes = dist.get_rank() == 0
    if writes:
        # Also says in which order, and of which buffers.
        state |= {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, again in tied_names(model).items():
        with backend.whole([name]) as tensors:
            if writes:
                tensor = tensors[name].detach()
                kept = tensor.to("cpu", copy=True) if backend.settings.shards_weights else tensor
                state |= {known: kept for known in again if known in state}
    return state


def tied_names(model: torch.nn.Module) -> dict[str, list[str]]:
    """All names of each parameter of a model, by its first."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {known[0]: known for known in names.values()}
