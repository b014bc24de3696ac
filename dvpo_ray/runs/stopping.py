"""A job asked to end, by Ctrl-C (SIGINT) or SIGTERM: it says at once what will happen, and a second signal ends it at once.

Without a step in hand the first signal gives up what is being done. Within ``Stop.finishing`` it only asks: what is in hand is
finished. The second one ends the process from a thread of its own, whatever the main thread waits for, after all that was
registered with ``at_once`` has cleaned up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import NoReturn

from dvpo_ray.errors import BY_RESUMING, RunStoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What a stop takes at most after the work: an engine has 5 s to end by itself, then actors and Ray end, and trackers are closed.
ENDING_S = 25
AT_ONCE_S = 5
SECOND = "a second Ctrl-C (or SIGTERM) stops at once"
NOTHING_KEPT = "nothing of it is kept, and the next start begins anew"
_VERDICT_S = 1.0
_TELL_S = 0.5
_HALT, _CUT, _FINISH = "halt", "cut", "finish"


class Interrupted(KeyboardInterrupt):
    """What is being done is given up. Of what a signal's handler raises, Ray's waits pass on KeyboardInterrupt alone."""


class Stop:
    """Whether this process was asked to end, and what it then does. Signals come to the one that ``heeding`` gives."""

    def __init__(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """``tell`` shows a sentence; it is called from another thread."""
        self.signum = 0
        # What is there when this job is given up ("the checkpoint of step 4"; "" is nothing), and who goes on from it.
        self.kept: Callable[[], str] = str
        self.again = BY_RESUMING
        self._tell = tell
        self._plan: Callable[[], str] | None = None
        self._cut_plan: Callable[[], str] | None = None
        self._ending = False
        self._last_deeds: list[Callable[[], object]] = []
        self._verdicts: SimpleQueue[str] = SimpleQueue()

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.signum != 0

    @property
    def exit_code(self) -> int:
        """That of a process which the signal that has come ended."""
        return 128 + self.signum

    @contextlib.contextmanager
    def finishing(self, plan: Callable[[], str]) -> Iterator[None]:
        """A signal that comes within the block does not end what is in hand; ``plan`` says what will be finished, how long that
        takes, and what is lost by not waiting for it."""
        before, self._plan = self._plan, plan
        try:
            yield
        finally:
            self._plan = before

    @contextlib.contextmanager
    def cutting(self, plan: Callable[[], str]) -> Iterator[None]:
        """A signal that comes within the block, which is part of one that is finished, ends this block alone: what follows it is
        finished, as ``plan`` says."""
        before, self._plan = self._plan, None
        told, self._cut_plan = self._cut_plan, plan
        try:
            yield
        except KeyboardInterrupt:
            # Ray's waits raise another one than the handler did.
            if not self.asked:
                raise
        finally:
            self._plan, self._cut_plan = before, told

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Nothing within the block is given up: it takes down what was started."""
        before, self._ending = self._ending, True
        try:
            yield
        finally:
            self._ending = before

    @contextlib.contextmanager
    def at_once(self, deed: Callable[[], object]) -> Iterator[None]:
        """Something that must be done when the process ends at once within the block; the last one entered is done first. It is
        called while the main thread stands still, wherever that is: it may take no lock that the main thread may hold."""
        self._last_deeds.append(deed)
        try:
            yield
        finally:
            self._last_deeds.remove(deed)

    def stopped(self) -> RunStoppedError:
        """The error of a job that was given up."""
        kept = self.kept()
        stopped = RunStoppedError.as_asked(f"with {kept}", self.again) if kept else RunStoppedError(f"stopped; {NOTHING_KEPT}")
        return self.marked(stopped)

    def marked(self, error: RunStoppedError) -> RunStoppedError:
        """The same error, with the exit code of a process that a signal ended."""
        error.exit_code = self.exit_code if self.asked else error.exit_code
        return error

    def outcome(self, error: BaseException) -> BaseException:
        """What a job ends with when its work ended with ``error``: a stop that was asked for says so, with its exit code."""
        if isinstance(error, RunStoppedError):
            return self.marked(error)
        # Ray's waits raise another one than the handler did, and a Ray that is being started has a handler of its own.
        return self.stopped() if self.asked and isinstance(error, KeyboardInterrupt | SystemExit) else error

    def heed(self, signum: int) -> None:
        """Decide what a signal that has come means, and say it; called from a thread that does nothing else."""
        first, self.signum = not self.signum, self.signum or signum
        if not first:
            self._end_at_once()
        if self._ending:
            self._verdicts.put(_FINISH)
            self._say(f"stopping: the job takes down what it started, and ends within {ENDING_S} s; {SECOND}").join(_TELL_S)
            return
        plan = self._plan
        self._verdicts.put(_CUT if plan is None else _FINISH)
        self._say((plan or self._cut_plan or self._given_up)()).join(_TELL_S)

    def _given_up(self) -> str:
        kept = self.kept()
        then = f"{self.again} from {kept}" if kept else NOTHING_KEPT
        return f"stopping: what is being done is given up, and the job ends within {ENDING_S} s; {then}; {SECOND}"

    def _say(self, text: str) -> threading.Thread:
        """Begin to tell a sentence: whoever reads it may be slow, or gone with the terminal."""

        def tell() -> None:
            with contextlib.suppress(OSError, ValueError):
                self._tell(text)

        thread = threading.Thread(target=tell, name="signals", daemon=True)
        thread.start()
        return thread

    def obey(self, signum: int, frame: object) -> None:
        """The signals' handler in the main thread: it waits for what ``heed`` decides.

        Raises:
            Interrupted: what is being done is given up.
        """
        try:
            verdict = self._verdicts.get(timeout=_VERDICT_S)
        except Empty:
            return
        while verdict == _HALT:
            threading.Event().wait()
        if verdict == _CUT:
            raise Interrupted

    def _end_at_once(self) -> NoReturn:
        """Clean up and end the process, whose main thread stands still meanwhile."""
        self._verdicts.put(_HALT)
        # Other threads find what they work with killed, and would warn of it.
        logging.disable()
        # The main thread may stand still with the lock of what is written to.
        said = self._say(f"stopping at once, within {AT_ONCE_S} s")
        done = threading.Thread(target=self._do_last_deeds, daemon=True)
        done.start()
        done.join(AT_ONCE_S - 1)
        said.join(_TELL_S)
        os._exit(self.exit_code)

    def _do_last_deeds(self) -> None:
        for deed in reversed(self._last_deeds):
            try:
                deed()
            except Exception as error:
                # The others are still to be done.
                os.write(2, f"while stopping at once: {error!r}\n".encode())


