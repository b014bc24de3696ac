"""Stopping a job and going on with it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dvpo_ray.commits import Commit, CommitStore
from dvpo_ray.config import Recipe
from dvpo_ray.config.sections import CommitSection
from dvpo_ray.run import Run
from dvpo_ray.run_folder import COMMITS, CONFIG, check_same_run, run_folder

# What decides which rows come and which numbers the optimizer's state belongs to: it must not change.
_FIXED = ("run.seed", "model.path")
POLICY_FIXED = (
    *_FIXED,
    "policy.data",
    "policy.rollout.prompts_per_step",
    "policy.rollout.answers_per_prompt",
    "policy.evaluation.source",
    "policy.evaluation.max_prompts",
    "policy.evaluation.answers_per_prompt",
    "policy.lora.rank",
    "policy.lora.alpha",
    "policy.lora.rslora",
    "policy.lora.target_modules",
)
VALUE_FIXED = (*_FIXED, "value.data", "value.target", "value.pairs_per_step", "value.epochs")


def store_of(folder: Path, config: CommitSection) -> CommitStore:
    """The commits in a run's folder."""
    return CommitStore(folder / COMMITS, config.keep_last, config.keep_every)


def find_commit(recipe: Recipe, fixed: Sequence[str]) -> Commit | None:
    """The commit that ``run.resume`` asks for, or None to start anew.

    Raises:
        CommitError: the one named is damaged.
        ConfigError: it belongs to a run whose recipe had other settings where ``fixed`` names them.
    """
    resume = recipe.run.resume
    if resume == "never":
        return None
    store = CommitStore(run_folder(recipe) / COMMITS if resume == "auto" else Path(resume).parent)
    commit = store.newest() if resume == "auto" else store.open(Path(resume))
    if commit is not None:
        check_same_run(recipe, commit.folder.parent.parent / CONFIG, fixed)
    return commit


def goes_on_in_place(recipe: Recipe, commit: Commit | None) -> bool:
    """Whether a commit is one of the very run that the recipe names."""
    return commit is not None and commit.folder.resolve().parent.parent == run_folder(recipe).resolve()


@contextmanager
def stop_on_signal(run: Run) -> Iterator[None]:
    """SIGTERM asks the run to commit after its step and stop; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        run.stopping = True
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
