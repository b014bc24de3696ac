"""Fixtures of tests that run the jobs for real: a Ray, a tiny sealed value model, prompts, and recipes that use them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import pytest

from actors.cluster.hosting import hosted
from actors.cluster.session import ray_session
from actors.rollout.leftovers import is_tracker
from dvpo_ray.config import DpoRecipe, PolicyRecipe, ValueRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.runs.run import Event
from jobs.pretrain_value import pretrain_value
from jobs.train_policy import train_policy
from tests.support.hosts import Hosts

STEPS = 6
ROLLOUT: dict[str, Any] = {
    "prompts_per_step": 8,
    "answers_per_prompt": 2,
    "max_new_tokens": 12,
    # As in tests.support.engines: these engines can be the same.
    "engine": {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 32, "kv_cache_mib": 64},
}


# Of `[policy]`: rewarded by a Python function alone, compared among the answers of a prompt.
WITHOUT_VALUE: dict[str, Any] = {
    "value_model": None,
    "advantage": {"type": "grpo", "score": "none"},
    "rewards": {"letters": {"function": "tests.support.fakes:early_letters"}},
}


@pytest.fixture(scope="session")
def ray() -> Iterator[ClusterSection]:
    """An embedded Ray; afterwards every process started by the tests must have ended, and none of their files may be left."""
    cluster = ClusterSection(num_cpus=8)
    before = files_left()
    with ray_session(cluster):
        yield cluster
    started = [one for one in psutil.Process().children(recursive=True) if not is_tracker(one)]
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive, f"processes left behind: {alive}"
    left = files_left() - before
    assert not left, f"files left behind: {left}"


@pytest.fixture(scope="session")
def hosts(ray: ClusterSection) -> Iterator[Hosts]:
    """Processes that are kept for all tests; a test or fixture uses them within ``hosted(hosts)``."""
    kept = Hosts()
    yield kept
    kept.end()


def files_left() -> set[Path]:
    """Shared memory, and sockets and folders of runs among the temporary files."""
    temporary = Path(tempfile.gettempdir())
    ours = {path for path in temporary.iterdir() if path.is_socket() or path.name.startswith(("dvpo-", "dvpo_"))}
    return ours | set(Path("/dev/shm").iterdir())


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answer(rng: np.random.Generator, letters: str) -> str:
    return "".join(rng.choice(list(letters), int(rng.integers(4, 12))))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose chosen answer is of early letters and whose rejected answer is of late ones, with one bad row."""
    rng = np.random.default_rng(0)
    rows = [{"prompt": f"word {i}", "chosen": answer(rng, "abcdef"), "rejected": answer(rng, "uvwxyz")} for i in range(96)]
    rows.append({"prompt": "word 96", "chosen": "same", "rejected": "same"})
    return write_lines(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Prompts to train on, and others to evaluate on."""
    folder = tmp_path_factory.mktemp("prompts")
    train = write_lines(folder / "train.jsonl", [{"prompt": f"say {i}"} for i in range(24)])
    return train, write_lines(folder / "test.jsonl", [{"prompt": f"tell {i}"} for i in range(8)])


def value_tree(model: Path, pairs: Path, folder: Path, **value: Any) -> dict[str, Any]:
    return {
        "run": {"name": "value", "output_dir": str(folder)},
        "model": {"path": str(model), "attention": "eager"},
        "value": {
            "data": {"source": str(pairs), "max_prompt_tokens": 64, "max_answer_tokens": 32, "validation_share": 0.2},
            "epochs": 2,
            "pairs_per_step": 8,
            "learner": {"learning_rate": 3e-3, "dtype": "float32", "token_budget": 512},
        }
        | value,
    }


def value_recipe(model: Path, pairs: Path, folder: Path, **value: Any) -> ValueRecipe:
    return build(ValueRecipe, value_tree(model, pairs, folder, **value))


def dpo_recipe(model: Path, pairs: Path, folder: Path, name: str, **dpo: Any) -> DpoRecipe:
    tree = {
        "run": {"name": name, "output_dir": str(folder)},
        "model": {"path": str(model), "attention": "eager"},
        "dpo": {
            "data": {"source": str(pairs), "max_prompt_tokens": 64, "max_answer_tokens": 32, "validation_share": 0.2},
            "pairs_per_step": 16,
            "learner": {"learning_rate": 1e-3, "dtype": "float32", "token_budget": 512},
        }
        | dpo,
    }
    return build(DpoRecipe, tree)


class MakePolicyRecipe(Protocol):
    def __call__(self, folder: Path, name: str, **policy: Any) -> PolicyRecipe: ...


def policy_recipe_of(
    model: Path, sealed: str, prompts: tuple[Path, Path], folder: Path, name: str, **policy: Any
) -> PolicyRecipe:
    tree = {
        "run": {"name": name, "output_dir": str(folder), "seed": 5},
        "model": {"path": str(model), "attention": "eager"},
        "policy": {
            "steps": STEPS,
            "value_model": sealed,
            "data": {"source": str(prompts[0]), "max_prompt_tokens": 64},
            "rollout": ROLLOUT,
            "scorer": {"dtype": "float32", "rows_per_call": 8},
            "learner": {"dtype": "float32", "learning_rate": 5e-3, "token_budget": 512},
            "kl": {"control": {"coefficient": 0.01}},
            "evaluation": {"source": str(prompts[1]), "gold": "tests.support.fakes:early_letters", "every": 4},
        }
        | policy,
    }
    return build(PolicyRecipe, tree)


@pytest.fixture(scope="session")
def value(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory, hosts: Hosts) -> dict[str, Any]:
    with hosted(hosts):
        return pretrain_value(value_recipe(tiny_model, pairs, tmp_path_factory.mktemp("value")))


@pytest.fixture(scope="session")
def policy_recipe(tiny_model: Path, value: dict[str, Any], prompts: tuple[Path, Path]) -> MakePolicyRecipe:
    """Makes a recipe of policy training with the value model above; keywords replace parts of ``[policy]``."""
    return partial(policy_recipe_of, tiny_model, value["value_model"], prompts)


@dataclass(frozen=True)
class StraightRun:
    """A run in which nothing fails, whose actors have processes of their own: its folder, result, and their command lines."""

    folder: Path
    result: dict[str, Any]
    processes: set[str]


@pytest.fixture(scope="session")
def straight_run(policy_recipe: MakePolicyRecipe, tmp_path_factory: pytest.TempPathFactory) -> StraightRun:
    folder, processes = tmp_path_factory.mktemp("straight"), set[str]()

    def look(event: Event) -> None:
        if event.kind == "step":
            family = psutil.Process().children(recursive=True)
            processes.update(" ".join(process.cmdline()) for process in family if process.is_running())

    result = train_policy(policy_recipe(folder, "straight", evaluation=None, checkpoint={"every": 3}), look)
    return StraightRun(folder / "straight", result, processes)


@pytest.fixture(scope="session")
def straight(straight_run: StraightRun) -> Path:
    """Its folder."""
    return straight_run.folder


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_books_balance(folder: Path, steps: int) -> None:
    """Every step of 16 rows was trained once, in order, and no row is left."""
    lines = [line for line in metrics(folder) if "seconds/step" in line]
    assert [line["step"] for line in lines] == list(range(steps)), "every step once, in order"
    assert [line["ledger/trained"] for line in lines] == [16 * (n + 1) for n in range(steps)]
    assert lines[-1]["ledger/dead_lettered"] == lines[-1]["ledger/in_flight"] == 0
