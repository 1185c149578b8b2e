"""Features: the reference networks' own numbers; the same whatever the batch, order, workers or cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgate_core.errors import ConfigError, ModelError
from dgate_core.evaluation.feature_cache import (
    LIMIT_VARIABLE,
    SEGMENT_ROWS,
    FeatureCache,
    open_feature_cache,
    prune_features,
)
from dgate_core.evaluation.feature_set import FeatureCollector, Features, collect_features, hash_picture_set
from dgate_core.evaluation.features.clip import ClipExtractor
from dgate_core.evaluation.features.extractor import Extractor, hash_extractor, open_extractor
from dgate_core.evaluation.features.torch_home import write_torch_home
from dgate_core.evaluation.pictures import Picture
from dgate_core.evaluation.results import EvaluationError
from dgate_core.models.catalog import STARTER_FOLDER
from tests.postcard_pictures import encode_picture, make_postcards, need_weights

SIZES = ((64, 64), (300, 200), (299, 299), (33, 470))


@pytest.fixture(scope="module")
def clip() -> Extractor:
    return open_extractor("starter-clip")


@pytest.fixture(scope="module")
def postcards() -> list[Picture]:
    return make_postcards(40, seed=1)


def make_noise() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_weights("inception")
    home = tmp_path_factory.mktemp("home")
    write_torch_home(home, ["inception"])
    return home


def test_inception_gives_the_features_of_pytorch_fid(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_fid.inception import InceptionV3

    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    network = InceptionV3([3]).eval()
    pictures = make_noise()
    with torch.inference_mode():
        expected = [network(torch.from_numpy(each).permute(2, 0, 1)[None] / 255)[0].flatten() for each in pictures]
    found = open_extractor("inception-v3-fid").extract(pictures)
    assert found.dtype == np.float32
    assert np.abs(found - torch.stack(expected).numpy()).max() < 5e-5


def test_inception_with_tensorflows_resize_gives_the_features_of_torch_fidelity(
    torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], verbose=False)
    pictures = make_noise()
    outputs = [network(torch.from_numpy(each).permute(2, 0, 1)[None]) for each in pictures]
    expected, logits = ([output[part][0] for output in outputs] for part in (0, 1))
    assert torch.stack(logits).isnan().all()
    found = open_extractor("inception-v3-fid@tensorflow1").extract(pictures)
    assert np.abs(found - torch.stack(expected).numpy()).max() < 5e-5


def test_clip_gives_the_embeddings_of_transformers(clip: Extractor) -> None:
    from transformers import CLIPModel, CLIPProcessor

    folder = STARTER_FOLDER / "starter-clip"
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(folder)
    pictures, captions = make_noise(), ["a red boat on the sea", "two blue houses"]
    with torch.inference_mode():
        inputs = processor(images=[torch.from_numpy(each).permute(2, 0, 1) for each in pictures], return_tensors="pt")
        images = model.get_image_features(inputs["pixel_values"]).pooler_output.numpy()
        tokens = processor(text=captions, padding=True, return_tensors="pt")
        texts = model.get_text_features(**tokens).pooler_output.numpy()
    assert isinstance(clip, ClipExtractor)
    assert np.allclose(clip.extract(pictures), images, atol=1e-5)
    assert np.allclose(clip.embed_captions(captions), texts, atol=1e-5)
    assert clip.resize == "bicubic, antialiased, shortest edge 64, centre 64x64"
    assert clip.dimension == images.shape[1]


def test_a_clip_is_opened_by_its_folder(clip: Extractor, tmp_path: Path) -> None:
    found = open_extractor(str(STARTER_FOLDER / "starter-clip"))
    assert (found.name, found.weights_sha256) == ("starter-clip", clip.weights_sha256)
    with pytest.raises(ModelError, match="holds no CLIP in safetensors"):
        open_extractor(str(tmp_path))
    with pytest.raises(EvaluationError, match="did you mean 'starter-clip'"):
        open_extractor("starter-klip")


@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (4, 7), (2, 64)])
def test_workers_and_chunks_change_no_feature(
    clip: Extractor, postcards: list[Picture], workers: int, chunk: int
) -> None:
    expected = clip.extract([picture.read() for picture in postcards])
    found = collect_features(iter(postcards), clip, workers=workers, chunk=chunk)
    assert np.allclose(found.matrix, expected, rtol=1e-5, atol=1e-5)
    assert found.row_ids == tuple(picture.row_id for picture in postcards)
    assert found.picture_hashes == tuple(picture.sha256 for picture in postcards)
    assert (found.extractor, found.weights_sha256, found.resize) == (clip.name, clip.weights_sha256, clip.resize)


def test_a_cached_picture_is_neither_read_nor_computed(
    clip: Extractor, postcards: list[Picture], tmp_path: Path
) -> None:
    first = collect_features(postcards, clip, open_feature_cache(clip, tmp_path))

    def refuse() -> np.ndarray:
        raise AssertionError("read again")

    unread = [replace(picture, read=refuse) for picture in reversed(postcards)]
    second = collect_features(unread, clip, open_feature_cache(clip, tmp_path))
    assert np.array_equal(second.matrix, first.matrix[::-1])
    assert second.pictures_sha256 == first.pictures_sha256 == hash_picture_set(first.picture_hashes)
    assert np.array_equal(second.sort(), first.sort())


def test_the_same_picture_twice_is_computed_once(clip: Extractor, postcards: list[Picture], tmp_path: Path) -> None:
    cache = open_feature_cache(clip, tmp_path)
    found = collect_features([postcards[0], postcards[1], postcards[0]], clip, cache, chunk=2)
    assert np.array_equal(found.matrix[0], found.matrix[2])
    assert len(cache) == 2


def test_a_collector_gives_each_chunk_its_features(clip: Extractor, postcards: list[Picture]) -> None:
    collector = FeatureCollector(clip)
    blocks = [collector.add(postcards[:3]), collector.add([]), collector.add(postcards[3:5])]
    assert [block.shape for block in blocks] == [(3, 128), (0, 128), (2, 128)]
    assert np.array_equal(collector.finish().matrix, np.concatenate(blocks))


def test_no_pictures_are_no_features(clip: Extractor) -> None:
    found = collect_features([], clip)
    assert found.matrix.shape == (0, 128)
    assert len(found) == 0


def test_blocks_are_the_matrix_in_float64() -> None:
    matrix = np.arange(10, dtype=np.float32).reshape(5, 2)
    features = Features(matrix, ("",) * 5, ("",) * 5, "x", "", "")
    blocks = list(features.blocks(2))
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert np.array_equal(np.concatenate(blocks), matrix.astype(np.float64))


def list_keys(count: int, start: int = 0) -> list[str]:
    return [f"{number:064x}" for number in range(start, start + count)]


def test_the_cache_keeps_segments_and_finds_them_again(tmp_path: Path) -> None:
    keys, rows = list_keys(SEGMENT_ROWS + 5), np.random.default_rng(0).normal(size=(SEGMENT_ROWS + 5, 8))
    rows = rows.astype(np.float32)
    cache = FeatureCache(tmp_path, 8)
    for start in range(0, len(keys), 100):
        cache.keep(dict(zip(keys[start : start + 100], rows[start : start + 100], strict=True)))
    assert set(cache.find(keys)) == set(keys)
    cache.flush()
    again = FeatureCache(tmp_path, 8)
    found = again.find([*keys, "f" * 64])
    assert len(again) == len(found) == len(keys)
    assert np.array_equal(np.stack([found[key] for key in keys]), rows)


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    first, second = FeatureCache(tmp_path, 2), FeatureCache(tmp_path, 2)
    first.keep({key: np.ones(2, np.float32) for key in list_keys(3)})
    second.keep({key: np.zeros(2, np.float32) for key in list_keys(3, start=3)})
    first.flush()
    second.flush()
    assert len(FeatureCache(tmp_path, 2)) == 6


def damage(folder: Path) -> Iterator[None]:
    for file in folder.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-5])
        yield


def test_a_damaged_segment_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = FeatureCache(tmp_path, 2)
    cache.keep({key: np.ones(2, np.float32) for key in list_keys(3)})
    cache.flush()
    assert len(list(damage(tmp_path))) == 1
    assert len(FeatureCache(tmp_path, 2)) == 0
    assert "damaged and left out" in caplog.text


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "cache", 2)
    cache.keep({key: np.ones(2, np.float32) for key in list_keys(3)})
    cache.flush()
    assert "cannot be written" in caplog.text
    assert set(cache.find(list_keys(3))) == set(list_keys(3))


def test_another_extractor_has_another_cache(clip: Extractor) -> None:
    other = ClipExtractor("other", STARTER_FOLDER / "starter-clip")
    assert hash_extractor(other) != hash_extractor(clip)
    assert hash_extractor(ClipExtractor("starter-clip", STARTER_FOLDER / "starter-clip")) == hash_extractor(clip)


def test_grey_and_single_coloured_pictures_have_features(clip: Extractor) -> None:
    pictures = [encode_picture("0", np.zeros((64, 64, 3), np.uint8)), encode_picture("1", np.full((8, 8), 7, np.uint8))]
    assert np.isfinite(collect_features(pictures, clip).matrix).all()


@pytest.mark.parametrize(
    ("config", "resize"),
    [
        ({"size": 224, "crop_size": 200, "resample": 3}, "bicubic, antialiased, shortest edge 224, centre 200x200"),
        ({"size": {"height": 64, "width": 48}, "resample": 2, "do_center_crop": False}, "bilinear, antialiased, 64x48"),
    ],
)
def test_a_clips_resize_is_read_from_its_config(config: dict[str, Any], resize: str, tmp_path: Path) -> None:
    for file in (STARTER_FOLDER / "starter-clip").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **config})
    )
    assert open_extractor(str(tmp_path)).resize == resize


def test_cached_features_need_no_torch() -> None:
    program = (
        "import sys; import dgate_core.evaluation.corpus, dgate_core.evaluation.feature_set;"
        "from dgate_core.evaluation.features.extractor import open_extractor; open_extractor('starter-clip').resize;"
        "sys.exit(sorted({'torch', 'transformers', 'scipy'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_segments_unused_longest_leave_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "extractor"
    for number in range(3):
        cache = FeatureCache(folder, 4)
        cache.keep({f"{number:064x}": np.full(4, number, np.float32)})
        cache.flush()
    segments = sorted(folder.glob("*.keys"), key=lambda keys: float(np.load(keys.with_suffix(".npy"))[0, 0]))
    opened = FeatureCache(folder, 4)
    for age, keys in zip((200.0, 100.0, 300.0), segments, strict=True):
        os.utime(keys, (1e9, 1e9 - age))
    size = sum(file.stat().st_size for file in folder.iterdir()) / 3
    assert prune_features(tmp_path, 2.5 * size) == 1
    assert set(folder.glob("*.keys")) == set(segments[:2])
    assert opened.find([f"{2:064x}"])[f"{2:064x}"].tolist() == [2.0] * 4, "who has it open keeps it"
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(ConfigError, match="DGATE_FEATURE_CACHE_GB=much"):
        open_feature_cache(open_extractor("starter-clip"), tmp_path)
