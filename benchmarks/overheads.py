"""What the service adds to its parts: each stage through its actors against the same work in a bare process, in turn.

A bare part runs in a process of its own with the same environment, threads and inputs, and nothing of Ray: vLLM alone, a
DeepSpeed loop alone, two forward passes alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import ray

from actors.cluster.session import actor_environment, engine_environment, ray_session
from actors.learner.policy_gang import PolicyLearner
from actors.learner.rank import free_port
from actors.rollout.pool import RolloutPool
from actors.scorer.pool import ScorerPool
from benchmarks.common import ROOT, demo_recipe, table, write_section
from benchmarks.step_time import value_model
from dvpo_ray.config.backends import DeepSpeedSettings
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import ClusterSection, ModelSection, settled
from dvpo_ray.data import DeadLetters, load_prompts
from dvpo_ray.models.packaged import resolve_model
from dvpo_ray.types import Ragged, RolloutRequest, RowId, ScoredBatch, Trajectory

ROUNDS, WARM_UP = 10, 2
# Tokens of the demo's held-out answers before training: 32 quantiles of 126.
LENGTHS = (13, 16, 17, 18, 20, 21, 22, 23, 25, 27, 29, 30, 30, 32, 34, 35, 35, 36, 37, *[40] * 13)
READY = "ready"
PARTS = ("rollout", "score", "learn")
MODEL = "smollm2-135m-instruct"
CLUSTER, ATTENTION = ClusterSection(), ModelSection(attention="eager")


def requests() -> list[RolloutRequest]:
    """The first 32 prompts of the demo."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MODEL))
    source = str(ROOT / "dvpo_ray" / "demo" / "data" / "train_prompts.jsonl.gz")
    with DeadLetters(None) as letters:
        prompts, _ = load_prompts(source, tokenizer, max_prompt_tokens=64, dead_letters=letters, limit=32)
    return [RolloutRequest(RowId(0, i, p.row_id, 0), tuple(p.prompt_ids), seed=i) for i, p in enumerate(prompts)]


def scored_rows() -> ScoredBatch:
    """Answers of random tokens to these prompts, as long as real ones, with random values: their cost is that of real ones.

    With lengths that differ less, micro-batches hold less padding, and prompts weigh less beside answers.
    """
    random = np.random.default_rng(0)
    asked = requests()
    lengths = np.array(LENGTHS)

    def floats(extra: int = 0) -> Ragged:
        return Ragged.of([random.normal(size=n + extra) for n in lengths], np.float32)

    return ScoredBatch(
        rows=tuple(request.row for request in asked),
        group_ids=np.arange(len(asked)),
        prompt_ids=Ragged.of([request.prompt_ids for request in asked], np.int32),
        response_ids=Ragged.of([random.integers(5, 40_000, n) for n in lengths], np.int32),
        log_probs=floats(),
        versions=Ragged.of([np.zeros(n) for n in lengths], np.int32),
        values=floats(1),
        ref_log_probs=floats(),
        action_mask=Ragged.of([np.ones(n) for n in lengths], np.bool_),
        end_states=tuple("stop" for _ in asked),
    )


Work = Callable[[], int]


def speed(work: Work) -> float:
    """Tokens a second of one round; ``work`` returns its tokens."""
    began = time.monotonic()
    return work() / (time.monotonic() - began)


