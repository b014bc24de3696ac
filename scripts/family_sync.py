"""What vLLM serves of each family on this machine's CPU, before and after an update of its weights:
`python -m scripts.family_sync [--only Llama Mixtral ...]`.

Engines start one after the other, without Ray, with the arguments, the transfer engine and the worker extension of the rollout
actors. What is found of a family is written to ``family_sync.json`` at once, so a run that was ended goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError

from actors.weights.buckets import SharedBuffer, layout, plan_buckets, write_bucket
from dvpo_ray.config.sections import EngineSection, RolloutSection
from dvpo_ray.learning.batching import pad_sequences
from dvpo_ray.models.stored_names import StoredNames
from dvpo_ray.models.token_reader import PolicyReader, load_policy
from scripts.tiny_families import FAMILIES, SIZES, save

FOUND = Path(__file__).with_name("family_sync.json")
# How far served log-probs may be from those of the weights that were sent, in nats.
LARGEST_GAP = 0.01
# A model travels in several.
BUCKET_BYTES = 2**18
ROWS = 6
# vLLM's sliding window of Cohere 2 is a token wider than transformers': beyond it `dvpo` refuses to start engines.
CHANGES = {"Cohere2": {"sliding_window": SIZES["max_position_embeddings"]}}
SECTION = RolloutSection(
    max_new_tokens=24,
    engine=EngineSection(dtype="float32", max_model_len=SIZES["max_position_embeddings"], max_num_seqs=8, kv_cache_mib=64),
)


@dataclass(frozen=True)
class Served:
    """What engines make of a family: ``reason`` is vLLM's own where it does not all, gaps are in nats (None: not served)."""

    vllm: str
    # Whether it has code for the class, its own or a way to run that of transformers.
    known: bool
    # Off where an engine does not start with it.
    prefix_caching: bool = True
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
        if self.gap_after_update is None:
            return "served, no update"
        if self.gap_after_update > LARGEST_GAP:
            return "served, other weights after an update"
        return "yes" if self.prefix_caching else "yes, with `prefix_caching = false`"


class Answered(NamedTuple):
    """An answer of an engine: token ids of prompt [P] and answer [T], and the log-probs it gave its tokens (nats)."""

    prompt: np.ndarray
    tokens: np.ndarray
    log_probs: list[float]


def served(family: str) -> Served:
    """Serve a family's tiny model, send it the weights of another one, and compare log-probs with the learner's own reader."""
    import vllm

    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("first", "second")]
        for seed, folder in enumerate(folders):
            save(family, folder, seed, **CHANGES.get(family, {}))
        known = type(load_policy(folders[0], torch.float32, "eager")).__name__ in vllm.ModelRegistry.get_supported_archs()
        caching = True
        answers, reason = asked_of_an_engine(*folders, caching)
        if not answers:
            caching, before = False, reason
            answers, reason = asked_of_an_engine(*folders, caching)
            reason = reason or before
        gaps = [gap(found, load_policy(folder, torch.float32, "eager")) for found, folder in zip(answers, folders, strict=False)]
        return Served(vllm.__version__, known, caching, reason, *gaps)


def asked_of_an_engine(first: Path, second: Path, caching: bool) -> tuple[list[list[Answered]], str]:
    """What an engine on a folder answers before and after it was sent another folder's weights, and why that is not all.

    The engine has a process of its own: vLLM changes classes of transformers in its process, and kernels may end it.
    """
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=serve, args=(first, second, caching, there))
    process.start()
    there.close()
    told: list[Any] = []
    try:
        while True:
            told.append(here.recv())
    except EOFError:
        process.join()
    reason = told.pop() if told and isinstance(told[-1], str) else ""
    if process.exitcode:
        reason = f"the engine's process ended with status {process.exitcode}"
    return told, reason


def serve(first: Path, second: Path, caching: bool, told: Any) -> None:
    """Tell an engine's answers by the first folder's weights, then by the second's, or else the error that came first."""
    from vllm.v1.engine.llm_engine import LLMEngine

    from actors.rollout.actor import engine_arguments

    policy = load_policy(second, torch.float32, "eager")
    try:
        import_code(type(policy).__name__)
        settings = SECTION.model_copy(update={"engine": SECTION.engine.model_copy(update={"prefix_caching": caching})})
        engine = LLMEngine.from_engine_args(engine_arguments(str(first), settings, seed=0))
        told.send(answered(engine))
        update(engine, policy)
        told.send(answered(engine))
    except Exception as error:
        traceback.print_exc()
        told.send(root_of(error))


def import_code(architecture: str) -> None:
    """Import vLLM's code of a class, if it has some: vLLM itself does so elsewhere first, and does not tell what failed."""
    from vllm import ModelRegistry

    if architecture in ModelRegistry.models:
        ModelRegistry.models[architecture].load_model_cls()


def root_of(error: BaseException) -> str:
    """The first sentence of the error that came first."""
    while error.__cause__:
        error = error.__cause__
    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return f"{type(error).__name__}: {text}".splitlines()[0].split(". ")[0].removesuffix(".")


def answered(engine: Any) -> list[Answered]:
    """What an engine answers to a few prompts."""
    from actors.rollout.actor import sampling_params

    numbers = np.random.default_rng(0)
    prompts = {str(i): numbers.integers(3, 300, 6 + i % 3) for i in range(ROWS)}
    for name, prompt in prompts.items():
        engine.add_request(name, {"prompt_token_ids": prompt.tolist()}, sampling_params(SECTION, 100 + int(name)))
    outputs: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        outputs |= {one.request_id: one.outputs[0] for one in engine.step() if one.finished}
    return [to_answered(prompt, outputs[name]) for name, prompt in prompts.items()]


def to_answered(prompt: np.ndarray, output: Any) -> Answered:
    """What vLLM says of an answer, without the rest."""
    log_probs = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
    return Answered(prompt, np.array(output.token_ids), log_probs)


def gap(answers: list[Answered], policy: Any) -> float:
    """How far the log-probs of answers are at most from those that a policy gives their tokens, in nats."""
    batch = pad_sequences([one.prompt for one in answers], [one.tokens for one in answers])
    with torch.no_grad():
        expected, _ = PolicyReader(policy)(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
    found = torch.tensor([log_prob for one in answers for log_prob in one.log_probs])
    return float((found - expected).abs().max())


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


def read_found(path: Path = FOUND) -> dict[str, Served]:
    """What is known of families, by name."""
    return {name: Served(**given) for name, given in json.loads(path.read_text(encoding="utf-8")).items()}


def main() -> None:
    """Serve the families that were not served yet, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), help="families to serve, again if they were")
    parser.add_argument("--found", type=Path, default=FOUND, help="file that is read and written (default: %(default)s)")
    given = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Processes are forked, and threads of torch would be missing in them.
    torch.set_num_threads(1)
    known = read_found(given.found) if given.found.is_file() else {}
    for family in given.only or [name for name in FAMILIES if name not in known]:
        known[family] = served(family)
        print(f"{family}: {known[family].status} ({known[family]})", flush=True)
        text = json.dumps({name: asdict(known[name]) for name in FAMILIES if name in known}, indent=2)
        given.found.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
