"""Models by a hub on loopback: what arrives is checked, and what is refused is said in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dgate_core.errors import ModelError
from dgate_core.models.aliases import REGISTRY_VARIABLE
from dgate_core.models.catalog import CATALOG, find_checkpoint
from dgate_core.models.pull import PullSource, pull_model
from dgate_core.models.verify import verify_model
from tests.hub_server import Hub, run_hub
from tests.tiny import make_sd

NAME = "hf://somebody/boats"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub of this test, and an empty cache."""
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "models.json"))
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with run_hub(Hub({"somebody/boats": folder})) as served:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.endpoint)
        template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        yield served


def pull(name: str = NAME, *, offline: bool = False) -> Path:
    return pull_model(name, PullSource(offline=offline), lambda _: None)


def test_a_pulled_model_is_whole_and_needs_no_network_afterwards(hub: Hub, folder: Path) -> None:
    path = pull()
    assert find_checkpoint(NAME).weights_hash == find_checkpoint(str(folder)).weights_hash
    states = {file.path: file.state for file in verify_model(NAME, lambda _: None).files}
    assert states["unet/diffusion_pytorch_model.safetensors"] == "ok", "the hub's cache keeps its sha256"
    assert set(states.values()) == {"ok", "unrecorded"}
    hub.repositories.clear()
    assert pull(offline=True) == path


def test_damage_in_the_hub_s_cache_is_found(hub: Hub) -> None:
    file = pull() / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.resolve().write_bytes(data)
    found = verify_model(NAME, lambda _: None)
    assert not found.is_whole
    assert [each.path for each in found.files if each.state == "damaged"] == [
        "unet/diffusion_pytorch_model.safetensors"
    ]


def test_a_gated_model_says_which_licence_and_where(hub: Hub) -> None:
    hub.refusals[CATALOG["flux-dev"].source] = (403, "GatedRepo")
    with pytest.raises(ModelError) as caught:
        pull("flux-dev")
    told = str(caught.value)
    assert "FLUX.1 [dev] Non-Commercial License was not accepted" in told
    assert "accept it at https://huggingface.co/black-forest-labs/FLUX.1-dev" in told
    assert "HF_TOKEN" in told


def test_a_repository_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(ModelError, match="the hub has no somebody/ships"):
        pull("hf://somebody/ships")


def test_a_file_with_another_sha256_than_the_hub_says(hub: Hub) -> None:
    hub.wrong_sums = True
    with pytest.raises(ModelError, match="came with sha256"):
        pull()


def test_a_repository_of_pickles(hub: Hub, tmp_path: Path) -> None:
    folder = make_sd(tmp_path / "pickled")
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    hub.repositories["somebody/pickles"] = folder
    with pytest.raises(ModelError, match="holds a config and no weights"):
        pull("hf://somebody/pickles")


def test_offline_by_the_hub_s_own_variable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="offline mode"):
        pull("sdxl")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        find_checkpoint("sdxl")
