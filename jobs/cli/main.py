"""The command line. What a command needs is imported in it, so that help, version and completion are quick."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dvpo_ray import __version__
from dvpo_ray.errors import DvpoError, UserInputError
from jobs.cli import cluster as job_commands
from jobs.cli.commands import JsonOption, RecipeArg, RecipeKind, ResumeOption, SetOption, guard, local_path, resumed
from jobs.cli.drain import drain
from jobs.cli.evaluation import eval_app
from jobs.cli.head import cluster_app
from jobs.cli.init import init

if TYPE_CHECKING:
    from dvpo_ray.config import Recipe

app = typer.Typer(
    help="RLHF with a frozen value model: DVPO on Ray, vLLM and DeepSpeed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
value_app = typer.Typer(help="The value model: train it, measure it.", no_args_is_help=True)
reward_app = typer.Typer(help="A reward model: train it.", no_args_is_help=True)
policy_app = typer.Typer(help="The policy: train it.", no_args_is_help=True)
dpo_app = typer.Typer(help="Direct preference optimisation: train a policy on pairs.", no_args_is_help=True)
debug_app = typer.Typer(help="When something went wrong: look at what a run kept.", no_args_is_help=True)
k8s_app = typer.Typer(help="Kubernetes: render jobs from recipes, check manifests.", no_args_is_help=True)
config_app = typer.Typer(help="Recipes: show, check, and describe their keys.", no_args_is_help=True)
app.add_typer(value_app, name="value")
app.add_typer(reward_app, name="reward")
app.add_typer(policy_app, name="policy")
app.add_typer(dpo_app, name="dpo")
app.add_typer(eval_app, name="eval")
app.add_typer(config_app, name="config")
app.add_typer(debug_app, name="debug")
app.add_typer(k8s_app, name="k8s")
app.add_typer(job_commands.jobs_app, name="jobs")
job_commands.jobs_app.command("drain")(drain)
app.add_typer(cluster_app, name="cluster")
app.command()(job_commands.submit)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dvpo {__version__}")
        raise typer.Exit()


@app.callback()
def version(
    shown: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and end.")
    ] = False,
) -> None:
    """RLHF with a frozen value model: DVPO on Ray, vLLM and DeepSpeed."""


KindArg = Annotated[RecipeKind | None, typer.Option("--kind", help="What the recipe is for; default: what its sections say.")]


@app.command()
def demo(
    recipe: RecipeArg = "demo",
    overrides: SetOption = [],  # noqa: B006
    resume: ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Align a small language model on this machine, from preference pairs to a report."""
    _run_job("pipeline", recipe, resumed(overrides, resume), as_json)


