"""`dgate models show | verify | import`: what is said, and with which exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dgate_core.engine.begin import open_run
from dgate_core.engine.lane import Lane, LaneOptions
from dgate_core.engine.stopping import StopSignal
from dgate_core.models.aliases import REGISTRY_VARIABLE
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.structure import find_misfits
from dgate_core.runs.settings import RunSettings
from flows.cli import main
from tests.tiny import make_sd, make_sdxl
from tests.tiny_dit import make_flux, make_pixart, make_qwen_image, make_sd3, make_z_image

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd(tmp_path_factory.mktemp("commands"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `dgate models …`; exit code and what was printed."""
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "registry" / "models.json"))
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            main(["models", *map(str, arguments)])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out + printed.err

    return run


def test_show_tells_all_of_a_model_that_is_here(call: Call) -> None:
    code, text = call("show", "starter-unet")
    assert code == 0
    for word in ("StableDiffusionPipeline (family unet)", "Apache-2.0", "text_encoder", "bfloat16", "unet/config.json"):
        assert word in text
    described = json.loads(call("show", "starter-unet", "--json")[1])
    assert described["checkpoint"]["weights_hash"] == find_checkpoint("starter-unet").weights_hash
    assert described["memory"]["float32"]["weights_bytes"] == 2 * described["memory"]["float16"]["weights_bytes"]
    assert {file["path"] for file in described["files"]} >= {"model_index.json", "vae/config.json"}


def test_show_says_what_is_missing(call: Call, folder: Path) -> None:
    code, text = call("show", "flux-dev")
    assert code == 0
    assert "FLUX.1 [dev] Non-Commercial License (gated)" in text
    assert "dgate models pull flux-dev" in text
    shutil.rmtree(folder / "vae")
    code, text = call("show", folder)
    assert "names 'vae'" in text
    code, text = call("show", "flux-deev")
    assert (code, "did you mean 'flux-dev'?" in text) == (1, True)


def test_show_names_the_aliases(call: Call) -> None:
    call("promote", "production", "starter-unet")
    assert "aliases      production" in call("show", "starter-unet")[1]
    assert "starter-unet" in call("show", "production")[1]


def test_an_imported_name_works_as_a_model(call: Call, folder: Path, tmp_path: Path) -> None:
    code, text = call("import", folder, "--name", "boats", "--licence", "MIT", "--steps", 3, "--guidance", 1.5)
    assert code == 0
    assert "--model boats" in text
    assert "boats" in call("list")[1]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text('{"prompt": "a boat"}\n')
    settings = RunSettings(model="boats", precision="float32", lanes=1)
    store = open_run([str(manifest)], str(tmp_path / "run"), settings).store
    assert store.read_run()["models"]["boats"]["licence"] == "MIT"
    report = Lane(store, LaneOptions(device="cpu"), StopSignal()).work()
    assert (report.ok, report.failed) == (1, 0)
    rows = store.read_rows(0).to_pylist()
    assert (rows[0]["num_inference_steps"], rows[0]["guidance_scale"], rows[0]["model"]) == (3, 1.5, "boats")
    assert call("promote", "boats", "starter-unet")[0] == 1, "a model's name is no alias"
    call("promote", "production", "boats")
    assert find_checkpoint("production").weights_hash == find_checkpoint(str(folder)).weights_hash


def test_verify_finds_damage_and_names_the_file(call: Call, folder: Path) -> None:
    call("import", folder, "--name", "boats")
    assert call("verify", "boats")[0] == 0
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    code, text = call("verify", "boats")
    assert code == 1
    assert "damaged    unet/diffusion_pytorch_model.safetensors: sha256" in text
    file.write_bytes(data[:-7])
    code, text = call("verify", "boats")
    assert code == 1
    assert "is cut off: 7 bytes are missing" in text
    file.unlink()
    code, text = call("verify", "boats")
    assert code == 1
    assert "missing    unet/diffusion_pytorch_model.safetensors" in text
    assert "boats is DAMAGED" in text


def test_verify_holds_the_configs_against_the_weights(call: Call, folder: Path) -> None:
    assert call("verify", folder)[0] == 0
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [16, 64]}))
    code, text = call("verify", folder)
    assert code == 1
    assert "damaged    unet: " in text
    assert "the config wants" in text
    config.write_text("{")
    assert "damaged    unet/config.json" in call("verify", folder)[1]


@pytest.mark.parametrize(
    "make",
    [make_sd, make_sdxl, make_sd3, make_flux, make_pixart, make_qwen_image, make_z_image],
    ids=lambda make: make.__name__,
)
def test_every_family_fits_its_own_configs(make: Callable[[Path], Path], tmp_path: Path) -> None:
    assert find_misfits(make(tmp_path)) == []


def test_what_cannot_be_imported(call: Call, folder: Path, tmp_path: Path) -> None:
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"\x80\x04cos\nsystem\n")
    for arguments, word in (
        ((tmp_path / "nothing", "--name", "x"), "there is no"),
        ((pickle, "--name", "x"), "run any code"),
        ((folder, "--name", "sdxl"), "is a model of the catalogue"),
        ((folder, "--name", "a/b"), "small letters"),
    ):
        code, text = call("import", *arguments)
        assert (code, word in text) == (1, True), text
    assert call("import", folder, "--name", "x", "--guidance", "nan")[0] == 2
    (folder / "model_index.json").write_text('{"_class_name": "StableVideoPipeline"}')
    code, text = call("import", folder, "--name", "x")
    assert (code, "unknown pipeline class" in text) == (1, True)
    assert call("verify", "sdxl")[1].startswith("error: sdxl is not on this machine")
    assert "dgate models pull s3://" in call("show", "s3://bucket/models/boats")[1]


def test_a_name_is_given_anew_only_when_that_is_said(call: Call, folder: Path) -> None:
    assert call("import", folder, "--name", "mine")[0] == 0
    assert call("import", folder, "--name", "mine")[0] == 0, "the same again is no other"
    code, text = call("import", folder, "--name", "mine", "--steps", "4")
    assert (code, "--replace" in text) == (1, True), text
    assert call("import", folder, "--name", "mine", "--steps", "4", "--replace")[0] == 0
    assert "4" in call("show", "mine")[1]


def test_a_folder_serves_as_a_mirror_too(call: Call, folder: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    code, text = call("import", folder, "--name", "boats", "--to", mirror)
    assert code == 0, text
    code, text = call("pull", "boats", "--from", mirror)
    assert code == 0, text
    assert "boats is here and whole" in text
    assert call("verify", "boats")[0] == 0
    code, text = call("pull", "ships", "--from", mirror)
    assert code == 1
    assert "there is nothing at" in text
