"""Dashboard, alerts and documents speak of the metrics that exist, and of all of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dvpo_ray.config.updates import HealthSection
from dvpo_ray.runs.prometheus import catalogue, table
from scripts.grafana_dashboard import FILE, ROWS, dashboard

ROOT = Path(__file__).resolve().parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
NAME = re.compile(r"\bray_[a-z_]+")
CATALOGUE = list(catalogue().values())
KNOWN = {metric.exported for metric in CATALOGUE}
WRITTEN_BY_RAY = "/tmp/ray/prom_metrics_service_discovery.json"  # absent where no Ray head has run yet


def promtool(*arguments: str, folder: Path) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on this machine (Debian package prometheus)")
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> dict[str, str]:
    """Expression of every alert."""
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
    return {rule["alert"]: rule["expr"] for rule in rules}


def queries() -> list[str]:
    return [query for _, panels in ROWS for panel in panels for query, _ in panel.queries]


def test_names_are_unique_and_follow_prometheus() -> None:
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"dvpo_[a-z_]+", name) for name in names)
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in CATALOGUE)
    keys = [key for metric in CATALOGUE for key in metric.keys.values()]
    assert len(set(keys)) == len(keys), "two metrics show the same number"


def test_dashboard_and_alerts_use_every_metric_and_no_other() -> None:
    used = set(NAME.findall(" ".join([*queries(), *alerts().values()])))
    assert used - KNOWN == set(), "unknown names"
    assert KNOWN - used == set(), "metrics that nobody looks at"


def test_the_page_lists_every_metric() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert table() in page, "run `make docs`"
    assert set(NAME.findall(page)) - KNOWN == set()
    assert [name for name in alerts() if f"`{name}`" not in page] == []


def test_the_dashboard_is_up_to_date_and_sound() -> None:
    assert FILE.read_text() == dashboard(), "run `make dashboard`"
    content = json.loads(dashboard())
    panels = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24, "Grafana's grid has 24 columns"
    variables = {variable["name"] for variable in content["templating"]["list"]}
    named = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(panels)))
    assert named <= variables | {"__rate_interval", "__range"}


def test_grafanas_own_models_take_the_dashboard_whole() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    given = json.loads(dashboard())
    understood = json.loads(json.dumps(Dashboard.from_json(given), cls=JSONEncoder))
    assert lost(given, understood) == []


def lost(given: Any, understood: Any, path: str = "") -> list[str]:
    """What the models did not keep."""
    if isinstance(given, dict) and isinstance(understood, dict):
        missing = [f"{path}.{key}" for key in given if key not in understood]
        return missing + [one for key in given if key in understood for one in lost(given[key], understood[key], f"{path}.{key}")]
    if isinstance(given, list) and isinstance(understood, list) and len(given) == len(understood):
        pairs = zip(given, understood, strict=True)
        return [one for i, (a, b) in enumerate(pairs) for one in lost(a, b, f"{path}[{i}]")]
    return [] if given == understood else [path]


def test_every_query_is_promql(tmp_path: Path) -> None:
    plain = [query.replace("$__rate_interval", "1m").replace("$__range", "1h") for query in queries()]
    rules = [{"record": f"panel:{i}", "expr": query} for i, query in enumerate(plain)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", "panels.yml", folder=tmp_path)


def test_prometheus_takes_configuration_and_rules(tmp_path: Path) -> None:
    discovery = tmp_path / "discovery.json"
    discovery.write_text("[]")
    configuration = (PROMETHEUS / "prometheus.yml").read_text()
    assert configuration.count(WRITTEN_BY_RAY) == 1
    (tmp_path / "prometheus.yml").write_text(configuration.replace(WRITTEN_BY_RAY, str(discovery)))
    shutil.copy(PROMETHEUS / "alerts.yml", tmp_path)
    assert "valid prometheus config" in promtool("check", "config", "prometheus.yml", folder=tmp_path)
    assert f"{len(alerts())} rules found" in promtool("check", "rules", "alerts.yml", folder=tmp_path)


def test_every_alert_fires_on_its_fault_and_on_no_other(tmp_path: Path) -> None:
    cases = Path(__file__).with_name("alerts.test.yml")
    shutil.copy(cases, tmp_path)
    shutil.copy(PROMETHEUS / "alerts.yml", tmp_path)
    assert "SUCCESS" in promtool("test", "rules", cases.name, folder=tmp_path)
    assert [name for name in alerts() if name not in cases.read_text()] == []


def test_limits_of_alerts_are_those_at_which_a_run_warns() -> None:
    health, expressions = HealthSection(), alerts()
    for alert, limit in (
        ("DvpoDiverging", health.max_kl_per_token),
        ("DvpoCollapsed", health.min_entropy),
        ("DvpoEngineGap", health.max_log_prob_gap),
    ):
        assert float(expressions[alert].split()[-1]) == limit
