"""`grpo`: see `dvpo_ray.maths.advantages.group_relative` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.registry import Signals, register
from dvpo_ray.config.algorithms import Grpo
from dvpo_ray.maths import advantages


@register("grpo")
def estimate(settings: Grpo, signals: Signals) -> Tensor:
    """Advantages [B, T] from the scores of whole answers, compared among the answers of a prompt.

    KL is compared too, but joins undivided: where all scores are equal, division by what is left would turn rounding into
    advantages of full size.
    """
    scores_b = advantages.sequence_scores(signals.q_bt, signals.mask_bt, settings.score) + signals.scores_b
    kl_b = (signals.k_bt * signals.mask_bt).sum(1) - signals.scores_b
    scores_bt = advantages.group_relative(scores_b, signals.mask_bt, signals.group_b, settings.normalise)
    return scores_bt + advantages.group_relative(kl_b, signals.mask_bt, signals.group_b, "none")
