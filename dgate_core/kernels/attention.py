"""Attention in E4M3 by cuDNN, which PyTorch reaches in 16 bit only; 1.45 times as fast on an H200 at Flux's size.

Shah et al., FlashAttention-3, 2024, for what such a kernel does. Elsewhere, and for shapes that cuDNN does not take,
the same 8-bit values are attended in float32 or 16 bit, which is right and slow.
"""

from __future__ import annotations

import atexit
import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

_HOPPER: Final = (9, 0)
_E4M3: Final = torch.float8_e4m3fn
_LARGEST: Final = 448.0
_WEIGHTS_SCALE: Final = 256.0
"""What the softmax's weights, 0 to 1, are multiplied by on their way to E4M3."""
_SCALES: Final = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
_PACKAGE: Final = "cudnn"
"""Module of nvidia-cudnn-frontend."""


class _Shape(NamedTuple):
    """What a graph of cuDNN is made for."""

    device: int
    query: tuple[int, ...]
    key: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


_graphs: dict[_Shape, Callable[..., None] | None] = {}
_handles: dict[int, Any] = {}
_at_work = threading.Lock()
"""A handle is one thread's at a time; a pool warms one model while another serves."""
# cuDNN's objects must go while the library is still there.
atexit.register(_graphs.clear)
atexit.register(_handles.clear)


def is_installed() -> bool:
    """Whether cuDNN's frontend is here."""
    return find_spec(_PACKAGE) is not None


def has_attention() -> bool:
    """Whether the current GPU attends in E4M3."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= _HOPPER and is_installed()


def make_scales(query: float, key: float, value: float, result: float, device: torch.device) -> torch.Tensor:
    """The six scales of an attention, float32 (6, 4): a row is 16 bytes, as cuDNN asks, and its first number counts.

    Args:
        query: What the query was multiplied by on its way to E4M3.
        key: The same of the key.
        value: The same of the value.
        result: What the result is to be multiplied by.
        device: Where they are read.
    """
    numbers = [1 / query, 1 / key, 1 / value, 1 / _WEIGHTS_SCALE, _WEIGHTS_SCALE, result]
    return torch.tensor(numbers, device=device).unsqueeze(1).repeat(1, 4)


def run_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """softmax(query @ key.T / sqrt(channels)) @ value, per head.

    Args:
        query: (N, queries, heads, channels) of E4M3.
        key: (N, keys, heads, channels) of E4M3.
        value: (N, keys, heads, channels) of E4M3.
        scales: See `make_scales`.

    Returns:
        (N, queries, heads, channels) of E4M3.
    """
    if not query.is_cuda:
        return _attend_by_torch(query, key, value, scales, torch.float32)
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    strides = tuple(each.stride() for each in (query, key, value))
    shape = _Shape(query.get_device(), tuple(query.shape), tuple(key.shape), strides)
    if shape not in _graphs:
        _graphs[shape] = _build(shape)
    graph = _graphs[shape]
    if graph is None:
        return _attend_by_torch(query, key, value, scales, torch.bfloat16)
    result = torch.empty_like(query)
    graph(query, key, value, scales, result)
    return result


def _attend_by_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    real = [each.to(dtype) * scales[number, 0].to(dtype) for number, each in enumerate((query, key, value))]
    q, k, v = (each.transpose(1, 2) for each in real)
    found = scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return (found.float() * scales[5, 0]).clamp(-_LARGEST, _LARGEST).to(_E4M3)


def _build(shape: _Shape) -> Callable[..., None] | None:
    """cuDNN's graph of a shape; None, with a warning, where cuDNN has none."""
    import cudnn

    if shape.device not in _handles:
        with torch.cuda.device(shape.device):
            _handles[shape.device] = cudnn.create_handle()
    handle = _handles[shape.device]
    fp8, real = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=fp8, intermediate_data_type=real, compute_data_type=real, handle=handle)
    sides = zip("qkv", (shape.query, shape.key, shape.key), shape.strides, strict=True)
    given = {name: graph.tensor(name=name, data_type=fp8, **_turn(size, stride)) for name, size, stride in sides}
    one = {"dim": [1] * 4, "stride": [1] * 4}
    scales = {name: graph.tensor(name=name, data_type=real, **one) for name in _SCALES}
    found, _, *greatest = graph.sdpa_fp8(
        **given, **scales, generate_stats=False, attn_scale=shape.query[-1] ** -0.5, use_causal_mask=False
    )
    turned = _turn(shape.query, shape.strides[0])
    found.set_output(True).set_dim(turned["dim"]).set_stride(turned["stride"]).set_data_type(fp8)
    for each in greatest:
        each.set_output(True).set_dim([1] * 4).set_stride([1] * 4).set_data_type(real)
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
    except (RuntimeError, cudnn.cudnnGraphNotSupportedError) as error:
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"cuDNN attends {shape.query} in 16 bit instead of E4M3: {reason}", stacklevel=2)
        return None
    room = max(1, graph.get_workspace_size())

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, by: torch.Tensor, into: torch.Tensor) -> None:
        workspace = torch.empty(room, device=query.device, dtype=torch.uint8)
        seen = by.new_empty(2, 4)
        pack = dict(zip(given.values(), (query, key, value), strict=True))
        pack |= {each: by[number, :1].view(1, 1, 1, 1) for number, each in enumerate(scales.values())}
        pack |= {each: seen[number, :1].view(1, 1, 1, 1) for number, each in enumerate(greatest)}
        with _at_work:
            cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(query.device).cuda_stream)
            graph.execute({**pack, found: into}, workspace, handle=handle)

    return run


def _turn(size: tuple[int, ...], stride: tuple[int, ...]) -> dict[str, list[int]]:
    """Heads come before tokens in cuDNN's order of dimensions, whatever the order in memory is."""
    return {"dim": [size[each] for each in (0, 2, 1, 3)], "stride": [stride[each] for each in (0, 2, 1, 3)]}
