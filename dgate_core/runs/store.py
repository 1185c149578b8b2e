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
from dgate_core.runs.record import ROWS_SCHEMA, conform_rows
from dgate_core.storage import Storage

RUN_FORMAT = 1
"""Version of run.json and of the folder's layout."""

RunState = Literal["planned", "running", "completed", "completed_with_errors", "failed", "cancelled"]


_RUN_FIELDS = ("state", "fingerprint", "spec", "manifest", "models", "counts")


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """What storage holds of a shard besides its images."""

    committed: bool
    parts: tuple[str, ...]
    """Keys of the batch records."""


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
            RunError: there is no run, or run.json is damaged or of a newer version.
        """
        if not self.exists():
            raise RunError(
                f"no run at {self.uri}", "a folder that holds run.json", "give the --out of an earlier `dgate generate`"
            )
        try:
            return check_run(json.loads(self.storage.read_bytes(layout.RUN_FILE)))
        except ValueError as error:
            raise RunError(
                f"{self.storage.uri_of(layout.RUN_FILE)} is damaged: {error}",
                "the file that `dgate generate` wrote",
                "bring it back from a backup, or make the run again with another --out; the pictures are untouched",
            ) from error

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
        tables = [conform_rows(bytes_to_table(self.storage.read_bytes(key))) for key in parts]
        return keep_first(pa.concat_tables([ROWS_SCHEMA.empty_table(), *tables]))

    def read_rows(self, shard: int) -> pa.Table:
        """rows.parquet of a committed shard."""
        return conform_rows(bytes_to_table(self.storage.read_bytes(layout.name_rows(shard))))

    def is_decided(self, shard: int) -> bool:
        """Whether rows.parquet is there: what the shard holds is settled, though perhaps not committed yet."""
        return self.storage.exists(layout.name_rows(shard))

    def commit_shard(self, shard: int, rows: pa.Table, stats: Mapping[str, Any]) -> bool:
        """Finishes a shard; whoever creates rows.parquet first decides, `_COMMIT` is written once, last.

        Args:
            shard: Its number.
            rows: One of ROWS_SCHEMA for each image.
            stats: Who committed, and seconds by stage; the counts are added here.

        Returns:
            True when this call committed it, False when it was committed already.
        """
        self.storage.sync(f"{layout.name_shard_folder(shard)}/")
        self.storage.create_bytes(layout.name_rows(shard), table_to_bytes(rows.sort_by("ordinal")))
        return self.conclude_commit(shard, stats)

    def conclude_commit(self, shard: int, stats: Mapping[str, Any]) -> bool:
        """What is left to do once rows.parquet is there, also after a lane that was killed right then; see above."""
        rows = self.sweep_shard(shard)
        statuses = rows.column("status").to_pylist()
        counts = {"rows": len(statuses), "ok": statuses.count("ok"), "errors": statuses.count("error")}
        self.storage.write_bytes(layout.name_stats(shard), (json.dumps({**counts, **stats}, indent=2) + "\n").encode())
        commit = {"rows": len(statuses), "committed_at": time.time()}
        return self.storage.create_bytes(layout.name_commit(shard), (json.dumps(commit) + "\n").encode())

    def sweep_shard(self, shard: int) -> pa.Table:
        """Drops what a decided shard does not name: parts, and pictures of lanes that were killed or given up.

        Returns:
            The rows that it holds.
        """
        rows = self.read_rows(shard)
        named = {path.partition("#")[0] for path in rows.column("path").to_pylist() if path}
        images = [item.key for item in self.storage.list_objects(f"{layout.name_shard_folder(shard)}/images")]
        parts = [item.key for item in self.storage.list_objects(layout.name_parts_prefix(shard))]
        self.storage.delete_many([*(key for key in images if key not in named), *parts])
        return rows


def check_run(run: Any) -> dict[str, Any]:
    """What was read from a run.json, unchanged.

    Raises:
        ValueError: says what is wrong with it.
    """
    if not isinstance(run, dict):
        raise ValueError("it holds no object")
    if missing := [name for name in ("format", *_RUN_FIELDS) if name not in run]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if run["format"] != RUN_FORMAT:
        raise ValueError(f"its format is {run['format']!r}, and this version of D-Gate reads {RUN_FORMAT}")
    return run


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
