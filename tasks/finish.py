"""The end of a run: results, gallery, and what is said of it."""

from __future__ import annotations

import logging
from typing import Any

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import Cancelled

from dgate_core.engine.local import finish_run
from dgate_core.engine.outcome import read_outcome
from dgate_core.errors import StorageError
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from reports.gallery import write_gallery
from reports.publish import publish_run
from tasks.artifacts import publish_summary

logger = logging.getLogger(__name__)


def is_transient(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 - the signature is Prefect's
    """Storage may answer the next time; anything else would fail again."""
    return isinstance(state.result(raise_on_failure=False), StorageError)


@task(
    name="finish",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_transient,
    timeout_seconds=6 * 3600,
)
def write_results(run: str) -> str:
    """Joins all shards into results.parquet and settles the run's state.

    Returns:
        The state: completed, completed_with_errors or cancelled.
    """
    return str(finish_run(RunStore(open_storage(run)))["state"])


@task(
    name="gallery",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_transient,
    timeout_seconds=6 * 3600,
)
def show_pictures(run: str) -> str:
    """Writes the gallery and the summary for the UI, and tells the trackers of the run's config.

    Returns:
        The gallery's address.
    """
    store = RunStore(open_storage(run))
    gallery = store.storage.uri_of(write_gallery(store.storage))
    publish_summary(store, gallery)
    if store.read_run()["state"] != "cancelled":
        for outcome in publish_run(run).wait():
            logger.info(outcome.describe(run))
    return gallery


def conclude_run(run: str) -> dict[str, Any] | State[Any]:
    """The run's outcome; of a run that was stopped, a state that says how to go on."""
    outcome = read_outcome(RunStore(open_storage(run)))
    if outcome["state"] == "cancelled":
        return Cancelled(message="stopped; the same parameters go on from here, finished rows are kept")
    return outcome
