"""The scorer actor: frozen value model, frozen reference model and the recipe's reward models, all read in one visit.

It is stateless: the same answers give the same scores on any replica, so it may be killed, restarted and asked again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from actors.cluster.busy import BusyClock
from actors.cluster.metrics import busy_counter, count, show, started_again
from actors.cluster.node_facts import doubt
from actors.cluster.watchdog import watched
from dvpo_ray.config.environments import ENVIRONMENT_REWARD
from dvpo_ray.config.rewards import VALUE, RewardSettings, model_rewards
from dvpo_ray.config.sections import ModelSection, ScorerSection, settled
from dvpo_ray.data import load_tokenizer, turn_end
from dvpo_ray.errors import ModelError
from dvpo_ray.learning.batching import micro_batches, pad_sequences
from dvpo_ray.learning.score_cache import Entry, ScoreCache
from dvpo_ray.models.packaged import folder_of
from dvpo_ray.models.reader_check import frozen_reader
from dvpo_ray.models.reward_model import RewardModel
from dvpo_ray.models.token_reader import PolicyReader, ValueReader, load_policy, parameter_hash
from dvpo_ray.models.value_model import load_value_model, read_seal
from dvpo_ray.rewards import RewardRow, Rewards, Score
from dvpo_ray.runs.prometheus import CHECKSUM_OK, RESTARTS, SCORED_ROWS, SCORED_TOKENS
from dvpo_ray.types import Ragged, ScoredBatch, ScorerVersion, Trajectory


class ScorerActor:
    """Holds the frozen models; ``value_model`` None reads no values (they are 0), ``rewards`` may name models besides."""

    def __init__(
        self,
        model_folder: str,
        value_model: str | None,
        model: ModelSection,
        scorer: ScorerSection,
        temperature: float,
        rewards: Mapping[str, RewardSettings] | None = None,
    ) -> None:
        self._places = (model_folder, value_model)
        self._model = model
        self._config = scorer
        self._temperature = temperature
        self._reference: Any = None
        self._value: Any = None
        self._cache: ScoreCache | None = None
        self._reward_configs = rewards or {}
        self._rewards: Rewards | None = None
        self._reward_models: dict[str, RewardModel] = {}
        self._tokenizer: Any = None
        self._busy = BusyClock(busy_counter("scorer"))
        self._shares = model.share_prefix != "off"
        self._loaded: dict[str, str] = {}
        self._version: ScorerVersion | None = None
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def start(self) -> dict[str, str]:
        """Load and verify all models; returns their parameter hashes by name."""
        return self.parameter_hash()

    def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    def doubts(self) -> list[str]:
        """What speaks against this actor's settings on its node."""
        return doubt("a scorer", self._config.dtype)

    def busy_seconds(self) -> float:
        """Time since the process started in which it scored, in seconds."""
        return self._busy.seconds

    @watched
    def parameter_hash(self, version: ScorerVersion | None = None) -> dict[str, str]:
        """sha256 of the parameters as they are in memory now: of the value model (if there is one), or of a later ``version``,
        under ``value``, and of each reward model under its name.

        Raises:
            ModelError: the version's folder holds another model than was announced.
        """
        self._load(version)
        found = self._hashes()
        show(CHECKSUM_OK, found == self._loaded)
        return found

    @watched
    @torch.inference_mode()
    def score(self, version: ScorerVersion | None, *answers: Trajectory) -> ScoredBatch:
        """Frozen values q_0..q_T (of the recipe's value model, or of a later ``version``), reference log-probs and rewards of
        every answer, in the order given.

        An actor that Ray started again after its process died loads and verifies its models first: nothing else is lost,
        because scoring keeps no state.
        """
        self._load(version)
        with self._busy:
            scores = self._scores(answers)
            channels = self._rewards_of(answers, [given for _, _, given in scores])
        count(SCORED_ROWS, len(answers))
        count(SCORED_TOKENS, sum(answer.response_ids.size for answer in answers))
        values, ref_log_probs, _ = zip(*scores, strict=True)
        return ScoredBatch(
            rows=tuple(a.row for a in answers),
            group_ids=np.array([a.group_id for a in answers], dtype=np.int64),
            prompt_ids=Ragged.of([a.prompt_ids for a in answers], np.int32),
            response_ids=Ragged.of([a.response_ids for a in answers], np.int32),
            action_mask=Ragged.of([a.action_mask for a in answers], np.bool_),
            log_probs=Ragged.of([a.log_probs for a in answers], np.float32),
            versions=Ragged.of([a.versions for a in answers], np.int32),
            values=Ragged.of(values, np.float32),
            ref_log_probs=Ragged.of(ref_log_probs, np.float32),
            end_states=tuple(a.end_state for a in answers),
            channels=channels,
            scorer_version=0 if version is None else version.number,
        )

    def score_with_ack(self, version: ScorerVersion | None, *answers: Trajectory) -> tuple[ScoredBatch, bool]:
        """``score``, and that it is done: who must know does not need to fetch the batch."""
        return self.score(version, *answers), True

    def cache_hits(self) -> int:
        """Answers whose scores were known already."""
        return self._cache.hits if self._cache else 0

    def _scores(self, answers: Sequence[Trajectory]) -> list[Entry]:
        """(values, reference log-probs, scores of reward models) of every answer; each sequence is computed once."""
        assert self._cache is not None
        keys = [self._cache.key(answer) for answer in answers]
        known = {key: found for key in keys if (found := self._cache.get(key)) is not None}
        new = list({key: i for i, key in enumerate(keys) if key not in known}.values())
        lengths = [answers[i].prompt_ids.size + answers[i].response_ids.size for i in new]
        config = self._config
        budget, padding = settled(config.token_budget), settled(config.max_padding)
        for group in micro_batches(lengths, budget, padding, self._model.packed):
            rows = [new[g] for g in group]
            for i, scores in zip(rows, self._score_group([answers[i] for i in rows]), strict=True):
                known[keys[i]] = scores
                self._cache.put(keys[i], scores)
        return [known[key] for key in keys]

    def _rewards_of(self, answers: Sequence[Trajectory], given: Sequence[np.ndarray]) -> dict[str, Ragged]:
        """Rewards of each answer by name: those of the recipe, for which ``given`` are those of reward models, and an
        environment's."""
        channels = {} if self._rewards is None else self._recipe_rewards(self._rewards, answers, given)
        if any(a.rewards is not None for a in answers):
            rows = [np.zeros(0) if a.rewards is None else a.rewards for a in answers]
            channels[ENVIRONMENT_REWARD] = Ragged.of(rows, np.float32)
        return channels

    def _recipe_rewards(self, rewards: Rewards, answers: Sequence[Trajectory], given: Sequence[np.ndarray]) -> dict[str, Ragged]:
        decode = partial(self._tokenizer.decode, skip_special_tokens=True)
        rows = [
            RewardRow(
                a.row,
                decode(a.prompt_ids),
                decode(a.response_ids),
                a.response_ids,
                a.action_mask,
                a.end_state,
                a.columns,
                self._tokenizer,
            )
            for a in answers
        ]
        models: dict[str, Sequence[Score]] = {
            name: [float(score) for score in scores]
            for name, scores in zip(self._reward_models, np.stack(given, axis=1), strict=True)
        }
        return rewards(rows, models)

    def _load(self, version: ScorerVersion | None = None) -> None:
        """Load the models, unless they are there already; files of sealed ones are checked.

        Raises:
            ModelError: the version's folder holds another model than was announced.
        """
        self._load_first()
        if version == self._version:
            return
        place = self._places[1] if version is None else version.folder
        assert place is not None, "a run without a value model has no versions of it"
        # The one before is not needed any more: two need not fit.
        self._value = None
        try:
            self._value = self._value_reader(place)
        except BaseException:
            # Everything is loaded anew before anything is scored again.
            self._reference = None
            raise
        self._loaded, self._version = self._hashes(), version
        if version is not None and self._loaded[VALUE] != version.parameters_sha256:
            self._reference = self._value = None
            raise ModelError(
                f"value model {version.number} in '{version.folder}' has other parameters than were announced (sha256 "
                f"{version.parameters_sha256[:16]}...): the folder was changed, or is not the same on all nodes"
            )
        self._cache = self._new_cache()

    def _value_reader(self, place: str) -> Any:
        """A sealed value model, frozen."""
        folder = folder_of(place)
        read_seal(folder)
        model = load_value_model(folder, *self._options)
        return frozen_reader(ValueReader(model, self._shares, self._model.packed), self._device)

    @property
    def _options(self) -> tuple[Any, ...]:
        """Number type, attention, and whether code of the model's own may run."""
        return getattr(torch, self._config.dtype), self._model.attention, self._model.trust_remote_code

    def _load_first(self) -> None:
        """The models of the recipe."""
        if self._reference is not None:
            return
        torch.set_num_threads(self._config.cpu_threads or os.cpu_count() or 1)
        base = folder_of(self._places[0])
        if self._places[1] is not None:
            self._value = self._value_reader(self._places[1])
        self._version = None
        reference = PolicyReader(load_policy(base, *self._options), self._temperature, False, self._shares, self._model.packed)
        self._reference = frozen_reader(reference, self._device)
        if self._reward_configs:
            self._tokenizer = load_tokenizer(base, self._model.trust_remote_code, self._model.chat_template_kwargs)
            end_id = turn_end(self._tokenizer, base).end_id
            self._rewards = Rewards(self._reward_configs)
            self._reward_models = {
                name: RewardModel(name, config, self._model, self._options[0], self._device, end_id)
                for name, config in model_rewards(self._reward_configs).items()
            }
        self._loaded = self._hashes()
        show(CHECKSUM_OK, 1)
        self._cache = self._new_cache()
        if started_again():
            count(RESTARTS, stage="scorer")

    def _hashes(self) -> dict[str, str]:
        value = {} if self._value is None else {VALUE: parameter_hash(self._value)}
        return value | {name: model.parameter_hash() for name, model in self._reward_models.items()}

    def _new_cache(self) -> ScoreCache:
        """An empty cache of scores by the models that are loaded."""
        return ScoreCache(self._config.cache_mib * 2**20, ",".join(f"{name}={sha256}" for name, sha256 in self._loaded.items()))

    def _score_group(self, answers: Sequence[Trajectory]) -> list[Entry]:
        """One forward pass of each model."""
        batch = pad_sequences([a.prompt_ids for a in answers], [a.response_ids for a in answers], self._device)
        log_probs, _ = self._reference(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
        if self._value is None:
            flat = np.zeros(batch.with_prompt_end.numel(), dtype=np.float32)
        else:
            flat = self._value(batch.input_ids, batch.attention_mask, batch.with_prompt_end).cpu().numpy()
        values = Ragged(flat, batch.response_lengths + 1).rows()
        ref_log_probs = Ragged(log_probs.cpu().numpy(), batch.response_lengths).rows()
        cut_b = np.array([answer.end_state == "length" for answer in answers])
        given = [model(batch, cut_b) for model in self._reward_models.values()]
        by_answer = np.array(given, dtype=np.float32).reshape(len(given), len(answers)).T
        return list(zip(values, ref_log_probs, by_answer, strict=True))
