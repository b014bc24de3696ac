"""Why an engine failed: the first error that one of its own processes wrote, or that one ended without writing any.

vLLM's errors in the process that asks say "see root cause above": above is the log of this process, which those of the engine
inherit. Ray keeps it in two files; where it does not (``RAY_LOG_TO_STDERR``), what is written is copied to a file of ours too.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from actors.cluster.failure_kinds import FailureKind, failure_kind_of_text, sentence
from actors.cluster.nodes import this_actor
from dvpo_ray.errors import ActorDiedError, ActorFailedError, DvpoError, PermanentFailureError
from dvpo_ray.io.error_text import MOST_FRAMES, Said, place, said_of, shortened
from dvpo_ray.io.remedies import remedy

STREAMS = (1, 2)
MOST_BYTES = 4 * 2**20
MOST_LINES = 6
VMSTAT = Path("/proc/vmstat")
# vLLM names its processes so.
ENGINE_PROCESS = "VLLM::"
# What vLLM raises because something else failed.
WRAPPERS = re.compile(
    r"root cause|stack trace|Engine core initialization failed|^RuntimeError: cancelled$|^RuntimeError: Executor failed\.$"
    r"|should not be called on follower node|EngineDeadError|EngineGenerateError"
)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
HEAD = re.compile(
    r"^\((?P<process>[^()]+) pid=(?P<pid>\d+)\) (?:(?P<level>[A-Z]+) \S+ \S+ (?P<place>\[[^\]]*\]) ?)?(?P<text>.*)$"
)
FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+),? in (?P<function>.+)$')
TRACEBACK = "Traceback (most recent call last):"
FATAL = "Fatal Python error: "
WHAT = re.compile(r"^\s+what\(\):\s+(?P<what>.+)$")
NEW_RECORDS = (
    TRACEBACK,
    FATAL,
    "During handling of ",
    "The above exception ",
    "Process ",
    "Worker",
    "EngineCore ",
    "Invocation of ",
)
DIED = re.compile(r"Worker proc (\S+) died unexpectedly")
EXIT_CODES = re.compile(r"'([^']+)': (-?\d+)")


def first_error(log: str) -> Said | None:
    """The first error in a log that is not told because of another one; None when there is none.

    Lines of several processes may be mixed. Errors are what vLLM's logger wrote of an exception, tracebacks of Python, and what
    its fault handler writes before a signal ends a process.
    """
    records: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for number, line in enumerate(ANSI.sub("", log).splitlines()):
        head = HEAD.match(line)
        who = f"{head['process']} (pid {head['pid']})" if head else ""
        records.setdefault((who, head["place"] or "" if head else ""), []).append((number, head["text"] if head else line))
    found: list[tuple[bool, int, Said]] = []
    for (who, _), lines in records.items():
        texts = [text for _, text in lines]
        for start, text in enumerate(texts):
            if text.startswith(TRACEBACK):
                said = _of_traceback(texts[start + 1 :], who)
            elif text.startswith(FATAL):
                said = _of_fault_handler(texts, start, who)
            else:
                continue
            if said is not None and not WRAPPERS.search(said.text):
                # What a logger wrote names its process, and Python's own traceback of the same comes after it.
                found.append((not who, lines[start][0], said))
    return min(found, key=lambda one: one[:2])[2] if found else None


def _of_traceback(lines: list[str], who: str) -> Said | None:
    """The error whose traceback begins with these lines; None when it is cut short."""
    frames = []
    for i, line in enumerate(lines):
        if frame := FRAME.match(line):
            frames.append(_place(frame))
        elif line and not line.startswith(" "):
            return Said(_message(lines[i:]), tuple(reversed(frames[-MOST_FRAMES:])), who)
    return None


def _message(lines: list[str]) -> str:
    """Exception and message, which may have several lines, cut to what can be read."""
    taken = [lines[0].rstrip()]
    for line in lines[1:MOST_LINES]:
        # After a message come chained exceptions and other records.
        if not line.strip() or line.startswith(NEW_RECORDS):
            break
        taken.append(line.rstrip())
    return shortened("\n".join(taken))


def _of_fault_handler(lines: list[str], start: int, who: str) -> Said:
    """The end of a process by a signal, with the frames of the thread that it hit, and what C++ had to say before."""
    frames: list[str] = []
    for line in lines[start + 1 :]:
        if frame := FRAME.match(line):
            frames.append(_place(frame))
        elif frames:
            break
    what = next((found["what"] for line in lines[max(0, start - MOST_LINES) : start] if (found := WHAT.match(line))), "")
    return Said(lines[start] + (f" ({what})" if what else ""), tuple(frames[:MOST_FRAMES]), who)


def _place(frame: re.Match[str]) -> str:
    return place(frame["file"], frame["line"], frame["function"].strip())


class EngineLog:
    """The log that the engine's processes share with this one, and who they are."""

    def __init__(self) -> None:
        # Of each file: its path (one of /proc is good for a file without name), and how much of it is known.
        self._read: dict[str, int] = {}
        self._processes: list[tuple[psutil.Process, str]] = []
        self._killed = 0

    def follow(self) -> None:
        """Look at what is written from now on; call it before the engine is started."""
        for stream in STREAMS:
            path = f"/proc/self/fd/{stream}"
            if not stat.S_ISREG(os.fstat(stream).st_mode):
                path = _copied(stream)
            self._read[path] = 0
        self.mark()

    def mark(self) -> None:
        """All is well: what was written until now explains nothing that comes."""
        for path in self._read:
            self._read[path] = os.stat(path).st_size
        self._killed = oom_kills()

    def watch(self, pids: Iterable[int]) -> None:
        """Remember which processes make up the engine."""
        self._processes = []
        for pid in pids:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                # A process that has ended, or is about to become another program, has no command line.
                if (name := "".join(process.cmdline()[:1])).startswith(ENGINE_PROCESS):
                    self._processes.append((process, name.removeprefix(ENGINE_PROCESS).strip()))

    def text(self) -> str:
        """What was written since the mark, the last of it when it is very much."""
        parts = []
        for path, known in self._read.items():
            with open(path, "rb") as stream:
                stream.seek(max(known, os.fstat(stream.fileno()).st_size - MOST_BYTES))
                parts.append(stream.read().decode(errors="replace"))
        return "\n".join(parts)

    def ended(self) -> list[str]:
        """Which of the engine's processes are gone, and by which signal where that can still be seen."""
        return [f"{name} (pid {process.pid}){_how(process)}" for process, name in self._processes if not _alive(process)]

    def said(self, error: BaseException) -> Said | None:
        """The error that made the engine fail, of which ``error`` is what this process was told; None when nobody said one."""
        if (said := first_error(self.text())) is not None:
            return said
        return None if WRAPPERS.search(_told(error)) else said_of(error)

    def cause(self, error: BaseException) -> str:
        """Why the engine failed, of which ``error`` is all that this process was told."""
        if (said := self.said(error)) is not None:
            return said.explained
        codes = [f"{name} {_of_exit_code(int(code))}" for name, code in EXIT_CODES.findall(str(error))]
        gone = codes or self.ended() or [f"{name} died" for name in dict.fromkeys(DIED.findall(self.text()))]
        who = "; ".join(gone) if gone else f"none of its processes is known to have ended ({_told(error)})"
        return f"no error of its own processes is in the log, as when they are killed: {who}; {self._memory()}"

    def _memory(self) -> str:
        memory = psutil.virtual_memory()
        killed = oom_kills() - self._killed
        free = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB of memory are free now"
        if killed <= 0:
            return free
        return (
            f"the kernel ended {killed} process(es) of this machine meanwhile because memory was used up, {free}: lower "
            "rollout.engine.kv_cache_mib or max_num_seqs, or end other programs"
        )


