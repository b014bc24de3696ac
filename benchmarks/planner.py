"""The planner against what was measured: the demo's processes and steps here, and the cost table of the DVPO paper.

The first part reads the run of ``benchmarks.seeds``; nothing is trained here.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.common import RUNS, demo_recipe, table, write_section
from dvpo_ray.config.backends import DeepSpeedSettings
from dvpo_ray.config.updates import OffPolicySection
from dvpo_ray.models.packaged import resolve_model
from dvpo_ray.planning.calibration import calibrated, measured
from dvpo_ray.planning.compare import online_critic
from dvpo_ray.planning.devices import CATALOGUE, GB, parse_devices
from dvpo_ray.planning.memory import activation_bytes, head_bytes, processes, trained_bytes
from dvpo_ray.planning.plan import Split, cluster_of, with_split
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.planning.simulate import simulate
from dvpo_ray.planning.times import Efficiency, Workload, decode_step, learn_seconds, score_seconds

# Names of this project's processes in a memory breakdown, and the planner's names for them.
PROCESSES = {
    "learner rank": ("PolicyLearnerRank",),
    "scorer": ("ScorerActor",),
    "engine worker": ("VLLM::Worker",),
    "engine front ends": ("RolloutActor", "VLLM::EngineCore"),
    "driver and Ray": ("python", "IDLE", "DashboardAgent", "RuntimeEnvAgent", "gcs_server", "raylet"),
}
STEPS, SEEDS = 12, 3
LLAMA = {
    "3B": {
        "num_hidden_layers": 28,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "8B": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
# arXiv 2502.16944, the table of cost on 8 x A100: GB on each GPU and seconds a step, PPO and DVPO.
PAPER: dict[str, dict[str, Any]] = {
    "3B": {"stage": 1, "gb": (41.43, 27.50), "seconds": (23, 13)},
    "8B": {"stage": 3, "gb": (78.96, 60.49), "seconds": (70, 48)},
}
ASSUMED = (
    "128 answers a step of 300 prompt and 512 answer tokens, four inner epochs, all models on every GPU, frozen ones unsharded, "
    "Adam in mixed precision; generation by the training framework, where a token costs reading the weights, 6 ms of launches, "
    "and under ZeRO 3 gathering them over NVLink; activations checkpointed, so computed twice"
)


def demo_memory() -> str:
    """Predicted and measured GB of each process of the demo's policy training."""
    run = RUNS / "demo-seed-0" / "policy"
    found: dict[str, float] = json.loads((run / "result.json").read_text())["peak_memory_by_process_gb"]
    recipe = demo_recipe()
    shape = ModelShape.from_folder(resolve_model(recipe.model.path))
    rows: list[list[Any]] = []
    for process in processes(recipe.policy, shape, recipe.model.attention, parse_devices("here").device):
        real = sum(found.get(name, 0.0) for name in PROCESSES[process.name])
        predicted = process.total / GB
        rows.append([process.name, f"{predicted:.2f}", f"{real:.2f}", f"{100 * (predicted / real - 1):+.0f}%"])
    return table(["process of the demo", "predicted GB", "measured GB", "error"], rows)


def demo_time() -> str:
    """A simulated step of the demo against the measured one, the simulator calibrated on the stages of the same run."""
    recipe = demo_recipe()
    shape = ModelShape.from_folder(resolve_model(recipe.model.path))
    device = parse_devices("here").device
    seconds, answer = measured(RUNS / "demo-seed-0" / "policy")
    work = Workload.of(recipe.policy, answer)
    efficiency = calibrated(recipe.policy, shape, device, work, seconds)
    outcome = simulate(cluster_of(recipe.policy, shape, device, efficiency, work))
    error = 100 * (outcome.seconds_per_step / seconds["step"] - 1)
    return f"Simulated step of the demo: {outcome.seconds_per_step:.2f} s, measured {seconds['step']:.2f} s ({error:+.0f}%).\n"


@dataclass(frozen=True)
class PaperSetting:
    """What the paper's table leaves open, chosen once for all its rows (``ASSUMED``)."""

    rows: int = 128
    prompt: float = 300
    answer: float = 512
    epochs: int = 4
    micro_batch: int = 2
    gpus: int = 8
    nvlink: float = 300e9
    share_of_peak: float = 0.4
    launches: float = 0.006


