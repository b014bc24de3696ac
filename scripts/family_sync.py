"""What vLLM serves of each family on this machine's CPU, before and after an update of its weights:
`python -m scripts.family_sync [--only Llama Mixtral ...]`.

Engines start in this process, one after the other, with the arguments, the transfer engine and the worker extension of the
rollout actors. What is found of a family is written to ``family_sync.json`` at once, so a run that was ended goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from dvpo_ray.config.sections import EngineSection, RolloutSection
from dvpo_ray.learning.batching import pad_sequences
from dvpo_ray.models.stored_names import StoredNames
from dvpo_ray.models.token_reader import PolicyReader, load_policy
from dvpo_ray.weights import SharedBuffer, layout, plan_buckets, write_bucket
from scripts.tiny_families import FAMILIES, SIZES, save

FOUND = Path(__file__).with_name("family_sync.json")
# How far served log-probs may be from those of the weights that were sent, in nats.
LARGEST_GAP = 0.01
# A model travels in several.
BUCKET_BYTES = 2**18
ROWS = 6
SECTION = RolloutSection(
    max_new_tokens=24,
    engine=EngineSection(dtype="float32", max_model_len=SIZES["max_position_embeddings"], max_num_seqs=8, kv_cache_mib=64),
)


@dataclass(frozen=True)
class Served:
    """What engines make of a family: ``reason`` is vLLM's own when it starts none, gaps are in nats (None: not served)."""

    vllm: str
    known: bool
    reason: str = ""
    gap_at_start: float | None = None
    gap_after_update: float | None = None

    @property
    def status(self) -> str:
        """In words."""
        if self.gap_at_start is None:
            return "not served by vLLM's CPU build" if self.known else "not known to vLLM"
        if self.gap_at_start > LARGEST_GAP:
            return "served with other log-probs"
        updated = self.gap_after_update is not None and self.gap_after_update <= LARGEST_GAP
        return "yes" if updated else "served, other weights after an update"


def served(family: str) -> Served:
    """Serve a family's tiny model, send it the weights of another one, and compare log-probs with the learner's own reader."""
    import vllm

    with tempfile.TemporaryDirectory() as temporary:
        first, second = Path(temporary) / "first", Path(temporary) / "second"
        save(family, first)
        save(family, second, seed=1)
        policy = load_policy(second, torch.float32, "eager")
        known = is_known(type(policy).__name__)
        try:
            with engine_on(first) as engine:
                at_start = gap(engine, load_policy(first, torch.float32, "eager"))
                update(engine, policy)
                return Served(vllm.__version__, known, "", at_start, gap(engine, policy))
        except Exception as error:
            return Served(vllm.__version__, known, root_of(error))


def is_known(architecture: str) -> bool:
    """Whether vLLM has code of its own for a class, or names the code of transformers to run it with."""
    from vllm import ModelRegistry

    return architecture in ModelRegistry.get_supported_archs()


def root_of(error: BaseException) -> str:
    """The first line of the error that came first."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return f"{type(error).__name__}: {text}".splitlines()[0]


@contextmanager
def engine_on(folder: Path) -> Iterator[Any]:
    """vLLM's engine (``LLMEngine``) on a model folder, in this process."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.v1.engine.llm_engine import LLMEngine

    from actors.rollout import engine_arguments

    engine = None
    try:
        engine = LLMEngine.from_engine_args(engine_arguments(str(folder), SECTION, seed=0))
        yield engine
    finally:
        if engine is not None:
            engine.engine_core.shutdown()
        del engine
        cleanup_dist_env_and_memory()


def gap(engine: Any, policy: Any) -> float:
    """How far the log-probs of answers that an engine samples are at most from those of a policy, in nats."""
    from actors.rollout import sampling_params

    numbers = np.random.default_rng(0)
    prompts = {str(i): numbers.integers(3, 300, 6 + i % 3) for i in range(ROWS)}
    for name, prompt in prompts.items():
        engine.add_request(name, {"prompt_token_ids": prompt.tolist()}, sampling_params(SECTION, 100 + int(name)))
    outputs: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        outputs |= {one.request_id: one.outputs[0] for one in engine.step() if one.finished}
    answers = [np.array(outputs[name].token_ids) for name in prompts]
    found = [
        step[token].logprob for name in prompts for step, token in zip(outputs[name].logprobs, outputs[name].token_ids, strict=True)
    ]
    batch = pad_sequences(list(prompts.values()), answers)
    with torch.no_grad():
        expected, _ = PolicyReader(policy)(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
    return float((torch.tensor(found) - expected).abs().max())


def update(engine: Any, policy: Any) -> None:
    """Send an engine the weights of a policy, in buckets, as rollout actors do."""
    names = StoredNames(policy, dict(policy.named_parameters()))
    tensors = names.stored(dict(policy.named_parameters()))
    memory = SharedBuffer()
    engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
    engine.collective_rpc("start_weight_update")
    for specs in plan_buckets(names.specs, BUCKET_BYTES):
        write_bucket(memory.bytes(layout(specs)[1]), specs, tensors)
        described = [[spec.name, spec.dtype, list(spec.shape)] for spec in specs]
        given = {"path": memory.path, "tensors": described, "adapter_scale": None}
        engine.collective_rpc("update_weights", kwargs={"update_info": given})
    engine.collective_rpc("finish_weight_update")
    engine.reset_prefix_cache()
    memory.close()


def read_found() -> dict[str, Served]:
    """What is known of families, by name."""
    return {name: Served(**given) for name, given in json.loads(FOUND.read_text(encoding="utf-8")).items()}


def main() -> None:
    """Serve the families that were not served yet, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), help="families to serve, again if they were")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    known = read_found() if FOUND.is_file() else {}
    for family in parser.parse_args().only or [name for name in FAMILIES if name not in known]:
        known[family] = served(family)
        print(f"{family}: {known[family].status} {known[family]}", flush=True)
        text = json.dumps({name: asdict(known[name]) for name in FAMILIES if name in known}, indent=2)
        FOUND.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
