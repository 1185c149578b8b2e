"""Making pictures: the same as diffusers makes, the same in any batch, and one bad row never takes the others along."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dgate_core.engine.begin import open_run
from dgate_core.engine.generate import Batch, GenerateOptions, Generator
from dgate_core.engine.local import execute_lanes, finish_run
from dgate_core.engine.provenance import Provenance, ProvenanceError, encode_picture, read_provenance
from dgate_core.engine.reproduce import reproduce_picture
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import ModelError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.unet import UNetFamily, UNetModel
from dgate_core.models.savers.deep_cache import DeepCache
from dgate_core.models.spec import SCHEDULERS
from dgate_core.runs.pictures import read_picture
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.spec import ImageFormat, RunSpec
from tests.tiny import make_lcm, make_sd, make_sdxl

STEPS = 3


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_sd(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_sdxl(tmp_path_factory.mktemp("sdxl")))


def load(folder: str, precision: str = "float32") -> UNetModel:
    return UNetFamily().load(find_checkpoint(folder), LoadOptions("cpu", precision))


def make_key(folder: str, **changes: Any) -> BatchKey:
    fields = {"width": 32, "height": 32, "num_inference_steps": STEPS, "scheduler": "default", "guidance_scale": 7.5}
    return BatchKey(folder, **(fields | changes))


def make_rows(number: int, negative: str = "") -> list[dict[str, Any]]:
    prompts = [f"a boat, number {n}" for n in range(number)]
    return [{"prompt": text, "negative_prompt": negative, "seed": 100 + n} for n, text in enumerate(prompts)]


def make_pixels(generator: Generator, rows: Sequence[dict[str, Any]], key: BatchKey) -> np.ndarray:
    batches = list(generator.generate(rows, key))
    assert all(batch.pictures is not None for batch in batches), [batch.error for batch in batches]
    return np.concatenate([batch.pictures.pixels.numpy()[: len(batch.rows)] for batch in batches if batch.pictures])


def make_with_diffusers(folder: str, rows: Sequence[dict[str, Any]], key: BatchKey) -> np.ndarray:
    """One prompt after another, as diffusers' documentation does."""
    pipeline = getattr(diffusers, find_checkpoint(folder).pipeline_class).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if key.scheduler != "default":
        spec = SCHEDULERS[key.scheduler]
        scheduler_class = getattr(diffusers, spec.class_name)
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **spec.config)
    pictures = [
        pipeline(
            row["prompt"],
            **({"negative_prompt": row["negative_prompt"]} if row["negative_prompt"] else {}),
            generator=torch.Generator("cpu").manual_seed(row["seed"]),
            num_inference_steps=key.num_inference_steps,
            guidance_scale=key.guidance_scale,
            height=key.height,
            width=key.width,
        ).images[0]
        for row in rows
    ]
    return np.stack([np.asarray(picture) for picture in pictures])


@pytest.mark.parametrize(("guidance_scale", "said"), [(1.0, ["negative_prompt_unread"]), (5.0, [])])
def test_a_negative_prompt_without_effect_is_told(sd: str, guidance_scale: float, said: list[str]) -> None:
    rows = [*make_rows(1, negative="blurry"), *make_rows(1)]
    key = make_key(sd, guidance_scale=guidance_scale, num_inference_steps=1)
    (batch,) = Generator(load(sd), RunSpec(), GenerateOptions(batch_size=2)).generate(rows, key)
    assert [[text.split(":")[0] for text in each] for each in batch.warnings] == [said, []]


def distance(ours: np.ndarray, theirs: np.ndarray) -> int:
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


@pytest.mark.parametrize("scheduler", ["default", *SCHEDULERS])
def test_pictures_are_those_of_diffusers(sd: str, scheduler: str) -> None:
    key, rows = make_key(sd, scheduler=scheduler, num_inference_steps=4), make_rows(3)
    ours = make_pixels(Generator(load(sd), RunSpec(), GenerateOptions(batch_size=3)), rows, key)
    assert distance(ours, make_with_diffusers(sd, rows, key)) <= 1


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (5.0, ""), (5.0, "fog")])
def test_sdxl_pictures_are_those_of_diffusers(sdxl: str, guidance: float, negative: str) -> None:
    key, rows = make_key(sdxl, guidance_scale=guidance), make_rows(2, negative)
    ours = make_pixels(Generator(load(sdxl), RunSpec(), GenerateOptions(batch_size=2)), rows, key)
    assert distance(ours, make_with_diffusers(sdxl, rows, key)) <= 1


