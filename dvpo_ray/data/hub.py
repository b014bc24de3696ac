"""Datasets of the Hugging Face Hub, by name."""

from __future__ import annotations

from typing import Any

from dvpo_ray.errors import DataError


def load_named(name: str, subset: str | None, data_dir: str | None, revision: str | None) -> Any:
    """A dataset of the Hub, all its splits.

    Raises:
        DataError: it is not there, cannot be reached, or has several subsets; with the remedy.
    """
    from datasets import load_dataset

    try:
        return load_dataset(name, subset, data_dir=data_dir, revision=revision)
    except Exception as error:  # the library raises many unrelated types for a name it cannot find or reach
        raise DataError(
            f"'{name}' is no file or folder here, and loading it as a Hugging Face dataset failed: {_said(error)}. "
            f"{_remedy(name, error)}"
        ) from error


def _said(error: Exception) -> str:
    """What went wrong, in one line without its full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")[:500]


def _remedy(name: str, error: Exception) -> str:
    text = str(error)
    if "Config name is missing" in text or "BuilderConfig" in text:
        return "Name one of its subsets as `subset`"
    if "scripts are no longer supported" in text:
        return 'It is made by a script, which is not run: try `revision = "refs/convert/parquet"`'
    if "gated" in text.lower():
        return "It is gated: accept its terms on the Hub and set HF_TOKEN to your token"
    return (
        f"Check the spelling; where the Hub cannot be reached, run `hf download --repo-type dataset {name} --local-dir DIR` on "
        'a machine that reaches it, copy DIR here, and give `source = "DIR"`'
    )
