"""Checkpoints by path: what opens, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from dgate_core.errors import ModelError
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.families.contract import LoadOptions
from dgate_core.models.families.unet import UNetFamily
from tests.original_layout import write_original
from tests.tiny import make_sd


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model whose text encoder is as wide as that of SD 1.x, and comes in at the same level."""
    return make_sd(tmp_path_factory.mktemp("wide"), width=768, attends=(True, False))


@pytest.fixture
def folder(wide: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(wide, tmp_path / "model"))


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        UNetFamily().load(find_checkpoint(str(path)), LoadOptions(device="cpu", precision="float32"))
    return str(caught.value)


def test_single_file_opens_as_its_folder_does(folder: Path, tmp_path: Path) -> None:
    """A file in the original layout, its configs in the folder of its name beside it."""
    file = write_original(folder, tmp_path / "model.safetensors")
    checkpoint = find_checkpoint(str(file))
    assert (checkpoint.pipeline_class, checkpoint.family) == ("StableDiffusionPipeline", "unet")
    assert checkpoint.weights_hash != find_checkpoint(str(folder)).weights_hash
    opened = UNetFamily().load(checkpoint, LoadOptions(device="cpu", precision="float32")).pipeline
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(pipeline, part).state_dict()
        got = getattr(opened, part).state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(got[name], value) for name, value in expected.items()), part


def test_cut_off_single_file(folder: Path, tmp_path: Path) -> None:
    file = write_original(folder, tmp_path / "model.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert "is cut off: 100 bytes are missing" in refusal(file)


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["lora_unet_down.weight"], "a LoRA adapter"),
        (["double_blocks.0.img_attn.qkv.weight"], "a Flux transformer"),
        (["something.weight"], "no checkpoint that is known here (1 tensors)"),
    ],
)
def test_single_file_of_another_kind(tmp_path: Path, names: list[str], word: str) -> None:
    file = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(2, 2) for name in names}, file)
    assert word in refusal(file)


def test_file_that_is_no_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "text.safetensors"
    file.write_text("hello, this is a text")
    assert "is not a safetensors file" in refusal(file)


def test_pickle_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"\x80\x04cos\nsystem\n")
    assert "pickle" in refusal(file)


def test_folder_with_pickled_weights(folder: Path) -> None:
    for file in (folder / "unet").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    assert "opening one can run any code" in refusal(folder)


def test_folder_without_a_part(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    assert "names 'vae'" in refusal(folder)


def test_half_downloaded_weights(folder: Path) -> None:
    file = next((folder / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    assert "is cut off: 1 bytes are missing" in refusal(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_tensor_is_missing(folder: Path, part: str) -> None:
    """The libraries would fill it with random numbers."""
    file = next((folder / part).glob("*.safetensors"))
    weights = load_file(file)
    lost = next(name for name in weights if name.endswith("weight"))
    save_file({name: value for name, value in weights.items() if name != lost}, file, metadata={"format": "pt"})
    assert "lack" in refusal(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    file = next((folder / "unet").glob("*.safetensors"))
    weights = load_file(file)
    name = "conv_in.weight"
    save_file(weights | {name: torch.zeros(3, 3, 3, 3)}, file, metadata={"format": "pt"})
    assert "does not load as StableDiffusionPipeline" in refusal(folder)


def test_pipeline_class_of_no_family(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipelin"}))
    assert "did you mean 'StableDiffusionPipeline'" in refusal(folder)


def test_path_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no" in refusal(tmp_path / "nothing")


def test_name_is_nearly_right() -> None:
    with pytest.raises(ModelError, match="did you mean 'starter-unet'"):
        find_checkpoint("starter-unnet")


def test_hub_model_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One clear error soon, and not minutes of tries."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="is not on this machine and the hub gave"):
        find_checkpoint("hf://somebody/something")
