"""Converts what packages carry into named tensors: Inception's as torch-fidelity names them, LPIPS's as torchvision."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np

from dgate_core.evaluation.results import EvaluationError
from dgate_core.evaluation.weights.catalog import Layout
from dgate_core.evaluation.weights.numpy_pickle import read_arrays

INCEPTION_STEM: Final = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
INCEPTION_BRANCHES: Final = {
    "A": "1x1 5x5_1 5x5_2 3x3dbl_1 3x3dbl_2 3x3dbl_3 _pool",
    "B": "3x3 3x3dbl_1 3x3dbl_2 3x3dbl_3",
    "C": "1x1 7x7_1 7x7_2 7x7_3 7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5 _pool",
    "D": "3x3_1 3x3_2 7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4",
    "E": "1x1 3x3_1 3x3_2a 3x3_2b 3x3dbl_1 3x3dbl_2 3x3dbl_3a 3x3dbl_3b _pool",
}
INCEPTION_BLOCKS: Final = {
    "Mixed_5b": "A",
    "Mixed_5c": "A",
    "Mixed_5d": "A",
    "Mixed_6a": "B",
    "Mixed_6b": "C",
    "Mixed_6c": "C",
    "Mixed_6d": "C",
    "Mixed_6e": "C",
    "Mixed_7a": "D",
    "Mixed_7b": "E",
    "Mixed_7c": "E",
}
ALEXNET_CONVOLUTIONS: Final = (0, 3, 6, 8, 10)
VGG16_CONVOLUTIONS: Final = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Places of the convolutions in torchvision's `features`."""


def list_inception_convolutions() -> Iterator[str]:
    """Names of Inception's 94 convolutions up to pool3, in the order in which every port of it keeps them."""
    yield from INCEPTION_STEM
    for block, kind in INCEPTION_BLOCKS.items():
        yield from (f"{block}.branch{branch}" for branch in INCEPTION_BRANCHES[kind].split())


def convert_weights(layout: Layout, data: bytes) -> dict[str, np.ndarray]:
    """Named float32 tensors of a weights file.

    Raises:
        EvaluationError: the file does not hold what its layout says.
    """
    return _CONVERTERS[layout](data)


def _convert_inception_script(data: bytes) -> dict[str, np.ndarray]:
    """TorchScript keeps (weight, beta, mean, var) per convolution; there is no gamma, so it is one."""
    import torch

    with warnings.catch_warnings():  # the format is deprecated for new models; this one is from 2022
        warnings.simplefilter("ignore", FutureWarning)
        state = torch.jit.load(io.BytesIO(data), map_location="cpu").state_dict()
    found = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
    names = list(list_inception_convolutions())
    if len(found) != len(names):
        raise EvaluationError(f"{len(found)} convolutions", f"Inception's {len(names)}")
    tensors: dict[str, np.ndarray] = {}
    for name, source in zip(names, found, strict=True):
        part = {key: state[f"{source}.{key}"].numpy() for key in ("weight", "beta", "mean", "var")}
        tensors[f"{name}.conv.weight"] = part["weight"]
        tensors[f"{name}.bn.weight"] = np.ones_like(part["beta"])
        tensors[f"{name}.bn.bias"] = part["beta"]
        tensors[f"{name}.bn.running_mean"] = part["mean"]
        tensors[f"{name}.bn.running_var"] = part["var"]
    return tensors


def _convert_alexnet(data: bytes) -> dict[str, np.ndarray]:
    return _name_convolutions(read_arrays(data), "AlexNet_0", ALEXNET_CONVOLUTIONS)


def _convert_vgg16(data: bytes) -> dict[str, np.ndarray]:
    return _name_convolutions(read_arrays(data), "VGG16_0", VGG16_CONVOLUTIONS)


def _name_convolutions(arrays: Mapping[str, np.ndarray], net: str, places: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Kernels (H, W, in, out) of flax become torch's (out, in, H, W)."""
    tensors: dict[str, np.ndarray] = {}
    for number, place in enumerate(places):
        kernel, bias = (arrays.get(f"{net}/Conv_{number}/{part}") for part in ("kernel", "bias"))
        if kernel is None or bias is None or kernel.ndim != 4:
            raise EvaluationError(f"no convolution {number} of {net}", f"{net}/Conv_{number} with kernel and bias")
        tensors[f"features.{place}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), dtype=np.float32)
        tensors[f"features.{place}.bias"] = np.ascontiguousarray(bias, dtype=np.float32)
    return tensors


_CONVERTERS: Final[Mapping[Layout, Callable[[bytes], dict[str, np.ndarray]]]] = {
    "inception_script": _convert_inception_script,
    "alexnet_pickle": _convert_alexnet,
    "vgg16_pickle": _convert_vgg16,
}
