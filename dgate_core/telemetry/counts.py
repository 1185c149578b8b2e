"""Events that happen below any server, counted per process: whoever renders metrics reads them from here."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final, Literal

EngineLookup = Literal["hit", "fetched", "built"]
"""An engine lay in the local cache, came from the shared one, or was built."""

_LOCK: Final = threading.Lock()
_ENGINE_LOOKUPS: Final[Counter[EngineLookup]] = Counter()


def count_engine_lookup(result: EngineLookup) -> None:
    """One look into the cache of exports and engines."""
    with _LOCK:
        _ENGINE_LOOKUPS[result] += 1


def read_engine_lookups() -> dict[EngineLookup, int]:
    """Since the process began; every result is there, also those that never came."""
    with _LOCK:
        return {result: _ENGINE_LOOKUPS[result] for result in ("hit", "fetched", "built")}
