"""What is raced under a profile's name, or under levers that are put together by hand: `fast+deep-cache-2@32`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from dgate_core.errors import UsageError
from dgate_core.models.profiles import Profile, find_profile

if TYPE_CHECKING:
    import torch

    from dgate_core.models.families.contract import BatchRequest
    from dgate_core.models.families.latent import LatentModel

QUANTIZATIONS: Final = ("fp8", "int8", "nf4")
TUNINGS: Final = ("blocks", "vae", "cudnn")
"""`blocks` compiles the repeated blocks instead of what the backend would; `vae` compiles the decoder's blocks too;
`cudnn` lets cuDNN compute attention where it can."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to make the same pictures."""

    label: str
    """As it was asked for."""
    profile: Profile
    """Backends, quantisation and savers."""
    branch: int = 0
    """Depth of DeepCache's short steps."""
    pattern: tuple[bool, ...] = ()
    """Steps that a first-block cache computes, over and over, in the place of its threshold."""
    tuning: frozenset[str] = frozenset()
    """Of TUNINGS: lossless levers that a backend may take for its own when they pay."""
    linear_only: bool = False
    """Whether convolutions keep their 16 bits."""
    batch: int | None = None
    """Pictures at once; None is the case's own number."""

    @property
    def kind(self) -> str:
        """What it gives for speed: `lossless`, or the lossy levers, such as `fp8+deep-cache`."""
        savers = self.profile.savers
        levers = [self.profile.quantization or ""]
        levers += ["deep-cache"] if savers.deep_cache_interval > 1 else []
        levers += ["first-block"] if savers.first_block_threshold else []
        levers += ["guidance"] if savers.guidance_stop < 1 else []
        return "+".join(filter(None, levers)) or "lossless"

    @property
    def period(self) -> int:
        """Steps after which the savers repeat themselves."""
        return max(len(self.pattern), self.profile.savers.deep_cache_interval, 1)


@dataclass(slots=True)
class Prepared:
    """What a variant became on this model."""

    backend: str
    """The one that serves."""
    savers: tuple[str, ...] = ()
    """Names of the savers that are on."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know, such as backends that did not fit."""


Lever = Callable[[Variant, re.Match[str]], Variant]


def parse_variant(text: str, device: str) -> Variant:
    """`PROFILE[+LEVER…][@BATCH]`.

    Args:
        text: A profile or backend, then levers: fp8, int8, nf4 (`-linear`: no convolutions), deep-cache-N,
            deep-cache-N-branch-B, first-block-T, first-block-N-of-M, guidance-S.
        device: `cpu`, `cuda` or `mps`.

    Raises:
        UsageError: a part is not known.
    """
    what, _, batch = text.partition("@")
    name, *levers = what.split("+")
    if batch and not (batch.isdigit() and int(batch) > 0):
        raise UsageError(f"batch {batch!r} of {text!r}", "a whole number above 0", "write, for instance, fast@16")
    variant = Variant(text, find_profile(name, device), batch=int(batch) if batch else None)
    for lever in levers:
        variant = _pull_lever(variant, lever)
    return variant


def _pull_lever(variant: Variant, text: str) -> Variant:
    for pattern, lever in _LEVERS.items():
        if found := re.fullmatch(pattern, text):
            pulled = lever(variant, found)
            return replace(pulled, profile=replace(pulled.profile, name=variant.label))
    raise UsageError(f"unknown lever {text!r} of {variant.label!r}", "one of " + ", ".join(_LEVER_NAMES))


def _quantize(variant: Variant, found: re.Match[str]) -> Variant:
    quantized = replace(variant, profile=replace(variant.profile, quantization=found["format"]))
    return replace(quantized, linear_only=found["linear"] is not None)


def _set_deep_cache(variant: Variant, found: re.Match[str]) -> Variant:
    saved = _save(variant, deep_cache_interval=int(found["interval"]))
    return replace(saved, branch=int(found["branch"] or 0))


