"""Mixtures of experts on a real engine, which serves what their folders hold and what they are sent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.rollout.pool import RolloutPool
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.types import Trajectory
from scripts.tiny_families import save
from tests.support.engines import MODEL, Sent, answers_of, gap, log_probs_of, requests, settings, weights_of


@pytest.mark.slow
@pytest.mark.fresh
@pytest.mark.integration
@pytest.mark.parametrize("family", ["Qwen3Moe", "Mixtral"])
def test_a_mixture_is_served_as_it_is_sent(family: str, ray: ClusterSection, tmp_path: Path) -> None:
    save(family, tmp_path, max_position_embeddings=512)
    stored = load_file(tmp_path / "model.safetensors")
    pool = RolloutPool(str(tmp_path), MODEL, settings().rollout, ray, seed=0)
    try:
        pool.wait_ready()
        assert gap_to(stored, tmp_path, answers_of(pool, requests(6))) <= 1e-3
        for version, scale in ((1, 1.1), (2, 0.9)):
            sent = {name: tensor * scale for name, tensor in stored.items()}
            pool.sync(Sent(version, sent, limit=2**16))
            assert gap_to(sent, tmp_path, answers_of(pool, requests(6))) <= 1e-3
    finally:
        pool.stop()


def gap_to(stored: dict[str, torch.Tensor], folder: Path, answers: list[Trajectory]) -> float:
    """Between the answers' log-probs and those of a model folder with these tensors."""
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return gap(answers, log_probs_of(weights_of(folder, 1.0), folder, answers))
