"""Models side by side: latency, throughput and memory, and how good the pictures of the same prompts are."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from dgate_core.bench.machine import describe_machine, pick_device
from dgate_core.bench.model_speed import SpeedJob, measure_in_process
from dgate_core.engine.begin import open_run
from dgate_core.engine.local import execute_lanes, finish_run
from dgate_core.engine.precision import choose_precision
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import UsageError
from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
from dgate_core.evaluation.metric_request import parse_request
from dgate_core.evaluation.results import MetricValue
from dgate_core.evaluation.weights.store import has_weights
from dgate_core.manifest.suites import SUITE_SCHEME, locate_suite
from dgate_core.models.catalog import CATALOG, find_checkpoint
from dgate_core.runs.layout import RESULTS_FILE
from dgate_core.runs.settings import RunSettings
from dgate_core.storage import open_storage

MEDIANS: Final = ("latency_seconds", "pictures_per_second", "peak_gib", "weights_gib")
SAMPLES: Final = 8
"""Prompts whose pictures a page shows."""


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What is compared, and over what."""

    contenders: tuple[str, ...]
    """`MODEL` or `MODEL@STEPS`, at least two."""
    suite: str = "suite:postcards-smoke"
    """Manifest of the prompts."""
    prompts: int = 64
    """How many of its first."""
    reference: str | None = "postcards-smoke"
    """Reference set of the distances; None leaves them out."""
    metrics: tuple[str, ...] = ()
    """Names; none is those that fit the prompts and the weights that are here."""
    profile: str = "exact"
    """Of all contenders."""
    rounds: int = 1
    """Speeds are medians over these, taken in turns."""
    batches: tuple[int, ...] = (1, 4, 16)
    """Sizes that the throughput is looked for in."""
    folder: str = "runs/compare"
    """Runs stay here; the same command takes finished ones as they are."""
    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One model with its settings."""

    label: str
    """As it was asked for."""
    model: str
    """A name of the catalogue, or a folder."""
    steps: int | None = None
    """None is the model's default."""


def measure_comparison(options: CompareOptions, tell: Callable[[str], object]) -> dict[str, Any]:
    """Speeds in turns, then a run and its evaluation for each contender.

    Args:
        options: Contenders, prompts, metrics.
        tell: Takes progress lines.

    Returns:
        Plain data: a contender's `speed`, `metrics`, `run`; and `samples`, paths of pictures by prompt.

    Raises:
        UsageError: fewer than two contenders, or two alike.
        DgateError: a model or a metric is not to be had.
    """
    contenders = read_contenders(options.contenders)
    for contender in contenders:
        find_checkpoint(contender.model)
    for name in options.metrics:
        parse_request(name)
    device = pick_device(options.device)
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = write_prompts(options, folder)
    speeds = measure_speeds(contenders, options, device, tell)
    found: dict[str, Any] = {
        "benchmark": "compare",
        "options": asdict(options),
        **describe_machine(device),
        "contenders": [],
    }
    for contender in contenders:
        run = make_pictures(contender, options, manifest, folder)
        metrics = measure_pictures(run, options)
        tell(f"{contender.label}: " + ", ".join(f"{each.name} {each.value:.4g}" for each in metrics if each.value))
        found["contenders"].append(
            {
                "name": contender.label,
                "model": contender.model,
                "speed": speeds[contender.label],
                "run": run,
                "metrics": {each.name: describe_metric(each) for each in metrics},
            }
        )
    found["samples"] = list_samples([each["run"] for each in found["contenders"]])
    return found


def read_contenders(texts: Sequence[str]) -> list[Contender]:
    """Raises UsageError when there are fewer than two, two alike, or steps that are no number."""
    if len(set(texts)) < max(2, len(texts)):
        raise UsageError(
            f"contenders {', '.join(texts)}", "two or more, each different", "write, for instance: A B, or A A@10"
        )
    found = []
    for text in texts:
        model, mark, steps = text.rpartition("@")
        is_stepped = bool(mark) and steps.isdigit() and int(steps) > 0
        if mark and not is_stepped and model in CATALOG:
            raise UsageError(
                f"{steps!r} steps of {model}", "a whole number above 0", f"write, for instance: {model}@10"
            )
        found.append(Contender(text, model, int(steps)) if is_stepped else Contender(text, text))
    return found


