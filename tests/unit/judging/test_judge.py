"""The judge against a real HTTP service on this machine that fails in many ways."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.errors import ConfigError, JudgeError
from dvpo_ray.io import http
from dvpo_ray.judging.cost import Prices
from dvpo_ray.judging.endpoint import JudgeSettings, read_completion
from dvpo_ray.judging.judge import Consent
from tests.support.judges import QUESTIONS, completion, judged, likes_good, shown
from tests.support.services import Reply, Service, dripping


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


def test_only_replies_that_were_cut_are_asked_again_with_more_room(service: Service, answers: tuple[Path, Path]) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        cut = body["max_tokens"] < 100 and shown(body)[0] == "good 1"
        return completion("Let me see, firstly", "length") if cut else likes_good(body)

    service.reply = reply
    short = judged(service, answers, max_tokens=50)
    assert (short["parse_failures_cut"], short["wins"]) == (1, QUESTIONS - 1)
    assert judged(service, answers, Consent(), max_tokens=50)["asked"] == 0
    assert judged(service, answers, Consent(), max_tokens=20)["asked"] == 0, "less room says no more"
    # At 1.0 for a token that comes back: 12 replies of 10 tokens were paid for, and at most 200 are to come.
    with pytest.raises(ConfigError, match=r"after 120\.00 for verdicts that are known, more than --max-cost 300"):
        judged(service, answers, Consent(max_cost=300.0, prices=Prices(0.0, 1e6)), max_tokens=200)
    long = judged(service, answers, max_tokens=200)
    assert (long["asked"], long["known_before"], long["parse_failures"], long["wins"]) == (1, 2 * QUESTIONS - 1, 0, QUESTIONS)
    assert judged(service, answers, Consent(), max_tokens=50)["wins"] == QUESTIONS, "the newer reply counts"


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


@pytest.mark.parametrize("said", [-5, 10**9, 10**300])
def test_a_count_of_tokens_that_cannot_be_is_counted_here(said: int, service: Service, answers: tuple[Path, Path]) -> None:
    usage = {"prompt_tokens": said, "completion_tokens": said}
    reply = {"choices": [{"message": {"content": "[[C]]"}, "finish_reason": "stop"}], "usage": usage}
    service.reply = lambda body: (200, {}, json.dumps(reply))
    found = judged(service, answers, Consent(max_cost=1.0, prices=Prices(1.0, 10.0)))
    assert found["output_tokens"] == 12 * 2 and 0 < found["cost"] < 1.0


def test_a_judges_reply_without_end_is_refused(
    service: Service, answers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MOST_REPLY", 1000)
    service.reply = lambda body: (200, {}, " " * 1001)
    with pytest.raises(JudgeError, match="all 12 requests were refused, .*the reply has more than 1,000 bytes"):
        judged(service, answers, Consent(yes=True), concurrency=12)
