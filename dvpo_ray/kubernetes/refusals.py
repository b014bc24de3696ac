"""What a recipe may not say when it runs on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvpo_ray.config import Recipe
from dvpo_ray.config.references import data_sources, filled_in, functions, left_behind, models, places, secrets
from dvpo_ray.data.sources import names_a_path
from dvpo_ray.errors import UserInputError
from dvpo_ray.kubernetes.pods import RUNS
from dvpo_ray.models.hub import named_for_elsewhere
from dvpo_ray.models.packaged import SMOLLM2


def refuse_what_cannot_run(tree: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuse secrets, what is on this machine alone, and another start than the run's own last checkpoint.

    Args:
        tree: what the recipe says, unchecked and without defaults.
        recipe: the same, checked.

    Raises:
        UserInputError: naming the setting and the remedy.
    """
    _refuse_secrets(recipe)
    _refuse_local_paths(tree, recipe)
    _refuse_another_start(recipe)


def _refuse_secrets(recipe: Recipe) -> None:
    for path in secrets(recipe):
        raise UserInputError(
            f"{path} would be readable in a ConfigMap: leave it out, put it into a Secret as an environment variable, and name "
            "that Secret with --secret"
        )


def _refuse_local_paths(tree: Mapping[str, Any], recipe: Recipe) -> None:
    """What pods read must be in the image, on the volume, or on a hub; what they write, on the volume or away."""
    for key, said, text in filled_in(tree, recipe):
        if key != "run.output_dir":
            raise UserInputError(
                f"{key} = '{said}' is '{text}' on this machine, pods see the image and the volume: name it as {RUNS}/..."
            )
    read = ((key, text, text) for key, text in (models(recipe) | data_sources(recipe)).items() if _is_local(key, text))
    written = ((key, f"{scheme}{path}", path) for key, scheme, path in places(recipe) if not path.startswith(f"{RUNS}/"))
    for key, text, path in (*read, *written):
        raise UserInputError(
            f"{key} = '{text}' is on this machine, pods see the image and the volume: name it as "
            f"{text.removesuffix(path)}{RUNS}/..., and copy to the volume what is read there"
        )
    for key, text in functions(recipe).items():
        module = left_behind(text)
        if module is not None:
            raise UserInputError(
                f"{key} = '{text}': '{module}' lies in {Path.cwd()}, where pods do not see it: install it in an image made from "
                "this project's"
            )


def _refuse_another_start(recipe: Recipe) -> None:
    """A retry must go on from what its job has checkpointed, not begin again where the recipe says."""
    if recipe.run.resume not in ("auto", "never"):
        raise UserInputError(
            f"run.resume = '{recipe.run.resume}': a job on Kubernetes goes on from the last checkpoint of its own run: leave it "
            f"out; to go on with another run, copy its folder to {RUNS} and give its name as run.name"
        )


def _is_local(key: str, text: str) -> bool:
    if text.startswith((f"{RUNS}/", "package:")) or text == SMOLLM2:
        return False
    is_folder = key in ("model.path", "policy.value_model") or key.endswith((".folder", ".initial"))
    return (is_folder and not named_for_elsewhere(key, text)) or names_a_path(text) or Path(text).exists()
