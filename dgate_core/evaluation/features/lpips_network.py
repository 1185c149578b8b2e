"""The networks of LPIPS (Zhang et al. 2018) with fetched backbones; the linear layers come with `lpips` itself."""

from __future__ import annotations

import warnings
from typing import Any, Final, Literal

import torch

from dgate_core.errors import MissingExtraError
from dgate_core.evaluation.weights.store import load_weights

LpipsNet = Literal["alex", "vgg"]
LPIPS_WEIGHTS: Final = {"alex": "lpips-alex", "vgg": "lpips-vgg"}


def open_lpips(net: LpipsNet, device: str = "cpu") -> Any:
    """An `lpips.LPIPS(net=…)` in fp32 and evaluation mode, made without any download.

    Raises:
        MissingExtraError: `lpips` is not installed.
        MissingWeightsError: the backbone is not on this machine; names the command.
    """
    tensors = load_weights(LPIPS_WEIGHTS[net])
    try:
        from lpips import LPIPS  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise MissingExtraError("lpips", "evaluation") from error
    with warnings.catch_warnings():  # lpips calls torchvision in a way that is deprecated there
        warnings.simplefilter("ignore", UserWarning)
        network = LPIPS(net=net, pnet_rand=True, verbose=False)
    network.net.load_state_dict(_name_slices(network.net, tensors))
    return network.requires_grad_(False).eval().to(device)


def _name_slices(backbone: torch.nn.Module, tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """`features.3.weight` of torchvision is `slice2.3.weight` there."""
    wanted = {key.split(".", 1)[1]: key for key in backbone.state_dict()}
    return {wanted[name.removeprefix("features.")]: torch.from_numpy(value) for name, value in tensors.items()}
