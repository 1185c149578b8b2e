"""Cuts the images of each batch key into shards, and numbers them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dgate_core.manifest.item import BatchKey

MIN_ROWS, MAX_ROWS = 16, 4096
_SHARDS_PER_LANE = 4
_UNSEEN = np.iinfo(np.int64).max

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """How large shards shall be."""

    rows_per_shard: int | None = None
    """Rows of a full shard; None takes it from shard_seconds and lanes."""
    shard_seconds: float = 900.0
    """Time that a shard shall take, by estimate."""
    lanes: int = 1
    """Lanes that share the work; each shall find at least four shards."""


def choose_rows_per_shard(seconds_per_image: float, images: int, options: ShardOptions) -> int:
    """Rows of a full shard, MIN_ROWS to MAX_ROWS unless the options say a number.

    Args:
        seconds_per_image: Estimate for the shard's batch key.
        images: To be made in the whole run.
        options: What is wanted.
    """
    if options.rows_per_shard is not None:
        return max(1, options.rows_per_shard)
    rows = options.shard_seconds / seconds_per_image if seconds_per_image > 0 else MAX_ROWS
    if options.lanes > 1:
        rows = min(rows, images / (_SHARDS_PER_LANE * options.lanes))
    return int(min(max(rows, MIN_ROWS), MAX_ROWS))


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard, as it stands in the index."""

    shard: int
    """Number in the run."""
    attempt: int
    """1 for the plan itself, 2 for the first retry."""
    batch_key: BatchKey
    """What all its rows share."""
    rows: int
    """Images to make."""
    first_ordinal: int
    """Smallest ordinal among its rows."""
    last_ordinal: int
    """Largest ordinal among its rows."""
    estimated_seconds: float
    """Rough time on one lane."""


class ShardNumbering:
    """Gives images their shards: those of one batch key follow one another, filled in the order of the manifest.

    Args:
        images: To be made, at least one, for each batch key.
        seconds: Of one image, for each batch key.
        options: How large shards shall be.
        first_shard: Number of the first one.
    """

    def __init__(
        self, images: Sequence[int], seconds: Sequence[float], options: ShardOptions, first_shard: int = 0
    ) -> None:
        made, total = np.array(images, np.int64), sum(images)
        wanted = np.array([choose_rows_per_shard(each, total, options) for each in seconds], np.int64)
        # Spread evenly, so that no shard is left with a handful of rows.
        self._rows = _divide_up(made, _divide_up(made, wanted))
        self.counts = _divide_up(made, self._rows)
        self._starts = np.cumsum(self.counts) - self.counts
        self._seen = np.zeros(len(made), np.int64)
        self.first_shard, self.seconds = first_shard, list(seconds)
        self.groups = np.repeat(np.arange(len(made)), self.counts)
        self.rows = self._rows[self.groups]
        self.rows[np.cumsum(self.counts) - 1] -= self.counts * self._rows - made
        self.first_ordinals = np.full(self.total, _UNSEEN)
        self.last_ordinals = np.full(self.total, -1, np.int64)

    @property
    def total(self) -> int:
        """Number of shards."""
        return int(self.counts.sum())

    def assign(self, groups: Ints, ordinals: Ints) -> Ints:
        """Shards of the next images to make.

        Args:
            groups: Number of the batch key of each image.
            ordinals: Ascending, from call to call.
        """
        shards = self._starts[groups] + self._rank(groups) // self._rows[groups]
        np.minimum.at(self.first_ordinals, shards, ordinals)
        np.maximum.at(self.last_ordinals, shards, ordinals)
        return shards + self.first_shard

    def list_shards(self, keys: Sequence[BatchKey], attempt: int = 1) -> Iterator[ShardInfo]:
        """Yield what the index says of each shard, once every image was assigned.

        Args:
            keys: By number.
            attempt: 1 for the plan itself.
        """
        for place in range(self.total):
            group, rows = int(self.groups[place]), int(self.rows[place])
            yield ShardInfo(
                shard=self.first_shard + place,
                attempt=attempt,
                batch_key=keys[group],
                rows=rows,
                first_ordinal=int(self.first_ordinals[place]),
                last_ordinal=int(self.last_ordinals[place]),
                estimated_seconds=rows * self.seconds[group],
            )

    def _rank(self, groups: Ints) -> Ints:
        """How many images of its group came before each image."""
        order = np.argsort(groups, kind="stable")
        numbers, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
        ranks = np.empty(len(groups), np.int64)
        ranks[order] = np.arange(len(groups)) - np.repeat(starts, counts)
        ranks += self._seen[groups]
        self._seen[numbers] += counts
        return ranks


def _divide_up(numbers: Ints, divisors: Ints) -> Ints:
    return -(-numbers // divisors)


def estimate_makespan(shard_seconds: Sequence[float], lanes: int) -> float:
    """Seconds until the last lane is done, when each takes the next shard as soon as it is free."""
    free_at = [0.0] * max(1, lanes)
    for seconds in shard_seconds:
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)
