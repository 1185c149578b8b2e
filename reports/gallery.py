"""The gallery of a run: a page that opens from disk, with every picture, its parameters and every failure."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from dgate_core.runs.layout import GALLERY_FILE
from dgate_core.runs.pictures import PictureReader
from dgate_core.storage import Storage
from reports.collect import CollectedRun, collect_run
from reports.columns import encode_dictionary
from reports.html import PageThumbnails, render_page
from reports.thumbnails import chunk_to_script, make_chunks

CHUNKS_PREFIX = "report/thumbnails-"


@dataclass(frozen=True, slots=True)
class GalleryOptions:
    """How much a gallery shows, and how it is cut."""

    page_size: int = 120
    """Pictures shown at once."""
    thumbnail_size: int = 128
    """Longest side of a thumbnail in pixels; smaller pictures keep their size."""
    chunk_size: int = 480
    """Thumbnails per file; the first so many lie in the page itself."""
    max_pictures: int = 50_000
    """Rows without an error that are shown; the page says what is left out."""
    max_errors: int = 100_000
    """Error rows that are shown; the page says what is left out."""


def write_gallery(run: Storage, *, options: GalleryOptions = GalleryOptions()) -> str:
    """Write the gallery of a finished or partly finished run into its folder and return the page's key.

    Raises:
        RunError: The folder holds no run.json.
        StorageError: The folder cannot be read or written.
    """
    collected = collect_run(run, options.max_pictures, options.max_errors)
    thumbnails = write_thumbnails(run, list_pictures(collected), options)
    is_local = run.local_path(GALLERY_FILE) is not None
    page = render_page(collected, thumbnails, options.page_size, None if is_local else run.uri)
    run.write_bytes(GALLERY_FILE, page.encode())  # last: the page never names a chunk that is not there
    return GALLERY_FILE


def list_pictures(collected: CollectedRun) -> list[str]:
    """Paths of the pictures, each once, in manifest order."""
    rows = collected.rows
    paths: pa.ChunkedArray = rows["path"] if "path" in rows.column_names else pa.chunked_array([], pa.string())
    return list(encode_dictionary(paths)["d"])


def write_thumbnails(run: Storage, paths: list[str], options: GalleryOptions) -> PageThumbnails:
    """Write every chunk of thumbnails but the first, which the page holds itself."""
    run.delete_many([item.key for item in run.list_objects(CHUNKS_PREFIX)])
    chunks = make_chunks(paths, PictureReader(run).read, options.thumbnail_size, options.chunk_size)
    first_chunk: list[str | None] = []
    unreadable = 0
    for number, chunk in enumerate(chunks, start=1):
        unreadable += chunk.count(None)
        if number == 1:
            first_chunk = chunk
        else:
            run.write_bytes(f"{CHUNKS_PREFIX}{number:04d}.js", chunk_to_script(number, chunk), durable=False)
    return PageThumbnails(first_chunk, options.chunk_size, unreadable)
