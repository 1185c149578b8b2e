"""What the recipes' commands have in common: their options, their data and their place in the output folder."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from finetune.starter.loop import LoopOptions
from finetune.starter.networks import choose_device
from finetune.starter.profiles import PROFILES, PartRates, Profile
from finetune.starter.store import SceneStore, start_renderer


@dataclass(frozen=True, slots=True)
class PartOptions:
    """Options of one recipe's command."""

    profile: Profile
    """Sizes and rates."""
    out: Path
    """Output folder: starter-unet, starter-clip, judge; scenes in data, training states in work."""
    device: torch.device
    """Where it trains."""
    seconds: float
    """Budget in seconds."""
    deadline: float | None = None
    """Budget as a moment (Unix seconds) instead, so that starting up counts."""
    steps: int | None = None
    """Budget in steps instead."""
    stop_after: int | None = None
    """Stop after this step as if killed."""
    resume: bool = False
    """Go on from the state in the output folder."""
    init: Path | None = None
    """Folder of models whose weights are the start of a new training."""
    init_text: Path | None = None
    """Weights of a text encoder that has learned to parse, from train_text."""
    seed: int = 0
    """Decides scenes and training."""

    @property
    def data(self) -> Path:
        """Folder of the rendered scenes."""
        return self.out / "data"

    def loop_options(self, name: str, rates: PartRates) -> LoopOptions:
        """Options of the training loop of the part `name`."""
        return LoopOptions(
            name=name,
            folder=self.out / "work" / name,
            rates=rates,
            seed=self.seed,
            seconds=self.seconds if self.deadline is None else max(0.0, self.deadline - time.time()),
            steps=self.steps,
            stop_after=self.stop_after,
            resume=self.resume,
            save_seconds=self.profile.save_seconds,
        )

    def compiles(self, rates: PartRates) -> bool:
        """Whether the network is compiled: where the profile says so, and only for CUDA."""
        return rates.compiled and self.device.type == "cuda"

    def open_store(self, *fields: str, held_out: bool = False) -> SceneStore:
        """The scenes, rendered first when nobody else does."""
        if not (self.data / "options.json").exists():
            start_renderer(self.data, self.profile, self.seed).wait()
        store = SceneStore(self.data, self.device, held_out=held_out, fields=fields)
        store.await_scenes(self.profile.first_scenes)
        return store


def parse_part(description: str, arguments: list[str] | None = None) -> PartOptions:
    """Options from the command line, and torch set for the device."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--deadline", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--stop-after", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--init-text", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    given = vars(parser.parse_args(arguments))
    profile = PROFILES[given["profile"]]
    seconds = given["seconds"] if given["seconds"] is not None else profile.seconds
    device = choose_device(given["device"])
    prepare_device(device)
    torch.manual_seed(given["seed"])
    return PartOptions(**given | {"profile": profile, "seconds": seconds, "device": device})


def prepare_device(device: torch.device) -> None:
    """Fast matrix products where they cost no quality."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def replace_folder(partial: Path, folder: Path) -> None:
    """Puts a finished folder in the place of an older one."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(folder)


def compile_networks(name: str, networks: Sequence[nn.Module], compute_loss: Callable[[], torch.Tensor]) -> None:
    """Compiles networks in place with one backward pass; where that fails, says so and leaves them eager."""
    started = time.monotonic()
    for network in networks:
        network.compile()
    try:
        compute_loss().backward()
    except RuntimeError as error:
        for network in networks:
            network._compiled_call_impl = None
        print(f"[{name:5s}] not compiled, trains eagerly: {str(error)[:600]}", flush=True)
    for network in networks:
        network.zero_grad(set_to_none=True)
    print(f"[{name:5s}] compiled in {time.monotonic() - started:.0f} s", flush=True)


def mark_part(out: Path, name: str) -> None:
    """Says that the part `name` is finished."""
    (out / "work").mkdir(parents=True, exist_ok=True)
    (out / "work" / f"{name}.done").touch()


def await_part(out: Path, name: str, seconds: float = 24 * 3600) -> None:
    """Waits until the part `name` is finished."""
    end = time.monotonic() + seconds
    while not (out / "work" / f"{name}.done").exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{name} was not finished in {seconds:.0f} s: run finetune.starter.train_{name} first")
        time.sleep(0.2)
