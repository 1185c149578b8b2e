"""Evaluation: the numbers of a run, with their uncertainty, from its pictures."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from tasks.evaluate import conclude_evaluation, measure_pictures, show_evaluation


@flow(name="evaluate_run", retries=0, persist_result=False)
def evaluate_run(
    run: str = "runs/demo",
    reference: str | None = None,
    baseline: str | None = None,
    metrics: list[str] | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> dict[str, Any]:
    """Measures the pictures of a finished run; writes its numbers, scores and report into its folder.

    Args:
        run: The run's folder, a path or s3://.
        reference: Reference set for FID and the like: a card's name, or an address; none leaves them out.
        baseline: Run to compare with, picture by picture; none leaves the paired metrics out.
        metrics: Names such as clip_score, lpips:vgg, fd:starter-clip or module:attr; none is the default set.
        device: Of the networks; `auto` takes cuda, mps or cpu, in this order.
    """
    measured = measure_pictures(run, reference, baseline, metrics or [], device)
    page = show_evaluation(measured)
    return conclude_evaluation(measured, page)
