"""How a job ends without losing work. One function a rule; each yields (what, remedy)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import yaml

from dvpo_ray.kubernetes.manifests import PodTemplate, RayObject, items, tree
from dvpo_ray.kubernetes.operator_rules import Problem
from dvpo_ray.kubernetes.stopping import DRAIN, STOP, WAIT
from dvpo_ray.submission.package import STOP_WAIT

RENDERED = "as `dvpo k8s render` does"


def a_stop_waits_for_a_checkpoint(ray: RayObject) -> Iterator[Problem]:
    """Ray's job server kills a job 3 seconds after it has asked it to stop, unless the job's own environment says otherwise."""
    if not ray.job:
        return
    given = _environment(ray).get(STOP_WAIT)
    seconds = _seconds(given)
    if seconds is None:
        yield (
            f"{STOP_WAIT} of the job is {given!r}",
            f"set it in runtimeEnvYAML, in quotes, to what a checkpoint takes, {RENDERED}",
        )
        return
    for pod in ray.pods():
        hook = _wait_of(pod)
        if hook is not None and hook <= seconds:
            yield f"{pod.where}: its preStop hook waits {hook} s, the job has {seconds} s to stop", "let the hook wait longer"


def starting_has_an_end(ray: RayObject) -> Iterator[Problem]:
    """A job whose pods find no node would wait, with those that did, for ever."""
    deadline = ray.job.get("preRunningDeadlineSeconds")
    if ray.job and not (isinstance(deadline, int) and not isinstance(deadline, bool) and deadline > 0):
        yield f"preRunningDeadlineSeconds is {deadline!r}", "set it to the longest wait for pods and images, in seconds"


def waits_before_it_ends(pod: PodTemplate) -> Iterator[Problem]:
    """The operator stops no job before it deletes its pods, all of them at the same moment."""
    if pod.role == "submitter":
        return
    command = _hook(pod)
    if tuple(command[: len(DRAIN)]) != DRAIN:
        yield "has no preStop hook that waits for the job's checkpoint", f"let it run `{' '.join(DRAIN)}`, {RENDERED}"
    elif _wait_of(pod) is None:
        yield f"its preStop hook says no {WAIT}", f"give the seconds, {RENDERED}"
    elif (STOP in command) != (pod.role == "head"):
        what, remedy = ("does not stop the jobs", f"add {STOP}") if pod.role == "head" else ("stops all jobs", f"remove {STOP}")
        yield f"its preStop hook {what}", f"{remedy}: the head's hook stops the jobs, the others wait"


def grace_covers_the_hook(pod: PodTemplate) -> Iterator[Problem]:
    """A pod's grace period runs from before its hook: what is longer is cut off."""
    wait, grace = _wait_of(pod), pod.spec.get("terminationGracePeriodSeconds", 30)
    if pod.role != "submitter" and wait is not None and not (isinstance(grace, int) and grace > wait):
        yield f"terminationGracePeriodSeconds is {grace}, its preStop hook waits {wait} s", "make the grace period longer"


def _hook(pod: PodTemplate) -> list[Any]:
    container = tree((items(pod.spec.get("containers")) or [{}])[0])
    hook = tree(tree(container.get("lifecycle")).get("preStop"))
    return items(tree(hook.get("exec")).get("command"))


def _wait_of(pod: PodTemplate) -> int | None:
    command = _hook(pod)
    place = command.index(WAIT) + 1 if WAIT in command else len(command)
    return _seconds(command[place]) if place < len(command) else None


def _seconds(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() else None


def _environment(ray: RayObject) -> dict[str, Any]:
    try:
        found = yaml.safe_load(str(ray.job.get("runtimeEnvYAML", "")))
    except (yaml.YAMLError, ValueError, RecursionError):  # as of any manifest that is none
        return {}
    return tree(tree(found).get("env_vars"))


STOP_RULES: tuple[Callable[[RayObject], Iterator[Problem]], ...] = (a_stop_waits_for_a_checkpoint, starting_has_an_end)
STOP_POD_RULES: tuple[Callable[[PodTemplate], Iterator[Problem]], ...] = (waits_before_it_ends, grace_covers_the_hook)
