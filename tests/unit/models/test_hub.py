"""Models by their names on the Hub: pulled once, at one commit, and found again when the Hub is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from dvpo_ray.config.sections import ModelSection
from dvpo_ray.errors import ConfigError, ModelError
from dvpo_ray.models.folder import write_manifest
from dvpo_ray.models.hub import HubModel, hub_model
from dvpo_ray.models.packaged import config_folder, folder_of, locate
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.runs.run import Event
from jobs.models import base_model, trained_from, with_model
from tests.support.hub import Files, Hub, files_of, serving
from tests.unit.loop.test_recovery import recipe

NAME = "org/Model-v0.1"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process takes for the Hub, with an empty cache and a folder of its own to work in."""
    from huggingface_hub import constants

    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "")
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        yield hub


@pytest.fixture
def files(tiny_model: Path) -> Files:
    """A model's files, and those of a repository besides that are none of it."""
    more = ("pytorch_model.bin", "original/model.safetensors", "consolidated.safetensors", "model.fp16.safetensors", "m.gguf")
    return files_of(tiny_model) | dict.fromkeys(more, b"no model")


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", [NAME, "llama-3.1-8b", "org/a.b_c-1.5", "models/mine"])
def test_names_with_dots_and_digits_are_names(name: str) -> None:
    assert hub_model(name) == HubModel(name, "main")
    assert hub_model(f"{name}@refs/pr/2") == HubModel(name, "refs/pr/2")


@pytest.mark.parametrize("text", ["./m", "/models/m", "runs/value/value-model", "../m", ".", "org/../m"])
def test_paths_are_none(text: str) -> None:
    assert hub_model(text) is None


def test_a_model_is_pulled_once_and_only_what_belongs_to_it(hub: Hub, files: Files, tiny_model: Path) -> None:
    commit = hub.model(NAME).push(files)
    told: list[str] = []
    place = locate(NAME, tell=told.append)
    assert str(place) == f"{NAME}@{commit}" and place.revision == commit and commit in told[-1]
    assert files_of(place.folder) == files_of(tiny_model)
    assert sorted(hub.files_got()) == sorted(files_of(tiny_model))
    hub.asked.clear()
    assert locate(NAME) == place and hub.files_got() == []
    hub.asked.clear()
    assert folder_of(str(place)) == place.folder and hub.asked == [], "a commit does not move: the Hub is not asked"


def test_a_folder_of_that_name_comes_first(hub: Hub, files: Files, tiny_model: Path) -> None:
    hub.model(NAME).push(files)
    shutil.copytree(tiny_model, NAME)
    assert locate(NAME).folder == Path(NAME).resolve() and hub.asked == []
    with pytest.raises(ModelError, match="which has no revisions: leave model.revision out"):
        locate(NAME, "v1")


def test_a_revision_is_kept_whatever_main_does(hub: Hub, files: Files) -> None:
    repository = hub.model(NAME)
    first = repository.push(files)
    repository.refs["v1"] = first
    base = base_model(ModelSection(path=NAME))
    assert base.section.revision == first == base.origin["base_revision"]
    second = repository.push(files | {"generation_config.json": b"{}"})
    assert base_model(ModelSection(path=NAME)).place.revision == second
    assert base_model(ModelSection(path=NAME, revision="v1")).place.revision == first
    kept = {"model.path": str(base.place)}
    again = base_model(ModelSection(path=NAME), kept=kept)
    assert again.place == base.place
    other = base_model(ModelSection(path=NAME, revision="main"), kept=kept)
    with pytest.raises(
        ConfigError, match=f"its model was {NAME}@{first} of the Hub, and is now {NAME}@{second}: leave model.rev"
    ):
        with_model(recipe(Path(), every=2), other)
    assert with_model(recipe(Path(), every=2), again).model.revision == first


