"""How fast a case is drawn: D-Gate's profiles against plain diffusers, interleaved, over the same weights.

Plain diffusers is eager in the same dtype, at batch 1 and at its best batch, and gives PIL pictures, as in its
documentation. D-Gate's figures end with the pixels in the host's memory. Every figure is kept as soon as it is there.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from dgate_core.bench.flops import count_flops_of_steps, measure_limits, synchronise
from dgate_core.bench.machine import describe_machine, pick_device
from dgate_core.bench.subjects import RANDOM, Subject, find_case, make_prompts, open_subject
from dgate_core.bench.variants import Variant, install_savers, parse_variant, prepare_variant

if TYPE_CHECKING:
    from dgate_core.models.families.latent import LatentModel

GIB: Final = 1 << 30
PLAIN_ONE, PLAIN_BEST = "diffusers, batch 1", "diffusers, best batch"
TRIAL_STEPS: Final = 4
"""Schedule by which plain diffusers' best batch is chosen."""


@dataclass(frozen=True, slots=True)
class GenerationBenchOptions:
    """What is measured."""

    case: str
    """Key of CASES."""
    profiles: tuple[str, ...] = ("fast",)
    """Variants, see `parse_variant`."""
    weights: str = RANDOM
    """`random`, a name of the catalogue, or a folder."""
    size: str = "full"
    """`full` or `toy`."""
    rounds: int = 2
    """Figures are medians over these."""
    steps: int | None = None
    """Of the schedule; None is the case's own number."""
    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""
    profiles_of: str | None = None
    """Device whose profiles are meant: `cuda` rehearses them on a CPU; None is the device itself."""
    plain: bool = True
    """Whether plain diffusers runs too."""
    seconds: float | None = None
    """A further round begins only if it will be done by then; the first always runs."""


@dataclass(slots=True)
class Racer:
    """Something that draws a batch."""

    name: str
    """As the results carry it."""
    batch: int
    """Pictures at once."""
    draw: Callable[[], Mapping[str, float]]
    """Draws one batch to its end and returns seconds by stage, as far as they are known."""
    flops: float
    """Operations of a picture, by torch's counter on the eager model."""
    prepare_seconds: float = 0.0
    """Compiling, quantising and the first batch."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know."""
    seconds: list[float] = field(default_factory=list)
    """Of each timed batch."""
    stages: dict[str, float] = field(default_factory=dict)
    """Of the last batch."""
    peak_gib: float | None = None
    """Most memory of the device above what lay there before the batch; None where it cannot be read."""

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return self.batch / statistics.median(self.seconds)


