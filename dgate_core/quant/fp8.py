"""FP8 products: E4M3 on both sides (Micikevicius et al., FP8 Formats for Deep Learning, 2022), static scales.

On CUDA from Ada and Hopper on they run on the tensor cores (`torch._scaled_mm`); elsewhere the same 8-bit values are
multiplied in float32, which is right and slow.
"""

from __future__ import annotations

import torch

from dgate_core.quant.product import QuantisedProduct

ADA = (8, 9)
"""Compute capability from which tensor cores take E4M3."""


class Fp8Product(QuantisedProduct):
    """Weights by one scale per output channel."""

    storage = torch.float8_e4m3fn
    largest = 448.0

    def multiply(self, quantised: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `QuantisedProduct`."""
        if quantised.device.type == "cuda":
            return self.multiply_on_tensor_cores(quantised, dtype)
        product = quantised.float() @ self.weight.float().t() * (self.input_scale * self.weight_scale)
        return (product if self.bias is None else product + self.bias).to(dtype)

    def multiply_on_tensor_cores(self, quantised: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Scales by row and by column go into the product's epilogue; it writes bfloat16."""
        rows = self.input_scale.expand(len(quantised), 1).contiguous()
        return torch._scaled_mm(
            quantised,
            self.weight.t(),
            scale_a=rows,
            scale_b=self.weight_scale.unsqueeze(0),
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        ).to(dtype)


class Fp8TensorProduct(Fp8Product):
    """Weights by one scale, which spares a kernel for the rows' scales; E4M3's exponents bear the channels' spread."""

    granularity = "tensor"

    @classmethod
    def find_kind_of_convolutions(cls) -> type[QuantisedProduct]:
        """Their kernel takes a scale per channel at no cost."""
        return Fp8Product

    def multiply_on_tensor_cores(self, quantised: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `Fp8Product`."""
        return torch._scaled_mm(
            quantised,
            self.weight.t(),
            scale_a=self.input_scale.view(1),
            scale_b=self.weight_scale,
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        ).to(dtype)
