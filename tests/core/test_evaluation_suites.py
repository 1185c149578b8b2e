"""Prompt suites: drawn again from their seeds, pinned, disjoint where they must be, and found when installed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dgate_core import data_files
from dgate_core.data_files import find_data_file
from dgate_core.errors import ManifestError, UsageError
from dgate_core.evaluation.postcard_suites import SKILLS, draw_postcards, suite_to_lines
from dgate_core.manifest.captions import captions_to_manifest
from dgate_core.manifest.overlap import PromptOverlapError, check_no_overlap, normalise_prompt, read_prompts
from dgate_core.manifest.read import open_manifest
from dgate_core.manifest.suites import SuiteCard, find_suite, list_suites, locate_suite
from dgate_core.postcards import is_held_out, parse_caption
from dgate_core.postcards.caption import TEMPLATES

SUITES = {card.name: card for card in list_suites()}
ROOT = Path(__file__).resolve().parents[2]


def read_rows(card: SuiteCard) -> list[dict[str, str]]:
    return [json.loads(line) for line in locate_suite(card.name).read_text().splitlines()]


def test_the_suites_that_ship() -> None:
    counts = {name: card.count for name, card in SUITES.items()}
    assert counts == {
        "postcards-1k": 1000,
        "postcards-calibration": 128,
        "postcards-compose": 300,
        "postcards-smoke": 64,
    }


@pytest.mark.parametrize("name", SUITES)
def test_drawing_a_suite_again_gives_the_same_bytes(name: str) -> None:
    lines = suite_to_lines(SUITES[name])
    assert lines == find_data_file(f"suites/{name}.jsonl").read_bytes()
    assert hashlib.sha256(lines).hexdigest() == SUITES[name].sha256


@pytest.mark.parametrize("name", SUITES)
def test_every_row_is_of_the_split_and_the_skill_that_it_names(name: str) -> None:
    rows = read_rows(SUITES[name])
    assert len({normalise_prompt(row["prompt"]) for row in rows}) == len(rows) == SUITES[name].count
    for row in rows:
        scene = parse_caption(row["prompt"])
        assert is_held_out(scene) == (row["split"] == "held_out")
        assert SKILLS[row["skill"]](scene)


def test_held_out_phrasing_is_in_no_sentence_that_training_uses() -> None:
    assert not set(TEMPLATES["train"]) & set(TEMPLATES["held_out"])
    assert any(row["phrasing"] == "held_out" for row in read_rows(SUITES["postcards-smoke"]))


def test_no_suite_is_drawn_from_a_training_seed() -> None:
    # finetune/starter/scenes.py draws chunk n of seed s from (s, n), s from 0 to 9.
    seeds = [card.seed for card in SUITES.values()]
    assert all(seed[0] > 9 for seed in seeds)
    assert len(set(seeds)) == len(seeds)


def test_a_suite_is_a_manifest() -> None:
    manifest = open_manifest(["suite:postcards-smoke@1"])
    assert manifest.sha256 == SUITES["postcards-smoke"].sha256
    assert manifest.sources[0].name == "suite:postcards-smoke@1"
    assert sum(batch.rows for batch in manifest.read_batches()) == 64
    assert set(manifest.extras) == {"split", "phrasing", "skill"}


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(ManifestError, match="did you mean 'postcards-smoke'"):
        open_manifest(["suite:postcards-smok"])
    with pytest.raises(ManifestError, match="has version 1, not 7"):
        find_suite("suite:postcards-1k@7")


def test_a_changed_suite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "datasets", tmp_path / "datasets")
    monkeypatch.setattr(data_files, "PACKAGED", tmp_path)
    path = tmp_path / "datasets/suites/postcards-smoke.jsonl"
    path.write_text(path.read_text().replace("orange", "purple", 1))
    with pytest.raises(ManifestError, match="is not the suite postcards-smoke@1"):
        open_manifest(["suite:postcards-smoke"])


class TestOverlap:
    def test_calibration_shares_no_prompt_with_any_evaluation_suite(self) -> None:
        judged = [f"suite:{name}" for name, card in SUITES.items() if card.purpose == "evaluation"]
        assert len(judged) == 3
        check_no_overlap(read_prompts(["suite:postcards-calibration"]), read_prompts(judged))

    def test_a_shared_prompt_is_named_however_it_is_written(self) -> None:
        with pytest.raises(PromptOverlapError) as caught:
            check_no_overlap(
                ["a dog", " A red boat,  AT sea.", "a cat", "ｔｗｏ cars"],
                ["two cars!", "a red boat at sea", "a red car"],
            )
        assert (
            caught.value.got == "2 calibration prompts are evaluation prompts: ' A red boat,  AT sea.', 'ｔｗｏ cars'"
        )

    def test_many_are_counted_and_the_first_are_shown(self) -> None:
        prompts = [f"boat {number}" for number in range(9)]
        with pytest.raises(PromptOverlapError, match=r"9 calibration prompts .* 'boat 2' and 6 more"):
            check_no_overlap(prompts, reversed(prompts))

    def test_prompts_without_words_are_compared_as_they_are(self) -> None:
        check_no_overlap(["♥ ♥"], ["♣", "…"])
        with pytest.raises(PromptOverlapError):
            check_no_overlap(["♥  ♥"], ["♥ ♥"])


def test_drawing_keeps_scene_and_prompt_together() -> None:
    for postcard in draw_postcards(SUITES["postcards-compose"])[:50]:
        told = parse_caption(postcard.prompt)
        assert (told.objects, told.ground, told.sky) == (
            postcard.scene.objects,
            postcard.scene.ground,
            postcard.scene.sky,
        )


def test_a_caption_table_becomes_a_manifest(tmp_path: Path) -> None:
    table = tmp_path / "captions_source.tsv"
    table.write_text('id\timage_id\tcaption\n70\t227049\tA city at night.\n277\t2\t"A ""big"" clock"\n')
    assert captions_to_manifest(table, tmp_path / "m.jsonl", {"num_inference_steps": 20}) == 2
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert rows[0] == {"id": "70", "prompt": "A city at night.", "num_inference_steps": 20}
    assert rows[1]["prompt"] == 'A "big" clock'
    (tmp_path / "bad.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ManifestError, match="has the columns a, b"):
        captions_to_manifest(tmp_path / "bad.tsv", tmp_path / "n.jsonl", {})


@pytest.mark.parametrize("with_data", [True, False])
def test_data_is_found_beside_hugging_face_datasets(tmp_path: Path, with_data: bool) -> None:
    """As pip installs a wheel: no checkout, and a package that is called datasets next door."""
    package = tmp_path / "dgate_core"
    package.mkdir()
    for name in ("__init__.py", "errors.py", "data_files.py"):
        shutil.copy(ROOT / "dgate_core" / name, package)
    (tmp_path / "datasets" / "suites").mkdir(parents=True)
    if with_data:
        shutil.copytree(ROOT / "datasets", package / "_data" / "datasets")
    script = "from dgate_core.data_files import find_data_file as f; print(f('suites/postcards-smoke.yaml'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    if with_data:
        assert done.stdout.strip() == str(package / "_data/datasets/suites/postcards-smoke.yaml")
    else:
        assert "UsageError: the data of D-Gate is neither" in done.stderr


def test_a_file_that_does_not_come_along_is_named() -> None:
    with pytest.raises(UsageError, match=r"no datasets/suites/nothing\.jsonl"):
        find_data_file("suites/nothing.jsonl")
