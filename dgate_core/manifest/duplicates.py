"""Finds equal things among any number of them, exactly and in bounded memory: hashes in partitions on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_PARTITIONS = 64
_PIECE_RECORDS = 1 << 19
_BUCKET_BITS = 18
_SEEN = np.dtype([("digest", "S16"), ("number", "<i8"), ("payload", "<i8")])
FOUND = np.dtype([("number", "<i8"), ("first", "<i8"), ("payload", "<i8")])
"""A later one, the first that equals it, and what was said with the first."""

Records = npt.NDArray[Any]


class DuplicateFinder:
    """Takes 16-byte hashes of numbered things, then names the first of those that are equal.

    Memory is that of the distinct hashes of one partition, a 64th of all, whatever their order and however often one is
    repeated.

    Args:
        folder: An empty folder for the partitions; the caller deletes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bucket: tuple[int, Records] = (-1, np.empty(0, FOUND))

    def add(self, digests: Records, numbers: Records, payloads: Records | int) -> None:
        """Take things; their numbers ascend from call to call.

        Args:
            digests: Shape (n,), dtype S16.
            numbers: Shape (n,), int64, not negative.
            payloads: Shape (n,) or one, int64, given back for the first of equal ones.
        """
        records = np.empty(len(digests), _SEEN)
        records["digest"], records["number"], records["payload"] = digests, numbers, payloads
        first_bytes = records.view(np.uint8).reshape(len(records), _SEEN.itemsize)[:, 0] if len(records) else numbers
        self._append("seen", records, first_bytes.astype(np.int64) % _PARTITIONS)

    def find(self) -> Iterator[Records]:
        """Compare everything that was added; yields FOUND records in no order, after which `read` knows them too."""
        for path in sorted(self.folder.glob("seen-*")):
            for found in _find_in(path):
                self._append("found", found, found["number"] >> _BUCKET_BITS)
                yield found
            path.unlink()

    def read(self, start: int, stop: int) -> Records:
        """FOUND records whose number lies in [start, stop), by ascending number; asked in ascending order."""
        buckets = range(start >> _BUCKET_BITS, ((stop - 1) >> _BUCKET_BITS) + 1)
        found = np.concatenate([self._read_bucket(bucket) for bucket in buckets] or [np.empty(0, FOUND)])
        return found[np.searchsorted(found["number"], start) : np.searchsorted(found["number"], stop)]

    def _read_bucket(self, bucket: int) -> Records:
        if self._bucket[0] != bucket:
            path = self.folder / f"found-{bucket}"
            records = np.fromfile(path, FOUND) if path.exists() else np.empty(0, FOUND)
            self._bucket = (bucket, np.sort(records, order="number"))
        return self._bucket[1]

    def _append(self, name: str, records: Records, parts: Records) -> None:
        """Append records to the file of their part."""
        order = np.argsort(parts, kind="stable")
        records, parts = records[order], parts[order]
        for part, start, count in zip(*np.unique(parts, return_index=True, return_counts=True), strict=True):
            with (self.folder / f"{name}-{part}").open("ab") as file:
                file.write(records[start : start + count].data)


def _find_in(path: Path) -> Iterator[Records]:
    """Yield what is equal within a partition, read piece by piece beside the first ones seen so far."""
    firsts = np.empty(0, _SEEN)
    with path.open("rb") as file:
        while len(piece := np.fromfile(file, _SEEN, _PIECE_RECORDS)):
            known = len(firsts)
            records = np.concatenate([firsts, piece])
            # np.unique gives the first occurrence, and records stand in the order of their numbers.
            _, index, inverse = np.unique(records["digest"], return_index=True, return_inverse=True)
            firsts = records[np.sort(index)]
            first = records[index[inverse[known:]]]
            later = first["number"] != piece["number"]
            found = np.empty(int(later.sum()), FOUND)
            found["number"] = piece["number"][later]
            found["first"], found["payload"] = first["number"][later], first["payload"][later]
            yield found
