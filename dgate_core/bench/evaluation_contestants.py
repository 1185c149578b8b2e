"""The contestants of the evaluation benchmark: `python -m dgate_core.bench.evaluation_contestants NAME JOB.json`.

Stages of D-Gate overlap (files are decoded in threads beside the network), so they add up to more than the wall clock.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgate_core.bench.evaluation import Job
from dgate_core.evaluation.pictures import Picture, decode_picture
from dgate_core.models.catalog import STARTER_FOLDER

if TYPE_CHECKING:
    from dgate_core.evaluation.feature_set import Features

BATCH = 32
Figures = dict[str, dict[str, float]]
"""`values` by metric and `stages` by name."""


def measure_fid(job: Job, extractor_name: str) -> Figures:
    """FID by D-Gate, with its cache."""
    from dgate_core.evaluation.feature_cache import open_feature_cache
    from dgate_core.evaluation.feature_set import collect_features
    from dgate_core.evaluation.features.extractor import open_extractor

    stages: defaultdict[str, float] = defaultdict(float)
    extractor = open_extractor(extractor_name)
    cache = open_feature_cache(extractor, Path(job.cache))
    theirs, ours = (collect_features(list_pictures(each, stages), extractor, cache) for each in (job.theirs, job.ours))
    with time_stage(stages, "statistics"):
        value = compare_sets(ours, theirs)
    return {"values": {"fid": value}, "stages": {**stages, **extractor.seconds}}


def measure_all(job: Job) -> Figures:
    """FID, CLIP score and LPIPS by D-Gate; every file is decoded once."""
    from dgate_core.evaluation.feature_set import FeatureCollector, read_ahead
    from dgate_core.evaluation.features.clip import ClipExtractor
    from dgate_core.evaluation.features.extractor import open_extractor
    from dgate_core.evaluation.features.lpips_network import open_lpips

    stages: defaultdict[str, float] = defaultdict(float)
    inception, clip, lpips = open_extractor("inception-v3-fid"), open_extractor("starter-clip"), open_lpips("alex")
    assert isinstance(clip, ClipExtractor)
    ours, theirs, embeddings = FeatureCollector(inception), FeatureCollector(inception), FeatureCollector(clip)
    distances: list[float] = []
    pairs = zip(list_pictures(job.ours, stages), list_pictures(job.theirs, stages), strict=True)
    with ThreadPoolExecutor(2) as pool:
        for group in read_ahead((each for pair in pairs for each in pair), pool, 2 * BATCH, list):
            ours.add(group[::2])
            theirs.add(group[1::2])
            embeddings.add(group[::2])
            with time_stage(stages, "lpips"):
                distances += compare_pairs(lpips, group[::2], group[1::2])
    with time_stage(stages, "clip texts"):
        scores = compare_rows(embeddings.finish().matrix, clip.embed_captions(job.captions))
    values = {"clip_score": 100 * float(scores.mean()), "lpips": float(np.mean(distances))}
    with time_stage(stages, "statistics"):
        values["fid"] = compare_sets(ours.finish(), theirs.finish())
    clip_stages = {f"clip {stage}": seconds for stage, seconds in clip.seconds.items()}
    return {"values": values, "stages": {**stages, **inception.seconds, **clip_stages}}


def compare_sets(ours: Features, theirs: Features) -> float:
    """Fréchet distance of two sets' features."""
    from dgate_core.evaluation.corpus import CorpusOptions, measure_corpus
    from dgate_core.evaluation.statistics import features_to_reference

    reference = features_to_reference(theirs, "theirs", "as they are")
    found = measure_corpus("fd", ours, reference, CorpusOptions(resamples=0))
    assert found.value is not None, found.error
    return found.value


def list_pictures(folder: str, stages: defaultdict[str, float]) -> list[Picture]:
    """Pictures of a folder in the order of their names; files are hashed here and decoded when they are read."""

    def read(path: Path) -> np.ndarray:
        with time_stage(stages, "decode"):
            return decode_picture(path.read_bytes())

    with time_stage(stages, "hash"):
        return [
            Picture(path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), partial(read, path))
            for path in sorted(Path(folder).iterdir())
        ]


