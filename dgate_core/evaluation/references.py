"""Reference sets: opened by name, card or address; their statistics built once for each extractor and protocol."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dgate_core.evaluation.picture_sets import PictureSource, find_source, read_source
from dgate_core.evaluation.reference_cards import (
    CARD_SUFFIXES,
    ReferenceCard,
    find_reference_card,
    list_reference_cards,
)
from dgate_core.evaluation.reference_places import (
    Place,
    find_references_folder,
    identify_pictures,
    make_absolute,
    make_file_name,
    recall_place,
    remember_place,
)
from dgate_core.evaluation.results import EvaluationError
from dgate_core.registry import explain_unknown

if TYPE_CHECKING:
    from dgate_core.evaluation.features.extractor import Extractor
    from dgate_core.evaluation.statistics import ReferenceStatistics

DEFAULT_EXTRACTOR: Final = "inception-v3-fid"
_STATISTICS: Final = ".npz"
_LABEL_MARK: Final = " sha256:"
_LABEL_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """A reference set on this machine."""

    card: ReferenceCard
    """What is known of it."""
    sha256: str
    """`hash_picture_set` of its pictures, or the hash of the statistics file where there are no pictures."""
    count: int
    """Pictures; 0 where a statistics file does not say."""
    source: PictureSource | None
    """Where its pictures are; None where there are only statistics."""
    statistics: Path | None = None
    """A .npz in place of the pictures, as pytorch-fid writes it."""
    address: str = ""
    """What opens it again: the card's name and version, or an absolute address."""

    @property
    def label(self) -> str:
        """Address and hash, as results carry them; `open_reference` takes it, and refuses other pictures."""
        return f"{self.address or self.card.versioned_name} sha256:{self.sha256[:_LABEL_DIGITS]}"


def open_reference(text: str, place: Place | None = None) -> ReferenceSet:
    """Finds a reference set and makes sure that its pictures are the ones that its card pins.

    Args:
        text: Name of a card, a card's YAML file, an address of pictures, a .npz of statistics, or the label of an
            earlier result.
        place: Where the card's set is; remembered for later calls.

    Raises:
        EvaluationError: there is no such set, it has no pictures here, or they are not those that the card or the
            label pins.
    """
    name, _, pinned = text.partition(_LABEL_MARK)
    opened = _open_named(name, place)
    if not opened.sha256.startswith(pinned):
        raise EvaluationError(
            f"the reference set {name} now has sha256 {opened.sha256[:_LABEL_DIGITS]}",
            f"sha256 {pinned}, as when it was used",
            "bring the pictures back, or evaluate both runs again",
        )
    if place is not None:
        remember_place(opened.card, place)
    return replace(opened, address=_make_address(name))


def _open_named(name: str, place: Place | None) -> ReferenceSet:
    if name.lower().endswith(_STATISTICS):
        return _open_statistics(Path(name), ReferenceCard(Path(name).stem))
    card = find_reference_card(name) or _make_card(name)
    if place is None and card.source.uri is None and card.source.kind != "postcards":
        place = recall_place(card)
    if place is not None and place.statistics:
        return _open_statistics(Path(place.statistics), card)
    if place is not None and place.pictures:
        card = replace(card, source=replace(find_source(place.pictures), column=card.source.column))
    sha256, count = identify_pictures(card)
    _check_pins(card, sha256, count)
    return ReferenceSet(card, sha256, count, card.source)


def _open_statistics(path: Path, card: ReferenceCard) -> ReferenceSet:
    from dgate_core.evaluation.statistics import read_reference

    found = read_reference(path)
    sha256 = found.reference_sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    return ReferenceSet(card, sha256, found.count, None, path.absolute())


def _make_address(name: str) -> str:
    """A shipped card by name and version; a file's or folder's path in full, for results are read elsewhere too."""
    card = None if name.endswith(CARD_SUFFIXES) else find_reference_card(name)
    if card is not None:
        return card.versioned_name
    return make_absolute(name)


def measure_reference(
    reference: ReferenceSet, extractor: Extractor, tell: Callable[[str], object] = str
) -> ReferenceStatistics:
    """Statistics and features of a set: from the cache, or made now and kept.

    Args:
        reference: From open_reference.
        extractor: From open_extractor.
        tell: Is told when pictures have to be read; nobody listens by default.

    Raises:
        EvaluationError: the extractor is not prepared as the card says, or the pictures turn out to be others.
    """
    from dgate_core.evaluation.statistics import read_reference, write_reference

    _check_resize(reference.card, extractor)
    if reference.source is None:
        return _adopt_statistics(reference, extractor)
    path = locate_statistics(reference, extractor)
    if path.is_file():
        return read_reference(path)
    tell(f"{reference.card.versioned_name}: {reference.count:,} pictures through {extractor.name}")
    found = _compute_statistics(reference, extractor)
    write_reference(path, found)
    return found


