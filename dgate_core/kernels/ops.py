"""The kernels as operations of PyTorch, so that torch.compile takes them as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import custom_op

from dgate_core.kernels.attention import run_attention
from dgate_core.kernels.convolution import run_convolution
from dgate_core.kernels.gate import run_gate
from dgate_core.kernels.group_norm import run_group_norm
from dgate_core.kernels.joining import run_joining
from dgate_core.kernels.layer_norm import run_layer_norm
from dgate_core.kernels.rounding import run_rounding
from dgate_core.kernels.softmax import run_softmax

_E4M3: Final = torch.float8_e4m3fn


def _define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """An operation of the library `dgate` that changes none of its inputs."""

    def tell(*given: Any, **named: Any) -> Any:
        # PyTorch asks the same where one tensor lies on `meta`, as offloaded weights do, and takes the answer as it is.
        if any(isinstance(each, torch.Tensor) and not isinstance(each, FakeTensor) for each in given):
            raise RuntimeError(f"dgate::{name} of a tensor without values: its weights are offloaded")
        return fake(*given, **named)

    operation = custom_op(f"dgate::{name}", run, mutates_args=(), schema=schema)
    operation.register_fake(tell)
    return operation


def _fake_group_norm(pictures, weight, bias, groups, epsilon, silu, scale=None) -> torch.Tensor:
    dtype = pictures.dtype if scale is None else _E4M3
    return torch.empty_like(pictures, dtype=dtype, memory_format=torch.channels_last)


def _fake_layer_norm(values, stream, weight, bias, epsilon, factor=None) -> tuple[torch.Tensor, torch.Tensor]:
    total = values.new_empty(0) if stream is None else values.new_empty(values.shape)
    return total, values.new_empty(values.shape, dtype=values.dtype if factor is None else _E4M3)


def _fake_convolution(pictures, weight, scale, bias, kernel, stride, padding, shift=None) -> torch.Tensor:
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in pictures.shape[2:])
    shape = (len(pictures), height, width, len(weight))
    return pictures.new_empty(shape, dtype=torch.bfloat16).permute(0, 3, 1, 2)


def _fake_gate(values, factor=None) -> torch.Tensor:
    dtype = values.dtype if factor is None else _E4M3
    return values.new_empty(*values.shape[:-1], values.shape[-1] // 2, dtype=dtype)


def _fake_joining(first, second) -> torch.Tensor:
    number, channels, height, width = first.shape
    return first.new_empty(number, height, width, channels + second.shape[1]).permute(0, 3, 1, 2)


def _fake_softmax(scores, scale, dtype) -> torch.Tensor:
    return scores.new_empty(scores.shape, dtype=dtype)


def _fake_rounding(values, factor) -> torch.Tensor:
    return values.new_empty(values.shape, dtype=_E4M3)


def _fake_attention(query, key, value, scales) -> torch.Tensor:
    return query.new_empty(query.shape)


group_norm = _define(
    "group_norm",
    "(Tensor pictures, Tensor weight, Tensor bias, int groups, float epsilon, bool silu, Tensor? scale=None) -> Tensor",
    run_group_norm,
    _fake_group_norm,
)
layer_norm = _define(
    "layer_norm",
    "(Tensor values, Tensor? stream, Tensor weight, Tensor bias, float epsilon, Tensor? factor=None)"
    " -> (Tensor, Tensor)",
    run_layer_norm,
    _fake_layer_norm,
)
convolution = _define(
    "convolution",
    "(Tensor pictures, Tensor weight, Tensor scale, Tensor? bias, int kernel, int stride, int padding,"
    " Tensor? shift=None) -> Tensor",
    run_convolution,
    _fake_convolution,
)
attention = _define(
    "attention",
    "(Tensor query, Tensor key, Tensor value, Tensor scales) -> Tensor",
    run_attention,
    _fake_attention,
)
gate = _define("gate", "(Tensor values, Tensor? factor=None) -> Tensor", run_gate, _fake_gate)
rounding = _define("rounding", "(Tensor values, Tensor factor) -> Tensor", run_rounding, _fake_rounding)
joining = _define("joining", "(Tensor first, Tensor second) -> Tensor", run_joining, _fake_joining)
softmax = _define("softmax", "(Tensor scores, float scale, ScalarType dtype) -> Tensor", run_softmax, _fake_softmax)
