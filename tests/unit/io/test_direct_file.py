"""Files written past the page cache hold what was written, on disks and on file systems that know no such thing."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvpo_ray.io import direct_file
from dvpo_ray.io.direct_file import DirectFile

BLOCK = 4096


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.sampled_from([0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]) | st.integers(0, 20_000), max_size=8))
def test_what_is_written_is_there(sizes: list[int]) -> None:
    """Whatever the pieces, and however they lie in a buffer of three blocks."""
    parts = [os.urandom(size) for size in sizes]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_file, "BUFFER", 3 * BLOCK)
        path = Path(folder) / "file"
        path.write_bytes(b"what was there before, longer or shorter" * 999)
        with DirectFile(path) as file:
            for part in parts:
                file.write(memoryview(part))
        assert path.read_bytes() == b"".join(parts)


def refusing(after: int, count: Callable[[int], int]) -> Callable[[int, memoryview], int]:
    """``os.write`` of a file system that takes no direct writes after so many, or only a part of them."""
    real, calls = os.write, []

    def write(file: int, data: memoryview) -> int:
        calls.append(len(data))
        direct = bool(direct_file.fcntl.fcntl(file, direct_file.fcntl.F_GETFL) & direct_file.DIRECT)
        if len(calls) > after and direct:
            size = count(len(data))
            if size == 0:
                raise OSError(errno.EINVAL, "no direct writes")
            direct_file.fcntl.fcntl(file, direct_file.fcntl.F_SETFL, 0)
            return real(file, data[:size])
        return real(file, data)

    return write


@pytest.mark.parametrize("count", [lambda size: 0, lambda size: size - 100])
def test_a_file_system_that_changes_its_mind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: Callable[[int], int]
) -> None:
    content = os.urandom(10 * BLOCK)
    monkeypatch.setattr(direct_file, "BUFFER", 3 * BLOCK)
    monkeypatch.setattr(direct_file.os, "write", refusing(1, count))
    with DirectFile(tmp_path / "file") as file:
        file.write(content)
    assert (tmp_path / "file").read_bytes() == content


def test_errors_are_not_taken_for_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(direct_file.os, "write", full)
    with pytest.raises(OSError, match="no space left"), DirectFile(tmp_path / "file") as file:
        file.write(b"x")
