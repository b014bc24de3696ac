"""Real training backends on a small layer: sums of gradients, steps, withheld ones, checkpoints, and host reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actors.learner.rank import free_port
from tests.support.host_reads import HostReads
from tests.support.layer_engines import (
    BACKENDS,
    FIRST_BETA,
    Reader,
    backward,
    distance,
    engine_of,
    gradient_of,
    inputs_of,
    load,
    reference_sum,
    state_of,
    train_and_write,
)

pytestmark = pytest.mark.integration

NAMES = list(BACKENDS)
DTYPES = ["bfloat16", "float32"]
MICRO_BATCHES = 1024
FEW = 100


@pytest.fixture(scope="module", autouse=True)
def one_thread(process_group: None) -> Iterator[None]:
    """Threads of so small a layer would wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", NAMES)
def test_gradients_of_many_micro_batches_add_up_in_float32(backend: str, dtype: str) -> None:
    micro_batches = inputs_of(MICRO_BATCHES, dtype)
    engine = engine_of(backend, dtype)
    backward(engine, micro_batches)
    norm, _ = engine.apply()
    expected = reference_sum(dtype, micro_batches)
    assert distance(gradient_of(engine), expected) <= 1e-4
    assert norm == pytest.approx(float(expected.norm()), rel=1e-4)


@pytest.mark.parametrize("backend", NAMES)
def test_a_sum_that_would_stand_still_in_bfloat16(backend: str) -> None:
    """1,024 equal gradients: in bfloat16 the sum of ones stops at 256, three quarters short."""
    stuck = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(MICRO_BATCHES):
        stuck += 1
    assert float(stuck) == 256
    engine = engine_of(backend, "bfloat16")
    one = torch.ones(1, 4, 8, dtype=torch.bfloat16)
    backward(engine, one.expand(MICRO_BATCHES, 4, 8))
    engine.apply()
    assert distance(gradient_of(engine), MICRO_BATCHES * reference_sum("bfloat16", one)) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(backend: str, dtype: str, bad: float) -> None:
    """Neither weights nor moments, nor the step after it."""
    good = inputs_of(3, dtype)
    steady, hit = engine_of(backend, dtype), engine_of(backend, dtype)
    for engine in (steady, hit):
        backward(engine, good)
        engine.apply()
    before = state_of(hit)
    poisoned = good.clone()
    poisoned[1, 2, 3] = bad
    backward(hit, poisoned)
    norm, _ = hit.apply()
    assert not math.isfinite(norm)
    after = state_of(hit)
    assert all(torch.equal(after[name], before[name]) for name in before)
    for engine in (steady, hit):
        backward(engine, good)
        engine.apply()
    assert steady.steps == hit.steps == 2
    expected, found = state_of(steady), state_of(hit)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", NAMES)
def test_discarded_gradients_leave_no_trace(backend: str, dtype: str, ends: bool) -> None:
    """Those of a whole sum, and of one that was not ended."""
    good = inputs_of(3, dtype)
    steady, engine = engine_of(backend, dtype), engine_of(backend, dtype)
    backward(engine, inputs_of(2, dtype, seed=1), ends=ends)
    engine.discard()
    for trained in (steady, engine):
        backward(trained, good)
    assert steady.apply() == engine.apply()
    expected, found = state_of(steady), state_of(engine)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", NAMES)
def test_two_steps_are_those_of_plain_torch(backend: str, dtype: str) -> None:
    """Clipped to a norm, with weight decay, and float32 weights behind bfloat16 ones."""
    engine = engine_of(backend, dtype, grad_clip=0.5, weight_decay=0.1)
    torch.manual_seed(0)
    low = Reader().to(getattr(torch, dtype))
    high = [p.detach().float().requires_grad_() for p in low.parameters()]
    plain = torch.optim.AdamW(high, lr=1e-2, betas=(FIRST_BETA, 0.99), weight_decay=0.1)
    for seed in range(2):
        micro_batches = inputs_of(3, dtype, seed)
        backward(engine, micro_batches)
        norm, rate = engine.apply()
        gradients = [torch.autograd.grad(low(inputs).float().square().sum(), list(low.parameters())) for inputs in micro_batches]
        for master, *parts in zip(high, *gradients, strict=True):
            master.grad = torch.stack([part.float() for part in parts]).sum(0)
        expected_norm = torch.nn.utils.clip_grad_norm_(high, 0.5)
        plain.step()
        with torch.no_grad():
            for weight, master in zip(low.parameters(), high, strict=True):
                weight.copy_(master)
        assert (norm, rate) == (pytest.approx(float(expected_norm), rel=1e-6), 1e-2)
    names = [name for name, _ in low.model.named_parameters()]
    found = state_of(engine)
    for name, master in zip(names, high, strict=True):
        assert torch.allclose(found["weight", name], master.detach().flatten(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", NAMES)
def test_a_step_waits_for_the_device_as_often_whatever_the_number_of_parameters(backend: str, dtype: str) -> None:
    found = []
    for layers in (1, 12):
        engine = engine_of(backend, dtype, layers)
        for _ in range(2):
            # In its first step ZeRO 3 learns the order of layers.
            backward(engine, inputs_of(2, dtype))
            engine.apply()
        with HostReads() as reads:
            backward(engine, inputs_of(2, dtype))
            engine.apply()
        found.append(reads.count)
    assert found[0] == found[1] <= (1 if backend == "zero-0" else 4)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote after a step together, in a folder each backend."""
    folder = tmp_path_factory.mktemp("two-ranks")
    given = (free_port(), str(folder), NAMES, 2 * FEW)
    processes = torch.multiprocessing.start_processes(train_and_write, given, nprocs=2, join=False, start_method="spawn")
    while not processes.join(timeout=300):
        pass
    return folder


@pytest.mark.parametrize("backend", NAMES)
def test_two_ranks_sum_in_float32_and_one_goes_on_by_another_backend(two_ranks: Path, backend: str) -> None:
    """Norm and gradient are those of both ranks' micro-batches, and what they wrote is read bit for bit."""
    folder = two_ranks / backend
    written = [load_file(path) for path in sorted(folder.iterdir())]
    expected = reference_sum("bfloat16", inputs_of(2 * FEW, "bfloat16"))
    assert [float(part.pop("norm")) for part in written] == pytest.approx([float(expected.norm())] * 2, rel=1e-6)
    engine = engine_of(NAMES[(NAMES.index(backend) + 1) % len(NAMES)], "bfloat16")
    load(engine, folder, updates=1)
    assert distance(gradient_of(engine), expected) <= 1e-6
    held = state_of(engine)
    for part in written:
        for name, tensor in part.items():
            key, parameter, start = name.split("|")
            assert torch.equal(held[key, parameter][int(start) :][: tensor.numel()], tensor.flatten())
