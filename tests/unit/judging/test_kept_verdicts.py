"""What verdicts cost, the file that keeps them, and an evaluation killed in the middle."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dvpo_ray.errors import ConfigError, DataError, JudgeError, RunError
from dvpo_ray.judging import cost
from dvpo_ray.judging.cost import Prices
from dvpo_ray.judging.endpoint import JudgeSettings
from dvpo_ray.judging.judge import Consent, compare_answers
from dvpo_ray.judging.verdict_file import VerdictFile
from dvpo_ray.runs.folder import locked
from dvpo_ray.runs.run import Event
from jobs.cli.main import app
from tests.support.judges import QUESTIONS, judged
from tests.support.services import Reply, Service


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
