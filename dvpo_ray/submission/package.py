"""A recipe made ready to run as a Ray job: one package of code, recipe and data, a command, and what the job server shows of it.

Whoever may look at a cluster may read all of it, so nothing secret goes along.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_ray.config import DpoRecipe, PipelineRecipe, PolicyRecipe, Recipe, RewardRecipe, ValueRecipe
from dvpo_ray.config.dpo import DpoTraining
from dvpo_ray.config.kinds import KINDS, kind_of
from dvpo_ray.config.loading import build, recipe_tree, to_toml, toml_value
from dvpo_ray.config.recipes import PairTraining, PolicyTraining
from dvpo_ray.config.references import data_sources, filled_in, functions, left_behind, models, places, secrets
from dvpo_ray.config.sections import GenerationSection
from dvpo_ray.data.sources import PACKAGE_PREFIX, names_a_path
from dvpo_ray.errors import ConfigError
from dvpo_ray.models.hub import named_for_elsewhere
from dvpo_ray.models.packaged import SMOLLM2
from dvpo_ray.registry import CODE
from dvpo_ray.submission.archive import Archive

RECIPE = "recipe.toml"
ROOT = Path(__file__).resolve().parents[2]
# Ray's job server sends SIGTERM, and SIGKILL so many seconds later; it reads this from the job's own environment.
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
# Of a policy's step score, learn, sync and checkpoint; of another training's last one learn, checkpoint, measure and save.
CALLS_TO_STOP = 4
COMMANDS: dict[type[Recipe], tuple[str, str]] = {
    PipelineRecipe: ("jobs.pipeline", "demo"),
    ValueRecipe: ("jobs.pretrain_value", "value train"),
    PolicyRecipe: ("jobs.train_policy", "policy train"),
    DpoRecipe: ("jobs.train_dpo", "dpo train"),
    RewardRecipe: ("jobs.train_reward", "reward train"),
}


@dataclass(frozen=True)
class Options:
    """How a recipe is submitted.

    ``limit``: most bytes the cluster takes. ``here``: the cluster's head is this machine. ``image``: the cluster's image holds
    the code. ``include``: files and folders below the current one that go along. ``as_json``: the job prints JSON lines.
    """

    limit: int
    here: bool
    image: bool = False
    include: tuple[Path, ...] = ()
    as_json: bool = False


@dataclass(frozen=True)
class Submission:
    """What the job server is given, and the folder of the run it starts."""

    run_folder: str
    command: str
    package: Path
    environment: dict[str, str]
    metadata: dict[str, str]


@dataclass(frozen=True)
class SubmissionRequest:
    """A recipe that may be submitted: what it says, overrides applied, and which training it is for."""

    name: str
    overrides: tuple[str, ...]
    kind: type[Recipe]
    recipe: Recipe


def parse(name: str, overrides: Sequence[str] = (), reward: bool = False) -> SubmissionRequest:
    """Check a recipe, whose sections say which training it is for; ``reward``: value training's are to make a reward model.

    Raises:
        ConfigError: it is not valid, belongs to another cluster, or holds a secret.
    """
    tree, origin = recipe_tree(name, overrides)
    kind = KINDS[kind_of(tree, origin)]
    if reward and kind not in (ValueRecipe, RewardRecipe):
        raise ConfigError(f"{origin}: --reward takes a recipe with [value] alone, whose pairs a reward model is trained on")
    kind = RewardRecipe if reward else kind
    recipe = build(kind, tree, origin)
    for path in secrets(recipe):
        raise ConfigError(
            f"{path} would be readable in the job's package: leave it out of the recipe, and set the environment variable that "
            "its service reads where the cluster is started"
        )
    if recipe.cluster.address not in (None, "auto"):
        raise ConfigError(
            f"cluster.address = '{recipe.cluster.address}': a job runs on the cluster it is submitted to; leave it out, and name "
            "that cluster with --address"
        )
    return SubmissionRequest(name, tuple(overrides), kind, recipe)


def build_package(asked: SubmissionRequest, options: Options, package: Path) -> Submission:
    """Write the package and say how to start it.

    Raises:
        ConfigError: the job would not find what the recipe names, or the package is larger than the cluster takes.
    """
    module, command = COMMANDS[asked.kind]
    said, _ = recipe_tree(asked.name, asked.overrides)
    tree, origin = recipe_tree(asked.name, [*asked.overrides, *_on_the_cluster(said, asked.recipe, options.here)])
    recipe = build(asked.kind, tree, f"{origin}, for the cluster")
    included = [*_data(recipe), *map(_inside, map(str, options.include))]
    _check_functions(recipe, included)
    with Archive(package, options.limit) as archive:
        archive.add_text(RECIPE, to_toml(tree).lstrip())
        for name in () if options.image else CODE:
            archive.add(name, ROOT / name)
        for path in dict.fromkeys(included):
            archive.add(path.as_posix(), path, within=Path())
    start = f"dvpo {command}" if options.image else f"python -m {module}"
    run_folder = str(recipe.run.output_dir / recipe.run.name)
    # The dashboard shows `job_name` in its list of jobs.
    metadata = {
        "job_name": recipe.run.name,
        "run": recipe.run.name,
        "run_folder": run_folder,
        "recipe": Path(asked.name).name,
        "command": f"dvpo {command}",
    }
    commit = None if options.image else git_commit(ROOT)
    return Submission(
        run_folder=run_folder,
        command=f"{start} {RECIPE}{' --json' if options.as_json else ''}",
        package=package,
        environment={STOP_WAIT: str(_stop_wait_s(recipe))},
        metadata=metadata if commit is None else metadata | {"git_commit": commit},
    )


def git_commit(folder: Path) -> str | None:
    """The checkpoint that a checkout is at, marked `-dirty` when files differ from it; None for what is no checkout."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a repository that it does not trust: nothing depends on it
        return None


