"""Pictures are found in files, tars and Parquet files, and thumbnails of them are small and honest."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from dgate_core.errors import ObjectNotFoundError, StorageError
from dgate_core.runs.pictures import OPEN_CONTAINERS, PictureReader, read_picture
from dgate_core.storage import Storage, open_storage
from reports.thumbnails import make_chunks, make_thumbnail
from tests.reports.sample_run import draw_noise, encode_picture, pack_parquet, pack_tar

PICTURES = [encode_picture(draw_noise("RGB", (32, 32), seed)) for seed in range(8)]


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    run = open_storage(tmp_path)
    run.write_bytes("shards/00000/images/a.png", PICTURES[0])
    run.write_bytes("shards/00000/images.tar", pack_tar({f"{i}.png": data for i, data in enumerate(PICTURES)}))
    run.write_bytes("shards/00000/images.parquet", pack_parquet(PICTURES))
    return run


def test_a_picture_is_read_from_each_kind_of_place(run: Storage) -> None:
    assert read_picture(run, "shards/00000/images/a.png") == PICTURES[0]
    assert read_picture(run, "shards/00000/images.tar#5.png") == PICTURES[5]
    assert [read_picture(run, f"shards/00000/images.parquet#{row}") for row in (7, 0, 4)] == [
        PICTURES[i] for i in (7, 0, 4)
    ]


@pytest.mark.parametrize("path", ["nowhere.png", "shards/00000/images.tar#9.png", "shards/00000/images.parquet#8"])
def test_a_picture_that_is_not_there_is_an_error_that_names_it(run: Storage, path: str) -> None:
    with pytest.raises(ObjectNotFoundError, match=path.partition("#")[2] or path):
        read_picture(run, path)


def test_a_parquet_file_without_bytes_is_an_error_that_names_its_columns(run: Storage) -> None:
    run.write_bytes("words.parquet", pack_parquet(["not", "bytes"], "words"))
    with pytest.raises(StorageError, match="words"):
        read_picture(run, "words.parquet#0")


def test_many_threads_read_many_containers(run: Storage) -> None:
    shards = range(OPEN_CONTAINERS * 2)
    for shard in shards:
        run.write_bytes(f"{shard}.tar", pack_tar({"p.png": PICTURES[shard], "q.png": PICTURES[0]}))
    reader = PictureReader(run)
    wanted = [shard for _ in range(5) for shard in shards]
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda shard: reader.read(f"{shard}.tar#p.png"), wanted))
    assert read == [PICTURES[shard] for shard in wanted]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "LA"])
def test_a_thumbnail_keeps_the_shape_in_every_mode(mode: str) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    thumbnail = Image.open(io.BytesIO(make_thumbnail(encode_picture(draw_noise(mode, (300, 200)), form), 96)))
    assert thumbnail.format == "WEBP"
    assert thumbnail.size == (96, 64)


def test_a_small_picture_keeps_its_pixels() -> None:
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    thumbnail = Image.open(io.BytesIO(make_thumbnail(encode_picture(picture), 96))).convert("RGB")
    assert thumbnail.size == (64, 64)
    worst = max(abs(a - b) for a, b in zip(picture.tobytes(), thumbnail.tobytes(), strict=True))
    assert worst <= 8


def test_a_picture_that_cannot_be_read_leaves_a_gap_and_no_more(run: Storage) -> None:
    run.write_bytes("cut.png", PICTURES[1][:200])
    run.write_bytes("text.png", b"no picture")
    paths = ["gone.png", "shards/00000/images/a.png", "cut.png", "text.png", "shards/00000/images.tar#2.png"]
    chunks = list(make_chunks(paths, PictureReader(run).read, 96, 2))
    assert [[thumbnail is not None for thumbnail in chunk] for chunk in chunks] == [
        [False, True],
        [False, False],
        [True],
    ]
    assert Image.open(io.BytesIO(base64.b64decode(chunks[2][0] or ""))).size == (32, 32)
