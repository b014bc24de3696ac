"""What every job does first: find its models, and verify that they fit each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from actors.cluster.node_facts import nodes_by_role
from dvpo_ray.checkpoints.store import Checkpoint
from dvpo_ray.config import PolicyRecipe, Recipe
from dvpo_ray.config.algorithms import AlgorithmSettings
from dvpo_ray.config.rewards import RewardSettings, model_rewards
from dvpo_ray.config.sections import ModelSection, NumberType
from dvpo_ray.data import arguments_of, ignored_arguments, load_tokenizer, template_hash, tokenizer_hash, turn_end
from dvpo_ray.errors import ConfigError, ModelError
from dvpo_ray.io.json_files import read_object
from dvpo_ray.models.folder import MANIFEST, check_model_folder, check_savable
from dvpo_ray.models.limits import Limits
from dvpo_ray.models.loading import check_tensors, model_config
from dvpo_ray.models.packaged import MODEL_PATH, NOTHING, ModelPlace, locate
from dvpo_ray.models.reward_model import read_reward_seal
from dvpo_ray.models.value_model import ValueModelSeal, check_fits, read_seal, refuse_reward_model
from dvpo_ray.planning.device_defaults import Choices, settle
from dvpo_ray.planning.preflight import parameters_in
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.runs.run import NUMBER_TYPES, Event, Listener

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class BaseModel:
    """A verified model, its tokenizer, and what it can read.

    ``section`` is the recipe's, with the commit of a model of the Hub in it; ``kept`` has models of the Hub at the commits
    (``org/name@COMMIT``) that an earlier run had, by the settings that named them.
    """

    place: ModelPlace
    section: ModelSection
    tokenizer: Any
    limits: Limits
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the recipe names it."""
        return self.section.path

    @property
    def folder(self) -> Path:
        """Where it is on this machine."""
        return self.place.folder

    @property
    def origin(self) -> dict[str, Any]:
        """What is recorded of it with all that is made of it."""
        given = self.section.chat_template_kwargs
        return {"base_model": self.name, "base_revision": self.place.revision} | (
            {"chat_template_kwargs": given} if given else {}
        )

    @property
    def checkpoint_bytes(self) -> float:
        """What a checkpoint of all its parameters takes, at least: float32 weights and two moments of each."""
        return 12 * parameters_in(self.folder)


def base_model(section: ModelSection, listener: Listener = lambda event: None, kept: Mapping[str, str] = NOTHING) -> BaseModel:
    """Find, verify, and (once) pull or convert the model that a recipe names; ``kept`` as in ``BaseModel``.

    Raises:
        ModelError: it cannot be found or used, is not whole or could not be saved again, its tokenizer is not the model's, or it
            does not say how the model ends its turns.
    """
    place = locate(section.path, section.revision, kept=kept, tell=_phases(listener))
    folder = check_model_folder(place.folder)
    tokenizer = load_tokenizer(folder, section.trust_remote_code, section.chat_template_kwargs)
    turn_end(tokenizer, folder)
    config = model_config(folder, section.trust_remote_code)
    limits = Limits.of(config)
    limits.check_tokenizer(tokenizer, folder)
    check_tensors(folder, config)
    check_savable(folder, config, tokenizer)
    if isinstance(tokenizer.chat_template, dict):
        # Named templates: conversations are encoded with this one.
        tokenizer.chat_template = tokenizer.get_chat_template()
    for name in ignored_arguments(tokenizer):
        text = f"model.chat_template_kwargs.{name}: the model's chat template writes the same without it; is the name right?"
        listener(Event("warning", text))
    if place.hub is not None:
        section = section.model_copy(update={"path": place.hub.name, "revision": place.revision})
    return BaseModel(place, section, tokenizer, limits, kept)


def with_model(recipe: R, base: BaseModel) -> R:
    """The recipe with its model as it was found: one of the Hub at its commit.

    Raises:
        ConfigError: the run had another commit of it.
    """
    before = base.kept.get(MODEL_PATH, str(base.place))
    if before.rpartition("@")[0] == base.name and before != str(base.place):
        raise ConfigError(
            f"cannot go on with this run: its model was {before} of the Hub, and is now {base.place}: leave model.revision out, "
            "and no folder of that name here; or start anew, with run.resume = 'never' and run.overwrite = true"
        )
    return recipe.model_copy(update={"model": base.section})


def trained_from(policy: Path) -> dict[str, str]:
    """As ``BaseModel.kept``, the model of the Hub that a policy in a verified folder was trained from; empty for other folders.

    Raises:
        DataError: its manifest cannot be read.
    """
    manifest = read_object(policy / MANIFEST) if (policy / MANIFEST).is_file() else {}
    name, revision = manifest.get("base_model"), manifest.get("base_revision")
    return {MODEL_PATH: f"{name}@{revision}"} if revision else {}


