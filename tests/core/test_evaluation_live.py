"""Scores prepared while the pictures are made are those of the files, and cost the lane nothing."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dgate_core.engine.observer import MadePicture
from dgate_core.engine.sinks import PictureFile
from dgate_core.evaluation import live
from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
from dgate_core.evaluation.live import LiveFeatures, find_file_pixels, read_frame, write_frame
from dgate_core.evaluation.pictures import decode_picture
from tests.postcard_run import draw_postcards
from tests.run_lab import Driver, Order, list_prompts, write_manifest

METRICS = ("sanity", "clip_score", "caption_choice", "attribute_accuracy")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))


def make_picture(pixels: np.ndarray, suffix: str, sha256: str) -> MadePicture:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"png": "png", "jpg": "jpeg"}[suffix])
    return MadePicture(pixels, PictureFile(0, sha256, suffix, file.getvalue(), "a prompt"))


def generate(folder: Path, **settings: Any) -> Path:
    """Postcards of the starter model at two steps."""
    prompts = [card.prompt for card in draw_postcards(5)]
    rows = [{**row, "prompt": prompt} for row, prompt in zip(list_prompts(5), prompts, strict=True)]
    manifest = write_manifest(folder / "m.jsonl", rows)
    plain = {"model": "starter-unet", "precision": "float32", "num_inference_steps": 2, "batch_size": 2, **settings}
    environment = {"DGATE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    answer = Driver(Order(str(folder / "run"), manifest, plain, environment=environment)).wait()
    assert not answer.error, answer.message
    return folder / "run"


@pytest.mark.parametrize("image_format", ["png", pytest.param("jpeg", marks=pytest.mark.slow)])
def test_scores_in_hand_are_those_of_the_files(tmp_path: Path, image_format: str) -> None:
    run = generate(tmp_path, score=METRICS, image_format=image_format)
    in_hand = evaluate_run(str(run), EvaluateOptions(metrics=METRICS, device="cpu"))
    scores = pq.read_table(run / "evaluation" / "scores.parquet")
    assert in_hand.seconds["network"] == 0 == in_hand.seconds["resize"], "every feature came from the cache"
    assert in_hand.seconds["decode"] == 0, "nothing was decoded"
    from_files = evaluate_run(str(run), EvaluateOptions(metrics=METRICS, device="cpu", use_cache=False))
    assert from_files.seconds["network"] > 0
    for ours, theirs in zip(in_hand.metrics, from_files.metrics, strict=True):
        assert ours.error is None
        assert ours.value == pytest.approx(theirs.value, rel=1e-6)
    again = pq.read_table(run / "evaluation" / "scores.parquet")
    for name in scores.schema.names[9:]:
        ours_column, theirs_column = (table.column(name).to_numpy() for table in (scores, again))
        np.testing.assert_allclose(ours_column, theirs_column, rtol=1e-6)
    assert in_hand.by_attribute == from_files.by_attribute


def test_frames_come_back_as_they_went() -> None:
    rng = np.random.default_rng(0)
    sizes = [(5, 7), (3, 2), (8, 8)]
    made = [
        make_picture(rng.integers(0, 256, (*size, 3), np.uint8), "png", str(n) * 64) for n, size in enumerate(sizes)
    ]
    stream = io.BytesIO()
    write_frame(stream, made)
    stream.seek(0)
    found = read_frame(stream)
    assert found is not None
    assert list(found) == [picture.file.sha256 for picture in made]
    assert all(np.array_equal(found[picture.file.sha256], picture.pixels) for picture in made)
    assert read_frame(stream) is None
    for cut in (1, 20, len(stream.getvalue()) - 1):
        assert read_frame(io.BytesIO(stream.getvalue()[:cut])) is None


def test_of_a_lossy_file_its_own_pixels_are_seen() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    lossy, lossless = make_picture(pixels, "jpg", "0" * 64), make_picture(pixels, "png", "1" * 64)
    assert find_file_pixels(lossless) is pixels
    assert np.array_equal(find_file_pixels(lossy), decode_picture(lossy.file.data))
    assert not np.array_equal(find_file_pixels(lossy), pixels)


def test_a_slow_or_dead_process_never_holds_up_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "END_SECONDS", 2.0)
    observer = LiveFeatures(["sanity"], "cpu")
    batch = [make_picture(np.zeros((512, 512, 3), np.uint8), "png", f"{n:064x}") for n in range(4)]
    started = time.perf_counter()
    for _ in range(200):
        observer.see(batch)
    assert time.perf_counter() - started < 1.0
    assert observer.left_out > 0
    observer._process.kill()
    observer._process.wait()
    observer.see(batch)
    observer.close(at_once=False)
    assert time.perf_counter() - started < 30


def test_a_stopped_lane_does_not_wait() -> None:
    observer = LiveFeatures(["sanity"], "cpu")
    observer.see([make_picture(np.zeros((64, 64, 3), np.uint8), "png", "0" * 64)])
    started = time.perf_counter()
    observer.close(at_once=True)
    assert time.perf_counter() - started < 5


def test_what_cannot_be_prepared_is_left_to_the_evaluation(tmp_path: Path) -> None:
    """The weights of Inception are not in this test's cache: the run goes on, and the evaluation says so."""
    run = generate(tmp_path, score=("clip_score", "fid"))
    assert json.loads((run / "run.json").read_text())["state"] == "completed"
    evaluation = evaluate_run(str(run), EvaluateOptions(metrics=("clip_score", "fid"), reference=str(run)))
    score, distance = evaluation.metrics
    assert score.error is None
    assert "dgate weights fetch inception" in str(distance.error)