@app.command("run")
def run_recipe(
    recipe: RecipeArg,
    overrides: SetOption = [],  # noqa: B006
    resume: ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do what a recipe's sections ask for: a value model, then the policy, and a report; or one training alone."""
    _run_job(None, recipe, resumed(overrides, resume), as_json)


app.command()(init)


@value_app.command("train")
def value_train(
    recipe: RecipeArg,
    overrides: SetOption = [],  # noqa: B006
    resume: ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pretrain a value model on preference pairs and seal it."""
    _run_job("value", recipe, resumed(overrides, resume), as_json)


@value_app.command("eval")
def value_eval(
    folder: Annotated[Path, typer.Argument(help="A sealed value model.")],
    data: Annotated[str, typer.Option(help="Preference pairs to measure it on.")],
    split: Annotated[str | None, typer.Option(help="Split of the data.")] = None,
    subset: Annotated[str | None, typer.Option(help="Subset (configuration) of the data.")] = None,
    form: Annotated[str, typer.Option("--format", help="Shape of the rows, as `format` of a recipe.")] = "auto",
    columns: Annotated[
        list[str], typer.Option(metavar="NAME=COLUMN", help="Column that stands for one that shapes know; as often as needed.")
    ] = [],  # noqa: B006
    max_prompt_tokens: Annotated[int, typer.Option(help="Longest prompt, in tokens.")] = 512,
    max_answer_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 512,
    max_bad_share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of rows that may be unusable; default: that of recipes.")
    ] = None,
    dead_letters: Annotated[Path | None, typer.Option(callback=local_path, help="File for the rows that cannot be used.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Pair accuracy of a value model on preference pairs."""

    def work() -> dict[str, Any]:
        from dvpo_ray.config.sections import MAX_BAD_SHARE
        from dvpo_ray.data import Reading, Source
        from jobs.evaluate import evaluate_value

        source, reading = Source(data, split, subset), Reading(form, _named_columns(columns))
        allowed = MAX_BAD_SHARE if max_bad_share is None else max_bad_share
        found = evaluate_value(folder, source, max_prompt_tokens, max_answer_tokens, allowed, dead_letters, reading)
        return found if as_json else _accuracies(found)

    guard(work, as_json)


@reward_app.command("train")
def reward_train(
    recipe: RecipeArg,
    overrides: SetOption = [],  # noqa: B006
    resume: ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a reward model on preference pairs and seal it; `dvpo value eval` measures it on others."""
    _run_job("reward", recipe, resumed(overrides, resume), as_json)


@policy_app.command("train")
def policy_train(
    recipe: RecipeArg,
    overrides: SetOption = [],  # noqa: B006
    resume: ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a policy under a frozen value model."""
    _run_job("policy", recipe, resumed(overrides, resume), as_json)


@dpo_app.command("train")
def dpo_train(
    recipe: RecipeArg,
    overrides: SetOption = [],  # noqa: B006
    resume: ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a policy on preference pairs alone (DPO, IPO), without generation, values or rewards."""
    _run_job("dpo", recipe, resumed(overrides, resume), as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Write a run's report: one self-contained HTML page."""

    def work() -> dict[str, Any]:
        from dvpo_ray.report import write_report

        return {"report": str(write_report(run))}

    guard(work, as_json)


@app.command()
def plan(
    recipe: RecipeArg,
    devices: Annotated[str, typer.Option(help="COUNTxNAME (8xA100-80GB), cpu:CORES:MEMORY_GB[:bf16], or `here`.")],
    kind: KindArg = None,
    model: Annotated[Path | None, typer.Option(help="Folder with config.json; default: the recipe's model.")] = None,
    run: Annotated[Path | None, typer.Option(help="A policy run on one such device, to take measured speeds from.")] = None,
    answer_tokens: Annotated[float | None, typer.Option(help="Mean answer; default: half the limit, or the run's.")] = None,
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Memory, step time, bottleneck and best split of a recipe on given devices, without starting anything."""

    def work() -> dict[str, Any]:
        from dvpo_ray.planning.report import describe
        from jobs.cli.console import show_plan

        found = describe(_checked(recipe, overrides, kind), devices, model, run, answer_tokens)
        if not as_json:
            show_plan(found)
        if found["problems"]:
            raise UserInputError("this recipe does not fit: " + "; ".join(found["problems"]))
        return found if as_json else {}

    guard(work, as_json)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: versions, engine build, cores, memory, shared memory, Ray."""

    def work() -> dict[str, Any]:
        from jobs.cli.console import show_checks
        from jobs.cli.doctor import examine

        checks = examine()
        show_checks(checks, as_json)
        failed = [check["name"] for check in checks if check["status"] == "fail"]
        if failed:
            raise DvpoError(f"{len(failed)} check(s) failed: {', '.join(failed)}")
        return {"checks": checks} if as_json else {}

    guard(work, as_json)


@debug_app.command("replay")
def debug_replay(
    dump: Annotated[Path, typer.Argument(help="A file in a run's `dumps` folder.")],
    recipe: Annotated[str, typer.Option(help="The run's recipe.")],
    policy: Annotated[Path | None, typer.Option(help="Policy folder to compute with; default: the recipe's model.")] = None,
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Compute the rows of an update that was withheld again, one by one: which of them is not finite, and where."""

    def work() -> dict[str, Any]:
        from dvpo_ray.config import PolicyRecipe, load_recipe
        from jobs.cli.console import show_replay
        from jobs.replay import replay

        found = replay(dump, load_recipe(PolicyRecipe, recipe, overrides), policy)
        if not as_json:
            show_replay(found)
        return found if as_json else {}

    guard(work, as_json)


@k8s_app.command("render")
def k8s_render(
    recipe: RecipeArg,
    devices: Annotated[str, typer.Option(help="What it is sized for: COUNTxNAME, or cpu:CORES:MEMORY_GB[:bf16].")],
    image: Annotated[str, typer.Option(help="Image of all pods, as NAME@sha256:DIGEST.")],
    kind: KindArg = None,
    flavour: Annotated[str, typer.Option(help="`retry`, `kueue` (a job in a queue) or `interactive` (a cluster).")] = "retry",
    name: Annotated[str | None, typer.Option(help="Name of the job; default: the run's.")] = None,
    claim: Annotated[str, typer.Option(help="PersistentVolumeClaim that holds the runs.")] = "dvpo-runs",
    queue: Annotated[str, typer.Option(help="Kueue queue.")] = "dvpo",
    secret: Annotated[
        str | None, typer.Option(help="Secret of environment variables: the driver gets all, other pods what they read.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a node; a recipe that needs more gets a group a stage.")] = 8,
    model: Annotated[Path | None, typer.Option(help="Folder with config.json; default: the recipe's model.")] = None,
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Print a RayJob (or RayCluster) for a recipe, sized by the planner; apply it with `kubectl apply -f -`."""

    def work() -> dict[str, Any]:
        from dvpo_ray.config.kinds import KINDS, kind_of
        from dvpo_ray.config.loading import recipe_tree
        from dvpo_ray.kubernetes.render import Request, refuse_image, render
        from dvpo_ray.kubernetes.render import flavour as named_flavour

        refuse_image(image)
        request = Request(devices, image, named_flavour(flavour), name, claim, queue, secret, gpus_per_node, model)
        recipe_type = KINDS[kind or kind_of(*recipe_tree(recipe, overrides))]
        typer.echo(render(recipe_type, recipe, overrides, request), nl=False)
        return {}

    guard(work, as_json=False)


@k8s_app.command("check")
def k8s_check(
    files: Annotated[list[Path], typer.Argument(help="Manifests; `-` is standard input.")],
    as_json: JsonOption = False,
) -> None:
    """Check manifests for what the operator and safety ask beyond the schema."""

    def work() -> dict[str, Any]:
        from dvpo_ray import kubernetes

        read = [(document, str(file)) for file in files for document in kubernetes.read_manifests(file)]
        documents = [document for document, _ in read]
        found = kubernetes.check(documents, ["standard input" if file == "-" else file for _, file in read])
        if found:
            raise UserInputError(f"{len(found)} rule(s) broken\n" + "\n".join(f"  {finding}" for finding in found))
        return {"documents": len(documents), "findings": 0}

    guard(work, as_json)


@config_app.command("show")
def config_show(recipe: RecipeArg, kind: KindArg = None, overrides: SetOption = []) -> None:  # noqa: B006
    """Print a recipe with all defaults filled in, secrets redacted."""

    def work() -> dict[str, Any]:
        from dvpo_ray.config import dump_resolved

        resolved: dict[str, Any] = json.loads(dump_resolved(_checked(recipe, overrides, kind)))
        return resolved

    guard(work, as_json=True, indent=2)


@config_app.command("check")
def config_check(recipe: RecipeArg, kind: KindArg = None, overrides: SetOption = [], as_json: JsonOption = False) -> None:  # noqa: B006
    """Check a recipe without starting anything."""

    def work() -> dict[str, Any]:
        from dvpo_ray.config.kinds import KINDS

        found = type(_checked(recipe, overrides, kind))
        return {"recipe": recipe, "kind": next(name for name, one in KINDS.items() if one is found), "valid": True}

    guard(work, as_json)


@config_app.command("schema")
def config_schema(kind: KindArg = "pipeline") -> None:
    """Print the JSON schema of a recipe."""

    def work() -> dict[str, Any]:
        from dvpo_ray.config.kinds import KINDS

        return KINDS[kind or "pipeline"].model_json_schema()

    guard(work, as_json=True, indent=2)


def _named_columns(given: list[str]) -> dict[str, str]:
    """``NAME=COLUMN`` each.

    Raises:
        UserInputError: one is not.
    """
    pairs = [text.partition("=") for text in given]
    for name, _, column in pairs:
        if not name or not column:
            raise UserInputError(f"--columns {name}{column}: give NAME=COLUMN, as in --columns prompt=ask")
    return {name: column for name, _, column in pairs}


def _accuracies(found: dict[str, Any]) -> dict[str, Any]:
    """What people see of a value model's pair accuracies: each with its interval, where there is one."""
    shown = {"value model": found["value_model"], "pairs": found["pairs"], "rows read": found["rows"]["read"]}
    shown |= {f"rows left out, {reason}": count for reason, count in found["rows"]["rejected"].items()}
    for how, share in found["accuracy"].items():
        shown[f"pair accuracy, {how} value"] = share
        if f"accuracy_{how}_ci95" in found:
            shown[f"pair accuracy, {how} value, 95% interval"] = found[f"accuracy_{how}_ci95"]
    return shown


def _checked(recipe: str, overrides: list[str], kind: RecipeKind | None = None) -> Recipe:
    """A recipe of the kind that was named, or that its sections are of."""
    from dvpo_ray.config.kinds import KINDS, kind_of
    from dvpo_ray.config.loading import build, recipe_tree

    tree, origin = recipe_tree(recipe, overrides)
    return build(KINDS[kind or kind_of(tree, origin)], tree, origin)


def _run_job(kind: RecipeKind | None, recipe: str, overrides: list[str], as_json: bool) -> None:
    """Do the work of a recipe of a kind, or of that which its sections say."""

    def work() -> dict[str, Any]:
        from dvpo_ray.api import run
        from jobs.cli.console import job_progress

        settings = _checked(recipe, overrides, kind)
        with job_progress(as_json, settings.run.name) as listener:
            return run(settings, listener)

    guard(work, as_json)


def quiet_libraries() -> None:
    """Keep libraries' chatter out of the terminal; what matters is raised or shown by us."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not Path("/dev/nvidia0").exists() else "cuda")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """The ``dvpo`` command with the words after it, by default those of this process; ends the process with its exit code."""
    quiet_libraries()
    sys.exit(app(args=words, prog_name="dvpo"))


if __name__ == "__main__":
    main()
