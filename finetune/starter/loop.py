"""The training loop that all recipes share: a time or step budget, cosine rate, averaged weights, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from finetune.starter.checkpoints import TrainingState, load_state, save_state
from finetune.starter.profiles import PartRates

_LOG_SECONDS = 5.0
_REFRESH_SECONDS = 2.0
_FINAL_RATE = 0.01


class Recipe(Protocol):
    """What is particular to one network."""

    @property
    def network(self) -> nn.Module:
        """Everything that is trained."""
        ...

    def compute_loss(self, generator: torch.Generator) -> torch.Tensor:
        """Loss of one fresh random batch, a scalar."""
        ...

    def refresh(self) -> None:
        """Takes in scenes that have been rendered since."""
        ...

    def export(self) -> None:
        """Writes the network, which holds the averaged weights now, as its users open it."""
        ...


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How a recipe is run."""

    name: str
    """Part's name in the progress lines."""
    folder: Path
    """Where the training state lies."""
    rates: PartRates
    """Batch and rates."""
    seed: int = 0
    """Decides every random choice."""
    seconds: float = 60.0
    """Budget in seconds of training, those before a resume counted in; the rate decays over it."""
    steps: int | None = None
    """Budget in steps instead of seconds; makes a run exactly repeatable."""
    stop_after: int | None = None
    """Stop after this step as if killed, after a checkpoint."""
    resume: bool = False
    """Go on from the folder's state when there is one."""
    save_seconds: float = 60.0
    """Seconds between checkpoints."""


def train_recipe(recipe: Recipe, options: LoopOptions) -> TrainingState:
    """Trains until the budget is spent, writing state and export now and then and at the end.

    Raises FloatingPointError when the loss is not finite.
    """
    state = _open_state(recipe, options)
    meter = _Meter(options, state)
    while (progress := meter.measure_progress()) < 1:
        meter.add_loss(_take_step(recipe, state, options.rates, progress))
        if meter.is_due("refresh", _REFRESH_SECONDS):
            recipe.refresh()
        if meter.is_due("log", _LOG_SECONDS):
            meter.print_line()
        if meter.is_due("save", options.save_seconds):
            _save(recipe, state, options)
        if state.step == options.stop_after:
            save_state(state, options.folder)
            return state
    meter.print_line()
    _save(recipe, state, options)
    return state


def _open_state(recipe: Recipe, options: LoopOptions) -> TrainingState:
    parameters: list[torch.Tensor] = [parameter for parameter in recipe.network.parameters() if parameter.requires_grad]
    device = parameters[0].device
    rates = options.rates
    optimizer = torch.optim.AdamW(
        parameters,
        lr=rates.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=rates.weight_decay,
        fused=device.type == "cuda",
    )
    averages = [parameter.detach().clone() for parameter in parameters]
    state = TrainingState(parameters, averages, optimizer, torch.Generator(device).manual_seed(options.seed))
    if options.resume and (options.folder / "state.safetensors").exists():
        load_state(state, options.folder)
    return state


def _take_step(recipe: Recipe, state: TrainingState, rates: PartRates, progress: float) -> torch.Tensor:
    """One optimizer step; the loss stays on the device, so that the host runs ahead."""
    warmup = min(1.0, (state.step + 1) / rates.warmup_steps)
    cosine = _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
    for group in state.optimizer.param_groups:
        group["lr"] = rates.learning_rate * warmup * cosine
    loss = recipe.compute_loss(state.generator)
    loss.backward()
    nn.utils.clip_grad_norm_(state.parameters, 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    decay = min(rates.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(state.averages, state.parameters, 1 - decay)
    state.step += 1
    return loss.detach()


def _save(recipe: Recipe, state: TrainingState, options: LoopOptions) -> None:
    save_state(state, options.folder)
    with averaged_weights(state):
        recipe.export()


@contextmanager
def averaged_weights(state: TrainingState) -> Iterator[None]:
    """Lends the averaged weights to the network."""
    trained = [parameter.detach().clone() for parameter in state.parameters]
    with torch.no_grad():
        torch._foreach_copy_(state.parameters, state.averages)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(state.parameters, trained)


class _Meter:
    """Clock, budget and progress lines of one run."""

    def __init__(self, options: LoopOptions, state: TrainingState) -> None:
        self.options, self.state = options, state
        self.started = time.monotonic() - state.elapsed
        now = time.monotonic()
        self.last = {"refresh": now, "log": now, "save": now}
        self.losses: list[torch.Tensor] = []
        self.logged_step, self.logged_at = state.step, now

    def measure_progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        self.state.elapsed = time.monotonic() - self.started
        if self.options.steps is not None:
            return self.state.step / self.options.steps
        return self.state.elapsed / self.options.seconds if self.options.seconds > 0 else 1.0

    def is_due(self, what: str, seconds: float) -> bool:
        """Whether `seconds` have gone by since `what` was last due."""
        now = time.monotonic()
        if now - self.last[what] < seconds:
            return False
        self.last[what] = now
        return True

    def add_loss(self, loss: torch.Tensor) -> None:
        """Keeps a loss for the next line."""
        self.losses.append(loss)

    def print_line(self) -> None:
        """Prints step, mean loss since the last line, samples per second and the time that is left."""
        if not self.losses:
            return
        loss = float(torch.stack(self.losses).mean())
        if not math.isfinite(loss):
            raise FloatingPointError(f"{self.options.name}: the loss is {loss} at step {self.state.step}")
        now = time.monotonic()
        rate = (self.state.step - self.logged_step) * self.options.rates.batch / (now - self.logged_at)
        progress = self.measure_progress()
        left = self.state.elapsed * (1 / progress - 1) if progress > 0 else float("nan")
        line = f"step {self.state.step:6d}  loss {loss:.4f}  {rate:8.0f} samples/s  {max(0.0, left):5.0f} s left"
        print(f"[{self.options.name:5s}] {line}", flush=True)
        self.losses = []
        self.logged_step, self.logged_at = self.state.step, now
