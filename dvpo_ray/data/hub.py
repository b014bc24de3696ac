"""Datasets of the Hugging Face Hub, by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from dvpo_ray.errors import DataError
from dvpo_ray.io.secrets import masked

MAIN = "main"
COMMIT_IN = re.compile(r"/([0-9a-f]{40})/")


def load_named(name: str, subset: str | None, data_dir: str | None, revision: str | None) -> Any:
    """A dataset of the Hub, all its splits.

    Raises:
        DataError: it is not there, cannot be reached, has several subsets, or only another revision of it is in the cache; with
            the remedy.
    """
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, subset, data_dir=data_dir, revision=revision)
    except Exception as error:  # the library raises many unrelated types for a name it cannot find or reach
        raise DataError(
            f"'{name}' is no file or folder here, and loading it as a Hugging Face dataset failed: {_said(error)}. "
            f"{_remedy(name, error)}"
        ) from error
    _refuse_another_commit(loaded, name, revision)
    return loaded


def _refuse_another_commit(loaded: Any, name: str, revision: str | None) -> None:
    """Without the Hub the library takes what it has cached last, of whatever revision, and says so in no way that is seen.

    Raises:
        DataError: naming both commits.
    """
    found = _commits_of(loaded)
    if not found:
        return
    wanted = _commit_of(name, revision)
    if wanted is None and revision is None:
        logging.getLogger(__name__).warning("'%s' is taken from the cache, at commit %s: the Hub is not reached", name, *found)
    elif found != {wanted}:
        raise DataError(
            f"'{name}': the cache has it at commit {', '.join(sorted(found))}, and revision '{revision or MAIN}' is "
            f"{wanted or 'not known here'}: let the Hub be reached once, or download that revision by `hf download --repo-type "
            f'dataset {name} --revision {wanted or revision} --local-dir DIR` and give `source = "DIR"`'
        )


def _commits_of(loaded: Any) -> set[str]:
    """The commits that a dataset is of: its files in the cache lie below folders that are called after them."""
    splits = loaded.values() if isinstance(loaded, Mapping) else [loaded]
    files = [file["filename"] for split in splits for file in getattr(split, "cache_files", ())]
    return {found[1] for file in files if (found := COMMIT_IN.search(file))}


def _commit_of(name: str, revision: str | None) -> str | None:
    """The commit that a revision stands for, or last stood for here; None where nothing says so."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionResolutionError

    try:
        return HfApi().resolve_revision(name, repo_type="dataset", revision=revision).resolved
    except (RevisionResolutionError, HfHubHTTPError, HTTPError):
        return None


def _said(error: Exception) -> str:
    """What went wrong, in one line without its full stop."""
    return masked(" ".join(f"{type(error).__name__}: {error}".split())).rstrip(".")[:500]


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
