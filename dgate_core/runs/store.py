"""A run's folder as an object: its run.json, and the life of a shard from parts to commit."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.errors import RunError
from dgate_core.runs import layout
from dgate_core.runs.record import ROWS_SCHEMA
from dgate_core.storage import Storage

RunState = Literal["planned", "running", "completed", "completed_with_errors", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """What storage holds of a shard besides its images."""

    committed: bool
    parts: tuple[str, ...]
    """Keys of the batch records, oldest claim first."""


class RunStore:
    """Reads and writes one run's folder.

    Args:
        storage: Rooted at the run's folder, local or S3.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    @property
    def uri(self) -> str:
        """Where the run stands."""
        return self.storage.uri

    def exists(self) -> bool:
        """Whether a run was made here."""
        return self.storage.exists(layout.RUN_FILE)

    def read_run(self) -> dict[str, Any]:
        """run.json.

        Raises:
            RunError: there is no run, or run.json is not JSON.
        """
        if not self.exists():
            raise RunError(
                f"no run at {self.uri}", "a folder that holds run.json", "give the --out of an earlier `dgate generate`"
            )
        try:
            return json.loads(self.storage.read_bytes(layout.RUN_FILE))
        except json.JSONDecodeError as error:
            raise RunError(f"{self.uri}/run.json is not JSON: {error}", "the file that `dgate generate` wrote") from error

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Replaces run.json as a whole."""
        text = json.dumps(run, indent=2, ensure_ascii=False, sort_keys=False)
        self.storage.write_bytes(layout.RUN_FILE, (text + "\n").encode())

    def update_run(self, **changes: Any) -> dict[str, Any]:
        """Sets fields of run.json and gives it back; only the driver of a run does this."""
        run = {**self.read_run(), **changes, "updated_at": time.time()}
        self.write_run(run)
        return run

    def read_progress(self, shard: int) -> ShardProgress:
        """One listing: is the shard committed, which parts are there."""
        keys = [item.key for item in self.storage.list_objects(layout.name_bookkeeping_prefix(shard))]
        prefix = layout.name_parts_prefix(shard)
        parts = tuple(key for key in keys if key.startswith(prefix) and key.endswith(".parquet"))
        return ShardProgress(layout.name_commit(shard) in keys, parts)

    def write_part(self, shard: int, claim: str, number: int, rows: pa.Table) -> str:
        """Records a batch whose files are all written; after this they are never made again."""
        key = layout.name_part(shard, claim, number)
        self.storage.write_bytes(key, table_to_bytes(rows), durable=False)
        return key

    def read_parts(self, parts: tuple[str, ...]) -> pa.Table:
        """All recorded rows, each ordinal once (the first record stands)."""
        tables = [bytes_to_table(self.storage.read_bytes(key)) for key in parts]
        return keep_first(pa.concat_tables([ROWS_SCHEMA.empty_table(), *tables]))

    def read_rows(self, shard: int) -> pa.Table:
        """rows.parquet of a committed shard."""
        return bytes_to_table(self.storage.read_bytes(layout.name_rows(shard)))

    def commit_shard(self, shard: int, rows: pa.Table, stats: Mapping[str, Any]) -> bool:
        """Finishes a shard; whoever creates rows.parquet first decides, `_COMMIT` is written once, last.

        Returns:
            True when this call committed it, False when it was committed already.
        """
        self.storage.sync(f"{layout.name_shard_folder(shard)}/")
        made = self.storage.create_bytes(layout.name_rows(shard), table_to_bytes(rows.sort_by("ordinal")))
        kept = rows if made else self.read_rows(shard)
        self._delete_leftovers(shard, kept)
        self.storage.write_bytes(layout.name_stats(shard), (json.dumps(dict(stats), indent=2) + "\n").encode())
        commit = {"rows": kept.num_rows, "committed_at": time.time()}
        return self.storage.create_bytes(layout.name_commit(shard), (json.dumps(commit) + "\n").encode())

    def _delete_leftovers(self, shard: int, rows: pa.Table) -> None:
        """Drops parts, and pictures of batches that a killed lane wrote and nobody recorded."""
        named = {path.partition("#")[0] for path in rows.column("path").to_pylist() if path}
        folder = layout.name_shard_folder(shard)
        images = (item.key for item in self.storage.list_objects(f"{folder}/images"))
        parts = (item.key for item in self.storage.list_objects(layout.name_parts_prefix(shard)))
        self.storage.delete_many([*(key for key in images if key not in named), *parts])


def keep_first(rows: pa.Table) -> pa.Table:
    """Each ordinal once, the first of them."""
    seen: set[int] = set()
    kept = []
    for index, ordinal in enumerate(rows.column("ordinal").to_pylist()):
        if ordinal not in seen:
            seen.add(ordinal)
            kept.append(index)
    return rows.take(pa.array(kept, pa.int64()))


def table_to_bytes(table: pa.Table) -> bytes:
    """A Parquet file in memory."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def bytes_to_table(data: bytes) -> pa.Table:
    """The inverse of `table_to_bytes`."""
    return pq.read_table(io.BytesIO(data))
