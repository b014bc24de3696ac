"""The documents name only what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer.main

from dvpo_ray.config import DpoRecipe, PipelineRecipe
from dvpo_ray.config.loading import build, shipped_recipes, walk_fields
from jobs.cli.main import app
from scripts.config_reference import reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEY = re.compile(r"`((?:run|cluster|kubernetes|model|tracking|value|policy|dpo)(?:\.[a-z_]+)+)(?:\s*=[^`]*)?`")
COMMAND = re.compile(r"\bdvpo ((?:value |reward |policy |dpo |eval |config |k8s |jobs |cluster )?[a-z0-9][a-z0-9-]*)")


def test_the_configuration_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference(), "run `make docs`"


def test_the_recipe_of_the_readme_is_valid() -> None:
    block = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block is not None
    recipe = build(PipelineRecipe, tomllib.loads(block[1]))
    assert recipe.policy.data.source == "prompts.parquet"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_exist(page: Path) -> None:
    known = {path for kind in (PipelineRecipe, DpoRecipe) for path, _ in walk_fields(kind)}
    sections = {path.partition(".")[2] for path in known}
    named = {key for key in KEY.findall(page.read_text()) if not key.startswith("model.layers")}
    assert {key for key in named if key not in known and key not in sections} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    root = typer.main.get_command(app)
    for words in COMMAND.findall(page.read_text()):
        command = root
        for word in words.split():
            assert word in command.commands, f"{page.name} names `dvpo {words}`"
            command = command.commands[word]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_guide_names_every_shipped_recipe() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    assert [name for name in shipped_recipes() if f"`{name}`" not in guide] == []


def test_every_ray_that_documents_and_scripts_start_has_a_folder_of_its_own() -> None:
    """Ray's own is open to every user of the machine."""
    files = [path for folder in ("deploy", "scripts", "jobs", "actors", "dvpo_ray") for path in (ROOT / folder).rglob("*.*")]
    for path in [*PAGES, *files]:
        if path.suffix in (".md", ".yaml", ".yml", ".sh", ".py") and path.name != "configuration.md":
            for line in re.findall(r"ray start .*(?:\n +--.*)*", path.read_text()):
                assert "--temp-dir=" in line or "dvpo cluster start" in line, f"{path}: {line}"
