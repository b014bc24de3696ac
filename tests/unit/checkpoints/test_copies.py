"""Checkpoints are copied elsewhere, seen there whole or not at all, and gone on from on a machine that has none."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dvpo_ray.checkpoints.manifest import KEY_VARIABLE
from dvpo_ray.checkpoints.remote import RemoteStore
from dvpo_ray.checkpoints.replicator import MOST_WAITING, CheckpointReplicator
from dvpo_ray.checkpoints.store import Checkpoint, CheckpointStore
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.sections import CheckpointSection
from dvpo_ray.errors import CheckpointError, ConfigError
from dvpo_ray.loop.checkpointer import Checkpointer
from dvpo_ray.loop.driver import Driver
from dvpo_ray.runs.folder import run_folder
from dvpo_ray.runs.run import Event, Run
from jobs.resume import copier_of, copying, find_checkpoint, prepare_copies, resumes_in_place, store_of
from tests.support.fakes import numbered, shuffled
from tests.unit.loop.test_recovery import STEPS, ChainStages, DriverKilled, recipe, steps_and_chain


class Store(MemoryFileSystem):
    """Stands for a store of objects: names are all there is, folders come and go with them."""

    protocol = "store"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("store://")))


fsspec.register_implementation("store", Store, clobber=True)


@pytest.fixture(params=["file", "store"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place to copy to, on the disk or in this process's memory."""
    found = f"file://{tmp_path}/away" if request.param == "file" else f"store://{uuid.uuid4().hex}"
    yield found
    if request.param == "store":
        fs, root = fsspec.core.url_to_fs(found)
        if fs.exists(root):
            fs.rm(root, recursive=True)


def section(url: str, **settings: float) -> CheckpointSection:
    return CheckpointSection.model_validate({"copy_to": url, "every": 1} | settings)


def with_records(store: CheckpointStore, step: int, score: float | None = None) -> Checkpoint:
    """A checkpoint as a run with copies makes it."""
    folder = store.begin(step)
    texts = {"config.json": "{}\n", "chain": f"chain {step}"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    return store.finish(step, folder, digests, {"score": score})


def copied(url: str, store: CheckpointStore, checkpoints: list[Checkpoint], **settings: float) -> CheckpointReplicator:
    copier = CheckpointReplicator(RemoteStore(url), store, section(url, **settings), first_pause_s=0.01)
    copier.resume(0, replace=False)
    for one in checkpoints:
        copier.add(one)
    copier.close()
    return copier


def files(url: str) -> set[str]:
    fs, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/") for path in fs.find(root)}


def change(url: str, name: str, alter: Callable[[bytes], bytes | None]) -> None:
    fs, root = fsspec.core.url_to_fs(url)
    content = alter(fs.cat_file(f"{root}/{name}"))
    fs.rm_file(f"{root}/{name}")
    if content is not None:
        fs.pipe_file(f"{root}/{name}", content)


def test_checkpoints_come_back_as_they_were_and_retention_holds_there_too(url: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "here" / "checkpoints", keep_last=1)
    copier = CheckpointReplicator(RemoteStore(url), store, section(url, keep_last=1, keep_best=1), first_pause_s=0.01)
    copier.resume(0, replace=False)
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.1), (4, None)):
        copier.add(with_records(store, step, score))
    copier.close()
    assert (copier.copied, copier.failed, copier.news()) == (4, 0, [])
    assert {name.partition("/")[0] for name in files(url)} == {"latest", "step-00000002", "step-00000004"}
    other, seen = CheckpointStore(tmp_path / "there" / "checkpoints"), list[Path]()
    found = RemoteStore(url).fetch_newest(other, tmp_path / "there", seen.append)
    assert found is not None and (found.step, found.state) == (4, {"score": None})
    assert (found.folder / "chain").read_text() == "chain 4"
    assert (tmp_path / "there" / "config.json").read_text() == "{}\n"
    assert other.newest() == found
    assert [config.name for config in seen] == ["config.json"]


