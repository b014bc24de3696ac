"""`dvpo eval` on real engines: answers turn by turn, a judge that vLLM serves, and the best of n by a real value model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.cluster.calls import get
from actors.learner.rank import free_port
from actors.rollout.pool import RolloutPool
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.data.messages import Message
from dvpo_ray.errors import ConfigError
from dvpo_ray.judging.answer_file import AnswerFile
from dvpo_ray.judging.conversation import Conversation, Interviewer
from dvpo_ray.judging.endpoint import JudgeSettings
from dvpo_ray.judging.files import read_answers
from dvpo_ray.judging.formats import Question, format_named
from dvpo_ray.judging.judge import Consent, compare_answers
from dvpo_ray.types import Trajectory
from jobs.answer import answer_questions
from jobs.evaluate import best_of, evaluate_policy
from tests.support.engines import MODEL, settings
from tests.support.real import ROLLOUT, WITHOUT_VALUE, MakePolicyRecipe, policy_recipe_of, write_lines

pytestmark = pytest.mark.integration
KEY = "a-key-for-this-test"
TURNS = [["Name a sea.", "And another?"], ["Say yes.", "Say no."], ["Why?", "Why not?"]]


def test_the_second_turn_is_asked_after_the_first_answer(
    ray: ClusterSection, tiny_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    seen: list[Trajectory] = []

    def fetch(handle: Any) -> Trajectory:
        seen.append(get(handle, 60, "an engine", "answering"))
        return seen[-1]

    questions = [Question(str(i), tuple((Message("user", turn),) for turn in turns), {}) for i, turns in enumerate(TURNS)]
    pool = RolloutPool(str(tiny_model), MODEL, settings().rollout, ray, seed=0)

    def ask(kept: Path) -> list[Conversation]:
        with AnswerFile(kept, "tiny") as file:
            return Interviewer(tokenizer, settings().rollout, 0, fetch, file).ask(questions, pool, lambda done: None)

    try:
        pool.wait_ready()
        found, again = (ask(tmp_path / name) for name in ("once", "twice"))
    finally:
        pool.stop()
    prompts = {str(answer.row): answer.prompt_ids.tolist() for answer in seen}
    for i, (one, turns) in enumerate(zip(found, TURNS, strict=True)):
        said = [{"role": "user", "content": turns[0]}, {"role": "assistant", "content": one.answers[0]}]
        said.append({"role": "user", "content": turns[1]})
        expected = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert len(one.answers) == 2 and prompts[f"judge/{i}:{i}/1"] == expected
    assert [one.answers for one in again] == [one.answers for one in found], "the same seeds give the same answers"


@pytest.fixture
def answering(tiny_model: Path, prompts: tuple[Path, Path], tmp_path: Path) -> PolicyRecipe:
    """A recipe that answers need no more of than its engine."""
    rollout = ROLLOUT | {"engine": ROLLOUT["engine"] | {"max_model_len": 256}}
    return policy_recipe_of(tiny_model, "not read", prompts, tmp_path, "answers", rollout=rollout)


@contextmanager
def vllm_serve(model: Path, context: int) -> Iterator[str]:
    """vLLM's own OpenAI server on a free port; afterwards none of its processes is left."""
    port = free_port()
    # What `vllm serve` runs; that command itself looks for a package `vllm`, which the CPU build is not called.
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model)]
    command += ["--served-model-name", "tiny-judge", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(context), "--max-num-seqs", "8"]
    sockets = tempfile.TemporaryDirectory(prefix="dvpo-zmq-")
    extra = {"VLLM_API_KEY": KEY, "VLLM_LOGGING_LEVEL": "INFO", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    extra |= {"VLLM_RPC_BASE_PATH": sockets.name, "TORCH_COMPILE_DISABLE": "1"}
    environment = os.environ | extra | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    log: deque[str] = deque(maxlen=200)
    too_late = threading.Timer(240, process.kill)
    too_late.start()
    try:
        for line in process.stdout:
            log.append(line)
            if "Application startup complete" in line:
                break
        else:
            pytest.fail("".join(log))
        too_late.cancel()
        reader = threading.Thread(target=log.extend, args=(process.stdout,))
        reader.start()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        too_late.cancel()
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        _, alive = psutil.wait_procs(family, timeout=30)
        for left in alive:
            left.kill()
        sockets.cleanup()
    assert not alive, f"left behind: {alive}"
    reader.join(10)


@pytest.mark.slow
def test_answers_in_a_public_format_judged_by_our_own_server(
    answering: PolicyRecipe, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model says nothing sensible: its verdicts are parse failures, each counted, none asked twice."""
    rows = [{"question_id": i, "category": "writing", "turns": turns} for i, turns in enumerate(TURNS)]
    questions = write_lines(tmp_path / "question.jsonl", rows)
    answers, others = tmp_path / "tiny.jsonl", tmp_path / "others.jsonl"
    facts = answer_questions(answering, None, questions, "mt-bench", answers, "tiny")
    assert (facts["questions"], facts["turns"]) == (3, 6) and 1 <= facts["tokens_per_answer"] <= 12
    assert [one.key for one in read_answers(answers, format_named("mt-bench"))] == ["0", "1", "2"]
    assert list(tmp_path.glob("*.kept")) == [], "once all answers are there"
    with pytest.raises(ConfigError, match="is there already"):
        answer_questions(answering, None, questions, "mt-bench", answers)
    write_lines(others, [{"question_id": i, "choices": [{"index": 0, "turns": ["Yes.", "No."]}]} for i in range(3)])

    # As long as the judge's request, which is a token a byte here.
    judge = Path(shutil.copytree(tiny_model, tmp_path / "judge"))
    config = json.loads((judge / "config.json").read_text()) | {"max_position_embeddings": 2048}
    (judge / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("TINY_KEY", KEY)
    with vllm_serve(judge, 2048) as address:
        settings = JudgeSettings(address, "tiny-judge", "TINY_KEY", max_tokens=16, concurrency=4, patience_s=60)
        ask = partial(compare_answers, answers, others, "mt-bench", questions, settings, tmp_path / "verdicts.jsonl")
        found = ask(Consent(yes=True))
        assert (found["asked"], found["refused"], found["parse_failures"], found["undecided"]) == (6, 0, 6, 3)
        assert found["win_rate_a"] is None and found["output_tokens"] > 0
        assert 0.5 < found["estimated_input_tokens"] * 4 / found["input_tokens"] < 1.5, "four characters, not one, to a token"
        assert ask(Consent())["asked"] == 0
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == 6 and all(line["verdict"] is None for line in lines)


def test_the_best_of_n_by_a_real_value_model(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    """n = 1 is the mean of all answers, more are better by what they are chosen by, and nothing beats choosing by gold."""
    found = best_of(policy_recipe(tmp_path, "x"), None, [1, 2, 4], 8)
    rows = [json.loads(line) for line in (tmp_path / "x-best-of" / "evaluations.jsonl").read_text().splitlines()]
    assert len(rows) == 8 * 8
    curve = found["curve"]
    assert curve[0]["gold_by_gold"] == pytest.approx(sum(row["gold"] for row in rows) / len(rows))
    assert curve[0]["gold_by_value"] == pytest.approx(curve[0]["gold_by_gold"])
    assert curve[0]["gold_by_gold"] < curve[1]["gold_by_gold"] < curve[2]["gold_by_gold"]
    assert curve[0]["value_by_value"] < curve[1]["value_by_value"] < curve[2]["value_by_value"]
    assert all(row["gold_by_value"] <= row["gold_by_gold"] for row in curve)
    assert Path(found["chart"]).read_text().startswith("<svg")
    with pytest.raises(ConfigError, match="--samples 2 are fewer than the largest --n, 4"):
        best_of(policy_recipe(tmp_path, "y"), None, [1, 4], 2)


def test_the_best_of_n_by_a_value_that_the_estimator_leaves_out(
    policy_recipe: MakePolicyRecipe, prompts: tuple[Path, Path], tmp_path: Path
) -> None:
    without = {
        "advantage": {"type": "grpo", "score": "none"},
        "rewards": {"letters": {"function": "tests.support.fakes:early_letters"}},
        "evaluation": {"source": str(prompts[1])},
    }
    with pytest.raises(ConfigError, match="nothing to choose answers by"):
        best_of(policy_recipe(tmp_path, "grpo", value_model=None, **without), None, [1, 2], 2)
    assert not (tmp_path / "grpo-best-of").exists()
    curve = best_of(policy_recipe(tmp_path, "grpo", **without), None, [1, 2], 2)["curve"]
    assert curve[0]["value_by_value"] < curve[1]["value_by_value"], "without a value model all values are the same"


def test_a_policy_without_a_value_model_can_be_evaluated(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    recipe = policy_recipe(tmp_path, "grpo", **WITHOUT_VALUE)
    found = evaluate_policy(recipe, None)
    assert found["kl_per_token"] == pytest.approx(0.0, abs=1e-4) and "gold" in found
