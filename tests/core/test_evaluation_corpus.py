"""Corpus metrics: equal to the reference implementations, indifferent to order and blocks, and plain about doubts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from dgate_core.evaluation.corpus import CorpusOptions, measure_corpus
from dgate_core.evaluation.feature_set import Features, collect_features
from dgate_core.evaluation.features.extractor import INCEPTION, INCEPTION_TENSORFLOW, open_extractor
from dgate_core.evaluation.features.torch_home import INCEPTION_FILES, write_torch_home
from dgate_core.evaluation.metrics.frechet import FrechetResampler, frechet_distance, frechet_distance_of_features
from dgate_core.evaluation.metrics.inception_score import InceptionScoreOptions, inception_score
from dgate_core.evaluation.metrics.kernel_distance import (
    KernelResampler,
    KidOptions,
    clip_discrepancy,
    kernel_inception_distance,
    polynomial_kernel,
    squared_discrepancy,
)
from dgate_core.evaluation.metrics.precision_recall import find_covered
from dgate_core.evaluation.resampling import open_resampler
from dgate_core.evaluation.results import EvaluationError
from dgate_core.evaluation.statistics import (
    FeatureStatistics,
    ReferenceStatistics,
    features_to_reference,
    features_to_statistics,
    read_reference,
    write_reference,
)
from dgate_core.evaluation.weights.given import INCEPTION_LOGITS, import_weights
from tests.postcard_pictures import make_postcards, need_weights, write_pictures

QUICK = CorpusOptions(resamples=20)


def draw_features(count: int, dimension: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension)) / np.sqrt(dimension)
    return (rng.normal(size=(count, dimension)) @ mixing + shift).astype(np.float32)


def make_features(matrix: np.ndarray, extractor: str = "some-clip", first: int = 0) -> Features:
    names = tuple(f"{number:064x}" for number in range(first, first + len(matrix)))
    return Features(matrix, names, names, extractor, "weights", "some resize")


def compute_frechet_with_sqrtm(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """The formula as it is written."""
    root = linalg.sqrtm(first.covariance @ second.covariance)
    shift = first.mean - second.mean
    return float(shift @ shift + np.trace(first.covariance + second.covariance - 2 * root.real))


def measure_statistics(matrix: np.ndarray) -> FeatureStatistics:
    return features_to_statistics([matrix], matrix.shape[1])


@pytest.mark.parametrize(("count", "dimension"), [(400, 64), (90, 64), (200, 192)])
def test_the_eigenvalue_route_is_the_square_root_of_the_product(count: int, dimension: int) -> None:
    first, second = draw_features(count, dimension, 1), draw_features(count + 7, dimension, 2, shift=0.3)
    statistics = measure_statistics(first), measure_statistics(second)
    expected = compute_frechet_with_sqrtm(*statistics)
    assert frechet_distance(*statistics) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(*reversed(statistics)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance_of_features(first, statistics[1]) == pytest.approx(expected, rel=1e-6)


def test_fewer_pictures_than_features_take_the_short_way_to_the_same_number() -> None:
    first, second = draw_features(30, 256, 1), draw_features(50, 256, 2, shift=0.1)
    reference = measure_statistics(second)
    expected = frechet_distance(measure_statistics(first), reference)
    assert frechet_distance_of_features(first, reference) == pytest.approx(expected, rel=1e-9)
    assert FrechetResampler(first, reference).distance(np.ones(30)) == pytest.approx(expected, rel=1e-9)


def test_a_resampled_distance_is_that_of_the_repeated_pictures() -> None:
    first, second = draw_features(20, 48, 1), draw_features(25, 48, 2)
    weights = np.bincount(np.random.default_rng(5).integers(20, size=20), minlength=20).astype(np.float64)
    expected = frechet_distance_of_features(np.repeat(first, weights.astype(int), axis=0), measure_statistics(second))
    assert FrechetResampler(first, measure_statistics(second)).distance(weights) == pytest.approx(expected, rel=1e-7)


def test_a_resampled_kid_is_kid_less_the_references_own_term() -> None:
    first, second = draw_features(20, 16, 1), draw_features(25, 16, 2)
    kernel = polynomial_kernel(second.astype(np.float64), second.astype(np.float64))
    own = (kernel.sum() - np.trace(kernel)) / (25 * 24)
    found = KernelResampler(first, second, polynomial_kernel).distance(np.ones(20))
    assert found + own == pytest.approx(squared_discrepancy(first.astype(np.float64), second.astype(np.float64)))


def test_statistics_are_numpys_whatever_the_blocks_and_the_order() -> None:
    matrix = draw_features(101, 24, 3, shift=50.0)
    expected = np.cov(matrix.astype(np.float64), rowvar=False)
    for size, order in ((1, 1), (7, -1), (101, 1)):
        ordered = matrix[::order]
        blocks = (ordered[start : start + size] for start in range(0, 101, size))
        found = features_to_statistics(blocks, 24)
        assert found.count == 101
        assert np.allclose(found.mean, matrix.astype(np.float64).mean(0), rtol=1e-12)
        assert np.allclose(found.covariance, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(EvaluationError, match="1 pictures"):
        features_to_statistics([matrix[:1]], 24)


def test_kid_is_torch_fidelitys() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    first, second = draw_features(150, 32, 1), draw_features(120, 32, 2, shift=0.2)
    found = kernel_inception_distance(first, second, KidOptions(subsets=10, subset_size=60))
    expected = kid_features_to_metric(
        torch.from_numpy(first), torch.from_numpy(second), kid_subsets=10, kid_subset_size=60, verbose=False
    )
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert found.standard_deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-3)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    first, second = draw_features(150, 8, 1), draw_features(120, 8, 2, shift=0.5)
    expected = prc_features_to_metric(
        torch.from_numpy(first), torch.from_numpy(second), prc_neighborhood=3, prc_batch_size=64, verbose=False
    )
    assert 0 < expected["precision"] < 1
    assert find_covered(first, second).mean() == pytest.approx(expected["precision"])
    assert find_covered(second, first).mean() == pytest.approx(expected["recall"])


def test_the_inception_score_is_torch_fidelitys() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * draw_features(105, 40, 1)
    expected = isc_features_to_metric(torch.from_numpy(logits))
    mean, deviation = inception_score(logits)
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert deviation == pytest.approx(expected["inception_score_std"], rel=1e-6)


def test_cmmd_is_its_formula() -> None:
    first, second = draw_features(30, 16, 1), draw_features(40, 16, 2, shift=0.5)
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (first, second)]

    def average(one: np.ndarray, other: np.ndarray) -> float:
        distances = ((one[:, None] - other[None]) ** 2).sum(-1)
        return float(np.exp(-distances / (2 * 10**2)).mean())

    expected = 1000 * (average(unit[0], unit[0]) + average(unit[1], unit[1]) - 2 * average(unit[0], unit[1]))
    assert clip_discrepancy(first, second) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("metric", ["fd", "kid", "cmmd", "precision", "recall"])
def test_order_changes_no_metric(metric: str) -> None:
    features, others = make_features(draw_features(60, 12, 1)), draw_features(50, 12, 2, shift=0.3)
    reference = features_to_reference(make_features(others, first=100), "others", "as they are")
    order = np.random.default_rng(0).permutation(60)
    names = tuple(features.picture_hashes[place] for place in order)
    shuffled = replace(features, matrix=features.matrix[order], picture_hashes=names)
    options = CorpusOptions(resamples=20, kid=KidOptions(subsets=5, subset_size=20))
    found = [measure_corpus(metric, each, reference, options) for each in (features, shuffled)]
    assert found[0].value is not None
    assert found[1].value == pytest.approx(found[0].value, rel=1e-6)
    if metric != "recall":
        assert found[1].interval == pytest.approx(found[0].interval, rel=1e-6)


def test_a_metric_says_what_it_depends_on() -> None:
    features = make_features(draw_features(60, 12, 1))
    others = make_features(draw_features(50, 12, 2, shift=0.3), first=100)
    found = measure_corpus("fd", features, features_to_reference(others, "others", "as they are"), QUICK)
    assert (found.name, found.scope, found.better) == ("fd:some-clip", "corpus", "lower")
    assert (found.extractor, found.weights_sha256, found.resize) == ("some-clip", "weights", "some resize")
    assert (found.n_used, found.n_expected) == (60, 60)
    assert found.reference == f"others sha256:{others.pictures_sha256[:16]}"
    assert found.interval is not None
    assert found.value is not None
    assert found.interval[0] < found.value < found.interval[1]
    assert found.warnings == ("50 pictures: below 2,048 the distance is biased upwards; let KID or CMMD lead",)
    assert json.loads(json.dumps(asdict(found)))["value"] == found.value


def test_the_interval_holds_the_spread_over_other_pictures() -> None:
    """The subsets are the whole of the smaller set, so that KID itself adds no noise of its own choice."""
    reference = features_to_reference(make_features(draw_features(200, 8, 77, shift=0.4)), "others", "")
    options = CorpusOptions(resamples=200)
    found = measure_corpus("kid", make_features(draw_features(200, 8, 0)), reference, options)
    others = [make_features(draw_features(200, 8, seed)) for seed in range(40)]
    values = [measure_corpus("kid", each, reference, CorpusOptions(resamples=0)).value for each in others]
    assert found.interval is not None
    width = found.interval[1] - found.interval[0]
    assert width == pytest.approx(4 * float(np.std([value for value in values if value is not None])), rel=0.5)


def test_plain_names_are_the_fields_own() -> None:
    own, other = make_features(draw_features(60, 12, 1), INCEPTION), make_features(draw_features(60, 12, 1))
    references = {each.extractor: features_to_reference(each, "same", "") for each in (own, other)}

    def measure(name: str, features: Features) -> str:
        found = measure_corpus(name, features, references[features.extractor], CorpusOptions(resamples=0))
        assert found.error is None
        return found.name

    assert [measure(name, own) for name in ("fid", "fd", "kid", "recall")] == ["fid", "fid", "kid", "recall"]
    assert [measure(name, other) for name in ("fd", "kid", "cmmd:some-clip", "recall")] == [
        "fd:some-clip",
        "kid:some-clip",
        "cmmd:some-clip",
        "recall:some-clip",
    ]
    refused = measure_corpus("fid", other, references["some-clip"])
    assert (refused.name, refused.value) == ("fid", None)
    assert "fd:some-clip" in (refused.error or "")
    with pytest.raises(EvaluationError, match="did you mean 'fid'"):
        measure_corpus("fidd", own)


def test_the_same_pictures_are_told() -> None:
    features = make_features(draw_features(60, 12, 1), INCEPTION)
    found = measure_corpus("fid", features, features_to_reference(features, "same", ""), QUICK)
    assert found.value == pytest.approx(0, abs=1e-5)
    assert "the two sets are the same pictures" in found.warnings
    assert any("let KID and FD on CLIP features lead" in warning for warning in found.warnings)


def test_enough_pictures_carry_no_warning() -> None:
    first, second = (make_features(draw_features(2048, 4, seed), first=seed * 5000) for seed in (1, 2))
    found = measure_corpus("fd", first, features_to_reference(second, "others", ""), CorpusOptions(resamples=0))
    assert found.warnings == ()


Change = Callable[[ReferenceStatistics], ReferenceStatistics | None]


@pytest.mark.parametrize(
    ("metric", "change", "reason"),
    [
        ("fd", lambda _: None, "there is none"),
        ("fd:other-clip", lambda found: found, "features of other-clip"),
        ("fd", lambda found: replace(found, extractor="other-clip"), "made with extractor 'other-clip'"),
        ("fd", lambda found: replace(found, weights_sha256="other"), "made with weights_sha256 'other'"),
        ("fd", lambda found: replace(found, resize="other"), "made with resize 'other'"),
        ("fd", lambda found: replace(found, mean=found.mean[:4]), "a reference of 4 features"),
        ("kid", lambda found: replace(found, features=None), "mean and covariance alone"),
        ("precision", lambda found: replace(found, features=draw_features(3, 12, 1)), "more than 3"),
        ("inception_score", lambda found: found, "an Inception score of some-clip"),
    ],
)
def test_what_cannot_be_measured_is_an_error_in_the_metric(metric: str, change: Change, reason: str) -> None:
    features = make_features(draw_features(60, 12, 1))
    found = measure_corpus(metric, features, change(features_to_reference(features, "same", "")))
    assert found.value is None
    assert reason in (found.error or "")


def test_without_the_final_layer_there_is_no_inception_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path))
    found = measure_corpus("inception_score", replace(make_features(draw_features(9, 12, 1)), extractor=INCEPTION))
    assert (found.name, found.value) == ("inception_score", None)
    assert "dgate weights import inception-logits FILE" in (found.error or "")


def test_one_picture_has_no_distance() -> None:
    features = make_features(draw_features(60, 12, 1))
    found = measure_corpus("fd", make_features(draw_features(1, 12, 1)), features_to_reference(features, "", ""))
    assert "1 pictures" in (found.error or "")


def test_recall_cannot_be_drawn_again() -> None:
    features = make_features(draw_features(60, 12, 1))
    with pytest.raises(EvaluationError, match="cannot be drawn again"):
        open_resampler("recall", features.matrix, features_to_reference(features, "", ""))


def test_a_reference_is_kept_as_a_file_that_pytorch_fid_reads(tmp_path: Path) -> None:
    from pytorch_fid.fid_score import compute_statistics_of_path

    features = make_features(draw_features(60, 12, 1))
    reference = features_to_reference(features, "postcards", "64 px")
    write_reference(tmp_path / "sub" / "reference.npz", reference)
    found = read_reference(tmp_path / "sub" / "reference.npz")
    assert {name: value for name, value in asdict(found).items() if not isinstance(value, np.ndarray)} == {
        name: value for name, value in asdict(reference).items() if not isinstance(value, np.ndarray)
    }
    assert found.features is not None
    assert np.array_equal(found.features, features.sort())
    mean, covariance = compute_statistics_of_path(str(tmp_path / "sub" / "reference.npz"), None, 1, 12, "cpu")
    assert np.array_equal(mean, reference.mean)
    assert np.array_equal(covariance, reference.covariance)


def test_a_reference_of_pytorch_fid_is_read_and_says_what_it_does_not_say(tmp_path: Path) -> None:
    features, others = make_features(draw_features(60, 12, 1), INCEPTION), draw_features(50, 12, 2)
    np.savez_compressed(tmp_path / "theirs.npz", mu=others.mean(0), sigma=np.cov(others, rowvar=False))
    reference = replace(read_reference(tmp_path / "theirs.npz"), reference="theirs")
    found = measure_corpus("fid", features, reference, QUICK)
    expected = frechet_distance_of_features(features.matrix, measure_statistics(others))
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert "the reference does not say which weights made it" in found.warnings


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_a_file_that_is_no_reference_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_reference(path)
    with pytest.raises(EvaluationError, match="there is no"):
        read_reference(tmp_path / "nothing.npz")
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(EvaluationError, match=r"mu \(3,\)"):
        read_reference(path)
    np.savez(path, mu=np.array([object()], dtype=object), sigma=np.zeros((1, 1)))
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_reference(path)


@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (3, 7), (2, 64)])
def test_chunks_workers_and_order_of_pictures_change_no_metric(workers: int, chunk: int) -> None:
    extractor = open_extractor("starter-clip")
    pictures, others = make_postcards(40, seed=1), make_postcards(40, seed=2)
    reference = features_to_reference(collect_features(others, extractor), "others", "")
    expected, found = (
        [
            measure_corpus(name, features, reference, CorpusOptions(resamples=0)).value
            for name in ("fd", "kid", "recall")
        ]
        for features in (
            collect_features(pictures, extractor),
            collect_features(reversed(pictures), extractor, workers=workers, chunk=chunk),
        )
    )
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """64 postcards: 32 to be measured, 32 as the reference."""
    root = tmp_path_factory.mktemp("postcards")
    return write_pictures(root / "ours", make_postcards(32, 1)), write_pictures(root / "theirs", make_postcards(32, 2))


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception as torch-fidelity and pytorch-fid load it, with a final layer that is drawn: no package carries it."""
    need_weights("inception")
    home, draw = tmp_path_factory.mktemp("home"), torch.Generator().manual_seed(0)
    for path in write_torch_home(home, ["inception"]):
        state = torch.load(path, weights_only=True)
        layer = {name: 0.1 * torch.randn(state[name].shape, generator=draw) for name in ("fc.weight", "fc.bias")}
        torch.save({**state, **layer}, path)
    return home


