"""A whole training step through the service against the sum of its parts, each run alone in a bare process.

The demo's policy job takes real steps; between two of them every bare part (benchmarks/overheads.py) runs a round on rows of the
same size, so both meet the same machine. A part's time is for as many answer tokens as the step had. Sending weights has no bare
counterpart: the job's own time counts on both sides.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from pathlib import Path

from actors.cluster.session import ray_session
from benchmarks.common import RUNS, table, write_section
from benchmarks.overheads import CLUSTER, PARTS, bare
from benchmarks.step_time import value_model
from dvpo_ray.config import PipelineRecipe, PolicyRecipe, load_recipe
from dvpo_ray.config.loading import build
from dvpo_ray.runs.run import Event
from jobs.train_policy import train_policy

ROUNDS, WARM_UP = 10, 2
# As good as no training: answers keep their length.
RATE = 1e-12


def recipe(folder: Path) -> PolicyRecipe:
    """The demo's policy job on 32 prompts, again and again."""
    rows = ["policy.data.limit=32", f"policy.steps={ROUNDS + WARM_UP}", f"policy.learner.learning_rate={RATE}"]
    tree = load_recipe(PipelineRecipe, "demo", rows).policy_recipe(str(value_model())).model_dump(mode="json")
    tree["policy"] |= {"evaluation": None, "checkpoint": {"every": 0}}
    run = {"name": folder.name, "output_dir": str(folder.parent), "overwrite": True}
    return build(PolicyRecipe, {"run": run, "model": tree["model"], "policy": tree["policy"]})


class Alternate:
    """A listener that runs a round of every bare part after every step."""

    def __init__(self, stack: ExitStack) -> None:
        self.steps: list[tuple[float, dict[str, float]]] = []
        self._stack = stack
        self._parts = {name: stack.enter_context(bare(name)) for name in PARTS}

    def __call__(self, event: Event) -> None:
        """Measure."""
        if event.kind != "step":
            return
        tokens = event.metrics["answer/total_tokens"]
        alone = {name: tokens / one_round() for name, one_round in self._parts.items()}
        alone["sync"] = event.metrics["seconds/sync"]
        self.steps.append((event.metrics["seconds/step"], alone))
        print(f"step {event.metrics['seconds/step']:.2f} s, alone {sum(alone.values()):.2f} s", flush=True)


def main() -> None:
    """Measure and write."""
    value_model()
    with ray_session(CLUSTER), ExitStack() as stack:
        listener = Alternate(stack)
        train_policy(recipe(RUNS / "whole-step"), listener)
    steps = listener.steps[WARM_UP:]
    ratio = statistics.median(step / sum(alone.values()) for step, alone in steps)
    names = [*PARTS, "sync"]
    alone = {name: statistics.median(parts[name] for _, parts in steps) for name in names}
    row = [statistics.median(step for step, _ in steps), *(alone[name] for name in names), f"{ratio:.2f}"]
    body = (
        f"Steps of 32 answers of the demo, SmolLM2-135M; seconds, medians of {ROUNDS}; the ratio is that of the median step.\n\n"
    )
    body += table(["whole step", *(f"{name} alone" for name in PARTS), "sync", "step : sum"], [row])
    write_section("whole_step", "A whole step against its parts run alone", "python -m benchmarks.whole_step", body)
    print(body)


if __name__ == "__main__":
    main()
