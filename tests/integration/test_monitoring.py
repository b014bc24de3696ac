"""A real Prometheus looks at a real run: every metric is there with a sane value, and every panel of the dashboard has data."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray as ray_module
import yaml

from actors.learner.rank import free_port
from dvpo_ray.runs.prometheus import catalogue, run_metrics
from dvpo_ray.runs.run import Event
from jobs.train_policy import train_policy
from scripts.grafana_dashboard import ROWS
from tests.support.real import STEPS, MakePolicyRecipe

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.fresh]
PATIENCE_S = 45.0
LOOK_AT = STEPS - 1
# A run of policy training does not send what value pretraining does.
OTHERS = [metric for metric in run_metrics().values() if "loss/value" in metric.keys.values()]


class Prometheus:
    """A Prometheus that scrapes this Ray's node every second."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query?query="

    def ask(self, query: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(self._url + urllib.parse.quote(query), timeout=10) as answer:
            return list(json.load(answer)["data"]["result"])

    def ask_until(self, query: str, good: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """What it says as soon as that is good, or at the end of all patience."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                found = self.ask(query)
            except OSError:
                found = []
            if good(found) or time.monotonic() > deadline:
                return found
            time.sleep(0.5)

    def value(self, query: str) -> float:
        found = self.ask(query)
        return float(found[0]["value"][1]) if found else math.nan


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not on this machine (Debian package prometheus)")
    node = ray_module.nodes()[0]
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"]
    scrape = {"job_name": "ray", "static_configs": [{"targets": targets}]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
    port = free_port()
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            yield Prometheus(port)
        finally:
            process.terminate()
            process.wait(30)


class Onlooker:
    """A listener that kills the scorer after a step, and asks Prometheus all there is to ask after another."""

    def __init__(self, server: Prometheus, run: str) -> None:
        self._server = server
        self._run = run
        self.values: dict[str, float] = {}
        self.missing: list[str] = []
        self.empty: list[str] = []

    def __call__(self, event: Event) -> None:
        if "seconds/step" not in event.metrics:
            return
        if event.step == 1:
            pid = ray_module.get(ray_module.get_actor("scorer-0").pid.remote(), timeout=60)
            psutil.Process(pid).send_signal(signal.SIGKILL)
        if event.step == LOOK_AT:
            self._look(event.step)

    def _look(self, step: int) -> None:
        server = self._server
        version = f'ray_dvpo_weights_version{{run="{self._run}"}} == {step}'
        assert server.ask_until(version, bool), "Prometheus never saw the step"
        # Every process sends its own numbers, each when its time comes.
        assert server.ask_until(f"max(ray_dvpo_engine_weights_version) == {step}", bool), "nor the engine's version"
        for metric in catalogue().values():
            if metric not in OTHERS and not server.ask_until(metric.exported, bool):
                self.missing.append(metric.exported)
        for name in ("engine_weights_version", "engine_fenced", "gvm_checksum_ok"):
            self.values[name] = server.value(f"max(ray_dvpo_{name})")
        self.values["trained"] = server.value(f'ray_dvpo_rows{{run="{self._run}",state="trained"}}')
        self.values["restarts"] = server.value('sum(ray_dvpo_restarts_total{stage="scorer"})')
        self.values["step_seconds"] = server.value(f'ray_dvpo_step_seconds{{run="{self._run}"}}')
        self.values["since"] = server.value(f'time() - ray_dvpo_last_step_timestamp_seconds{{run="{self._run}"}}')
        for _, panels in ROWS:
            for panel in panels:
                queries = [query for query, _ in panel.queries if not any(other.exported in query for other in OTHERS)]
                self.empty += [query for query in queries if not server.ask_until(self._filled(query), bool)]

    def _filled(self, query: str) -> str:
        for name, value in (("$run", ".*"), ("$session", ".*"), ("$__rate_interval", "1m"), ("$__range", "10m")):
            query = query.replace(name, value)
        return query


def test_every_metric_reaches_prometheus_and_every_panel_has_data(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    recipe = policy_recipe(tmp_path, "watched")
    with prometheus(tmp_path) as server:
        onlooker = Onlooker(server, "watched")
        train_policy(recipe, onlooker)
    assert onlooker.missing == [], "metrics that are documented and not sent"
    assert onlooker.empty == [], "panels without data"
    values = onlooker.values
    assert values["engine_weights_version"] == LOOK_AT
    assert values["trained"] == 16 * LOOK_AT
    assert (values["engine_fenced"], values["gvm_checksum_ok"]) == (0, 1)
    assert values["restarts"] >= 1 and 0 < values["step_seconds"] < 120 and 0 <= values["since"] < PATIENCE_S * 2
