"""What evaluations record, and what a result says of them."""

from __future__ import annotations

from dvpo_ray.metrics import EVERY_EVALUATION, Figure, Metric


def _held_out(name: str, meaning: str, unit: str = "", console: str = "", chart: str = "", gauge: str = "") -> Metric:
    return Metric(f"eval/{name}", meaning, unit, EVERY_EVALUATION, console, chart, gauge=gauge)


METRICS = (
    _held_out(
        "gold",
        "Gold score of held-out answers.",
        console="gold",
        chart="Held-out gold (mean, 95% interval)",
        gauge="dvpo_gold",
    ),
    _held_out("gold_ci95_low", "Lower end of its 95% interval, over groups of prompts."),
    _held_out("gold_ci95_high", "Upper end of its 95% interval."),
    _held_out("kl_per_token", "KL of held-out answers.", "nats a token", "KL/token", gauge="dvpo_eval_kl_per_token"),
    _held_out("kl_per_answer", "KL of held-out answers, summed over their tokens.", "nats an answer"),
    _held_out("tokens", "Mean held-out answer.", "tokens"),
    _held_out("cut_share", "Share of held-out answers cut at rollout.max_new_tokens.", console="cut"),
    _held_out("cut_share_ci95_low", "Lower end of its 95% interval, over groups of prompts."),
    _held_out("cut_share_ci95_high", "Upper end of its 95% interval."),
    _held_out("value_mean", "What the value model gives held-out answers: mean over tokens."),
    _held_out("value_last", "What the value model gives held-out answers at the last token."),
    _held_out("seconds", "Time of the evaluation.", "s"),
)
FIGURES = (
    Figure("gold_before", "gold before", card=True),
    Figure("gold_after", "gold after", card=True),
    Figure("gold_after_ci95", "gold after, 95% interval"),
    Figure("gold", "gold"),
    Figure("win_rate", "win rate against the start", card=True),
    Figure("win_rate_ci95", "win rate, 95% interval"),
    Figure("kl_per_token", "KL per token (nats)", card=True),
    Figure("cut_share_after", "share of answers cut at max_new_tokens", card=True),
    Figure("cut_share", "share of answers cut at max_new_tokens"),
)
