"""Writes the table of docs/models.md from tiny random models, one of each family: `python -m scripts.model_table [--engines]`.

A cell is what a check of ``scripts.reading_checks`` or ``scripts.training_checks`` says when it is run; what engines serve is
read from ``family_sync.json`` (``scripts.family_sync``). ``--engines`` writes that column alone.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import dropwhile, takewhile
from pathlib import Path

import torch

from scripts import reading_checks, training_checks
from scripts.family_sync import Served, read_found
from scripts.tiny_families import FAMILIES, made, save

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
Check = Callable[[Path, Path], str]
# Columns, each with the checks that all must say the same.
CHECKS: dict[str, tuple[Check, ...]] = {
    "log-probs": (reading_checks.log_probs,),
    "packed rows": (reading_checks.packing,),
    "shared prefix": (reading_checks.shared_prefix,),
    "renamed": (reading_checks.stored_names,),
    "value model": (reading_checks.value_model, training_checks.value_learner),
    "seal": (reading_checks.sealed,),
    "DPO": (training_checks.dpo,),
    "LoRA": (training_checks.lora,),
    "resume": (training_checks.resume,),
    "checkpointing": (training_checks.checkpointing,),
}
COLUMNS = ("type", "class", *CHECKS, "served and synced")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
REASONS = "Why engines on a CPU do not serve or sync a family (vLLM {version}, its own words):\n"


def row_of(family: str, folder: Path, served: Mapping[str, Served]) -> str:
    """The table's line of a family, whose checks are run in an empty folder.

    Raises:
        AssertionError: a check found the product wrong.
    """
    base = folder / "base"
    save(family, base)
    cells = [cell_of(checks, base, folder) for checks in CHECKS.values()]
    model = made(family)
    cells = [f"`{model.config.model_type}`", type(model).__name__, *cells, status_of(family, served)]
    return f"| {' | '.join(cells)} |"


def cell_of(checks: tuple[Check, ...], base: Path, folder: Path) -> str:
    """What all the checks of a column say."""
    said = []
    for check in checks:
        room = folder / check.__name__
        room.mkdir()
        said.append(check(base, room))
    assert len(set(said)) == 1, f"{[check.__name__ for check in checks]} say {said}"
    return said[0]


def status_of(family: str, served: Mapping[str, Served]) -> str:
    """What engines make of a family."""
    return served[family].status if family in served else "not tried yet"


def reasons(served: Mapping[str, Served]) -> str:
    """A list of vLLM's own words on what it does not serve, each with the families that they are of."""
    families = defaultdict(list)
    for family in FAMILIES:
        if family in served and served[family].reason:
            started = served[family].gap_at_start is not None
            how = " with `prefix_caching = true`" if started else ""
            families[served[family].reason].append(f"`{made(family).config.model_type}`{how}")
    return "".join(f"- {', '.join(names)}: {reason}\n" for reason, names in families.items())


def checked_rows(served: Mapping[str, Served]) -> list[str]:
    """The lines of all families, their checks run now."""
    rows = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row_of(family, Path(folder), served))
    return rows


def written_rows(text: str) -> list[str]:
    """The lines of a page's table."""
    return list(takewhile(lambda line: line.startswith("|"), text.partition(HEADER)[2].splitlines()))


def with_engines(rows: list[str], served: Mapping[str, Served]) -> list[str]:
    """Lines of all families, each with what engines make of it now."""
    given = zip(FAMILIES, rows, strict=True)
    return [f"{row.rpartition(' | ')[0]} | {status_of(family, served)} |" for family, row in given]


def main() -> None:
    """Put the table into its page, in the place of the one that is there, and vLLM's reasons beneath it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", action="store_true", help="only what engines make of the families, and why")
    engines_alone = parser.parse_args().engines
    logging.getLogger("dvpo_ray").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    text, served = PAGE.read_text(encoding="utf-8"), read_found()
    before, found, rest = text.partition(HEADER)
    if not found:
        raise SystemExit(f"{PAGE} has no table of the columns {', '.join(COLUMNS)}: write its first two lines where it shall be")
    rows = with_engines(written_rows(text), served) if engines_alone else checked_rows(served)
    versions = ", ".join(sorted({one.vllm for one in served.values()}))
    table = HEADER + "\n".join(rows) + "\n\n" + REASONS.format(version=versions) + "\n" + reasons(served)
    after = "".join(dropwhile(lambda line: not line.startswith("## "), rest.splitlines(keepends=True)))
    PAGE.write_text(f"{before}{table}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
