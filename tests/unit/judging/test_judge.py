"""The judge against a real HTTP service on this machine that fails in many ways, and an evaluation killed in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray import retries
from dvpo_ray.errors import ConfigError, DataError, JudgeError, RunError
from dvpo_ray.judging import cost
from dvpo_ray.judging.cost import Prices
from dvpo_ray.judging.endpoint import JudgeSettings
from dvpo_ray.judging.judge import Consent, compare_answers
from dvpo_ray.judging.verdict_file import VerdictFile
from dvpo_ray.run_folder import locked
from tests.services import Reply, Service, serving

QUESTIONS = 6


def completion(text: str | None, finish_reason: str = "stop") -> Reply:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    return 200, {}, json.dumps({"choices": choices, "usage": {"prompt_tokens": 100, "completion_tokens": 10}})


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """The answers that a request shows as A and B."""
    found = re.findall(r"<Answer .>\n(.*)\n</Answer .>", body["messages"][1]["content"])
    return found[0], found[1]


def likes_good(body: dict[str, Any]) -> Reply:
    """A judge that finds the answer that begins with "good", wherever it is shown."""
    return completion(f"Well.\n[[{'A' if shown(body)[0].startswith('good') else 'B'}]]")


@pytest.fixture
def service() -> Iterator[Service]:
    """A judge."""
    with serving(likes_good) as found:
        yield found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def answers(tmp_path: Path) -> tuple[Path, Path]:
    """Good answers, and bad ones to the same questions; one answer is the same in both."""
    for name in ("good", "bad"):
        rows = [{"id": str(i), "model": name, "prompt": f"say {i}", "answer": f"{name} {i}"} for i in range(QUESTIONS)]
        rows.append({"id": "same", "model": name, "prompt": "say nothing", "answer": ""})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "good.jsonl", tmp_path / "bad.jsonl"


def judged(service: Service, answers: tuple[Path, Path], consent: Consent | None = None, **settings: Any) -> dict[str, Any]:
    given = {"concurrency": 2, "timeout_s": 5.0, "patience_s": 5.0} | settings
    judge = JudgeSettings(f"{service.address}/v1/", "judge-1", **given)
    return compare_answers(*answers, "jsonl", None, judge, answers[0].with_name("verdicts.jsonl"), consent or Consent(yes=True))


def first_replies(*replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    """Some replies, then good ones."""
    left, lock = iter(replies), threading.Lock()

    def reply(body: dict[str, Any]) -> Reply:
        with lock:
            found = next(left, None)
        return found or likes_good(body)

    return reply


def test_each_pair_is_judged_in_both_orders(
    service: Service, answers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    found = judged(service, answers, Consent(max_cost=1.0, prices=Prices(1.0, 10.0)), key_variable="JUDGE_KEY")
    pairs = {(f"good {i}", f"bad {i}") for i in range(QUESTIONS)}
    assert sorted(map(shown, service.asked)) == sorted(pairs | {(b, a) for a, b in pairs}), "not the identical answers"
    assert service.paths == {"/v1/chat/completions"} and service.authorization == "Bearer secret-key"
    assert {key: service.asked[0][key] for key in ("model", "max_tokens", "temperature")} == {
        "model": "judge-1",
        "max_tokens": 512,
        "temperature": 0.0,
    }
    # 6 wins and the identical pair's tie.
    assert found["win_rate_a"] == pytest.approx(6.5 / 7)
    assert (found["wins"], found["identical"], found["swap_consistency"]) == (6, 1, 1.0)
    assert found["cost"] == pytest.approx(12 * (100 * 1.0 + 10 * 10.0) / 1e6)
    written = answers[0].with_name("verdicts.jsonl").read_text()
    assert "secret-key" not in written + json.dumps(found)


def test_what_may_pass_is_asked_again(service: Service, answers: tuple[Path, Path]) -> None:
    service.reply = first_replies(
        (500, {}, "broken"),
        (429, {"Retry-After": "0.3"}, "slow down"),
        (503, {}, ""),
        (200, {}, "<html>proxy</html>"),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": 5}}]}'),
        (200, {}, '{"error": "overloaded"}'),
    )
    found = judged(service, answers, concurrency=1)
    assert found["wins"] == QUESTIONS and found["parse_failures"] == 0
    assert found["retries"] == 7 and len(service.asked) == 2 * QUESTIONS + 7
    assert service.at[2] - service.at[1] >= 0.3, "as long as the service asked"


def test_a_service_that_does_not_answer_is_asked_again(service: Service, answers: tuple[Path, Path]) -> None:
    hang, once = threading.Event(), iter([True])

    def reply(body: dict[str, Any]) -> Reply:
        if next(once, False):
            hang.wait(10)
        return likes_good(body)

    service.reply = reply
    assert judged(service, answers, timeout_s=0.3, concurrency=1)["wins"] == QUESTIONS
    hang.set()
    assert len(service.asked) == 2 * QUESTIONS + 1


def test_ties_and_replies_without_a_verdict_are_counted(service: Service, answers: tuple[Path, Path]) -> None:
    said = {"good 0": "[[C]]", "bad 0": "[[C]]", "good 1": "no idea", "good 2": "[[A]] [[B]]", "good 3": None, "good 4": "[[A]]"}
    said["bad 4"] = "[[A]]"

    def reply(body: dict[str, Any]) -> Reply:
        first = shown(body)[0]
        return completion(said[first], "length") if first in said else likes_good(body)

    service.reply = reply
    found = judged(service, answers)
    counts = {"wins": 1, "ties": 2, "inconsistent": 1, "undecided": 3, "parse_failures": 3, "parse_failures_cut": 3}
    assert {key: found[key] for key in counts} == counts
    again = judged(service, answers, Consent())
    assert {key: again[key] for key in counts} == counts, "nothing is left to ask, so nobody needs to agree"
    assert len(service.asked) == 2 * QUESTIONS


def test_one_refused_request_leaves_its_question_undecided(service: Service, answers: tuple[Path, Path]) -> None:
    service.reply = lambda body: (400, {}, "too long") if shown(body)[1] == "good 3" else likes_good(body)
    found = judged(service, answers)
    assert (found["wins"], found["undecided"], found["refused"]) == (QUESTIONS - 1, 1, 1)
    assert re.search(r"question '3': .* refused with status 400: too long", found["refusal"])
    service.reply = likes_good
    assert judged(service, answers)["wins"] == QUESTIONS, "it is asked again the next time"
    assert len(service.asked) == 2 * QUESTIONS + 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {}, "who?"), "refused with status 401: who.*check --endpoint, --model and --key-variable"),
        ((404, {}, "no model"), "refused with status 404"),
        ((400, {}, "no"), "all 12 requests were refused, the first so: question"),
        ((500, {}, "broken"), "kept failing for 0.3 s, lastly with status 500: broken"),
        ((200, {}, "hm"), "kept failing for 0.3 s, lastly with .*no chat completion.*hm"),
    ],
)
def test_a_service_that_is_no_judge_ends_it(service: Service, answers: tuple[Path, Path], reply: Reply, message: str) -> None:
    service.reply = lambda body: reply
    with pytest.raises(JudgeError, match=message):
        judged(service, answers, patience_s=0.3)


def test_nothing_is_asked_without_consent(service: Service, answers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for consent, settings, message in (
        (Consent(), {}, "nothing was asked yet: 12 requests"),
        (Consent(max_cost=1e-6, prices=Prices(1.0, 1.0)), {}, "more than --max-cost 1e-06"),
        (Consent(yes=True), {"key_variable": "NO_SUCH_KEY"}, "the variable NO_SUCH_KEY is not set"),
    ):
        with pytest.raises(ConfigError, match=message):
            judged(service, answers, consent, **settings)
    for address in ("127.0.0.1:8000/v1", "http://host:port/v1", "ftp://x", "http://"):
        with pytest.raises(ConfigError, match="is no address"):
            JudgeSettings(address, "j")
    assert service.asked == []


def test_it_stops_when_it_costs_more_than_agreed(
    service: Service, answers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 1.0 for a token sent, a request costs 100. Its two texts are made to be estimated at 1 + 8 tokens each: 216 in all."""
    monkeypatch.setattr(cost, "CHARACTERS_PER_TOKEN", 10**6)
    with pytest.raises(JudgeError, match=r"has cost 300\.00, more than --max-cost 250"):
        judged(service, answers, Consent(max_cost=250.0, prices=Prices(1e6, 0.0)), concurrency=1)
    assert len(service.asked) == 3
    assert judged(service, answers)["known_before"] == 3, "what was paid for is kept"