def _copied(stream: int) -> str:
    """Copy what this process and those under it write to a stream into a file without a name, too; returns a path to read it by.

    Another process does it: a thread could not while this one writes with its interpreter locked, as fault handlers do. It is no
    child of this one, and ends with the last process that writes.
    """
    with tempfile.TemporaryFile() as file:
        path = f"/proc/{os.getpid()}/fd/{os.dup(file.fileno())}"
    source, sink = os.pipe()
    copy = 'exec 3<&0; tee -a "$0" <&3 3<&- &'
    subprocess.run(["sh", "-c", copy, path], stdin=source, stdout=stream, start_new_session=True, check=True)
    os.close(source)
    os.dup2(sink, stream)
    os.close(sink)
    return path


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _how(process: psutil.Process) -> str:
    """How a process ended whose parent has not asked yet (the last field of its ``stat`` is what ``waitpid`` would give)."""
    try:
        status = int(Path(f"/proc/{process.pid}/stat").read_text().rsplit(maxsplit=1)[1])
    except (OSError, ValueError):
        return " ended"
    return f" {_of_exit_code(os.waitstatus_to_exitcode(status))}"


def _of_exit_code(code: int) -> str:
    """In words: negative codes are signals, as in ``multiprocessing``."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def oom_kills() -> int:
    """Processes that the kernel has ended on this machine for want of memory since it started."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


@contextmanager
def start_errors(log: EngineLog) -> Iterator[None]:
    """An engine that does not start: its own first error, in ours."""
    try:
        yield
    except Exception as error:
        # What this process met itself, unless that is only the echo of another's error.
        said = log.said(error) if WRAPPERS.search(str(error)) else said_of(error)
        raise _failure("the engine did not start", said, log.cause(error) if said is None else said.explained) from error


@contextmanager
def engine_errors(log: EngineLog) -> Iterator[None]:
    """An engine whose processes are dead is as good as a dead actor; what vLLM only says to be elsewhere is said here."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except DvpoError:
        raise
    except Exception as error:
        if isinstance(error, EngineDeadError) or log.ended():
            raise _failure("the engine's processes died", log.said(error), log.cause(error), died=True) from error
        if str(error) and not WRAPPERS.search(str(error)):
            raise
        raise _failure("the engine failed", log.said(error), log.cause(error)) from error


def _failure(what: str, said: Said | None, cause: str, died: bool = False) -> ActorFailedError:
    """The error for an engine's failure. What it serves when it dies is not the same the next time, so that only refusals that
    are known to be ones are certain to come again."""
    text = f"{this_actor()}: {what}: {cause}"
    found = FailureKind.TRANSIENT if said is None else failure_kind_of_text(said.text)
    if found is FailureKind.PERMANENT and (said is None or not died or remedy(said.text)):
        return PermanentFailureError(text)
    kind = ActorDiedError if died else ActorFailedError
    return kind(text, sentence="" if said is None or found is FailureKind.TRANSIENT else f"{what}: {sentence(said.text)}")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")
