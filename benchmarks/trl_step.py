"""Step time and peak memory of TRL's trainers on CPU: the peers that `benchmarks/step_time.py` measures against.

Runs in an environment of its own (benchmarks/requirements-trl.txt) and imports nothing of this project but its memory
monitor, given by --monitor. Policy, reference, reward model and PPO's value model start from the same folder.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)


class StepTimer(TrainerCallback):
    """Notes the wall time at the end of every step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first mark."""
        self.marks.append(time.time())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One mark a step."""
        self.marks.append(time.time())

    @property
    def seconds(self) -> list[float]:
        """Seconds of each step after the first, which warms up."""
        return [b - a for a, b in zip(self.marks[1:], self.marks[2:], strict=False)]


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", choices=("ppo", "grpo", "rloo"), default="ppo")
    parser.add_argument("--model", required=True)
    parser.add_argument("--monitor", required=True, help="path of dvpo_ray/runs/memory.py")
    parser.add_argument("--prompts", required=True, help="JSON lines, gzipped, with a field 'prompt'")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--answer-tokens", type=int, default=40)
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32", help="of the two trained models")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", default="trl-output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    timer = StepTimer()
    monitor = load_monitor(Path(arguments.monitor))
    with monitor as memory:
        trainer = ppo_trainer(arguments) if arguments.trainer == "ppo" else group_trainer(arguments)
        trainer.add_callback(timer)
        trainer.train()
    settings = {k: v for k, v in vars(arguments).items() if k not in ("model", "prompts", "monitor", "output")}
    found = {"seconds_per_step": statistics.median(timer.seconds), "steps": timer.seconds, "peak_memory_gb": memory.peak_gb}
    print(json.dumps({"trainer": f"trl-{arguments.trainer}", **found, "settings": settings}), flush=True)


def load_monitor(path: Path) -> Any:
    """The memory monitor of this project, loaded by path so that nothing else of it is needed here."""
    spec = importlib.util.spec_from_file_location("memory", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MemoryMonitor(os.getpid())


def read_prompts(arguments: argparse.Namespace, count: int) -> list[str]:
    """The first so many prompts."""
    with gzip.open(arguments.prompts, "rt", encoding="utf-8") as stream:
        return [json.loads(line)["prompt"] for line in stream][:count]


def shared_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the trainers have in common: bfloat16 arithmetic, one update a step on the whole batch."""
    return {
        "output_dir": arguments.output,
        "per_device_train_batch_size": arguments.micro_batch,
        "gradient_accumulation_steps": arguments.batch // arguments.micro_batch,
        "temperature": 1.0,
        "learning_rate": 2e-5,
        "bf16": True,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "gradient_checkpointing": False,
    }


def group_trainer(arguments: argparse.Namespace) -> Any:
    """TRL's GRPO or RLOO trainer: four answers a prompt, a reward model, KL to a reference, generation by transformers."""
    import trl
    from datasets import Dataset

    name = arguments.trainer.upper()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.weights))
    reward = AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=1, dtype=torch.bfloat16)
    config = getattr(trl, f"{name}Config")(
        **shared_settings(arguments),
        num_generations=4,
        max_completion_length=arguments.answer_tokens,
        max_steps=arguments.steps,
        beta=0.05,
    )
    prompts = read_prompts(arguments, arguments.batch // 4 * (arguments.steps + 1))
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]
    return getattr(trl, f"{name}Trainer")(
        model=policy, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def ppo_trainer(arguments: argparse.Namespace) -> Any:
    """TRL's PPO trainer: one epoch, one mini-batch; the two frozen models in bfloat16."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    trained, frozen = {"dtype": getattr(torch, arguments.weights)}, {"dtype": torch.bfloat16}
    policy, reference = (AutoModelForCausalLM.from_pretrained(arguments.model, **options) for options in (trained, frozen))
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=1, **options)
        for options in (trained, frozen)
    )
    prompts = read_prompts(arguments, arguments.batch * (arguments.steps + 1))
    rows = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, return_dict=False)
        for p in prompts
    ]
    config = PPOConfig(
        **shared_settings(arguments),
        local_rollout_forward_batch_size=arguments.batch,
        num_mini_batches=1,
        num_ppo_epochs=1,
        total_episodes=arguments.batch * arguments.steps,
        response_length=arguments.answer_tokens,
        num_sample_generations=0,
        missing_eos_penalty=None,
    )
    dataset = Dataset.from_dict({"input_ids": rows})
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=dataset,
        eval_dataset=dataset.select(range(2)),
    )


if __name__ == "__main__":
    main()
