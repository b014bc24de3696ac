"""Which pods of a job read which secrets from their environment."""

from __future__ import annotations

from dvpo_ray.config import Recipe
from dvpo_ray.config.references import models
from dvpo_ray.errors import UserInputError
from dvpo_ray.kubernetes.additions import section_of
from dvpo_ray.kubernetes.manifests import Tree
from dvpo_ray.models.hub import named_for_elsewhere
from dvpo_ray.planning.trainings import trainings

HUB_TOKEN = "HF_TOKEN"


def reward_tokens(recipe: Recipe) -> dict[str, str]:
    """Variables that scorers read, by the dotted path of the setting that names them."""
    return {
        f"{name}.rewards.{reward}.token_variable": config.token_variable
        for name, training in trainings(recipe).items()
        for reward, config in getattr(training, "rewards", {}).items()
        # Of whatever kind: a plug-in's may have one too.
        if getattr(config, "token_variable", None) is not None
    }


def secret_environment(recipe: Recipe, role: str, secret: str | None) -> tuple[list[Tree], list[Tree]]:
    """(``env``, ``envFrom``) entries by which the pods of a role (empty: of all) get what their actors read of a Secret.

    The driver gets all of it, for trackers and stores; scorers the tokens of rewards; and whoever loads a model of the Hub
    HF_TOKEN, where the Secret has it.
    """
    if secret is None:
        return [], []
    if role == "head":
        return [], [{"secretRef": {"name": secret}}]
    wanted = dict.fromkeys(reward_tokens(recipe).values(), False) if role in ("", "scorer") else {}
    if any(named_for_elsewhere(key, text) for key, text in models(recipe).items()):
        wanted.setdefault(HUB_TOKEN, True)
    # What a recipe's own section says of a variable stands.
    own = section_of(recipe.kubernetes, role)
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name} | ({"optional": True} if optional else {})}}
        for name, optional in wanted.items()
        if name not in own.env and name not in own.secret_env
    ], []


def refuse_missing_tokens(recipe: Recipe, role: str, secret: str | None) -> None:
    """Refuse a recipe whose scorers, in pods of ``role``, would not find a token.

    Raises:
        UserInputError: naming the setting and the remedy.
    """
    own = section_of(recipe.kubernetes, role)
    if secret is not None or own.env_secrets or own.env_config_maps:
        return
    for path, variable in reward_tokens(recipe).items():
        if variable not in own.secret_env and variable not in own.env:
            raise UserInputError(
                f"{path} = '{variable}': no pod of the scorers has that variable: put the token into a Secret under this key and "
                f"name it with --secret, or as kubernetes.scorer.secret_env = {{{variable} = 'SECRET:KEY'}}"
            )
