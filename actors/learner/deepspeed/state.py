"""What an optimizer knows, as tensors by parameter name: written by every rank, read by any number of ranks at any ZeRO stage.

Each rank writes the pieces it owns: ``KEY|PARAMETER|START`` holds elements from START on of the flattened parameter (KEY is
``weight``, ``exp_avg`` or ``exp_avg_sq``, all float32). Reading puts the pieces of all ranks together again.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dvpo_ray.errors import CheckpointError
from dvpo_ray.io.safetensors_writer import write_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")
SEPARATOR = "|"
LEARNER = "learner"
LOWEST_PRIORITY = 19
FACTS = ("adam_steps", "schedule_steps", "skipped", "world")
Pieces = dict[tuple[str, str], list[tuple[int, Any, str]]]


def file_name(rank: int, role: str = LEARNER) -> str:
    """The file that a rank writes into a checkpoint."""
    return f"{role}-{rank:05d}.safetensors"


def pieces(weights: dict[str, Tensor], optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """(``KEY|PARAMETER|START``, live float32 tensor) of all that this rank owns."""
    prepare_moments(optimizer)
    for name, parameter in weights.items():
        for key, start, tensor in _owned(parameter, optimizer):
            yield SEPARATOR.join((key, name, str(start))), tensor


@torch.no_grad()
def load_pieces(folder: Path, role: str, weights: dict[str, Tensor], optimizer: Any, updates: int) -> None:
    """Put what all ranks wrote into this rank's optimizer and model.

    Raises:
        CheckpointError: the pieces are not those of this model.
    """
    where = find_pieces(folder, role)
    prepare_moments(optimizer)
    unknown = {name for _, name in where} ^ set(weights)
    if unknown:
        raise CheckpointError(
            f"checkpoint '{folder}' is of another model: {len(unknown)} parameters differ, for example '{min(unknown)}'"
        )
    for name, parameter in weights.items():
        size = int(getattr(parameter, "ds_numel", parameter.numel()))
        whole = {key: joined(where.get((key, name), []), size, name, folder) for key in ("weight", *MOMENTS)}
        for key, start, tensor in _owned(parameter, optimizer):
            tensor.copy_(whole[key][start : start + tensor.numel()].view_as(tensor))
        _set_model_weight(parameter, whole["weight"])
    for state in inner(optimizer).state.values():
        state["step"].fill_(updates)


def find_pieces(folder: Path, role: str = LEARNER) -> Pieces:
    """Where the pieces of each (key, parameter) lie: (first element, open file, entry).

    Raises:
        CheckpointError: a file is not one that a rank wrote.
    """
    where: Pieces = defaultdict(list)
    with reading(folder):
        for path in sorted(folder.glob(file_name(0, role).replace("00000", "*"))):
            file = safe_open(path, framework="pt", device="cpu")
            for entry in file.keys():  # noqa: SIM118 - safetensors files are no dicts
                parts = entry.split(SEPARATOR)
                if len(parts) == 3:
                    where[parts[0], parts[1]].append((int(parts[2]), file, entry))
    return where


@contextmanager
def reading(folder: Path | str) -> Iterator[None]:
    """Name the checkpoint when one of its files, although it has the sha256 that the manifest names, is not one a rank writes."""
    try:
        yield
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint '{folder}' holds no learner's state: {error!r}; name another checkpoint") from error


def prepare_moments(optimizer: Any) -> None:
    """Give every master weight the moments that Adam would make in its first step, so that they can be written and read."""
    adam = inner(optimizer)
    masters = [p for group in adam.param_groups for p in group["params"]]
    masters = getattr(optimizer, "single_partition_of_fp32_groups", masters)
    masters = getattr(optimizer, "fp32_partitioned_groups_flat", masters)
    for master in masters:
        if not adam.state[master]:
            step = torch.zeros((), dtype=torch.float32, device=master.device)
            adam.state[master] = {"step": step} | {key: torch.zeros_like(master) for key in MOMENTS}
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


def inner(optimizer: Any) -> Any:
    """The torch optimizer inside DeepSpeed's, or the optimizer itself."""
    return getattr(optimizer, "optimizer", optimizer)


