"""An actor that hangs. Actors are imported by name where they run, so it has a module of its own."""

from __future__ import annotations

import os
import threading

from actors.cluster.watchdog import watched


class Waiter:
    """Answers, or not."""

    def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    @watched
    def wait_for_what_never_comes(self) -> None:
        """Hang."""
        threading.Event().wait(60)
