"""LPIPS (Zhang et al., 2018) between a picture and the baseline's picture of the same row, by the `lpips` package."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch

from dgate_core.errors import UsageError
from dgate_core.evaluation.features.computing import compute_in_fp32
from dgate_core.evaluation.features.lpips_network import LPIPS_WEIGHTS, LpipsNet, open_lpips
from dgate_core.evaluation.picture_metric import MetricCard, Tools, list_pairs, stack_by_size
from dgate_core.evaluation.pictures import Chunk
from dgate_core.evaluation.weights.catalog import find_spec
from dgate_core.evaluation.weights.given import LPIPS_SQUEEZE, load_given, read_tensors
from dgate_core.evaluation.weights.store import has_weights, hash_tensors
from dgate_core.registry import explain_unknown

NETS: Final = {"alex": "alexnet-owt-*.pth", "vgg": "vgg16-*.pth", "squeeze": "squeezenet1_1-*.pth"}
"""Backbone → torchvision's file of it in torch's hub cache."""
BATCH: Final = 16
SMALLEST: Final = 32
"""Pixels: below this the deeper layers see nothing, or the network refuses."""


class LpipsDistance:
    """Perceptual distance in fp32, 0 for equal pictures."""

    extractors = ()

    def __init__(self, net: str, device: str) -> None:
        network, weights_sha256 = open_network(net)
        self._network, self._device = network.to(device), device
        self.card = MetricCard(
            f"lpips:{net}",
            "paired",
            "lower",
            extractor=f"lpips-{net}",
            weights_sha256=weights_sha256,
            resize="none",
            needs=f"both pictures, of one size and at least {SMALLEST} pixels wide and high",
        )

    def score(self, chunk: Chunk) -> np.ndarray:
        """See `PictureMetric`."""
        scores = np.full(len(chunk), np.nan)
        pairs = {index: np.stack(pair) for index, *pair in list_pairs(chunk) if min(pair[0].shape[:2]) >= SMALLEST}
        for indices, pictures in stack_by_size(pairs):
            for start in range(0, len(indices), BATCH):
                pixels = pictures_to_pixels(pictures[start : start + BATCH]).to(self._device)
                with compute_in_fp32():
                    distances = self._network(pixels[:, 0], pixels[:, 1])
                scores[indices[start : start + BATCH]] = distances.flatten().double().cpu().numpy()
        return scores


def pictures_to_pixels(pairs: np.ndarray) -> torch.Tensor:
    """Pairs uint8 (N, 2, H, W, 3) as float pixels (N, 2, 3, H, W) in [-1, 1], rounded as lpips' own loader does."""
    return torch.from_numpy(pairs).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def open_network(net: str) -> tuple[Any, str]:
    """lpips' own module, version 0.1, and the hash of its backbone.

    The backbone is the one that was fetched, else torchvision's file in torch's hub cache, else (SqueezeNet, which no
    package carries) the one that was imported.

    Raises:
        MissingWeightsError: none is on this machine; names the command.
        MissingExtraError: `lpips` is not installed.
    """
    file = find_hub_file(net)
    if net in LPIPS_WEIGHTS and (file is None or has_weights(LPIPS_WEIGHTS[net])):
        return open_lpips(cast(LpipsNet, net)), find_spec(LPIPS_WEIGHTS[net]).tensors_sha256
    tensors = read_tensors(file) if file is not None else load_given(LPIPS_SQUEEZE)
    from lpips import LPIPS  # type: ignore[import-untyped]

    with warnings.catch_warnings():  # lpips calls torchvision in a way that is deprecated there
        warnings.simplefilter("ignore", UserWarning)
        network = LPIPS(net=net, pnet_rand=True, verbose=False)
    # lpips keeps the layers' numbers: its `slice2.3.weight` is torchvision's `features.3.weight`.
    backbone = {name: tensors[f"features.{name.partition('.')[2]}"] for name in network.net.state_dict()}
    network.net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in backbone.items()})
    return network.eval(), hash_tensors(backbone)


def find_hub_file(net: str) -> Path | None:
    """torchvision's file of a backbone, where torch's hub has put it."""
    return next(iter(sorted((Path(torch.hub.get_dir()) / "checkpoints").glob(NETS[net]))), None)


def open_metric(variant: str, tools: Tools) -> LpipsDistance:
    """See `MetricFactory`; the variant is the backbone, `alex` when none is given.

    Raises:
        MissingWeightsError: its weights are not on this machine.
        UsageError: no such backbone.
    """
    net = variant or "alex"
    if net not in NETS:
        raise explain_unknown("LPIPS network", net, NETS, UsageError)
    return LpipsDistance(net, tools.device)