def locate_statistics(reference: ReferenceSet, extractor: Extractor) -> Path:
    """Where the statistics of a set are kept: one file for each extractor and protocol."""
    from dgate_core.evaluation.features.extractor import hash_extractor

    protocol = json.dumps([reference.card.versioned_name, reference.card.protocol.pictures])
    key = hashlib.sha256(f"{hash_extractor(extractor)}\n{protocol}".encode()).hexdigest()[:16]
    return find_references_folder() / reference.sha256[:32] / f"{make_file_name(extractor.name)}-{key}.npz"


def list_built(card: ReferenceCard) -> list[Path]:
    """Statistics of a pinned set that are on this machine."""
    return sorted((find_references_folder() / card.sha256[:32]).glob("*.npz")) if card.sha256 else []


def _compute_statistics(reference: ReferenceSet, extractor: Extractor) -> ReferenceStatistics:
    from dgate_core.evaluation.feature_cache import open_feature_cache
    from dgate_core.evaluation.feature_set import collect_features
    from dgate_core.evaluation.statistics import features_to_reference

    assert reference.source is not None
    features = collect_features(read_source(reference.source), extractor, open_feature_cache(extractor))
    _check_pictures(reference, features.pictures_sha256, len(features))
    return features_to_reference(features, reference.card.versioned_name, reference.card.protocol.pictures)


def _adopt_statistics(reference: ReferenceSet, extractor: Extractor) -> ReferenceStatistics:
    """Statistics from elsewhere; pytorch-fid's files do not name their extractor, so its own is taken."""
    from dgate_core.evaluation.statistics import read_reference

    assert reference.statistics is not None
    found = read_reference(reference.statistics)
    made_with = found.extractor or DEFAULT_EXTRACTOR
    if made_with != extractor.name or len(found.mean) != extractor.dimension:
        raise EvaluationError(
            f"{reference.statistics} holds statistics of {made_with}, {len(found.mean)} numbers a picture",
            f"those of {extractor.name}, {extractor.dimension} numbers a picture",
            "give the pictures: dgate reference build NAME --pictures FOLDER",
        )
    return replace(
        found,
        extractor=made_with,
        weights_sha256=found.weights_sha256 or extractor.weights_sha256,
        resize=found.resize or extractor.resize,
        protocol=found.protocol or reference.card.protocol.pictures,
        reference=found.reference or reference.card.versioned_name,
        reference_sha256=reference.sha256,
    )


def _make_card(text: str) -> ReferenceCard:
    """A card for pictures at an address, pinned by nothing."""
    looks_like_name = re.fullmatch(r"[\w.@-]+", text) and not Path(text).exists()
    if looks_like_name:
        names = [card.name for card in list_reference_cards()]
        error = explain_unknown("reference set", text, names, EvaluationError)
        raise EvaluationError(
            error.got, f"{error.expected}, or a card's file, or an address of pictures", error.next_step
        )
    return ReferenceCard(name=text.rstrip("/").rsplit("/", 1)[-1], source=find_source(text))


def _check_pins(card: ReferenceCard, sha256: str, count: int) -> None:
    if card.count not in (None, count) or card.sha256 not in (None, sha256):
        raise EvaluationError(
            f"{card.source.uri or card.name} holds {count:,} pictures with sha256 {sha256[:16]}…",
            f"{card.count or 'any number of'} pictures with sha256 {(card.sha256 or 'any')[:16]}…, as the card says",
            "bring the pictures back, or give the set a card of its own",
        )


def _check_pictures(reference: ReferenceSet, sha256: str, count: int) -> None:
    if (sha256, count) == (reference.sha256, reference.count):
        return
    drawn = reference.card.source.kind == "postcards"
    raise EvaluationError(
        f"{reference.card.versioned_name}: {count:,} pictures with sha256 {sha256[:16]}… came",
        f"{reference.count:,} pictures with sha256 {reference.sha256[:16]}…",
        "drawing needs the Pillow and numpy of constraints.txt"
        if drawn
        else "the files changed meanwhile: run it again",
    )


def _check_resize(card: ReferenceCard, extractor: Extractor) -> None:
    wanted = card.protocol.extractors.get(extractor.name)
    if wanted is not None and wanted != extractor.resize:
        raise EvaluationError(
            f"{extractor.name} resizes so: {extractor.resize}",
            f"{wanted}, as the card of {card.name} says",
            "take the D-Gate that the card was written for, or give the card a new version",
        )
