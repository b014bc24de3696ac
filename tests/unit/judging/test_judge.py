"""The judge against a real HTTP service on this machine that fails in many ways, and an evaluation killed in the middle."""

from __future__ import annotations

import itertools
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
from typer.testing import CliRunner

from dvpo_ray import retries
from dvpo_ray.cli import app
from dvpo_ray.errors import ConfigError, DataError, JudgeError, RunError
from dvpo_ray.judging import cost
from dvpo_ray.judging.cost import Prices
from dvpo_ray.judging.endpoint import JudgeSettings, read_completion
from dvpo_ray.judging.judge import Consent, compare_answers
from dvpo_ray.judging.verdict_file import VerdictFile
from dvpo_ray.run import Event
from dvpo_ray.run_folder import locked
from tests.services import Reply, Service, dripping, serving

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
        completion("[[C]]"),
        (200, {}, '{"choices": [{"message": {"content": 5}}]}'),
        (408, {}, "too slow"),
        (200, {}, '{"error": "overloaded"}'),
    )
    found = judged(service, answers, concurrency=1)
    assert found["refused"] == 0 and found["parse_failures"] == 0
    assert found["retries"] == 8 and len(service.asked) == 2 * QUESTIONS + 8
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
    again = judged(service, answers)
    assert (again["asked"], again["wins"], again["refused"]) == (1, QUESTIONS - 1, 1), "one that is refused for ever ends nothing"
    service.reply = likes_good
    assert judged(service, answers)["wins"] == QUESTIONS, "it is asked again the next time"
    assert len(service.asked) == 2 * QUESTIONS + 2


def test_replies_that_never_are_a_completion_are_not_paid_for_without_end(service: Service, answers: tuple[Path, Path]) -> None:
    service.reply = lambda body: (200, {}, "hm")
    with pytest.raises(JudgeError, match="all 12 requests were refused, the first so: .*no chat completion.*hm"):
        judged(service, answers)
    assert len(service.asked) == 3 * 2 * QUESTIONS
    service.asked.clear()
    service.reply = lambda body: (200, {}, "hm") if shown(body)[1] == "good 3" else likes_good(body)
    found = judged(service, answers)
    assert (found["wins"], found["undecided"], found["refused"]) == (QUESTIONS - 1, 1, 1)
    assert re.search(r"question '3': .* replied 3 times with no chat completion .*hm", found["refusal"])
    assert len(service.asked) == 2 * QUESTIONS + 2


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "text", "text": "So "}, {"type": "text", "text": "[[A]]"}]}, "So [[A]]"),
        ({"content": [{"type": "reasoning", "summary": "x"}, {"type": "text", "text": "[[B]]"}]}, "[[B]]"),
        ({"content": None, "reasoning_content": "[[A]]"}, ""),
        ({"role": "assistant", "reasoning_content": "[[A]]"}, ""),
    ],
)
def test_what_services_call_the_text_of_a_reply(message: dict[str, Any], text: str) -> None:
    assert read_completion(json.dumps({"choices": [{"message": message}]}).encode()).text == text


def test_a_reply_a_byte_at_a_time_does_not_come_in_time(service: Service, answers: tuple[Path, Path]) -> None:
    with dripping() as service.address, pytest.raises(JudgeError, match=r"kept failing for 0\.3 s, lastly with TimeoutError"):
        judged(service, answers, timeout_s=0.2, patience_s=0.3)


def test_another_judge_of_the_same_name_is_another_judge(service: Service, answers: tuple[Path, Path]) -> None:
    judged(service, answers)
    service.address = service.address.replace("127.0.0.1", "LOCALHOST")
    again = judged(service, answers)
    assert (again["known_before"], again["asked"]) == (0, 2 * QUESTIONS)
    service.address = service.address.lower()
    assert judged(service, answers)["asked"] == 0, "another spelling of an address is the same one"
    assert all(set(body) == {"messages", "model", "max_tokens", "temperature"} for body in service.asked)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {}, "who?"), "refused with status 401: who.*check --endpoint, --model and --key-variable"),
        ((404, {}, "no model"), "refused with status 404"),
        ((400, {}, "no"), "all 12 requests were refused, the first so: question"),
        ((500, {}, "broken"), "kept failing for 0.3 s, lastly with status 500: broken"),
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
    for address in ("https://me:letmein@host/v1", "me:letmein@host/v1", "https://letmein@host/v1", "http://host/v1?key=letmein"):
        with pytest.raises(ConfigError, match=r"not shown.*--key-variable") as refused:
            JudgeSettings(address, "j")
        assert "letmein" not in str(refused.value)
    assert service.asked == []


