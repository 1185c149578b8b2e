"""Exports a run into another tool's layout: all of its pictures or, where that tool would not notice, nothing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow.parquet as pq
from PIL import Image

from dgate_core.errors import DgateError
from dgate_core.evaluation.expected import read_expected
from dgate_core.registry import Registry
from dgate_core.runs.layout import RESULTS_FILE
from dgate_core.runs.pictures import PictureReader
from dgate_core.storage import Storage, open_storage

JPEG_QUALITY: Final = 95


class ExportError(DgateError):
    """A run that does not fit another tool's layout."""

    code = "export"


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of a run that is to be exported."""

    position: int
    """Number of its prompt in the run, from 0."""
    image_index: int
    """Number of the picture among those of its prompt."""
    id: str
    """Of the manifest's row."""
    prompt: str
    """What was asked for."""
    path: str | None
    """Of the file in the run; None when there is no picture."""
    columns: dict[str, Any]
    """The manifest's own columns that the layout reads."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How a run is exported."""

    allow_missing: bool = False
    """Leave pictures out that the run has not; only where the tool does not take another in their place."""
    style: str | None = None
    """HPSv2: the style of every row, for a manifest without a column `style`."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where everything goes."""

    pictures: dict[str, Sample]
    """By key in the export; the suffix decides the format."""
    texts: dict[str, str] = field(default_factory=dict)
    """Other files by their key."""
    left_out: int = 0
    """Pictures that the tool would not read, such as the second of a prompt."""
    warnings: tuple[str, ...] = ()
    """What a reader of the tool's numbers must know."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a tool reads."""

    name: str
    """As in `--layout`."""
    columns: tuple[str, ...]
    """Columns of the manifest that matter."""
    place: Callable[[Sequence[Sample], ExportOptions], Placement]
    """Decides every file's name; raises ExportError where a row does not fit."""
    tolerates_missing: bool
    """Whether the tool leaves out a picture that is not there, and does not take another one's."""
    command: str
    """What scores the export; `{out}` is the folder."""


@dataclass(frozen=True, slots=True)
class Export:
    """What was exported."""

    layout: str
    """Name of the layout."""
    out: str
    """Its folder."""
    pictures: int
    """Files written."""
    expected: int
    """Pictures that the run was to make."""
    missing: int
    """Pictures that the run has not."""
    left_out: int
    """Pictures that the tool would not read."""
    warnings: tuple[str, ...]
    """What a reader of the tool's numbers must know."""
    command: str
    """What scores them."""


LAYOUTS: Final = Registry(
    "layout",
    {
        "geneval": "dgate_core.evaluation.exporters.geneval:LAYOUT",
        "t2i-compbench": "dgate_core.evaluation.exporters.t2i_compbench:LAYOUT",
        "hpsv2": "dgate_core.evaluation.exporters.hpsv2:LAYOUT",
    },
)


def export_run(run_uri: str, layout_name: str, out: str, options: ExportOptions | None = None) -> Export:
    """Writes a finished run's pictures where a tool expects them; PNG stays the same bytes wherever PNG is read.

    Args:
        run_uri: The run's folder, a path or s3://.
        layout_name: One of LAYOUTS.
        out: An empty or new folder, a path or s3://.
        options: What may be left out.

    Raises:
        ExportError: pictures are missing, the folder is not empty, or a row does not fit the layout.
    """
    options, layout = options or ExportOptions(), LAYOUTS.load(layout_name)
    run, target = open_storage(run_uri), open_storage(out)
    _check_empty(target)
    samples = list(read_samples(run, layout.columns))
    made = [sample for sample in samples if sample.path is not None]
    _check_complete(samples, made, layout, options)
    placement = layout.place(made, options)
    reader = PictureReader(run)
    for key, sample in placement.pictures.items():
        target.write_bytes(key, convert_picture(reader.read(sample.path or ""), key), durable=False)
    for key, text in placement.texts.items():
        target.write_bytes(key, text.encode(), durable=False)
    target.sync()
    return Export(
        layout=layout_name,
        out=target.uri,
        pictures=len(placement.pictures),
        expected=len(samples),
        missing=len(samples) - len(made),
        left_out=placement.left_out,
        warnings=placement.warnings,
        command=layout.command.format(out=target.uri),
    )


def read_samples(run: Storage, columns: Sequence[str]) -> Iterator[Sample]:
    """Every picture that the run was to make, in manifest order, with some of the manifest's own columns."""
    own = _read_columns(run, columns)
    position, last = -1, None
    for expected in read_expected(run):
        position, last = (position, last) if expected.id == last else (position + 1, expected.id)
        there = expected.has_picture and expected.prompt is not None
        yield Sample(
            position,
            expected.image_index,
            expected.id,
            expected.prompt or "",
            expected.path if there else None,
            own.get(expected.key, {}),
        )


def convert_picture(data: bytes, key: str) -> bytes:
    """The picture in the format of the key's suffix, .png or .jpg; bytes that are so already stay as they are."""
    wanted = "PNG" if key.endswith(".png") else "JPEG"
    with Image.open(io.BytesIO(data)) as picture:
        if picture.format == wanted:
            return data
        out = io.BytesIO()
        settings: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if wanted == "JPEG" else {}
        picture.convert("RGB").save(out, wanted, **settings)
        return out.getvalue()


def _read_columns(run: Storage, columns: Sequence[str]) -> dict[tuple[str, int], dict[str, Any]]:
    with run.open_read(RESULTS_FILE) as stream:
        file = pq.ParquetFile(stream)
        own = [name for name in columns if name in file.schema_arrow.names]
        if not own:
            return {}
        rows = file.read(columns=["id", "image_index", *own]).to_pylist()
    return {(row["id"], row["image_index"]): {name: row[name] for name in own} for row in rows}


def _check_empty(target: Storage) -> None:
    if first := next(target.list_objects(), None):
        raise ExportError(
            f"{target.uri} holds {first.key}", "an empty or new folder", "give another --out: tools read all they find"
        )


def _check_complete(samples: Sequence[Sample], made: Sequence[Sample], layout: Layout, options: ExportOptions) -> None:
    missing = len(samples) - len(made)
    if not made:
        raise ExportError(f"the run has none of its {len(samples)} pictures", "pictures", "run: dgate retry RUN")
    if missing == 0 or (options.allow_missing and layout.tolerates_missing):
        return
    reason = "would not count them" if layout.tolerates_missing else "would score another picture in their place"
    hint = ", or leave them out with --allow-missing" if layout.tolerates_missing else ""
    raise ExportError(
        f"{missing} of {len(samples)} pictures are missing, and {layout.name} {reason}",
        "every picture of the run",
        f"run: dgate retry RUN{hint}",
    )
