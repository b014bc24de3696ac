"""What plug-ins declared of a run's numbers, kept in its folder: a report needs no plug-in to show them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dvpo_ray.errors import DataError
from dvpo_ray.io.disk import write_text
from dvpo_ray.io.json_files import REMEDY, read_object
from dvpo_ray.metrics import Figure, Metric, figures, metrics, plug_ins

DECLARATIONS = "declared_metrics.json"


def save_declarations(folder: Path) -> None:
    """Write what was declared in this process besides the project's own; no file where that is nothing."""
    added = plug_ins()
    if added:
        content = {
            "metrics": [asdict(one) for one in added if isinstance(one, Metric)],
            "figures": [asdict(one) for one in added if isinstance(one, Figure)],
        }
        write_text(folder / DECLARATIONS, json.dumps(content, indent=2) + "\n")


def read_declarations(*folders: Path) -> tuple[dict[str, Metric], dict[str, Figure]]:
    """Metrics and figures by key: those known in this process, and those that runs kept in their folders.

    Raises:
        DataError: a file is not as it was written.
    """
    known_metrics, known_figures = metrics(), figures()
    for file in (folder / DECLARATIONS for folder in folders):
        if not file.is_file():
            continue
        content = read_object(file)
        try:
            known_metrics |= {one.key: one for one in TypeAdapter(list[Metric]).validate_python(content.get("metrics"))}
            known_figures |= {one.key: one for one in TypeAdapter(list[Figure]).validate_python(content.get("figures"))}
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(f"{file}: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}; {REMEDY}") from error
    return known_metrics, known_figures