_current: Stop | None = None


def current() -> Stop:
    """Who heeds this process's signals now; one that is never asked when nobody does."""
    return _current or Stop()


@contextlib.contextmanager
def heeding(tell: Callable[[str], None]) -> Iterator[Stop]:
    """Heed signals for the length of the block; within another such block that one goes on.

    Raises:
        RunStoppedError: what was done in the block was given up.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield current()
        return
    stop = _current = Stop(tell)
    try:
        with _listening(stop):
            yield stop
    except (KeyboardInterrupt, SystemExit, RunStoppedError) as error:
        raise stop.outcome(error) from None
    finally:
        _current = None


@contextlib.contextmanager
def _listening(stop: Stop) -> Iterator[None]:
    """Signals go to a thread, so that an answer does not wait for what the main thread does."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while numbers := reader.recv(1):
            if numbers[0] in SIGNALS:
                stop.heed(numbers[0])

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    woken = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers = {signum: signal.signal(signum, stop.obey) for signum in SIGNALS}
    try:
        yield
    finally:
        # A signal that comes while these are put back must not end what the block had done.
        with stop.ending():
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(woken)
            writer.shutdown(socket.SHUT_RDWR)
            thread.join()
            writer.close()
            reader.close()


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Whatever the block makes of the signals' handlers, afterwards signals are heeded as before: Ray sets one of its own."""
    try:
        yield
    finally:
        if _current is not None and threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, _current.obey)


def show_cursor() -> None:
    """Give a terminal its cursor back, which a progress bar hides."""
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h")
