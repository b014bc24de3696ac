"""Stopping a job and going on with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dvpo_ray.checkpoints.remote import CopyTarget
from dvpo_ray.checkpoints.replicator import Copier
from dvpo_ray.checkpoints.store import Commit, CommitStore
from dvpo_ray.config import Recipe
from dvpo_ray.config.loading import CONFIG
from dvpo_ray.config.sections import CommitSection
from dvpo_ray.errors import AS_ASKED, DataError, RunStoppedError
from dvpo_ray.io.json_files import read_object
from dvpo_ray.models.hub import hub_model
from dvpo_ray.runs.folder import COMMITS, check_same_run, run_folder, strings_in
from dvpo_ray.runs.run import Event, Listener, Run
from dvpo_ray.runs.stopping import Stop, heeding

# What decides which rows come and which numbers the optimizer's state belongs to: it must not change.
_FIXED = ("run.seed", "model.path", "model.chat_template_kwargs")
_EVALUATION = tuple(
    f"evaluation.{name}" for name in ("source", "split", "subset", "data_dir", "revision", "max_prompts", "answers_per_prompt")
)
_ADAPTERS = ("lora.rank", "lora.alpha", "lora.rslora", "lora.target_modules")
POLICY_FIXED = (
    *_FIXED,
    "policy.data",
    "policy.advantage.type",
    "policy.ptx.data",
    "policy.ptx.rows_per_step",
    "policy.rollout.prompts_per_step",
    "policy.rollout.answers_per_prompt",
    *(f"policy.{key}" for key in (*_EVALUATION, *_ADAPTERS)),
)
VALUE_FIXED = (*_FIXED, "value.data", "value.target", "value.pairs_per_step", "value.epochs")
DPO_FIXED = (
    *_FIXED,
    "dpo.data",
    "dpo.pairs_per_step",
    "dpo.epochs",
    "dpo.loss",
    "dpo.beta",
    "dpo.label_smoothing",
    "dpo.average_log_probs",
    *(f"dpo.{key}" for key in (*_EVALUATION, *_ADAPTERS)),
)


def store_of(folder: Path, config: CommitSection) -> CommitStore:
    """The commits in a run's folder."""
    return CommitStore(folder / COMMITS, config.keep_last, config.keep_every, config.keep_best)


def copier_of(store: CommitStore, config: CommitSection) -> Copier | None:
    """Who copies a run's commits, if anyone.

    Raises:
        ConfigError: the place they are copied to cannot be reached.
    """
    return None if config.copy_to is None else Copier(CopyTarget(config.copy_to), store, config)


def find_commit(recipe: Recipe, fixed: Sequence[str], store: CommitStore, copier: Copier | None = None) -> Commit | None:
    """The commit that ``run.resume`` asks for, or None to start anew; ``auto`` takes a copy that is newer than what
    ``store`` has.

    Raises:
        CommitError: the one named is damaged, or a copy is not signed with the key.
        ConfigError: it belongs to a run whose recipe had other settings where ``fixed`` names them.
    """
    resume = recipe.run.resume
    commit = None
    if resume == "auto":
        commit = store.newest()
        if copier is not None:
            check = partial(check_same_run, recipe, fixed=fixed)
            commit = copier.target.fetch_newest(store, run_folder(recipe), check, after=commit.step if commit else 0) or commit
    elif resume != "never":
        commit = store.open(Path(resume))
    if commit is not None:
        check_same_run(recipe, commit.folder.parent.parent / CONFIG, fixed)
    return commit


def kept_models(commit: Commit | None) -> frozenset[str]:
    """The models of the Hub, at their commits (``org/name@COMMIT``), of the run that a commit belongs to."""
    return frozenset() if commit is None else models_in(commit.folder.parent.parent / CONFIG)


def models_in(config: Path) -> frozenset[str]:
    """The same, of the run that has written its recipe into ``config``.

    Raises:
        DataError: it is damaged.
    """
    tree = read_object(config)
    model = tree.get("model")
    own = f"{model.get('path')}@{model.get('revision')}" if isinstance(model, dict) else ""
    found = filter(None, map(hub_model, {own, *strings_in(tree)}))
    return frozenset(str(one) for one in found if one.is_pinned)


def prepare_copies(recipe: Recipe, commit: Commit | None, copier: Copier | None) -> None:
    """Once nothing speaks against the run any more: take away copies of steps that it will make again.

    Raises:
        ConfigError: a run that starts anew would mix its copies with those of another.
        CommitError: one there is of another format, or not signed with the key.
    """
    if copier is not None:
        in_place = goes_on_in_place(recipe, commit)
        copier.go_on(commit.step if commit is not None and in_place else 0, replace=recipe.run.overwrite)


@contextmanager
def copying(copier: Copier | None, run: Run) -> Iterator[None]:
    """At the end of the block, however it comes, wait for the last copies and say which were not made."""
    run.pace.copies_s = 0.0 if copier is None else copier.wait_s
    try:
        yield
    finally:
        if copier is not None:
            run.phase(f"waiting for the last copies to {copier.target.url}")
            copier.close()
            run.tell(copier.news())


def copies(copier: Copier | None) -> dict[str, int]:
    """What a result says of copies."""
    return {} if copier is None else {"commits_copied": copier.copied, "commits_not_copied": copier.failed}


def check_same_data(commit: Commit | None, data_sha256: str) -> None:
    """Refuse to go on with other rows than those of a commit: which of them a step takes depends on all.

    Raises:
        DataError: they have another fingerprint.
    """
    # Commits of earlier versions do not say.
    if commit is not None and commit.state.get("data_sha256", data_sha256) != data_sha256:
        raise DataError(
            f"the rows to train on are not those with which commit '{commit.folder}' was made (sha256 {data_sha256[:16]}..., "
            f"then {commit.part('data_sha256', str)[:16]}...): bring those back, or start the run anew"
        )


def goes_on_in_place(recipe: Recipe, commit: Commit | None) -> bool:
    """Whether a commit is one of the very run that the recipe names."""
    return commit is not None and commit.folder.resolve().parent.parent == run_folder(recipe).resolve()


@contextmanager
def job(listener: Listener) -> Iterator[Stop]:
    """Heed signals for the length of a job, and tell its listener what they lead to.

    Raises:
        RunStoppedError: a signal ended what was being done.
    """
    with heeding(lambda text: listener(Event("stopping", text))) as stop:
        yield stop


@contextmanager
def finishing_run(run: Run, keep: Callable[[int], None]) -> Iterator[None]:
    """What is measured after the last step may be given up, when ``keep`` has seen to a commit of all steps.

    Raises:
        RunStoppedError: it was.
    """
    steps = run.total_steps
    with run.stop.finishing(run.pace.plan_of_commit):
        with run.stop.cutting(run.pace.plan_of_commit):
            yield
        if run.stop.asked:
            keep(steps)
            raise RunStoppedError(f"stopped after step {steps} of {steps}{AS_ASKED}")


@contextmanager
def saving(run: Run, what: str) -> Iterator[None]:
    """What a run is for is being saved: that is not given up."""
    run.phase(f"saving the {what}")
    with run.stop.finishing(lambda: run.pace.plan_of_rest(f"saving the {what}", run.pace.commit_seconds)):
        yield
