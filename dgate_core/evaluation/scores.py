"""scores.parquet: a row per picture that was expected, a column per picture metric, written chunk by chunk."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.evaluation.pictures import Chunk, LoadedPicture
from dgate_core.evaluation.results import SCORE_KEYS, SCORES_FILE
from dgate_core.storage import Storage


class ScoresWriter:
    """Collects rows in a temporary file; `finish` puts it into the run's folder, whole or not at all.

    Args:
        metrics: Names of the columns that follow SCORE_KEYS.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self.schema = pa.schema([*SCORE_KEYS, *(pa.field(name, pa.float64()) for name in metrics)])
        self._folder = tempfile.TemporaryDirectory(prefix="dgate-scores-")
        self._path = Path(self._folder.name) / "scores.parquet"
        self._writer = pq.ParquetWriter(self._path, self.schema, compression="zstd")

    def write(self, chunk: Chunk, scores: Mapping[str, np.ndarray]) -> None:
        """Adds a chunk; NaN, and a metric without scores, become null."""
        rows = [_describe_picture(picture) for picture in chunk.pictures]
        columns = [pa.array([row[name] for row in rows], SCORE_KEYS.field(name).type) for name in SCORE_KEYS.names]
        nothing = np.full(len(chunk), np.nan)
        metrics = self.schema.names[len(SCORE_KEYS) :]
        columns += [pa.array(scores.get(name, nothing), pa.float64(), from_pandas=True) for name in metrics]
        self._writer.write_table(pa.table(columns, schema=self.schema))

    def finish(self, run: Storage) -> str:
        """Closes the file and stores it; gives its sha256 (hex)."""
        self._writer.close()
        run.upload_file(self._path, SCORES_FILE)
        return hashlib.sha256(self._path.read_bytes()).hexdigest()

    def __enter__(self) -> ScoresWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._folder.cleanup()


def _describe_picture(picture: LoadedPicture) -> dict[str, object]:
    expected = picture.expected
    own = {name: getattr(expected, name) for name in SCORE_KEYS.names if name != "defect"}
    return {**own, "defect": picture.defect}
