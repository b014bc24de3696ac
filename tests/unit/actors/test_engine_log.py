"""The first error of an engine's processes, out of what they write all together."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from actors.rollout import engine_log
from actors.rollout.engine_log import EngineLog, first_error, start_errors
from dvpo_ray.errors import ActorFailedError, PermanentFailureError
from dvpo_ray.io.error_text import MOST_TEXT

WORKER = "(Worker pid=20) ERROR 11-27 13:11:28 [multiproc_executor.py:953]"
CORE = "(EngineCore pid=11) ERROR 11-27 13:11:31 [core.py:1510]"
WARNING = "(EngineCore pid=11) WARNING 11-27 13:11:28 [vllm.py:1703] Enforce eager set."
SEE = "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause."
LOG = f"""
:actor_name:RolloutActor
{WARNING}
{WORKER} WorkerProc failed to start.
{WORKER} Traceback (most recent call last):
{WORKER}   File "/env/lib/python3.11/site-packages/vllm/v1/worker/gpu_worker.py", line 594, in load_model
{WORKER}     self.model_runner.load_model()
{WARNING}
{WORKER}   File "/env/lib/python3.11/site-packages/vllm/model_loader.py", line 380, in get_all_weights
{WORKER}     yield from self._weights()
{WORKER}                ^^^^^^^^^^^^^^^
{WORKER}   File "/env/lib/python3.11/site-packages/safetensors/torch.py", line 12, in load
{CORE} EngineCore failed to start.
{WORKER}     raise error
{WORKER} safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata
{WORKER}     the file is not fully covered
{CORE} Traceback (most recent call last):
{CORE}   File "/env/lib/python3.11/site-packages/vllm/v1/executor/multiproc_executor.py", line 815, in wait_for_ready
{CORE}     raise e from None
{CORE} {SEE}
Process EngineCore:
Traceback (most recent call last):
  File "/env/lib/python3.11/site-packages/vllm/v1/engine/core.py", line 1514, in run_engine_core
    raise e
{SEE}
"""
CRASH = """
Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]
terminate called after throwing an instance of 'std::bad_alloc'
  what():  std::bad_alloc
Fatal Python error: Aborted

Thread 0x00007f (most recent call first):
  File "/env/lib/python3.11/site-packages/vllm/worker.py", line 5 in execute
  File "/env/lib/python3.11/site-packages/vllm/worker.py", line 9 in run

