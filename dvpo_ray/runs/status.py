"""How a job stands, in a file of its run's folder: what looks after jobs reads this, and searches no log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dvpo_ray.errors import DataError, DiskFullError, RunStoppedError, exit_code_of
from dvpo_ray.io.disk import write_text
from dvpo_ray.io.json_files import REMEDY, read_object
from dvpo_ray.runs.pace import Pace
from dvpo_ray.runs.stopping import Stop

STATUS = "status.json"


class JobStatus(BaseModel):
    """What ``status.json`` holds.

    ``began`` is when its work did, in seconds since 1970. ``exit_code`` is the command line's, None while the job runs, and when
    it was killed and could not say so; ``message`` is the error it ended with. ``steps`` of ``total_steps`` are trained, and
    ``checkpointed`` of them are in the newest checkpoint (None: there is none); jobs of several trainings leave these to the
    folders of the trainings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Literal["running", "finished", "stopped", "failed"]
    began: float
    exit_code: int | None = None
    message: str = ""
    steps: int | None = None
    total_steps: int | None = None
    checkpointed: int | None = None


def read_status(folder: Path) -> JobStatus | None:
    """The status of the job whose run's folder this is; None when it has written none.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / STATUS
    if not path.is_file():
        return None
    try:
        return JobStatus.model_validate(read_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {REMEDY}") from error


@contextmanager
def status_kept(folder: Path, stop: Stop, pace: Pace | None = None) -> Iterator[None]:
    """Keep ``status.json`` in a run's folder while the block does the work of a job; ``pace`` knows the steps of its training.

    Raises:
        RunStoppedError: the work was given up because a signal asked for it.
    """
    write = partial(_write, folder, pace, began=time.time())
    write(state="running")
    try:
        with stop.at_once(lambda: write(state="stopped", exit_code=stop.exit_code, message="stopped at once")):
            yield
    except BaseException as error:
        ended = stop.outcome(error)
        state = "stopped" if isinstance(ended, RunStoppedError) else "failed"
        try:
            write(state=state, exit_code=exit_code_of(ended), message=str(ended) or repr(ended))
        # A disk that is full may be what the work ended with: that is the error to be told.
        except (OSError, DiskFullError) as trouble:
            logging.getLogger(__name__).warning("%s could not be written: %s", folder / STATUS, trouble)
        if ended is error:
            raise
        raise ended from None
    write(state="finished", exit_code=0)


def _write(folder: Path, pace: Pace | None, **found: Any) -> None:
    """Replace the file as a whole: whoever reads it at any time reads one of both."""
    steps = {} if pace is None else {"steps": pace.done, "total_steps": pace.total, "checkpointed": pace.checkpointed}
    write_text(folder / STATUS, JobStatus(**found, **steps).model_dump_json(indent=2) + "\n")
