"""The report page holds what the run recorded, escaped, and needs nothing from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dvpo_ray.errors import UserInputError
from dvpo_ray.report import write_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stages = {f"seconds/{stage}": 1.0 for stage in ("rollout", "score", "learn", "sync")}
    keys = (
        "value/last",
        "value/mean",
        "kl/per_token",
        "kl/learner_per_token",
        "answer/tokens",
        "policy/entropy",
        "gap/abs_log_prob",
        "optimizer/grad_norm",
    )
    steps = [{"step": i, "time": i, "seconds/step": 5.0, **stages, **dict.fromkeys(keys, 0.5)} for i in range(3)]
    gold = [
        {"step": i, "eval/gold": g, "eval/gold_ci95_low": g - 0.1, "eval/gold_ci95_high": g + 0.1}
        for i, g in ((0, 0.2), (3, 0.7))
    ]
    rows = [
        {
            "step": step,
            "prompt": "<b>sea</b>",
            "answer": answer,
            "gold": 0.5,
            "tokens": ["Blue", " <sea>"],
            "values": [0.0, 0.4, 0.8],
            "advantages": [0.4, -0.2],
        }
        for step, answer in ((0, "before answer"), (3, "after answer"))
    ]
    result = {
        "gold_before": 0.2,
        "gold_before_ci95": [0.1, 0.3],
        "gold_after": 0.7123,
        "gold_after_ci95": [0.6, 0.8],
        "win_rate": 0.9,
        "cut_share_after": 0.8125,
    }
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps + gold))
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.json").write_text('{"run": {"name": "x"}}')
    return tmp_path


def test_page(folder: Path) -> None:
    html = write_report(folder).read_text()
    assert "0.812</b><span>share of answers cut at max_new_tokens" in html
    assert "never saw" not in html, "gold may have ranked the pairs"
    for expected in ("0.712", "before answer", "after answer", "0.600 to 0.800", "&lt;b&gt;sea&lt;/b&gt;", " &lt;sea&gt;"):
        assert expected in html
    assert "<b>sea</b>" not in html
    assert html.count("<svg") >= 7
    assert not re.search(r'(src|href)="https?:', html)
    # time: 4 stages of 1 s in a step of 5 s leave 1 s, 20%, to the driver
    assert re.search(r"driver</td><td class=\"number\">1\.00</td><td class=\"number\">20%", html)
    # the largest value is the darkest blue, half of it half as dark; negative advantages are orange
    assert "rgba(33,113,181,0.70)" in html
    assert "rgba(33,113,181,0.35)" in html
    assert "rgba(217,95,14,0.35)" in html


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="holds no finished run"):
        write_report(tmp_path)
