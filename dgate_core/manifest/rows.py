"""Rows as they were read from one file: known columns in their types, the others untouched, problems beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dgate_core.manifest.columns import KNOWN_COLUMNS
from dgate_core.manifest.extras import ExtraTypes
from dgate_core.manifest.problems import Problem
from dgate_core.manifest.source import Source
from dgate_core.manifest.values import Issue

BATCH_ROWS = 16_384
BATCH_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a first look at a file found."""

    sha256: str
    """Of its bytes."""
    columns: tuple[str, ...] = ()
    """Names in order of appearance, known and unknown."""
    extras: dict[str, pa.DataType | None] = field(default_factory=dict)
    """Type of each unknown column; None when its values have no type in common, so that it is kept as JSON text."""
    is_batch_api: bool = False
    """Whether the lines are requests of the OpenAI Batch API."""
    trouble: tuple[str, ...] = ()
    """Why the file as a whole cannot be used."""


@dataclass(slots=True)
class RowBatch:
    """Consecutive rows of one file."""

    file: str
    """Path or address for messages."""
    first_position: int
    """Number of the first row in the whole manifest, from 0."""
    lines: npt.NDArray[np.int64]
    """Line on which each row starts, from 1."""
    columns: dict[str, pa.Array]
    """Every known column in its type, null where unsaid."""
    extras: list[pa.Array]
    """Unknown columns in the order of Manifest.extras."""
    problems: dict[int, list[Problem]] = field(default_factory=lambda: defaultdict(list))
    """By row in the batch."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.lines)

    def report(self, issues: Iterable[Issue]) -> None:
        """Notes what is wrong with rows of this batch."""
        for index, column, code, got, expected in issues:
            line = int(self.lines[index])
            self.problems[index].append(Problem(self.file, line, column, code, got, expected))


def make_batch(
    source: Source, lines: npt.NDArray[np.int64], cells: dict[str, tuple[pa.Array, list[Issue]]], extras: list[pa.Array]
) -> RowBatch:
    """A batch from read columns; known columns that the file does not have are null."""
    empty = {name: pa.nulls(len(lines), kind.arrow_type) for name, kind in KNOWN_COLUMNS.items() if name not in cells}
    batch = RowBatch(source.name, 0, lines, empty | {name: array for name, (array, _) in cells.items()}, extras)
    for _, issues in cells.values():
        batch.report(issues)
    return batch


class RowReader(Protocol):
    """Reads one format."""

    def scan(self, source: Source) -> FileFacts:
        """Look through a file: its hash, its columns and their types, what is wrong with it as a whole."""

    def read(self, source: Source, facts: FileFacts, extras: ExtraTypes) -> Iterator[RowBatch]:
        """Yield the rows in order, about BATCH_ROWS at a time, unknown columns in the types of `extras`."""
