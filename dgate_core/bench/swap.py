"""What a swap costs: a cold load, a swap while batches are served, the way back, and what a server feels of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgate_core.bench.machine import describe_machine
from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.engine.lane import choose_device, load_model
from dgate_core.engine.precision import choose_precision
from dgate_core.engine.warm_models import GeneratorLoader, open_pool
from dgate_core.errors import ModelError, RunError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.catalog import find_checkpoint
from dgate_core.models.model_loading import Candidate
from dgate_core.models.pool import ModelPool
from dgate_core.models.single_file import read_header
from dgate_core.models.spec import FAMILIES, PIPELINES, LocalCheckpoint
from dgate_core.runs.settings import RunSettings, settings_to_spec

if TYPE_CHECKING:
    from dgate_core.runs.spec import RunSpec

SERVED = "served"
"""The name that the requests ask for; it is turned from one model to the other and back."""


@dataclass(frozen=True, slots=True)
class SwapBenchOptions:
    """What is measured."""

    first: str = "starter-unet"
    """Serves at the beginning and at the end."""
    second: str | None = None
    """Comes in between; None is a copy of the first whose last layer draws a little differently."""
    batch_size: int = 8
    """Pictures of a request."""
    num_inference_steps: int = 5
    """Of every picture."""
    batches: int = 10
    """Served before the swap, after it, and after the way back."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""


@dataclass(slots=True)
class Served:
    """One batch as the server saw it."""

    sha256: str
    """Of its pixels."""
    started: float
    """Seconds of the clock."""
    ended: float


@dataclass(slots=True)
class SwapTimes:
    """Seconds, and what became of the requests."""

    cold_load: float = 0.0
    swap: float = 0.0
    """From asking for the other model until requests get it; the load included."""
    swap_back: float = 0.0
    asked: int = 0
    lost: int = 0
    mixed: int = 0
    """Batches that are neither the first model's nor the second's, or that came out of turn."""
    loads: int = 0
    batch_seconds: float = 0.0
    """Median of a batch."""
    longest_gap: float = 0.0
    """Between the end of one batch and the start of the next, while models are swapped."""
    longest_batch: float = 0.0
    """While models are swapped."""


class TurningLoader(GeneratorLoader):
    """What `served` stands for is set by hand, as an alias is set by a promotion."""

    target = ""

    def identify(self, name: str) -> Candidate:
        """See `GeneratorLoader`."""
        return super().identify(self.target if name == SERVED else name)


def measure_swap(options: SwapBenchOptions, tell: Callable[[str], object]) -> dict[str, Any]:
    """Serves one model's batches, turns to the other one, and back.

    Returns:
        Options, seconds and counts; `as_wanted` when nothing was lost or mixed and the way back took no load.

    Raises:
        ModelError: a model is unknown, does not load, or the two do not fit one size.
    """
    device = choose_device(options.device)
    precision = choose_precision(device)
    spec = settings_to_spec(RunSettings(model=options.first), precision)
    with tempfile.TemporaryDirectory(prefix="dgate-swap-") as folder:
        second = options.second or str(make_variant(find_checkpoint(options.first), Path(folder)))
        times = _Bench(replace(options, second=second), device, spec).run(tell)
    return {
        "options": asdict(options),
        **describe_machine(device),
        "precision": precision,
        "times": asdict(times),
        "as_wanted": not times.lost and not times.mixed and times.loads == 2,
    }


