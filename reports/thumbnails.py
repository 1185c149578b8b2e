"""Thumbnails of a run's pictures, made in parallel and kept in chunks that a page loads when it needs them."""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

from PIL import Image

from dgate_core.errors import StorageError

SMALL_PICTURE = 64
SMALL_QUALITY = 92
QUALITY = 80
MODES = frozenset({"L", "RGB", "RGBA"})

logger = logging.getLogger(__name__)

ReadPicture = Callable[[str], bytes]


def make_thumbnail(data: bytes, size: int) -> bytes:
    """A WebP of at most `size` pixels on its long side; smaller pictures keep their pixels.

    Raises:
        OSError, ValueError, SyntaxError: The bytes are no picture that Pillow can read.
    """
    with Image.open(BytesIO(data)) as picture:
        small = picture if picture.mode in MODES else picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
        small.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
        out = BytesIO()
        small.save(out, "WEBP", quality=SMALL_QUALITY if max(small.size) <= SMALL_PICTURE else QUALITY, method=3)
    return out.getvalue()


def make_chunks(paths: Sequence[str], read: ReadPicture, size: int, chunk_size: int) -> Iterator[list[str | None]]:
    """Base64 thumbnails of `paths`, `chunk_size` at a time; None stands for a picture that cannot be read.

    At most one picture per thread and one chunk of thumbnails are in memory.
    """

    def make(path: str) -> str | None:
        try:
            return base64.b64encode(make_thumbnail(read(path), size)).decode("ascii")
        except (OSError, ValueError, SyntaxError, StorageError, Image.DecompressionBombError) as error:
            logger.warning("no thumbnail of %s: %s", path, error)
            return None

    with ThreadPoolExecutor(os.cpu_count() or 1, "thumbnail") as pool:
        for start in range(0, len(paths), chunk_size):
            chunk = paths[start : start + chunk_size]
            ordered = sorted(chunk)  # so that each tar or Parquet file is opened once per chunk
            made = dict(zip(ordered, pool.map(make, ordered), strict=True))
            yield [made[path] for path in chunk]


def chunk_to_script(number: int, chunk: Sequence[str | None]) -> bytes:
    """A script that hands a chunk to the page: unlike JSON, it can be loaded from disk by a page on disk."""
    return f"dgateThumbnails({number},{json.dumps(chunk, separators=(',', ':'))});\n".encode("ascii")