@pytest.mark.parametrize("kind", [diffusers.StableDiffusionPipeline, diffusers.LatentConsistencyModelPipeline])
def test_a_consistency_model_takes_guidance_as_an_input(kind: type, tmp_path: Path) -> None:
    lcm = str(make_lcm(tmp_path, kind=kind))
    model, rows, drawn = load(lcm), make_rows(2), {}
    assert not model.reads_negatives(8.0)
    for guidance in (1.0, 8.0):
        key = make_key(lcm, guidance_scale=guidance, num_inference_steps=4)
        drawn[guidance] = make_pixels(Generator(model, RunSpec(), GenerateOptions(batch_size=2)), rows, key)
        assert distance(drawn[guidance], make_with_diffusers(lcm, rows, key)) <= 1
    assert distance(drawn[1.0], drawn[8.0]) > 1
    DeepCache(model.unet, 1).install()
    again = make_pixels(Generator(model, RunSpec(), GenerateOptions(batch_size=2)), rows, key)
    assert np.array_equal(again, drawn[8.0]), "DeepCache passes it on"


def test_strict_gives_the_same_bytes_in_any_batch(sd: str) -> None:
    spec = RunSpec(determinism="strict", strict_batch_size=4)
    key, rows = make_key(sd), make_rows(16)
    generator = Generator(load(sd), spec, GenerateOptions())
    whole = make_pixels(generator, rows, key)
    for size in (1, 3, 16):
        parts = [make_pixels(generator, rows[start : start + size], key) for start in range(0, 16, size)]
        assert np.array_equal(np.concatenate(parts), whole), f"in groups of {size}"
    assert np.array_equal(make_pixels(generator, rows[::-1], key)[::-1], whole), "backwards"


@pytest.mark.parametrize(("precision", "largest", "mean"), [("float32", 2, 1.0), ("bfloat16", 255, 1.0)])
def test_fast_differs_by_rounding_only(sd: str, precision: str, largest: int, mean: float) -> None:
    key, rows, model = make_key(sd), make_rows(16), load(sd, precision)
    made = {size: make_pixels(Generator(model, RunSpec(), GenerateOptions(size)), rows, key) for size in (1, 3, 16)}
    for size in (3, 16):
        apart = np.abs(made[size].astype(int) - made[1].astype(int))
        print(f"{precision}, batch {size} against 1: at most {apart.max()}/255, on average {apart.mean():.4f}/255")
        assert apart.max() <= largest
        assert apart.mean() <= mean


@contextmanager
def limit_memory(model: UNetModel, samples: int) -> Iterator[list[int]]:
    """The UNet runs out of memory above so many samples; yields the sizes that it was asked for."""
    asked: list[int] = []

    def refuse(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        asked.append(len(inputs[0]))
        if len(inputs[0]) > samples:
            raise torch.OutOfMemoryError(f"{len(inputs[0])} samples are too many")

    handle = model.unet.register_forward_pre_hook(refuse)
    try:
        yield asked
    finally:
        handle.remove()


def test_a_batch_that_is_too_large_is_halved_and_the_limit_remembered(sd: str) -> None:
    model, key, rows = load(sd), make_key(sd), make_rows(20)
    generator = Generator(model, RunSpec(), GenerateOptions(batch_size=8))
    with limit_memory(model, samples=8) as asked:  # four rows with guidance
        assert len(make_pixels(generator, rows, key)) == 20
    assert generator.find_sizer(key).size == 4
    assert [size for size in asked if size > 8] == [16], "the size that failed is tried once"


def test_when_one_row_does_not_fit_the_row_gets_the_error(sd: str) -> None:
    model = load(sd)
    with limit_memory(model, samples=1):
        batches = list(Generator(model, RunSpec(), GenerateOptions(batch_size=2)).generate(make_rows(2), make_key(sd)))
    assert [batch.error.row_code for batch in batches if batch.error] == ["out_of_memory", "out_of_memory"]
    assert model.vae.use_tiling, "saving memory is tried first"


def test_a_row_that_raises_is_found_and_the_others_are_made(sd: str) -> None:
    model, rows = load(sd), make_rows(7)
    bad = model.encode_prompts([rows[4]["prompt"]], one_by_one=True)[0].hidden

    def refuse(module: Any, inputs: Any, arguments: dict[str, torch.Tensor]) -> None:
        if any(torch.allclose(row, bad, atol=1e-5) for row in arguments["encoder_hidden_states"]):
            raise RuntimeError("this row breaks it")

    handle = model.unet.register_forward_pre_hook(refuse, with_kwargs=True)
    batches = list(Generator(model, RunSpec(), GenerateOptions(batch_size=7)).generate(rows, make_key(sd)))
    handle.remove()
    failed = [batch for batch in batches if batch.error]
    assert [row["seed"] for batch in failed for row in batch.rows] == [104]
    assert failed[0].error is not None
    assert "this row breaks it" in str(failed[0].error)
    assert sum(len(batch.rows) for batch in batches if batch.pictures) == 6


def test_a_broken_device_is_no_row_error(sd: str) -> None:
    model = load(sd)
    message = "CUDA error: device-side assert triggered"

    def refuse(module: Any, inputs: Any) -> None:
        raise RuntimeError(message)

    model.unet.register_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="CUDA error"):
        list(Generator(model, RunSpec(), GenerateOptions()).generate(make_rows(2), make_key(sd)))


