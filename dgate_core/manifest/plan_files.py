"""The plan in a run's folder: tables of images in which a shard's rows are found quickly, and an index of shards."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dgate_core.errors import RunError
from dgate_core.manifest.item import BatchKey, batch_key_from_json
from dgate_core.manifest.shards import ShardInfo
from dgate_core.runs.record import PLAN_SCHEMA, SHARD_INDEX_SCHEMA
from dgate_core.storage import Storage

PLAN_PREFIX = "plan/"
SHARD_INDEX_KEY = "plan/shards.parquet"
GROUP_ROWS = 10_000
PART_ROWS = 100_000
"""Rows of every part but the last: readers compute from an ordinal in which part it stands."""


def name_plan_part(number: int, attempt: int = 1) -> str:
    """`plan/part-00000.parquet`, of the first retry `plan/retry-001-00000.parquet`."""
    return f"{name_part_prefix(attempt)}{number:05d}.parquet"


def name_shard_index(attempt: int = 1) -> str:
    """`plan/shards.parquet`, of the first retry `plan/shards-retry-001.parquet`; written last."""
    return SHARD_INDEX_KEY if attempt == 1 else f"plan/shards-retry-{attempt - 1:03d}.parquet"


def name_part_prefix(attempt: int = 1) -> str:
    """Start of the keys of an attempt's parts."""
    return "plan/part-" if attempt == 1 else f"plan/retry-{attempt - 1:03d}-"


class PlanWriter:
    """Writes the parts of a plan, each whole or not at all.

    Args:
        storage: Rooted at the run's folder.
        schema: Of the tables to come.
        folder: Local, for the part in hand.
        attempt: 1 for the plan itself.
    """

    def __init__(self, storage: Storage, schema: pa.Schema, folder: Path, attempt: int = 1) -> None:
        self.storage, self.schema, self.attempt = storage, schema, attempt
        self._file = folder / "part.parquet"
        self._pending: list[pa.RecordBatch] = []
        self._parts = 0
        self._writer: pq.ParquetWriter | None = None
        self._written = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Take the next images."""
        self._pending.append(batch)
        waiting = sum(item.num_rows for item in self._pending)
        if waiting >= GROUP_ROWS:
            table = pa.Table.from_batches(self._pending, self.schema)
            whole = waiting - waiting % GROUP_ROWS
            for start in range(0, whole, GROUP_ROWS):
                self._write_group(table.slice(start, GROUP_ROWS))
            self._pending = table.slice(whole).to_batches()

    def close(self) -> None:
        """Write what is left; a plan without any image is one empty part."""
        rest = pa.Table.from_batches(self._pending, self.schema)
        if rest.num_rows or not (self._parts or self._writer):
            self._write_group(rest)
        self._finish_part()

    def _write_group(self, rows: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, self.schema, compression="zstd")
        self._writer.write_table(rows, row_group_size=GROUP_ROWS)
        self._written += rows.num_rows
        if self._written >= PART_ROWS:
            self._finish_part()

    def _finish_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self.storage.upload_file(self._file, name_plan_part(self._parts, self.attempt), durable=False)
            self._writer, self._written, self._parts = None, 0, self._parts + 1


def has_plan(storage: Storage) -> bool:
    """Whether the plan is whole: its shard index is written last."""
    return storage.exists(SHARD_INDEX_KEY)


def remove_plan(storage: Storage) -> None:
    """Delete a plan, whole or not, the index first."""
    storage.delete(SHARD_INDEX_KEY)
    storage.delete_many([item.key for item in storage.list_objects(PLAN_PREFIX)])


def write_shard_index(storage: Storage, shards: Iterable[ShardInfo], attempt: int = 1) -> None:
    """Write an attempt's index, by which its plan becomes whole."""
    names = SHARD_INDEX_SCHEMA.names
    columns: dict[str, list[Any]] = {name: [] for name in names}
    texts: dict[BatchKey, str] = {}
    for shard in shards:
        for name in names:
            columns[name].append(getattr(shard, name))
        columns["batch_key"][-1] = texts.setdefault(shard.batch_key, shard.batch_key.to_json())
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pydict(columns, SHARD_INDEX_SCHEMA), sink, compression="zstd")
    storage.sync(PLAN_PREFIX)
    storage.write_bytes(name_shard_index(attempt), sink.getvalue())


