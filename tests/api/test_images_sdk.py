"""Pictures through OpenAI's own SDK, against a real server."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from dgate_core.api.settings import ApiSettings
from dgate_core.engine.provenance import read_provenance
from tests.api.conftest import Live, run_server


def open_picture(text: str | None) -> np.ndarray:
    assert text is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_a_picture_comes_back_with_its_seed_and_is_the_same_again(live: Live) -> None:
    client = live.client()
    first = client.images.generate(prompt="a red boat", n=2, extra_body={"num_inference_steps": 2})
    assert first.data is not None
    assert first.size == "32x32"
    assert first.output_format == "png"
    seeds = [entry.seed for entry in first.data]  # type: ignore[attr-defined]
    assert seeds[1] == seeds[0] + 1
    again = client.images.generate(prompt="a red boat", extra_body={"num_inference_steps": 2, "seed": seeds[1]})
    assert again.data is not None
    pixels, others = (open_picture(entry.b64_json).astype(int) for entry in (first.data[1], again.data[0]))
    assert np.abs(pixels - others).max() <= 1, "another batch size rounds otherwise"
    assert first.data[1].id == again.data[0].id  # type: ignore[attr-defined]
    provenance = read_provenance(base64.b64decode(again.data[0].b64_json or ""), "answer")
    assert (provenance.prompt, provenance.seed, provenance.run) == ("a red boat", seeds[1], "on-demand")


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_url_is_served(live: Live, output_format: str) -> None:
    answer = live.client().images.generate(
        prompt="a boat",
        response_format="url",
        output_format=output_format,  # type: ignore[arg-type]
        extra_body={"num_inference_steps": 1},
    )
    assert answer.data is not None
    url = answer.data[0].url
    assert url is not None
    assert url.startswith(f"{live.url}/pictures/")
    got = httpx.get(url)
    assert got.headers["content-type"] == f"image/{output_format}"
    assert Image.open(io.BytesIO(got.content)).format == output_format.upper()
    assert httpx.get(url.replace("/pictures/", "/pictures/x")).status_code == 404


def test_models_are_listed(live: Live) -> None:
    client = live.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tony")


def test_errors_are_those_of_the_sdk(live: Live) -> None:
    client = live.client()
    with pytest.raises(openai.BadRequestError) as bad:
        client.images.generate(prompt="a boat", size="33x32")
    assert (bad.value.code, bad.value.param, bad.value.type) == ("bad_size", "size", "invalid_request_error")
    assert bad.value.request_id is not None
    assert bad.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError, match="did you mean 'guidance_scale'"):
        client.images.generate(prompt="a boat", extra_body={"guidence_scale": 3})
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt="a boat", model="/etc/passwd")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as many:
        client.images.generate(prompt="a boat", n=11)
    assert many.value.param == "n"


def test_strict_gives_the_same_bytes_in_any_batch(own_settings: ApiSettings) -> None:
    with run_server(replace(own_settings, determinism="strict", strict_batch_size=4)) as live:
        client, body = live.client(), {"num_inference_steps": 2}
        together = client.images.generate(prompt="a boat", n=4, extra_body={**body, "seed": 5})
        alone = client.images.generate(prompt="a boat", extra_body={**body, "seed": 7})
    assert together.data is not None
    assert alone.data is not None
    assert together.data[2].b64_json == alone.data[0].b64_json
