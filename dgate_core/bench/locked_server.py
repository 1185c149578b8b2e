"""What people write first: diffusers' own pipeline in a FastAPI handler, one request at a time.

`python -m dgate_core.bench.locked_server MODEL PRECISION STEPS` prints its address and serves until it is killed.
"""

from __future__ import annotations

import base64
import io
import socket
import sys
import threading
from typing import Any

from dgate_core.bench.machine import pick_device
from dgate_core.models.catalog import find_checkpoint


class PlainPipeline:
    """diffusers as its documentation uses it, one picture a call.

    Args:
        model: Catalogue name or folder.
        precision: Name of a torch dtype.
        steps: Of every picture.
    """

    def __init__(self, model: str, precision: str, steps: int) -> None:
        import diffusers
        import torch

        checkpoint = find_checkpoint(model)
        pipeline_class = getattr(diffusers, checkpoint.pipeline_class)
        self.pipeline = pipeline_class.from_pretrained(checkpoint.folder, torch_dtype=getattr(torch, precision))
        self.pipeline.to(pick_device("auto"))
        self.pipeline.set_progress_bar_config(disable=True)
        self._arguments = {"num_inference_steps": steps, "guidance_scale": checkpoint.spec.guidance_scale}

    def make(self, prompt: str, seed: int) -> bytes:
        """A PNG file."""
        import torch

        generator = torch.Generator("cpu").manual_seed(seed)
        (picture,) = self.pipeline(prompt, generator=generator, **self._arguments).images
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        return file.getvalue()


def make_locked_application(pipeline: PlainPipeline) -> Any:
    """A FastAPI application with one route; it runs handlers in threads, the lock lets one through."""
    from fastapi import Body, FastAPI

    application, lock = FastAPI(), threading.Lock()

    def generate(request: Any = Body()) -> dict[str, Any]:  # noqa: B008 - FastAPI reads it so
        with lock:
            data = pipeline.make(request["prompt"], request["seed"])
        return {"data": [{"b64_json": base64.b64encode(data).decode()}]}

    # With the annotations as text FastAPI cannot see names of this function; it needs them as objects.
    generate.__annotations__ = {"request": dict[str, Any]}
    application.post("/v1/images/generations", response_model=None)(generate)
    return application


def main(model: str, precision: str, steps: str) -> None:
    """Serves on a free port of this machine."""
    import uvicorn

    pipeline = PlainPipeline(model, precision, int(steps))
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(make_locked_application(pipeline), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:4])
