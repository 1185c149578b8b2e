"""Rendered scenes held on the training device, growing while the renderer still works."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from finetune.starter.profiles import Profile
from finetune.starter.scenes import SceneOptions, count_processes

_FIELDS = ("pictures", "labels", "tokens", "negatives", "signatures")


class SceneStore:
    """Arrays of all chunks as device tensors.

    Args:
        folder: Where the chunks appear.
        device: Where the tensors live.
        held_out: Whether scenes with held-out pairs are kept; only the judge learns from them.
        fields: Which arrays are needed.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        held_out: bool = False,
        fields: tuple[str, ...] = _FIELDS,
    ) -> None:
        self.folder, self.device, self.held_out, self.fields = folder, device, held_out, fields
        options = SceneOptions(**json.loads(_await_file(folder / "options.json").read_text(encoding="utf-8")))
        self.waiting = [folder / f"{name}.npz" for name in options.chunk_names()]
        self.parts: dict[str, list[torch.Tensor]] = {field: [] for field in fields}
        self.tensors: dict[str, torch.Tensor] = {}
        self.count = 0

    def refresh(self) -> bool:
        """Takes in what has appeared; True when there is something new.

        Chunks are taken in order, so that a store with every chunk is the same however they came.
        """
        before = self.count
        while self.waiting and self.waiting[0].exists():
            self._take_chunk(self.waiting.pop(0))
        if self.count > before:
            self.tensors = {field: torch.cat(parts) for field, parts in self.parts.items()}
            self.parts = {field: [tensor] for field, tensor in self.tensors.items()}
        return self.count > before

    def _take_chunk(self, file: Path) -> None:
        with np.load(file, allow_pickle=False) as arrays:
            keep = slice(None) if self.held_out else ~arrays["held_out"]
            for field in self.fields:
                self.parts[field].append(torch.from_numpy(arrays[field][keep]).to(self.device))
            self.count += len(arrays["held_out"][keep])

    def await_scenes(self, number: int) -> None:
        """Waits until `number` scenes, or all of them, are there."""
        while self.waiting and self.count < number:
            if not self.refresh():
                time.sleep(0.2)

    def draw(self, generator: torch.Generator, number: int) -> torch.Tensor:
        """Random row numbers (number,) among the scenes that are there."""
        return torch.randint(self.count, (number,), generator=generator, device=self.device)


def pictures_to_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 (N, H, W, 3) as pixels (N, 3, H, W) float32 in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def start_renderer(folder: Path, profile: Profile, seed: int) -> subprocess.Popen[bytes]:
    """Starts the rendering of a profile's scenes in processes of its own."""
    command = [sys.executable, "-m", "finetune.starter.scenes", "--out", str(folder), "--seed", str(seed)]
    sizes = {"scenes": profile.scenes, "chunk": profile.chunk}
    for name, value in (sizes | {"processes": count_processes()}).items():
        command += [f"--{name}", str(value)]
    return subprocess.Popen(command)


def _await_file(file: Path, seconds: float = 120) -> Path:
    end = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > end:
            raise FileNotFoundError(f"{file} did not appear in {seconds:.0f} s: the renderer has not started")
        time.sleep(0.1)
    return file