@contextmanager
def time_stage(stages: defaultdict[str, float], stage: str) -> Iterator[None]:
    """Adds the body's seconds to a stage."""
    started = time.perf_counter()
    yield
    stages[stage] += time.perf_counter() - started


def compare_pairs(lpips: Any, ours: Sequence[Picture], theirs: Sequence[Picture]) -> list[float]:
    """LPIPS of each picture and its partner."""
    import torch

    first, second = (
        torch.from_numpy(np.stack([picture.read() for picture in side])).permute(0, 3, 1, 2).float() / 127.5 - 1
        for side in (ours, theirs)
    )
    with torch.inference_mode():
        return lpips(first, second).flatten().tolist()


def compare_rows(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row of (N, D) and its partner."""
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (first, second)]
    cosines: np.ndarray = (unit[0] * unit[1]).sum(1)
    return cosines


def run_torch_fidelity(job: Job) -> Figures:
    """FID by torch-fidelity, with its own defaults."""
    from torch_fidelity import calculate_metrics  # type: ignore[import-untyped]

    found = calculate_metrics(input1=job.ours, input2=job.theirs, fid=True, cuda=False, cache=False, verbose=False)
    return {"values": {"fid": float(found["frechet_inception_distance"])}, "stages": {}}


def run_torchmetrics(job: Job, names: Sequence[str]) -> Figures:
    """The named metrics by torchmetrics, in the loop of its documentation: batches of decoded files."""
    import torch

    metrics = {name: open_torchmetrics(name) for name in names}
    files = [sorted(Path(folder).iterdir()) for folder in (job.ours, job.theirs)]
    for start in range(0, len(files[0]), BATCH):
        sides = [[decode_picture(path.read_bytes()) for path in side[start : start + BATCH]] for side in files]
        ours, theirs = (torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2) for side in sides)
        for name, metric in metrics.items():
            if name == "fid":
                metric.update(ours, real=False)
                metric.update(theirs, real=True)
            elif name == "clip_score":
                metric.update(list(ours), list(job.captions[start : start + BATCH]))
            else:
                metric.update(ours / 127.5 - 1, theirs / 127.5 - 1)
    return {"values": {name: float(metric.compute()) for name, metric in metrics.items()}, "stages": {}}


def open_torchmetrics(name: str) -> Any:
    """A metric of torchmetrics with the same weights as D-Gate's."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchmetrics.multimodal.clip_score import CLIPScore

    if name == "fid":
        return FrechetInceptionDistance()
    if name == "clip_score":
        return CLIPScore(open_older_clip)
    return LearnedPerceptualImagePatchSimilarity("alex")


def open_older_clip() -> tuple[Any, Any]:
    """starter-clip as torchmetrics 1.9 calls it: features come as tensors, as they did before transformers 5."""
    from transformers import CLIPModel, CLIPProcessor

    class OlderClip(CLIPModel):
        def get_image_features(self, *arguments: Any, **named: Any) -> Any:
            return super().get_image_features(*arguments, **named).pooler_output

        def get_text_features(self, *arguments: Any, **named: Any) -> Any:
            return super().get_text_features(*arguments, **named).pooler_output

    folder = STARTER_FOLDER / "starter-clip"
    return OlderClip.from_pretrained(folder, dtype="float32"), CLIPProcessor.from_pretrained(folder)


RUNNERS: Mapping[str, Callable[[Job], Figures]] = {
    "D-Gate, FID": partial(measure_fid, extractor_name="inception-v3-fid"),
    "D-Gate, FID again": partial(measure_fid, extractor_name="inception-v3-fid"),
    "D-Gate, FID with TensorFlow's resize": partial(measure_fid, extractor_name="inception-v3-fid@tensorflow1"),
    "torch-fidelity, FID": run_torch_fidelity,
    "torchmetrics, FID": partial(run_torchmetrics, names=("fid",)),
    "D-Gate, FID + CLIP + LPIPS": measure_all,
    "torchmetrics, FID + CLIP + LPIPS": partial(run_torchmetrics, names=("fid", "clip_score", "lpips")),
}


def main() -> None:
    """Prints the figures as one line of JSON, the last of stdout."""
    name, path = sys.argv[1:]
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    print(json.dumps(RUNNERS[name](Job(**{**job, "captions": tuple(job["captions"])}))))


if __name__ == "__main__":
    main()
