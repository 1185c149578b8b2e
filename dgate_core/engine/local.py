"""A whole run on this machine, without Prefect: open → lanes → finish."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dgate_core.engine.batch_output import write_batch_output
from dgate_core.engine.finish import write_results
from dgate_core.engine.fleet import Listener, list_lane_options, run_lanes
from dgate_core.engine.reports import LaneReport
from dgate_core.engine.stopping import StopSignal, listen_for_signals
from dgate_core.errors import RunError
from dgate_core.manifest.plan_files import read_shard_index
from dgate_core.runs import layout
from dgate_core.runs.claims import identify_holder, read_claim, take_claim
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunState, RunStore


@contextmanager
def hold_run(store: RunStore, lease_seconds: float) -> Iterator[None]:
    """Only one driver works on a run's folder at a time.

    Raises:
        RunError: somebody else does.
    """
    claim = take_claim(store.storage, layout.RUN_CLAIM_PREFIX, identify_holder("driver"), lease_seconds)
    if claim is None:
        holder = read_claim(store.storage, layout.RUN_CLAIM_PREFIX)
        who = f"process {holder.holder.pid} on {holder.holder.host.partition('/')[0]}" if holder else "another process"
        raise RunError(
            f"{store.uri} is being worked on by {who}",
            "one run on a folder at a time",
            "wait for it, stop it, or give another --out",
        )
    with claim:
        yield


def execute_lanes(store: RunStore, settings: RunSettings, stop: StopSignal, listener: Listener) -> dict[str, Any]:
    """Runs the lanes of this machine and keeps run.json's state true.

    Returns:
        run.json after the lanes.
    """
    started = time.time()
    store.update_run(state="running", started_at=started)
    try:
        with listen_for_signals(stop):
            reports = run_lanes(store, list_lane_options(settings), stop, listener)
    except BaseException as error:
        store.update_run(state="failed", error=str(error))
        raise
    return note_lanes(store, reports, time.time() - started)


def note_lanes(store: RunStore, reports: Sequence[LaneReport], wall_seconds: float) -> dict[str, Any]:
    """Adds the lanes' figures to run.json; a resumed run adds up."""
    run = store.read_run()
    made = sum(report.ok for report in reports)
    work = {
        "wall_seconds": run.get("wall_seconds", 0.0) + wall_seconds,
        "made": run.get("made", 0) + made,
        "lanes": [{"lane": report.lane, "device": report.device, "state": report.state} for report in reports],
    }
    return store.update_run(**work, pictures_per_second=work["made"] / work["wall_seconds"] if work["wall_seconds"] else 0.0)


def finish_run(store: RunStore) -> dict[str, Any]:
    """Writes results and the final state; may be called again after a retry."""
    counts = write_results(store)
    run = store.read_run()
    finished = time.time()
    state = decide_state(counts)
    run = store.update_run(
        state=state,
        counts={**run["counts"], **{name: counts.get(name, 0) for name in ("ok", "error", "skipped", "duplicate")}},
        seconds=sum_stages(store),
        finished_at=finished,
    )
    if run["manifest"]["is_batch_api"]:
        write_batch_output(store, int(finished))
    return run


def decide_state(counts: Counter[str]) -> RunState:
    """Rows that nobody made yet mean that the run was cancelled."""
    if counts["skipped"]:
        return "cancelled"
    return "completed_with_errors" if counts["error"] else "completed"


def sum_stages(store: RunStore) -> dict[str, float]:
    """Seconds by stage over all committed shards."""
    total: Counter[str] = Counter()
    for shard in read_shard_index(store.storage):
        key = layout.name_stats(shard.shard)
        if store.storage.exists(key):
            total.update(json.loads(store.storage.read_bytes(key))["stages"])
    return {name: round(seconds, 3) for name, seconds in sorted(total.items())}
