"""The compiled decoder, as `fast` has it on CUDA: the same classes on the CPU, through a backend of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dgate_core.backends.compiled import CompiledOnCuda
from dgate_core.backends.contract import BackendRequest, PreparedDenoiser
from dgate_core.backends.decoder import compile_decoder
from dgate_core.backends.eager import EagerDenoiser
from dgate_core.backends.opening import serve_model
from dgate_core.backends.regions import list_blocks
from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.errors import BackendUnfitError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.families.placement import prefer_channels_last
from dgate_core.models.memory_plan import MemoryPlan
from dgate_core.models.profiles import BACKENDS, Profile
from dgate_core.runs.spec import RunSpec
from tests.core.test_backends import load
from tests.tiny import make_sd
from tests.tiny_dit import make_qwen_image, make_z_image


class BlocksHere:
    """What `compiled` prepares on CUDA, without asking for a GPU."""

    name: ClassVar[str] = "blocks"

    def prepare(self, model: LatentModel, request: BackendRequest) -> PreparedDenoiser:
        """See `Backend`."""
        return CompiledOnCuda(model, None)


class DecoderHere:
    """The decoder alone, because compiling is what takes the time."""

    name: ClassVar[str] = "decoder"

    def prepare(self, model: LatentModel, request: BackendRequest) -> PreparedDenoiser:
        """See `Backend`."""
        prepared = EagerDenoiser(model, None)
        prepared.decoder = compile_decoder(model)
        return prepared


@pytest.fixture(scope="module", autouse=True)
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels of this module alone, and the backend in the place of `compiled`."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DGATE_CACHE", str(folder))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        for backend in (BlocksHere, DecoderHere):
            patch.setitem(BACKENDS.entries, backend.name, f"{__name__}:{backend.__name__}")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_sd(tmp_path_factory.mktemp("sd")))


def draw(model: LatentModel, rows: int, side: int = 32) -> tuple[np.ndarray, Any]:
    """Pictures of the rows, and their batch."""
    key = BatchKey(model.checkpoint.spec.name, side, side, 2, "default", 3.0)
    plan = [{"prompt": f"a cat {n}", "negative_prompt": None, "seed": n} for n in range(rows)]
    [batch] = Generator(model, RunSpec(), GenerateOptions(batch_size=rows)).generate(plan, key)
    assert batch.pictures is not None, batch.error
    return batch.pictures.pixels.numpy(), batch


def count_compiled(model: LatentModel) -> int:
    return sum(block._compiled_call_impl is not None for block in list_blocks(model.vae.decoder))


def test_on_cuda_the_decoder_s_blocks_are_compiled_in_channels_last(folder: str) -> None:
    model = serve_model(load(folder), Profile("fast", ("blocks",)))
    assert count_compiled(model) == len(list_blocks(model.vae.decoder)) > 0
    assert model.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.serving.label == "blocks-cpu-float32-decoder"


@pytest.mark.slow
def test_a_compiled_decoder_draws_the_same_and_falls_back_with_a_word(folder: str) -> None:
    plain = load(folder)
    model = serve_model(load(folder), Profile("fast", ("decoder",)))
    pixels, batch = draw(model, 2)
    assert np.abs(pixels.astype(int) - draw(plain, 2)[0].astype(int)).max() <= 1
    assert batch.backend == "decoder-cpu-float32-decoder"
    assert batch.warnings == [(), ()]

    # A compiler that fails, at a size whose kernels are not there yet.
    with torch._inductor.config.patch({"cpp.cxx": ("/bin/false",)}):
        pixels, batch = draw(model, 1, 48)
    assert np.abs(pixels.astype(int) - draw(plain, 1, 48)[0].astype(int)).max() <= 1
    assert batch.backend == "decoder-cpu-float32"
    assert batch.warnings[0][0].startswith("decoder: eager, because torch.compile fails: ")
    assert count_compiled(model) == 0
    assert len(draw(model, 1, 48)[1].warnings[0]) == 1, "told once"


def test_memory_that_runs_short_makes_the_decoder_eager(folder: str) -> None:
    model = serve_model(load(folder), Profile("fast", ("blocks",)))
    assert model.serving.decoder == "blocks"
    while model.save_memory() is not None:
        pass
    assert model.memory.vae_tiling
    assert (model.serving.decoder, count_compiled(model)) == ("eager", 0)
    assert model.serving.warnings == ("decoder: eager, because it works in tiles, for memory",)


@pytest.mark.parametrize("plan", [MemoryPlan(vae_tiling=True), MemoryPlan(offload="group")])
def test_tiles_and_offloaded_decoders_are_left_alone(folder: str, plan: MemoryPlan) -> None:
    model = load(folder)
    model.memory = replace(model.memory, vae_tiling=plan.vae_tiling, offload=plan.offload)
    assert compile_decoder(model) is None
    assert count_compiled(model) == 0


def test_a_decoder_without_known_blocks_is_left_alone(tmp_path: Path) -> None:
    assert compile_decoder(load(str(make_qwen_image(tmp_path)))) is None


@torch.inference_mode()
@pytest.mark.parametrize("make", [make_qwen_image, make_z_image])
def test_noise_for_trying_a_decoder_has_the_latents_shape(make: Any, tmp_path: Path) -> None:
    model = load(str(make(tmp_path)))
    key = BatchKey(model.checkpoint.spec.name, 32, 32, 2, "default", 0.0)
    pixels, finite = model.decode(model.draw_decodable(key, 2))
    assert pixels.shape == (2, 32, 32, 3)
    assert bool(finite.all())


def test_a_size_that_cannot_be_compiled_leaves_the_others(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the next backend takes the blocks apart; without one the sizes before go on."""
    from triton.errors import TritonError

    def fail(*_: Any, **__: Any) -> Any:
        raise TritonError("no registers left")

    model = load(folder)
    prepared = CompiledOnCuda(model, None)
    blocks = [each for module in (model.denoiser, model.vae.decoder) for each in list_blocks(module)]
    monkeypatch.setattr(model, "call_module", fail)
    with pytest.raises(BackendUnfitError, match="no registers left"):
        prepared.warm_up(BatchKey("x", 32, 32, 2, "default", 3.0), 2)
    assert all(block._compiled_call_impl is not None for block in blocks)
    prepared.release()
    assert all(block._compiled_call_impl is None for block in blocks)


def test_video_decoders_keep_their_memory_format(tmp_path: Path) -> None:
    """Their weights have a dimension more than channels_last knows."""
    image, video = load(str(make_sd(tmp_path / "sd"))).vae, load(str(make_qwen_image(tmp_path / "qwen"))).vae
    for vae in (image, video):
        prefer_channels_last(vae)
    assert image.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert any(each.ndim == 5 for each in video.parameters())