@contextmanager
def bare_rollout(policy: PolicyTraining) -> Iterator[Work]:
    """vLLM's AsyncLLM with the engine's own arguments."""
    from vllm.v1.engine.async_llm import AsyncLLM

    from actors.rollout.actor import engine_arguments, sampling_params, thread_binding
    from actors.rollout.leftovers import clear, keep_sockets_together, traces_of_children

    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = thread_binding(policy.rollout)
    keep_sockets_together()
    asked = requests()

    async def answer(engine: Any, request: RolloutRequest, number: int) -> int:
        prompt: Any = {"prompt_token_ids": list(request.prompt_ids)}
        parameters = sampling_params(policy.rollout, request.seed)
        outputs = [output async for output in engine.generate(prompt, parameters, f"{request.row}-{number}")]
        return len(outputs[-1].outputs[0].token_ids)

    async def answers(engine: Any, number: int) -> int:
        return sum(await asyncio.gather(*(answer(engine, request, number) for request in asked)))

    async def start() -> Any:
        return AsyncLLM.from_engine_args(engine_arguments(str(resolve_model(MODEL)), policy.rollout, 0))

    with asyncio.Runner() as loop:
        engine, numbers = loop.run(start()), count()
        yield lambda: loop.run(answers(engine, next(numbers)))
        traces = traces_of_children()
        engine.shutdown()
        clear(traces)


