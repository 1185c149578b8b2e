"""Floating-point operations by torch's own counter, and the machine's limits, measured where the rest is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

REPEATS = 10


def count_flops(compute: Callable[[], object]) -> int:
    """Operations of a call, a multiply-add being two; compiled code is not seen, so count before compiling."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        compute()
    return int(counter.get_total_flops())


def count_flops_of_steps(compute: Callable[[int], object], steps: int, period: int = 1) -> float:
    """Operations of a whole schedule, from two short ones: one and two periods.

    Args:
        compute: Runs a schedule of so many steps.
        steps: Of the whole schedule.
        period: Steps after which a step saver repeats itself.
    """
    if steps <= 2 * period:
        return float(count_flops(lambda: compute(steps)))
    one, two = (count_flops(lambda n=n: compute(n * period)) for n in (1, 2))  # type: ignore[misc]
    return one + (two - one) * (steps / period - 1)


def measure_limits(device: str) -> dict[str, Any]:
    """TFLOP/s of large matrix products in bf16 (and fp8, where there is one), TB/s of copies, on random data."""
    import torch

    side = 8192 if device == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    operations = 2 * side**3
    limits: dict[str, Any] = {
        "side": side,
        "bf16_tflops": operations / time_call(lambda: a @ b, device) / 1e12,
        "copy_terabytes_per_second": 2 * a.nbytes / time_call(lambda: b.copy_(a), device) / 1e12,
        "fp8_tflops": None,
    }
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        try:
            limits["fp8_tflops"] = operations / time_fp8_product(a, b) / 1e12
        except RuntimeError as error:
            limits["fp8_error"] = str(error).splitlines()[0]
    return limits


def time_fp8_product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Seconds of a product in E4M3 with one scale for each side."""
    import torch

    first, second = ((each / 8).to(torch.float8_e4m3fn) for each in (a, b))
    second = second.t().contiguous().t()  # the right side lies by columns
    one = torch.ones((), device=a.device, dtype=torch.float32)
    return time_call(
        lambda: torch._scaled_mm(first, second, scale_a=one, scale_b=one, out_dtype=torch.bfloat16), "cuda"
    )


def time_call(compute: Callable[[], object], device: str) -> float:
    """Seconds of a call: the mean of ten after three."""
    for _ in range(3):
        compute()
    synchronise(device)
    started = time.perf_counter()
    for _ in range(REPEATS):
        compute()
    synchronise(device)
    return (time.perf_counter() - started) / REPEATS


def synchronise(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
