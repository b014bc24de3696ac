"""What every job that will start engines checks first, before anything is trained: whether they can serve the model at all."""

from __future__ import annotations

import os
from pathlib import Path

import ray
import torch

from actors.cluster.session import cluster_has_gpus, ray_session
from actors.rollout.engine_tables import architectures, cpu_head_sizes
from dvpo_ray.config import DpoRecipe, PipelineRecipe, PolicyRecipe
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.errors import ConfigError
from dvpo_ray.models.loading import model_config
from dvpo_ray.planning.preflight import Engines, Memory, parameters_in, too_large, unservable, unsyncable
from dvpo_ray.runs.run import Event, Listener

LONG_ALLOWED = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


def check_engines(
    recipe: PipelineRecipe | PolicyRecipe | DpoRecipe, folder: Path, listener: Listener, trains: bool = True
) -> None:
    """Refuse a recipe whose engines could not serve the model in ``folder``, or whose processes this machine could not hold.

    ``trains``: the policy is trained, not only asked.

    Raises:
        ConfigError: naming every field with its remedy.
        ModelError: the model's configuration cannot be read.
    """
    field, section = (
        ("dpo.rollout", recipe.dpo.rollout) if isinstance(recipe, DpoRecipe) else ("policy.rollout", recipe.policy.rollout)
    )
    on_cpu = engines_on_cpu(recipe.cluster)
    config = model_config(folder, recipe.model.trust_remote_code)
    text = config.get_text_config().to_dict()
    long_allowed = os.environ.get(LONG_ALLOWED, "0") == "1"
    problems = list(unservable(text, Engines(field, section, on_cpu), cpu_head_sizes(), long_allowed))
    doubts = []
    named = set(config.architectures or ())
    if named and architectures() and named.isdisjoint(architectures()):
        doubts.append(f"vLLM has no code of its own for {', '.join(sorted(named))}: engines try Transformers', or do not start")
    if trains and on_cpu and recipe.cluster.address is None and not isinstance(recipe, DpoRecipe):
        never, maybe = too_large(recipe.policy, text, parameters_in(folder), recipe.model.attention, Memory.of_this_machine())
        problems, doubts = problems + never, doubts + maybe
    if trains:
        trained = recipe.dpo if isinstance(recipe, DpoRecipe) else recipe.policy
        problems += unsyncable(text, adapters=trained.lora is not None)
    if problems:
        raise ConfigError("; ".join(problems))
    for doubt in doubts:
        listener(Event("warning", doubt))


def engines_on_cpu(cluster: ClusterSection) -> bool:
    """Whether engines will run on CPU. On a cluster its nodes say so, not the machine of this process."""
    if ray.is_initialized():
        return not cluster_has_gpus()
    if cluster.address is None:
        return not torch.cuda.is_available()
    with ray_session(cluster):
        return not cluster_has_gpus()
