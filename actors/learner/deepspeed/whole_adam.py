"""AdamW for ranks that hold the whole model (ZeRO 0): gradients add up in float32, and a step looks at the device once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class WholeAdam:
    """Stands where DeepSpeed's engine has its optimizer, and is driven by it: reduce, ``step``, ``zero_grad``.

    A weight in bfloat16 has a master in float32, which is what Adam steps. Each micro-batch's gradient is added to its master's
    as soon as it is complete, and dropped, so that no second gradient of the whole model exists. A weight in float32 is its own
    master.

    DeepSpeed's own (``FP16_UnfusedOptimizer``) adds gradients up in bfloat16, where a sum stops growing at 256 times what is
    added, and waits for the device once a parameter.
    """

    def __init__(self, given: Any, clip: float, world: int) -> None:
        """
        Args:
            given: the AdamW, or what DeepSpeed has put around it for bfloat16 weights.
            clip: largest global gradient norm.
            world: number of ranks, all of which hold the whole model.
        """
        self.optimizer: torch.optim.Optimizer = getattr(given, "optimizer", given)
        # To make the moments, DeepSpeed has taken a step without gradients, which would count as Adam's first.
        self.optimizer.state.clear()
        self.masters: list[Tensor] = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.weights: list[Tensor] = self.masters
        if given is not self.optimizer:
            self.weights = [p for group in given.fp16_groups for p in group]
        self._master_of = dict(zip(self.weights, self.masters, strict=True))
        self._clip, self._world = clip, world
        # Read by DeepSpeed's engine after each step.
        self.overflow = False
        self._global_grad_norm = 0.0
        for weight, master in self._master_of.items():
            if weight is not master:
                weight.register_post_accumulate_grad_hook(self._add_up)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Adam's, where the learning rate is set."""
        return self.optimizer.param_groups

    def master(self, weight: Tensor) -> Tensor:
        """The float32 tensor that is stepped in place of ``weight``."""
        return self._master_of[weight]

    @torch.no_grad()
    def _add_up(self, weight: Tensor) -> None:
        master, gradient = self._master_of[weight], weight.grad
        assert gradient is not None
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad.add_(gradient)
        weight.grad = None

    def get_grads_for_reduction(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """What DeepSpeed averages over ranks in a step's last pass, the same tensors on all: (gradients, none of experts)."""
        if self._world == 1:
            return [], {}
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return self._gradients(), {}

    def _gradients(self) -> list[Tensor]:
        return [master.grad for master in self.masters if master.grad is not None]

    @torch.no_grad()
    def step(self) -> None:
        """Clip, step the masters and round them to the weights; nothing of it when the norm is not finite."""
        norm = torch.nn.utils.get_total_norm(self._gradients())
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if not self.overflow:
            torch.nn.utils.clip_grads_with_norm_(self.masters, self._clip, norm)
            self.optimizer.step()
            if self.weights is not self.masters:
                torch._foreach_copy_(self.weights, self.masters)
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop what was added up."""
        assert set_to_none
        for tensor in (*self.masters, *self.weights):
            tensor.grad = None
