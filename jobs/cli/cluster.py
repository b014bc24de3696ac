"""Commands that run recipes as jobs of a Ray cluster: `dvpo submit` and `dvpo jobs`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvpo_ray.errors import RunError, UserInputError
from dvpo_ray.io.printable import printable
from jobs.cli.commands import JsonOption, RecipeArg, ResumeOption, SetOption, guard, resumed

if TYPE_CHECKING:
    from actors.cluster.job_client import JobClient
    from dvpo_ray.runs.status import JobStatus

INTERRUPTED = 130
SHOWN = 200

jobs_app = typer.Typer(help="Jobs of a Ray cluster: list, look at, stop.", no_args_is_help=True)
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="URL of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or your Ray on this machine."
    ),
]
JobArg = Annotated[str, typer.Argument(help="The job's name, as `dvpo jobs list` shows it.")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Print what the job prints, and end as it ends.")]


def submit(
    recipe: RecipeArg,
    overrides: SetOption = [],  # noqa: B006
    resume: ResumeOption = None,
    address: AddressOption = None,
    follow: FollowOption = False,
    job_id: Annotated[str | None, typer.Option(help="Name of the job; default: the run's, with a random end.")] = None,
    image: Annotated[
        bool, typer.Option("--image", help="The cluster's image holds the code: send recipe and data alone.")
    ] = False,
    reward: Annotated[bool, typer.Option("--reward", help="Train a reward model, as `dvpo reward train` does.")] = False,
    include: Annotated[list[Path], typer.Option(help="File or folder that goes along, as a module of your own.")] = [],  # noqa: B006
    trust_local_users: Annotated[
        bool, typer.Option("--trust-local-users", help="Take a Ray whose files other users of this machine can enter.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe as a job of a Ray cluster; its sections say which training."""

    def work() -> dict[str, Any]:
        import secrets

        from dvpo_ray.submission import package as submission

        asked = submission.parse(recipe, resumed(overrides, resume), reward)
        client = _connect(address)
        job = job_id or f"{asked.recipe.run.name[:56]}-{secrets.token_hex(3)}"
        here = client.is_here()
        if here and not trust_local_users:
            client.refuse_open_session()
        options = submission.Options(client.upload_limit, here, image, tuple(include), as_json)
        with tempfile.TemporaryDirectory(prefix="dvpo-submit-") as folder:
            prepared = submission.build_package(asked, options, Path(folder) / "package.zip")
            client.submit(prepared, job)
        if follow:
            typer.echo(f"job '{job}' at {client.address}, its run in {prepared.run_folder}", err=True)
            ended = _follow(client, job)
            return ended if as_json else {}
        return {"job": job, "run_folder": prepared.run_folder, "dashboard": client.address}

    guard(work, as_json)


@jobs_app.command("list")
def jobs_list(address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Jobs of a cluster, the newest first."""

    def work() -> dict[str, Any]:
        found = _connect(address).jobs()
        if not as_json:
            from jobs.cli.console import show_jobs

            show_jobs(found)
        return {"jobs": found} if as_json else {}

    guard(work, as_json)


@jobs_app.command("status")
def jobs_status(job: JobArg, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """What is known of a job."""

    def work() -> dict[str, Any]:
        found: dict[str, Any] = _connect(address).job(job)
        return found if as_json else {name: value for name, value in found.items() if value not in (None, "")}

    guard(work, as_json)


@jobs_app.command("logs")
def jobs_logs(job: JobArg, follow: FollowOption = False, address: AddressOption = None) -> None:
    """What a job has printed."""

    def work() -> dict[str, Any]:
        client = _connect(address)
        if follow:
            _follow(client, job)
        else:
            typer.echo(printable(client.logs(job)), nl=False)
        return {}

    guard(work, as_json=False)


@jobs_app.command("stop")
def jobs_stop(
    job: JobArg,
    wait: Annotated[bool, typer.Option(help="Wait until the job has checkpointed and ended.")] = True,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a job to checkpoint what it has done and end; `--resume auto` goes on with its run."""

    def work() -> dict[str, Any]:
        client = _connect(address)
        if not client.stop(job):
            found: dict[str, Any] = client.job(job)
            raise UserInputError(f"job '{job}' has ended already: {found['status']}")
        if not wait:
            return {"job": job, "status": "STOPPING"}
        typer.echo("waiting for the job to checkpoint and end", err=True)
        ended = _until_its_end(client, job, lambda text: None, f"job '{job}' is still being stopped: `dvpo jobs status {job}`")
        return {"job": job, "status": ended["status"], "end": end_of_stop(_status_of(client, ended), client.logs(job))}

    guard(work, as_json)


def end_of_stop(status: JobStatus | None, log: str) -> str:
    """What became of a job that was asked to stop: what it wrote into its run's folder, or else its last words."""
    if status is not None and status.message:
        return status.message
    if status is not None and status.state == "finished":
        return "it had come to its end"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = f"the last it printed: {lines[-1][:SHOWN]}" if lines else "it had printed nothing"
    where = "its run's folder does not say how it ended" if status is None else "it was killed before it could say how it ended"
    return f"{where}; {said}"


def _status_of(client: JobClient, job: dict[str, Any]) -> JobStatus | None:
    """What a job wrote of itself; None when its run's folder is on other machines, or has only what an earlier job wrote."""
    from dvpo_ray.runs.status import read_status

    if not job["run_folder"] or not job["started"] or not client.is_here():
        return None
    status = read_status(Path(job["run_folder"]))
    return status if status is not None and status.began >= datetime.fromisoformat(job["started"]).timestamp() else None


def _connect(address: str | None) -> JobClient:
    from actors.cluster.token import use_token

    # Before Ray is imported, which reads the token once.
    use_token()
    from actors.cluster.job_client import JobClient

    return JobClient(address)


def _follow(client: JobClient, job: str) -> dict[str, Any]:
    """Print what a job prints until it ends, and end as it does."""
    goes_on = f"job '{job}' goes on: `dvpo jobs logs {job} --follow` follows it again, `dvpo jobs stop {job}` stops it"
    ended = _until_its_end(client, job, lambda text: typer.echo(printable(text), nl=False), goes_on)
    if ended["status"] == "STOPPED":
        raise RunError(f"job '{job}' was stopped: submit the recipe again with --resume auto to go on with its run")
    if ended["status"] == "FAILED":
        code = ended["exit_code"]
        why = ended["message"] if code is None else f"exit code {code}, and what it printed says why"
        raise (UserInputError if code == 2 else RunError)(f"job '{job}' failed: {why}")
    return ended


def _until_its_end(client: JobClient, job: str, write: Callable[[str], None], interrupted: str) -> dict[str, Any]:
    try:
        return dict(client.follow(job, write))
    except KeyboardInterrupt:
        typer.echo(f"\n{interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from None
