"""Lanes as runs of the deployment `generate_lane`: one flow run per lane, never one per shard or row."""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any, cast

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelling

from dgate_core.config import build_settings
from dgate_core.engine.fleet import list_lane_options
from dgate_core.engine.lane import LaneOptions
from dgate_core.engine.local import begin_session, note_lanes
from dgate_core.engine.reconcile import LaneRun, LaneStatus, Reconciler
from dgate_core.engine.stopping import StopSignal, listen_for_signals
from dgate_core.errors import RunError
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from tasks.artifacts import publish_progress

logger = logging.getLogger(__name__)

POOL = "gpu"
DEPLOYMENT = "generate_lane/generate_lane"
PAGE = 200
WARN_EVERY_SECONDS = 60.0
HOW_TO_DEPLOY = (
    "start all of it here with `dgate up` and set PREFECT_API_URL as it says, "
    f"or on your server: prefect work-pool create {POOL} --type process; prefect deploy --all"
)
HOW_TO_WORK = f"start one with `dgate up`, or: prefect worker start --pool {POOL} --limit 1"


@task(name="submit lanes", cache_policy=NO_CACHE, persist_result=False)
def submit_lanes(run: str, settings: dict[str, Any]) -> int:
    """Submits a flow run for every lane that is not at work already.

    Returns:
        How many were submitted.
    """
    store = RunStore(open_storage(run))
    with get_client(sync_client=True) as client:
        lanes = list_lane_options(build_settings(RunSettings, settings))
        begin_session(store)
        return Reconciler(store, lanes, PoolLanes(client, store), StopSignal()).begin()


@task(name="reconcile lanes", cache_policy=NO_CACHE, persist_result=False)
def reconcile_lanes(run: str, settings: dict[str, Any]) -> None:
    """Submits lost lanes again until every shard is committed or a signal stops the run."""
    store, stop, started = RunStore(open_storage(run)), StopSignal(), time.time()
    with get_client(sync_client=True) as client, publish_progress(store), listen_for_signals(stop):
        lanes = list_lane_options(build_settings(RunSettings, settings))
        try:
            reports = Reconciler(store, lanes, PoolLanes(client, store), stop).work()
        except RunError as error:
            store.update_run(state="failed", error=str(error))
            raise
    note_lanes(store, reports, time.time() - started)
    store.update_run(state="cancelled" if stop.is_set() else "running", stopped_by=stop.describe())


def count_workers() -> int:
    """Workers that poll the pool now; each works as one lane.

    Raises:
        RunError: there is no such pool.
    """
    with get_client(sync_client=True) as client:
        return len(list_workers(client))


def list_workers(client: SyncPrefectClient) -> list[str]:
    """Names of the workers that poll the pool now.

    Raises:
        RunError: there is no such pool.
    """
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound as error:
        raise RunError(f"the Prefect server has no work pool {POOL!r}", f"the pool {POOL!r}", HOW_TO_DEPLOY) from error
    return [worker.name for worker in client.read_workers_for_work_pool(POOL) if worker.status == WorkerStatus.ONLINE]


class PoolLanes:
    """Lane runs of one run's folder on the pool; see `LaneRuns`.

    Args:
        client: Of the server that has the pool.
        store: The run.
    """

    def __init__(self, client: SyncPrefectClient, store: RunStore) -> None:
        self._client, self._store = client, store
        self._tag = f"dgate-run:{hashlib.sha256(store.uri.encode()).hexdigest()[:12]}"
        self._latest: dict[str, FlowRun] = {}
        self._attempts: dict[str, int] = {}
        self._warn_at = 0.0

    def look(self) -> dict[str, LaneRun] | None:
        """One query for all lanes, paged; a warning when nobody polls the pool."""
        try:
            runs = self._read_runs()
            self._warn_without_workers(runs)
        except (httpx.HTTPError, PrefectException) as error:
            logger.warning("the Prefect server does not answer just now: %s", error)
            return None
        for run in sorted(runs, key=read_attempt):
            self._latest[run.parameters["lane"]] = run
            self._attempts[run.parameters["lane"]] = read_attempt(run)
        return {lane: describe_lane_run(lane, run) for lane, run in self._latest.items()}

    def submit(self, options: LaneOptions) -> None:
        """Asks for the lane's next attempt; the same attempt asked for twice is one run.

        Raises:
            RunError: the deployment does not exist.
        """
        attempt = self._attempts.get(options.name, 0) + 1
        try:
            submitted = run_deployment(
                DEPLOYMENT,
                parameters=lane_to_parameters(self._store, options),
                flow_run_name=f"{options.name}-{attempt}",
                timeout=0,
                tags=["dgate", self._tag],
                idempotency_key=f"{self._tag}:{options.name}:{attempt}",
            )
            self._latest[options.name] = cast(FlowRun, submitted)
        except ObjectNotFound as error:
            raise RunError(
                f"the Prefect server has no deployment {DEPLOYMENT}", "it deployed", HOW_TO_DEPLOY
            ) from error
        except (httpx.HTTPError, PrefectException) as error:
            logger.warning("%s could not be submitted just now: %s", options.name, error)

    def cancel(self, lane: str) -> None:
        """A lane at work gets a SIGTERM from its worker; one that has not begun never begins."""
        try:
            self._client.set_flow_run_state(self._latest[lane].id, Cancelling())
        except (httpx.HTTPError, PrefectException) as error:
            logger.warning("%s could not be cancelled just now: %s", lane, error)

    def _read_runs(self) -> list[FlowRun]:
        wanted = FlowRunFilter(tags=FlowRunFilterTags(all_=[self._tag]))
        runs: list[FlowRun] = []
        while True:
            page = self._client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=len(runs))
            runs += page
            if len(page) < PAGE:
                return runs

    def _warn_without_workers(self, runs: list[FlowRun]) -> None:
        waiting = any(run.state is not None and run.state.is_scheduled() for run in runs)
        if not waiting or time.monotonic() < self._warn_at:
            return
        self._warn_at = time.monotonic() + WARN_EVERY_SECONDS
        if not list_workers(self._client):
            logger.warning("lanes wait, for no worker polls the pool %r: %s", POOL, HOW_TO_WORK)


def lane_to_parameters(store: RunStore, options: LaneOptions) -> dict[str, Any]:
    """The parameters of the flow `generate_lane`."""
    return {
        "run": store.uri,
        "lane": options.name,
        "number": options.number,
        "device": options.device,
        "batch_size": options.generate.batch_size,
        "lease_seconds": options.lease_seconds,
    }


def read_attempt(run: FlowRun) -> int:
    """The last part of the idempotency key."""
    return int((run.idempotency_key or ":0").rpartition(":")[2])


def describe_lane_run(lane: str, run: FlowRun) -> LaneRun:
    """Prefect's state as the reconciler sees it."""
    state = run.state
    if state is None:
        return LaneRun(lane, "waiting")
    status: LaneStatus = "ended"
    if state.type == StateType.SCHEDULED:
        status = "waiting"
    elif not state.is_final():
        status = "running"  # pending, too: a worker that died right then would leave it so for ever
    elif state.name == "Refused":
        status = "refused"
    return LaneRun(lane, status, f"{state.name}: {state.message}" if state.message else state.name or "")
