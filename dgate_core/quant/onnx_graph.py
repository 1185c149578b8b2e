"""The plan in an exported denoiser: Q/DQ pairs around the layers that it names, found by their module names.

The exporter writes the module that a node came from into the node (`pkg.torch.onnx.name_scopes`). ONNX Runtime joins
DequantizeLinear, Conv and QuantizeLinear to one integer kernel; for TensorRT the pairs say which precision is meant.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dgate_core.errors import MissingExtraError, ModelError
from dgate_core.quant.plan import LayerRange, QuantPlan

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_DENOISER: Final = "denoiser."
_WEIGHTED: Final = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class QdqStyle:
    """What a runtime wants the pairs to be."""

    is_asymmetric: bool
    """Activations uint8 with a zero point, else int8 around zero."""
    quantises_outputs: bool
    """A convolution's output gets a pair too, with an int32 bias: without it no integer kernel is taken."""


STYLES: Final = {
    "onnx_runtime": QdqStyle(is_asymmetric=True, quantises_outputs=True),
    "tensorrt": QdqStyle(is_asymmetric=False, quantises_outputs=False),
}
"""By backend."""


def insert_quantizers(source: Path, target: Path, plan: QuantPlan, style: QdqStyle) -> Path:
    """Writes the export with Q/DQ pairs around the plan's layers; weights stand beside it in TARGET.data.

    INT8 weights are scaled by output channel, FP8 ones by tensor, as TensorRT wants them.

    Args:
        source: What `export_denoiser` wrote, in float32 or 16 bit.
        target: `.onnx`.
        plan: `int8`, or with TensorRT's style `fp8`.
        style: Of the runtime.

    Raises:
        MissingExtraError: onnx is not installed.
        ModelError: the export lacks a layer of the plan.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnx", "onnx") from error
    model = onnx.load(source)
    _GraphEditor(model, plan, style).edit()
    target.with_suffix(".onnx.data").unlink(missing_ok=True)
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data", size_threshold=1024)
    return target


def find_fp8() -> Any:
    """E4M3 as numpy knows it by ml_dtypes, which comes with onnx."""
    import ml_dtypes

    return ml_dtypes.float8_e4m3fn


def find_module(node: NodeProto) -> str:
    """Name of the layer that a node computes; empty where it is none."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    names = ast.literal_eval(scopes)
    return names[-2].removeprefix(_DENOISER) if len(names) > 1 else ""


