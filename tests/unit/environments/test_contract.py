"""What environments may say, what is checked of them before a run, and which recipes have them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.environments import Calculator
from dvpo_ray.config.loading import build
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.data.messages import Message
from dvpo_ray.environments import EnvironmentRow, Turn, check_prompts, make_environment
from dvpo_ray.environments.calculator import CalculatorEnvironment
from dvpo_ray.environments.conformance import check_environment
from dvpo_ray.errors import ConfigError, DataError, ModelError
from dvpo_ray.types import RowId
from tests.support.environments import Scripted, ScriptedEnvironment

ROW = EnvironmentRow(RowId(0, 0, "p", 0), "")
SAID = (Message("tool", "x"),)


def test_a_turn_checks_itself() -> None:
    for bad, told in (
        ({}, "either ends the episode or says something"),
        ({"messages": SAID, "done": True}, "either ends the episode or says something"),
        ({"messages": "x"}, "expected a tuple of Message"),
        ({"messages": ("x",)}, "expected a tuple of Message"),
        ({"done": True, "reward": float("nan")}, "expected a finite number"),
        ({"done": True, "reward": "1"}, "expected a finite number"),
        ({"messages": SAID, "end_state": "lost"}, "has not ended"),
    ):
        with pytest.raises(ValueError, match=told):
            Turn(**bad)  # type: ignore[arg-type]


def test_an_environment_is_built_from_its_settings() -> None:
    assert isinstance(make_environment(Calculator()), CalculatorEnvironment)


def prompts(*columns: dict[str, Any]) -> list[EncodedPrompt]:
    return [EncodedPrompt(f"p{i}", "", (1,), f"p{i}", columns=one) for i, one in enumerate(columns)]


def test_what_could_not_work_is_refused_before_a_run(tokenizer: Any) -> None:
    wanted = Calculator(answer_column="answer")
    check_prompts(wanted, prompts({"answer": 1}, {"answer": 2}), tokenizer, "x.jsonl")
    check_prompts(Calculator(), prompts({}), tokenizer, "x.jsonl")
    with pytest.raises(
        DataError,
        match="'x.jsonl': 1 of 2 prompts have no column 'answer', which policy.environment needs, for example row p1; columns "
        "beside the prompt: answer, level",
    ):
        check_prompts(wanted, prompts({"answer": 1, "level": 1}, {"level": 1}), tokenizer, "x.jsonl")

    class Nowhere(Scripted):
        implementation = "nowhere:Nothing"

    with pytest.raises(ConfigError, match="cannot load 'nowhere:Nothing'"):
        check_prompts(Nowhere(), [], tokenizer, "x")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(ModelError, match="has no chat template"):
            check_prompts(wanted, [], tokenizer, "x")
    finally:
        tokenizer.chat_template = template


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (("nothing",), "returned None, not a Turn"),
        (("say x",) * 5, "did not end with 5 turns"),
    ],
)
def test_what_breaks_the_contract_is_named(script: tuple[str, ...], told: str) -> None:
    environment = ScriptedEnvironment(Scripted(script=script))
    with pytest.raises(AssertionError, match=told):
        asyncio.run(check_environment(environment, ROW, ends=True))
    assert environment.closed == 1


def test_what_the_policy_says_is_not_the_environments_to_say() -> None:
    with pytest.raises(AssertionError, match="not for an environment to say"):
        asyncio.run(check_environment(ScriptedEnvironment(Scripted(script=("say x",), role="assistant")), ROW))


def policy(environment: dict[str, Any], **more: Any) -> PolicyRecipe:
    tree = {"value_model": "g", "data": {"source": "x"}, "environment": environment} | more
    return build(PolicyRecipe, {"policy": tree})


def test_recipes_with_an_environment() -> None:
    own = policy({"type": "tests.support.environments:Scripted", "script": ["end 1"], "max_turns": 3})
    assert isinstance(own.policy.environment, Scripted)
    policy({"type": "calculator"}, advantage={"type": "grpo"}, rollout={"answers_per_prompt": 4})
    policy(
        {"type": "calculator"},
        streaming=True,
        ppo={"loss_normaliser": "limit"},
        advantage={"whitening": "scale"},
        scorer={"rows_per_call": 8},
    )
    with pytest.raises(ConfigError, match=r"rewards\.environment: what policy\.environment gives has this name"):
        policy({"type": "calculator"}, rewards={"environment": {"function": "a.b:c"}})


def test_what_an_environment_gives_may_be_all_that_is_learned_from() -> None:
    alone: dict[str, Any] = {
        "value_model": None,
        "advantage": {"type": "grpo", "score": "none"},
        "rollout": {"answers_per_prompt": 4},
    }
    policy({"type": "calculator", "answer_column": "answer"}, **alone)
    with pytest.raises(ConfigError, match=r"at least one of policy\.rewards, or a policy\.environment that rewards"):
        policy({"type": "calculator"}, **alone)


def test_how_long_an_episode_may_take() -> None:
    """Two turns: one more of the engine, replies to both, a beginning and an end."""
    assert Calculator(max_turns=2, turn_timeout_s=10).longest_s(100) == 100 + 4 * 10
