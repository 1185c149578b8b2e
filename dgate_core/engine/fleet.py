"""The lanes of this machine: one in a thread, or several processes, one per GPU; dead ones are started again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import IO

from dgate_core.engine.begin import count_lanes
from dgate_core.engine.generate import GenerateOptions
from dgate_core.engine.lane import Lane, LaneOptions
from dgate_core.engine.lane_process import EXIT_REFUSED, EXIT_STOPPED, json_to_error, options_to_json
from dgate_core.engine.reports import LANES_PREFIX, LaneReport, name_report, read_reports
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import DgateError, RunError
from dgate_core.models.devices import list_gpus
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore

logger = logging.getLogger(__name__)

LANE_MODULE = "dgate_core.engine.lane_process"
POLL_SECONDS = 0.3
MAX_DEATHS_WITHOUT_PROGRESS = 5
"""A lane that dies more often in a row, without a row made in between, is given up."""
STOP_WITHIN_SECONDS = 30.0
"""For the batch in hand of the other lanes, when one was refused."""

Listener = Callable[[Sequence[LaneReport]], None]
"""Called a few times a second with the lanes' reports."""


def list_lane_options(settings: RunSettings, attempt: int | None = None) -> list[LaneOptions]:
    """One `LaneOptions` per lane; CPU lanes share the cores.

    Args:
        settings: How many lanes, and on which device.
        attempt: See `LaneOptions`.
    """
    count = count_lanes(settings)
    on_gpu = bool(list_gpus()) and settings.device in {"auto", "cuda"}
    threads = None if on_gpu or count == 1 else max(1, (os.cpu_count() or 1) // count)
    common = LaneOptions(
        device=settings.device,
        threads=threads,
        lease_seconds=settings.lease_seconds,
        attempt=attempt,
        generate=GenerateOptions(batch_size=settings.batch_size),
        score=settings.score,
    )
    return [replace(common, name=f"lane-{number}", number=number) for number in range(count)]


def run_lanes(store: RunStore, lanes: Sequence[LaneOptions], stop: StopSignal, listener: Listener) -> list[LaneReport]:
    """Runs the lanes until every shard is committed or the stop is set.

    Raises:
        DgateError: a lane was refused (disk full, wrong checkpoint), or every lane keeps dying without making a row.
    """
    store.storage.delete_many([item.key for item in store.storage.list_objects(LANES_PREFIX)])
    if len(lanes) == 1:
        _run_in_thread(store, lanes[0], stop, listener)
    else:
        Fleet(store, lanes, stop).run(listener)
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
    """A lane and the process that is it now."""

    options: LaneOptions
    process: subprocess.Popen[bytes] | None = None
    said: IO[bytes] | None = None
    """Its stdout, a file: what libraries print must not end up on the driver's."""
    done: bool = False
    deaths: int = 0
    """Lives in a row that ended without a row made."""

    def read_refusal(self) -> DgateError:
        """The error with which it ended."""
        assert self.said is not None
        self.said.seek(0)
        return json_to_error(self.said.read().decode().splitlines()[-1])


class Fleet:
    """Lane processes and what becomes of them."""

    def __init__(self, store: RunStore, lanes: Sequence[LaneOptions], stop: StopSignal) -> None:
        self.store, self.stop = store, stop
        self.lanes = [_LaneProcess(options) for options in lanes]

    def run(self, listener: Listener) -> None:
        """Starts the lanes and looks after them to the end; none is left behind."""
        told = False
        self.stop.before_exit = lambda: self._signal(signal.SIGKILL)
        try:
            for lane in self.lanes:
                self._start(lane)
            while not all(lane.done for lane in self.lanes):
                listener(read_reports(self.store.storage))
                if self.stop.is_set() and not told:
                    self._signal(signal.SIGTERM)
                    told = True
                for lane in self.lanes:
                    self._look_after(lane)
                time.sleep(POLL_SECONDS)
        finally:
            self._end()

    def _start(self, lane: _LaneProcess) -> None:
        # Without the report of its last life, what it tells is of this one.
        self.store.storage.delete(name_report(lane.options.name))
        gpus = list_gpus()
        environment = dict(os.environ)
        if gpus and lane.options.device in {"auto", "cuda"}:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[lane.options.number % len(gpus)]
        if lane.options.threads is not None:
            environment["OMP_NUM_THREADS"] = str(lane.options.threads)
        command = [sys.executable, "-m", LANE_MODULE, self.store.uri, options_to_json(lane.options), str(os.getpid())]
        if lane.said is not None:
            lane.said.close()
        lane.said = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        # A session of its own: Ctrl-C in the terminal reaches only this process, which tells the lanes once.
        lane.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=lane.said, start_new_session=True
        )

    def _look_after(self, lane: _LaneProcess) -> None:
        code = None if lane.process is None else lane.process.poll()
        if lane.done or code is None:
            return
        if code in {0, EXIT_STOPPED} or self.stop.is_set():
            lane.done = True
        elif code == EXIT_REFUSED:
            raise lane.read_refusal()
        else:
            lane.deaths = 1 if self._has_made_rows(lane) else lane.deaths + 1
            if lane.deaths > MAX_DEATHS_WITHOUT_PROGRESS:
                self._give_up(lane, code)
            else:
                logger.warning("%s died (%s) and is started again", lane.options.name, describe_exit(code))
                self._start(lane)

    def _has_made_rows(self, lane: _LaneProcess) -> bool:
        reports = [report for report in read_reports(self.store.storage) if report.lane == lane.options.name]
        return any(report.ok + report.failed for report in reports)

    def _give_up(self, lane: _LaneProcess, code: int) -> None:
        """One lane (a broken GPU, say) does not end the run; the last one does."""
        lane.done = True
        died = f"{lane.options.name} died {lane.deaths} times in a row ({describe_exit(code)}) without making a row"
        if all(other.done for other in self.lanes):
            raise RunError(died, "lanes that live", "look at the messages above; the rows made so far are kept")
        logger.warning("%s and is given up; the other lanes go on", died)

    def _end(self) -> None:
        """After an error the lanes may finish the batch in hand, like everybody who is asked to stop."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN_SECONDS
        for process in self._list_alive():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self._signal(signal.SIGKILL)
        for lane in self.lanes:
            if lane.process is not None:
                lane.process.wait()
            if lane.said is not None:
                lane.said.close()

    def _list_alive(self) -> list[subprocess.Popen[bytes]]:
        processes = [lane.process for lane in self.lanes if lane.process is not None]
        return [process for process in processes if process.poll() is None]

    def _signal(self, number: int) -> None:
        for process in self._list_alive():
            process.send_signal(number)


def describe_exit(code: int) -> str:
    """`SIGKILL` or `exit 1`."""
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
