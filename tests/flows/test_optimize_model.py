"""A checkpoint quantised, gated and registered, with a real Prefect server; and what is refused before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from dgate_core.backends.contract import BackendRequest
from dgate_core.backends.quantised import find_wanted_artefact
from dgate_core.errors import BackendUnfitError, ConfigError, MissingExtraError, ModelError, UsageError
from dgate_core.manifest.overlap import PromptOverlapError
from dgate_core.models.catalog import find_checkpoint
from dgate_core.quant.artefact import find_artefact, list_artefacts
from flows.optimize_model import optimize_model
from tasks.optimize import Optimization, choose_backend, prepare_optimization
from tests.core.test_backends import load
from tests.flows.conftest import Done, list_prompts, write_manifest

RULES = """
description: the pictures are the baseline's, nearly
pairing: noise
minimum_rows: 4
rules:
  - {{metric: psnr, test: value, bound: {{window: [{least}, 100]}}}}
"""


@pytest.fixture
def work(tmp_path: Path, checkpoint: str, api: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Everything at toy size, in a cache of its own."""
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rules.yaml").write_text(RULES.format(least=20))
    calibration = [{"prompt": f"a blue house {number}"} for number in range(4)]
    return {
        "model": checkpoint,
        "profile": "turbo",
        "calibration": write_manifest(tmp_path / "calibration.jsonl", calibration),
        "suite": write_manifest(tmp_path / "prompts.jsonl", list_prompts(4)),
        "rules": str(tmp_path / "rules.yaml"),
        "out": str(tmp_path / "optimized"),
        "metrics": ["sanity", "psnr"],
        "race_pictures": 0,
        "options": {"num_inference_steps": 2, "error_budget": 0.2, "prompts": 4},
        "settings": {"precision": "float32", "num_inference_steps": 2},
    }


def run_flow(**parameters: Any) -> State[Any]:
    state = optimize_model(device="cpu", return_state=True, **parameters)
    assert isinstance(state, State)
    return state


def test_an_artefact_that_passes_serves_under_the_profile(
    work: dict[str, Any], checkpoint: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    weights = find_checkpoint(checkpoint).weights_hash
    record = run_flow(**{**work, "settings": {"num_inference_steps": 2}}).result()
    assert record["passed"] is True, record["checks"]
    artefact = find_artefact(weights, "int8", "onnx_runtime")
    assert artefact is not None
    assert (artefact.name, artefact.decision) == (record["artefact"], "pass")
    assert artefact.quality["psnr"]["candidate"] > 20
    assert Path(record["page"]).is_file()
    run = json.loads((Path(record["candidate"].removeprefix("file://")) / "run.json").read_text())
    assert run["spec"]["profile"] == "turbo"
    [baseline] = [each for each in tmp_path.glob("optimized/*/*/run.json") if "int8" not in str(each)]
    assert json.loads(baseline.read_text())["spec"]["precision"] == run["spec"]["precision"], "as it will serve"


def test_an_artefact_that_fails_is_kept_and_never_served(work: dict[str, Any], checkpoint: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "strict.yaml").write_text(RULES.format(least=99))
    state = run_flow(
        **{
            **work,
            "rules": str(tmp_path / "strict.yaml"),
        }
    )
    assert state.is_failed()
    assert "psnr" in str(state.message)
    weights = find_checkpoint(checkpoint).weights_hash
    assert [each.decision for each in list_artefacts(weights)] == ["fail"]
    assert find_artefact(weights, "int8", "onnx_runtime") is None
    request = BackendRequest("cpu", "float32", quantization="int8")
    with pytest.raises(BackendUnfitError, match=r"int8-onnx_runtime-\w+: did not pass") as caught:
        find_wanted_artefact(load(checkpoint), request, "onnx_runtime")
    assert f"dgate optimize {load(checkpoint).checkpoint.spec.name} --profile turbo" in str(caught.value)


def test_settings_from_a_command_line_have_their_types(work: dict[str, Any]) -> None:
    """The race takes steps as a number, and the same settings have the same runs."""

    def prepare(steps: Any) -> Optimization:
        prompts = (work["calibration"], work["suite"])
        settings = {"num_inference_steps": steps}
        return prepare_optimization.fn(work["model"], "turbo", prompts, work["out"], "cpu", settings)

    written = prepare("2")
    assert written.contest.settings["num_inference_steps"] == 2
    assert written == prepare(2)


def test_calibration_prompts_that_judge_are_refused(work: dict[str, Any]) -> None:
    with pytest.raises(PromptOverlapError, match="calibration prompts are evaluation prompts"):
        run_flow(**{**work, "calibration": work["suite"]}).result()


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"model": "starter-unte"}, ModelError, "starter-unet"),
        ({"profile": "fast"}, UsageError, "quantises nothing"),
        ({"profile": "turbbo"}, UsageError, "turbo"),
        ({"options": {"percentle": 1}}, UsageError, "percentile"),
        ({"options": {"percentile": 10}}, UsageError, "90"),
        ({"rules": "nonsense"}, UsageError, "int8"),
        ({"metrics": ["psnr", "nonsense"]}, UsageError, "nonsense"),
        ({"settings": {"num_inference_steps": "many"}}, ConfigError, "a whole number"),
        # The baseline would be what its own artefact of before makes of it.
        ({"settings": {"profile": "turbo"}}, ConfigError, "leave profile out"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    work: dict[str, Any], tmp_path: Path, changed: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        run_flow(**{**work, **changed}).result()
    assert not list(tmp_path.glob("optimized/*/*"))


def test_a_missing_library_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"d-gate\[onnx\]"):
        choose_backend(("onnx_runtime",), {"onnx_runtime": ("no_such_package", "onnx")})


def test_the_command_tells_a_mistake_without_a_traceback(call: Callable[..., Done], work: dict[str, Any]) -> None:
    done = call("optimize", work["model"], "--calibration", work["suite"], "--suite", work["suite"])
    assert done.code == 1
    assert "calibration prompts are evaluation prompts" in done.err
    assert "Traceback" not in done.err
