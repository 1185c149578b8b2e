"""A request's rows: what a manifest line with the same words becomes, whether its shape was seen before or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgate_core.api.errors import ApiError
from dgate_core.api.request_rows import RowMaker
from dgate_core.api.served_models import ServedModels
from dgate_core.engine.begin import plan_new_run
from dgate_core.manifest.plan_files import read_shard_index, read_shard_rows
from dgate_core.manifest.read import open_manifest
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.spec import RunSpec
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from tests.api.batch_lab import make_line, write_lines

BODY: dict[str, Any] = {"prompt": "a red boat", "n": 2, "seed": 9, "negative_prompt": "fog", "guidance_scale": 3}


@pytest.fixture
def maker(checkpoint: str) -> RowMaker:
    return RowMaker(RunSpec(), ServedModels([f"tiny={checkpoint}"], lambda _: None), steps_limit=250)


def test_rows_are_those_of_a_plan(maker: RowMaker, checkpoint: str, tmp_path: Path) -> None:
    line = make_line(0, **BODY, size="40x32")
    line["body"]["model"] = checkpoint
    manifest = open_manifest([str(write_lines(tmp_path / "in.jsonl", [line]))])
    store = RunStore(open_storage(tmp_path / "run"))
    plan_new_run(store, manifest, RunSettings(model=checkpoint, precision="float32"))
    planned = read_shard_rows(store.storage, read_shard_index(store.storage)[0]).to_pylist()
    for _ in range(2):
        made, key = maker.make_rows("row-0", {**line["body"], "model": "tiny"})
        names = [name for name in made[0] if name not in {"id", "shard"}]
        assert [{name: row[name] for name in names} for row in made] == [
            {name: row[name] for name in names} for row in planned
        ]
        assert (key.width, key.height) == (40, 32)


def test_a_shape_that_was_seen_before_gives_the_same_rows(maker: RowMaker) -> None:
    fresh, _ = maker.make_rows("a", {**BODY, "prompt": "a blue hill", "seed": 2**63 - 3})
    maker.make_rows("b", BODY)
    again, _ = maker.make_rows("a", {**BODY, "prompt": "a blue hill", "seed": 2**63 - 3})
    assert again == fresh


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompt": "  "}, "missing_prompt"),
        ({"prompt": "x" * 20_001}, "prompt_too_long"),
        ({"prompt": "\ud800"}, "bad_utf8"),
        ({"seed": 2**63 - 1}, "seed_out_of_range"),
        ({"size": "33x32"}, "bad_size"),
        ({"num_inference_steps": 251}, "bad_steps"),
        ({"scheduler": "nothing"}, "unknown_scheduler"),
        ({"lora": "nothing:1"}, "unknown_adapter"),
        ({"style_preset": "nothing"}, "unknown_style"),
    ],
)
def test_what_is_wrong_is_refused_also_where_the_shape_is_known(
    maker: RowMaker, change: dict[str, Any], code: str
) -> None:
    maker.make_rows("a", BODY)
    with pytest.raises(ApiError) as refused:
        maker.make_rows("b", {**BODY, **change})
    assert (refused.value.status, refused.value.api_code) == (400, code)
    assert json.dumps(str(refused.value))