def updates_done(optimizer: Any) -> int:
    """Adam's count of steps."""
    steps = {int(state["step"]) for state in inner(optimizer).state.values()}
    return max(steps, default=0)


def _owned(parameter: Any, optimizer: Any) -> Iterator[tuple[str, int, Tensor]]:
    """(key, first element, live tensor) of a parameter's float32 weight and moments on this rank; none when others own it."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if hasattr(parameter, "ds_tensor"):
        start = dist.get_rank() * parameter.ds_tensor.numel()
        length = min(parameter.ds_tensor.numel(), parameter.ds_numel - start)
        if length > 0:
            yield "weight", start, safe_get_local_fp32_param(parameter).flatten()[:length]
            for key in MOMENTS:
                yield key, start, safe_get_local_optimizer_state(parameter, key).flatten()[:length]
    elif hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        if mapping is not None:
            start = mapping.lp_fragment_address.start
            yield "weight", start, mapping.get_hp_fragment()
            for key in MOMENTS:
                yield key, start, mapping.get_optim_state_fragment(key)
    else:
        master = optimizer.master(parameter)
        yield "weight", 0, master.detach()
        for key in MOMENTS:
            yield key, 0, inner(optimizer).state[master][key]


@torch.no_grad()
def _set_model_weight(parameter: Any, whole: Tensor) -> None:
    """The model's own copy, in its own type."""
    if hasattr(parameter, "ds_tensor"):
        size = parameter.ds_tensor.numel()
        start = dist.get_rank() * size
        mine = whole[start : start + size]
        parameter.ds_tensor.data[: mine.numel()].copy_(mine)
    else:
        parameter.data.copy_(whole.view_as(parameter))


def joined(parts: list[tuple[int, Any, str]], size: int, name: str, folder: Path) -> Tensor:
    """All elements of a parameter, float32 [size], from pieces that must follow one another without a gap.

    Raises:
        CheckpointError: they do not.
    """
    whole = torch.empty(size, dtype=torch.float32)
    done = 0
    for start, file, entry in sorted(parts, key=lambda part: part[0]):
        with reading(folder):
            piece = file.get_tensor(entry).flatten()
        if piece.dtype != torch.float32:
            raise CheckpointError(
                f"checkpoint '{folder}' holds '{name}' as {piece.dtype}, expected float32; name another checkpoint"
            )
        if start != done or start + piece.numel() > size:
            break
        whole[start : start + piece.numel()] = piece
        done += piece.numel()
    if done != size:
        raise CheckpointError(f"checkpoint '{folder}' holds {done} of {size} elements of '{name}'")
    return whole


def yield_to_training() -> None:
    """Let this thread alone run when nothing else wants its core (Linux).

    The threads of a matrix product wait for the slowest of them, so one that shares its core slows down all. Whoever waits for
    what this thread writes leaves it the core.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


class StateWriter:
    """Writes a rank's pieces in a thread while training goes on; who changes what is written must ``wait`` first.

    Between two optimizer steps weights and moments are only read, so nothing is copied.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._digest: str | None = None
        self._error: BaseException | None = None

    def begin(self, path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
        """Start writing; the one before must have been collected."""
        assert self._thread is None, "the last checkpoint was not collected"

        def write() -> None:
            try:
                yield_to_training()
                self._digest = write_tensors(path, tensors, facts)
            except BaseException as error:
                self._error = error

        self._digest, self._error = None, None
        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what is being written is on the disk, or failed."""
        if self._thread is not None:
            self._thread.join()

    def collect(self) -> str:
        """The digest of what was written.

        Raises:
            CheckpointError: it could not be written.
        """
        self.wait()
        self._thread = None
        if self._error is not None:
            raise CheckpointError(f"a checkpoint could not be written: {self._error}") from self._error
        assert self._digest is not None
        return self._digest
