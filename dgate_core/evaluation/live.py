"""Features of pictures while they are made: an evaluation that follows finds them in the cache and decodes nothing.

The networks run in a process of their own, so that neither their settings nor Python's lock touch the lane.
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

import numpy as np

from dgate_core.evaluation.pictures import decode_picture

if TYPE_CHECKING:
    from dgate_core.engine.observer import MadePicture

logger = logging.getLogger(__name__)

PENDING_BATCHES = 4
"""Batches that may wait; what comes when there is no room is left to the evaluation, which reads it from its file."""
LARGEST_FRAME = 16
"""Pictures that the process takes at once."""
END_SECONDS = 300.0
"""How long the last pictures may take: the evaluation would need that time for them too."""


class LiveFeatures:
    """Sends pictures to the process; see `PictureObserver`.

    Args:
        metrics: Whose features are wanted.
        device: torch's name of the device.
    """

    def __init__(self, metrics: Sequence[str], device: str) -> None:
        command = [sys.executable, "-m", "dgate_core.evaluation.live_process", json.dumps([list(metrics), device])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._waiting: queue.Queue[Sequence[MadePicture]] = queue.Queue(PENDING_BATCHES)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="live-features", daemon=True)
        self._thread.start()
        self.left_out = 0

    def see(self, pictures: Sequence[MadePicture]) -> None:
        """See `PictureObserver`."""
        try:
            self._waiting.put_nowait(pictures)
        except queue.Full:
            self.left_out += len(pictures)

    def close(self, *, at_once: bool) -> None:
        """See `PictureObserver`; what still waits is seen, as far as it takes no longer than END_SECONDS."""
        self._closing.set()
        if at_once:
            self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
        if self.left_out:
            logger.info("%d pictures were made too fast to be scored on the way", self.left_out)

    def _feed(self) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stream:
                while (pictures := self._take()) is not None:
                    for start in range(0, len(pictures), LARGEST_FRAME):
                        write_frame(stream, pictures[start : start + LARGEST_FRAME])
        except OSError as error:
            logger.warning("pictures are not scored on the way any more: %s", error)

    def _take(self) -> Sequence[MadePicture] | None:
        """The next batch; None once the lane has closed and nothing waits."""
        while True:
            try:
                return self._waiting.get(timeout=0.2)
            except queue.Empty:
                if self._closing.is_set():
                    return None


def open_live_features(metrics: Sequence[str], device: str) -> LiveFeatures:
    """See `open_observer`."""
    return LiveFeatures(metrics, device)


def write_frame(stream: IO[bytes], pictures: Sequence[MadePicture]) -> None:
    """One line of JSON with hashes and shapes, then the pixels of every picture."""
    pixels = [find_file_pixels(picture) for picture in pictures]
    header = {"sha256": [picture.file.sha256 for picture in pictures], "shapes": [each.shape for each in pixels]}
    stream.write(json.dumps(header).encode() + b"\n")
    for each in pixels:
        stream.write(np.ascontiguousarray(each).tobytes())
    stream.flush()


def read_frame(stream: IO[bytes]) -> dict[str, np.ndarray] | None:
    """The inverse of `write_frame`: pixels uint8 by the file's sha256; None at the end, also in mid-frame."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    sizes = [int(np.prod(shape)) for shape in header["shapes"]]
    data = stream.read(sum(sizes))
    if len(data) < sum(sizes):
        return None
    parts = np.split(np.frombuffer(data, np.uint8), np.cumsum(sizes)[:-1])
    shaped = [part.reshape(shape).copy() for part, shape in zip(parts, header["shapes"], strict=True)]
    return dict(zip(header["sha256"], shaped, strict=True))


def find_file_pixels(picture: MadePicture) -> np.ndarray:
    """What a reader of the file will see: of a lossy format that is not what went into it."""
    return picture.pixels if picture.file.suffix == "png" else decode_picture(picture.file.data)
