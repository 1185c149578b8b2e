"""What a profile gives for speed is fixed by the first lane of a run, so that no run mixes rows of two artefacts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from dgate_core.errors import RunMismatchError
from dgate_core.models.families.contract import Serving
from dgate_core.runs.layout import name_levers
from dgate_core.runs.store import RunStore


@dataclass(frozen=True, slots=True)
class Levers:
    """What changes the pixels of a profile beyond rounding. Its name alone does not say: artefacts are made anew, and
    a release may set a profile's savers otherwise."""

    quantization: str | None
    """`int8`, `fp8` or `nf4`."""
    artefact: str | None
    """Name of the quantised artefact."""
    savers: tuple[str, ...]
    """Steps that are left out, such as `deep-cache-2`."""

    def describe(self) -> str:
        """One line."""
        quantised = f"{self.quantization} artefact {self.artefact}" if self.quantization else "no quantisation"
        return f"{quantised}, {', '.join(self.savers) or 'every step computed'}"


def hold_to_levers(store: RunStore, weights_hash: str, serving: Serving) -> None:
    """Fixes the levers of a model for the whole run, or sees that they are those that were fixed.

    Args:
        store: The run.
        weights_hash: Of the model's checkpoint.
        serving: What computes it here.

    Raises:
        RunMismatchError: rows of this run were made with others.
    """
    here = Levers(serving.quantization, serving.artefact, serving.savers)
    if here == Levers(None, None, ()):
        return
    key = name_levers(weights_hash)
    if store.storage.create_bytes(key, json.dumps(asdict(here), indent=2).encode()):
        return
    found = json.loads(store.storage.read_bytes(key))
    fixed = Levers(found["quantization"], found["artefact"], tuple(found["savers"]))
    if fixed != here:
        raise RunMismatchError(
            f"this machine would go on with {here.describe()}",
            f"{fixed.describe()}, with which the run's rows are made",
            "bring the old artefact back, or give another --out",
        )
