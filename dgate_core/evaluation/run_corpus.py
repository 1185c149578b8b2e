"""Corpus metrics over a run: features are collected while the pictures pass by, the numbers come at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from dgate_core.evaluation.metric_request import MetricRequest
from dgate_core.evaluation.picture_metric import Tools
from dgate_core.evaluation.pictures import Chunk
from dgate_core.evaluation.results import MetricValue
from dgate_core.evaluation.scorer import describe_crash

if TYPE_CHECKING:
    from dgate_core.evaluation.features.extractor import Extractor
    from dgate_core.evaluation.references import ReferenceSet
    from dgate_core.evaluation.statistics import ReferenceStatistics

INCEPTION: Final = "inception-v3-fid"
"""The field's extractor for what is asked for by its plain name."""


@dataclass(slots=True)
class _Entry:
    """One metric on its way."""

    request: MetricRequest
    extractor: Extractor | None = None
    error: str | None = None


class CorpusScorer:
    """Feeds extractors with chunks; one that fails is named in its metrics and the others go on.

    Args:
        requests: Corpus metrics.
        tools: Device and features.
        reference: Reference set; None when no metric needs one.
    """

    def __init__(self, requests: Sequence[MetricRequest], tools: Tools, reference: ReferenceSet | None = None) -> None:
        self._tools, self._reference = tools, reference
        self._references: dict[str, ReferenceStatistics] = {}
        self._entries = [self._open_entry(request) for request in requests]
        self.seconds = self.statistics_seconds = 0.0

    @property
    def extractors(self) -> list[Extractor]:
        """All that the metrics see of a picture, each once."""
        opened = [entry.extractor for entry in self._entries if entry.extractor is not None]
        return list({extractor.name: extractor for extractor in opened}.values())

    def _open_entry(self, request: MetricRequest) -> _Entry:
        try:
            return _Entry(request, self._tools.features.open(request.variant or INCEPTION))
        except Exception as error:
            return _Entry(request, error=describe_crash(request.name, error))

    def collect(self, chunk: Chunk) -> None:
        """Takes the chunk's pictures into every extractor's features."""
        started = time.perf_counter()
        for entry in self._entries:
            if entry.extractor is None or entry.error is not None:
                continue
            try:
                self._tools.features.find(chunk, entry.extractor)
            except Exception as error:
                entry.error = describe_crash(entry.request.name, error)
        self.seconds += time.perf_counter() - started

    def sum_up(self, n_expected: int, report: Callable[[str], None]) -> list[MetricValue]:
        """Every number in the order of the requests; a reference set that is new is measured now.

        Args:
            n_expected: Pictures that the run was to make.
            report: Told when the reference's pictures have to be read.
        """
        started = time.perf_counter()
        found = [self._sum_up_entry(entry, n_expected, report) for entry in self._entries]
        self.statistics_seconds += time.perf_counter() - started
        return found

    def _sum_up_entry(self, entry: _Entry, n_expected: int, report: Callable[[str], None]) -> MetricValue:
        if entry.extractor is not None and entry.error is None:
            try:
                return self._measure(entry.request.family, entry.extractor, n_expected, report)
            except Exception as error:
                entry.error = describe_crash(entry.request.name, error)
        return MetricValue(
            entry.request.name,
            "corpus",
            entry.request.better,
            None,
            n_expected=n_expected,
            extractor=entry.request.variant or INCEPTION,
            reference=self._reference.label if self._reference else "",
            error=entry.error,
        )

    def _measure(
        self, family: str, extractor: Extractor, n_expected: int, report: Callable[[str], None]
    ) -> MetricValue:
        from dgate_core.evaluation.corpus import CorpusOptions, measure_corpus

        compares = self._reference is not None and family != "inception_score"
        reference = self._find_reference(extractor, report) if compares else None
        features = self._tools.features.finish(extractor)
        found = measure_corpus(family, features, reference, CorpusOptions(n_expected))
        if found.value is None or found.n_used == n_expected:
            return found
        left_out = f"{n_expected - found.n_used:,} of {n_expected:,} pictures are not in this number: nothing to see"
        return replace(found, warnings=(*found.warnings, left_out))

    def _find_reference(self, extractor: Extractor, report: Callable[[str], None]) -> ReferenceStatistics:
        from dgate_core.evaluation.references import measure_reference

        assert self._reference is not None
        if extractor.name not in self._references:
            self._references[extractor.name] = measure_reference(self._reference, extractor, report)
        return self._references[extractor.name]
