"""Runs whose model and data are named as the Hub has them, as people start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub import Hub, files_of, serving

pytestmark = pytest.mark.integration
MODEL, PAIRS = "org/Tiny-v0.1", "org/pairs"
ROWS = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]
SETTINGS = {
    "run.name": "v",
    "model.path": MODEL,
    "model.attention": "eager",
    "model.chat_template_kwargs.enable_thinking": "false",
    "value.data.source": PAIRS,
    "value.data.split": "train",
    "value.pairs_per_step": "4",
    "value.checkpoint.every": "1",
    "value.learner.dtype": "float32",
    "value.learner.token_budget": "2048",
}


def trained(hub: Hub, folder: Path, *more: str, **environment: str) -> tuple[dict[str, Any], str]:
    """The result of `dvpo value train` in a folder, and all that it printed."""
    (folder / "value.toml").write_text("[value.data]\nsource = 'x'\n")
    options = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "jobs.cli.main", "value", "train", "value.toml", "--json", *options, *more]
    root = str(Path(__file__).parents[2])
    variables = os.environ | hub.environment(folder / "home") | {"PYTHONPATH": root, "RAY_ADDRESS": ""} | environment
    variables.pop("RAY_ADDRESS")
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_a_run_keeps_the_commit_that_it_began_with(tiny_model: Path, tmp_path: Path) -> None:
    thinks = (tiny_model / "chat_template.jinja").read_text() + "{% if enable_thinking is defined %}<think></think>{% endif %}"
    files = files_of(tiny_model) | {"chat_template.jinja": thinks.encode()}
    with serving() as hub:
        first = hub.model(MODEL).push(files)
        hub.dataset(PAIRS).push({"data/train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode()})
        result, _ = trained(hub, tmp_path)
        sealed = json.loads((Path(result["value_model"]) / "gvm.json").read_text())
        assert (sealed["base_model"], sealed["base_revision"]) == (MODEL, first)
        assert sealed["chat_template_kwargs"] == {"enable_thinking": False}
        assert json.loads((tmp_path / "runs/v/config.json").read_text())["model"]["revision"] == first
        second = hub.model(MODEL).push(files | {"generation_config.json": b"{}"})
        (Path(result["value_model"]) / "gvm.json").unlink()
        hub.asked.clear()
        result, told = trained(hub, tmp_path, "--resume", "auto")
        assert "going on after step" in told and second not in told
        assert json.loads((Path(result["value_model"]) / "gvm.json").read_text())["base_revision"] == first
        assert not [path for _, path in hub.asked if path.startswith(f"/{MODEL}/")], "nothing was pulled again"
        hub.down = True
        result, told = trained(hub, tmp_path, "--set", "run.name=w", HF_HUB_OFFLINE="1")
        assert "is taken from the cache" in told