def measure_postcards(extractor_name: str, metrics: dict[str, CorpusOptions]) -> dict[str, float]:
    extractor = open_extractor(extractor_name)
    ours, theirs = (collect_features(make_postcards(32, seed), extractor, chunk=16) for seed in (1, 2))
    reference = features_to_reference(theirs, "postcards", "64 px")
    found = {name: measure_corpus(name, ours, reference, options) for name, options in metrics.items()}
    assert {name: metric.error for name, metric in found.items()} == dict.fromkeys(metrics)
    return {name: metric.value for name, metric in found.items() if metric.value is not None}


def test_postcards_have_torch_fidelitys_fid_kid_precision_recall_and_inception_score(
    folders: tuple[Path, Path], torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity import calculate_metrics

    monkeypatch.setenv("TORCH_HOME", str(torch_home))

    names = {"fd": "frechet_inception_distance", "precision": "precision", "recall": "recall"}
    names |= {"kid": "kernel_inception_distance_mean", "inception_score": "inception_score_mean"}
    expected = calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        feature_extractor="inception-v3-compat",
        fid=True,
        kid=True,
        prc=True,
        isc=True,
        isc_splits=1,
        kid_subsets=1,
        kid_subset_size=32,
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=16,
    )
    monkeypatch.setenv("DGATE_CACHE", str(torch_home / "cache"))
    import_weights(INCEPTION_LOGITS, torch_home / "hub" / "checkpoints" / INCEPTION_FILES[1])
    options = CorpusOptions(resamples=0, inception_score=InceptionScoreOptions(splits=1))
    found = measure_postcards(INCEPTION_TENSORFLOW, dict.fromkeys(names, options))
    assert found["inception_score"] == pytest.approx(expected[names["inception_score"]], rel=1e-4)
    assert found["inception_score"] > 1.01
    assert found["fd"] == pytest.approx(expected[names["fd"]], abs=1e-3)
    assert found["kid"] == pytest.approx(expected[names["kid"]], abs=1e-6)
    assert found["precision"] == pytest.approx(expected["precision"])
    assert found["recall"] == pytest.approx(expected["recall"])


