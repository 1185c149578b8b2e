"""Layers whose product takes 8 bits on both sides: quantise the input by a static scale, multiply, scale back.

Scales are tensors, not numbers, so that torch.compile takes one graph for all blocks of a kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from dgate_core.quant.layers import Layer
from dgate_core.quant.plan import Granularity, LayerRange


class QuantisedProduct(nn.Module, ABC):
    """x @ weight.T + bias with both sides in 8 bits.

    Args:
        weight: (outputs, inputs), any float dtype.
        bias: (outputs,) or None.
        layer: Range of the input.
        smoothing: (inputs,), what the input is divided by and the weight multiplied with; None is 1.
    """

    storage: ClassVar[torch.dtype]
    largest: ClassVar[float]
    """Greatest value of the storage."""
    granularity: ClassVar[Granularity] = "channel"
    """Of the weight's scales."""
    weight: torch.Tensor
    weight_scale: torch.Tensor
    input_scale: torch.Tensor
    input_factor: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, layer: LayerRange, smoothing: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        device = weight.device
        factor = torch.ones(1, device=device) if smoothing is None else smoothing.to(device).reciprocal()
        full = weight.detach().float() / factor
        over = 1 if self.granularity == "channel" else (0, 1)
        scale = full.abs().amax(dim=over, keepdim=True).clamp_min(1e-12) / self.largest
        input_scale = torch.tensor(layer.magnitude / self.largest, device=device)
        self.register_buffer("weight", self.round(full / scale))
        self.register_buffer("weight_scale", scale.flatten())
        self.register_buffer("input_scale", input_scale)
        self.register_buffer("input_factor", factor / input_scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @classmethod
    def round(cls, values: torch.Tensor) -> torch.Tensor:
        """The nearest values of the storage; what is out of range becomes the greatest."""
        return values.clamp(-cls.largest, cls.largest).to(cls.storage)

    def quantise(self, values: torch.Tensor) -> torch.Tensor:
        """Input (..., inputs) in the storage, in units of `input_scale`."""
        return self.round(values.float() * self.input_factor)

    @classmethod
    def find_kind_of_convolutions(cls) -> type[QuantisedProduct]:
        """The product that convolutions take beside linear layers of this one."""
        return cls

    @abstractmethod
    def multiply(self, quantised: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(rows, inputs) of the storage → (rows, outputs)."""


class QuantisedLinear(nn.Module):
    """Takes the place of nn.Linear."""

    def __init__(self, product: QuantisedProduct) -> None:
        super().__init__()
        self.product = product

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(..., inputs) → (..., outputs), in the dtype of the input."""
        rows = self.product.quantise(values.reshape(-1, values.shape[-1]))
        return self.product.multiply(rows, values.dtype).reshape(*values.shape[:-1], -1)


class QuantisedConv2d(nn.Module):
    """Takes the place of nn.Conv2d. On CUDA a kernel of D-Gate's convolves in FP8; elsewhere the windows of the 8-bit
    picture become rows (im2col), channels last."""

    scale: torch.Tensor

    def __init__(self, product: QuantisedProduct, conv: nn.Conv2d) -> None:
        super().__init__()
        self.product = product
        self.kernel, self.stride = _to_pair(conv.kernel_size), _to_pair(conv.stride)
        self.padding = _to_pair(conv.padding)
        scale = (product.weight_scale * product.input_scale).expand(len(product.weight))
        self.register_buffer("scale", scale.contiguous())
        self.has_kernel = self._find_kernel(conv)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, outputs, h, w) in channels_last, in the dtype of the input."""
        # Channels first come from diffusers' upsampling of large batches.
        values = self.product.quantise(pictures.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        return self.convolve(values, dtype=pictures.dtype)

    def convolve(
        self,
        quantised: torch.Tensor,
        shift: torch.Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> torch.Tensor:
        """The convolution of what is quantised already, and a shift.

        Args:
            quantised: (N, C, H, W) of the storage, in channels_last.
            shift: (N, outputs), for all pixels of a picture, or None.
            dtype: Of the result.
        """
        if self.has_kernel and quantised.is_cuda:
            found: torch.Tensor = torch.ops.dgate.convolution(
                quantised,
                self.product.weight,
                self.scale,
                self.product.bias,
                self.kernel[0],
                self.stride[0],
                self.padding[0],
                shift,
            )
            return found.to(dtype)
        windows = self.gather_windows(quantised.permute(0, 2, 3, 1))
        rows = self.product.multiply(windows.reshape(-1, windows.shape[-1]), dtype)
        result = rows.reshape(*windows.shape[:3], -1).permute(0, 3, 1, 2)
        return result if shift is None else result + shift[:, :, None, None]

    def _find_kernel(self, conv: nn.Conv2d) -> bool:
        """Whether D-Gate's kernel takes this layer, once it is on a GPU."""
        if self.product.storage != torch.float8_e4m3fn or not torch.cuda.is_available() or not has_triton():
            return False
        from dgate_core.kernels import ops  # noqa: F401 - defines torch.ops.dgate
        from dgate_core.kernels.convolution import can_convolve

        are_square = all(len(set(each)) == 1 for each in (self.kernel, self.stride, self.padding))
        return are_square and can_convolve(conv.in_channels)

    def gather_windows(self, values: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) → (N, h, w, kernel height * kernel width * C); bytes are moved, whatever they mean."""
        (tall, wide), (down, right), (above, beside) = self.kernel, self.stride, self.padding
        bits = nn.functional.pad(values.view(torch.uint8), (0, 0, beside, beside, above, above))
        h, w = (bits.shape[1] - tall) // down + 1, (bits.shape[2] - wide) // right + 1
        parts = [
            bits[:, y : y + (h - 1) * down + 1 : down, x : x + (w - 1) * right + 1 : right]
            for y in range(tall)
            for x in range(wide)
        ]
        return torch.cat(parts, dim=-1).view(values.dtype)


def quantise_layer(
    layer: Layer, kind: type[QuantisedProduct], limits: LayerRange, smoothing: torch.Tensor | None
) -> nn.Module:
    """The layer's 8-bit counterpart, on its device.

    Args:
        layer: Linear, or a convolution, which takes no smoothing.
        kind: Int8Product or Fp8Product.
        limits: Of its input.
        smoothing: (inputs,) or None.
    """
    if isinstance(layer, nn.Linear):
        return QuantisedLinear(kind(layer.weight, layer.bias, limits, smoothing))
    rows = layer.weight.permute(0, 2, 3, 1).flatten(1)
    return QuantisedConv2d(kind.find_kind_of_convolutions()(rows, layer.bias, limits), layer)


def has_triton() -> bool:
    """Whether PyTorch found a Triton for its device."""
    from torch.utils._triton import has_triton as found

    return bool(found())


def _to_pair(sizes: Any) -> tuple[int, int]:
    height, width = sizes
    return int(height), int(width)
