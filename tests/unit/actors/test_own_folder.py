"""Temporary folders of processes: gone with them, or with the next one after a kill."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from actors.cluster.scratch import IN_USE, scratch_dir

HOLDS_ONE = """
import sys, tempfile
from actors.cluster.scratch import scratch_dir
tempfile.tempdir = sys.argv[1]
with scratch_dir("dvpo-test-") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_gone_after_the_block(temporary: Path) -> None:
    with pytest.raises(KeyError), scratch_dir("dvpo-test-") as folder:
        assert Path(folder).parent == temporary and Path(folder).name.startswith("dvpo-test-")
        (Path(folder) / "session" / "logs").mkdir(parents=True)
        raise KeyError
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_goes_with_the_next_and_no_other_does(temporary: Path) -> None:
    (temporary / "dvpo-test-other").mkdir()
    (temporary / "dvpo-test-odd" / IN_USE).mkdir(parents=True)
    command = [sys.executable, "-c", HOLDS_ONE, str(temporary)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout
        left = Path(killed.stdout.readline().strip())
        (left / "a-file").touch()
        with scratch_dir("dvpo-test-") as first:
            assert left.is_dir(), "its process lives"
            killed.kill()
            killed.wait()
            with scratch_dir("dvpo-test-") as second:
                assert not left.exists()
                found = {path.name for path in temporary.iterdir()}
                assert found == {Path(first).name, Path(second).name, "dvpo-test-other", "dvpo-test-odd"}
    assert {path.name for path in temporary.iterdir()} == {"dvpo-test-other", "dvpo-test-odd"}
