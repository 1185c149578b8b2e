"""What every backend offers: another way to compute a model's denoiser, with the same pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from dgate_core.models.families.contract import DenoiserCall
from dgate_core.models.profiles import StepSavers

if TYPE_CHECKING:
    from dgate_core.manifest.item import BatchKey
    from dgate_core.models.families.latent import LatentModel


@dataclass(frozen=True, slots=True)
class ShapeBucket:
    """Pictures that one export or engine serves."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    most_samples: int = 128
    """Largest batch of the denoiser; guidance makes two samples of a picture."""


@dataclass(frozen=True, slots=True)
class BackendRequest:
    """How a model is to be served."""

    device: str
    """`cpu`, `cuda` or `mps`."""
    precision: str
    """`float32`, `bfloat16` or `float16`, as the model was loaded."""
    is_strict: bool = False
    """Whether a row must give the same bytes in any batch."""
    quantization: str | None = None
    """`int8`, `fp8` or `nf4`; its artefact must have passed its gate."""
    savers: StepSavers = field(default_factory=StepSavers)
    """Steps that the denoiser's own forward leaves out."""

    @property
    def computes_every_step(self) -> bool:
        """Whether no saver sits inside the denoiser, where an exported graph would lose it."""
        return self.savers.deep_cache_interval == 1 and self.savers.first_block_threshold == 0


class PreparedDecoder(Protocol):
    """A decoder that a backend computes too; the model calls it as before."""

    def warm_up(self, key: BatchKey, pictures: int) -> None:
        """Compiles what a batch of so many pictures needs.

        Raises:
            BackendUnfitError: it cannot be; the decoder is as it was.
        """
        ...

    def release(self) -> None:
        """The decoder is as it was."""
        ...


class PreparedDenoiser(DenoiserCall, Protocol):
    """A denoiser in a backend's hands."""

    decoder: PreparedDecoder | None
    """The decoder, where the backend has its own way with it."""

    artefact: str | None
    """Name of the quantised artefact that computes."""
    pads_batches: ClassVar[bool]
    """Whether every new size of a batch costs so much that it is padded to the next power of two."""

    def warm_up(self, key: BatchKey, samples: int) -> None:
        """Builds or compiles what a batch of so many samples needs, so that no row's time holds it.

        Raises:
            BackendUnfitError: this size cannot be served; others are as before.
        """
        ...

    def release(self) -> None:
        """The model is as it was before, for the next backend."""
        ...


class Backend(Protocol):
    """A way to compute a denoiser."""

    name: ClassVar[str]

    def prepare(self, model: LatentModel, request: BackendRequest) -> PreparedDenoiser:
        """What takes the place of the model's own call.

        Raises:
            MissingExtraError: its library is not installed.
            BackendUnfitError: it cannot serve this model on this machine.
        """
        ...
