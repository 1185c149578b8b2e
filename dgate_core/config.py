"""Settings that people write: a YAML file, and `--set key=value` on the command line."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dgate_core.errors import ConfigError
from dgate_core.registry import explain_unknown

T = TypeVar("T")


def read_config(path: str) -> dict[str, Any]:
    """The settings in a YAML (or JSON) file.

    Raises:
        ConfigError: no such file, not YAML, not a mapping, or a key that stands twice.
    """
    import yaml

    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), _find_loader())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config {path} cannot be read: {error}", "a YAML file", "check the path") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the config {path} is not YAML: {error}", "key: value lines") from error
    if not isinstance(found, dict):
        raise ConfigError(f"the config {path} holds {type(found).__name__}", "key: value lines")
    return found


@cache
def _find_loader() -> Any:
    """YAML's safe loader, but a key that stands twice is an error: the last would win and the first go unseen."""
    import yaml

    class OnceLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            written = [key.value for key, _ in node.value if isinstance(key.value, str)]
            if repeated := next((key for key in written if written.count(key) > 1 and key != "<<"), None):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {repeated!r} stands twice", node.start_mark
                )
            found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
            return found

    return OnceLoader


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """`["steps=20"]` → {"steps": "20"}.

    Raises:
        ConfigError: one has no `=`.
    """
    pairs = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"--set {assignment}", "--set key=value", "write for example: --set num_inference_steps=30"
            )
        pairs[key.strip()] = value
    return pairs


def build_settings(kind: type[T], values: Mapping[str, Any]) -> T:
    """Makes a settings dataclass from written values; texts become the field's type.

    Raises:
        ConfigError: an unknown key (names the nearest), or a value that the field cannot take.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise explain_unknown("setting", key, names, ConfigError)
    return kind(**{key: convert_value(key, value, hints[key]) for key, value in values.items()})


def convert_value(key: str, value: Any, hint: Any) -> Any:
    """A written value as the type that the field declares.

    Raises:
        ConfigError: it cannot be.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in {"none", "null", ""}):
            return None
        return convert_value(key, value, next(each for each in arguments if each is not types.NoneType))
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{key}={value!r}", f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        return tuple(convert_value(key, item, arguments[0]) for item in items)
    return _convert_plain(key, value, hint)


def _convert_plain(key: str, value: Any, hint: type) -> Any:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        if hint is bool:
            return value if isinstance(value, bool) else words[str(value).lower()]
        if hint is int and (isinstance(value, bool) or (isinstance(value, float) and not value.is_integer())):
            raise ValueError
        return hint(value)
    except (ValueError, TypeError, KeyError) as error:
        kind = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(hint.__name__, hint.__name__)
        raise ConfigError(f"{key}={value!r}", f"{key} to be {kind}") from error
