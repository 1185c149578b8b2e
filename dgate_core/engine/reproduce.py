"""Makes a picture again from the file alone, and says how far it is from it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dgate_core.engine.describe import list_versions
from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.engine.lane import choose_device, load_model
from dgate_core.engine.provenance import EDIT_RUN, Provenance, encode_picture, read_provenance
from dgate_core.engine.start_picture import describe_start, open_start
from dgate_core.errors import RowError, UsageError
from dgate_core.manifest.item import BatchKey
from dgate_core.runs.spec import ImageFormat, RunSpec

if TYPE_CHECKING:
    from dgate_core.models.families.contract import LoadedModel, StartPicture


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of making a picture again."""

    provenance: Provenance
    """As the file says."""
    data: bytes
    """The new file."""
    is_identical: bool
    """Whether the two files are the same bytes."""
    max_difference: int
    """Largest difference of any channel, 0 to 255."""
    mean_difference: float
    """Mean absolute difference, 0 to 255."""
    other_versions: tuple[str, ...]
    """Libraries that are not those of then."""


def reproduce_picture(data: bytes, name: str, device: str = "auto", start: bytes | None = None) -> Reproduction:
    """Makes the picture of a file again, with the model, precision and parameters that the file names.

    Args:
        data: The file's bytes.
        name: For messages.
        device: `cpu`, `cuda`, `mps` or `auto`.
        start: The file of the picture that it was made from, for one that was.

    Raises:
        ProvenanceError: the file does not carry D-Gate's provenance.
        ModelError: the model is not to be had.
        RunMismatchError: the model's files are other ones now.
        RowError: the picture cannot be made.
        UsageError: it was made from a picture, and that was not given, or another one.
    """
    provenance = read_provenance(data, name)
    begun = find_start(provenance, name, start)
    spec = provenance_to_spec(provenance)
    planned = {provenance.model: {"weights_hash": provenance.model_hash}}
    model = load_model(provenance.model, choose_device(device), spec, planned)
    pixels = make_pixels(model, provenance, spec, begun)
    again = encode_picture(pixels, spec.image, provenance)
    before, after = open_pixels(data).astype(int), open_pixels(again).astype(int)
    distance = np.abs(before - after) if before.shape == after.shape else np.array([255])
    then = dict(provenance.versions)
    return Reproduction(
        provenance,
        again,
        again == data,
        int(distance.max()),
        float(distance.mean()),
        tuple(
            f"{key} {then[key]} then, {now} now" for key, now in list_versions().items() if then.get(key, now) != now
        ),
    )


def provenance_to_spec(provenance: Provenance) -> RunSpec:
    """The part of a run's spec that decides over pixels."""
    return RunSpec(
        determinism=provenance.determinism,  # type: ignore[arg-type]
        strict_batch_size=provenance.strict_batch_size,
        precision=provenance.precision,  # type: ignore[arg-type]
        image=ImageFormat(**provenance.image),
        profile=provenance.profile,
    )


def find_start(provenance: Provenance, name: str, data: bytes | None) -> StartPicture | None:
    """The picture that another one was made from, if it was; raises UsageError where that is not what was given."""
    if provenance.start is None:
        if provenance.run == EDIT_RUN:
            raise UsageError(f"{name} was made from a picture of which it holds nothing", "one made by a newer D-Gate")
        if data is not None:
            raise UsageError(f"{name} was made from its prompt alone", "no start", "leave --start out")
        return None
    told = provenance.start["sha256"]
    if data is None:
        expected = f"that picture; cut to {provenance.width}x{provenance.height} its pixels have the sha256 {told}"
        raise UsageError(f"{name} was made from a picture, which it does not hold", expected, "give it: --start FILE")
    begun = open_start(data, (provenance.width, provenance.height), provenance.start["strength"])
    if (found := describe_start(begun)["sha256"]) != told:
        raise UsageError(
            f"a start whose pixels have the sha256 {found}",
            f"the one that {name} was made from, {told}",
            "give the file as it was sent; another Pillow may cut it to size with other rounding",
        )
    return begun


def make_pixels(
    model: LoadedModel, provenance: Provenance, spec: RunSpec, start: StartPicture | None = None
) -> np.ndarray:
    """uint8 (height, width, 3)."""
    names = ("model", "width", "height", "num_inference_steps", "scheduler", "guidance_scale", "lora")
    key = BatchKey(**{name: getattr(provenance, name) for name in names})
    row = {"prompt": provenance.prompt, "negative_prompt": provenance.negative_prompt, "seed": provenance.seed}
    row = row if start is None else {**row, "start": start}
    batch = next(Generator(model, spec, GenerateOptions(batch_size=1)).generate([row], key))
    if batch.pictures is None:
        assert batch.error is not None
        raise batch.error
    batch.pictures.wait()
    if not bool(batch.pictures.finite[0]):
        raise RowError("nan_picture", "the decoder gave NaN or infinity", "finite pixels")
    return batch.pictures.pixels[0].numpy()


def open_pixels(data: bytes) -> np.ndarray:
    """uint8 (height, width, 3)."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))
