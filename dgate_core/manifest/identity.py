"""What makes one image the same image: a hash of everything that determines its pixels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

ROW_ID_VERSION = 1
ROW_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class RowSettings:
    """What determines a row's pixels besides its prompt and its seed, all of it resolved."""

    weights_hash: str
    """sha256 over the checkpoint's files."""
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    lora: str
    """Canonical JSON [["name", scale], ...]."""
    style_preset: str | None = None


def hash_settings(settings: RowSettings) -> hashlib.blake2b:
    """A blake2b-128 state over the settings; a copy of it serves every row that shares them."""
    fields = {"version": ROW_ID_VERSION, **{name: getattr(settings, name) for name in settings.__slots__}}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(text.encode() + b"\n", digest_size=ROW_ID_BYTES)


def hash_row(settings_hash: hashlib.blake2b, seed: int, prompt: bytes) -> bytes:
    """The 16 bytes of a row_id: settings, seed, prompt, a line each (JSON and numbers hold no newline)."""
    state = settings_hash.copy()
    state.update(b"%d\n%b" % (seed, prompt))
    return state.digest()


def make_row_id(settings: RowSettings, seed: int, prompt: str) -> str:
    """32 hex digits that are the same for the same pixels, in any run, shard or manifest format."""
    return hash_row(hash_settings(settings), seed, prompt.encode()).hex()


def derive_seed(base_seed: int, row_id: str) -> int:
    """Seed, 0 to 2^32 - 1, of a row that names none: from the run's seed and the row's id (or its position)."""
    digest = hashlib.blake2b(f"{base_seed}\n{row_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def name_position(position: int) -> str:
    """Id of a row that gives none: its number in the manifest, from 0, of at least eight digits."""
    return f"{position:08d}"
