"""Seconds by stage, without making the device wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageClock:
    """Times named stages: with CUDA events on a GPU, with the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._host: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the block's time to the stage."""
        if self._on_gpu:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
            return
        started = time.perf_counter()
        yield
        self._host[name] = self._host.get(name, 0.0) + time.perf_counter() - started

    def read_seconds(self) -> dict[str, float]:
        """Seconds by stage; the batch must be done."""
        seconds = dict(self._host)
        for name, start, end in self._events:
            seconds[name] = seconds.get(name, 0.0) + start.elapsed_time(end) / 1000
        return seconds
