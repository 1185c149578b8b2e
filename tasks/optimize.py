"""A checkpoint made cheaper: what has to be done, the artefact, its trial, and what is kept of the verdict."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.states import Failed

from dgate_core.bench.quantised import RaceOptions, list_entries, race_entries
from dgate_core.config import build_settings
from dgate_core.engine.lane import choose_device
from dgate_core.engine.precision import choose_precision
from dgate_core.errors import MissingExtraError, UsageError
from dgate_core.evaluation.gate.verdict import Verdict, read_verdict, verdict_to_record
from dgate_core.manifest.overlap import check_no_overlap, read_prompts
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.profiles import find_profile
from dgate_core.models.spec import FAMILIES
from dgate_core.storage import open_storage
from tasks.artifacts import UNREACHABLE, RunArtifact
from tasks.gate import Contest, conclude_gate, prepare_contest, read_settings

logger = logging.getLogger(__name__)

PACKAGES: Mapping[str, tuple[str, str]] = {
    "onnx_runtime": ("onnxruntime", "onnx"),
    "tensorrt": ("tensorrt", "tensorrt"),
}
"""Backend → the package that it needs, and the extra that installs it."""
PLANNED = frozenset({"onnx_runtime", "tensorrt", "compiled", "eager"})
"""Backends that an artefact is made for here."""


@dataclass(frozen=True, slots=True)
class Optimization:
    """What is to be made, and what it is held against."""

    model: str
    """As `--model` takes it."""
    profile: str
    """Whose quantization it is."""
    quantization: str
    """Of the profile."""
    backend: str
    """The profile's first that is installed."""
    device: str
    """Where it serves."""
    precision: str
    """Of the model around the quantised layers."""
    prompts: tuple[str, ...]
    """Of the calibration."""
    contest: Contest
    """The baseline's run; the candidate's is named when its artefact is there."""
    settings: Mapping[str, Any]
    """Of both runs, as the user gave them."""


@task(name="prepare optimization", cache_policy=NO_CACHE, persist_result=False)
def prepare_optimization(
    model: str, profile: str, prompts: tuple[str, str], out: str, device: str, settings: Mapping[str, Any]
) -> Optimization:
    """Sees before any work that it can be done.

    Args:
        model: A name of the catalogue, a folder, a file, or an alias.
        profile: One that quantises.
        prompts: Calibration manifest and evaluation suite.
        out: Folder of the runs.
        device: `auto`, `cpu`, `cuda` or `mps`.
        settings: Of both runs.

    Raises:
        UsageError: the profile quantises nothing, or is unknown.
        ModelError: no such model.
        PromptOverlapError: a calibration prompt is an evaluation prompt.
        ConfigError: a setting is unknown, no value of its kind, or the profile of both sides.
        MissingExtraError: the backend's library is not installed.
    """
    device = choose_device(device)
    levers = find_profile(profile, device)
    if levers.quantization is None:
        raise UsageError(f"the profile {profile} quantises nothing on {device}", "a profile that does", "take turbo")
    settings = read_settings(settings, "model", "profile")
    contest = prepare_contest.fn(model, model, prompts[1], out, settings)
    calibration = list(dict.fromkeys(read_prompts([prompts[0]])))
    check_no_overlap(calibration, read_prompts([contest.manifest]))
    backend = choose_backend(levers.backends)
    if levers.quantization == "nf4" and find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "bitsandbytes")
    precision = "float32" if (backend, device) == ("onnx_runtime", "cpu") else choose_precision(device)
    return Optimization(
        contest.baseline,
        profile,
        levers.quantization,
        backend,
        device,
        str(settings.get("precision") or precision),
        tuple(calibration),
        contest,
        settings,
    )


def choose_backend(backends: Sequence[str], packages: Mapping[str, tuple[str, str]] = PACKAGES) -> str:
    """The first that artefacts are made for here and whose package is installed.

    Raises:
        MissingExtraError: none is.
    """
    fitting = [name for name in backends if name in PLANNED]
    for name in fitting:
        if name not in packages or find_spec(packages[name][0]) is not None:
            return name
    raise MissingExtraError(*packages[fitting[0]])


@task(name="quantise", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=24 * 3600)
def quantise_checkpoint(work: Optimization, options: Mapping[str, Any]) -> str:
    """Calibrates, finds the layers that must keep their bits, builds and stores the artefact.

    Args:
        work: What is to be made.
        options: Of calibration, sensitivity and kernels by name, such as percentile, error_budget, linear_only.

    Returns:
        The artefact's folder; no gate has judged it yet.
    """
    from dgate_core.models.families.contract import LoadOptions
    from dgate_core.quant.build import BuildOptions, build_artefact
    from dgate_core.quant.calibration import CalibrationOptions
    from dgate_core.quant.kernels import KernelOptions
    from dgate_core.quant.sensitivity import SensitivityOptions

    known: dict[type, dict[str, Any]] = {
        kind: {name: value for name, value in options.items() if name in kind.__slots__}
        for kind in (SensitivityOptions, KernelOptions)
    }
    others = {name: value for name, value in options.items() if not any(name in found for found in known.values())}
    wanted = BuildOptions(
        work.quantization,  # type: ignore[arg-type] # as the profiles have it
        work.backend,
        build_settings(CalibrationOptions, others),
        build_settings(SensitivityOptions, known[SensitivityOptions]),
        build_settings(KernelOptions, known[KernelOptions]),
    )
    checkpoint = find_checkpoint(work.model)
    loading = LoadOptions(work.device, work.precision, denoiser_waits=work.quantization == "nf4")
    model = FAMILIES.load(checkpoint.family)().load(checkpoint, loading)
    artefact = build_artefact(model, work.prompts, wanted, logger.info)
    logger.info("%s is stored in %s", artefact.name, artefact.folder)
    return str(artefact.folder)


