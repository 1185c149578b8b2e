"""Names that move: `production` is the model that last passed the gate. One file, written whole, with its history.

The file stands at DGATE_MODEL_REGISTRY (a path or s3://), else in the user's data folder.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dgate_core.errors import ModelError
from dgate_core.registry import explain_unknown
from dgate_core.runs.claims import Claim, identify_holder, take_claim
from dgate_core.storage import Storage, open_object

REGISTRY_VARIABLE: Final = "DGATE_MODEL_REGISTRY"
REGISTRY_VERSION: Final = 1
PRODUCTION: Final = "production"
_ALIAS: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_WAIT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Promotion:
    """A model that an alias stood for, or stands for."""

    model: str
    """As `--model` takes it; folders and files by their absolute path."""
    weights_sha256: str
    """Of its weights when it was promoted."""
    promoted_at: float
    """POSIX seconds."""
    reason: str = ""
    """Why: the verdict's run, or what a person said."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A name and what it has stood for."""

    name: str
    """Such as `production`."""
    history: tuple[Promotion, ...]
    """The last one is current, the one before it is what `roll_back` brings back."""
    withdrawn: tuple[Promotion, ...] = ()
    """What was rolled back, the latest last."""

    @property
    def current(self) -> Promotion:
        """What the name stands for now."""
        return self.history[-1]


def locate_registry() -> str:
    """Address of the registry file."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return os.environ.get(REGISTRY_VARIABLE) or str(Path(base) / "dgate" / "models.json")


def read_aliases() -> dict[str, Alias]:
    """Every alias by its name; none where there is no registry yet.

    Raises:
        ModelError: the file is damaged or of another version.
    """
    storage, key = open_object(locate_registry())
    if not storage.exists(key):
        return {}
    try:
        found = json.loads(storage.read_bytes(key))
        if found["version"] != REGISTRY_VERSION:
            raise ValueError(f"version {found['version']}")
        return {name: _read_alias(name, entries) for name, entries in found["aliases"].items()}
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the model registry {storage.uri_of(key)} is damaged: {error}",
            f"what `dgate models promote` writes, version {REGISTRY_VERSION}",
            "bring it back from a backup, or move it away and promote again",
        ) from error


def resolve_alias(name: str) -> str:
    """The model that an alias stands for; any other name as it is."""
    if not _ALIAS.fullmatch(name):
        return name
    alias = read_aliases().get(name)
    return alias.current.model if alias else name


def check_promoted(name: str, weights_sha256: str) -> None:
    """Makes sure that what an alias stands for has not changed since it was promoted; other names pass.

    Raises:
        ModelError: the weights are not those that were promoted.
    """
    alias = read_aliases().get(name) if _ALIAS.fullmatch(name) else None
    if alias is not None and alias.current.weights_sha256 != weights_sha256:
        raise ModelError(
            f"{name} stands for {alias.current.model}, whose weights have changed since it was promoted",
            f"weights {alias.current.weights_sha256[:12]}, found {weights_sha256[:12]}",
            "bring the weights back, or pass the gate with the new ones"
            + (f"; `dgate models rollback {name}` goes back" if len(alias.history) > 1 else ""),
        )


def promote_model(name: str, promotion: Promotion) -> Alias:
    """Lets an alias stand for a model; the model that it stood for is kept for `roll_back`.

    Raises:
        ModelError: the alias has an impossible name.
    """
    if not _ALIAS.fullmatch(name):
        raise ModelError(f"the alias {name!r}", "small letters, digits, - and _, up to 63", "such as: production")
    with hold_registry():
        aliases = read_aliases()
        former = aliases[name].history if name in aliases else ()
        if former and former[-1].model == promotion.model and former[-1].weights_sha256 == promotion.weights_sha256:
            return aliases[name]
        withdrawn = aliases[name].withdrawn if name in aliases else ()
        alias = Alias(name, (*former, promotion), withdrawn)
        _write_aliases({**aliases, name: alias})
        return alias


def roll_back(name: str) -> Alias:
    """Lets an alias stand for what it stood for before.

    Raises:
        ModelError: no such alias, or it has never stood for anything else.
    """
    with hold_registry():
        aliases = read_aliases()
        if name not in aliases:
            raise explain_unknown("alias", name, aliases, ModelError)
        history, withdrawn = aliases[name].history, aliases[name].withdrawn
        if len(history) < 2:
            raise ModelError(
                f"{name} has only ever stood for {history[-1].model}", "an earlier promotion", "promote another model"
            )
        alias = Alias(name, history[:-1], (*withdrawn, history[-1]))
        _write_aliases({**aliases, name: alias})
        return alias


def _read_alias(name: str, entry: dict[str, Any]) -> Alias:
    history, withdrawn = (tuple(Promotion(**each) for each in entry[part]) for part in ("history", "withdrawn"))
    if not history:
        raise ValueError(f"{name} stands for nothing")
    return Alias(name, history, withdrawn)


def _write_aliases(aliases: Mapping[str, Alias]) -> None:
    storage, key = open_object(locate_registry())
    record = {name: _alias_to_record(alias) for name, alias in sorted(aliases.items())}
    storage.write_bytes(key, (json.dumps({"version": REGISTRY_VERSION, "aliases": record}, indent=2) + "\n").encode())


def _alias_to_record(alias: Alias) -> dict[str, Any]:
    return {part: [asdict(each) for each in getattr(alias, part)] for part in ("history", "withdrawn")}


@contextmanager
def hold_registry() -> Iterator[None]:
    """One writer at a time, so that no promotion is lost."""
    storage, key = open_object(locate_registry())
    with _wait_for_claim(storage, f"{key}.claim"):
        yield


def _wait_for_claim(storage: Storage, prefix: str) -> Claim:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        claim = take_claim(storage, prefix, identify_holder("promotion"), _WAIT_SECONDS)
        if claim is not None:
            return claim
        if time.monotonic() > deadline:
            raise ModelError(f"{storage.uri_of(prefix)} is held by another process", "", "wait for it and try again")
        time.sleep(0.05)
