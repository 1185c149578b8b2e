"""One picture from the form in Prefect's UI."""

from __future__ import annotations

from typing import Literal

from prefect import flow

from tasks.serve import make_files


@flow(name="generate_one", retries=0, persist_result=False)
def generate_one(  # noqa: PLR0913, PLR0917 - flat, for the form in Prefect's UI
    prompt: str = "a red circle on a beach",
    out: str = "runs/pictures",
    model: str = "starter-unet",
    negative_prompt: str | None = None,
    n: int = 1,
    size: str = "auto",
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    seed: int | None = None,
    output_format: Literal["png", "jpeg", "webp"] = "png",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> list[str]:
    """Makes up to ten pictures of one prompt; the same seed gives the same picture as the API and bulk runs do.

    Args:
        prompt: What the picture shows.
        out: Folder for the files, a path or s3://.
        model: A catalogue name, an alias, a diffusers folder, or a .safetensors file.
        negative_prompt: What guidance leads away from.
        n: Pictures, 1 to 10; the k-th has seed + k.
        size: WIDTHxHEIGHT in pixels, or auto.
        num_inference_steps: None is the model's default.
        guidance_scale: None is the model's default.
        scheduler: None is the model's own.
        seed: None is a random one.
        output_format: File format.
        device: `auto` takes cuda, mps or cpu, in this order.
    """
    body = {name: value for name, value in locals().items() if name not in {"out", "model", "device"}}
    return make_files({"models": [model], "device": device}, body, out)
