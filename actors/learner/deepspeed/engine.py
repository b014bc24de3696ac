"""DeepSpeed as a training backend: master weights in float32, one optimizer step when told, weights out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.learner.backend import check_wrapped, prepare_reader
from actors.learner.deepspeed.state import inner, live_pieces, load_live
from actors.learner.deepspeed.whole_adam import WholeAdam
from actors.learner.pieces import ReadWhole
from actors.learner.schedule import learning_rate
from dvpo_ray.config.backends import DeepSpeedSettings
from dvpo_ray.config.sections import LearnerSection

SHARED_MEMORY_OPERATOR = "deepspeed_shm_comm"


def join_deepspeed() -> None:
    """Let DeepSpeed use the process group that this process has joined."""
    backend = dist.get_backend()
    os.environ["DS_ACCELERATOR"] = "cuda" if backend == "nccl" else "cpu"
    import deepspeed

    # DeepSpeed would compile a C++ operator for inference collectives, which training never calls: no compiler is needed.
    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OPERATOR] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


class DeepSpeedBackend:
    """A DeepSpeed engine around a reader (``actors.learner.backend.TrainingBackend``)."""

    def __init__(self, settings: DeepSpeedSettings, reader: Any, config: LearnerSection, total_steps: int) -> None:
        """As ``make_backend``."""
        join_deepspeed()
        import deepspeed

        self.settings = settings
        self.steps = 0
        self._config = config
        self._total_steps = total_steps
        self._world = dist.get_world_size()
        prepare_reader(reader, config)
        trainable = [p for p in reader.parameters() if p.requires_grad]
        # The rate is set at every step. Until then it is 0, because DeepSpeed takes a step of its own while it is set up.
        optimizer = torch.optim.AdamW(trainable, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        self.engine, *_ = deepspeed.initialize(
            model=reader, model_parameters=trainable, optimizer=optimizer, config=deepspeed_config(settings, config)
        )
        if settings.zero_stage == 0:
            self.engine.optimizer = WholeAdam(self.engine.optimizer, config.grad_clip, self._world)
        check_wrapped(reader)

    @property
    def model(self) -> Any:
        """The Hugging Face model."""
        return self.engine.module.model

    def __call__(self, *given: Any) -> Any:
        """The reader's forward pass."""
        return self.engine(*given)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient. DeepSpeed averages over ranks, which is undone."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(loss * self._world, scale_wrt_gas=False)

    def discard(self) -> None:
        """Drop the accumulated gradients without a step."""
        optimizer = self.engine.optimizer
        optimizer.zero_grad(set_to_none=True)
        # ZeRO 1 and 2 keep the reduced ones elsewhere, and would add the next step's to them.
        for kept in ("averaged_gradients", "all_grad_tensors"):
            for group in getattr(optimizer, kept, {}):
                getattr(optimizer, kept)[group] = None

    def apply(self) -> tuple[float, float]:
        """Take the optimizer step."""
        rate = learning_rate(self.steps, self._config, self._total_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        reported = self.engine.get_global_grad_norm()
        norm = math.nan if reported is None else float(reported)
        self.steps += math.isfinite(norm)
        return norm, rate

    def shapes(self) -> dict[str, Tensor]:
        """Trained parameters; at stage 3 they are empty outside of passes, and ``ds_shape`` says what they are."""
        return {
            name: torch.empty(getattr(p, "ds_shape", p.shape), dtype=p.dtype, device="meta")
            for name, p in self._trained().items()
        }

    @contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Parameters as they are, gathered at stage 3."""
        import deepspeed

        parameters = dict(self.model.named_parameters())
        chosen = {name: parameters[name] for name in names}
        with deepspeed.zero.GatheredParameters(list(chosen.values()), enabled=self.settings.shards_weights):
            yield chosen

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """What this rank owns; of what all ranks hold whole, rank 0 owns everything."""
        if dist.get_rank() == 0 or self.settings.shards_optimizer:
            yield from live_pieces(self._trained(), self.engine.optimizer)

    def load_pieces(self, read: ReadWhole, updates: int) -> None:
        """Put whole parameters and moments into this rank's optimizer and model."""
        load_live(self._trained(), self.engine.optimizer, read)
        for state in inner(self.engine.optimizer).state.values():
            state["step"].fill_(updates)

    def updates_done(self) -> int:
        """Adam's count of steps."""
        return max((int(state["step"]) for state in inner(self.engine.optimizer).state.values()), default=0)

    def _trained(self) -> dict[str, Tensor]:
        """Trained parameters by name; at stage 3 they are shards."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def deepspeed_config(settings: DeepSpeedSettings, config: LearnerSection) -> dict[str, Any]:
    """DeepSpeed's settings; batch sizes are placeholders because this project sizes its own micro-batches."""
    mixed, stage = config.dtype == "bfloat16", settings.zero_stage
    chosen: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # At ZeRO 0 the optimizer clips (``WholeAdam``).
        "gradient_clipping": config.grad_clip if stage else 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
        # Each bfloat16 gradient goes into the float32 sum as soon as it is there (ZeRO 1; others do so unasked).
        "bf16": {"enabled": mixed, "immediate_grad_update": mixed},
        # Sums over ranks are sums of gradients as well.
        "communication_data_type": "fp32",
        # It would wait for the device in every pass.
        "timers": {"throughput": {"enabled": False}},
    }
    if mixed and stage:
        chosen["data_types"] = {"grad_accum_dtype": "fp32"}
    return chosen
