"""What a lane adds to the bare loop: PNG encoding, hashing, writing, claims and the commit, over the same warm model.

The bare loop denoises and decodes batch after batch with embeddings that are there already, and keeps nothing. The lane
makes as many pictures in batches of the same size from a planned run, text encoding included.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dgate_core.bench.architectures import Architecture
from dgate_core.bench.flops import synchronise
from dgate_core.bench.machine import describe_machine, pick_device
from dgate_core.bench.subjects import RANDOM, Subject, find_case, make_prompts, open_subject
from dgate_core.bench.variants import parse_variant, prepare_variant

if TYPE_CHECKING:
    from dgate_core.engine.generate import Generator
    from dgate_core.models.families.latent import LatentModel
    from dgate_core.runs.settings import RunSettings

BAR: Final = 0.97
"""Least share of the bare loop's rate that a lane on a GPU is to reach."""


@dataclass(frozen=True, slots=True)
class WholePathOptions:
    """What is measured."""

    case: str = "sd15"
    """Key of CASES."""
    profile: str = "fast"
    """A variant, see `parse_variant`."""
    weights: str = RANDOM
    """`random`, a name of the catalogue, or a folder."""
    size: str = "full"
    """`full` or `toy`."""
    batches: int = 4
    """Per round, for the loop and for the lane."""
    rounds: int = 2
    """The ratio is the median over these."""
    steps: int | None = None
    """Of the schedule; None is the case's own number."""
    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""


def measure_whole_path(
    options: WholePathOptions, tell: Callable[[str], object], keep: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Rates of the bare loop and of the lane, round by round, and their ratio.

    Args:
        options: Case, batches, rounds.
        tell: Takes progress lines.
        keep: Takes all figures so far.

    Raises:
        DgateError: the case, the variant or the checkpoint is not to be had.
    """
    device = pick_device(options.device)
    case, variant = find_case(options.case), parse_variant(options.profile, device)
    subject = open_subject(case, options.weights, toy=options.size == "toy", device=device)
    model = subject.open_model()
    prepared = prepare_variant(model, variant, make_prompts(1) if subject.weights == RANDOM else ())
    batch = variant.batch or (case.batch if device == "cuda" else 4)
    pictures, steps = batch * options.batches, options.steps or case.steps
    found: dict[str, Any] = {
        "benchmark": "whole-path",
        "options": asdict(options),
        **describe_machine(device),
        "weights": subject.weights,
        "batch": batch,
        "pictures": pictures,
        "notes": [f"backend {prepared.backend}", *prepared.savers, *prepared.notes],
        "rounds": {"bare loop": [], "lane": []},
    }
    with lend_checkpoint(subject, model):
        lane = WarmLane(subject, model, batch, steps)
        run_bare(subject, model, batch, batch, steps)
        lane.run(batch)
        for number in range(options.rounds):
            found["rounds"]["bare loop"].append(run_bare(subject, model, batch, pictures, steps))
            found["rounds"]["lane"].append(lane.run(pictures))
            found |= summarise(found["rounds"])
            found["lane_stages"] = lane.stages
            tell(f"round {number + 1}: ratio {found['ratio']['median']:.3f} of {found['pictures_per_second']}")
            keep(found)
    return found


def summarise(rounds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of rates, and of the ratios taken round by round."""
    ratios = [lane / bare for lane, bare in zip(rounds["lane"], rounds["bare loop"], strict=True)]
    return {
        "pictures_per_second": {name: statistics.median(rates) for name, rates in rounds.items()},
        "ratio": {"median": statistics.median(ratios), "bar": BAR},
    }


def run_bare(subject: Subject, model: LatentModel, batch: int, pictures: int, steps: int) -> float:
    """Pictures per second of denoising and decoding alone."""
    request = subject.make_request(model, batch, steps)
    synchronise(subject.device)
    started = time.perf_counter()
    for _ in range(pictures // batch):
        last = model.generate(request)
    last.wait()
    return pictures / (time.perf_counter() - started)


class WarmLane:
    """A lane that gets the warm model, from the planned run to the committed shard."""

    def __init__(self, subject: Subject, model: LatentModel, batch: int, steps: int) -> None:
        from dgate_core.engine.generate import GenerateOptions, Generator
        from dgate_core.runs.settings import RunSettings, settings_to_spec

        precision: Any = str(subject.dtype).removeprefix("torch.")
        self.device = subject.device
        self.stages: dict[str, float] = {}
        self.settings: RunSettings = RunSettings(
            model=model.checkpoint.spec.name,
            negative_prompt=subject.case.negative,
            width=subject.size,
            height=subject.size,
            num_inference_steps=steps,
            guidance_scale=subject.case.guidance,
            precision=precision,
            device=subject.device,
            rows_per_shard=4096,
        )
        options = GenerateOptions(batch_size=batch, largest_batch_size=max(batch, 64))
        self.generator: Generator = Generator(model, settings_to_spec(self.settings, precision), options)

    def run(self, pictures: int) -> float:
        """Pictures per second; planning is outside the clock."""
        from dgate_core.engine.begin import open_run
        from dgate_core.engine.lane import Lane, LaneOptions
        from dgate_core.engine.stopping import StopSignal
        from dgate_core.runs.store import RunStore
        from dgate_core.storage import open_storage

        folder = Path(tempfile.mkdtemp(prefix="dgate-bench-"))
        try:
            manifest = folder / "prompts.jsonl"
            rows = [{"prompt": prompt, "seed": number} for number, prompt in enumerate(make_prompts(pictures))]
            manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            open_run([str(manifest)], str(folder / "run"), self.settings)
            options = LaneOptions(device=self.device)
            lane = Lane(RunStore(open_storage(folder / "run")), options, StopSignal(), self.generator)
            synchronise(self.device)
            started = time.perf_counter()
            report = lane.work()
            seconds = time.perf_counter() - started
            assert report.ok == pictures, f"{report.failed} of {pictures} pictures failed"
            self.stages = dict(report.stages)
            return pictures / seconds
        finally:
            shutil.rmtree(folder)


@contextmanager
def lend_checkpoint(subject: Subject, model: LatentModel) -> Iterator[None]:
    """A run is planned for a checkpoint on disk: random weights get a folder of real configs and empty weights."""
    if subject.architecture is None:
        yield
        return
    from dgate_core.models.catalog import find_checkpoint

    folder = Path(tempfile.mkdtemp(prefix="dgate-bench-"))
    try:
        write_configs(subject.architecture, subject.pipeline, folder)
        model.checkpoint = find_checkpoint(str(folder))
        yield
    finally:
        shutil.rmtree(folder)


def write_configs(architecture: Architecture, pipeline: Any, folder: Path) -> None:
    """A diffusers folder that is whole to those who look and do not load."""
    import torch
    from safetensors.torch import save_file

    parts = {name: part for name, part in pipeline.components.items() if part is not None and hasattr(part, "config")}
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    about = {"_class_name": architecture.pipeline_class, **index}
    (folder / "model_index.json").write_text(json.dumps(about), encoding="utf-8")
    for name, part in parts.items():
        part.save_config(folder / name)
        if isinstance(part, torch.nn.Module):
            save_file({"empty": torch.zeros(1)}, folder / name / "diffusion_pytorch_model.safetensors")
