"""From a loaded model to an artefact on this machine: calibrate, find what must keep its bits, quantise, store."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from dgate_core.errors import UsageError
from dgate_core.models.families.latent import LatentModel
from dgate_core.quant.artefact import ONNX_FILE, PLAN_FILE, Artefact, make_draft_folder, store_artefact
from dgate_core.quant.attention import has_attentions
from dgate_core.quant.calibration import CalibrationOptions, Report, calibrate, ignore_report
from dgate_core.quant.kernels import KernelOptions, Kernels, choose_kernels, narrow_calibration
from dgate_core.quant.layers import list_layers
from dgate_core.quant.onnx_graph import STYLES, insert_quantizers
from dgate_core.quant.plan import LayerRange, Quantization, QuantPlan, write_plan
from dgate_core.quant.quantise import find_product
from dgate_core.quant.sensitivity import LayerTrial, SensitivityOptions, plan_quantization

MADE_BY: Final = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "bitsandbytes")
"""Libraries whose versions an artefact keeps."""
SHOWN_TRIALS: Final = 12
"""Layers whose errors an artefact keeps, the greatest first."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What an artefact is to be."""

    quantization: Quantization
    """Number format."""
    backend: str
    """Which backend it is for: `onnx_runtime` and `tensorrt` get ONNX, the others the plan alone."""
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    """How the ranges are found."""
    sensitivity: SensitivityOptions = field(default_factory=SensitivityOptions)
    """How much may show."""
    kernels: KernelOptions = field(default_factory=KernelOptions)
    """Which layers, and how finely."""


def build_artefact(
    model: LatentModel, prompts: Sequence[str], options: BuildOptions, report: Report = ignore_report
) -> Artefact:
    """Makes an artefact that no gate has judged yet; the model is unchanged afterwards.

    Args:
        model: In the precision in which it serves; float32 for `onnx_runtime`.
        prompts: Of the calibration.
        options: What and how.
        report: Takes progress lines.

    Raises:
        UsageError: no prompts, no such kernel, or every layer would have to keep its bits.
        MissingExtraError: onnx is not installed.
        StorageError: the cache cannot be written.
    """
    kernels = choose_kernels(options.quantization, options.backend, model.device.type, options.kernels)
    trials: list[LayerTrial] = []
    if options.quantization == "nf4":
        plan, prompts_hash = plan_nf4(model), ""
    else:
        find_product(options.quantization, kernels.granularity)
        calibration = calibrate(model, prompts, options.calibration, report)
        seen, finely = narrow_calibration(calibration, model, kernels), kernels.granularity
        plan, trials = plan_quantization(model, seen, options.quantization, options.sensitivity, report, finely)
        plan = replace(plan, attention=kernels.attention and has_attentions(model.denoiser, plan))
        prompts_hash = calibration.prompts_hash
    attention = ", and the attention between them" if plan.attention else ""
    report(f"{len(plan.layers)} layers in {plan.quantization}{attention}, {len(plan.kept)} kept as they are")
    if not plan.layers:
        raise UsageError(
            f"no layer fits into an error of {options.sensitivity.error_budget}", "a larger error_budget", ""
        )
    folder = make_draft_folder()
    try:
        write_files(model, plan, folder, options)
        checkpoint = model.checkpoint
        draft = Artefact(
            folder=folder,
            weights_hash=checkpoint.weights_hash,
            family=checkpoint.family,
            pipeline_class=checkpoint.pipeline_class,
            quantization=options.quantization,
            backend=options.backend,
            method=describe_method(options, kernels, trials),
            kept_layers=plan.kept,
            calibration_hash=prompts_hash,
            versions=list_versions(),
        )
        return store_artefact(draft)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_files(model: LatentModel, plan: QuantPlan, folder: Path, options: BuildOptions) -> None:
    """The plan, and for backends that read ONNX the denoiser with Q/DQ pairs."""
    write_plan(plan, folder / PLAN_FILE)
    if options.backend not in STYLES:
        return
    from dgate_core.backends.contract import ShapeBucket
    from dgate_core.backends.onnx_export import export_denoiser

    native = model.checkpoint.native_size
    bucket = ShapeBucket(options.calibration.height or native, options.calibration.width or native)
    plain = folder / "plain.onnx"
    export_denoiser(model, plain, bucket)
    insert_quantizers(plain, folder / ONNX_FILE, plan, STYLES[options.backend])
    for path in folder.glob("plain.onnx*"):
        path.unlink()


def plan_nf4(model: LatentModel) -> QuantPlan:
    """Every linear layer: NF4 has no activations to calibrate, and no error to measure without its own kernels."""
    from torch import nn

    names = [name for name, layer in list_layers(model).items() if isinstance(layer, nn.Linear)]
    return QuantPlan("nf4", dict.fromkeys(names, LayerRange(0.0, 0.0, 0.0, 0.0)))


def describe_method(options: BuildOptions, kernels: Kernels, trials: Sequence[LayerTrial]) -> Mapping[str, object]:
    """What artefact.json says of how it was made."""
    return {
        "calibration": asdict(options.calibration),
        "sensitivity": asdict(options.sensitivity),
        "kernels": asdict(kernels),
        "layer_errors": {trial.name: trial.error for trial in trials[:SHOWN_TRIALS]},
        "smoothed_layers": [trial.name for trial in trials if trial.smoothing is not None],
    }


def list_versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    found = {}
    for name in MADE_BY:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
