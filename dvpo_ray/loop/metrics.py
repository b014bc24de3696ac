"""What the loop records of the rows of a step."""

from __future__ import annotations

from dvpo_ray.metrics import Figure, Gauge, Metric

ROWS = Gauge("dvpo_rows", "The ledger: admitted = trained + dead_lettered + in_flight.", "state")

METRICS = (
    Metric("ledger/admitted", "Rows that were asked for so far.", "rows", gauge=ROWS, series="admitted"),
    Metric("ledger/trained", "Rows that were trained on so far.", "rows", gauge=ROWS, series="trained"),
    Metric("ledger/dead_lettered", "Rows that were given up so far.", "rows", gauge=ROWS, series="dead_lettered"),
    Metric("ledger/in_flight", "Rows under way.", "rows", gauge=ROWS, series="in_flight"),
)
FIGURES: tuple[Figure, ...] = ()
