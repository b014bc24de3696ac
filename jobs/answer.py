"""Answers of a policy to the questions of a public benchmark, in the benchmark's own format."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from actors.cluster.calls import get
from actors.rollout.pool import RolloutPool
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.sections import RolloutSection
from dvpo_ray.judging.answer_file import AnswerFile
from dvpo_ray.judging.conversation import Interviewer
from dvpo_ray.judging.files import read_questions, refuse_to_replace, write_rows
from dvpo_ray.judging.formats import format_named
from dvpo_ray.models.folder import hash_files
from dvpo_ray.runs.folder import locked
from dvpo_ray.runs.run import Event, Listener
from jobs.models import base_model, settle_devices
from jobs.preflight import check_engines
from jobs.session import job, running_actors


def answer_questions(
    recipe: PolicyRecipe,
    policy: Path | None,
    questions: Path,
    kind: str,
    out: Path,
    name: str | None = None,
    listener: Listener = lambda event: None,
) -> dict[str, Any]:
    """Write a policy's answers to the questions of a file of format ``kind``; returns the closing figures.

    Until all are there, a file beside ``out`` keeps each as it comes: the same call goes on after one that was ended.

    The recipe's ``[policy.rollout]`` says how they are sampled; ``policy`` None takes its model. ``name`` is the model's in the
    answers, by default the folder's.
    """
    began = time.time()
    form = format_named(kind)
    refuse_to_replace(out)
    asked = read_questions(questions, form)
    model = recipe.model if policy is None else recipe.model.model_copy(update={"path": str(policy), "revision": None})
    base = base_model(model, listener)
    recipe, chosen = settle_devices(recipe, base)
    listener(Event("phase", chosen.text))
    check_engines(recipe, base.folder, listener, trains=False)
    rollout, cluster = recipe.policy.rollout, recipe.cluster
    fetch = partial(get, timeout=cluster.call_timeout_s, who="a rollout actor", doing="handing out an answer")
    turns = sum(len(question.turns) for question in asked)
    kept = out.with_name(f"{out.name}.kept")
    with locked(kept):
        file = AnswerFile(kept, identity(base.folder, rollout))
        interviewer = Interviewer(base.tokenizer, rollout, recipe.run.seed, fetch, file)
        interviewer.check(asked)
        if file.known:
            known = f"'{kept}' holds {len(file.known)} answers of an earlier command: those to the same requests are taken"
            listener(Event("phase", known))
        logs = out.with_name(f"{out.name}.logs")
        with job(listener) as stop, file, running_actors(cluster, logs, stop) as started:
            stop.kept, stop.again = (lambda: "the answers so far"), "the same command goes on"
            listener(Event("phase", f"starting {rollout.actors} engine(s) on {base.place}"))
            started.append(rollouts := RolloutPool(str(base.place), base.section, rollout, cluster, recipe.run.seed))
            rollouts.wait_ready()
            listener(Event("phase", f"asking {len(asked)} questions, {turns} turns"))
            found = interviewer.ask(asked, rollouts, lambda done: listener(Event("step", "", done, turns)))
        name = name or Path(base.name if base.place.hub else base.folder).name
        write_rows(out, [form.written(one.question, one.answers, name, one.tokens) for one in found], form)
        kept.unlink()
    return {
        "answers": str(out.resolve()),
        "model": name,
        "format": kind,
        "questions": len(found),
        "turns": turns,
        "tokens_per_answer": sum(sum(one.tokens) for one in found) / turns,
        "cut_share": sum(sum(one.cut) for one in found) / turns,
        "seconds": time.time() - began,
    }


def identity(model_folder: Path, rollout: RolloutSection) -> dict[str, Any]:
    """Which model answers and how: what an answer depends on, besides the prompt and the seed."""
    named = {"temperature", "top_p", "max_new_tokens", *rollout.filters, *(["stop"] if rollout.stop else [])}
    sampling = rollout.model_dump(include=named) | {"dtype": rollout.engine.dtype}
    return {"model": hash_files(model_folder), **sampling}
