"""The command by which a pod ends: `dvpo jobs drain`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.cli.commands import JsonOption, guard


def drain(
    wait_s: Annotated[float, typer.Option(min=1, help="Longest wait for the jobs' ends, in seconds.")],
    stop: Annotated[bool, typer.Option("--stop", help="Ask the jobs to checkpoint and end: what the head does.")] = False,
    alone_s: Annotated[
        float | None,
        typer.Option(min=0, help="How long this node stays when its cluster does not end; default: while any job runs."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Keep this machine's node of Ray until the jobs of its cluster have checkpointed and ended: the preStop hook of pods."""

    def work() -> dict[str, Any]:
        from actors.cluster.token import use_token

        # Before Ray is imported, which reads the token once.
        use_token()
        from actors.cluster.drain import Drain, LocalNode, RayNotices, connect

        node = LocalNode.find()
        if node is None:
            return {"jobs": {}}
        draining = Drain(connect(node), RayNotices(node), wait_s)
        return {"jobs": draining.head() if stop else draining.worker(alone_s)}

    guard(work, as_json)
