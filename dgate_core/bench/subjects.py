"""What is raced: a pipeline of diffusers, and D-Gate's models over the same weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dgate_core.bench.architectures import (
    ARCHITECTURES,
    TOYS,
    Architecture,
    build_pipeline,
    describe_checkpoint,
    draw_embeddings,
)
from dgate_core.errors import UsageError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.spec import DEFAULT_SCHEDULER, PIPELINES, LocalCheckpoint
from dgate_core.postcards import sample_scene, scene_to_caption
from dgate_core.registry import explain_unknown

if TYPE_CHECKING:
    import torch

    from dgate_core.models.families.contract import BatchRequest, PromptEmbedding
    from dgate_core.models.families.latent import LatentModel

RANDOM: Final = "random"


@dataclass(frozen=True, slots=True)
class Case:
    """What is drawn, as a published benchmark sets it."""

    name: str
    """As `--case` takes it."""
    architecture: str
    """Key of ARCHITECTURES, or a name of the catalogue when the weights are not random."""
    steps: int
    """Of the schedule."""
    guidance: float
    """Guidance scale."""
    batch: int
    """Pictures at once on a GPU, where a variant names no number."""
    plain_batches: tuple[int, ...]
    """Candidates for the best batch of plain diffusers on a GPU."""
    negative: str = ""
    """Negative prompt."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """Kind of variant (see `Variant.kind`) → pictures per second wanted of one H200."""


CASES: Final[Mapping[str, Case]] = {
    case.name: case
    for case in (
        Case(
            "sdxl-mlperf",
            "sdxl",
            20,
            8.0,
            16,
            (8, 16),
            "normal quality, low quality, worst quality, low res, blurry, nsfw, nude",
            {"lossless": 1.9, "fp8": 2.4, "fp8+deep-cache": 4.2},
        ),
        Case("sd15", "sd15", 50, 7.5, 32, (16, 32), targets={"lossless": 6.0, "fp8": 6.0}),
        Case(
            "flux-dev",
            "flux-dev",
            28,
            3.5,
            4,
            (4,),
            targets={"fp8": 0.36, "fp8+first-block": 0.55},
        ),
        Case("flux-schnell", "flux-schnell", 4, 0.0, 8, (4, 8)),
        Case("starter", "starter-unet", 25, 1.5, 64, (32, 64)),
    )
}


def find_case(name: str) -> Case:
    """Raises UsageError when there is no such case."""
    if name not in CASES:
        raise explain_unknown("case", name, CASES, UsageError)
    return CASES[name]


@dataclass(slots=True)
class Subject:
    """A case on a device."""

    case: Case
    """What is drawn."""
    pipeline: Any
    """Of diffusers, eager, on the device."""
    checkpoint: LocalCheckpoint
    """What it is."""
    architecture: Architecture | None
    """None where the weights are real."""
    device: str
    """Where it computes."""
    dtype: torch.dtype
    """Of all parts."""
    size: int
    """Pixels of a side."""

    @property
    def weights(self) -> str:
        """Where they come from."""
        return RANDOM if self.architecture is not None else self.checkpoint.spec.name

    def open_model(self) -> LatentModel:
        """D-Gate's model over the same weights; its layers are its own, so that compiling leaves the others alone."""
        import torch

        from dgate_core.models.families.placement import lay_out

        part = PIPELINES[self.checkpoint.pipeline_class].denoiser
        components = {
            **self.pipeline.components,
            **{name: share_weights(self.pipeline, name) for name in (part, "vae")},
        }
        pipeline = type(self.pipeline)(**components, **_read_switches(self.pipeline))
        if self.checkpoint.family == "unet":
            from dgate_core.models.families.unet import UNetModel as Model
        else:
            from dgate_core.models.families.dit import DiTModel as Model  # type: ignore[assignment]
        lay_out(pipeline, torch.device(self.device))
        model: LatentModel = Model(self.checkpoint, pipeline, torch.device(self.device))
        if self.architecture is not None:
            text = self.architecture.text
            stand_in = lambda prompts: list(draw_embeddings(text, prompts, self.device, self.dtype))  # noqa: E731
            model.encode_together = stand_in  # type: ignore[method-assign]
        return model

    def make_request(self, model: LatentModel, rows: int, steps: int | None = None) -> BatchRequest:
        """A batch of distinct prompts and seeds."""
        from dgate_core.models.families.contract import BatchRequest

        prompts, negatives = self.encode(model, rows)
        return BatchRequest(self.make_key(steps), tuple(range(rows)), prompts, negatives)

    def make_key(self, steps: int | None = None) -> BatchKey:
        """The case's batch key, with its own steps or others."""
        name, size = self.checkpoint.spec.name, self.size
        return BatchKey(name, size, size, steps or self.case.steps, DEFAULT_SCHEDULER, self.case.guidance)

    def encode(self, model: LatentModel, rows: int) -> tuple[tuple[PromptEmbedding, ...], tuple[PromptEmbedding, ...]]:
        """Embeddings of prompts and negative prompts."""
        prompts = model.encode_prompts(make_prompts(rows), one_by_one=False)
        return tuple(prompts), tuple(model.encode_negatives([self.case.negative], one_by_one=False) * rows)

    def make_arguments(self, model: LatentModel, rows: int, steps: int | None = None) -> dict[str, Any]:
        """What plain diffusers takes for the same batch."""
        import torch

        prompts, negatives = self.encode(model, rows)
        found: dict[str, Any] = {
            "prompt_embeds": torch.stack([each.hidden for each in prompts]),
            "negative_prompt_embeds": torch.stack([each.hidden for each in negatives]),
        }
        if (pooled := _stack_pooled(prompts)) is not None:
            found |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": _stack_pooled(negatives)}
        found |= {"width": self.size, "height": self.size, "guidance_scale": self.case.guidance}
        found["num_inference_steps"] = steps or self.case.steps
        found["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in range(rows)]
        accepted = inspect.signature(self.pipeline.__call__).parameters
        takes_negatives = model.reads_negatives(self.case.guidance)
        return {
            name: value
            for name, value in found.items()
            if name in accepted and (takes_negatives or not name.startswith("negative"))
        }


def open_subject(case: Case, weights: str, *, toy: bool, device: str) -> Subject:
    """Builds or loads what a case draws, in bf16 on a GPU and fp32 elsewhere.

    Args:
        case: What is drawn.
        weights: `random`, or a name of the catalogue, or a folder.
        toy: Random weights at toy size.
        device: `cpu` or `cuda`.

    Raises:
        ModelError: there is no such checkpoint.
    """
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    architecture = (TOYS if toy else ARCHITECTURES).get(case.architecture)
    if weights == RANDOM and architecture is not None:
        pipeline = build_pipeline(architecture, device, dtype)
        checkpoint = describe_checkpoint(architecture)
        return Subject(case, pipeline, checkpoint, architecture, device, dtype, architecture.native_size)
    from dgate_core.models.catalog import find_checkpoint
    from dgate_core.models.families.loading import load_pipeline

    checkpoint = find_checkpoint(case.architecture if weights == RANDOM else weights)
    pipeline = load_pipeline(checkpoint, dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return Subject(case, pipeline, checkpoint, None, device, dtype, checkpoint.native_size)


def share_weights(pipeline: Any, part: str) -> Any:
    """A copy of a module whose parameters lie in the same memory."""
    import torch

    module = getattr(pipeline, part)
    shared = {id(each): torch.nn.Parameter(each.data, requires_grad=False) for each in module.parameters()}
    return copy.deepcopy(module, {**shared, **{id(each): each for each in module.buffers()}})


def make_prompts(number: int) -> list[str]:
    """Distinct captions."""
    rng = np.random.default_rng(4)
    return [scene_to_caption(sample_scene(rng), rng) for _ in range(number)]


def _stack_pooled(embeddings: Sequence[PromptEmbedding]) -> torch.Tensor | None:
    import torch

    pooled = [each.pooled for each in embeddings if each.pooled is not None]
    return torch.stack(pooled) if pooled else None


def _read_switches(pipeline: Any) -> dict[str, Any]:
    """Arguments of the pipeline's class that are no parts."""
    return {
        name: pipeline.config[name]
        for name in ("requires_safety_checker", "force_zeros_for_empty_prompt")
        if name in pipeline.config and name in inspect.signature(type(pipeline).__init__).parameters
    }
