"""API keys: how one looks, what is kept of it, and whether one that is shown is one of ours."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from dgate_core.api.contract import Scope

KeyScope = Literal["generate", "batch", "metrics", "admin"]
KeyState = Literal["active", "expired", "revoked"]
KEY_SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)
SECRET_BYTES = 32
_PATTERN = re.compile(r"dgate_([0-9a-f]{12})_[0-9a-f]{64}")
_NOBODY = hashlib.sha256(secrets.token_bytes(SECRET_BYTES)).hexdigest()
"""Compared with where no key has the id that was shown, so that both cases take the same time."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may use; None is without limit."""

    requests_per_minute: int | None = None
    """Requests of any kind, in any 60 seconds."""
    pictures_per_day: int | None = None
    """Pictures in any 24 hours, on demand and of batches, which pay when they are accepted."""
    concurrent: int | None = None
    """Requests in hand at a time."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key; the key itself is not."""

    id: str
    """12 hexadecimal digits, in clear in the key: for logs and for finding it."""
    name: str
    """For people."""
    sha256: str
    """Of the whole key's text."""
    scopes: tuple[KeyScope, ...]
    """What it may do; admin may do everything."""
    created_at: float
    """POSIX seconds."""
    expires_at: float | None = None
    """POSIX seconds; None is never."""
    revoked_at: float | None = None
    """POSIX seconds; None is not revoked."""
    limits: KeyLimits = field(default_factory=KeyLimits)

    def find_state(self, now: float) -> KeyState:
        """Whether it opens anything, at this POSIX time."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"

    def may(self, scope: Scope) -> bool:
        """Whether it may do what a route needs."""
        return scope == "read" or "admin" in self.scopes or scope in self.scopes

    def to_dict(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self)


def make_key(name: str, scopes: tuple[KeyScope, ...], now: float) -> tuple[str, ApiKey]:
    """A new key, to be shown once, and what is kept of it."""
    key_id = secrets.token_hex(6)
    secret = f"dgate_{key_id}_{secrets.token_hex(SECRET_BYTES)}"
    return secret, ApiKey(key_id, name, hash_key(secret), scopes, now)


def hash_key(secret: str) -> str:
    """sha256, in hexadecimal.

    One fast hash is right here: slow ones with salt protect what people choose, whereas 256 random bits cannot be
    guessed at any speed, and every request pays for the hash.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def find_key(secret: str, keys: Mapping[str, ApiKey]) -> ApiKey | None:
    """The key that was shown, whatever its state, in a time that tells nothing of those that were not."""
    match = _PATTERN.fullmatch(secret)
    found = keys.get(match[1]) if match else None
    is_same = hmac.compare_digest(hash_key(secret), found.sha256 if found else _NOBODY)
    return found if is_same else None


def dict_to_key(data: Mapping[str, Any]) -> ApiKey:
    """The inverse of `ApiKey.to_dict`; raises TypeError or KeyError where it is none."""
    return ApiKey(**{**data, "scopes": tuple(data["scopes"]), "limits": KeyLimits(**data["limits"])})
