"""Stacks of processes that hang."""

from __future__ import annotations

import signal
import subprocess
import sys

from actors.cluster.watchdog import SIGNAL, catches, dump_process_tree_stacks

WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"
ANSWERS = "from actors.cluster.watchdog import answer_with_stacks; answer_with_stacks();" + WAITS


def child(program: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", program], text=True, **pipes)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def test_processes_that_can_tell_their_stacks_do_and_the_others_live_on() -> None:
    answers, deaf = child(ANSWERS), child(WAITS)
    assert catches(answers.pid, SIGNAL) and not catches(deaf.pid, SIGNAL)
    dump_process_tree_stacks()
    assert answers.stderr and "most recent call first" in answers.stderr.readline()
    for process in (answers, deaf):
        process.communicate("")
        assert process.returncode == 0, "asked to end by the end of its input, not by the signal"


def test_a_process_that_is_gone_catches_nothing() -> None:
    process = child(WAITS)
    process.communicate("")
    assert not catches(process.pid, signal.SIGTERM)
