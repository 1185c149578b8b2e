"""TensorRT: an engine per picture size and power of two of samples, tuned for the GPU and kept in the engine cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

import torch

from dgate_core.backends.contract import BackendRequest, PreparedDecoder, PreparedDenoiser, ShapeBucket
from dgate_core.backends.engine_cache import EngineKey, count_weights, name_gpu, open_engine_cache, read_driver_version
from dgate_core.backends.inputs import PREDICTION, SAMPLES, Inputs, flatten_inputs, record_call
from dgate_core.backends.onnx_export import check_exporter, find_export
from dgate_core.backends.quantised import find_wanted_artefact
from dgate_core.backends.tensorrt_builder import (
    EngineOptions,
    build_engine,
    check_target,
    import_tensorrt,
    make_log,
)
from dgate_core.errors import BackendUnfitError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import Samples
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.hashing import find_cache_folder
from dgate_core.quant.artefact import ONNX_FILE, Artefact

ENGINE_FILE: Final = "denoiser.engine"
_TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "BOOL": torch.bool,
}


class TensorRTBackend:
    """CUDA only. Refuses strict runs: which kernels an engine has is decided by timing when it is built."""

    name: ClassVar[str] = "tensorrt"

    def prepare(self, model: LatentModel, request: BackendRequest) -> PreparedDenoiser:
        """See `Backend`."""
        if request.device != "cuda":
            raise BackendUnfitError(f"TensorRT does not compute on {request.device}", "cuda")
        if request.is_strict:
            raise BackendUnfitError("TensorRT chooses its kernels by timing", "determinism=fast", "take eager")
        if not request.computes_every_step:
            raise BackendUnfitError("an engine has no step savers inside", "a profile without them")
        check_target(import_tensorrt(), torch.cuda.get_device_capability(model.device))
        artefact = find_wanted_artefact(model, request, self.name)
        if artefact is None:
            check_exporter()
        return TensorRTDenoiser(model, artefact)


class TensorRTDenoiser:
    """Engines by picture size and number of samples.

    Args:
        model: On its GPU.
        artefact: A quantised graph; None exports the model's own.
    """

    pads_batches: ClassVar[bool] = False

    def __init__(self, model: LatentModel, artefact: Artefact | None) -> None:
        self.model, self._quantised = model, artefact
        self.artefact = artefact.name if artefact else None
        self.decoder: PreparedDecoder | None = None
        self._engines: dict[tuple[int, ...], Engine] = {}

    def __call__(self, samples: Samples, timestep: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        """See `DenoiserCall`."""
        inputs = flatten_inputs(samples, timestep, conditioning)
        engine = self._engines.get(name_bucket(inputs))
        if engine is None:
            raise BackendUnfitError("no engine was made for this size", "warm_up before the first call")
        return engine.run(inputs)

    @torch.inference_mode()
    def release(self) -> None:
        """See `PreparedDenoiser`: the module itself was never changed."""

    def warm_up(self, key: BatchKey, samples: int) -> None:
        """See `PreparedDenoiser`."""
        bucket = ShapeBucket(key.height, key.width, round_up(samples))
        call = record_call(self.model, bucket, samples)
        inputs = flatten_inputs(call.samples, call.timestep, call.conditioning)
        if name_bucket(inputs) not in self._engines:
            engine = Engine(self._find_engine(bucket))
            engine.run(inputs)
            self._engines[name_bucket(inputs)] = engine

    def refit(self, graph: Path, bucket: ShapeBucket) -> None:
        """Gives the engines of a size the weights of another export of the same denoiser, such as one with a LoRA.

        Args:
            graph: Written by `export_denoiser`; the model's own export brings the pristine weights back.
            bucket: Size of the pictures.
        """
        call = record_call(self.model, bucket, 1)
        size = name_bucket(flatten_inputs(call.samples, call.timestep, call.conditioning))[1:]
        for place, engine in self._engines.items():
            if place[1:] == size:
                engine.refit(graph)

    def _find_engine(self, bucket: ShapeBucket) -> Path:
        trt, quantised = import_tensorrt(), self._quantised
        versions = (f"{trt.__name__} {trt.__version__}", f"driver {read_driver_version()}")
        key = replace(EngineKey.of_model("tensorrt", self.model, bucket, versions), gpu=name_gpu(self.model.device))
        if quantised is not None:
            precision = f"{key.precision}-{quantised.quantization}"
            key = replace(key, weights_hash=quantised.files[ONNX_FILE], precision=precision)
        timings = find_cache_folder() / "tensorrt" / f"{trt.__version__}-{key.gpu.replace(' ', '_')}.timings"

        def build(draft: Path) -> None:
            graph = quantised.find_file(ONNX_FILE) if quantised else find_export(self.model, bucket)
            build_engine(graph, draft / ENGINE_FILE, EngineOptions(bucket.most_samples, timing_cache=timings))

        return open_engine_cache().obtain(key, build, count_weights(self.model)) / ENGINE_FILE


class Engine:
    """An engine on the GPU at hand.

    Args:
        file: Written by `build_engine`.

    Raises:
        BackendUnfitError: it was built for another GPU or by another release.
    """

    def __init__(self, file: Path) -> None:
        trt = import_tensorrt()
        self._log = make_log(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if self._engine is None:
            raise BackendUnfitError(
                f"{file} is not an engine for this GPU and {trt.__name__} {trt.__version__}",
                "an engine that was built here",
                "remove its folder: it is built anew",
            )
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        self._types = {name: _TYPES[self._engine.get_tensor_dtype(name).name] for name in names}

    def run(self, inputs: Inputs) -> torch.Tensor:
        """Prediction in the samples' dtype, on torch's current stream."""
        feeds = {name: inputs[name].to(dtype).contiguous() for name, dtype in self._types.items() if name != PREDICTION}
        for name, value in feeds.items():
            self._context.set_input_shape(name, tuple(value.shape))
            self._context.set_tensor_address(name, value.data_ptr())
        device = inputs[SAMPLES].device
        shape = tuple(self._context.get_tensor_shape(PREDICTION))
        prediction = torch.empty(shape, dtype=self._types[PREDICTION], device=device)
        self._context.set_tensor_address(PREDICTION, prediction.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream(device).cuda_stream):
            raise RuntimeError("the TensorRT engine failed; its messages are in the log")
        return prediction.to(inputs[SAMPLES].dtype)

    def refit(self, graph: Path) -> None:
        """Replaces every weight by that of the graph.

        Raises:
            BackendUnfitError: the graph is of another denoiser.
        """
        trt = import_tensorrt()
        refitter = trt.Refitter(self._engine, self._log)
        parser = trt.OnnxParserRefitter(refitter, self._log)
        if not (parser.refit_from_file(str(graph)) and refitter.refit_cuda_engine()):
            raise BackendUnfitError(f"the engine does not take the weights of {graph}", "the same denoiser, exported")


def round_up(samples: int) -> int:
    """The next power of two, at least two."""
    return max(2, 1 << (samples - 1).bit_length())


def name_bucket(inputs: Inputs) -> tuple[int, ...]:
    """Power of two of samples, then the shape of one sample."""
    return (round_up(len(inputs[SAMPLES])), *inputs[SAMPLES].shape[1:])
