"""Profiles: named, never silent, and without a trace in runs that give nothing for speed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dgate_core.backends.opening import serve_model
from dgate_core.engine.begin import open_run
from dgate_core.errors import ModelError, UsageError
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.unet import UNetFamily
from dgate_core.models.profiles import BACKENDS, CPU_PROFILES, PROFILES, find_profile
from dgate_core.runs.identity import describe_identity, fingerprint_identity
from dgate_core.runs.settings import RunSettings, settings_to_spec
from dgate_core.runs.spec import RunSpec, spec_from_dict
from flows.commands.settings import gather_settings
from tests.tiny import make_sd


def test_a_run_that_gives_nothing_keeps_its_fingerprint() -> None:
    before = describe_identity(RunSpec().to_dict(), "0" * 64, {})
    assert "profile" not in before["spec"]
    assert fingerprint_identity(before) == "v1-b8602baf4a5d0c10a545385026260159"


def test_a_profile_is_part_of_the_run() -> None:
    spec = settings_to_spec(RunSettings(profile="turbo"), "float32")
    assert spec_from_dict(spec.to_dict()) == spec
    assert spec_from_dict(RunSpec().to_dict()) == RunSpec()
    assert spec.to_dict() == {**replace(spec, profile="exact").to_dict(), "profile": "turbo"}


def test_the_command_line_takes_a_profile() -> None:
    assert gather_settings({"profile": "fast"}) == RunSettings(profile="fast")
    assert gather_settings({"assignments": ("profile=onnx_runtime",)}).profile == "onnx_runtime"


def test_every_profile_names_backends_that_are_there() -> None:
    named = {backend for profile in [*PROFILES.values(), *CPU_PROFILES.values()] for backend in profile.backends}
    assert named <= set(BACKENDS.names())
    assert find_profile("turbo", "cpu").quantization == "int8"
    assert find_profile("turbo", "cuda").quantization == "fp8"
    assert find_profile("tensorrt", "cuda").backends == ("tensorrt",)


def test_an_unknown_profile_names_the_nearest(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"prompt": "a red square"}\n')
    with pytest.raises(UsageError, match="'turbu'") as found:
        open_run([str(manifest)], str(tmp_path / "run"), RunSettings(profile="turbu"))
    assert "'turbo'" in found.value.next_step
    assert not (tmp_path / "run").exists()


def test_a_draft_wants_a_distilled_checkpoint(tmp_path: Path) -> None:
    checkpoint = find_checkpoint(str(make_sd(tmp_path)))
    model = UNetFamily().load(checkpoint, LoadOptions("cpu", "float32"))
    with pytest.raises(ModelError, match="takes 50 steps"):
        serve_model(model, find_profile("draft", "cpu"))


def test_profiles_are_read_without_torch() -> None:
    code = "import dgate_core.models.profiles, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
