"""Pictures that wait for a device: bounded, fair between clients and batch keys, gathered into batches."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dgate_core.manifest.item import BatchKey
from dgate_core.runs.spec import ImageFormat

LONGEST_GATHERING_SECONDS = 0.05
GATHERING_SHARE = 0.1
"""Of a batch's own time, that is worth waiting for as many rows as last time."""
PACES_KEPT = 256


@dataclass(frozen=True, slots=True)
class WorkKey:
    """What pictures must share to be made in one batch."""

    batch: BatchKey
    strength: float | None = None
    """Of image to image; None starts from noise."""


@dataclass(frozen=True, slots=True)
class Made:
    """A finished picture."""

    data: bytes | None
    """The file; None when an inspector withheld it."""
    row: Mapping[str, Any]
    """Of the plan, with the row_id of the weights that made it."""
    warnings: tuple[str, ...]
    verdict: Mapping[str, Any] | None
    """Of the inspector; None without one."""
    batch_size: int
    queue_seconds: float
    device_seconds: float
    """Of its whole batch."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a picture is."""

    done: int
    """Denoising steps."""
    total: int
    preview: bytes | None = None
    """A picture file of what is to be seen so far."""
    preview_index: int = 0
    """From 0."""


@dataclass(frozen=True, slots=True)
class TicketOptions:
    """What goes with a request's pictures besides their rows."""

    client: str
    """Takes turns with others."""
    request_id: str
    deadline: float
    """Of time.monotonic()."""
    image: ImageFormat
    """Format of the files."""
    on_step: Callable[[int, Step], None] | None = None
    """Called with the picture's number and its step, from the device's thread."""
    previews: int = 0
    """Pictures on the way, 0 to 3."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The last batch of a key."""

    rows: int
    seconds: float
    demand: int
    """Its rows and those of its key that were left waiting: as many may come together next time."""
    ended: float
    """Of time.monotonic()."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One picture that waits."""

    row: Mapping[str, Any]
    key: WorkKey
    number: int
    """Among the request's pictures, from 0."""
    options: TicketOptions
    future: Future[Made] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    batch_id: str = ""
    """Of the batch that it went into, once it is back from the device."""


class RoomFullError(Exception):
    """There is no place for these pictures now."""


class RoomClosedError(Exception):
    """Nothing is taken any more."""


