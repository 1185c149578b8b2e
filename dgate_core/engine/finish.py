"""Brings a run to its end: every row's outcome in manifest order, counts, state."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dgate_core.manifest.plan_files import read_plan_batches, read_shard_index
from dgate_core.manifest.shards import ShardInfo
from dgate_core.runs import layout
from dgate_core.runs.record import PLAN_SCHEMA, RESULT_FIELDS, ROWS_SCHEMA
from dgate_core.runs.store import RunStore

_OUTCOME_NAMES = [
    name
    for name in ROWS_SCHEMA.names
    if name not in {"ordinal", "id", "image_index", "row_id", "prompt", "negative_prompt", "seed", "width", "height"}
    and name not in {"num_inference_steps", "guidance_scale", "scheduler", "model", "lora", "style_preset", "tags"}
]


@dataclass(frozen=True, slots=True)
class Results:
    """What came of a run's rows."""

    counts: Counter[str]
    """Rows by status."""
    made: int
    """Pictures made by all attempts."""
    failures: Counter[str]
    """Rows with status error, by code."""


def write_results(store: RunStore) -> Results:
    """Joins the plan with the shards' rows into results.parquet, a row group at a time.

    Rows that no shard holds yet are `skipped`; a duplicate takes the file, or the error, of the row that it repeats.
    """
    counts, failures = Counter[str](), Counter[str]()
    shards = _OpenShards(store, read_shard_index(store.storage))
    firsts = _FirstRows(store)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.parquet"
        writer: pq.ParquetWriter | None = None
        for plan in read_plan_batches(store.storage):
            table = _join_batch(pa.Table.from_batches([plan]), shards, firsts)
            counts.update(table.column("status").to_pylist())
            failures.update(table.filter(pc.equal(table.column("status"), "error")).column("error_code").to_pylist())
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
            store.storage.upload_file(file, layout.RESULTS_FILE)
    return Results(counts, shards.made, failures)


class _OpenShards:
    """Rows of the shards that overlap a window of ordinals; windows only move forward."""

    def __init__(self, store: RunStore, index: Sequence[ShardInfo]) -> None:
        self._store = store
        self._waiting = sorted(index, key=lambda shard: shard.first_ordinal, reverse=True)
        self._open: list[tuple[ShardInfo, pa.Table]] = []
        self.made = 0

    def read_window(self, first: int, last: int) -> pa.Table:
        """Rows of all attempts in the window, later attempts last."""
        while self._waiting and self._waiting[-1].first_ordinal <= last:
            shard = self._waiting.pop()
            self._open.append((shard, self._read(shard)))
        self._open = [(shard, rows) for shard, rows in self._open if shard.last_ordinal >= first]
        ordered = sorted(self._open, key=lambda item: (item[0].attempt, item[0].shard))
        return pa.concat_tables([ROWS_SCHEMA.empty_table(), *(rows for _, rows in ordered)])

    def _read(self, shard: ShardInfo) -> pa.Table:
        progress = self._store.read_progress(shard.shard)
        is_settled = progress.committed or self._store.is_decided(shard.shard)
        rows = self._store.read_rows(shard.shard) if is_settled else self._store.read_parts(progress.parts)
        self.made += rows.column("status").to_pylist().count("ok")
        return rows


class _FirstRows:
    """Outcomes of the rows that others repeat, kept as Arrow tables: some 300 bytes each."""

    def __init__(self, store: RunStore) -> None:
        parts = [batch.column(0).drop_null() for batch in read_plan_batches(store.storage, ["duplicate_of"])]
        self._wanted = pc.unique(pa.chunked_array(parts, pa.int64()))
        self._kept: list[pa.Table] = []

    def remember(self, outcome: pa.Table) -> None:
        """Keeps what duplicates further down will need."""
        needed = pc.is_in(outcome.column("ordinal"), self._wanted)
        if pc.any(needed).as_py():
            self._kept.append(outcome.filter(needed))

    def find(self, ordinals: pa.ChunkedArray) -> pa.Table:
        """Outcomes of rows that came before, in the order of `ordinals`."""
        # Batches come in the order of the manifest, so what was kept is sorted.
        kept = pa.concat_tables(self._kept)
        return kept.take(pa.array(np.searchsorted(kept.column("ordinal").to_numpy(), ordinals.to_numpy())))


def _join_batch(plan: pa.Table, shards: _OpenShards, firsts: _FirstRows) -> pa.Table:
    ordinals = plan.column("ordinal").to_numpy()
    outcome = _find_outcomes(ordinals, shards.read_window(int(ordinals[0]), int(ordinals[-1])))
    outcome = _apply_bad_rows(outcome.select(_OUTCOME_NAMES), plan)
    firsts.remember(outcome.append_column("ordinal", plan.column("ordinal")))
    outcome = _apply_duplicates(outcome, plan, firsts)
    own = [field for field in plan.schema if field.name not in PLAN_SCHEMA.names]
    fields = [*RESULT_FIELDS, *own]
    arrays = [(outcome if field.name in _OUTCOME_NAMES else plan).column(field.name) for field in fields]
    return pa.table(arrays, schema=pa.schema(fields))


def _find_outcomes(ordinals: np.ndarray, rows: pa.Table) -> pa.Table:
    """The last row of each ordinal, nulls where there is none."""
    have = rows.column("ordinal").to_numpy()
    order = np.argsort(have, kind="stable")
    place = np.searchsorted(have[order], ordinals, side="right") - 1
    found = (
        (place >= 0) & (have[order][np.maximum(place, 0)] == ordinals) if len(have) else np.zeros(len(ordinals), bool)
    )
    indices = order[np.maximum(place, 0)] if len(have) else np.zeros(len(ordinals), np.int64)
    return rows.take(pa.array(indices, pa.int64(), mask=~found))


def _apply_bad_rows(outcome: pa.Table, plan: pa.Table) -> pa.Table:
    """Rows that the checks refused carry the plan's error, rows that no shard holds are skipped."""
    bad = pc.equal(plan.column("status"), "error")
    for name in ("status", "error_code", "error_message", "warnings"):
        made = outcome.column(name)
        made = pc.fill_null(made, "skipped") if name == "status" else made
        outcome = _replace(outcome, name, pc.if_else(bad, plan.column(name), made))
    return outcome


def _apply_duplicates(outcome: pa.Table, plan: pa.Table, firsts: _FirstRows) -> pa.Table:
    """A row that repeats another one gets its outcome; `ok` becomes `duplicate`."""
    repeats = plan.column("duplicate_of")
    places = np.flatnonzero(pc.is_valid(repeats).to_numpy())
    if not len(places):
        return outcome
    both = pa.concat_tables([outcome, firsts.find(repeats.drop_null()).select(outcome.column_names)])
    sources = np.arange(outcome.num_rows)
    sources[places] = outcome.num_rows + np.arange(len(places))
    outcome = both.take(pa.array(sources))
    status = outcome.column("status")
    is_copy = pc.and_(pc.is_valid(repeats), pc.equal(status, "ok"))
    return _replace(outcome, "status", pc.if_else(is_copy, "duplicate", status))


def _replace(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
