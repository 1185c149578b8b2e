"""The kernels against PyTorch's own arithmetic: on a GPU as they are, elsewhere by Triton's interpreter."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from tests.triton_here import DEVICE, HAS_GPU

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton comes with PyTorch on Linux")
E4M3 = torch.float8_e4m3fn
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same values each time, and `torch.ops.dgate`."""
    from dgate_core.kernels import ops  # noqa: F401

    torch.manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE)


def draw_pictures(*shape: int) -> torch.Tensor:
    return draw(*shape).to(memory_format=LAST)


def assert_rounded(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """E4M3 as PyTorch rounds. The interpreter loses the carry into the next power of two and cuts off what is below
    the least normal number; a GPU does neither."""
    assert got.dtype == E4M3
    nearest = wanted.clamp(-448, 448).to(E4M3).float()
    differs = got.float() != nearest
    carried = torch.frexp(nearest.abs()).mantissa == 0.5
    # On the border between two numbers the last bit of float32 decides.
    bordering = (got.float() - nearest).abs() <= (nearest.abs() * 2**-3).clamp_min(2**-9)
    assert not (differs & ~carried & ~bordering).any()
    assert differs.float().mean() < (0.01 if HAS_GPU else 0.1)


@pytest.mark.parametrize(("channels", "groups"), [(48, 8), (64, 32), (320, 32)])
@pytest.mark.parametrize("silu", [True, False])
def test_group_norm(channels: int, groups: int, silu: bool) -> None:
    """Sizes that no tile divides, a mean that is not 0."""
    pictures, weight, bias = draw_pictures(2, channels, 9, 7) * 3 + 2, draw(channels), draw(channels)
    got = torch.ops.dgate.group_norm(pictures, weight, bias, groups, 1e-5, silu)
    wanted = functional.group_norm(pictures, groups, weight, bias, 1e-5)
    wanted = functional.silu(wanted) if silu else wanted
    assert got.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-5)
    scaled = torch.ops.dgate.group_norm(pictures, weight, bias, groups, 1e-5, silu, torch.tensor([40.0], device=DEVICE))
    assert_rounded(scaled, wanted * 40)


def test_group_norm_takes_pictures_in_any_layout() -> None:
    pictures, weight, bias = draw(2, 64, 4, 4), draw(64), draw(64)
    got = torch.ops.dgate.group_norm(pictures, weight, bias, 32, 1e-5, False)
    torch.testing.assert_close(got, functional.group_norm(pictures, 32, weight, bias, 1e-5), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("channels", [40, 1280])
def test_layer_norm_of_a_stream(channels: int) -> None:
    values, stream, weight, bias = draw(2, 3, channels), draw(2, 3, channels), draw(channels), draw(channels)
    total, got = torch.ops.dgate.layer_norm(values, stream, weight, bias, 1e-5)
    wanted = functional.layer_norm(values + stream, (channels,), weight, bias)
    torch.testing.assert_close(total, values + stream)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    empty, alone = torch.ops.dgate.layer_norm(values, None, weight, bias, 1e-5)
    assert empty.numel() == 0
    torch.testing.assert_close(alone, functional.layer_norm(values, (channels,), weight, bias), rtol=1e-5, atol=1e-5)
    factor = draw(channels).abs() * 50
    _, scaled = torch.ops.dgate.layer_norm(values, stream, weight, bias, 1e-5, factor)
    assert_rounded(scaled, wanted * factor)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0)])
@pytest.mark.parametrize("width", [8, 9])
def test_convolution_in_fp8(kernel: int, stride: int, padding: int, width: int) -> None:
    """Products of E4M3 are exact in float32. At odd widths a tile holds parts of two pictures."""
    from dgate_core.kernels.convolution import Tiles, run_convolution

    outputs = 96
    pictures = draw_pictures(2, 64, 8, width).to(E4M3)
    weight = (draw(outputs, 64, kernel, kernel) / 5).to(E4M3)
    scale, bias, shift = draw(outputs).abs() + 0.5, draw(outputs), draw(2, outputs)
    rows = weight.permute(0, 2, 3, 1).reshape(outputs, -1).contiguous()
    wanted = functional.conv2d(pictures.float(), weight.float(), None, stride, padding) * scale.view(1, -1, 1, 1)
    wanted = wanted + bias.view(1, -1, 1, 1)
    for given, expected in ((None, wanted), (shift, wanted + shift[:, :, None, None])):
        small = None if HAS_GPU else Tiles(32, 32, 32, 1, 4)
        got = run_convolution(pictures, rows, scale, bias, kernel, stride, padding, given, small, dtype=torch.float32)
        assert got.is_contiguous(memory_format=LAST)
        # A GPU's tensor cores sum E4M3 with 14 bits or so, the interpreter with 24.
        torch.testing.assert_close(got, expected, rtol=2**-8 if HAS_GPU else 1e-5, atol=0.05 if HAS_GPU else 1e-4)


