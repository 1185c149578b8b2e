"""Profiles: how much may be given for speed, by name and never silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dgate_core.errors import ModelError, UsageError
from dgate_core.models.spec import CheckpointSpec
from dgate_core.registry import Registry, explain_unknown

BACKENDS: Final = Registry(
    "backend",
    {
        "eager": "dgate_core.backends.eager:EagerBackend",
        "compiled": "dgate_core.backends.compiled:CompiledBackend",
        "onnx_runtime": "dgate_core.backends.onnx_runtime:OnnxRuntimeBackend",
        "tensorrt": "dgate_core.backends.tensorrt_engine:TensorRTBackend",
    },
    extras={"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "tensorrt": "tensorrt"},
)
"""What may compute a denoiser."""

EXACT: Final = "exact"


@dataclass(frozen=True, slots=True)
class StepSavers:
    """What is left out of the denoising steps."""

    deep_cache_interval: int = 1
    """UNets: the deep levels are computed every n-th step (DeepCache, Ma et al. 2023); 1 is off."""
    deep_cache_branch: int = 0
    """UNets: up layers that a short step computes besides the last one; more is slower and nearer to every step."""
    first_block_threshold: float = 0.0
    """Transformers: steps whose first block changes less than this share reuse the rest; 0 is off."""
    guidance_stop: float = 1.0
    """Share of the steps with classifier-free guidance; 1 is all."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a run gives for speed."""

    name: str
    """As `--profile` takes it."""
    backends: tuple[str, ...]
    """In order of preference; the first that is there and fits serves."""
    quantization: str | None = None
    """`int8`, `fp8` or `nf4`: needs a registered artefact that passed its gate; never silently left out."""
    savers: StepSavers = field(default_factory=StepSavers)
    """Steps that are left out."""
    most_steps: int | None = None
    """Only for checkpoints that by themselves take no more steps, which are the distilled ones; None is for all."""


PROFILES: Final[Mapping[str, Profile]] = {
    EXACT: Profile(EXACT, ("eager",)),
    "fast": Profile("fast", ("compiled", "eager")),
    "turbo": Profile(
        "turbo",
        ("compiled",),
        quantization="fp8",
        # Branch 2 is the whole level of the finest resolution: 155 of SDXL's 281 TFLOP are left at 20 steps.
        savers=StepSavers(deep_cache_interval=2, deep_cache_branch=2, first_block_threshold=0.08),
    ),
    "draft": Profile("draft", ("compiled", "eager"), most_steps=10),
    "small": Profile("small", ("eager",), quantization="nf4"),
}
"""`exact` differs from diffusers by rounding only, `fast` has lossless levers, `turbo` trades a measured loss for
speed, `draft` takes few steps with a distilled checkpoint, and `small` trades a measured loss for memory."""


CPU_PROFILES: Final[Mapping[str, Profile]] = {
    "fast": Profile("fast", ("compiled", "onnx_runtime", "eager")),
    "turbo": Profile("turbo", ("onnx_runtime",), quantization="int8"),
}
"""Where a CPU does better with other levers."""


def find_profile(name: str, device: str) -> Profile:
    """A profile, or a backend alone under its own name, which then is not fallen back from.

    Args:
        name: Of PROFILES or BACKENDS.
        device: `cpu`, `cuda` or `mps`.

    Raises:
        UsageError: there is neither.
    """
    check_profile(name)
    if name not in PROFILES:
        return Profile(name, (name,))
    return CPU_PROFILES.get(name, PROFILES[name]) if device == "cpu" else PROFILES[name]


def check_profile(name: str) -> None:
    """Raises UsageError for a name that is neither a profile nor a backend."""
    if name not in PROFILES and name not in BACKENDS.names():
        raise explain_unknown("profile", name, [*PROFILES, *BACKENDS.names()], UsageError)


def check_steps(spec: CheckpointSpec, profile: Profile) -> None:
    """Raises ModelError for a draft with a checkpoint that needs many steps."""
    if profile.most_steps is not None and spec.num_inference_steps > profile.most_steps:
        raise ModelError(
            f"{spec.name} takes {spec.num_inference_steps} steps, so it is none for the profile {profile.name}",
            f"a distilled checkpoint, of at most {profile.most_steps} steps",
            "take sdxl-turbo or flux-schnell, or say so of your own: dgate models import FOLDER --name N --steps 4",
        )
