"""What every training backend must do, checked on a small model: for those who write one.

A test of a plug-in calls it with its settings, in a process of its own or in each rank of a gang::

    from actors.learner.conformance import check_training_backend

    def test_backend() -> None:
        check_training_backend(MySettings(level=2))
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from actors.learner.backend import TrainingBackend, make_backend
from actors.learner.collectives import all_reduce, join_process_group
from actors.learner.pieces import MOMENTS, SEPARATOR, WEIGHT
from actors.learner.rank import free_port
from actors.learner.schedule import learning_rate
from dvpo_ray.config.backends import BackendSettings
from dvpo_ray.config.sections import LearnerSection

LEARNER = LearnerSection(dtype="float32", learning_rate=1e-2, grad_clip=0.05, weight_decay=0.1, schedule="linear")
TOTAL_STEPS = 10
# Rows of inputs in all micro-batches of a step together, on all ranks; columns of the model, which no number of ranks divides.
MICRO_BATCHES, ROWS, WIDTH = 4, 3, 5
CLOSE = 1e-6


class SmallReader(nn.Module):
    """The shape of a reader: a model under ``model``, with a tied weight, a frozen one, and one of a single row."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "first": nn.Linear(WIDTH, WIDTH),
                "again": nn.Linear(WIDTH, WIDTH),
                "head": nn.Linear(WIDTH, 1),
                "frozen": nn.Linear(1, 1),
            }
        )
        self.model["again"].weight = self.model["first"].weight
        self.model["frozen"].requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., WIDTH] to [..., 1]."""
        hidden = torch.tanh(self.model["again"](torch.tanh(self.model["first"](inputs))))
        out: Tensor = self.model["frozen"](self.model["head"](hidden))
        return out


def check_training_backend(settings: BackendSettings) -> None:
    """Take steps by a backend and by plain torch, and compare; all ranks of the process group call it, or one process alone.

    Raises:
        AssertionError: naming what the backend does otherwise than ``actors.learner.backend.TrainingBackend`` says.
    """
    if not dist.is_initialized():
        join_process_group(0, 1, "127.0.0.1", free_port(), 1)
    for check in (_check_names, _check_steps, _check_withheld, _check_discarded, _check_checkpoint):
        check(lambda: _new(settings))


def _new(settings: BackendSettings) -> TrainingBackend:
    torch.manual_seed(0)
    return make_backend(settings, SmallReader(), LEARNER, TOTAL_STEPS)


def _inputs(step: int) -> Tensor:
    """All micro-batches of a step on all ranks [MICRO_BATCHES x ranks, ROWS, WIDTH]. They grow, because Adam would not show it if
    gradients of one size were not clipped."""
    numbers = torch.Generator().manual_seed(step)
    return torch.randn(MICRO_BATCHES * dist.get_world_size(), ROWS, WIDTH, generator=numbers) * (1 + step)


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _add_up(backend: TrainingBackend, step: int, ends: bool = True, factor: float = 1.0) -> None:
    """Gradients of this rank's micro-batches."""
    mine = _inputs(step)[dist.get_rank() :: dist.get_world_size()].to(_device()) * factor
    for number, inputs in enumerate(mine):
        backend.backward(backend(inputs).square().sum(), last=ends and number == len(mine) - 1)


def _weights(backend: TrainingBackend) -> dict[str, Tensor]:
    with backend.whole(list(backend.shapes())) as tensors:
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _reference(steps: int) -> tuple[dict[str, Tensor], list[tuple[float, float]]]:
    """Weights after steps in plain torch, and (norm, rate) of each."""
    torch.manual_seed(0)
    reader, reported = SmallReader(), []
    trained = {name: p for name, p in reader.model.named_parameters() if p.requires_grad}
    adam = torch.optim.AdamW(trained.values(), betas=LEARNER.betas, weight_decay=LEARNER.weight_decay)
    for step in range(steps):
        adam.zero_grad()
        sum(reader(inputs).square().sum() for inputs in _inputs(step)).backward()
        norm = float(nn.utils.clip_grad_norm_(trained.values(), LEARNER.grad_clip))
        assert norm > LEARNER.grad_clip, "else clipping is not checked"
        rate = learning_rate(step, LEARNER, TOTAL_STEPS)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        reported.append((norm, rate))
    return {name: p.detach() for name, p in trained.items()}, reported


def _assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    assert list(found) == list(expected), f"{what}: parameters {list(found)}, expected {list(expected)}"
    for name, tensor in found.items():
        gap = float((tensor - expected[name]).abs().max())
        assert gap <= CLOSE, f"{what}: '{name}' is {gap:.3g} off"


