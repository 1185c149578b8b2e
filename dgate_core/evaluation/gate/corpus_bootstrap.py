"""How sure the difference of two corpus metrics is: the same rows drawn again from both runs' features."""

from __future__ import annotations

from typing import Final

import numpy as np

from dgate_core.evaluation.feature_set import Features
from dgate_core.evaluation.gate.bootstrap import draw_weights
from dgate_core.evaluation.gate.comparison import RunPair
from dgate_core.evaluation.gate.scored_run import ScoredRun
from dgate_core.evaluation.resampling import open_resampler
from dgate_core.evaluation.results import EvaluationError, MetricValue
from dgate_core.evaluation.statistics import ReferenceStatistics

DRAWS: Final = 100
"""Resamples of a corpus; only their spread is used, which they tell to about 7 %."""
LARGEST_DRAW: Final = 1000
"""Rows that are drawn from; the spread over more rows follows from theirs."""


class CorpusBootstrap:
    """Draws differences of corpus metrics; features come from the cache, references and extractors are opened once.

    Args:
        device: torch's name of the device, for features that are not cached.
        reference: Where the reference set is, for one that has no card; None finds it by the name in the evaluation.
    """

    def __init__(self, device: str = "cpu", reference: str | None = None) -> None:
        self.device, self.reference = device, reference
        self._features: dict[tuple[str, str], Features] = {}
        self._references: dict[tuple[str, str], ReferenceStatistics] = {}

    def __call__(self, pair: RunPair, metric: MetricValue) -> np.ndarray:
        """Draws of candidate less baseline, float64 (DRAWS,).

        Raises:
            EvaluationError: the metric has no resampling, or its features or reference cannot be had.
        """
        assert pair.baseline is not None
        assert pair.pairing is not None
        has_picture = [run.find_pictures() for run in (pair.candidate, pair.baseline)]
        both = (pair.pairing.candidate >= 0) & has_picture[0][pair.pairing.candidate]
        both &= has_picture[1][pair.pairing.baseline]
        ours, theirs = pair.pairing.candidate[both], pair.pairing.baseline[both]
        if len(ours) < 2:
            raise EvaluationError(f"{len(ours)} pairs of pictures", "at least 2")
        chosen = _choose_rows(len(ours), pair.rules.seed)
        reference = self._find_reference(pair.baseline, metric)
        sides = [
            open_resampler(metric.name, self._find_features(run, metric.extractor).matrix[places], reference)
            for run, places in (
                (pair.candidate, _find_places(has_picture[0], ours[chosen])),
                (pair.baseline, _find_places(has_picture[1], theirs[chosen])),
            )
        ]
        weights = np.concatenate(list(draw_weights(len(chosen), DRAWS, pair.rules.seed))).astype(np.float64)
        draws = np.array([sides[0].distance(row) - sides[1].distance(row) for row in weights])
        return draws * np.sqrt(len(chosen) / len(ours))

    def _find_features(self, run: ScoredRun, extractor: str) -> Features:
        """Features of the run's pictures, in the order of its scores."""
        if (run.uri, extractor) not in self._features:
            self._features[run.uri, extractor] = collect_run_features(run, extractor, self.device)
        return self._features[run.uri, extractor]

    def _find_reference(self, run: ScoredRun, metric: MetricValue) -> ReferenceStatistics:
        from dgate_core.evaluation.features.extractor import open_extractor
        from dgate_core.evaluation.references import measure_reference, open_reference

        label = run.evaluation.reference
        if (label, metric.extractor) not in self._references:
            opened = open_reference(self.reference or label.partition(" ")[0])
            if opened.label != label:
                raise EvaluationError(f"the reference set is {opened.label}", f"{label}, as in the evaluation")
            extractor = open_extractor(name_source(metric.extractor), self.device)
            self._references[label, metric.extractor] = measure_reference(opened, extractor)
        return self._references[label, metric.extractor]


def collect_run_features(run: ScoredRun, extractor_name: str, device: str) -> Features:
    """Features of every picture of a run, in the order of its scores; an evaluation has left them in the cache."""
    from dgate_core.evaluation.feature_cache import open_feature_cache
    from dgate_core.evaluation.feature_set import collect_features
    from dgate_core.evaluation.features.extractor import open_extractor
    from dgate_core.evaluation.pictures import Picture, decode_picture
    from dgate_core.runs.pictures import PictureReader

    reader = PictureReader(run.storage)
    extractor = open_extractor(name_source(extractor_name), device)
    rows = zip(run.list_values("path"), run.list_values("sha256"), run.find_pictures(), strict=True)

    def read(path: str) -> np.ndarray:
        return decode_picture(reader.read(path))

    pictures = (
        Picture(str(number), sha256, lambda path=path: read(path))  # type: ignore[misc]
        for number, (path, sha256, there) in enumerate(rows)
        if there
    )
    return collect_features(pictures, extractor, open_feature_cache(extractor))


def name_source(extractor: str) -> str:
    """What `open_extractor` takes for the name that a result carries; hub names stand there without their scheme."""
    return f"hf://{extractor}" if "/" in extractor else extractor


def _find_places(there: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of the scores as rows of the features, which hold the pictures only."""
    places: np.ndarray = np.cumsum(there)[rows] - 1
    return places


def _choose_rows(number: int, seed: int) -> np.ndarray:
    if number <= LARGEST_DRAW:
        return np.arange(number)
    return np.sort(np.random.default_rng((seed, number, 1)).choice(number, LARGEST_DRAW, replace=False))
