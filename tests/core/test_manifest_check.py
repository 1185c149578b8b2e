"""Every problem that a row can have is found before anything is made, all of them, each with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dgate_core.errors import ConfigError, ManifestError, ModelError
from dgate_core.manifest.check import MAX_PROMPT_CHARACTERS
from dgate_core.manifest.plan import PlanOptions
from dgate_core.manifest.summary import format_plan
from dgate_core.runs.spec import GenerationDefaults, RunSpec
from tests.manifest_samples import list_codes, plan_files, plan_rows, read_plan, write_csv, write_jsonl, write_parquet


@pytest.mark.parametrize(
    ("row", "column", "code", "expected"),
    [
        ({"prompt": None}, "prompt", "missing_prompt", "a text"),
        ({"prompt": "  \n"}, "prompt", "missing_prompt", "a text"),
        ({"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, "prompt", "prompt_too_long", "at most 20,000"),
        ({"prompt": 3}, "prompt", "bad_type", "a text"),
        ({"negative_prompt": "x" * 20_001}, "negative_prompt", "prompt_too_long", "at most 20,000"),
        ({"width": 65}, "width", "bad_size", "a multiple of 8 from 32 to 256 for small, such as 64"),
        ({"height": 1000}, "height", "bad_size", "such as 256"),
        ({"height": -64}, "height", "bad_size", "such as 32"),
        (
            {"width": 64, "model": "large"},
            "width",
            "bad_size",
            "a multiple of 64 from 256 to 1024 for large",
        ),
        ({"width": 2**40}, "width", "bad_size", "such as 256"),
        ({"model": "smal"}, "model", "unknown_model", "one of large, small, starter-unet"),
        ({"scheduler": "eular"}, "scheduler", "unknown_scheduler", "did you mean 'euler'?"),
        ({"scheduler": "euler", "model": "large"}, "scheduler", "unknown_scheduler", "one of ddim"),
        ({"seed": -1}, "seed", "seed_out_of_range", "0 to 9223372036854775807"),
        ({"seed": 2**63}, "seed", "seed_out_of_range", "64 bits"),
        ({"seed": 2**63 - 1, "num_images": 2}, "seed", "seed_out_of_range", "last image"),
        ({"num_inference_steps": 0}, "num_inference_steps", "bad_steps", "1 to 1,000"),
        ({"num_inference_steps": 1001}, "num_inference_steps", "bad_steps", "1 to 1,000"),
        ({"guidance_scale": -0.5}, "guidance_scale", "bad_guidance", "0 to 100"),
        ({"guidance_scale": 101}, "guidance_scale", "bad_guidance", "0 to 100"),
        ({"num_images": 0}, "num_images", "bad_num_images", "1 to 1,000"),
        ({"num_images": 10**6}, "num_images", "bad_num_images", "1 to 1,000"),
        ({"lora": "inc"}, "lora", "unknown_adapter", "did you mean 'ink'?"),
        ({"lora": "ink", "model": "large"}, "lora", "unknown_adapter", "none, for the model has none"),
        ({"lora": {"a": 1}}, "lora", "bad_type", "a name"),
        ({"style_preset": "watercolor"}, "style_preset", "unknown_style", "did you mean 'watercolour'?"),
        ({"tags": 3}, "tags", "bad_type", "a list of texts"),
        ({"id": {"a": 1}}, "id", "bad_type", "a text"),
    ],
)
def test_each_problem(tmp_path: Path, row: dict[str, Any], column: str, code: str, expected: str) -> None:
    summary, plan = plan_rows(tmp_path, [{"prompt": "good"}, {"prompt": "a boat", **row}])
    (problem,) = summary.problems
    assert (problem.line, problem.column, problem.code) == (2, column, code)
    assert expected in problem.expected
    assert problem.file.endswith("rows.jsonl")
    assert [item["status"] for item in plan] == ["planned", "error"]
    assert plan[1]["error_code"] == code
    assert expected in plan[1]["error_message"]
    assert plan[1]["row_id"] == ""
    assert plan[1]["shard"] is None
    assert (plan[1]["position"], plan[1]["image_index"]) == (1, 0)


def test_a_row_with_three_problems_tells_three(tmp_path: Path) -> None:
    row = {"prompt": "", "width": 65, "scheduler": "x", "num_images": 4}
    summary, plan = plan_rows(tmp_path, [row])
    assert list_codes(summary.problems) == [
        (1, "prompt", "missing_prompt"),
        (1, "width", "bad_size"),
        (1, "scheduler", "unknown_scheduler"),
    ]
    (item,) = plan
    assert item["error_code"] == "missing_prompt"
    assert item["error_message"].count("expected") == 3
    assert (item["width"], item["scheduler"], item["height"], item["seed"]) == (65, "x", None, None)
    assert summary.problem_counts == {"missing_prompt": 1, "bad_size": 1, "unknown_scheduler": 1}
    assert (summary.rows, summary.errors, summary.planned, summary.shards) == (1, 1, 0, 0)


def test_duplicate_ids_name_the_first_line(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "1.jsonl", [{"id": "a", "prompt": "x"}, b"", {"id": "b", "prompt": "y"}])
    two = write_jsonl(
        tmp_path / "2.jsonl", [{"prompt": "z"}, {"id": "b", "prompt": "y"}, {"id": "a", "prompt": "x", "num_images": 3}]
    )
    summary, storage = plan_files(tmp_path, one, two)
    assert list_codes(summary.problems) == [(2, "id", "duplicate_id"), (3, "id", "duplicate_id")]
    assert summary.problems[0].expected == f"an id of its own; {one}:3 has this one"
    assert summary.problems[1].expected == f"an id of its own; {one}:1 has this one"
    assert [row["status"] for row in read_plan(storage)] == ["planned"] * 3 + ["error"] * 2
    assert [row["id"] for row in read_plan(storage)] == ["a", "b", "00000002", "b", "a"]


def test_an_id_that_is_another_rows_position_is_a_duplicate(tmp_path: Path) -> None:
    summary, _ = plan_rows(tmp_path, [{"id": "00000001", "prompt": "x"}, {"prompt": "y"}])
    assert list_codes(summary.problems) == [(2, "id", "duplicate_id")]


def test_broken_lines_are_rows_of_their_own(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a"},
        b'{"prompt": "b"',
        b"",
        b'{"prompt": "\xff"}',
        b"[1, 2]",
        {"prompt": "c"},
        b'{"prompt": NaN}',
    ]
    summary, plan = plan_rows(tmp_path, lines)
    assert list_codes(summary.problems) == [
        (2, "", "broken_line"),
        (4, "", "bad_utf8"),
        (5, "", "broken_line"),
        (7, "", "broken_line"),
    ]
    assert [row["status"] for row in plan] == ["planned", "error", "error", "error", "planned", "error"]
    assert [row["ordinal"] for row in plan] == list(range(6))


def test_a_line_without_end_is_one_bad_row(tmp_path: Path) -> None:
    lines = [{"prompt": "a"}, b'{"prompt": "' + b"x" * (17 << 20) + b'"}', {"prompt": "c"}]
    summary, plan = plan_rows(tmp_path, lines)
    assert list_codes(summary.problems) == [(2, "", "broken_line")]
    assert summary.problems[0].expected == "one JSON object of at most 8 MiB a line"
    assert [row["prompt"] for row in plan] == ["a", None, "c"]


def test_broken_csv_records(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b'prompt,seed,note\na,1,x\nb,2\nc,3,y,z\nd\xff,4,x\ne,5,\xfe\n"f"x,6,x\ng,seven,x\n"h,8,x\n')
    summary, storage = plan_files(tmp_path, path)
    assert list_codes(summary.problems) == [
        (3, "", "broken_line"),
        (4, "", "broken_line"),
        (5, "prompt", "bad_utf8"),
        (6, "note", "bad_utf8"),
        (7, "", "broken_line"),
        (8, "seed", "bad_type"),
        (9, "", "broken_line"),
    ]
    assert summary.problems[0].expected == "3 fields as in the header"
    assert [row["prompt"] for row in read_plan(storage)] == ["a", None, None, None, "e", None, "g", None]


def test_parquet_problems_name_the_row(tmp_path: Path) -> None:
    table = [{"prompt": "a", "width": 64, "seed": 1}, {"prompt": None, "width": 65, "seed": -4}]
    summary, _ = plan_files(tmp_path, write_parquet(tmp_path / "m.parquet", table))
    assert list_codes(summary.problems) == [
        (2, "prompt", "missing_prompt"),
        (2, "seed", "seed_out_of_range"),
        (2, "width", "bad_size"),
    ]


def test_a_parquet_column_of_another_type(tmp_path: Path) -> None:
    schema = pa.schema([("prompt", pa.string()), ("width", pa.string()), ("guidance_scale", pa.float64())])
    table = [{"prompt": "a", "width": "64", "guidance_scale": float("nan")}, {"prompt": "b"}]
    summary, _ = plan_files(tmp_path, write_parquet(tmp_path / "m.parquet", table, schema))
    assert list_codes(summary.problems) == [(1, "width", "bad_type"), (1, "guidance_scale", "bad_guidance")]


@pytest.mark.parametrize(
    ("change", "column", "code"),
    [
        ({"url": "/v1/chat/completions"}, "url", "unsupported_url"),
        ({"method": "GET"}, "method", "unsupported_url"),
        ({"body": "x"}, "body", "bad_type"),
        ({"body": {"prompt": "a", "size": "big"}}, "size", "bad_size"),
        ({"body": {"prompt": "a", "size": "65x64"}}, "width", "bad_size"),
        ({"body": {"prompt": "a", "n": 0}}, "num_images", "bad_num_images"),
        ({"body": {}}, "prompt", "missing_prompt"),
    ],
)
def test_batch_api_problems(tmp_path: Path, change: dict[str, Any], column: str, code: str) -> None:
    line = {"custom_id": "c", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a"}}
    good = {**line, "custom_id": "good"}
    summary, plan = plan_rows(tmp_path, [good, {**line, **change}])
    assert list_codes(summary.problems) == [(2, column, code)]
    assert [row["id"] for row in plan] == ["good", "c"]


def test_strict_stops_with_the_first_fifty(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "width": 65 + n} for n in range(6)] * 12
    with pytest.raises(ManifestError) as caught:
        plan_rows(tmp_path, rows, options=PlanOptions(strict=True))
    message = str(caught.value)
    assert message.startswith("72 problems in 72 of 72 rows:")
    assert message.count("[bad_size]") == 50
    assert "… and 22 more" in message
    assert "--strict" in message
    assert not (tmp_path / "run").exists()


def test_problems_are_kept_up_to_a_limit_and_all_counted(tmp_path: Path) -> None:
    summary, _ = plan_rows(tmp_path, [{"prompt": ""}] * 30, options=PlanOptions(problems_kept=5))
    assert len(summary.problems) == 5
    assert summary.total_problems == summary.errors == 30
    text = format_plan(summary)
    assert "problems    30: missing_prompt 30" in text
    assert "… and 25 more" in text


def test_defaults_that_cannot_be_stop_at_once(tmp_path: Path) -> None:
    defaults = GenerationDefaults(width=65, scheduler="x", num_inference_steps=0)
    with pytest.raises(ConfigError) as caught:
        plan_rows(tmp_path, [{"prompt": "a"}], spec=RunSpec(defaults=defaults))
    for text in ("defaults.width is 65", "defaults.scheduler is 'x'", "defaults.num_inference_steps is 0"):
        assert text in str(caught.value)
    with pytest.raises(ConfigError, match=r"defaults\.lora"):
        plan_rows(tmp_path, [{"prompt": "a"}], spec=RunSpec(defaults=GenerationDefaults(lora="ink:nan")))


def test_an_unknown_default_model_stops_unless_no_row_uses_it(tmp_path: Path) -> None:
    spec = RunSpec(defaults=GenerationDefaults(model="nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        plan_rows(tmp_path, [{"prompt": "a"}, {"prompt": "b", "model": "small"}], spec=spec)
    summary, _ = plan_rows(tmp_path, [{"prompt": "b", "model": "small"}], spec=spec)
    assert summary.planned == 1


def test_csv_and_jsonl_tell_the_same_of_the_same_rows(tmp_path: Path) -> None:
    rows = [
        {"id": f"{n}", "prompt": "p" if n % 3 else "", "width": 60 + n, "lora": "ink" if n % 2 else "x"}
        for n in range(20)
    ]
    told = []
    for name, write in (("m.csv", write_csv), ("m.jsonl", write_jsonl), ("m.parquet", write_parquet)):
        summary, _ = plan_files(tmp_path, write(tmp_path / name, rows))
        told.append([(p.line - (name == "m.csv"), p.column, p.code, p.expected) for p in summary.problems])
    assert told[0] == told[1] == told[2]
    assert len(told[0]) > 20
