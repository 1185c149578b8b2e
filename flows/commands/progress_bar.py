"""How far a run is, on stderr: a bar in a terminal, plain lines elsewhere; read from the run's folder by a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dgate_core.engine.progress import Progress as RunProgress
from dgate_core.engine.progress import ProgressReader
from dgate_core.errors import DgateError
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from reports.summary import format_duration, format_rate

LOOK_EVERY_SECONDS = 0.5
LINE_EVERY_SECONDS = 5.0


class Display(Protocol):
    """Where progress is shown."""

    every_seconds: float

    def show(self, progress: RunProgress) -> None:
        """Shows a moment of the run."""


@contextmanager
def show_progress(out: str) -> Iterator[None]:
    """Shows the run's progress while the block runs, from the moment its lanes begin."""
    console = Console(stderr=True)
    stop = threading.Event()
    with open_display(console) as display:
        thread = threading.Thread(target=_follow, args=(out, display, stop), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5.0)


@contextmanager
def open_display(console: Console) -> Iterator[Display]:
    """A bar for people, lines for files."""
    if not console.is_terminal:
        yield Lines()
        return
    columns = [TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[figures]}")]
    with Progress(*columns, console=console, transient=True) as bar:
        yield Bar(bar)


def _follow(out: str, display: Display, stop: threading.Event) -> None:
    store, reader, told = RunStore(open_storage(out)), None, ""
    while not stop.wait(LOOK_EVERY_SECONDS if reader is None else display.every_seconds):
        try:
            if reader is None and store.exists() and store.read_run()["state"] == "running":
                reader = ProgressReader(store)
            if reader is not None:
                display.show(reader.read())
        except DgateError as error:
            # The run itself meets the same storage and says so louder.
            if error.got != told:
                told = error.got
                click.echo(f"progress is not known just now: {told}", err=True)


class Bar:
    """A line that is drawn again and again."""

    every_seconds = LOOK_EVERY_SECONDS

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None, figures="")

    def show(self, progress: RunProgress) -> None:
        """Moves the bar."""
        text = f"{progress.done:,}/{progress.total:,}"
        figures = describe_figures(progress)
        self._bar.update(self._task, description=text, total=progress.total, completed=progress.done, figures=figures)


class Lines:
    """A line every few seconds, for logs."""

    every_seconds = LINE_EVERY_SECONDS

    def show(self, progress: RunProgress) -> None:
        """Writes a line."""
        click.echo(f"{progress.done:,}/{progress.total:,}  {describe_figures(progress)}", err=True)


def describe_figures(progress: RunProgress) -> str:
    """Speed, failures, lanes, time left."""
    parts = [f"{format_rate(progress.rate)} pictures/s"] if progress.rate else []
    if not parts and progress.done < progress.total:
        parts = ["loading"]
    parts.append(f"{progress.failed:,} failed")
    parts.append("1 lane" if progress.lanes == 1 else f"{progress.lanes} lanes")
    if progress.seconds_left:
        parts.append(f"{format_duration(progress.seconds_left)} left")
    return "  ".join(parts)
