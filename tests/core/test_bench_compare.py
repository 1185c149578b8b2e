"""Models side by side: speeds from processes of their own, quality from real runs, a page that needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgate_core.bench.compare import CompareOptions, make_pictures, measure_comparison, read_contenders
from dgate_core.bench.saver_loss import SAVERS, SaverLossOptions, measure_saver_loss
from dgate_core.bench.variants import parse_variant
from dgate_core.errors import UsageError
from dgate_core.models.profiles import find_profile
from reports.comparison import list_rows, mark_best, render_comparison


def test_contenders_carry_their_steps() -> None:
    one, other = read_contenders(["starter-unet", "./my@folder@12"])
    assert (one.model, one.steps) == ("starter-unet", None)
    assert (other.model, other.steps) == ("./my@folder", 12)


@pytest.mark.parametrize("texts", [["one"], ["one", "one"], ["starter-unet", "starter-unet@nine"]])
def test_fewer_than_two_contenders_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        read_contenders(texts)


def test_the_best_of_a_row_is_marked_unless_all_are_alike() -> None:
    assert [cell.is_best for cell in mark_best([1.0, 2.0, None], "lower", ["", "", "why"])] == [True, False, False]
    assert not any(cell.is_best for cell in mark_best([2.0, 2.0], "higher", ["", ""]))
    assert not any(cell.is_best for cell in mark_best([1.0, 2.0], "", ["", ""]))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint beside itself with fewer steps."""
    options = CompareOptions(
        ("starter-unet@6", "starter-unet@1"),
        prompts=6,
        reference=None,
        batches=(1, 2),
        folder=str(tmp_path_factory.mktemp("compare")),
        device="cpu",
    )
    return measure_comparison(options, lambda _: None)


@pytest.mark.slow
def test_speed_and_quality_stand_side_by_side(found: dict[str, Any]) -> None:
    six, one = found["contenders"]
    assert six["speed"]["latency_seconds"] > one["speed"]["latency_seconds"]
    assert six["speed"]["pictures_per_second"] == max(six["speed"]["rates"].values())
    assert 0 < one["speed"]["peak_gib"] < 4
    metrics = [each["metrics"] for each in (six, one)]
    assert list(metrics[0]) == list(metrics[1]) == ["attribute_accuracy", "clip_score:starter-clip"]
    assert metrics[0]["clip_score:starter-clip"]["value"] > metrics[1]["clip_score:starter-clip"]["value"] + 5
    assert all(metric["pictures"] == 6 for each in metrics for metric in each.values())
    assert json.loads(json.dumps(found))["contenders"][0]["name"] == "starter-unet@6"


@pytest.mark.slow
def test_the_page_holds_figures_and_pictures(found: dict[str, Any]) -> None:
    page = render_comparison(found)
    assert page.count("data:image/webp;base64,") == 12
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert found["samples"][0]["prompt"] in page
    names = [row.name for row in list_rows(found["contenders"])]
    assert names[:3] == ["latency, batch 1", "throughput, best batch", "peak memory"]
    assert page.count("<tr>") == 1 + len(names)


@pytest.mark.slow
def test_a_finished_run_is_not_made_again(found: dict[str, Any]) -> None:
    options = CompareOptions(**{**found["options"], "contenders": tuple(found["options"]["contenders"])})
    folder, [contender, _] = Path(options.folder), read_contenders(options.contenders)
    results = Path(found["contenders"][0]["run"]) / "results.parquet"
    before = results.stat().st_mtime_ns
    assert make_pictures(contender, options, folder / "prompts-6.jsonl", folder) == found["contenders"][0]["run"]
    assert results.stat().st_mtime_ns == before


def test_savers_are_measured_against_every_step_computed() -> None:
    options = SaverLossOptions(("deep-cache-2",), prompts=4, batch=4, steps=6, device="cpu")
    found = measure_saver_loss(options, lambda _: None)["savers"]
    assert found["exact"]["mean_difference"] == 0
    assert 0 < found["exact+deep-cache-2"]["mean_difference"] < 30
    assert found["exact+deep-cache-2"]["clip_score"] > 50


def test_a_transformer_s_savers_are_measured_by_themselves() -> None:
    options = SaverLossOptions(("first-block-0.3",), "starter-dit", prompts=4, batch=4, steps=6, device="cpu")
    found = measure_saver_loss(options, lambda _: None)["savers"]
    assert found["exact"]["share_computed"] is None
    assert 0.1 < found["exact+first-block-0.3"]["share_computed"] < 1
    assert 0 < found["exact+first-block-0.3"]["mean_difference"] < 60


def test_every_family_has_savers_and_those_of_turbo_are_among_them() -> None:
    savers = find_profile("turbo", "cuda").savers
    assert f"deep-cache-{savers.deep_cache_interval}-branch-{savers.deep_cache_branch}" in SAVERS["unet"]
    assert f"first-block-{savers.first_block_threshold:g}" in SAVERS["dit"]
    for lever in [lever for levers in SAVERS.values() for lever in levers]:
        parse_variant(f"exact+{lever}", "cpu")
