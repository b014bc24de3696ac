"""Settings of rewards beside the frozen value: a union on `type`, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, Tag

from dvpo_ray.config.base import kind_of
from dvpo_ray.config.base import ModelFolder, PythonFunction, Section

RewardName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,30}$")]


class _Reward(Section):
    """What all rewards share."""

    weight: float = Field(1.0, description="Factor of its score of an answer, which joins the reward of the last token.")


class FunctionReward(_Reward):
    """A Python function of your own, called by the scorers."""

    type: Literal["function"] = Field("function", description="Selects this kind.")
    function: PythonFunction = Field(
        description="`package.module:function` of (prompts, answers), two lists of texts, that returns a number for each. "
        "Prompts are whole: all turns and the words of the chat template, as the model reads them without special tokens."
    )


class HttpReward(_Reward):
    """A service that scores answers: POST `{"prompts": [...], "answers": [...]}` gives `{"rewards": [...]}`. The texts are those
    that functions are given."""

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


class ModelReward(_Reward):
    """A sealed model in the scorers: a reward model (`dvpo reward train`), or a value model that scores whole answers."""

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


RewardConfig = Annotated[
    Annotated[FunctionReward, Tag("function")] | Annotated[HttpReward, Tag("http")] | Annotated[ModelReward, Tag("model")],
    kind_of("function"),
]


def model_rewards(rewards: Mapping[str, RewardConfig]) -> dict[str, ModelReward]:
    """Those of a recipe's rewards that are models, by name, in its order."""
    return {name: config for name, config in rewards.items() if isinstance(config, ModelReward)}
