"""What learner processes of every kind share: joining a process group and padding their share of a batch."""

from __future__ import annotations

import ctypes
import math
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from actors.cluster.busy import BusyClock
from actors.cluster.metrics import busy_counter
from actors.cluster.node_facts import doubt
from actors.cluster.nodes import this_node
from actors.cluster.watchdog import watched
from actors.learner.backend import TrainingBackend, make_backend
from actors.learner.collectives import all_reduce, join_process_group
from actors.learner.pieces import LEARNER, SEPARATOR, file_name, reader_of, reading
from actors.learner.state_writer import StateWriter
from dvpo_ray.config.sections import LearnerSection, ModelSection, settled
from dvpo_ray.errors import CheckpointError, NonFiniteUpdateError
from dvpo_ray.learning.batching import SequenceBatch, micro_batches, pad_sequences, share_rows
from dvpo_ray.learning.pairs import LabelledAnswer, Unit
from dvpo_ray.models.packaged import folder_of
from dvpo_ray.types import Ragged

GROWTH_ALLOWED = 1.1
STEPS_BETWEEN_TRIMS = 4
# Numbers in the header of a rank's file in a checkpoint.
FACTS = ("adam_steps", "schedule_steps", "skipped", "world")


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class Rank:
    """One process of a learner gang."""

    # What its files in a checkpoint are called after.
    role = LEARNER
    # The setting of its learning rate.
    rate_key = "learner.learning_rate"

    def __init__(self, rank: int, world: int, model_folder: str, model: ModelSection, learner: LearnerSection, seed: int) -> None:
        self.rank = rank
        self.world = world
        self.model_folder = model_folder
        self.model_section = model
        self.config = learner
        self.seed = seed
        self.device = torch.device("cpu")
        self.skipped = 0
        self._skipped_now = 0
        # Of the weights that are not trained, which checkpoints do not hold; empty when all are.
        self.base_sha256 = ""
        self.busy = BusyClock(busy_counter("learner"))
        self.writer = StateWriter()
        self._lean_bytes = 0
        self._steps_kept = 0
        self.backend: TrainingBackend

    @property
    def folder(self) -> Path:
        """The model's folder on this node."""
        return folder_of(self.model_folder)

    def rendezvous(self) -> tuple[str, int]:
        """Address and free port of this process, for rank 0 to be found at."""
        import ray

        address = ray.util.get_node_ip_address()
        return address, free_port(address)

    def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    def node(self) -> str:
        """Id of the Ray node this process is on."""
        return this_node()

    def doubts(self) -> list[str]:
        """What speaks against this rank's settings on its node."""
        return doubt(f"a {self.role} rank", self.config.dtype)

    def join(self, address: str, port: int) -> int:
        """Join the process group; returns this process's id."""
        self.device = join_process_group(self.rank, self.world, address, port, self.config.cpu_threads)
        torch.manual_seed(self.seed)
        return os.getpid()

    def wrap(self, reader: nn.Module, updates: int) -> None:
        """Give the reader of the model to the training backend, for so many optimizer steps."""
        self.backend = make_backend(self.config.backend, reader, self.config, updates)

    @property
    def share_prefix(self) -> bool:
        """Whether a micro-batch's common beginning may be read once, in a pass of its own."""
        return self.model_section.share_prefix != "off" and self.config.backend.reads_prefix_once(self.world)

    def busy_seconds(self) -> float:
        """Time since the start in which this rank trained, in seconds."""
        return self.busy.seconds

    @watched
    def begin_checkpoint(self, folder: str, more: dict[str, Tensor] | None = None) -> None:
        """Start writing what this rank knows into a checkpoint's folder; the next optimizer step waits until it is written."""
        tensors = dict(self.backend.pieces()) | {"rng": torch.get_rng_state()} | (more or {})
        facts = {
            "adam_steps": str(self.backend.updates_done()),
            "schedule_steps": str(self.backend.steps),
            "skipped": str(self.skipped),
            "world": str(self.world),
            "base_sha256": self.base_sha256,
        }
        self.writer.begin(Path(folder) / file_name(self.rank, self.role), tensors, facts)

    @watched
    def end_checkpoint(self) -> tuple[str, str]:
        """Wait for what ``begin_checkpoint`` began; returns the file's name and sha256.

        Raises:
            CheckpointError: it could not be written.
        """
        return file_name(self.rank, self.role), self.writer.collect()

    @watched
    def load_checkpoint(self, folder: str) -> dict[str, Tensor]:
        """Go on from a verified checkpoint, written by any number of ranks; returns what it holds besides (``more``).

        Raises:
            CheckpointError: it is of another model, or holds adapters of other base weights.
        """
        with reading(folder), safe_open(Path(folder) / file_name(0, self.role), framework="pt", device="cpu") as file:
            written = file.metadata() or {}
            facts = {name: int(written[name]) for name in FACTS}
            more = {name: file.get_tensor(name) for name in file.keys() if SEPARATOR not in name}  # noqa: SIM118
        base = written.get("base_sha256", "")
        if base and base != self.base_sha256:
            raise CheckpointError(
                f"checkpoint '{folder}' holds adapters of a model whose weights have sha256 {base[:16]}..., the learner has "
                f"'{self.model_folder}' with {self.base_sha256[:16] or 'no adapters'}: name the model they were trained on, "
                "or start anew"
            )
        self.backend.load_pieces(reader_of(Path(folder), self.role, self.backend.shapes()), facts["adam_steps"])
        self.backend.steps, self.skipped = facts["schedule_steps"], facts["skipped"]
        if facts["world"] == self.world:
            with reading(folder), safe_open(Path(folder) / file_name(self.rank, self.role), framework="pt", device="cpu") as file:
                torch.set_rng_state(file.get_tensor("rng"))
        return more

    def leave(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def apply_update(self, finite: bool) -> dict[str, float]:
        """Take the optimizer step, or withhold it when the loss or the gradient is not finite; returns its metrics.

        Raises:
            NonFiniteUpdateError: more than ``learner.max_skipped_updates`` in a row had to be withheld.
        """
        self.writer.wait()
        if finite:
            norm, rate = self.backend.apply()
            if math.isfinite(norm):
                self.skipped = 0
                return {"optimizer/grad_norm": norm, "optimizer/learning_rate": rate}
        else:
            self.backend.discard()
        self.skipped += 1
        self._skipped_now += 1
        if self.skipped > self.config.max_skipped_updates:
            raise NonFiniteUpdateError(
                f"{self.skipped} updates in a row had a loss or gradient that was not finite and were withheld; "
                f"lower {self.rate_key}"
            )
        return {"optimizer/grad_norm": math.nan, "optimizer/learning_rate": 0.0}

    def pop_skipped_count(self) -> float:
        """How many updates were withheld since this was last asked, which is once a step."""
        count, self._skipped_now = self._skipped_now, 0
        return float(count)

    def release_free_memory(self) -> None:
        """Give freed memory back to the kernel when the process has grown a tenth beyond its size after the first step.

        The allocator keeps what it has (``actors.cluster.session.actor_environment``), and micro-batches of ever new shapes leave
        holes in it. Only with CPU learners on glibc, and only now and then: fresh pages are costly.
        """
        libc = ctypes.CDLL(None)
        if self.device.type != "cpu" or not hasattr(libc, "malloc_trim"):
            return
        self._steps_kept += 1
        size = psutil.Process().memory_info().rss
        if self._lean_bytes == 0:
            self._lean_bytes = size
        elif size > GROWTH_ALLOWED * self._lean_bytes and self._steps_kept >= STEPS_BETWEEN_TRIMS:
            libc.malloc_trim(0)
            self._steps_kept = 0

    @property
    def dtype(self) -> torch.dtype:
        """Compute type of the model."""
        return getattr(torch, self.config.dtype)

    def plan(self, rows: Sequence[int], lengths: np.ndarray) -> list[list[int]]:
        """Micro-batches of this rank's rows, as many on every rank.

        Sharded optimizers communicate in every pass, so ranks with fewer micro-batches add empty ones.
        """
        sizes = [int(lengths[r]) for r in rows]
        budget, padding = settled(self.config.token_budget), settled(self.config.max_padding)
        planned = micro_batches(sizes, budget, padding, self.model_section.packed)
        groups = [[rows[i] for i in group] for group in planned]
        if self.world > 1:
            most = int(all_reduce({"n": float(len(groups))}, "max")["n"])
            groups += [[] for _ in range(most - len(groups))]
        return groups

    def gathered(self, found: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """What all ranks have found, by row."""
        if self.world == 1:
            return found
        parts: list[dict[int, np.ndarray]] = [{} for _ in range(self.world)]
        dist.all_gather_object(parts, found)
        return {row: values for part in parts for row, values in part.items()}

    def plan_pairs(self, pairs: Sequence[Unit]) -> list[list[int]]:
        """Micro-batches of this rank's share of pairs. A pair stays together, as two rows of its longer answer's length."""
        sizes = [max(answer.tokens for answer in pair) for pair in pairs]
        mine = share_rows(sizes, self.world)[self.rank]
        return self.plan(mine, np.array([2 * size for size in sizes]))

    def plan_units(self, units: Sequence[Unit]) -> list[list[int]]:
        """As ``plan_pairs``; answers that are in no pair are planned after the pairs, in micro-batches of their own."""
        pairs = [i for i, unit in enumerate(units) if len(unit) == 2]
        alone = [i for i, unit in enumerate(units) if len(unit) == 1]
        groups = [[pairs[i] for i in group] for group in self.plan_pairs([units[i] for i in pairs])] if pairs else []
        if alone:
            lengths = np.array([unit[0].tokens for unit in units])
            mine = share_rows(lengths[alone].tolist(), self.world)[self.rank]
            groups += self.plan([alone[i] for i in mine], lengths)
        return groups

    def pad(
        self, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None = None
    ) -> SequenceBatch:
        """Right-padded tensors on this rank's device; ``masks`` say which tokens of each response the policy wrote."""
        return pad_sequences(prompts, responses, self.device, masks=masks)

    def pad_answers(self, answers: Sequence[LabelledAnswer]) -> SequenceBatch:
        """As ``pad``."""
        return self.pad([answer.prompt_ids for answer in answers], [answer.response_ids for answer in answers])

    def read_share(
        self,
        prompts: Sequence[np.ndarray],
        responses: Sequence[np.ndarray],
        read: Callable[[SequenceBatch], tuple[Tensor, np.ndarray]],
        masks: Sequence[np.ndarray] | None = None,
    ) -> dict[int, np.ndarray]:
        """What ``read`` gives for each row of this rank's share, by index, without gradients: numbers one row after the other,
        and how many are each row's. ``masks`` as in ``pad``. A rank without rows left reads one for the sake of its peers."""
        lengths = np.array([prompt.size + response.size for prompt, response in zip(prompts, responses, strict=True)])
        mine = share_rows(lengths.tolist(), self.world)[self.rank]
        found: dict[int, np.ndarray] = {}
        for group in self.plan(mine, lengths):
            rows = group or [0]
            with torch.no_grad():
                chosen = None if masks is None else [masks[i] for i in rows]
                flat, counts = read(self.pad([prompts[i] for i in rows], [responses[i] for i in rows], chosen))
            if group:
                found |= dict(zip(group, Ragged(flat.float().cpu().numpy(), counts).rows(), strict=True))
        return found