def test_two_evaluations_do_not_share_a_file(service: Service, answers: tuple[Path, Path]) -> None:
    with locked(answers[0].with_name("verdicts.jsonl")), pytest.raises(RunError, match="in use by another"):
        judged(service, answers)


def test_a_damaged_file_of_verdicts(service: Service, answers: tuple[Path, Path]) -> None:
    judged(service, answers)
    file = answers[0].with_name("verdicts.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert judged(service, answers)["asked"] == 1, "a line that was cut short is asked again"
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())
    for old, new, message in ((b'"A"', b'"D"', "row 1: verdict"), (b'{"key"', b'"key"', "line 1: ")):
        lines = sorted(whole.splitlines(), key=lambda line: b'"A"' not in line)
        file.write_bytes(b"\n".join(line.replace(old, new) for line in lines) + b"\n")
        with pytest.raises(DataError, match=rf"verdicts\.jsonl, {message}"):
            VerdictFile(file)


def test_a_killed_evaluation_goes_on_without_paying_twice(answers: tuple[Path, Path]) -> None:
    """Five replies are given, then the service keeps all others waiting until the real process is killed."""
    paid: Counter[tuple[str, str]] = Counter()
    full, killed, lock = threading.Event(), threading.Event(), threading.Lock()

    def reply(body: dict[str, Any]) -> Reply:
        with lock:
            waits = sum(paid.values()) == 5 and not killed.is_set()
            if not waits:
                paid[shown(body)] += 1
        if waits:
            full.set()
            killed.wait(60)
            return 503, {}, "too late"
        return likes_good(body)

    with serving(reply) as service:
        command = [sys.executable, "-m", "dvpo_ray.cli", "eval", "judge", *map(str, answers), "--format", "jsonl", "--json"]
        command += ["--endpoint", f"{service.address}/v1", "--model", "judge-1", "--concurrency", "1", "--yes"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert full.wait(60), process.communicate(timeout=5)
            os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            process.communicate()
            killed.set()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["known_before"], found["asked"], found["wins"]) == (5, 2 * QUESTIONS - 5, QUESTIONS)
    assert len(paid) == 2 * QUESTIONS and set(paid.values()) == {1}, "every request was answered, and paid for, once"
    assert not list(answers[0].parent.glob(".*.lock"))
