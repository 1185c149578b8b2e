"""Where a pipeline's weights lie: on the device, coming and going by a memory plan, or waiting on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import UserCpuOffloadHook
from diffusers.hooks import apply_group_offloading

from dgate_core.models.memory_plan import MemoryPlan


def place_pipeline(
    pipeline: Any, device: torch.device, plan: MemoryPlan, waiting: torch.nn.Module | None = None
) -> None:
    """Puts a pipeline that is on the CPU where the plan says; what goes in and comes out of it is on the device.

    Args:
        pipeline: Of diffusers.
        device: Where it computes.
        plan: What stays on the device; its slicing and tiling are switched on too.
        waiting: A part that stays on the CPU where all would go onto the device, for others to place.
    """
    lay_out(pipeline, device)
    set_decoding(pipeline.vae, plan)
    if plan.offload == "none":
        for module in list_modules(pipeline):
            if module is not waiting:
                module.to(device)
    elif plan.offload == "model":
        offload_by_part(pipeline, device)
    else:
        for module in list_modules(pipeline):
            _OFFLOADS[plan.offload](module, device)


def set_decoding(vae: Any, plan: MemoryPlan) -> None:
    """Switches on what the plan asks of the decoder; nothing is ever switched off."""
    if plan.vae_slicing:
        vae.enable_slicing()
    if plan.vae_tiling:
        vae.enable_tiling()


def list_modules(pipeline: Any) -> list[torch.nn.Module]:
    """The parts that have weights."""
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]


def count_device_bytes(pipeline: Any, device: torch.device) -> int:
    """Bytes of weights that lie on the device now; tensors that share storage count once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in _list_tensors(pipeline)
        if tensor.device.type == device.type
    }
    return sum(storages.values())


def lay_out(pipeline: Any, device: torch.device) -> None:
    """Dtype and memory format that the device wants, before hooks keep copies of the weights."""
    vae, denoiser = pipeline.vae, pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    if denoiser.dtype == torch.float16 and bool(vae.config.get("force_upcast")):
        vae.to(torch.float32)
    if device.type == "cuda":
        prefer_channels_last(vae)
        if hasattr(pipeline, "unet"):
            prefer_channels_last(denoiser)


def prefer_channels_last(module: torch.nn.Module) -> None:
    """Channels last, unless it is a video decoder, whose weights have a dimension more."""
    if not any(each.ndim == 5 for each in module.parameters()):
        module.to(memory_format=torch.channels_last)


def offload_by_part(pipeline: Any, device: torch.device) -> None:
    """One part on the device at a time: a part that is called sends the one before it away."""
    order = [name for name in pipeline.model_cpu_offload_seq.split("->") if getattr(pipeline, name, None) is not None]
    before: UserCpuOffloadHook | None = None
    for name in order:
        _, before = cpu_offload_with_hook(getattr(pipeline, name), device, prev_module_hook=before)


def _offload_groups(module: torch.nn.Module, device: torch.device) -> None:
    """Leaves one by one; on CUDA the next comes on a stream of its own while this one works."""
    on_gpu = device.type == "cuda"
    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        use_stream=on_gpu,
        non_blocking=on_gpu,
    )


def _offload_layers(module: torch.nn.Module, device: torch.device) -> None:
    cpu_offload(module, device, offload_buffers=True)


_OFFLOADS = {"group": _offload_groups, "sequential": _offload_layers}


class HostCopy:
    """A pipeline's weights, kept in the host's memory while they are not on the device.

    The host's tensors are pinned on CUDA and are kept once they are made, for weights do not change: leaving costs
    a copy the first time and nothing later, coming back costs one copy.
    """

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._pipeline, self._device = pipeline, device
        self._host: dict[int, torch.Tensor] = {}

    def leave(self) -> None:
        """Lets the weights stand in the host's memory."""
        for tensor in _list_tensors(self._pipeline):
            if id(tensor) not in self._host:
                self._host[id(tensor)] = self._copy(tensor)
            tensor.data = self._host[id(tensor)]

    def come_back(self) -> None:
        """Lets the weights stand on the device."""
        for tensor in _list_tensors(self._pipeline):
            tensor.data = self._host[id(tensor)].to(self._device, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        host = torch.empty_like(tensor, device="cpu", pin_memory=self._device.type == "cuda")
        return host.copy_(tensor.detach())


def _list_tensors(pipeline: Any) -> Iterator[torch.Tensor]:
    """Parameters and buffers of all parts, each once."""
    seen: dict[int, torch.Tensor] = {}
    for module in list_modules(pipeline):
        for tensor in (*module.parameters(), *module.buffers()):
            seen.setdefault(id(tensor), tensor)
    yield from seen.values()