def measure_generation(
    options: GenerationBenchOptions, tell: Callable[[str], object], keep: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Runs a case.

    Args:
        options: Case, variants, rounds.
        tell: Takes progress lines.
        keep: Takes all figures so far, again and again.

    Raises:
        UsageError: there is no such case or variant.
        ModelError: there is no such checkpoint.
    """
    return Race(options, tell, keep).run()


class Race:
    """One case with its racers."""

    def __init__(
        self,
        options: GenerationBenchOptions,
        tell: Callable[[str], object],
        keep: Callable[[dict[str, Any]], object],
    ) -> None:
        self.options, self.tell, self.keep = options, tell, keep
        self.case, self.device = find_case(options.case), pick_device(options.device)
        self.variants = [parse_variant(each, options.profiles_of or self.device) for each in options.profiles]
        self.started = time.perf_counter()
        self.racers: list[Racer] = []
        self.not_run: dict[str, str] = {}
        self.limits: dict[str, Any] = {}
        self.weights = self.family = ""

    def run(self) -> dict[str, Any]:
        """Limits, then every racer's first round as soon as it is ready, then the others interleaved."""
        self.limits = measure_limits(self.device)
        self.tell(f"limits: {self.limits['bf16_tflops']:.1f} TFLOP/s in bf16")
        subject = self._open_subject()
        self.weights, self.family = subject.weights, subject.checkpoint.family
        plain_model = subject.open_model()
        flops = self._count(subject, plain_model, 1)
        self.tell(f"{flops / 1e12:.2f} TFLOP a picture of {self.steps} steps")
        for variant in self.variants:
            self._add(variant.label, partial(self._prepare_variant, subject, variant))
        if self.options.plain:
            self._add(PLAIN_ONE, partial(self._prepare_plain, subject, plain_model, 1, flops))
            self._add(PLAIN_BEST, partial(self._prepare_best_plain, subject, plain_model, flops))
        for number in range(1, self.options.rounds):
            if self._is_late():
                self.tell(f"no time for more than {number} rounds")
                break
            for racer in self.racers:
                self._time(racer)
            self.tell(f"round {number + 1}: " + ", ".join(f"{each.name} {each.rate:.3f}/s" for each in self.racers))
        return self.summarise()

    @property
    def steps(self) -> int:
        """Of the schedule."""
        return self.options.steps or self.case.steps

    def _open_subject(self) -> Subject:
        started = time.perf_counter()
        subject = open_subject(self.case, self.options.weights, toy=self.options.size == "toy", device=self.device)
        self.tell(
            f"{self.case.name} on {self.device}, weights {subject.weights}: {time.perf_counter() - started:.1f} s"
        )
        return subject

    def _is_late(self) -> bool:
        """Whether a round like the last would take too long."""
        spent, round_seconds = time.perf_counter() - self.started, sum(each.seconds[-1] for each in self.racers)
        return self.options.seconds is not None and spent + round_seconds > self.options.seconds

    def _add(self, name: str, prepare: Callable[[], Racer]) -> None:
        """What cannot run is named with its reason, and the others go on."""
        started = time.perf_counter()
        try:
            racer = prepare()
            racer.prepare_seconds += time.perf_counter() - started
            self.racers.append(racer)
            self.tell(f"{name}: ready after {racer.prepare_seconds:.1f} s, batch {racer.batch}")
            self._time(racer)
            self.tell(f"{name}: {racer.rate:.3f} pictures/s")
        except Exception as error:
            self.not_run[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            self.racers = [each for each in self.racers if each.seconds]
            self.tell(f"{name}: not run: {self.not_run[name]}")
        gc.collect()
        self.keep(self.summarise())

    def _count(self, subject: Subject, model: LatentModel, period: int) -> float:
        draw = lambda steps: model.generate(subject.make_request(model, 1, steps))  # noqa: E731
        return count_flops_of_steps(draw, self.steps, period)

    def _prepare_plain(self, subject: Subject, model: LatentModel, batch: int, flops: float) -> Racer:
        def draw(steps: int) -> Mapping[str, float]:
            subject.pipeline(**subject.make_arguments(model, batch, steps))
            return {}

        draw(2)
        return Racer(PLAIN_ONE if batch == 1 else PLAIN_BEST, batch, lambda: draw(self.steps), flops)

    def _prepare_best_plain(self, subject: Subject, model: LatentModel, flops: float) -> Racer:
        """The candidate that is fastest at a short schedule."""
        import torch

        rates: dict[int, float] = {}
        for batch in self._list_plain_batches():
            try:
                self._prepare_plain(subject, model, batch, flops)
                started = time.perf_counter()
                subject.pipeline(**subject.make_arguments(model, batch, min(TRIAL_STEPS, self.steps)))
                rates[batch] = batch / (time.perf_counter() - started)
            except torch.OutOfMemoryError:
                break
        racer = self._prepare_plain(subject, model, max(rates, key=lambda each: rates[each]), flops)
        racer.notes.append("best of " + ", ".join(map(str, rates)))
        return racer

    def _list_plain_batches(self) -> tuple[int, ...]:
        return self.case.plain_batches if self.device == "cuda" else (2, 4)

    def _prepare_variant(self, subject: Subject, variant: Variant) -> Racer:
        batch = variant.batch or (self.case.batch if self.device == "cuda" else 4)
        flops = self._count_variant(subject, variant)
        model = subject.open_model()
        prepared = prepare_variant(model, variant, make_prompts(1) if subject.weights == RANDOM else ())
        request = subject.make_request(model, batch, self.steps)
        warm = subject.make_request(model, batch, min(self.steps, 2 * variant.period))

        def draw(what: Any) -> Mapping[str, float]:
            pictures = model.generate(what)
            pictures.wait()
            assert bool(pictures.finite.all()) or subject.weights == RANDOM, f"{variant.label}: pictures are not finite"
            return pictures.stages.read_seconds()

        model.warm_up(request.key, batch)
        draw(warm)
        racer = Racer(variant.label, batch, lambda: draw(request), flops, notes=prepared.notes)
        decoder = [] if model.serving.decoder == "eager" else ["decoder compiled"]
        racer.notes.append(", ".join([f"backend {model.serving.backend}", *prepared.savers, *decoder]))
        racer.notes += [told for told in model.serving.warnings if told not in prepared.notes]
        return racer

    def _count_variant(self, subject: Subject, variant: Variant) -> float:
        """On an eager model in 16 bit with the same savers: short steps count as what they compute."""
        model = subject.open_model()
        install_savers(model, variant)
        return self._count(subject, model, variant.period)

    def _time(self, racer: Racer) -> None:
        before = reset_peak(self.device)
        synchronise(self.device)
        started = time.perf_counter()
        racer.stages = dict(racer.draw())
        synchronise(self.device)
        racer.seconds.append(time.perf_counter() - started)
        racer.peak_gib = read_peak(self.device, before)
        self.keep(self.summarise())

    def summarise(self) -> dict[str, Any]:
        """All figures so far."""
        timed = [racer for racer in self.racers if racer.seconds]
        return {
            "benchmark": "generate",
            "options": asdict(self.options),
            "case": asdict(self.case),
            "steps": self.steps,
            "weights": self.weights,
            **describe_machine(self.device),
            "limits": self.limits,
            "contestants": {racer.name: self._describe(racer) for racer in timed},
            "ratios": {
                f"{racer.name} over {plain.name}": racer.rate / plain.rate
                for plain in timed
                if plain.name in {PLAIN_ONE, PLAIN_BEST}
                for racer in timed
                if racer.name not in {PLAIN_ONE, PLAIN_BEST}
            },
            "targets": self._list_targets(timed),
            "not_run": self.not_run,
            "seconds": time.perf_counter() - self.started,
        }

    def _describe(self, racer: Racer) -> dict[str, Any]:
        speed = racer.flops * racer.rate / 1e12
        return {
            "pictures_per_second": racer.rate,
            "batch": racer.batch,
            "seconds": racer.seconds,
            "stages": racer.stages,
            "tflop_a_picture": racer.flops / 1e12,
            "tflops": speed,
            "share_of_bf16_limit": speed / self.limits["bf16_tflops"],
            "peak_gib": racer.peak_gib,
            "prepare_seconds": racer.prepare_seconds,
            "notes": racer.notes,
        }

    def _list_targets(self, timed: list[Racer]) -> dict[str, Any]:
        """The project's wishes beside what was measured; they are for full size on one H200."""
        is_meant = self.options.size == "full" and self.options.steps is None and self.device == "cuda"
        if not is_meant or "H200" not in describe_machine(self.device)["machine"]["gpu"]:
            return {}
        kinds = {variant.label: variant.find_kind(self.family) for variant in self.variants}
        wanted = {racer.name: self.case.targets.get(kinds.get(racer.name, "")) for racer in timed}
        return {
            racer.name: {"wanted": target, "reached": racer.rate >= target}
            for racer in timed
            if (target := wanted[racer.name]) is not None
        }


def reset_peak(device: str) -> int:
    """Bytes of the device in use; from here on its peak counts anew."""
    if device != "cuda":
        return 0
    import torch

    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def read_peak(device: str, before: int) -> float | None:
    """GiB above `before` since `reset_peak`."""
    if device != "cuda":
        return None
    import torch

    return (torch.cuda.max_memory_allocated() - before) / GIB
