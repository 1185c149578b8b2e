"""Makes rows of a run again, by their status, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dgate_core.engine.fleet import Listener
from dgate_core.engine.local import execute_lanes, finish_run
from dgate_core.engine.progress import count_recorded
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import UsageError
from dgate_core.manifest.plan_files import read_plan_rows, read_shard_index
from dgate_core.manifest.retry import plan_retry
from dgate_core.manifest.shards import ShardOptions
from dgate_core.runs import layout
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore

STATUSES = ("error", "ok", "skipped")
OPTIONS = ("lanes", "device", "batch_size", "rows_per_shard", "lease_seconds")
SETTLED = frozenset({"completed", "completed_with_errors", "cancelled"})
"""States in which results.parquet tells all that the shards hold."""


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """What a retry will make."""

    rows: int
    """Images to make."""
    attempt: int | None
    """The attempt whose shards hold them; None for all shards that are not committed."""


def retry_rows(
    store: RunStore, statuses: Sequence[str], settings: RunSettings, stop: StopSignal, listener: Listener
) -> dict[str, Any]:
    """Makes the rows that have one of the statuses again and writes the results anew; the caller holds the run.

    Returns:
        run.json.

    Raises:
        UsageError: no such status.
        DgateError: see `run_lanes`.
    """
    check_statuses(statuses)
    if store.read_run()["state"] not in SETTLED:
        finish_run(store)  # the last driver was killed before it could
    plan = plan_rows_again(store, statuses, ShardOptions(settings.rows_per_shard))
    if not plan.rows:
        return store.read_run()
    execute_lanes(store, settings, stop, listener, plan.attempt)
    return finish_run(store)


def check_options(settings: RunSettings) -> RunSettings:
    """The settings unchanged, if they only say how to run: what determines pixels stands in run.json.

    Raises:
        UsageError: names a setting that does.
    """
    for field in fields(settings):
        if field.name not in OPTIONS and getattr(settings, field.name) != field.default:
            raise UsageError(
                f"--set {field.name} for a run that is there",
                f"one of {', '.join(OPTIONS)}",
                "make another run with `dgate generate` to change what the pictures show",
            )
    return settings


def check_statuses(statuses: Sequence[str]) -> None:
    """Raises UsageError for a status that cannot be tried again."""
    for status in statuses:
        if status not in STATUSES:
            raise UsageError(f"--where {status}", f"one of {', '.join(STATUSES)}", "`dgate runs show` counts them")


def plan_rows_again(store: RunStore, statuses: Sequence[str], options: ShardOptions) -> RetryPlan:
    """Adds shards for the rows that have one of the statuses, or goes on with such a retry that was cut off.

    Rows that the manifest's checks refused cannot be made by trying again and are left out; skipped rows need no new
    shards, for they still wait in their own.
    """
    ordinals = _find_ordinals(store, statuses)
    skipped = len(_find_ordinals(store, ["skipped"])) if "skipped" in statuses else 0
    wanted = sorted({*statuses} - {"skipped"})
    attempt, rows = _find_unfinished(store, wanted)
    if not rows and len(ordinals) > skipped:
        attempt, rows = _plan_attempt(store, wanted, _find_ordinals(store, wanted), options)
    return RetryPlan(rows + skipped, None if skipped else attempt)


def _plan_attempt(store: RunStore, statuses: list[str], ordinals: list[int], options: ShardOptions) -> tuple[int, int]:
    """The attempt's number and how many images it makes."""
    attempt = max(shard.attempt for shard in read_shard_index(store.storage)) + 1
    # Before the plan, so that a retry that is cut off from here on is known for what it is.
    store.update_run(attempt=attempt, retry={"attempt": attempt, "where": statuses})
    shards = plan_retry(store.storage, read_plan_rows(store.storage, ordinals), options)
    return attempt, sum(shard.rows for shard in shards)


def _find_unfinished(store: RunStore, statuses: list[str]) -> tuple[int, int]:
    """The last retry's attempt and the images that it still has to make, if it was asked for the same statuses."""
    last = store.read_run().get("retry")
    if last is None or last["where"] != statuses:
        return 0, 0
    shards = [shard for shard in read_shard_index(store.storage) if shard.attempt == last["attempt"]]
    return last["attempt"], sum(shard.rows - count_recorded(store, shard) for shard in shards)


def _find_ordinals(store: RunStore, statuses: Sequence[str]) -> list[int]:
    """Results stand in the order of the plan, so a row's number is its ordinal."""
    with store.storage.open_read(layout.RESULTS_FILE) as stream:
        found = pq.ParquetFile(stream).read(["status"]).column(0)
    ordinals: list[int] = np.flatnonzero(pc.is_in(found, pa.array(list(statuses), pa.string())).to_numpy()).tolist()
    return ordinals
