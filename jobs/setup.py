"""What every job does first: find the models it needs, and decide what its recipe leaves to the devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from actors.node_facts import nodes_by_role
from dvpo_ray.commits import Commit
from dvpo_ray.config import Recipe
from dvpo_ray.config.algorithms import AdvantageConfig, Ppo
from dvpo_ray.config.rewards import RewardConfig, model_rewards
from dvpo_ray.config.sections import ModelSection, NumberType
from dvpo_ray.data import template_hash, tokenizer_hash, turn_end
from dvpo_ray.errors import ModelError
from dvpo_ray.models.folder import check_savable
from dvpo_ray.models.limits import Limits
from dvpo_ray.models.loading import check_tensors, model_config
from dvpo_ray.models.packaged import resolve_model
from dvpo_ray.models.reward_model import read_reward_seal
from dvpo_ray.models.value_model import ValueModelSeal, check_fits, read_seal, refuse_reward_model
from dvpo_ray.planning.device_defaults import Choices, settle
from dvpo_ray.planning.preflight import parameters_in
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.run import NUMBER_TYPES

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class BaseModel:
    """A verified model folder, its tokenizer, and what the model can read."""

    name: str
    folder: Path
    tokenizer: Any
    limits: Limits

    @property
    def commit_bytes(self) -> float:
        """What a commit of all its parameters takes, at least: float32 weights and two moments of each."""
        return 12 * parameters_in(self.folder)


def base_model(section: ModelSection) -> BaseModel:
    """Find, verify and (once) convert the model that a recipe names.

    Raises:
        ModelError: the folder cannot be used, is not whole or could not be saved again, its tokenizer is not the model's, or it
            does not say how the model ends its turns.
    """
    from transformers import AutoTokenizer

    folder = resolve_model(section.path).resolve()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=section.trust_remote_code)
    turn_end(tokenizer, folder)
    config = model_config(folder, section.trust_remote_code)
    limits = Limits.of(config)
    limits.check_tokenizer(tokenizer, folder)
    check_tensors(folder, config)
    check_savable(folder, config, tokenizer)
    if isinstance(tokenizer.chat_template, dict):
        # Named templates: conversations are encoded with this one.
        tokenizer.chat_template = tokenizer.get_chat_template()
    return BaseModel(section.path, folder, tokenizer, limits)


def settle_devices(recipe: R, base: BaseModel, commit: Commit | None = None) -> tuple[R, Choices]:
    """The recipe with all that it leaves to the devices decided, once and for all its actors: before any of them starts, from
    the nodes that each role may be placed on. A run that goes on keeps the number types it began with.

    Raises:
        RunError: the cluster cannot be reached.
    """
    kept = commit.part(NUMBER_TYPES, dict[str, NumberType]) if commit is not None and NUMBER_TYPES in commit.state else None
    return settle(recipe, nodes_by_role(recipe.cluster), ModelShape.if_known(base.folder), kept)


def fitting_value_model(folder: str, base: BaseModel) -> tuple[Path, ValueModelSeal]:
    """The folder and seal of the value model that a policy recipe names, verified.

    Raises:
        ModelError: it is altered, made for another tokenizer or chat template, or a reward model.
    """
    path = Path(folder).resolve()
    record = read_seal(path)
    remedy = "name a folder of `dvpo value train`; a reward model goes into [policy.rewards.NAME] with type = 'model'"
    refuse_reward_model(record, "policy.value_model", folder, remedy)
    _check_fits(record, base, path)
    return path, record


def fitting_rewards(rewards: Mapping[str, RewardConfig], base: BaseModel) -> dict[str, RewardConfig]:
    """A policy recipe's rewards; models among them are verified, and their folders named in full, as actors need them.

    Raises:
        ModelError: one is altered or made for another tokenizer or chat template, or a reward model's values were to be averaged.
    """
    found = dict(rewards)
    for name, config in model_rewards(rewards).items():
        folder = Path(config.folder).resolve()
        _check_fits(read_reward_seal(name, config), base, folder)
        found[name] = config.model_copy(update={"folder": str(folder)})
    return found


def fitting_advantage(advantage: AdvantageConfig, base: BaseModel) -> AdvantageConfig:
    """A policy recipe's estimator; the model that its critic starts from is verified, and its folder named in full.

    Raises:
        ModelError: that model is altered or made for another tokenizer or chat template.
    """
    if not isinstance(advantage, Ppo) or advantage.critic.initial is None:
        return advantage
    folder = Path(advantage.critic.initial).resolve()
    try:
        _check_fits(read_seal(folder), base, folder)
    except ModelError as error:
        raise ModelError(f"policy.advantage.critic.initial: {error}") from error
    return advantage.model_copy(update={"critic": advantage.critic.model_copy(update={"initial": str(folder)})})


def _check_fits(record: ValueModelSeal, base: BaseModel, folder: Path) -> None:
    check_fits(record, tokenizer_hash(base.tokenizer), template_hash(base.tokenizer), folder)
