"""One lane as a process of its own: `python -m dgate_core.engine.lane_process RUN OPTIONS_JSON`."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dgate_core.engine.generate import GenerateOptions
from dgate_core.engine.lane import Lane, LaneOptions
from dgate_core.engine.stopping import StopSignal, listen_for_signals
from dgate_core.errors import DgateError, ModelError, RunError, RunMismatchError, StorageError
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage

EXIT_STOPPED = 130
EXIT_REFUSED = 3
"""A DgateError, told on stdout: starting again would not help."""


def options_to_json(options: LaneOptions) -> str:
    """For the command line of the process."""
    return json.dumps(asdict(options))


def options_from_dict(data: Mapping[str, Any]) -> LaneOptions:
    """The inverse of `asdict`."""
    nested = {"generate": GenerateOptions(**data["generate"]), "score": tuple(data["score"])}
    return LaneOptions(**{**data, **nested})


def error_to_json(error: DgateError) -> str:
    """One line for the process that started the lane."""
    return json.dumps([error.code, error.got, error.expected, error.next_step])


def json_to_error(line: str) -> DgateError:
    """The inverse; kinds of errors that only other parts of D-Gate raise become a RunError."""
    code, *words = json.loads(line)
    kinds = {kind.code: kind for kind in (StorageError, ModelError, RunMismatchError)}
    return kinds.get(code, RunError)(*words)


def main(arguments: list[str]) -> int:
    """Runs the lane; 0 when nothing is left to do, 130 when stopped, 3 when it was refused."""
    uri, options_json, parent = arguments
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("dgate_core").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as in flows/cli.py
    options, stop = options_from_dict(json.loads(options_json)), StopSignal()
    threading.Thread(target=_stop_with_parent, args=(int(parent), stop), daemon=True).start()
    try:
        with listen_for_signals(stop):
            report = Lane(RunStore(open_storage(uri)), options, stop).work()
    except DgateError as error:
        print(error_to_json(error), flush=True)
        return EXIT_REFUSED
    return 0 if report.state == "finished" else EXIT_STOPPED


def _stop_with_parent(parent: int, stop: StopSignal) -> None:
    """Lanes do not outlive the process that started them: when it is gone they finish their batch and end."""
    while os.getppid() == parent:
        time.sleep(1.0)
    stop.set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
