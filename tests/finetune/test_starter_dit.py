"""starter-dit's recipe: what it trains is what the exported folder computes in plain diffusers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dgate_core.models.catalog import STARTER_FOLDER, find_checkpoint
from finetune.starter.cards import write_card
from finetune.starter.evaluate import GROUPS, evaluate_pipeline
from finetune.starter.loop import train_recipe
from finetune.starter.networks import build_vae, save_half_diffusers
from finetune.starter.parts import PartOptions, mark_part
from finetune.starter.profiles import SMOKE
from finetune.starter.store import start_renderer
from finetune.starter.train_dit import DitRecipe, draw_counts, draw_sigmas

CAPTIONS = ["a red boat on the sea", "two blue birds on the beach at night"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes and an autoencoder that knows nothing."""
    folder = tmp_path_factory.mktemp("dit")
    assert start_renderer(folder / "data", SMOKE, seed=0).wait() == 0
    torch.manual_seed(0)
    save_half_diffusers(build_vae(SMOKE.widths), folder / "starter-unet" / "vae")
    mark_part(folder, "vae")
    return folder


def open_recipe(out: Path, **changes: object) -> DitRecipe:
    torch.manual_seed(0)
    recipe = DitRecipe(PartOptions(SMOKE, out, torch.device("cpu"), seconds=0.0, **changes))  # type: ignore[arg-type]
    recipe.open_data()
    return recipe


def train(out: Path, steps: int, **changes: object) -> DitRecipe:
    recipe = open_recipe(out, steps=steps, **changes)
    train_recipe(recipe, recipe.options.loop_options("dit", recipe.rates))
    return recipe


@torch.no_grad()
def test_the_exported_folder_computes_what_was_trained(out: Path) -> None:
    recipe = open_recipe(out)
    with torch.no_grad():
        for parameter in recipe.transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    recipe.export()
    pipeline = StableDiffusion3Pipeline.from_pretrained(out / "starter-dit", dtype=torch.float32)
    tokens = torch.from_numpy(recipe.vocabulary.captions_to_ids(CAPTIONS)).long()
    told, pooled = recipe.towers(tokens)
    latents, times = torch.randn(2, 8, 16, 16), torch.tensor([300.0, 700.0])
    for silent in (2, 9, 256):
        encoded = pipeline.encode_prompt(CAPTIONS, None, None, None, 1, False, max_sequence_length=silent)
        theirs = pipeline.transformer(latents, encoded[0], encoded[2], times).sample
        recipe.attention.set_counts(torch.full([2], float(silent)))
        ours = recipe.transformer(latents, torch.cat([told, torch.zeros(2, 1, told.shape[2])], 1), pooled, times).sample
        assert torch.allclose(ours, theirs, atol=0.02 * float(theirs.std())), f"{silent} silent tokens"


def test_training_lowers_the_loss_and_a_resumed_one_is_the_same(out: Path, tmp_path: Path) -> None:
    whole, parts = (Path(shutil.copytree(out, tmp_path / name)) for name in ("whole", "parts"))
    before = float(open_recipe(whole).compute_loss(torch.Generator().manual_seed(9)))
    trained = train(whole, 12)
    assert float(trained.compute_loss(torch.Generator().manual_seed(9))) < before
    train(parts, 12, stop_after=5)
    train(parts, 12, resume=True)
    first, second = (folder / "starter-dit" / "transformer" for folder in (whole, parts))
    weights = "diffusion_pytorch_model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()


def test_the_parser_comes_from_starter_unet_and_is_passed_on(out: Path) -> None:
    recipe = open_recipe(out)
    hidden, pooled = recipe.towers(recipe.empty.long())
    states = recipe.towers.parse(input_ids=recipe.empty.long(), output_hidden_states=True).hidden_states
    assert torch.equal(states[-1], states[-2]), "the last layer passes on what it gets"
    assert hidden.shape == (1, 40, 48)
    assert pooled.shape == (1, 48)


def test_noise_levels_and_counts_stay_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    sigmas, counts = draw_sigmas(4096, generator), draw_counts(4096, generator)
    assert 0 < float(sigmas.min()) < 0.05
    assert 0.95 < float(sigmas.max()) < 1
    assert float(counts.min()) == 2
    assert 400 < float(counts.max()) <= 512
    assert 0.45 < float((counts == 2).float().mean()) < 0.55


def test_a_folder_is_judged_and_gets_its_card(out: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    train(folder, 1)
    figures = evaluate_pipeline(folder / "starter-dit", STARTER_FOLDER / "judge", 10, torch.device("cpu"))
    assert set(figures["generated"]) == set(GROUPS)
    assert (folder / "starter-dit.json").exists()
    assert (folder / "starter-dit.png").exists()
    write_card(folder / "starter-dit", figures)
    assert "| one object, seen pairs | 3 | 95 % |" in (folder / "starter-dit" / "README.md").read_text()
    assert find_checkpoint(str(folder / "starter-dit")).native_size == 64
    assert np.isfinite(figures["generated"]["two"]["all_right"])
