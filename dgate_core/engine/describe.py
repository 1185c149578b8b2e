"""Plan rows to provenance."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dgate_core.engine.provenance import Provenance
from dgate_core.runs.spec import RunSpec

DESCRIBED_PACKAGES = ("torch", "diffusers", "transformers", "pillow", "d-gate")


class RowDescriber:
    """Fills in a row's provenance from the row, the run and the model.

    Args:
        run: run.json.
        spec: The run's spec.
        model: Name of the rows' model.
    """

    def __init__(self, run: Mapping[str, Any], spec: RunSpec, model: str) -> None:
        facts = run["models"][model]
        self._shared = {
            "model": model,
            "model_hash": facts["weights_hash"],
            "model_revision": facts.get("revision"),
            "precision": spec.precision,
            "determinism": spec.determinism,
            "strict_batch_size": spec.strict_batch_size,
            "image": asdict(spec.image),
            "run": run["fingerprint"],
            "versions": list_versions(),
            "profile": spec.profile,
        }

    def __call__(self, row: Mapping[str, Any]) -> Provenance:
        """The provenance of one plan row."""
        names = ("prompt", "seed", "width", "height", "num_inference_steps", "guidance_scale", "scheduler", "row_id")
        return Provenance(
            **{name: row[name] for name in names},
            negative_prompt=row["negative_prompt"] or "",
            lora=row["lora"] or "[]",
            style_preset=row["style_preset"],
            **self._shared,
        )


@cache
def list_versions() -> dict[str, str]:
    """Versions of the libraries that have a say in the pixels; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in DESCRIBED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
