"""Reads a run's folder for its report: run.json and the rows, streamed, with a cap on how many are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dgate_core.runs.layout import RESULTS_FILE
from dgate_core.runs.record import ROWS_SCHEMA, conform_rows
from dgate_core.runs.store import RunStore, bytes_to_table
from dgate_core.storage import Storage
from reports.summary import RunSummary, read_summary

BATCH_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Failure:
    """All rows that failed with one code."""

    code: str
    """Error code."""
    count: int
    """Rows."""
    example: str
    """Message of the first of them."""


@dataclass(frozen=True, slots=True)
class CollectedRun:
    """What a report says about a run."""

    summary: RunSummary
    """Figures of the run; its counts are those of the rows read."""
    failures: tuple[Failure, ...]
    """Most frequent first."""
    rows: pa.Table
    """The rows kept, in manifest order."""
    left_out: dict[str, int]
    """Rows not kept, by status."""


@dataclass(slots=True)
class Tally:
    """Counts over every row, kept or not."""

    rows: Counter[str] = field(default_factory=Counter)
    """Rows by status."""
    kept: Counter[str] = field(default_factory=Counter)
    """Rows kept by status."""
    failures: Counter[str] = field(default_factory=Counter)
    """Error rows by code."""
    examples: dict[str, str] = field(default_factory=dict)
    """First message of each code."""


def collect_run(run: Storage, max_pictures: int, max_errors: int) -> CollectedRun:
    """Read run.json and the rows; the first `max_pictures` rows and the first `max_errors` error rows are kept.

    Raises:
        RunError: The folder holds no run.json.
    """
    summary = read_summary(RunStore(run).read_run())
    tally = Tally()
    limits = {"error": max_errors, "picture": max_pictures}
    kept = [batch for batch in keep_rows(read_rows(run), tally, limits) if batch.num_rows]
    rows = pa.Table.from_batches(kept) if kept else pa.table({})
    failures = tuple(Failure(code, count, tally.examples[code]) for code, count in tally.failures.most_common())
    models = tuple(pc.unique(rows["model"]).drop_null().to_pylist()) if "model" in rows.column_names else ()
    return CollectedRun(
        summary=replace(summary, counts=dict(tally.rows) or summary.counts, models=models or summary.models),
        failures=failures,
        rows=rows,
        left_out=dict(tally.rows - tally.kept),
    )


def read_rows(run: Storage) -> Iterator[pa.RecordBatch]:
    """Rows of results.parquet in manifest order; of a run that is not finished, the rows of its shards."""
    if run.exists(RESULTS_FILE):
        with run.open_read(RESULTS_FILE) as stream:
            yield from pq.ParquetFile(stream).iter_batches(BATCH_ROWS)
    else:
        yield from read_shards(run).to_batches(BATCH_ROWS)


def read_shards(run: Storage) -> pa.Table:
    """Rows recorded so far by the shards, in manifest order; of a row made twice, the later shard's."""
    keys = [item.key for item in run.list_objects("shards/") if is_record(item.key)]
    tables = (conform_rows(bytes_to_table(run.read_bytes(key))) for key in keys)
    rows = pa.concat_tables([ROWS_SCHEMA.empty_table(), *tables])
    ordinals = rows["ordinal"].to_numpy()[::-1]
    _, last = np.unique(ordinals, return_index=True)
    return rows.take(pa.array(len(ordinals) - 1 - last)).drop_columns("ordinal")


def is_record(key: str) -> bool:
    """Whether a shard's file is the table of its rows or of one of its batches."""
    return key.endswith("/rows.parquet") or ("/_parts/" in key and key.endswith(".parquet"))


def keep_rows(batches: Iterable[pa.RecordBatch], tally: Tally, limits: dict[str, int]) -> Iterator[pa.RecordBatch]:
    """Count every row and pass on those within the limits on errors and pictures."""
    for batch in batches:
        status = batch["status"]
        is_error = pc.equal(status, "error").to_numpy(zero_copy_only=False)
        is_kept = take_first(is_error, limits, "error") | take_first(~is_error, limits, "picture")
        kept = batch.filter(pa.array(is_kept))
        tally.rows.update(count_values(status))
        tally.kept.update(count_values(kept["status"]))
        tally_failures(batch.filter(pa.array(is_error)), tally)
        yield kept


def take_first(chosen: np.ndarray[Any, Any], limits: dict[str, int], kind: str) -> np.ndarray[Any, Any]:
    """The chosen rows within what is left of a limit, which shrinks by them."""
    within = chosen & (np.cumsum(chosen) <= limits[kind])
    limits[kind] -= int(within.sum())
    return within


def tally_failures(errors: pa.RecordBatch, tally: Tally) -> None:
    """Count error rows by code and remember the first message of each code."""
    names = errors.schema.names
    if not errors.num_rows or "error_code" not in names:
        return
    codes = pc.fill_null(errors["error_code"], "unknown")
    tally.failures.update(count_values(codes))
    for code in set(pc.unique(codes).to_pylist()) - tally.examples.keys():
        first = pc.index(codes, code).as_py()
        tally.examples[code] = (errors["error_message"][first].as_py() or "") if "error_message" in names else ""


def count_values(column: pa.Array) -> dict[str, int]:
    """How often each value stands in a column."""
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}
