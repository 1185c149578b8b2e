"""ONNX to a TensorRT engine: one code for `tensorrt` 10 and 11 and for `tensorrt_rtx`.

Networks are strongly typed: the graph's own dtypes and Q/DQ pairs decide, nothing is lowered behind one's back.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from dgate_core.errors import BackendUnfitError, MissingExtraError

logger = logging.getLogger(__name__)

RTX: Final = "tensorrt_rtx"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is built."""

    most_samples: int
    """Largest batch; it is tuned for this one."""
    compute_capability: str | None = None
    """`SM89` and so on: for this GPU, ahead of time and without one (tensorrt_rtx only); None is the GPU at hand."""
    is_refittable: bool = True
    """Whether its weights can be replaced; tensorrt_rtx needs a GPU to build such an engine."""
    timing_cache: Path | None = None
    """File with what earlier builds measured; tensorrt_rtx measures nothing."""


def import_tensorrt() -> Any:
    """`tensorrt`, else `tensorrt_rtx`.

    Raises:
        MissingExtraError: neither is installed.
    """
    for name in ("tensorrt", RTX):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise MissingExtraError("tensorrt", "tensorrt")


def build_engine(onnx_file: Path, engine_file: Path, options: EngineOptions) -> Path:
    """Builds an engine with a free number of samples, and returns its file.

    Raises:
        MissingExtraError: TensorRT is not installed.
        BackendUnfitError: it refuses the graph, or the target.
    """
    trt = import_tensorrt()
    log = make_log(trt)
    builder = trt.Builder(log)
    network = create_network(trt, builder)
    parser = parse_network(trt, network, onnx_file, log)
    config = builder.create_builder_config()
    config.add_optimization_profile(make_shapes(builder, network, options.most_samples))
    if options.is_refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.compute_capability is not None:
        set_target(trt, config, options.compute_capability)
    timings = load_timings(trt, config, options.timing_cache)
    data = builder.build_serialized_network(network, config)
    del parser  # not before: the network's weights are in its memory
    if data is None:
        raise BackendUnfitError(f"TensorRT {trt.__version__} builds no engine of {onnx_file.name}", "see its messages")
    engine_file.write_bytes(data)
    if timings is not None and options.timing_cache is not None:
        options.timing_cache.parent.mkdir(parents=True, exist_ok=True)
        options.timing_cache.write_bytes(timings.serialize())
    return engine_file


def create_network(trt: Any, builder: Any) -> Any:
    """Empty and strongly typed."""
    flags = trt.NetworkDefinitionCreationFlag
    # Of releases without the flag every network is strongly typed.
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    return builder.create_network(typed)


def parse_network(trt: Any, network: Any, onnx_file: Path, log: Any) -> Any:
    """Fills the network and returns the parser, which holds its weights.

    Raises:
        BackendUnfitError: with the parser's words.
    """
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_file)):
        words = "; ".join(parser.get_error(number).desc() for number in range(parser.num_errors))
        raise BackendUnfitError(f"TensorRT {trt.__version__} does not read {onnx_file.name}: {words[:300]}")
    return parser


def make_shapes(builder: Any, network: Any, most_samples: int) -> Any:
    """From one sample to the most."""
    shapes = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if -1 in tensor.shape:
            one, most = ([count if side == -1 else side for side in tensor.shape] for count in (1, most_samples))
            shapes.set_shape(tensor.name, one, most, most)
    return shapes


def set_target(trt: Any, config: Any, capability: str) -> None:
    """Raises BackendUnfitError where this release does not build for the capability."""
    targets = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    if capability not in targets:
        known = ", ".join(name for name in targets if name.startswith("SM")) or "the GPU at hand only"
        raise BackendUnfitError(f"{trt.__name__} {trt.__version__} does not build for {capability}", known)
    config.num_compute_capabilities = 1
    config.set_compute_capability(targets[capability], 0)


def check_target(trt: Any, capability: tuple[int, int]) -> None:
    """Raises BackendUnfitError for a GPU that tensorrt_rtx does not know; tensorrt builds for the GPU at hand."""
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")] if is_rtx(trt) else []
    name = "SM{}{}".format(*capability)
    if known and name not in known:
        raise BackendUnfitError(
            f"tensorrt_rtx {trt.__version__} does not build for {name}", ", ".join(known), "install tensorrt"
        )


def is_rtx(trt: Any) -> bool:
    """Whether kernels are made when the engine is opened, so that nothing is timed when it is built."""
    return str(trt.__name__) == RTX


def load_timings(trt: Any, config: Any, file: Path | None) -> Any:
    """The timing cache, filled from its file; None where there is no use for one (tensorrt_rtx wants a GPU for it)."""
    if file is None or is_rtx(trt):
        return None
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def make_log(trt: Any) -> Any:
    """TensorRT's messages in this process's log."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            is_error = severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}
            logger.log(logging.WARNING if is_error else logging.DEBUG, "TensorRT: %s", message)

    return Log()
