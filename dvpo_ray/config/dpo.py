"""The recipe of direct preference optimisation: a policy trained on preference pairs, without generation or rewards."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dvpo_ray.config.base import FixedOnResume
from dvpo_ray.config.recipes import PairTraining, Recipe
from dvpo_ray.config.sections import EvaluationSection, GenerationSection, LoraSection, ScorerSection, TransferSection


class DpoTraining(PairTraining):
    """The sections of direct preference optimisation."""

    loss: FixedOnResume[Literal["sigmoid", "ipo"]] = Field(
        "sigmoid",
        description="What a pair's margin costs (how much more than the reference the policy prefers the chosen answer, in "
        "nats): the logistic loss of DPO (arXiv 2305.18290) or the squared distance to `1 / (2 beta)` of IPO (arXiv 2310.12036), "
        "by default in nats a token.",
    )
    beta: FixedOnResume[float] = Field(
        0.1, gt=0, description="Strength of the pull towards the reference; less lets the policy go further."
    )
    label_smoothing: FixedOnResume[float] = Field(
        0.0, ge=0, lt=0.5, description="Share of pairs whose labels are taken to be wrong (cDPO); of `sigmoid` only."
    )
    average_log_probs: FixedOnResume[bool] = Field(
        False, description="Take the mean of an answer's token log-probs instead of their sum. Of loss `ipo`: true."
    )
    lora: LoraSection | None = Field(
        None, description="Train low-rank adapters and leave the model as it is; without this section all of it is trained."
    )
    evaluation: EvaluationSection | None = Field(
        None, description="Held-out evaluation before and after training; without it no engine and no scorer is started."
    )
    rollout: GenerationSection = Field(default_factory=lambda: GenerationSection(), description="Generation of held-out answers.")
    scorer: ScorerSection = Field(
        default_factory=lambda: ScorerSection(), description="Frozen reference model, for the KL of held-out answers."
    )
    transfer: TransferSection = Field(
        default_factory=lambda: TransferSection(), description="The way of new weights to the engines."
    )

    @property
    def longest_row(self) -> int:
        """Longest prompt and answer together that is trained on or, when there is an evaluation, scored, in tokens."""
        generated = self.data.max_prompt_tokens + self.rollout.max_new_tokens if self.evaluation else 0
        return max(super().longest_row, generated)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_average(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("loss") == "ipo":
            return {"average_log_probs": True} | tree
        return tree

    @model_validator(mode="after")
    def _validate_smoothing(self) -> Self:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError(f"label_smoothing ({self.label_smoothing}) has no effect on loss = 'ipo': leave it out")
        return self

    @model_validator(mode="after")
    def _validate_transfer(self) -> Self:
        self.transfer.check_gpus(self.rollout, self.learner)
        return self

    @model_validator(mode="after")
    def _validate_checkpoint(self) -> Self:
        if self.checkpoint.keep_best and not (self.evaluation and self.evaluation.every and self.evaluation.gold):
            raise ValueError(
                "checkpoint.keep_best needs scores of steps under way: set evaluation.every and evaluation.gold, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _validate_answers(self) -> Self:
        longest = self.data.max_prompt_tokens + self.rollout.max_new_tokens
        limits = {
            "rollout.engine.max_model_len": self.rollout.engine.max_model_len,
            "scorer.token_budget": self.scorer.token_budget,
        }
        for name, limit in limits.items():
            if self.evaluation and limit != "auto" and longest > limit:
                raise ValueError(
                    f"data.max_prompt_tokens ({self.data.max_prompt_tokens}) + rollout.max_new_tokens "
                    f"({self.rollout.max_new_tokens}) = {longest} exceeds {name} ({limit}): raise it or lower the others"
                )
        return self


class DpoRecipe(Recipe):
    """`dvpo dpo train`: preference pairs in, an aligned policy out."""

    dpo: DpoTraining = Field(description="Direct preference optimisation.")
