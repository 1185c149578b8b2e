"""A collected run as one page of HTML that needs nothing but itself and its chunks of thumbnails."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from reports.collect import CollectedRun
from reports.columns import encode_column, encode_dictionary
from reports.summary import format_duration, format_rate

TEMPLATES = files("reports") / "templates"
SCRIPTS = ("rows.js", "thumbnails.js", "filters.js", "grid.js", "viewer.js", "page.js")
SECONDS_DIGITS = 4


@dataclass(frozen=True, slots=True)
class PageThumbnails:
    """What a page must know of its thumbnails."""

    first_chunk: Sequence[str | None]
    """The chunk that lies in the page itself."""
    chunk_size: int
    """Thumbnails in each chunk."""
    unreadable: int = 0
    """Pictures without a thumbnail, since they cannot be read."""


def render_page(collected: CollectedRun, thumbnails: PageThumbnails, page_size: int, root_uri: str | None) -> str:
    """The page as HTML.

    Args:
        collected: The run.
        thumbnails: The first chunk and how the others are cut.
        page_size: Pictures shown at once.
        root_uri: The run's address when it is not on a disk; None when the page itself tells where the files lie.
    """
    content = {
        "count": collected.rows.num_rows,
        "columns": encode_rows(collected.rows),
        "pageSize": page_size,
        "chunkSize": thumbnails.chunk_size,
        "root": root_uri,
    }
    script = "\n".join(read_template(name) for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    return (
        open_templates()
        .get_template("gallery.html.j2")
        .render(
            run=collected.summary,
            failures=collected.failures,
            left_out=collected.left_out,
            unreadable=thumbnails.unreadable,
            style=read_template("gallery.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
            content=to_script_json(content),
            first_chunk=to_script_json(list(thumbnails.first_chunk)),
        )
    )


def open_templates() -> jinja2.Environment:
    """The folder of templates; everything put into one is escaped unless it is marked safe."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_template),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(duration=format_duration, rate=format_rate)
    return environment


def read_template(name: str) -> str:
    """The text of a file in the folder of templates."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def encode_rows(rows: pa.Table) -> dict[str, Any]:
    """The table as compact JSON by column; the numbers of `path`'s dictionary are those of the thumbnails."""
    encoded: dict[str, Any] = {}
    for name in rows.column_names:
        column = rows[name]
        if name == "seconds" and pa.types.is_floating(column.type):
            column = pc.round(column, SECONDS_DIGITS)
        form = encode_dictionary(column) if name == "path" else encode_column(column)
        if form is not None:
            encoded[name] = form
    return encoded


def to_script_json(content: object) -> str:
    """JSON that cannot end the script element that it stands in, nor begin a comment there."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
