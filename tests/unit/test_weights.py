"""Published weights: readable as safetensors, verified by digest, refused when damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dvpo_ray.errors import WeightSyncError
from dvpo_ray.weights import WeightPublisher, verify_published

LAYOUT = {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b.weight": torch.zeros(7), "c": torch.zeros(2, 2, dtype=torch.float16)}


def filled(value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in LAYOUT.items()}


def test_versions_are_safetensors_and_equal_content_has_equal_digest(tmp_path: Path) -> None:
    publisher = WeightPublisher(tmp_path, LAYOUT, slots=2)
    published = [publisher.publish(version, filled(value).items()) for version, value in ((1, 1.0), (2, 2.0), (3, 1.0))]
    assert len({p.path for p in published}) == 2
    assert published[0].sha256 == published[2].sha256 != published[1].sha256
    tensors = load_file(published[1].path)
    assert {name: t.dtype for name, t in tensors.items()} == {name: t.dtype for name, t in LAYOUT.items()}
    assert all(torch.equal(tensors[name], filled(2.0)[name]) for name in LAYOUT)
    verify_published(published[1])
    verify_published(published[2])
    publisher.close()
    assert list(tmp_path.iterdir()) == []


def test_damage_is_refused(tmp_path: Path) -> None:
    publisher = WeightPublisher(tmp_path, LAYOUT)
    published = publisher.publish(1, filled(1.0).items())
    with pytest.raises(WeightSyncError, match="damaged.*keeps the version it serves"):
        verify_published(replace(published, sha256="0" * 64))
    data = bytearray(Path(published.path).read_bytes())
    data[-1] ^= 1
    Path(published.path).write_bytes(data)
    with pytest.raises(WeightSyncError, match="damaged"):
        verify_published(published)
    Path(published.path).write_bytes(data[:-9])
    with pytest.raises(WeightSyncError, match="damaged"):
        verify_published(published)
    Path(published.path).unlink()
    with pytest.raises(WeightSyncError, match="cannot be read"):
        verify_published(published)


def test_incomplete_or_misshapen_versions_are_refused(tmp_path: Path) -> None:
    publisher = WeightPublisher(tmp_path, LAYOUT)
    with pytest.raises(WeightSyncError, match="lacks 1 tensors, for example 'c'"):
        publisher.publish(1, [(n, t) for n, t in filled(1.0).items() if n != "c"])
    with pytest.raises(WeightSyncError, match="'a' has 2 bytes"):
        publisher.publish(1, [("a", torch.zeros(1, dtype=torch.bfloat16))])
