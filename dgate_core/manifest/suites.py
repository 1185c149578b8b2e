"""Prompt suites that come with D-Gate: manifests with version and hash, opened as `suite:NAME[@VERSION]`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from dgate_core.config import build_settings, read_config
from dgate_core.data_files import find_data_file, list_data_files
from dgate_core.errors import ManifestError
from dgate_core.registry import explain_unknown

SUITE_SCHEME: Final = "suite:"
_FOLDER: Final = "suites"


@dataclass(frozen=True, slots=True)
class Portion:
    """Some rows of a suite of postcards that are drawn alike."""

    count: int
    """How many rows."""
    split: Literal["train", "held_out"] = "train"
    """Pairs of kind and colour that training saw, or at least one that it never saw."""
    phrasing: Literal["train", "held_out"] = "train"
    """Sentences that training saw, or never saw."""
    skill: Literal["any", "counts", "places", "binding"] = "any"
    """What the prompt asks of a model."""


@dataclass(frozen=True, slots=True)
class SuiteCard:
    """What is known of a suite."""

    name: str
    """As in `suite:NAME`."""
    version: int
    """Raised whenever a prompt changes: numbers of two versions are not comparable."""
    title: str
    """One line for people."""
    purpose: Literal["evaluation", "calibration"]
    """What the prompts are for; the two never share a prompt."""
    licence: str
    """Of the prompts."""
    count: int
    """Rows."""
    sha256: str
    """Of the JSONL file's bytes."""
    seed: tuple[int, ...]
    """Decides every scene and its words; training seeds begin with 0 to 9, these do not."""
    portions: tuple[Portion, ...]
    """How the rows are drawn; see `evaluation.postcard_suites`."""
    avoids: tuple[str, ...] = ()
    """Suites whose prompts do not appear here."""

    @property
    def versioned_name(self) -> str:
        """`postcards-smoke@1`, as results carry it."""
        return f"{self.name}@{self.version}"


def list_suites() -> list[SuiteCard]:
    """Every suite that comes with D-Gate, by name."""
    return [read_suite_card(path) for path in list_data_files(_FOLDER, ".yaml")]


def find_suite(name: str) -> SuiteCard:
    """The card of `NAME` or `NAME@VERSION`.

    Raises:
        ManifestError: no such suite (names the nearest), or another version of it.
    """
    plain, _, version = name.removeprefix(SUITE_SCHEME).partition("@")
    cards = {card.name: card for card in list_suites()}
    if plain not in cards:
        raise explain_unknown("suite", plain, cards, ManifestError)
    card = cards[plain]
    if version and version != str(card.version):
        raise ManifestError(
            f"the suite {plain} has version {card.version}, not {version}",
            f"suite:{card.versioned_name}",
            "take this version, or the D-Gate that came with the other",
        )
    return card


def locate_suite(name: str) -> Path:
    """The suite's JSONL file, as its card pins it.

    Raises:
        ManifestError: no such suite, or the file is not the one that the card pins.
    """
    card = find_suite(name)
    path = find_data_file(f"{_FOLDER}/{card.name}.jsonl")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != card.sha256:
        raise ManifestError(
            f"{path} has sha256 {found[:16]}…, so it is not the suite {card.versioned_name}",
            f"sha256 {card.sha256[:16]}…",
            "restore the file; a changed suite takes a new version and a new sha256 in its card",
        )
    return path


def read_suite_card(path: Path) -> SuiteCard:
    """Reads a card; raises ConfigError for an unknown key or an impossible value."""
    values = read_config(str(path))
    portions = tuple(build_settings(Portion, portion) for portion in values.pop("portions"))
    return replace(build_settings(SuiteCard, {**values, "portions": ()}), portions=portions)
