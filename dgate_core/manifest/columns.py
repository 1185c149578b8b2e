"""The columns that a manifest may use, and the names that people mean when they write something near them."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from enum import Enum

import pyarrow as pa


class Kind(Enum):
    """What a column holds, and the Arrow type in which it is read."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    LORA = "lora"
    TAGS = "tags"

    @property
    def arrow_type(self) -> pa.DataType:
        """Type of the column once it is read; `lora` is canonical JSON."""
        types = {Kind.INTEGER: pa.int64(), Kind.NUMBER: pa.float64(), Kind.TAGS: pa.list_(pa.string())}
        return types.get(self, pa.string())


KNOWN_COLUMNS = {
    "id": Kind.TEXT,
    "prompt": Kind.TEXT,
    "negative_prompt": Kind.TEXT,
    "seed": Kind.INTEGER,
    "num_images": Kind.INTEGER,
    "width": Kind.INTEGER,
    "height": Kind.INTEGER,
    "num_inference_steps": Kind.INTEGER,
    "guidance_scale": Kind.NUMBER,
    "scheduler": Kind.TEXT,
    "model": Kind.TEXT,
    "lora": Kind.LORA,
    "style_preset": Kind.TEXT,
    "tags": Kind.TAGS,
}
RANGE_CODES = {
    "seed": "seed_out_of_range",
    "num_images": "bad_num_images",
    "width": "bad_size",
    "height": "bad_size",
    "num_inference_steps": "bad_steps",
    "guidance_scale": "bad_guidance",
}
# Names used elsewhere for the same thing: told in a warning and never taken silently, for some mean something else.
_FOREIGN_NAMES = {
    "caption": "prompt",
    "text": "prompt",
    "negative": "negative_prompt",
    "uc": "negative_prompt",
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "n": "num_images",
    "batch_size": "num_images",
    "num_images_per_prompt": "num_images",
    "checkpoint": "model",
    "model_id": "model",
    "adapter": "lora",
    "loras": "lora",
    "style": "style_preset",
    "tag": "tags",
    "size": "width` and `height",
    "custom_id": "id",
}


# Asked of other tools; told, so that nobody takes a picture made without them for one made with them.
_NOT_MADE_HERE = ("controlnet", "ip_adapter", "init_image", "mask", "strength")


def find_lookalike(column: str) -> str | None:
    """The known column that an unknown one probably means, None when it looks like none."""
    name = column.strip().lower().replace("-", "_").replace(" ", "_")
    if name in KNOWN_COLUMNS or name in _FOREIGN_NAMES:
        return _FOREIGN_NAMES.get(name, name)
    return next(iter(difflib.get_close_matches(name, KNOWN_COLUMNS, n=1, cutoff=0.8)), None)


def warn_lookalikes(columns: Collection[str]) -> list[str]:
    """One sentence for each unknown column that looks like a known one, or asks for what is not done."""
    found = ((column, find_lookalike(column)) for column in columns if column not in KNOWN_COLUMNS)
    return [
        f"the column `{column}` is carried along and not used; if it is meant to be `{meant}`, rename it"
        for column, meant in found
        if meant
    ] + [f"the column `{column}` is carried along and not used" for column in columns if column in _NOT_MADE_HERE]
