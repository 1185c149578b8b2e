"""The ways in which a row may name LoRA adapters, and the one canonical way in which they are kept."""

from __future__ import annotations

import json
import math
from typing import Any

NO_LORA = "[]"
LORA_FORMS = 'a name, "name:0.8", or a list of names, of [name, scale] or of {"name": …, "scale": …}'


def parse_lora(value: Any) -> str:
    """Canonical JSON `[["name", scale], …]`, sorted by name, of any of the LORA_FORMS or a text with commas or JSON.

    Raises:
        ValueError: the value is none of them, a scale is not finite, or a name is given twice.
    """
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else list(value.split(","))
    elif isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(LORA_FORMS)
    pairs = sorted(_parse_entry(entry) for entry in value if not (isinstance(entry, str) and not entry.strip()))
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("each adapter once")
    return json.dumps(pairs, separators=(",", ":"))


def list_adapters(lora: str) -> list[str]:
    """Names in a canonical `lora`."""
    return [name for name, _ in json.loads(lora)]


def _parse_entry(entry: Any) -> tuple[str, float]:
    match entry:
        case str():
            return _split_scale(entry.strip())
        case [str(name), int() | float() as scale]:
            return _check_entry(name, scale)
        case {"name": str(name), **rest} if set(rest) <= {"scale"}:
            return _check_entry(name, 1.0 if rest.get("scale") is None else rest["scale"])
    raise ValueError(LORA_FORMS)


def _split_scale(text: str) -> tuple[str, float]:
    """`ink:0.8` is ink at 0.8; a name may hold colons of its own, as an address does."""
    name, _, tail = text.rpartition(":")
    try:
        return _check_entry(name, float(tail)) if name else (text, 1.0)
    except ValueError:
        if tail.strip().lower() in ("nan", "inf", "-inf"):
            raise
        return text, 1.0


def _check_entry(name: str, scale: Any) -> tuple[str, float]:
    if not name.strip() or isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"a finite scale and a name: {LORA_FORMS}")
    return name.strip(), float(scale) + 0.0
