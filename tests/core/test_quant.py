"""Eight bits: products against their dequantised reference, ranges, sensitivity, and plans put into real classes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dgate_core.backends.opening import serve_model
from dgate_core.errors import MissingExtraError, ModelError, UsageError
from dgate_core.kernels.attention import has_attention
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.profiles import Profile, find_profile
from dgate_core.models.spec import FAMILIES
from dgate_core.quant.artefact import put_on_trial
from dgate_core.quant.build import BuildOptions, build_artefact, plan_nf4
from dgate_core.quant.calibration import Calibration, CalibrationOptions, calibrate
from dgate_core.quant.fp8 import Fp8Product, Fp8TensorProduct
from dgate_core.quant.int8 import Int8Product
from dgate_core.quant.kernels import KernelOptions, Kernels, choose_kernels
from dgate_core.quant.layers import list_layers
from dgate_core.quant.plan import LayerRange, Quantization, QuantPlan, read_plan, write_plan
from dgate_core.quant.product import QuantisedLinear, QuantisedProduct, quantise_layer
from dgate_core.quant.quantise import make_plan, quantise_model
from dgate_core.quant.sensitivity import (
    LayerTrial,
    SensitivityOptions,
    choose_kept,
    compare_predictions,
    plan_quantization,
    replay_call,
)
from dgate_core.quant.smoothing import find_smoothing
from tests.tiny import make_sd

PROMPTS = ["a red boat", "two blue birds", "a green house at night"]
OPTIONS = CalibrationOptions(prompts=3, batch_size=2, num_inference_steps=3, replayed_steps=2, method="max")
PRODUCTS: list[type[QuantisedProduct]] = [Int8Product, Fp8Product, Fp8TensorProduct]


def load(folder: Path, precision: str = "float32") -> LatentModel:
    checkpoint = find_checkpoint(str(folder))
    model: LatentModel = FAMILIES.load(checkpoint.family)().load(checkpoint, LoadOptions("cpu", precision))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def model(folder: Path) -> LatentModel:
    return load(folder)


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_dit import make_sd3

    return make_sd3(tmp_path_factory.mktemp("dit"))


@pytest.fixture
def calibration(model: LatentModel) -> Calibration:
    return calibrate(model, PROMPTS, OPTIONS)


def make_range(values: torch.Tensor) -> LayerRange:
    return LayerRange(float(values.min()), float(values.max()), 0.0, 0.0)


def dequantise(product: QuantisedProduct, values: torch.Tensor) -> torch.Tensor:
    """What the product stands for, in float64."""
    weight = product.weight.double() * product.weight_scale.double()[:, None]
    bias = 0 if product.bias is None else product.bias.double()
    return (product.quantise(values).double() * product.input_scale.double()) @ weight.T + bias


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("rows", [3, 40])
def test_a_product_is_its_dequantised_reference(kind: type[QuantisedProduct], rows: int) -> None:
    torch.manual_seed(0)
    linear, values = nn.Linear(64, 48), torch.randn(rows, 64)
    module = quantise_layer(linear, kind, make_range(values), None)
    assert isinstance(module, QuantisedLinear)
    expected = dequantise(module.product, values)
    torch.testing.assert_close(module(values).double(), expected, rtol=1e-5, atol=1e-5)
    exact = linear(values).double()
    assert (expected - exact).norm() / exact.norm() < (0.02 if kind is Int8Product else 0.06)
    assert module.product.weight.dtype == kind.storage
    assert module(values.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("geometry", [(3, 1, 1), (1, 1, 0), (3, 2, 1), (4, 2, 0)])
def test_windows_give_the_convolution(kind: type[QuantisedProduct], geometry: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    size, stride, padding = geometry
    conv, pictures = nn.Conv2d(16, 32, size, stride, padding), torch.randn(2, 16, 9, 8)
    module = quantise_layer(conv, kind, make_range(pictures), None)
    expected = conv(pictures)
    found = module(pictures)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).norm() / expected.norm() < (0.02 if kind is Int8Product else 0.06)


def test_values_out_of_range_are_the_greatest_never_infinite() -> None:
    for kind in PRODUCTS:
        module = quantise_layer(nn.Linear(16, 16), kind, LayerRange(-1, 1, 0, 0), None)
        assert isinstance(module, QuantisedLinear)
        found = module.product.quantise(torch.tensor([[1e30] * 8 + [-1e30] * 8])).float()
        assert found.abs().eq(kind.largest).all()


def test_smoothing_saves_a_layer_with_an_outlier_channel() -> None:
    torch.manual_seed(2)
    linear, values = nn.Linear(32, 32, bias=False), torch.randn(200, 32)
    values[:, 5] *= 100
    from dgate_core.quant.calibration import LayerStatistics
    from dgate_core.quant.smoothing import find_range

    seen = LayerStatistics(values.amin(0), values.amax(0), float(values.min()), float(values.max()), 0.0, 0.0)
    scale = find_smoothing(seen, linear.weight, 0.5)
    plain = quantise_layer(linear, Int8Product, find_range(seen), None)(values)
    smooth = quantise_layer(linear, Int8Product, find_range(seen, scale), scale)(values)
    exact = linear(values)
    assert (smooth - exact).norm() < 0.5 * (plain - exact).norm()


def test_skipped_layers_are_not_listed(model: LatentModel, dit: Path) -> None:
    names = set(list_layers(model))
    assert {"down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"} <= names
    assert not [name for name in names if "time_emb" in name or name in {"conv_in", "conv_out"} or "shortcut" in name]
    transformer = set(list_layers(load(dit)))
    assert any("attn.to_q" in name for name in transformer)
    assert not [name for name in transformer if "embed" in name or "norm" in name or name == "proj_out"]


def test_calibration_sees_every_step_and_changes_nothing(model: LatentModel) -> None:
    before = model.call_denoiser
    calibration = calibrate(model, PROMPTS, OPTIONS)
    assert model.call_denoiser == before
    assert not any(layer._forward_hooks for layer in list_layers(model).values())
    assert set(calibration.layers) == set(list_layers(model))
    assert len({float(call.timestep) for call in calibration.calls}) == 2, "kept calls are spread over the schedule"
    for seen in calibration.layers.values():
        assert float(seen.channel_low.min()) == pytest.approx(seen.low)
        assert float(seen.channel_high.max()) == pytest.approx(seen.high)
    again = calibrate(model, PROMPTS, OPTIONS)
    assert {name: seen.high for name, seen in again.layers.items()} == {
        name: seen.high for name, seen in calibration.layers.items()
    }
    narrow = calibrate(model, PROMPTS, CalibrationOptions("percentile", 99.0, 3, 2, 3))
    assert all(narrow.layers[name].high <= seen.high for name, seen in calibration.layers.items())
    assert narrow.prompts_hash == calibration.prompts_hash


def test_calibration_without_prompts_is_refused(model: LatentModel) -> None:
    with pytest.raises(UsageError, match="no prompts"):
        calibrate(model, [])
    with pytest.raises(UsageError, match="percentile"):
        CalibrationOptions(percentile=10)


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_a_plan_within_the_budget_survives_its_file(
    model: LatentModel, calibration: Calibration, quantization: Quantization, tmp_path: Path
) -> None:
    wanted = [replay_call(model, call) for call in calibration.calls]
    plan, trials = plan_quantization(model, calibration, quantization, SensitivityOptions(error_budget=0.1))
    assert all(replay_call(model, call).equal(each) for call, each in zip(calibration.calls, wanted, strict=True))
    assert sorted(trial.name for trial in trials) == sorted(calibration.layers)
    write_plan(plan, tmp_path / "plan.safetensors")
    stored = read_plan(tmp_path / "plan.safetensors")
    assert (stored.quantization, dict(stored.layers), stored.kept) == (quantization, dict(plan.layers), plan.kept)
    quantise_model(model, stored)
    assert not set(plan.layers) & set(list_layers(model))
    error = compare_predictions([replay_call(model, call) for call in calibration.calls], wanted)
    assert 0 < error < 0.15


@pytest.mark.parametrize(
    ("quantization", "backend", "device", "expected"),
    [
        ("fp8", "compiled", "cuda", Kernels(granularity="tensor", channel_step=64, attention=has_attention())),
        ("fp8", "tensorrt", "cuda", Kernels()),
        ("fp8", "compiled", "cpu", Kernels()),
        ("int8", "onnx_runtime", "cpu", Kernels()),
    ],
)
def test_kernels_are_the_fastest_unless_the_user_says(
    quantization: Quantization, backend: str, device: str, expected: Kernels
) -> None:
    assert choose_kernels(quantization, backend, device) == expected
    said = choose_kernels(quantization, backend, device, KernelOptions(linear_only=True, granularity="channel"))
    assert said == replace(expected, linear_only=True, granularity="channel")


def test_an_artefact_of_linear_layers_by_one_scale(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `dgate optimize` makes on CUDA, built, stored and served here."""
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path))
    model, kernels = load(folder), KernelOptions(linear_only=True, granularity="tensor")
    options = BuildOptions("fp8", "eager", OPTIONS, SensitivityOptions(error_budget=1.0), kernels)
    artefact = build_artefact(model, PROMPTS, options)
    assert artefact.method["kernels"] == {
        "linear_only": True,
        "granularity": "tensor",
        "attention": False,
        "channel_step": 1,
    }
    plan, layers = read_plan(artefact.find_file("plan.safetensors")), list_layers(model)
    assert set(plan.layers) == {name for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    with put_on_trial(artefact):
        served = load(folder)
        serve_model(served, Profile("mine", ("eager",), quantization="fp8"))
    block = served.denoiser.mid_block
    assert isinstance(block.attentions[0].transformer_blocks[0].attn1.to_q.product, Fp8TensorProduct)
    assert type(block.resnets[0].conv1) is nn.Conv2d
    with pytest.raises(UsageError, match="int8 with one weight scale per tensor"):
        build_artefact(load(folder), PROMPTS, replace(options, quantization="int8"))


def test_neighbours_are_tried_together_and_taken_apart_when_they_show(
    model: LatentModel, calibration: Calibration
) -> None:
    def plan(budget: float, together: int) -> tuple[QuantPlan, list[LayerTrial], int]:
        lines: list[str] = []
        options = SensitivityOptions(budget, together=together)
        found, trials = plan_quantization(model, calibration, "int8", options, lines.append)
        return found, trials, int(lines[-1].split(" in ")[1].split()[0])

    alone, together = plan(1.0, 1), plan(1.0, 8)
    layers = len(calibration.layers)
    assert (alone[2], together[2]) == (layers, -(-layers // 8)), "a wide budget takes no group apart"
    assert dict(alone[0].layers) == dict(together[0].layers)
    assert 0.3 < sum(each.error**2 for each in alone[1]) / sum(each.error**2 for each in together[1]) < 3
    tight = plan(1e-6, 8)
    assert tight[2] > layers, "every group and every layer of it"
    assert tight[1][0].name == plan(1e-6, 1)[1][0].name
    with pytest.raises(UsageError, match="together=0"):
        SensitivityOptions(together=0)


def test_the_worst_layers_keep_their_bits() -> None:
    trials = [
        LayerTrial(name, error, LayerRange(0, 1, 0, 1), None) for name, error in (("a", 0.3), ("b", 0.04), ("c", 0.03))
    ]
    assert choose_kept(trials, 0.051) == ("a",)
    assert choose_kept(trials, 0.035) == ("a", "b")
    assert choose_kept(trials, 1.0) == ()


def test_a_transformer_is_quantised_too(dit: Path) -> None:
    model = load(dit)
    calibration = calibrate(model, PROMPTS, OPTIONS)
    wanted = [replay_call(model, call) for call in calibration.calls]
    plan, _ = plan_quantization(model, calibration, "fp8", SensitivityOptions(error_budget=1.0))
    quantise_model(model, plan)
    error = compare_predictions([replay_call(model, call) for call in calibration.calls], wanted)
    assert 0 < error < 0.2


def test_a_plan_of_another_model_is_refused(model: LatentModel, calibration: Calibration) -> None:
    plan = QuantPlan("int8", {"down_blocks.9.conv": LayerRange(0, 1, 0, 1)})
    with pytest.raises(ModelError, match=r"down_blocks\.9\.conv"):
        quantise_model(model, plan)
    plan, _ = plan_quantization(model, calibration, "int8", SensitivityOptions(error_budget=1.0))
    quantise_model(model, plan)
    with pytest.raises(ModelError, match="not quantised yet"):
        quantise_model(model, plan)


def test_a_plan_without_trials_takes_every_layer_that_was_seen(model: LatentModel, calibration: Calibration) -> None:
    wanted = [replay_call(model, call) for call in calibration.calls]
    plan = make_plan(calibration, "fp8", "tensor")
    assert set(plan.layers) == set(calibration.layers)
    quantise_model(model, plan)
    block = model.denoiser.mid_block
    assert isinstance(block.attentions[0].transformer_blocks[0].attn1.to_q.product, Fp8TensorProduct)
    # A convolution's kernel takes a scale per channel at no cost.
    assert type(block.resnets[0].conv1.product) is Fp8Product
    assert compare_predictions([replay_call(model, call) for call in calibration.calls], wanted) < 0.2
    with pytest.raises(UsageError, match="per tensor"):
        quantise_model(model, replace(make_plan(calibration, "int8"), granularity="tensor"))


def test_a_damaged_plan_says_so(tmp_path: Path) -> None:
    (tmp_path / "plan.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot be read"):
        read_plan(tmp_path / "plan.safetensors")


def test_nf4_names_the_extra_that_it_needs(model: LatentModel) -> None:
    plan = plan_nf4(model)
    assert plan.layers
    assert_missing(lambda: quantise_model(model, plan), "bitsandbytes")


def test_nf4_keeps_weights_in_four_bits_and_draws_nearly_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built, stored and served by `small`, with bitsandbytes' own kernels."""
    monkeypatch.syspath_prepend(Path(sys.prefix) / "apart")  # where `make test` lays it
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path))
    model = load(folder, "bfloat16")
    artefact = build_artefact(model, [], BuildOptions("nf4", "eager"))
    assert artefact.calibration_hash == ""
    with put_on_trial(artefact):
        served = serve_model(load(folder, "bfloat16"), find_profile("small", "cpu"))
    assert served.serving.label == "eager-cpu-nf4"
    name = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    linear, packed = model.denoiser.get_submodule(name), served.denoiser.get_submodule(name)
    assert packed.weight.dtype == torch.uint8
    assert packed.weight.numel() == linear.weight.numel() // 2
    assert type(served.denoiser.mid_block.resnets[0].conv1) is nn.Conv2d
    calls = calibrate(model, PROMPTS, OPTIONS).calls
    found, wanted = ([replay_call(each, call) for call in calls] for each in (served, model))
    assert 0.001 < compare_predictions(found, wanted) < 0.1


def assert_missing(action: Callable[[], None], package: str) -> None:
    try:
        __import__(package)
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError, match=package):
            action()
    else:
        action()


def test_one_compiled_graph_serves_all_layers_of_a_shape() -> None:
    """Scales are tensors: a second layer of the same shape compiles nothing new."""
    first, second = (
        quantise_layer(nn.Linear(32, 32), Int8Product, LayerRange(-high, high, 0, 0), None) for high in (1, 2)
    )
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    block = torch.compile(lambda module, values: module(values), backend=count, fullgraph=True)
    torch._dynamo.reset()
    values = torch.randn(20, 32)
    for module in (first, second):
        torch.testing.assert_close(block(module, values), module(values))
    assert len(graphs) == 1
