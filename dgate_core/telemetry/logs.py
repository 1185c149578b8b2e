"""Log lines: for people on a terminal, one JSON object a line otherwise; secrets leave neither way."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TextIO

FIELDS: Final = (
    "request_id",
    "run",
    "lane",
    "model",
    "route",
    "status",
    "seconds",
    "error_code",
    "key_id",
    "batch",
)
"""What a line may say of itself besides its text, in this order."""
PLAIN_FIELDS: Final = ("request_id", "run", "lane", "model")
HIDDEN: Final = "[hidden]"
SHORTEST_SECRET = 8
"""Characters; hiding shorter values of the environment would spoil ordinary words."""

_CONTEXT: Final[ContextVar[Mapping[str, Any]]] = ContextVar("dgate_log_fields", default={})  # noqa: B039 - never changed
_SECRET_NAMES = r"(?:api[_-]?key|access[_-]?key(?:[_-]?id)?|secret(?:[_-]?\w+)?|token|password|passwd|pwd)"
_SECRETS: Final = (
    (re.compile(r"(?i)\b(authorization\W{1,4})(?:basic |bearer )?[^\s'\",}]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic) [\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(rf"(?i)(\b\w*{_SECRET_NAMES}[\"']?\s*[=:]\s*[\"']?)[^\s&;,\"'}})]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(X-Amz-(?:Signature|Credential|Security-Token)=)[^\s&\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"(\w+://)[^\s/:@]*:[^\s/@]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"\b(?:sk|hf|dgate|dg)[-_][A-Za-z0-9_-]{16,}|\bAKIA[A-Z0-9]{16}\b"), HIDDEN),
)
_SECRET_VARIABLE = re.compile(r"(?i)(?:^|_)(?:key|token|secret|password|passwd|credentials)(?:$|_)")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How lines are written."""

    level: int = logging.INFO
    """Of D-Gate's own loggers; libraries are heard from WARNING on."""
    as_json: bool | None = None
    """None: JSON when the stream is no terminal."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """On every line of the process, such as run and lane."""
    read_fields: Callable[[], Mapping[str, Any]] = dict
    """Asked at every line, such as for the id of the request in hand."""


def set_up_logs(options: LogOptions | None = None, stream: TextIO | None = None) -> logging.Handler:
    """Takes the root logger's handlers away and puts one in their place.

    Args:
        options: See there.
        stream: None is stderr.
    """
    options, stream = options or LogOptions(), stream or sys.stderr
    handler = logging.StreamHandler(stream)
    is_json = not stream.isatty() if options.as_json is None else options.as_json
    secrets = Secrets(os.environ)
    handler.setFormatter(JsonFormatter(secrets) if is_json else PlainFormatter(secrets))
    handler.addFilter(FieldFilter(options))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("dgate_core", "flows", "tasks"):
        logging.getLogger(name).setLevel(options.level)
    return handler


@contextmanager
def log_fields(**fields: Any) -> Iterator[None]:
    """Every line of this thread or task inside the block carries these."""
    token = _CONTEXT.set({**_CONTEXT.get(), **fields})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


class FieldFilter(logging.Filter):
    """Gives a record its fields; what the call itself said wins.

    Args:
        options: Of the process.
    """

    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._options = options

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        known = {**self._options.fields, **self._options.read_fields(), **_CONTEXT.get()}
        for name, value in known.items():
            if name in FIELDS and not hasattr(record, name):
                setattr(record, name, value)
        return True


class Secrets:
    """Knows a secret when it sees one: by its shape, or because the environment holds it.

    Args:
        environment: Read once; values of variables such as AWS_SECRET_ACCESS_KEY count.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = {value for name, value in environment.items() if _SECRET_VARIABLE.search(name)}
        self._values = sorted((value for value in values if len(value) >= SHORTEST_SECRET), key=len, reverse=True)

    def hide(self, text: str) -> str:
        """The text without keys, tokens, passwords and signatures."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
        return text


class JsonFormatter(logging.Formatter):
    """`{"time": …, "level": …, "logger": …, "message": …, …}`, UTC, one line.

    Args:
        secrets: Hidden everywhere.
    """

    def __init__(self, secrets: Secrets) -> None:
        super().__init__()
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._secrets.hide(record.getMessage()),
        }
        for name in FIELDS:
            value = getattr(record, name, None)
            if value is not None and value != "":
                line[name] = self._secrets.hide(value) if isinstance(value, str) else value
        if record.exc_info:
            line["exception"] = self._secrets.hide(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainFormatter(logging.Formatter):
    """`info dgate_core.api.server: text [request_id=…]`.

    Args:
        secrets: Hidden everywhere.
    """

    def __init__(self, secrets: Secrets) -> None:
        super().__init__()
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        told = [f"{name}={getattr(record, name)}" for name in PLAIN_FIELDS if getattr(record, name, None)]
        line = f"{record.levelname.lower()} {record.name}: {record.getMessage()}"
        line = f"{line} [{' '.join(told)}]" if told else line
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return self._secrets.hide(line)
