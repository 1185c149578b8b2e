"""A folder belongs to one run: anything else is refused by name, and what was cut off is planned anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dgate_core.engine.begin import open_run
from dgate_core.engine.local import hold_run
from dgate_core.errors import RunError, RunMismatchError, StorageError
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from tests.run_lab import list_prompts, write_manifest


@pytest.fixture
def settings(checkpoint: str) -> RunSettings:
    return RunSettings(model=checkpoint, precision="float32")


@pytest.fixture
def planned(settings: RunSettings, tmp_path: Path) -> tuple[str, str, RunSettings]:
    manifest, out = write_manifest(tmp_path / "m.jsonl", list_prompts(5)), str(tmp_path / "run")
    assert open_run([manifest], out, settings).is_new
    assert not open_run([manifest], out, settings).is_new
    return manifest, out, settings


def test_another_manifest(planned: tuple[str, str, RunSettings], tmp_path: Path) -> None:
    _, out, settings = planned
    other = write_manifest(tmp_path / "other.jsonl", list_prompts(6))
    with pytest.raises(RunMismatchError, match=r"manifest_sha256: there '[0-9a-f]{64}', now '[0-9a-f]{64}'") as refused:
        open_run([other], out, settings)
    assert "spec" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"guidance_scale": 3.0}, "spec.defaults.guidance_scale: there None, now 3.0"),
        ({"seed": 5}, "spec.seed: there 0, now 5"),
        ({"precision": "bfloat16"}, "spec.precision: there 'float32', now 'bfloat16'"),
        ({"container": "webdataset"}, "spec.image.container: there 'files', now 'webdataset'"),
        ({"model": "starter-unet"}, "spec.defaults.model: there '/"),
    ],
)
def test_another_setting(planned: tuple[str, str, RunSettings], changes: dict[str, Any], named: str) -> None:
    manifest, out, settings = planned
    values = {name: getattr(settings, name) for name in ("model", "precision")}
    with pytest.raises(RunMismatchError) as refused:
        open_run([manifest], out, RunSettings(**{**values, **changes}))
    assert named in str(refused.value)


def test_options_may_change(planned: tuple[str, str, RunSettings]) -> None:
    manifest, out, settings = planned
    other = RunSettings(model=settings.model, precision="auto", lanes=7, batch_size=3, rows_per_shard=2)
    assert not open_run([manifest], out, other).is_new


def test_another_checkpoint_under_the_same_name(checkpoint: str, tmp_path: Path) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    settings = RunSettings(model=str(model), precision="float32")
    manifest, out = write_manifest(tmp_path / "m.jsonl", list_prompts(2)), str(tmp_path / "run")
    open_run([manifest], out, settings)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RunMismatchError) as refused:
        open_run([manifest], out, settings)
    assert f"models.{model}: there " in str(refused.value)
    shutil.rmtree(model)
    with pytest.raises(RunMismatchError, match="not to be had"):
        open_run([manifest], out, settings)


def test_a_folder_with_other_files(settings: RunSettings, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", list_prompts(2))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(RunError, match=r"cat\.jpg and no run\.json"), hold_run(_store(tmp_path / "photos"), 60.0):
        open_run([manifest], str(tmp_path / "photos"), settings)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    with pytest.raises(StorageError, match="is a file"):
        open_run([manifest], str(tmp_path / "photos" / "cat.jpg"), settings)


@pytest.mark.parametrize("lost", [("run.json",), ("run.json", "plan/shards.parquet")])
def test_a_plan_that_was_cut_off_is_planned_anew(
    planned: tuple[str, str, RunSettings], tmp_path: Path, lost: tuple[str, ...]
) -> None:
    manifest, out, settings = planned
    before = {path.name: path.read_bytes() for path in Path(out, "plan").iterdir()}
    for name in lost:
        Path(out, name).unlink()
    Path(out, "plan", "part-00001.parquet").write_bytes(b"of a longer plan")
    Path(out, "plan", ".dgate-draft-0123456789abcdef").write_bytes(b"half")
    assert open_run([manifest], out, settings).is_new
    after = {path.name: path.read_bytes() for path in Path(out, "plan").glob("*.parquet")}
    assert after == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "damaged"),
        ('{"format": 1, "state"', "damaged"),
        ("[1]", "holds no object"),
        ('{"format": 1, "state": "planned"}', "lacks fingerprint, spec"),
        ("\udcff", "damaged"),
    ],
)
def test_a_broken_run_json(planned: tuple[str, str, RunSettings], text: str, said: str) -> None:
    manifest, out, settings = planned
    Path(out, "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=said) as refused:
        open_run([manifest], out, settings)
    assert "another --out" in str(refused.value)


def test_a_run_of_a_newer_version(planned: tuple[str, str, RunSettings]) -> None:
    manifest, out, settings = planned
    run = json.loads(Path(out, "run.json").read_text())
    Path(out, "run.json").write_text(json.dumps({**run, "format": 2}))
    with pytest.raises(RunError, match="its format is 2, and this version of D-Gate reads 1"):
        open_run([manifest], out, settings)


def _store(folder: Path) -> RunStore:
    return RunStore(open_storage(folder))
