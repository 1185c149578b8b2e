"""Cells of known columns: every way of saying the same thing gives the same value, and nothing is repaired silently."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgate_core.manifest.lora import list_adapters, parse_lora
from dgate_core.manifest.values import check_utf8, read_array, read_texts, read_values

INT64 = st.integers(-(2**63), 2**63 - 1)
NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("said", "canonical"),
    [
        ("ink", [["ink", 1.0]]),
        ("ink:0.8", [["ink", 0.8]]),
        (" snow:0.5 , ink ", [["ink", 1.0], ["snow", 0.5]]),
        (["snow", "ink:2"], [["ink", 2.0], ["snow", 1.0]]),
        ([["ink", 1], ["snow", 0.5]], [["ink", 1.0], ["snow", 0.5]]),
        ([{"name": "ink", "scale": 0.8}, {"name": "snow"}], [["ink", 0.8], ["snow", 1.0]]),
        ({"name": "ink", "scale": None}, [["ink", 1.0]]),
        ('[["ink", 0.8]]', [["ink", 0.8]]),
        ("s3://bucket/ink.safetensors", [["s3://bucket/ink.safetensors", 1.0]]),
        ("s3://bucket/ink:0.5", [["s3://bucket/ink", 0.5]]),
        ([["ink", -0.0]], [["ink", 0.0]]),
        ("", []),
        ([], []),
    ],
)
def test_every_way_of_naming_adapters(said: Any, canonical: list[Any]) -> None:
    assert json.loads(parse_lora(said)) == canonical


@pytest.mark.parametrize(
    "said",
    [
        3,
        [3],
        [["ink"]],
        [["ink", "0.8"]],
        "ink:nan",
        [["ink", True]],
        ["ink", "ink"],
        {"nom": "ink"},
        "[broken",
        [[""]],
    ],
)
def test_adapters_that_cannot_be_understood(said: Any) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_lora(said)


@given(st.dictionaries(NAMES, st.floats(-4, 4), max_size=4))
def test_lora_forms_agree(scales: dict[str, float]) -> None:
    pairs = [[name, scale] for name, scale in scales.items()]
    objects = [{"name": name, "scale": scale} for name, scale in scales.items()]
    text = ",".join(f"{name}:{scale!r}" for name, scale in scales.items())
    assert parse_lora(pairs) == parse_lora(objects) == parse_lora(text) == parse_lora(json.dumps(pairs))
    assert parse_lora(parse_lora(pairs)) == parse_lora(pairs)
    assert list_adapters(parse_lora(pairs)) == sorted(scales)


@given(st.lists(st.none() | INT64, min_size=1))
def test_whole_numbers_agree_over_formats(seeds: list[int | None]) -> None:
    texts = pa.array(["" if seed is None else str(seed) for seed in seeds])
    read = [read_values("seed", seeds), read_texts("seed", texts), read_array("seed", pa.array(seeds, pa.int64()))]
    assert [cells.to_pylist() for cells, _ in read] == [seeds] * 3
    assert not any(issues for _, issues in read)


@given(st.lists(st.floats(0, 100, width=32), min_size=1))
def test_single_precision_means_the_number_that_was_written(numbers: list[float]) -> None:
    single = pa.array(numbers, pa.float32())
    written = single.cast(pa.string())
    assert read_array("guidance_scale", single)[0].equals(read_texts("guidance_scale", written)[0])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.lists(SCALARS | st.lists(st.text()) | st.dictionaries(st.text(), st.text())))
def test_any_json_value_is_read_or_reported(values: list[Any]) -> None:
    for column in ("id", "prompt", "seed", "guidance_scale", "lora", "tags"):
        cells, issues = read_values(column, values)
        told = {issue.row for issue in issues}
        assert len(cells) == len(values)
        for row, (value, cell) in enumerate(zip(values, cells.to_pylist(), strict=True)):
            assert (row in told) == (value is not None and cell is None)
            if row not in told and isinstance(value, int | float) and column in ("seed", "guidance_scale"):
                assert cell == value or cell == float(value) or math.isnan(value)


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("prompt", 5, "bad_type"),
        ("width", "64", "bad_type"),
        ("width", 64.5, "bad_type"),
        ("width", True, "bad_type"),
        ("width", 2**70, "bad_size"),
        ("seed", 2.0**64, "seed_out_of_range"),
        ("num_images", float("nan"), "bad_type"),
        ("guidance_scale", "7", "bad_type"),
        ("lora", 3, "bad_type"),
        ("tags", [1], "bad_type"),
        ("id", 1.5, "bad_type"),
    ],
)
def test_json_cells_of_another_type(column: str, value: Any, code: str) -> None:
    cells, issues = read_values(column, [None, value])
    assert cells.to_pylist() == [None, None]
    assert [(issue.row, issue.column, issue.code) for issue in issues] == [(1, column, code)]


def test_a_whole_number_may_come_as_a_float_and_an_id_as_a_number() -> None:
    assert read_values("width", [64.0, 128])[0].to_pylist() == [64, 128]
    assert read_array("width", pa.array([64.0, None]))[0].to_pylist() == [64, None]
    assert read_array("width", pa.array([64.5]))[1][0].code == "bad_type"
    assert read_values("id", [7, "x", 8.0])[0].to_pylist() == ["7", "x", "8"]
    assert read_array("id", pa.array([7, 8]))[0].to_pylist() == ["7", "8"]


def test_csv_cells_of_another_type() -> None:
    cells, issues = read_texts("width", pa.array(["64", " 64.0 ", "abc", "", "1e3", "9" * 30]))
    assert cells.to_pylist() == [64, 64, None, None, None, None]
    assert [(issue.row, issue.code) for issue in issues] == [(2, "bad_type"), (4, "bad_type"), (5, "bad_size")]
    assert read_texts("guidance_scale", pa.array(["7.5", "x"]))[1][0].code == "bad_type"


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([["a", "b"], None]), [["a", "b"], None]),
        (pa.array(["a, b,", None]), [["a", "b"], None]),
        (pa.array(["a,b", None]).dictionary_encode(), [["a", "b"], None]),
    ],
)
def test_tags_in_parquet(array: pa.Array, expected: list[Any]) -> None:
    assert read_array("tags", array)[0].to_pylist() == expected


@pytest.mark.parametrize(
    "array",
    [
        pa.array([["ink"], None]),
        pa.array([[{"name": "ink", "scale": 1.0}], None]),
        pa.array(["ink:1", None]),
        pa.array(["ink", None], pa.large_string()),
    ],
)
def test_lora_in_parquet(array: pa.Array) -> None:
    assert read_array("lora", array)[0].to_pylist() == ['[["ink",1.0]]', None]


def test_bytes_that_are_no_utf8_spoil_their_row_only() -> None:
    broken = pa.array([b"good", b"\xff\xfe", None]).view(pa.string())
    cells, issues = check_utf8("note", broken)
    assert cells.to_pylist() == ["good", None, None]
    assert [(issue.row, issue.column, issue.code) for issue in issues] == [(1, "note", "bad_utf8")]
    assert read_array("prompt", broken)[1][0].code == "bad_utf8"
