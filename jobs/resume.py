"""What a job goes on from, and the copies of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dvpo_ray.checkpoints.remote import RemoteStore
from dvpo_ray.checkpoints.replicator import CheckpointReplicator
from dvpo_ray.checkpoints.store import Checkpoint, CheckpointStore
from dvpo_ray.config import Recipe
from dvpo_ray.config.loading import CONFIG
from dvpo_ray.config.sections import CheckpointSection
from dvpo_ray.errors import DataError
from dvpo_ray.io.json_files import read_object
from dvpo_ray.models.hub import hub_model
from dvpo_ray.models.packaged import MODEL_PATH
from dvpo_ray.runs.folder import CHECKPOINTS, check_same_run, run_folder, texts_in
from dvpo_ray.runs.run import Run


def store_of(folder: Path, config: CheckpointSection) -> CheckpointStore:
    """The checkpoints in a run's folder."""
    return CheckpointStore(folder / CHECKPOINTS, config.keep_last, config.keep_every, config.keep_best)


def copier_of(store: CheckpointStore, config: CheckpointSection) -> CheckpointReplicator | None:
    """Who copies a run's checkpoints, if anyone.

    Raises:
        ConfigError: the place they are copied to cannot be reached.
    """
    return None if config.copy_to is None else CheckpointReplicator(RemoteStore(config.copy_to), store, config)


def find_checkpoint(recipe: Recipe, store: CheckpointStore, copier: CheckpointReplicator | None = None) -> Checkpoint | None:
    """The checkpoint that ``run.resume`` asks for, or None to start anew; ``auto`` takes a copy that is newer than what
    ``store`` has.

    Raises:
        CheckpointError: the one named is damaged, or a copy is not signed with the key.
        ConfigError: it belongs to a run whose recipe had other settings where they are fixed on resume.
    """
    resume = recipe.run.resume
    checkpoint = None
    if resume == "auto":
        checkpoint = store.newest()
        if copier is not None:
            check = partial(check_same_run, recipe)
            checkpoint = (
                copier.target.fetch_newest(store, run_folder(recipe), check, after=checkpoint.step if checkpoint else 0)
                or checkpoint
            )
    elif resume != "never":
        checkpoint = store.open(Path(resume))
    if checkpoint is not None:
        check_same_run(recipe, checkpoint.folder.parent.parent / CONFIG)
    return checkpoint


def kept_models(checkpoint: Checkpoint | None) -> dict[str, str]:
    """The models of the Hub of the run that a checkpoint belongs to, at their commits (``org/name@COMMIT``), by the dotted
    paths of the settings that named them."""
    return {} if checkpoint is None else models_in(checkpoint.folder.parent.parent / CONFIG)


def models_in(config: Path) -> dict[str, str]:
    """The same, of the run that has written its recipe into ``config``.

    Raises:
        DataError: it is damaged.
    """
    tree = read_object(config)
    model = tree.get("model")
    texts = dict(texts_in(tree))
    if isinstance(model, dict):
        texts[MODEL_PATH] = f"{model.get('path')}@{model.get('revision')}"
    found = {path: hub_model(text) for path, text in texts.items()}
    return {path: str(one) for path, one in found.items() if one is not None and one.is_pinned}


def prepare_copies(recipe: Recipe, checkpoint: Checkpoint | None, copier: CheckpointReplicator | None) -> None:
    """Once nothing speaks against the run any more: take away copies of steps that it will make again.

    Raises:
        ConfigError: a run that starts anew would mix its copies with those of another.
        CheckpointError: one there is of another format, or not signed with the key.
    """
    if copier is not None:
        in_place = resumes_in_place(recipe, checkpoint)
        copier.resume(checkpoint.step if checkpoint is not None and in_place else 0, replace=recipe.run.overwrite)


@contextmanager
def copying(copier: CheckpointReplicator | None, run: Run) -> Iterator[None]:
    """At the end of the block, however it comes, wait for the last copies and say which were not made."""
    run.pace.copies_s = 0.0 if copier is None else copier.wait_s
    try:
        yield
    finally:
        if copier is not None:
            run.phase(f"waiting for the last copies to {copier.target.url}")
            copier.close()
            run.warn_all(copier.news())


def copies(copier: CheckpointReplicator | None) -> dict[str, int]:
    """What a result says of copies."""
    return {} if copier is None else {"checkpoints_copied": copier.copied, "checkpoints_not_copied": copier.failed}


def check_same_data(checkpoint: Checkpoint | None, data_sha256: str) -> None:
    """Refuse to go on with other rows than those of a checkpoint: which of them a step takes depends on all.

    Raises:
        DataError: they have another fingerprint.
    """
    # Checkpoints of earlier versions do not say.
    if checkpoint is not None and checkpoint.state.get("data_sha256", data_sha256) != data_sha256:
        raise DataError(
            f"the rows to train on are not those with which checkpoint '{checkpoint.folder}' was made (sha256 "
            f"{data_sha256[:16]}..., then {checkpoint.part('data_sha256', str)[:16]}...): bring those back, or start the run anew"
        )


def resumes_in_place(recipe: Recipe, checkpoint: Checkpoint | None) -> bool:
    """Whether a checkpoint is one of the very run that the recipe names."""
    return checkpoint is not None and checkpoint.folder.resolve().parent.parent == run_folder(recipe).resolve()
