"""``dvpo init``: a recipe to start from, written for a model, data and devices."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvpo_ray.errors import UserInputError
from dvpo_ray.io.disk import write_text
from jobs.cli.commands import JsonOption, guard, local_path

if TYPE_CHECKING:
    from dvpo_ray.planning.plan import Split

SMALL_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Wanted:
    """What a recipe is written for; without ``prompts`` those of the pairs are taken."""

    model: str
    pairs: str
    prompts: str
    devices: str


def init(
    model: Annotated[str | None, typer.Option(help="A folder, a Hugging Face name, or the small model that is shipped.")] = None,
    pairs: Annotated[str | None, typer.Option(help="Preference pairs: a file, a folder, or a Hugging Face dataset.")] = None,
    prompts: Annotated[str | None, typer.Option(help="Prompts to train on; default: those of the pairs.")] = None,
    devices: Annotated[str | None, typer.Option(help="COUNTxNAME (8xA100-80GB), cpu:CORES:MEMORY_GB, or `here`.")] = None,
    output: Annotated[Path, typer.Option(callback=local_path, help="File to write.")] = Path("recipe.toml"),
    overwrite: Annotated[bool, typer.Option(help="Replace the file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a commented recipe; asks for what no option says."""

    def work() -> dict[str, Any]:
        from dvpo_ray.config import PipelineRecipe
        from dvpo_ray.config.loading import build

        if output.exists() and not overwrite:
            raise UserInputError(f"'{output}' is there already: name another --output, or give --overwrite")
        asking = sys.stdin.isatty() and not as_json
        chosen = model or _ask(asking, "model", "Model (folder or Hugging Face name)", SMALL_MODEL)
        data = pairs or _ask(asking, "pairs", "Preference pairs (file, folder or Hugging Face dataset)", None)
        shown = prompts or (_ask(asking, "prompts", "Prompts to train on", data) if asking else data)
        place = devices or (_ask(asking, "devices", "Devices (8xH100-80GB, cpu:16:64, or here)", "here") if asking else "here")
        wanted = Wanted(chosen, data, shown, place)
        text = recipe_text(wanted, output.stem, _device_settings(wanted))
        build(PipelineRecipe, tomllib.loads(text), str(output))
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, text)
        return {
            "recipe": str(output),
            "check": f"dvpo config check {output}",
            "plan": f"dvpo plan {output} --devices {place}",
            "train": f"dvpo run {output}",
        }

    guard(work, as_json)


def _ask(asking: bool, option: str, question: str, default: str | None) -> str:
    """An answer from the terminal.

    Raises:
        UserInputError: nobody is there to ask.
    """
    if not asking:
        raise UserInputError(f"--{option} is missing, and there is no terminal to ask on")
    return str(typer.prompt(question, default=default)).strip()


@dataclass(frozen=True)
class DeviceSettings:
    """What follows from the devices: sizes of a step, and how many of each actor there are."""

    prompts_per_step: int
    pairs_per_step: int
    split: dict[str, int]
    remark: str


def _device_settings(wanted: Wanted) -> DeviceSettings:
    """Sizes for the devices, and the planner's split of them where the model is here to be planned with.

    Raises:
        UserInputError: the devices are not known.
    """
    from dvpo_ray.planning.devices import parse_devices

    group = parse_devices(wanted.devices)
    if group.device.is_cpu:
        return DeviceSettings(32, 8, {}, "one CPU: all actors share it")
    if group.count == 1:
        return DeviceSettings(64, 32, {}, f"one {group.device.name}: engine, scorer and learner share it")
    rows = 64 * group.count
    folder = Path(wanted.model)
    if not (folder / "config.json").is_file():
        remark = f"{group.count} x {group.device.name}: `dvpo plan` names the best split of them once the model is here"
        return DeviceSettings(rows, 64, {}, remark)
    split = _best_split(wanted, folder, rows)
    if split is None:
        raise UserInputError(f"'{wanted.model}' does not fit {wanted.devices}: take more or larger devices, or a smaller model")
    return DeviceSettings(rows, 64, split.settings, f"{group.count} x {group.device.name}, split as `dvpo plan` finds best")


def _best_split(wanted: Wanted, folder: Path, prompts_per_step: int) -> Split | None:
    """How many of each actor take the shortest step; None where none fits."""
    from dvpo_ray.config import PipelineRecipe
    from dvpo_ray.config.loading import build
    from dvpo_ray.planning.device_defaults import ROLES, settle
    from dvpo_ray.planning.devices import parse_devices
    from dvpo_ray.planning.plan import best_split
    from dvpo_ray.planning.shapes import ModelShape
    from dvpo_ray.planning.times import Efficiency, Workload

    group, shape = parse_devices(wanted.devices), ModelShape.from_folder(folder)
    tree = {
        "model": {"path": wanted.model},
        "value": {"data": {"source": wanted.pairs}},
        "policy": {"data": {"source": wanted.prompts}, "rollout": {"prompts_per_step": prompts_per_step}},
    }
    recipe, _ = settle(build(PipelineRecipe, tree), {role: [group.device.facts] for role in ROLES}, shape)
    policy = recipe.policy
    work = Workload.of(policy, policy.rollout.max_new_tokens / 2)
    return best_split(policy, shape, recipe.model.attention, group, work, Efficiency())


def recipe_text(wanted: Wanted, name: str, settings: DeviceSettings) -> str:
    """The recipe as commented TOML."""
    from dvpo_ray.config.loading import toml_value

    sections: dict[str, dict[str, int]] = {}
    for path, count in settings.split.items():
        section, key = path.split(".")
        sections.setdefault(section, {})[key] = count
    lines = {section: "".join(f"{key} = {count}\n" for key, count in keys.items()) for section, keys in sections.items()}
    return f"""\
# Written by `dvpo init` for {settings.remark}.
# All keys and their defaults: `dvpo config show {name}.toml`, docs/configuration.md.

[run]
name = {toml_value(name)}
# The run's folder is output_dir/name.
output_dir = "runs"

[model]
# A folder, or a Hugging Face name.
path = {toml_value(wanted.model)}

# First half: a value model learns from pairs which beginnings of answers lead to the better one. It is frozen after that.
[value]
pairs_per_step = {settings.pairs_per_step}

[value.data]
source = {toml_value(wanted.pairs)}
# Longer rows are left out and counted; look at the counts before you lower these.
max_prompt_tokens = 512
max_answer_tokens = 512

[value.learner]
learning_rate = 1e-5

# Second half: the policy is trained on answers to prompts, judged by the frozen value model alone.
[policy]
steps = 100

[policy.data]
source = {toml_value(wanted.prompts)}
max_prompt_tokens = 512

[policy.rollout]
prompts_per_step = {settings.prompts_per_step}
max_new_tokens = 256
{lines.get("rollout", "")}
[policy.rollout.engine]
# At least the longest prompt and answer together.
max_model_len = 768

[policy.scorer]
{lines.get("scorer", "")}
[policy.learner]
learning_rate = 1e-6
{lines.get("learner", "")}
[policy.kl.control]
# The pull towards the model that you started from: raise it when answers become odd.
type = "fixed"
coefficient = 0.05

[policy.checkpoint]
every = 10

# Held-out prompts, answered before and after training; name a scoring function with `gold` to compare them.
# [policy.evaluation]
# source = "held_out.jsonl"
# gold = "my_package.scores:my_score"
"""
