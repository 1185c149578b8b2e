"""The evaluation of a run: honest counts, pairs, plug-ins, missing weights, caching, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dgate_core.errors import UsageError
from dgate_core.evaluation import pictures as evaluation_pictures
from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
from dgate_core.evaluation.intervals import bootstrap_mean, estimate_interval
from dgate_core.evaluation.metric_request import list_requests, parse_request
from dgate_core.evaluation.results import SCORE_KEYS, Evaluation, MetricValue, read_evaluation
from dgate_core.storage import open_storage
from flows.cli import main
from tests.postcard_run import Postcard, draw_postcards, write_results, write_run

POSTCARDS = draw_postcards(24)
CLIP_METRICS = ("clip_score:starter-clip", "caption_choice:starter-clip")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither features nor weights of this machine."""
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def make_run(folder: Path, postcards: Sequence[Postcard]) -> str:
    write_run(open_storage(folder), postcards)
    return str(folder)


def find(evaluation: Evaluation, name: str) -> MetricValue:
    metric = evaluation.find_metric(name)
    assert metric is not None, [each.name for each in evaluation.metrics]
    return metric


def spoil(cards: Sequence[Postcard]) -> list[Postcard]:
    """Row 0 failed, row 1 is black, row 2 shows another row's scene, row 3 asks for what is no postcard."""
    black = np.zeros((64, 64, 3), np.uint8)
    return [
        replace(cards[0], pixels=None),
        replace(cards[1], pixels=black),
        replace(cards[2], pixels=cards[4].pixels),
        replace(cards[3], prompt="an astronaut on the moon"),
        *cards[4:],
    ]


def test_default_metrics_need_no_weights_and_count_everything(tmp_path: Path) -> None:
    uri = make_run(tmp_path / "run", spoil(POSTCARDS))
    lines: list[str] = []
    evaluation = evaluate_run(uri, report=lines.append)
    assert [each.name for each in evaluation.metrics] == ["sanity", "sharpness", *CLIP_METRICS, "attribute_accuracy"]
    assert all(each.error is None for each in evaluation.metrics)
    accuracy, choice, score = find(evaluation, "attribute_accuracy"), *map(evaluation.find_metric, CLIP_METRICS[::-1])
    assert (accuracy.n_used, accuracy.n_expected) == (23, 24)
    assert accuracy.value == pytest.approx(20 / 23)
    assert choice is not None
    assert score is not None
    assert (choice.n_used, score.n_used) == (23, 22)
    assert "1 of 24 pictures are not in this number: each needs a prompt that is a postcard" in accuracy.warnings[0]
    assert evaluation.defects == {"missing": 1, "black": 1}
    for metric in evaluation.metrics:
        assert metric.interval is not None
        assert metric.value is not None
        assert metric.interval[0] <= metric.value <= metric.interval[1]
    assert len(accuracy.weights_sha256) == len(score.weights_sha256) == 64
    assert score.extractor == "starter-clip"
    assert "bicubic" in score.resize
    assert lines == [lines[0]]
    assert lines[0].startswith("24 of 24 pictures")
    assert {"read", "decode", "resize", "network", "scores", "statistics", "total"} <= set(evaluation.seconds)
    assert read_evaluation(open_storage(uri)) == evaluation


def test_scores_stand_in_the_order_of_the_results(tmp_path: Path) -> None:
    cards = spoil(POSTCARDS)
    uri = make_run(tmp_path / "run", cards)
    evaluate_run(uri)
    scores = pq.read_table(tmp_path / "run" / "evaluation" / "scores.parquet")
    assert scores.schema.names == [*SCORE_KEYS.names, "sanity", "sharpness", *CLIP_METRICS, "attribute_accuracy"]
    rows = scores.to_pylist()
    assert [row["prompt"] for row in rows] == [card.prompt for card in cards]
    assert [row["id"] for row in rows] == [f"row-{number:04d}" for number in range(24)]
    assert [row["attribute_accuracy"] for row in rows[:5]] == [0.0, 0.0, 0.0, None, 1.0]
    assert [row["caption_choice:starter-clip"] for row in rows[:2]] == [0.0, 0.0]
    assert [row["clip_score:starter-clip"] is None for row in rows[:5]] == [True, False, False, True, False]
    assert [row["sanity"] for row in rows[:3]] == [0.0, 0.0, 1.0]


