"""A whole run on this machine, without Prefect: open → lanes → finish."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from dgate_core.engine.batch_output import write_batch_output
from dgate_core.engine.finish import write_results
from dgate_core.engine.fleet import Listener, list_lane_options, run_lanes
from dgate_core.engine.reports import LaneReport, read_reports
from dgate_core.engine.stopping import StopSignal, listen_for_signals
from dgate_core.errors import ObjectNotFoundError, RunError, StorageError
from dgate_core.manifest.plan_files import read_shard_index
from dgate_core.runs import layout
from dgate_core.runs.claims import identify_holder, read_claim, take_claim
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunState, RunStore

logger = logging.getLogger(__name__)


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


def execute_lanes(
    store: RunStore, settings: RunSettings, stop: StopSignal, listener: Listener, attempt: int | None = None
) -> dict[str, Any]:
    """Runs the lanes of this machine and keeps run.json's state true.

    Args:
        store: The run, planned.
        settings: Lanes, device, batch size; what determines pixels stands in run.json.
        stop: Set by SIGINT and SIGTERM, or by the caller.
        listener: Shown the lanes' reports.
        attempt: Only the shards of this one; None works on all that are left.

    Returns:
        run.json after the lanes.
    """
    begin_session(store)
    started = time.time()
    try:
        with listen_for_signals(stop):
            reports = run_lanes(store, list_lane_options(settings, attempt), stop, listener)
    except BaseException as error:
        _note_failure(store, error, time.time() - started)
        raise
    note_lanes(store, reports, time.time() - started)
    return store.update_run(stopped_by=stop.describe())


def begin_session(store: RunStore) -> dict[str, Any]:
    """Sets run.json to running; of a session whose driver was killed, its lanes' last words tell how long it was."""
    run = store.read_run()
    lost = 0.0
    if (began := run.get("session_started_at")) is not None:
        lost = max([began, *(report.updated_at for report in read_reports(store.storage))]) - began
    return store.update_run(
        state="running",
        started_at=run.get("started_at") or time.time(),
        session_started_at=time.time(),
        wall_seconds=run.get("wall_seconds", 0.0) + lost,
        error=None,
    )


def note_lanes(store: RunStore, reports: Sequence[LaneReport], wall_seconds: float) -> dict[str, Any]:
    """Adds a session of lanes to run.json; a resumed run adds up."""
    run = store.read_run()
    return store.update_run(
        session_started_at=None,
        wall_seconds=run.get("wall_seconds", 0.0) + wall_seconds,
        serving=gather_serving(run.get("serving", {}), reports),
        lanes=[{"lane": report.lane, "device": report.device, "state": report.state} for report in reports],
    )


def gather_serving(before: Mapping[str, Any], reports: Sequence[LaneReport]) -> dict[str, list[dict[str, Any]]]:
    """What computed each model, in the order of the first use; several where lanes or sessions differ."""
    gathered = {model: list(each) for model, each in before.items()}
    for report in reports:
        for model, serving in report.serving.items():
            if serving not in gathered.setdefault(model, []):
                gathered[model].append(serving)
    return gathered


def _note_failure(store: RunStore, error: BaseException, wall_seconds: float) -> None:
    """A storage that is full or gone may refuse this too; the caller learns of the first error in any case."""
    try:
        note_lanes(store, read_reports(store.storage), wall_seconds)
        store.update_run(state="failed", error=str(error))
    except StorageError as refusal:
        logger.warning("run.json does not say that the run failed: %s", refusal)


def finish_run(store: RunStore) -> dict[str, Any]:
    """Writes results and the final state; may be called again after a retry."""
    results = write_results(store)
    counts, run = results.counts, store.read_run()
    if not counts["skipped"]:
        # Drafts of killed lanes; while rows are left, somebody may still write.
        store.storage.remove_leftovers("shards", older_than_seconds=0.0)
    wall_seconds = run.get("wall_seconds", 0.0)
    run = store.update_run(
        state=decide_state(counts),
        counts={**run["counts"], **{name: counts.get(name, 0) for name in ("ok", "error", "skipped", "duplicate")}},
        failures=dict(results.failures.most_common()),
        made=results.made,
        pictures_per_second=results.made / wall_seconds if wall_seconds else 0.0,
        seconds=sum_stages(store),
        finished_at=time.time(),
        error=None,
    )
    if run["manifest"]["is_batch_api"]:
        write_batch_output(store, int(run["finished_at"]))
    return run


def decide_state(counts: Counter[str]) -> RunState:
    """Rows that nobody made yet mean that the run was cancelled."""
    if counts["skipped"]:
        return "cancelled"
    return "completed_with_errors" if counts["error"] else "completed"


def sum_stages(store: RunStore) -> dict[str, float]:
    """Seconds by stage over all committed shards, as the lanes that committed them measured."""
    total: Counter[str] = Counter()
    for shard in read_shard_index(store.storage):
        with suppress(ObjectNotFoundError):
            total.update(json.loads(store.storage.read_bytes(layout.name_stats(shard.shard)))["stages"])
    return {name: round(seconds, 3) for name, seconds in sorted(total.items())}
