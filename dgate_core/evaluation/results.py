"""What an evaluation leaves behind, and where: numbers with their uncertainty and all that they depend on.

In the run's folder: `evaluation/evaluation.json` (an `Evaluation`), `evaluation/scores.parquet` (a row per picture
that was expected, in the order of results.parquet) and `evaluation/gate.json` (the gate's verdict).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from dgate_core.errors import DgateError
from dgate_core.storage import Storage

EVALUATION_VERSION = 2
EVALUATION_FILE = "evaluation/evaluation.json"
SCORES_FILE = "evaluation/scores.parquet"
GATE_FILE = "evaluation/gate.json"
EVALUATION_PAGE = "report/evaluation.html"

Better = Literal["higher", "lower"]
Scope = Literal["picture", "paired", "corpus"]

SCORE_KEYS = pa.schema(
    [
        pa.field("row_id", pa.string()),
        pa.field("id", pa.string()),
        pa.field("image_index", pa.int32()),
        pa.field("status", pa.string()),  # of results.parquet: ok | error | skipped | duplicate
        pa.field("path", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("defect", pa.string()),  # null, one of NOTHING_TO_SEE, or black | constant | wrong_size
    ]
)
"""First columns of scores.parquet; then one float64 column per picture metric, null where it could not be measured."""


class EvaluationError(DgateError):
    """An evaluation that cannot be made or read."""

    code = "evaluation"


class MissingWeightsError(EvaluationError):
    """The weights of a feature extractor are not on this machine."""

    code = "missing_weights"


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One number of one run."""

    name: str
    """`clip_score`, `fid`, `fd:starter-clip`, `lpips:alex`, …; the plain name only for the field's own extractor."""
    scope: Scope
    """A mean over pictures, over pairs with a baseline, or one number of the whole corpus."""
    better: Better
    """Which direction is good."""
    value: float | None
    """The number; None when it could not be measured."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval."""
    n_used: int = 0
    """Pictures (or pairs) in the number."""
    n_expected: int = 0
    """Pictures that the run was to make."""
    extractor: str = ""
    """Feature extractor, such as `inception-v3-fid`, `starter-clip`, `lpips-alex`."""
    weights_sha256: str = ""
    """Hash of the extractor's weights."""
    resize: str = ""
    """How pictures came to the extractor's size, such as `bilinear, antialiased, 299`."""
    reference: str = ""
    """Reference set and the hash of its pictures; or the baseline run."""
    warnings: tuple[str, ...] = ()
    """What a reader must know, such as too few pictures for FID."""
    details: Mapping[str, float] = field(default_factory=dict)
    """Further figures of the same measurement, such as the standard deviation over KID's subsets."""
    error: str | None = None
    """Why there is no number."""

    def __post_init__(self) -> None:
        if (self.value is None) == (self.error is None):
            raise ValueError(f"{self.name}: a metric has either a value or an error")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All numbers of one run."""

    run: str
    """Run's folder."""
    fingerprint: str
    """Fingerprint of the run."""
    metrics: tuple[MetricValue, ...]
    """Every metric that was asked for, measured or not."""
    n_expected: int
    """Pictures that the run was to make."""
    defects: Mapping[str, int] = field(default_factory=dict)
    """Pictures by defect (black, constant, missing, …)."""
    changed_files: int = 0
    """Pictures whose files were not the bytes that the run recorded."""
    scores_sha256: str = ""
    """Of scores.parquet, so that the numbers of one evaluation and the rows of another are never taken together."""
    by_attribute: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Postcards only: attribute (colour, object, count, …) → value → {n, right}."""
    reference: str = ""
    """Reference set, when there was one."""
    baseline: str = ""
    """Baseline run, when there was one."""
    baseline_pictures: str = ""
    """`hash_pictures` of the baseline, as it was when the paired metrics were measured."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Time by stage: read, decode, resize, network, statistics."""
    created: str = ""
    """ISO 8601, UTC."""
    version: int = EVALUATION_VERSION
    """Of this record."""

    def find_metric(self, name: str) -> MetricValue | None:
        """The metric of this name."""
        return next((metric for metric in self.metrics if metric.name == name), None)


def hash_pictures(pictures: Iterable[tuple[str, int, str | None]]) -> str:
    """Hash (hex) of which sha256 belongs to which id and image_index; in any order, in constant memory."""
    total = 0
    for identity, index, sha256 in pictures:
        digest = hashlib.sha256(f"{identity}\0{index}\0{sha256 or ''}".encode()).digest()
        total = (total + int.from_bytes(digest)) % (1 << 256)
    return f"{total:064x}"


def write_evaluation(storage: Storage, evaluation: Evaluation) -> None:
    """Writes evaluation.json whole or not at all, with a hash of itself against edits and mixed-up files."""
    record = json.loads(json.dumps(asdict(evaluation)))
    storage.write_bytes(EVALUATION_FILE, json.dumps({**record, "sha256": _hash_record(record)}, indent=2).encode())


def read_evaluation(storage: Storage) -> Evaluation:
    """Reads evaluation.json of a run's folder.

    Raises:
        EvaluationError: there is none, it is of another version, or it is not what `write_evaluation` wrote.
    """
    again = f"run: dgate evaluate {storage.uri}"
    if not storage.exists(EVALUATION_FILE):
        raise EvaluationError(f"{storage.uri} has no {EVALUATION_FILE}", "an evaluated run", again)
    try:
        found: dict[str, Any] = dict(json.loads(storage.read_bytes(EVALUATION_FILE)))
    except (ValueError, TypeError) as error:
        raise EvaluationError(f"{EVALUATION_FILE} of {storage.uri} is damaged: {error}", "all of it", again) from error
    if found.get("version") != EVALUATION_VERSION:
        raise EvaluationError(
            f"{EVALUATION_FILE} of {storage.uri} has version {found.get('version')}",
            f"version {EVALUATION_VERSION}",
            again,
        )
    if found.pop("sha256", None) != _hash_record(found):
        raise EvaluationError(
            f"{EVALUATION_FILE} of {storage.uri} was changed after the evaluation", "what dgate evaluate wrote", again
        )
    metrics = tuple(_read_metric(each) for each in found.pop("metrics"))
    return Evaluation(metrics=metrics, **found)


def _read_metric(found: dict[str, Any]) -> MetricValue:
    interval = found.pop("interval")
    warnings = tuple(found.pop("warnings"))
    return MetricValue(interval=tuple(interval) if interval else None, warnings=warnings, **found)


def _hash_record(record: Mapping[str, Any]) -> str:
    """Of what JSON keeps: against accidents and hand edits, it is no signature."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
