"""Sizes, batches and rates of the recipes: a profile for a GPU, one for a CPU, one to rehearse."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class PartRates:
    """How one network is trained."""

    batch: int
    """Samples a step."""
    learning_rate: float
    """Peak of the cosine schedule (AdamW)."""
    warmup_steps: int = 200
    """Steps of linear warm-up."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are the ones exported."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    share: float = 1.0
    """End of this part as a share of train_all's budget."""
    compiled: bool = False
    """Whether the network goes through torch.compile."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Widths of the six networks; what ships is small enough to draw on a CPU, whatever it was trained on."""

    vae: tuple[int, ...] = (32, 64, 128)
    unet: tuple[int, ...] = (64, 160)
    unet_attends: tuple[bool, ...] = (False, True)
    """Levels of the UNet that look at the caption; the finest one costs four times as much as the next."""
    head: int = 80
    """Channels of an attention head."""
    text: int = 160
    text_layers: int = 3
    dit: int = 192
    dit_layers: int = 5
    dit_head: int = 64
    """Channels of a head of the transformer."""
    dit_words: int = 32
    """Width of the second encoder, which gives the bare words."""
    clip_vision: int = 192
    clip_vision_layers: int = 4
    clip_text: int = 128
    clip_text_layers: int = 3
    judge: int = 32


@dataclass(frozen=True, slots=True)
class Profile:
    """One complete setting of all recipes."""

    name: str
    scenes: int
    """Scenes rendered for training."""
    first_scenes: int
    """Scenes that must be there before a part starts."""
    fresh_scenes: int
    """Scenes of another seed, kept for evaluation."""
    generated: int
    """Pictures that the evaluation generates."""
    seconds: float
    """Budget of a part or of train_all when none is given."""
    vae: PartRates
    unet: PartRates
    clip: PartRates
    judge: PartRates
    dit: PartRates
    text: PartRates = field(default_factory=lambda: PartRates(256, 1e-3, warmup_steps=100, ema_decay=0.99, share=0.1))
    widths: Widths = field(default_factory=Widths)
    save_seconds: float = 60.0
    """Seconds between checkpoints."""
    chunk: int = 1000
    """Scenes a file."""


GPU = Profile(
    name="gpu",
    scenes=200_000,
    first_scenes=16_000,
    fresh_scenes=4000,
    generated=500,
    seconds=540,
    vae=PartRates(256, 1e-3, warmup_steps=200, share=0.33, compiled=True, weight_decay=1e-4),
    unet=PartRates(512, 1e-3, warmup_steps=400, ema_decay=0.9995, share=0.94),
    clip=PartRates(1024, 1e-3, warmup_steps=200, share=0.6, weight_decay=0.05),
    judge=PartRates(512, 2e-3, warmup_steps=100, share=0.17),
    dit=PartRates(512, 1e-3, warmup_steps=400, ema_decay=0.9995, share=0.94),
)

CPU = replace(
    GPU,
    name="cpu",
    scenes=40_000,
    first_scenes=40_000,
    fresh_scenes=1000,
    seconds=4 * 3600,
    vae=PartRates(16, 1e-3, share=0.3, ema_decay=0.995, weight_decay=1e-4),
    unet=PartRates(64, 1e-3, share=0.97, ema_decay=0.998),
    clip=PartRates(128, 1e-3, share=0.15, ema_decay=0.99, weight_decay=0.05),
    judge=PartRates(64, 1e-3, share=0.15, ema_decay=0.99),
    dit=PartRates(64, 1e-3, warmup_steps=400, share=0.97),
)

SMOKE = Profile(
    name="smoke",
    scenes=256,
    first_scenes=64,
    fresh_scenes=64,
    generated=12,
    seconds=60,
    vae=PartRates(8, 1e-3, warmup_steps=5, share=0.4, ema_decay=0.9),
    unet=PartRates(16, 1e-3, warmup_steps=5, share=0.7, ema_decay=0.9),
    clip=PartRates(16, 1e-3, warmup_steps=5, share=0.4, ema_decay=0.9),
    judge=PartRates(16, 1e-3, warmup_steps=5, share=0.4, ema_decay=0.9),
    dit=PartRates(16, 1e-3, warmup_steps=5, share=0.7, ema_decay=0.9),
    widths=Widths((16, 16, 32), (32, 64), (True, True), 16, 32, 1, 32, 2, 16, 16, 32, 1, 32, 1, 16),
    save_seconds=5,
    chunk=64,
)

PROFILES = {profile.name: profile for profile in (GPU, CPU, SMOKE)}
