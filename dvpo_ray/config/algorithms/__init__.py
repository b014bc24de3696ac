"""Settings of the advantage estimators, value targets and KL control: unions on `type`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from dvpo_ray.config.base import FixedOnResume, ModelFolder, Section


def kind_of(default: str) -> Discriminator:
    """Chooses a union's member by its `type`, which may be left out for the default kind."""

    def tag(value: Any) -> str:
        found = value.get("type", default) if isinstance(value, dict) else getattr(value, "type", default)
        return str(found)

    return Discriminator(tag)


Whitening = Literal["full", "scale", "none"]


class _Estimator(Section):
    """What all estimators share."""

    compares_answers: ClassVar[bool] = False
    needs_rewards: ClassVar[bool] = False
    trains_critic: ClassVar[bool] = False
    # Whether a whole answer has one probability ratio and is one term of the loss, instead of each of its tokens.
    ratio_of_answers: ClassVar[bool] = False

    @property
    def reads_values(self) -> bool:
        """Whether the frozen value has a part in it."""
        return True

    @property
    def keeps_pairs(self) -> bool:
        """Whether both answers of a pair must be in one micro-batch."""
        return False

    @property
    def critic_warmup_steps(self) -> int:
        """First steps of a run in which the policy waits for its critic."""
        return 0

    whitening: Whitening = Field(
        "full",
        description="Normalise advantages over active tokens of the global batch: mean and variance, scale only, or not.",
    )


class DvpoGae(_Estimator):
    """Generalised advantage estimation over differences of the frozen value (the default)."""

    type: FixedOnResume[Literal["dvpo_gae"]] = Field("dvpo_gae", description="Selects this kind.")
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda: 0 trusts the value model most, 1 only its last value.")


class DvpoOnestep(_Estimator):
    """The one-step difference Q minus V of the frozen value."""

    type: FixedOnResume[Literal["dvpo_onestep"]] = Field("dvpo_onestep", description="Selects this kind.")


class DvpoStatic(_Estimator):
    """The paper's static advantage: the frozen Q itself plus the KL reward-to-go."""

    type: FixedOnResume[Literal["dvpo_static"]] = Field("dvpo_static", description="Selects this kind.")


class DvpoReleased(_Estimator):
    """The recursion of the authors' released code, for replication only: it gives late tokens no credit."""

    type: FixedOnResume[Literal["dvpo_released"]] = Field("dvpo_released", description="Selects this kind.")
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda.")
    whiten_values: bool = Field(True, description="Whiten each answer's values before the recursion, as the release does.")


class _AmongAnswers(_Estimator):
    """What estimators share that compare the answers of a prompt."""

    compares_answers: ClassVar[bool] = True
    whitening: Whitening = Field("none", description="As for the others; these are centred already.")
    score: Literal["last", "mean", "none"] = Field(
        "last",
        description="What of the frozen values scores a whole answer: the last, the mean over its tokens, or nothing "
        "(`policy.rewards` alone, and no value model).",
    )

    @property
    def reads_values(self) -> bool:
        """Whether the frozen value has a part in it."""
        return self.score != "none"


class Grpo(_AmongAnswers):
    """Group-relative advantages (GRPO, arXiv 2402.03300): an answer against the mean and spread of its prompt's answers."""

    type: FixedOnResume[Literal["grpo"]] = Field("grpo", description="Selects this kind.")
    normalise: Literal["std", "none"] = Field(
        "std", description="Divide scores by their standard deviation in the group, or not (Dr. GRPO, arXiv 2503.20783)."
    )


class Rloo(_AmongAnswers):
    """Leave-one-out advantages (RLOO, arXiv 2402.14740): an answer against the mean of its prompt's other answers."""

    type: FixedOnResume[Literal["rloo"]] = Field("rloo", description="Selects this kind.")


class P3o(_AmongAnswers):
    """Pairwise PPO (P3O, arXiv 2310.00212): what an answer's reward is above that of another of its prompt, and one probability
    ratio for a whole answer."""

    ratio_of_answers: ClassVar[bool] = True

    @property
    def keeps_pairs(self) -> bool:
        """The ratio of a pair can only be clipped when both answers are there."""
        return self.clip == "joint"

    type: FixedOnResume[Literal["p3o"]] = Field("p3o", description="Selects this kind.")
    clip: Literal["separate", "joint"] = Field(
        "separate", description="Clip the ratio of each answer (the paper's V1), or that of a pair (V2)."
    )
    length_normalised: bool = Field(False, description="Take the ratio of a token on average instead of the whole answer's.")


