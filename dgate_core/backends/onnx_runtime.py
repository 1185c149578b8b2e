"""ONNX Runtime: float32 and INT8 on the CPU, all float types on CUDA where its provider is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from dgate_core.backends.contract import BackendRequest, PreparedDecoder, PreparedDenoiser, ShapeBucket
from dgate_core.backends.inputs import PREDICTION, Inputs, flatten_inputs, record_call
from dgate_core.backends.onnx_export import check_exporter, find_export
from dgate_core.backends.quantised import find_wanted_artefact
from dgate_core.errors import BackendUnfitError, MissingExtraError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import Samples
from dgate_core.models.families.latent import LatentModel
from dgate_core.quant.artefact import ONNX_FILE, Artefact

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(int64)": torch.int64,
    "tensor(bool)": torch.bool,
}
_ONNX_TYPES = {torch.float32: 1, torch.int64: 7, torch.bool: 9, torch.float16: 10, torch.bfloat16: 16}
"""Numbers of onnx.TensorProto.DataType, which a binding takes."""


class OnnxRuntimeBackend:
    """Serves strict runs on the CPU: on one thread a sample's sums do not depend on its place in the batch."""

    name: ClassVar[str] = "onnx_runtime"

    def prepare(self, model: LatentModel, request: BackendRequest) -> PreparedDenoiser:
        """See `Backend`."""
        check_provider(request.device)
        if not request.computes_every_step:
            raise BackendUnfitError("an exported graph has no step savers inside", "a profile without them")
        if request.is_strict and request.device != "cpu":
            raise BackendUnfitError("ONNX Runtime chooses CUDA kernels as it likes", "determinism=fast")
        artefact = find_wanted_artefact(model, request, self.name)
        if artefact is None:
            check_exporter()
            if request.device == "cpu" and request.precision != "float32":
                raise BackendUnfitError(
                    f"ONNX Runtime has no {request.precision} kernels on the CPU", "float32", "give --precision float32"
                )
        else:
            artefact.find_file(ONNX_FILE)
        return OnnxDenoiser(model, request, artefact)


class OnnxDenoiser:
    """One session per picture size.

    Args:
        model: Whose text encoders and decoder stay in use.
        request: Device and determinism.
        artefact: A quantised graph; None exports the model's own.
    """

    pads_batches: ClassVar[bool] = False

    def __init__(self, model: LatentModel, request: BackendRequest, artefact: Artefact | None) -> None:
        self.model, self.request, self._quantised = model, request, artefact
        self.artefact = artefact.name if artefact else None
        self.decoder: PreparedDecoder | None = None
        self._sessions: dict[tuple[int, ...], Any] = {}

    def __call__(self, samples: Samples, timestep: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        """See `DenoiserCall`."""
        inputs = flatten_inputs(samples, timestep, conditioning)
        session = self._sessions.get(name_shape(inputs))
        if session is None:
            raise BackendUnfitError("no session was made for this size", "warm_up before the first call")
        assert isinstance(samples, torch.Tensor)
        return run_session(session, inputs).to(samples.dtype)

    @torch.inference_mode()
    def release(self) -> None:
        """See `PreparedDenoiser`: the module itself was never changed."""

    def warm_up(self, key: BatchKey, samples: int) -> None:
        """See `PreparedDenoiser`."""
        bucket = ShapeBucket(key.height, key.width)
        call = record_call(self.model, bucket, samples)
        inputs = flatten_inputs(call.samples, call.timestep, call.conditioning)
        if name_shape(inputs) not in self._sessions:
            session = open_session(self._find_graph(bucket), self.request)
            check_shape(session, inputs)
            run_session(session, inputs)
            self._sessions[name_shape(inputs)] = session

    def _find_graph(self, bucket: ShapeBucket) -> Path:
        if self._quantised is not None:
            return self._quantised.find_file(ONNX_FILE)
        return find_export(self.model, bucket)


def check_provider(device: str) -> None:
    """Raises what is missing: the package, or its kernels for the device."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    provider = _PROVIDERS.get(device)
    if provider not in onnxruntime.get_available_providers():
        raise BackendUnfitError(
            f"this onnxruntime has no kernels for {device}",
            provider or "cpu or cuda",
            "install onnxruntime-gpu, or take another profile",
        )


def open_session(file: Path, request: BackendRequest) -> Any:
    """A session on the request's device; on the CPU with as many threads as torch has, or one for strict."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if request.is_strict else torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=[_PROVIDERS[request.device]])
    except Exception as error:  # onnxruntime's own errors share no other base
        raise BackendUnfitError(
            f"ONNX Runtime does not open {file}: {str(error).splitlines()[0][:200]}", "a graph that it supports"
        ) from error


def check_shape(session: Any, inputs: Inputs) -> None:
    """Raises BackendUnfitError when the graph was made for another size."""
    for wanted in session.get_inputs():
        fixed, given = wanted.shape[1:], list(inputs[wanted.name].shape[1:])
        if any(isinstance(side, int) and side != there for side, there in zip(fixed, given, strict=True)):
            raise BackendUnfitError(
                f"{wanted.name} is {given} a sample, and this graph was made for {fixed}",
                "the size of its bucket",
                "take the size that it was optimised for, or another profile",
            )


def run_session(session: Any, inputs: Inputs) -> torch.Tensor:
    """Prediction in the graph's own dtype, on the samples' device."""
    wanted = {each.name: _TYPES[each.type] for each in session.get_inputs()}
    feeds = {name: inputs[name].to(dtype).contiguous() for name, dtype in wanted.items()}
    if next(iter(feeds.values())).device.type == "cuda":
        return _run_on_cuda(session, feeds)
    (prediction,) = session.run([PREDICTION], {name: value.numpy() for name, value in feeds.items()})
    return torch.from_numpy(prediction)


def name_shape(inputs: Inputs) -> tuple[int, ...]:
    """Of one sample."""
    return tuple(inputs["samples"].shape[1:])


def _run_on_cuda(session: Any, feeds: Inputs) -> torch.Tensor:
    """Device pointers in and out, so that nothing goes through the host."""
    samples = feeds["samples"]
    prediction = torch.empty_like(samples)
    binding = session.io_binding()
    place = {"device_type": "cuda", "device_id": samples.device.index or 0}
    for name, value in feeds.items():
        binding.bind_input(
            name=name,
            element_type=_ONNX_TYPES[value.dtype],
            shape=tuple(value.shape),
            buffer_ptr=value.data_ptr(),
            **place,
        )
    binding.bind_output(
        name=PREDICTION,
        element_type=_ONNX_TYPES[prediction.dtype],
        shape=tuple(prediction.shape),
        buffer_ptr=prediction.data_ptr(),
        **place,
    )
    torch.cuda.current_stream().synchronize()
    session.run_with_iobinding(binding)
    return prediction
