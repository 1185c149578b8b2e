"""Loaded models within a memory budget: kept warm, put out when room is needed, swapped while they serve.

A name leads to what it stood for when it was first used; `refresh` loads what it stands for now beside it and then
turns the name over, between two leases. Nothing that is leased is ever put out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final, Generic

from dgate_core.errors import ModelError
from dgate_core.models.model_loading import Candidate, Held, ModelLoader
from dgate_core.models.pool_slots import PoolFigures, PoolOptions, Slot, run_in_background

__all__ = ["ModelPool", "PoolOptions"]

logger = logging.getLogger(__name__)

_LOADING: Final = threading.Lock()
"""One load at a time in a process: the libraries change torch's global state while they build a module."""


class ModelPool(Generic[Held]):
    """Loads by name, leases, evicts the least recently used, swaps; safe to use from several threads.

    Args:
        loader: Finds, loads and moves models.
        options: Budget, host tier, patience.
    """

    def __init__(self, loader: ModelLoader[Held], options: PoolOptions) -> None:
        self.loader, self.options, self.figures = loader, options, PoolFigures()
        self._slots: dict[str, Slot[Held]] = {}
        self._routes: dict[str, Candidate] = {}
        self._turning: set[str] = set()
        self._asking: set[str] = set()
        """Keys whose load waits for room: until there is room, other models get no new leases."""
        self._queue: dict[int, str] = {}
        """Who waits for a lease, by ticket: one model's leases are given in the order in which they were asked for."""
        self._changed = threading.Condition()
        self._clock = 0

    @contextmanager
    def use(self, name: str) -> Iterator[Held]:
        """Leases what the name leads to, loading it first when it is not here; one thread leases a model once.

        Raises:
            ModelError: unknown, does not load, or no room or turn within `wait_seconds`.
        """
        slot = self._lease(name, time.monotonic() + self.options.wait_seconds)
        try:
            assert slot.held is not None
            yield slot.held
        finally:
            with self._changed:
                slot.users.remove(threading.get_ident())
                self._changed.notify_all()

    def prepare(self, name: str) -> Future[bool]:
        """Loads in the background what the name leads to; the future is True when it had to be loaded."""
        return run_in_background(f"loading {name}", lambda: self._prepare(name))

    def refresh(self, name: str) -> Future[bool]:
        """Follows a name that has moved: loads in the background what it stands for now, then turns it over.

        The old model serves until the new one is loaded, and goes on serving when the load fails; leases that are out
        keep what they have. Without room for both, new leases wait while the old one leaves and the new one comes.

        Returns:
            True when the name has turned to another model; the error when it could not.
        """
        return run_in_background(f"refreshing {name}", lambda: self._turn(name))

    def has_room_for(self, name: str) -> bool:
        """Whether the model is warm, or could come without waiting for a model that is in use."""
        candidate = self._find(name)
        with self._changed:
            slot = self._slots.get(candidate.key)
            if slot is not None and slot.state == "warm":
                return True
            return self._count_missing(candidate) <= sum(each.device_bytes for each in self._list_idle())

    def is_warm(self, name: str) -> bool:
        """Whether a lease would come without a load."""
        with self._changed:
            slot = self._slots.get(self._routes[name].key) if name in self._routes else None
            return slot is not None and slot.state == "warm"

    def describe(self) -> dict[str, Any]:
        """What is where, for people and telemetry."""
        with self._changed:
            models = [
                {
                    "names": sorted(name for name, route in self._routes.items() if route.key == key),
                    "state": slot.state,
                    "bytes": slot.device_bytes,
                    "leases": len(slot.users),
                }
                for key, slot in self._slots.items()
            ]
            return {"budget_bytes": self.options.budget_bytes, "models": models, **asdict(self.figures)}

    def _prepare(self, name: str) -> bool:
        candidate = self._find(name)
        with self._changed:
            self._routes.setdefault(name, candidate)
        return self._warm(candidate, self._start_clock())

    def _turn(self, name: str) -> bool:
        with self._changed:
            self._await(lambda: name not in self._turning, self._start_clock(), f"another refresh of {name}")
            self._turning.add(name)
        try:
            candidate = self.loader.identify(name)
            self._warm(candidate, self._start_clock())
            with self._changed:
                former = self._routes.get(name)
                self._routes[name] = candidate
                has_turned = former is not None and former.key != candidate.key
                self.figures.swaps += has_turned
                return has_turned
        finally:
            with self._changed:
                self._turning.remove(name)
                self._changed.notify_all()

    def _start_clock(self) -> float:
        return time.monotonic() + self.options.wait_seconds

    def _find(self, name: str) -> Candidate:
        """What the name leads to here; what it stands for now, when it has not been used yet."""
        with self._changed:
            route = self._routes.get(name)
        return route or self.loader.identify(name)

    def _lease(self, name: str, deadline: float) -> Slot[Held]:
        """A lease for this thread on what the name leads to at the moment when the lease is given."""
        found = self._find(name)
        with self._changed:
            self._routes.setdefault(name, found)
            ticket = self._tick()
            self._queue[ticket] = name
        try:
            return self._take_lease(name, ticket, deadline)
        finally:
            with self._changed:
                del self._queue[ticket]
                self._changed.notify_all()

    def _take_lease(self, name: str, ticket: int, deadline: float) -> Slot[Held]:
        me = threading.get_ident()
        while True:
            with self._changed:
                self._await(lambda: self._may_go_on(name, ticket), deadline, f"a lease on {name}")
                candidate = self._routes[name]
                slot = self._slots.get(candidate.key)
                if slot is not None and me in slot.users:
                    raise RuntimeError(f"this thread has a lease on {name} already")
                if slot is not None and slot.state == "warm":
                    slot.users.append(me)
                    slot.last_used = self._tick()
                    return slot
            self._warm(candidate, deadline, leased_to=me)
            with self._changed:
                # The load gave this thread its lease at once, unless another thread had loaded it by then.
                slot = self._slots.get(candidate.key)
                if slot is not None and me in slot.users:
                    return slot

    def _may_go_on(self, name: str, ticket: int) -> bool:
        """There is a free lease, or something to load; called with the lock."""
        key = self._routes[name].key
        slot = self._slots.get(key)
        if slot is not None and threading.get_ident() in slot.users:
            return True
        if ticket != min(number for number, other in self._queue.items() if self._routes[other].key == key):
            return False
        if slot is None or slot.state == "host":
            return name not in self._turning
        # Who holds a lease already goes on: the room that others wait for may be his to give.
        must_queue = bool(self._asking - {slot.candidate.key}) and not self._has_lease()
        return slot.state == "warm" and len(slot.users) < self.options.leases_at_once and not must_queue

    def _warm(self, candidate: Candidate, deadline: float, leased_to: int | None = None) -> bool:
        """Makes sure that the model is on the device; True when this call brought it."""
        with self._changed:
            self._await(lambda: not self._is_busy(candidate.key), deadline, f"the load of {candidate.name}")
            leaving = self._make_room(candidate, deadline)
            former = self._slots.get(candidate.key)
            if leaving is None:
                return False
            slot = Slot(candidate, held=former.held if former else None, device_bytes=candidate.device_bytes)
            self._slots[candidate.key] = slot
        try:
            self._put_out(leaving)
            held = self._bring(slot)
            size = self.loader.measure_bytes(held)
        except BaseException:
            with self._changed:
                del self._slots[candidate.key]
                self.figures.failures += 1
                self._changed.notify_all()
            raise
        with self._changed:
            slot.held, slot.device_bytes, slot.state, slot.last_used = held, size, "warm", self._tick()
            slot.users += [] if leased_to is None else [leased_to]
            self._changed.notify_all()
        return True

    def _bring(self, slot: Slot[Held]) -> Held:
        started = time.perf_counter()
        with _LOADING:
            if slot.held is not None:
                self.loader.bring_back(slot.held)
                self.figures.returns += 1
                return slot.held
            held = self.loader.load(slot.candidate)
        self.figures.loads += 1
        self.figures.load_seconds += time.perf_counter() - started
        return held

    def _make_room(self, candidate: Candidate, deadline: float) -> list[Slot[Held]] | None:
        """Idle models that must go, marked as busy; None when the model is here by now. Called with the lock."""
        chosen: list[Slot[Held]] = []

        def has_room() -> bool:
            slot = self._slots.get(candidate.key)
            if slot is not None and slot.state != "host":
                return slot.state == "warm"
            missing, chosen[:] = self._count_missing(candidate), []
            for idle in self._list_idle():
                if missing > 0:
                    chosen.append(idle)
                    missing -= idle.device_bytes
            return missing <= 0 or len(chosen) == len(self._list_here())

        self._asking.add(candidate.key)
        try:
            self._await(has_room, deadline, f"{candidate.device_bytes / 1e9:.2f} GB for {candidate.name}")
        finally:
            self._asking.discard(candidate.key)
            self._changed.notify_all()
        slot = self._slots.get(candidate.key)
        if slot is not None and slot.state == "warm":
            return None
        for each in chosen:
            each.state = "busy"
        return chosen

    def _count_missing(self, candidate: Candidate) -> int:
        """Bytes that must be freed before it fits; called with the lock."""
        taken = sum(slot.device_bytes for slot in self._list_here())
        over = taken + candidate.device_bytes - self.options.budget_bytes
        free = self.loader.read_free_bytes()
        return over if free is None else max(over, candidate.device_bytes - free)

    def _list_here(self) -> list[Slot[Held]]:
        """Everything that takes memory of the device."""
        return [slot for slot in self._slots.values() if slot.state != "host"]

    def _list_idle(self) -> list[Slot[Held]]:
        """What may leave, the least recently used first."""
        idle = [slot for slot in self._slots.values() if slot.state == "warm" and not slot.users]
        return sorted(idle, key=lambda slot: slot.last_used)

    def _put_out(self, leaving: list[Slot[Held]]) -> None:
        for slot in leaving:
            is_kept = False
            try:
                assert slot.held is not None
                with _LOADING:
                    is_kept = self._has_host_room(slot) and self.loader.send_to_host(slot.held)
            finally:
                with self._changed:
                    self.figures.evictions += 1
                    if is_kept:
                        slot.state = "host"
                    else:
                        slot.held = None
                        del self._slots[slot.candidate.key]
                    self._changed.notify_all()
            logger.info("%s is put out%s", slot.candidate.name, ", warm on the host" if is_kept else "")
        if leaving:
            self.loader.free_memory()

    def _has_host_room(self, coming: Slot[Held]) -> bool:
        """Drops what has been on the host longest, when that makes room."""
        with self._changed:
            if coming.device_bytes > self.options.host_bytes:
                return False
            on_host = sorted((s for s in self._slots.values() if s.state == "host"), key=lambda slot: slot.last_used)
            taken = sum(slot.device_bytes for slot in on_host)
            for slot in on_host:
                if taken + coming.device_bytes <= self.options.host_bytes:
                    break
                taken -= slot.device_bytes
                del self._slots[slot.candidate.key]
            return True

    def _is_busy(self, key: str) -> bool:
        return key in self._slots and self._slots[key].state == "busy"

    def _has_lease(self) -> bool:
        return any(threading.get_ident() in slot.users for slot in self._slots.values())

    def _is_stuck(self) -> bool:
        """Nothing can change while this thread waits: all leases are its own, and nothing is on its way."""
        users = {user for slot in self._slots.values() for user in slot.users}
        on_its_way = any(map(self._is_busy, self._slots)) or (self._turning and not self._asking)
        return users == {threading.get_ident()} and not on_its_way

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _await(self, is_so: Callable[[], bool], deadline: float, what: str) -> None:
        """Waits with the lock; raises ModelError at the deadline, or when only its own lease is in the way."""
        while not is_so():
            if self._is_stuck() or not self._changed.wait(max(0.0, deadline - time.monotonic())):
                names = sorted(slot.candidate.name for slot in self._slots.values() if slot.users)
                in_use = f"{', '.join(names)} in use" if names else "nothing in use"
                raise ModelError(
                    f"the model pool has no room: {what} not to be had with {in_use}",
                    f"models that fit into {self.options.budget_bytes / 1e9:.2f} GB together",
                    "give the leases back sooner, or give the pool a larger budget",
                )
