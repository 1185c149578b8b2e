"""A run and its evaluation, read together and held against each other."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.evaluation.results import SCORES_FILE, Evaluation, EvaluationError, MetricValue, read_evaluation
from dgate_core.runs.layout import RESULTS_FILE
from dgate_core.runs.store import RunStore
from dgate_core.storage import Storage

PICTURE_STATUSES = frozenset({"ok", "duplicate"})
"""Statuses of rows that have a picture."""

RowKey = tuple[str, int]
"""id and image_index: what names the same row in runs of other models."""


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """A run with its numbers."""

    storage: Storage
    """Of the run's folder."""
    evaluation: Evaluation
    """Its evaluation."""
    scores: pa.Table
    """scores.parquet: a row per picture that was expected."""

    @property
    def uri(self) -> str:
        """Where the run stands."""
        return self.storage.uri

    def list_keys(self) -> list[RowKey]:
        """Key of every row, in the order of the scores."""
        ids, indices = self.scores.column("id").to_pylist(), self.scores.column("image_index").to_pylist()
        return list(zip(ids, indices, strict=True))

    def list_values(self, column: str) -> list[Any]:
        """A column of the scores as Python values."""
        values: list[Any] = self.scores.column(column).to_pylist()
        return values

    def read_scores(self, metric: str) -> np.ndarray:
        """A metric's column, float64 (rows,); NaN where it was not measured."""
        return self.scores.column(metric).to_numpy(zero_copy_only=False).astype(np.float64)

    def find_sound(self) -> np.ndarray:
        """bool (rows,): there is a picture, and it has no defect."""
        pairs = zip(self.list_values("status"), self.list_values("defect"), strict=True)
        return np.array([status in PICTURE_STATUSES and defect is None for status, defect in pairs], bool)

    def list_metrics(self) -> list[MetricValue]:
        """Every metric of the evaluation."""
        return list(self.evaluation.metrics)


def open_scored_run(storage: Storage) -> ScoredRun:
    """Reads a run's evaluation and makes sure that it is whole and about the pictures that are there now.

    Raises:
        RunError: there is no run.
        EvaluationError: no evaluation, an evaluation that broke off, or one of another state of the run.
    """
    run = RunStore(storage).read_run()
    again = f"run: dgate evaluate {storage.uri}"
    try:
        evaluation = read_evaluation(storage)
    except (ValueError, TypeError, KeyError) as error:
        raise EvaluationError(
            f"evaluation.json of {storage.uri} is damaged: {error}", "the whole file", again
        ) from error
    if evaluation.fingerprint != run["fingerprint"]:
        raise EvaluationError(f"the evaluation in {storage.uri} is of another run", "an evaluation of this run", again)
    if not storage.exists(SCORES_FILE):
        raise EvaluationError(f"{storage.uri} has no {SCORES_FILE}: its evaluation broke off", "all of it", again)
    try:
        scores = pq.read_table(io.BytesIO(storage.read_bytes(SCORES_FILE)))
    except pa.ArrowInvalid as error:
        raise EvaluationError(
            f"scores.parquet of {storage.uri} is damaged: {error}", "the whole file", again
        ) from error
    if len(scores) != evaluation.n_expected:
        raise EvaluationError(
            f"scores.parquet of {storage.uri} holds {len(scores):,} rows", f"{evaluation.n_expected:,} rows", again
        )
    _check_pictures_are_the_same(storage, scores, again)
    return ScoredRun(storage, evaluation, scores)


def _check_pictures_are_the_same(storage: Storage, scores: pa.Table, again: str) -> None:
    """A run that was retried or repaired after its evaluation must be evaluated anew."""
    columns = ["id", "image_index", "status", "sha256"]
    with storage.open_read(RESULTS_FILE) as stream:
        results = pq.read_table(stream, columns=columns)
    now = set(zip(*(results.column(name).to_pylist() for name in columns), strict=True))
    then = set(zip(*(scores.column(name).to_pylist() for name in columns), strict=True))
    # A row that the results lack stands in the scores as skipped.
    changed = now - then | {row for row in then - now if row[2] != "skipped"}
    if changed:
        identity, index, *_ = sorted(changed, key=str)[0]
        raise EvaluationError(
            f"the pictures of {storage.uri} are not those that were evaluated, such as {identity!r}, image {index}",
            "an evaluation of the run as it is now",
            again,
        )
