"""Recipes and overrides of any content: a valid configuration, or a ConfigError that names file and key."""

from __future__ import annotations

import json
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.common import to_toml
from dvpo_ray.config import PipelineRecipe, PolicyRecipe, Recipe, ValueRecipe, dump_resolved, load_recipe
from dvpo_ray.config.loading import build, walk_fields
from dvpo_ray.errors import ConfigError
from tests.support.fuzzing import altered, damaged, examples, odd_json

RECIPES = Path(__file__).resolve().parents[3] / "jobs" / "recipes"
SHIPPED = {"demo": PipelineRecipe, "hh-harmless-value": ValueRecipe}
TREES = {name: tomllib.loads((RECIPES / f"{name}.toml").read_text()) for name in SHIPPED}
KEYS = [path for path, _ in walk_fields(PipelineRecipe)]
MINIMAL = {"policy": {"value_model": "g", "data": {"source": "x"}}}


def accept_or_name(kind: type[Recipe], content: bytes, overrides: list[str] = []) -> None:  # noqa: B006
    """What is accepted can be written and read again; what is not is refused with the file's name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_bytes(content)
        try:
            recipe = load_recipe(kind, path, overrides)
        except ConfigError as error:
            text = str(error)
            assert str(path) in text or text.startswith("override ")
            assert len(text) < 100_000
        else:
            assert json.loads(dump_resolved(recipe), parse_constant=pytest.fail)["run"]


@pytest.mark.parametrize("name", sorted(SHIPPED))
@examples(60)
@given(data=st.data())
def test_damaged_recipes(name: str, data: st.DataObject) -> None:
    accept_or_name(SHIPPED[name], data.draw(damaged((RECIPES / f"{name}.toml").read_bytes())))


@examples(60)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(content=b"a = " + b"9" * 5000)
@example(content=b"[run]\nseed = 0x" + b"f" * 5000)
@example(content=b"a = " + b"[" * 5000 + b"]" * 5000)
@example(content=b"[" + b"a." * 5000 + b"a]")
def test_recipes_of_any_bytes(content: bytes) -> None:
    accept_or_name(PolicyRecipe, content)


@pytest.mark.parametrize("name", sorted(SHIPPED))
@examples(100)
@given(data=st.data())
def test_altered_recipes(name: str, data: st.DataObject) -> None:
    tree = data.draw(altered(TREES[name]))
    try:
        recipe = build(SHIPPED[name], tree, "mine")
    except ConfigError as error:
        assert str(error).startswith("mine: ")
    else:
        assert json.loads(dump_resolved(recipe), parse_constant=pytest.fail)["run"]


def toml_values() -> st.SearchStrategy[str]:
    plain = st.sampled_from(
        ("nan", "inf", "-inf", "1e999", "0x" + "f" * 4000, "9" * 5000, "2020-99-99", "''", "[]", "{}", "true", '"\\u0000"', "'''")
    )
    return (
        plain
        | st.text(max_size=12)
        | st.integers().map(str)
        | st.floats().map(repr)
        | odd_json().map(lambda v: json.dumps(v)[:300])
    )


@examples(200)
@given(key=st.sampled_from(KEYS) | st.text(max_size=9), value=toml_values())
@example(key="policy.learner.learning_rate", value="inf")
@example(key="policy.steps", value="0x" + "f" * 5000)
@example(key="policy.steps", value="[" * 5000)
@example(key="run.output_dir", value='"a\\u0000b"')
@example(key="policy.data.source", value='"a\\u0000b"')
def test_overrides(key: str, value: str) -> None:
    accept_or_name(PolicyRecipe, to_toml(MINIMAL).encode(), [f"{key}={value}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.learner.learning_rate=inf", r"learning_rate: Input should be a finite number; got inf"),
        ("policy.steps=0x" + "f" * 5000, r"policy\.steps: an integer of 20000 bits; TOML has 64"),
        ('run.output_dir="a\\u0000b"', r"run\.output_dir: text with a NUL character: 'a\\x00b'"),
        ("tracking.wandb_api_key=123456789", r"tracking\.wandb_api_key: .*got \*\*redacted\*\*"),
    ],
)
def test_what_cannot_be_a_setting_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        accept_or_raise(override)


def accept_or_raise(override: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_text(to_toml(MINIMAL))
        return load_recipe(PolicyRecipe, path, [override])


@pytest.mark.parametrize("name", ["../recipes/demo", "x" * 5000, "a\0b", "\ud800", ""])
def test_names_of_recipes_lead_nowhere_else(name: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe(PipelineRecipe, name)
