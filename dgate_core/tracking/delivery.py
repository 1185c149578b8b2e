"""Takes what has not arrived at one tracker there, batch by batch, with a mark for each."""

from __future__ import annotations

from collections.abc import Iterator

from dgate_core.runs.claims import identify_holder, take_claim
from dgate_core.storage import Storage, open_storage
from dgate_core.tracking.contract import TrackedRun, TrackerError, load_tracker
from dgate_core.tracking.local_json import LocalLog, name_tracker

CLAIM_LEASE_SECONDS = 60.0


def deliver_missing(run_uri: str, tracker: str) -> Iterator[int]:
    """Sends the batches of a run that a tracker lacks, and yields the number of each once it has arrived.

    Raises:
        TrackerError: another process is sending to it just now, or the tracker is not set up.
        MissingExtraError: the tracker's package is not installed.
        Exception: whatever the tracker's own library raises.
    """
    storage = open_storage(run_uri)
    log = LocalLog(storage)
    deliver = load_tracker(tracker)
    claim = take_claim(storage, f"{name_tracker(tracker)}/_claim", identify_holder("tracker"), CLAIM_LEASE_SECONDS)
    if claim is None:
        raise TrackerError(f"another process is sending to {tracker}", "one at a time", "wait for it")
    with claim:
        batches = [log.read_batch(number) for number in log.list_missing(tracker)]
        if not batches:
            return
        for number in deliver(TrackedRun(storage, log.read_id(), name_run(storage)), batches):
            log.mark_arrived(tracker, [number])
            yield number


def name_run(storage: Storage) -> str:
    """The last part of the run's address."""
    return storage.uri.rstrip("/").rpartition("/")[2]
