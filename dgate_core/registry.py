"""Plug-ins by name, imported when used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from dgate_core.errors import DgateError, MissingExtraError, UsageError


class Registry:
    """A table of names and the `module:attribute` that each stands for.

    Args:
        kind: What the names are, for messages ("scheduler", "backend").
        entries: name → "module:attribute".
        extras: top-level package → the extra of pyproject.toml that installs it.
    """

    def __init__(self, kind: str, entries: dict[str, str], extras: dict[str, str] | None = None) -> None:
        self.kind, self.entries, self.extras = kind, entries, extras or {}

    def names(self) -> list[str]:
        """All names, in the order of the table."""
        return list(self.entries)

    def load(self, name: str) -> Any:
        """Imports what the name stands for.

        Raises:
            UsageError: there is no such name.
            MissingExtraError: its package is not installed.
        """
        if name not in self.entries:
            raise explain_unknown(self.kind, name, self.entries, UsageError)
        module, _, attribute = self.entries[name].partition(":")
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package in self.extras:
                raise MissingExtraError(package, self.extras[package]) from error
            raise


def explain_unknown(kind: str, name: str, known: Iterable[str], error: type[DgateError]) -> DgateError:
    """An error that names the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return error(
        f"unknown {kind} {name!r}",
        f"one of {', '.join(names)}" if names else f"no {kind} is known here",
        f"did you mean {near[0]!r}?" if near else "",
    )
