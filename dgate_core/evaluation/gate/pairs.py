"""Rows of two runs side by side: the same prompt, and by default the same noise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dgate_core.evaluation.gate.scored_run import RowKey, ScoredRun


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which rows of two runs belong together."""

    candidate: np.ndarray
    """int64 (pairs,): row in the candidate's scores; -1 where it has none."""
    baseline: np.ndarray
    """int64 (pairs,): row in the baseline's scores, one for each of its sound pictures, in their order."""
    candidate_is_sound: np.ndarray
    """bool (pairs,): the candidate has a picture without a defect."""
    problems: tuple[str, ...]
    """Why rows of the same name are not the same row, in sentences."""
    other_seeds: int
    """Pairs whose noise differs."""
    baseline_unsound: int
    """Rows of the baseline that are not compared, because it has no sound picture there."""
    repeats: int = 0
    """Rows of the baseline that are not compared, because they ask for the same picture as an earlier row."""

    def __len__(self) -> int:
        return len(self.baseline)


def pair_rows(candidate: ScoredRun, baseline: ScoredRun, pairing: Literal["noise", "prompt"]) -> Pairing:
    """Pairs on (id, image_index) every row whose picture is sound in the baseline, and no copy of an earlier row's.

    Copies tell nothing new: counted, they would fill up the minimum of rows and narrow every interval.
    """
    places = {key: place for place, key in enumerate(candidate.list_keys())}
    sound, repeated = baseline.find_sound(), baseline.find_repeats()
    rows = np.flatnonzero(sound & ~repeated)
    keys = baseline.list_keys()
    extra = sorted(set(places) - set(keys))
    found = np.array([places.get(keys[row], -1) for row in rows], np.int64)
    other_prompts = _find_differing(candidate, baseline, found, rows, "prompt")
    other_seeds = _find_differing(candidate, baseline, found, rows, "seed")
    problems = [
        *describe_repeats("candidate", candidate.list_keys()),
        *describe_repeats("baseline", keys),
        *_describe_extra(extra),
        *_describe_differing("prompt", other_prompts, keys, rows),
        *(_describe_differing("seed", other_seeds, keys, rows) if pairing == "noise" else ()),
    ]
    if len(rows) == 0:
        problems.append("the baseline has no sound picture")
    elif (found < 0).all():
        problems.append("the runs have no row in common")
    is_sound = np.where(found >= 0, candidate.find_sound()[found], False) if places else found >= 0
    unsound = int((~sound).sum())
    return Pairing(
        found, rows, is_sound, tuple(problems), len(other_seeds), unsound, repeats=int((sound & repeated).sum())
    )


def _find_differing(
    candidate: ScoredRun, baseline: ScoredRun, found: np.ndarray, rows: np.ndarray, column: str
) -> list[int]:
    """Positions of the pairs whose values in this column differ."""
    ours, theirs = candidate.list_values(column), baseline.list_values(column)
    pairs = enumerate(zip(found, rows, strict=True))
    return [position for position, (mine, other) in pairs if mine >= 0 and ours[mine] != theirs[other]]


def _describe_differing(column: str, positions: list[int], keys: list[RowKey], rows: np.ndarray) -> list[str]:
    if not positions:
        return []
    identity, index = keys[rows[positions[0]]]
    return [f"{len(positions):,} rows have another {column} than in the baseline, such as {identity!r}, image {index}"]


def _describe_extra(keys: list[RowKey]) -> list[str]:
    """Rows that nobody compares may be as bad as they like, and make distances of the corpus smaller."""
    if not keys:
        return []
    return [
        f"{len(keys):,} rows of the candidate are not in the baseline, such as {keys[0][0]!r}, image {keys[0][1]}: "
        "both runs must be of the same prompts"
    ]


def describe_repeats(run: str, keys: list[RowKey]) -> list[str]:
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if not repeated:
        return []
    return [f"{len(repeated):,} rows stand twice in the {run}, such as {repeated[0][0]!r}, image {repeated[0][1]}"]
