"""Provenance: one schema that goes into every file and tells how to make the picture again."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from dgate_core.errors import DgateError

if TYPE_CHECKING:
    import numpy as np

    from dgate_core.runs.spec import ImageFormat

SCHEMA_VERSION = 1
EDIT_RUN = "on-demand edit"
"""The run of a picture that was made on demand from another one."""
SUFFIXES: Mapping[str, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
# EXIF text in UTF-16 behind the standard's UNICODE marker is what Automatic1111's readers expect.
_USER_COMMENT_MARKER = b"UNICODE\0"


class ProvenanceError(DgateError):
    """A file that does not carry D-Gate's provenance."""

    code = "provenance"


@dataclass(frozen=True, slots=True)
class Provenance:
    """All that determines a picture, and where it came from."""

    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    lora: str
    style_preset: str | None
    model: str
    model_hash: str
    model_revision: str | None
    precision: str
    determinism: str
    strict_batch_size: int
    image: Mapping[str, Any]
    run: str
    row_id: str
    versions: Mapping[str, str]
    schema_version: int = SCHEMA_VERSION
    profile: str = "exact"
    start: Mapping[str, Any] | None = None
    """Of a picture that was made from another one: the strength, and the sha256 of that one's pixels at this size."""

    def to_json(self) -> str:
        """Canonical JSON: sorted keys; the profile only where something was given for speed, a start where one was."""
        usual = (("profile", "exact"), ("start", None))
        fields = {name: value for name, value in asdict(self).items() if (name, value) not in usual}
        return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def to_parameters(self) -> str:
        """The `parameters` text that Automatic1111's web UI writes and many tools read."""
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        lines.append(
            f"Steps: {self.num_inference_steps}, Sampler: {self.scheduler}, CFG scale: {self.guidance_scale:g}, "
            f"Seed: {self.seed}, Size: {self.width}x{self.height}, Model hash: {self.model_hash[:10]}, "
            f"Model: {self.model}, "
            + (f"Denoising strength: {self.start['strength']:g}, " if self.start else "")
            + "Version: d-gate"
        )
        return "\n".join(lines)


def encode_picture(pixels: np.ndarray, image: ImageFormat, provenance: Provenance) -> bytes:
    """A picture file with its provenance inside; the same pixels and provenance give the same bytes.

    Args:
        pixels: uint8 (height, width, 3).
        image: Format, level or quality.
        provenance: Written as PNG text chunks, or as EXIF for JPEG and WebP.
    """
    picture, sink = Image.fromarray(pixels), io.BytesIO()
    if image.format == "png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("parameters", provenance.to_parameters())
        info.add_itxt("dgate", provenance.to_json())
        picture.save(sink, "png", compress_level=image.level, pnginfo=info)
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = json.dumps(json.loads(provenance.to_json()))  # EXIF text is ASCII
        comment = _USER_COMMENT_MARKER + provenance.to_parameters().encode("utf-16-be")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
        picture.save(sink, image.format, quality=image.quality, exif=exif)
    return sink.getvalue()


def read_provenance(data: bytes, name: str) -> Provenance:
    """The provenance inside a picture file.

    Args:
        data: The file's bytes.
        name: For messages.

    Raises:
        ProvenanceError: not a picture, none inside, or of a newer schema.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            text = picture.info.get("dgate") or picture.getexif().get(ExifTags.Base.ImageDescription)
    except (OSError, SyntaxError) as error:
        # Pillow would name the address of a buffer where it finds nothing that it knows.
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise ProvenanceError(f"{name} is not a picture{why}", "a PNG, JPEG or WebP made by D-Gate") from error
    try:
        fields = json.loads(text or "")
        if fields["schema_version"] > SCHEMA_VERSION:
            raise ProvenanceError(
                f"{name} carries provenance of schema {fields['schema_version']}",
                f"schema {SCHEMA_VERSION} or older",
                "use a newer D-Gate",
            )
        return Provenance(**fields)
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ProvenanceError(
            f"{name} carries no provenance of D-Gate",
            "a picture as D-Gate wrote it",
            "see that no tool stripped its metadata",
        ) from error
