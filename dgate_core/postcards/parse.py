"""From words back to a scene: the exact inverse of every caption, and forgiving about how it is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar, Final, Literal

from dgate_core.errors import DgateError
from dgate_core.postcards.caption import split_words
from dgate_core.postcards.scene import COLOURS, OBJECTS, Scene, SceneError, SceneObject
from dgate_core.postcards.words import (
    COUNT_WORDS,
    DRESS_PHRASES,
    EXTRA_PLURALS,
    GROUND_PHRASES,
    JOINERS,
    OPENERS,
    PLACE_PHRASES,
    PLURALS,
    POSE_WORDS,
    SIZE_WORDS,
    SKY_PHRASES,
    SPELLINGS,
    Phrases,
)

Part = Literal["count", "size", "pose", "colour", "dress", "kind", "kinds", "place", "ground", "sky", "filler"]
Symbol = tuple[Part, str]
_LONGEST: Final = 4


class CaptionError(DgateError):
    """Words that are no caption of the postcard world."""

    code: ClassVar[str] = "caption"


@dataclass(slots=True)
class _Draft:
    """What has been read so far."""

    objects: list[SceneObject] = field(default_factory=list)
    """Finished objects, in order."""
    pending: dict[str, str] = field(default_factory=dict)
    """Attributes read before the noun that they belong to."""
    place_first: bool | None = None
    """Whether places precede their objects; decided by the first place."""
    setting: dict[str, str] = field(default_factory=dict)
    """Ground and sky."""
    undressed: bool = False
    """Whether the last person's colour is still to come ("a person in red")."""


def parse_caption(text: str) -> Scene:
    """Read a caption; parse_caption(scene_to_caption(scene, rng)) is the scene with seed 0.

    Case, spaces, punctuation, plurals and the spellings "center", "an", "2" do not matter.

    Raises:
        CaptionError: The text has an unknown word, or lacks a ground, a sky or an object, or says something twice.
        SceneError: It says what the world does not have, such as four boats.
    """
    draft = _Draft()
    for part, value in _read_symbols(text):
        _take(draft, part, value, text)
    if draft.pending:
        raise CaptionError(f"{_quote(draft.pending.values())} with no object after it in {text!r}", _one_of(OBJECTS))
    if draft.undressed:
        raise CaptionError(f"a person without a colour in {text!r}", "a colour: " + _one_of(COLOURS))
    for part, table in (("ground", GROUND_PHRASES), ("sky", SKY_PHRASES)):
        if part not in draft.setting:
            raise CaptionError(f"no {part} in {text!r}", "one of: " + ", ".join(choice[0] for choice in table.values()))
    try:
        return Scene(tuple(draft.objects), draft.setting["ground"], draft.setting["sky"])
    except SceneError as error:
        raise CaptionError(f"{error.got} in {text!r}", error.expected, error.next_step) from error


@lru_cache(maxsize=1)
def _phrase_table() -> dict[tuple[str, ...], Symbol]:
    """Every phrase as a tuple of words, with its one meaning."""
    table: dict[tuple[str, ...], Symbol] = {}
    groups: tuple[tuple[Part, Phrases], ...] = (
        ("ground", GROUND_PHRASES),
        ("sky", SKY_PHRASES),
        ("place", PLACE_PHRASES),
        ("size", SIZE_WORDS),
        ("pose", POSE_WORDS),
        ("dress", DRESS_PHRASES),
        ("colour", {colour: (colour,) for colour in COLOURS}),
        ("kinds", {kind: (plural,) for kind, plural in PLURALS.items()}),
        ("kinds", {kind: (plural,) for plural, kind in EXTRA_PLURALS.items()}),
        ("kind", {kind: (kind,) for kind in OBJECTS}),
        ("count", {str(number): choices for number, choices in COUNT_WORDS.items()}),
        ("filler", {"": (*OPENERS, *JOINERS, ",")}),
    )
    for part, phrases in groups:
        for value, choices in phrases.items():
            table |= {tuple(split_words(choice)): (part, value) for choice in choices}
    return table


def _read_symbols(text: str) -> list[Symbol]:
    """Longest phrases first, from left to right."""
    tokens = [SPELLINGS.get(word, word) for word in split_words(text)]
    table, symbols, at = _phrase_table(), [], 0
    while at < len(tokens):
        for length in range(_LONGEST, 0, -1):
            symbol = table.get(tuple(tokens[at : at + length]))
            if symbol and at + length <= len(tokens):
                symbols.append(symbol)
                at += length
                break
        else:
            raise CaptionError(
                f"{tokens[at]!r} (word {at + 1}) in {text!r}",
                "words of the postcard world, such as: a red boat and two small green trees on grass at night",
            )
    return symbols


def _take(draft: _Draft, part: Part, value: str, text: str) -> None:
    match part:
        case "filler":
            return
        case "ground" | "sky":
            _set_once(draft.setting, part, value, text)
        case "kinds" if "count" not in draft.pending:
            raise CaptionError(f"{PLURALS[value]} without a number in {text!r}", "a, two or three")
        case "kind" | "kinds":
            _finish_object(draft, value, text)
        case "dress" if draft.undressed:
            draft.objects[-1] = replace(draft.objects[-1], colour=value)
            draft.undressed = False
        case "place":
            _take_place(draft, value, text)
        case "pose" if draft.objects and not draft.pending and draft.objects[-1].kind == "person":
            if draft.objects[-1].pose:
                raise CaptionError(f"two poses for one person in {text!r}", "one")
            draft.objects[-1] = replace(draft.objects[-1], pose=value)
        case "dress":
            raise CaptionError(
                f"'in {value}' without a person before it in {text!r}", "'a person in red', 'a red boat'"
            )
        case _:
            _set_once(draft.pending, part, value, text)


def _finish_object(draft: _Draft, kind: str, text: str) -> None:
    got = draft.pending
    if "colour" not in got and kind != "person":
        raise CaptionError(f"a {kind} without a colour in {text!r}", "a colour before it: " + _one_of(COLOURS))
    if draft.undressed:
        raise CaptionError(f"a person without a colour in {text!r}", "a colour: " + _one_of(COLOURS))
    draft.undressed = "colour" not in got
    try:
        thing = SceneObject(
            kind,
            got.get("colour", COLOURS[0]),
            int(got.get("count", "1")),
            got.get("size"),
            got.get("place"),
            got.get("pose"),
        )
    except SceneError as error:
        raise CaptionError(f"{error.got} in {text!r}", error.expected, error.next_step) from error
    draft.objects.append(thing)
    draft.pending = {}


def _take_place(draft: _Draft, place: str, text: str) -> None:
    if draft.place_first is None:
        draft.place_first = not draft.objects
    if draft.place_first:
        _set_once(draft.pending, "place", place, text)
        return
    last = draft.objects[-1]
    if last.place or draft.pending:
        before = _quote(draft.pending.values() or (str(last.place),))
        raise CaptionError(f"the place {place!r} after {before} in {text!r}", "one place right after its object")
    try:
        draft.objects[-1] = replace(last, place=place)
    except SceneError as error:
        raise CaptionError(f"{error.got} in {text!r}", error.expected, error.next_step) from error


def _set_once(target: dict[str, str], part: str, value: str, text: str) -> None:
    if part in target:
        raise CaptionError(f"{part} {value!r} after {part} {target[part]!r} in {text!r}", f"one {part}")
    target[part] = value


def _quote(values: Iterable[str]) -> str:
    return repr(" ".join(values))


def _one_of(names: tuple[str, ...]) -> str:
    return "one of " + ", ".join(names)
