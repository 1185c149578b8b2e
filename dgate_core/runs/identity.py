"""A run knows what it is: a versioned fingerprint of everything that determines its pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dgate_core.errors import RunMismatchError

FINGERPRINT_VERSION = 1


def describe_identity(spec: Mapping[str, Any], manifest_sha256: str, models: Mapping[str, str]) -> dict[str, Any]:
    """What enters the fingerprint: the spec, the manifest's content, each model's weights hash; no options or paths."""
    return {
        "version": FINGERPRINT_VERSION,
        "spec": dict(spec),
        "manifest_sha256": manifest_sha256,
        "models": dict(sorted(models.items())),
    }


def fingerprint_identity(identity: Mapping[str, Any]) -> str:
    """`v1-` and 32 hex digits of blake2b over canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"v{identity['version']}-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def check_same_identity(stored: Mapping[str, Any], wanted: Mapping[str, Any], folder: str) -> None:
    """Lets only the same run continue in a folder.

    Raises:
        RunMismatchError: names every field that differs, with both values.
    """
    differences = list_differences(stored, wanted)
    if differences:
        raise RunMismatchError(
            f"{folder} holds a run of another kind:\n    " + "\n    ".join(differences),
            "the same manifest and the same settings as when the run was made",
            "give another --out, or repeat the command that made this run",
        )


def list_differences(stored: Any, wanted: Any, path: str = "") -> list[str]:
    """`spec.image.level: there 6, now 1` for every leaf that differs."""
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        names = sorted({*stored, *wanted})
        return [
            line
            for name in names
            for line in list_differences(stored.get(name), wanted.get(name), f"{path}.{name}" if path else name)
        ]
    return [] if stored == wanted else [f"{path}: there {stored!r}, now {wanted!r}"]
