"""What a batch file means here is what it means to the run: no line names a model behind the server's back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import orjson
import pytest

from dgate_core.api.batch_input import check_lines, count_pictures, write_manifest
from dgate_core.api.served_models import ServedModels
from dgate_core.manifest.json_lines import BOM, MAX_LINE_BYTES
from dgate_core.manifest.read import open_manifest
from dgate_core.storage import open_storage
from tests.api.batch_lab import make_line

STRANGE = "/srv/secret-model"
GOOD = json.dumps(make_line(0, model="tiny")).encode()
BAD = json.dumps(make_line(1, model=STRANGE)).encode()
ROW = json.dumps({"prompt": "a red boat", "model": STRANGE, "num_images": 500}).encode()


@pytest.fixture(scope="module")
def models(checkpoint: str) -> ServedModels:
    return ServedModels([f"tiny={checkpoint}"], lambda _: None)


def read_models(data: bytes, models: ServedModels, folder: Path) -> list[str | None]:
    """Models as the run's own reader sees them, of a file that was not refused."""
    write_manifest(io.BytesIO(data), models, open_storage(folder), "manifest.jsonl")
    manifest = open_manifest([str(folder / "manifest.jsonl")])
    return [name for batch in manifest.read_batches() for name in batch.columns["model"].to_pylist()]


@pytest.mark.parametrize(
    "data",
    [
        BAD,
        BOM + BAD,
        b"\n\n" + BAD,
        GOOD + b"\n" + ROW + b"\n" + BAD,
        ROW,
        b"{broken\n{}\n[]\n" + ROW,
        BAD + b" " * MAX_LINE_BYTES + b"x",
    ],
    ids=["plain", "mark", "blank lines", "after a row", "a manifest's row", "row after broken ones", "cut"],
)
def test_strange_models_are_seen_and_refused(data: bytes, models: ServedModels) -> None:
    codes = {error["code"] for error in check_lines(io.BytesIO(data), models)}
    assert codes in ({"model_not_found"}, {"no_batch_request"})


@pytest.mark.parametrize(
    "data",
    [
        GOOD + b"\n" + BOM + BAD,
        BOM + BOM + BAD + b"\n" + GOOD,
        b"\n" + BOM + BAD + b"\n" + GOOD,
        BAD + b" " * (MAX_LINE_BYTES - len(BAD) - 1) + b"x\n" + GOOD,
        BAD + b" " * (MAX_LINE_BYTES - len(BAD) - 2) + b"x\n" + GOOD,
        BAD.replace(b"{", b'{"x": NaN, ', 1) + b"\n" + GOOD,
        BAD + b"\x00\n" + GOOD,
    ],
    ids=["mark inside", "two marks", "mark after blank", "cut at the end", "one short of the end", "nan", "nul"],
)
def test_what_cannot_be_read_here_cannot_be_read_there(data: bytes, models: ServedModels, tmp_path: Path) -> None:
    assert check_lines(io.BytesIO(data), models) == []
    read = read_models(data, models, tmp_path)
    assert STRANGE not in read
    assert len(read) == 2
    assert read.count(models.find_source("tiny")) == 1


def test_served_names_become_their_models_and_marks_do_no_harm(models: ServedModels, tmp_path: Path) -> None:
    assert read_models(BOM + GOOD + b"\r\n\n" + GOOD, models, tmp_path) == [models.find_source("tiny")] * 2


@pytest.mark.parametrize(
    ("body", "count"),
    [({}, 1), ({"n": 3}, 3), ({"n": 3.0}, 3), ({"num_images": 40}, 40), ({"n": 2, "num_images": 40}, 2),
     ({"n": "7"}, 1), ({"n": -5}, 1), ({"n": None, "num_images": 5}, 5)],
)  # fmt: skip
def test_pictures_are_counted_as_the_run_makes_them(body: dict[str, object], count: int) -> None:
    data = orjson.dumps(make_line(0, **body)) + b"\n\n{broken\n"
    assert count_pictures(io.BytesIO(data)) == count + 1
