"""Pods that are deleted together, as Kubernetes does it: each runs its hook, then all get SIGTERM. The job's work is kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dvpo_ray.checkpoints.store import CheckpointStore
from tests.support.ray_cluster import ROOT, RayCluster, another_node, processes_of, ray_cluster, run
from tests.support.real import answer, write_lines

pytestmark = [pytest.mark.integration, pytest.mark.slow]
WAIT_S = 120
RECIPE = """
[run]
name = "value"
output_dir = "RUNS"
[model]
path = "MODEL"
attention = "eager"
[cluster]
role_label = "dvpo-ray/role"
[value]
data = {source = "pairs.jsonl", max_prompt_tokens = 64, max_answer_tokens = 32, validation_share = 0.2}
pairs_per_step = 8
epochs = 400
checkpoint = {every = 100000}
learner = {dtype = "float32", learning_rate = 3e-3, token_budget = 512}
"""


@contextmanager
def two_nodes() -> Iterator[tuple[RayCluster, Path]]:
    """A head that computes nothing, and a node for learners."""
    with ray_cluster(cpus=0) as cluster, another_node(cluster, cpus=4, labels="dvpo-ray/role=learner"):
        yield cluster, cluster.folder / "token"


def raylets(token: Path) -> list[psutil.Process]:
    """The nodes of a cluster, its head first."""
    found = [process for process in processes_of(token) if process.name() == "raylet"]
    return sorted(found, key=lambda process: process.create_time())


def hook(cluster: RayCluster, node: psutil.Process, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.pod_hook", str(node.pid), str(WAIT_S), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=cluster.environment(cluster.token), stdout=pipe, stderr=pipe, text=True)


def end_of(hook: subprocess.Popen[str]) -> Any:
    said, trouble = hook.communicate(timeout=WAIT_S)
    assert hook.returncode == 0, said + trouble
    return json.loads(said.splitlines()[-1])


def submit(cluster: RayCluster, folder: Path, *words: str) -> subprocess.Popen[str]:
    command, pipe = cluster.dvpo("submit", "value.toml", *words, "--follow"), subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=cluster.environment(cluster.token), stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def until(job: subprocess.Popen[str], words: str) -> None:
    """Read what a job says until it says these words."""
    said = ""
    assert job.stdout
    for line in job.stdout:
        said += line
        if words in line:
            return
    raise AssertionError(f"the job ended without '{words}': {said}")


def test_deleted_pods_leave_a_checkpoint_and_the_next_cluster_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"prompt": f"word {i}", "chosen": answer(rng, "abcdef"), "rejected": answer(rng, "uvwxyz")} for i in range(48)]
    write_lines(tmp_path / "pairs.jsonl", rows)
    runs = tmp_path / "runs"
    text = RECIPE.replace("MODEL", str(tiny_model)).replace("RUNS", str(runs))
    (tmp_path / "value.toml").write_text(text)

    with two_nodes() as (cluster, token):
        job = submit(cluster, tmp_path, "--job-id", "first")
        until(job, "  3/2000")
        head, worker = raylets(token)
        # The other node's hook comes first, as it may.
        hooks = [hook(cluster, worker), hook(cluster, head, "--stop")]
        assert [end_of(one) for one in hooks] == [{"first": "STOPPED"}] * 2
        for process in processes_of(token):
            process.send_signal(signal.SIGTERM)
        job.communicate(timeout=60)
    checkpoint = CheckpointStore(runs / "value" / "checkpoints").newest()
    assert checkpoint is not None and checkpoint.step >= 3, "the steps so far are kept"

    with two_nodes() as (cluster, _):
        job = submit(cluster, tmp_path, "--job-id", "second", "--resume", "auto")
        until(job, f"going on after step {checkpoint.step},")
        stopped = run(cluster.dvpo("jobs", "stop", "second"), tmp_path, cluster.environment(cluster.token), timeout=120)
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        job.communicate(timeout=60)
