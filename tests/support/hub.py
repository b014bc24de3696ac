"""A small server that speaks as much of the Hugging Face Hub's API as the Hub's own library asks for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.services import POLL_S

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
    r"(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<below>.+))?)?"
)
FILE = re.compile(r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    """What a folder holds, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclass
class Repository:
    """Files by commit, and which commit a branch or tag stands for."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def push(self, files: Files, ref: str = "main") -> str:
        """Make a commit, and let a branch stand for it; returns its hash."""
        content = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in files.items()}, sort_keys=True)
        commit = hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()
        self.commits[commit], self.refs[ref] = files, commit
        return commit

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit."""
        return revision if revision in self.commits else self.refs.get(revision)


class Hub:
    """Repositories of models and datasets. ``asked`` are the requests so far, as (method, path); ``token`` opens gated ones."""

    token = "hf_good"

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.endpoint = ""
        self.down = False

    def model(self, name: str) -> Repository:
        """A model's repository, empty at first."""
        return self.repositories.setdefault(("models", name), Repository())

    def dataset(self, name: str) -> Repository:
        """A dataset's."""
        return self.repositories.setdefault(("datasets", name), Repository())

    def files_got(self) -> list[str]:
        """The files that were sent so far, by their path in their repository."""
        return [found["path"] for method, path in self.asked if method == "GET" and (found := FILE.fullmatch(path))]

    def environment(self, home: Path) -> dict[str, str]:
        """Variables with which a process takes this server for the Hub."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
        }


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine, until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test looks at ``asked``."""

    def _answer(self) -> None:
        given = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        if self.hub.down:
            self._send(503, b"down")
        elif found := API.fullmatch(path):
            self._api(found, given)
        elif found := FILE.fullmatch(path):
            self._file(found)
        else:
            self._refuse(404, "RepoNotFound")

    def _repository(self, found: re.Match[str], revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get((found["kind"] or "models", found["repo"]))
        commit = repository.commit(revision) if repository else None
        if repository is None:
            # As the Hub answers who is not signed in.
            self._refuse(401, "RepoNotFound")
        elif commit is None:
            self._refuse(404, "RevisionNotFound")
        else:
            return repository, commit
        return None

    def _api(self, found: re.Match[str], given: bytes) -> None:
        known = self._repository(found, found["revision"] or "main")
        if known is None:
            return
        repository, commit = known
        files = repository.commits[commit]
        if found["what"] == "tree":
            deep = parse_qs(urlsplit(self.path).query).get("recursive", ["False"])[0].lower() == "true"
            listed = _tree(files, f"{found['below']}/" if found["below"] else "", deep)
            self._json(listed) if listed else self._refuse(404, "EntryNotFound", commit)
        elif found["what"] == "paths-info":
            wanted = set(parse_qs(given.decode()).get("paths", []))
            self._json([entry for entry in _tree(files, "", deep=True) if entry["path"] in wanted])
        else:
            names = [{"rfilename": path} for path in files]
            about = {
                "id": found["repo"],
                "sha": commit,
                "siblings": names,
                "private": False,
                "gated": repository.gated,
                "tags": [],
            }
            self._json(about | {"lastModified": "2026-01-01T00:00:00.000Z"})

    def _file(self, found: re.Match[str]) -> None:
        known = self._repository(found, found["revision"])
        if known is None:
            return
        repository, commit = known
        data = repository.commits[commit].get(found["path"])
        if repository.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(403, "GatedRepo", commit)
        elif data is None:
            self._refuse(404, "EntryNotFound", commit)
        else:
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            headers = {"ETag": f'"{_blob(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if first:
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._send(206 if first else 200, data[first:], headers)

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        self._send(status, b'{"error": "refused"}', {"X-Error-Code": code, "X-Repo-Commit": commit})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tree(files: Files, below: str, deep: bool) -> list[dict[str, Any]]:
    """What lies below a folder: everything, or what is directly in it."""
    found: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        if path.startswith(below):
            parts = path.removeprefix(below).split("/")
            for n in range(1, len(parts) if deep else min(2, len(parts))):
                folder = below + "/".join(parts[:n])
                found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": _blob(folder.encode())}
            if deep or len(parts) == 1:
                found[path] = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
    return list(found.values())


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
