"""Reference sets: the same pictures from any source, pinned by their cards, measured once for each extractor."""

from __future__ import annotations

import io
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from dgate_core.errors import ConfigError
from dgate_core.evaluation.feature_set import hash_picture_set
from dgate_core.evaluation.features.extractor import Extractor, open_extractor
from dgate_core.evaluation.picture_sets import PictureSource, find_source, read_source
from dgate_core.evaluation.reference_cards import find_reference_card, list_reference_cards, read_reference_card
from dgate_core.evaluation.references import Place, locate_statistics, measure_reference, open_reference
from dgate_core.evaluation.results import EvaluationError
from dgate_core.evaluation.statistics import ReferenceStatistics, write_reference
from dgate_core.postcards import parse_caption, render_scene
from dgate_core.storage import open_storage
from tests.finished_run import make_run
from tests.reports.sample_run import pack_tar

COUNT = 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Statistics and notes of this test alone."""
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def clip() -> Extractor:
    return open_extractor("starter-clip")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """PNG files of postcards by their names."""
    found = {}
    for number in range(COUNT):
        scene = parse_caption(
            f"a {('red', 'blue', 'white')[number % 3]} {('boat', 'tree')[number % 2]} on grass by day"
        )
        out = io.BytesIO()
        Image.fromarray(render_scene(scene, 64)).save(out, "PNG")
        found[f"{number:02d}.png"] = out.getvalue()
    return found


def write_folder(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return str(folder)


def write_card(path: Path, **values: object) -> str:
    path.write_text(yaml.safe_dump({"name": path.stem, "version": 1, **values}))
    return str(path)


class TestShippedCards:
    def test_every_card_says_source_licence_and_protocol(self) -> None:
        cards = {card.name: card for card in list_reference_cards()}
        assert set(cards) == {"postcards-1k", "postcards-smoke", "coco-2014-val", "user-folder"}
        for card in cards.values():
            assert card.title
            assert card.instructions
            assert card.protocol.extractors["inception-v3-fid"] == "bilinear, not antialiased, 299x299 (pytorch-fid)"

    def test_postcards_1k_is_what_its_card_pins(self) -> None:
        """A tenth of it here; `dgate reference build` compares all of it."""
        card = find_reference_card("postcards-1k@1")
        assert card is not None
        assert card.first is not None
        pictures = list(islice(read_source(card.source), card.first.count))
        assert hash_picture_set(picture.sha256 for picture in pictures) == card.first.sha256
        assert pictures[0].read().shape == (64, 64, 3)
        assert pictures[0].read().dtype == np.uint8

    def test_mlperf_protocol(self) -> None:
        card = find_reference_card("coco-2014-val")
        assert card is not None
        assert card.count == 5000
        assert card.protocol.generation["num_inference_steps"] == 20
        assert card.protocol.windows["fid"] == (23.01085758, 23.95007626)

    def test_a_set_that_is_elsewhere_asks_for_its_pictures(self) -> None:
        with pytest.raises(EvaluationError, match="dgate reference build coco-2014-val --pictures FOLDER"):
            open_reference("coco-2014-val")

    def test_an_unknown_name_names_the_nearest(self) -> None:
        with pytest.raises(EvaluationError, match="did you mean 'postcards-1k'"):
            open_reference("postcards-1")
        with pytest.raises(ConfigError, match="has version 1, not 2"):
            open_reference("postcards-1k@2")


class TestSources:
    def test_the_same_pictures_are_the_same_set_wherever_they_are(
        self, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        folder = write_folder(tmp_path / "folder", files)
        names = list(files)
        (tmp_path / "tars").mkdir()
        (tmp_path / "tars/0.tar").write_bytes(
            pack_tar({name: files[name] for name in names[3:]} | {"03.txt": b"words"})
        )
        (tmp_path / "tars/1.tar").write_bytes(pack_tar({f"x/{name}": files[name] for name in names[:3]}))
        pq.write_table(pa.table({"n": range(COUNT), "jpg": list(files.values())}), tmp_path / "plain.parquet")
        structs = [{"bytes": data, "path": name} for name, data in files.items()]
        pq.write_table(pa.table({"image": structs}), tmp_path / "hub.parquet")
        places = [folder, tmp_path / "tars", tmp_path / "plain.parquet", tmp_path / "hub.parquet"]
        opened = [open_reference(str(place)) for place in places]
        assert [each.card.source.kind for each in opened] == ["folder", "webdataset", "parquet", "parquet"]
        assert {(each.sha256, each.count) for each in opened} == {(opened[0].sha256, COUNT)}

    def test_a_bucket(self, files: dict[str, bytes], s3_uri: str) -> None:
        storage = open_storage(s3_uri)
        storage.write_bytes("set/a.tar", pack_tar(files))
        for name, data in files.items():
            storage.write_bytes(f"loose/{name}", data)
        one, two = open_reference(f"{s3_uri}/set/a.tar"), open_reference(f"{s3_uri}/loose")
        assert one.sha256 == two.sha256
        assert one.count == COUNT

    def test_a_run_is_a_set_of_the_pictures_that_it_made(self, tmp_path: Path) -> None:
        source = find_source(make_run(tmp_path / "run", ["a dog", None, "a cat"]))
        assert source.kind == "run"
        assert [picture.read().shape for picture in read_source(source)] == [(16, 16, 3)] * 2

    def test_a_broken_picture_is_named(self, files: dict[str, bytes], tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "folder", {**files, "03.png": files["03.png"][:200]})
        with pytest.raises(EvaluationError, match=r"the reference picture 03\.png cannot be read"):
            [picture.read() for picture in read_source(PictureSource("folder", folder))]

    def test_nothing_there_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(EvaluationError, match="holds no pictures"):
            open_reference(str(tmp_path / "nothing"))


class TestCards:
    def test_a_card_of_ones_own_pins_its_pictures(self, files: dict[str, bytes], tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "pictures", files)
        source = {"kind": "folder", "uri": "pictures"}
        pinned = open_reference(folder)
        card = write_card(tmp_path / "mine.yaml", source=source, count=COUNT, sha256=pinned.sha256)
        assert open_reference(card).sha256 == pinned.sha256
        (Path(folder) / "00.png").unlink()
        with pytest.raises(EvaluationError, match=r"holds 5 pictures with sha256 .*\n  expected: 6 pictures"):
            open_reference(card)

    def test_the_place_of_a_set_is_remembered(self, files: dict[str, bytes], tmp_path: Path) -> None:
        card = write_card(tmp_path / "mine.yaml", source={"kind": "folder"})
        with pytest.raises(EvaluationError, match="are not known on this machine"):
            open_reference(card)
        folder = write_folder(tmp_path / "elsewhere", files)
        first = open_reference(card, Place(pictures=folder))
        assert open_reference(card).sha256 == first.sha256

    def test_a_label_opens_the_same_set_again(
        self, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_folder(tmp_path / "pictures", files)
        card = write_card(tmp_path / "mine.yaml", source={"kind": "folder", "uri": "pictures"})
        monkeypatch.chdir(tmp_path)
        labels = [open_reference(text).label for text in ("pictures", "mine.yaml", "postcards-1k")]
        monkeypatch.chdir("/")
        assert [label.split(" ")[0] for label in labels] == [folder, card, "postcards-1k@1"]
        assert [open_reference(label).label for label in labels] == labels
        (Path(folder) / "00.png").unlink()
        for label in labels[:2]:
            with pytest.raises(EvaluationError, match="as when it was used"):
                open_reference(label)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"sizes": 3}, "unknown setting 'sizes'"),
            ({"source": {"kind": "ftp"}}, "kind='ftp'"),
            ({"source": "pictures"}, "a mapping of key: value"),
            ({"first": {"count": 3}}, "sha256"),
        ],
    )
    def test_a_wrong_card_says_what_is_wrong(self, values: dict[str, object], message: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=message):
            read_reference_card(Path(write_card(tmp_path / "mine.yaml", **values)))


class TestStatistics:
    def test_they_are_those_of_the_features(self, files: dict[str, bytes], tmp_path: Path, clip: Extractor) -> None:
        reference = open_reference(write_folder(tmp_path / "pictures", files))
        found = measure_reference(reference, clip)
        pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files.values()]
        features = clip.extract(pixels).astype(np.float64)
        np.testing.assert_allclose(found.mean, features.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), atol=1e-5)
        assert (found.count, found.extractor, found.resize) == (COUNT, "starter-clip", clip.resize)
        assert (found.reference, found.reference_sha256) == ("pictures@1", reference.sha256)

    def test_they_are_made_once_for_the_same_pictures_and_protocol(
        self, files: dict[str, bytes], tmp_path: Path, clip: Extractor
    ) -> None:
        folder, told = write_folder(tmp_path / "pictures", files), list[str]()
        source = {"kind": "folder", "uri": folder}
        card = write_card(tmp_path / "mine.yaml", source=source)
        first = measure_reference(open_reference(card), clip, told.append)
        again = measure_reference(open_reference(card), clip, told.append)
        assert told == ["mine@1: 6 pictures through starter-clip"]
        assert np.array_equal(first.mean, again.mean)
        cropped = write_card(tmp_path / "mine.yaml", source=source, protocol={"pictures": "cropped to squares"})
        measure_reference(open_reference(cropped), clip, told.append)
        assert len(told) == 2

    def test_pictures_that_change_are_another_set(
        self, files: dict[str, bytes], tmp_path: Path, clip: Extractor
    ) -> None:
        folder = write_folder(tmp_path / "pictures", files)
        before = open_reference(folder)
        (Path(folder) / "00.png").write_bytes(files["01.png"])
        after = open_reference(folder)
        assert after.sha256 != before.sha256
        with pytest.raises(EvaluationError, match="the files changed meanwhile"):
            measure_reference(before, clip)
        assert not locate_statistics(before, clip).exists()

    def test_another_resize_than_the_cards_is_refused(
        self, files: dict[str, bytes], tmp_path: Path, clip: Extractor
    ) -> None:
        source = {"kind": "folder", "uri": write_folder(tmp_path / "pictures", files)}
        protocol = {"extractors": {"starter-clip": "nearest, 8x8"}}
        reference = open_reference(write_card(tmp_path / "mine.yaml", source=source, protocol=protocol))
        with pytest.raises(EvaluationError, match="nearest, 8x8, as the card of mine says"):
            measure_reference(reference, clip)

    def test_statistics_from_elsewhere(self, tmp_path: Path, clip: Extractor) -> None:
        mean, covariance = np.arange(clip.dimension, dtype=np.float64), np.eye(clip.dimension)
        write_reference(tmp_path / "clip.npz", ReferenceStatistics(mean, covariance, extractor="starter-clip"))
        reference = open_reference("coco-2014-val", Place(statistics=str(tmp_path / "clip.npz")))
        found = measure_reference(open_reference("coco-2014-val"), clip)
        assert np.array_equal(found.mean, mean)
        assert (found.reference, found.reference_sha256) == ("coco-2014-val@1", reference.sha256)
        assert found.weights_sha256 == clip.weights_sha256
        # pytorch-fid's own file names no extractor, so it is never taken for another one's.
        np.savez(tmp_path / "val2014.npz", mu=np.zeros(2048), sigma=np.eye(2048))
        with pytest.raises(EvaluationError, match=r"statistics of inception-v3-fid, 2048 numbers"):
            measure_reference(open_reference(str(tmp_path / "val2014.npz")), clip)


class TestCommands:
    def test_build_list_and_show(self, files: dict[str, bytes], tmp_path: Path) -> None:
        from flows.commands.reference import command

        folder = write_folder(tmp_path / "pictures", files)
        built = CliRunner().invoke(command, ["build", folder, "--extractor", "starter-clip"], catch_exceptions=False)
        assert f"pictures@1  6 pictures  sha256 {open_reference(folder).sha256}" in built.output
        assert "starter-clip  6 pictures  bicubic" in built.output
        listed = CliRunner().invoke(command, ["list"], catch_exceptions=False)
        assert "postcards-1k@1" in listed.output
        shown = CliRunner().invoke(command, ["show", "postcards-1k"], catch_exceptions=False)
        assert "drawn from suite:postcards-1k@1 at 64x64" in shown.output

    def test_suite_commands(self, tmp_path: Path) -> None:
        from flows.commands.suite import command

        for arguments in (
            ["list"],
            ["show", "postcards-smoke"],
            ["check", "suite:postcards-calibration", "suite:postcards-1k"],
        ):
            assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0
        CliRunner().invoke(command, ["export", "postcards-smoke", "--out", str(tmp_path / "s.jsonl")])
        assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 64
        (tmp_path / "c.tsv").write_text("id\tcaption\n7\tA clock.\n")
        arguments = [
            "convert",
            str(tmp_path / "c.tsv"),
            "--reference",
            "coco-2014-val",
            "--out",
            str(tmp_path / "c.jsonl"),
        ]
        CliRunner().invoke(command, arguments, catch_exceptions=False)
        row = json.loads((tmp_path / "c.jsonl").read_text())
        assert (row["prompt"], row["guidance_scale"], row["seed"]) == ("A clock.", 8.0, 0)
        assert "model" not in row
