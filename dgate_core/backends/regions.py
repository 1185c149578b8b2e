"""Which parts of a module torch.compile takes one by one: equal ones share their kernels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError


def _list_triton_errors() -> list[type[Exception]]:
    """Triton comes with PyTorch for Linux."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return []
    return [TritonError]


_UNET_LAYERS: Final = frozenset({"ResnetBlock2D", "Transformer2DModel", "BasicTransformerBlock"})
_REPEATED: Final = frozenset(
    {"ResnetBlock2D", "BasicTransformerBlock", "FusedResnet", "FusedBlock", "Upsample2D", "Downsample2D"}
)
"""Of UNets and decoders, on CUDA: small enough that equal ones share kernels and a compilation takes seconds."""
_VARIANTS: Final = 4096
"""Compilations of one block's code, over all levels, sizes, models and GPUs of a process: beyond it torch computes
eagerly without a word, and its own number is eight."""
COMPILE_ERRORS: Final[tuple[type[Exception], ...]] = (TorchDynamoException, InductorError, *_list_triton_errors())
"""What compiling raises, D-Gate's own kernels included."""


def compile_blocks(module: Any) -> None:
    """Compiles every repeated block for itself: equal ones share their kernels, so that it takes seconds."""
    _set_dynamo_up()
    for block in list_blocks(module):
        # One code serves all levels of a UNet: torch would make the second size it meets a variable, and slower.
        block.compile(dynamic=False)


def release_blocks(module: Any) -> None:
    """The inverse of `compile_blocks`."""
    for block in list_blocks(module):
        block._compiled_call_impl = None


def list_blocks(module: Any) -> list[torch.nn.Module]:
    """The repeated blocks of a denoiser or a decoder, and a UNet's first convolution for its bias."""
    names = _REPEATED | set(getattr(module, "_repeated_blocks", None) or ())
    first = [module.conv_in] if hasattr(module, "down_blocks") and hasattr(module, "conv_in") else []
    return first + [block for block in module.modules() if type(block).__name__ in names]


def compile_regions(denoiser: Any) -> None:
    """Marks the regions; nothing is compiled before its first call."""
    _set_dynamo_up()
    for region in list_regions(denoiser):
        region.compile()


def release_regions(denoiser: Any) -> None:
    """The inverse of `compile_regions`."""
    for region in list_regions(denoiser):
        region._compiled_call_impl = None


def list_regions(denoiser: Any) -> Iterator[torch.nn.Module]:
    """Blocks that the class names as repeated; of a UNet its levels, which fuse better than the attention alone, and
    the layers inside, which step savers call by themselves."""
    if hasattr(denoiser, "down_blocks"):
        levels = [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
        yield from (level for level in levels if level is not None)
        names = _UNET_LAYERS
    else:
        names = frozenset(getattr(denoiser, "_repeated_blocks", None) or denoiser._no_split_modules or ())
    yield from (module for module in denoiser.modules() if type(module).__name__ in names)


def _set_dynamo_up() -> None:
    # Of diffusers' own question for PyTorch's version, which has one answer.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VARIANTS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, _VARIANTS)
