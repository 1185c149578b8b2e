"""The page at `/`: one file, nothing from outside."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)
PAGE = Path(__file__).with_name("page.html")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/")
async def show_page() -> HTMLResponse:
    """Type a prompt, see a picture."""
    return HTMLResponse(read_page(), headers={"content-security-policy": POLICY, "cache-control": "no-cache"})


@cache
def read_page() -> str:
    """The page's text."""
    return PAGE.read_text(encoding="utf-8")
