"""Artefacts: Q/DQ graphs that ONNX Runtime computes, what may serve, and the race."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgate_core.backends.contract import BackendRequest, ShapeBucket
from dgate_core.backends.inputs import flatten_inputs
from dgate_core.backends.onnx_export import export_denoiser
from dgate_core.backends.onnx_runtime import OnnxRuntimeBackend
from dgate_core.bench.quantised import NO_SAVERS, REFERENCE, Entry, RaceOptions, list_entries, race_entries
from dgate_core.errors import BackendUnfitError, DgateError, ModelError, StorageError, UsageError
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.profiles import StepSavers, find_profile
from dgate_core.quant.artefact import (
    ONNX_FILE,
    PLAN_FILE,
    Artefact,
    find_artefact,
    list_artefacts,
    make_draft_folder,
    note_verdict,
    put_on_trial,
    store_artefact,
)
from dgate_core.quant.build import BuildOptions, build_artefact
from dgate_core.quant.calibration import CalibrationOptions, calibrate
from dgate_core.quant.fp8 import Fp8TensorProduct
from dgate_core.quant.onnx_graph import STYLES, insert_quantizers
from dgate_core.quant.plan import LayerRange, QuantPlan, read_plan
from dgate_core.quant.quantise import make_plan, quantise_model
from dgate_core.quant.sensitivity import SensitivityOptions, compare_predictions, replay_call
from tests.core.test_quant import PROMPTS, load
from tests.tiny import make_sd

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CALIBRATION = CalibrationOptions(prompts=3, batch_size=2, num_inference_steps=3, replayed_steps=2, method="max")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LatentModel:
    return load(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGATE_CACHE", str(cache))


@pytest.fixture(scope="module")
def artefact(model: LatentModel, cache: Path) -> Artefact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGATE_CACHE", str(cache))
        options = BuildOptions("int8", "onnx_runtime", CALIBRATION, SensitivityOptions(error_budget=0.2))
        return build_artefact(model, PROMPTS, options)


@pytest.fixture(scope="module")
def plain(model: LatentModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's export in float32."""
    native = model.checkpoint.native_size
    return export_denoiser(model, tmp_path_factory.mktemp("plain") / "plain.onnx", ShapeBucket(native, native))


def test_the_graph_computes_what_the_plan_says(model: LatentModel, artefact: Artefact) -> None:
    """ONNX Runtime's integers stay near both the float model and the same plan in torch."""
    calls = calibrate(model, PROMPTS, CALIBRATION).calls
    wanted = [replay_call(model, call) for call in calls]
    with put_on_trial(artefact):
        served = OnnxRuntimeBackend().prepare(model, BackendRequest("cpu", "float32", quantization="int8"))
    with torch.inference_mode():
        warm_up(served, model, calls[0].samples)
        found = [served(call.samples, call.timestep, **call.conditioning) for call in calls]
    assert 0 < compare_predictions(found, wanted) < 0.2
    twin = load(Path(model.checkpoint.folder))
    quantise_model(twin, read_plan(artefact.find_file(PLAN_FILE)))
    assert compare_predictions(found, [replay_call(twin, call) for call in calls]) < 0.2


def warm_up(served: object, model: LatentModel, samples: object) -> None:
    from dgate_core.quant.calibration import _make_request

    assert isinstance(samples, torch.Tensor)
    request = _make_request(model, PROMPTS[:2], CALIBRATION)
    served.warm_up(request.key, len(samples))  # type: ignore[attr-defined]


def test_the_graph_has_integer_weights_and_no_float_copies(artefact: Artefact) -> None:
    graph = onnx.load(artefact.find_file(ONNX_FILE)).graph
    plan = read_plan(artefact.find_file(PLAN_FILE))
    integers = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    assert {f"{name}.weight_int8" for name in plan.layers} <= integers
    used = {name for node in graph.node for name in node.input}
    assert all(tensor.name in used for tensor in graph.initializer)
    onnx.checker.check_model(str(artefact.find_file(ONNX_FILE)))


def test_a_graph_whose_weights_were_cut_off_is_not_opened(artefact: Artefact, tmp_path: Path) -> None:
    copied = replace(artefact, folder=Path(shutil.copytree(artefact.folder, tmp_path / "copy")))
    assert copied.find_file(ONNX_FILE).is_file()
    beside = next(name for name in copied.files if name.startswith(f"{ONNX_FILE}."))
    (copied.folder / beside).write_bytes((copied.folder / beside).read_bytes()[:-1])
    with pytest.raises(ModelError, match=f"{beside} is missing or has changed"):
        copied.find_file(ONNX_FILE)


def test_tensorrt_gets_symmetric_pairs(artefact: Artefact, plain: Path, tmp_path: Path) -> None:
    plan = read_plan(artefact.find_file(PLAN_FILE))
    target = insert_quantizers(plain, tmp_path / "trt.onnx", plan, STYLES["tensorrt"])
    graph = onnx.load(target).graph
    zeros = [onnx.numpy_helper.to_array(each) for each in graph.initializer if each.name.endswith("_zero")]
    assert zeros
    assert all(not zero.any() for zero in zeros)
    with pytest.raises(ModelError, match="no layer"):
        insert_quantizers(
            plain, tmp_path / "x.onnx", QuantPlan("int8", {"nowhere": LayerRange(0, 1, 0, 1)}), STYLES["tensorrt"]
        )


