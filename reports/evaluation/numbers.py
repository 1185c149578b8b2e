"""Numbers for reading: as many digits as their uncertainty bears."""

from __future__ import annotations

import math

MINUS = "−"
Interval = tuple[float, float]


def format_number(value: float, spread: float | None = None, *, signed: bool = False) -> str:
    """A number with two digits of its spread, or with four digits of its own.

    Args:
        value: Finite.
        spread: Half the width of its interval.
        signed: Also a plus is written.
    """
    if not math.isfinite(value):
        return str(value)
    if spread is None and abs(value) in (0.0, 1.0):  # right or wrong, or the change between them
        decimals = 0
    else:
        decimals = _count_decimals(spread, 2) if spread else _count_decimals(value, 4)
    text = f"{abs(value):,.{decimals}f}"
    is_zero = not text.strip("0.,")
    sign = "" if is_zero else MINUS if value < 0 else "+" if signed else ""
    return sign + text


def format_interval(interval: Interval, *, signed: bool = False) -> str:
    """`0.2841 to 0.2903`."""
    spread = measure_spread(interval)
    return " to ".join(format_number(end, spread, signed=signed) for end in interval)


def format_share(share: float) -> str:
    """`87.5 %`."""
    return f"{share * 100:.1f} %"


def measure_spread(interval: Interval | None) -> float | None:
    """Half the width; None when there is no interval."""
    return None if interval is None else abs(interval[1] - interval[0]) / 2


def find_share_interval(right: float, n: float, z: float = 1.96) -> Interval:
    """95 % interval of a share (Wilson, 1927), which stays within 0 to 1; (0, 1) of nothing."""
    if n <= 0:
        return 0.0, 1.0
    share, weight = right / n, z * z / n
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def _count_decimals(size: float, digits: int) -> int:
    """Decimals that show so many digits of a number of this size."""
    if size == 0:
        return digits - 1
    return min(8, max(0, digits - 1 - math.floor(math.log10(abs(size)))))
