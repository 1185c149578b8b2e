"""Statistics → one number of the whole corpus, with its interval and everything that a reader must know about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from dgate_core.evaluation.corpus_names import BETTER, name_metric, parse_family
from dgate_core.evaluation.feature_set import Features
from dgate_core.evaluation.features.extractor import INCEPTION, INCEPTION_TENSORFLOW
from dgate_core.evaluation.metrics.frechet import frechet_distance, frechet_distance_of_features
from dgate_core.evaluation.metrics.inception_score import InceptionScoreOptions, inception_score
from dgate_core.evaluation.metrics.kernel_distance import KidOptions, clip_discrepancy, kernel_inception_distance
from dgate_core.evaluation.metrics.precision_recall import NEIGHBOURS, find_covered
from dgate_core.evaluation.resampling import ShareResampler, draw_interval, find_features, open_resampler
from dgate_core.evaluation.results import EvaluationError, MetricValue
from dgate_core.evaluation.statistics import ReferenceStatistics, features_to_statistics
from dgate_core.evaluation.weights.given import INCEPTION_LOGITS, load_given
from dgate_core.evaluation.weights.store import hash_tensors
from dgate_core.models.catalog import HUB_SCHEME

FEW_PICTURES: Final = 2048
"""Below this, FID says more about the number of pictures than about the pictures."""
_LARGEST_RESAMPLED: Final = 2048
"""Pictures above which no interval is made here: each draw costs their number cubed (FD) or squared (KID, CMMD)."""


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """How corpus metrics are estimated."""

    n_expected: int = 0
    """Pictures that the run was to make; 0 is as many as there are features."""
    resamples: int = 100
    """Bootstrap draws behind the 95 % interval; 0 makes none."""
    seed: int = 2020
    """Of the draws."""
    kid: KidOptions = field(default_factory=KidOptions)
    """Of KID."""
    inception_score: InceptionScoreOptions = field(default_factory=InceptionScoreOptions)
    """Of the Inception score."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number on its way into a MetricValue."""

    value: float
    """The number."""
    interval: tuple[float, float] | None = None
    """95 %."""
    details: Mapping[str, float] = field(default_factory=dict)
    """Further figures."""


def measure_corpus(
    name: str,
    features: Features,
    reference: ReferenceStatistics | None = None,
    options: CorpusOptions = CorpusOptions(),
) -> MetricValue:
    """One corpus metric.

    Args:
        name: `fid`, `fd`, `kid`, `cmmd`, `precision`, `recall` or `inception_score`, with or without `:EXTRACTOR`.
        features: Of the run's pictures; their extractor is the metric's.
        reference: Of the same extractor.
        options: Resamples, seed, KID's subsets.

    Returns:
        The metric under its full name; with an error instead of a number when it cannot be measured.

    Raises:
        EvaluationError: there is no such metric.
    """
    family = parse_family(name)
    nothing = _describe(family, features, reference, options)
    try:
        _check_extractors(name, features, reference)
        if family == "inception_score":
            return _measure_inception_score(nothing, features, options)
        if reference is None:
            raise EvaluationError(f"{name} compares with a reference set, and there is none", "", "give --reference")
        found = _MEASURES[family](features, reference, options)
    except EvaluationError as error:
        return replace(nothing, error=str(error))
    return replace(
        nothing,
        value=found.value,
        error=None,
        interval=found.interval,
        details=found.details,
        warnings=_warn(family, features, reference),
    )


def _describe(
    family: str, features: Features, reference: ReferenceStatistics | None, options: CorpusOptions
) -> MetricValue:
    """The metric with all that does not depend on the number."""
    label = f"{reference.reference} sha256:{reference.reference_sha256[:16]}" if reference is not None else ""
    return MetricValue(
        name=family if family == "fid" else name_metric(family, features.extractor),
        scope="corpus",
        better=BETTER[family],
        value=None,
        n_used=len(features),
        n_expected=options.n_expected or len(features),
        extractor=features.extractor,
        weights_sha256=features.weights_sha256,
        resize=features.resize,
        reference=label,
        error="not measured yet",
    )


def _check_extractors(name: str, features: Features, reference: ReferenceStatistics | None) -> None:
    """The name, the features and the reference must be of one network with one resize."""
    family, _, wanted = name.partition(":")
    if family == "fid" and features.extractor != INCEPTION:
        raise EvaluationError(
            f"fid with features of {features.extractor}", INCEPTION, f"ask for fd:{wanted or features.extractor}"
        )
    if wanted and features.extractor not in (wanted.removeprefix(HUB_SCHEME), Path(wanted).name):
        raise EvaluationError(f"{name} with features of {features.extractor}", f"features of {wanted}")
    if len(features) < 2:
        raise EvaluationError(f"{len(features)} pictures", "at least 2")
    if reference is None:
        return
    for part in ("extractor", "weights_sha256", "resize"):
        theirs, ours = getattr(reference, part), getattr(features, part)
        if theirs and theirs != ours:
            raise EvaluationError(f"a reference made with {part} {theirs!r}", repr(ours), "build the reference again")
    if len(reference.mean) != features.matrix.shape[1]:
        raise EvaluationError(f"a reference of {len(reference.mean)} features", f"{features.matrix.shape[1]} features")


