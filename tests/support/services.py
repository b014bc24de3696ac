"""A real HTTP service on this machine whose replies a test writes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# How often a server looks whether it is to end.
POLL_S = 0.01
Reply = tuple[int, dict[str, str], str | bytes]


class Service:
    """What it was asked, when, and with which token; ``reply`` is called in a thread for each request."""

    def __init__(self, address: str, reply: Callable[[dict[str, Any]], Reply]) -> None:
        self.address = address
        self.reply = reply
        self.asked: list[dict[str, Any]] = []
        self.at: list[float] = []
        self.paths: set[str] = set()
        self.authorization = ""


@contextmanager
def dripping(headers: bool = False) -> Iterator[str]:
    """The address of a service whose replies, or their headers, come a byte at a time, for 3 seconds; then, or afterwards, it
    hangs up."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with suppress(ConnectionError):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                if headers:
                    self.flush_headers()
                    self.wfile.write(b"X-Slow: ")
                else:
                    self.end_headers()
                ends = time.monotonic() + 3
                while time.monotonic() < ends and not over.wait(0.02):
                    self.wfile.write(b"x" if headers else b" ")

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with _running(Handler) as address:
        try:
            yield address
        finally:
            over.set()


@contextmanager
def serving(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[Service]:
    """A service on a free port; afterwards the port is closed and all its threads have ended."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append(body)
            found.at.append(time.monotonic())
            found.paths.add(self.path)
            found.authorization = self.headers.get("Authorization", "")
            status, headers, text = found.reply(body)
            content = text if isinstance(text, bytes) else text.encode()
            # Who asked may have given up or been killed.
            with suppress(ConnectionError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    found = Service("", reply)
    with _running(Handler) as found.address:
        yield found


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL_S,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
