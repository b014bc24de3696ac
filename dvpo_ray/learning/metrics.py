"""What trainings record of a step, and what a result says of what they measured."""

from __future__ import annotations

from dvpo_ray.metrics import Figure, Gauge, Metric

VALUE_STEP = "every step of value pretraining"
DPO_STEP = "every step of DPO"
CRITIC_STEP = "every step with an online critic"

VALUE = Gauge("dvpo_value", "What the frozen value model gives: mean over tokens, and at the last one.", "of")
AGE = Gauge("dvpo_staleness_steps", "Age of the tokens trained, in steps.", "of")
VALUES_CHART = "Value of the answers in training"
KL_CHART = "KL to the reference (nats per token)"
DPO_CHART = "DPO: beta times margin, and share ranked right"

METRICS = (
    Metric(
        "value/last",
        "What the value model gives the answers at their last token.",
        console="value",
        chart=VALUES_CHART,
        line="last token",
        gauge=VALUE,
        series="last",
    ),
    Metric(
        "value/mean",
        "What the value model gives the answers: mean over tokens.",
        chart=VALUES_CHART,
        gauge=VALUE,
        series="mean",
    ),
    Metric("value/prompt", "What the value model gives the prompts alone."),
    Metric(
        "kl/per_token",
        "Log-ratio of policy to reference, in nats a token.",
        "nats a token",
        console="KL/token",
        chart=KL_CHART,
        line="engine log-probs",
        gauge="dvpo_kl_per_token",
    ),
    Metric(
        "kl/learner_per_token",
        "The same by the log-probs of the learner.",
        "nats a token",
        chart=KL_CHART,
        line="learner log-probs",
    ),
    Metric("kl/per_answer", "Log-ratio of policy to reference, summed over an answer.", "nats an answer"),
    Metric("kl/beta", "KL coefficient beta.", gauge="dvpo_kl_coefficient"),
    Metric(
        "loss/value",
        "Loss of value pretraining.",
        recorded=VALUE_STEP,
        console="loss",
        chart="Value pretraining loss",
        gauge="dvpo_value_loss",
    ),
    Metric("loss/dpo", "Loss of DPO.", recorded=DPO_STEP, console="loss", chart="DPO loss"),
    Metric(
        "dpo/margin",
        "Beta times the margin between chosen and rejected answer.",
        "nats",
        DPO_STEP,
        console="margin",
        chart=DPO_CHART,
    ),
    Metric("dpo/accuracy", "Share of pairs that are ranked right.", recorded=DPO_STEP, chart=DPO_CHART, line="right"),
    Metric("dpo/chosen", "Log-ratio of policy to reference of the chosen answers.", "nats an answer", DPO_STEP),
    Metric("dpo/rejected", "Log-ratio of policy to reference of the rejected answers.", "nats an answer", DPO_STEP),
    Metric("loss/policy", "Loss of the policy.", chart="Policy loss"),
    Metric("loss/ptx", "Loss on demonstrations.", "nats a token", "every step with policy.ptx", chart="Demonstration loss"),
    Metric(
        "policy/entropy",
        "Entropy of the policy, in nats a token.",
        "nats a token",
        console="entropy",
        chart="Entropy (nats per token)",
        gauge="dvpo_entropy",
    ),
    Metric(
        "answer/tokens",
        "Mean answer, in tokens.",
        "tokens",
        console="tokens",
        chart="Answer length (tokens)",
        gauge="dvpo_answer_tokens",
    ),
    Metric("answer/total_tokens", "All answers of the step.", "tokens"),
    Metric(
        "answer/cut_share",
        "Share of answers cut at rollout.max_new_tokens.",
        console="cut",
        gauge="dvpo_answer_cut_share",
    ),
    Metric(
        "reward/*", "Mean score by a reward, before its weight.", recorded="every step with rewards", chart="Rewards (mean score)"
    ),
    Metric(
        "environment/failed_share",
        "Share of episodes that ended because the environment failed (`crashed`, `timeout`).",
        recorded="every step with an environment",
    ),
    Metric("advantage/mean", "Mean advantage before whitening."),
    Metric("advantage/std", "Standard deviation of advantages before whitening.", gauge="dvpo_advantage_std"),
    Metric("ppo/clip_share", "Share of tokens whose ratio was clipped.", gauge="dvpo_clip_share"),
    Metric("ppo/approx_kl", "KL of the policy to that of the step's start (k3).", "nats a token"),
    Metric(
        "gap/abs_log_prob",
        "Mean absolute gap between engine's and learner's log-probs, in nats.",
        "nats a token",
        chart="Log-prob gap, engine to learner (mean absolute)",
        gauge="dvpo_log_prob_gap",
    ),
    Metric("gap/kl_k3", "KL between engine and learner (k3).", "nats a token"),
    Metric("staleness/mean", "Mean age of the tokens trained.", "steps", gauge=AGE, series="mean"),
    Metric("staleness/max", "Highest age of the tokens trained.", "steps", gauge=AGE, series="max"),
    Metric("staleness/share", "Share of tokens that an earlier policy wrote."),
    Metric("staleness/weight", "Mean weight that off-policy correction gives a token."),
    Metric("staleness/dropped_rows", "Rows of a step that were too old to train on.", "rows", gauge="dvpo_dropped_rows"),
    Metric("loss/skipped_updates", "Updates of the last step that were withheld as not finite.", gauge="dvpo_skipped_updates"),
    Metric(
        "optimizer/grad_norm",
        "Gradient norm before clipping.",
        chart="Gradient norm before clipping",
        line="norm",
        gauge="dvpo_gradient_norm",
    ),
    Metric("optimizer/learning_rate", "Learning rate.", gauge="dvpo_learning_rate"),
    Metric("critic/returns", "Mean return that the critic learns.", recorded=CRITIC_STEP, chart="Critic: mean return"),
    Metric(
        "critic/explained_variance",
        "Share of the returns' variance that the critic's values explain.",
        recorded=CRITIC_STEP,
        chart="Critic: explained variance",
    ),
    Metric("critic/loss", "Loss of the critic.", recorded=CRITIC_STEP, chart="Critic loss"),
    Metric("critic/grad_norm", "Gradient norm of the critic before clipping.", recorded=CRITIC_STEP),
    Metric("critic/skipped_updates", "Updates of the critic that were withheld as not finite.", recorded=CRITIC_STEP),
    Metric("seconds/forward", "Time of the policy's forward passes.", "s"),
    Metric("seconds/backward", "Time of the policy's backward passes.", "s"),
    Metric("seconds/optimizer", "Time of the policy's optimizer steps.", "s"),
    Metric("seconds/update", "Time of the policy's update in all.", "s"),
)
FIGURES = (
    Figure("gvm_pair_accuracy_mean", "value model pair accuracy, mean value", card=True),
    Figure("gvm_pair_accuracy_last", "value model pair accuracy, last value", card=True),
    Figure("gvm_label_concordance", "value model agreement with labels, mean value"),
    Figure("reward_pair_accuracy", "reward model pair accuracy"),
    Figure("dpo_pair_accuracy", "policy pair accuracy"),
)