def test_attributes_are_counted_with_what_failed(tmp_path: Path) -> None:
    table = evaluate_run(make_run(tmp_path / "run", POSTCARDS)).by_attribute
    assert sum(each["n"] for each in table["ground"].values()) == len(POSTCARDS)
    assert all(each["right"] == each["n"] for values in table.values() for each in values.values())
    assert {"ground", "sky", "count", "object", "colour"} <= set(table)
    empty = [replace(card, pixels=None) for card in POSTCARDS]
    worst = evaluate_run(make_run(tmp_path / "worst", empty)).by_attribute
    assert {name: {value: each["n"] for value, each in values.items()} for name, values in worst.items()} == {
        name: {value: each["n"] for value, each in values.items()} for name, values in table.items()
    }
    assert all(each["right"] == 0 for values in worst.values() for each in values.values())


def test_numbers_do_not_depend_on_chunks_order_or_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = spoil(POSTCARDS)
    uri = make_run(tmp_path / "run", cards)
    first = evaluate_run(uri, EvaluateOptions(use_cache=False))
    monkeypatch.setattr(evaluation_pictures, "LARGEST_CHUNK", 5)
    rows = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    write_results(open_storage(uri), rows[::-1])
    decode, decoded = evaluation_pictures.decode_picture, list[int]()

    def count(data: bytes) -> np.ndarray:
        decoded.append(len(data))
        return decode(data)

    monkeypatch.setattr(evaluation_pictures, "decode_picture", count)
    second = evaluate_run(uri)
    assert len(decoded) >= len(cards) - 2
    decoded.clear()
    third = evaluate_run(uri)
    # Broken files are known by nothing but trying.
    assert len(decoded) <= 1
    for metric in first.metrics:
        for other in (find(second, metric.name), find(third, metric.name)):
            assert other.value == pytest.approx(metric.value, rel=1e-6)


def shift(card: Postcard, levels: int) -> Postcard:
    assert card.pixels is not None
    return replace(card, pixels=np.clip(card.pixels.astype(int) + levels, 0, 255).astype(np.uint8))


def test_pairs_with_a_baseline(tmp_path: Path) -> None:
    paired = ("psnr", "ssim", "clip_similarity:starter-clip")
    same = make_run(tmp_path / "same", POSTCARDS)
    uri = make_run(tmp_path / "run", spoil([shift(card, 8) for card in POSTCARDS]))
    options = EvaluateOptions(baseline=same, metrics=paired)
    equal = evaluate_run(make_run(tmp_path / "equal", POSTCARDS), options)
    assert [each.value for each in equal.metrics] == [100.0, pytest.approx(1), pytest.approx(1)]
    evaluation = evaluate_run(uri, options)
    # Row 0 has no picture, and row 3's prompt is not the baseline's.
    assert [each.n_used for each in evaluation.metrics] == [22, 22, 22]
    assert find(evaluation, "psnr").reference == evaluation.baseline == open_storage(same).uri
    assert all(each.scope == "paired" for each in evaluation.metrics)
    rows = pq.read_table(tmp_path / "run" / "evaluation" / "scores.parquet").to_pylist()
    assert rows[5]["psnr"] == pytest.approx(20 * np.log10(255 / 8), abs=1.0)
    assert rows[1]["psnr"] < 20 < rows[5]["psnr"]


def test_a_missing_weight_is_an_error_and_never_another_number(tmp_path: Path) -> None:
    uri = make_run(tmp_path / "run", POSTCARDS[:4])
    options = EvaluateOptions(
        baseline=uri, reference=uri, metrics=("lpips", "lpips:squeeze", "fid", "psnr", "fd:starter-clip")
    )
    evaluation = evaluate_run(uri, options)
    for name, command in (("lpips:alex", "dgate weights fetch lpips-alex"), ("fid", "dgate weights fetch inception")):
        metric = find(evaluation, name)
        assert metric.value is None
        assert command in str(metric.error)
        assert metric.better == "lower"
    assert "dgate weights import lpips-squeeze" in str(find(evaluation, "lpips:squeeze").error)
    assert find(evaluation, "psnr").value == 100.0
    same = find(evaluation, "fd:starter-clip")
    assert same.value == pytest.approx(0, abs=1e-3)
    assert "the two sets are the same pictures" in same.warnings
    scores = pq.read_table(tmp_path / "run" / "evaluation" / "scores.parquet")
    assert scores.column("lpips:alex").null_count == 4


