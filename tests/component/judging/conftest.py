"""Answers for a judge."""

from tests.unit.judging.conftest import answers

__all__ = ["answers"]
