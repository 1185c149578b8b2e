"""The denoiser as ONNX: one picture size, any number of samples."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from dgate_core.backends.contract import ShapeBucket
from dgate_core.backends.engine_cache import EngineKey, count_weights, open_engine_cache
from dgate_core.backends.inputs import (
    PREDICTION,
    SAMPLES,
    SHARED_INPUTS,
    TIMESTEP,
    flatten_inputs,
    list_constants,
    nest_inputs,
    record_call,
)
from dgate_core.errors import BackendUnfitError, MissingExtraError
from dgate_core.models.families.latent import LatentModel

OPSET: Final = 20
EXPORT_FILE: Final = "denoiser.onnx"
_MOST_SAMPLES: Final = 1024  # one export serves every batch
_EXAMPLE_SAMPLES: Final = 2  # one sample would be taken for a constant


class FlatDenoiser(torch.nn.Module):
    """A denoiser whose arguments are tensors in a known order.

    Args:
        denoiser: UNet or transformer of diffusers.
        time_name: Its argument for the timestep.
        names: Of the tensors, the samples first.
        constants: Arguments that are given without a value.
    """

    def __init__(
        self, denoiser: torch.nn.Module, time_name: str, names: Sequence[str], constants: Mapping[str, None]
    ) -> None:
        super().__init__()
        self.denoiser, self.time_name = denoiser, time_name
        self.names, self.constants = tuple(names), dict(constants)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Prediction, shaped as the samples."""
        named: dict[str, Any] = dict(zip(self.names, tensors, strict=True))
        samples = named.pop(SAMPLES)
        named[self.time_name] = named.pop(TIMESTEP)
        arguments = nest_inputs({**self.constants, **named})
        predicted: torch.Tensor = self.denoiser(samples, return_dict=False, **arguments)[0]
        return predicted


@torch.inference_mode()
def export_denoiser(model: LatentModel, file: Path, bucket: ShapeBucket) -> Path:
    """Writes the model's denoiser, in the dtype in which it was loaded, and returns the file.

    Inputs are named as `flatten_inputs` names them, the output is `prediction`; the number of samples is free, the
    picture's size and the number of tokens are the bucket's. Weights above 1 KiB stand beside it in FILE.data.

    Args:
        model: On any device.
        file: `.onnx`, in a folder that is there.
        bucket: Size of the pictures.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        BackendUnfitError: the denoiser takes other things than tensors, or cannot be traced.
    """
    check_exporter()
    call = record_call(model, bucket, _EXAMPLE_SAMPLES)
    inputs = flatten_inputs(call.samples, call.timestep, call.conditioning)
    flat = FlatDenoiser(model.denoiser, model.time_name, list(inputs), list_constants(call.conditioning))
    samples = torch.export.Dim("samples", min=1, max=max(bucket.most_samples, _EXAMPLE_SAMPLES))
    free = tuple(None if name in SHARED_INPUTS else {0: samples} for name in inputs)
    with _quiet_exporter():
        try:
            torch.onnx.export(
                flat.eval(),
                tuple(inputs.values()),
                file,
                input_names=list(inputs),
                output_names=[PREDICTION],
                dynamic_shapes=(free,),
                opset_version=OPSET,
                verbose=False,
                external_data=True,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError, NotImplementedError) as error:
            raise BackendUnfitError(
                f"{type(model.denoiser).__name__} cannot be exported: {str(error).strip().splitlines()[0][:200]}",
                "a denoiser that torch.export traces",
                "take another profile",
            ) from error
    return file


def find_export(model: LatentModel, bucket: ShapeBucket) -> Path:
    """The model's own export from the engine cache, made now if nobody has.

    Raises:
        BackendUnfitError: it cannot be exported.
        StorageError: no room.
    """
    bucket = replace(bucket, most_samples=_MOST_SAMPLES)
    key = EngineKey.of_model("onnx", model, bucket, describe_exporter())
    folder = open_engine_cache().obtain(
        key, lambda draft: export_denoiser(model, draft / EXPORT_FILE, bucket), count_weights(model)
    )
    return folder / EXPORT_FILE


def check_exporter() -> None:
    """Raises MissingExtraError without the packages that torch.onnx needs."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "onnx").split(".", maxsplit=1)[0], "onnx") from error


def describe_exporter() -> tuple[str, ...]:
    """Versions on which an export depends."""
    return tuple(f"{name} {version(name)}" for name in ("torch", "diffusers", "onnx", "onnxscript"))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter tells its steps on stdout's level of logging, and warns of its own internals."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    before = [(logger := logging.getLogger(name), logger.level) for name in names]
    for logger, _ in before:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
