"""What every job does first: find the model, its tokenizer, and the rows it can use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from actors.node_facts import nodes_by_role
from dvpo_ray.commits import Commit
from dvpo_ray.config import Recipe
from dvpo_ray.config.algorithms import AdvantageConfig, Ppo
from dvpo_ray.config.rewards import RewardConfig, model_rewards
from dvpo_ray.config.sections import (
    DataSection,
    EvaluationSection,
    ModelSection,
    NumberType,
    PairsSection,
    PtxSection,
    SourceSection,
)
from dvpo_ray.data import (
    DeadLetters,
    EncodedDemonstration,
    EncodedPair,
    EncodedPrompt,
    LoadCounts,
    Preference,
    Reading,
    Source,
    disjoint,
    load_demonstrations,
    load_pairs,
    load_preferences,
    load_prompts,
    refuse_if_too_bad,
    split_by_prompt,
    template_hash,
    tokenizer_hash,
    turn_end,
)
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
from dvpo_ray.run_folder import DEAD_LETTERS

Row = TypeVar("Row")
Prompt = TypeVar("Prompt", bound=EncodedPrompt)
R = TypeVar("R", bound=Recipe)
Tell = Callable[[str], None]


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


def read_pairs(
    section: PairsSection, tokenizer: Any, folder: Path, tell: Tell = lambda text: None
) -> tuple[list[EncodedPair], list[EncodedPair], LoadCounts]:
    """Training pairs, held-out pairs on other prompts, and the counts of the training source; ``tell`` is told what was found."""
    return _read_apart(load_pairs, section, tokenizer, folder, tell)


def read_preferences(
    section: PairsSection,
    tokenizer: Any,
    folder: Path,
    tell: Tell = lambda text: None,
    label_scale: tuple[float, float] | None = None,
) -> tuple[list[Preference], list[Preference], LoadCounts]:
    """As ``read_pairs``, with answers that are in no pair and have labels of their own; ratings are on ``label_scale``."""
    return _read_apart(partial(load_preferences, label_scale=label_scale), section, tokenizer, folder, tell)


def _read_apart(
    load: Callable[..., tuple[list[Prompt], LoadCounts]], section: PairsSection, tokenizer: Any, folder: Path, tell: Tell
) -> tuple[list[Prompt], list[Prompt], LoadCounts]:
    """Rows to train on, held-out rows on other prompts, and the counts of the former."""
    limits: dict[str, Any] = {
        "max_prompt_tokens": section.max_prompt_tokens,
        "max_answer_tokens": section.max_answer_tokens,
        "overlong": section.overlong,
        "reading": reading_of(section),
    }
    source, apart = source_of(section), _held_out_source(section)
    with DeadLetters(folder / DEAD_LETTERS) as letters:
        rows, counts = load(source, tokenizer, dead_letters=letters, limit=section.limit, **limits)
        refuse_if_too_bad(counts, section.max_bad_share, source, folder / DEAD_LETTERS)
        tell(f"{section.source}: {counts.said('pairs')}")
        if apart is None:
            train, held_out = split_by_prompt(rows, section.validation_share, 0)
            return train, held_out, counts
        held_out, held_counts = load(apart, tokenizer, dead_letters=letters, **limits)
        refuse_if_too_bad(held_counts, section.max_bad_share, apart, folder / DEAD_LETTERS)
    disjoint(rows, held_out)
    return rows, held_out, counts


def reading_of(section: SourceSection) -> Reading:
    """How a section's rows are read."""
    return Reading(section.format, section.columns)


def source_of(section: SourceSection) -> Source:
    """What a section says of where its rows come from."""
    return Source(section.source, section.split, section.subset, section.data_dir, section.revision)


def _held_out_source(section: PairsSection) -> Source | None:
    """Where held-out pairs come from; None when a share of the others is held out."""
    if section.validation_source is not None:
        return Source(section.validation_source, section.validation_split)
    return None if section.validation_split is None else replace(source_of(section), split=section.validation_split)


def read_prompts(section: DataSection, tokenizer: Any, folder: Path, tell: Tell = lambda text: None) -> list[EncodedPrompt]:
    """Prompts to train on."""
    return _read_rows(load_prompts, section, tokenizer, folder, "prompts", tell)


def read_demonstrations(
    section: PtxSection | None, tokenizer: Any, folder: Path, tell: Tell = lambda text: None
) -> list[EncodedDemonstration]:
    """Prompts with good answers for the pretraining loss; none without one."""
    if section is None:
        return []
    data = section.data
    limits = {"max_answer_tokens": data.max_answer_tokens, "overlong": data.overlong}
    return _read_rows(load_demonstrations, data, tokenizer, folder, "demonstrations", tell, **limits)


def _read_rows(
    load: Callable[..., tuple[list[Row], LoadCounts]],
    section: DataSection,
    tokenizer: Any,
    folder: Path,
    what: str,
    tell: Tell,
    **limits: Any,
) -> list[Row]:
    """All usable rows of a source; those that are not go to the dead letters, and too many of them are refused."""
    source = source_of(section)
    with DeadLetters(folder / DEAD_LETTERS) as letters:
        rows, counts = load(
            source,
            tokenizer,
            max_prompt_tokens=section.max_prompt_tokens,
            dead_letters=letters,
            limit=section.limit,
            reading=reading_of(section),
            **limits,
        )
        refuse_if_too_bad(counts, section.max_bad_share, source, folder / DEAD_LETTERS)
        tell(f"{section.source}: {counts.said(what)}")
    return rows


def read_evaluation_prompts(
    section: EvaluationSection, data: DataSection, base: BaseModel, folder: Path, trained_on: Sequence[EncodedPrompt]
) -> list[EncodedPrompt]:
    """Held-out prompts.

    Raises:
        DataError: one is among those trained on, or the model cannot read it.
    """
    place = {name: getattr(section, name) for name in SourceSection.model_fields}
    prompts = read_prompts(data.model_copy(update=place | {"limit": section.max_prompts}), base.tokenizer, folder)
    base.limits.check_rows(prompts, section.source)
    disjoint(trained_on, prompts)
    return prompts
