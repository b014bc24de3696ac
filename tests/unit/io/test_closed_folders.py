"""Which folders keep other users of a machine out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dvpo_ray.errors import ConfigError
from dvpo_ray.io.closed_folders import closed_folder_above, make_closed_folder

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SOMEBODY = 12345


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that others can enter, but for what the test closes."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.is_relative_to(tmp_path.parents[1]):
            folder.chmod(0o755)
    return tmp_path


def test_a_folder_open_all_the_way_is_not_closed(open_folder: Path) -> None:
    inner = open_folder / "a" / "b"
    inner.mkdir(parents=True)
    inner.chmod(0o777)
    assert closed_folder_above(inner) is None


@pytest.mark.parametrize(("mode", "closed"), [(0o700, True), (0o744, True), (0o710, False), (0o701, False), (0o750, False)])
def test_a_folder_is_closed_by_one_above_that_others_cannot_enter(mode: int, closed: bool, open_folder: Path) -> None:
    inner = open_folder / "a" / "b"
    inner.mkdir(parents=True)
    inner.chmod(0o777)
    inner.parent.chmod(mode)
    assert closed_folder_above(inner) == (inner.parent if closed else None)


def test_a_closed_folder_that_others_may_replace_does_not_hold(open_folder: Path) -> None:
    inner = open_folder / "a"
    inner.mkdir(mode=0o700)
    open_folder.chmod(0o777)
    assert closed_folder_above(inner) is None
    open_folder.chmod(0o1777)
    assert closed_folder_above(inner) == inner


def test_a_link_leads_to_where_it_leads(open_folder: Path) -> None:
    (open_folder / "open").mkdir(mode=0o755)
    (open_folder / "closed").mkdir(mode=0o700)
    (open_folder / "closed" / "link").symlink_to(open_folder / "open")
    assert closed_folder_above(open_folder / "closed" / "link") is None


@AS_ROOT
def test_a_folder_of_another_user_is_closed_for_nobody(open_folder: Path) -> None:
    inner = open_folder / "a"
    inner.mkdir(mode=0o700)
    os.chown(inner, SOMEBODY, SOMEBODY)
    assert closed_folder_above(inner) is None
    with pytest.raises(ConfigError, match="belongs to another user"):
        make_closed_folder(inner)


def test_a_closed_folder_is_made_once_and_taken_again(open_folder: Path) -> None:
    before = os.umask(0)
    try:
        make_closed_folder(open_folder / "mine")
        make_closed_folder(open_folder / "mine")
    finally:
        os.umask(before)
    assert closed_folder_above(open_folder / "mine") == open_folder / "mine"


def test_what_is_open_a_link_or_no_folder_is_refused(open_folder: Path) -> None:
    (open_folder / "open").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="run `chmod 700"):
        make_closed_folder(open_folder / "open")
    (open_folder / "mine").mkdir(mode=0o700)
    (open_folder / "link").symlink_to(open_folder / "mine")
    with pytest.raises(ConfigError, match="is a link"):
        make_closed_folder(open_folder / "link")
    (open_folder / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        make_closed_folder(open_folder / "file")
