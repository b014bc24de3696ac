"""What is offered from outside runs no code and leads nowhere else, and what is secret is in no file (docs/security.md)."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.cluster import token as cluster_token
from actors.cluster.session import start_embedded
from actors.learner.pieces import file_name, find_pieces
from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.config import PolicyRecipe, load_recipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.data import DeadLetters, load_prompts
from dvpo_ray.errors import CheckpointError, ConfigError, DataError, ModelError, RunError
from dvpo_ray.io.safetensors_writer import write_tensors
from dvpo_ray.loop.dumps import read_dump
from dvpo_ray.models.folder import check_model_folder, sha256_file
from dvpo_ray.models.token_reader import load_policy
from dvpo_ray.models.value_model import read_seal, seal
from dvpo_ray.runs.run import Run

SECRET = "hunter2-5f3a"


def tree(**sections: Any) -> dict[str, Any]:
    policy = {"value_model": "v", "data": {"source": "x.jsonl"}} | sections.pop("policy", {})
    return {"policy": policy} | sections


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self._marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a bomb makes when it goes off; this one does."""
    trial = tmp_path / "trial"
    pickle.loads(pickle.dumps(Bomb(trial)))
    assert trial.exists()
    return tmp_path / "gone-off"


def test_a_pickle_is_no_model_under_any_name(tiny_model: Path, tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "adapter_model.bin", "model.pt"):
        torch.save(Bomb(marker), folder / name)
    with pytest.raises(ModelError, match=r"lacks \*\.safetensors"):
        check_model_folder(folder)
    with pytest.raises(OSError, match="safetensors"):
        load_policy(folder, torch.float32, "eager")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ModelError, match=r"model\.safetensors is no safetensors file"):
        check_model_folder(folder)
    assert not marker.exists()


def seal_of(folder: Path) -> None:
    digests = dict.fromkeys(("tokenizer_sha256", "chat_template_sha256", "data_sha256"), "s")
    numbers = {"pairs": 3, "value_mean": 0.1, "value_std": 0.2, "held_out_pairs": 2}
    seal(folder, base_model="b", target={"type": "td"}, held_out_accuracy={"mean": 0.5, "last": 0.5}, **digests, **numbers)


def test_a_pickle_is_no_value_model_however_well_sealed(tmp_path: Path, marker: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
    seal_of(tmp_path)
    with pytest.raises(ModelError, match=r"model\.safetensors is no safetensors file"):
        read_seal(tmp_path)
    assert not marker.exists()


def test_a_pickle_is_no_checkpoint_however_good_its_manifest(tmp_path: Path, marker: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    unfinished = store.begin(1)
    piece = unfinished / file_name(0)
    piece.write_bytes(pickle.dumps(Bomb(marker)))
    store.finish(1, unfinished, {piece.name: sha256_file(piece)}, {})
    checkpoint = store.newest()
    assert checkpoint is not None, "its manifest is right"
    with pytest.raises(CheckpointError, match="holds no learner's state"):
        find_pieces(checkpoint.folder)
    assert not marker.exists()


def test_a_pickle_is_no_dump(tmp_path: Path, marker: Path) -> None:
    np.savez(tmp_path / "step.npz", step=np.array([Bomb(marker)], dtype=object))
    with pytest.raises(DataError, match="is no dump of rows"):
        read_dump(tmp_path / "step.npz")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors.index.json", {"weight_map": {"w": "../outside.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": {"w": "/outside.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": ["model.safetensors"]}),
        ("adapter_config.json", {"base_model_name_or_path": "somewhere/else"}),
    ],
)
def test_a_models_files_lead_to_no_weights_outside_its_folder(name: str, content: Any, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    shutil.copy(tiny_model / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / name).write_text(json.dumps(content))
    seal_of(folder)
    for check in (check_model_folder, read_seal):
        with pytest.raises(ModelError, match="outside the folder|names another one"):
            check(folder)


def test_a_seal_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "value-model"
    folder.mkdir()
    write_tensors(folder / "model.safetensors", {"w": torch.ones(2)}, {})
    seal_of(folder)
    outside = tmp_path / "outside"
    outside.write_text("text")
    record = json.loads((folder / "gvm.json").read_text())
    for name in ("../outside", str(outside)):
        changed = record | {"files": record["files"] | {name: sha256_file(outside)}}
        (folder / "gvm.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match="points outside the folder"):
            read_seal(folder)


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", "..", ".", "", ".hidden", "a\n", "a\\b", "~", "x" * 64, "a b", "-rf"])
def test_the_name_of_a_run_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name"):
        build(PolicyRecipe, tree(run={"name": name}))


@pytest.mark.parametrize("inner", ["../__init__.py", "demo/../../../secret.jsonl", "/etc/passwd", "demo/data/../../.."])
def test_data_of_a_package_lie_in_it(inner: str, tokenizer: Any) -> None:
    with DeadLetters(None) as dead, pytest.raises(DataError, match="leads out of package 'dvpo_ray'"):
        load_prompts(f"package:dvpo_ray/{inner}", tokenizer, max_prompt_tokens=9, dead_letters=dead)


def test_splits_of_a_saved_dataset_lie_in_it(tmp_path: Path, tokenizer: Any) -> None:
    import datasets

    datasets.Dataset.from_list([{"prompt": "secret"}]).save_to_disk(tmp_path / "outside")
    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list([{"prompt": "a"}])}).save_to_disk(saved)
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["../outside"]}))
    with DeadLetters(None) as dead, pytest.raises(DataError, match="'../outside' points outside the folder"):
        load_prompts(str(saved), tokenizer, max_prompt_tokens=9, dead_letters=dead)


