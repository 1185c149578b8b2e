"""The way into production: a candidate and a baseline make the same pictures, and the gate decides."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from flows.generate_images import generate_images
from tasks.evaluate import measure_pictures, show_evaluation
from tasks.gate import (
    check_judgement,
    conclude_gate,
    judge_candidate,
    list_baseline_metrics,
    prepare_contest,
    promote_candidate,
)


@flow(name="evaluate_checkpoint", retries=0, persist_result=False)
def evaluate_checkpoint(  # noqa: PLR0913, PLR0917 - flat, for the form in Prefect's UI
    candidate: str = "starter-unet",
    baseline: str = "production",
    suite: str = "postcards-1k",
    rules: str = "regression",
    out: str = "runs/checkpoints",
    reference: str | None = None,
    metrics: list[str] | None = None,
    alias: str | None = "production",
    execution: Literal["local", "work_pool"] = "local",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    settings: dict[str, Any] | None = None,
) -> Any:
    """Makes, measures and judges; on a pass the alias moves to the candidate, anything else fails the flow run.

    Args:
        candidate: Checkpoint that shall pass: a catalogue name, a folder, a file, or an alias.
        baseline: Checkpoint that it is held against.
        suite: Prompts: a suite's name, or a manifest's path; both models get the same noise.
        rules: Preset of the gate, or a YAML file.
        out: Folder of the runs; what is there already is not made again.
        reference: Reference set for FID and the like; none leaves them out.
        metrics: Names as `dgate evaluate` takes them; none is the default set.
        alias: What moves on a pass; none promotes nothing.
        execution: `local` makes the pictures on this machine, `work_pool` on the pool `gpu`.
        device: For pictures and networks.
        settings: Of both runs: num_inference_steps, guidance_scale, seed, …
    """
    check_judgement(rules, metrics)
    contest = prepare_contest(candidate, baseline, suite, out, settings or {})
    generation: dict[str, Any] = {"device": device, "execution": execution, "settings": contest.settings}
    generate_images(contest.manifest, contest.baseline_run, model=contest.baseline, **generation)
    generate_images(contest.manifest, contest.candidate_run, model=contest.candidate, **generation)
    measure_pictures(contest.baseline_run, reference, None, list_baseline_metrics(metrics or []), device)
    measure_pictures(contest.candidate_run, reference, contest.baseline_run, metrics or [], device)
    judge_candidate(contest, rules, device)
    page = show_evaluation(contest.candidate_run)
    return conclude_gate(contest, page, promote_candidate(contest, alias))
