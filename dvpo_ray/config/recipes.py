"""The recipes a user writes: training of value and reward models, policy training, and the demo. Those of DPO are in ``dpo``."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dvpo_ray.config.algorithms import AlgorithmSettings, DvpoGae
from dvpo_ray.config.base import FixedOnResume, ModelFolder, Section
from dvpo_ray.config.environments import ENVIRONMENT_REWARD, EnvironmentSettings
from dvpo_ray.config.kl import KlSection
from dvpo_ray.config.kubernetes import KubernetesSection
from dvpo_ray.config.plans import PlanSettings, Shuffled
from dvpo_ray.config.refresh import Never, RefreshSettings
from dvpo_ray.config.rewards import HttpReward, RewardName, RewardSettings
from dvpo_ray.config.sections import (
    CheckpointSection,
    ClusterSection,
    DataSection,
    EvaluationSection,
    LearnerSection,
    LoraSection,
    ModelSection,
    PairsSection,
    PtxSection,
    RolloutSection,
    RunSection,
    ScorerSection,
    TrackingSection,
    TransferSection,
)
from dvpo_ray.config.targets import RewardTarget, TargetConfig, TdTarget
from dvpo_ray.config.trainers import Gradient, TrainerSettings
from dvpo_ray.config.updates import HealthSection, OffPolicySection, PpoUpdateSection

SHARED_SECTIONS = ("run", "cluster", "model", "tracking")


class Recipe(Section):
    """What every recipe declares once."""

    run: RunSection = Field(default_factory=lambda: RunSection(), description="Name, folder and seed.")
    cluster: ClusterSection = Field(default_factory=lambda: ClusterSection(), description="Ray.")
    model: ModelSection = Field(default_factory=lambda: ModelSection(), description="The model to start from.")
    tracking: TrackingSection = Field(default_factory=lambda: TrackingSection(), description="Metric trackers.")
    kubernetes: KubernetesSection = Field(
        default_factory=lambda: KubernetesSection(), description="What `dvpo k8s render` adds to a job's pods."
    )


class PairTraining(Section):
    """What trainings on a fixed set of preference pairs share."""

    data: FixedOnResume[PairsSection] = Field(description="Preference pairs.")
    epochs: FixedOnResume[int] = Field(1, ge=1, description="Passes over the pairs.")
    pairs_per_step: FixedOnResume[int] = Field(
        16, ge=1, description="Pairs of one optimizer step; an answer that is in no pair (`value.labels`) counts as one."
    )
    checkpoint: CheckpointSection = Field(
        default_factory=lambda: CheckpointSection(every=100), description="Checkpoints, to go on after a failure."
    )
    learner: LearnerSection = Field(default_factory=lambda: LearnerSection(), description="Learner.")

    @property
    def longest_row(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.data.longest_row

    @property
    def longest_pass(self) -> int:
        """Tokens that a micro-batch must have room for: both answers of a pair stay together."""
        return 2 * self.data.longest_row

    @model_validator(mode="after")
    def _validate_sizes(self) -> Self:
        budget = self.learner.token_budget
        if budget != "auto" and self.longest_pass > budget:
            raise ValueError(
                f"learner.token_budget ({budget}) is smaller than the longest pair allowed by data "
                f"(two rows of {self.data.max_prompt_tokens} prompt + {self.data.max_answer_tokens} answer tokens = "
                f"{self.longest_pass}); raise the budget or lower the limits"
            )
        if self.pairs_per_step < self.learner.ranks:
            raise ValueError(
                f"pairs_per_step ({self.pairs_per_step}) is smaller than learner.ranks ({self.learner.ranks}): "
                "some ranks would have nothing to do"
            )
        return self


class ValueTraining(PairTraining):
    """The sections of value pretraining."""

    target: FixedOnResume[TargetConfig] = Field(default_factory=TdTarget, description="What each position is trained towards.")
    inner_epochs: int = Field(1, ge=1, description="Optimizer steps on one batch with its targets held fixed.")
    labels: FixedOnResume[Literal["all", "pairs"]] = Field(
        "all",
        description="What is learned from: with `all` also answers that are in no pair (of ties, the only one to a prompt, "
        "between the best and the worst), each with a label of its own (docs/datasets.md). Of a reward model: `pairs`.",
    )
    label_scale: FixedOnResume[Annotated[tuple[float, float], Field(strict=False)] | None] = Field(
        None,
        description="Lowest and highest rating that there can be, as in `[0, 4]`: the rating of an answer that is in no pair is "
        "then its label. Good or bad needs none.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_labels(cls, tree: Any) -> Any:
        target = tree.get("target") if isinstance(tree, dict) else None
        kind = target.get("type") if isinstance(target, dict) else getattr(target, "type", None)
        return {"labels": "pairs"} | tree if kind == "reward" else tree

    @model_validator(mode="after")
    def _validate_labels(self) -> Self:
        if self.labels == "all" and isinstance(self.target, RewardTarget):
            raise ValueError("labels = 'all' without effect: a reward model learns from pairs; leave it out")
        if self.label_scale is not None and self.labels == "pairs":
            raise ValueError("label_scale without effect: pairs have no labels of their own; leave it out")
        if self.label_scale is not None and not self.label_scale[0] < self.label_scale[1]:
            raise ValueError(f"label_scale is {list(self.label_scale)}: give the lowest rating, then the highest")
        return self

    @model_validator(mode="after")
    def _validate_checkpoint(self) -> Self:
        if self.checkpoint.keep_best:
            raise ValueError("checkpoint.keep_best without effect: value pretraining is evaluated only at its end; leave it out")
        return self


class RewardTraining(ValueTraining):
    """The sections of reward model training: value pretraining towards another target."""

    target: FixedOnResume[TargetConfig] = Field(
        default_factory=RewardTarget, description="What is trained; of a reward model `reward`."
    )
    labels: FixedOnResume[Literal["all", "pairs"]] = Field(
        "pairs", description="What is learned from: a reward model learns from pairs alone."
    )

    @model_validator(mode="after")
    def _validate_target(self) -> Self:
        if not isinstance(self.target, RewardTarget):
            raise ValueError(
                f"target.type = '{self.target.type}' trains a value model: leave value.target out for a reward model, or use "
                "`dvpo value train`"
            )
        return self


class PolicyTraining(Section):
    """The sections of policy training."""

    steps: int = Field(100, ge=1, description="Training steps: each generates, scores, learns and syncs once.")
    value_model: ModelFolder | None = Field(None, description="Folder of the frozen value model (holds `gvm.json`).")
    data: FixedOnResume[DataSection] = Field(description="Prompts to train on.")
    plan: PlanSettings = Field(default_factory=Shuffled, description="Which rows a step asks for.")
    rollout: RolloutSection = Field(default_factory=lambda: RolloutSection(), description="Generation.")
    environment: EnvironmentSettings | None = Field(
        None, description="What replies to the policy between its turns; without this section an answer is one turn."
    )
    scorer: ScorerSection = Field(default_factory=lambda: ScorerSection(), description="Frozen value and reference models.")
    refresh: RefreshSettings = Field(
        default_factory=Never, description="When another value model takes the place of the frozen one."
    )
    trainer: TrainerSettings = Field(default_factory=Gradient, description="How the policy learns from scored rows.")
    learner: LearnerSection = Field(default_factory=lambda: LearnerSection(), description="Learner.")
    lora: LoraSection | None = Field(
        None, description="Train low-rank adapters and leave the model as it is; without this section all of it is trained."
    )
    advantage: AlgorithmSettings = Field(default_factory=DvpoGae, description="Advantage estimator.")
    rewards: dict[RewardName, RewardSettings] = Field(
        default_factory=dict, description="Rewards beside the frozen value, each under a name of your own."
    )
    ptx: PtxSection | None = Field(
        None,
        description="Pretraining loss: cross-entropy of good answers beside the policy's loss, against forgetting; without this "
        "section there is none.",
    )
    kl: KlSection = Field(default_factory=lambda: KlSection(), description="KL control.")
    ppo: PpoUpdateSection = Field(default_factory=lambda: PpoUpdateSection(), description="Clipped update.")
    off_policy: OffPolicySection = Field(
        default_factory=lambda: OffPolicySection(), description="How far generation may run ahead of training."
    )
    health: HealthSection = Field(default_factory=lambda: HealthSection(), description="What a run warns of.")
    checkpoint: CheckpointSection = Field(
        default_factory=lambda: CheckpointSection(), description="Checkpoints, to go on after a failure."
    )
    transfer: TransferSection = Field(
        default_factory=lambda: TransferSection(), description="The way of new weights to the engines."
    )
    streaming: bool = Field(
        False,
        description="Add up gradients as answers are scored, while others are still generated, not when all are there.",
    )
    evaluation: EvaluationSection | None = Field(None, description="Held-out evaluation before and after training.")

    @property
    def longest_row(self) -> int:
        """Longest prompt and answer together that is generated, scored and trained on, in tokens."""
        return self.data.max_prompt_tokens + self.rollout.max_new_tokens

    @property
    def longest_pass(self) -> int:
        """Tokens that a micro-batch must have room for."""
        rows = 2 if self.advantage.keeps_pairs else 1
        return max(rows * self.longest_row, self.ptx.data.longest_row if self.ptx else 0)

    @property
    def trained_models(self) -> int:
        """How many models are trained, each on ``learner.ranks`` ranks: the policy, and a critic where there is one."""
        return 2 if self.advantage.online_critic else 1

    @model_validator(mode="after")
    def _validate_transfer(self) -> Self:
        self.transfer.check_gpus(self.rollout, self.learner)
        return self

    @model_validator(mode="after")
    def _validate_ptx(self) -> Self:
        if self.ptx is None:
            return self
        data, learner = self.ptx.data, self.learner
        budget = learner.token_budget
        if budget != "auto" and data.longest_row > budget:
            raise ValueError(
                f"learner.token_budget ({budget}) is smaller than the longest row allowed by ptx.data "
                f"({data.max_prompt_tokens} prompt + {data.max_answer_tokens} answer tokens = {data.longest_row}); raise the "
                "budget or lower the limits"
            )
        if self.ptx.rows_per_step < learner.ranks:
            raise ValueError(
                f"ptx.rows_per_step ({self.ptx.rows_per_step}) is smaller than learner.ranks ({learner.ranks}), so some ranks "
                "would have nothing to do: raise it"
            )
        return self

    @model_validator(mode="after")
    def _validate_checkpoint(self) -> Self:
        if self.checkpoint.keep_best:
            if not self.advantage.reads_values and not (self.evaluation and self.evaluation.gold):
                raise ValueError(
                    "checkpoint.keep_best has nothing to compare: no value model is read; set evaluation.gold, or leave it out"
                )
            evaluated = self.evaluation.every if self.evaluation else 0
            if not evaluated:
                raise ValueError(
                    "checkpoint.keep_best needs scores of steps under way: set evaluation.every, or leave keep_best out"
                )
            both = math.lcm(self.checkpoint.every, evaluated)
            if both >= self.steps:
                raise ValueError(
                    f"checkpoint.keep_best without effect: the first step both checkpointed (every {self.checkpoint.every}) and "
                    f"evaluated (every {evaluated}) would be {both}, not before the last, {self.steps}; make one a divisor "
                    "of the other"
                )
        return self

    @model_validator(mode="after")
    def _validate_sizes(self) -> Self:
        rollout = self.rollout
        longest = self.longest_row
        if longest > rollout.engine.max_model_len:
            raise ValueError(
                f"data.max_prompt_tokens ({self.data.max_prompt_tokens}) + rollout.max_new_tokens "
                f"({rollout.max_new_tokens}) = {longest} exceeds rollout.engine.max_model_len "
                f"({rollout.engine.max_model_len}); answers would be cut silently"
            )
        for name, budget in (("scorer", self.scorer.token_budget), ("learner", self.learner.token_budget)):
            if budget != "auto" and longest > budget:
                raise ValueError(f"{name}.token_budget ({budget}) is smaller than the longest row ({longest} tokens)")
        parts = self.ppo.mini_batches * self.learner.ranks
        pairs = self.advantage.keeps_pairs
        units = rollout.rows_per_step // 2 if pairs else rollout.rows_per_step
        if units < parts:
            what = "pairs of answers" if pairs else "answers"
            raise ValueError(f"a step has {units} {what}, fewer than ppo.mini_batches x learner.ranks = {parts}")
        if rollout.rows_per_step % self.ppo.mini_batches:
            raise ValueError(
                f"ppo.mini_batches ({self.ppo.mini_batches}) does not divide the {rollout.rows_per_step} answers of a step"
            )
        if not self.advantage.reads_values and not self.rewards and not (self.environment and self.environment.gives_rewards):
            what = "type = 'ppo' learns from rewards" if self.advantage.needs_rewards else "score = 'none' leaves the value out"
            raise ValueError(f"advantage.{what}: name at least one of policy.rewards, or a policy.environment that rewards")
        if self.environment and ENVIRONMENT_REWARD in self.rewards:
            raise ValueError(f"policy.rewards.{ENVIRONMENT_REWARD}: what policy.environment gives has this name; choose another")
        self.advantage.check(self)
        self.plan.check(self)
        if self.streaming:
            needed = [
                (self.advantage.online_critic is None, "an advantage.type without an online critic"),
                (not self.advantage.compares_answers, "an advantage.type that does not compare the answers of a prompt"),
                (self.ppo.inner_epochs * self.ppo.mini_batches == 1, "ppo.inner_epochs = 1 and ppo.mini_batches = 1"),
                (self.ppo.loss_normaliser == "limit", "ppo.loss_normaliser = 'limit'"),
                (self.advantage.whitening != "full", "advantage.whitening = 'scale' or 'none'"),
                (
                    self.scorer.rows_per_call < rollout.rows_per_step,
                    f"scorer.rows_per_call below the {rollout.rows_per_step} answers of a step",
                ),
            ]
            missing = [what for given, what in needed if not given]
            if missing:
                raise ValueError(f"streaming works on answers before all are known: it needs {', '.join(missing)}")
        corrects = self.off_policy.max_staleness and self.off_policy.correction != "none"
        if rollout.filters and (corrects or self.ppo.old_log_probs == "engine"):
            remedy = "off_policy.correction = 'none'" if corrects else "ppo.old_log_probs = 'learner'"
            raise ValueError(
                f"rollout.{rollout.filters[0]} makes the engine's probabilities those of what it leaves, which ratios to the "
                f"learner's would take for a difference of the weights: leave it out, or take {remedy}"
            )
        if self.off_policy.max_staleness and self.ppo.old_log_probs == "engine" and self.off_policy.correction != "none":
            raise ValueError(
                "ppo.old_log_probs = 'engine' already puts the sampling weights into the ratio, off_policy.correction would do "
                "it again: take ppo.old_log_probs = 'learner' or off_policy.correction = 'none'"
            )
        return self


def _check_patience(policy: PolicyTraining, cluster: ClusterSection) -> None:
    """A scorer that waits for a service must not be given up before the service is."""
    for name, reward in policy.rewards.items():
        if isinstance(reward, HttpReward) and reward.patience_s + reward.timeout_s >= cluster.call_timeout_s:
            raise ValueError(
                f"policy.rewards.{name}.patience_s ({reward.patience_s:g}) + timeout_s ({reward.timeout_s:g}) is not below "
                f"cluster.call_timeout_s ({cluster.call_timeout_s:g}), after which the scorer would be given up in place of "
                "the service: lower the first, or raise the last"
            )


class ValueRecipe(Recipe):
    """`dvpo value train`: preference pairs in, a frozen value model out."""

    value: ValueTraining = Field(description="Value pretraining.")


class RewardRecipe(ValueRecipe):
    """`dvpo reward train`: preference pairs in, a frozen reward model out."""

    value: RewardTraining = Field(description="Reward model training.")


class PolicyRecipe(Recipe):
    """`dvpo policy train`: prompts and a frozen value model in, an aligned policy out."""

    policy: PolicyTraining = Field(description="Policy training.")

    @model_validator(mode="after")
    def _validate_value_model(self) -> Self:
        if self.policy.value_model is None and self.policy.advantage.reads_values:
            raise ValueError("policy.value_model is missing: name the folder that `dvpo value train` wrote")
        _check_patience(self.policy, self.cluster)
        return self


class PipelineRecipe(Recipe):
    """`dvpo demo`: value pretraining, then policy training with the value model it made."""

    value: ValueTraining = Field(description="Value pretraining.")
    policy: PolicyTraining = Field(description="Policy training; its `value_model` is the one made here.")

    @model_validator(mode="after")
    def _validate_resume(self) -> Self:
        if self.run.resume not in ("never", "auto"):
            raise ValueError(
                "run.resume of both trainings together is 'auto' or 'never'; go on from a checkpoint with `dvpo policy train`"
            )
        return self

    @model_validator(mode="after")
    def _validate_value_model(self) -> Self:
        if self.policy.value_model is not None:
            raise ValueError("policy.value_model is made by this recipe's value training: leave it out")
        if isinstance(self.value.target, RewardTarget):
            raise ValueError(
                "value.target.type = 'reward' makes a reward model, which is no value model: train it by `dvpo reward train`, "
                "and name it in policy.rewards of a recipe for `dvpo policy train`"
            )
        _check_patience(self.policy, self.cluster)
        return self

    @model_validator(mode="after")
    def _validate_copies(self) -> Self:
        copies = [part.checkpoint.copy_to for part in (self.value, self.policy)]
        if copies[0] is not None and copies[0] == copies[1]:
            raise ValueError(
                f"value.checkpoint.copy_to and policy.checkpoint.copy_to are both '{copies[0]}': give each its own folder"
            )
        return self

    def value_recipe(self) -> ValueRecipe:
        """The first half, as a run of its own inside this run's folder."""
        return ValueRecipe(**self._shared("value"), value=self.value)

    def policy_recipe(self, value_model: str) -> PolicyRecipe:
        """The second half, guided by the value model in the folder ``value_model``."""
        policy = self.policy.model_copy(update={"value_model": value_model})
        return PolicyRecipe(**self._shared("policy"), policy=policy)

    def _shared(self, part: str) -> dict[str, Any]:
        sections = {name: getattr(self, name) for name in SHARED_SECTIONS}
        run = self.run.model_copy(update={"output_dir": self.run.output_dir / self.run.name, "name": part})
        return sections | {"run": run}
