"""Lanes that run elsewhere: they are started by somebody's scheduler, looked after, and replaced when they are lost.

The store decides when the work is done. What the scheduler says of a lane is a hint: claims keep two lanes apart even
when one that was given up turns out to be alive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from dgate_core.engine.lane import LaneOptions
from dgate_core.engine.progress import ProgressReader
from dgate_core.engine.reports import LANES_PREFIX, LaneReport, name_report, read_reports
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import RunError
from dgate_core.manifest.plan_files import read_shard_index
from dgate_core.runs import layout
from dgate_core.runs.claims import read_claim
from dgate_core.runs.store import RunStore

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
STOP_WITHIN_SECONDS = 120.0
SHORTEST_SILENCE_SECONDS = 30.0
BEGIN_WITHIN_SECONDS = 900.0
"""A worker may have to start a machine, pull an image or import torch on a crowded one before its lane's first word."""
MAX_LOSSES_WITHOUT_PROGRESS = 5

LaneStatus = Literal["waiting", "running", "refused", "ended"]
"""Not begun; at work; ended by a mistake that starting again would not mend; ended for any other reason."""


@dataclass(frozen=True, slots=True)
class LaneRun:
    """The latest run of a lane, as the scheduler tells it."""

    lane: str
    """Its name."""
    status: LaneStatus
    """See there."""
    message: str = ""
    """Why it ended."""

    @property
    def is_alive(self) -> bool:
        """Whether it works, or will."""
        return self.status in {"waiting", "running"}


class LaneRuns(Protocol):
    """A scheduler that runs lanes on other machines."""

    def look(self) -> dict[str, LaneRun] | None:
        """The latest run of every lane by name; None while the scheduler does not answer."""

    def submit(self, options: LaneOptions) -> None:
        """Asks for a new run of a lane."""

    def cancel(self, lane: str) -> None:
        """Asks a lane to stop after the batch in hand; one that has not begun never begins."""


@dataclass(slots=True)
class _Watch:
    """What is known of one lane."""

    options: LaneOptions
    losses: int = 0
    done_at_loss: int = -1
    told_at: float = 0.0
    changed: float = field(default_factory=time.monotonic)
    has_spoken: bool = False

    def await_first_word(self, report: LaneReport | None) -> None:
        """It does not run yet: silence counts from now, and what its last run said does not."""
        self.told_at = report.updated_at if report else 0.0
        self.changed, self.has_spoken = time.monotonic(), False

    def listen(self, report: LaneReport | None) -> None:
        """Notes a report that is new."""
        if report is not None and report.updated_at != self.told_at:
            self.told_at, self.changed, self.has_spoken = report.updated_at, time.monotonic(), True


class Reconciler:
    """Brings a run's shards to the end with lanes that come and go.

    Args:
        store: The run, planned.
        lanes: The lanes wanted.
        runs: Who runs them.
        stop: Ends the work early.
    """

    def __init__(self, store: RunStore, lanes: Sequence[LaneOptions], runs: LaneRuns, stop: StopSignal) -> None:
        self.store, self.runs, self.stop = store, runs, stop
        self._lanes = {options.name: _Watch(options) for options in lanes}
        self._left = [shard.shard for shard in read_shard_index(store.storage)]
        self._progress = ProgressReader(store)

    def begin(self) -> int:
        """Submits every lane that is not alive already, say from a driver that was killed; returns how many."""
        alive = {name for name, run in (self.runs.look() or {}).items() if run.is_alive}
        keys = [item.key for item in self.store.storage.list_objects(LANES_PREFIX)]
        kept = {name_report(name) for name in alive}
        self.store.storage.delete_many([key for key in keys if key not in kept])
        missing = [watch.options for name, watch in self._lanes.items() if name not in alive]
        for options in missing if self.has_work() else []:
            self.runs.submit(options)
        return len(missing)

    def work(self) -> list[LaneReport]:
        """Replaces lost lanes until every shard is committed or the stop is set.

        Raises:
            RunError: a lane was refused, or lanes are lost again and again without any progress.
        """
        try:
            while self.has_work() and not self.stop.is_set():
                self._look_after(self.runs.look())
                self.stop.wait(POLL_SECONDS)
        finally:
            self._end_lanes()
        return read_reports(self.store.storage)

    def has_work(self) -> bool:
        """Whether a shard is not committed yet; each committed one is looked at once."""
        while self._left and self.store.storage.exists(layout.name_commit(self._left[-1])):
            self._left.pop()
        return bool(self._left)

    def _look_after(self, runs: dict[str, LaneRun] | None) -> None:
        if runs is None:
            return  # no answer is no verdict: the lanes work on, and the store tells
        done = self._progress.read().done
        reports = {report.lane: report for report in read_reports(self.store.storage)}
        for name, watch in self._lanes.items():
            run = runs.get(name, LaneRun(name, "ended", "its run is gone"))
            if run.status == "refused":
                raise RunError(f"{name} was refused: {run.message}", "", "mend that, then give the same command again")
            report = reports.get(name)
            if run.status != "running":
                watch.await_first_word(report)
            elif self._is_silent(watch, report):
                run = LaneRun(name, "ended", "no sign of life for longer than its lease")
                self.runs.cancel(name)
            if run.status == "ended" and self.has_work():
                self._replace(watch, run, done)

    def _is_silent(self, watch: _Watch, report: LaneReport | None) -> bool:
        """A lane in a long batch says nothing for a while, but the claim on its shard is renewed."""
        watch.listen(report)
        patience = max(watch.options.lease_seconds, SHORTEST_SILENCE_SECONDS)
        if time.monotonic() - watch.changed < (patience if watch.has_spoken else BEGIN_WITHIN_SECONDS):
            return False
        shard = report.shard if report else None
        claim = None if shard is None else read_claim(self.store.storage, layout.name_claim_prefix(shard))
        return claim is None or claim.holder.lane != watch.options.name or not claim.is_held()

    def _replace(self, watch: _Watch, run: LaneRun, done: int) -> None:
        watch.losses = watch.losses + 1 if done == watch.done_at_loss else 1
        watch.done_at_loss = done
        if watch.losses > MAX_LOSSES_WITHOUT_PROGRESS:
            raise RunError(
                f"{run.lane} was lost {watch.losses} times in a row and no row was made in between: {run.message}",
                "lanes that live",
                "look at the log of its last run; the rows made so far are kept",
            )
        logger.warning("%s is lost (%s) and is submitted again", run.lane, run.message or "no reason given")
        self.runs.submit(watch.options)

    def _end_lanes(self) -> None:
        """Lanes that never began are called off; those at work are waited for when the run was stopped early."""
        deadline = time.monotonic() + STOP_WITHIN_SECONDS
        cancelled: set[str] = set()
        while True:
            runs = self.runs.look() or {}
            alive = {name for name, run in runs.items() if run.is_alive and name in self._lanes}
            unwanted = alive if self.has_work() else {name for name in alive if runs[name].status == "waiting"}
            for name in unwanted - cancelled:
                self.runs.cancel(name)
            cancelled |= unwanted
            if not alive or not self.has_work() or time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)
