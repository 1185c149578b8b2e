"""FID's Inception-v3 (2015-12-05) up to pool3: Szegedy et al. 2015, with the pooling quirks of the TensorFlow original.

Batch norms are folded into the convolutions and memory is channels-last: the same numbers in two thirds of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dgate_core.evaluation.weights.convert import INCEPTION_BLOCKS, list_inception_convolutions

SIZE: Final = 299
BATCH_NORM_EPSILON: Final = 1e-3
_POOL: Final = "pool"
_DOWN: Final = "down"
_CHAINS: Final[Mapping[str, tuple[str, ...]]] = {
    "A": ("1x1", "5x5_1 5x5_2", "3x3dbl_1 3x3dbl_2 3x3dbl_3", "pool _pool"),
    "B": ("3x3", "3x3dbl_1 3x3dbl_2 3x3dbl_3", "down"),
    "C": ("1x1", "7x7_1 7x7_2 7x7_3", "7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5", "pool _pool"),
    "D": ("3x3_1 3x3_2", "7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4", "down"),
    "E": ("1x1", "3x3_1 3x3_2a|3x3_2b", "3x3dbl_1 3x3dbl_2 3x3dbl_3a|3x3dbl_3b", "pool _pool"),
}
"""Branches of each kind of block: steps one after another, `|` between two that read the same input."""
_STRIDED: Final = frozenset(
    {
        "Conv2d_1a_3x3",
        "Mixed_6a.branch3x3",
        "Mixed_6a.branch3x3dbl_3",
        "Mixed_7a.branch3x3_2",
        "Mixed_7a.branch7x7x3_4",
    }
)
_UNPADDED: Final = _STRIDED | {"Conv2d_2a_3x3", "Conv2d_4a_3x3"}


def load_network(tensors: Mapping[str, np.ndarray], device: str) -> InceptionPool3:
    """The network on a device, in fp32; tensors as `load_weights` gives them."""
    network = InceptionPool3({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    return network.to(memory_format=torch.channels_last).to(device)


def prepare_pictures(pictures: Sequence[np.ndarray], device: str, *, as_tensorflow: bool) -> torch.Tensor:
    """Pictures uint8 (H, W, 3) of any sizes as pixels (N, 3, 299, 299), -1 to 1.

    With `as_tensorflow` as the TensorFlow original and torch-fidelity do it, else as pytorch-fid does.
    """
    prepared = []
    for picture in pictures:
        pixels = torch.tensor(picture).to(device).permute(2, 0, 1)[None].float()
        if as_tensorflow:
            prepared.append((resize_as_tensorflow(pixels) - 128) / 128)
        else:
            resized = functional.interpolate(pixels, (SIZE, SIZE), mode="bilinear", align_corners=False)
            prepared.append(resized / 127.5 - 1)
    return torch.cat(prepared).contiguous(memory_format=torch.channels_last)


def resize_as_tensorflow(pixels: torch.Tensor) -> torch.Tensor:
    """TensorFlow 1's bilinear resize of (N, 3, H, W) to 299: a pixel is at its upper left corner, not its middle."""
    low_y, high_y, part_y = _sample_axis(pixels.shape[2], pixels.device)
    low_x, high_x, part_x = _sample_axis(pixels.shape[3], pixels.device)
    rows = torch.lerp(pixels[:, :, low_y], pixels[:, :, high_y], part_y[:, None])
    return torch.lerp(rows[..., low_x], rows[..., high_x], part_x)


def _sample_axis(length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    places = torch.arange(SIZE, device=device, dtype=torch.float32) * (length / SIZE)
    low = places.long()
    return low, (low + 1).clamp(max=length - 1), places - low


class Convolution(nn.Module):
    """Convolution with its batch norm inside, then ReLU."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor], name: str) -> None:
        super().__init__()
        weight, bias = fold_batch_norm(tensors, name)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride = 2 if name in _STRIDED else 1
        self.padding = (0, 0) if name in _UNPADDED else (weight.shape[2] // 2, weight.shape[3] // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding).relu_()


def fold_batch_norm(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution that does what the named one and its batch norm do."""
    norm = {key: tensors[f"{name}.bn.{key}"].double() for key in ("weight", "bias", "running_mean", "running_var")}
    scale = norm["weight"] / (norm["running_var"] + BATCH_NORM_EPSILON).sqrt()
    weight = tensors[f"{name}.conv.weight"].double() * scale[:, None, None, None]
    return weight.float(), (norm["bias"] - norm["running_mean"] * scale).float()


class Side(nn.ModuleList):
    """Modules that read the same input; their outputs side by side in the channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([module(x) for module in self], 1)


class InceptionPool3(nn.Module):
    """Pixels (N, 3, 299, 299) in -1 to 1 → features (N, 2048).

    Args:
        tensors: Under the names of torch-fidelity and pytorch-fid (`Mixed_5b.branch1x1.conv.weight`, …).
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        first, second, third, fourth, fifth = (
            Convolution(tensors, name) for name in list_inception_convolutions() if name.startswith("Conv2d")
        )
        self.stem = nn.Sequential(first, second, third, nn.MaxPool2d(3, 2), fourth, fifth, nn.MaxPool2d(3, 2))
        self.blocks = nn.Sequential(*(build_block(tensors, name) for name in INCEPTION_BLOCKS))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.blocks(self.stem(pixels)).mean((2, 3))
        return features


def build_block(tensors: Mapping[str, torch.Tensor], block: str) -> Side:
    """The block of this name (`Mixed_5b`)."""
    return Side(
        nn.Sequential(*(_build_step(tensors, block, step) for step in chain.split()))
        for chain in _CHAINS[INCEPTION_BLOCKS[block]]
    )


def _build_step(tensors: Mapping[str, torch.Tensor], block: str, step: str) -> nn.Module:
    if step == _DOWN:
        return nn.MaxPool2d(3, 2)
    if step == _POOL and block == "Mixed_7c":  # the original pools by maximum here; every FID depends on it
        return nn.MaxPool2d(3, 1, 1)
    if step == _POOL:
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    convolutions = [Convolution(tensors, f"{block}.branch{name}") for name in step.split("|")]
    return convolutions[0] if len(convolutions) == 1 else Side(convolutions)
