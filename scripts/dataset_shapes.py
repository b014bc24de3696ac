"""Writes the table of shapes into docs/datasets.md: ``python -m scripts.dataset_shapes``."""

from __future__ import annotations

from pathlib import Path

from dvpo_ray.data.shapes import SHAPES
from tests.unit.data.shape_examples import EXAMPLES

DOCS = Path(__file__).resolve().parents[1] / "docs" / "datasets.md"
BEGIN, END = "<!-- shapes -->", "<!-- end of shapes -->"


def table() -> str:
    """The table, one line for each example."""
    lines = ["| Dataset | `format` | Recognised by | Rows | Gives |", "|---|---|---|---|---|"]
    for example in EXAMPLES:
        shape = SHAPES[example.shape]
        gives = [f"{len(example.pairs)} pair{'s' if len(example.pairs) > 1 else ''}"] if example.pairs else []
        gives += ["demonstration"] if example.demonstration else []
        gives += ["prompt"]
        labels = ", ".join(f"{label:+g}" if label else "0" for _, label in example.labels)
        gives += [f"labels of {labels}"] if labels else []
        gives += [f"no pair: {reason}" for reason, _ in example.rejected]
        lines.append(f"| {example.name} | `{shape.name}` | {shape.columns} | {len(example.rows)} | {', '.join(gives)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Put the table between its marks."""
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n{table()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
