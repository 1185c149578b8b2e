"""Exports, read back as GenEval, T2I-CompBench and HPSv2 read them: their loops, without their networks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from dgate_core.errors import UsageError
from dgate_core.evaluation.exporters.export import Export, ExportError, ExportOptions, export_run
from tests.finished_run import make_run
from tests.run_lab import Driver, Order, write_manifest

MANIFEST: list[dict[str, Any]] = [
    {
        "id": "bench",
        "prompt": "a photo of a bench",
        "num_images": 3,
        "tag": "single_object",
        "include": [{"class": "bench", "count": 1}],
        "style": "photo",
    },
    {
        "id": "dog",
        "prompt": "a photo of a red dog left of a cup.",
        "tag": "position",
        "include": [
            {"class": "cup", "count": 1},
            {"class": "dog", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
        "exclude": [{"class": "dog", "count": 2}],
        "style": "anime",
    },
    {"id": "boats", "prompt": "two small red boats and a white house on the sea at night", "style": "photo"},
]


@pytest.fixture(scope="module")
def run(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real run of five pictures of noise; the manifest's own columns went through planning and results."""
    folder = tmp_path_factory.mktemp("exported")
    manifest = write_manifest(folder / "m.jsonl", [{**row, "num_inference_steps": 1} for row in MANIFEST])
    settings = {"model": checkpoint, "precision": "float32"}
    answer = Driver(Order(str(folder / "run"), manifest, settings)).wait(280.0)
    assert answer.run["counts"]["ok"] == 5, answer.message
    return str(folder / "run")


def read_as_geneval(folder: Path) -> list[tuple[dict[str, Any], Path]]:
    """The loop of evaluation/evaluate_images.py: every picture with its metadata."""
    found = []
    for place in folder.iterdir():
        if not place.is_dir() or not place.name.isdigit():
            continue
        metadata = json.loads((place / "metadata.jsonl").read_text())
        samples = [path for path in (place / "samples").iterdir() if path.is_file()]
        found += [(metadata, path) for path in samples if re.match(r"\d+\.png", path.name)]
    return sorted(found, key=lambda pair: pair[1])


def read_as_t2i_compbench(folder: Path) -> list[tuple[str, int, Path]]:
    """As BLIP_vqa.py, CLIP_similarity.py and UniDet's dataset do: prompt and number from the name, sorted by number."""
    names = [path.name for path in (folder / "samples").iterdir()]
    names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))
    assert names == sorted(names, key=lambda name: int(name.split("_")[1].split(".")[0]))
    return [(name.split("_")[0], int(name.split("_")[-1].split(".")[0]), folder / "samples" / name) for name in names]


def read_as_hpsv2(pictures: Path, prompts: Path) -> dict[str, list[tuple[str, Path]]]:
    """BenchmarkDataset of hpsv2/evaluation.py: the picture of prompt number n of each style is n with five digits."""
    return {
        style.name: [
            (prompt, style / f"{number:05d}.jpg")
            for number, prompt in enumerate(json.loads((prompts / f"{style.name}.json").read_text()))
        ]
        for style in pictures.iterdir()
    }


class TestGenEval:
    def test_reading_back(self, run: str, tmp_path: Path) -> None:
        done = export_run(run, "geneval", str(tmp_path / "out"))
        found = read_as_geneval(tmp_path / "out")
        assert (done.pictures, done.expected, done.missing, len(found)) == (5, 5, 0, 5)
        assert [path.relative_to(tmp_path / "out").as_posix() for _, path in found] == [
            "00000/samples/00000.png",
            "00000/samples/00001.png",
            "00000/samples/00002.png",
            "00001/samples/00000.png",
            "00002/samples/00000.png",
        ]
        for (_, path), row in zip(found, read_results(run), strict=True):
            assert path.read_bytes() == (Path(run) / row["path"]).read_bytes()

    def test_metadata_is_the_manifests_own_without_the_nulls_of_tables(self, run: str, tmp_path: Path) -> None:
        export_run(run, "geneval", str(tmp_path))
        metadata = [found for found, _ in read_as_geneval(tmp_path)][2:]
        keys = ("tag", "include", "exclude", "prompt")
        assert metadata[0] == {key: MANIFEST[0][key] for key in keys if key in MANIFEST[0]}
        assert metadata[1] == {key: MANIFEST[1][key] for key in keys}

    def test_a_postcard_caption_says_what_must_be_seen(self, run: str, tmp_path: Path) -> None:
        export_run(run, "geneval", str(tmp_path))
        assert read_as_geneval(tmp_path)[4][0] == {
            "tag": "counting",
            "include": [
                {"class": "boat", "count": 2, "color": "red"},
                {"class": "house", "count": 1, "color": "white"},
            ],
            "prompt": MANIFEST[2]["prompt"],
        }

    def test_a_prompt_that_would_always_count_as_right_is_refused(self, tmp_path: Path) -> None:
        uri = make_run(tmp_path / "run", ["a photo of a bench"])
        with pytest.raises(ExportError, match="does not say what must be seen in 'a photo of a bench'"):
            export_run(uri, "geneval", str(tmp_path / "out"))