def test_postcards_have_pytorch_fids_fid(
    folders: tuple[Path, Path], torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its square root of 2,048 x 2,048 takes long, so it gets the same distances in the pictures' own 64 dimensions."""
    from pytorch_fid.fid_score import calculate_frechet_distance, get_activations
    from pytorch_fid.inception import InceptionV3

    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    network = InceptionV3([3])
    theirs = [get_activations(sorted(folder.iterdir()), network, 16, num_workers=0) for folder in folders]
    axes = np.linalg.qr(np.concatenate(theirs).T)[0]
    statistics = [measure_statistics(each @ axes) for each in theirs]
    expected = calculate_frechet_distance(*(part for each in statistics for part in (each.mean, each.covariance)))
    found = measure_postcards(INCEPTION, {"fid": CorpusOptions(resamples=0)})
    assert found["fid"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_postcards_have_the_fid_of_pytorch_fids_command(folders: tuple[Path, Path], torch_home: Path) -> None:
    command = [sys.executable, "-m", "pytorch_fid", "--device", "cpu", "--num-workers", "0", "--batch-size", "16"]
    environment = {**os.environ, "TORCH_HOME": str(torch_home)}
    done = subprocess.run([*command, *map(str, folders)], capture_output=True, text=True, check=True, env=environment)
    expected = float(done.stdout.rsplit("FID:", 1)[1])
    found = measure_postcards(INCEPTION, {"fid": CorpusOptions(resamples=0)})
    assert found["fid"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_a_hundred_thousand_cached_features_become_fid_in_a_minute_and_2_gib(tmp_path: Path) -> None:
    program = Path(__file__).parent.parent / "many_features.py"
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{program.stem}", str(tmp_path), "100000"],
        capture_output=True,
        text=True,
        check=True,
        cwd=program.parent.parent,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["pictures"] == 100_000
    assert found["cpu_seconds"] < 60
    assert found["peak_gib"] < 2
