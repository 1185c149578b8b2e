"""A run's pictures as an evaluation sees them: every one that was expected, decoded once, a few at a time."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np
import pyarrow as pa
from PIL import Image

from dgate_core.errors import ObjectNotFoundError
from dgate_core.evaluation.expected import ExpectedPicture
from dgate_core.runs.pictures import PictureReader
from dgate_core.storage import Storage

CHUNK_BYTES = 96 << 20
"""Decoded pixels of one chunk; two chunks are in memory at a time, the one that is scored and the next."""
LARGEST_CHUNK = 128
"""Pictures of one chunk, however small they are."""
READERS = 4
"""Threads that read and decode beside the scoring."""

BROKEN_CONTAINER = (tarfile.TarError, pa.ArrowInvalid)
"""What reading a picture out of a damaged tar or Parquet file raises."""
_BROKEN_PICTURE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""PIL raises SyntaxError for a broken PNG."""

Pair = tuple[ExpectedPicture, ExpectedPicture | None]
"""A row, and the baseline's row of the same id, prompt and seed."""
IsKnown = Callable[[str], bool]
"""Whether all that is asked of the picture with this sha256 is known, so that its pixels need not be seen."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of any set, read when it is needed."""

    row_id: str
    """Its name within the set."""
    sha256: str
    """Of its file's bytes: the key of everything that is cached about it."""
    read: Callable[[], np.ndarray]
    """Decodes it: uint8 (height, width, 3)."""


@dataclass(slots=True)
class LoadedPicture:
    """What was found of an expected picture."""

    expected: ExpectedPicture
    """The row that asks for it."""
    data: bytes = b""
    """The file; empty when there is nothing to see, or it is no picture."""
    sha256: str = ""
    """Of the bytes that were found; empty when there are none."""
    defect: str | None = None
    """One of NOTHING_TO_SEE; what shows only in the pixels is found by `metrics.sanity`."""
    seconds: tuple[float, float] = (0.0, 0.0)
    """Of reading and of decoding."""
    decoded: np.ndarray | None = None
    """Pixels, when they were needed already."""

    @property
    def is_there(self) -> bool:
        """Whether there is something to see."""
        return bool(self.data)

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (height, width, 3), decoded when they are asked for; only where there is something to see."""
        if self.decoded is None:
            self.decoded = decode_picture(self.data)
        return self.decoded

    def to_picture(self) -> Picture:
        """For feature extractors; only where there is something to see."""
        return Picture(self.expected.row_id or "", self.sha256, lambda: self.pixels)


@dataclass(slots=True)
class Chunk:
    """Some pictures in the order of the results, with their partners of the baseline where there is one."""

    pictures: Sequence[LoadedPicture]
    """Every picture that was expected here, found or not."""
    partners: Sequence[LoadedPicture | None]
    """As many; None where the baseline has no row with this id, image, prompt and seed."""
    shared: dict[str, np.ndarray] = field(default_factory=dict)
    """What several metrics need of this chunk, such as features, by its name."""

    def __len__(self) -> int:
        return len(self.pictures)


def decode_picture(data: bytes) -> np.ndarray:
    """Pixels uint8 (height, width, 3) of a file's bytes; transparency is dropped.

    Raises:
        ValueError: it holds more than 8 bits per channel.
        OSError: it is no picture, or cut off.
    """
    with Image.open(io.BytesIO(data)) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"pictures of mode {picture.mode} have more than 8 bits per channel")
        return np.array(picture.convert("RGB"))


def load_picture(reader: PictureReader, expected: ExpectedPicture, is_known: IsKnown) -> LoadedPicture:
    """Reads one picture, and decodes it unless all that is asked of it is known.

    Storage that does not answer is an error, a broken file is a defect.
    """
    if expected.path is None or not expected.has_picture:
        return LoadedPicture(expected, defect=expected.defect)
    started = time.perf_counter()
    try:
        data = reader.read(expected.path)
    except ObjectNotFoundError:
        return LoadedPicture(expected, defect="missing")
    except BROKEN_CONTAINER:
        return LoadedPicture(expected, defect="unreadable")
    digest, read = hashlib.sha256(data).hexdigest(), time.perf_counter()
    picture = LoadedPicture(expected, data, digest)
    try:
        decoded = None if is_known(digest) else picture.pixels
    except _BROKEN_PICTURE:
        return LoadedPicture(expected, b"", digest, "unreadable", (read - started, 0.0))
    decoding = 0.0 if decoded is None else time.perf_counter() - read
    return replace(picture, decoded=decoded, seconds=(read - started, decoding))


def know_nothing(sha256: str) -> bool:  # noqa: ARG001 - part of the contract
    """An `IsKnown` under which every picture is decoded."""
    return False


_Waiting = tuple[list[Future[LoadedPicture]], list[Future[LoadedPicture] | None]]


class ChunkReader:
    """Decodes pictures chunk by chunk, the next one while the caller works on this one.

    Args:
        run: The run's folder.
        baseline: The baseline's folder; None when there is none.
        is_known: Pictures that need not be decoded ahead.
    """

    def __init__(self, run: Storage, baseline: Storage | None = None, is_known: IsKnown = know_nothing) -> None:
        self._run = PictureReader(run)
        self._baseline = PictureReader(baseline) if baseline is not None else None
        self._is_known = is_known

    def read(self, pairs: Iterable[Pair]) -> Iterator[Chunk]:
        """Chunks in the order of the pairs; how they are cut changes no number."""
        pairs = iter(pairs)
        first = next(pairs, None)
        if first is None:
            return
        groups = _cut(chain([first], pairs), choose_chunk_size(first[0], self._baseline is not None))
        with ThreadPoolExecutor(READERS, thread_name_prefix="decode") as pool:
            waiting = self._submit(pool, next(groups))
            for group in groups:
                following = self._submit(pool, group)
                yield _collect(waiting)
                waiting = following
            yield _collect(waiting)

    def _submit(self, pool: ThreadPoolExecutor, group: Sequence[Pair]) -> _Waiting:
        loaded = [pool.submit(load_picture, self._run, expected, self._is_known) for expected, _ in group]
        if self._baseline is None:
            return loaded, [None] * len(group)
        known = self._is_known
        return loaded, [pool.submit(load_picture, self._baseline, row, known) if row else None for _, row in group]


def choose_chunk_size(first: ExpectedPicture, has_baseline: bool) -> int:
    """Pictures of one chunk, from the size of the first: as many as CHUNK_BYTES holds."""
    size = 3 * (first.width or 1024) * (first.height or 1024) * (2 if has_baseline else 1)
    return min(max(CHUNK_BYTES // size, 1), LARGEST_CHUNK)


def _cut(pairs: Iterator[Pair], size: int) -> Iterator[list[Pair]]:
    while group := list(islice(pairs, size)):
        yield group


def _collect(waiting: _Waiting) -> Chunk:
    loaded, partners = waiting
    return Chunk([each.result() for each in loaded], [each.result() if each else None for each in partners])
