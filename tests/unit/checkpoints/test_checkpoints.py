"""Checkpoints are on disk whole or not at all, and nothing damaged is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dvpo_ray.checkpoints.store import KEY_VARIABLE, CheckpointStore
from dvpo_ray.errors import CheckpointError, DiskFullError
from dvpo_ray.io.safetensors_writer import write_tensors


def checkpoint(store: CheckpointStore, step: int, size: int = 10) -> Path:
    folder = store.begin(step)
    digest = write_tensors(folder / "a.safetensors", {"weight|w|0": torch.full((size,), float(step))}, {"note": str(step)})
    return store.finish(step, folder, {"a.safetensors": digest}, {"step": step}).folder


def test_tensors_are_read_back_by_the_library(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b|0": torch.randn(7).bfloat16(),
        "transposed": torch.randn(4, 2).t(),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0),
        "bytes": torch.arange(9, dtype=torch.uint8),
    }
    write_tensors(tmp_path / "t.safetensors", tensors, {"k": "v"})
    found = load_file(tmp_path / "t.safetensors")
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_the_newest_checkpoint_is_found_and_old_ones_go(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_every=3)
    assert store.newest() is None
    for step in range(1, 8):
        checkpoint(store, step)
    assert sorted(f.name for f in tmp_path.glob("step-*")) == [f"step-{n:08d}" for n in (3, 6, 7)]
    newest = CheckpointStore(tmp_path).newest()
    assert newest is not None and newest.step == 7 and newest.state == {"step": 7}
    assert (tmp_path / "latest").read_text() == "step-00000007\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:-1]),
        lambda folder: (folder / "a.safetensors").write_bytes(b"x" + (folder / "a.safetensors").read_bytes()[1:]),
        lambda folder: (folder / "a.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace("a.safetensors", "../../a.safetensors")
        ),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    checkpoint(store, 1)
    damage(checkpoint(store, 2))  # type: ignore[operator]
    newest = store.newest()
    assert newest is not None and newest.step == 1
    assert "the checkpoint before it is used" in caplog.text
    assert (tmp_path / "quarantine-step-00000002").is_dir()


def test_a_key_signs_and_only_what_it_signed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsigned = checkpoint(CheckpointStore(tmp_path / "unsigned"), 1)
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    signed = checkpoint(CheckpointStore(tmp_path / "signed"), 1)
    assert CheckpointStore(tmp_path).open(signed).step == 1
    manifest = json.loads((signed / "manifest.json").read_text())
    (signed / "manifest.json").write_text(json.dumps(manifest | {"step": 9}))
    for folder in (signed, unsigned):
        with pytest.raises(CheckpointError, match="not signed with the key in DVPO_CHECKPOINT_KEY"):
            CheckpointStore(tmp_path).open(folder)


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    checkpoint(store, 1)
    folder = store.begin(2)
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (folder / "a.safetensors").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="no room to write '.*a.safetensors'"):
        write_tensors(folder / "a.safetensors", {"w": torch.zeros(10_000)}, {})
    store.discard_unfinished()
    newest = store.newest()
    assert newest is not None and newest.step == 1
    assert sorted(f.name for f in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_a_disk_that_fills_up_costs_only_the_checkpoint_that_did_not_fit(small_disk: Path) -> None:
    store = CheckpointStore(small_disk)
    checkpoint(store, 1, size=50_000)
    checkpoint(store, 2, size=50_000)
    with pytest.raises(DiskFullError, match="no room to write"):
        checkpoint(store, 3, size=200_000)
    store.discard_unfinished()
    newest = store.newest()
    assert newest is not None and newest.step == 2
    checkpoint(store, 4, size=50_000)
    newest = store.newest()
    assert newest is not None and newest.step == 4
    assert sorted(f.name for f in small_disk.iterdir()) == ["latest", "step-00000002", "step-00000004"]
