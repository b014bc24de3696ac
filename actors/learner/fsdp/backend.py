"""FSDP2 as a training backend: float32 weights in shards, gathered layer by layer in the compute type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from actors.learner.backend import check_wrapped, prepare_reader
from actors.learner.fsdp.sharding import drop_unreduced, first_element, local, shard, sharded_parts
from actors.learner.pieces import MOMENTS, WEIGHT, ReadWhole, piece_name
from actors.learner.schedule import learning_rate
from dvpo_ray.config.backends import FsdpSettings
from dvpo_ray.config.sections import LearnerSection


class FsdpBackend:
    """A reader under FSDP2 (``actors.learner.backend.TrainingBackend``)."""

    def __init__(self, settings: FsdpSettings, reader: Any, config: LearnerSection, total_steps: int) -> None:
        """As ``make_backend``."""
        self.settings = settings
        self.steps = 0
        self._config = config
        self._total_steps = total_steps
        self._compute: torch.dtype = getattr(torch, config.dtype)
        self._reader = reader
        prepare_reader(reader, config)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        self._root = shard(reader, self._compute, init_device_mesh(device, (dist.get_world_size(),)))
        # Kept, because within passes the model's own are other tensors.
        self._parameters: dict[str, Tensor] = dict(reader.model.named_parameters())
        self._trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        self._optimizer = self._adam()
        # Whether gradients were summed that are not reduced.
        self._open = False
        self._within(check_wrapped, reader)
        # The check tries what some models cannot do, and layers that failed are still within a pass.
        sharded_parts(self._root)[0].reset_iter_state()

    @property
    def model(self) -> Any:
        """The Hugging Face model."""
        return self._reader.model

    def __call__(self, *given: Any) -> Any:
        """The reader's forward pass."""
        return self._within(self._reader, *given)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient, and reduce in the last one, or in all where gradients are sharded."""
        reduces = last or self.settings.shard_gradients
        for part in sharded_parts(self._root):
            part.set_requires_gradient_sync(reduces, recurse=False)
        self._open = not reduces
        loss.backward()

    def apply(self) -> tuple[float, float]:
        """Clip by the norm over all shards and step them, or drop the gradients when it is not finite."""
        assert not self._open, "the step's last micro-batch was not marked as the last"
        rate = learning_rate(self.steps, self._config, self._total_steps)
        gradients = [p.grad for p in self._trained.values() if p.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if math.isfinite(norm):
            torch.nn.utils.clip_grads_with_norm_(self._trained.values(), self._config.grad_clip, total)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
            self.steps += 1
        self.discard()
        return norm, rate

    def discard(self) -> None:
        """Drop reduced gradients and whole ones."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._open:
            for part in sharded_parts(self._root):
                drop_unreduced(part)
            self._open = False
        self._reshard()

    def shapes(self) -> dict[str, Tensor]:
        """Trained parameters."""
        return {name: torch.empty(p.shape, dtype=self._compute, device="meta") for name, p in self._trained.items()}

    @contextmanager
    @torch.no_grad()
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Parameters gathered one after the other, rounded before they travel."""
        yield {name: self._gathered(name) for name in names}

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's block of each parameter and of its moments."""
        for name, parameter in self._trained.items():
            tensors = {WEIGHT: parameter} | {key: self._optimizer.state[parameter][key] for key in MOMENTS}
            for key, tensor in tensors.items():
                if local(tensor).numel():
                    yield piece_name(key, name, first_element(tensor)), local(tensor).flatten()

    @torch.no_grad()
    def load_pieces(self, read: ReadWhole, updates: int) -> None:
        """Take this rank's block of each parameter and of its moments."""
        for name, parameter in self._trained.items():
            state = self._optimizer.state[parameter]
            for key, tensor in ({WEIGHT: parameter} | {key: state[key] for key in MOMENTS}).items():
                mine, start = local(tensor), first_element(tensor)
                mine.copy_(read(key, name)[start : start + mine.numel()].view_as(mine))
            state["step"].fill_(updates)
        # What was gathered before would be used again.
        self._reshard()

    def updates_done(self) -> int:
        """Adam's count of steps."""
        return max((int(state["step"]) for state in self._optimizer.state.values()), default=0)

    def _adam(self) -> torch.optim.AdamW:
        """AdamW on the shards, with the moments that it would make in its first step, so that they can be written and read."""
        config = self._config
        adam = torch.optim.AdamW(
            self._trained.values(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        for parameter in self._trained.values():
            step = torch.zeros((), dtype=torch.float32, device=local(parameter).device)
            adam.state[parameter] = {"step": step} | {key: torch.zeros_like(parameter) for key in MOMENTS}
        return adam

    def _within(self, work: Any, *given: Any) -> Any:
        """Run something in the root's forward pass. Nothing stays gathered but for a backward pass."""
        made = self._root(work, *given)
        if not torch.is_grad_enabled():
            self._reshard()
        return made

    def _reshard(self) -> None:
        for part in sharded_parts(self._root):
            part.reshard()

    def _gathered(self, name: str) -> Tensor:
        parameter = self._parameters[name].detach()
        assert isinstance(parameter, DTensor)
        rounded = parameter.to(self._compute) if name in self._trained else parameter
        assert isinstance(rounded, DTensor)
        return rounded.full_tensor()