def measure_brightness(pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
    assert len(pictures) == len(prompts)
    return [float(picture.mean()) for picture in pictures]


class Redness:
    """A model with facts about itself."""

    better = "lower"
    weights_sha256 = "ab" * 32

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> np.ndarray:
        assert self.device == "cpu"
        return np.array([picture[..., 0].mean() for picture in pictures])


def crash(pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
    raise ZeroDivisionError("no model here")


def give_too_few(pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
    return [1.0]


def test_plugins_by_their_address(tmp_path: Path) -> None:
    here = __name__
    names = ("measure_brightness", "Redness", "crash", "give_too_few", "nobody")
    uri = make_run(tmp_path / "run", [*POSTCARDS[:4], replace(POSTCARDS[4], pixels=None)])
    options = EvaluateOptions(metrics=(*(f"{here}:{name}" for name in names), "no.such:thing"), device="cpu")
    brightness, redness, crashed, short, unknown, nowhere = evaluate_run(uri, options).metrics
    assert brightness.value == pytest.approx(
        np.mean([card.pixels.mean() for card in POSTCARDS[:4] if card.pixels is not None])
    )
    assert (brightness.name, brightness.n_used, brightness.n_expected) == (f"{here}:measure_brightness", 4, 5)
    assert (redness.better, redness.weights_sha256) == ("lower", "ab" * 32)
    assert crashed.error == "ZeroDivisionError: no model here"
    assert "numbers of shape (1,) for 4 pictures" in str(short.error)
    assert "cannot be imported" in str(unknown.error)
    assert "cannot be imported" in str(nowhere.error)


def test_names_of_metrics() -> None:
    names = {"lpips": "lpips:alex", "clip_score": "clip_score:starter-clip", "fid": "fid", "kid:starter-clip": None}
    assert [parse_request(name).name for name in names] == [full or name for name, full in names.items()]
    assert parse_request("clip_score:/models/my-clip").name == "clip_score:my-clip"
    assert parse_request("clip_score:hf://openai/clip").name == "clip_score:openai/clip"
    with pytest.raises(UsageError, match="did you mean 'clip_score'"):
        parse_request("clip_scor")
    with pytest.raises(UsageError, match="--baseline"):
        list_requests(["psnr"], has_reference=False, has_baseline=False)
    with pytest.raises(UsageError, match="--reference"):
        list_requests(["fid"], has_reference=False, has_baseline=False)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.normal(3, 2, 60)) for _ in range(200)]
    covered = np.mean([low <= 3 <= high for low, high in filter(None, intervals)])
    assert 0.9 <= covered <= 0.99
    assert bootstrap_mean(np.ones(1)) is None
    scores = rng.random(50)
    assert bootstrap_mean(scores) == bootstrap_mean(scores)


def test_a_share_of_one_is_not_certain() -> None:
    interval = estimate_interval(np.ones(20), is_share=True)
    assert interval == pytest.approx((0.8389, 1.0), abs=1e-4), "Wilson's interval of 20 of 20"
    assert estimate_interval(np.zeros(20), is_share=False) == (0.0, 0.0), "twenty equal pairs are equal"
    rng = np.random.default_rng(1)
    shares = [estimate_interval((rng.random(60) < 0.95).astype(float), is_share=True) for _ in range(400)]
    assert 0.93 <= np.mean([low <= 0.95 <= high for low, high in filter(None, shares)]) <= 0.99


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = make_run(tmp_path / "run", POSTCARDS[:4])
    code, out, _ = call(capsys, "evaluate", uri, "--metrics", "sanity,attribute_accuracy")
    assert code == 0
    assert "attribute_accuracy  1 " in out
    assert (tmp_path / "run" / "report" / "evaluation.html").is_file()
    code, out, _ = call(capsys, "evaluate", uri, "--baseline", uri, "--metrics", "lpips,psnr", "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 3
    assert [metric["name"] for metric in found["metrics"]] == ["lpips:alex", "psnr"]
    code, _, err = call(capsys, "evaluate", uri, "--metrics", "psnrr")
    assert code == 2
    assert "did you mean 'psnr'?" in err
    code, _, err = call(capsys, "evaluate", str(tmp_path / "none"))
    assert code == 1
    assert "no run at" in err
