"""Questions of several turns: what is asked, in which order, and what cannot fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvpo_ray.config.sections import EngineSection, RolloutSection
from dvpo_ray.data.messages import Message
from dvpo_ray.errors import ActorFailedError, DataError, RowsLostError
from dvpo_ray.judging.answer_file import AnswerFile
from dvpo_ray.judging.conversation import Interviewer
from dvpo_ray.judging.formats import Question
from dvpo_ray.stages import Weights
from dvpo_ray.types import RolloutRequest, RowId, ServedWeights, Trajectory
from jobs.answer import identity


class Counting:
    """Engines whose n-th answer is the number n, handed out in the reverse order; ``lost`` rows are given up."""

    def __init__(self, tokenizer: Any, lost: tuple[int, int] | None = None) -> None:
        self.asked: list[RolloutRequest] = []
        self.at_once: list[int] = []
        self._tokenizer = tokenizer
        self._lost = lost

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Trajectory]:
        self.at_once.append(len(requests))
        for number, request in reversed(list(enumerate(requests, len(self.asked)))):
            if (request.row.answer, request.row.slot) != self._lost:
                ids = np.array(self._tokenizer(f" {number}<|im_end|>")["input_ids"], dtype=np.int32)
                empty = np.zeros(ids.size, dtype=np.float32)
                reason = "length" if number == 3 else "stop"
                yield Trajectory(request.row, np.array(request.prompt_ids), ids, empty, empty, reason)
        self.asked += requests

    def given_up(self, requests: Sequence[RolloutRequest]) -> list[RowId]:
        return [request.row for request in requests if (request.row.answer, request.row.slot) == self._lost]

    def cancel(self) -> None:
        raise NotImplementedError

    def sync(self, weights: Weights) -> ServedWeights:
        raise NotImplementedError


def question(key: str, *turns: str) -> Question:
    return Question(key, tuple((Message("user", turn),) for turn in turns), {})


@pytest.fixture
def file(tmp_path: Path) -> Iterator[AnswerFile]:
    with AnswerFile(tmp_path / "out.jsonl.kept", {"weights": "a hash"}) as file:
        yield file


def interviewer(
    tokenizer: Any, file: AnswerFile, fetch: Callable[[Trajectory], Trajectory] = lambda answer: answer, **engine: int
) -> Interviewer:
    sizes = {"max_model_len": 256, "max_num_seqs": 2} | engine
    return Interviewer(tokenizer, RolloutSection(max_new_tokens=16, engine=EngineSection(**sizes)), 7, fetch, file)


QUESTIONS = [question("a", "One?", "Two?"), question("b", "Only."), question("c", "First.", "Second.")]


def test_a_turn_is_asked_after_the_answer_before_it(tokenizer: Any, file: AnswerFile) -> None:
    engines, done = Counting(tokenizer), []
    found = interviewer(tokenizer, file).ask(QUESTIONS, engines, done.append)
    assert [one.answers for one in found] == [["0", "3"], ["1"], ["2", "4"]]
    assert [one.cut for one in found] == [[False, True], [False], [False, False]]
    assert found[0].tokens == [3, 3], "a space, a digit, the end"
    assert engines.at_once == [2, 1, 2] and done == [2, 3, 5], "never more than the engines answer at the same time"
    said = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "0"}, {"role": "user", "content": "Two?"}]
    expected = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert list(engines.asked[3].prompt_ids) == expected
    assert len({request.seed for request in engines.asked}) == 5


def test_turns_and_questions_have_seeds_of_their_own_beyond_101(tokenizer: Any, file: AnswerFile) -> None:
    """Seeds in steps of 101 a turn gave the first question's second turn the seed of the 102nd question's first."""
    engines = Counting(tokenizer)
    interviewer(tokenizer, file, max_num_seqs=256).ask(
        [question(str(i), f"One {i}?", "Two?") for i in range(150)], engines, lambda done: None
    )
    assert len({request.seed for request in engines.asked}) == 300


def test_what_cannot_fit_is_refused_before_engines_start(tokenizer: Any, file: AnswerFile) -> None:
    """One byte is one token: two turns, their template and two answers of 16 tokens at most need more than 64."""
    with pytest.raises(DataError, match=r"question 'a' may take \d+ tokens.*max_model_len \(64\): raise it"):
        interviewer(tokenizer, file, max_model_len=64).check(QUESTIONS[:1])
    interviewer(tokenizer, file, max_model_len=64).check([question("a", "One?")])


def test_answers_lost_with_a_node_are_made_again(tokenizer: Any, file: AnswerFile) -> None:
    """Of the first two fetched, the first is lost; then both are, until they were asked for three times."""
    lost = [True]

    def fetch(answer: Trajectory) -> Trajectory:
        if lost and lost.pop(0):
            raise RowsLostError("a rollout actor: what it gave is lost")
        return answer

    engines = Counting(tokenizer)
    found = interviewer(tokenizer, file, fetch).ask(QUESTIONS, engines, lambda done: None)
    assert [len(one.answers) for one in found] == [2, 1, 2]
    assert engines.at_once == [2, 1, 1, 2], "the first two questions, the lost one again, and the rest"
    assert engines.asked[2] == engines.asked[1], "with the same seed, once all answers of the first time had come"
    file.known.clear()
    lost += [True] * 6
    engines = Counting(tokenizer)
    with pytest.raises(RowsLostError):
        interviewer(tokenizer, file, fetch).ask(QUESTIONS, engines, lambda done: None)
    assert engines.at_once == [2, 2, 2]


def test_what_a_killed_command_was_given_is_not_asked_again(tokenizer: Any, tmp_path: Path) -> None:
    """The engines die after three of five answers; the next command asks for the other two, and another policy for all."""
    path, uncut = tmp_path / "out.jsonl.kept", Counting(tokenizer)
    with AnswerFile(tmp_path / "other.kept", "policy") as file:
        expected = interviewer(tokenizer, file).ask(QUESTIONS, uncut, lambda done: None)

    def fetch(answer: Trajectory) -> Trajectory:
        if len(file.known) == 3:
            raise KeyboardInterrupt
        return answer

    with AnswerFile(path, "policy") as file, pytest.raises(KeyboardInterrupt):
        interviewer(tokenizer, file, fetch).ask(QUESTIONS, Counting(tokenizer), lambda done: None)
    path.write_bytes(path.read_bytes() + b'{"key": "cut short')
    engines = Counting(tokenizer)
    engines.asked = uncut.asked[:3]
    with AnswerFile(path, "policy") as file:
        found = interviewer(tokenizer, file).ask(QUESTIONS, engines, lambda done: None)
    assert [one.answers for one in found] == [one.answers for one in expected]
    assert [one.cut for one in found] == [one.cut for one in expected]
    assert engines.at_once == [2] and engines.asked == uncut.asked
    with AnswerFile(path, "another policy") as file:
        interviewer(tokenizer, file).ask(QUESTIONS, engines, lambda done: None)
    assert len(engines.asked) == 10


def test_a_question_that_was_given_up_is_named(tokenizer: Any, file: AnswerFile) -> None:
    with pytest.raises(ActorFailedError, match="question 'c', turn 2: not answered in time"):
        interviewer(tokenizer, file).ask(QUESTIONS, Counting(tokenizer, lost=(1, 1)), lambda done: None)


def test_other_models_and_other_sampling_have_answers_of_their_own(tmp_path: Path) -> None:
    def found(**changes: Any) -> str:
        engine = EngineSection(dtype=changes.pop("dtype", "bfloat16"))
        return json.dumps(identity(tmp_path, RolloutSection(engine=engine, **changes)))

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 1}')
    first = found()
    assert first == found(cpu_threads=1), "what changes no answer"
    others = [found(temperature=0.5), found(top_p=0.9), found(max_new_tokens=8), found(dtype="float32")]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    others.append(found())
    assert len({first, *others}) == 6
