"""Which device and which dtype, when nobody says or says what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dgate_core.engine import precision
from dgate_core.engine.lane import choose_device
from dgate_core.engine.precision import choose_cpu_precision, list_instructions
from dgate_core.errors import UsageError


def test_a_device_that_is_not_here_is_told_and_not_found_out() -> None:
    assert choose_device("cpu") == "cpu"
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name in (name for name, is_here in here.items() if not is_here):
        with pytest.raises(UsageError, match=f"device={name}"):
            choose_device(name)


def test_instructions_are_read_from_what_linux_tells(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor : 0\nflags : fpu avx2 amx_bf16 amx_tile\n")
    assert list_instructions(told) == ["amx_bf16", "avx2"]
    assert list_instructions(tmp_path / "nothing") == []


def test_a_processor_with_matrix_instructions_takes_sixteen_bits_without_a_clock() -> None:
    if "amx_bf16" not in list_instructions():
        pytest.skip("no AMX here")
    choose_cpu_precision.cache_clear()
    assert choose_cpu_precision() == "bfloat16"


def test_other_processors_go_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "list_instructions", list)
    choose_cpu_precision.cache_clear()
    assert choose_cpu_precision() in {"bfloat16", "float32"}
    assert precision._time_blocks(torch.float32, torch.bfloat16) > 0
    choose_cpu_precision.cache_clear()
