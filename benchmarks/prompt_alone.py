"""What a prompt does without training: the demo's model is asked for cheerful answers to the held-out prompts.

The prompts, seeds, sampling, engine and gold are those of the demo's evaluation; only the words of `SUFFIXES` are added to the
prompt. Such answers have no place on the line of gold against KL: they are those of another prompt, and nothing limits how far
they are from those of the first. Words that have figures in `figures/prompt_alone.json` are not asked with again, and `--there`
makes the table of what there is.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from actors.cluster.calls import get
from actors.cluster.session import ray_session
from actors.rollout.pool import RolloutPool
from benchmarks.common import checkpoint, demo_recipe, figures, keep_figures, machine, table, write_section
from dvpo_ray.data import DeadLetters, EncodedPrompt, load_prompts
from dvpo_ray.data.encode import encode_prompt
from dvpo_ray.data.messages import Message
from dvpo_ray.demo.gold import vader_compound
from dvpo_ray.maths.seeds import sampling_seed
from dvpo_ray.maths.statistics import mean_ci95, share_ci95
from dvpo_ray.types import RolloutRequest, RowId, Trajectory
from jobs.models import base_model

SECTION = "prompt_alone"
# By name: what is put before a prompt's full stop, and what after it.
SUFFIXES = {
    "the prompt as it is": ("", ""),
    '"... in a cheerful way."': (" in a cheerful way", ""),
    '"... Be cheerful."': ("", " Be cheerful."),
    '"... Answer in a happy, optimistic tone."': ("", " Answer in a happy, optimistic tone."),
    '"... Say only good things about it."': ("", " Say only good things about it."),
    '"... in a very cheerful and joyful way."': (" in a very cheerful and joyful way", ""),
    '"..., full of joy and happiness."': (", full of joy and happiness", ""),
    '"... Use words of joy, love and happiness."': ("", " Use words of joy, love and happiness."),
}
RUN_SEED = 0


def asked(prompt: str, suffix: tuple[str, str]) -> str:
    """A prompt with the words of a suffix: the first before its full stop, the second after it."""
    within, behind = suffix
    return prompt.removesuffix(".") + within + "." + behind


def answered(requests: Sequence[RolloutRequest], dtype: str) -> dict[RowId, Trajectory]:
    """The answers of the demo's model, by row."""
    recipe = demo_recipe()
    rollout = recipe.policy.rollout
    rollout = rollout.model_copy(update={"engine": rollout.engine.model_copy(update={"dtype": dtype})})
    fetch = partial(get, timeout=recipe.cluster.call_timeout_s, who="a rollout actor", doing="handing out an answer")
    with ray_session(recipe.cluster):
        folder = str(base_model(recipe.model).folder)
        pool = RolloutPool(folder, recipe.model, rollout, recipe.cluster, RUN_SEED)
        try:
            pool.wait_ready()
            found = {answer.row: answer for answer in map(fetch, pool.generate(requests))}
        finally:
            pool.stop()
    missing = [request.row for request in requests if request.row not in found]
    if missing:
        raise SystemExit(f"{len(missing)} prompts were not answered, for example {missing[0]}")
    return found


def held_out(tokenizer: Any, limit: int) -> list[EncodedPrompt]:
    """The demo's held-out prompts."""
    section = demo_recipe().policy.evaluation
    assert section is not None
    with DeadLetters(None) as letters:
        return load_prompts(section.source, tokenizer, max_prompt_tokens=64, dead_letters=letters, limit=limit)[0]


def measure(names: Sequence[str], limit: int, dtype: str) -> dict[str, dict[str, Any]]:
    """Gold, share cut at the limit and tokens an answer, by suffix."""
    at, where = checkpoint(), machine()
    tokenizer = base_model(demo_recipe().model).tokenizer
    prompts = held_out(tokenizer, limit)
    requests = [
        RolloutRequest(
            RowId(0, i, name, 0, "eval"),
            tuple(encode_prompt(tokenizer, (Message("user", asked(prompt.prompt_text, SUFFIXES[name])),))),
            sampling_seed(RUN_SEED, "evaluate", i, 0),
        )
        for name in names
        for i, prompt in enumerate(prompts)
    ]
    answers = answered(requests, dtype)
    found = {}
    for name in names:
        own = [answers[RowId(0, i, name, 0, "eval")] for i in range(len(prompts))]
        texts = [tokenizer.decode(answer.response_ids, skip_special_tokens=True).strip() for answer in own]
        gold = vader_compound([prompt.prompt_text for prompt in prompts], texts)
        cut, kin = [float(answer.end_state == "length") for answer in own], [prompt.kin for prompt in prompts]
        found[name] = {
            "prompts": len(prompts),
            "gold": statistics.mean(gold),
            "gold_ci95": mean_ci95(gold, kin),
            "cut_share": statistics.mean(cut),
            "cut_share_ci95": share_ci95(cut, kin),
            "tokens": statistics.mean(answer.response_ids.size for answer in own),
            "example": texts[0],
            "dtype": dtype,
            "machine": where,
            "checkpoint": at,
        }
    return found


def body_of(found: dict[str, dict[str, Any]]) -> str:
    """The section's text."""
    first = next(iter(found.values()))
    body = (
        f"The demo's model without any training, {first['prompts']} held-out prompts, one answer each of at most 40 tokens, in "
    )
    body += f"{first['dtype']}; intervals over subjects. The words are added to the prompt.\n\n"
    rows = [
        [
            name,
            "{:.3f} ({:.3f} to {:.3f})".format(one["gold"], *one["gold_ci95"]),
            "{:.3f} ({:.3f} to {:.3f})".format(one["cut_share"], *one["cut_share_ci95"]),
            f"{one['tokens']:.1f}",
        ]
        for name, one in found.items()
    ]
    return body + table(["prompt", "gold (95%)", "answers cut at 40 tokens (95%)", "tokens"], rows)


def main() -> None:
    """Ask and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=126, help="held-out prompts asked, with each suffix")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="number type of the engine")
    parser.add_argument("--dry", action="store_true", help="print the table, and keep nothing")
    parser.add_argument("--there", action="store_true", help="ask nothing: the table of what was measured, here or elsewhere")
    given = parser.parse_args()
    if given.dry:
        print(body_of(measure(list(SUFFIXES), given.prompts, given.dtype)))
        return
    missing = [name for name in SUFFIXES if name not in figures(SECTION)]
    if missing and not given.there:
        keep_figures(SECTION, measure(missing, given.prompts, given.dtype))
    known = figures(SECTION)
    found = {name: known[name] for name in SUFFIXES if name in known}
    if not found:
        parser.exit(1, "nothing has been measured\n")
    first = next(iter(found.values()))
    command = f"python -m benchmarks.prompt_alone --dtype {first['dtype']}"
    body = body_of(found)
    write_section(SECTION, "The prompt alone", command, body, measured_on=first["machine"])
    print(body)


if __name__ == "__main__":
    main()