def _measure_inception_score(nothing: MetricValue, features: Features, options: CorpusOptions) -> MetricValue:
    """Of the logits without their bias, as torch-fidelity; compares with no reference."""
    if features.extractor not in (INCEPTION, INCEPTION_TENSORFLOW):
        raise EvaluationError(f"an Inception score of {features.extractor}", f"{INCEPTION} or {INCEPTION_TENSORFLOW}")
    layer = load_given(INCEPTION_LOGITS)
    logits = features.sort() @ layer["fc.weight"].T
    mean, deviation = inception_score(logits, options.inception_score)
    weights = hashlib.sha256(f"{features.weights_sha256} {hash_tensors(layer)}".encode()).hexdigest()
    few = f"{len(features):,} pictures: the score grows with their number; 50,000 are usual"
    return replace(
        nothing,
        value=mean,
        error=None,
        weights_sha256=weights,
        reference="",
        details={"splits": float(options.inception_score.splits), "split_standard_deviation": deviation},
        warnings=(few,) if len(features) < FEW_PICTURES else (),
    )


def _measure_frechet(features: Features, reference: ReferenceStatistics, options: CorpusOptions) -> Measurement:
    dimension = features.matrix.shape[1]
    if len(features) <= dimension:
        value = frechet_distance_of_features(features.matrix, reference.statistics)
    else:
        value = frechet_distance(features_to_statistics(features.blocks(), dimension), reference.statistics)
    return Measurement(value, _find_interval("fd", value, features, reference, options))


def _measure_kid(features: Features, reference: ReferenceStatistics, options: CorpusOptions) -> Measurement:
    found = kernel_inception_distance(features.sort(), find_features(reference), options.kid)
    details = {"subset_size": float(found.subset_size), "subset_standard_deviation": found.standard_deviation}
    return Measurement(found.mean, _find_interval("kid", found.mean, features, reference, options), details)


def _measure_cmmd(features: Features, reference: ReferenceStatistics, options: CorpusOptions) -> Measurement:
    value = clip_discrepancy(features.matrix, find_features(reference))
    return Measurement(value, _find_interval("cmmd", value, features, reference, options))


def _measure_precision(features: Features, reference: ReferenceStatistics, options: CorpusOptions) -> Measurement:
    return _measure_share(features.sort(), find_features(reference), options)


def _measure_recall(features: Features, reference: ReferenceStatistics, options: CorpusOptions) -> Measurement:
    return _measure_share(find_features(reference), features.matrix, options)


def _measure_share(pictures: np.ndarray, manifold: np.ndarray, options: CorpusOptions) -> Measurement:
    """Share of the pictures within the manifold, with the interval of a mean over them."""
    if len(manifold) <= NEIGHBOURS:
        raise EvaluationError(f"{len(manifold)} pictures", f"more than {NEIGHBOURS}, the neighbours that are looked at")
    covered = find_covered(pictures, manifold)
    value = float(covered.mean())
    return Measurement(value, draw_interval(ShareResampler(covered), value, options.resamples, options.seed))


_MEASURES: Final[Mapping[str, Callable[[Features, ReferenceStatistics, CorpusOptions], Measurement]]] = {
    "fid": _measure_frechet,
    "fd": _measure_frechet,
    "kid": _measure_kid,
    "cmmd": _measure_cmmd,
    "precision": _measure_precision,
    "recall": _measure_recall,
}


def _find_interval(
    family: str, value: float, features: Features, reference: ReferenceStatistics, options: CorpusOptions
) -> tuple[float, float] | None:
    if not 2 < len(features) <= _LARGEST_RESAMPLED:
        return None
    resampler = open_resampler(family, features.sort(), reference)
    return draw_interval(resampler, value, options.resamples, options.seed)


def _warn(family: str, features: Features, reference: ReferenceStatistics) -> tuple[str, ...]:
    warnings = []
    few = min(len(features), reference.count or len(features))
    if family in ("fid", "fd") and few < FEW_PICTURES:
        lead = "let KID and FD on CLIP features lead" if features.extractor == INCEPTION else "let KID or CMMD lead"
        warnings.append(f"{few:,} pictures: below {FEW_PICTURES:,} the distance is biased upwards; {lead}")
    if features.pictures_sha256 == reference.reference_sha256:
        warnings.append("the two sets are the same pictures")
    if not reference.extractor or not reference.weights_sha256:
        warnings.append("the reference does not say which weights made it")
    return tuple(warnings)
