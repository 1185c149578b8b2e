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
        takes_plugins: Whether a user's own `module:function` may stand in the place of a name.
    """

    def __init__(
        self, kind: str, entries: dict[str, str], extras: dict[str, str] | None = None, *, takes_plugins: bool = False
    ) -> None:
        self.kind, self.entries, self.extras, self.takes_plugins = kind, entries, extras or {}, takes_plugins

    def names(self) -> list[str]:
        """All names, in the order of the table."""
        return list(self.entries)

    def check(self, name: str) -> None:
        """Raises UsageError when there is no such name; imports nothing."""
        if name not in self.entries and not (self.takes_plugins and ":" in name):
            plugin = ["module:function"] if self.takes_plugins else []
            raise explain_unknown(self.kind, name, [*self.entries, *plugin], UsageError)

    def load(self, name: str) -> Any:
        """Imports what the name stands for.

        Raises:
            UsageError: there is no such name, or no such plug-in.
            MissingExtraError: its package is not installed.
        """
        self.check(name)
        if name not in self.entries:
            return self._load_plugin(name)
        module, _, attribute = self.entries[name].partition(":")
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package in self.extras:
                raise MissingExtraError(package, self.extras[package]) from error
            raise

    def _load_plugin(self, address: str) -> Any:
        module, _, attribute = address.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"the {self.kind} {address} cannot be loaded: {error}", "module:function", "check the name"
            ) from error


def explain_unknown(kind: str, name: str, known: Iterable[str], error: type[DgateError]) -> DgateError:
    """An error that names the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return error(
        f"unknown {kind} {name!r}",
        f"one of {', '.join(names)}" if names else f"no {kind} is known here",
        f"did you mean {near[0]!r}?" if near else "",
    )
