"""Rows of an update that was withheld, computed again one by one: which of them is not finite, and where it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.errors import ConfigError
from dvpo_ray.learning.batching import pad_sequences
from dvpo_ray.learning.policy_update import TokenBatch, loss, prepare
from dvpo_ray.loop.dumps import read_dump
from dvpo_ray.models.packaged import locate
from dvpo_ray.models.reader_check import check_reader
from dvpo_ray.models.token_reader import PolicyReader, load_policy
from jobs.models import base_model, settle_devices

CHECKED = ("log_probs", "ref_log_probs", "values")


def replay(dump: Path, recipe: PolicyRecipe, policy: Path | None = None) -> dict[str, Any]:
    """Forward and backward passes of every row alone, on a policy folder (default: the recipe's model)."""
    scored, step, beta = read_dump(dump)
    base = base_model(recipe.model)
    recipe, _ = settle_devices(recipe, base)
    settings = recipe.policy
    if settings.advantage.online_critic is not None:
        raise ConfigError(
            "advantage.type = 'ppo': a dump does not hold the critic's values and the rewards before it, so its step cannot be "
            "computed again; look at the rows themselves"
        )
    folder = base.folder if policy is None else locate(str(policy), field="--policy").folder
    dtype = getattr(torch, settings.learner.dtype)
    model = load_policy(folder, dtype, recipe.model.attention, recipe.model.trust_remote_code)
    reader = PolicyReader(model, settings.rollout.temperature)
    check_reader(reader)
    prepared, _ = prepare(scored, step, settings.advantage, settings.kl, beta, rewards=settings.rewards)
    # Rows are read one by one, so pairs are not there to be clipped together.
    alone = {"clip": "separate"} if settings.advantage.keeps_pairs else {}
    advantage = settings.advantage.model_copy(update=alone)
    rows: list[dict[str, Any]] = []
    for i, row_id in enumerate(scored.rows):
        one = scored.take([i])
        not_finite = [name for name in CHECKED if not np.isfinite(getattr(one, name).flat).all()]
        if not np.isfinite(prepared.advantages.take([i]).flat).all():
            not_finite.append("advantages")
        batch = pad_sequences(*one.sequences([0])[:2], masks=one.action_mask.rows())
        log_probs, entropy = reader(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
        tokens = TokenBatch.of(prepared, [i], None, "cpu")
        total, _ = loss(log_probs, entropy, tokens, advantage, settings.ppo, settings.kl, settings.off_policy, beta)
        model.zero_grad(set_to_none=True)
        total.backward()
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
        for name, value in (("learner log-probs", log_probs), ("loss", total), ("gradient", torch.tensor(norm))):
            if not torch.isfinite(value).all():
                not_finite.append(name)
        rows.append(
            {
                "row": str(row_id),
                "tokens": one.tokens,
                "loss": float(total),
                "gradient_norm": norm,
                "not_finite": ", ".join(not_finite),
            }
        )
    bad = [row for row in rows if row["not_finite"]]
    return {"dump": str(dump), "step": step + 1, "rows": len(rows), "rows_not_finite": len(bad), "bad": bad, "all": rows}
