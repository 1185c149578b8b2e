"""Options that several commands share, and how they become RunSettings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dgate_core.runs.settings import RunSettings


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--model, --profile, --lanes, --set, --config and --strict."""
    decorators = [
        click.option("--model", metavar="M", help="Catalogue name, diffusers folder, or .safetensors file."),
        click.option(
            "--profile",
            metavar="P",
            help="exact (default), fast, turbo, draft or small: what is given for speed or memory.",
        ),
        click.option("--lanes", metavar="N", help="Workers; by default one per GPU, or one on the CPU."),
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, may be repeated."),
        click.option("--config", "config_file", metavar="FILE", help="YAML file with settings; --set wins over it."),
        click.option("--strict", is_flag=True, help="Bad rows stop the run before anything is made."),
    ]
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def gather_settings(options: Mapping[str, Any]) -> RunSettings:
    """The config file, then --set, then the named options.

    Raises:
        ConfigError: an unknown key or an impossible value.
    """
    from dgate_core.config import build_settings, parse_assignments, read_config
    from dgate_core.runs.settings import RunSettings

    values: dict[str, Any] = read_config(options["config_file"]) if options.get("config_file") else {}
    values |= parse_assignments(options.get("assignments", ()))
    values |= {
        name: options[name]
        for name in ("model", "profile", "lanes", "score", "reference")
        if options.get(name) is not None
    }
    if options.get("strict"):
        values["strict"] = True
    return build_settings(RunSettings, values)
