"""The benchmark of generation at toy size: the same code that measures a GPU, with real classes and random weights."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgate_core.bench.architectures import ARCHITECTURES, TOYS, use_default_dtype
from dgate_core.bench.flops import count_flops, count_flops_of_steps
from dgate_core.bench.generation import PLAIN_BEST, PLAIN_ONE, GenerationBenchOptions, measure_generation
from dgate_core.bench.gpu_table import TABLE, Job, TableOptions, run_table
from dgate_core.bench.subjects import CASES, find_case, open_subject
from dgate_core.bench.variants import install_savers, parse_variant, prepare_variant
from dgate_core.bench.whole_path import WholePathOptions, measure_whole_path
from dgate_core.errors import UsageError
from dgate_core.models.families.contract import BatchRequest
from reports.speed_plot import draw_case
from reports.speed_table import table_to_markdown

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = {"sdxl": (2.567, 6.761), "sd15": (0.8595, 0.8033), "flux-dev": (11.90, 74.39)}
"""Architecture → billions of parameters, TFLOP of one forward (MLPerf's and the models' own figures)."""
KNOWN_TOYS = [case for case in CASES.values() if case.architecture in TOYS]


def ignore(_: object) -> None:
    """For progress that nobody reads."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_architectures_have_the_published_size_and_operations(name: str) -> None:
    import diffusers

    architecture, (billions, tflop) = ARCHITECTURES[name], PUBLISHED[name]
    side, text = architecture.native_size // 8, architecture.text
    with torch.device("meta"), use_default_dtype(torch.bfloat16), torch.no_grad():
        denoiser: Any = getattr(diffusers, architecture.denoiser_class)(**architecture.denoiser)
        if "Flux" in architecture.denoiser_class:
            inputs: dict[str, Any] = {
                "hidden_states": torch.empty(1, side * side // 4, 64),
                "pooled_projections": torch.empty(1, 768),
                "timestep": torch.empty(1),
                "guidance": torch.empty(1),
                "img_ids": torch.empty(side * side // 4, 3),
                "txt_ids": torch.empty(text.tokens, 3),
            }
        else:
            added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
            inputs = {"sample": torch.empty(1, 4, side, side), "timestep": torch.empty(1), "added_cond_kwargs": added}
        inputs["encoder_hidden_states"] = torch.empty(1, text.tokens, text.width)
        counted = count_flops(lambda: denoiser(**inputs)) / 1e12
    assert sum(each.numel() for each in denoiser.parameters()) / 1e9 == pytest.approx(billions, rel=1e-3)
    assert counted == pytest.approx(tflop, rel=1e-3)


@pytest.mark.parametrize("case", KNOWN_TOYS, ids=lambda case: case.name)
def test_both_sides_draw_the_same_pictures(case: Any) -> None:
    subject = open_subject(case, "random", toy=True, device="cpu")
    model = subject.open_model()
    ours = model.generate(subject.make_request(model, 2, 3))
    theirs = subject.pipeline(**subject.make_arguments(model, 2, 3)).images
    assert bool(ours.finite.all())
    difference = ours.pixels.int().numpy() - np.stack([np.asarray(each) for each in theirs]).astype(int)
    assert np.abs(difference).max() <= 1


def test_models_share_weights_and_not_layers() -> None:
    subject = open_subject(find_case("sdxl-mlperf"), "random", toy=True, device="cpu")
    model = subject.open_model()
    pairs = zip(subject.pipeline.unet.parameters(), model.denoiser.parameters(), strict=True)
    assert all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs)
    install_savers(model, parse_variant("exact+deep-cache-2", "cpu"))
    assert "forward" in vars(model.denoiser)
    assert "forward" not in vars(subject.pipeline.unet)


@pytest.mark.parametrize("period", [1, 2])
def test_operations_of_a_schedule_follow_from_short_ones(period: int) -> None:
    subject = open_subject(find_case("sdxl-mlperf"), "random", toy=True, device="cpu")
    model = subject.open_model()
    install_savers(model, parse_variant("exact" if period == 1 else f"exact+deep-cache-{period}", "cpu"))

    def draw(steps: int) -> object:
        return model.generate(subject.make_request(model, 1, steps))

    assert count_flops_of_steps(draw, 8, period) == count_flops(lambda: draw(8))


def test_variants_are_put_together_from_levers() -> None:
    variant = parse_variant("fast+fp8-linear+deep-cache-3-branch-2+guidance-0.6@32", "cuda")
    assert variant.profile.backends == ("compiled", "eager")
    assert (variant.profile.quantization, variant.linear_only, variant.batch) == ("fp8", True, 32)
    savers = variant.profile.savers
    assert (savers.deep_cache_interval, savers.deep_cache_branch, variant.period) == (3, 2, 3)
    assert variant.find_kind("unet") == "fp8+deep-cache+guidance"
    assert variant.find_kind("dit") == "fp8+guidance"
    assert parse_variant("fast+fp8", "cuda").linear_only is None
    assert parse_variant("fast+fp8-all", "cuda").linear_only is False
    pattern = parse_variant("fast+first-block-5-of-8", "cuda").pattern
    assert pattern[0]
    assert (sum(pattern), len(pattern)) == (5, 8)
    assert parse_variant("fast", "cuda").find_kind("unet") == "lossless"
    turbo = parse_variant("turbo", "cuda")
    assert [turbo.find_kind(family) for family in ("unet", "dit")] == ["fp8+deep-cache", "fp8+first-block"]


@pytest.mark.parametrize("text", ["fastest", "fast+fp4", "fast@many", "fast@0", "fast+deep-cache"])
def test_unknown_variants_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_variant(text, "cpu")


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(UsageError, match="sdxl-mlperf"):
        find_case("sdxl")


def test_quantised_random_weights_draw_nearly_the_same() -> None:
    subject = open_subject(find_case("flux-dev"), "random", toy=True, device="cpu")
    plain, quantised = subject.open_model(), subject.open_model()
    prepared = prepare_variant(quantised, parse_variant("eager+fp8", "cpu"), ["a boat"])
    assert "without a gate" in prepared.notes[0]
    request: BatchRequest = subject.make_request(plain, 2, 3)
    difference = (quantised.generate(request).pixels.int() - plain.generate(request).pixels.int()).abs().float()
    assert 0 < float(difference.mean()) < 12


def test_a_case_is_measured_and_kept_as_it_goes(tmp_path: Path) -> None:
    kept: list[dict[str, Any]] = []
    profiles = ("exact", "exact+deep-cache-2", "tensorrt@2")
    options = GenerationBenchOptions("sdxl-mlperf", profiles, size="toy", rounds=2, steps=4, device="cpu")
    found = measure_generation(options, ignore, lambda figures: kept.append(json.loads(json.dumps(figures))))
    assert len(kept[0]["contestants"]) == 1, "the first figure is kept before the second is there"
    racers = found["contestants"]
    assert list(racers) == ["exact", "exact+deep-cache-2", PLAIN_ONE, PLAIN_BEST]
    assert all(len(each["seconds"]) == 2 and each["pictures_per_second"] > 0 for each in racers.values())
    assert racers["exact+deep-cache-2"]["tflop_a_picture"] < 0.8 * racers["exact"]["tflop_a_picture"]
    assert set(racers["exact"]["stages"]) >= {"denoise", "decode"}
    rates = {name: each["pictures_per_second"] for name, each in racers.items()}
    assert found["ratios"][f"exact over {PLAIN_BEST}"] == pytest.approx(rates["exact"] / rates[PLAIN_BEST])
    assert "does not compute on cpu" in found["not_run"]["tensorrt@2"]
    assert found["targets"] == {}, "targets are for full size on a GPU"
    assert {"date", "machine", "versions", "limits"} <= set(found)
    plot = ET.fromstring(draw_case(found))
    told = " ".join(plot.itertext())
    assert "exact+deep-cache-2" in told
    assert "not run" in told


def test_a_gpu_s_profiles_are_rehearsed_on_a_cpu() -> None:
    """The levers that the table names, as a GPU gets them, at toy size and without compiling."""
    options = GenerationBenchOptions(
        "sdxl-mlperf",
        ("eager+fp8", "eager+fp8+deep-cache-2-branch-2"),
        size="toy",
        rounds=1,
        steps=4,
        device="cpu",
        profiles_of="cuda",
        plain=False,
    )
    found = measure_generation(options, ignore, ignore)
    assert found["not_run"] == {}
    notes = [each["notes"] for each in found["contestants"].values()]
    assert all(" layers, one scale per tensor of the weight" in each[0] for each in notes)
    assert notes[1][1] == "backend eager, deep-cache-2-branch-2"
    named = [name for job in TABLE if isinstance(job.options, GenerationBenchOptions) for name in job.options.profiles]
    assert {parse_variant(name, "cuda").profile.backends[0] for name in named} == {"compiled", "eager"}


def test_a_round_that_would_not_end_in_time_does_not_begin() -> None:
    options = GenerationBenchOptions(
        "flux-schnell", ("exact",), size="toy", rounds=5, steps=2, device="cpu", plain=False, seconds=0.0
    )
    found = measure_generation(options, ignore, ignore)
    assert len(found["contestants"]["exact"]["seconds"]) == 1


def test_the_whole_path_is_set_against_the_bare_loop() -> None:
    options = WholePathOptions("sdxl-mlperf", "exact", size="toy", batches=2, rounds=1, steps=2, device="cpu")
    found = measure_whole_path(options, ignore, ignore)
    rates = found["pictures_per_second"]
    assert found["ratio"]["median"] == pytest.approx(rates["lane"] / rates["bare loop"])
    assert {"denoise", "decode", "encode", "write"} <= set(found["lane_stages"])


def test_the_table_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    toy = GenerationBenchOptions("flux-schnell", ("exact",), rounds=1, steps=2)
    table = (Job("first", toy, 200.0), Job("cut", toy, 0.5), Job("whole", WholePathOptions("sd15"), 100.0))
    told: list[str] = []
    options = TableOptions(str(tmp_path), size="toy", device="cpu", only=("first", "cut"))
    found = run_table(options, told.append, table)
    assert [(row["job"], row["contestant"], "not_run" in row) for row in found["rows"]] == [
        *(("first", name, False) for name in ("exact", PLAIN_ONE, PLAIN_BEST)),
        *(("cut", name, True) for name in ("exact", PLAIN_ONE, PLAIN_BEST)),
    ]
    assert found["rows"][-1]["not_run"] == "cut off after 0 s"
    assert json.loads((tmp_path / "table.json").read_text()) == found
    (tmp_path / "whole.json").write_text(json.dumps({"machine": {"gpu": "another"}, "options": {"size": "toy"}}))
    again = run_table(replace(options, only=("cut",), budget=1.0), told.append, table)
    assert {row["job"] for row in again["rows"]} == {"first", "cut"}, (
        "an earlier run's figures stay, another GPU's do not"
    )
    with pytest.raises(UsageError, match="'thrid'"):
        run_table(replace(options, only=("thrid",)), told.append, table)
    spent = run_table(TableOptions(str(tmp_path / "none"), budget=1.0, size="toy", device="cpu"), told.append)
    assert {row["job"] for row in spent["rows"]} == {job.name for job in TABLE}
    assert all(row["not_run"] == "the budget was spent" for row in spent["rows"])
    written = table_to_markdown(found)
    assert written.count("not run: cut off") == 3
    assert len({line.count("|") for line in written.splitlines() if line.startswith("|")}) == 1


def test_a_gpu_machine_needs_neither_prefect_nor_the_packages_of_runs() -> None:
    """Such a machine has torch, transformers, click and jinja2; diffusers travels with the code."""
    script = """
import sys
for name in ("prefect", "psutil", "orjson", "boto3", "botocore", "fastapi", "tensorrt"):
    sys.modules[name] = None
import flows.cli
from dgate_core.bench.generation import GenerationBenchOptions, measure_generation
import dgate_core.bench.gpu_table, flows.commands.bench, reports.speed_table
options = GenerationBenchOptions("sd15", ("exact", "eager+fp8"), size="toy", steps=2, device="cpu", plain=False)
found = measure_generation(options, print, lambda _: None)
assert not found["not_run"], found["not_run"]
from reports.speed_plot import draw_case
assert draw_case(found).startswith("<svg")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
