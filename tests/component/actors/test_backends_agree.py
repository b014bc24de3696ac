"""FSDP2 against ZeRO 0 on a tiny model: the same two steps on one and two ranks, checkpoints of each other, the same folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actors.learner.rank import free_port
from dvpo_ray.models.token_reader import load_policy
from tests.support.agreement import KINDS, RATE, resume, step, train, two_ranks, wrapped

pytestmark = pytest.mark.integration

NAMES = ["zero-0", "fsdp"]


@pytest.fixture(scope="module", autouse=True)
def one_thread(process_group: None) -> Iterator[None]:
    """As the two processes have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def room(one_thread: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trained, and two that went on from it, in folders by ranks, kind and backend."""
    folder = tmp_path_factory.mktemp("agreement")
    for kind in KINDS:
        for name in NAMES:
            train(kind, name, tiny_model, folder / "1" / kind / name, 0, 1)
    given = (free_port(), str(tiny_model), str(folder), NAMES)
    processes = torch.multiprocessing.start_processes(two_ranks, given, nprocs=2, join=False, start_method="spawn")
    while not processes.join(timeout=300):
        pass
    return folder


def assert_near(found: Path, expected: Path) -> None:
    """Every weight within a tenth of the learning rate."""
    one, other = load_file(found), load_file(expected)
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], rtol=0, atol=RATE / 10), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ranks", "name"), [(1, "fsdp"), (2, "fsdp"), (2, "zero-0")])
def test_two_steps_are_those_of_one_rank_at_zero_0(room: Path, kind: str, ranks: int, name: str) -> None:
    base, mine = room / "1" / kind / "zero-0", room / str(ranks) / kind / name
    assert_near(mine / "weights.safetensors", base / "weights.safetensors")
    found, expected = (json.loads((folder / "steps.json").read_text()) for folder in (mine, base))
    for (loss, norm), (expected_loss, expected_norm) in zip(found, expected, strict=True):
        assert loss == pytest.approx(expected_loss, abs=1e-6)
        assert norm == pytest.approx(expected_norm, rel=1e-3)
    assert expected[0][1] > 0 and expected[0] != expected[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_go_on_from_a_checkpoint_of_one_at_zero_0(room: Path, kind: str, name: str) -> None:
    assert_near(room / "2" / kind / name / "resumed.safetensors", room / "1" / kind / "zero-0" / "weights.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("writer", "reader"), [("fsdp", "fsdp"), ("fsdp", "zero-0"), ("zero-0", "fsdp")])
def test_one_rank_goes_on_from_a_checkpoint_of_two(
    room: Path, tiny_model: Path, tmp_path: Path, kind: str, writer: str, reader: str
) -> None:
    checkpoint = room / "2" / kind / writer / "checkpoint"
    resume(kind, reader, tiny_model, checkpoint, tmp_path / "w.safetensors", 0, 1)
    assert_near(tmp_path / "w.safetensors", room / "1" / kind / "zero-0" / "weights.safetensors")


@pytest.mark.parametrize("kind", ["policy", "value", "adapters"])
def test_a_step_in_bfloat16(tiny_model: Path, kind: str) -> None:
    """Weights are gathered in bfloat16, frozen ones stay as they are, and what is stepped and written is float32."""
    found = {}
    for name in NAMES:
        backend = wrapped(kind, name, tiny_model, 1, "bfloat16")
        found[name] = step(backend, kind, 0, 0, 1)
        assert {shape.dtype for shape in backend.shapes().values()} == {torch.bfloat16}
        with backend.whole([name for name, _ in backend.model.named_parameters()]) as tensors:
            assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        assert {tensor.dtype for _, tensor in backend.pieces()} == {torch.float32}
    assert found["fsdp"] == pytest.approx(found["zero-0"], rel=0.02)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_engines_are_sent_what_is_saved(room: Path, ranks: int, name: str) -> None:
    folder = room / str(ranks) / "policy" / name
    sent, saved, held = (
        load_file(folder / file) for file in ("sent.safetensors", "saved/model.safetensors", "weights.safetensors")
    )
    assert set(sent) == set(saved) == set(held), "tied weights once"
    assert all(torch.equal(sent[name], saved[name]) and torch.equal(held[name], saved[name]) for name in saved)
    load_policy(folder / "saved", torch.float32, "eager")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_folders_hold_the_same_files_whoever_trained(room: Path, kind: str, ranks: int) -> None:
    base, mine = room / "1" / kind / "zero-0", room / str(ranks) / kind / "fsdp"
    for part in ("saved", "adapters") if kind == "adapters" else ("saved",):
        assert {f.name for f in (mine / part).iterdir()} == {f.name for f in (base / part).iterdir()}
    assert_near(mine / "saved/model.safetensors", base / "saved/model.safetensors")
    if kind == "adapters":
        assert_near(mine / "adapters/adapter_model.safetensors", base / "adapters/adapter_model.safetensors")
