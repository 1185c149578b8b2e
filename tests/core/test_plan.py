"""Planning: what rows become, which are equal, and that the format of a manifest does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgate_core.errors import StorageError
from dgate_core.manifest.identity import RowSettings, derive_seed, make_row_id
from dgate_core.manifest.item import MAX_SEED
from dgate_core.manifest.plan import PlanOptions, plan_run
from dgate_core.manifest.plan_files import GROUP_ROWS, has_plan, name_plan_part, read_shard_index
from dgate_core.manifest.read import open_manifest
from dgate_core.manifest.shards import ShardOptions
from dgate_core.manifest.summary import format_plan
from dgate_core.runs.record import PLAN_SCHEMA
from dgate_core.runs.spec import GenerationDefaults, ImageFormat, RunSpec
from dgate_core.storage import open_storage
from tests.manifest_samples import (
    SMALL,
    find_limits,
    plan_files,
    plan_rows,
    read_plan,
    write_csv,
    write_jsonl,
    write_parquet,
)

TINY = RowSettings(
    weights_hash="5" * 64,
    negative_prompt="",
    width=64,
    height=64,
    num_inference_steps=20,
    guidance_scale=4.0,
    scheduler="euler",
    lora="[]",
)


def test_what_a_row_leaves_unsaid_comes_from_the_model(tmp_path: Path) -> None:
    _, (row,) = plan_rows(tmp_path, [{"prompt": "a boat"}])
    seed = derive_seed(0, "00000000")
    assert row == {
        "ordinal": 0,
        "position": 0,
        "id": "00000000",
        "image_index": 0,
        "row_id": make_row_id(TINY, seed, "a boat"),
        "status": "planned",
        "error_code": None,
        "error_message": None,
        "duplicate_of": None,
        "prompt": "a boat",
        "negative_prompt": "",
        "seed": seed,
        "width": 64,
        "height": 64,
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
        "scheduler": "euler",
        "model": "small",
        "lora": "[]",
        "style_preset": None,
        "tags": None,
        "warnings": [],
        "shard": 0,
    }


def test_defaults_of_the_run_come_before_the_models_and_the_row_before_both(tmp_path: Path) -> None:
    defaults = GenerationDefaults(
        negative_prompt="rain",
        num_images=2,
        width=128,
        num_inference_steps=5,
        guidance_scale=2.0,
        scheduler="ddim",
        lora="ink:0.5",
        style_preset="watercolour",
    )
    row = {
        "prompt": "b",
        "negative_prompt": "",
        "num_images": 1,
        "width": 64,
        "scheduler": "euler",
        "lora": [],
        "style_preset": "",
    }
    _, plan = plan_rows(tmp_path, [{"prompt": "a"}, row], spec=RunSpec(defaults=defaults))
    names = (
        "negative_prompt",
        "width",
        "height",
        "num_inference_steps",
        "guidance_scale",
        "scheduler",
        "lora",
        "style_preset",
    )
    by_default = ("rain", 128, 64, 5, 2.0, "ddim", '[["ink",0.5]]', "watercolour")
    assert [tuple(item[name] for name in names) for item in plan] == [
        by_default,
        by_default,
        ("", 64, 64, 5, 2.0, "euler", "[]", None),
    ]


def test_images_of_a_row_have_the_seeds_after_its_own(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "seed": 10, "num_images": 3},
        {"prompt": "", "num_images": 5},
        {"prompt": "c", "num_images": 2},
    ]
    summary, plan = plan_rows(tmp_path, rows)
    assert [(row["ordinal"], row["position"], row["image_index"]) for row in plan] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 0, 2),
        (3, 1, 0),
        (4, 2, 0),
        (5, 2, 1),
    ]
    assert [row["seed"] for row in plan[:3]] == [10, 11, 12]
    assert plan[5]["seed"] == plan[4]["seed"] + 1
    assert len({row["row_id"] for row in plan}) == 6
    assert (summary.rows, summary.images, summary.planned, summary.errors) == (3, 6, 5, 1)


def test_a_derived_seed_depends_on_the_runs_seed_and_the_id(tmp_path: Path) -> None:
    _, first = plan_rows(tmp_path, [{"prompt": "a", "id": "x"}, {"prompt": "a", "id": "y"}])
    _, moved = plan_rows(tmp_path, [{"prompt": "a", "id": "y"}, {"prompt": "a", "id": "x"}])
    _, other = plan_rows(tmp_path, [{"prompt": "a", "id": "x"}], spec=RunSpec(seed=1))
    assert first[0]["seed"] == moved[1]["seed"] != first[1]["seed"]
    assert other[0]["seed"] != first[0]["seed"]
    assert all(0 <= row["seed"] < 2**32 for row in first)


def test_equal_rows_are_made_once_and_linked(tmp_path: Path) -> None:
    same = {"prompt": "a", "seed": 3}
    rows = [
        same,
        {"prompt": "b"},
        {**same, "id": "again", "note": "x"},
        {**same, "model": "small", "num_inference_steps": 20},  # says what was unsaid
        {"prompt": "a", "seed": 2, "num_images": 2},  # its second image
        {**same, "guidance_scale": 4.5},
        {**same, "model": "nowhere"},
    ]
    summary, plan = plan_rows(tmp_path, rows)
    assert [row["status"] for row in plan] == [
        "planned",
        "planned",
        "duplicate",
        "duplicate",
        "planned",
        "duplicate",
        "planned",
        "error",
    ]
    assert [row["duplicate_of"] for row in plan] == [None, None, 0, 0, None, 0, None, None]
    assert [row["shard"] is None for row in plan] == [False, False, True, True, False, True, False, True]
    assert {plan[index]["row_id"] for index in (0, 2, 3, 5)} == {plan[0]["row_id"]}
    assert (summary.duplicates, summary.planned, summary.errors) == (3, 4, 1)


def test_a_bad_row_is_never_the_first_of_equal_ones(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y", "seed": 1}, {"id": "b", "prompt": "y", "seed": 1}]
    _, plan = plan_rows(tmp_path, rows)
    assert [row["status"] for row in plan] == ["planned", "error", "planned"]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "b"},
        {"negative_prompt": "n"},
        {"seed": 4},
        {"width": 128},
        {"height": 128},
        {"num_inference_steps": 21},
        {"guidance_scale": 4.25},
        {"scheduler": "ddim"},
        {"model": "large", "width": 256, "height": 256, "scheduler": "ddim"},
        {"lora": "ink"},
        {"lora": "ink:0.5"},
        {"style_preset": "watercolour"},
    ],
)
def test_everything_that_determines_pixels_enters_the_row_id(tmp_path: Path, change: dict[str, Any]) -> None:
    row = {"prompt": "a", "seed": 3}
    summary, plan = plan_rows(tmp_path, [row, {**row, **change}, {**row, "tags": "t", "customer": 5}])
    assert [item["status"] for item in plan] == ["planned", "planned", "duplicate"], summary.problems


def test_the_format_does_not_matter(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"r{n}",
            "prompt": f'boat "{n % 7}",\nÄ',
            "seed": None if n % 2 else n,
            "num_images": 1 + n % 3,
            "width": 64 if n % 4 else None,
            "guidance_scale": None if n % 5 else 7.1,
            "lora": "ink:0.8,snow" if n % 3 else None,
            "style_preset": "watercolour" if n % 6 else None,
            "tags": "a,b" if n % 2 else None,
        }
        for n in range(40)
    ]
    single = [
        pa.field(name, pa.float32() if name == "guidance_scale" else kind)
        for name, kind in ((field.name, field.type) for field in pa.Table.from_pylist(rows).schema)
    ]
    plans = []
    for name, write in (("m.csv", write_csv), ("m.jsonl", write_jsonl), ("m.parquet", write_parquet)):
        path = write(tmp_path / name, rows, pa.schema(single)) if name == "m.parquet" else write(tmp_path / name, rows)
        plans.append(read_plan(plan_files(tmp_path, path)[1]))
    assert plans[0] == plans[1] == plans[2]
    assert {row["status"] for row in plans[0]} == {"planned"}


def test_batch_api_rows_are_the_rows_that_they_say(tmp_path: Path) -> None:
    body = {"prompt": "a", "n": 2, "size": "128x64", "seed": 3}
    line = {"custom_id": "c", "method": "POST", "url": "/v1/images/generations", "body": body}
    _, batch = plan_rows(tmp_path, [line])
    _, plain = plan_rows(tmp_path, [{"id": "c", "prompt": "a", "num_images": 2, "width": 128, "height": 64, "seed": 3}])
    assert batch == plain


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "m.jsonl", [{"prompt": f"p{n}", "x": n} for n in range(50)])
    written = []
    for name in ("one", "two"):
        storage = open_storage(tmp_path / name)
        plan_run(open_manifest([str(path)]), RunSpec(), find_limits, storage)
        written.append({item.key: storage.read_bytes(item.key) for item in storage.list_objects()})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["plan/part-00000.parquet", "plan/shards.parquet"]


def test_own_columns_travel_with_their_types(tmp_path: Path) -> None:
    schema = pa.schema(
        [("prompt", pa.string()), ("num_images", pa.int64()), ("path", pa.string()), ("box", pa.list_(pa.int16()))]
    )
    table = [{"prompt": "a", "num_images": 2, "path": "p", "box": [1, 2]}, {"prompt": "", "path": "q"}]
    _, storage = plan_files(tmp_path, write_parquet(tmp_path / "m.parquet", table, schema))
    plan = read_plan(storage)
    assert [(row["manifest.path"], row["box"]) for row in plan] == [("p", [1, 2])] * 2 + [("q", None)]
    written = pq.read_schema(tmp_path / "run" / name_plan_part(0))
    assert written.remove_metadata() == pa.schema(
        [*PLAN_SCHEMA, ("manifest.path", pa.string()), ("box", pa.list_(pa.int16()))]
    )


def test_a_half_written_plan_is_planned_anew(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "run")
    storage.write_bytes(name_plan_part(7), b"left by a crash")
    assert not has_plan(storage)
    plan_rows(tmp_path, [{"prompt": "a"}])
    assert has_plan(storage)
    assert [item.key for item in storage.list_objects("plan/")] == [name_plan_part(0), "plan/shards.parquet"]


def test_without_a_destination_nothing_is_written(tmp_path: Path) -> None:
    manifest = open_manifest([str(write_jsonl(tmp_path / "m.jsonl", [{"prompt": "a"}]))])
    work = tmp_path / "work"
    work.mkdir()
    summary = plan_run(manifest, RunSpec(), find_limits, None, PlanOptions(work_folder=work))
    assert (summary.planned, summary.shards) == (1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.jsonl", "work"]
    assert not list(work.iterdir())


def test_a_work_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    options = PlanOptions(work_folder=tmp_path / "missing")
    with pytest.raises(StorageError, match="missing"):
        plan_rows(tmp_path, [{"prompt": "a"}], options=options)


def test_the_summary_estimates_time_and_disk(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n}", "width": 128 if n % 2 else 64, "guidance_scale": 1 if n < 100 else 4} for n in range(400)
    ]
    summary, _ = plan_rows(tmp_path, rows, options=PlanOptions(ShardOptions(lanes=2)))
    step = SMALL.seconds_per_step * 20
    assert [(group.key.width, group.key.guidance_scale, group.images) for group in summary.batch_keys] == [
        (64, 1.0, 50),
        (128, 1.0, 50),
        (64, 4.0, 150),
        (128, 4.0, 150),
    ]
    assert [group.seconds for group in summary.batch_keys] == pytest.approx(
        [25 * step, 50 * step, 150 * step, 300 * step]
    )
    assert summary.estimated_seconds[1] == pytest.approx(525 * step)
    assert 262 * step < summary.estimated_seconds[2] < 330 * step
    assert summary.estimated_bytes == int(SMALL.bytes_per_pixel * 200 * (64 * 64 + 128 * 64))
    text = format_plan(summary)
    for part in (
        "rows        400",
        "400 to make",
        "batch keys  4",
        "small 128x64, 20 steps euler, guidance 4",
        "on 2 lanes",
    ):
        assert part in text
    jpeg, _ = plan_rows(tmp_path, rows, spec=RunSpec(image=ImageFormat(format="jpeg")))
    assert jpeg.estimated_bytes < summary.estimated_bytes / 2


def test_many_images_of_few_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}", "num_images": 1000, "seed": 0} for n in range(40)]
    rows.append({"prompt": "39", "num_images": 700, "seed": 500})
    summary, storage = plan_files(tmp_path, write_jsonl(tmp_path / "m.jsonl", rows))
    assert (summary.images, summary.duplicates, summary.planned) == (40_700, 500, 40_200)
    assert sum(shard.rows for shard in read_shard_index(storage)) == 40_200
    plan = read_plan(storage)
    assert [row["duplicate_of"] for row in plan[-700:]] == [39_500 + k for k in range(500)] + [None] * 200
    assert len(plan) > 4 * GROUP_ROWS


REQUESTS = st.fixed_dictionaries(
    {"prompt": st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)},
    optional={
        "seed": st.integers(0, MAX_SEED - 3) | st.none(),
        "num_images": st.integers(1, 3),
        "width": st.sampled_from([32, 64, 256]),
        "guidance_scale": st.floats(0, 100) | st.integers(0, 100),
        "lora": st.sampled_from(["ink", ["snow", "ink"], [["ink", 0.5]], None]),
        "negative_prompt": st.text(st.characters(exclude_categories=["Cs"])),
        "style_preset": st.sampled_from(["watercolour", "", None]),
        "model": st.sampled_from(["small", "starter-unet", None]),
    },
)


@settings(deadline=None, max_examples=40)
@given(st.lists(REQUESTS, min_size=1, max_size=12))
def test_any_good_rows_are_planned_with_the_row_id_of_their_settings(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    summary, plan = plan_rows(tmp_path_factory.mktemp("plan"), rows)
    assert summary.errors == 0, summary.problems
    first: dict[str, int] = {}
    for item in plan:
        names = [name for name in RowSettings.__slots__ if name != "weights_hash"]
        settings_of_row = RowSettings(weights_hash=SMALL.weights_hash, **{name: item[name] for name in names})
        assert item["row_id"] == make_row_id(settings_of_row, item["seed"], item["prompt"])
        assert item["duplicate_of"] == first.get(item["row_id"])
        first.setdefault(item["row_id"], item["ordinal"])
    assert len(plan) == sum(row.get("num_images", 1) for row in rows)
