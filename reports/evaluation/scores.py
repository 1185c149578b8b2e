"""The pictures' scores of a run beside those of its baseline, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dgate_core.evaluation.results import SCORE_KEYS, SCORES_FILE, Evaluation, MetricValue
from dgate_core.runs.store import bytes_to_table
from dgate_core.storage import Storage
from reports.collect import read_rows

PAIR_KEYS = ["id", "image_index"]
BASELINE = ".baseline"
Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every picture that was expected, with the baseline's picture of the same request where there is one."""

    rows: pa.Table
    """Columns of scores.parquet; the baseline's carry `.baseline` after their name."""
    has_baseline: bool
    """Whether there is a baseline to compare with."""
    baseline_scored: bool
    """Whether the baseline has scores of its own."""
    unpaired: int
    """Rows of the run without a row of the same prompt and seed in the baseline."""

    def read_scores(self, metric: str, *, of_baseline: bool = False) -> Numbers | None:
        """A metric's values by row, NaN where there is none; None when it was not measured at all."""
        name = metric + BASELINE if of_baseline else metric
        if name not in self.rows.column_names:
            return None
        values: Numbers = pc.cast(self.rows[name], pa.float64()).to_numpy()
        return values

    def measure_change(self, metric: MetricValue) -> Numbers | None:
        """How much better each row has become, NaN where it is not known; a paired metric is a change itself."""
        sign = 1.0 if metric.better == "higher" else -1.0
        scores = self.read_scores(metric.name)
        if scores is None or metric.scope == "paired":
            return None if scores is None else sign * scores
        before = self.read_scores(metric.name, of_baseline=True)
        return None if before is None else sign * (scores - before)


def compare_scores(run: Storage, baseline: Storage | None) -> Comparison:
    """Reads the scores of a run and pairs them with its baseline's.

    Raises:
        ObjectNotFoundError: the run has no scores.
    """
    scores = bytes_to_table(run.read_bytes(SCORES_FILE))
    if baseline is None:
        return Comparison(scores, has_baseline=False, baseline_scored=False, unpaired=0)
    is_scored = baseline.exists(SCORES_FILE)
    before = bytes_to_table(baseline.read_bytes(SCORES_FILE)) if is_scored else read_requests(baseline)
    rows, unpaired = drop_strangers(join_rows(scores, before))
    return Comparison(rows, has_baseline=True, baseline_scored=is_scored, unpaired=unpaired)


def join_rows(scores: pa.Table, before: pa.Table) -> pa.Table:
    """Every row of `scores` in its order, with the columns of `before` beside it."""
    before = before.rename_columns([name if name in PAIR_KEYS else name + BASELINE for name in before.column_names])
    placed = scores.append_column("place", pa.array(range(scores.num_rows), pa.int64()))
    joined = placed.join(before, PAIR_KEYS, join_type="left outer")
    return joined.sort_by("place").drop_columns("place").combine_chunks()


def read_requests(run: Storage) -> pa.Table:
    """What scores.parquet would say of a run that nobody has scored: its rows and their pictures."""
    names = [name for name in SCORE_KEYS.names if name != "defect"]
    batches = [batch.select(names) for batch in read_rows(run)]
    return (
        pa.Table.from_batches(batches)
        if batches
        else pa.schema([SCORE_KEYS.field(name) for name in names]).empty_table()
    )


def drop_strangers(rows: pa.Table) -> tuple[pa.Table, int]:
    """Takes away the baseline's side of rows whose prompt or seed is another; returns the number of rows without it."""
    same = pc.and_(pc.equal(rows["prompt"], rows["prompt.baseline"]), pc.equal(rows["seed"], rows["seed.baseline"]))
    same = pc.fill_null(same, False)
    for number, name in enumerate(rows.column_names):
        if name.endswith(BASELINE):
            kept = pc.if_else(same, rows[name], pa.scalar(None, rows.schema.field(number).type))
            rows = rows.set_column(number, name, kept)
    return rows, int(pc.sum(pc.invert(same)).as_py() or 0)


def list_picture_metrics(evaluation: Evaluation, comparison: Comparison) -> list[MetricValue]:
    """Metrics that have a value for each picture, in the order of the evaluation."""
    return [metric for metric in evaluation.metrics if metric.name in comparison.rows.column_names]


def find_worst(changes: Numbers, count: int) -> list[int]:
    """Rows that became worst, the worst first; rows without a number are left out."""
    known = np.flatnonzero(np.isfinite(changes))
    order = np.argsort(changes[known], kind="stable")
    return [int(row) for row in known[order[:count]]]


def find_defects(comparison: Comparison, count: int) -> list[int]:
    """Rows whose picture is missing or defective, in the order of the run."""
    defects = comparison.rows["defect"].to_pylist()
    return [row for row, defect in enumerate(defects) if defect][:count]
