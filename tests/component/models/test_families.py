"""Families of models, each as a tiny random one: the whole way from a folder to log-probs, values, training, and back.

The lines of the table in docs/models.md are what the checks of these models say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.family_sync import read_found
from scripts.model_table import PAGE, reasons, row_of, with_engines, written_rows
from scripts.tiny_families import FAMILIES

# One of each kind: dense, with capped logits, a mixture of experts, linear attention, recurrent, and with transposed weights.
QUICK = ("Llama", "Gemma2", "Mixtral", "Qwen3_5", "Mamba", "GPT2")
RUN_AGAIN = "run `python -m scripts.model_table`"


def families(quick: tuple[str, ...]) -> list[Any]:
    """All families, of which some are tested every time."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope="module", autouse=True)
def one_thread(process_group: None) -> Iterator[None]:
    """Threads of so small models would wait for one another, the longer the busier the machine is."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lines() -> list[str]:
    """The lines of the table."""
    return written_rows(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", families(QUICK))
def test_the_table_says_what_the_checks_of_a_family_say(family: str, tmp_path: Path) -> None:
    assert row_of(family, tmp_path, read_found()) in lines(), RUN_AGAIN


def test_the_table_names_these_families_and_no_others() -> None:
    assert len(lines()) == len(FAMILIES)


def test_the_page_says_of_engines_what_is_recorded_of_them() -> None:
    found = read_found()
    assert lines() == with_engines(lines(), found), "run `python -m scripts.model_table --engines`"
    assert reasons(found) in PAGE.read_text(encoding="utf-8"), "run `python -m scripts.model_table --engines`"
