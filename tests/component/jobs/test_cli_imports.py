"""Help, version and completion import the command line alone: none of what commands need to do their work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import get_args

import pytest

from dvpo_ray.config.kinds import KINDS
from jobs.cli.commands import RecipeKind

# As `dvpo` itself does, and then says what was imported.
RUN = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
from jobs.cli.main import main
main()
"""
# These import the standard library alone.
OURS = {"dvpo_ray", "dvpo_ray.errors", "dvpo_ray.io", "dvpo_ray.io.disk", "dvpo_ray.io.paths", "dvpo_ray.io.printable", "jobs"}
HEAVY = {"aiohttp", "httpx", "jinja2", "matplotlib", "numpy", "psutil", "ray", "requests", "torch", "transformers", "yaml"}


def ran(words: list[str], **environment: str) -> tuple[str, set[str]]:
    """What the command printed, and the modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, set(json.loads(done.stderr.splitlines()[-1]))


def completing(line: str) -> dict[str, str]:
    """The environment in which Bash asks what may end a line."""
    return {"_DVPO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()))}


@pytest.mark.parametrize(
    ("words", "environment", "shown"),
    [
        (["--help"], {}, "Commands"),
        (["--version"], {}, "dvpo "),
        (["config", "check", "--help"], {}, "RECIPE"),
        (["eval", "judge", "--help"], {}, "--endpoint"),
        ([], completing("dvpo plan demo --kind "), "reward"),
    ],
)
def test_help_version_and_completion_import_nothing_heavy(words: list[str], environment: dict[str, str], shown: str) -> None:
    printed, imported = ran(words, **environment)
    assert shown.lower() in printed.lower()
    assert {name.partition(".")[0] for name in imported} & HEAVY == set()
    # Typer itself reads a command's words with pydantic.
    assert "pydantic" not in imported or len(words) != 1
    project = {name for name in imported if name.partition(".")[0] in ("actors", "dvpo_ray", "jobs")}
    assert {name for name in project - OURS if not name.startswith("jobs.cli")} == set()


def test_the_kinds_that_help_names_are_those_of_recipes() -> None:
    assert get_args(RecipeKind) == tuple(KINDS)
