"""What the service adds to its parts: each stage through its actors against the same work in a bare process, in turn.

A bare part runs in a process of its own with the same environment, threads and inputs, and nothing of Ray: vLLM alone, a
DeepSpeed loop alone, two forward passes alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import ROOT, table, write_section
from benchmarks.step_time import value_model
from dvpo_ray.config import PipelineRecipe, load_recipe
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.data import DeadLetters, load_prompts
from dvpo_ray.models.packaged import resolve_model
from dvpo_ray.rows import GenerationRequest, Ragged, ScoredBatch

ROUNDS = 6
PARTS = ("rollout", "score", "learn")
MODEL = "smollm2-135m-instruct"


def requests() -> list[GenerationRequest]:
    """The first 32 prompts of the demo."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MODEL))
    source = str(ROOT / "dvpo_ray" / "demo" / "data" / "train_prompts.jsonl.gz")
    with DeadLetters(None) as letters:
        prompts, _ = load_prompts(source, tokenizer, max_prompt_tokens=64, dead_letters=letters, limit=32)
    return [GenerationRequest(f"r{i}", tuple(p.prompt_ids), seed=i) for i, p in enumerate(prompts)]


def scored_rows() -> ScoredBatch:
    """Answers of 20 to 40 random tokens to these prompts, with random values: their cost is that of real ones."""
    random = np.random.default_rng(0)
    asked = requests()
    lengths = random.integers(20, 41, len(asked))

    def floats(extra: int = 0) -> Ragged:
        return Ragged.of([random.normal(size=n + extra) for n in lengths], np.float32)

    return ScoredBatch(
        row_ids=tuple(request.row_id for request in asked),
        prompt_ids=Ragged.of([request.prompt_ids for request in asked], np.int32),
        response_ids=Ragged.of([random.integers(5, 40_000, n) for n in lengths], np.int32),
        log_probs=floats(),
        versions=Ragged.of([np.zeros(n) for n in lengths], np.int32),
        values=floats(1),
        ref_log_probs=floats(),
        finish_reasons=tuple("stop" for _ in asked),
    )


def timed(work: Callable[[], int]) -> list[float]:
    """Tokens a second of each round; ``work`` returns its tokens. One round warms up."""
    speeds = []
    for _ in range(ROUNDS + 1):
        began = time.monotonic()
        tokens = work()
        speeds.append(tokens / (time.monotonic() - began))
    return speeds[1:]


def bare_rollout(policy: PolicyTraining) -> list[float]:
    """vLLM's AsyncLLM with the engine's own arguments."""
    from vllm.v1.engine.async_llm import AsyncLLM

    from actors.rollout import engine_arguments, sampling_params, thread_binding

    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = thread_binding(policy.rollout)
    asked = requests()

    async def measure() -> list[float]:
        engine = AsyncLLM.from_engine_args(engine_arguments(str(resolve_model(MODEL)), policy.rollout, 0))

        async def answer(request: GenerationRequest, number: int) -> int:
            prompt: Any = {"prompt_token_ids": list(request.prompt_ids)}
            parameters = sampling_params(policy.rollout, request.seed)
            outputs = [output async for output in engine.generate(prompt, parameters, f"{request.row_id}-{number}")]
            return len(outputs[-1].outputs[0].token_ids)

        speeds = []
        for number in range(ROUNDS + 1):
            began = time.monotonic()
            tokens = sum(await asyncio.gather(*(answer(request, number) for request in asked)))
            speeds.append(tokens / (time.monotonic() - began))
        engine.shutdown()
        return speeds[1:]

    return asyncio.run(measure())


