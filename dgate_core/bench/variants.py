"""What is raced under a profile's name, or under levers that are put together by hand: `fast+deep-cache-2@32`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from dgate_core.errors import UsageError
from dgate_core.models.profiles import Profile, find_profile

if TYPE_CHECKING:
    from dgate_core.models.families.latent import LatentModel

QUANTIZATIONS: Final = ("fp8", "int8", "nf4")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to make the same pictures."""

    label: str
    """As it was asked for."""
    profile: Profile
    """Backends, quantisation and savers."""
    device: str
    """Whose profile it is; where it is drawn may be another."""
    pattern: tuple[bool, ...] = ()
    """Steps that a first-block cache computes, over and over, in the place of its threshold."""
    linear_only: bool | None = None
    """Whether convolutions keep their 16 bits; None is what `dgate optimize` takes on this device."""
    batch: int | None = None
    """Pictures at once; None is the case's own number."""

    def find_kind(self, family: str) -> str:
        """What it gives for speed: `lossless`, or the lossy levers that the family takes, such as `fp8+deep-cache`."""
        savers = self.profile.savers
        levers = [self.profile.quantization or ""]
        levers += ["deep-cache"] if savers.deep_cache_interval > 1 and family == "unet" else []
        levers += ["first-block"] if savers.first_block_threshold and family == "dit" else []
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
        text: A profile or backend, then levers: fp8, int8, nf4 (`-linear`: no convolutions, `-all`: them too),
            deep-cache-N, deep-cache-N-branch-B, first-block-T, first-block-N-of-M, guidance-S.
        device: `cpu`, `cuda` or `mps`.

    Raises:
        UsageError: a part is not known.
    """
    what, _, batch = text.partition("@")
    name, *levers = what.split("+")
    if batch and not (batch.isdigit() and int(batch) > 0):
        raise UsageError(f"batch {batch!r} of {text!r}", "a whole number above 0", "write, for instance, fast@16")
    variant = Variant(text, find_profile(name, device), device, batch=int(batch) if batch else None)
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
    return replace(quantized, linear_only={None: None, "-linear": True, "-all": False}[found["layers"]])


def _set_deep_cache(variant: Variant, found: re.Match[str]) -> Variant:
    return _save(variant, deep_cache_interval=int(found["interval"]), deep_cache_branch=int(found["branch"] or 0))


def _set_pattern(variant: Variant, found: re.Match[str]) -> Variant:
    computed, steps = int(found["computed"]), int(found["steps"])
    pattern = tuple((step + 1) * computed // steps > step * computed // steps for step in range(steps))
    # A schedule begins with a computed step, so the pattern does too.
    return replace(_save(variant, first_block_threshold=0.01), pattern=pattern[::-1])


def _save(variant: Variant, **savers: Any) -> Variant:
    return replace(variant, profile=replace(variant.profile, savers=replace(variant.profile.savers, **savers)))


_LEVERS: Final[Mapping[str, Lever]] = {
    rf"(?P<format>{'|'.join(QUANTIZATIONS)})(?P<layers>-linear|-all)?": _quantize,
    r"deep-cache-(?P<interval>\d+)(-branch-(?P<branch>\d+))?": _set_deep_cache,
    r"first-block-(?P<computed>\d+)-of-(?P<steps>\d+)": _set_pattern,
    r"first-block-(?P<threshold>0?\.\d+)": lambda variant, found: _save(
        variant, first_block_threshold=float(found["threshold"])
    ),
    r"guidance-(?P<stop>0?\.\d+)": lambda variant, found: _save(variant, guidance_stop=float(found["stop"])),
}
_LEVER_NAMES: Final = (
    *QUANTIZATIONS,
    "deep-cache-2",
    "first-block-0.08",
    "first-block-5-of-8",
    "guidance-0.6",
)


def install_savers(model: LatentModel, variant: Variant) -> tuple[str, ...]:
    """Step savers alone; their names."""
    from dgate_core.models.savers.installing import apply_savers

    apply_savers(model, variant.profile.savers)
    return set_pattern(model, variant)


def set_pattern(model: LatentModel, variant: Variant) -> tuple[str, ...]:
    """What a profile cannot say: which steps a first-block cache computes. Names of the savers."""
    from dgate_core.models.savers.first_block_cache import FirstBlockCache
    from dgate_core.models.savers.installing import list_savers

    for saver in model.savers:
        if isinstance(saver, FirstBlockCache):
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
        notes.append(quantize_ungated(model, variant, prompts))
        profile = replace(profile, quantization=None)
    serve_model(model, profile)
    return Prepared(model.serving.backend, set_pattern(model, variant), [*notes, *model.serving.warnings])


def quantize_ungated(model: LatentModel, variant: Variant, prompts: Sequence[str]) -> str:
    """Calibrates a few steps and quantises in place: random weights have no quality that a gate could look at.

    What is quantised, and how finely, is chosen as `dgate optimize` chooses it for the variant's device.

    Returns:
        What was done, for the record.

    Raises:
        ModelError: the device lacks the number format.
    """
    from dgate_core.quant.attention import has_attentions
    from dgate_core.quant.calibration import CalibrationOptions, calibrate
    from dgate_core.quant.kernels import KernelOptions, choose_kernels, narrow_calibration
    from dgate_core.quant.quantise import make_plan, quantise_model

    quantization: Any = variant.profile.quantization
    if quantization == "nf4":
        from dgate_core.quant.build import plan_nf4

        plan = plan_nf4(model)
        quantise_model(model, plan)
        return f"nf4 in {len(plan.layers)} layers, without a gate"
    wanted = KernelOptions(variant.linear_only)
    kernels = choose_kernels(quantization, variant.profile.backends[0], variant.device, wanted)
    options = CalibrationOptions(method="max", prompts=1, batch_size=1, num_inference_steps=2, replayed_steps=1)
    seen = narrow_calibration(calibrate(model, prompts, options), model, kernels)
    plan = make_plan(seen, quantization, kernels.granularity)
    plan = replace(plan, attention=kernels.attention and has_attentions(model.denoiser, plan))
    quantise_model(model, plan)
    attention = " and the attention between them" if plan.attention else ""
    what = "linear layers" if kernels.linear_only else "layers"
    return (
        f"{quantization} in {len(seen.layers)} {what}{attention}, one scale per {kernels.granularity} of the weight, "
        "calibrated on 2 steps of one picture, without a gate"
    )
