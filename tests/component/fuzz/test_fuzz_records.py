"""Dumps and a run's records of any content: read as they were written, or refused by name."""

from __future__ import annotations

import io
import json
import resource
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.errors import DataError, DvpoError
from dvpo_ray.evaluation.held_out import read_evaluations
from dvpo_ray.loop.dumps import read_dump, write_dump
from dvpo_ray.report.records import RunRecords, colour_tokens, compare_answers, where_the_time_went
from dvpo_ray.runs.folder import rewind
from tests.support.fakes import scored_batch
from tests.support.fuzzing import altered, damaged, examples, odd_json


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_dump(tmp_path_factory.mktemp("dump") / "x.npz", scored_batch([3, 5, 1]), 6, 0.1).read_bytes()


@examples(200)
@given(data=st.data())
def test_damaged_dumps(dump: bytes, data: st.DataObject) -> None:
    read_or_refuse(data.draw(damaged(dump)))


def read_or_refuse(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        path.write_bytes(content)
        try:
            rows, step, _ = read_dump(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert step >= 0 and len(rows.response_ids.rows()) == len(rows) == len(rows.end_states)


ARRAYS = st.sampled_from(
    (
        np.array(-3),
        np.array([1, 2]),
        np.array("x"),
        np.array([4, -1, 6]),
        np.ones(9),
        np.array([True]),
        np.array(np.nan),
        np.empty((0, 3)),
    )
)


@examples(100)
@given(data=st.data())
def test_dumps_with_other_arrays(dump: bytes, data: st.DataObject) -> None:
    arrays = dict(np.load(io.BytesIO(dump)))
    arrays[data.draw(st.sampled_from(sorted(arrays)))] = data.draw(ARRAYS)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    read_or_refuse(stream.getvalue())


def forged_shape(shape: str, repeat: bytes = b"") -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("step.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + repeat)
    return stream.getvalue()


@pytest.mark.parametrize("shape", ["(10**13,)", "(10000000000000,)", "(-5,)", "(3000000, 3000000)", "(9" + "9" * 40 + ",)"])
def test_a_forged_shape_takes_no_memory(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(forged_shape(shape))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="is no dump of rows"):
        read_dump(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


ANSWER = {
    "row_id": "eval/0:a/0",
    "prompt_id": "a",
    "prompt": "p",
    "answer": "x",
    "gold": 0.5,
    "kl": 0.1,
    "end_state": "stop",
    "tokens": ["x"],
    "values": [0.0, 0.5],
    "advantages": [0.1],
}
STAGES = {f"seconds/{stage}": 1.0 for stage in ("rollout", "score", "learn", "sync", "step")}
CURVES = ("value/last", "value/mean", "kl/per_token", "kl/learner_per_token", "answer/tokens", "policy/entropy")
STEP = STAGES | dict.fromkeys((*CURVES, "gap/abs_log_prob", "optimizer/grad_norm"), 0.5)
RECORDS = {
    "metrics.jsonl": [{"step": i, "time": i} | STEP for i in range(3)]
    + [{"step": i, "eval/gold": 0.5, "eval/gold_ci95_low": 0.4, "eval/gold_ci95_high": 0.6} for i in (0, 3)],
    "evaluations.jsonl": [{"step": step} | ANSWER for step in (0, 3)],
    "result.json": {"gold_before_ci95": [0.1, 0.2], "gold_after_ci95": [0.2, 0.3]},
    "config.json": {"run": {"name": "x"}},
}


def as_text(content: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in content) if isinstance(content, list) else json.dumps(content)


@examples(200)
@given(data=st.data(), name=st.sampled_from(sorted(RECORDS)))
def test_records_of_any_content_are_shown_or_refused_by_name(data: st.DataObject, name: str) -> None:
    content = data.draw(
        damaged(as_text(RECORDS[name]).encode()) | altered(RECORDS[name]).map(lambda tree: as_text(tree).encode())
    )
    with tempfile.TemporaryDirectory() as folder:
        for file, whole in RECORDS.items():
            (Path(folder) / file).write_text(as_text(whole))
        (Path(folder) / name).write_bytes(content)
        try:
            records = RunRecords.read(Path(folder))
            compare_answers(records, 8), colour_tokens(records, 4), where_the_time_went(records)
        except DvpoError as error:
            assert folder in str(error)


@examples(200)
@given(data=st.data(), name=st.sampled_from(("metrics.jsonl", "evaluations.jsonl")))
def test_a_run_goes_on_with_records_of_any_content(data: st.DataObject, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Lines that can be read stay; what cannot is dropped: said so, unless it is the last line, cut short."""
    rows = data.draw(
        st.lists(st.sampled_from([*RECORDS[name], {"step": "x"}]) | st.dictionaries(st.just("step"), odd_json()), max_size=5)
    )
    lines = [json.dumps(row).encode() for row in rows]
    lines += [data.draw(damaged(as_text(RECORDS[name]).encode()))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(b"\n".join(lines))
        caplog.clear()
        rewind(Path(folder), 2)
        kept = path.read_bytes().split(b"\n")[:-1]
        steps = [json.loads(line)["step"] for line in kept]
        assert all(type(step) is int and step <= 2 for step in steps)
        wanted = [line for line in b"\n".join(lines).split(b"\n") if line.strip() and is_kept(line, name)]
        assert kept == wanted
        unreadable = [line for line in b"\n".join(lines).split(b"\n") if line.strip() and step_in(line) is None]
        assert len(caplog.records) == (len(unreadable) > 0 and unreadable != [lines_of(lines)[-1]])
        if name == "evaluations.jsonl":
            try:
                found = read_evaluations(path, 2)
            except DataError as error:
                assert str(path) in str(error)
            else:
                assert sum(len(evaluation.answers) for evaluation in found.values()) == len(kept)


def lines_of(lines: list[bytes]) -> list[bytes]:
    return [line for line in b"\n".join(lines).split(b"\n") if line.strip()]


def step_in(line: bytes) -> int | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row["step"] if isinstance(row, dict) and type(row.get("step")) is int else None


def is_kept(line: bytes, name: str) -> bool:
    step = step_in(line)
    if step is None or step > 2:
        return False
    return name == "evaluations.jsonl" or step < 2 or "seconds/step" not in json.loads(line)
