"""The gate over real pictures: rendered postcards, scored by the real metrics, and the faults that the bench plants."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from scipy.ndimage import gaussian_filter, laplace

from dgate_core.bench.gate_plants import (
    blacken_pictures,
    copy_run,
    lose_rows,
    restore_prompts,
    round_vae,
    shuffle_colours,
)
from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
from dgate_core.evaluation.gate.corpus_bootstrap import DRAWS, CorpusBootstrap
from dgate_core.evaluation.gate.gate import judge_run
from dgate_core.evaluation.gate.rules import GateRules, read_rules
from dgate_core.evaluation.gate.verdict import Verdict
from dgate_core.evaluation.metrics.sharpness import measure_sharpness
from dgate_core.evaluation.resampling import open_resampler
from dgate_core.evaluation.statistics import ReferenceStatistics, features_to_statistics
from dgate_core.postcards import render_scene, sample_scene, scene_to_caption
from dgate_core.storage import open_storage
from flows.cli import main
from tests.gate_lab import make_picture_run

ROWS = 48
METRICS = ("sharpness", "clip_score", "attribute_accuracy", "fd:starter-clip", "cmmd")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Features are kept between the tests of this file and nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`reference` is a folder of pictures; `baseline` and `mixed` are runs; mixed has colours of other rows."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(ROWS)]
    prompts = [scene_to_caption(scene) for scene in scenes]
    pictures = [render_scene(scene, 64) for scene in scenes]
    make_picture_run(folder / "reference", [render_scene(sample_scene(rng), 64) for _ in range(ROWS)], prompts)
    make_picture_run(folder / "baseline", pictures, prompts)
    measure(folder, folder / "baseline")
    return folder


@pytest.fixture(scope="module")
def rules() -> GateRules:
    return replace(read_rules("regression"), minimum_rows=40, resamples=2000)


def measure(world: Path, run: Path) -> None:
    evaluate_run(str(run), EvaluateOptions(str(world / "reference"), None, METRICS, "cpu"))


def judge(world: Path, run: Path, rules: GateRules) -> Verdict:
    measure(world, run)
    draws = CorpusBootstrap(reference=str(world / "reference"))
    return judge_run(open_storage(run), open_storage(world / "baseline"), rules, draws)


def test_the_same_pictures_pass(world: Path, rules: GateRules, tmp_path: Path) -> None:
    verdict = judge(world, copy_run(world / "baseline", tmp_path / "same"), rules)
    # 48 rows are few, but equal pictures leave no noise.
    failed = [check for check in verdict.checks if check.decision != "pass" and not check.reported_only]
    assert not [check for check in failed if check.metric != "caption_choice:*"], failed
    measured = {check.metric: check for check in verdict.checks if check.effect is not None and check.metric}
    clip = {f"{name}:starter-clip" for name in ("clip_score", "fd", "cmmd")}
    assert set(measured) == {"sharpness", "attribute_accuracy", *clip}
    assert {(check.effect, check.interval) for check in measured.values()} == {(0.0, (0.0, 0.0))}


def test_sharpness_falls_with_blur_and_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    picture = render_scene(sample_scene(rng), 64)
    blurred = gaussian_filter(picture, (0.6, 0.6, 0)).astype(np.uint8)
    assert measure_sharpness(blurred) < 0.9 * measure_sharpness(picture)
    luma = picture.astype(float) @ [0.299, 0.587, 0.114]
    assert measure_sharpness(picture) == pytest.approx(np.abs(laplace(luma)[1:-1, 1:-1]).mean(), rel=1e-5)
    assert measure_sharpness(np.full((8, 8, 3), 7, np.uint8)) == pytest.approx(0, abs=1e-5)


def test_noise_on_the_pictures_is_seen_by_picture_and_by_corpus(world: Path, rules: GateRules, tmp_path: Path) -> None:
    table = pq.read_table(world / "baseline" / "results.parquet").to_pylist()
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in table]
    make_picture_run(tmp_path / "noisy", pictures, [row["prompt"] for row in table])
    verdict = judge(world, tmp_path / "noisy", rules)
    caught = {check.metric for check in verdict.list_checks("fail")}
    assert caught >= {"clip_score:starter-clip", "attribute_accuracy", "fd:starter-clip", "cmmd:starter-clip"}


def test_planted_black_pictures_and_lost_rows_are_caught_by_their_own_checks(
    world: Path, rules: GateRules, tmp_path: Path
) -> None:
    black = copy_run(world / "baseline", tmp_path / "black")
    blacken_pictures(black, 0.01)
    assert "defects" in {check.rule for check in judge(world, black, rules).list_checks("fail")}
    lost = copy_run(world / "baseline", tmp_path / "lost")
    lose_rows(lost, 0.05)
    verdict = judge(world, lost, rules)
    assert "coverage" in {check.rule for check in verdict.list_checks("fail")}
    assert "2 of 48 pictures of the baseline are missing" in verdict.checks[1].reason


def test_prompts_that_pictures_do_not_show_are_caught(world: Path, rules: GateRules, tmp_path: Path) -> None:
    table = pq.read_table(world / "baseline" / "results.parquet").to_pylist()
    shuffled = shuffle_colours([row["prompt"] for row in table])
    wrong = copy_run(world / "baseline", tmp_path / "wrong")
    restore_prompts(wrong, {row["id"]: prompt for row, prompt in zip(table, shuffled, strict=True)})
    other = copy_run(wrong, tmp_path / "other")
    restore_prompts(other, {row["id"]: row["prompt"] for row in table})
    assert pq.read_table(other / "results.parquet").to_pylist() == table
    measure(world, wrong)
    verdict = judge_run(open_storage(world / "baseline"), open_storage(wrong), rules, CorpusBootstrap())
    assert [check.rule for check in verdict.list_checks("fail")] == ["pairs"]


def test_colours_change_places_within_their_batch() -> None:
    prompts = ["a red boat and a blue tree on grass", "a green fish at sea"] * 8
    shuffled = shuffle_colours(prompts)
    assert shuffled != prompts
    assert shuffled == shuffle_colours(prompts)
    for start in (0, 8):
        words = [Counter(" ".join(side[start : start + 8]).split()) for side in (prompts, shuffled)]
        assert words[0] == words[1]
    colours = re.compile("red|blue|green")
    assert [colours.sub("", prompt) for prompt in shuffled] == [colours.sub("", prompt) for prompt in prompts]


def test_a_rounded_vae_has_few_levels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    (tmp_path / "model" / "vae").mkdir(parents=True)
    bias = np.linspace(-1, 1, 8, dtype=np.float32)
    save_file({"conv.weight": values, "conv.bias": bias}, tmp_path / "model" / "vae" / "model.safetensors")
    rounded = load_file(round_vae(tmp_path / "model", tmp_path / "rounded") / "vae" / "model.safetensors")
    assert len(np.unique(rounded["conv.weight"])) <= 15
    assert np.abs(rounded["conv.weight"] - values).max() <= np.abs(values).max() / 7 / 2 + 1e-6
    assert (rounded["conv.bias"] == bias).all()


@pytest.mark.parametrize("metric", ["fd:x", "kid", "cmmd:x"])
def test_the_spread_of_corpus_draws_is_that_of_new_samples(metric: str) -> None:
    """The bootstrap's standard error of a difference agrees with samples that are really drawn anew."""
    rng, number, dimension = np.random.default_rng(0), 150, 6
    known = rng.normal(size=(600, dimension)).astype(np.float32)
    statistics = features_to_statistics([known], dimension)
    reference = ReferenceStatistics(statistics.mean, statistics.covariance, 600, features=known)

    def draw_pair() -> tuple[np.ndarray, np.ndarray]:
        shared = rng.normal(size=(number, dimension))
        return shared + 0.3 + 0.3 * rng.normal(size=shared.shape), shared + 0.3 * rng.normal(size=shared.shape)

    ones = np.ones(number)
    truly = []
    for _ in range(60):
        pair = [open_resampler(metric, side, reference).distance(ones) for side in draw_pair()]
        truly.append(pair[0] - pair[1])
    sides = [open_resampler(metric, side, reference) for side in draw_pair()]
    weights = [np.bincount(rng.integers(number, size=number), minlength=number).astype(float) for _ in range(DRAWS)]
    drawn = [sides[0].distance(row) - sides[1].distance(row) for row in weights]
    assert 0.65 <= np.std(drawn) / np.std(truly) <= 1.5


def test_the_command_draws_the_page_anew(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_run(world / "baseline", tmp_path / "run")
    measure(world, run)
    with pytest.raises(SystemExit) as ended:
        main(["gate", str(run), "--baseline", str(world / "baseline"), "--reference", str(world / "reference")])
    assert ended.value.code != 0, "48 rows are fewer than the rules ask for"
    page = run / "report" / "evaluation.html"
    said = capsys.readouterr().out
    assert f"report    {page}" in said
    reason = json.loads((run / "evaluation" / "gate.json").read_text())["checks"][0]["reason"]
    assert reason in html.unescape(page.read_text())
