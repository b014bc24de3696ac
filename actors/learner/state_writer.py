"""Writing a rank's part of a checkpoint while training goes on."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from torch import Tensor

from dvpo_ray.errors import CheckpointError
from dvpo_ray.io.safetensors_writer import write_tensors

LOWEST_PRIORITY = 19


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
