"""Brings a run to its end: every row's outcome in manifest order, counts, state."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dgate_core.manifest.plan_files import ShardInfo, read_plan_batches, read_shard_index
from dgate_core.runs import layout
from dgate_core.runs.record import PLAN_SCHEMA, RESULT_FIELDS, ROWS_SCHEMA
from dgate_core.runs.store import RunStore

_OUTCOME_NAMES = [
    name
    for name in ROWS_SCHEMA.names
    if name not in {"ordinal", "id", "image_index", "row_id", "prompt", "negative_prompt", "seed", "width", "height"}
    and name not in {"num_inference_steps", "guidance_scale", "scheduler", "model", "lora", "style_preset", "tags"}
]


def write_results(store: RunStore) -> Counter[str]:
    """Joins the plan with the shards' rows into results.parquet, a row group at a time.

    Rows that no shard holds yet are `skipped`; a duplicate takes the file, or the error, of the row that it repeats.

    Returns:
        Rows by status.
    """
    counts: Counter[str] = Counter()
    shards = _OpenShards(store, read_shard_index(store.storage))
    firsts = _FirstRows(store)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.parquet"
        writer: pq.ParquetWriter | None = None
        for plan in read_plan_batches(store.storage):
            table = _join_batch(pa.Table.from_batches([plan]), shards, firsts)
            counts.update(table.column("status").to_pylist())
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
            store.storage.upload_file(file, layout.RESULTS_FILE)
    return counts


class _OpenShards:
    """Rows of the shards that overlap a window of ordinals; windows only move forward."""

    def __init__(self, store: RunStore, index: Sequence[ShardInfo]) -> None:
        self._store = store
        self._waiting = sorted(index, key=lambda shard: shard.first_ordinal, reverse=True)
        self._open: list[tuple[ShardInfo, pa.Table]] = []

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
        return self._store.read_rows(shard.shard) if progress.committed else self._store.read_parts(progress.parts)


class _FirstRows:
    """Outcomes of the rows that others repeat."""

    def __init__(self, store: RunStore) -> None:
        self._outcomes: dict[int, dict[str, Any] | None] = {}
        for batch in read_plan_batches(store.storage, ["duplicate_of"]):
            self._outcomes.update(dict.fromkeys(batch.column(0).drop_null().to_pylist()))

    def remember(self, outcome: pa.Table, ordinals: pa.ChunkedArray) -> None:
        """Keeps what duplicates further down will need."""
        if not self._outcomes:
            return
        for index, ordinal in enumerate(ordinals.to_pylist()):
            if ordinal in self._outcomes:
                self._outcomes[ordinal] = outcome.slice(index, 1).to_pylist()[0]

    def find(self, ordinal: int) -> dict[str, Any]:
        """The outcome of a row that came before."""
        outcome = self._outcomes[ordinal]
        assert outcome is not None  # the first of equal rows always stands before its duplicates
        return outcome


def _join_batch(plan: pa.Table, shards: _OpenShards, firsts: _FirstRows) -> pa.Table:
    ordinals = plan.column("ordinal").to_numpy()
    outcome = _find_outcomes(ordinals, shards.read_window(int(ordinals[0]), int(ordinals[-1])))
    columns = {name: outcome.column(name).combine_chunks() for name in _OUTCOME_NAMES}
    columns["status"] = pc.fill_null(columns["status"], "skipped")
    columns = _apply_bad_rows(columns, plan)
    firsts.remember(pa.table(columns), plan.column("ordinal"))
    columns = _apply_duplicates(columns, plan, firsts)
    own = [field for field in plan.schema if field.name not in PLAN_SCHEMA.names]
    fields = [*RESULT_FIELDS, *own]
    arrays = [columns[field.name] if field.name in columns else plan.column(field.name) for field in fields]
    return pa.table(arrays, schema=pa.schema(fields))


def _find_outcomes(ordinals: np.ndarray, rows: pa.Table) -> pa.Table:
    """The last row of each ordinal, nulls where there is none."""
    have = rows.column("ordinal").to_numpy()
    order = np.argsort(have, kind="stable")
    place = np.searchsorted(have[order], ordinals, side="right") - 1
    found = (place >= 0) & (have[order][np.maximum(place, 0)] == ordinals) if len(have) else np.zeros(len(ordinals), bool)
    indices = order[np.maximum(place, 0)] if len(have) else np.zeros(len(ordinals), np.int64)
    return rows.take(pa.array(indices, pa.int64(), mask=~found))


def _apply_bad_rows(columns: dict[str, pa.Array], plan: pa.Table) -> dict[str, pa.Array]:
    """Rows that the checks refused carry the plan's error."""
    bad = pc.equal(plan.column("status"), "error").combine_chunks()
    for name in ("status", "error_code", "error_message", "warnings"):
        columns[name] = pc.if_else(bad, plan.column(name).combine_chunks(), columns[name])
    return columns


def _apply_duplicates(columns: dict[str, pa.Array], plan: pa.Table, firsts: _FirstRows) -> dict[str, pa.Array]:
    copies = list(_list_duplicates(plan))
    if not copies:
        return columns
    lists = {name: array.to_pylist() for name, array in columns.items()}
    for index, ordinal in copies:
        first = firsts.find(ordinal)
        for name in lists:
            lists[name][index] = first[name]
        if first["status"] == "ok":
            lists["status"][index] = "duplicate"
    return {name: pa.array(values, ROWS_SCHEMA.field(name).type) for name, values in lists.items()}


def _list_duplicates(plan: pa.Table) -> Iterator[tuple[int, int]]:
    for index, ordinal in enumerate(plan.column("duplicate_of").to_pylist()):
        if ordinal is not None:
            yield index, ordinal
