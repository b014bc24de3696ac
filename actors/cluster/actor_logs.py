"""What the actors of a job wrote on the nodes of a cluster, brought to the run's folder before it is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import requests
from ray._private.worker import global_worker
from ray.exceptions import RayError
from ray.util.state import get_log, list_actors
from ray.util.state.exception import RayStateApiException

MOST_ACTORS, MOST_LINES, SHOWN_LINES = 200, 5000, 5
TIMEOUT_S = 20
TROUBLE = (RayStateApiException, RayError, requests.RequestException, ConnectionError, TimeoutError, RuntimeError)


def keep_actor_logs(target: Path) -> str:
    """Write the end of each actor's log to a file in ``target``; returns where they are, and the last lines of actors that died.

    What cannot be had stays with Ray, and that is said with the folder that it lies in.
    """
    stays = f"with Ray, on the nodes of its actors: {global_worker.node.get_logs_dir_path()}/worker-*"
    try:
        context = ray.get_runtime_context()
        filters = [("job_id", "=", context.get_job_id())]
        actors = list_actors(context.gcs_address, filters=filters, limit=MOST_ACTORS, timeout=TIMEOUT_S)
    except TROUBLE as error:
        return f"{stays} (they could not be fetched: {_line(error)})"
    kept, lost = [], []
    for actor in actors:
        try:
            kept += [(actor, path) for path in _written(actor, target, context.gcs_address)]
        except TROUBLE as error:
            lost.append(f"{_name(actor)}: {_line(error)}")
    if not kept:
        return f"{stays} ({'; '.join(lost) or 'no actor wrote any'})"
    said = [str(target), *(f"not fetched, {one}; it stays {stays}" for one in lost)]
    for actor, path in kept:
        if actor.state == "DEAD":
            lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()][-SHOWN_LINES:]
            said += [f"the last of {path.name}:", *(f"  {line}" for line in lines)]
    return "\n".join(said)


def _written(actor: Any, target: Path, address: str) -> Iterator[Path]:
    """The files of an actor's log, those that hold anything."""
    for suffix in ("out", "err"):
        pieces: Sequence[str] = list(get_log(address, actor_id=actor.actor_id, suffix=suffix, tail=MOST_LINES, timeout=TIMEOUT_S))
        text = "".join(pieces)
        if text.strip():
            target.mkdir(parents=True, exist_ok=True)
            path = target / f"{_name(actor)}-{actor.pid}.{suffix}"
            path.write_text(text, encoding="utf-8", errors="replace")
            yield path


def _name(actor: Any) -> str:
    return str(actor.name or actor.class_name).replace("/", "_")


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))
