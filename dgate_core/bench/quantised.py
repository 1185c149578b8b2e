"""A quantised denoiser against the same model in 32 and 16 bit, interleaved in one process: pictures per second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dgate_core.bench.machine import describe_machine
from dgate_core.bench.pipeline import make_prompts
from dgate_core.errors import DgateError, UsageError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.profiles import BACKENDS, StepSavers
from dgate_core.models.spec import DEFAULT_SCHEDULER, FAMILIES, LocalCheckpoint

if TYPE_CHECKING:
    from dgate_core.models.families.contract import BatchRequest
    from dgate_core.models.families.latent import LatentModel


NO_SAVERS: Final = StepSavers()


@dataclass(frozen=True, slots=True)
class RaceOptions:
    """What is measured."""

    model: str = "starter-unet"
    """Any model of the catalogue, or a folder."""
    device: str = "cpu"
    """`cpu`, `cuda` or `mps`."""
    pictures: int = 16
    """Per contestant and round, in one batch."""
    rounds: int = 3
    """Ratios are medians over the rounds."""
    num_inference_steps: int | None = None
    """None is the model's default."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A way to compute the same model."""

    name: str
    """In the table."""
    backend: str
    """Key of BACKENDS."""
    precision: str
    """Of the model around the denoiser, and of the denoiser where it is not quantised."""
    quantization: str | None = None
    """Needs an artefact that passed, or is on trial."""
    savers: StepSavers = NO_SAVERS
    """Steps that are left out."""


REFERENCE: Final = Entry("eager float32", "eager", "float32")
"""What the ratios are to."""
CPU_ENTRIES: Final = (
    REFERENCE,
    Entry("eager bfloat16", "eager", "bfloat16"),
    Entry("onnx_runtime float32", "onnx_runtime", "float32"),
    Entry("onnx_runtime int8", "onnx_runtime", "float32", "int8"),
    Entry("compiled bfloat16", "compiled", "bfloat16"),
)


@dataclass(slots=True)
class Contestant:
    """An entry that is ready to draw."""

    entry: Entry
    generate: Callable[[], None]
    rates: list[float] = field(default_factory=list)
    """Pictures per second, one per round."""


def race_entries(
    options: RaceOptions, entries: Sequence[Entry], tell: Callable[[str], None], reference: str = REFERENCE.name
) -> dict[str, Any]:
    """Loads every entry, then draws with each in turn, round by round.

    Args:
        options: Model, pictures, rounds.
        entries: The reference among them; one whose library or artefact is missing is told and left out.
        tell: Takes progress lines.
        reference: Name of the entry that ratios are to.

    Returns:
        Rates, ratios to the reference, who was left out and why, versions.

    Raises:
        UsageError: the reference is not among the entries, or cannot run.
    """
    checkpoint = find_checkpoint(options.model)
    contestants, missing = [], {}
    for entry in entries:
        try:
            contestants.append(prepare_contestant(checkpoint, entry, options))
            tell(f"{entry.name} is ready")
        except DgateError as error:
            missing[entry.name] = error.got
            tell(f"{entry.name} is left out: {error.got}")
    base = next((each for each in contestants if each.entry.name == reference), None)
    if base is None:
        raise UsageError(f"{reference} cannot be measured: {missing.get(reference)}", "an entry to compare with")
    for number in range(options.rounds):
        for each in contestants:
            started = time.perf_counter()
            each.generate()
            each.rates.append(options.pictures / (time.perf_counter() - started))
        tell(f"round {number + 1}: " + ", ".join(f"{each.entry.name} {each.rates[-1]:.2f}/s" for each in contestants))
    return {
        "options": asdict(options),
        **describe_machine(options.device),
        "reference": reference,
        "pictures_per_second": {each.entry.name: statistics.median(each.rates) for each in contestants},
        "ratios": {each.entry.name: compare_rates(each.rates, base.rates) for each in contestants},
        "rounds": {each.entry.name: each.rates for each in contestants},
        "left_out": missing,
    }


def list_ratios(found: Mapping[str, Any]) -> list[str]:
    """A line for every entry, those that were left out last."""
    rates = found["pictures_per_second"].items()
    lines = [f"{name:24} {rate:8.2f} pictures/s {found['ratios'][name]:6.2f} x" for name, rate in rates]
    return [*lines, *(f"{name:24} not run: {why}" for name, why in found["left_out"].items())]


def compare_rates(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios, round by round."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def prepare_contestant(checkpoint: LocalCheckpoint, entry: Entry, options: RaceOptions) -> Contestant:
    """Loads the model anew, puts the backend in, and draws once for warming up.

    Raises:
        DgateError: the backend's library or the artefact is missing.
    """
    from dgate_core.backends.contract import BackendRequest
    from dgate_core.models.families.contract import LoadOptions
    from dgate_core.models.savers.installing import apply_savers

    model: LatentModel = FAMILIES.load(checkpoint.family)().load(
        checkpoint, LoadOptions(options.device, entry.precision)
    )
    request = make_batch(model, options)
    apply_savers(model, entry.savers)
    wanted = BackendRequest(options.device, entry.precision, quantization=entry.quantization, savers=entry.savers)
    prepared = BACKENDS.load(entry.backend)().prepare(model, wanted)
    samples = options.pictures * (2 if model.reads_negatives(request.key.guidance_scale) else 1)
    prepared.warm_up(request.key, samples)
    if prepared.decoder is not None:
        prepared.decoder.warm_up(request.key, options.pictures)
    model.call_denoiser = prepared

    def generate() -> None:
        model.generate(request).wait()

    generate()
    return Contestant(entry, generate)


def make_batch(model: LatentModel, options: RaceOptions) -> BatchRequest:
    """The same prompts and seeds for every entry."""
    from dgate_core.models.families.contract import BatchRequest

    spec, native = model.checkpoint.spec, model.checkpoint.native_size
    key = BatchKey(
        model=spec.name,
        width=native,
        height=native,
        num_inference_steps=options.num_inference_steps or spec.num_inference_steps,
        scheduler=DEFAULT_SCHEDULER,
        guidance_scale=spec.guidance_scale,
    )
    prompts = make_prompts(options.pictures, "race")
    words = model.encode_prompts(prompts, one_by_one=False)
    negatives = model.encode_negatives([""] * len(prompts), one_by_one=False)
    return BatchRequest(key, tuple(range(len(prompts))), tuple(words), tuple(negatives))


def list_entries(
    device: str, precision: str, backend: str, quantization: str, savers: StepSavers = NO_SAVERS
) -> tuple[Entry, ...]:
    """What an artefact is raced with: on the CPU everything that serves there, elsewhere eager and compiled 16 bit.

    Where the profile leaves steps out, the artefact runs with and without that.
    """
    if device == "cpu" and (backend, quantization) == ("onnx_runtime", "int8"):
        return CPU_ENTRIES
    saves = savers != NO_SAVERS
    return (
        REFERENCE if device == "cpu" else Entry(f"eager {precision}", "eager", precision),
        Entry(f"compiled {precision}", "compiled", precision),
        Entry(f"{backend} {quantization}", backend, precision, quantization),
        *([Entry(f"{backend} {quantization} and savers", backend, precision, quantization, savers)] if saves else ()),
    )
