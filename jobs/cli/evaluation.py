"""`dvpo eval`: what a policy is worth, by gold, by a judge, against KL, and with the best of several answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from jobs.cli.commands import JsonOption, RecipeArg, SetOption, guard, local_path

if TYPE_CHECKING:
    from dvpo_ray.config import PolicyRecipe
    from dvpo_ray.runs.run import Listener

PolicyOption = Annotated[Path | None, typer.Option(help="Policy folder to evaluate; default: the recipe's model.")]
FormatOption = Annotated[str, typer.Option("--format", help="mt-bench, alpaca-eval, arena-hard or jsonl.")]


class EvalGroup(TyperGroup):
    """`dvpo eval RECIPE` is short for `dvpo eval policy RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in where it was left out."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["policy", *args]
        return super().parse_args(ctx, args)


def numbers(text: str) -> list[int]:
    """Positive numbers with commas between, in order."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise typer.BadParameter(f"'{text}' is no list of positive numbers; give one like 1,2,4,8")
    return found


def default_verdicts(a: Path, b: Path) -> Path:
    """Beside the answers, the same for B and A. Not ``.jsonl``: benchmarks' tools take such files beside answers for answers."""
    first, second = sorted((a, b), key=lambda path: (path.stem, str(path)))
    return first.with_name(f"{first.stem}-against-{second.stem}.verdicts")


eval_app = typer.Typer(
    cls=EvalGroup,
    help="What a policy is worth: gold, answers to benchmarks, a judge, best of n, the KL-against-gold frontier.",
    no_args_is_help=True,
)


@eval_app.command("policy")
def eval_policy(
    recipe: RecipeArg,
    policy: PolicyOption = None,
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Answer a policy recipe's held-out prompts and measure gold, KL and length; `policy` may be left out."""

    def job(settings: PolicyRecipe, listener: Listener) -> dict[str, Any]:
        from jobs.evaluate import evaluate_policy

        return evaluate_policy(settings, policy, listener)

    _evaluate(job, recipe, overrides, as_json)


@eval_app.command("answers")
def eval_answers(
    recipe: RecipeArg,
    questions: Annotated[Path, typer.Option(help="The benchmark's file of questions.")],
    form: FormatOption,
    out: Annotated[
        Path, typer.Option(callback=local_path, help="File of answers to write; one that is there is not written over.")
    ],
    policy: PolicyOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the answers; default: its folder's.")] = None,
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Answer a benchmark's questions, in its own format; the recipe's policy.rollout says how."""

    def job(settings: PolicyRecipe, listener: Listener) -> dict[str, Any]:
        from jobs.answer import answer_questions

        return answer_questions(settings, policy, questions, form, out, name, listener)

    _evaluate(job, recipe, overrides, as_json)


@eval_app.command("best-of")
def eval_best_of(
    recipe: RecipeArg,
    counts: Annotated[
        Any, typer.Option("--n", parser=numbers, metavar="N,N,...", help="Numbers of answers to choose the best from.")
    ] = "1,2,4,8",
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt; more make the estimate better.")] = 16,
    policy: PolicyOption = None,
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Gold of the best of n answers, chosen by gold and by the value model."""

    def job(settings: PolicyRecipe, listener: Listener) -> dict[str, Any]:
        from jobs.evaluate import best_of

        return best_of(settings, policy, counts, samples, listener)

    _evaluate(job, recipe, overrides, as_json, "curve")


@eval_app.command("judge")
def eval_judge(
    a: Annotated[Path, typer.Argument(help="Answers of model A.")],
    b: Annotated[Path, typer.Argument(help="Answers of model B to the same questions.")],
    endpoint: Annotated[str, typer.Option(help="OpenAI-compatible address up to /v1, for example http://127.0.0.1:8000/v1.")],
    model: Annotated[str, typer.Option(help="Name of the judge at that address.")],
    form: FormatOption,
    questions: Annotated[Path | None, typer.Option(help="File of questions; mt-bench needs it.")] = None,
    verdicts: Annotated[
        Path | None, typer.Option(callback=local_path, help="File that keeps verdicts; default: beside the answers.")
    ] = None,
    key_variable: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply of the judge, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the judge.")] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Most requests under way at the same time.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.001, help="Longest wait for a reply, in seconds.")] = 120.0,
    patience: Annotated[float, typer.Option(min=0.0, help="How long a request is tried again, in seconds.")] = 600.0,
    input_price: Annotated[float, typer.Option(min=0.0, help="Of a million tokens sent.")] = 0.0,
    output_price: Annotated[float, typer.Option(min=0.0, help="Of a million tokens back.")] = 0.0,
    max_cost: Annotated[float | None, typer.Option(min=0.0, help="Most that all verdicts may cost.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Go on without a --max-cost; one that is given holds all the same.")] = False,
    tokenizer: Annotated[Path | None, typer.Option(help="Model folder that counts tokens for the estimate.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two models' answers by a judge, each pair in both orders; given again, it goes on where it was."""

    def work() -> dict[str, Any]:
        from dvpo_ray.judging import judge
        from jobs.cli.console import progress

        settings = judge.JudgeSettings(endpoint, model, key_variable, max_tokens, temperature, concurrency, timeout, patience)
        consent = judge.Consent(yes, max_cost, judge.Prices(input_price, output_price), tokenizer)
        file = verdicts or default_verdicts(a, b)
        with progress(as_json, file.stem) as listener:
            return judge.compare_answers(a, b, form, questions, settings, file, consent, listener)

    guard(work, as_json)


@eval_app.command("frontier")
def eval_frontier(
    runs: Annotated[list[Path], typer.Argument(help="Folders of policy runs, demos or evaluations.")],
    out: Annotated[Path, typer.Option(callback=local_path, help="SVG file to write.")] = Path("frontier.svg"),
    as_json: JsonOption = False,
) -> None:
    """Gold against KL of several runs in one plot, with what no other checkpoint beats in both."""

    def work() -> dict[str, Any]:
        from dvpo_ray.report.frontier import write_frontier

        found = write_frontier(runs, out)
        return found if as_json else _without_table(found, "points")

    guard(work, as_json)


def _evaluate(
    job: Callable[[PolicyRecipe, Listener], dict[str, Any]],
    recipe: str,
    overrides: list[str],
    as_json: bool,
    table: str | None = None,
) -> None:
    """Run a job on a policy recipe; what it returns under ``table`` are rows."""

    def work() -> dict[str, Any]:
        from dvpo_ray.config import PolicyRecipe, load_recipe
        from jobs.cli.console import job_progress

        settings = load_recipe(PolicyRecipe, recipe, overrides)
        with job_progress(as_json, settings.run.name) as listener:
            found = job(settings, listener)
        return found if as_json or table is None else _without_table(found, table)

    guard(work, as_json)


def _without_table(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Show the rows of a result as a table; returns the rest."""
    from jobs.cli.console import show_rows

    show_rows(found[name])
    return {key: value for key, value in found.items() if key != name}
