"""Training state on disk: weights, averaged weights, optimizer and random state as safetensors beside a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class TrainingState:
    """Everything that the next step depends on."""

    parameters: list[torch.Tensor]
    """What is trained."""
    averages: list[torch.Tensor]
    """Their exponential moving averages."""
    optimizer: torch.optim.AdamW
    """Holds the moments of the parameters."""
    generator: torch.Generator
    """Decides every random choice of the training."""
    step: int = 0
    """Steps done."""
    elapsed: float = 0.0
    """Seconds of training done."""


@dataclass(frozen=True, slots=True)
class _Numbers:
    step: int
    elapsed: float


def save_state(state: TrainingState, folder: Path) -> None:
    """Writes state.safetensors and state.json, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"generator": state.generator.get_state()}
    for number, parameter in enumerate(state.parameters):
        tensors[f"{number}.weight"] = parameter.detach()
        tensors[f"{number}.average"] = state.averages[number]
        for moment in _MOMENTS:
            if moment in state.optimizer.state[parameter]:
                tensors[f"{number}.{moment}"] = state.optimizer.state[parameter][moment]
    numbers = json.dumps(asdict(_Numbers(state.step, state.elapsed)))
    partial = folder / "state.partial"
    packed = {key: value.cpu().contiguous() for key, value in tensors.items()}
    save_file(packed, partial, metadata={"numbers": numbers})
    partial.replace(folder / "state.safetensors")
    (folder / "state.json").write_text(numbers, encoding="utf-8")


def load_state(state: TrainingState, folder: Path) -> None:
    """Brings `state` to where `save_state` left it."""
    with safe_open(folder / "state.safetensors", framework="pt") as file:
        numbers = _Numbers(**json.loads(file.metadata()["numbers"]))
        state.generator.set_state(file.get_tensor("generator"))
        keys = set(file.keys())
        for number, parameter in enumerate(state.parameters):
            with torch.no_grad():
                parameter.copy_(file.get_tensor(f"{number}.weight"))
            state.averages[number].copy_(file.get_tensor(f"{number}.average"))
            if f"{number}.{_MOMENTS[0]}" in keys:
                moments = {m: file.get_tensor(f"{number}.{m}").to(parameter.device) for m in _MOMENTS}
                steps = torch.tensor(float(numbers.step), device=_step_device(state, parameter))
                state.optimizer.state[parameter] = {"step": steps, **_like(moments, parameter)}
    state.step, state.elapsed = numbers.step, numbers.elapsed


def _like(moments: dict[str, torch.Tensor], parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """The moments in the memory order of their parameter, so that a resumed step rounds as an unbroken one."""
    return {name: torch.empty_like(parameter).copy_(value) for name, value in moments.items()}


def _step_device(state: TrainingState, parameter: torch.Tensor) -> torch.device:
    fused: Sequence[bool | None] = [group["fused"] for group in state.optimizer.param_groups]
    return parameter.device if any(fused) else torch.device("cpu")
