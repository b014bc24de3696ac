"""What Prometheus can know of a run: the names, and where their numbers come from. Who sends them is ``actors.cluster.metrics``.

Ray puts ``ray_`` before every name. docs/monitoring.md lists them all; dashboard and alert rules use these names and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

EVERY_STEP = "driver, every step"


@dataclass(frozen=True)
class Metric:
    """One metric, of a run or of an actor.

    ``keys`` say which of a step's metrics it shows: by the value of its label, or under "" when it has none.
    """

    name: str
    meaning: str
    kind: Literal["gauge", "counter"] = "gauge"
    label: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    source: str = EVERY_STEP

    @property
    def exported(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.name}"

    @property
    def owner(self) -> str:
        """The label that says who sent it."""
        return "run" if self.keys else "actor"

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels of ours; Ray adds node, process and session."""
        return (self.owner, self.label) if self.label else (self.owner,)


def _of_step(name: str, meaning: str, key: str, source: str = EVERY_STEP) -> Metric:
    return Metric(name, meaning, keys={"": key}, source=source)


RUN_METRICS = (
    _of_step("dvpo_weights_version", "Version of the weights that are served: the steps trained.", "weights/version"),
    _of_step("dvpo_last_step_timestamp_seconds", "When the last step ended, in seconds since 1970.", "time/ended"),
    _of_step("dvpo_step_seconds", "Time of a step.", "seconds/step"),
    Metric(
        "dvpo_stage_seconds",
        "Time of each stage of a step; with streaming or staleness they overlap.",
        label="stage",
        keys={name: f"seconds/{name}" for name in ("rollout", "score", "learn", "sync", "engine_update")},
    ),
    _of_step(
        "dvpo_effective_time_share",
        "Share of the time since the run first began that went into steps and evaluations that count.",
        "time/effective_share",
    ),
    _of_step("dvpo_answer_tokens_per_second", "Answer tokens trained a second.", "speed/answer_tokens_per_s"),
    _of_step("dvpo_answer_tokens", "Mean answer, in tokens.", "answer/tokens"),
    _of_step("dvpo_answer_cut_share", "Share of answers cut at rollout.max_new_tokens.", "answer/cut_share"),
    Metric(
        "dvpo_rows",
        "The ledger: admitted = trained + dead_lettered + in_flight.",
        label="state",
        keys={state: f"ledger/{state}" for state in ("admitted", "trained", "dead_lettered", "in_flight")},
    ),
    Metric(
        "dvpo_staleness_steps",
        "Age of the tokens trained, in steps.",
        label="of",
        keys={"mean": "staleness/mean", "max": "staleness/max"},
    ),
    _of_step("dvpo_dropped_rows", "Rows of a step that were too old to train on.", "staleness/dropped_rows"),
    _of_step("dvpo_kl_per_token", "Log-ratio of policy to reference, in nats a token.", "kl/per_token"),
    _of_step("dvpo_kl_coefficient", "KL coefficient beta.", "kl/beta"),
    Metric(
        "dvpo_value",
        "What the frozen value model gives: mean over tokens, and at the last one.",
        label="of",
        keys={"mean": "value/mean", "last": "value/last"},
    ),
    _of_step("dvpo_advantage_std", "Standard deviation of advantages before whitening.", "advantage/std"),
    _of_step("dvpo_entropy", "Entropy of the policy, in nats a token.", "policy/entropy"),
    _of_step("dvpo_clip_share", "Share of tokens whose ratio was clipped.", "ppo/clip_share"),
    _of_step("dvpo_log_prob_gap", "Mean absolute gap between engine's and learner's log-probs, in nats.", "gap/abs_log_prob"),
    _of_step("dvpo_gradient_norm", "Gradient norm before clipping.", "optimizer/grad_norm"),
    _of_step("dvpo_learning_rate", "Learning rate.", "optimizer/learning_rate"),
    _of_step("dvpo_skipped_updates", "Updates of the last step that were withheld as not finite.", "loss/skipped_updates"),
    _of_step("dvpo_value_loss", "Loss of value pretraining.", "loss/value", "driver, every step of value pretraining"),
    _of_step("dvpo_gold", "Gold score of held-out answers.", "eval/gold", "driver, every evaluation"),
    _of_step("dvpo_eval_kl_per_token", "KL of held-out answers.", "eval/kl_per_token", "driver, every evaluation"),
)

ROLLOUT_ROWS = Metric("dvpo_rollout_rows_total", "Answers generated.", "counter", source="rollout actor, every answer")
ROLLOUT_TOKENS = Metric("dvpo_rollout_tokens_total", "Tokens generated.", "counter", source="rollout actor, every answer")
ENGINE_VERSION = Metric("dvpo_engine_weights_version", "Version that an engine serves.", source="rollout actor, every update")
ENGINE_FENCED = Metric(
    "dvpo_engine_fenced",
    "1 while an engine must not serve: an update is under way or failed.",
    source="rollout actor, every update",
)
SCORED_ROWS = Metric("dvpo_scored_rows_total", "Answers scored.", "counter", source="scorer, every batch")
SCORED_TOKENS = Metric("dvpo_scored_tokens_total", "Answer tokens scored.", "counter", source="scorer, every batch")
CHECKSUM_OK = Metric(
    "dvpo_gvm_checksum_ok",
    "1 when the value model in memory is the one that was loaded, 0 when it changed (which ends the run).",
    source="scorer, when it has loaded, and when training begins and ends",
)
QUEUE_AGE = Metric(
    "dvpo_score_queue_age_seconds", "How long the oldest batch that no scorer has begun has waited.", source="driver, every batch"
)
SCORERS = Metric("dvpo_scorers", "Scorers that take batches.", source="driver, every batch")
RESTARTS = Metric(
    "dvpo_restarts_total",
    "Processes that were replaced.",
    "counter",
    "stage",
    source="driver or scorer, every restart",
)
BUSY = Metric("dvpo_busy_seconds_total", "Time with work under way.", "counter", "stage", source="every actor, all the time")
ACTOR_METRICS = (
    ROLLOUT_ROWS,
    ROLLOUT_TOKENS,
    ENGINE_VERSION,
    ENGINE_FENCED,
    SCORED_ROWS,
    SCORED_TOKENS,
    CHECKSUM_OK,
    QUEUE_AGE,
    SCORERS,
    RESTARTS,
    BUSY,
)
CATALOGUE = RUN_METRICS + ACTOR_METRICS


def table() -> str:
    """All metrics as a table for the documents."""
    rows = [
        f"| `{metric.exported}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} | "
        f"{metric.source} |"
        for metric in CATALOGUE
    ]
    return "\n".join(["| name | kind | labels | meaning | sent by |", "|---|---|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    print(table(), end="")
