"""Episodes over an engine that writes what a test says: how they end, and whose each token is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.rollout.answer_tokens import AnswerTokens
from actors.rollout.episodes import Episode
from dvpo_ray.config.environments import Calculator
from dvpo_ray.data import ChatEncoder, TurnJoiner
from dvpo_ray.data.messages import Message
from dvpo_ray.errors import ActorFailedError, ConfigError
from dvpo_ray.types import RolloutRequest, RowId, Trajectory, Written
from tests.support.environments import Scripted, ScriptedEnvironment

ROW = RowId(2, 5, "p", 1)


class Engine:
    """Writes one planned turn after the other; one that has no room for it is cut."""

    def __init__(self, turns: Sequence[Sequence[int]]) -> None:
        self.turns = list(turns)
        self.asked: list[tuple[int, list[int], int]] = []

    async def write(self, turn: int, ids: list[int], most: int) -> tuple[Written, str]:
        self.asked.append((turn, ids, most))
        wanted = self.turns[turn]
        written = tuple(wanted[:most])
        reason = "stop" if len(written) == len(wanted) else "length"
        return Written(written, tuple(-0.5 - turn for _ in written), tuple(10 + turn for _ in written)), reason


class Played:
    """An episode that has been played."""

    def __init__(self, tokenizer: Any, environment: Any, turns: Sequence[str | Sequence[int]], most: int = 400, **more: Any):
        encoder = ChatEncoder(tokenizer)
        self.end = encoder.end.end_id
        self.joiner = TurnJoiner(tokenizer)
        self.prompt = encoder.prompt((Message("user", "how many?"),))
        self.engine = Engine([self.ids(tokenizer, turn) for turn in turns])
        self.told: list[tuple[str, str]] = []
        ScriptedEnvironment.made.clear()
        self.request = RolloutRequest(ROW, tuple(self.prompt), 7, environment=environment, columns={"answer": 84}, **more)
        self.answer: Trajectory = asyncio.run(
            Episode(self.request, most, self.joiner, self.engine.write, lambda *told: self.told.append(told)).run()
        )

    def ids(self, tokenizer: Any, turn: str | Sequence[int]) -> list[int]:
        return [*tokenizer(turn, add_special_tokens=False)["input_ids"], self.end] if isinstance(turn, str) else list(turn)

    @property
    def environment(self) -> ScriptedEnvironment:
        (only,) = ScriptedEnvironment.made
        return only

    @property
    def earned(self) -> dict[int, float]:
        """The rewards that are not 0, by place."""
        assert self.answer.rewards is not None and self.answer.rewards.dtype == np.float32
        return {int(i): float(self.answer.rewards[i]) for i in np.flatnonzero(self.answer.rewards)}


def test_tokens_are_those_that_were_sampled_with_replies_as_the_template_writes_them(tokenizer: Any) -> None:
    played = Played(tokenizer, Scripted(script=("say 84", "end 0.5"), max_turns=3), ["<calc>12*7</calc>", "84"])
    turns = [
        {"role": "user", "content": "how many?"},
        {"role": "assistant", "content": "<calc>12*7</calc>"},
        {"role": "user", "content": "84"},
        {"role": "assistant", "content": "84"},
    ]
    whole = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
    answer = played.answer
    assert tokenizer.decode([*answer.prompt_ids, *answer.response_ids]) == whole
    second = answer.turns[1]
    assert answer.turns == (0, answer.response_ids.size - 3) and answer.end_state == "stop"
    said = np.flatnonzero(~answer.action_mask)
    assert said.tolist() == list(range(len(played.engine.turns[0]), second))
    assert tokenizer.decode(answer.response_ids[said]) == "\n<|im_start|>user\n84<|im_end|>\n<|im_start|>assistant\n"
    assert np.all(answer.log_probs[said] == 0) and np.all(answer.versions[said] == 11)
    assert np.all(answer.versions[: said[0]] == 10) and np.all(answer.log_probs[second:] == -1.5)
    assert played.earned == {answer.response_ids.size - 1: 0.5}
    assert played.environment.heard == ["<calc>12*7</calc>", "84"], "without the token that ended the turn"
    row = played.environment.row
    assert row is not None and (row.row, row.columns, row.seed) == (ROW, {"answer": 84}, 7) and "how many?" in row.prompt
    assert played.environment.closed == 1 and not played.told
    assert [call[0] for call in played.engine.asked] == [0, 1]
    assert played.engine.asked[1][1] == [*answer.prompt_ids, *answer.response_ids[:second]]


ENDS: dict[str, tuple[Scripted, list[str], int, str, dict[int, float]]] = {
    "it says that it is done": (Scripted(script=("end 1",)), ["ab"], 99, "stop", {2: 1.0}),
    "it says how it ended": (Scripted(script=("end -1 lost",)), ["ab"], 99, "lost", {2: -1.0}),
    "all turns are taken": (Scripted(script=("earn 2", "earn 3")), ["ab", "cd"], 400, "turns", {}),
    "a turn is cut": (Scripted(script=("end 1",)), ["abcdef"], 4, "length", {}),
    "a later turn is cut": (Scripted(script=("earn 2", "end 1")), ["ab", "cdefghijk" * 9], 100, "length", {2: 2.0}),
    "a reply does not fit": (Scripted(script=("say " + "x" * 90, "end 1")), ["ab", "cd"], 60, "length", {}),
    "it raises": (Scripted(script=("raise",)), ["ab"], 99, "crashed", {}),
    "it raises later": (Scripted(script=("earn 2", "raise"), max_turns=3), ["ab", "cd", "e"], 400, "crashed", {}),
    "it says nothing": (Scripted(script=("nothing",)), ["ab"], 99, "crashed", {}),
    "it hangs": (Scripted(script=("earn 2", "hang"), turn_timeout_s=0.05), ["ab", "cd"], 400, "timeout", {2: 2.0}),
    "it cannot be made": (Scripted(opening="raise when made"), ["ab"], 99, "crashed", {}),
    "it cannot begin": (Scripted(opening="raise"), ["ab"], 99, "crashed", {}),
    "it hangs at once": (Scripted(opening="hang", turn_timeout_s=0.05), ["ab"], 99, "timeout", {}),
}


@pytest.mark.parametrize("name", ENDS)
def test_how_episodes_end(name: str, tokenizer: Any) -> None:
    environment, turns, most, end_state, earned = ENDS[name]
    played = Played(tokenizer, environment, turns, most)
    assert played.answer.end_state == end_state, played.told
    if end_state == "turns":
        assert sorted(played.earned.values()) == [2.0, 3.0]
    else:
        assert played.earned == earned
    assert played.answer.response_ids.size <= most
    assert played.answer.action_mask[-1], "nothing is said that the policy cannot reply to"
    assert len(played.told) == (end_state in ("crashed", "timeout"))
    assert all(one.closed == 1 for one in ScriptedEnvironment.made)


def test_a_failure_is_told_with_row_error_and_place(tokenizer: Any) -> None:
    ((kind, text),) = Played(tokenizer, Scripted(script=("raise tape",)), ["ab"]).told
    assert kind == "crashed" and "row 2/5:p/1: its environment failed in step: ValueError: the tape is gone" in text
    assert "tests/support/environments.py" in text
    ((kind, text),) = Played(tokenizer, Scripted(script=("hang",), turn_timeout_s=0.05), ["ab"]).told
    assert kind == "timeout" and "did not end step within turn_timeout_s = 0.05" in text


@pytest.mark.parametrize("closing", ["raise", "hang"])
def test_what_fails_while_it_closes_is_told_and_costs_nothing(closing: str, tokenizer: Any) -> None:
    played = Played(tokenizer, Scripted(script=("end 1",), closing=closing, turn_timeout_s=0.05), ["ab"])
    assert played.answer.end_state == "stop" and played.earned == {2: 1.0}
    assert [kind for kind, _ in played.told] == ["close"]


def test_an_engine_that_fails_ends_the_row_and_closes_the_environment(tokenizer: Any) -> None:
    encoder, closed = ChatEncoder(tokenizer), Scripted(script=("say x",))

    async def dead(turn: int, ids: list[int], most: int) -> tuple[Written, str]:
        raise ActorFailedError("the engine died")

    ScriptedEnvironment.made.clear()
    request = RolloutRequest(ROW, tuple(encoder.prompt((Message("user", "x"),))), 0, environment=closed)
    with pytest.raises(ActorFailedError, match="the engine died"):
        asyncio.run(Episode(request, 99, TurnJoiner(tokenizer), dead, lambda kind, text: None).run())
    assert [one.closed for one in ScriptedEnvironment.made] == [1]


def test_a_row_that_is_given_up_closes_its_environment(tokenizer: Any) -> None:
    encoder = ChatEncoder(tokenizer)
    request = RolloutRequest(ROW, tuple(encoder.prompt((Message("user", "x"),))), 0, environment=Scripted(script=("hang",)))
    ScriptedEnvironment.made.clear()
    engine = Engine([[5, encoder.end.end_id]])

    async def given_up() -> None:
        episode = Episode(request, 99, TurnJoiner(tokenizer), engine.write, lambda kind, text: None)
        task = asyncio.create_task(episode.run())
        await ScriptedEnvironment.made[0].hangs.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(given_up())
    assert [one.closed for one in ScriptedEnvironment.made] == [1]


def test_an_environment_that_nobody_can_import_is_the_recipes_error(tokenizer: Any) -> None:
    class Nowhere(Scripted):
        implementation = "nowhere.at_all:Nothing"

    with pytest.raises(ConfigError, match="cannot load 'nowhere.at_all:Nothing'"):
        Played(tokenizer, Nowhere(), ["ab"])


def test_what_is_said_first_stands_before_the_policys_turn(tokenizer: Any) -> None:
    played = Played(tokenizer, Scripted(opening="say the rules", script=("end 1",), role="user"), ["ab"], forced_ids=(9, 8))
    answer, encoder = played.answer, ChatEncoder(tokenizer)
    whole = [*answer.prompt_ids, *answer.response_ids]
    both = encoder.prompt((Message("user", "how many?"), Message("user", "the rules")))
    assert whole[: len(both)] == both and whole[len(both) :] == [9, 8, *played.engine.turns[0]]
    assert answer.turns == (answer.response_ids.size - 3,) and not answer.action_mask[: answer.turns[0]].any()
    assert played.environment.heard == [tokenizer.decode([9, 8, *played.engine.turns[0][:-1]])]
    assert Played(tokenizer, Scripted(opening="say " + "x" * 99, role="user"), ["ab"], most=40).answer.end_state == "length"


def test_the_calculator_is_asked_and_answers(tokenizer: Any) -> None:
    played = Played(tokenizer, Calculator(answer_column="answer"), ["<calc>12*7</calc>", "It is 84."])
    assert played.answer.end_state == "stop" and played.earned == {played.answer.response_ids.size - 1: 1.0}
    assert "84" in tokenizer.decode(played.answer.response_ids[~played.answer.action_mask])
    wrong = Played(tokenizer, Calculator(answer_column="answer"), ["It is 85."])
    assert wrong.answer.end_state == "stop" and wrong.earned == {}
    missing = Played(tokenizer, Calculator(answer_column="right"), ["It is 85."])
    assert missing.answer.end_state == "crashed" and "column 'right' holds 'None', expected a number" in missing.told[0][1]


IDS = st.lists(st.integers(20, 280), min_size=0, max_size=12)


@settings(max_examples=60)
@given(
    turns=st.lists(IDS, min_size=1, max_size=5),
    replies=st.lists(st.text(max_size=12), min_size=5, max_size=5),
    most=st.integers(4, 200),
    forced=IDS.map(lambda ids: ids[:3]),
    resumed=IDS.map(lambda ids: ids[:2]),
)
def test_every_token_is_accounted_for(
    tokenizer: Any, turns: list[list[int]], replies: list[str], most: int, forced: list[int], resumed: list[int]
) -> None:
    """The answer is what was forced, resumed, sampled and said, in order; each token has its owner, its turn, its reward."""
    most = max(most, len(forced) + len(resumed) + 1)
    script = (*(f"say {reply}" for reply in replies[: len(turns) - 1]), "end 1")
    before = Written(tuple(resumed), tuple(-9.0 for _ in resumed), tuple(3 for _ in resumed))
    end = ChatEncoder(tokenizer).end.end_id
    planned = [[*turn, end] for turn in turns]
    environment = Scripted(script=script, max_turns=len(turns))
    played = Played(tokenizer, environment, planned, most, forced_ids=tuple(forced), resumed=before if resumed else None)
    answer = played.answer
    expected: list[tuple[int, bool, int]] = [*((one, False, -1) for one in forced), *((one, True, -1) for one in resumed)]
    starts, written = [], 0
    for number, (turn, ids, room) in enumerate(played.engine.asked):
        assert turn == number and room == most - len(expected)
        assert ids == [*played.prompt, *(one for one, _, _ in expected)], "the engine reads all that was before, as it was"
        starts.append(len(expected) - (len(resumed) if number == 0 else 0))
        expected += [(one, True, number) for one in planned[number][:room]]
        written = len(expected)
        if number + 1 < len(played.engine.asked):
            said = played.joiner.between((Message("tool", replies[number]),), expected[-1][0])
            expected += [(one, False, number + 1) for one in said]
    assert answer.response_ids.tolist() == [one for one, _, _ in expected]
    assert answer.action_mask.tolist() == [own for _, own, _ in expected]
    assert answer.turns == tuple(starts) and answer.response_ids.size == written <= most
    assert all(answer.log_probs[~answer.action_mask] == 0)
    oldest = 3 if resumed else 10
    assert answer.versions.tolist() == [oldest if number == -1 else 10 + number for _, _, number in expected]
    assert played.earned == ({written - 1: 1.0} if answer.end_state == "stop" else {})
    assert answer.end_state in ("stop", "length") and not played.told


def test_versions_of_what_nobody_sampled(tokenizer: Any) -> None:
    tokens = AnswerTokens(RolloutRequest(ROW, (1,), 0, forced_ids=(5, 6)))
    tokens.wrote(Written((7,), (-1.0,), (4,)))
    tokens.said([8, 9])
    tokens.wrote(Written((10, 11), (-1.0, -2.0), (6, 7)))
    tokens.said([12])
    answer = tokens.trajectory("stop")
    assert answer.versions.tolist() == [4, 4, 4, 6, 6, 6, 7, 7] and answer.turns == (2, 5) and answer.rewards is None