def test_it_stops_when_it_costs_more_than_agreed(
    service: Service, answers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 1.0 for a token sent, a request costs 100. Its two texts are made to be estimated at 1 + 8 tokens each: 216 in all."""
    monkeypatch.setattr(cost, "CHARACTERS_PER_TOKEN", 10**6)
    with pytest.raises(JudgeError, match=r"has cost 300\.00, more than --max-cost 250"):
        judged(service, answers, Consent(max_cost=250.0, prices=Prices(1e6, 0.0)), concurrency=1)
    assert len(service.asked) == 3
    with pytest.raises(ConfigError, match=r"after 300\.00 for verdicts that are known, more than --max-cost 400"):
        judged(service, answers, Consent(max_cost=400.0, prices=Prices(1e6, 0.0)))
    with pytest.raises(JudgeError, match=r"has cost 600\.00, more than --max-cost 500.*; 6 requests were not made"):
        judged(service, answers, Consent(max_cost=500.0, prices=Prices(1e6, 0.0)), concurrency=1)
    assert len(service.asked) == 6
    assert judged(service, answers)["known_before"] == 6, "what was paid for is kept"


def test_requests_under_way_when_the_limit_is_passed_are_kept(service: Service, answers: tuple[Path, Path]) -> None:
    """Three are under way. The first reply alone costs more than the limit; the others come when it has been counted."""
    all_here, counted, number = threading.Barrier(3), threading.Event(), itertools.count()
    dear = json.dumps({"choices": [{"message": {"content": "[[A]]"}}], "usage": {"prompt_tokens": 10**6}})

    def reply(body: dict[str, Any]) -> Reply:
        all_here.wait(10)
        if next(number):
            counted.wait(10)
        return 200, {}, dear

    def listener(event: Event) -> None:
        if event.kind == "step":
            counted.set()

    service.reply = reply
    judge = JudgeSettings(f"{service.address}/v1", "judge-1", concurrency=3)
    consent = Consent(max_cost=0.5, prices=Prices(1.0, 0.0))
    verdicts = answers[0].with_name("verdicts.jsonl")
    with pytest.raises(JudgeError, match=r"has cost 3\.00.*; 9 requests were not made"):
        compare_answers(*answers, "jsonl", None, judge, verdicts, consent, listener)
    assert len(VerdictFile(verdicts).known) == 3


def test_what_a_service_does_not_count_is_estimated(service: Service, answers: tuple[Path, Path]) -> None:
    without_usage = json.dumps({"choices": [{"message": {"content": "[[A]] of 12 c"}}]})
    service.reply = lambda body: (200, {}, without_usage)
    found = judged(service, answers, Consent(max_cost=1.0, prices=Prices(1.0, 1.0)))
    assert found["input_tokens"] == found["estimated_input_tokens"] > 0
    assert found["output_tokens"] == 12 * 4, "13 characters are 4 tokens"
    assert found["cost"] == pytest.approx((found["input_tokens"] + 48) / 1e6)


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
    for old, new, message in ((b'"A"', b'"D"', "line 1: verdict"), (b'{"key"', b'"key"', "line 1: ")):
        lines = sorted(whole.splitlines(), key=lambda line: b'"A"' not in line)
        file.write_bytes(b"\n".join(line.replace(old, new) for line in lines) + b"\n")
        with pytest.raises(DataError, match=rf"verdicts\.jsonl, {message}"):
            VerdictFile(file)


def test_a_file_of_something_else_is_left_as_it_is(service: Service, answers: tuple[Path, Path]) -> None:
    mine = answers[0].with_name("verdicts.jsonl")
    for content in ('{"id": "0", "answer": "precious"}', "notes\nwithout an end", "[1]", '{"id": 1}\n'):
        mine.write_text(content)
        with pytest.raises(DataError, match=r"verdicts\.jsonl, line 1: .*give --verdicts a file of its own"):
            judged(service, answers)
        assert mine.read_text() == content
    mine.write_text('{"ke')
    with pytest.raises(ConfigError, match="nothing was asked yet"):
        judged(service, answers, Consent())
    assert mine.read_text() == '{"ke', "nothing is written without consent"
    assert judged(service, answers)["asked"] == 2 * QUESTIONS


def test_verdicts_lie_beside_the_answers_for_either_order_and_are_no_answers(
    service: Service, answers: tuple[Path, Path]
) -> None:
    good, bad = map(str, answers)
    options = ["--format", "jsonl", "--endpoint", service.address, "--model", "judge-1", "--json"]
    for order, asked in (([good, bad, "--yes"], 2 * QUESTIONS), ([bad, good], 0)):
        result = CliRunner().invoke(app, ["eval", "judge", *order, *options])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout.splitlines()[-1])["asked"] == asked
    assert sorted(path.name for path in answers[0].parent.iterdir()) == ["bad-against-good.verdicts", "bad.jsonl", "good.jsonl"]


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
