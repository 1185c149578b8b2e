"""Image to image through OpenAI's SDK, held to diffusers' own pipeline."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from dgate_core.api.settings import ApiSettings
from dgate_core.engine.provenance import read_provenance
from dgate_core.engine.reproduce import reproduce_picture
from dgate_core.errors import UsageError
from flows.commands.reproduce import command
from tests.api.conftest import Live, run_server


def make_picture(seed: int = 0, size: int = 32) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def to_file(picture: Image.Image, kind: str = "png") -> io.BytesIO:
    sink = io.BytesIO()
    picture.save(sink, kind)
    sink.name = f"picture.{kind}"
    sink.seek(0)
    return sink


def read_pixels(text: str | None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text or "")))).astype(int)


@pytest.mark.parametrize(("scheduler", "strength"), [("default", 0.5), ("euler", 0.8), ("dpmpp_2m", 1.0)])
def test_an_edit_is_what_diffusers_makes(live: Live, checkpoint: str, scheduler: str, strength: float) -> None:
    from dgate_core.models.spec import SCHEDULERS

    extra = {"seed": 5, "num_inference_steps": 6, "guidance_scale": 3.0, "strength": strength, "scheduler": scheduler}
    answer = live.client().images.edit(image=to_file(make_picture()), prompt="a red boat", extra_body=extra)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler in SCHEDULERS:
        import diffusers

        spec = SCHEDULERS[scheduler]
        kind = getattr(diffusers, spec.class_name)
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **spec.config)
    expected = pipeline(
        "a red boat",
        image=make_picture(),
        strength=strength,
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=[torch.Generator("cpu").manual_seed(5)],
    ).images[0]
    assert answer.data is not None
    assert np.abs(read_pixels(answer.data[0].b64_json) - np.asarray(expected).astype(int)).max() <= 2


def test_an_edit_is_made_again_from_its_file_and_its_start(live: Live, tmp_path: Path) -> None:
    start, other = (to_file(make_picture(seed, size=90)).getvalue() for seed in (0, 1))
    answer = live.client().images.edit(
        image=("a.png", start), prompt="a red boat", extra_body={"seed": 5, "num_inference_steps": 4, "strength": 0.5}
    )
    assert answer.data is not None
    data = base64.b64decode(answer.data[0].b64_json or "")
    assert reproduce_picture(data, "edit.png", "cpu", start).is_identical
    assert "Denoising strength: 0.5" in Image.open(io.BytesIO(data)).info["parameters"]
    for wrong, why in ((None, "give it: --start FILE"), (other, "the one that edit.png was made from")):
        with pytest.raises(UsageError, match=why):
            reproduce_picture(data, "edit.png", "cpu", wrong)
    for name, content in (("edit.png", data), ("start.png", start)):
        (tmp_path / name).write_bytes(content)
    arguments = [str(tmp_path / "edit.png"), "--start", str(tmp_path / "start.png"), "--device", "cpu"]
    assert "identical, byte for byte" in CliRunner().invoke(command, arguments, catch_exceptions=False).stdout


def test_a_picture_from_its_prompt_has_no_start(live: Live) -> None:
    answer = live.client().images.generate(prompt="a red boat", extra_body={"num_inference_steps": 1})
    assert answer.data is not None
    data = base64.b64decode(answer.data[0].b64_json or "")
    assert read_provenance(data, "a.png").start is None
    with pytest.raises(UsageError, match="from its prompt alone"):
        reproduce_picture(data, "a.png", "cpu", data)


def test_each_picture_has_an_id_of_its_own_and_edits_do_not_mix(live: Live) -> None:
    client, extra = live.client(), {"seed": 5, "num_inference_steps": 4}
    answers = [
        client.images.edit(
            image=to_file(make_picture(seed)), prompt="a boat", extra_body={**extra, "strength": strength}
        )
        for seed, strength in ((0, 0.5), (1, 0.5), (0, 0.75))
    ]
    plain = client.images.generate(prompt="a boat", extra_body=extra)
    ids = {entry.id for answer in [*answers, plain] for entry in answer.data or ()}  # type: ignore[attr-defined]
    assert len(ids) == 4


def test_a_stream_of_an_edit_ends_with_its_picture(live: Live) -> None:
    events = list(live.client().images.edit(image=to_file(make_picture(), "jpeg"), prompt="a boat", stream=True))
    assert events[-1].type == "image_edit.completed"


def test_what_is_no_picture_is_refused(live: Live) -> None:
    client = live.client()
    with pytest.raises(openai.BadRequestError) as bad:
        client.images.edit(image=("x.png", b"no picture"), prompt="a boat")
    assert bad.value.code == "bad_image"
    with pytest.raises(openai.BadRequestError, match="strength"):
        client.images.edit(image=to_file(make_picture()), prompt="a boat", extra_body={"strength": 0})
    with pytest.raises(openai.BadRequestError, match="mask"):
        client.images.edit(image=to_file(make_picture()), mask=to_file(make_picture()), prompt="a boat")
    with pytest.raises(openai.BadRequestError, match="too many pixels"):
        client.images.edit(image=to_file(Image.new("1", (8192, 8192))), prompt="a boat")


def test_a_family_that_cannot_says_so(own_settings: ApiSettings, tmp_path: Path) -> None:
    from tests.tiny_dit import make_pixart

    model = make_pixart(tmp_path)
    with (
        run_server(replace(own_settings, models=(f"dit={model}",))) as live,
        pytest.raises(openai.BadRequestError) as bad,
    ):
        live.client().images.edit(image=to_file(make_picture()), prompt="a boat")
    assert bad.value.code == "edits_not_supported"
