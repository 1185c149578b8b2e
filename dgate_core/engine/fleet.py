"""The lanes of this machine: one in a thread, or several processes, one per GPU; dead ones are started again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field

from dgate_core.engine.begin import count_lanes
from dgate_core.engine.generate import GenerateOptions
from dgate_core.engine.lane import Lane, LaneOptions
from dgate_core.engine.lane_process import EXIT_REFUSED, EXIT_STOPPED, options_to_json
from dgate_core.engine.reports import LANES_PREFIX, LaneReport, read_reports
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import RunError
from dgate_core.models.devices import list_gpus
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.3
MAX_DEATHS_WITHOUT_PROGRESS = 5

Listener = Callable[[Sequence[LaneReport]], None]
"""Called a few times a second with the lanes' reports."""


def list_lane_options(settings: RunSettings) -> list[LaneOptions]:
    """One `LaneOptions` per lane; CPU lanes share the cores."""
    count = count_lanes(settings)
    on_gpu = bool(list_gpus()) and settings.device in {"auto", "cuda"}
    threads = None if on_gpu or count == 1 else max(1, (os.cpu_count() or 1) // count)
    generate = GenerateOptions(batch_size=settings.batch_size)
    return [
        LaneOptions(f"lane-{number}", number, settings.device, threads, settings.lease_seconds, generate)
        for number in range(count)
    ]


def run_lanes(store: RunStore, lanes: Sequence[LaneOptions], stop: StopSignal, listener: Listener) -> list[LaneReport]:
    """Runs the lanes until every shard is committed or the stop is set.

    Raises:
        DgateError: a lane was refused (disk full, wrong checkpoint), or lanes keep dying without any progress.
    """
    store.storage.delete_many([item.key for item in store.storage.list_objects(LANES_PREFIX)])
    if len(lanes) == 1:
        _run_in_thread(store, lanes[0], stop, listener)
    else:
        _Fleet(store, lanes, stop).run(listener)
    reports = read_reports(store.storage)
    listener(reports)
    return reports


def _run_in_thread(store: RunStore, options: LaneOptions, stop: StopSignal, listener: Listener) -> None:
    """The main thread stays free for signals and for showing progress."""
    failure: list[BaseException] = []
    lane = Lane(store, options, stop)

    def work() -> None:
        try:
            lane.work()
        except BaseException as error:
            failure.append(error)

    # The caller's context comes along: whoever collects logs by it (a flow run) gets the lane's too.
    thread = threading.Thread(target=copy_context().run, args=(work,), name=options.name)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        listener([lane.report])
    if failure:
        raise failure[0]


@dataclass(slots=True)
class _LaneProcess:
    options: LaneOptions
    process: subprocess.Popen[bytes]
    done: bool = False
    deaths: int = 0
    rows_at_death: int = field(default=-1)


class _Fleet:
    """Lane processes and what becomes of them."""

    def __init__(self, store: RunStore, lanes: Sequence[LaneOptions], stop: StopSignal) -> None:
        self.store, self.stop = store, stop
        self.lanes = [_LaneProcess(options, self._start(options)) for options in lanes]

    def run(self, listener: Listener) -> None:
        told = False
        try:
            while not all(lane.done for lane in self.lanes):
                reports = read_reports(self.store.storage)
                listener(reports)
                if self.stop.is_set() and not told:
                    self._signal(signal.SIGTERM)
                    told = True
                for lane in self.lanes:
                    self._look_after(lane, sum(report.ok + report.failed for report in reports))
                time.sleep(POLL_SECONDS)
        finally:
            # Reached by an error, or by the second Ctrl-C on its way out: nothing may stay behind.
            self._signal(signal.SIGKILL)

    def _start(self, options: LaneOptions) -> subprocess.Popen[bytes]:
        gpus = list_gpus()
        environment = dict(os.environ)
        if gpus and options.device in {"auto", "cuda"}:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[options.number % len(gpus)]
        if options.threads is not None:
            environment["OMP_NUM_THREADS"] = str(options.threads)
        command = [sys.executable, "-m", "dgate_core.engine.lane_process", self.store.uri, options_to_json(options), str(os.getpid())]
        # A session of its own: Ctrl-C in the terminal reaches only this process, which tells the lanes once.
        return subprocess.Popen(command, env=environment, start_new_session=True)

    def _look_after(self, lane: _LaneProcess, rows: int) -> None:
        code = lane.process.poll()
        if lane.done or code is None:
            return
        if code in {0, EXIT_STOPPED} or self.stop.is_set():
            lane.done = True
            return
        if code == EXIT_REFUSED:
            error = next((r.error for r in read_reports(self.store.storage) if r.lane == lane.options.name), "")
            raise RunError(error or f"{lane.options.name} was refused", "", "mend that, then give the same command again")
        lane.deaths = lane.deaths + 1 if rows == lane.rows_at_death else 1
        lane.rows_at_death = rows
        if lane.deaths > MAX_DEATHS_WITHOUT_PROGRESS:
            raise RunError(
                f"{lane.options.name} died {lane.deaths} times in a row (exit {code}) and no row was made in between",
                "lanes that live",
                "look at the messages above; the rows made so far are kept",
            )
        logger.warning("%s died (exit %s) and is started again", lane.options.name, code)
        lane.process = self._start(lane.options)

    def _signal(self, number: int) -> None:
        for lane in self.lanes:
            if lane.process.poll() is None:
                lane.process.send_signal(number)
