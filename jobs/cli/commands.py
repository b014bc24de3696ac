"""What all commands share: their common options, and errors as exit codes.

0 is good, 2 bad input, 1 failure, 130 and 143 an end that Ctrl-C or SIGTERM asked for.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from dvpo_ray.errors import DvpoError, RunStoppedError, exit_code_of
from dvpo_ray.io.disk import full, is_full
from dvpo_ray.io.paths import refuse_url
from dvpo_ray.io.printable import printable

# The names of dvpo_ray.config.kinds.KINDS, which help and completion show without importing the recipes.
RecipeKind = Literal["pipeline", "value", "reward", "policy", "dpo"]
RecipeArg = Annotated[str, typer.Argument(help="A .toml recipe, or the name of a shipped one.")]
ResumeOption = Annotated[str | None, typer.Option("--resume", help="`auto`, `never`, or a checkpoint's folder (run.resume).")]
SetOption = Annotated[list[str], typer.Option("--set", "-s", help="Override a key: dotted.path=value. May be repeated.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON lines for machines instead of text for people.")]


def local_path(path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: a URL is none."""
    try:
        refuse_url(str(path or ""))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return path


def resumed(overrides: list[str], resume: str | None) -> list[str]:
    """Overrides with that of ``--resume``."""
    return overrides if resume is None else [*overrides, f"run.resume={resume}"]


def guard(work: Callable[[], dict[str, Any]], as_json: bool, indent: int | None = None) -> None:
    """Run a command, print its result, and turn errors into exit codes."""
    try:
        result = work()
    except DvpoError as error:
        _fail(error, as_json)
    except OSError as error:
        if not is_full(error):
            raise
        _fail(full(Path(os.fsdecode(error.filename or tempfile.gettempdir()))), as_json)
    if as_json:
        typer.echo(json.dumps(result, indent=indent, default=str))
    elif result:
        from jobs.cli.console import show_result

        show_result(result)


def _fail(error: DvpoError, as_json: bool) -> NoReturn:
    if as_json:
        typer.echo(json.dumps({"error": type(error).__name__, "message": str(error)}))
    elif isinstance(error, RunStoppedError):
        typer.echo(printable(str(error)), err=True)
    else:
        typer.secho(f"error: {printable(str(error))}", fg=typer.colors.RED, err=True)
    raise typer.Exit(exit_code_of(error))
