"""Faults that a lane meets at the worst moment: it stops or dies itself, or its device fails."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SignalBefore:
    """The lane that gets there first sends itself a signal right before a method of RunStore, once in a run."""

    method: str
    """Of RunStore."""
    call: int
    """At which of the lane's calls, from 1 on."""
    number: signal.Signals
    """SIGKILL dies there, SIGSTOP falls asleep there."""
    mark: Path
    """Made by the one that did it; holds its pid."""

    def __call__(self, lane: str) -> None:
        from dgate_core.runs.store import RunStore

        method, calls = getattr(RunStore, self.method), [0]

        def interrupted(store: RunStore, *arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == self.call and self._is_first():
                os.kill(os.getpid(), self.number)
            return method(store, *arguments)

        setattr(RunStore, self.method, interrupted)

    def _is_first(self) -> bool:
        try:
            descriptor = os.open(self.mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        os.write(descriptor, str(os.getpid()).encode())
        os.close(descriptor)
        return True


@dataclass(frozen=True)
class CrashWhileLoading:
    """Loading the model ends some lanes with a segmentation fault, as a broken driver or GPU does."""

    lanes: tuple[str, ...]

    def __call__(self, lane: str) -> None:
        from dgate_core.models.families.unet import UNetFamily

        if lane in self.lanes:
            UNetFamily.load = lambda *_: os.kill(os.getpid(), signal.SIGSEGV)  # type: ignore[assignment,method-assign,return-value]


@dataclass(frozen=True)
class FailingSeeds:
    """The device fails for every batch that holds one of these seeds."""

    seeds: frozenset[int]

    def __call__(self, lane: str) -> None:
        from dgate_core.models.families.unet import UNetModel

        generate = UNetModel.generate

        def failing(model: UNetModel, request: Any) -> Any:
            if self.seeds & {*request.seeds}:
                raise RuntimeError("the device failed")
            return generate(model, request)

        UNetModel.generate = failing  # type: ignore[method-assign]