def _set_pattern(variant: Variant, found: re.Match[str]) -> Variant:
    computed, steps = int(found["computed"]), int(found["steps"])
    pattern = tuple((step + 1) * computed // steps > step * computed // steps for step in range(steps))
    # A schedule begins with a computed step, so the pattern does too.
    return replace(_save(variant, first_block_threshold=0.01), pattern=pattern[::-1])


def _save(variant: Variant, **savers: Any) -> Variant:
    return replace(variant, profile=replace(variant.profile, savers=replace(variant.profile.savers, **savers)))


_LEVERS: Final[Mapping[str, Lever]] = {
    "|".join(TUNINGS): lambda variant, found: replace(variant, tuning=variant.tuning | {found[0]}),
    rf"(?P<format>{'|'.join(QUANTIZATIONS)})(?P<linear>-linear)?": _quantize,
    r"deep-cache-(?P<interval>\d+)(-branch-(?P<branch>\d+))?": _set_deep_cache,
    r"first-block-(?P<computed>\d+)-of-(?P<steps>\d+)": _set_pattern,
    r"first-block-(?P<threshold>0?\.\d+)": lambda variant, found: _save(
        variant, first_block_threshold=float(found["threshold"])
    ),
    r"guidance-(?P<stop>0?\.\d+)": lambda variant, found: _save(variant, guidance_stop=float(found["stop"])),
}
_LEVER_NAMES: Final = (
    *QUANTIZATIONS,
    *TUNINGS,
    "deep-cache-2",
    "first-block-0.08",
    "first-block-5-of-8",
    "guidance-0.6",
)


def install_savers(model: LatentModel, variant: Variant) -> tuple[str, ...]:
    """Step savers alone; their names."""
    from dgate_core.models.savers.installing import apply_savers

    apply_savers(model, variant.profile.savers)
    return deepen_savers(model, variant)


def deepen_savers(model: LatentModel, variant: Variant) -> tuple[str, ...]:
    """What a profile cannot say: a deeper branch, a pattern."""
    from dgate_core.models.savers.deep_cache import DeepCache
    from dgate_core.models.savers.first_block_cache import FirstBlockCache
    from dgate_core.models.savers.installing import list_savers

    for saver in model.savers:
        if isinstance(saver, DeepCache):
            saver.branch = variant.branch
        elif isinstance(saver, FirstBlockCache):
            saver.pattern = variant.pattern
    return list_savers(model)


def prepare_variant(model: LatentModel, variant: Variant, prompts: Sequence[str] = ()) -> Prepared:
    """Quantises, installs the savers, and puts the first backend that fits into the model.

    Args:
        model: Changed in place.
        variant: What it shall become.
        prompts: To calibrate by, for random weights, which no artefact can be for; none for real weights, whose
            artefact must have passed its gate.

    Raises:
        DgateError: no backend fits, or the quantisation cannot be had.
    """
    from dgate_core.backends.opening import serve_model

    profile, notes = variant.profile, []
    if profile.quantization and prompts:
        notes.append(quantize_ungated(model, profile.quantization, prompts, linear_only=variant.linear_only))
        profile = replace(profile, quantization=None)
    tune(model, variant)
    if "blocks" in variant.tuning:
        return Prepared("compiled, repeated blocks", install_savers(model, variant), notes)
    serve_model(model, profile)
    return Prepared(model.serving.backend, deepen_savers(model, variant), [*notes, *model.serving.warnings])


def tune(model: LatentModel, variant: Variant) -> None:
    """Pulls the lossless levers."""
    from dgate_core.backends.compiled import compile_blocks

    if "blocks" in variant.tuning:
        compile_blocks(model.denoiser)
    if "vae" in variant.tuning:
        compile_blocks(model.vae.decoder)
    if "cudnn" in variant.tuning:
        model.denoise = attend_by_cudnn(model.denoise)  # type: ignore[method-assign, assignment]


def attend_by_cudnn(denoise: Callable[[BatchRequest], torch.Tensor]) -> Callable[[BatchRequest], torch.Tensor]:
    """The same loop with cuDNN first among the kernels of scaled_dot_product_attention."""
    from dgate_core.backends.compiled import prefer_cudnn

    def denoise_with_cudnn(request: BatchRequest) -> torch.Tensor:
        with prefer_cudnn():
            return denoise(request)

    return denoise_with_cudnn


def quantize_ungated(model: LatentModel, quantization: str, prompts: Sequence[str], *, linear_only: bool) -> str:
    """Calibrates a few steps and quantises in place: random weights have no quality that a gate could look at.

    Returns:
        What was done, for the record.

    Raises:
        ModelError: the device lacks the number format.
    """
    from dgate_core.quant.calibration import CalibrationOptions, calibrate
    from dgate_core.quant.plan import LayerRange, QuantPlan
    from dgate_core.quant.quantise import quantise_model

    options = CalibrationOptions(method="max", prompts=1, batch_size=1, num_inference_steps=2, replayed_steps=1)
    seen = calibrate(model, prompts, options).layers
    modules = dict(model.denoiser.named_modules())
    layers = {
        name: LayerRange(each.low, each.high, each.output_low, each.output_high)
        for name, each in seen.items()
        if not linear_only or hasattr(modules[name], "in_features")
    }
    plan = QuantPlan(quantization, layers, granularity="tensor" if quantization == "fp8" else "channel")  # type: ignore[arg-type]
    quantise_model(model, plan)
    return f"{quantization} in {len(layers)} layers, calibrated on 2 steps of one picture, without a gate"
