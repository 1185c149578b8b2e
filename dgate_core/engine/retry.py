"""Makes rows of a finished run again, by their status, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.parquet as pq

from dgate_core.errors import RunError, UsageError
from dgate_core.manifest.plan_files import read_plan_rows
from dgate_core.manifest.retry import plan_retry
from dgate_core.manifest.shards import ShardOptions
from dgate_core.runs import layout
from dgate_core.runs.store import RunStore

STATUSES = ("error", "ok", "skipped")


def plan_rows_again(store: RunStore, statuses: Sequence[str], options: ShardOptions) -> int:
    """Adds shards for the rows that have one of the statuses; the lanes then make them as any others.

    Rows that the manifest's checks refused cannot be made by trying again and are left out.

    Returns:
        Rows that will be made.

    Raises:
        UsageError: no such status.
        RunError: the run has no results yet.
    """
    for status in statuses:
        if status not in STATUSES:
            raise UsageError(f"--where {status}", f"one of {', '.join(STATUSES)}", "`dgate runs show` counts them")
    if not store.storage.exists(layout.RESULTS_FILE):
        raise RunError(
            f"{store.uri} has no results yet", "a run that came to its end", "give the command that made it again"
        )
    ordinals = _find_ordinals(store, set(statuses))
    if not ordinals:
        return 0
    shards = plan_retry(store.storage, read_plan_rows(store.storage, ordinals), options)
    if shards:
        store.update_run(attempt=max(shard.attempt for shard in shards), state="planned")
    return sum(shard.rows for shard in shards)


def _find_ordinals(store: RunStore, statuses: set[str]) -> list[int]:
    """Results stand in the order of the plan, so a row's number is its ordinal."""
    with store.storage.open_read(layout.RESULTS_FILE) as stream:
        found = pq.ParquetFile(stream).read(["status"]).column(0).to_pylist()
    return [ordinal for ordinal, status in enumerate(found) if status in statuses]
