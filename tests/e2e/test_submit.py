"""Runs submitted to a Ray that asks for a token, as a person does it: from a folder of their own, by the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.checkpoints.store import CheckpointStore
from tests.support.ray_cluster import RayCluster, ray_cluster, run
from tests.support.real import answer, assert_books_balance, write_lines

pytestmark = pytest.mark.integration
SECRETS = {"WANDB_API_KEY": "hunter2-5f3a-wandb", "DVPO_CHECKPOINT_KEY": "hunter2-5f3a-checkpoint"}
LEARNER = 'dtype = "float32", learning_rate = 3e-3, token_budget = 512'
RECIPES = {
    "value.toml": """
[run]
name = "value"
[model]
path = "MODEL"
attention = "eager"
[value]
data = {source = "pairs.jsonl", max_prompt_tokens = 64, max_answer_tokens = 32, validation_share = 0.2}
pairs_per_step = 8
learner = {LEARNER}
""",
    "policy.toml": """
[run]
name = "policy"
[model]
path = "MODEL"
attention = "eager"
[policy]
steps = 400
value_model = "runs/value/value-model"
data = {source = "data/prompts.jsonl", max_prompt_tokens = 64}
scorer = {dtype = "float32", rows_per_call = 8}
learner = {LEARNER}
evaluation = {source = "data/held-out.jsonl", gold = "scores:early_letters"}
[policy.rollout]
prompts_per_step = 8
answers_per_prompt = 2
max_new_tokens = 12
engine = {dtype = "float32", max_model_len = 128, max_num_seqs = 16}
""",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(cpus=8) as found:
        yield found


@pytest.fixture(scope="module")
def project(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one's own: recipes, data, and a gold score."""
    import numpy as np

    folder = tmp_path_factory.mktemp("project")
    for name, text in RECIPES.items():
        (folder / name).write_text(text.replace("MODEL", str(tiny_model)).replace("LEARNER", LEARNER))
    (folder / "scores.py").write_text(
        "def early_letters(prompts, answers):\n    return [float(sum(c in 'abcdef' for c in text)) for text in answers]\n"
    )
    rng = np.random.default_rng(0)
    rows = [{"prompt": f"word {i}", "chosen": answer(rng, "abcdef"), "rejected": answer(rng, "uvwxyz")} for i in range(48)]
    write_lines(folder / "pairs.jsonl", rows)
    (folder / "data").mkdir()
    write_lines(folder / "data" / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(24)])
    write_lines(folder / "data" / "held-out.jsonl", [{"prompt": f"tell {i}"} for i in range(8)])
    return folder


