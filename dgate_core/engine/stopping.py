"""Ctrl-C and SIGTERM: the first finishes the batch in hand, the second stops at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class StopSignal:
    """Asked between batches; set by a signal or by the code that runs the lanes."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.number: int | None = None
        """The signal that stopped; None when it was something else, or nothing yet."""
        self.before_exit: Callable[[], None] = lambda: None
        """Called by the second signal, right before the process ends."""

    def is_set(self) -> bool:
        """Whether to stop after the batch in hand."""
        return self._event.is_set()

    def set(self) -> None:
        """Asks everybody to stop."""
        self._event.set()

    def describe(self) -> str | None:
        """The signal's name; None when nothing has stopped."""
        if not self.is_set():
            return None
        return signal.Signals(self.number).name if self.number else "a request"

    def wait(self, seconds: float) -> bool:
        """Sleeps, but not longer than until the stop."""
        return self._event.wait(seconds)


@contextmanager
def handle_signals(handle: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """SIGINT and SIGTERM go to `handle` while the block runs; they reach only the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen_for_signals(stop: StopSignal) -> AbstractContextManager[None]:
    """Turns SIGINT and SIGTERM into `stop` while the block runs; the second one ends the process."""

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is Python's
        if stop.is_set():
            stop.before_exit()
            os._exit(128 + number)
        # Set first: a second signal may come while the line is being written, and must find it set.
        stop.number = number
        stop.set()
        logger.warning("stopping: the batch in hand is finished first; once more stops at once")

    return handle_signals(handle)
