"""What D-Gate says when something is wrong: what was got, what was expected, what to do next."""

from __future__ import annotations

from typing import ClassVar


class DgateError(Exception):
    """A mistake that a person can mend; the command line prints it without a traceback.

    Args:
        got: What was found, with the value and where it stands.
        expected: What would have been right.
        next_step: What to do now, an imperative sentence.
    """

    code: ClassVar[str] = "error"

    def __init__(self, got: str, expected: str = "", next_step: str = "") -> None:
        self.got, self.expected, self.next_step = got, expected, next_step
        super().__init__(got, expected, next_step)

    def __str__(self) -> str:
        parts = [self.got]
        if self.expected:
            parts.append(f"expected: {self.expected}")
        if self.next_step:
            parts.append(f"next: {self.next_step}")
        return "\n  ".join(parts)


class UsageError(DgateError):
    """A command, option or flow parameter that cannot be understood."""

    code = "usage"


class ConfigError(UsageError):
    """A config file or a `--set key=value` that names an unknown key or an impossible value."""

    code = "config"


class ManifestError(DgateError):
    """A manifest that cannot be read at all (single bad rows become error rows instead)."""

    code = "manifest"


class StorageError(DgateError):
    """Storage that refuses, is full, is not there, or does not answer."""

    code = "storage"


class ObjectNotFoundError(StorageError):
    """A key that storage does not hold."""

    code = "not_found"


class ModelError(DgateError):
    """A model that is unknown, incomplete, unsafe to open, or not what its family expects."""

    code = "model"


class BackendUnfitError(DgateError):
    """A backend that cannot serve this model, size or machine; the next one of the profile may."""

    code = "backend"


class RunMismatchError(DgateError):
    """A run folder that was made for another spec or manifest."""

    code = "run_mismatch"


class RunError(DgateError):
    """A run that cannot go on (no run there, lanes that keep dying, a folder in use)."""

    code = "run"


class RowError(DgateError):
    """One row that cannot be made; its code and message go into the results, the others go on."""

    code = "row"

    def __init__(self, code: str, got: str, expected: str = "", next_step: str = "") -> None:
        super().__init__(got, expected, next_step)
        self.row_code = code


class MissingExtraError(DgateError):
    """An optional dependency that is not installed."""

    code = "missing_extra"

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the package {package!r} is not installed",
            f"the extra {extra!r}",
            f"run: pip install 'd-gate[{extra}]'",
        )
