"""`dvpo cluster`: a Ray on this machine for this user alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dvpo_ray.errors import UserInputError
from jobs.cli.commands import JsonOption, guard, local_path

LEAST_CPUS = 8

cluster_app = typer.Typer(help="A Ray on this machine, for you alone: start it, stop it.", no_args_is_help=True)
FolderOption = Annotated[
    Path | None,
    typer.Option(callback=local_path, help="Closed folder for Ray's files; default: ray-UID among the temporary files."),
]


@cluster_app.command("start")
def cluster_start(
    folder: FolderOption = None,
    num_cpus: Annotated[
        int | None,
        typer.Option(min=1, help="Logical CPUs: each engine, scorer and learner rank asks for one; default: 8 or more."),
    ] = None,
    num_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs; default: all.")] = None,
    object_store_mb: Annotated[
        int | None, typer.Option(min=100, help="Shared memory for objects; default: Ray's choice.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a Ray that `dvpo submit` finds: its files closed to other users, a token, the dashboard on loopback, free ports."""

    def work() -> dict[str, Any]:
        from actors.cluster import head

        cpus = num_cpus or max(LEAST_CPUS, os.cpu_count() or 1)
        session = head.start_head(folder or head.default_folder(), cpus, num_gpus, object_store_mb)
        return {"dashboard": session.dashboard, "address": session.address, "files": str(session.folder.parent)}

    guard(work, as_json)


@cluster_app.command("stop")
def cluster_stop(
    folder: FolderOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also with jobs under way, which lose what they have not checkpointed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """End the Ray that `dvpo cluster start` started, and nothing else."""

    def work() -> dict[str, Any]:
        from actors.cluster.token import use_token

        # Ray reads it when it is imported.
        use_token()
        from actors.cluster import head

        chosen = folder or head.default_folder()
        running = head.running_in(chosen.absolute())
        if running is not None and running.dashboard is not None and not force:
            _refuse_under_way(running.dashboard)
        return {"stopped": str(head.stop_head(chosen).folder)}

    guard(work, as_json)


def _refuse_under_way(dashboard: str) -> None:
    """Refuse to end a Ray under jobs.

    Raises:
        UserInputError: naming them.
        RunError: the Ray does not say.
    """
    from actors.cluster.job_client import JobClient

    client = JobClient(dashboard)
    under_way = [job["job"] for job in client.jobs() if job["ended"] is None]
    under_way += [f"a run that connected by itself (Ray's job {driver})" for driver in client.drivers()]
    if under_way:
        raise UserInputError(
            f"{len(under_way)} job(s) are under way: {', '.join(under_way)}; `dvpo jobs stop JOB` lets each checkpoint and end, "
            "--force ends them at once"
        )
