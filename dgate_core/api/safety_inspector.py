"""Pictures on demand under the same policy as rows of bulk runs."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

from PIL import Image

from dgate_core.api.contract import Inspection
from dgate_core.safety.guard import SafetyGuard, open_guard
from dgate_core.storage import Storage

if TYPE_CHECKING:
    import numpy as np

    from dgate_core.runs.spec import SafetySpec


class SafetyInspector:
    """See `PictureInspector`.

    Args:
        guard: Says what becomes of a picture.
        aside: Where pictures in quarantine are put, under the sha256 of their files.
    """

    def __init__(self, guard: SafetyGuard, aside: Storage) -> None:
        self._guard, self._aside = guard, aside

    def inspect(self, pixels: np.ndarray) -> Inspection:
        """See `PictureInspector`; raises RowError when the checker fails."""
        looked = self._guard.look(pixels)
        if looked.verdict.action == "quarantine":
            self._put_aside(pixels)
        return Inspection(looked.pixels, looked.verdict.to_dict())

    def _put_aside(self, pixels: np.ndarray) -> None:
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "png")
        data = sink.getvalue()
        self._aside.write_bytes(f"{hashlib.sha256(data).hexdigest()}.png", data)


def open_inspector(spec: SafetySpec | None, aside: Storage) -> SafetyInspector | None:
    """None when nobody looks; raises as `open_guard`."""
    guard = open_guard(spec)
    return None if guard is None else SafetyInspector(guard, aside)