Thread 0x00008f (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 1 in wait
"""


def test_the_first_error_is_told_with_its_process_and_innermost_frames() -> None:
    said = first_error(LOG)
    assert said is not None
    assert said.process == "Worker (pid 20)"
    assert said.text.splitlines() == [
        "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata",
        "    the file is not fully covered",
    ]
    assert said.frames == (
        "safetensors/torch.py:12 in load",
        "vllm/model_loader.py:380 in get_all_weights",
        "vllm/v1/worker/gpu_worker.py:594 in load_model",
    )
    assert "in Worker (pid 20) at safetensors/torch.py:12 in load\n  called at vllm/model_loader.py:380" in str(said)


def test_of_chained_errors_the_first_is_told() -> None:
    log = (
        'Traceback (most recent call last):\n  File "/a.py", line 1, in f\nKeyError: 3\n\nDuring handling of the above '
        'exception, another exception occurred:\n\nTraceback (most recent call last):\n  File "/b.py", line 2, in g\n'
        "ValueError: no\n"
    )
    assert str(first_error(log)) == "KeyError: 3\n  at /a.py:1 in f"


def test_a_process_that_a_signal_ended_tells_where_it_was_and_what_cpp_said() -> None:
    said = first_error(CRASH)
    assert said is not None
    assert said.text == "Fatal Python error: Aborted (std::bad_alloc)"
    assert said.frames == ("vllm/worker.py:5 in execute", "vllm/worker.py:9 in run")


@pytest.mark.parametrize("end", ["RuntimeError: cancelled", "RuntimeError: Executor failed.", SEE])
def test_echoes_of_another_error_are_none(end: str) -> None:
    assert first_error(f'{CORE} Traceback (most recent call last):\n{CORE}   File "/a.py", line 1, in f\n{CORE} {end}\n') is None


@pytest.mark.parametrize("cut", range(0, len(LOG), 97))
def test_a_log_that_is_cut_short_is_read(cut: int) -> None:
    said = first_error(LOG[:cut])
    assert said is None or "SafetensorError" in said.text


def test_a_long_message_is_cut() -> None:
    said = first_error(f'Traceback (most recent call last):\n  File "/a.py", line 1, in f\nValueError: {"x" * 5000}\n')
    assert said is not None and len(said.text) == MOST_TEXT and said.text.endswith("...")


def test_an_end_without_a_word_names_the_signal_and_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counter = tmp_path / "vmstat"
    monkeypatch.setattr(engine_log, "VMSTAT", counter)
    counter.write_text("nr_free_pages 5\noom_kill 7\n")
    log = EngineLog()
    log.mark()
    echo = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}")
    told = log.cause(echo)
    assert "EngineCore was ended by SIGKILL" in told and "free now" in told and "memory was used up" not in told
    counter.write_text("nr_free_pages 5\noom_kill 9\n")
    assert "the kernel ended 2 process(es) of this machine meanwhile because memory was used up" in log.cause(echo)
    assert "{}" in log.cause(RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}"))


def test_processes_of_an_engine_that_are_gone_are_named() -> None:
    named = f"exec -a {engine_log.ENGINE_PROCESS}Worker sleep 600"
    process = subprocess.Popen(["bash", "-c", named])
    try:
        deadline = time.monotonic() + 20
        # Between fork and exec, and within exec, there is no command line.
        while not "".join(psutil.Process(process.pid).cmdline()).startswith("VLLM") and time.monotonic() < deadline:
            os.sched_yield()
        log = EngineLog()
        log.watch([process.pid, os.getpid()])
        assert log.ended() == []
        process.send_signal(signal.SIGTERM)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert log.ended() == [f"Worker (pid {process.pid}) was ended by SIGTERM"]
    finally:
        process.kill()
        process.wait()


def test_what_this_process_met_itself_is_told_and_survives_pickling() -> None:
    with pytest.raises(PermanentFailureError) as raised, start_errors(EngineLog()):
        raise ValueError("max_model_len (513) is greater than 512\nset it lower")
    again = pickle.loads(pickle.dumps(raised.value))
    told = "this process: the engine did not start: ValueError: max_model_len (513) is greater than 512\nset it lower\n  at "
    assert str(again).startswith(told)


ECHO = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}")


def logged(end: str, folder: Path) -> EngineLog:
    """A log in which an engine's process wrote an error that ends so."""
    log, file = EngineLog(), folder / "log"
    file.write_text(
        f'{CORE} Traceback (most recent call last):\n{CORE}   File "/a.py", line 1, in f\n{CORE} {end}\n' if end else ""
    )
    log._read[str(file)] = 0
    return log


@pytest.mark.parametrize(
    ("end", "kind", "sentence"),
    [
        ("ValueError: To serve at least one request with the model's max seq len (9)", PermanentFailureError, ""),
        ("RuntimeError: Unsupported CPU attention configuration: head_dim=20", PermanentFailureError, ""),
        (
            "RuntimeError: no kernel image at 0x7f",
            ActorFailedError,
            "the engine did not start: RuntimeError: no kernel image at #",
        ),
        ("ValueError: Free memory on device cuda:0 (1/80 GiB) on startup is less than desired", ActorFailedError, ""),
        ("torch.OutOfMemoryError: CUDA out of memory.", ActorFailedError, ""),
        ("", ActorFailedError, ""),
    ],
)
def test_a_start_that_will_fail_again_is_told_from_one_that_may_not(
    end: str, kind: type[Exception], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ActorFailedError) as raised, start_errors(logged(end, tmp_path)):
        raise ECHO
    assert type(raised.value) is kind and raised.value.sentence == sentence
    assert ("to mend it: " in str(raised.value)) == ("serve" in end or "attention" in end or "emory" in end)
