"""D-Gate's steady rate against plain diffusers, in one process, interleaved, so that a noisy machine hits all alike.

Contestants: (a) the loop of the documentation, one prompt after another; (b) the best hand-batched loop, which keeps
its pictures in memory and writes nothing; D-Gate in the same dtype; D-Gate as shipped, with its own dtype and batch.
D-Gate's figures include encoding, hashing and writing PNG files, and the shard's commit.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgate_core.bench.machine import describe_machine
from dgate_core.engine.begin import open_run
from dgate_core.engine.generate import GenerateOptions, Generator
from dgate_core.engine.lane import Lane, LaneOptions, choose_device, load_model
from dgate_core.engine.precision import choose_precision
from dgate_core.engine.stopping import StopSignal
from dgate_core.models.catalog import find_checkpoint
from dgate_core.postcards import sample_scene, scene_to_caption
from dgate_core.runs.settings import RunSettings, settings_to_spec
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage

if TYPE_CHECKING:
    from dgate_core.runs.spec import Precision

BATCH_CANDIDATES = (4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What is measured."""

    model: str = "starter-unet"
    """Any model of the catalogue, or a folder."""
    pictures: int = 32
    """Per contestant and round."""
    rounds: int = 5
    """The ratios' medians are over these."""
    precision: Precision = "float32"
    """Dtype of plain diffusers and of D-Gate in the equal-dtype comparison."""
    num_inference_steps: int | None = None
    """None is the model's default."""


@dataclass(slots=True)
class Contestant:
    """Something that makes pictures and says how long it took."""

    name: str
    run: Callable[[Sequence[str]], float]
    """Prompts → seconds."""
    rates: list[float] = field(default_factory=list)
    """Pictures per second, one per round."""


def measure_pipeline(options: BenchOptions, tell: Callable[[str], None]) -> dict[str, Any]:
    """Runs all contestants round by round.

    Args:
        options: Model, pictures, rounds.
        tell: Takes progress lines.

    Returns:
        Rates, and the ratios that the project holds itself to.
    """
    device = choose_device("auto")
    shipped = choose_precision(device)
    plain = PlainDiffusers(options, device)
    tell(f"{options.model} on {device}; plain diffusers in {options.precision}, D-Gate as shipped in {shipped}")
    batch = plain.find_best_batch(make_prompts(max(BATCH_CANDIDATES), "warm"))
    tell(f"best hand-made batch: {batch}")
    contestants = [
        Contestant("plain loop", plain.loop),
        Contestant("hand-batched loop", lambda prompts: plain.batched(prompts, batch)),
        Contestant(f"D-Gate, {options.precision}", DgateContestant(options, device, options.precision).run),
        Contestant(f"D-Gate as shipped, {shipped}", DgateContestant(options, device, shipped).run),
    ]
    for contestant in contestants:
        contestant.run(make_prompts(options.pictures, "first"))
    for number in range(options.rounds):
        for contestant in contestants:
            prompts = make_prompts(options.pictures, f"round {number}")
            contestant.rates.append(len(prompts) / contestant.run(prompts))
        tell(f"round {number + 1}: " + ", ".join(f"{each.name} {each.rates[-1]:.2f}/s" for each in contestants))
    return summarise(contestants, options, device, batch)


def summarise(contestants: list[Contestant], options: BenchOptions, device: str, batch: int) -> dict[str, Any]:
    """Medians of rates, and of ratios taken round by round."""
    loop, batched, equal, shipped = contestants
    ratios = {
        "equal dtype over plain loop": (_ratio(equal, loop), 1.3),
        "equal dtype over hand-batched loop": (_ratio(equal, batched), 0.95),
        "as shipped over plain loop": (_ratio(shipped, loop), 2.5),
    }
    return {
        "options": asdict(options),
        **describe_machine(device),
        "hand_made_batch": batch,
        "pictures_per_second": {each.name: statistics.median(each.rates) for each in contestants},
        "rounds": {each.name: each.rates for each in contestants},
        "ratios": {name: {"median": value, "bar": bar} for name, (value, bar) in ratios.items()},
    }


def _ratio(ours: Contestant, theirs: Contestant) -> float:
    return statistics.median(mine / other for mine, other in zip(ours.rates, theirs.rates, strict=True))


class PlainDiffusers:
    """diffusers as its documentation uses it."""

    def __init__(self, options: BenchOptions, device: str) -> None:
        import diffusers
        import torch

        checkpoint = find_checkpoint(options.model)
        pipeline_class = getattr(diffusers, checkpoint.pipeline_class)
        self.pipeline = pipeline_class.from_pretrained(checkpoint.folder, torch_dtype=getattr(torch, options.precision))
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.arguments = {
            "num_inference_steps": options.num_inference_steps or checkpoint.spec.num_inference_steps,
            "guidance_scale": checkpoint.spec.guidance_scale,
        }

    def loop(self, prompts: Sequence[str]) -> float:
        """One prompt after another."""
        started = time.perf_counter()
        for number, prompt in enumerate(prompts):
            self._call([prompt], number)
        return time.perf_counter() - started

    def batched(self, prompts: Sequence[str], size: int) -> float:
        """Batches; the pictures stay in memory."""
        kept: list[Any] = []
        started = time.perf_counter()
        for first in range(0, len(prompts), size):
            kept += self._call(list(prompts[first : first + size]), first)
        return time.perf_counter() - started

    def find_best_batch(self, prompts: Sequence[str]) -> int:
        """The candidate with the highest rate, after a warm-up of each."""
        rates = {}
        for size in BATCH_CANDIDATES:
            self.batched(prompts[:size], size)
            rates[size] = len(prompts) / self.batched(prompts, size)
        return max(rates, key=lambda size: rates[size])

    def _call(self, prompts: list[str], first_seed: int) -> list[Any]:
        import torch

        generators = [torch.Generator("cpu").manual_seed(first_seed + number) for number in range(len(prompts))]
        return self.pipeline(prompts, generator=generators, **self.arguments).images


class DgateContestant:
    """A lane with a warm model, from the planned run to the committed shard."""

    def __init__(self, options: BenchOptions, device: str, precision: Precision) -> None:
        self.options = options
        self.settings = RunSettings(
            model=options.model,
            precision=precision,
            num_inference_steps=options.num_inference_steps,
            rows_per_shard=4096,
        )
        spec = settings_to_spec(self.settings, precision)
        planned = {options.model: {"weights_hash": find_checkpoint(options.model).weights_hash}}
        self.generator = Generator(load_model(options.model, device, spec, planned), spec, GenerateOptions())

    def run(self, prompts: Sequence[str]) -> float:
        """Plans outside the clock, then makes, writes and commits inside it."""
        folder = Path(tempfile.mkdtemp(prefix="dgate-bench-"))
        try:
            manifest = folder / "prompts.jsonl"
            rows = [{"prompt": prompt, "seed": number} for number, prompt in enumerate(prompts)]
            manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
            open_run([str(manifest)], str(folder / "run"), self.settings)
            lane = Lane(RunStore(open_storage(folder / "run")), LaneOptions(), StopSignal(), self.generator)
            started = time.perf_counter()
            report = lane.work()
            seconds = time.perf_counter() - started
            assert report.ok == len(prompts), f"{report.failed} of {len(prompts)} pictures failed"
            return seconds
        finally:
            shutil.rmtree(folder)


def make_prompts(number: int, label: str) -> list[str]:
    """Distinct postcard captions; the label seeds them."""
    rng = np.random.default_rng(zlib.crc32(label.encode()))
    return [scene_to_caption(sample_scene(rng), rng) for _ in range(number)]
