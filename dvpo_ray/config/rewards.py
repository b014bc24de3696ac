"""Settings of rewards beside the frozen value, each under a name of its own; which kinds there are says `REWARDS`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, StringConstraints

from dvpo_ray.config.base import Choice, ModelFolder, PythonFunction
from dvpo_ray.registry import Registry

# What the frozen value model is called where models have names, as rewards have.
VALUE = "value"


def _is_free(name: str) -> str:
    if name == VALUE:
        raise ValueError(f"'{VALUE}' is what the frozen value model is called: give the reward another name")
    return name


RewardName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,30}$"), AfterValidator(_is_free)]


REWARDS = Registry("reward", "function")


def _is_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return text


class RewardSettings(Choice):
    """Reward of answers, or of their tokens."""

    registry = REWARDS

    # Whether it is a model that scorers read beside the value model, in the same visit.
    is_model: ClassVar[bool] = False

    weight: float = Field(
        1.0,
        description="Factor of its numbers. That of a whole answer joins the reward of the last token, those of tokens theirs.",
    )


class FunctionReward(RewardSettings):
    """A Python function of your own, called by the scorers."""

    implementation = "dvpo_ray.rewards.functions:FunctionChannel"

    type: Literal["function"] = Field("function", description="Selects this kind.")
    function: PythonFunction = Field(
        description="`package.module:function` of (prompts, answers), two lists of texts, that returns a number for each, or "
        "none where it abstains. Prompts are whole: all turns and the words of the chat template, as the model reads them "
        "without special tokens. A function of one argument is given the rows themselves (`dvpo_ray.rewards.RewardRow`). It may "
        "be async."
    )


class HttpReward(RewardSettings):
    """A service that scores answers: POST `{"prompts": [...], "answers": [...]}` gives `{"rewards": [...]}`. The texts are those
    that functions are given; a `null` abstains."""

    implementation = "dvpo_ray.rewards.services:HttpChannel"

    type: Literal["http"] = Field("http", description="Selects this kind.")
    url: str = Field(pattern=r"^https?://", description="Where answers are sent.")
    token_variable: str | None = Field(
        None, description="Environment variable of the scorers that holds a bearer token; none sends no token."
    )
    rows_per_request: int = Field(32, ge=1, description="Most answers in one request.")
    timeout_s: float = Field(30.0, gt=0, description="Longest wait for a reply, in seconds.")
    patience_s: float = Field(
        300.0, gt=0, description="How long a batch is tried again after time-outs, lost connections, 429 and 5xx, in seconds."
    )
    open_after: int = Field(
        5, ge=1, description="Failures in a row after which the service is left alone for `pause_s` (circuit breaker)."
    )
    pause_s: float = Field(20.0, gt=0, description="How long a failing service is left alone before it is tried, in seconds.")


class ModelReward(RewardSettings):
    """A sealed model in the scorers: a reward model (`dvpo reward train`), or a value model that scores whole answers."""

    is_model: ClassVar[bool] = True

    type: Literal["model"] = Field("model", description="Selects this kind.")
    folder: ModelFolder = Field(description="Folder of the sealed model (holds `gvm.json`).")
    score: Literal["last", "mean"] = Field(
        "last", description="What scores an answer: the value of its last token, or the mean over its tokens (value models only)."
    )
    end_cut_answers: bool = Field(
        True,
        description="Whether a reward model reads an answer cut at the limit as one that ends there, its last token replaced by "
        "the end of sequence. The end is where it was trained; turn this off for one trained on answers cut themselves.",
    )


class SpanReward(RewardSettings):
    """Rewards of the tokens in which a regular expression is found: what breaks or keeps a rule is priced where it stands."""

    implementation = "dvpo_ray.rewards.spans:SpanChannel"

    type: Literal["spans"] = Field("spans", description="Selects this kind.")
    pattern: Annotated[str, AfterValidator(_is_pattern)] = Field(
        description="Regular expression (Python's) that is searched in each answer."
    )
    reward: float = Field(-1.0, description="Of each place where it is found, given to the token in which that place ends.")


REWARDS.register("function", FunctionReward)
REWARDS.register("http", HttpReward)
REWARDS.register("model", ModelReward)
REWARDS.register("spans", SpanReward)


def model_rewards(rewards: Mapping[str, RewardSettings]) -> dict[str, ModelReward]:
    """Those of a recipe's rewards that are models, by name, in its order."""
    return {name: config for name, config in rewards.items() if isinstance(config, ModelReward)}