def paper_row(shape: ModelShape, stage: int, online_critic_too: bool, setting: PaperSetting) -> tuple[float, float]:
    """(GB on each GPU, seconds a step), by the planner's own memory, scoring and learning times."""
    device, gpus = CATALOGUE["a100-80gb"], setting.gpus
    efficiency = Efficiency(training=setting.share_of_peak, forward=setting.share_of_peak, step_overhead=setting.launches)
    demo = demo_recipe(device.facts).policy
    policy = with_split(demo, Split(gpus, gpus, gpus, gpus)).model_copy(
        update={"ppo": demo.ppo.model_copy(update={"inner_epochs": setting.epochs})}
    )
    learner = policy.learner.model_copy(update={"backend": DeepSpeedSettings(zero_stage=stage), "gradient_checkpointing": True})
    policy = policy.model_copy(update={"learner": learner})
    work = Workload(setting.rows, setting.prompt, setting.answer)
    critic = online_critic(policy, shape, device, efficiency, work)
    tokens = setting.micro_batch * (setting.prompt + setting.answer)
    memory = sum(trained_bytes(shape.parameters, learner).values()) + 2 * 2 * shape.parameters
    memory += activation_bytes(shape, tokens, tokens / 2, "sdpa", checkpointing=True) + head_bytes(shape)
    engine = policy.rollout.engine
    decode = decode_step(shape, device, efficiency, engine, setting.rows / gpus, setting.prompt + setting.answer / 2)
    if stage == 3:
        decode += 2 * shape.parameters * (gpus - 1) / gpus / setting.nvlink
    seconds = setting.answer * decode + score_seconds(policy, shape, device, efficiency, work)
    seconds += learn_seconds(policy, shape, device, efficiency, work)
    if online_critic_too:
        memory, seconds = memory + critic.memory, seconds + critic.scoring + critic.learning
    return memory / GB, seconds


def paper() -> str:
    """DVPO to PPO by model, predicted and as the paper measured it."""
    setting = PaperSetting()
    rows: list[list[Any]] = []
    for name, known in PAPER.items():
        shape = ModelShape.of(LLAMA[name])
        ppo = paper_row(shape, known["stage"], True, setting)
        dvpo = paper_row(shape, known["stage"], False, setting)
        for i, (what, unit) in enumerate((("gb", "GB on each GPU"), ("seconds", "seconds a step"))):
            real = known[what][1] / known[what][0]
            predicted = dvpo[i] / ppo[i]
            values = [f"{ppo[i]:.1f} / {dvpo[i]:.1f}", f"{known[what][0]} / {known[what][1]}"]
            rows.append([f"{name}, ZeRO {known['stage']}, {unit}", *values, f"{predicted:.2f}", f"{real:.2f}"])
    header = ["8 x A100", "predicted PPO / DVPO", "paper's PPO / DVPO", "predicted ratio", "paper's ratio"]
    return table(header, rows)


def scaling() -> str:
    """Simulated step time of an 8B model when devices and answers grow together."""
    shape, device = ModelShape.of(LLAMA["8B"]), CATALOGUE["h100-80gb"]
    recipe = demo_recipe(device.facts).policy
    rows: list[list[Any]] = []
    for staleness in (0, 1):
        for factor in (1, 8, 32, 125):
            work = Workload(128 * factor, 256, 400)
            rollout = recipe.rollout.model_copy(update={"prompts_per_step": work.rows, "max_new_tokens": 1024})
            policy = with_split(recipe, Split(4 * factor, factor, 3 * factor, 8 * factor)).model_copy(
                update={"off_policy": OffPolicySection(max_staleness=staleness)}
            )
            policy = policy.model_copy(
                update={
                    "rollout": rollout.model_copy(update={"actors": 4 * factor}),
                    "learner": policy.learner.model_copy(update={"backend": DeepSpeedSettings(zero_stage=3)}),
                    "scorer": policy.scorer.model_copy(update={"rows_per_call": 8}),
                }
            )
            cluster = cluster_of(policy, shape, device, Efficiency(), work)
            calm = simulate(cluster, STEPS)
            failing = [simulate(replace(cluster, mean_time_to_failure=86400, restart=120), STEPS, seed) for seed in range(SEEDS)]
            with_failures = statistics.mean(outcome.seconds_per_step for outcome in failing)
            met = statistics.mean(outcome.failures for outcome in failing)
            rows.append([staleness, 8 * factor, work.rows, calm.seconds_per_step, with_failures, f"{met:.1f}"])
    failing_name = f"s/step when an engine fails once a day ({SEEDS} runs of {STEPS} steps)"
    return table(["max_staleness", "devices", "answers a step", "s/step", failing_name, "failures a run"], rows)


def main() -> None:
    """Write the tables."""
    body = demo_memory() + "\n" + demo_time() + "\n" + paper()
    body += f"\nAssumed for the paper's rows, which it does not state: {ASSUMED}.\n\n"
    body += "Simulated: Llama-3-8B on H100s, half of the devices generate, an eighth scores, three eighths learn; answers of 400 "
    body += "tokens on average, log-normal, at most 1,024.\n\n" + scaling()
    write_section("planner", "Planner and simulator", "python -m benchmarks.planner", body)
    print(body)


if __name__ == "__main__":
    main()
