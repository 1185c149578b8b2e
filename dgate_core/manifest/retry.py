"""Plans some images of a run once more, beside the plan that stands."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dgate_core.manifest.item import BatchKey
from dgate_core.manifest.plan_files import (
    PlanWriter,
    name_part_prefix,
    read_shard_index,
    write_shard_index,
)
from dgate_core.manifest.shards import ShardInfo, ShardNumbering, ShardOptions
from dgate_core.storage import Storage

_KEY_COLUMNS = [field.name for field in fields(BatchKey)]


def plan_retry(storage: Storage, rows: pa.Table, options: ShardOptions | None = None) -> list[ShardInfo]:
    """Write shards, numbered after those that are there, for images to make again; their index is written last.

    Args:
        storage: Rooted at the run's folder.
        rows: Of the plan, as `read_plan_rows` gives them. Rows without a row_id (wrong in the manifest itself) and
            duplicates (made where the first one is) are left out.
        options: How large shards shall be.

    Returns:
        The new shards; none when no row can be made.

    Raises:
        RunError: there is no whole plan.
    """
    known = read_shard_index(storage)
    rows = rows.filter(pc.and_(pc.not_equal(rows["row_id"], ""), rows["duplicate_of"].is_null())).sort_by("ordinal")
    if not rows.num_rows:
        return []
    keys, groups = _number_keys(rows)
    costs = {shard.batch_key: shard.estimated_seconds / shard.rows for shard in known}
    attempt = max(shard.attempt for shard in known) + 1
    numbering = ShardNumbering(
        np.bincount(groups).tolist(),
        [costs.get(key, 0.0) for key in keys],
        options or ShardOptions(),
        max(shard.shard for shard in known) + 1,
    )
    table = _set_back(rows, numbering.assign(groups, rows["ordinal"].to_numpy()))
    storage.delete_many([item.key for item in storage.list_objects(name_part_prefix(attempt))])
    with tempfile.TemporaryDirectory(prefix="dgate-retry-") as folder:
        writer = PlanWriter(storage, table.schema, Path(folder), attempt)
        for batch in table.to_batches():
            writer.write(batch)
        writer.close()
    shards = list(numbering.list_shards(keys, attempt))
    write_shard_index(storage, shards, attempt)
    return shards


def _number_keys(rows: pa.Table) -> tuple[list[BatchKey], npt.NDArray[np.int64]]:
    """Distinct batch keys, and the number of its key for each row."""
    numbers: dict[tuple[Any, ...], int] = {}
    columns = [rows[name].to_pylist() for name in _KEY_COLUMNS]
    groups = [numbers.setdefault(values, len(numbers)) for values in zip(*columns, strict=True)]
    return [BatchKey(**dict(zip(_KEY_COLUMNS, values, strict=True))) for values in numbers], np.array(groups, np.int64)


def _set_back(rows: pa.Table, shards: npt.NDArray[np.int64]) -> pa.Table:
    """Rows as if they had never been tried, a shard's rows together."""
    new = {
        "status": pa.array(["planned"] * rows.num_rows),
        "error_code": pa.nulls(rows.num_rows, pa.string()),
        "error_message": pa.nulls(rows.num_rows, pa.string()),
        "shard": pa.array(shards, pa.int32()),
    }
    for name, array in new.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), array)
    return rows.sort_by([("shard", "ascending"), ("ordinal", "ascending")])
