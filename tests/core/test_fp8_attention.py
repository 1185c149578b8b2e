"""Attention in E4M3: the operation against PyTorch's in float32, and Flux's attention with it against the plain one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch.nn.functional import scaled_dot_product_attention

from dgate_core.bench.variants import parse_variant, quantize_ungated
from dgate_core.errors import MissingExtraError, UsageError
from dgate_core.kernels import attention as kernel
from dgate_core.models.families.latent import LatentModel
from dgate_core.quant.artefact import ARTEFACT_FILE, PLAN_FILE, note_verdict
from dgate_core.quant.attention import Fp8FluxAttention, has_attentions, quantise_attentions
from dgate_core.quant.build import BuildOptions, build_artefact
from dgate_core.quant.calibration import Calibration, CalibrationOptions, calibrate
from dgate_core.quant.kernels import KernelOptions, choose_kernels
from dgate_core.quant.plan import read_plan
from dgate_core.quant.quantise import make_plan, quantise_model
from dgate_core.quant.sensitivity import SensitivityOptions, compare_predictions, replay_call
from tests.core.test_backends import load
from tests.tiny_dit import make_flux, make_sd3

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton comes with PyTorch on Linux")
OPTIONS = CalibrationOptions(method="max", prompts=2, num_inference_steps=2, replayed_steps=2)
PROMPTS = ["a blue boat", "two red houses"]


@pytest.fixture
def model(tmp_path: Path) -> LatentModel:
    return load(str(make_flux(tmp_path)))


@pytest.fixture
def calibration(model: LatentModel) -> Calibration:
    return calibrate(model, PROMPTS, OPTIONS)


def attend(tokens: int, device: str, channels: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """The operation, and the truth."""
    from dgate_core.kernels import ops  # noqa: F401 - defines torch.ops.dgate

    torch.manual_seed(0)
    sides = [torch.randn(2, tokens, 3, channels, device=device) for _ in range(3)]
    factors = (8.0, 16.0, 32.0)
    scales = kernel.make_scales(*factors, 64.0, torch.device(device))
    rounded = [(each * by).to(torch.float8_e4m3fn) for each, by in zip(sides, factors, strict=True)]
    got = torch.ops.dgate.attention(*rounded, scales)
    query, key, value = (each.transpose(1, 2) for each in sides)
    return got.float() / 64, scaled_dot_product_attention(query, key, value).transpose(1, 2)


def measure_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def test_the_operation_scales_what_it_is_given_and_what_it_gives() -> None:
    got, wanted = attend(24, "cpu")
    assert got.shape == wanted.shape == (2, 24, 3, 128)
    assert 0.01 < measure_error(got, wanted) < 0.08


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1024, 300])
def test_a_gpu_computes_the_same(tokens: int) -> None:
    """300 is no multiple of a tile."""
    if not kernel.has_attention():
        pytest.skip("no FP8 attention here")
    assert measure_error(*attend(tokens, "cuda")) < 0.08


@torch.inference_mode()
def test_flux_attends_in_8_bits_between_its_8_bit_layers(model: LatentModel, calibration: Calibration) -> None:
    wanted = [replay_call(model, call) for call in calibration.calls]
    plan = make_plan(calibration, "fp8", "tensor")
    assert has_attentions(model.denoiser, plan)
    plain = load(str(model.checkpoint.folder))
    quantise_model(plain, plan)
    quantise_model(model, replace(plan, attention=True))
    found = [each for each in model.denoiser.modules() if isinstance(each, FluxAttention)]
    assert {type(each.processor) for each in found} == {Fp8FluxAttention}
    layers_alone, all_of_it = (
        compare_predictions([replay_call(each, call) for call in calibration.calls], wanted) for each in (plain, model)
    )
    assert layers_alone < all_of_it < 2 * layers_alone


@torch.inference_mode()
def test_the_order_of_text_and_picture_is_flux_s(model: LatentModel, calibration: Calibration) -> None:
    """With layers in 16 bit, all that differs is the rounding of query, key, value and result."""
    attention = model.denoiser.transformer_blocks[0].attn
    torch.manual_seed(0)
    picture, text = torch.randn(2, 12, 32), torch.randn(2, 5, 32)
    angles = torch.rand(17, 16)
    given = {"encoder_hidden_states": text, "image_rotary_emb": (angles.cos(), angles.sin())}
    wanted = attention(picture, **given)
    plan = make_plan(calibration, "fp8", "tensor")
    quantise_attentions(model.denoiser, plan, torch.device("cpu"))
    for got, expected in zip(attention(picture, **given), wanted, strict=True):
        assert got.shape == expected.shape
        assert measure_error(got, expected) < 0.06


def test_a_block_whose_values_keep_their_bits_attends_as_before(model: LatentModel, calibration: Calibration) -> None:
    plan = make_plan(calibration, "fp8", "tensor")
    kept = "transformer_blocks.0.attn.add_v_proj"
    layers = {name: limits for name, limits in plan.layers.items() if name != kept}
    quantise_attentions(model.denoiser, replace(plan, layers=layers), torch.device("cpu"))
    assert type(model.denoiser.transformer_blocks[0].attn.processor) is FluxAttnProcessor
    assert type(model.denoiser.single_transformer_blocks[0].attn.processor) is Fp8FluxAttention


@torch.inference_mode()
def test_compiled_blocks_take_it_whole(model: LatentModel, calibration: Calibration) -> None:
    from torch._dynamo.utils import counters

    quantise_model(model, replace(make_plan(calibration, "fp8", "tensor"), attention=True))
    call = calibration.calls[0]
    wanted = replay_call(model, call)
    torch._dynamo.reset()
    counters.clear()
    for block in (*model.denoiser.transformer_blocks, *model.denoiser.single_transformer_blocks):
        block.compile(dynamic=False)
    torch.testing.assert_close(replay_call(model, call), wanted, rtol=2e-2, atol=2e-2)
    assert sum(counters["graph_break"].values()) == 0
    torch._dynamo.reset()


def test_an_artefact_keeps_it(model: LatentModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    lines: list[str] = []
    options = BuildOptions("fp8", "eager", OPTIONS, SensitivityOptions(error_budget=1.0), KernelOptions(attention=True))
    artefact = build_artefact(model, PROMPTS, options, lines.append)
    assert read_plan(artefact.find_file(PLAN_FILE)).attention
    assert artefact.method["kernels"]["attention"] is True  # type: ignore[index] # a mapping of mappings
    assert "and the attention between them" in lines[-1]
    note_verdict(artefact, "pass", {})
    again = build_artefact(model, PROMPTS, options)
    assert (again.folder, again.decision) == (artefact.folder, "pass"), "the same files are what was judged"
    (again.folder / ARTEFACT_FILE).write_text("{")
    mended = build_artefact(model, PROMPTS, options)
    assert (mended.folder, mended.decision) == (artefact.folder, "none"), "nobody can read what was said of it"


def test_a_model_without_flux_s_attention_says_that_it_has_none(tmp_path: Path) -> None:
    model = load(str(make_sd3(tmp_path)))
    plan = make_plan(calibrate(model, PROMPTS, OPTIONS), "fp8", "tensor")
    assert not has_attentions(model.denoiser, plan)
    note = quantize_ungated(model, parse_variant("turbo", "cuda"), PROMPTS)
    assert "attention" not in note


@pytest.mark.parametrize(("quantization", "backend"), [("int8", "compiled"), ("fp8", "tensorrt")])
def test_it_is_refused_where_there_is_none(quantization: str, backend: str) -> None:
    with pytest.raises(UsageError, match="8-bit attention"):
        choose_kernels(quantization, backend, "cuda", KernelOptions(attention=True))  # type: ignore[arg-type]


def test_a_missing_library_names_its_extra(model: LatentModel, calibration: Calibration) -> None:
    if kernel.is_installed():
        pytest.skip("it is not missing")
    with pytest.raises(MissingExtraError, match=r"d-gate\[fp8-attention\]"):
        quantise_attentions(model.denoiser, make_plan(calibration, "fp8", "tensor"), torch.device("cuda"))
