"""/docs: examples and every parameter, on a page that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse

from dgate_core.api.examples import EXAMPLES, fill_example
from dgate_core.api.image_routes import find_base_url
from dgate_core.api.services import Services, find_services

router = APIRouter(include_in_schema=False)
Served = Annotated[Services, Depends(find_services)]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d9d6cf, #383b42); --card: light-dark(#fff, #1f2125); }
body { max-width: 62rem; margin: 0 auto; padding: 1rem; font: 16px/1.5 system-ui, sans-serif;
  background: light-dark(#fbfaf7, #16171a); color: light-dark(#1d1f23, #e9e7e2); }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
pre, table { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; font-size: .85rem; }
pre { padding: .8rem; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
a { color: light-dark(#a8401f, #f08a62); }
"""


@router.get("/docs")
async def show_docs(request: Request, services: Served) -> HTMLResponse:
    """Examples first, then the operations, then the parameters of a picture."""
    page = "".join(_write_page(request.app.openapi(), find_base_url(request, services)))
    return HTMLResponse(page, headers={"content-security-policy": POLICY, "cache-control": "no-cache"})


def _write_page(document: dict[str, Any], base: str) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    yield f'<title>D-Gate: API</title><link rel="icon" href="data:,"><style>{STYLE}</style>'
    yield f'<h1>The API at {escape(base)}</h1><p><a href="./">Page</a>, <a href="openapi.json">OpenAPI document</a>. '
    yield "Errors are {&quot;error&quot;: {message, type, param, code}}; every answer has an x-request-id.</p>"
    for example in EXAMPLES:
        text = escape(fill_example(example, base))
        yield f"<h2>{escape(example.title)}</h2><pre tabindex=0 class={example.language}><code>{text}</code></pre>"
    yield "<h2>Operations</h2>"
    yield from _write_table(("", "path", "what", ""), _list_operations(document))
    yield "<h2>Parameters of a picture</h2>"
    yield from _write_table(("name", "type", "", "what"), _list_parameters(document))
    yield "</html>"


def _write_table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"<div class=wide><table><tr>{''.join(f'<th>{escape(cell)}' for cell in head)}"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}"
    yield "</table></div>"


def _list_operations(document: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation["summary"], operation.get("description", "")


def _list_parameters(document: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    schema = document["components"]["schemas"]["ImageRequest"]
    for name, field in schema["properties"].items():
        kinds = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
        yield name, " or ".join(map(_name_kind, kinds)), _name_range(kinds[0]), field.get("description", "")


def _name_kind(kind: dict[str, Any]) -> str:
    return " | ".join(kind["enum"]) if "enum" in kind else str(kind.get("type", "object"))


def _name_range(kind: dict[str, Any]) -> str:
    bounds = (kind.get("minimum"), kind.get("maximum"))
    return "" if bounds == (None, None) else f"{bounds[0]} to {bounds[1]}"
