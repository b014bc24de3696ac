"""Forks processes that do nothing but checkpoint, kills each at a random moment, and looks whether what is left can be resumed.

A program of its own, with one thread: a fork of a process with more could stop for ever.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
from pathlib import Path

import torch

from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.io.safetensors_writer import write_tensors


def checkpoint_for_ever(folder: Path, step: int, ready: int) -> None:
    """Checkpoint step after step, and say so after each."""
    store = CheckpointStore(folder)
    while True:
        step += 1
        unfinished = store.begin(step)
        digest = write_tensors(unfinished / "a.safetensors", {"weight|w|0": torch.full((50_000,), float(step))}, {})
        store.finish(step, unfinished, {"a.safetensors": digest}, {"step": step})
        os.write(ready, b".")


def main(folder: Path, rounds: int) -> None:
    """Raises AssertionError when a killed process left no whole checkpoint, or lost one it had finished."""
    torch.set_num_threads(1)
    luck, last = random.Random(0), 0
    for _ in range(rounds):
        started, ready = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                checkpoint_for_ever(folder, last, ready)
            finally:
                os._exit(1)
        os.close(ready)
        done = len(os.read(started, 1))
        select.select([], [], [], luck.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(started, False)
            done += len(os.read(started, 10_000))
        os.close(started)
        newest = CheckpointStore(folder).newest()
        assert newest is not None and newest.step >= last + done, (newest, last, done)
        assert not list(folder.glob("quarantine-*")), "a killed process left a checkpoint that is not whole"
        last = newest.step


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
