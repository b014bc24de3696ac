"""Signals: what is said, what is finished, what is given up, and an end at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dvpo_ray.errors import RunStoppedError
from dvpo_ray.runs.pace import Pace, rounded
from dvpo_ray.runs.stopping import AT_ONCE_S, current, heeding

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 20.0


class Said(list[str]):
    """What was told, by another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Event()

    def append(self, text: str) -> None:
        super().append(text)
        self.came.set()

    def first(self) -> str:
        assert self.came.wait(PATIENCE_S)
        return self[0]


def ask(signum: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_has_nothing_in_hand_is_given_up(signum: signal.Signals, code: int) -> None:
    said, handlers = Said(), [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RunStoppedError, match="stopped; nothing of it is kept") as found, heeding(said.append):
        ask(signum)
        time.sleep(PATIENCE_S)
        pytest.fail("the block went on")
    assert found.value.exit_code == code
    assert said.first().startswith(
        "stopping: what is being done is given up, and the job ends within 25 s; nothing of it is kept"
    )
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not current().asked


def test_a_job_that_is_given_up_says_what_it_goes_on_from() -> None:
    said = Said()
    with pytest.raises(RunStoppedError, match="stopped with the checkpoint of step 4, as asked"), heeding(said.append) as stop:
        stop.kept = lambda: "the checkpoint of step 4"
        ask()
        time.sleep(PATIENCE_S)
    assert "; --resume auto goes on from the checkpoint of step 4; a second Ctrl-C (or SIGTERM) stops at once" in said.first()


def test_what_is_in_hand_is_finished() -> None:
    said, done = Said(), False
    with heeding(said.append) as stop, stop.finishing(lambda: "it will be finished"):
        ask()
        done = stop.asked
    assert done and said.first() == "it will be finished"


def test_a_part_of_what_is_finished_can_be_given_up() -> None:
    said, done = Said(), []
    with heeding(said.append) as stop, stop.finishing(lambda: "finished"):
        with stop.cutting(lambda: "only this is given up"):
            ask()
            time.sleep(PATIENCE_S)
            done.append("in the part")
        done.append("after it")
    assert done == ["after it"] and said.first() == "only this is given up"


def test_taking_down_is_not_given_up() -> None:
    said, done = Said(), False
    with heeding(said.append) as stop, stop.ending():
        ask(signal.SIGTERM)
        done = stop.asked
    assert done and "takes down what it started, and ends within 25 s" in said.first()


def test_who_starts_a_job_within_another_heeds_the_same_signals() -> None:
    with heeding(lambda text: None) as outer, heeding(lambda text: pytest.fail(text)) as inner:
        assert inner is outer is current()
    found = []
    thread = threading.Thread(target=lambda: found.append(heeding(print).__enter__()))
    thread.start()
    thread.join()
    assert found[0] is not outer, "signals come to the main thread"


def test_errors_of_others_pass_as_they_are() -> None:
    with pytest.raises(KeyboardInterrupt), heeding(print):
        raise KeyboardInterrupt
    with pytest.raises(SystemExit), heeding(print):
        raise SystemExit(3)


AT_ONCE = """
import os, threading
from dvpo_ray.runs.stopping import heeding
lock = threading.Lock()
def say(text):
    os.write(1, f"{text}\\n".encode())  # in one piece: threads say it
def fail():
    raise ValueError("no")
with heeding(say) as stop, stop.at_once(lambda: say("last")), stop.at_once(fail):
    with stop.at_once(lambda: say("first")), stop.finishing(lambda: "asked"), lock:
        say("ready")
        lock.acquire()
"""


def test_a_second_signal_ends_a_process_whose_main_thread_waits_for_ever() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", AT_ONCE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - began < AT_ONCE_S
    assert sorted(out.splitlines()) == ["first", "last", "stopping at once, within 5 s"]
    assert out.index("first") < out.index("last")
    assert process.returncode == 130 and "while stopping at once: ValueError('no')" in error


def test_a_plan_says_how_long_and_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dvpo_ray.runs.pace.time.monotonic", lambda: now[0])
    pace = Pace(9)
    pace.checkpoint_bytes = 1e9
    assert (
        "step 1 of 9" in pace.plan_of_step()
        and "how long the first step takes is not known yet, and the rest within 35 s" in pace.plan_of_step()
    )
    for step in range(3):
        pace.step_done(step + 1, 20.0)
    now[0] = 10.0
    # Of 1.25 x 20 s a step 10 are over: 15, for 10^9 bytes at 10^8 a second 10, and 25 for the end.
    assert "step 4 of 9, which is in hand, will be finished and checkpointed (within 50 s)" in pace.plan_of_step()
    assert pace.plan_of_step().endswith("stops at once, losing all 3 steps so far")
    assert pace.left() == 6 * 20 - 10
    pace.checkpoint_done(2, 4.0)
    # A checkpoint took 4 s: 15 + 5 + 25.
    assert "(within 45 s)" in pace.plan_of_step() and pace.plan_of_step().endswith(
        "losing the 1 step since the checkpoint of step 2"
    )
    now[0] = 100.0
    # A step that takes longer than any before may take a fifth of that again.
    assert "(within 35 s)" in pace.plan_of_step()
    assert pace.kept() == "the checkpoint of step 2"
    pace.copies_s = 600.0
    assert "(within 35 s, and at most 600 s more for its copies)" in pace.plan_of_step()
    pace.later = lambda step_seconds: 3 * step_seconds
    # All of 6 steps of 20 s but the 100 s that are over, and three times a step.
    assert pace.left() == 20 + 60
    pace.go_back(0, checkpointed=False)
    assert pace.kept() == ""


def test_times_are_rounded_up() -> None:
    assert [rounded(seconds) for seconds in (0.1, 5.1, 119, 121, 7201)] == ["5 s", "10 s", "120 s", "3 min", "2 h 1 min"]
