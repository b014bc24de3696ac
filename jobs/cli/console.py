"""What a person sees: phases, one progress bar, a closing table. Quiet when the output is no terminal; JSON lines on request."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from dvpo_ray.io.printable import printable
from dvpo_ray.metrics import figures, metrics
from dvpo_ray.runs.logs import log_as_json
from dvpo_ray.runs.pace import rounded
from dvpo_ray.runs.run import Event, Listener
from dvpo_ray.runs.stopping import heeding, show_cursor

ALIVE_S = 10.0


@contextmanager
def progress(as_json: bool, run: str) -> Iterator[Listener]:
    """A listener for the events of the job of a run, for machines or for people."""
    if as_json:
        log_as_json(run)
        yield partial(_print_json, run)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_plain
        return
    with progress_bar(console) as bar:
        task = bar.add_task("starting", total=None, left="")
        figures = ""

        def show(event: Event) -> None:
            nonlocal figures
            if event.kind == "step":
                figures = headline(event.metrics)
                bar.update(task, completed=event.step, total=event.total, description=figures, left=time_left(event))
            elif event.kind == "stage":
                total, description = event.total, escape(f"{figures}  {printable(event.text)}".strip())
                bar.update(task, completed=event.step - 1, total=total, description=description, left=time_left(event))
            elif event.kind == "alive":
                bar.update(task, left=time_left(event))
            elif event.kind == "phase":
                figures = ""
                bar.console.print(f"[bold cyan]•[/] {escape(printable(event.text))}")
                bar.reset(task, total=None, description="working", left="")
            elif event.kind in ("warning", "stopping"):
                bar.console.print(f"[bold yellow]![/] {escape(printable(event.text))}")
            else:
                bar.console.print(f"  after {event.step} steps: {headline(event.metrics)}", markup=False)

        yield show


def progress_bar(console: Console) -> Progress:
    """A bar whose figures give way where a terminal is narrow, and never the time left."""
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return Progress(
        SpinnerColumn(),
        MofNCompleteColumn(),
        BarColumn(12),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
        TextColumn("{task.description}", table_column=rest),
        console=console,
        transient=True,
        expand=True,
    )


@contextmanager
def alive(shown: Listener, first_s: float = ALIVE_S) -> Iterator[Listener]:
    """A listener that passes events on to ``shown``, and tells it what goes on when no other event did for ``first_s`` seconds,
    then after twice as long each time, and at last every minute."""
    told, ended = SimpleQueue[Event | None](), threading.Event()

    def listen(event: Event) -> None:
        told.put(event)
        shown(event)

    def pulse() -> None:
        last, began, pause = Event("phase", "starting"), time.monotonic(), first_s
        while not ended.is_set():
            try:
                event = told.get(timeout=pause)
            except Empty:
                shown(_still(last, time.monotonic() - began))
                pause = min(2 * pause, max(first_s, 60.0))
                continue
            # A warning says nothing of what goes on.
            if event is not None and event.kind in ("phase", "stage", "step", "evaluation"):
                last, began, pause = event, time.monotonic(), first_s

    thread = threading.Thread(target=pulse, name="alive", daemon=True)
    thread.start()
    try:
        yield listen
    finally:
        ended.set()
        told.put(None)
        thread.join()


def _still(last: Event, seconds: float) -> Event:
    """That what an event told of goes on."""
    left = None if last.left is None else max(0.0, last.left - seconds)
    if last.kind == "phase":
        return Event("alive", f"{last.text}: for {seconds:.0f} s", left=left)
    doing, step = (last.text, last.step) if last.kind == "stage" else ("working", min(last.step + 1, last.total))
    return Event("alive", f"step {step}, {doing}: for {seconds:.0f} s", last.step, last.total, left=left)


def time_left(event: Event) -> str:
    """The time to the end of the job, as people say it; nothing when it is not known."""
    return "" if event.left is None else f"about {rounded(event.left)} left"


def _spaced(text: str) -> str:
    return f"  {text}" if text else ""


@contextmanager
def job_progress(as_json: bool, run: str) -> Iterator[Listener]:
    """``progress``, for a job that Ctrl-C and SIGTERM stop: it says what they lead to, from before its packages are imported."""
    with (
        progress(as_json, run) as shown,
        alive(shown) as listener,
        heeding(lambda text: listener(Event("stopping", text))) as stop,
        stop.at_once(show_cursor),
    ):
        yield listener


def headline(recorded: dict[str, float]) -> str:
    """The few numbers worth a line: those that are declared with a name for the console."""
    shown = [(metric.console, recorded[key]) for key, metric in metrics().items() if metric.console and key in recorded]
    return "  ".join(f"{label} {number:.3f}" for label, number in shown)


def show_result(result: dict[str, Any]) -> None:
    """The closing figures, on standard output, one a line; paths are never cut. Without any, all that the result holds."""
    known = [(one.label, _format(result[key], one.digits)) for key, one in figures().items() if key in result]
    lines = known or [(key, _format(value)) for key, value in result.items()]
    width = max(len(label) for label, _ in lines)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for label, text in lines:
        console.print(f"{label:<{width}}  {text}")


def show_rows(rows: list[dict[str, Any]]) -> None:
    """Rows with the same keys, as a table."""
    table = Table(*rows[0], box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(_format(value) for value in row.values()))
    Console(markup=False).print(table)


def show_checks(checks: list[dict[str, str]], as_json: bool) -> None:
    """The doctor's findings."""
    if as_json:
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        status = Text(check["status"], style=colours[check["status"]])
        table.add_row(status, check["name"], printable(check["found"]), check["remedy"])
    Console(markup=False).print(table)


