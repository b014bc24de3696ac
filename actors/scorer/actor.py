"""The scorer actor: frozen value model, frozen reference model and the recipe's reward models, all read in one visit.

It is stateless: the same answers give the same scores on any replica, so it may be killed, restarted and asked again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from actors.cluster.busy import BusyClock
from actors.cluster.metrics import busy_counter, count, show, started_again
from actors.cluster.node_facts import doubt
from actors.cluster.watchdog import watched
from dvpo_ray.config.rewards import RewardConfig, model_rewards
from dvpo_ray.config.sections import ModelSection, ScorerSection, settled
from dvpo_ray.data import load_tokenizer, turn_end
from dvpo_ray.learning.batching import micro_batches, pad_sequences
from dvpo_ray.learning.score_cache import Entry, ScoreCache
from dvpo_ray.models.packaged import folder_of
from dvpo_ray.models.reader_check import frozen_reader
from dvpo_ray.models.reward_model import RewardModel
from dvpo_ray.models.token_reader import PolicyReader, ValueReader, load_policy, parameter_hash
from dvpo_ray.models.value_model import load_value_model, read_seal
from dvpo_ray.rewards.answers import Rewards
from dvpo_ray.runs.prometheus import CHECKSUM_OK, RESTARTS, SCORED_ROWS, SCORED_TOKENS
from dvpo_ray.types import Answer, Ragged, ScoredBatch


class ScorerActor:
    """Holds the frozen models; ``value_model`` None reads no values (they are 0), ``rewards`` may name models besides."""

    def __init__(
        self,
        model_folder: str,
        value_model: str | None,
        model: ModelSection,
        scorer: ScorerSection,
        temperature: float,
        rewards: Mapping[str, RewardConfig] | None = None,
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
        self._loaded = ""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def start(self) -> str:
        """Load and verify all models; returns their parameter hashes."""
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
    def parameter_hash(self) -> str:
        """sha256 of the value model's parameters (empty without one) and of each reward model's, joined by commas, as they are
        in memory now."""
        self._load()
        found = self._hashes()
        show(CHECKSUM_OK, found == self._loaded)
        return found

    @watched
    @torch.inference_mode()
    def score(self, *answers: Answer) -> ScoredBatch:
        """Frozen values q_0..q_T and reference log-probs of every answer, in the order given.

        An actor that Ray started again after its process died loads and verifies its models first: nothing else is lost,
        because scoring keeps no state.
        """
        self._load()
        with self._busy:
            scores = self._scores(answers)
            rewards = self._rewards_of(answers, [given for _, _, given in scores])
        count(SCORED_ROWS, len(answers))
        count(SCORED_TOKENS, sum(answer.response_ids.size for answer in answers))
        values, ref_log_probs, _ = zip(*scores, strict=True)
        return ScoredBatch(
            row_ids=tuple(a.row_id for a in answers),
            prompt_ids=Ragged.of([a.prompt_ids for a in answers], np.int32),
            response_ids=Ragged.of([a.response_ids for a in answers], np.int32),
            log_probs=Ragged.of([a.log_probs for a in answers], np.float32),
            versions=Ragged.of([a.versions for a in answers], np.int32),
            values=Ragged.of(values, np.float32),
            ref_log_probs=Ragged.of(ref_log_probs, np.float32),
            rewards=Ragged.of(list(rewards), np.float32),
            finish_reasons=tuple(a.finish_reason for a in answers),
        )

    def score_with_ack(self, *answers: Answer) -> tuple[ScoredBatch, bool]:
        """``score``, and that it is done: who must know does not need to fetch the batch."""
        return self.score(*answers), True

    def cache_hits(self) -> int:
        """Answers whose scores were known already."""
        return self._cache.hits if self._cache else 0

    def _scores(self, answers: Sequence[Answer]) -> list[Entry]:
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

    def _rewards_of(self, answers: Sequence[Answer], given: Sequence[np.ndarray]) -> np.ndarray:
        """Scores of each answer by the rewards of the recipe [B, number of rewards]; ``given`` are those of reward models."""
        if self._rewards is None:
            return np.zeros((len(answers), 0), dtype=np.float32)
        prompts = [self._tokenizer.decode(a.prompt_ids, skip_special_tokens=True) for a in answers]
        texts = [self._tokenizer.decode(a.response_ids, skip_special_tokens=True) for a in answers]
        columns = dict(zip(self._reward_models, np.stack(given, axis=1), strict=True))
        return self._rewards(prompts, texts, columns)

    def _load(self) -> None:
        """Load the models, unless they are there already; files of sealed ones are checked."""
        if self._reference is not None:
            return
        torch.set_num_threads(self._config.cpu_threads or os.cpu_count() or 1)
        base, value = (None if place is None else folder_of(place) for place in self._places)
        assert base is not None
        dtype = getattr(torch, self._config.dtype)
        options = (dtype, self._model.attention, self._model.trust_remote_code)
        if value is not None:
            read_seal(value)
            reader = ValueReader(load_value_model(value, *options), self._shares, self._model.packed)
            self._value = frozen_reader(reader, self._device)
        reference = PolicyReader(load_policy(base, *options), self._temperature, False, self._shares, self._model.packed)
        self._reference = frozen_reader(reference, self._device)
        if self._reward_configs:
            self._tokenizer = load_tokenizer(base, self._model.trust_remote_code, self._model.chat_template_kwargs)
            end_id = turn_end(self._tokenizer, base).end_id
            self._rewards = Rewards(self._reward_configs)
            self._reward_models = {
                name: RewardModel(name, config, self._model, dtype, self._device, end_id)
                for name, config in model_rewards(self._reward_configs).items()
            }
        self._loaded = self._hashes()
        show(CHECKSUM_OK, 1)
        self._cache = ScoreCache(self._config.cache_mib * 2**20, self._loaded)
        if started_again():
            count(RESTARTS, stage="scorer")

    def _hashes(self) -> str:
        value = parameter_hash(self._value) if self._value is not None else ""
        return ",".join([value, *(model.parameter_hash() for model in self._reward_models.values())])

    def _score_group(self, answers: Sequence[Answer]) -> list[Entry]:
        """One forward pass of each model."""
        batch = pad_sequences([a.prompt_ids for a in answers], [a.response_ids for a in answers], self._device)
        log_probs, _ = self._reference(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
        if self._value is None:
            flat = np.zeros(batch.with_prompt_end.numel(), dtype=np.float32)
        else:
            flat = self._value(batch.input_ids, batch.attention_mask, batch.with_prompt_end).cpu().numpy()
        values = Ragged(flat, batch.response_lengths + 1).rows()
        ref_log_probs = Ragged(log_probs.cpu().numpy(), batch.response_lengths).rows()
        cut_b = np.array([answer.finish_reason == "length" for answer in answers])
        given = [model(batch, cut_b) for model in self._reward_models.values()]
        by_answer = np.array(given, dtype=np.float32).reshape(len(given), len(answers)).T
        return list(zip(values, ref_log_probs, by_answer, strict=True))
