"""INT8 products: symmetric, static per-tensor activations, per-channel weights, sums in int32."""

from __future__ import annotations

from typing import Final

import torch

from dgate_core.quant.product import QuantisedProduct

FEWEST_ROWS: Final = 17
"""torch._int_mm on CUDA takes no fewer."""


class Int8Product(QuantisedProduct):
    """Exact in its sums: int8 x int8 → int32."""

    storage = torch.int8
    largest = 127.0

    @classmethod
    def round(cls, values: torch.Tensor) -> torch.Tensor:
        """See `QuantisedProduct`; to the nearest, halves to even."""
        return values.round().clamp(-cls.largest, cls.largest).to(cls.storage)

    def multiply(self, quantised: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `QuantisedProduct`."""
        rows = len(quantised)
        if rows < FEWEST_ROWS:
            quantised = torch.nn.functional.pad(quantised, (0, 0, 0, FEWEST_ROWS - rows))
        sums = torch._int_mm(quantised, self.weight.t())[:rows]
        product = sums.float() * (self.input_scale * self.weight_scale)
        return (product if self.bias is None else product + self.bias).to(dtype)
