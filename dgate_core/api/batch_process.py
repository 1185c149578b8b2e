"""A batch as a process: `python -m dgate_core.api.batch_process MANIFEST OUT SETTINGS_JSON PARENT_PID`."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time

from dgate_core.api.batch_runner import BatchOrder
from dgate_core.config import build_settings
from dgate_core.engine.begin import open_run
from dgate_core.engine.local import execute_lanes, finish_run, hold_run
from dgate_core.engine.stopping import StopSignal, listen_for_signals
from dgate_core.errors import DgateError, RunError
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage

NICENESS = 10
"""Pictures that somebody waits for go first."""
WAIT_SECONDS = 120.0
"""For a process of a killed server that has not noticed yet."""


def main(arguments: list[str]) -> int:
    """0 when run.json says what came of it; 1 with a line on stdout when the run was refused."""
    manifest, out, settings, parent = arguments
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    os.nice(NICENESS)
    stop = StopSignal()
    threading.Thread(target=stop_with_parent, args=(int(parent), stop), daemon=True).start()
    try:
        with listen_for_signals(stop):
            carry_out(BatchOrder(manifest, out, build_settings(RunSettings, json.loads(settings))), stop)
    except DgateError as error:
        print("; ".join(line.strip() for line in str(error).splitlines()), flush=True)
        return 1
    return 0


def carry_out(order: BatchOrder, stop: StopSignal) -> None:
    """Plans or goes on, makes what is left, writes results; a stop leaves the rest for another time.

    Raises:
        DgateError: the manifest or the run is refused.
    """
    store = RunStore(open_storage(order.out))
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with hold_run(store, order.settings.lease_seconds):
                open_run([order.manifest], order.out, order.settings)
                execute_lanes(store, order.settings, stop, lambda _: None)
                finish_run(store)
                return
        except RunError:
            if (store.exists() and store.read_run()["state"] == "failed") or time.monotonic() > deadline:
                raise
            if stop.wait(0.5):
                return


def stop_with_parent(parent: int, stop: StopSignal) -> None:
    """A server that was killed cannot stop its batches; what is made is kept."""
    while os.getppid() == parent:
        time.sleep(0.5)
    stop.set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
