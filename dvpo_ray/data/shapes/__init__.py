"""The shapes of rows that people have, each read as one thing: prompts with answers, and scores where answers are compared.

A shape is recognised by the columns of a source's first rows (``recognise``), or named by the recipe's ``format``; ``columns`` of
the recipe gives its names to other columns. What a shape is called and looks like is from the cards of the datasets that have it.
"""

from __future__ import annotations

# In this order rows are tried: what is peculiar comes first.
from dvpo_ray.data.shapes import comparisons, pairs, ratings, message_trees, demonstrations  # isort: skip
from dvpo_ray.data.shapes.base import (
    SAMPLE,
    SHAPES,
    Answer,
    Prompted,
    Row,
    Scale,
    Shape,
    Use,
    recognise,
    renamed,
    shape_named,
    shape_of,
)
from dvpo_ray.data.shapes.uses import best_answer, has_pairs, labels_in, pairs_in, prompts_in, together

__all__ = [
    "SAMPLE",
    "SHAPES",
    "Answer",
    "Prompted",
    "Row",
    "Scale",
    "Shape",
    "Use",
    "best_answer",
    "comparisons",
    "demonstrations",
    "has_pairs",
    "labels_in",
    "message_trees",
    "pairs",
    "pairs_in",
    "prompts_in",
    "ratings",
    "recognise",
    "renamed",
    "shape_named",
    "shape_of",
    "together",
]
