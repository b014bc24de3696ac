"""Evaluation: pair accuracy of a value model, and gold, KL and length of a policy's held-out answers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.rollout.pool import RolloutPool
from actors.scorer.pool import ScorerPool
from dvpo_ray.config import PolicyRecipe, dump_resolved
from dvpo_ray.config.loading import CONFIG
from dvpo_ray.config.sections import MAX_BAD_SHARE
from dvpo_ray.data import DeadLetters, Reading, Source, load_pairs, load_tokenizer, refuse_if_too_bad
from dvpo_ray.data.loading import AS_FOUND, Overlong
from dvpo_ray.errors import ConfigError
from dvpo_ray.evaluation.best_of import best_of_curve, check_choosable
from dvpo_ray.evaluation.held_out import Evaluation, Evaluator
from dvpo_ray.io.disk import write_text
from dvpo_ray.learning.batching import micro_batches, pad_sequences
from dvpo_ray.learning.value_update import pair_accuracy, pair_wins
from dvpo_ray.maths.statistics import share_ci95
from dvpo_ray.models.folder import check_model_folder
from dvpo_ray.models.packaged import locate
from dvpo_ray.models.reader_check import frozen_reader
from dvpo_ray.models.token_reader import ValueReader
from dvpo_ray.models.value_model import load_value_model, read_seal
from dvpo_ray.planning.device_defaults import number_types
from dvpo_ray.planning.node_facts import measure_node
from dvpo_ray.report.frontier import draw_best_of
from dvpo_ray.runs.run import LOGS, NUMBER_TYPES, RESULT, Event, Listener, prepare_folder, write_json
from dvpo_ray.types import Ragged
from jobs.inputs import read_evaluation_prompts, read_policy_rows
from jobs.models import base_model, settle_devices, trained_from, verified_value_model
from jobs.preflight import check_engines
from jobs.session import job, running_actors

TOKEN_BUDGET = 8192


def evaluate_value(
    folder: Path,
    data: str | Source,
    max_prompt_tokens: int,
    max_answer_tokens: int,
    max_bad_share: float = MAX_BAD_SHARE,
    dead_letters: Path | None = None,
    reading: Reading = AS_FOUND,
) -> dict[str, Any]:
    """Pair accuracy of a sealed value model by every aggregate, with 95% intervals for mean and last value. Rows that cannot
    be used go to the file ``dead_letters``.

    Raises:
        DataError: more than ``max_bad_share`` of the rows cannot be used.
        ModelError: the model is not sealed, or altered.
    """
    place = locate(str(folder), field="the value model")
    record = read_seal(place.folder)
    found = rank_pairs(
        place.folder,
        data,
        max_prompt_tokens,
        max_answer_tokens,
        max_bad_share=max_bad_share,
        dead_letters=dead_letters,
        reading=reading,
        chat_template_kwargs=record.chat_template_kwargs,
    )
    return found | {"value_model": str(folder if place.hub is None else place)}


def rank_pairs(
    folder: Path,
    data: str | Source,
    max_prompt_tokens: int,
    max_answer_tokens: int,
    overlong: Overlong = "reject",
    critic: bool = False,
    max_bad_share: float = 1.0,
    dead_letters: Path | None = None,
    reading: Reading = AS_FOUND,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """As ``evaluate_value``, of any model that gives tokens values.

    PPO trains the ``critic`` of a run at the state before each token and never at the end: its values are q_0..q_{T-1}, the last
    that of the state before the last token.
    """
    tokenizer = load_tokenizer(folder, arguments=chat_template_kwargs)
    with DeadLetters(dead_letters) as letters:
        pairs, counts = load_pairs(
            data,
            tokenizer,
            max_prompt_tokens=max_prompt_tokens,
            max_answer_tokens=max_answer_tokens,
            dead_letters=letters,
            overlong=overlong,
            reading=reading,
        )
    refuse_if_too_bad(counts, max_bad_share, data, dead_letters)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if measure_node().multiplies_bfloat16 else torch.float32
    reader = frozen_reader(ValueReader(load_value_model(folder, dtype, "sdpa")), device)
    prompts = [np.asarray(p.prompt_ids) for p in pairs for _ in range(2)]
    answers = [np.asarray(ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]
    values = _values(reader, prompts, answers, device)
    if critic:
        # The first of T + 1 is left out wherever pairs are ranked.
        values = [np.concatenate([q[:1], q[:-1]]) for q in values]
    chosen, rejected = values[0::2], values[1::2]
    keys = [pair.kin for pair in pairs]
    return {
        "value_model": str(folder),
        "pairs": len(pairs),
        "rows": {"read": counts.read, "kept": counts.kept, "rejected": counts.rejected},
        "accuracy": pair_accuracy(chosen, rejected),
        "accuracy_mean_ci95": share_ci95(pair_wins(chosen, rejected, "mean"), keys),
        "accuracy_last_ci95": share_ci95(pair_wins(chosen, rejected, "last"), keys),
    }


def evaluate_policy(recipe: PolicyRecipe, policy: Path | None, listener: Listener = lambda event: None) -> dict[str, Any]:
    """Answer the recipe's held-out prompts with a policy; KL is against its model. Writes to ``run.name`` + ``-eval``."""
    value_model = recipe.policy.value_model if recipe.policy.advantage.reads_values else None
    folder, evaluation, facts = _answer_held_out(recipe, policy, value_model, "eval", listener)
    result = {"policy": facts["policy"], **evaluation.summary(), **facts}
    write_json(folder / RESULT, result)
    return result


