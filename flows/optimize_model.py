"""A cheaper model that may serve: calibrate, quantise, build, and the gate against its own 16-bit pictures."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from flows.generate_images import generate_images
from tasks.evaluate import measure_pictures, show_evaluation
from tasks.gate import check_judgement, judge_candidate, list_baseline_metrics
from tasks.optimize import (
    conclude_optimization,
    name_candidate,
    prepare_optimization,
    quantise_checkpoint,
    race_artefact,
    try_artefact,
)


@flow(name="optimize_model", retries=0, persist_result=False)
def optimize_model(  # noqa: PLR0913, PLR0917 - flat, for the form in Prefect's UI
    model: str = "starter-unet",
    profile: str = "turbo",
    calibration: str = "suite:postcards-calibration",
    suite: str = "postcards-1k",
    rules: str = "int8",
    out: str = "runs/optimized",
    metrics: list[str] | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    race_pictures: int = 16,
    options: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> Any:
    """Makes a profile's quantised artefact; one that passes the gate serves from then on, another is only kept.

    Args:
        model: A catalogue name, a folder, a file, or an alias.
        profile: One that quantises, such as turbo.
        calibration: Prompts to calibrate with: a manifest's path, or suite:NAME; none of the suite's.
        suite: Prompts of the gate: a suite's name, or a manifest's path; both sides get the same noise.
        rules: Preset of the gate, or a YAML file.
        out: Folder of the runs; what is there already is not made again.
        metrics: Names as `dgate evaluate` takes them; none is the default set with lpips.
        device: Where it will serve.
        race_pictures: Pictures per round of the speed table; 0 leaves it out.
        options: Of calibration, sensitivity and kernels: percentile, prompts, error_budget, linear_only, granularity, …
        settings: Of both runs: num_inference_steps, guidance_scale, seed, …
    """
    check_judgement(rules, metrics)
    work = prepare_optimization(model, profile, (calibration, suite), out, device, settings or {})
    artefact = quantise_checkpoint(work, options or {})
    contest = name_candidate(work, artefact)
    generation: dict[str, Any] = {"model": work.model, "device": work.device}
    generate_images(contest.manifest, contest.baseline_run, settings=dict(work.contest.settings), **generation)
    with try_artefact(artefact):
        generate_images(contest.manifest, contest.candidate_run, settings=dict(contest.settings), **generation)
    measure_pictures(contest.baseline_run, None, None, list_baseline_metrics(metrics or []), work.device)
    measure_pictures(contest.candidate_run, None, contest.baseline_run, metrics or [], work.device)
    judge_candidate(contest, rules, work.device)
    race_artefact(work, artefact, race_pictures)
    return conclude_optimization(contest, artefact, show_evaluation(contest.candidate_run))
