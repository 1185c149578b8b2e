"""The bodies of /v1/images/generations and /v1/images/edits: OpenAI's parameters, and extensions under known names."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dgate_core.runs.spec import ImageFormat

ROW_PARAMETERS = frozenset(
    {"prompt", "model", "n", "size", "negative_prompt", "num_inference_steps", "guidance_scale", "seed"}
    | {"scheduler", "lora", "style_preset"}
)
"""Parameters that go into a row; the others say how the answer looks."""
MOST_IMAGES = 10
PNG_LEVEL = 1


class LoraWeight(BaseModel):
    """A LoRA by its name, with its scale."""

    name: str
    scale: float = 1.0


class ImageRequest(BaseModel):
    """A request for pictures."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, Field(max_length=20_000, description="What the picture shows.")]
    model: Annotated[str | None, Field(None, max_length=500, description="One of /v1/models; none is the default.")]
    n: Annotated[int | None, Field(None, ge=1, le=MOST_IMAGES, description="Pictures; the k-th has seed + k.")]
    size: Annotated[str | None, Field(None, max_length=32, description='"WIDTHxHEIGHT" in pixels, or "auto".')]
    quality: Annotated[
        Literal["auto", "standard", "hd", "low", "medium", "high"] | None,
        Field(None, description="Taken for compatibility and not read, which a warning says: steps decide."),
    ]
    response_format: Annotated[
        Literal["b64_json", "url"] | None,
        Field(None, description="Bytes in the answer (by default), or an address that lasts an hour."),
    ]
    output_format: Annotated[
        Literal["png", "jpeg", "webp"] | None, Field(None, description="File format; png by default.")
    ]
    output_compression: Annotated[
        int | None, Field(None, ge=1, le=100, description="Quality of jpeg and webp, 95 by default.")
    ]
    user: Annotated[str | None, Field(None, max_length=256, description="Your user; users take turns.")]
    safety_identifier: Annotated[str | None, Field(None, max_length=256, description="As user.")]
    moderation: Annotated[
        Literal["auto", "low"] | None, Field(None, description="Taken for compatibility; the server's policy holds.")
    ]
    background: Annotated[
        Literal["auto", "opaque"] | None, Field(None, description="Pictures are opaque, transparent is refused.")
    ]
    stream: Annotated[bool | None, Field(None, description="Server-sent events: progress, previews, pictures.")]
    partial_images: Annotated[int | None, Field(None, ge=0, le=3, description="Previews of a stream.")]

    negative_prompt: Annotated[str | None, Field(None, max_length=20_000, description="What guidance leads away from.")]
    num_inference_steps: Annotated[int | None, Field(None, ge=1, le=1000, description="Denoising steps.")]
    guidance_scale: Annotated[float | None, Field(None, ge=0, le=100, description="Classifier-free guidance.")]
    seed: Annotated[
        int | None, Field(None, ge=0, le=2**63 - 1, description="The same seed, the same picture; none is random.")
    ]
    scheduler: Annotated[str | None, Field(None, max_length=64, description="A name from the model's schedulers.")]
    lora: Annotated[
        str | list[LoraWeight] | None, Field(None, description='"name:scale", several with commas, or a list.')
    ]
    style_preset: Annotated[str | None, Field(None, max_length=64, description="A name from the model's styles.")]

    @model_validator(mode="before")
    @classmethod
    def _name_unknown(cls, values: Any) -> Any:
        """An unknown parameter is an error that names the nearest known one."""
        unknown = sorted(set(values) - set(cls.model_fields)) if isinstance(values, dict) else []
        if unknown:
            near = difflib.get_close_matches(unknown[0], cls.model_fields, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(cls.model_fields))}"
            raise ValueError(f"unknown parameter {unknown[0][:64]!r}{hint}")
        return values

    @property
    def client_name(self) -> str:
        """The end user, as far as the request names one."""
        return self.safety_identifier or self.user or ""

    def to_body(self) -> dict[str, Any]:
        """What makes the row, as a Batch line's body has it."""
        return self.model_dump(exclude_none=True, include=set(ROW_PARAMETERS))

    def to_image_format(self) -> ImageFormat:
        """Of the files."""
        return ImageFormat(self.output_format or "png", PNG_LEVEL, self.output_compression or 95)

    def list_warnings(self) -> list[str]:
        """What was taken and does nothing."""
        if self.quality in {None, "auto"}:
            return []
        return ["quality_unread: it has no effect here; num_inference_steps and guidance_scale do"]


class EditRequest(ImageRequest):
    """A request for pictures made from a picture; sent as a form with the file `image`."""

    model_config = ConfigDict(extra="forbid", strict=False)

    strength: Annotated[float, Field(0.8, gt=0, le=1, description="How far from the picture: 1 keeps nothing of it.")]


class ImageEntry(BaseModel):
    """One picture of an answer."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str
    seed: int
    id: str = Field(description="Row id: the same for the same pixels, here and in bulk runs.")
    warnings: list[str] | None = None
    safety: dict[str, Any] | None = None


class ImageUsage(BaseModel):
    """What an answer cost; nothing is counted in tokens here, so these are 0."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}
    images: int
    steps: int
    queue_ms: float
    device_ms: float


class ImageAnswer(BaseModel):
    """The answer of /v1/images/generations and /v1/images/edits."""

    created: int
    model: str
    data: list[ImageEntry]
    size: str
    output_format: str
    background: Literal["opaque"] = "opaque"
    usage: ImageUsage
