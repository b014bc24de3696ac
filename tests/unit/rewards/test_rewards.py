"""Rewards beside the frozen value, against a real HTTP server on this machine."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from dvpo_ray.config.algorithms import DvpoGae, Grpo
from dvpo_ray.config.kl import KlSection
from dvpo_ray.config.rewards import FunctionReward, HttpReward, SpanReward
from dvpo_ray.errors import ConfigError, RewardError
from dvpo_ray.io import http
from dvpo_ray.learning.policy_update import prepare
from dvpo_ray.learning.token_rewards import token_rewards
from dvpo_ray.maths.running import RunningMoments
from dvpo_ray.rewards import RewardRow, Rewards
from dvpo_ray.rewards.services import RemoteReward
from dvpo_ray.types import Ragged, ScoredBatch
from tests.support.fakes import row, scored_batch
from tests.support.services import Reply, Service, dripping, serving


def good(body: dict[str, Any]) -> Reply:
    return 200, {}, json.dumps({"rewards": [len(answer) for answer in body["answers"]]})


@pytest.fixture
def service() -> Iterator[Service]:
    """A reward service."""
    with serving(good) as found:
        yield found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.01)


def remote(service: Service, **settings: Any) -> RemoteReward:
    return RemoteReward("taste", HttpReward(url=service.address, **({"patience_s": 5.0} | settings)))


PROMPTS, ANSWERS = ["a", "b", "c"], ["x", "yy", "zzz"]


def test_answers_go_in_batches_with_a_token(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASTE_TOKEN", "secret")
    reward = remote(service, rows_per_request=2, token_variable="TASTE_TOKEN")
    assert reward(PROMPTS, ANSWERS) == [1.0, 2.0, 3.0]
    assert [body["prompts"] for body in service.asked] == [["a", "b"], ["c"]]
    assert service.authorization == "Bearer secret"


def test_a_missing_token_is_named(service: Service) -> None:
    with pytest.raises(ConfigError, match="variable NO_SUCH_TOKEN"):
        remote(service, token_variable="NO_SUCH_TOKEN")


@pytest.mark.parametrize("token", ["letmein\r\n", "letmein\n", " letmein", "let me in", "letmein\u00e9", "letmein\x7f"])
def test_a_token_that_no_header_can_carry_is_refused_unseen(
    token: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASTE_TOKEN", token)
    with pytest.raises(ConfigError, match="the variable TASTE_TOKEN holds blanks, line ends or characters") as refused:
        remote(service, token_variable="TASTE_TOKEN")
    assert token.strip()[:3] not in str(refused.value)


def test_a_service_may_say_when_by_a_date() -> None:
    def asked(date: str) -> float:
        return http.retry_after(httpx.Response(429, headers={"Retry-After": date}))

    at = datetime.now(UTC) + timedelta(seconds=100)
    assert 95 < asked(format_datetime(at, usegmt=True)) <= 100
    assert 95 < asked(at.strftime("%a, %d %b %Y %H:%M:%S -0000")) <= 100
    assert [asked(text) for text in ("Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-5", "")] == [0.0] * 4


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_asked_again(service: Service, status: int) -> None:
    replies = iter([(status, {}, "busy"), (status, {"Retry-After": "0.2"}, "busy")])
    service.reply = lambda body: next(replies, None) or good(body)
    assert remote(service)(PROMPTS, ANSWERS) == [1.0, 2.0, 3.0]
    assert len(service.asked) == 3
    assert service.at[2] - service.at[1] >= 0.2, "as long as the service asked"


def test_a_service_that_does_not_answer_is_asked_again(service: Service) -> None:
    hang = threading.Event()
    first = iter([True])

    def reply(body: dict[str, Any]) -> Reply:
        if next(first, False):
            hang.wait(10)
        return good(body)

    service.reply = reply
    assert remote(service, timeout_s=0.2)(PROMPTS, ANSWERS) == [1.0, 2.0, 3.0]
    hang.set()


@pytest.mark.parametrize("headers", [False, True])
def test_a_reply_a_byte_at_a_time_does_not_come_in_time(service: Service, headers: bool) -> None:
    began = time.monotonic()
    with dripping(headers) as service.address:
        with pytest.raises(RewardError, match=r"for 0\.3 s, lastly with ReadTimeout\('no whole reply"):
            remote(service, timeout_s=0.2, patience_s=0.3)(PROMPTS, ANSWERS)
        assert time.monotonic() - began < 2, "well before the service hangs up"


def test_a_packed_reply_is_read_and_one_that_is_not_what_it_says_is_asked_for_again(service: Service) -> None:
    service.reply = lambda body: (200, {"Content-Encoding": "gzip"}, "not packed") if len(service.asked) < 2 else good(body)
    assert remote(service)(PROMPTS, ANSWERS) == [len(answer) for answer in ANSWERS]
    assert len(service.asked) == 2


def test_a_service_that_keeps_failing_is_left_alone_and_at_last_given_up(service: Service) -> None:
    service.reply = lambda body: (500, {}, "broken")
    with pytest.raises(RewardError, match=r"reward 'taste': .* kept failing for 1 s, lastly with status 500"):
        remote(service, patience_s=1.0, open_after=2, pause_s=0.3)(PROMPTS, ANSWERS)
    assert 3 <= len(service.asked) <= 6, "without the pauses it would be asked far more often"
    spaced = zip(service.at[1:], service.at[2:-1], strict=False)
    assert all(later - earlier >= 0.3 for earlier, later in spaced), "but for the last, which comes when patience ends"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((404, {}, "who?"), "refused with status 404: who"),
        ((401, {}, "no"), "refused with status 401"),
        ((200, {}, "not json"), "sent no JSON with 'rewards': not json"),
        ((200, {}, '{"scores": [1]}'), "sent no JSON with 'rewards'"),
        ((200, {}, "[1, 2, 3]"), "sent no JSON with 'rewards'"),
        ((200, {}, '{"rewards": [1, 2]}'), "returned 2 numbers for 3 answers"),
        ((200, {}, '{"rewards": [1, 2, "x"]}'), "returned no number for answer 2 of 3: \\['x'\\]"),
        ((200, {}, '{"rewards": [1, 2, NaN]}'), "returned nan for answer 2 of 3"),
        ((200, {}, '{"rewards": 7}'), "returned no list of numbers"),
    ],
)
def test_a_wrong_reply_ends_it_at_once(service: Service, reply: Reply, message: str) -> None:
    service.reply = lambda body: reply
    with pytest.raises(RewardError, match=message):
        remote(service)(PROMPTS, ANSWERS)
    assert len(service.asked) == 1


def test_several_rewards_are_columns_in_the_order_of_the_recipe(service: Service) -> None:
    both = Rewards(
        {"taste": HttpReward(url=service.address), "letters": FunctionReward(function="tests.support.fakes:early_letters")}
    )
    found = both(rows_of(["ab", "z"]))
    assert {name: channel.flat.tolist() for name, channel in found.items()} == {"taste": [2, 1], "letters": [1, -1]}
    assert list(found) == ["taste", "letters"] and Rewards({})(rows_of(ANSWERS)) == {}


async def short_and_long(rows: list[RewardRow]) -> list[float | list[float] | None]:
    """Abstains from an answer of one letter, gives one of two a number, and each token of others one."""
    await asyncio.sleep(0)
    return [[None, 7.0, [1.0, 2.0, 3.0]][len(row.answer) - 1] for row in rows]


def test_a_function_may_be_async_see_rows_abstain_and_price_tokens(service: Service) -> None:
    service.reply = lambda body: (200, {}, '{"rewards": [null, 2, null]}')
    function = "tests.unit.rewards.test_rewards:short_and_long"
    found = Rewards({"mixed": FunctionReward(function=function), "taste": HttpReward(url=service.address)})(rows_of(ANSWERS))
    assert [row.tolist() for row in found["mixed"].rows()] == [[], [7.0], [1.0, 2.0, 3.0]]
    assert [row.tolist() for row in found["taste"].rows()] == [[], [2.0], []]
    scored = replace(scored_batch([3, 3, 3]), channels=dict(found))
    configs = {"mixed": FunctionReward(function=function, weight=2.0), "taste": HttpReward(url="http://x")}
    earned = token_rewards(scored, DvpoGae(), KlSection(), 0.0, configs, RunningMoments())
    assert earned.rewards_bt.tolist() == [[0, 0, 0], [0, 0, 16], [2, 4, 6]]
    assert earned.terminal_b.tolist() == [0, 16, 0]
    assert earned.metrics["reward/mixed_abstained"] == pytest.approx(1 / 3)
    assert earned.metrics["reward/taste"] == 2.0 and earned.metrics["reward/taste_abstained"] == pytest.approx(2 / 3)


def test_spans_are_priced_where_they_end(tokenizer: Any) -> None:
    text = "well, damn it, damn"
    ids = np.array(tokenizer(text)["input_ids"])
    given = RewardRow(row("r"), "p", text, ids, ids >= 0, tokenizer=tokenizer)
    found = Rewards({"mild": SpanReward(pattern="damn|x*", reward=-0.5)})([given])["mild"].flat
    ends = [len(tokenizer(text[:end])["input_ids"]) - 1 for end in (10, 19)]
    assert found.sum() == -1.0 and set(np.flatnonzero(found)) == set(ends)


def rows_of(answers: list[str]) -> list[RewardRow]:
    ids = np.arange(3)
    return [RewardRow(row(text), prompt, text, ids, ids >= 0) for prompt, text in zip(PROMPTS, answers, strict=False)]


def with_rewards(scored: ScoredBatch, scores: list[list[float]], names: str) -> ScoredBatch:
    columns = zip(names, zip(*scores, strict=True), strict=True)
    return replace(scored, channels={name: Ragged.of([[one] for one in column], np.float32) for name, column in columns})


def test_weighted_rewards_join_the_last_token() -> None:
    """With lambda 0 an advantage is its own token's reward and value difference, so only the last ones move."""
    scored, settings = scored_batch([3, 1]), DvpoGae(lam=0.0, whitening="none")
    configs = {name: FunctionReward(function="a:b", weight=weight) for name, weight in (("x", 2.0), ("y", -1.0))}
    plain, _ = prepare(scored, 0, settings, KlSection(), 0.1)
    found, metrics = prepare(with_rewards(scored, [[1.0, 0.5], [0.25, 3.0]], "xy"), 0, settings, KlSection(), 0.1, None, configs)
    assert found.advantages.flat - plain.advantages.flat == pytest.approx([0, 0, 1.5, -2.5], abs=1e-6)
    assert metrics["reward/x"] == pytest.approx(0.625) and metrics["reward/y"] == pytest.approx(1.75)


def test_rewards_alone_can_train(service: Service) -> None:
    """GRPO without the value: two answers of one prompt, rewards 1 and 3, no KL: -1 and 1."""
    scored = scored_batch([2, 2])
    scored = with_rewards(replace(scored, group_ids=np.zeros(2, dtype=np.int64)), [[1.0], [3.0]], "x")
    configs = {"x": FunctionReward(function="a:b")}
    found, _ = prepare(scored, 0, Grpo(score="none"), KlSection(), 0.0, None, configs)
    assert torch.allclose(torch.from_numpy(found.advantages.flat).float(), torch.tensor([-1.0, -1.0, 1.0, 1.0]))


def test_a_function_that_fails_is_named_with_its_place() -> None:
    rewards = Rewards({"taste": FunctionReward(function="tests.support.failing:reward")})
    with pytest.raises(RewardError) as raised:
        rewards(rows_of(ANSWERS))
    told = str(raised.value)
    assert told.startswith(
        "reward 'taste': tests.support.failing:reward failed on 3 answers: HoldsLock: no opinion on 3 answers\n  at "
    )
    assert "tests/support/failing.py:" in told and told.endswith("mend the function and go on with --resume auto")
    assert str(pickle.loads(pickle.dumps(raised.value))) == told
