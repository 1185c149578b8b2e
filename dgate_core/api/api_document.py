"""The OpenAPI document: names, the error envelope, and examples that work when pasted."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

ERROR_STATUSES = {
    "400": "Something in the request is wrong.",
    "401": "No API key, or a wrong one.",
    "403": "The key may not do this.",
    "404": "There is no such thing.",
    "405": "Another method is meant.",
    "408": "The body did not come in time.",
    "413": "Too large.",
    "415": "Another content type is meant.",
    "429": "Too many requests; Retry-After says when to come again.",
    "500": "The server failed.",
    "503": "Not now; Retry-After may say when.",
    "504": "The time for the request is over.",
}
ERROR_SCHEMA: dict[str, Any] = {
    "title": "ErrorEnvelope",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "code": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
        }
    },
}
_WITHOUT_ENVELOPE = ("/healthz", "/readyz", "/")


def name_operation(route: APIRoute) -> str:
    """The function's name."""
    return route.name


def complete_document(application: FastAPI) -> None:
    """Makes `application.openapi()` tell the errors as they are sent."""
    make_document = application.openapi

    def make_complete() -> dict[str, Any]:
        if application.openapi_schema is None:
            application.openapi_schema = describe_errors(make_document())
        return application.openapi_schema

    application.openapi = make_complete  # type: ignore[method-assign]


def describe_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Every operation with the envelope in the place of FastAPI's own 422."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["ErrorEnvelope"] = ERROR_SCHEMA
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, text in ERROR_STATUSES.items():
                if path not in _WITHOUT_ENVELOPE:
                    operation["responses"].setdefault(status, {"description": text, "content": content})
    return document
