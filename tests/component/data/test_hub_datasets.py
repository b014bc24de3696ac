"""Datasets by their names on the Hub, by the library that loads them, each in a process of its own: it reads settings once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub, serving

NAME = "org/pairs"
READ = """
import sys
from dvpo_ray.data.sources import Source, iter_raw_rows
from dvpo_ray.errors import DataError
try:
    print(len(list(iter_raw_rows(Source(sys.argv[1], "train", revision=sys.argv[2] or None)))))
except DataError as error:
    print(error)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


def rows(count: int) -> dict[str, bytes]:
    """A dataset's files: so many rows to train on, and one to test."""
    lines = [json.dumps({"prompt": f"p {i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(count)]
    return {"data/train.jsonl": "".join(lines).encode(), "data/test.jsonl": lines[0].encode(), "README.md": b"# Pairs\n"}


def read(hub: Hub, home: Path, name: str = NAME, revision: str = "", **environment: str) -> str:
    """What reading a dataset prints: the number of its rows, or an error."""
    command = [sys.executable, "-c", READ, name, revision]
    variables = os.environ | hub.environment(home) | environment
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=True).stdout.strip()


def test_rows_of_a_revision_are_read_and_cached(hub: Hub, tmp_path: Path) -> None:
    first = hub.dataset(NAME).push(rows(3))
    assert read(hub, tmp_path) == "3"
    hub.asked.clear()
    assert read(hub, tmp_path) == "3" and hub.files_got() == []
    hub.dataset(NAME).push(rows(5))
    assert read(hub, tmp_path) == "5" and read(hub, tmp_path, revision=first) == "3"
    assert read(hub, tmp_path, HF_HUB_OFFLINE="1") == "5"
    # Without the Hub the library gives whatever it cached last.
    second = hub.dataset(NAME).refs["main"]
    refused = read(hub, tmp_path, revision=first, HF_HUB_OFFLINE="1")
    assert refused.startswith(f"'{NAME}': the cache has it at commit {second}, and revision '{first}' is {first}: let the Hub")


def test_what_the_hub_does_not_give_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.dataset(NAME).push(rows(3))
    assert "Dataset 'org/none' doesn't exist on the Hub" in read(hub, tmp_path, "org/none")
    assert "Revision 'v9' doesn't exist" in read(hub, tmp_path, revision="v9")
    offline = read(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert f"run `hf download --repo-type dataset {NAME} --local-dir DIR`" in offline
    hub.dataset(NAME).gated = True
    assert "accept its terms on the Hub and set HF_TOKEN" in read(hub, tmp_path)
    assert read(hub, tmp_path, HF_TOKEN=hub.token) == "3"