class CriticSection(Section):
    """The online critic: a second model, trained on every step's returns. Its ranks are laid out as those of `learner`."""

    initial: ModelFolder | None = Field(
        None, description="Folder of a value model or reward model to start from; none grows the critic from the model itself."
    )
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate.")
    clip_range: float = Field(
        0.0,
        ge=0,
        description="How far a value may move in an update before its loss is clipped; 0 does not clip. Of preset `max`: 0.2.",
    )
    warmup_steps: int = Field(
        0, ge=0, description="First steps of a run in which the critic alone is trained. Of preset `max`: 2."
    )


class Ppo(_Estimator):
    """Proximal policy optimisation with rewards of whole answers and an online critic (arXiv 1707.06347), the rival of DVPO."""

    needs_rewards: ClassVar[bool] = True
    trains_critic: ClassVar[bool] = True
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "plain": {"advantage": {}, "critic": {}},
        "max": {
            "advantage": {"normalise_rewards": True, "clip_rewards": 5.0},
            "critic": {"clip_range": 0.2, "warmup_steps": 2},
        },
    }

    @property
    def reads_values(self) -> bool:
        """The frozen value has no part in it."""
        return False

    @property
    def critic_warmup_steps(self) -> int:
        """As its critic's settings say."""
        return self.critic.warmup_steps

    type: FixedOnResume[Literal["ppo"]] = Field("ppo", description="Selects this kind.")
    preset: Literal["max", "plain"] = Field(
        "max",
        description="`max` switches on what PPO-max (arXiv 2307.04964) found to matter, as far as it is not set here; `plain` "
        "nothing.",
    )
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda, of advantages and of the critic's returns.")
    normalise_rewards: bool = Field(
        False, description="Rewards of whole answers less their running mean, by their running deviation. Of preset `max`: true."
    )
    clip_rewards: float = Field(
        0.0, ge=0, description="Largest size of a reward after that; 0 does not clip. Of preset `max`: 5."
    )
    critic: CriticSection = Field(default_factory=CriticSection, description="The online critic.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        preset = cls.PRESETS.get(tree.get("preset", "max"))
        if preset is None:
            return tree
        critic = tree.get("critic", {})
        return preset["advantage"] | tree | {"critic": preset["critic"] | critic if isinstance(critic, dict) else critic}


AdvantageConfig = Annotated[
    Annotated[DvpoGae, Tag("dvpo_gae")]
    | Annotated[DvpoOnestep, Tag("dvpo_onestep")]
    | Annotated[DvpoStatic, Tag("dvpo_static")]
    | Annotated[DvpoReleased, Tag("dvpo_released")]
    | Annotated[Grpo, Tag("grpo")]
    | Annotated[Rloo, Tag("rloo")]
    | Annotated[P3o, Tag("p3o")]
    | Annotated[Ppo, Tag("ppo")],
    kind_of("dvpo_gae"),
]


class FixedKl(Section):
    """A constant KL coefficient."""

    type: Literal["fixed"] = Field("fixed", description="Selects this kind.")
    coefficient: float = Field(0.02, ge=0, description="KL weight beta, per nat.")


class AdaptiveKl(Section):
    """A KL coefficient steered towards a target (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)."""

    type: Literal["adaptive"] = Field("adaptive", description="Selects this kind.")
    coefficient: float = Field(0.2, gt=0, description="Initial KL weight beta, per nat.")
    target: float = Field(6.0, gt=0, description="Wanted KL of a whole answer, in nats.")
    horizon: int = Field(10_000, ge=1, description="Answers over which the coefficient follows; larger is slower.")


KlControlConfig = Annotated[Annotated[FixedKl, Tag("fixed")] | Annotated[AdaptiveKl, Tag("adaptive")], kind_of("fixed")]


class KlSection(Section):
    """Keeping the policy near the reference model."""

    placement: Literal["reward", "loss"] = Field(
        "reward", description="Subtract beta times log-ratio from token rewards, or add beta times the k3 estimate to the loss."
    )
    control: KlControlConfig = Field(default_factory=FixedKl, description="Fixed or adaptive coefficient.")


class PpoUpdateSection(Section):
    """The clipped policy update."""

    clip_range: float = Field(0.2, gt=0, lt=1, description="PPO clip range epsilon of the probability ratio.")
    inner_epochs: int = Field(1, ge=1, description="Passes over a step's answers.")
    mini_batches: int = Field(1, ge=1, description="Optimizer steps of one pass.")
    loss_normaliser: Literal["tokens", "limit"] = Field(
        "tokens",
        description="The summed loss is divided by the answer tokens there are, or by those there could be (answers x "
        "rollout.max_new_tokens), which does not change with the answers' lengths.",
    )
    old_log_probs: Literal["learner", "engine"] = Field(
        "learner", description="Denominator of the ratio: the learner's own log-probs (starts at exactly 1) or the engine's."
    )


class OffPolicySection(Section):
    """Training on answers that older weights generated."""

    max_staleness: int = Field(
        0,
        ge=0,
        le=64,
        description="Steps by which a token's weights may be older than those being trained; generation runs so far ahead. "
        "0 is exactly on-policy.",
    )
    correction: Literal["truncated_is", "masked_is", "none"] = Field(
        "truncated_is",
        description="Loss weight of tokens of older weights: the probability ratio of trained to sampling weights, cut at "
        "`max_weight`; the same but 0 outside `1/max_weight..max_weight`; or 1.",
    )
    max_weight: float = Field(2.0, gt=1, description="Largest importance weight of a token.")
    over_limit: Literal["drop", "mask", "correct"] = Field(
        "drop",
        description="Answers with tokens older than `max_staleness`: drop them (counted), leave the old tokens out of the loss, "
        "or train on them with `correction`.",
    )

    @model_validator(mode="after")
    def _validate_correction(self) -> Self:
        if self.over_limit == "correct" and self.correction == "none":
            raise ValueError(
                "over_limit = 'correct' with correction = 'none' would train on tokens of any age as they are: "
                "choose a correction, or over_limit = 'drop' or 'mask'"
            )
        return self


class HealthSection(Section):
    """Numbers of a step that a run warns of, and ends after when they stay."""

    max_log_prob_gap: float = Field(
        0.25, gt=0, description="Mean absolute gap between engine's and learner's log-probs, in nats a token."
    )
    max_kl_per_token: float = Field(2.0, gt=0, description="Log-ratio of policy to reference, in nats a token.")
    min_entropy: float = Field(0.01, ge=0, description="Entropy of the policy, in nats a token.")
    max_cut_share: float | None = Field(
        None, ge=0, lt=1, description="Share of answers cut at `rollout.max_new_tokens`; none never warns."
    )
    stop_after: int = Field(10, ge=0, description="Steps in a row with the same warning after which a run ends; 0 never ends it.")


class TdTarget(Section):
    """TD(lambda) targets towards the answer's label (the default)."""

    type: Literal["td"] = Field("td", description="Selects this kind.")
    lam: float | Literal["auto"] = Field(
        "auto", description="Lambda of the targets; `auto` takes 0.95 for answers of up to 60 tokens on average, else 1.0."
    )


class McTarget(Section):
    """Monte Carlo targets: every position is trained on the label."""

    type: Literal["mc"] = Field("mc", description="Selects this kind.")


class BtTarget(Section):
    """TD(lambda) plus a Bradley-Terry term on the pair's mean values."""

    type: Literal["bt"] = Field("bt", description="Selects this kind.")
    lam: float | Literal["auto"] = Field("auto", description="Lambda of the TD part, as for `td`.")
    coefficient: float = Field(1.0, gt=0, description="Weight of the Bradley-Terry term.")


class RewardTarget(Section):
    """Bradley-Terry on the pair's last values alone: a reward model, whose values of unfinished answers mean nothing."""

    type: Literal["reward"] = Field("reward", description="Selects this kind.")


TargetConfig = Annotated[
    Annotated[TdTarget, Tag("td")]
    | Annotated[McTarget, Tag("mc")]
    | Annotated[BtTarget, Tag("bt")]
    | Annotated[RewardTarget, Tag("reward")],
    kind_of("td"),
]
