"""Pictures of the Ray dashboard while a job runs: ``python -m scripts.dashboard_screenshots JOB --address http://127.0.0.1:8265``.

Needs Chromium on the machine and the cluster's token in RAY_AUTH_TOKEN. Writes ``dashboard-jobs.png`` (all jobs),
``dashboard-job.png`` (this one, with its metadata) and ``dashboard-actors.png``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from ray._private.authentication.authentication_constants import AUTHENTICATION_TOKEN_COOKIE_NAME

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = (1800, 900)
PATIENCE_S = 60.0
# Resolves when the page shows all the words.
SHOWN = """new Promise(done => {
  const text = () => document.body ? document.body.innerText : "";
  const look = () => WORDS.every(word => text().includes(word)) && (watch.disconnect(), done(true));
  const watch = new MutationObserver(look);
  watch.observe(document, {childList: true, subtree: true, characterData: true});
  look();
})"""


class Page:
    """A tab of a browser, spoken to in its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and wait for what it gives."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            reply = await self._socket.receive_json(timeout=PATIENCE_S)
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return dict(reply["result"])

    async def picture(self, url: str, words: list[str], target: Path) -> None:
        """Save what a page looks like once it shows the words."""
        await self.do("Page.navigate", url=url)
        found = await self.do("Runtime.evaluate", expression=SHOWN.replace("WORDS", json.dumps(words)), awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{url}: {found['exceptionDetails']}")
        shot = await self.do("Page.captureScreenshot", format="png")
        target.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A headless Chromium with a profile of its own, and an empty page in it."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="dvpo-browser-", ignore_cleanup_errors=True) as profile:
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        command += [f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            assert process.stderr
            where = next(line.split()[-1] for line in process.stderr if line.startswith("DevTools listening on"))
            host = where.split("/")[2]
            async with aiohttp.ClientSession() as session:
                async with session.put(f"http://{host}/json/new?about:blank") as reply:
                    tab = await reply.json()
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Page(socket)
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_S)


async def take(address: str, job: str, folder: Path) -> None:
    """Take all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    async with browser() as page:
        token = os.environ.get("RAY_AUTH_TOKEN")
        if token:
            await page.do("Network.setCookie", name=AUTHENTICATION_TOKEN_COOKIE_NAME, value=token, url=address)
        await page.picture(f"{address}/#/jobs", [job], folder / "dashboard-jobs.png")
        await page.picture(f"{address}/#/jobs/{job}", [job, "git_commit"], folder / "dashboard-job.png")
        await page.picture(f"{address}/#/actors", ["rollout-0", "scorer-0"], folder / "dashboard-actors.png")


def main() -> None:
    """Parse and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", help="name of a running job of policy training")
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="URL of the dashboard")
    parser.add_argument("--folder", type=Path, default=Path("docs/images"), help="where the pictures go")
    arguments = parser.parse_args()
    asyncio.run(take(arguments.address, arguments.job, arguments.folder))


if __name__ == "__main__":
    main()
