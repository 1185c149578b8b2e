"""Opening manifests: files and folders, formats, extra columns, and files that are broken as a whole."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dgate_core.errors import ManifestError
from dgate_core.manifest.read import Manifest, open_manifest
from tests.manifest_samples import write_csv, write_jsonl, write_parquet

ROWS = [{"id": f"r{n}", "prompt": f"card {n}", "width": 64, "customer": "Ann"} for n in range(3)]


def read_column(manifest: Manifest, name: str) -> list[object]:
    return [value for batch in manifest.read_batches() for value in batch.columns[name].to_pylist()]


def read_extra(manifest: Manifest, name: str) -> list[object]:
    place = list(manifest.extras).index(name)
    return [value for batch in manifest.read_batches() for value in batch.extras[place].to_pylist()]


@pytest.mark.parametrize("name", ["m.parquet", "m.PQ", "m.jsonl", "m.ndjson", "m.csv"])
def test_every_format_gives_the_same_columns(tmp_path: Path, name: str) -> None:
    write = {"q": write_parquet, "t": write_parquet, "l": write_jsonl, "n": write_jsonl, "v": write_csv}[
        name.lower()[-1]
    ]
    manifest = open_manifest([str(write(tmp_path / name, ROWS))])
    assert read_column(manifest, "prompt") == ["card 0", "card 1", "card 2"]
    assert read_column(manifest, "width") == [64, 64, 64]
    assert read_column(manifest, "seed") == [None, None, None]
    assert read_extra(manifest, "customer") == ["Ann"] * 3
    assert manifest.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert not manifest.is_batch_api


@pytest.mark.parametrize("name", ["m.jsonl.gz", "m.csv.gz"])
def test_gzip_is_taken_off(tmp_path: Path, name: str) -> None:
    plain = (write_jsonl if "jsonl" in name else write_csv)(tmp_path / name.removesuffix(".gz"), ROWS)
    packed = tmp_path / name
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    manifest = open_manifest([str(packed)])
    assert read_column(manifest, "id") == ["r0", "r1", "r2"]
    assert manifest.sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("b.jsonl", "sub/c.jsonl", "a.jsonl"):
        write_jsonl(tmp_path / "in" / name, [{"prompt": name}])
    (tmp_path / "in" / "README.md").write_text("not a manifest")
    (tmp_path / "in" / "_SUCCESS").write_text("")
    manifest = open_manifest([str(tmp_path / "in")])
    assert read_column(manifest, "prompt") == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert [batch.first_position for batch in manifest.read_batches()] == [0, 1, 2]


def test_runs_below_the_folder_are_no_part_of_it(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    alone = open_manifest([str(tmp_path)])
    for mark, table in (("run.json", "results.parquet"), ("_run_claim-0001", "plan/part-00000.parquet")):
        run = tmp_path / "runs" / mark.partition(".")[0]
        (run / table).parent.mkdir(parents=True)
        (run / mark).write_text("{}")
        write_parquet(run / table, [{"prompt": "of a run"}])
        with pytest.raises(ManifestError, match="holds a run; name a file of it"):
            open_manifest([str(run)])
    assert open_manifest([str(tmp_path)]).sha256 == alone.sha256
    assert read_column(open_manifest([str(tmp_path / "runs/run/results.parquet")]), "prompt") == ["of a run"]


def test_the_hash_knows_contents_and_order_and_no_names(tmp_path: Path) -> None:
    one, two = write_jsonl(tmp_path / "1.jsonl", ROWS[:1]), write_jsonl(tmp_path / "2.jsonl", ROWS[1:])
    same = write_jsonl(tmp_path / "other-name.jsonl", ROWS[:1])
    hashes = [open_manifest([str(a), str(b)]).sha256 for a, b in ((one, two), (same, two), (two, one))]
    assert hashes[0] == hashes[1] != hashes[2]


def test_extra_columns_keep_their_types(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            pa.field("prompt", pa.string()),
            pa.field("when", pa.timestamp("ms", tz="UTC")),
            pa.field("price", pa.decimal128(9, 2)),
            pa.field("box", pa.list_(pa.float32())),
            pa.field("meta", pa.struct([pa.field("a", pa.int8())])),
            pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
        ]
    )
    row = {"prompt": "x", "when": 0, "price": None, "box": [1.5], "meta": {"a": 3}, "kind": "k"}
    manifest = open_manifest([str(write_parquet(tmp_path / "m.parquet", [row], schema))])
    fields = {field.name: field.type for field in manifest.own_fields}
    assert fields == {field.name: field.type for field in schema if field.name not in ("prompt", "kind")} | {
        "kind": pa.string()
    }
    assert read_extra(manifest, "meta") == [{"a": 3}]
    assert read_extra(manifest, "kind") == ["k"]


def test_json_extras_take_the_type_that_fits_all_or_become_json_text(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "n1": 1, "mixed": 1, "nested": {"x": 1}, "late": None, "empty": {}},
        {"prompt": "b", "n1": 2.5, "mixed": "one", "nested": {"y": "z"}, "flag": True},
        {"prompt": "c", "n1": 2**60, "mixed": [1], "late": "text"},
    ]
    manifest = open_manifest([str(write_jsonl(tmp_path / "m.jsonl", rows))])
    types = {field.name: str(field.type) for field in manifest.own_fields}
    assert types == {
        "n1": "double",
        "mixed": "string",
        "nested": "struct<x: int64, y: string>",
        "late": "string",
        "empty": "string",
        "flag": "bool",
    }
    assert read_extra(manifest, "mixed") == ["1", '"one"', "[1]"]
    assert read_extra(manifest, "n1") == [1.0, 2.5, float(2**60)]
    assert read_extra(manifest, "nested") == [{"x": 1, "y": None}, {"x": None, "y": "z"}, None]
    assert read_extra(manifest, "flag") == [None, True, None]


def test_types_are_joined_over_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "1.parquet", [{"prompt": "a", "x": 1, "y": "s"}])
    write_parquet(tmp_path / "2.parquet", [{"prompt": "b", "x": 1.5, "y": 3, "z": "new"}])
    manifest = open_manifest([str(tmp_path)])
    assert read_extra(manifest, "x") == [1.0, 1.5]
    assert read_extra(manifest, "y") == ['"s"', "3"]
    assert read_extra(manifest, "z") == [None, "new"]


def test_numbers_over_many_batches_are_joined(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "x": 2**60} for _ in range(17_000)] + [{"prompt": "b", "x": 0.5}]
    manifest = open_manifest([str(write_jsonl(tmp_path / "m.jsonl", rows))])
    values = read_extra(manifest, "x")
    assert values[0] == float(2**60)
    assert values[-1] == 0.5


@pytest.mark.parametrize("group_rows", [7, 1000, 60_000])
def test_row_groups_of_any_size_are_read_in_order(tmp_path: Path, group_rows: int) -> None:
    pq.write_table(
        pa.table({"prompt": [f"{n}" for n in range(40_000)]}), tmp_path / "m.parquet", row_group_size=group_rows
    )
    batches = list(open_manifest([str(tmp_path / "m.parquet")]).read_batches())
    assert [text for batch in batches for text in batch.columns["prompt"].to_pylist()] == [
        f"{n}" for n in range(40_000)
    ]
    assert np.concatenate([batch.lines for batch in batches]).tolist() == list(range(1, 40_001))
    assert len(batches) <= 6


def test_a_column_with_a_name_of_ours_is_renamed(tmp_path: Path) -> None:
    manifest = open_manifest([str(write_jsonl(tmp_path / "m.jsonl", [{"prompt": "a", "path": "p", "status": 1}]))])
    assert [field.name for field in manifest.own_fields] == ["manifest.path", "manifest.status"]


def test_csv_with_quoted_newlines_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes('\ufeffprompt,seed,code\r\n"a ""red""\nboat, at sea",5,007\r\n\r\nplain,,\r\n'.encode())
    manifest = open_manifest([str(path)])
    (batch,) = manifest.read_batches()
    assert batch.columns["prompt"].to_pylist() == ['a "red"\nboat, at sea', "plain"]
    assert batch.columns["seed"].to_pylist() == [5, None]
    assert batch.lines.tolist() == [2, 5]
    assert batch.extras[0].to_pylist() == ["007", ""]


def test_lookalikes_are_told_and_not_taken(tmp_path: Path) -> None:
    row = {
        "prompt": "a",
        "steps": 5,
        "cfg_scale": 2,
        "negative": "n",
        "negativ_prompt": "m",
        "Width": 3,
        "customer": 1,
        "controlnet": "x",
    }
    manifest = open_manifest([str(write_jsonl(tmp_path / "m.jsonl", [row]))])
    text = "\n".join(manifest.warnings)
    for name, meant in (
        ("steps", "num_inference_steps"),
        ("cfg_scale", "guidance_scale"),
        ("negative", "negative_prompt"),
        ("negativ_prompt", "negative_prompt"),
        ("Width", "width"),
    ):
        assert f"`{name}`" in text
        assert f"`{meant}`" in text
    assert "customer" not in text
    assert "`controlnet` is carried along and not used" in text
    assert read_column(manifest, "width") == [None]


def test_everything_wrong_with_whole_files_is_told_at_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "no-prompt.jsonl", [{"promt": "a"}])
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    (tmp_path / "table.xlsx").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.txt").write_text("x")
    names = ["no-prompt.jsonl", "empty.jsonl", "broken.parquet", "table.xlsx", "missing.csv", "folder"]
    with pytest.raises(ManifestError) as caught:
        open_manifest([str(tmp_path / name) for name in names])
    message = str(caught.value)
    for text in (
        "no-prompt.jsonl: there is no column 'prompt', only 'promt'; rename 'promt' to 'prompt'",
        "empty.jsonl: the file is empty",
        "broken.parquet: the Parquet file is broken",
        "table.xlsx: the suffix is not known",
        "missing.csv: there is no such file or folder",
        "folder: the folder holds no file",
        "two formats mixed",
    ):
        assert text in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.csv", b"", "the file is empty"),
        ("m.csv", b"prompt,seed\n", "empty below its header"),
        ("m.csv", b"prompt,seed,seed\na,1,2\n", "names seed more than once"),
        ("m.csv", b"prompt;seed\na;1\n", "'prompt;seed'; separate its columns by commas, not by ';'"),
        ("m.csv", b"caption\tseed\na\t1\n", r"separate its columns by commas, not by '\\t'"),
        ("m.csv", "prompt\na\n".encode("utf-16"), "not UTF-8"),
        ("m.jsonl", b"", "the file is empty"),
        ("m.jsonl", b'[\n{"prompt": "a"},\n{"prompt": "b"},\n]\n', "no line can be read as one JSON object"),
        ("m.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), "no line can be read"),
        ("m.jsonl.gz", b'{"prompt": "a"}\n', "damaged"),
        ("m.csv.gz", gzip.compress(b"prompt\n" + b"a\n" * 9000, mtime=0)[:-20], "damaged"),
        ("m.parquet", b"", "broken"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=expected):
        open_manifest([str(path)])


def test_an_empty_parquet_table_and_no_address(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="empty: it has no rows"):
        open_manifest([str(tmp_path / "m.parquet")])
    with pytest.raises(ManifestError, match="no manifest was given"):
        open_manifest([])


def test_parquet_damaged_in_the_middle_is_found_when_read(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(
        pa.table({"prompt": [f"card {n}" for n in range(5000)]}), path, compression="zstd", use_dictionary=False
    )
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)
    with pytest.raises(ManifestError, match="cannot be read"):
        list(open_manifest([str(path)]).read_batches())


def test_lines_of_two_kinds_do_not_mix(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "1.jsonl", [{"prompt": "a"}])
    two = write_jsonl(
        tmp_path / "2.jsonl", [{"custom_id": "c", "url": "/v1/images/generations", "body": {"prompt": "a"}}]
    )
    with pytest.raises(ManifestError, match="Batch API"):
        open_manifest([str(one), str(two)])


def test_batch_api_lines_become_rows(tmp_path: Path) -> None:
    body = {
        "prompt": "a boat",
        "model": "small",
        "n": 2,
        "size": "64x128",
        "quality": "high",
        "user": "ann",
        "negative_prompt": "rain",
        "num_inference_steps": 5,
        "guidance_scale": 2,
        "seed": 9,
        "lora": ["ink"],
        "style_preset": "watercolour",
    }
    line = {"custom_id": "c-1", "method": "POST", "url": "/v1/images/generations", "body": body}
    auto = {**line, "custom_id": "c-2", "body": {"prompt": "b", "size": "auto"}}
    manifest = open_manifest([str(write_jsonl(tmp_path / "m.jsonl", [line, auto]))])
    (batch,) = manifest.read_batches()
    assert manifest.is_batch_api
    assert {name: array.to_pylist() for name, array in batch.columns.items()} == {
        "id": ["c-1", "c-2"],
        "prompt": ["a boat", "b"],
        "negative_prompt": ["rain", None],
        "seed": [9, None],
        "num_images": [2, None],
        "width": [64, None],
        "height": [128, None],
        "num_inference_steps": [5, None],
        "guidance_scale": [2.0, None],
        "scheduler": [None, None],
        "model": ["small", None],
        "lora": ['[["ink",1.0]]', None],
        "style_preset": ["watercolour", None],
        "tags": [None, None],
    }
    assert read_extra(manifest, "quality") == ["high", None]
    assert read_extra(manifest, "user") == ["ann", None]
    assert not batch.problems