@pytest.mark.parametrize(
    "sections",
    [
        {"tracking": {"mlflow_uri": f"https://me:{SECRET}@mlflow.example"}},
        {"policy": {"checkpoint": {"copy_to": f"s3://key:{SECRET}@bucket/run"}}},
        {"policy": {"rewards": {"r": {"type": "http", "url": f"http://h.example/score?v=1&api_key={SECRET}"}}}},
        {"policy": {"data": {"source": f"https://u:{SECRET}@hub.example/x.jsonl"}}},
        {"policy": {"data": {"source": f"https://{SECRET}@hub.example/x.jsonl"}}},
        {"policy": {"data": {"source": f"https://u:a/{SECRET}@hub.example/x.jsonl"}}},
        {"policy": {"data": {"source": f"https://u:80{SECRET}@hub.example/x.jsonl"}}},
        *(
            {"policy": {"data": {"source": f"https://hub.example/x.jsonl?v=1&{name}={SECRET}"}}}
            for name in ("sig", "code", "auth", "X-Amz-Credential", "Authorization", "user_pwd", "auth.id")
        ),
    ],
)
def test_a_url_that_holds_a_secret_is_refused_and_not_shown(sections: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a URL that holds a password or a key") as caught:
        build(PolicyRecipe, tree(**sections))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/run:1/a@b",
        "sftp://me@host/runs",
        "abfs://container@account.example/run",
        "http://h.example:9000/a@b",
        "http://[::1]:9000/a@b",
        "https://h.example/x?design=1&postcode=2&encoding=3",
    ],
)
def test_urls_without_secrets_are_taken(url: str) -> None:
    checkpoint = {"copy_to": url}
    rewards = {"r": {"type": "http", "url": "http://h.example:9000/score?version=2", "token_variable": "T"}}
    build(PolicyRecipe, tree(policy={"checkpoint": checkpoint, "rewards": rewards}))


def test_a_secret_is_in_no_file_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVPO_CHECKPOINT_KEY", SECRET)
    recipe = build(PolicyRecipe, tree(run={"output_dir": str(tmp_path)}, tracking={"wandb_api_key": SECRET}))
    run = Run(recipe, 1)
    run.log(0, {"loss/policy": 1.0, "seconds/step": 1.0})
    run.write_json("result.json", {"seed": 0})
    run.close()
    store = CheckpointStore(run.folder / "checkpoints")
    store.finish(1, store.begin(1), {}, {})
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert {"config.json", "result.json", "manifest.json"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in repr(recipe)


@pytest.mark.parametrize("mistake", [" ", ":", " = = ", "="])
def test_a_secret_given_in_the_wrong_way_is_not_repeated(mistake: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[tracking]\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(PolicyRecipe, tmp_path / "r.toml", [f"tracking.wandb_api_key{mistake}{SECRET}", f"tracking.key={SECRET}"])
    assert SECRET not in str(caught.value)


def test_rays_token_file_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "auth_token"
    file.write_text(SECRET)
    file.chmod(0o644)
    monkeypatch.setattr(cluster_token, "TOKEN_FILE", file)
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that what is set below is taken back
    monkeypatch.delenv("RAY_AUTH_MODE")
    cluster_token.use_token()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_token_that_is_asked_for_and_missing_is_said_before_ray_aborts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_token, "TOKEN_FILE", tmp_path / "auth_token")
    for name in cluster_token.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(cluster_token.MODE, "token")
    with pytest.raises(RunError, match="there is no token: put the cluster's into RAY_AUTH_TOKEN"):
        cluster_token.use_token()


def test_a_ray_that_is_started_finds_a_token_that_was_never_readable_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".ray" / "auth_token"
    monkeypatch.setattr(cluster_token, "TOKEN_FILE", file)
    for name in (cluster_token.MODE, *cluster_token.TOKEN_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    found: list[tuple[int, str]] = []

    def started(**options: Any) -> None:
        found.append((stat.S_IMODE(file.stat().st_mode), file.read_text()))

    monkeypatch.setattr("actors.cluster.session.ray.init", started)
    monkeypatch.setattr("actors.cluster.session.check_socket_room", lambda folder, dashboard: None)
    for name in ("PYTHONPATH", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that what is set below is taken back
    before = os.umask(0)
    try:
        for _ in range(2):
            start_embedded(ClusterSection(), str(tmp_path))
    finally:
        os.umask(before)
    (mode, token), again = found
    assert (mode, len(token)) == (0o600, 64)
    assert again == (mode, token), "the next one takes the same"
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]


def test_a_token_is_written_where_there_are_no_links_and_left_alone_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    file = tmp_path / "auth_token"
    monkeypatch.setattr(cluster_token, "TOKEN_FILE", file)
    for name in (cluster_token.MODE, *cluster_token.TOKEN_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster_token.os, "link", refused)
    monkeypatch.setattr(Path, "chmod", refused)
    cluster_token.make_token()
    token = file.read_text()
    assert (stat.S_IMODE(file.stat().st_mode), len(token)) == (0o600, 64)
    cluster_token.make_token()
    assert file.read_text() == token, "the next one takes the same"


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", SECRET)])
def test_no_token_is_written_where_ray_asks_for_none_or_has_one(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_token, "TOKEN_FILE", tmp_path / ".ray" / "auth_token")
    for other in (cluster_token.MODE, *cluster_token.TOKEN_VARIABLES):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    cluster_token.make_token()
    assert list(tmp_path.iterdir()) == []
