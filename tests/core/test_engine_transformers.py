"""Transformer pipelines: the same pictures as diffusers makes, each class with its own way of text and guidance."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.manifest.item import BatchKey
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.dialects import Flux2
from dgate_core.models.families.dit import DiTFamily, DiTModel
from dgate_core.models.limits import find_limits
from dgate_core.runs.spec import RunSpec
from tests.tiny_dit import make_flux, make_flux2, make_flux2_klein, make_pixart, make_qwen_image, make_sd3, make_z_image


@dataclass(frozen=True)
class Kind:
    """A toy pipeline, and how plain diffusers is asked for the same picture."""

    make: Callable[[Path], Path]
    guidance: float
    argument: str = "guidance_scale"
    scheduler: str = "default"
    extra: dict[str, Any] = field(default_factory=dict)
    negative: str | None = "fog"


KINDS = {
    "sd3": Kind(make_sd3, 5.0),
    "sd3, dynamic": Kind(lambda folder: make_sd3(folder, dynamic=True), 5.0, negative=""),
    "sd3, unguided": Kind(make_sd3, 1.0),
    "flux": Kind(make_flux, 3.5, negative=None),
    "flux, schnell": Kind(lambda folder: make_flux(folder, distilled=False), 0.0, negative=None),
    "pixart": Kind(make_pixart, 4.5, extra={"use_resolution_binning": False, "clean_caption": False}),
    "pixart, euler_a": Kind(
        make_pixart, 4.5, scheduler="euler_a", extra={"use_resolution_binning": False, "clean_caption": False}
    ),
    "qwen": Kind(make_qwen_image, 4.0, "true_cfg_scale"),
    "flux2": Kind(make_flux2, 4.0, negative=None),
    "flux2, klein": Kind(make_flux2_klein, 4.0, negative=""),
    "flux2, klein distilled": Kind(lambda folder: make_flux2_klein(folder, distilled=True), 1.0, negative=None),
    "z-image": Kind(make_z_image, 2.0),
    "z-image, unguided": Kind(make_z_image, 0.0),
}


def load(folder: str) -> DiTModel:
    return DiTFamily().load(find_checkpoint(folder), LoadOptions("cpu", "float32"))


def make_key(folder: str, kind: Kind) -> BatchKey:
    return BatchKey(folder, 32, 48, 3, kind.scheduler, kind.guidance)


def make_rows(number: int, negative: str | None) -> list[dict[str, Any]]:
    prompts = [f"a boat, number {n}{' or so' * n}" for n in range(number)]
    return [{"prompt": text, "negative_prompt": negative, "seed": 100 + n} for n, text in enumerate(prompts)]


def make_pixels(generator: Generator, rows: list[dict[str, Any]], key: BatchKey) -> np.ndarray:
    batches = list(generator.generate(rows, key))
    assert all(batch.pictures is not None for batch in batches), [batch.error for batch in batches]
    return np.concatenate([batch.pictures.pixels.numpy()[: len(batch.rows)] for batch in batches if batch.pictures])


def make_with_diffusers(folder: str, kind: Kind, rows: list[dict[str, Any]], key: BatchKey) -> np.ndarray:
    """One prompt after another, as diffusers' documentation does."""
    pipeline = getattr(diffusers, find_checkpoint(folder).pipeline_class).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if kind.scheduler == "euler_a":
        config = pipeline.scheduler.config
        pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(config)
    settings = kind.extra | {kind.argument: kind.guidance, "num_inference_steps": key.num_inference_steps}
    if kind.negative is not None and "negative_prompt" in inspect.signature(pipeline.__call__).parameters:
        settings["negative_prompt"] = kind.negative
    pictures = [
        pipeline(
            prompt=row["prompt"],
            generator=torch.Generator("cpu").manual_seed(row["seed"]),
            height=key.height,
            width=key.width,
            **settings,
        ).images[0]
        for row in rows
    ]
    return np.stack([np.asarray(picture) for picture in pictures])


@pytest.mark.parametrize("name", KINDS)
def test_pictures_are_those_of_diffusers(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    folder = str(kind.make(tmp_path))
    key, rows = make_key(folder, kind), make_rows(3, kind.negative)
    ours = make_pixels(Generator(load(folder), RunSpec(), GenerateOptions(batch_size=3)), rows, key)
    theirs = make_with_diffusers(folder, kind, rows, key)
    assert ours.shape == (3, 48, 32, 3)
    assert theirs.std() > 1, "a grey picture proves nothing"
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize("make", [make_sd3, make_flux, make_flux2_klein, make_pixart, make_qwen_image])
def test_strict_gives_the_same_bytes_in_any_batch(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = str(make(tmp_path))
    key, rows = BatchKey(folder, 32, 32, 2, "default", 3.0), make_rows(6, "fog")
    generator = Generator(load(folder), RunSpec(determinism="strict", strict_batch_size=3), GenerateOptions())
    whole = make_pixels(generator, rows, key)
    for size in (1, 2):
        parts = [make_pixels(generator, rows[start : start + size], key) for start in range(0, 6, size)]
        assert np.array_equal(np.concatenate(parts), whole), f"in groups of {size}"


def test_a_prompt_that_only_t5_reads_is_not_cut(tmp_path: Path) -> None:
    model = load(str(make_sd3(tmp_path)))
    short, long = model.encode_prompts(["boat " * 30, "boat " * 90], one_by_one=False)
    assert short.warnings == (), "CLIP cuts at 77 tokens, T5 reads on to 256"
    assert long.warnings[0].startswith("prompt_truncated: ")


@pytest.mark.parametrize("make", [make_flux2, make_flux2_klein])
def test_what_a_chat_leaves_no_room_for_is_cut_with_a_warning(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Every letter is a token of the toy tokenizers; the system's message of Flux.2 dev takes many of them."""
    model = load(str(make(tmp_path)))
    dialect, tokenizer = model.dialect, model.pipeline.tokenizer
    assert isinstance(dialect, Flux2)
    count = getattr(tokenizer, "tokenizer", tokenizer)
    room = dialect.limit - len(count(dialect.write_chat("")).input_ids)
    fits, cut = model.encode_prompts(["b" * room, "b" * (room + 1)], one_by_one=False)
    assert fits.warnings == ()
    assert cut.warnings == ("prompt_truncated: 513 tokens, the text encoder reads 512",)


def test_flow_matching_has_its_own_schedulers(tmp_path: Path) -> None:
    assert find_limits(str(make_flux(tmp_path / "flux"))).schedulers == {"default"}
    assert "euler" in find_limits(str(make_pixart(tmp_path / "pixart"))).schedulers
