"""How many rows go together: found by measuring, halved when memory runs out, remembered per batch key."""

from __future__ import annotations

from dataclasses import dataclass, field

WORTHWHILE_GAIN = 1.04
"""A batch twice as large must be at least this much faster per row to be kept."""


@dataclass(slots=True)
class BatchSizer:
    """Finds the batch size of one batch key.

    It starts at `first`, doubles while rows per second grow and memory allows, and never again exceeds a size
    that ran out of memory.
    """

    first: int
    """Size of the first batch."""
    limit: int
    """Never more than this; the user's `batch_size`, or the engine's ceiling."""
    is_fixed: bool = False
    """The user named a size: it is only ever lowered, by memory."""
    _size: int = field(init=False)
    _settled: bool = field(init=False)
    _best_rate: float = field(init=False, default=0.0)
    _seen: dict[int, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._size = self.limit if self.is_fixed else min(self.first, self.limit)
        self._settled = self.is_fixed

    @property
    def size(self) -> int:
        """Rows for the next batch, at least one."""
        return self._size

    def record(self, rows: int, seconds: float, memory_share: float) -> None:
        """Learns from a finished batch.

        Args:
            rows: Rows it held; a batch that was not full teaches nothing.
            seconds: Time of denoise and decode.
            memory_share: Peak of the device's memory, 0 to 1; 0 where it is not known.
        """
        if self._settled or rows != self._size:
            return
        self._seen[rows] = self._seen.get(rows, 0) + 1
        if self._seen[rows] < 2:
            return  # the first batch of a size pays for warming up
        rate = rows / seconds
        if rate < self._best_rate * WORTHWHILE_GAIN:
            self._size, self._settled = rows // 2, True
            return
        self._best_rate = rate
        doubled = rows * 2
        if doubled > self.limit or memory_share > 0.45:
            self._settled = True
        else:
            self._size = doubled

    def shrink(self, failed: int) -> bool:
        """Remembers that `failed` rows did not fit; False when that was a single row, which cannot be halved."""
        self._settled = True
        if failed == 1:
            self._size = self.limit = 1
            return False
        self._size = self.limit = min(self._size, failed // 2)
        return True
