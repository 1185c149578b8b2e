"""Every picture that a run was to make, in the order of its results: also those that failed or are lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from dgate_core.evaluation.results import EvaluationError
from dgate_core.manifest.plan_files import has_plan, read_plan_batches
from dgate_core.runs import layout
from dgate_core.runs.store import RunStore
from dgate_core.storage import Storage

_PLANNED = ("row_id", "id", "image_index", "prompt", "seed", "width", "height")
_COLUMNS = (*_PLANNED, "status", "path", "sha256", "error_code", "safety_action")
_WITHHELD = {"safety_dropped": "withheld", "safety_quarantined": "withheld", "nan_picture": "nan"}
"""Defects of rows without a picture, by their error code; all others are missing."""
NOTHING_TO_SEE = frozenset({"missing", "nan", "withheld", "blurred", "unreadable"})
"""Defects of rows that no metric and no corpus may look at."""


@dataclass(frozen=True, slots=True)
class ExpectedPicture:
    """One picture that the run was to make, whatever became of it."""

    row_id: str | None
    """Hash of what determines the pixels; None or empty for a bad row."""
    id: str
    """Of the manifest's row."""
    image_index: int
    """Number of the image within its row."""
    prompt: str | None
    """What was asked for."""
    seed: int | None
    """Of its noise."""
    width: int | None
    """Pixels that were asked for."""
    height: int | None
    """Pixels that were asked for."""
    status: str = "skipped"
    """ok | error | skipped | duplicate, as in results.parquet; `skipped` for a row that the results lack."""
    path: str | None = None
    """Where the picture is, relative to the run's folder."""
    sha256: str | None = None
    """Of the file, as recorded when it was written."""
    error_code: str | None = None
    """Why there is no picture."""
    safety_action: str | None = None
    """What was done after the safety checker had looked; None when nobody looked, and in runs of older versions."""

    @property
    def has_picture(self) -> bool:
        """Whether the file at `path` is what the model made: one that was blurred is not."""
        return self.path is not None and self.status in {"ok", "duplicate"} and self.safety_action in {None, "keep"}

    @property
    def defect(self) -> str | None:
        """Why there is nothing to see; None when there is."""
        if self.has_picture:
            return None
        return "blurred" if self.safety_action == "blur" else _WITHHELD.get(self.error_code or "", "missing")

    @property
    def key(self) -> tuple[str, int]:
        """What names the same row in runs of other models."""
        return self.id, self.image_index


def read_expected(run: Storage) -> Iterator[ExpectedPicture]:
    """Streams a finished run's rows; a row of the plan that results.parquet lacks comes as `skipped`.

    Raises:
        RunError: there is no run.
        EvaluationError: the run has no results yet.
    """
    RunStore(run).read_run()
    if not run.exists(layout.RESULTS_FILE):
        raise EvaluationError(
            f"{run.uri} has no {layout.RESULTS_FILE}",
            "a run that came to its end",
            "give the command that made the run again: it goes on from where it stopped",
        )
    rows = _read_results(run)
    return _fill_gaps(_read_plan(run), rows) if has_plan(run) else rows


def pair_expected(
    candidates: Iterable[ExpectedPicture], baseline: Iterable[ExpectedPicture]
) -> Iterator[tuple[ExpectedPicture, ExpectedPicture | None]]:
    """Each candidate with the baseline's row of the same id and image, where prompt and seed are equal too.

    Rows in the same order take no memory; others wait until they are asked for.
    """
    waiting: dict[tuple[str, int], ExpectedPicture] = {}
    left = iter(baseline)
    for candidate in candidates:
        partner = waiting.pop(candidate.key, None)
        while partner is None and (row := next(left, None)) is not None:
            if row.key == candidate.key:
                partner = row
            else:
                waiting[row.key] = row
        same = partner is not None and (partner.prompt, partner.seed) == (candidate.prompt, candidate.seed)
        yield candidate, partner if same else None


def _read_results(run: Storage) -> Iterator[ExpectedPicture]:
    with run.open_read(layout.RESULTS_FILE) as stream:
        file = pq.ParquetFile(stream)
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            yield from (ExpectedPicture(**row) for row in batch.to_pylist())


def _read_plan(run: Storage) -> Iterator[ExpectedPicture]:
    for batch in read_plan_batches(run, _PLANNED):
        yield from (ExpectedPicture(**row) for row in batch.to_pylist())


def _fill_gaps(plan: Iterable[ExpectedPicture], rows: Iterator[ExpectedPicture]) -> Iterator[ExpectedPicture]:
    """The results are in the order of the plan, so the next row is either this one or a later one's."""
    row: Any = next(rows, None)
    for planned in plan:
        if row is not None and row.key == planned.key:
            yield row
            row = next(rows, None)
        else:
            yield planned
    if row is not None:
        raise EvaluationError(
            f"results.parquet holds the row {row.id!r}, image {row.image_index}, which the plan does not have there",
            "the rows of the plan, in its order",
            "write the results anew: give the command that made the run again",
        )
