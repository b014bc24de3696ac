"""Real training backends around a small layer, and what plain torch makes of the same micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actors.learner.backend import TrainingBackend, make_backend
from actors.learner.collectives import join_process_group
from actors.learner.pieces import LEARNER, SEPARATOR, file_name, reader_of
from dvpo_ray.config.backends import BackendSettings, DeepSpeedSettings, FsdpSettings
from dvpo_ray.config.sections import LearnerSection
from dvpo_ray.io.safetensors_writer import write_tensors

FIRST_BETA = 0.9
# Nothing is clipped.
NO_CLIP = 1e9
BACKENDS: dict[str, BackendSettings] = {
    "zero-0": DeepSpeedSettings(),
    "zero-1": DeepSpeedSettings(zero_stage=1),
    "zero-2": DeepSpeedSettings(zero_stage=2),
    "zero-3": DeepSpeedSettings(zero_stage=3),
    "fsdp": FsdpSettings(),
    "fsdp-gradients": FsdpSettings(shard_gradients=True),
}


class Reader(nn.Module):
    """The shape of a reader: what is trained lies under ``model``."""

    def __init__(self, layers: int = 1, width: int = 8) -> None:
        super().__init__()
        self.model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.model(inputs)
        return out


def section(dtype: str, **changes: Any) -> LearnerSection:
    given: dict[str, Any] = {"dtype": dtype, "grad_clip": NO_CLIP, "learning_rate": 1e-2}
    return LearnerSection(**given | {"betas": (FIRST_BETA, 0.99)} | changes)


def engine_of(backend: str, dtype: str, layers: int = 1, **changes: Any) -> TrainingBackend:
    """One of ``BACKENDS``."""
    torch.manual_seed(0)
    reader = Reader(layers).to(getattr(torch, dtype))
    return make_backend(BACKENDS[backend], reader, section(dtype, **changes), total_steps=100)


def inputs_of(count: int, dtype: str, seed: int = 0) -> Tensor:
    """Micro-batches of 4 rows [count, 4, 8]."""
    made = torch.randn(count, 4, 8, generator=torch.Generator().manual_seed(seed))
    return made.to(getattr(torch, dtype))


def backward(engine: TrainingBackend, micro_batches: Tensor, ends: bool = True) -> None:
    for number, inputs in enumerate(micro_batches):
        engine.backward(engine(inputs).float().square().sum(), last=ends and number == len(micro_batches) - 1)


def load(engine: TrainingBackend, folder: Path, updates: int) -> None:
    engine.load_pieces(reader_of(folder, LEARNER, engine.shapes()), updates)


def state_of(engine: TrainingBackend) -> dict[tuple[str, str], Tensor]:
    """What the optimizer holds of each parameter, flat: (``weight`` or a moment, parameter)."""
    found = {}
    for name, tensor in engine.pieces():
        key, parameter, _ = name.split(SEPARATOR)
        found[key, parameter] = tensor.detach().clone().flatten()
    return found


def gradient_of(engine: TrainingBackend) -> Tensor:
    """The gradient of the first step, from Adam's first moment after it: (1 - beta) times the gradient."""
    moments = {name: tensor for (key, name), tensor in state_of(engine).items() if key == "exp_avg"}
    return torch.cat([moments[name] for name in sorted(moments)]) / (1 - FIRST_BETA)


def reference_sum(dtype: str, micro_batches: Tensor) -> Tensor:
    """The same micro-batches' gradients by plain torch in the same type, added up in float64, in the order of names."""
    torch.manual_seed(0)
    reader = Reader().to(getattr(torch, dtype))
    named = dict(reader.model.named_parameters())
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in named.items()}
    for inputs in micro_batches:
        gradients = torch.autograd.grad(reader(inputs).float().square().sum(), list(named.values()))
        for name, gradient in zip(named, gradients, strict=True):
            total[name] += gradient
    return torch.cat([total[name].flatten() for name in sorted(total)])


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    return float((found.double() - expected).norm() / expected.norm())


def train_and_write(rank: int, port: int, folder: str, backends: list[str], count: int) -> None:
    """One of two processes that take a step together by each backend, each on every second micro-batch, and write its state."""
    join_process_group(rank, 2, "127.0.0.1", port, 1)
    for backend in backends:
        engine = engine_of(backend, "bfloat16")
        backward(engine, inputs_of(count, "bfloat16")[rank::2])
        norm, _ = engine.apply()
        path = Path(folder) / backend / file_name(rank)
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, dict(engine.pieces()) | {"norm": torch.tensor(norm)}, {})
