"""The same two steps of a tiny model by any training backend on any number of ranks, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from actors.learner.backend import TrainingBackend, make_backend
from actors.learner.collectives import all_reduce, join_process_group
from actors.learner.pieces import LEARNER, file_name, reader_of
from actors.learner.saving import save_pretrained
from actors.weights.buckets import layout, plan_buckets, read_bucket, write_bucket
from dvpo_ray.config.sections import LearnerSection, LoraSection, NumberType
from dvpo_ray.io.safetensors_writer import write_tensors
from dvpo_ray.learning.batching import SequenceBatch, pad_sequences
from dvpo_ray.models.lora import add_adapters
from dvpo_ray.models.stored_names import StoredNames
from dvpo_ray.models.token_reader import PolicyReader, ValueReader, load_policy
from dvpo_ray.models.value_model import new_value_model
from tests.support.layer_engines import BACKENDS

KINDS = ("policy", "recomputed", "value", "adapters")
RATE = 1e-3
STEPS = 2
ROWS = 8
PROMPT = 10


def wrapped(kind: str, backend: str, folder: Path, world: int, dtype: NumberType = "float32") -> TrainingBackend:
    """A fresh model of the folder in a backend, as a learner rank would wrap it."""
    torch.manual_seed(0)
    settings = BACKENDS[backend]
    shared = settings.reads_prefix_once(world)
    compute: torch.dtype = getattr(torch, dtype)
    learner = LearnerSection(dtype=dtype, learning_rate=RATE, gradient_checkpointing=kind == "recomputed", grad_clip=0.5)
    if kind == "value":
        reader: Any = ValueReader(new_value_model(folder, "eager", compute).eval(), share_prefix=shared)
    else:
        model = load_policy(folder, compute, "eager")
        if kind == "adapters":
            add_adapters(model, LoraSection(rank=4, alpha=8), folder)
        reader = PolicyReader(model, share_prefix=shared)
    return make_backend(settings, reader, learner, STEPS)


def micro_batches(step: int, rank: int, world: int) -> list[SequenceBatch]:
    """This rank's rows of a step, two at a time; all begin alike."""
    numbers = np.random.default_rng(step)
    prompt = numbers.integers(2, 300, PROMPT).astype(np.int32)
    answers = [numbers.integers(2, 300, size).astype(np.int32) for size in (5, 9, 3, 12, 7, 1, 4, 6)]
    pairs = [answers[i : i + 2] for i in range(0, ROWS, 2)]
    return [pad_sequences([prompt, prompt], pair) for pair in pairs[rank::world]]


def loss_of(backend: TrainingBackend, kind: str, batch: SequenceBatch) -> Tensor:
    if kind == "value":
        values: Tensor = backend(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
        return (values - torch.linspace(-1, 1, values.numel())).square().sum() / 50
    log_probs, _ = backend(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
    total: Tensor = (log_probs * torch.linspace(-1, 1, log_probs.numel())).sum() / 50
    return total


def step(backend: TrainingBackend, kind: str, number: int, rank: int, world: int) -> tuple[float, float]:
    """(Loss over all ranks, gradient norm) of a step."""
    batches, total = micro_batches(number, rank, world), 0.0
    for i, batch in enumerate(batches):
        loss = loss_of(backend, kind, batch)
        backend.backward(loss, last=i == len(batches) - 1)
        total += float(loss.detach())
    return all_reduce({"loss": total})["loss"], backend.apply()[0]


def write(backend: TrainingBackend, folder: Path, rank: int) -> None:
    """This rank's part of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / file_name(rank), dict(backend.pieces()), {})


def whole(backend: TrainingBackend, path: Path, rank: int) -> None:
    """Keep the trained weights."""
    with backend.whole(list(backend.shapes())) as tensors:
        if rank == 0:
            save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)


def sent(backend: TrainingBackend, path: Path, rank: int) -> None:
    """Keep what engines would be given, bucket by bucket."""
    names, found = StoredNames(backend.model, backend.shapes()), dict[str, Tensor]()
    for specs in plan_buckets(names.specs, 20_000):
        with backend.whole(names.sources(specs)) as sources:
            memory = torch.empty(layout(specs)[1], dtype=torch.uint8)
            write_bucket(memory, specs, names.stored(sources))
        found |= {name: tensor.clone() for name, tensor in read_bucket(memory, specs)}
    if rank == 0:
        save_file(found, path)


def train(kind: str, name: str, model: Path, room: Path, rank: int, world: int) -> None:
    """Two steps: their losses and norms, a checkpoint between them, and the weights after them."""
    room.mkdir(parents=True, exist_ok=True)
    backend = wrapped(kind, name, model, world)
    first = step(backend, kind, 0, rank, world)
    write(backend, room / "checkpoint", rank)
    second = step(backend, kind, 1, rank, world)
    whole(backend, room / "weights.safetensors", rank)
    if rank == 0:
        (room / "steps.json").write_text(json.dumps([first, second]))
    adapters = room / "adapters" if kind == "adapters" else None
    save_pretrained(backend, room / "saved", model, False, adapters=adapters)
    if kind == "policy":
        sent(backend, room / "sent.safetensors", rank)


def resume(kind: str, name: str, model: Path, checkpoint: Path, path: Path, rank: int, world: int) -> None:
    """The second step from a checkpoint after the first; keeps the weights."""
    backend = wrapped(kind, name, model, world)
    backend.load_pieces(reader_of(checkpoint, LEARNER, backend.shapes()), updates=1)
    assert backend.updates_done() == 1
    backend.steps = 1
    step(backend, kind, 1, rank, world)
    whole(backend, path, rank)


def two_ranks(rank: int, port: int, model: str, folder: str, names: list[str]) -> None:
    """One of two processes: trains every kind by every backend, and goes on from what one process wrote."""
    join_process_group(rank, 2, "127.0.0.1", port, 1)
    room = Path(folder)
    for kind in KINDS:
        for name in names:
            train(kind, name, Path(model), room / "2" / kind / name, rank, 2)
            resumed = room / "2" / kind / name / "resumed.safetensors"
            resume(kind, name, Path(model), room / "1" / kind / "zero-0" / "checkpoint", resumed, rank, 2)
    dist.destroy_process_group()
