"""DeepSpeed engines as this project uses them: master weights in float32, one optimizer step when told, weights out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.learner.deepspeed.whole_adam import WholeAdam
from dvpo_ray.config.sections import LearnerSection
from dvpo_ray.models.folder import write_manifest, written_atomically
from dvpo_ray.models.lora import merged_state, save_adapters
from dvpo_ray.models.reader_check import check_reader
from dvpo_ray.models.token_reader import PolicyReader, ValueReader

SHARED_MEMORY_OPERATOR = "deepspeed_shm_comm"


def join_process_group(rank: int, world: int, address: str, port: int, threads: int) -> torch.device:
    """Set up this process as one rank; returns its device. Environment and threads are set here and nowhere else."""
    use_cuda = torch.cuda.is_available()
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK="0",
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cuda" if use_cuda else "cpu",
    )
    torch.set_num_threads(threads or os.cpu_count() or 1)
    import deepspeed

    # DeepSpeed would compile a C++ operator for inference collectives, which training never calls: no compiler is needed.
    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OPERATOR] = False
    deepspeed.init_distributed(dist_backend="nccl" if use_cuda else "gloo", verbose=False)
    return torch.device("cuda", 0) if use_cuda else torch.device("cpu")


class TrainingEngine:
    """A DeepSpeed engine around a reader module (see ``dvpo_ray.models.token_reader``).

    Gradients of several micro-batches add up in float32 until ``apply`` takes the step, which is withheld when the gradient is
    not finite. Losses must be divided so that the sum over all ranks is the wanted loss: DeepSpeed averages over ranks, and
    ``backward`` undoes that.
    """

    def __init__(self, reader: Any, config: LearnerSection, total_steps: int) -> None:
        """Wrap a reader, and check it where it will run; all ranks take part.

        Raises:
            ModelError: the reader does not give what its model says.
        """
        import deepspeed

        self._config = config
        self.world = dist.get_world_size()
        if config.gradient_checkpointing:
            reader.model.gradient_checkpointing_enable({"use_reentrant": False})
            reader.model.train()
        trainable = [p for p in reader.parameters() if p.requires_grad]
        # The rate is set at every step. Until then it is 0, because DeepSpeed takes a step of its own while it is set up.
        optimizer = torch.optim.AdamW(trainable, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        self.engine, *_ = deepspeed.initialize(
            model=reader, model_parameters=trainable, optimizer=optimizer, config=deepspeed_config(config)
        )
        if config.zero_stage == 0:
            self.engine.optimizer = WholeAdam(self.engine.optimizer, config.grad_clip, self.world)
        # Other modules have no model's own forward pass to be compared with.
        if isinstance(reader, PolicyReader | ValueReader):
            check_reader(reader)
        self.steps = 0
        self._total_steps = total_steps

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient; ``last`` marks the step's last micro-batch on this rank."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(loss * self.world, scale_wrt_gas=False)

    def discard(self) -> None:
        """Drop the accumulated gradients without a step."""
        optimizer = self.engine.optimizer
        optimizer.zero_grad(set_to_none=True)
        # ZeRO 1 and 2 keep the reduced ones elsewhere, and would add the next step's to them.
        for kept in ("averaged_gradients", "all_grad_tensors"):
            for group in getattr(optimizer, kept, {}):
                getattr(optimizer, kept)[group] = None

    def apply(self) -> tuple[float, float]:
        """Take the optimizer step; returns (gradient norm over all ranks before clipping, learning rate used)."""
        rate = self._config.learning_rate * learning_rate_factor(self.steps, self._config, self._total_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        reported = self.engine.get_global_grad_norm()
        norm = math.nan if reported is None else float(reported)
        self.steps += math.isfinite(norm)
        return norm, rate

    def weights(self) -> dict[str, Tensor]:
        """Trained parameters of the wrapped Hugging Face model by name, tied ones once; under ZeRO-3 they are shards."""
        return {name: p for name, p in self.engine.module.model.named_parameters() if p.requires_grad}

    @contextmanager
    def whole(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Within the block these parameters are whole on every rank; all ranks take part."""
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters), enabled=self._config.zero_stage == 3):
            yield

    def save_pretrained(
        self,
        folder: Path,
        base: Path,
        trust_remote_code: bool,
        extra: dict[str, object] | None = None,
        adapters: Path | None = None,
    ) -> None:
        """Write an ordinary Hugging Face folder with the tokenizer of ``base``, and a manifest when ``extra`` is given.

        A model with adapters is written merged, and they by themselves to the folder ``adapters``. Rank 0 writes, all ranks
        take part.
        """
        from transformers import AutoTokenizer

        model = self.engine.module.model
        with self.whole(list(model.parameters())):
            if dist.get_rank() == 0:
                with written_atomically(folder) as temporary:
                    model.save_pretrained(temporary, state_dict=merged_state(model))
                    AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code).save_pretrained(temporary)
                    if extra is not None:
                        write_manifest(temporary, extra)
                if adapters is not None:
                    with written_atomically(adapters) as temporary:
                        revision = (extra or {}).get("base_revision")
                        named = str(base if extra is None or revision is None else extra["base_model"])
                        save_adapters(model, temporary, named, None if revision is None else str(revision))


def learning_rate_factor(step: int, config: LearnerSection, total_steps: int) -> float:
    """Share of the peak learning rate at ``step`` (0-based): linear warm-up, then constant, linear or cosine to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def deepspeed_config(config: LearnerSection) -> dict[str, Any]:
    """DeepSpeed's settings; batch sizes are placeholders because this project sizes its own micro-batches."""
    mixed = config.dtype == "bfloat16"
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # At ZeRO 0 the optimizer clips (``WholeAdam``).
        "gradient_clipping": config.grad_clip if config.zero_stage else 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
        # Each bfloat16 gradient goes into the float32 sum as soon as it is there (ZeRO 1; others do so unasked).
        "bf16": {"enabled": mixed, "immediate_grad_update": mixed},
        # Sums over ranks are sums of gradients as well.
        "communication_data_type": "fp32",
        # It would wait for the device in every pass.
        "timers": {"throughput": {"enabled": False}},
    }
    if mixed and config.zero_stage:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def all_reduce(values: dict[str, float], operation: str = "sum") -> dict[str, float]:
    """Sum or maximum of named numbers over all ranks."""
    names = sorted(values)
    tensor = torch.tensor([values[name] for name in names], dtype=torch.float64)
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    dist.all_reduce(tensor, op=dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX)
    return dict(zip(names, tensor.tolist(), strict=True))
