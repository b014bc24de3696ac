"""The loop of trainings on a fixed set of pairs: every pair once an epoch, commits, and going on after one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from actors.gang import Gang
from actors.nodes import leaving, this_node
from dvpo_ray.commits import Commit
from dvpo_ray.committer import Committer
from dvpo_ray.errors import AS_ASKED, DataError, RunStoppedError
from dvpo_ray.run import Run


def check_same_pairs(commit: Commit | None, data_sha256: str) -> None:
    """Refuse to go on with other pairs than those of a commit: which of them a step takes depends on all.

    Raises:
        DataError: they have another fingerprint.
    """
    # Commits of earlier versions do not say.
    if commit is not None and commit.state.get("data_sha256", data_sha256) != data_sha256:
        raise DataError(
            f"the pairs are not those with which commit '{commit.folder}' was made (sha256 {data_sha256[:16]}..., then "
            f"{commit.part('data_sha256', str)[:16]}...): bring those back, or start the run anew"
        )


def train_on_pairs(
    batches: Sequence[np.ndarray],
    data_sha256: str,
    learn: Callable[[int, np.ndarray], dict[str, float]],
    gang: Gang,
    run: Run,
    committer: Committer,
    commit: Commit | None,
    evaluate: Callable[[int], float | None] = lambda step: None,
) -> None:
    """All steps; those before a commit are passed over.

    Args:
        batches: indices of each step's pairs.
        data_sha256: fingerprint of the pairs, kept in commits (``check_same_pairs``).
        learn: trains on them, given the step, and returns its metrics.
        evaluate: is called with the number of finished steps, and returns their held-out score when they are to have one; a run
            that is to stop does not wait for it.

    Raises:
        RunStoppedError: the run was asked to stop, and did after a commit.
    """
    done = 0
    if commit is not None:
        done = commit.step
        gang.load_commit(str(commit.folder.resolve()))
        if run.in_place:
            committer.store.abandon_after(commit.step)
        run.go_on(commit)
    for step in range(done, len(batches)):
        began = time.time()
        metrics = learn(step, batches[step])
        run.timeline.add("learn", began, time.time(), step=step)
        run.log(step, metrics | {"seconds/step": time.time() - began})
        committer.finish()
        # The ranks are not started again elsewhere: the run goes on there.
        if gang.leaving() or leaving([this_node()]):
            run.stopping = True
        # Who asked it to stop waits for the commit, and not for a score of it.
        score = None if run.stopping else evaluate(step + 1)
        if committer.due(step + 1) or run.stopping:
            state: dict[str, Any] = run.clocks() | {"score": score, "data_sha256": data_sha256}
            committer.begin(step + 1, state)
        if run.stopping and step + 1 < len(batches):
            committer.finish()
            raise RunStoppedError(f"stopped after step {step + 1} of {len(batches)}{AS_ASKED}")
    committer.finish()
