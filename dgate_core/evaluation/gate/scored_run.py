"""A run and its evaluation, read together and held against each other."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.errors import ObjectNotFoundError
from dgate_core.evaluation.expected import NOTHING_TO_SEE
from dgate_core.evaluation.pictures import BROKEN_CONTAINER
from dgate_core.evaluation.results import (
    SCORES_FILE,
    Evaluation,
    EvaluationError,
    MetricValue,
    hash_pictures,
    read_evaluation,
)
from dgate_core.runs.layout import RESULTS_FILE
from dgate_core.runs.pictures import PictureReader
from dgate_core.runs.store import RunStore
from dgate_core.storage import Storage

PICTURE_STATUSES = frozenset({"ok", "duplicate"})
"""Statuses of rows that have a picture."""

_READERS: Final = 8
"""Threads that read pictures to hash them."""
_READ_TOGETHER: Final = 64
"""Pictures of one task of theirs."""

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

    def find_pictures(self) -> np.ndarray:
        """bool (rows,): there is a picture that can be decoded, sound or not: what a corpus metric is made of."""
        pairs = zip(self.list_values("sha256"), self.list_values("path"), self.list_values("defect"), strict=True)
        return np.array(
            [bool(sha256 and path) and defect not in NOTHING_TO_SEE for sha256, path, defect in pairs], bool
        )

    def find_sound(self) -> np.ndarray:
        """bool (rows,): there is a picture, and it has no defect."""
        pairs = zip(self.list_values("status"), self.list_values("defect"), strict=True)
        return np.array([status in PICTURE_STATUSES and defect is None for status, defect in pairs], bool)

    def hash_pictures(self) -> str:
        """See `results.hash_pictures`."""
        columns = (self.list_values(name) for name in ("id", "image_index", "sha256"))
        return hash_pictures(zip(*columns, strict=True))

    def find_repeats(self) -> np.ndarray:
        """bool (rows,): the row asks for the same picture as an earlier one."""
        return np.array([status == "duplicate" for status in self.list_values("status")], bool)

    def list_metrics(self) -> list[MetricValue]:
        """Every metric of the evaluation."""
        return list(self.evaluation.metrics)


def open_scored_run(storage: Storage) -> ScoredRun:
    """Reads a run's evaluation and makes sure that it is whole and about the pictures that are there now.

    Every picture's file is read and hashed.

    Raises:
        RunError: there is no run.
        EvaluationError: no evaluation, an evaluation that broke off or was edited, one of another state of the run, or
            pictures that are not those that the run recorded.
    """
    run = RunStore(storage).read_run()
    again = f"run: dgate evaluate {storage.uri}"
    try:
        evaluation = read_evaluation(storage)
    except (ValueError, TypeError, KeyError) as error:
        raise EvaluationError(
            f"evaluation.json of {storage.uri} is damaged: {error}", "the whole file", again
        ) from error
    if evaluation.fingerprint != run.get("fingerprint"):
        raise EvaluationError(f"the evaluation in {storage.uri} is of another run", "an evaluation of this run", again)
    if evaluation.changed_files:
        raise EvaluationError(
            f"{evaluation.changed_files:,} pictures of {storage.uri} were not the bytes that the run recorded",
            "pictures as the run made them",
            f"make them again, then {again}",
        )
    scored = ScoredRun(storage, evaluation, _read_score_table(storage, evaluation, again))
    _check_results_are_the_same(storage, scored.scores, again)
    _check_files_are_the_same(scored, again)
    return scored


def _read_score_table(storage: Storage, evaluation: Evaluation, again: str) -> pa.Table:
    """scores.parquet, whole, and of this evaluation."""
    if not storage.exists(SCORES_FILE):
        raise EvaluationError(f"{storage.uri} has no {SCORES_FILE}: its evaluation broke off", "all of it", again)
    data = storage.read_bytes(SCORES_FILE)
    if hashlib.sha256(data).hexdigest() != evaluation.scores_sha256:
        raise EvaluationError(
            f"scores.parquet of {storage.uri} is damaged, or not of the evaluation in evaluation.json",
            "the file that the evaluation wrote",
            again,
        )
    scores = pq.read_table(io.BytesIO(data))
    if len(scores) != evaluation.n_expected:
        raise EvaluationError(
            f"scores.parquet of {storage.uri} holds {len(scores):,} rows", f"{evaluation.n_expected:,} rows", again
        )
    return scores


def _check_results_are_the_same(storage: Storage, scores: pa.Table, again: str) -> None:
    """A run that was retried or repaired after its evaluation must be evaluated anew."""
    columns = ["id", "image_index", "status", "sha256"]
    try:
        with storage.open_read(RESULTS_FILE) as stream:
            results = pq.read_table(stream, columns=columns)
    except (pa.ArrowException, ObjectNotFoundError) as error:
        raise EvaluationError(
            f"{RESULTS_FILE} of {storage.uri} cannot be read: {error}",
            "the results of a run that came to its end",
            "give the command that made the run again",
        ) from error
    now = Counter(zip(*(results.column(name).to_pylist() for name in columns), strict=True))
    then = Counter(zip(*(scores.column(name).to_pylist() for name in columns), strict=True))
    # A row that the results lack stands in the scores as skipped.
    changed = set(now - then) | {row for row in then - now if row[2] != "skipped"}
    if changed:
        identity, index, *_ = sorted(changed, key=str)[0]
        raise EvaluationError(
            f"the pictures of {storage.uri} are not those that were evaluated, such as {identity!r}, image {index}",
            "an evaluation of the run as it is now",
            again,
        )


def _check_files_are_the_same(run: ScoredRun, again: str) -> None:
    """Files that were replaced or deleted after the evaluation; one that was missing then is a defect already."""
    rows = zip(run.list_values("path"), run.list_values("sha256"), run.list_values("defect"), strict=True)
    known = {path: sha256 for path, sha256, defect in rows if path and sha256 and defect not in NOTHING_TO_SEE}
    reader = PictureReader(run.storage)

    def find_problem(path: str) -> str:
        try:
            return "" if hashlib.sha256(reader.read(path)).hexdigest() == known[path] else "was changed"
        except ObjectNotFoundError:
            return "is gone"
        except BROKEN_CONTAINER:
            return "lies in a damaged container"

    def find_problems(paths: Sequence[str]) -> list[tuple[str, str]]:
        return [(path, problem) for path in paths if (problem := find_problem(path))]

    paths = list(known)
    groups = [paths[start : start + _READ_TOGETHER] for start in range(0, len(paths), _READ_TOGETHER)]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="hash") as pool:
        problems = [problem for found in pool.map(find_problems, groups) for problem in found]
    if problems:
        path, problem = problems[0]
        raise EvaluationError(
            f"{len(problems):,} pictures of {run.uri} are not those that were evaluated: {path} {problem}",
            "the files that the evaluation saw",
            f"bring them back, or {again}",
        )