class _GraphEditor:
    """One pass over the nodes, in their order."""

    def __init__(self, model: ModelProto, plan: QuantPlan, style: QdqStyle) -> None:
        from onnx import helper

        self.graph, self.plan, self.style = model.graph, plan, style
        self.float_type = helper.tensor_dtype_to_np_dtype(model.graph.output[0].type.tensor_type.elem_type)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[Any] = []
        self.added: list[Any] = []
        self.pairs: dict[tuple[Any, ...], str] = {}

    def edit(self) -> None:
        """Replaces the graph's nodes and drops the float weights that nothing reads any more."""
        found = set()
        for node in self.graph.node:
            name = find_module(node)
            if node.op_type in _WEIGHTED and name in self.plan.layers and node.input[1] in self.weights:
                self.quantise(node, name)
                found.add(name)
            else:
                self.nodes.append(node)
        if missing := sorted(set(self.plan.layers) - found):
            raise ModelError(
                f"the export has no layer {missing[0]}", "an export of the planned model", "export it again"
            )
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend([*kept, *self.added])

    def quantise(self, node: NodeProto, name: str) -> None:
        """Input, weight, and with some runtimes bias and output of a convolution."""
        limits, smoothing = self.plan.layers[name], self.plan.smoothing.get(name)
        given = node.input[0] if smoothing is None else self.divide(node.input[0], smoothing.numpy(), name)
        scale, _ = self.find_scale(limits.low, limits.high)
        node.input[0] = self.add_pair(given, limits.low, limits.high)
        scales = self.quantise_weight(node, name, None if smoothing is None else smoothing.numpy())
        if node.op_type != "Conv" or not self.style.quantises_outputs:
            self.nodes.append(node)
            return
        if len(node.input) > 2:
            self.quantise_bias(node, name, scale * scales)
        output, node.output[0] = node.output[0], f"{node.output[0]}_float"
        self.nodes.append(node)
        self.add_pair(node.output[0], limits.output_low, limits.output_high, output)

    def find_scale(self, low: float, high: float) -> tuple[float, int]:
        """Scale and zero point; 0 is exact in both styles."""
        if not self.style.is_asymmetric:
            return LayerRange(low, high, 0, 0).magnitude / self.largest, 0
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, 1e-12)
        return scale, round(-low / scale)

    def add_pair(self, tensor: str, low: float, high: float, output: str | None = None) -> str:
        """QuantizeLinear and DequantizeLinear; layers with one input and one range share theirs."""
        scale, zero = self.find_scale(low, high)
        key = (tensor, scale, zero)
        if output is None and key in self.pairs:
            return self.pairs[key]
        stem = f"{tensor}_q{len(self.pairs)}"
        parameters = self.add_scale(stem, np.array(scale), np.array(zero, self.storage))
        self.add_node("QuantizeLinear", [tensor, *parameters], f"{stem}_bits")
        self.add_node("DequantizeLinear", [f"{stem}_bits", *parameters], output or f"{stem}_value")
        self.pairs[key] = output or f"{stem}_value"
        return self.pairs[key]

    @property
    def storage(self) -> Any:
        """Type of activations."""
        if self.plan.quantization == "fp8":
            return find_fp8()
        return np.uint8 if self.style.is_asymmetric else np.int8

    @property
    def largest(self) -> int:
        """Greatest value of the symmetric storage."""
        return 448 if self.plan.quantization == "fp8" else 127

    def quantise_weight(self, node: NodeProto, name: str, smoothing: np.ndarray | None) -> np.ndarray:
        """8 bits; returns the scales, float32 (outputs,)."""
        from onnx import numpy_helper

        weight = numpy_helper.to_array(self.weights[node.input[1]]).astype(np.float32)
        has_rows = node.op_type == "Conv" or any(each.name == "transB" and each.i for each in node.attribute)
        axis = 0 if has_rows else 1
        if smoothing is not None:
            weight = weight * (smoothing[None, :] if has_rows else smoothing[:, None])
        stem = f"{name}.weight_{self.plan.quantization}"
        if self.plan.quantization == "fp8":
            scales = np.maximum(np.abs(weight).max(), 1e-12).astype(np.float32) / np.float32(self.largest)
            bits = np.clip(weight / scales, -self.largest, self.largest).astype(self.storage)
            parameters = self.add_scale(stem, scales, np.array(0, self.storage))
            self.add_node("DequantizeLinear", [stem, *parameters], f"{stem}_value")
        else:
            others = tuple(number for number in range(weight.ndim) if number != axis)
            scales = np.maximum(np.abs(weight).max(axis=others), 1e-12).astype(np.float32) / np.float32(self.largest)
            shape = [-1 if number == axis else 1 for number in range(weight.ndim)]
            bits = np.clip(np.rint(weight / scales.reshape(shape)), -self.largest, self.largest).astype(np.int8)
            parameters = self.add_scale(stem, scales, np.zeros(len(scales), np.int8))
            self.add_node("DequantizeLinear", [stem, *parameters], f"{stem}_value", axis=axis)
        self.add_tensor(bits, stem)
        node.input[1] = f"{stem}_value"
        return scales

    def quantise_bias(self, node: NodeProto, name: str, scales: np.ndarray) -> None:
        """int32, in units of the sums."""
        from onnx import numpy_helper

        bias = numpy_helper.to_array(self.weights[node.input[2]]).astype(np.float64)
        most = np.iinfo(np.int32).max
        stem = f"{name}.bias_int32"
        self.add_tensor(np.clip(np.rint(bias / scales), -most, most).astype(np.int32), stem)
        parameters = self.add_scale(stem, scales.astype(np.float32), np.zeros(len(scales), np.int32))
        self.add_node("DequantizeLinear", [stem, *parameters], f"{stem}_value", axis=0)
        node.input[2] = f"{stem}_value"

    def divide(self, tensor: str, smoothing: np.ndarray, name: str) -> str:
        """The smoothed input."""
        stem = f"{name}.smoothing"
        self.add_tensor((1 / smoothing).astype(self.float_type), stem)
        self.add_node("Mul", [tensor, stem], f"{stem}_value")
        return f"{stem}_value"

    def add_scale(self, stem: str, scale: Any, zero: np.ndarray) -> list[str]:
        """Names of a scale and a zero point."""
        self.add_tensor(np.asarray(scale).astype(self.float_type), f"{stem}_scale")
        self.add_tensor(zero, f"{stem}_zero")
        return [f"{stem}_scale", f"{stem}_zero"]

    def add_tensor(self, values: np.ndarray, name: str) -> None:
        """A constant of the graph."""
        from onnx import numpy_helper

        self.added.append(numpy_helper.from_array(np.ascontiguousarray(values) if values.ndim else values, name))

    def add_node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        """A node before the ones that are still to come."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}_{kind}", **attributes))