def test_each_setting_keeps_its_own_commit(hub: Hub, files: Files) -> None:
    """Several models can be branches of one repository, and a branch may be named with the model."""
    repository = hub.model(NAME)
    first = repository.push(files, "value")
    kept = {"model.path": f"{NAME}@{'0' * 40}", "policy.value_model": f"{NAME}@{first}"}
    second = repository.push(files | {"generation_config.json": b"{}"}, "value")
    assert locate(f"{NAME}@value", field="policy.value_model", kept=kept).revision == first
    assert locate(f"{NAME}@value", field="policy.rewards.r.folder", kept=kept).revision == second
    assert locate(f"{NAME}@{second}", field="policy.value_model", kept=kept).revision == second


def test_a_revision_in_the_models_name_is_refused() -> None:
    with pytest.raises(ValidationError, match=f"write the name alone, '{NAME}', and revision = 'v1' below it"):
        ModelSection(path=f"{NAME}@v1")


def test_every_machine_gets_the_commit_that_one_has_found(
    hub: Hub, files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path
) -> None:
    from huggingface_hub import constants

    repository = hub.model(NAME)
    repository.push(files)
    place = str(locate(NAME))
    repository.push(files | {"generation_config.json": b"{}"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another node"))
    assert files_of(folder_of(place)) == files_of(tiny_model)
    assert folder_of(str(tiny_model)) == tiny_model


def test_without_the_hub_the_cache_serves_and_says_so(hub: Hub, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.model(NAME).push(files)
    place = locate(NAME)
    for without in (lambda: setattr(hub, "down", True), lambda: offline(monkeypatch)):
        without()
        events: list[Event] = []
        assert base_model(ModelSection(path=NAME), events.append).place == place
        assert f"'{NAME}' is taken from the cache" in events[0].text and commit in events[0].text


def test_without_hub_and_cache_it_says_what_to_copy(hub: Hub, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.model(NAME).push(files)
    offline(monkeypatch)
    with pytest.raises(ModelError, match="is no folder here") as caught:
        base_model(ModelSection(path=NAME, revision="v1"))
    assert f"`hf download {NAME} --revision v1 --local-dir DIR`" in str(caught.value)
    assert 'set model.path = "DIR"' in str(caught.value) and "HF_HUB_OFFLINE" in str(caught.value)
    with pytest.raises(ModelError, match="let all nodes reach the Hub, or name a folder that all of them see"):
        folder_of(f"{NAME}@{first}")


def test_a_cache_that_is_not_whole_is_not_taken(hub: Hub, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.model(NAME).push(files)
    (locate(NAME).folder / "model.safetensors").unlink()
    offline(monkeypatch)
    with pytest.raises(ModelError, match="nor is it whole in the cache"):
        locate(NAME)


def test_what_the_hub_refuses_is_said(hub: Hub, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="has no model of that name: correct the name, or set HF_TOKEN"):
        locate("org/none", field="policy.value_model")
    hub.model(NAME).push(files)
    with pytest.raises(ModelError, match="has no revision 'v9'"):
        locate(NAME, "v9")
    hub.model("org/bin").push({"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(ModelError, match="has no safetensors on the Hub"):
        locate("org/bin")
    hub.model(NAME).gated = True
    with pytest.raises(ModelError, match=f"is gated: accept its terms at {hub.endpoint}/{NAME}, and set HF_TOKEN"):
        locate(NAME)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert locate(NAME).hub is not None


def test_planning_pulls_the_configuration_alone(hub: Hub, files: Files, tiny_model: Path) -> None:
    hub.model(NAME).push(files)
    assert ModelShape.from_folder(config_folder(ModelSection(path=NAME))) == ModelShape.from_folder(tiny_model)
    assert hub.files_got() == ["config.json"]


def test_a_policy_says_what_it_was_trained_from(tiny_model: Path, tmp_path: Path) -> None:
    assert trained_from(tiny_model) == {}
    write_manifest(tmp_path, {"base_model": NAME, "base_revision": "a" * 40})
    assert trained_from(tmp_path) == {"model.path": f"{NAME}@{'a' * 40}"}
    (tmp_path / "manifest.json").write_text(json.dumps({"base_model": str(tiny_model), "base_revision": None}))
    assert trained_from(tmp_path) == {}
