"""A real Chromium, and a page that notes what goes wrong in it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DESKTOP = (1280, 900)
PHONE = (390, 844)


@dataclass
class Visit:
    """A page in the browser and what it asked for and complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def wait_until(self, expression: str, timeout_seconds: float = 10) -> None:
        """Wait for an expression to be true; the page's own policy forbids the evaluation inside it."""
        deadline = time.monotonic() + timeout_seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"not true within {timeout_seconds} s: {expression}"
            time.sleep(0.02)

    def screenshot(self, name: str) -> None:
        """Keep a picture of the window where DGATE_SCREENSHOTS says, if it does."""
        folder = os.environ.get("DGATE_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"gallery-{name}.png")


# No longer than a module: while Playwright is open an event loop runs, and a flow in the same process would take it
# for its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium; DGATE_SKIP_BROWSER=1 leaves these tests out."""
    if os.environ.get("DGATE_SKIP_BROWSER") == "1":
        pytest.skip("DGATE_SKIP_BROWSER=1")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail(
            "no chromium: run `apt-get install chromium`, set CHROMIUM to its path, or set DGATE_SKIP_BROWSER=1"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Visitor:
    """Opens pages from disk, each in a context of its own."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    def close(self) -> None:
        """Close every page that was opened."""
        for context in self._browser.contexts:
            context.close()

    def open(
        self, page_file: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light", fragment: str = ""
    ) -> Visit:
        """Open a file by its file:// address and wait until it stands."""
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if scheme == "dark" else "light"
        )
        context.set_default_timeout(10_000)
        visit = Visit(context.new_page())
        visit.page.on("console", lambda message: visit.complaints.append(f"{message.type}: {message.text}"))
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.on("requestfailed", lambda request: visit.complaints.append(f"failed: {request.url[:200]}"))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.goto(page_file.as_uri() + fragment)
        return visit


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    """What opens pages in the browser."""
    visitor = Visitor(browser)
    yield visitor
    visitor.close()
