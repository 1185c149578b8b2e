"""Picture metrics against their reference implementations, on the same pictures and the same weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.multimodal import clip_score

from dgate_core.evaluation.chunk_features import ChunkFeatures
from dgate_core.evaluation.expected import ExpectedPicture
from dgate_core.evaluation.metrics import clip_score as our_clip_score
from dgate_core.evaluation.metrics import lpips_distance, psnr, ssim
from dgate_core.evaluation.picture_metric import Tools
from dgate_core.evaluation.pictures import Chunk, LoadedPicture
from dgate_core.evaluation.results import MissingWeightsError
from dgate_core.evaluation.weights.given import LPIPS_SQUEEZE, import_weights
from dgate_core.models.catalog import STARTER_FOLDER
from tests.postcard_pictures import need_weights
from tests.postcard_run import draw_postcards, encode

CPU = Tools("cpu", ChunkFeatures("cpu", use_cache=False))


def make_chunk(size: int = 64, count: int = 64) -> Chunk:
    """Postcards with partners that are softer, noisier or other postcards."""
    rng = np.random.default_rng(1)
    cards = draw_postcards(count, size=size)
    pictures, partners = [], []
    for number, card in enumerate(cards):
        assert card.pixels is not None
        noisy = np.clip(card.pixels + rng.normal(0, 3 * number, card.pixels.shape), 0, 255).astype(np.uint8)
        other = noisy if number % 4 else cards[-1 - number].pixels
        expected = ExpectedPicture(str(number), str(number), 0, card.prompt, number, size, size)
        pictures.append(LoadedPicture(expected, encode(card.pixels), f"{number:064x}"))
        partners.append(LoadedPicture(expected, encode(other), f"{number + 1000:064x}"))
    return Chunk(pictures, partners)


def to_tensor(pictures: list[LoadedPicture] | tuple[LoadedPicture, ...]) -> torch.Tensor:
    return torch.from_numpy(np.stack([each.pixels for each in pictures])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [64, 96])
def test_clip_score_is_that_of_torchmetrics(size: int) -> None:
    from transformers import CLIPModel, CLIPProcessor

    chunk = make_chunk(size)
    folder = STARTER_FOLDER / "starter-clip"
    model, processor = CLIPModel.from_pretrained(folder).float().eval(), CLIPProcessor.from_pretrained(folder)

    class Embedding(torch.nn.Module):
        """transformers 5 gives an output object where torchmetrics 1.9 takes the tensor."""

        config = model.config

        def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return model.get_image_features(pixels).pooler_output

        def get_text_features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return model.get_text_features(tokens, mask).pooler_output

    prompts = [each.expected.prompt or "" for each in chunk.pictures]
    ours = our_clip_score.open_metric("", CPU).score(chunk)
    apart = []
    for index, picture in enumerate(chunk.pictures[:: 8 if size > 64 else 1]):
        place = index * (8 if size > 64 else 1)
        with torch.no_grad():
            theirs = clip_score(to_tensor([picture])[0], prompts[place], lambda: (Embedding(), processor))
        apart.append(abs(float(theirs.clamp(min=0)) - ours[place]))
    print(f"CLIP score at {size} px: at most {max(apart):.1e} from torchmetrics over {len(apart)} pictures")
    assert max(apart) <= 1e-4


def test_psnr_and_ssim_are_those_of_torchmetrics() -> None:
    chunk = make_chunk()
    ours = {"psnr": psnr.open_metric("", CPU).score(chunk), "ssim": ssim.open_metric("", CPU).score(chunk)}
    for index, (picture, partner) in enumerate(zip(chunk.pictures, chunk.partners, strict=True)):
        assert partner is not None
        first, second = to_tensor([picture]).double(), to_tensor([partner]).double()
        similarity = structural_similarity_index_measure(first, second, data_range=255.0)
        assert ours["ssim"][index] == pytest.approx(float(similarity), abs=1e-6)  # type: ignore[arg-type]
        if not torch.equal(first, second):
            ratio = peak_signal_noise_ratio(first, second, data_range=255.0)
            assert ours["psnr"][index] == pytest.approx(float(ratio), abs=1e-5)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_that_of_lpips(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own loader and its own forward, one pair at a time; the backbone comes from our cache."""
    need_weights(f"lpips-{net}")
    import lpips  # type: ignore[import-untyped]
    from torchvision import models

    from dgate_core.evaluation.weights.store import load_weights

    chunk = make_chunk(count=64 if net == "alex" else 4)
    tensors = {name: torch.from_numpy(value) for name, value in load_weights(f"lpips-{net}").items()}
    name = {"alex": "alexnet", "vgg": "vgg16"}[net]
    make_plain = getattr(models, name)

    def make_pretrained(pretrained: bool = False) -> torch.nn.Module:
        network: torch.nn.Module = make_plain(weights=None)
        assert not network.load_state_dict(tensors, strict=False).unexpected_keys
        return network

    monkeypatch.setattr(models, name, make_pretrained)
    theirs = lpips.LPIPS(net=net, verbose=False)
    monkeypatch.undo()
    ours = lpips_distance.open_metric(net, CPU).score(chunk)
    apart = []
    for index, (picture, partner) in enumerate(zip(chunk.pictures, chunk.partners, strict=True)):
        assert partner is not None
        pair = [lpips.im2tensor(each.pixels) for each in (picture, partner)]
        with torch.no_grad():
            apart.append(abs(float(theirs(*pair)) - ours[index]))
    print(f"LPIPS {net}: at most {max(apart):.1e} from lpips over {len(apart)} pairs")
    assert max(apart) <= 1e-5
    assert ours.max() > 0.1


@pytest.mark.parametrize("way", ["hub", "import"])
def test_lpips_squeeze_from_a_hub_file_or_an_imported_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    import lpips
    from torchvision import models

    torch.manual_seed(0)
    backbone = models.squeezenet1_1(weights=None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingWeightsError, match="dgate weights import lpips-squeeze FILE"):
        lpips_distance.open_metric("squeeze", CPU)
    file = tmp_path / way / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    file.parent.mkdir(parents=True)
    torch.save(backbone.state_dict(), file)
    if way == "import":
        import_weights(LPIPS_SQUEEZE, file)
    chunk = make_chunk(count=6)
    ours = lpips_distance.open_metric("squeeze", CPU).score(chunk)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(models, "squeezenet1_1", lambda pretrained: backbone)  # noqa: ARG005
        theirs = lpips.LPIPS(net="squeeze", verbose=False)
    for index, (picture, partner) in enumerate(zip(chunk.pictures, chunk.partners, strict=True)):
        assert partner is not None
        with torch.no_grad():
            expected = float(theirs(lpips.im2tensor(picture.pixels), lpips.im2tensor(partner.pixels)))
        assert ours[index] == pytest.approx(expected, abs=1e-5)
