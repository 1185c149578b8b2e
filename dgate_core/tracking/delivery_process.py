"""The process that talks to one tracker, so that a tracker that hangs, or takes its process down, takes nothing else.

Its last line on stdout is a JSON object {"error": "…"}, empty when everything has arrived.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence

from dgate_core.errors import DgateError
from dgate_core.tracking.delivery import deliver_missing


def main(arguments: Sequence[str]) -> int:
    """Takes the run's address, the tracker's name, and the seconds after which the process ends in any case."""
    run_uri, tracker, limit_seconds = arguments
    signal.setitimer(signal.ITIMER_REAL, float(limit_seconds))  # also when nobody is left to end it
    error = deliver(run_uri, tracker)
    print(json.dumps({"error": error}), flush=True)
    return 1 if error else 0


def deliver(run_uri: str, tracker: str) -> str:
    """What went wrong, in one line; empty when nothing did."""
    try:
        for _ in deliver_missing(run_uri, tracker):
            pass
    except DgateError as error:
        return "; ".join(part for part in (error.got, error.next_step) if part)
    except Exception as error:  # a tracker's library may raise anything, and all of it is only told
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
