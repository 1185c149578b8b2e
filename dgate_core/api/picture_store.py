"""Pictures behind urls: in memory, under names that nobody guesses, for a time and within a bound."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

NAME_BYTES = 24


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A file and its kind."""

    data: bytes
    media_type: str
    expires: float


class PictureStore:
    """The newest pictures; the oldest go when there is no more room.

    Args:
        limit_bytes: For all together.
        seconds: How long each is kept.
        clock: Seconds that never go back.
    """

    def __init__(self, limit_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._seconds, self._clock = limit_bytes, seconds, clock
        self._pictures: OrderedDict[str, StoredPicture] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, data: bytes, media_type: str) -> str:
        """Keeps a picture; returns its name, 32 url-safe characters of chance."""
        name, now = secrets.token_urlsafe(NAME_BYTES), self._clock()
        with self._lock:
            self._pictures[name] = StoredPicture(data, media_type, now + self._seconds)
            self._bytes += len(data)
            while self._pictures and (self._bytes > self._limit or self._find_oldest().expires <= now):
                _, gone = self._pictures.popitem(last=False)
                self._bytes -= len(gone.data)
        return name

    def find(self, name: str) -> StoredPicture | None:
        """The picture, while it is kept."""
        with self._lock:
            picture = self._pictures.get(name)
        return picture if picture is not None and picture.expires > self._clock() else None

    def _find_oldest(self) -> StoredPicture:
        return next(iter(self._pictures.values()))
