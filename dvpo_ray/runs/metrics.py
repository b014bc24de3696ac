"""What a run records of its pace, and the last lines of its result."""

from __future__ import annotations

from dvpo_ray.metrics import Figure, Gauge, Metric

STAGES = Gauge("dvpo_stage_seconds", "Time of each stage of a step; with streaming or staleness they overlap.", "stage")


def _stage(name: str, meaning: str) -> Metric:
    return Metric(f"seconds/{name}", meaning, "s", gauge=STAGES, series=name)


METRICS = (
    Metric("weights/version", "Version of the weights that are served: the steps trained.", gauge="dvpo_weights_version"),
    Metric(
        "time/ended",
        "When the last step ended, in seconds since 1970.",
        "s",
        gauge="dvpo_last_step_timestamp_seconds",
    ),
    Metric("seconds/step", "Time of a step.", "s", console="s/step", gauge="dvpo_step_seconds"),
    _stage("rollout", "Time until the answers of the step were there."),
    _stage("score", "Time until they were scored."),
    _stage("learn", "Time of the learner."),
    _stage("sync", "Time until the engines had the new weights."),
    _stage("engine_update", "Time in which engines could not answer, as they took new weights."),
    Metric(
        "time/effective_share",
        "Share of the time since the run first began that went into steps and evaluations that count.",
        gauge="dvpo_effective_time_share",
    ),
    Metric(
        "speed/answer_tokens_per_s",
        "Answer tokens trained a second.",
        "tokens a second",
        gauge="dvpo_answer_tokens_per_second",
    ),
    Metric("sync/bytes", "Weights sent to the engines.", "bytes"),
)
FIGURES = (
    Figure("seconds_per_step", "seconds per step", digits=1, card=True),
    Figure("kept_best_by", "checkpoints kept by keep_best"),
    Figure("seconds_total", "seconds in all", digits=0, card=True),
    Figure("peak_memory_gb", "peak memory (GB)", digits=1, card=True),
    Figure("logprob_gap_mean", "log-prob gap, engine to learner"),
    Figure("value_model", "value model"),
    Figure("reward_model", "reward model"),
    Figure("policy", "policy"),
    Figure("report", "report"),
)