def test_a_picture_of_nan_is_marked(sd: str) -> None:
    model, rows = load(sd), make_rows(3)
    rows[1]["prompt"] = "zebra"
    token = model.pipeline.tokenizer("z", add_special_tokens=False).input_ids[0]
    inner = model.pipeline.tokenizer("zebra", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        for number in {token, inner}:
            model.pipeline.text_encoder.get_input_embeddings().weight[number] = float("nan")
    batch: Batch = next(iter(Generator(model, RunSpec(), GenerateOptions(batch_size=3)).generate(rows, make_key(sd))))
    assert batch.pictures is not None
    assert batch.pictures.finite.tolist() == [True, False, True]


def test_each_prompt_is_encoded_once(sd: str) -> None:
    model, rows, encoded = load(sd), make_rows(12), []
    model.pipeline.text_encoder.register_forward_hook(lambda _, __, output: encoded.append(len(output[0])))
    for number, row in enumerate(rows):
        row["prompt"] = f"boat {number % 3}"
    generator = Generator(model, RunSpec(), GenerateOptions(batch_size=4))
    make_pixels(generator, rows, make_key(sd))
    assert sum(encoded) == 3 + 1, "three prompts and the empty negative one"
    generator.embeddings.forget_prompts()
    make_pixels(generator, rows, make_key(sd))
    assert sum(encoded) == 3 + 1 + 3, "the negative one is kept for the run"


def test_a_long_prompt_is_a_warning(sd: str) -> None:
    embedding = load(sd).encode_prompts(["boat " * 60], one_by_one=False)[0]
    assert embedding.warnings[0].startswith("prompt_truncated")


def make_provenance(**changes: Any) -> Provenance:
    fields: dict[str, Any] = {
        "prompt": 'ein Boot, 舟, ⛵ "quoted"',
        "negative_prompt": "fog",
        "seed": 2**63 - 1,
        "width": 32,
        "height": 24,
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
        "scheduler": "ddim",
        "lora": "[]",
        "style_preset": None,
        "model": "m",
        "model_hash": "ab" * 32,
        "model_revision": None,
        "precision": "float32",
        "determinism": "fast",
        "strict_batch_size": 8,
        "image": {"format": "png", "level": 1, "quality": 95, "container": "files"},
        "run": "v1-0",
        "row_id": "00",
        "versions": {"torch": "0"},
    }
    return Provenance(**(fields | changes))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_provenance_comes_back_from_every_format(kind: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    provenance = make_provenance()
    data = encode_picture(pixels, ImageFormat(kind), provenance)
    assert read_provenance(data, "x") == provenance
    assert data == encode_picture(pixels, ImageFormat(kind), provenance), "the same bytes again"
    if kind == "png":
        with Image.open(io.BytesIO(data)) as picture:
            assert np.array_equal(np.asarray(picture), pixels)
            assert "Steps: 4, Sampler: ddim, CFG scale: 7.5" in picture.info["parameters"]


def test_a_file_without_provenance_is_a_clear_error() -> None:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, "png")
    with pytest.raises(ProvenanceError, match="carries no provenance"):
        read_provenance(sink.getvalue(), "plain.png")
    with pytest.raises(ProvenanceError, match="not a picture"):
        read_provenance(b"hello", "hello.txt")


def make_run(folder: Path, model: str, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A whole run of six rows on one lane; returns its store and its results."""
    manifest = folder / "prompts.jsonl"
    manifest.write_text("".join(json.dumps({"prompt": f"boat {n}", "seed": n}) + "\n" for n in range(6)))
    given = RunSettings(model=model, precision="float32", num_inference_steps=2, batch_size=4, **settings)
    run = open_run([str(manifest)], str(folder / "run"), given)
    execute_lanes(run.store, given, StopSignal(), lambda _: None)
    finish_run(run.store)
    return run.store, pq.read_table(folder / "run" / "results.parquet").to_pylist()


@pytest.mark.parametrize("container", ["files", "webdataset", "parquet"])
def test_every_container_holds_the_same_pictures(tmp_path: Path, sd: str, container: str) -> None:
    store, rows = make_run(tmp_path, sd, container=container)
    assert [row["status"] for row in rows] == ["ok"] * 6
    for number, row in enumerate(rows):
        data = read_picture(store.storage, row["path"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert read_provenance(data, row["path"]).seed == number


@pytest.mark.parametrize("determinism", ["strict", "fast"])
def test_a_picture_is_made_again_from_its_file(tmp_path: Path, sd: str, determinism: str) -> None:
    store, rows = make_run(tmp_path, sd, determinism=determinism, strict_batch_size=2)
    found = reproduce_picture(store.storage.read_bytes(rows[3]["path"]), rows[3]["path"], "cpu")
    assert found.max_difference <= 2
    assert found.is_identical or determinism == "fast"


@pytest.mark.parametrize("name", ["model.ckpt", "weights.bin"])
def test_a_pickle_is_refused_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="can run any code"):
        find_checkpoint(str(tmp_path / name))


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 5)
    with pytest.raises(ModelError, match="cut off: 27 bytes"):
        find_checkpoint(str(file))


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'starter-unet'"):
        find_checkpoint("starter-unett")
