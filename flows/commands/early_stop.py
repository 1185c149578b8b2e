"""Ctrl-C and SIGTERM while a run has no lanes at work: as it is planned, while results or the gallery are written."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from types import FrameType

import click

from dgate_core.engine.stopping import handle_signals


class StoppedEarly(KeyboardInterrupt):
    """A signal that came where no batch was in hand; raised, so that everything opened is closed again.

    Args:
        run: The run's folder.
        number: The signal.
    """

    def __init__(self, run: str, number: int) -> None:
        super().__init__(run, number)
        self.run, self.number = run, number

    @property
    def exit_code(self) -> int:
        """As shells give it: 128 and the signal's number."""
        return 128 + self.number

    def tell(self, *, as_json: bool) -> None:
        """Says how to go on; nothing that was finished is lost."""
        name = signal.Signals(self.number).name
        if as_json:
            from dgate_core.storage import open_storage
            from flows.commands.outcome import print_json

            print_json({"state": "cancelled", "run": open_storage(self.run).uri, "stopped_by": name})
        click.echo(f"stopped  by {name}; give the same command again and it goes on from here", err=True)


def raise_on_signals(run: str) -> AbstractContextManager[None]:
    """SIGINT and SIGTERM raise StoppedEarly inside the block; while lanes work, `listen_for_signals` has them."""

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is Python's
        raise StoppedEarly(run, number)

    return handle_signals(handle)