class Person:
    """Someone with the token at a command line in a folder."""

    def __init__(self, cluster: RayCluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._environment = cluster.environment(cluster.token, **SECRETS)

    def does(self, *words: str, code: int = 0) -> str:
        """What a command prints, which ends with this code."""
        done = self._run(words)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def knows(self, *words: str) -> dict[str, Any]:
        """What a command says as JSON."""
        done = self._run((*words, "--json"))
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _run(self, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return run(self._cluster.dvpo(*words), self._folder, self._environment, timeout=240)

    def begins(self, *words: str) -> subprocess.Popen[str]:
        """A command under way; its output can be read."""
        command, pipe = self._cluster.dvpo(*words), subprocess.PIPE
        return subprocess.Popen(command, cwd=self._folder, env=self._environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_a_run_from_submission_through_a_stop_to_its_end(cluster: RayCluster, project: Path) -> None:
    """Value pretraining, then policy training that is followed, left, stopped and gone on with. No secret shows anywhere."""
    person, runs = Person(cluster, project), project / "runs"
    said = person.does("submit", "value.toml", "--follow", "--job-id", "value-1")
    assert "saving and sealing the model" in said
    assert json.loads((runs / "value" / "result.json").read_text())["pairs"] > 0
    assert "already holds a run" in person.does("submit", "value.toml", "--follow", "--job-id", "value-2", code=2)
    assert "there is a job of that name" in person.does("submit", "value.toml", "--job-id", "value-1", code=2)

    assert "run_folder  runs/policy" in person.does("submit", "policy.toml", "--job-id", "policy-1", "--include", "scores.py")
    follower = person.begins("jobs", "logs", "policy-1", "--follow")
    assert follower.stdout
    assert any(line.startswith("  2/400 ") for line in follower.stdout), "the job ended too early"
    follower.send_signal(signal.SIGINT)
    _, parting = follower.communicate(timeout=60)
    assert follower.returncode == 130 and "`dvpo jobs stop policy-1` stops it" in parting, parting
    assert person.knows("jobs", "status", "policy-1")["status"] == "RUNNING", "leaving does not stop it"

    stopped = person.knows("jobs", "stop", "policy-1")
    checkpoint = CheckpointStore(runs / "policy" / "checkpoints").newest()
    assert checkpoint is not None and 2 <= checkpoint.step < 400
    assert stopped["status"] == "STOPPED" and stopped["end"].startswith(f"stopped after step {checkpoint.step} of 400, as asked")
    assert f"stopped after step {checkpoint.step} of 400, as asked" in person.does("jobs", "logs", "policy-1")
    assert "has ended already: STOPPED" in person.does("jobs", "stop", "policy-1", code=2)

    words = [
        "submit",
        "policy.toml",
        "--resume",
        "auto",
        "--set",
        f"policy.steps={checkpoint.step + 2}",
        "--include",
        "scores.py",
    ]
    said = person.does(*words, "--follow", "--job-id", "policy-2")
    assert f"going on after step {checkpoint.step}," in said
    assert_books_balance(runs / "policy", checkpoint.step + 2)

    jobs = {job["job"]: job for job in person.knows("jobs", "list")["jobs"]}
    states = {"value-1": "SUCCEEDED", "value-2": "FAILED", "policy-1": "STOPPED", "policy-2": "SUCCEEDED"}
    assert {name: job["status"] for name, job in jobs.items()} == states
    assert (jobs["policy-2"]["run"], jobs["policy-2"]["recipe"]) == ("policy", "policy.toml")
    assert jobs["policy-2"]["command"] == "dvpo policy train"
    assert "SUCCEEDED" in person.does("jobs", "list") and "policy.toml" in person.does("jobs", "status", "policy-2")
    secrets = [cluster.token, *SECRETS.values()]
    assert_nowhere(secrets, raw(cluster, "GET", "/api/jobs/", cluster.token)[1])
    for name in jobs:
        assert_nowhere(secrets, person.does("jobs", "logs", name).encode())
    for path in (*runs.rglob("*"), *(cluster.folder / "ray" / "session_latest" / "logs").rglob("*")):
        if path.is_file():
            assert_nowhere(secrets, path.read_bytes(), path)


def assert_nowhere(secrets: list[str], content: bytes, where: Path | str = "the job server") -> None:
    assert [secret for secret in secrets if secret.encode() in content] == [], f"a secret is in {where}"


ENDPOINTS = [
    ("GET", "/api/version"),
    ("GET", "/api/v0/nodes"),
    ("GET", "/api/packages/gcs/_ray_pkg_0.zip"),
    ("PUT", "/api/packages/gcs/_ray_pkg_0.zip"),
    ("POST", "/api/jobs/"),
    ("GET", "/api/jobs/"),
    ("GET", "/api/jobs/some"),
    ("GET", "/api/jobs/some/logs"),
    ("GET", "/api/jobs/some/logs/tail"),
    ("POST", "/api/jobs/some/stop"),
    ("DELETE", "/api/jobs/some"),
]


def raw(cluster: RayCluster, method: str, path: str, token: str | None) -> tuple[int, bytes]:
    """Status and body of a request to the job server."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body = json.dumps({"entrypoint": "id"}).encode() if method in ("POST", "PUT") else None
    request = urllib.request.Request(cluster.url + path, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("0" * 64, 403)])
def test_no_endpoint_answers_without_the_token(cluster: RayCluster, token: str | None, status: int) -> None:
    refused = {one: raw(cluster, *one, token)[0] for one in ENDPOINTS}
    assert refused == dict.fromkeys(ENDPOINTS, status)
    assert raw(cluster, "GET", "/api/jobs/", cluster.token)[0] == 200


COMMANDS = [
    ("submit", "value.toml"),
    ("jobs", "list"),
    ("jobs", "status", "some"),
    ("jobs", "logs", "some", "--follow"),
    ("jobs", "stop", "some"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "-".join(words[:2]))
def test_a_command_without_the_token_is_told_what_to_do(cluster: RayCluster, project: Path, words: tuple[str, ...]) -> None:
    done = run(cluster.dvpo(*words), project, cluster.environment(None), timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "asks for its token" in done.stderr and "RAY_AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_token_and_a_wrong_address_are_named(cluster: RayCluster, project: Path) -> None:
    wrong = run(cluster.dvpo("jobs", "list"), project, cluster.environment("0" * 64), timeout=60)
    assert wrong.returncode == 1 and "asks for its token" in wrong.stderr and "0" * 64 not in wrong.stdout + wrong.stderr
    command = cluster.dvpo("jobs", "list")[:-1]
    nobody = run([*command, "http://127.0.0.1:1"], project, cluster.environment(cluster.token), timeout=60)
    assert nobody.returncode == 1 and "no Ray dashboard answers at http://127.0.0.1:1" in nobody.stderr
    for address in ("127.0.0.1:8265", "http://me:secret@127.0.0.1:8265", "os://x"):
        bad = run([*command, address], project, cluster.environment(cluster.token), timeout=60)
        assert bad.returncode == 2 and "give the dashboard's URL" in bad.stderr
    assert "no job 'some'" in Person(cluster, project).does("jobs", "status", "some", code=2)


def test_a_job_has_no_name_that_leads_elsewhere(cluster: RayCluster, project: Path) -> None:
    person = Person(cluster, project)
    for name in ("../../up", "a/b", "a b"):
        assert "--job-id" in person.does("submit", "value.toml", "--job-id", name, code=2)


def test_a_driver_without_the_token_is_refused(cluster: RayCluster, tmp_path: Path) -> None:
    """`cluster.address` leads past the dashboard, to the cluster itself."""
    code = (
        "from actors.cluster.session import ray_session\n"
        "from dvpo_ray.config.sections import ClusterSection\n"
        f"with ray_session(ClusterSection(address='127.0.0.1:{cluster.port}')): print('inside')"
    )
    done = run([sys.executable, "-c", code], tmp_path, cluster.environment(None) | {"RAY_AUTH_MODE": "token"}, timeout=90)
    assert "inside" not in done.stdout and "RunError" in done.stderr and "token" in done.stderr, done.stderr
    done = run(
        [sys.executable, "-c", code], tmp_path, cluster.environment(cluster.token) | {"RAY_AUTH_MODE": "token"}, timeout=90
    )
    assert done.stdout == "inside\n", done.stderr