def test_convolution_without_a_bias_at_the_tiles_of_a_gpu() -> None:
    from dgate_core.kernels.convolution import can_convolve, choose_tiles

    assert can_convolve(320)
    assert not can_convolve(4)
    assert choose_tiles(320, 320).depth == 64
    pictures, weight = draw_pictures(1, 64, 4, 4).to(E4M3), draw(128, 64).to(E4M3)
    got = torch.ops.dgate.convolution(pictures, weight, torch.ones(128, device=DEVICE), None, 1, 1, 0)
    wanted = functional.conv2d(pictures.float(), weight.float()[:, :, None, None])
    # The interpreter cuts off what bfloat16 cannot hold.
    torch.testing.assert_close(got.float(), wanted, rtol=2**-7, atol=0.02)


def test_gate() -> None:
    """The error function's formula is exact to 1.5e-7."""
    values = draw(2, 3, 2 * 160) * 3
    linear, gate = values.chunk(2, dim=-1)
    wanted = linear * functional.gelu(gate)
    torch.testing.assert_close(torch.ops.dgate.gate(values), wanted, rtol=1e-5, atol=3e-6)
    assert_rounded(torch.ops.dgate.gate(values, torch.tensor([9.0], device=DEVICE)), wanted * 9)
    factor = draw(160).abs() * 20
    assert_rounded(torch.ops.dgate.gate(values, factor), wanted * factor)


def test_rounding_and_joining() -> None:
    values, factor = draw(3, 5, 48), draw(48).abs() * 200
    assert_rounded(torch.ops.dgate.rounding(values, factor), values * factor)
    for ours, theirs in ((64, 32), (320, 640), (24, 8)):
        first, second = draw_pictures(2, ours, 3, 5), draw_pictures(2, theirs, 3, 5)
        joined = torch.ops.dgate.joining(first, second)
        assert torch.equal(joined, torch.cat([first, second], dim=1))
        assert joined.is_contiguous(memory_format=LAST)


def test_softmax_of_rows() -> None:
    scores = draw(7, 100) * 10
    got = torch.ops.dgate.softmax(scores, 0.3, torch.float32)
    torch.testing.assert_close(got, torch.softmax(scores * 0.3, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.ops.dgate.group_norm(draw_pictures(1, 32, 2, 2), draw(32), draw(32), 8, 1e-5, True),
        lambda: torch.ops.dgate.layer_norm(draw(2, 8), draw(2, 8), draw(8), draw(8), 1e-5),
        lambda: torch.ops.dgate.gate(draw(2, 32)),
        lambda: torch.ops.dgate.rounding(draw(2, 32), draw(1)),
        lambda: torch.ops.dgate.joining(draw_pictures(1, 8, 2, 2), draw_pictures(1, 8, 2, 2)),
        lambda: torch.ops.dgate.softmax(draw(2, 8), 1.0, torch.bfloat16),
        lambda: torch.ops.dgate.convolution(
            draw_pictures(1, 64, 2, 2).to(E4M3), draw(16, 64).to(E4M3), draw(16), draw(16), 1, 1, 0
        ),
    ],
)
def test_what_torch_compile_is_told_is_what_comes(call: Callable[[], torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
    """Shape, dtype and strides under fake tensors, by which compiled code is made, are those of the kernel."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    found = call()
    with FakeTensorMode(allow_non_fake_inputs=True):
        told = call()
    pairs = zip(*((each if isinstance(each, tuple) else (each,)) for each in (found, told)), strict=True)
    for real, fake in pairs:
        assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())


def test_a_mean_far_from_0_takes_nothing_from_the_deviation() -> None:
    """As in decoders in float32, whose channels may lie far off."""
    pictures, weight, bias = draw_pictures(1, 32, 9, 9) + 5000, draw(32), draw(32)
    got = torch.ops.dgate.group_norm(pictures, weight, bias, 8, 1e-5, False)
    wanted = functional.group_norm(pictures.double(), 8, weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=5e-3)


def test_weights_that_are_not_there_are_an_error_and_no_picture() -> None:
    """Offloaded weights lie on `meta`, where PyTorch would take what torch.compile is told for the result."""
    weight = torch.empty(32, device="meta")
    with pytest.raises(RuntimeError, match="its weights are offloaded"):
        torch.ops.dgate.group_norm(draw_pictures(1, 32, 2, 2), weight, weight, 8, 1e-5, True)