@contextmanager
def bare_score(policy: PolicyTraining) -> Iterator[Work]:
    """Forward passes of the two frozen models on the same micro-batches."""
    import torch

    from dvpo_ray.learning.batching import micro_batches, pad_sequences
    from dvpo_ray.models.token_reader import PolicyReader, ValueReader, freeze, load_policy
    from dvpo_ray.models.value_model import load_value_model

    scored = scored_rows()
    reference = freeze(PolicyReader(load_policy(resolve_model(MODEL), torch.bfloat16, "eager"), with_entropy=False))
    value = freeze(ValueReader(load_value_model(value_model(), torch.bfloat16, "eager")))
    lengths = [int(n) for n in scored.prompt_ids.lengths + scored.response_ids.lengths]
    groups = micro_batches(lengths, settled(policy.scorer.token_budget), settled(policy.scorer.max_padding))
    batches = [pad_sequences(scored.prompt_ids.take(g).rows(), scored.response_ids.take(g).rows()) for g in groups]

    def work() -> int:
        with torch.inference_mode():
            for batch in batches:
                reference(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
                value(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
        return scored.tokens

    yield work


@contextmanager
def bare_learn(policy: PolicyTraining) -> Iterator[Work]:
    """A DeepSpeed loop on the same micro-batches: forward, a policy-gradient loss, backward, optimizer step."""
    import torch

    from actors.learner.collectives import join_process_group
    from actors.learner.deepspeed.engine import DeepSpeedBackend
    from dvpo_ray.learning.batching import micro_batches, pad_sequences
    from dvpo_ray.models.token_reader import PolicyReader, load_policy

    join_process_group(0, 1, "127.0.0.1", int(os.environ["BENCHMARK_PORT"]), 0)
    scored = scored_rows()
    model = load_policy(resolve_model(MODEL), torch.bfloat16, "eager")
    engine = DeepSpeedBackend(DeepSpeedSettings(), PolicyReader(model), policy.learner, 100).engine
    lengths = [int(n) for n in scored.prompt_ids.lengths + scored.response_ids.lengths]
    groups = micro_batches(lengths, settled(policy.learner.token_budget), settled(policy.learner.max_padding))
    batches = [pad_sequences(scored.prompt_ids.take(g).rows(), scored.response_ids.take(g).rows()) for g in groups]

    def work() -> int:
        for number, batch in enumerate(batches):
            log_probs, _ = engine(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
            engine.set_gradient_accumulation_boundary(is_boundary=number == len(batches) - 1)
            engine.backward(-log_probs.sum() / scored.tokens, scale_wrt_gas=False)
        engine.step()
        return scored.tokens

    yield work


@contextmanager
def served_rollout(policy: PolicyTraining) -> Iterator[Work]:
    """Generation through the rollout actor."""
    asked = requests()
    pool = RolloutPool(str(resolve_model(MODEL)), ATTENTION, policy.rollout, CLUSTER, 0)
    pool.wait_ready()
    yield lambda: sum(answer.response_ids.size for answer in ray.get(list(pool.generate(asked))))
    pool.stop()


@contextmanager
def served_score(policy: PolicyTraining) -> Iterator[Work]:
    """Scoring through the scorer actor, answers in the object store."""
    scored = scored_rows()
    given = answers_of(scored)
    pool = ScorerPool(
        str(resolve_model(MODEL)), str(value_model()), ATTENTION, policy.scorer, policy.rollout.temperature, CLUSTER
    )
    pool.wait_ready()

    def work() -> int:
        pool.wait(list(pool.score(ray.put(answer) for answer in given)))
        return scored.tokens

    yield work
    pool.stop()


@contextmanager
def served_learn(policy: PolicyTraining) -> Iterator[Work]:
    """Training through the learner actor."""
    scored = scored_rows()
    learner = PolicyLearner(str(resolve_model(MODEL)), ATTENTION, policy, CLUSTER, 0)
    learner.wait_ready()
    handle = ray.put(scored)

    def work() -> int:
        learner.step(0, 0.0, [handle])
        return scored.tokens

    yield work
    learner.stop()


def answers_of(scored: ScoredBatch) -> list[Trajectory]:
    """The answers of scored rows."""
    columns = [part.rows() for part in (scored.prompt_ids, scored.response_ids, scored.log_probs, scored.versions)]
    return [Trajectory(row, *(column[i] for column in columns), scored.end_states[i]) for i, row in enumerate(scored.rows)]


BARE = {"rollout": bare_rollout, "score": bare_score, "learn": bare_learn}
SERVED = {"rollout": served_rollout, "score": served_score, "learn": served_learn}


def serve_bare(part: str, policy: PolicyTraining) -> None:
    """Run a round of a bare part for every line on standard input, and print its speed."""
    with BARE[part](policy) as work:
        print(READY, flush=True)
        for _ in sys.stdin:
            print(f"{READY} {speed(work)}", flush=True)


@contextmanager
def bare(part: str) -> Iterator[Callable[[], float]]:
    """One part in a process of its own, with the environment and niceness of its actor: each call is a round and returns its
    speed."""
    environment = engine_environment(0, eager=True) if part == "rollout" else actor_environment(0)
    environment = os.environ | environment | {"PYTHONPATH": str(ROOT), "BENCHMARK_PORT": str(free_port())}
    # Ray lowers its workers' priority; a bare part that kept its own would be disturbed less by what else the machine does.
    niceness = os.environ.get("RAY_worker_niceness", "15")  # noqa: SIM112
    command = ["nice", "-n", niceness, sys.executable, "-m", "benchmarks.overheads", "--part", part]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin and process.stdout

        def reply() -> str:
            assert process.stdout
            for line in process.stdout:
                if line.startswith(READY):
                    return line.removeprefix(READY).strip()
            raise RuntimeError(f"the bare {part} ended")

        def one_round() -> float:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
            return float(reply())

        reply()
        yield one_round
        process.stdin.close()


def main() -> None:
    """Measure and write; with ``--part`` be a bare part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS)
    part = parser.parse_args().part
    policy = demo_recipe().policy
    if part:
        serve_bare(part, policy)
        return
    lines = []
    with ray_session(CLUSTER):
        for name in PARTS:
            with SERVED[name](policy) as work, bare(name) as alone:
                pairs = [(speed(work), alone()) for _ in range(ROUNDS + WARM_UP)][WARM_UP:]
            ratio = statistics.median(service / bare for service, bare in pairs)
            service, by_itself = (statistics.median(column) for column in zip(*pairs, strict=True))
            lines.append([name, f"{by_itself:.0f}", f"{service:.0f}", f"{ratio:.2f}"])
            print(name, [f"{service:.0f}/{bare:.0f}" for service, bare in pairs], flush=True)
    body = f"32 answers of the demo's prompts, SmolLM2-135M; {ROUNDS} rounds, each through the service and then bare, both "
    body += "processes up all the time. Medians; the ratio is the median of the rounds' ratios.\n\n"
    body += table(["stage", "bare, answer tokens/s", "service, answer tokens/s", "ratio"], lines)
    write_section("overheads", "What the service adds to its parts", "python -m benchmarks.overheads", body)
    print(body)


if __name__ == "__main__":
    main()
