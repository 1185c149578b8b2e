"""What is wrong with a manifest's rows: every problem with its place, all of them counted, the first ones kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in one row."""

    file: str
    """Path or address of the manifest's file."""
    line: int
    """Line on which the row starts, from 1; in Parquet the number of the row, from 1."""
    column: str
    """The manifest's column, empty when the whole line is broken."""
    code: str
    """Stable name of the problem, such as `bad_size`."""
    got: str
    """What stands there."""
    expected: str
    """What would have been right."""

    def explain(self) -> str:
        """Without the place: `width: got 65, expected a multiple of 8`."""
        column = f"{self.column}: " if self.column else ""
        return f"{column}got {self.got}, expected {self.expected}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line} [{self.code}] {self.explain()}"


class ProblemLog:
    """Keeps the first problems and counts all.

    Args:
        limit: How many are kept.
    """

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit
        self.kept: list[Problem] = []
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Number of problems, kept or not; one row may have several."""
        return self.counts.total()

    def add(self, problems: Iterable[Problem]) -> None:
        """Counts problems, and keeps them while there is room."""
        for problem in problems:
            self.counts[problem.code] += 1
            if len(self.kept) < self.limit:
                self.kept.append(problem)


def show_value(value: Any) -> str:
    """A value as it stands in a message: its repr, cut where it gets long."""
    text = repr(value[:SHOWN_CHARACTERS] if isinstance(value, str | bytes) else value)
    cut = len(text) > SHOWN_CHARACTERS or (isinstance(value, str | bytes) and len(value) > SHOWN_CHARACTERS)
    return f"{text[:SHOWN_CHARACTERS]}…" if cut else text