def _on_the_cluster(tree: dict[str, Any], recipe: Recipe, here: bool) -> Iterator[str]:
    """Overrides for a process that starts in a folder of its own, which goes with the job."""
    yield "cluster.address=auto"
    for key, said, text in filled_in(tree, recipe):
        if not here:
            raise ConfigError(
                f"{key} = '{said}' is '{text}' on this machine, and the cluster is elsewhere: name what all its machines see by "
                f"its absolute path: --set {key}=/..."
            )
        if key in data_sources(recipe) and names_a_path(text) and not Path(text).exists():
            raise ConfigError(f"{key} = '{said}' does not exist: it is '{text}' here; correct it")
        yield f"{key}={toml_value(text)}"
    for key, scheme, path in _lasting(recipe):
        if Path(path).is_absolute():
            continue
        if not here:
            raise ConfigError(
                f"{key} = '{scheme}{path}' is relative to a folder of this machine, and the cluster is elsewhere: name a folder "
                f"that all its machines see by its absolute path: --set {key}={scheme}/..."
            )
        yield f"{key}={toml_value(f'{scheme}{Path(path).resolve()}')}"


def _lasting(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(dotted path, scheme, path) of what must outlive the job in the file system."""
    yield "run.output_dir", "", str(recipe.run.output_dir)
    for key, text in models(recipe).items():
        if text != SMOLLM2 and not named_for_elsewhere(key, text):
            yield key, "", text
    if recipe.run.resume not in ("auto", "never"):
        yield "run.resume", "", recipe.run.resume
    yield from places(recipe)


def _data(recipe: Recipe) -> Iterator[Path]:
    """Files and folders of data that lie here and go along. Absolute paths are those of the cluster."""
    for key, text in data_sources(recipe).items():
        if text.startswith(PACKAGE_PREFIX) or Path(text).is_absolute():
            continue
        if Path(text).exists():
            yield _inside(text, key)
        elif names_a_path(text):
            raise ConfigError(
                f"{key} = '{text}' does not exist in {Path.cwd()}: submit from the folder that holds it, or copy it to where the "
                "cluster sees it and give its absolute path"
            )


def _inside(text: str, key: str = "--include") -> Path:
    """A path below the current folder, where the job finds it below its own."""
    path = Path(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(f"{key} = '{text}' is not below {Path.cwd()}: only what is goes along; submit from a folder above it")
    if not path.exists():
        raise ConfigError(f"{key} = '{text}' does not exist in {Path.cwd()}: correct the name")
    return path


def _check_functions(recipe: Recipe, included: Sequence[Path]) -> None:
    """Refuse a function of a module that lies here and was left behind. Others must be installed on the cluster."""
    for key, text in functions(recipe).items():
        path = left_behind(text, included)
        if path is not None:
            raise ConfigError(f"{key} = '{text}': '{path}' lies in {Path.cwd()} and would stay there: add --include {path}")


def _stop_wait_s(recipe: Recipe) -> int:
    """Time for a job that is asked to stop: what its stages may take until it has checkpointed and waited for its last copies."""
    found = (getattr(recipe, name, None) for name in ("value", "policy", "dpo"))
    return math.ceil(max(seconds_to_stop(part, recipe.cluster.call_timeout_s) for part in found if part is not None))


def _generation_s(rollout: GenerationSection, rows: int) -> float:
    return rollout.row_timeout_s * math.ceil(rows / (rollout.actors * rollout.engine.max_num_seqs))


def seconds_to_stop(part: PairTraining | PolicyTraining, call_s: float) -> float:
    """Deadlines of all stages that can lie between the signal and the end of one training; that of answers as often as they fill
    the engines."""
    seconds = CALLS_TO_STOP * call_s
    if isinstance(part, PolicyTraining):
        seconds += _generation_s(part.rollout, part.rollout.rows_per_step) * (part.off_policy.max_staleness + 1)
    if isinstance(part, PolicyTraining | DpoTraining) and part.evaluation is not None:
        held_out = (part.evaluation.max_prompts or 1) * part.evaluation.answers_per_prompt
        seconds += _generation_s(part.rollout, held_out) + 2 * call_s
    return seconds + (part.checkpoint.copy_wait_s if part.checkpoint.copy_to is not None else 0.0)
