"""Signals as a process meets them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SECOND_WHILE_THE_FIRST_IS_TOLD = """
import logging, os, sys
from dgate_core.engine.stopping import StopSignal, listen_for_signals

number = int(sys.argv[1])

class Impatient(logging.Handler):
    def emit(self, record):
        print(record.getMessage(), flush=True)
        os.kill(os.getpid(), number)

logging.getLogger().addHandler(Impatient())
stop = StopSignal()
stop.before_exit = lambda: print("lanes are ended", flush=True)
with listen_for_signals(stop):
    os.kill(os.getpid(), number)
    print("went on", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_counts_while_the_first_is_still_being_told(number: signal.Signals) -> None:
    """It was taken for a first one: the process then went on for as long as its batch took."""
    command = [sys.executable, "-c", SECOND_WHILE_THE_FIRST_IS_TOLD, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + number, done.stderr
    told, *after = done.stdout.splitlines()
    assert "once more stops at once" in told
    assert after == ["lanes are ended"]