def _check_names(new: Callable[[], TrainingBackend]) -> None:
    """Tied parameters come once, frozen ones are no trained ones, and whole ones are as the model was made."""
    backend, (expected, _) = new(), _reference(0)
    _assert_same(_weights(backend), expected, "a new model, gathered")
    for name, shape in backend.shapes().items():
        assert shape.is_meta, f"shapes(): '{name}' has numbers, expected a meta tensor"
        assert shape.shape == expected[name].shape, (
            f"shapes(): '{name}' is {tuple(shape.shape)}, {tuple(expected[name].shape)} whole"
        )
    with backend.whole(["frozen.weight"]) as tensors:
        assert tensors["frozen.weight"].shape == (1, 1), "whole() does not give frozen parameters"


def _check_steps(new: Callable[[], TrainingBackend]) -> None:
    """Steps are those of plain torch on the sum of all gradients, clipped, with weight decay, by the schedule."""
    backend, (expected, reported) = new(), _reference(2)
    for step, (norm, rate) in enumerate(reported):
        _add_up(backend, step)
        found_norm, found_rate = backend.apply()
        assert math.isclose(found_norm, norm, rel_tol=1e-5), f"step {step}: gradient norm {found_norm:.6g}, expected {norm:.6g}"
        assert math.isclose(found_rate, rate), f"step {step}: learning rate {found_rate:.6g}, expected {rate:.6g}"
    assert backend.steps == backend.updates_done() == 2, f"two steps are counted as {backend.steps} and {backend.updates_done()}"
    _assert_same(_weights(backend), expected, "weights after two steps")


def _check_withheld(new: Callable[[], TrainingBackend]) -> None:
    """A gradient that is not finite changes nothing, nor the steps after it."""
    backend, (expected, _) = new(), _reference(2)
    _add_up(backend, 0)
    backend.apply()
    _add_up(backend, 1, factor=math.inf)
    norm, _ = backend.apply()
    assert not math.isfinite(norm), f"a gradient that is not finite has the norm {norm}"
    assert backend.steps == 1, "a step that must be withheld was counted"
    _add_up(backend, 1)
    backend.apply()
    _assert_same(_weights(backend), expected, "weights after a withheld step")


def _check_discarded(new: Callable[[], TrainingBackend]) -> None:
    """Discarded gradients leave no trace, whether their last micro-batch came or not."""
    for ends in (True, False):
        backend, (expected, _) = new(), _reference(1)
        _add_up(backend, 5, ends)
        backend.discard()
        _add_up(backend, 0)
        backend.apply()
        _assert_same(_weights(backend), expected, "weights after discarded gradients")


def _check_checkpoint(new: Callable[[], TrainingBackend]) -> None:
    """Pieces of all ranks hold each element once, in float32, and another backend goes on from them."""
    backend, (expected, _) = new(), _reference(2)
    _add_up(backend, 0)
    backend.apply()
    whole = _joined(backend)
    again = new()
    again.load_pieces(lambda key, name: whole[key, name], updates=1)
    again.steps = 1
    _add_up(again, 1)
    again.apply()
    _assert_same(_weights(again), expected, "weights after going on from pieces")


def _joined(backend: TrainingBackend) -> dict[tuple[str, str], Tensor]:
    """What the pieces of all ranks are together, flat."""
    mine = {name: tensor.detach().cpu().clone().flatten() for name, tensor in backend.pieces()}
    assert all(tensor.dtype == torch.float32 for tensor in mine.values()), "pieces() gives another type than float32"
    counted = all_reduce({"elements": float(sum(tensor.numel() for tensor in mine.values()))})["elements"]
    ranks: list[dict[str, Tensor]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, mine)
    parts: dict[tuple[str, str], dict[int, Tensor]] = defaultdict(dict)
    for name, tensor in (item for rank in ranks for item in rank.items()):
        key, parameter, start = name.split(SEPARATOR)
        parts[key, parameter][int(start)] = tensor
    whole = {of: torch.cat([pieces[start] for start in sorted(pieces)]) for of, pieces in parts.items()}
    sizes = {(key, name): shape.numel() for key in (WEIGHT, *MOMENTS) for name, shape in backend.shapes().items()}
    found = {of: tensor.numel() for of, tensor in whole.items()}
    assert found == sizes and counted == sum(sizes.values()), f"pieces() holds {found} elements, expected each of {sizes} once"
    return whole
