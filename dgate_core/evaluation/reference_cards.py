"""Cards of reference sets: what the pictures are, where they come from, what pins them, how they are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from dgate_core.config import build_settings, read_config
from dgate_core.data_files import list_data_files
from dgate_core.errors import ConfigError
from dgate_core.evaluation.picture_sets import PictureSource

CARD_SUFFIXES: Final = (".yaml", ".yml")
_FOLDER: Final = "references"
_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class FirstPictures:
    """A quick check of a large set."""

    count: int
    """How many of the first pictures."""
    sha256: str
    """Of these."""


@dataclass(frozen=True, slots=True)
class ReferenceProtocol:
    """How the set is measured, and what is compared with it."""

    pictures: str = "all pictures as they are"
    """How the pictures were chosen and prepared; part of the statistics' identity."""
    prompts: str = ""
    """The prompts whose pictures are compared with the set: `suite:NAME`, or where to find them."""
    extractors: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    """Feature extractors, each with the resize that it must have."""
    generation: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    """Settings that the compared pictures must be made with; empty leaves them open."""
    windows: Mapping[str, tuple[float, float]] = field(default_factory=lambda: _EMPTY)
    """Metrics with the least and the greatest value that the protocol accepts."""


@dataclass(frozen=True, slots=True)
class ReferenceCard:
    """What is known of a reference set."""

    name: str
    """As in `--reference NAME`."""
    version: int = 1
    """Raised whenever a picture or the protocol changes."""
    title: str = ""
    """One line for people."""
    licence: str = "not stated"
    """Of the pictures and captions."""
    count: int | None = None
    """Pictures; None where the card does not pin them."""
    sha256: str | None = None
    """`hash_picture_set` of all pictures; None where the card does not pin them."""
    first: FirstPictures | None = None
    """The same of the first pictures alone."""
    source: PictureSource = PictureSource("folder")  # noqa: RUF009 - frozen
    """Where the pictures come from."""
    protocol: ReferenceProtocol = ReferenceProtocol()
    """How they are measured."""
    instructions: str = ""
    """How to get what does not come with D-Gate, and how to use it."""

    @property
    def versioned_name(self) -> str:
        """`postcards-1k@1`, as results carry it."""
        return f"{self.name}@{self.version}"


def list_reference_cards() -> list[ReferenceCard]:
    """Every card that comes with D-Gate, by name."""
    return [read_reference_card(path) for path in list_data_files(_FOLDER, ".yaml")]


def find_reference_card(text: str) -> ReferenceCard | None:
    """The card of that name, `NAME@VERSION`, or in that YAML file; None when it is neither.

    Raises:
        ConfigError: the file is no card, or the card has another version.
    """
    if text.endswith(CARD_SUFFIXES):
        return read_reference_card(Path(text))
    name, _, version = text.partition("@")
    card = next((card for card in list_reference_cards() if card.name == name), None)
    if card and version and version != str(card.version):
        raise ConfigError(
            f"the reference {name} has version {card.version}, not {version}", card.versioned_name, "take this version"
        )
    return card


def read_reference_card(path: Path) -> ReferenceCard:
    """Reads a card; a relative address in it is meant from the card's own folder.

    Raises:
        ConfigError: the file cannot be read, has an unknown key, or lacks one.
    """
    values = read_config(str(path))
    first, source, protocol = (values.pop(name, None) for name in ("first", "source", "protocol"))
    card = _build(ReferenceCard, values, path)
    return replace(
        card,
        first=_build(FirstPictures, first, path) if first else None,
        source=_resolve(_build(PictureSource, source or {"kind": "folder"}, path), path),
        protocol=_read_protocol(protocol or {}, path),
    )


def _read_protocol(values: dict[str, Any], path: Path) -> ReferenceProtocol:
    tables = {name: values.pop(name, None) or {} for name in ("extractors", "generation", "windows")}
    windows = {metric: (float(least), float(most)) for metric, (least, most) in tables["windows"].items()}
    texts = _build(ReferenceProtocol, values, path)
    return replace(texts, extractors=tables["extractors"], generation=tables["generation"], windows=windows)


def _build(kind: type[Any], values: Any, path: Path) -> Any:
    """A dataclass from one mapping of the card; says which key is wrong or lacks."""
    assert is_dataclass(kind)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {values!r}", "a mapping of key: value", "see datasets/references/user-folder.yaml")
    given = {key: value for key, value in values.items() if value is not None}
    try:
        return build_settings(kind, given)
    except TypeError as error:
        names = ", ".join(each.name for each in fields(kind))
        raise ConfigError(f"{path}: {error}", f"the keys {names}", "add what is missing") from error


def _resolve(source: PictureSource, path: Path) -> PictureSource:
    if source.uri is None or "://" in source.uri or Path(source.uri).expanduser().is_absolute():
        return source
    return replace(source, uri=str((path.parent / source.uri).absolute()))
