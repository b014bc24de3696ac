"""Settings of training backends: what runs a learner's passes and steps, and how its ranks share the state of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dvpo_ray.config.base import Choice
from dvpo_ray.registry import Registry

if TYPE_CHECKING:
    from dvpo_ray.config.sections import LearnerSection

BACKENDS = Registry("training backend", "deepspeed")


class BackendSettings(Choice):
    """Training backend."""

    registry = BACKENDS

    # Checkpoints are read by any backend, so a resumed run may choose another.
    type: str = Field("", description="Selects this kind.")

    @property
    def shards_weights(self) -> bool:
        """Whether a rank holds a part of the weights only, between passes."""
        return False

    @property
    def shards_gradients(self) -> bool:
        """Whether a rank holds a part of the summed gradients only, between micro-batches."""
        return False

    @property
    def shards_optimizer(self) -> bool:
        """Whether a rank holds a part of the optimizer's moments and master weights only."""
        return False

    def reads_prefix_once(self, ranks: int) -> bool:
        """Whether so many ranks may read the common beginning of a micro-batch's rows once, in a pass of its own.

        Ranks that share something must make the same passes: they gather weights and reduce gradients in them, and one rank's
        micro-batch may have a common beginning where another's has none.
        """
        return ranks == 1 or not (self.shards_weights or self.shards_gradients or self.shards_optimizer)

    def copied_gradient_bytes(self, dtype: str) -> int:
        """Bytes a parameter of this rank's shard that a step takes for a second copy of its gradient, at a compute type."""
        return 0

    def remedy(self) -> str:
        """What to change here so that a rank needs less memory for the state of training; empty when nothing is left."""
        return ""

    def check(self, learner: LearnerSection) -> None:
        """Refuse other settings of a learner that it cannot work with.

        Raises:
            ValueError: naming both and the remedy.
        """


class DeepSpeedSettings(BackendSettings):
    """DeepSpeed ZeRO (arXiv 1910.02054), the default."""

    implementation: ClassVar[str] = "actors.learner.deepspeed.engine:DeepSpeedBackend"

    type: Literal["deepspeed"] = Field("deepspeed", description="Selects this kind.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="What ranks share: nothing, the optimizer's state (1), the gradients too (2), the weights too (3).",
    )

    @property
    def shards_weights(self) -> bool:
        """At stage 3."""
        return self.zero_stage == 3

    @property
    def shards_gradients(self) -> bool:
        """From stage 2 on."""
        return self.zero_stage >= 2

    @property
    def shards_optimizer(self) -> bool:
        """From stage 1 on."""
        return self.zero_stage >= 1

    def copied_gradient_bytes(self, dtype: str) -> int:
        """DeepSpeed flattens sharded gradients for the step: at stage 3, and in float32 at stages 1 and 2."""
        return 4 if self.zero_stage == 3 or (self.zero_stage > 0 and dtype == "float32") else 0

    def remedy(self) -> str:
        """A higher stage."""
        return f"raise learner.backend.zero_stage (now {self.zero_stage})" if self.zero_stage < 3 else ""


class FsdpSettings(BackendSettings):
    """PyTorch's fully sharded data parallelism (FSDP2, `torch.distributed.fsdp.fully_shard`): weights and optimizer state are
    always sharded."""

    implementation: ClassVar[str] = "actors.learner.fsdp.backend:FsdpBackend"

    type: Literal["fsdp"] = Field("fsdp", description="Selects this kind.")
    shard_gradients: bool = Field(
        False,
        description="Sum gradients over ranks in every micro-batch, so that a rank keeps its shard of them only; else each keeps "
        "a whole float32 sum, which is reduced once a step.",
    )

    @property
    def shards_weights(self) -> bool:
        """Always."""
        return True

    @property
    def shards_gradients(self) -> bool:
        """Where every micro-batch reduces them."""
        return self.shard_gradients

    @property
    def shards_optimizer(self) -> bool:
        """Always."""
        return True

    def reads_prefix_once(self, ranks: int) -> bool:
        """Never: a layer's weights are freed after the first of its two backward passes, and nothing gathers them for the second,
        which begins at the keys and values that it has in common with the first."""
        return False

    def copied_gradient_bytes(self, dtype: str) -> int:
        """The reduced shard lies beside a whole sum."""
        return 0 if self.shard_gradients else 4

    def remedy(self) -> str:
        """Sharded gradients."""
        return "" if self.shard_gradients else "set learner.backend.shard_gradients = true"


BACKENDS.register("deepspeed", DeepSpeedSettings)
BACKENDS.register("fsdp", FsdpSettings)
