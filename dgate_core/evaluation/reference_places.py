"""Where reference sets are on this machine, and which pictures they hold: notes in the cache spare looking again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgate_core.evaluation.picture_sets import list_files, read_source
from dgate_core.evaluation.reference_cards import ReferenceCard
from dgate_core.evaluation.results import EvaluationError
from dgate_core.models.hashing import find_cache_folder
from dgate_core.storage.files import place_file


@dataclass(frozen=True, slots=True)
class Place:
    """Where a card's set is on this machine, when the card does not say."""

    pictures: str | None = None
    """Address of its pictures."""
    statistics: str | None = None
    """A .npz in place of the pictures, as pytorch-fid writes it."""

    def to_absolute(self) -> Place:
        """The same place, whatever folder the next command runs in."""
        return Place(*(text and make_absolute(text) for text in (self.pictures, self.statistics)))


def remember_place(card: ReferenceCard, place: Place) -> None:
    """Notes where the card's set is; the next commands find it without being told."""
    _write_json(_place_path(card), asdict(place.to_absolute()))


def recall_place(card: ReferenceCard) -> Place:
    """Where the card's set is; raises EvaluationError where nobody has told."""
    path = _place_path(card)
    if not path.is_file():
        raise EvaluationError(
            f"the pictures of {card.name} are not known on this machine",
            "a folder, WebDataset or Parquet, a path or s3://",
            f"run: dgate reference show {card.name}, then dgate reference build {card.name} --pictures FOLDER",
        )
    return Place(**json.loads(path.read_text()))


def identify_pictures(card: ReferenceCard) -> tuple[str, int]:
    """sha256 and number of a set's pictures; files are read again only when their list has changed.

    Drawn postcards are taken as their card pins them, for building their statistics compares every pixel.
    """
    from dgate_core.evaluation.feature_set import hash_picture_set

    if card.source.kind == "postcards" and card.sha256 and card.count:
        return card.sha256, card.count
    files = json.dumps([asdict(card.source), list_files(card.source)]) if card.source.kind != "postcards" else ""
    note = find_references_folder() / "hashes" / f"{hashlib.sha256(files.encode()).hexdigest()[:32]}.json"
    if files and note.is_file():
        known = json.loads(note.read_text())
        return known["sha256"], known["count"]
    hashes = [picture.sha256 for picture in read_source(card.source)]
    found = hash_picture_set(hashes), len(hashes)
    if files:
        _write_json(note, {"sha256": found[0], "count": found[1]})
    return found


def make_absolute(address: str) -> str:
    """An address that means the same in whatever folder the next command runs."""
    return address if "://" in address else str(Path(address).expanduser().absolute())


def find_references_folder() -> Path:
    """Where statistics and notes of reference sets are kept."""
    return find_cache_folder() / "references"


def _place_path(card: ReferenceCard) -> Path:
    return find_references_folder() / "places" / f"{make_file_name(card.name)}.json"


def make_file_name(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w.-]+", "-", name)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    place_file(path, lambda file: file.write(json.dumps(values).encode()), durable=False)