def best_of(
    recipe: PolicyRecipe,
    policy: Path | None,
    counts: Sequence[int],
    samples: int,
    listener: Listener = lambda event: None,
) -> dict[str, Any]:
    """What choosing the best of n answers gives, for each n of ``counts``, from ``samples`` answers to each held-out prompt.

    Writes to ``run.name`` + ``-best-of``.

    Raises:
        ConfigError: an n is larger than ``samples``, or there is nothing to choose by.
    """
    if max(counts) > samples:
        raise ConfigError(f"--samples {samples} are fewer than the largest --n, {max(counts)}: take at least as many")
    section, value_model = recipe.policy.evaluation, recipe.policy.value_model
    check_choosable(section.gold if section else None, value_model)
    if section is not None:
        section = section.model_copy(update={"answers_per_prompt": samples})
    recipe = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"evaluation": section})})
    # The value chooses answers here, whether the recipe's estimator reads it or not.
    folder, evaluation, facts = _answer_held_out(recipe, policy, value_model, "best-of", listener)
    curve = best_of_curve(evaluation, counts, with_value=value_model is not None)
    chart = folder / "best_of.svg"
    write_text(chart, draw_best_of(curve))
    result = {"model": facts["policy"], "samples": samples, "seconds": facts["seconds_total"], "seed": facts["seed"]}
    result |= {"curve": curve, "chart": str(chart.resolve())}
    write_json(folder / RESULT, result)
    return result


def _answer_held_out(
    recipe: PolicyRecipe, policy: Path | None, value_model: str | None, suffix: str, listener: Listener
) -> tuple[Path, Evaluation, dict[str, Any]]:
    """Start engines and scorers, answer the recipe's held-out prompts; returns the run's folder, the answers, and facts."""
    section = recipe.policy.evaluation
    if section is None:
        raise ConfigError("the recipe has no [policy.evaluation] section: say which prompts to answer")
    began = time.time()
    answering = (
        None if policy is None else locate(str(policy), field="--policy", tell=lambda text: listener(Event("phase", text)))
    )
    # KL is measured against what the policy was trained from.
    kept = {} if answering is None else trained_from(check_model_folder(answering.folder))
    base = base_model(recipe.model, listener, kept)
    recipe, chosen = settle_devices(recipe, base)
    listener(Event("phase", chosen.text))
    value_folder = verified_value_model(value_model, base)[0] if value_model else None
    place = answering or base.place
    model = str(place)
    check_engines(recipe, place.folder, listener, trains=False)
    run = recipe.run.model_copy(update={"name": f"{recipe.run.name}-{suffix}"})
    folder = prepare_folder(recipe.model_copy(update={"run": run}))
    write_text(folder / CONFIG, dump_resolved(recipe))
    prompts_trained_on, demonstrations = read_policy_rows(recipe.policy, base, folder)
    trained_on = [*prompts_trained_on, *demonstrations]
    prompts = read_evaluation_prompts(section, recipe.policy.data, base, folder, trained_on)
    evaluator = Evaluator(
        prompts,
        section.answers_per_prompt,
        section.gold,
        recipe.policy.advantage,
        base.tokenizer,
        recipe.run.seed,
        recipe.policy.environment,
    )
    rollout = recipe.policy.rollout

    with job(listener) as stop, running_actors(recipe.cluster, folder / LOGS, stop) as started:
        listener(Event("phase", f"starting the engine on {model}"))
        started.append(rollouts := RolloutPool(model, recipe.model, rollout, recipe.cluster, recipe.run.seed))
        rollouts.settle_on_gpus()
        scorers = ScorerPool(
            str(base.place), value_folder, recipe.model, recipe.policy.scorer, rollout.temperature, recipe.cluster
        )
        started.append(scorers)
        scorers.wait_ready()
        rollouts.wait_ready()
        listener(Event("phase", f"answering {len(prompts)} prompts"))
        evaluation = evaluator.run(0, rollouts, scorers)
    lines = "".join(json.dumps(row) + "\n" for row in evaluation.rows())
    write_text(folder / "evaluations.jsonl", lines)
    facts = {"policy": model, "seconds_total": time.time() - began, "seed": recipe.run.seed}
    return folder, evaluation, facts | {NUMBER_TYPES: number_types(recipe)}


def _values(reader: ValueReader, prompts: list[np.ndarray], answers: list[np.ndarray], device: str) -> list[np.ndarray]:
    found: list[np.ndarray] = [np.empty(0)] * len(prompts)
    lengths = [p.size + a.size for p, a in zip(prompts, answers, strict=True)]
    for group in micro_batches(lengths, max(TOKEN_BUDGET, *lengths)):
        batch = pad_sequences([prompts[i] for i in group], [answers[i] for i in group], device)
        with torch.inference_mode():
            flat = reader(batch.input_ids, batch.attention_mask, batch.with_prompt_end).cpu().numpy()
        for i, q in zip(group, Ragged(flat, batch.response_lengths + 1).rows(), strict=True):
            found[i] = q
    return found