def settle_devices(recipe: R, base: BaseModel, checkpoint: Checkpoint | None = None) -> tuple[R, Choices]:
    """The recipe with all that it leaves to the devices decided, once and for all its actors: before any of them starts, from
    the nodes that each role may be placed on. A run that goes on keeps the number types it began with.

    Raises:
        RunError: the cluster cannot be reached.
    """
    kept = (
        checkpoint.part(NUMBER_TYPES, dict[str, NumberType])
        if checkpoint is not None and NUMBER_TYPES in checkpoint.state
        else None
    )
    recipe = recipe.model_copy(update={"model": base.section}) if checkpoint is None else with_model(recipe, base)
    return settle(recipe, nodes_by_role(recipe.cluster), ModelShape.if_known(base.folder), kept)


def verified_value_model(folder: str, base: BaseModel, listener: Listener = lambda event: None) -> tuple[str, ValueModelSeal]:
    """The place and seal of the value model that a policy recipe names, verified.

    Raises:
        ModelError: it is altered, made for another tokenizer or chat template, or a reward model.
    """
    place = locate(folder, field="policy.value_model", kept=base.kept, tell=_phases(listener))
    record = read_seal(place.folder)
    remedy = "name a folder of `dvpo value train`; a reward model goes into [policy.rewards.NAME] with type = 'model'"
    refuse_reward_model(record, "policy.value_model", folder, remedy)
    _check_fits(record, base, place)
    return str(place), record


def verified_rewards(
    rewards: Mapping[str, RewardSettings], base: BaseModel, listener: Listener = lambda event: None
) -> dict[str, RewardSettings]:
    """A policy recipe's rewards; models among them are verified, and their folders named in full, as actors need them.

    Raises:
        ModelError: one is altered or made for another tokenizer or chat template, or a reward model's values were to be averaged.
    """
    found = dict(rewards)
    for name, config in model_rewards(rewards).items():
        place = locate(config.folder, field=f"policy.rewards.{name}.folder", kept=base.kept, tell=_phases(listener))
        _check_fits(read_reward_seal(name, config, place.folder), base, place)
        found[name] = config.model_copy(update={"folder": str(place)})
    return found


def verified_advantage(
    advantage: AlgorithmSettings, base: BaseModel, listener: Listener = lambda event: None
) -> AlgorithmSettings:
    """A policy recipe's estimator; the model that its critic starts from is verified, and its folder named in full.

    Raises:
        ModelError: that model is altered or made for another tokenizer or chat template.
    """
    critic = None if advantage.online_critic is None else advantage.online_critic.section
    if critic is None or critic.initial is None:
        return advantage
    setting = "policy.advantage.critic.initial"
    place = locate(critic.initial, field=setting, kept=base.kept, tell=_phases(listener))
    try:
        _check_fits(read_seal(place.folder), base, place)
    except ModelError as error:
        raise ModelError(f"{setting}: {error}") from error
    return advantage.model_copy(update={"critic": critic.model_copy(update={"initial": str(place)})})


def verified_models(recipe: PolicyRecipe, base: BaseModel, listener: Listener) -> tuple[PolicyRecipe, ValueModelSeal | None]:
    """A policy recipe whose models are verified and named as actors find them, and the seal of the value model that it reads.

    Raises:
        ModelError: as the three above.
    """
    policy = recipe.policy
    found: dict[str, Any] = {
        "advantage": verified_advantage(policy.advantage, base, listener),
        "rewards": verified_rewards(policy.rewards, base, listener),
    }
    record = None
    if policy.value_model is not None and policy.advantage.reads_values:
        found["value_model"], record = verified_value_model(policy.value_model, base, listener)
        if record.base_model == base.name and (record.base_revision or base.place.revision) != base.place.revision:
            listener(
                Event(
                    "warning",
                    f"the value model was grown from commit {record.base_revision} of '{base.name}', the policy starts from "
                    f"{base.place.revision}: set model.revision to have both from one",
                )
            )
    return recipe.model_copy(update={"policy": policy.model_copy(update=found)}), record


def _phases(listener: Listener) -> Callable[[str], None]:
    """Tells texts as phases."""
    return lambda text: listener(Event("phase", text))


def _check_fits(record: ValueModelSeal, base: BaseModel, place: ModelPlace) -> None:
    tokenizer = base.tokenizer
    check_fits(record, tokenizer_hash(tokenizer), template_hash(tokenizer), str(place), arguments_of(tokenizer))
