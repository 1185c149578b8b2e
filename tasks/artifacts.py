"""What a run shows in Prefect: a progress bar and a table of shards while it works, a page of markdown at its end."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import PrefectException
from prefect.utilities.context import get_task_and_flow_run_ids

from dgate_core.engine.progress import SHARDS_SHOWN, Progress, ProgressReader, ShardTable
from dgate_core.errors import DgateError
from dgate_core.runs.store import RunStore
from reports.collect import collect_run
from reports.markdown import summarise_run
from reports.summary import format_duration, format_rate

logger = logging.getLogger(__name__)

PROGRESS_EVERY_SECONDS = 3.0
TABLE_EVERY_SECONDS = 15.0
UNREACHABLE = (httpx.HTTPError, PrefectException, DgateError)
"""What showing something may fail with; the run goes on without it."""


class RunArtifact:
    """An artifact of the current task, made once and then changed in place.

    Args:
        client: Open.
        kind: `progress`, `table` or `markdown`.
    """

    def __init__(self, client: SyncPrefectClient, kind: str) -> None:
        self._client, self._kind = client, kind
        self._task_run_id, self._flow_run_id = get_task_and_flow_run_ids()
        self._id: UUID | None = None

    def show(self, data: str | float, description: str) -> None:
        """Replaces what it shows."""
        if self._id is not None:
            self._client.update_artifact(self._id, ArtifactUpdate(data=data, description=description))
            return
        made = self._client.create_artifact(
            ArtifactCreate(
                key=f"dgate-{self._kind}",
                type=self._kind,
                data=data,
                description=description,
                task_run_id=self._task_run_id,
                flow_run_id=self._flow_run_id,
            )
        )
        self._id = made.id


@contextmanager
def publish_progress(store: RunStore) -> Iterator[None]:
    """Keeps the artifacts of the current task up to date from a thread, so that a slow API never holds up the work."""
    stop = threading.Event()
    arguments = (_publish_until, store, stop)
    thread = threading.Thread(target=copy_context().run, args=arguments, name="artifacts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10.0)


def publish_summary(store: RunStore, gallery: str) -> None:
    """The run's page of markdown: counts, speed, time by stage, failures by code, and where the gallery is."""
    failures = collect_run(store.storage, max_pictures=0, max_errors=0).failures
    counts = {failure.code: failure.count for failure in failures}
    examples = {failure.code: failure.example for failure in failures}
    text = summarise_run(store.read_run(), counts, gallery, examples)
    try:
        with get_client(sync_client=True) as client:
            RunArtifact(client, "markdown").show(text, f"Run {store.uri}")
    except UNREACHABLE as error:
        logger.warning("the summary could not be shown in Prefect: %s", error)


def _publish_until(store: RunStore, stop: threading.Event) -> None:
    """Again and again, and once more after the stop."""
    with get_client(sync_client=True) as client:
        publisher = _Publisher(store, client)
        while not stop.wait(PROGRESS_EVERY_SECONDS):
            publisher.publish()
        publisher.publish(last=True)


class _Publisher:
    def __init__(self, store: RunStore, client: SyncPrefectClient) -> None:
        self._progress, self._shards = ProgressReader(store), ShardTable(store)
        self._bar, self._table = RunArtifact(client, "progress"), RunArtifact(client, "table")
        self._table_due = 0.0

    def publish(self, *, last: bool = False) -> None:
        try:
            progress = self._progress.read()
            self._bar.show(progress.percent, describe_progress(progress))
            if last or time.monotonic() >= self._table_due:
                rows = self._shards.read()
                text = f"Shards, the first {SHARDS_SHOWN}" if len(rows) == SHARDS_SHOWN else "Shards"
                self._table.show(json.dumps(rows), text)
                self._table_due = time.monotonic() + TABLE_EVERY_SECONDS
        except UNREACHABLE as error:
            logger.warning("progress could not be shown in Prefect just now: %s", error)


def describe_progress(progress: Progress) -> str:
    """One line: images, speed, failures, lanes, time left."""
    parts = [f"{progress.done:,}/{progress.total:,} images"]
    if progress.rate:
        parts.append(f"{format_rate(progress.rate)} pictures/s")
    parts += [f"{progress.failed:,} failed", f"{progress.lanes} lanes at work"]
    if progress.seconds_left:
        parts.append(f"about {format_duration(progress.seconds_left)} left")
    return ", ".join(parts)
