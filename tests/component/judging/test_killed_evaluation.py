"""A real evaluation killed in the middle, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.judges import QUESTIONS, likes_good, shown
from tests.support.services import Reply, serving


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
        command = [sys.executable, "-m", "jobs.cli.main", "eval", "judge", *map(str, answers), "--format", "jsonl", "--json"]
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
