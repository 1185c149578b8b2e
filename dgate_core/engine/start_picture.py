"""The picture that image to image begins with: any file, cut to the size of what is made from it."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from dgate_core.errors import UsageError

if TYPE_CHECKING:
    from dgate_core.models.families.contract import StartPicture

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 32 << 20


def open_start(data: bytes, size: tuple[int, int], strength: float) -> StartPicture:
    """A StartPicture of that size, (width, height); the picture's middle where its shape is another.

    Raises:
        UsageError: no whole picture of a known format, or too many pixels, which are not decoded then.
    """
    import torch

    from dgate_core.models.families.contract import StartPicture

    expected = f"a picture, {', '.join(FORMATS)}, of at most {MOST_PIXELS:,} pixels"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise UsageError(f"{picture.width}x{picture.height} has too many pixels", expected)
            fitted = ImageOps.fit(ImageOps.exif_transpose(picture).convert("RGB"), size, Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError("not a whole picture", expected) from error
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return StartPicture(pixels.reshape(size[1], size[0], 3), strength)


def describe_start(start: StartPicture) -> dict[str, Any]:
    """What a file says of the picture that it was made from."""
    return {"sha256": hashlib.sha256(start.pixels.numpy().tobytes()).hexdigest(), "strength": start.strength}