def write_prompts(options: CompareOptions, folder: Path) -> Path:
    """The first prompts of the suite, as a manifest."""
    is_suite = options.suite.startswith(SUITE_SCHEME)
    source = locate_suite(options.suite.removeprefix(SUITE_SCHEME)) if is_suite else Path(options.suite)
    lines = source.read_text(encoding="utf-8").splitlines()[: options.prompts]
    manifest = folder / f"prompts-{len(lines)}.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def measure_speeds(
    contenders: Sequence[Contender], options: CompareOptions, device: str, tell: Callable[[str], object]
) -> dict[str, dict[str, Any]]:
    """Round by round, so that a noisy machine hits all alike."""
    rounds: dict[str, list[dict[str, Any]]] = {each.label: [] for each in contenders}
    for _ in range(options.rounds):
        for contender in contenders:
            found = measure_in_process(make_job(contender, options, device))
            rounds[contender.label].append(found)
            tell(
                f"{contender.label}: {found['latency_seconds']:.3f} s a picture, "
                f"{found['pictures_per_second']:.2f}/s at batch {found['best_batch']}"
            )
    return {
        label: {**found[-1], **{name: statistics.median(each[name] for each in found) for name in MEDIANS}}
        for label, found in rounds.items()
    }


def make_job(contender: Contender, options: CompareOptions, device: str) -> SpeedJob:
    """With the model's own guidance and size."""
    checkpoint = find_checkpoint(contender.model)
    return SpeedJob(
        model=contender.model,
        steps=contender.steps or checkpoint.spec.num_inference_steps,
        guidance=checkpoint.spec.guidance_scale,
        size=checkpoint.native_size,
        precision=choose_precision(device),
        profile=options.profile,
        device=device,
        batches=options.batches,
    )


def make_pictures(contender: Contender, options: CompareOptions, manifest: Path, folder: Path) -> str:
    """A whole run; what a finished one made is not made again."""
    settings = RunSettings(
        model=contender.model, num_inference_steps=contender.steps, device=options.device, profile=options.profile
    )
    name = "".join(each if each.isalnum() or each in "-_" else "-" for each in contender.label).strip("-")
    out = str(folder / f"{name}-{options.prompts}")
    opened = open_run([str(manifest)], out, settings)
    if opened.is_new or not opened.store.read_run()["state"].startswith("completed"):
        execute_lanes(opened.store, settings, StopSignal(), lambda _: None)
        finish_run(opened.store)
    return out


def measure_pictures(run: str, options: CompareOptions) -> tuple[MetricValue, ...]:
    """The metrics that were asked for, or those that are at hand."""
    names = options.metrics or choose_metrics(options)
    return evaluate_run(run, EvaluateOptions(options.reference, metrics=names, device=options.device)).metrics


def choose_metrics(options: CompareOptions) -> tuple[str, ...]:
    """Postcards have a judge and a CLIP of their own; FID where Inception's weights are."""
    names = ("attribute_accuracy", "clip_score") if "postcards" in options.suite else ("clip_score",)
    if options.reference is None:
        return names
    return (*names, "fd:starter-clip", *(("fid",) if has_weights("inception") else ()))


def describe_metric(metric: MetricValue) -> dict[str, Any]:
    """What a table needs of it."""
    return {
        "value": metric.value,
        "interval": metric.interval,
        "better": metric.better,
        "pictures": metric.n_used,
        "warnings": list(metric.warnings),
        "error": metric.error,
    }


def list_samples(runs: Sequence[str]) -> list[dict[str, Any]]:
    """The first prompts that every run has a picture of, with the pictures' addresses."""
    found: list[dict[str, Any]] = []
    by_prompt: list[dict[str, str]] = []
    for run in runs:
        with open_storage(run).open_read(RESULTS_FILE) as stream:
            rows = pq.read_table(stream, columns=["prompt", "path"]).to_pylist()
        by_prompt.append({row["prompt"]: row["path"] for row in rows if row["path"]})
    for prompt in by_prompt[0]:
        if len(found) < SAMPLES and all(prompt in each for each in by_prompt):
            found.append({"prompt": prompt, "paths": [each[prompt] for each in by_prompt]})
    return found


def write_comparison(found: dict[str, Any], file: Path) -> None:
    """Writes the figures as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
