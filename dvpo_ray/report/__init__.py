"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from dvpo_ray.io.disk import write_text
from dvpo_ray.report.charts import all_charts
from dvpo_ray.report.records import RunRecords, colour_tokens, compare_answers, where_the_time_went

REPORT = "report.html"
EXAMPLES = 8


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run's folder from the records there; returns its path.

    Raises:
        UserInputError: the folder holds no finished run.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    records = RunRecords.read(Path(folder))
    pages = Environment(loader=PackageLoader("dvpo_ray", "report"), autoescape=True, undefined=StrictUndefined)
    html = pages.get_template("report.html.j2").render(
        name=records.name,
        result=records.result,
        cards=_cards(records),
        charts=all_charts(records),
        pairs=compare_answers(records, EXAMPLES),
        coloured=colour_tokens(records, 4),
        times=where_the_time_went(records),
        config=records.config_text,
    )
    return write_text(records.folder / REPORT, html)


def _cards(records: RunRecords) -> list[tuple[str, str]]:
    """The figures at the head of the page: label and number."""
    shown = [(figure, records.result.get(key)) for key, figure in records.figures.items() if figure.card]
    return [(figure.label, f"{value:.{figure.digits}f}") for figure, value in shown if type(value) in (int, float)]