class WaitingRoom:
    """A bounded queue from which each device takes batches.

    Args:
        limit: Pictures that may wait.
        gather_seconds: How long a first picture waits for others of its key.
        measure_batch: The largest batch of a key, as far as it is known.
        on_change: Told the number of those that wait.
    """

    def __init__(
        self,
        limit: int,
        gather_seconds: float,
        measure_batch: Callable[[WorkKey], int],
        on_change: Callable[[int], None],
    ) -> None:
        self.limit, self._gather_seconds = limit, gather_seconds
        self._measure_batch, self._on_change = measure_batch, on_change
        self._clients: OrderedDict[str, OrderedDict[WorkKey, deque[Ticket]]] = OrderedDict()
        self._counts: Counter[WorkKey] = Counter()
        self._paces: OrderedDict[WorkKey, Pace] = OrderedDict()
        self._demands: dict[WorkKey, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, tickets: Sequence[Ticket]) -> None:
        """Takes all of a request's pictures, or none.

        Raises:
            RoomFullError: there is no place for them.
            RoomClosedError: the server is going.
        """
        with self._changed:
            if self._closed:
                raise RoomClosedError
            if len(self) + len(tickets) > self.limit:
                raise RoomFullError
            for ticket in tickets:
                lines = self._clients.setdefault(ticket.options.client, OrderedDict())
                lines.setdefault(ticket.key, deque()).append(ticket)
                self._counts[ticket.key] += 1
            self._note_change()

    def remove(self, tickets: Sequence[Ticket]) -> None:
        """Frees the places of those that still wait; the others are on their way already."""
        with self._changed:
            for ticket in tickets:
                lines = self._clients.get(ticket.options.client)
                if lines is not None and ticket in lines.get(ticket.key, ()):
                    lines[ticket.key].remove(ticket)
                    self._forget(ticket)
            self._note_change()

    def take(self) -> list[Ticket] | None:
        """The next batch, of one key; waits for it. None when the room is closed and empty."""
        with self._changed:
            while True:
                self._drop_late()
                now = time.monotonic()
                ready, due = self._choose(now)
                if ready is not None:
                    return self._collect(*ready)
                if self._closed and not len(self):
                    return None
                self._changed.wait(None if due is None else max(0.0, due - now))

    def note_pace(self, key: WorkKey, rows: int, seconds: float) -> None:
        """What the last batch of a key was, so that the next one knows what waiting is worth."""
        with self._changed:
            demand = max(rows, self._demands.pop(key, rows))
            self._paces[key] = Pace(rows, seconds, demand, time.monotonic())
            self._paces.move_to_end(key)
            while len(self._paces) > PACES_KEPT:
                self._paces.popitem(last=False)

    def estimate_wait(self, devices: int) -> float:
        """Seconds until about half of those that wait are gone, at the latest pace; at least one."""
        with self._changed:
            rates = [pace.seconds / pace.rows for pace in self._paces.values()]
            each = rates[-1] if rates else 1.0
            return max(1.0, len(self) * each / devices / 2)

    def close(self) -> None:
        """Lets nobody in any more; those who wait are still served."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def empty(self) -> list[Ticket]:
        """Everybody out; for a device that is lost."""
        with self._changed:
            tickets = [ticket for lines in self._clients.values() for line in lines.values() for ticket in line]
            self._clients.clear()
            self._counts.clear()
            self._note_change()
            return tickets

    def _choose(self, now: float) -> tuple[tuple[str, WorkKey] | None, float | None]:
        """The first (client, key), in the order of turns, whose batch may start; else when the next one may."""
        due: float | None = None
        for client, lines in self._clients.items():
            for key, line in lines.items():
                at = self._find_start(key, line[0].since)
                if at <= now:
                    return (client, key), None
                due = at if due is None else min(due, at)
        return None, due

    def _find_start(self, key: WorkKey, since: float) -> float:
        """When a key's batch may start: at once when it is full, later while more are likely to come."""
        count, pace = self._counts[key], self._paces.get(key)
        if self._closed or count >= self._measure_batch(key):
            return since
        if pace is None or count >= pace.demand:
            return since + self._gather_seconds
        window = min(max(self._gather_seconds, GATHERING_SHARE * pace.seconds), LONGEST_GATHERING_SECONDS)
        # Who was in the last batch asks again a moment after its end.
        return max(since + self._gather_seconds, max(since, pace.ended) + window)

    def _collect(self, client: str, key: WorkKey) -> list[Ticket]:
        """A batch that begins with the client whose turn it is, then one of each client in turn, and so on."""
        size = self._measure_batch(key)
        taken: list[Ticket] = []
        order = [client, *(name for name, lines in self._clients.items() if name != client and key in lines)]
        while order and len(taken) < size:
            name = order.pop(0)
            ticket = self._clients[name][key].popleft()
            taken.append(ticket)
            # Who was served goes behind those who were not, and so does the key among the client's keys.
            self._clients[name].move_to_end(key)
            self._clients.move_to_end(name)
            if self._clients[name][key]:
                order.append(name)
            self._forget(ticket)
        if len(self._demands) >= PACES_KEPT:
            self._demands.clear()  # of batches that failed
        self._demands[key] = len(taken) + self._counts[key]
        self._note_change()
        return taken

    def _forget(self, ticket: Ticket) -> None:
        """After a ticket has left its line: no empty lines, no clients without any."""
        lines = self._clients[ticket.options.client]
        if not lines[ticket.key]:
            del lines[ticket.key]
        if not lines:
            del self._clients[ticket.options.client]
        self._counts[ticket.key] -= 1
        if not self._counts[ticket.key]:
            del self._counts[ticket.key]

    def _drop_late(self) -> None:
        """Nobody waits any more for what is past its deadline."""
        now = time.monotonic()
        late = [
            ticket
            for lines in self._clients.values()
            for line in lines.values()
            for ticket in line
            if ticket.options.deadline <= now
        ]
        for ticket in late:
            self._clients[ticket.options.client][ticket.key].remove(ticket)
            self._forget(ticket)
            ticket.future.cancel()
        if late:
            self._on_change(len(self))

    def _note_change(self) -> None:
        self._on_change(len(self))
        self._changed.notify_all()
