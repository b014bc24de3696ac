"""What the documents show of the Python API works as it stands: the blocks of docs/python.md, and the notebook."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.config.loading import to_toml
from tests.support.real import MakePolicyRecipe

pytestmark = pytest.mark.integration
DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOK = DOCS / "notebooks" / "first_run.ipynb"
# The page looks at step 3.
STEPS = 4


def run_blocks(blocks: list[str], name: str) -> dict[str, Any]:
    """Run pieces of code in order in one namespace, which is returned; errors name the piece."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{name}, block {number}", "exec"), namespace)
    return namespace


def test_the_blocks_of_the_page_run_in_order(
    policy_recipe: MakePolicyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = policy_recipe(tmp_path / "runs", "another", steps=STEPS)
    tree = json.loads(recipe.model_dump_json(exclude_unset=True))
    del tree["run"]
    (tmp_path / "mine.toml").write_text(to_toml(tree), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    namespace = run_blocks(re.findall(r"```python\n(.*?)```", page, re.S), "docs/python.md")
    run = namespace["run"]
    assert run.folder == Path("runs/mine") and run.config["run"]["seed"] == 1 and run.result == namespace["result"]
    assert [line["step"] for line in run.metrics if "seconds/step" in line] == list(range(STEPS))
    printed = capsys.readouterr().out
    assert f"phase training for {STEPS} steps" in printed and str(tmp_path / "runs" / "mine" / "policy") in printed


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_kept_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "path", [*sys.path])
    namespace = run_blocks(["".join(cell["source"]) for cell in cells("code")], NOTEBOOK.name)
    import matplotlib.pyplot as plt

    assert len(plt.get_fignums()) == 2
    plt.close("all")
    result, answer = namespace["result"], namespace["answer"]
    assert result["gold_after"] > result["gold_before"]
    shown = capsys.readouterr().out
    assert "training for 20 steps" in shown and f"gold {answer['gold']:.2f}" in shown
    assert all(f"{value:+.3f}" in shown for value in answer["values"])