def name_candidate(work: Optimization, folder: str) -> Contest:
    """Baseline and candidate; every artefact has a run of its own."""
    from dgate_core.quant.artefact import read_artefact

    artefact = read_artefact(Path(folder))
    # The precision is the baseline's, which is the one that the profile will serve in.
    settings = {**work.contest.settings, "profile": work.profile, "lanes": 1}
    run = f"{work.contest.baseline_run}-{artefact.name}"
    return replace(work.contest, candidate_run=run, settings=settings)


def try_artefact(folder: str) -> AbstractContextManager[None]:
    """Lets the profile serve the artefact in this process, judged or not."""
    from dgate_core.quant.artefact import put_on_trial, read_artefact

    return put_on_trial(read_artefact(Path(folder)))


@task(name="race", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=6 * 3600)
def race_artefact(work: Optimization, folder: str, pictures: int) -> dict[str, Any]:
    """Pictures per second of the artefact beside 32 and 16 bit, kept with it; none for no pictures."""
    from dgate_core.quant.artefact import note_speed, read_artefact

    if not pictures:
        return {}
    options = RaceOptions(
        work.model, work.device, pictures, num_inference_steps=work.contest.settings["num_inference_steps"]
    )
    savers = find_profile(work.profile, work.device).savers
    entries = list_entries(work.device, work.precision, work.backend, work.quantization, savers)
    with try_artefact(folder):
        speed = race_entries(options, entries, logger.info, entries[0].name)
    note_speed(read_artefact(Path(folder)), speed)
    return speed


def conclude_optimization(contest: Contest, folder: str, page: str) -> dict[str, Any] | State[Any]:
    """Writes the verdict into the artefact and shows it; only a pass lets it serve, else the flow run fails."""
    from dgate_core.quant.artefact import note_verdict, read_artefact

    verdict = read_verdict(open_storage(contest.candidate_run))
    artefact = note_verdict(read_artefact(Path(folder)), verdict.decision, summarise_verdict(verdict))
    show_artefact(describe_artefact(folder), f"{artefact.name}: {verdict.decision}")
    concluded = conclude_gate(contest, page, "")
    told = {"artefact": artefact.name, "folder": folder, "speed": dict(artefact.speed)}
    if isinstance(concluded, dict):
        return {**concluded, **told}
    record = {**verdict_to_record(verdict), "model": contest.candidate, "page": page, **told}
    return Failed(message=concluded.message, data=record)


def summarise_verdict(verdict: Verdict) -> dict[str, Any]:
    """What an artefact keeps of it."""
    return {
        check.metric or check.rule: {
            "decision": "reported" if check.reported_only else check.decision,
            "baseline": check.baseline,
            "candidate": check.candidate,
            "effect": check.effect,
            "interval": check.interval,
            "n_used": check.n_used,
        }
        for check in verdict.checks
    }


def describe_artefact(folder: str) -> str:
    """The artefact as markdown: verdict, quality, speed, layers that kept their bits."""
    from dgate_core.quant.artefact import read_artefact

    artefact = read_artefact(Path(folder))
    lines = [
        f"# {artefact.name}: {artefact.decision}",
        f"{artefact.quantization} for {artefact.backend}, from weights {artefact.weights_hash[:12]}.",
        "",
        "| check | decision | 16 bit | quantised | effect | interval | pictures |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in artefact.quality.items():
        interval = "" if found["interval"] is None else " to ".join(f"{end:+.4g}" for end in found["interval"])
        figures = ["" if found[part] is None else f"{found[part]:.4g}" for part in ("baseline", "candidate", "effect")]
        lines.append(f"| {name} | {found['decision']} | {' | '.join(figures)} | {interval} | {found['n_used']:,} |")
    if artefact.speed:
        reference, rates = artefact.speed["reference"], artefact.speed["pictures_per_second"]
        lines += ["", f"| computed by | pictures/s | x {reference} |", "| --- | --- | --- |"]
        lines += [f"| {name} | {rate:.2f} | {artefact.speed['ratios'][name]:.2f} |" for name, rate in rates.items()]
    kept = ", ".join(artefact.kept_layers) or "none beyond the family's own"
    return "\n".join([*lines, "", f"Layers that keep their bits: {kept}."])


def show_artefact(text: str, title: str) -> None:
    """In Prefect; the artefact stands without it."""
    try:
        with get_client(sync_client=True) as client:
            RunArtifact(client, "markdown").show(text, title)
    except UNREACHABLE as error:
        logger.warning("the artefact could not be shown in Prefect: %s", error)
