"""Which function does the work of which recipe: what ``dvpo_ray.run`` and the command line look up."""

from __future__ import annotations

from dvpo_ray.config import DpoRecipe, PipelineRecipe, PolicyRecipe, Recipe, RewardRecipe, ValueRecipe

# Entry points, called with the recipe and a listener.
JOBS: dict[type[Recipe], str] = {
    PipelineRecipe: "jobs.pipeline:run_pipeline",
    ValueRecipe: "jobs.pretrain_value:pretrain_value",
    RewardRecipe: "jobs.pretrain_value:pretrain_value",
    PolicyRecipe: "jobs.train_policy:train_policy",
    DpoRecipe: "jobs.train_dpo:train_dpo",
}