class TestT2ICompBench:
    def test_reading_back(self, run: str, tmp_path: Path) -> None:
        export_run(run, "t2i-compbench", str(tmp_path))
        found = read_as_t2i_compbench(tmp_path)
        assert [prompt for prompt, _, _ in found] == [row["prompt"] for row in read_results(run)]
        assert [number for _, number, _ in found] == [0, 1, 2, 3, 4]
        with Image.open(found[3][2]) as picture:
            assert (picture.format, picture.size) == ("PNG", (32, 32))

    @pytest.mark.parametrize(
        ("prompt", "why"),
        [
            ("a_b", "holds '_'"),
            ("a/b", "holds '/'"),
            ("é" * 130, "has 260 bytes"),
            ("a\nb", "holds a control character"),
        ],
    )
    def test_a_prompt_that_cannot_be_a_name_is_refused(self, prompt: str, why: str, tmp_path: Path) -> None:
        uri = make_run(tmp_path / "run", ["fine", prompt])
        with pytest.raises(ExportError, match=f"1 prompts cannot be file names; that of the row 'row-1' {why}"):
            export_run(uri, "t2i-compbench", str(tmp_path / "out"))


class TestHPSv2:
    def test_reading_back(self, run: str, tmp_path: Path) -> None:
        done = export_run(run, "hpsv2", str(tmp_path))
        found = read_as_hpsv2(tmp_path / "images", tmp_path / "prompts")
        assert {style: [prompt for prompt, _ in rows] for style, rows in found.items()} == {
            "photo": [MANIFEST[0]["prompt"], MANIFEST[2]["prompt"]],
            "anime": [MANIFEST[1]["prompt"]],
        }
        for rows in found.values():
            for _, path in rows:
                with Image.open(path) as picture:
                    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (32, 32))
        assert (done.pictures, done.left_out) == (3, 2)
        assert "2 prompts of the style photo" in done.warnings[0]

    def test_a_row_without_a_style_takes_the_given_one_or_is_refused(self, tmp_path: Path) -> None:
        uri = make_run(tmp_path / "run", ["a dog"])
        with pytest.raises(ExportError, match="the row 'row-0' has no style"):
            export_run(uri, "hpsv2", str(tmp_path / "out"))
        export_run(uri, "hpsv2", str(tmp_path / "out"), ExportOptions(style="paintings"))
        assert list(read_as_hpsv2(tmp_path / "out/images", tmp_path / "out/prompts")) == ["paintings"]


class TestMissingPictures:
    @pytest.mark.parametrize("layout", ["geneval", "t2i-compbench", "hpsv2"])
    def test_they_are_refused(self, layout: str, tmp_path: Path) -> None:
        uri = make_run(tmp_path / "run", ["a dog", None, "a cat"])
        with pytest.raises(ExportError, match="1 of 3 pictures are missing"):
            export_run(uri, layout, str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_they_may_be_left_out_where_the_tool_does_not_take_another(self, tmp_path: Path) -> None:
        uri = make_run(tmp_path / "run", ["a dog", None, "a cat"])
        done = export_run(uri, "t2i-compbench", str(tmp_path / "out"), ExportOptions(allow_missing=True))
        assert (done.pictures, done.expected, done.missing) == (2, 3, 1)
        with pytest.raises(ExportError, match="would score another picture in their place"):
            export_run(uri, "hpsv2", str(tmp_path / "none"), ExportOptions(allow_missing=True, style="photo"))


def test_duplicates_come_with_the_first_ones_picture(tmp_path: Path) -> None:
    uri = make_run(tmp_path / "run", ["a dog", "a dog"], statuses=["ok", "duplicate"])
    done: Export = export_run(uri, "t2i-compbench", str(tmp_path / "out"))
    assert [prompt for prompt, _, _ in read_as_t2i_compbench(tmp_path / "out")] == ["a dog", "a dog"]
    assert done.pictures == 2


def test_a_used_folder_is_refused(run: str, tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"")
    with pytest.raises(ExportError, match=r"holds old\.png"):
        export_run(run, "geneval", str(tmp_path))


def test_an_unknown_layout_names_the_nearest(run: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'geneval'"):
        export_run(run, "genevel", str(tmp_path))


def read_results(run: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(run) / "results.parquet").to_pylist()
    return rows
