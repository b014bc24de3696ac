"""Checkpoints and value models of any content: read as they were written, or refused by name."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from actors.learner.pieces import file_name, find_pieces, joined
from dvpo_ray.checkpoints import manifest as manifests
from dvpo_ray.checkpoints.manifest import manifest_text, read_manifest
from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.errors import CheckpointError, ModelError
from dvpo_ray.io.safetensors_writer import write_tensors
from dvpo_ray.loop.ledger import Ledger
from dvpo_ray.models.folder import check_model_folder
from dvpo_ray.models.value_model import read_seal, seal
from tests.support.fuzzing import altered, damaged, examples, nested

BOOKS = {"trained": 4, "dead_lettered": 1, "in_flight": ["7/a", "8/b"]}
STATE = {"step": 7, "kl_coefficient": 0.1, "ledger": BOOKS, "value_sha256": {"value": "s"}, "seconds": 3.5, "first_began": 9.0}
FILES = {"learner-00000.safetensors": "ab" * 32}
MANIFEST = manifest_text(7, FILES, STATE, b"")


def write_checkpoint(folder: Path) -> Path:
    store = CheckpointStore(folder)
    unfinished = store.begin(7)
    digest = write_tensors(
        unfinished / file_name(0), {"weight|w|0": torch.arange(9.0), "rng": torch.get_rng_state()}, {"world": "1"}
    )
    return store.finish(7, unfinished, {file_name(0): digest}, STATE).folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("whole"))


@examples(150)
@given(data=st.data(), name=st.sampled_from(("manifest.json", file_name(0))))
def test_any_damage_to_a_checkpoint_is_found(whole: Path, data: st.DataObject, name: str) -> None:
    content = (whole / name).read_bytes()
    bad = data.draw(damaged(content))
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(whole, Path(folder) / whole.name)
        (copy / name).write_bytes(bad)
        store = CheckpointStore(copy.parent)
        try:
            found = store.newest()
        except CheckpointError as error:
            assert "has format" in str(error)
        else:
            assert (found is None) != (same_content(name, content, bad))


def same_content(name: str, before: bytes, after: bytes) -> bool:
    if name != "manifest.json":
        return before == after
    try:
        return json.loads(before) == json.loads(after)
    except ValueError:
        return False


@examples(150)
@given(data=st.data(), key=st.sampled_from((b"", b"key")))
def test_altered_manifests_are_refused(data: st.DataObject, key: bytes) -> None:
    tree = json.loads(manifest_text(7, FILES, STATE, key))
    other = data.draw(altered(tree))
    text = json.dumps(other).encode()
    if text == json.dumps(tree).encode():
        return
    with pytest.raises(CheckpointError, match="checkpoint 'c'"):
        read_manifest(text, "checkpoint 'c'", key)


@examples(150)
@given(tree=altered(json.loads(MANIFEST)))
@example(tree=json.loads(MANIFEST) | {"step": float("inf")})
@example(tree=json.loads(MANIFEST) | {"step": "12"})
@example(tree=json.loads(MANIFEST) | {"files": {"x" * 5000: "ab" * 32}})
@example(tree=json.loads(MANIFEST) | {"files": {"a": None}})
@example(tree=json.loads(MANIFEST) | {"files": [[1, 2]]})
@example(tree=json.loads(MANIFEST) | {"files": {"..": "ab" * 32}})
@example(tree=json.loads(MANIFEST) | {"signature": "é"})
def test_a_forged_manifest_with_a_good_digest_is_read_or_refused_by_name(tree: Any) -> None:
    """Without a key anyone can make the digest fit."""
    if isinstance(tree, dict):
        tree["sha256"] = manifests._digest(tree)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "step-00000007"
        checkpoint.mkdir()
        (checkpoint / "manifest.json").write_text(json.dumps(tree))
        try:
            found = CheckpointStore(checkpoint.parent).open(checkpoint)
        except CheckpointError as error:
            assert str(checkpoint) in str(error)
        else:
            assert found.step == 7 and tree["files"] == {}


@examples(100)
@given(state=altered(STATE))
@example(state=STATE | {"ledger": BOOKS | {"in_flight": ["x"]}})
@example(state=STATE | {"seconds": float("nan")})
def test_a_forged_state_is_refused_when_it_is_used(state: Any, tmp_path: Path) -> None:
    from dvpo_ray.checkpoints.store import Checkpoint
    from dvpo_ray.loop.driver import NonNegativeFinite

    checkpoint = Checkpoint(tmp_path, 7, state if isinstance(state, dict) else {})
    for name, kind in (("kl_coefficient", NonNegativeFinite), ("value_sha256", dict[str, str]), ("ledger", dict)):
        try:
            part = checkpoint.part(name, kind)
            if name == "ledger":
                Ledger().restore(part, 7)
        except CheckpointError as error:
            assert f"state.{name}" in str(error) or "trained steps in flight" in str(error)


@pytest.mark.parametrize(
    "text", [nested(5000), '{"step": ' + "9" * 5000 + "}", "[]", "\x00", '{"format": true}', '{"format": 1}']
)
def test_manifests_that_are_none(text: str) -> None:
    with pytest.raises(CheckpointError, match="has no usable manifest|has format 1, this version reads 2"):
        read_manifest(text.encode(), "checkpoint 'c'", b"")


@pytest.mark.parametrize("signature", ["é", "\ud800", 3, None, "", [], "0" * 64])
def test_signatures_of_any_kind_are_refused(signature: Any) -> None:
    text = json.dumps(json.loads(MANIFEST) | {"signature": signature})
    with pytest.raises(CheckpointError, match="not signed with the key in DVPO_CHECKPOINT_KEY"):
        read_manifest(text.encode(), "checkpoint 'c'", b"key")


def link_outside(checkpoint: Path) -> None:
    target = checkpoint.parent.parent / "outside"
    (checkpoint / file_name(0)).rename(target)
    (checkpoint / file_name(0)).symlink_to(target)


@pytest.mark.parametrize(
    "change",
    [
        link_outside,
        lambda checkpoint: (checkpoint / "stranger").write_text(""),
        lambda checkpoint: (checkpoint / "manifest.json").write_bytes(b" " * (manifests.LARGEST + 1)),
        lambda checkpoint: ((checkpoint / "manifest.json").unlink(), (checkpoint / "manifest.json").mkdir()),
        lambda checkpoint: checkpoint.rename(checkpoint.parent / "step-00000009"),
    ],
    ids=["link", "stranger", "huge manifest", "manifest is a folder", "renamed"],
)
def test_a_folder_that_is_no_checkpoint_is_set_aside(change: Callable[[Path], object], tmp_path: Path) -> None:
    change(write_checkpoint(tmp_path / "checkpoints"))
    assert CheckpointStore(tmp_path / "checkpoints").newest() is None
    assert len(list((tmp_path / "checkpoints").glob("quarantine-*"))) == 1


def test_folders_with_other_names_are_left_alone(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path)
    for name in ("step-abc", "step-", "step-7", "step-0000000x"):
        (tmp_path / name).mkdir()
    store = CheckpointStore(tmp_path, keep_last=1)
    store.abandon_after(3)
    assert not checkpoint.exists() and len(list(tmp_path.glob("step-*"))) == 4
    write_checkpoint(tmp_path)
    newest = store.newest()
    assert newest is not None and newest.step == 7


@examples(100)
@given(content=damaged(json.dumps({"__metadata__": {}}).encode()) | st.binary(max_size=60), data=st.data())
def test_pieces_of_any_bytes_and_names(content: bytes, data: st.DataObject) -> None:
    entries = st.sampled_from(("weight|w|0", "weight|w|4", "weight|w|x", "weight|w|-1", "w", "||", "exp_avg|w|0"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / file_name(1)).write_bytes(content)
        with pytest.raises(CheckpointError, match="holds no learner's state"):
            find_pieces(folder)
        (folder / file_name(1)).unlink()
        kinds = st.sampled_from((torch.float32, torch.int64, torch.bfloat16))
        shapes = data.draw(st.dictionaries(entries, st.tuples(kinds, st.integers(0, 9))))
        write_tensors(folder / file_name(0), {entry: torch.ones(size, dtype=kind) for entry, (kind, size) in shapes.items()}, {})
        try:
            tensor = joined(find_pieces(folder).get(("weight", "w"), []), 8, "w", folder)
        except CheckpointError as error:
            assert name in str(error)
        else:
            assert tensor.shape == (8,) and bool((tensor == 1).all())


def write_seal(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_tensors(folder / "model.safetensors", {"w": torch.ones(2)}, {})
    digests = dict.fromkeys(("tokenizer_sha256", "chat_template_sha256", "data_sha256"), "s")
    numbers = {"pairs": 3, "value_mean": 0.1, "value_std": 0.2, "held_out_pairs": 2}
    seal(folder, base_model="b", target={"type": "td"}, held_out_accuracy={"mean": 0.5, "last": 0.5}, **digests, **numbers)


@examples(100)
@given(data=st.data())
def test_damaged_and_altered_seals(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "value-model"
        write_seal(folder)
        path = folder / "gvm.json"
        content = path.read_bytes()
        bad = data.draw(damaged(content) | altered(json.loads(content)).map(lambda tree: json.dumps(tree).encode()))
        path.write_bytes(bad)
        try:
            record = read_seal(folder)
        except ModelError as error:
            assert str(folder) in str(error)
        else:
            assert list(record.files) == ["model.safetensors"] and record.format == 1


@pytest.mark.parametrize("name", ["", "..", "../up", "/etc/passwd", "a/../b", "x" * 300, "\ud800", "a\x00"])
def test_a_seal_leads_to_no_file_outside(name: str, tmp_path: Path) -> None:
    write_seal(tmp_path / "g")
    record = json.loads((tmp_path / "g" / "gvm.json").read_text())
    record["files"][name] = hashlib.sha256(b"").hexdigest()
    (tmp_path / "g" / "gvm.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match="names no file|missing|gvm.json: "):
        read_seal(tmp_path / "g")


@pytest.mark.parametrize("text", ["{", "[]", nested(5000), "\xff", '{"files": 3}', '{"files": {"a": 1}}'])
def test_manifests_of_model_folders(text: str, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"manifest\.json"):
        check_model_folder(tmp_path)