def bare_score(policy: PolicyTraining) -> list[float]:
    """Forward passes of the two frozen models on the same micro-batches."""
    import torch

    from dvpo_ray.learning.batching import micro_batches, pad_sequences
    from dvpo_ray.models.token_reader import PolicyReader, ValueReader, freeze, load_policy
    from dvpo_ray.models.value_model import load_value_model

    scored = scored_rows()
    reference = freeze(PolicyReader(load_policy(resolve_model(MODEL), torch.bfloat16, "eager"), with_entropy=False))
    value = freeze(ValueReader(load_value_model(value_model(), torch.bfloat16, "eager")))
    lengths = [int(n) for n in scored.prompt_ids.lengths + scored.response_ids.lengths]
    groups = micro_batches(lengths, policy.scorer.token_budget, policy.scorer.max_padding)
    batches = [pad_sequences(scored.prompt_ids.take(g).rows(), scored.response_ids.take(g).rows()) for g in groups]

    def work() -> int:
        with torch.inference_mode():
            for batch in batches:
                reference(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
                value(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
        return scored.tokens

    return timed(work)


def bare_learn(policy: PolicyTraining) -> list[float]:
    """A DeepSpeed loop on the same micro-batches: forward, a policy-gradient loss, backward, optimizer step."""
    import torch

    from actors.deepspeed_engine import TrainingEngine, join_process_group
    from dvpo_ray.learning.batching import micro_batches, pad_sequences
    from dvpo_ray.models.token_reader import PolicyReader, load_policy

    join_process_group(0, 1, "127.0.0.1", int(os.environ["BENCHMARK_PORT"]), 0)
    scored = scored_rows()
    model = load_policy(resolve_model(MODEL), torch.bfloat16, "eager")
    engine = TrainingEngine(PolicyReader(model), policy.learner, 100).engine
    lengths = [int(n) for n in scored.prompt_ids.lengths + scored.response_ids.lengths]
    groups = micro_batches(lengths, policy.learner.token_budget, policy.learner.max_padding)
    batches = [pad_sequences(scored.prompt_ids.take(g).rows(), scored.response_ids.take(g).rows()) for g in groups]

    def work() -> int:
        for number, batch in enumerate(batches):
            log_probs, _ = engine(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
            engine.set_gradient_accumulation_boundary(is_boundary=number == len(batches) - 1)
            engine.backward(-log_probs.sum() / scored.tokens, scale_wrt_gas=False)
        engine.step()
        return scored.tokens

    return timed(work)


def through_service(policy: PolicyTraining) -> dict[str, list[float]]:
    """Tokens a second of the actors, one stage after the other on one Ray, as in a run."""
    import ray

    from actors.placement import ray_session
    from actors.pool import PolicyLearner, RolloutPool, ScorerPool
    from dvpo_ray.config.sections import ClusterSection, ModelSection

    cluster, model, folder = ClusterSection(), ModelSection(attention="eager"), str(resolve_model(MODEL))
    asked, scored = requests(), scored_rows()
    speeds: dict[str, list[float]] = {}
    with ray_session(cluster):
        rollouts = RolloutPool(folder, model, policy.rollout, cluster, 0)
        rollouts.wait_ready()
        answers: list[Any] = []

        def generate() -> int:
            answers[:] = ray.get(list(rollouts.generate(asked)))
            return sum(answer.response_ids.size for answer in answers)

        speeds["rollout"] = timed(generate)
        rollouts.stop()
        scorers = ScorerPool(folder, str(value_model()), model, policy.scorer, policy.rollout.temperature, cluster)
        scorers.wait_ready()
        given = [_answer(scored, i) for i in range(len(scored))]

        def score() -> int:
            handles = list(scorers.score(ray.put(answer) for answer in given))
            scorers.wait(handles)
            return scored.tokens

        speeds["score"] = timed(score)
        scorers.stop()
        learner = PolicyLearner(folder, model, policy, cluster, 0)
        learner.wait_ready()
        handle = ray.put(scored)
        speeds["learn"] = []
        for step in range(ROUNDS + 1):
            began = time.monotonic()
            learner.step(0, 0.0, [handle])
            if step:
                speeds["learn"].append(scored.tokens / (time.monotonic() - began))
        learner.stop()
    return speeds


def _answer(scored: ScoredBatch, i: int) -> Any:
    from dvpo_ray.rows import Answer

    ragged = (scored.prompt_ids, scored.response_ids, scored.log_probs, scored.versions)
    return Answer(scored.row_ids[i], *(part.rows()[i] for part in ragged), scored.finish_reasons[i])


def bare(part: str) -> list[float]:
    """One part in a process of its own, with the environment of its actor."""
    from actors.placement import actor_environment, engine_environment
    from actors.rank import free_port

    environment = engine_environment(0) if part == "rollout" else actor_environment(0)
    environment = os.environ | environment | {"PYTHONPATH": str(ROOT), "BENCHMARK_PORT": str(free_port())}
    command = [sys.executable, "-m", "benchmarks.overheads", "--part", part]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and write; with ``--part`` measure one bare part and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS)
    part = parser.parse_args().part
    policy = load_recipe(PipelineRecipe, "demo").policy
    if part:
        print(json.dumps({"rollout": bare_rollout, "score": bare_score, "learn": bare_learn}[part](policy)))
        return
    first = {name: bare(name) for name in PARTS}
    service = through_service(policy)
    second = {name: bare(name) for name in PARTS}
    lines = []
    for name in PARTS:
        alone = statistics.median([*first[name], *second[name]])
        with_service = statistics.median(service[name])
        lines.append([name, f"{alone:.0f}", f"{with_service:.0f}", f"{with_service / alone:.2f}"])
    body = f"32 answers of the demo's prompts, SmolLM2-135M; medians of {ROUNDS} rounds through the service, and of "
    body += f"{2 * ROUNDS} of the bare parts, half of them before and half after.\n\n"
    body += table(["stage", "bare, answer tokens/s", "service, answer tokens/s", "ratio"], lines)
    write_section("overheads", "What the service adds to its parts", "python -m benchmarks.overheads", body)
    print(body)


if __name__ == "__main__":
    main()