class _Bench:
    """One pool, one server thread, one name that turns."""

    def __init__(self, options: SwapBenchOptions, device: str, spec: RunSpec) -> None:
        self.options, self.device, self.spec = options, device, spec
        self.second = options.second or options.first
        sizes = [find_checkpoint(name).native_size for name in (options.first, self.second)]
        if sizes[0] != sizes[1]:
            raise ModelError(f"{options.first} and {self.second} are of {sizes} px", "models of one size")
        self.size = sizes[0]
        self.pool: ModelPool[Generator] = open_pool(self._load, device, spec.precision)
        self.loader = TurningLoader(self._load, device, spec.precision)
        self.pool.loader = self.loader
        self.served: list[Served] = []
        self.failures: list[Exception] = []
        self.asked = 0

    def run(self, tell: Callable[[str], object]) -> SwapTimes:
        """Cold load → serve → swap → serve → swap back → serve."""
        times = SwapTimes()
        self.loader.target = self.options.first
        FAMILIES.load(find_checkpoint(self.options.first).family)  # importing the libraries is no part of a load
        started = time.perf_counter()
        with self.pool.use(SERVED) as generator:
            times.cold_load = time.perf_counter() - started
            self._make(generator)
        tell(f"cold load of {self.options.first}: {times.cold_load:.2f} s")
        with self._serve():
            self._await_batches()
            first_turn = len(self.served)
            times.swap = self._turn(self.second)
            self._await_batches()
            second_turn = len(self.served)
            times.swap_back = self._turn(self.options.first)
            self._await_batches()
        tell(f"swap {times.swap:.2f} s, back {times.swap_back * 1000:.1f} ms")
        return self._sum_up(times, first_turn, second_turn)

    def _load(self, name: str) -> Generator:
        planned = {name: {"weights_hash": find_checkpoint(name).weights_hash}}
        model = load_model(name, self.device, self.spec, planned)
        return Generator(model, self.spec, GenerateOptions(batch_size=self.options.batch_size))

    def _turn(self, target: str) -> float:
        self.loader.target = target
        started = time.perf_counter()
        self.pool.refresh(SERVED).result()
        return time.perf_counter() - started

    def _make(self, generator: Generator) -> str:
        key = BatchKey("any", self.size, self.size, self.options.num_inference_steps, "default", 2.0)
        rows = [{"prompt": "a red boat", "negative_prompt": "", "seed": n} for n in range(self.options.batch_size)]
        (batch,) = generator.generate(rows, key)
        if batch.error is not None or batch.pictures is None:
            raise RunError(f"the batch could not be made: {batch.error}")
        batch.pictures.wait()
        return hashlib.sha256(batch.pictures.pixels.numpy().tobytes()).hexdigest()

    @contextmanager
    def _serve(self) -> Iterator[None]:
        """A thread that asks for one batch after another."""
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                self.asked += 1
                try:
                    with self.pool.use(SERVED) as generator:
                        started = time.perf_counter()
                        made = self._make(generator)
                    self.served.append(Served(made, started, time.perf_counter()))
                except Exception as error:
                    self.failures.append(error)
                    return

        thread = threading.Thread(target=work, name="server")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _await_batches(self) -> None:
        wanted = len(self.served) + self.options.batches
        while len(self.served) < wanted:
            if self.failures:
                raise self.failures[0]
            time.sleep(0.005)

    def _sum_up(self, times: SwapTimes, first_turn: int, second_turn: int) -> SwapTimes:
        served, half = self.served, self.options.batches // 2
        gaps = [after.started - before.ended for before, after in pairwise(served)]
        window = slice(max(0, first_turn - half), min(len(gaps), second_turn + half))
        durations = [each.ended - each.started for each in served]
        times.asked, times.lost = self.asked, self.asked - len(served)
        times.mixed = count_mixed([each.sha256 for each in served])
        times.loads = self.pool.figures.loads
        times.batch_seconds = statistics.median(durations)
        times.longest_gap, times.longest_batch = max(gaps[window]), max(durations[window])
        return times


def list_figures(times: dict[str, Any]) -> list[str]:
    """The table of `SwapTimes`, a line for each."""
    seconds = {
        "cold load": times["cold_load"],
        "swap while serving": times["swap"],
        "swap back": times["swap_back"],
        "a batch, median": times["batch_seconds"],
        "longest batch while swapping": times["longest_batch"],
        "longest gap between two batches": times["longest_gap"],
    }
    counts = {"requests": "asked", "lost": "lost", "mixed": "mixed", "loads from disk": "loads"}
    return [
        *(f"{name:32} {value * 1000:10.1f} ms" for name, value in seconds.items()),
        *(f"{name:32} {times[key]:10d}" for name, key in counts.items()),
    ]


def make_variant(checkpoint: LocalCheckpoint, folder: Path) -> Path:
    """A copy of a diffusers folder, by links, with one bias of its denoiser changed.

    Raises:
        ModelError: a single file, or weights without a float16 or float32 bias.
    """
    from safetensors.numpy import load_file, save_file

    source, denoiser = Path(checkpoint.folder), PIPELINES[checkpoint.pipeline_class].denoiser
    biases = [
        (file, name)
        for file in sorted((source / denoiser).glob("*.safetensors"))
        for name, entry in sorted(read_header(file).items())
        if name.endswith("out.bias") and entry["dtype"] in {"F16", "F32"}
    ]
    if not biases:
        raise ModelError(f"no copy of {checkpoint.spec.name} can be made that draws differently", "", "give --second")
    file, name = biases[-1]
    variant = Path(shutil.copytree(source, folder / "variant", copy_function=os.link))
    changed = variant / denoiser / file.name
    changed.unlink()
    tensors = load_file(file)
    save_file({**tensors, name: tensors[name] + 0.1}, changed, {"format": "pt"})
    return variant


def count_mixed(made: list[str]) -> int:
    """Batches outside the order first … second … first."""
    first = made[0]
    others = [number for number, each in enumerate(made) if each != first]
    if not others:
        return 0
    second = made[others[0]]
    return sum(each != second for each in made[others[0] : others[-1] + 1])
