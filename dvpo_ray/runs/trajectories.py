"""Trajectories that a run keeps of its steps: a Parquet file a step, one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dvpo_ray.errors import DataError
from dvpo_ray.types import RowId

# Types of the arrays in a file, by name.
ARRAYS = {
    "prompt_ids": np.int32,
    "response_ids": np.int32,
    "action_mask": np.bool_,
    "log_probs": np.float32,
    "ref_log_probs": np.float32,
    "values": np.float32,
    "versions": np.int32,
}


@dataclass(frozen=True, eq=False)
class KeptTrajectory:
    """A row that a policy was trained on: P tokens of a prompt, and T after it.

    Attributes:
        row: its name; its ``step`` counts from 0.
        group_id: what it is compared within.
        prompt, prompt_ids: the prompt as the model reads it, special tokens included, and its tokens [P].
        response_ids, token_texts: the tokens after it [T], and the text that each adds; one that ends in the middle of a
            character adds none.
        action_mask: which of them the policy wrote [T].
        log_probs, ref_log_probs: of the sampling policy and of the reference [T].
        values: the frozen value before each token, and after all [T + 1].
        versions: the weights that each was sampled from [T].
        rewards: by name, unweighted: 1 number of the answer, T of its tokens, or none where it abstained.
        end_state: ``stop``, ``length``, or what an environment says.
        dropped: whether it was too old to be trained on.
        weights_version: the weights that its step made.
        scorer_version: the value model that read its values, counted from 0.
    """

    row: RowId
    group_id: int
    prompt: str
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    token_texts: tuple[str, ...]
    action_mask: np.ndarray
    log_probs: np.ndarray
    ref_log_probs: np.ndarray
    values: np.ndarray
    versions: np.ndarray
    rewards: Mapping[str, np.ndarray]
    end_state: str
    dropped: bool
    weights_version: int
    scorer_version: int = 0

    @property
    def answer(self) -> str:
        """The text of all tokens after the prompt, special ones included."""
        return "".join(self.token_texts)


@dataclass(frozen=True)
class StepSample:
    """The trajectories of a step (counted from 0) that were kept, and how many rows it had."""

    step: int
    rows: Sequence[KeptTrajectory]
    of_rows: int


def write_sample(path: Path, sample: StepSample) -> int:
    """Write a step's file, whole or not at all; returns its size in bytes.

    Raises:
        OSError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[str, Any] = {name: pa.list_(pa.from_numpy_dtype(kind)) for name, kind in ARRAYS.items()}
    plain = {"row": pa.string(), "step": pa.int64(), "group_id": pa.int64(), "prompt": pa.string()}
    said = {"token_texts": pa.list_(pa.string()), "rewards": pa.map_(pa.string(), pa.list_(pa.float32()))}
    ends = {"end_state": pa.string(), "dropped": pa.bool_(), "weights_version": pa.int64(), "scorer_version": pa.int64()}
    facts = {"step": str(sample.step), "of_rows": str(sample.of_rows)}
    schema = pa.schema(plain | kinds | said | ends, metadata=facts)
    rows = [_cells(one) | {"step": sample.step} for one in sample.rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size


def read_sample(path: Path) -> StepSample:
    """What ``write_sample`` wrote.

    Raises:
        DataError: the file is damaged, or none of a run's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # One file, not a folder of partitions: nothing is read into its path.
        table = pq.ParquetFile(path).read()
        facts = table.schema.metadata
        rows = [_trajectory(row) for row in table.to_pylist()]
        return StepSample(int(facts[b"step"]), rows, int(facts[b"of_rows"]))
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise DataError(f"'{path}' is no file of trajectories: {error}; delete it, or name the folder of a run") from error


def _cells(one: KeptTrajectory) -> dict[str, Any]:
    arrays: dict[str, np.ndarray] = {name: np.asarray(getattr(one, name), dtype=kind) for name, kind in ARRAYS.items()}
    rewards = [(name, np.asarray(numbers, dtype=np.float32)) for name, numbers in one.rewards.items()]
    return vars(one) | arrays | {"row": str(one.row), "rewards": rewards}


def _trajectory(row: dict[str, Any]) -> KeptTrajectory:
    arrays: dict[str, Any] = {name: np.array(row[name], dtype=kind) for name, kind in ARRAYS.items()}
    plain = {name: row[name] for name in ("group_id", "prompt", "end_state", "dropped", "weights_version", "scorer_version")}
    rewards = {name: np.array(numbers, dtype=np.float32) for name, numbers in row["rewards"]}
    return KeptTrajectory(row=RowId.parse(row["row"]), token_texts=tuple(row["token_texts"]), rewards=rewards, **arrays, **plain)