@pytest.mark.parametrize(
    ("name", "alter"),
    [
        ("manifest.json", lambda content: None),
        ("manifest.json", lambda content: content[: len(content) // 2]),
        ("manifest.json", lambda content: content.replace(b'"chain"', b'"../../chain"')),
        ("manifest.json", lambda content: content.replace(b'"step": 2', b'"step": 1')),
        ("chain", lambda content: None),
        ("chain", lambda content: content[:-1]),
        ("chain", lambda content: content[:-1] + b"9"),
    ],
)
def test_a_copy_that_was_cut_or_altered_is_never_taken(
    name: str, alter: Callable[[bytes], bytes | None], url: str, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path / "here")
    copied(url, store, [with_records(store, step) for step in (1, 2)])
    change(url, f"step-00000002/{name}", alter)
    found = RemoteStore(url).fetch_newest(
        CheckpointStore(tmp_path / "there" / "checkpoints"), tmp_path / "there", lambda config: None
    )
    assert found is not None and found.step == 1
    assert sorted(file.name for file in (tmp_path / "there" / "checkpoints").iterdir()) == ["latest", "step-00000001"]
    assert not (tmp_path / "chain").exists() and not (tmp_path / "there" / "chain").exists()


def test_only_what_the_key_signed_is_fetched(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "here")
    copied(url, store, [with_records(store, 1)])
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    there = tmp_path / "there"
    with pytest.raises(CheckpointError, match="not signed with the key in DVPO_CHECKPOINT_KEY"):
        RemoteStore(url).fetch_newest(CheckpointStore(there / "checkpoints"), there, lambda config: None)
    assert not there.exists(), "nothing was fetched before the signature was checked"


class FailingTarget(RemoteStore):
    """A place that fails as often as it is told to, in the middle of a copy or at its beginning."""

    def __init__(self, url: str, failures: int, after: int = 1) -> None:
        super().__init__(url)
        self.failures, self.calls = failures, 0
        put_file = self._fs.put_file

        def put(source: str, to: str) -> None:
            self.calls += 1
            if self.failures and self.calls > after:
                self.failures, self.calls = self.failures - 1, 0
                raise ConnectionError("the line is down")
            put_file(source, to)

        self.restore = lambda: setattr(self._fs, "put_file", put_file)
        self._fs.put_file = put


@pytest.mark.parametrize(("failures", "made"), [(2, True), (3, False)])
def test_a_failed_copy_is_tried_again_then_told_of_and_counted(failures: int, made: bool, url: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "here", keep_last=1)
    target = FailingTarget(url, failures)
    copier = CheckpointReplicator(target, store, section(url), first_pause_s=0.01)
    copier.resume(0, replace=False)
    first = with_records(store, 1)
    copier.add(first)
    copier.close()
    target.restore()
    assert (copier.copied, copier.failed) == (int(made), int(not made))
    assert target.steps() == ([1] if made else [])
    news = copier.news()
    assert made == (news == [])
    if not made:
        assert news[0][0] == 1
        assert (
            f"not copied to '{url}'" in news[0][1]
            and "the line is down" in news[0][1]
            and f"'{first.folder}' stands" in news[0][1]
        )
    assert store.newest() == first
    assert not store.in_use


class SlowTarget(RemoteStore):
    """A place that takes nothing until it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.began, self.go = threading.Event(), threading.Event()

    def put(self, checkpoint: Checkpoint) -> None:
        self.began.set()
        assert self.go.wait(60)
        super().put(checkpoint)


def test_what_waits_for_its_copy_stays_and_the_wait_has_bounds(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/away"
    store = CheckpointStore(tmp_path / "here", keep_last=1)
    target = SlowTarget(url)
    copier = CheckpointReplicator(target, store, section(url, copy_wait_s=0.05), first_pause_s=0.01)
    copier.resume(0, replace=False)
    copier.add(with_records(store, 1))
    assert target.began.wait(60)
    for step in range(2, MOST_WAITING + 3):
        copier.add(with_records(store, step))
    assert store.in_use == {1, *range(3, MOST_WAITING + 3)}, "the one waiting longest was given up for the newest"
    assert {1, 3} <= {int(folder.name[-8:]) for folder in (tmp_path / "here").glob("step-*")}
    copier.close()
    assert (copier.copied, copier.failed) == (0, MOST_WAITING + 2)
    assert "come faster than they can be copied" in copier.news()[0][1]
    target.go.set()
    assert copier._thread is not None
    copier._thread.join(60)
    assert not copier._thread.is_alive()


def test_places_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Install s3fs"):
        RemoteStore("s3://bucket/run")
    with pytest.raises(ConfigError, match="install gcsfs"):
        RemoteStore("gs://bucket/run")
    with pytest.raises(ConfigError, match="Protocol not known: nowhere"):
        RemoteStore("nowhere://x")
    with pytest.raises(ConfigError, match="cannot be written: .*mend the target"):
        RemoteStore(f"file://{tmp_path}/file/below")


def test_a_run_that_starts_anew_does_not_mix_with_the_copies_of_another(url: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "here")
    copied(url, store, [with_records(store, step) for step in (3, 6)])
    again = CheckpointReplicator(RemoteStore(url), store, section(url))
    with pytest.raises(ConfigError, match="already holds checkpoints"):
        again.resume(0, replace=False)
    again.resume(3, replace=False)
    assert again.target.steps() == [3]
    again.resume(0, replace=True)
    assert again.target.steps() == []


def live(config: PolicyRecipe, stages: ChainStages, evaluate: Callable[[int], float | None] = lambda step: None) -> list[Event]:
    """One life of a driver, with copies, as ``jobs.train_policy`` does it."""
    events: list[Event] = []
    store = store_of(run_folder(config), config.policy.checkpoint)
    copier = copier_of(store, config.policy.checkpoint)
    found = find_checkpoint(config, store, copier)
    prepare_copies(config, found, copier)
    run = Run(config, STEPS, events.append, in_place=resumes_in_place(config, found))
    plan = shuffled(numbered(6), config.policy)
    try:
        with copying(copier, run):
            checkpointer = Checkpointer(store, stages, run, config.policy.checkpoint.every, STEPS, copier)
            Driver(config.policy, stages, plan, run, checkpointer, evaluate).train(found)  # type: ignore[arg-type]
    finally:
        run.close()
    return events


def test_a_run_whose_machine_is_lost_goes_on_from_the_copy_as_if_nothing_had_happened(url: str, tmp_path: Path) -> None:
    straight = ChainStages()
    live(recipe(tmp_path / "straight", every=2), straight)
    expected = steps_and_chain(recipe(tmp_path / "straight", every=2))
    config = recipe(tmp_path / "first", every=2, checkpoint={"every": 2, "copy_to": url})
    with pytest.raises(DriverKilled):
        live(config, ChainStages([""] * 28 + ["driver"]))
    shutil.rmtree(tmp_path / "first")
    elsewhere = recipe(tmp_path / "second", every=2, checkpoint={"every": 2, "copy_to": url})
    stages = ChainStages()
    events = live(elsewhere, stages)
    assert any("going on after step" in event.text for event in events if event.kind == "phase")
    assert stages.calls.count("generate") < STEPS, "steps before the checkpoint were not trained again"
    assert stages.chain == straight.chain
    assert steps_and_chain(elsewhere) == expected
    lines = [json.loads(line) for line in (run_folder(elsewhere) / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["ledger/trained"] == 4 * STEPS


def test_another_run_is_not_taken_for_this_one(url: str, tmp_path: Path) -> None:
    live(recipe(tmp_path / "first", every=3, checkpoint={"every": 3, "copy_to": url}), ChainStages())
    other = recipe(tmp_path / "second", every=3, checkpoint={"every": 3, "copy_to": url}, rollout={"prompts_per_step": 8})
    with pytest.raises(ConfigError, match="policy.rollout.prompts_per_step was 4, this recipe says 8"):
        live(other, ChainStages())
    assert not (run_folder(other) / "config.json").exists() and not list((run_folder(other) / "checkpoints").iterdir())


def test_a_copy_that_is_newer_than_what_is_left_here_is_taken(url: str, tmp_path: Path) -> None:
    config = recipe(tmp_path, every=3, checkpoint={"every": 3, "copy_to": url})
    live(config, ChainStages())
    store = store_of(run_folder(config), config.policy.checkpoint)
    (store.folder / "step-00000009" / "chain").write_text("damaged")
    found = find_checkpoint(config, store, copier_of(store, config.policy.checkpoint))
    assert found is not None and found.step == 9
    assert (store.folder / "quarantine-step-00000009").is_dir()
    assert RemoteStore(url).steps() == [9, 6]
    assert find_checkpoint(config, store, copier_of(store, config.policy.checkpoint)) == found


def test_a_place_that_fails_while_copies_are_looked_at_is_named(tmp_path: Path) -> None:
    target = RemoteStore(f"file://{tmp_path}/away")
    (tmp_path / "away").rmdir()
    (tmp_path / "away").write_text("no folder any more")
    with pytest.raises(CheckpointError, match="cannot be reached"):
        target.put(with_records(CheckpointStore(tmp_path / "here"), 1))
