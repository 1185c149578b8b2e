"""Reads a pickle of nested dicts of NumPy arrays, and nothing else: no other class or function is ever looked up."""

from __future__ import annotations

import io
import pickle
from typing import Any, Final

import numpy as np
from numpy._core.multiarray import _reconstruct

from dgate_core.evaluation.results import EvaluationError

_ALLOWED: Final = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Finds the three names that rebuild an array; every other name is refused before it is imported."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise EvaluationError(
                f"the file asks for {module_name}.{global_name}",
                "nested dicts of NumPy arrays and nothing else",
                "do not open this file with anything; it is not the one that was asked for",
            )
        return _ALLOWED[module_name, global_name]


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Arrays by path, such as `AlexNet_0/Conv_0/kernel`.

    Raises:
        EvaluationError: the pickle holds anything but dicts of arrays.
    """
    try:
        found = _ArrayUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise EvaluationError(f"no pickle of arrays: {error}", "nested dicts of NumPy arrays") from error
    return dict(_flatten(found, ""))


def _flatten(found: object, path: str) -> list[tuple[str, np.ndarray]]:
    if isinstance(found, dict):
        return [pair for key, value in found.items() for pair in _flatten(value, f"{path}/{key}" if path else str(key))]
    if isinstance(found, np.ndarray) and found.dtype.kind == "f":
        return [(path, found)]
    raise EvaluationError(f"{path or 'the file'} is a {type(found).__name__}", "an array of floats, or a dict of them")
