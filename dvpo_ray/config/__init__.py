"""Configuration: strict, frozen pydantic models read from TOML recipes. Imports no torch, Ray, vLLM or DeepSpeed."""

from dvpo_ray.config.dpo import DpoRecipe
from dvpo_ray.config.loading import dump_resolved, load_recipe
from dvpo_ray.config.recipes import PipelineRecipe, PolicyRecipe, Recipe, RewardRecipe, ValueRecipe

__all__ = [
    "DpoRecipe",
    "PipelineRecipe",
    "PolicyRecipe",
    "Recipe",
    "RewardRecipe",
    "ValueRecipe",
    "dump_resolved",
    "load_recipe",
]
