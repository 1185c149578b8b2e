"""Low memory: the plan is chosen before loading, is said, and changes no pixel beyond rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.errors import ModelError
from dgate_core.manifest.item import BatchKey
from dgate_core.models import memory_plan
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.checkpoint_size import count_part_bytes, estimate_activation_bytes, measure_parts
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.memory_plan import MemoryPlan, choose_memory_plan, plan_memory
from dgate_core.models.spec import FAMILIES
from dgate_core.runs.spec import RunSpec
from tests.tiny import make_sd, make_sdxl
from tests.tiny_dit import make_flux, make_sd3

GB = 10**9
SDXL = {"unet": 5 * GB, "text_encoder": GB // 4, "text_encoder_2": 14 * GB // 10, "vae": GB // 6}
FLUX = {"transformer": 24 * GB, "text_encoder": GB // 4, "text_encoder_2": 95 * GB // 10, "vae": GB // 6}


@pytest.mark.parametrize(
    ("weights", "activations", "free", "steps"),
    [
        (SDXL, 3 * GB, 80 * GB, ()),
        (SDXL, 3 * GB, 12 * GB, ("vae_slicing",)),
        (SDXL, 3 * GB, 10 * GB, ("vae_slicing", "model_offload")),
        (SDXL, 3 * GB, 6 * GB, ("vae_slicing", "group_offload")),
        (SDXL, 3 * GB, 35 * GB // 10, ("vae_slicing", "sequential_offload")),
        (SDXL, 3 * GB, 2 * GB, ("vae_slicing", "vae_tiling", "sequential_offload")),
        (FLUX, 3 * GB, 80 * GB, ()),
        (FLUX, 3 * GB, 41 * GB, ("vae_slicing",)),
        (FLUX, 3 * GB, 32 * GB, ("vae_slicing", "model_offload")),
        (FLUX, 3 * GB, 12 * GB, ("vae_slicing", "group_offload")),
        ({**FLUX, "transformer": 72 * GB // 10}, 3 * GB, 24 * GB, ("vae_slicing",)),
        ({**FLUX, "transformer": 72 * GB // 10}, 3 * GB, 16 * GB, ("vae_slicing", "model_offload")),
    ],
)
def test_the_quickest_plan_that_fits(
    weights: dict[str, int], activations: int, free: int, steps: tuple[str, ...]
) -> None:
    plan = choose_memory_plan(weights, activations, free)
    assert plan.steps == steps
    assert plan.fits
    assert plan.free_bytes == free


def test_more_memory_never_gives_a_slower_plan() -> None:
    order = ["none", "model", "group", "sequential"]
    plans = [choose_memory_plan(FLUX, 3 * GB, free * GB // 4) for free in range(4, 400)]
    ranks = [(order.index(plan.offload), plan.vae_tiling, plan.vae_slicing) for plan in plans]
    assert ranks == sorted(ranks, reverse=True)


def test_a_model_for_which_nothing_helps_gets_the_smallest_plan() -> None:
    plan = choose_memory_plan(SDXL, 8 * GB, GB)
    assert plan.steps == ("vae_slicing", "vae_tiling", "sequential_offload")
    assert not plan.fits


def test_the_cpu_has_nowhere_to_offload_to() -> None:
    assert choose_memory_plan(SDXL, 3 * GB, 8 * GB, can_offload=False).steps == ("vae_slicing", "vae_tiling")


def test_sizes_come_from_the_headers(tmp_path: Path) -> None:
    checkpoint = find_checkpoint(str(make_sdxl(tmp_path)))
    model = load(checkpoint.folder)
    counted = {part: size.parameters for part, size in measure_parts(checkpoint).items()}
    modules = {name: part for name, part in model.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert counted == {name: sum(tensor.numel() for tensor in part.parameters()) for name, part in modules.items()}
    assert count_part_bytes(checkpoint, "bfloat16")["unet"] == 2 * counted["unet"]
    assert estimate_activation_bytes(checkpoint, "float32") == 2 * estimate_activation_bytes(checkpoint, "float16")


def test_no_room_on_the_machine_is_told_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find_checkpoint(str(make_sd(tmp_path)))
    assert plan_memory(checkpoint, "float32", "cpu").steps == ()
    weights = sum(count_part_bytes(checkpoint, "float32").values())
    monkeypatch.setattr(memory_plan, "read_free_bytes", lambda _: weights + 1)
    assert plan_memory(checkpoint, "float32", "cpu").steps == ("vae_slicing", "vae_tiling")
    assert plan_memory(checkpoint, "float32", "cpu", is_strict=True).steps == (), "strict keeps its bytes"
    monkeypatch.setattr(memory_plan, "read_free_bytes", lambda _: 1000)
    with pytest.raises(ModelError, match="that much free memory"):
        plan_memory(checkpoint, "float32", "cpu")


def test_a_denoiser_in_four_bits_is_counted_as_such(tmp_path: Path) -> None:
    """Else a card that holds it would get an offload under which nothing is quantised."""
    checkpoint = find_checkpoint(str(make_flux(tmp_path)))
    plain, eight, four = (
        plan_memory(checkpoint, "bfloat16", "cpu", quantization=each).needed_bytes for each in (None, "fp8", "nf4")
    )
    assert eight == plain
    assert plain - four == pytest.approx(0.7 * count_part_bytes(checkpoint, "bfloat16")["transformer"], rel=1e-3)


@pytest.mark.parametrize("make", [make_sd, make_flux])
def test_a_denoiser_that_waits_stays_on_the_host(make: Callable[[Path], Path], tmp_path: Path) -> None:
    checkpoint = find_checkpoint(str(make(tmp_path)))
    options = LoadOptions("meta", "bfloat16", denoiser_waits=True)
    model = FAMILIES.load(checkpoint.family)().load(checkpoint, options)
    parts = {id(part): part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)}
    places = {id(part): {each.device.type for each in part.parameters()} for part in parts.values()}
    assert places.pop(id(model.denoiser)) == {"cpu"}
    assert set.union(*places.values()) == {"meta"}


def load(folder: str, plan: MemoryPlan | None = None, device: str = "cpu") -> LatentModel:
    checkpoint = find_checkpoint(folder)
    options = LoadOptions(device, "float32", plan or MemoryPlan())
    model: LatentModel = FAMILIES.load(checkpoint.family)().load(checkpoint, options)
    return model


def make_pixels(model: LatentModel, side: int = 32) -> tuple[torch.Tensor, list[tuple[str, ...]]]:
    key = BatchKey("any", side, side, 2, "default", 2.0)
    rows = [{"prompt": f"a boat {n}", "negative_prompt": "", "seed": n} for n in range(3)]
    (batch,) = Generator(model, RunSpec(), GenerateOptions(batch_size=3)).generate(rows, key)
    assert batch.pictures is not None, batch.error
    batch.pictures.wait()
    return batch.pictures.pixels, list(batch.warnings)


PLANS = [
    MemoryPlan(vae_slicing=True),
    MemoryPlan("model", vae_slicing=True),
    MemoryPlan("group", vae_slicing=True),
    MemoryPlan("sequential", vae_slicing=True),
    MemoryPlan("sequential", vae_slicing=True, vae_tiling=True),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "+".join(plan.steps))
@pytest.mark.parametrize("make", [make_sd, make_sdxl, make_sd3, make_flux], ids=lambda make: make.__name__)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_no_plan_changes_pixels_beyond_rounding(make: object, plan: MemoryPlan, device: str, tmp_path: Path) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    folder = str(make(tmp_path))  # type: ignore[operator]
    expected, silent = make_pixels(load(folder, device=device))
    made, warnings = make_pixels(load(folder, plan, device))
    assert (made.int() - expected.int()).abs().max() <= 1
    assert silent == [()] * 3
    assert warnings == [tuple(f"memory: made with {step}" for step in plan.steps)] * 3


def test_tiles_blend_only_above_the_decoder_s_own_size(tmp_path: Path) -> None:
    folder = str(make_sd(tmp_path))
    plain, tiled = load(folder), load(folder, MemoryPlan(vae_slicing=True, vae_tiling=True))
    assert torch.equal(make_pixels(plain)[0], make_pixels(tiled)[0])
    large, blended = make_pixels(plain, side=64)[0], make_pixels(tiled, side=64)[0]
    assert not torch.equal(large, blended), "which is why tiling comes last and is said in each row"


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_offloading_leaves_little_on_the_device(offload: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    folder = str(make_sdxl(tmp_path))
    whole = load(folder, device="cuda").count_bytes()
    model = load(folder, MemoryPlan(offload), "cuda")  # type: ignore[arg-type]
    make_pixels(model)
    assert model.count_bytes() < whole
    assert not model.leave_device(), "hooks hold its weights"


@pytest.mark.gpu
def test_weights_that_left_the_gpu_come_back_from_pinned_memory(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = load(str(make_sd(tmp_path)), device="cuda")
    expected, size = make_pixels(model)[0], model.count_bytes()
    for _ in range(2):
        assert model.leave_device()
        assert model.count_bytes() == 0
        assert next(model.denoiser.parameters()).is_pinned()
        model.return_to_device()
        assert model.count_bytes() == size
        assert torch.equal(make_pixels(model)[0], expected)
