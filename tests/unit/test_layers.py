"""The order of the layers: nothing imports what lies above it, wherever in a module it does so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# From the ground up; packages of one layer may import each other.
LAYERS = (
    ("dvpo_ray.io", "dvpo_ray.types", "dvpo_ray.errors", "dvpo_ray.registry", "dvpo_ray.cli", "dvpo_ray.metrics"),
    ("dvpo_ray.config", "dvpo_ray.maths"),
    ("dvpo_ray.data", "dvpo_ray.algorithms", "dvpo_ray.rewards", "dvpo_ray.environments", "dvpo_ray.rollouts", "dvpo_ray.stages"),
    ("dvpo_ray.models", "dvpo_ray.learning", "dvpo_ray.planning"),
    ("dvpo_ray.evaluation", "dvpo_ray.judging", "dvpo_ray.runs"),
    ("dvpo_ray.checkpoints",),
    ("dvpo_ray.loop",),
    ("dvpo_ray.report", "dvpo_ray.kubernetes", "dvpo_ray.submission", "dvpo_ray.demo"),
    # What `import dvpo_ray` offers.
    ("dvpo_ray", "dvpo_ray.api", "dvpo_ray.testing"),
    ("actors",),
    ("jobs",),
)
HEIGHTS = {package: height for height, packages in enumerate(LAYERS) for package in packages}
MOST_ROOT_MODULES = 8


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for top in ("dvpo_ray", "actors", "jobs"):
        for path in (ROOT / top).rglob("*.py"):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def package_of(module: str) -> str:
    top, _, rest = module.partition(".")
    return top if top != "dvpo_ray" or not rest else f"{top}.{rest.partition('.')[0]}"


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The project's modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_nothing_imports_what_lies_above_it() -> None:
    known = modules()
    upward = {
        f"{module} -> {other}"
        for module, path in known.items()
        for other in imports(path, known)
        if other in known and HEIGHTS[package_of(other)] > HEIGHTS[package_of(module)]
    }
    assert upward == set()


def test_every_package_has_a_place() -> None:
    assert {package_of(module) for module in modules()} == set(HEIGHTS)


def test_the_root_holds_a_handful_of_modules() -> None:
    assert len(list((ROOT / "dvpo_ray").glob("*.py"))) <= MOST_ROOT_MODULES