def read_shard_index(storage: Storage) -> list[ShardInfo]:
    """All shards of a run, the plan's own first, then those of each retry.

    Raises:
        RunError: there is no whole plan.
    """
    if not has_plan(storage):
        raise RunError(f"no plan at {storage.uri}", SHARD_INDEX_KEY, "give the command that made the run again")
    keys = [item.key for item in storage.list_objects("plan/shards-retry-")]
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(key))) for key in [SHARD_INDEX_KEY, *sorted(keys)]]
    rows = [row for table in tables for row in table.select(SHARD_INDEX_SCHEMA.names).to_pylist()]
    keys_of = {text: batch_key_from_json(text) for text in {row["batch_key"] for row in rows}}
    return [ShardInfo(**{**row, "batch_key": keys_of[row["batch_key"]]}) for row in rows]


def read_shard_rows(storage: Storage, shard: ShardInfo) -> pa.Table:
    """The plan's rows of one shard, in the order of the manifest; reads only the row groups that hold some.

    Raises:
        RunError: the plan does not hold the rows that the index promises.
    """
    tables = [table for key in _list_parts(storage, shard) for table in _read_from_part(storage, key, shard)]
    found = sum(table.num_rows for table in tables)
    if found != shard.rows:
        raise RunError(
            f"the plan at {storage.uri} holds {found} rows of shard {shard.shard}",
            f"{shard.rows}, as its index says",
            "the plan is damaged: make the run again in another folder",
        )
    return pa.concat_tables(tables)


def read_plan_batches(storage: Storage, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the whole plan (not its retries) in the order of the manifest, a row group at a time."""
    for item in storage.list_objects(name_part_prefix(1)):
        with storage.open_read(item.key) as stream:
            parquet = pq.ParquetFile(stream)
            yield from parquet.iter_batches(GROUP_ROWS, columns=list(columns) if columns else None)


def read_plan_rows(storage: Storage, ordinals: Sequence[int]) -> pa.Table:
    """The plan's rows (not those of its retries) of some images, in the order of the manifest."""
    by_part: dict[int, list[int]] = {}
    for ordinal in sorted(set(ordinals)):
        by_part.setdefault(ordinal // PART_ROWS, []).append(ordinal)
    batches = [batch for part, wanted in by_part.items() for batch in _take_from_part(storage, part, wanted)]
    return pa.Table.from_batches(batches) if batches else PLAN_SCHEMA.empty_table()


def _take_from_part(storage: Storage, part: int, ordinals: list[int]) -> Iterator[pa.RecordBatch]:
    with storage.open_read(name_plan_part(part)) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(GROUP_ROWS):
            yield batch.filter(pc.is_in(batch["ordinal"], pa.array(ordinals, pa.int64())))


def _list_parts(storage: Storage, shard: ShardInfo) -> list[str]:
    if shard.attempt > 1:
        return [item.key for item in storage.list_objects(name_part_prefix(shard.attempt))]
    return [name_plan_part(n) for n in range(shard.first_ordinal // PART_ROWS, shard.last_ordinal // PART_ROWS + 1)]


def _read_from_part(storage: Storage, key: str, shard: ShardInfo) -> Iterator[pa.Table]:
    with storage.open_read(key) as stream:
        parquet = pq.ParquetFile(stream)
        for group in _find_groups(parquet.metadata, shard):
            mask = pc.equal(parquet.read_row_group(group, ["shard"]).column(0), shard.shard).fill_null(False)
            if pc.any(mask).as_py():
                yield parquet.read_row_group(group).filter(mask)


def _find_groups(metadata: pq.FileMetaData, shard: ShardInfo) -> list[int]:
    """Row groups whose ordinals and shards overlap the shard's."""
    wanted = {"ordinal": (shard.first_ordinal, shard.last_ordinal), "shard": (shard.shard, shard.shard)}
    found = []
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
        stats = {c.path_in_schema: c.statistics for c in columns if c.path_in_schema in wanted}
        known = {name: s for name, s in stats.items() if s is not None and s.has_min_max}
        if all(known[name].min <= wanted[name][1] and known[name].max >= wanted[name][0] for name in known):
            found.append(group)
    return found