@pytest.mark.parametrize("name", ["mid_block.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.ff.net.2"])
def test_fp8_pairs_compute_what_the_torch_products_do(
    name: str, model: LatentModel, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    # TensorRT's pairs have one scale for a convolution's weight too.
    monkeypatch.setattr(Fp8TensorProduct, "find_kind_of_convolutions", lambda: Fp8TensorProduct)

    calibration = calibrate(model, PROMPTS, CALIBRATION)
    every = make_plan(calibration, "fp8")
    plan = replace(every, layers={name: every.layers[name]}, granularity="tensor")
    target = insert_quantizers(plain, tmp_path / "fp8.onnx", plan, STYLES["tensorrt"])
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    twin = load(Path(model.checkpoint.folder))
    quantise_model(twin, plan)
    found = []
    for call in calibration.calls:
        inputs = flatten_inputs(call.samples, call.timestep, call.conditioning)
        (prediction,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        found.append(torch.from_numpy(prediction))
    assert compare_predictions(found, [replay_call(twin, call) for call in calibration.calls]) < 1e-3


def test_only_a_pass_serves_and_a_trial_only_here(model: LatentModel, artefact: Artefact) -> None:
    weights = model.checkpoint.weights_hash
    request = BackendRequest("cpu", "float32", quantization="int8")
    for decision in ("none", "undecided", "fail"):
        note_verdict(artefact, decision, {})  # type: ignore[arg-type]
        assert find_artefact(weights, "int8", "onnx_runtime") is None
    with pytest.raises(BackendUnfitError, match="no int8"):
        OnnxRuntimeBackend().prepare(model, request)
    with put_on_trial(artefact):
        assert find_artefact(weights, "int8", "onnx_runtime") == artefact
        assert find_artefact("other", "int8", "onnx_runtime") is None
    note_verdict(artefact, "pass", {"psnr": {"candidate": 30.0}})
    found = find_artefact(weights, "int8", "onnx_runtime")
    assert found is not None
    assert (found.name, found.quality["psnr"]["candidate"]) == (artefact.name, 30.0)
    assert find_artefact(weights, "int8", "tensorrt") is None
    assert find_artefact(weights, "fp8", "onnx_runtime") is None


def test_a_changed_file_is_not_served(artefact: Artefact) -> None:
    path = artefact.folder / PLAN_FILE
    before = path.read_bytes()
    path.write_bytes(before[:-1] + b"!")
    with pytest.raises(ModelError, match="has changed"):
        artefact.find_file(PLAN_FILE)
    path.write_bytes(before)
    assert artefact.find_file(PLAN_FILE) == path
    with pytest.raises(ModelError, match="missing"):
        artefact.find_file("other")


def test_a_record_of_another_version_says_so(artefact: Artefact, cache: Path) -> None:
    record = artefact.folder / "artefact.json"
    before = record.read_text()
    record.write_text(json.dumps({**json.loads(before), "version": 99}))
    with pytest.raises(ModelError, match="version 99"):
        list_artefacts(artefact.weights_hash)
    record.write_text(before)
    assert [each.name for each in list_artefacts(artefact.weights_hash)] == [artefact.name]


def test_a_cache_that_cannot_be_written_says_so(
    artefact: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot be written"):
        make_draft_folder()
    with pytest.raises(StorageError, match="cannot be written"):
        store_artefact(replace(artefact, folder=tmp_path))


def test_the_race_prints_ratios_and_names_who_is_missing(folder: Path) -> None:
    entries = (REFERENCE, Entry("eager bfloat16", "eager", "bfloat16"), Entry("fp8", "eager", "float32", "fp8"))
    lines: list[str] = []
    options = RaceOptions(str(folder), pictures=2, rounds=2, num_inference_steps=2)
    found = race_entries(options, entries, lines.append)
    assert found["ratios"]["eager float32"] == 1
    assert set(found["pictures_per_second"]) == {"eager float32", "eager bfloat16"}
    assert "no fp8" in found["left_out"]["fp8"]
    assert len([line for line in lines if line.startswith("round")]) == 2
    with pytest.raises(UsageError, match="cannot be measured"):
        race_entries(options, entries[1:], lines.append)


def test_an_artefact_is_raced_with_the_steps_that_its_profile_leaves_out(folder: Path) -> None:
    savers = find_profile("turbo", "cuda").savers
    entries = list_entries("cuda", "bfloat16", "compiled", "fp8", savers)
    assert [each.name for each in entries[2:]] == ["compiled fp8", "compiled fp8 and savers"]
    assert (entries[2].savers, entries[3].savers) == (NO_SAVERS, savers)
    assert len(list_entries("cuda", "bfloat16", "compiled", "fp8")) == 3
    deep = Entry("too deep", "eager", "float32", savers=StepSavers(deep_cache_interval=2, deep_cache_branch=99))
    saving = Entry("eager with savers", "eager", "float32", savers=savers)
    options = RaceOptions(str(folder), pictures=2, rounds=1, num_inference_steps=4)
    found = race_entries(options, (REFERENCE, saving, deep), lambda _: None)
    assert list(found["ratios"]) == ["eager float32", "eager with savers"]
    assert "branch 99 is too deep" in found["left_out"]["too deep"]


def test_refusals_are_dgate_errors() -> None:
    with pytest.raises(DgateError):
        BuildOptions("int8", "onnx_runtime", CalibrationOptions(percentile=5))
