"""What runs a learner's passes and optimizer steps, whatever shares the state of training among its ranks.

A backend wraps a reader (``dvpo_ray.models.token_reader``), a module whose ``model`` is a Hugging Face model. A rank of a gang
uses it so::

    backend = make_backend(learner.backend, reader, learner, total_steps)
    for number, rows in enumerate(micro_batches):
        backend.backward(loss_of(backend(*rows)), last=number == len(micro_batches) - 1)
    norm, rate = backend.apply()

``actors.learner.conformance.check_training_backend`` tests one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from torch import Tensor

from actors.learner.pieces import ReadWhole
from dvpo_ray.config.backends import BackendSettings
from dvpo_ray.config.sections import LearnerSection
from dvpo_ray.models.reader_check import check_reader
from dvpo_ray.models.token_reader import PolicyReader, ValueReader


class TrainingBackend(Protocol):
    """A rank's part of a model in training. All ranks call its methods in the same order, unless a method says otherwise.

    Trained parameters go by the names of the Hugging Face model (``model.named_parameters()``), tied ones once.

    Attributes:
        settings: what it was chosen by; says what is shared among ranks.
        model: the wrapped Hugging Face model. Its parameters may be shards: read them by ``whole``.
        steps: optimizer steps that were taken and not withheld, which the schedule of the learning rate counts by.
    """

    settings: BackendSettings
    model: Any
    steps: int

    def __call__(self, *given: Any) -> Any:
        """The reader's forward pass."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient to a sum in float32; ``last`` marks the step's last micro-batch on this rank.

        The sum over micro-batches and over ranks is the step's gradient: nothing is averaged.
        """
        ...

    def apply(self) -> tuple[float, float]:
        """Clip by the global norm and take an AdamW step on float32 weights, after the last micro-batch.

        Returns:
            Gradient norm over all ranks before clipping, and the learning rate used. The norm is not finite when the step was
            withheld for it: weights, moments and ``steps`` are then as before.
        """
        ...

    def discard(self) -> None:
        """Drop the summed gradients without a step, whether the last micro-batch has come or not."""
        ...

    def shapes(self) -> dict[str, Tensor]:
        """Trained parameters by name, in the model's order, as ``meta`` tensors of their whole shapes and the compute type."""
        ...

    def whole(self, names: Sequence[str]) -> AbstractContextManager[dict[str, Tensor]]:
        """Parameters of the model, trained or not, whole on every rank within the block, in the compute type.

        They are to be read, not written, and may be the ones in training: clone what must outlast the block.
        """
        ...

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """(``KEY|PARAMETER|START``, live float32 tensor) of all weights and moments that this rank writes into a checkpoint.

        Over all ranks each element comes once (``actors.learner.pieces``). A rank may call it by itself.
        """
        ...

    def load_pieces(self, read: ReadWhole, updates: int) -> None:
        """Take weights and moments from a checkpoint in which Adam had counted ``updates`` steps."""
        ...

    def updates_done(self) -> int:
        """Adam's count of steps."""
        ...


def make_backend(settings: BackendSettings, reader: Any, learner: LearnerSection, total_steps: int) -> TrainingBackend:
    """Wrap a reader, and check it where it will run; all ranks of the process group take part.

    Args:
        settings: choose the backend; usually ``learner.backend``.
        reader: of a model in the compute type, as it was loaded; parameters that need no gradient stay as they are.
        learner: optimizer, schedule, clipping.
        total_steps: optimizer steps after which the schedule ends.

    Raises:
        ModelError: the reader does not give what its model says, or the backend cannot train the model.
        ConfigError: the backend cannot be imported.
    """
    return cast(TrainingBackend, settings.build(reader, learner, total_steps))


def check_wrapped(reader: Any) -> None:
    """Compare a reader, within its backend, with its model's own forward pass; other modules have none to be compared with.

    Raises:
        ModelError: as ``dvpo_ray.models.reader_check.check_reader``.
    """
    if isinstance(reader, PolicyReader | ValueReader):
        check_reader(reader)


def prepare_reader(reader: Any, learner: LearnerSection) -> None:
    """What every backend does to a reader before wrapping it: gradient checkpointing where it is asked for."""
    if learner.gradient_checkpointing:
        reader.model.gradient_checkpointing_enable({"use_reentrant": False})
        reader.model.train()