def show_jobs(jobs: list[dict[str, Any]]) -> None:
    """A cluster's jobs, one a line; nothing is cut."""
    names = ("job", "status", "run", "recipe", "started", "ended")
    rows = [names, *(tuple(printable(job[name] or "").replace("\n", " ") for name in names) for job in jobs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def show_replay(found: dict[str, Any]) -> None:
    """Rows of a withheld update, the bad ones first."""
    table = Table("row", "tokens", "loss", "gradient norm", "not finite", box=None, padding=(0, 2, 0, 0))
    for row in sorted(found["all"], key=lambda row: (not row["not_finite"], -row["gradient_norm"])):
        name, figures = printable(row["row"]), [f"{row[key]:.4g}" for key in ("loss", "gradient_norm")]
        table.add_row(name, str(row["tokens"]), *figures, row["not_finite"])
    console = Console(markup=False)
    console.print(table)
    console.print(f"\n{found['rows_not_finite']} of {found['rows']} rows of step {found['step']} are not finite")


def show_plan(plan: dict[str, Any]) -> None:
    """Memory, time, advice."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"{plan['parameters'] / 1e6:.0f} M parameters on {plan['devices']}, {_types(plan['number_types'])}\n")
    memory = Table("process", "how many", "GB each", "most of it", box=None, padding=(0, 2, 0, 0))
    for process in plan["processes"]:
        largest = sorted(process["parts"].items(), key=lambda part: -part[1])[:2]
        parts = ", ".join(f"{name} {gb:.2f}" for name, gb in largest)
        memory.add_row(process["name"], str(process["count"]), f"{process['gb']:.2f}", parts)
    console.print(memory)
    console.print(f"\nall processes: {plan['total_gb']:.1f} GB\n")
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in plan["seconds"].items())
    console.print(f"a step: {plan['step_seconds']:.2f} s ({stages}); slowest stage: {plan['bottleneck']}")
    if plan["simulated_step_seconds"] is not None:
        idle = ", ".join(f"{name} {share:.0%}" for name, share in plan["idle"].items())
        console.print(f"simulated with answers of unequal length: {plan['simulated_step_seconds']:.2f} s; idle: {idle}")
    critic = plan["online_critic"]
    console.print(
        f"with an online critic (PPO): {critic['step_seconds']:.2f} s, {critic['gb_per_rank']:.1f} GB more a learner rank"
    )
    if plan["scaling"]:
        table = Table(
            "devices", "answers a step", "step, s", "without waiting, s", "answers a second", box=None, padding=(0, 2, 0, 0)
        )
        for row in plan["scaling"]:
            table.add_row(
                str(row["devices"]),
                str(row["answers_per_step"]),
                f"{row['step_seconds']:.2f}",
                f"{row['ideal_step_seconds']:.2f}",
                f"{row['answers_per_second']:.1f}",
            )
        console.print("\nthe best split and multiples of it, simulated (exchange of gradients and weights not counted):")
        console.print(table)
    for advice in plan["advice"]:
        console.print(Text.assemble(("advice ", "cyan"), advice))


def _types(number_types: dict[str, str]) -> str:
    """Number types in a few words."""
    if len(set(number_types.values())) == 1:
        return next(iter(number_types.values()))
    return ", ".join(f"{role} in {dtype}" for role, dtype in number_types.items())


def _format(value: Any, digits: int = 3) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    if isinstance(value, list | tuple) and all(isinstance(item, float) for item in value):
        return " to ".join(f"{item:.{digits}f}" for item in value)
    text = printable(str(value))
    return text.removeprefix(f"{Path.cwd()}/")


def _print_json(run: str, event: Event) -> None:
    facts: dict[str, Any] = {"event": event.kind, "run": run, "text": event.text, "step": event.step, "total": event.total}
    if event.left is not None:
        facts["seconds_left"] = round(event.left, 1)
    # In one piece: a thread tells of signals.
    sys.stdout.write(json.dumps(facts | event.metrics) + "\n")
    sys.stdout.flush()


def _print_plain(event: Event) -> None:
    if event.kind in ("phase", "warning", "stopping"):
        text = event.text
    elif event.kind == "alive":
        text = f"  ... {event.text}{_spaced(time_left(event))}"
    elif event.kind == "stage":
        return
    else:
        where = f"{event.step}/{event.total}" if event.kind == "step" else f"after {event.step} steps:"
        text = f"  {where}  {headline(event.metrics)}{_spaced(time_left(event))}"
    # In one piece: threads tell of signals, and that the job lives.
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()
