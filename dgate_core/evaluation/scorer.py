"""Picture metrics over a run: opened once, fed chunk by chunk, summed up with their uncertainty."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np

from dgate_core.errors import DgateError
from dgate_core.evaluation.intervals import estimate_interval
from dgate_core.evaluation.metric_request import MetricRequest
from dgate_core.evaluation.picture_metric import (
    PAIRED_METRICS,
    PICTURE_METRICS,
    AttributeTally,
    MetricCard,
    PictureMetric,
    Tools,
)
from dgate_core.evaluation.pictures import Chunk
from dgate_core.evaluation.plugin_metric import open_plugin
from dgate_core.evaluation.results import MetricValue

if TYPE_CHECKING:
    from dgate_core.evaluation.features.extractor import Extractor

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    """One metric on its way."""

    request: MetricRequest
    metric: PictureMetric | None = None
    error: str | None = None
    scores: list[np.ndarray] = field(default_factory=list)

    @property
    def card(self) -> MetricCard:
        if self.metric is None:
            return MetricCard(self.request.name, self.request.scope, self.request.better)
        return self.metric.card


class PictureScorer:
    """Scores chunks with every metric that was asked for; one that fails is named and the others go on.

    Args:
        requests: Picture and paired metrics.
        tools: Device and features.
    """

    def __init__(self, requests: Sequence[MetricRequest], tools: Tools) -> None:
        self._entries = [_open_entry(request, tools) for request in requests]
        self.seconds = 0.0

    @property
    def columns(self) -> list[str]:
        """Names for scores.parquet, each once, also of metrics that could not be opened."""
        return list(dict.fromkeys(entry.card.name for entry in self._entries))

    @property
    def extractors(self) -> list[Extractor]:
        """All that the metrics see of a picture, each once."""
        opened = [extractor for entry in self._entries if entry.metric for extractor in entry.metric.extractors]
        return list({extractor.name: extractor for extractor in opened}.values())

    @property
    def looks_at_pixels(self) -> bool:
        """Whether some metric asks for more than features."""
        return any(entry.metric is not None and not entry.metric.extractors for entry in self._entries)

    def tally_attributes(self) -> dict[str, dict[str, dict[str, float]]]:
        """Attribute → value → {n, right}, where the judge was asked for."""
        metrics: list[object] = [entry.metric for entry in self._entries]
        return next((metric.tally_attributes() for metric in metrics if isinstance(metric, AttributeTally)), {})

    def score(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Column → float64 (N,) of the chunk, NaN where there is no number."""
        started = time.perf_counter()
        for entry in self._entries:
            entry.scores.append(_score_entry(entry, chunk))
        self.seconds += time.perf_counter() - started
        return {entry.card.name: entry.scores[-1] for entry in self._entries}

    def sum_up(self, baseline: str) -> list[MetricValue]:
        """The mean of every metric with its interval, in the order of the requests."""
        return [_sum_up_entry(entry, baseline) for entry in self._entries]


def describe_crash(metric: str, error: Exception) -> str:
    """Why a metric has no number: its crash costs the other metrics nothing, and a gate fails on it by name."""
    if isinstance(error, DgateError):
        return str(error)
    logger.error("%s crashed", metric, exc_info=error)
    return f"{type(error).__name__}: {error}"


def _open_entry(request: MetricRequest, tools: Tools) -> _Entry:
    try:
        if request.is_plugin:
            return _Entry(request, open_plugin(request.family, tools))
        registry = PAIRED_METRICS if request.scope == "paired" else PICTURE_METRICS
        return _Entry(request, cast(PictureMetric, registry.load(request.family)(request.variant, tools)))
    except Exception as error:
        return _Entry(request, error=describe_crash(request.name, error))


def _score_entry(entry: _Entry, chunk: Chunk) -> np.ndarray:
    if entry.metric is not None and entry.error is None:
        try:
            return entry.metric.score(chunk)
        except Exception as error:
            entry.error = describe_crash(entry.card.name, error)
    return np.full(len(chunk), np.nan)


def _sum_up_entry(entry: _Entry, baseline: str) -> MetricValue:
    scores = np.concatenate([np.zeros(0), *entry.scores])
    used = scores[~np.isnan(scores)]
    card, error, warnings = entry.card, entry.error, []
    if error is None and not len(used):
        error = f"none of {len(scores):,} pictures could be measured: each needs {card.needs}"
    elif len(used) < len(scores):
        left_out = len(scores) - len(used)
        warnings.append(f"{left_out:,} of {len(scores):,} pictures are not in this number: each needs {card.needs}")
    return MetricValue(
        card.name,
        card.scope,
        card.better,
        value=float(used.mean()) if error is None else None,
        interval=estimate_interval(used, is_share=card.is_share) if error is None else None,
        n_used=len(used) if error is None else 0,
        n_expected=len(scores),
        extractor=card.extractor,
        weights_sha256=card.weights_sha256,
        resize=card.resize,
        reference=baseline if card.scope == "paired" else "",
        warnings=tuple(warnings) if error is None else (),
        error=error,
    )
