"""The page at `/` in a real browser, by keyboard and on a phone."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from dgate_core.api.admission import KeyDoor
from dgate_core.api.key_store import KeyStore
from dgate_core.api.keys import make_key
from dgate_core.api.quotas import Quotas
from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from tests.api.conftest import Live, run_server
from tests.reports.conftest import DESKTOP, PHONE, browser  # noqa: F401 - a fixture

Visited = tuple[Page, list[str]]


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def visit(live: Live, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visited]:  # noqa: F811
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(20_000)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda asked: None if asked.url.startswith((live.url, "data:")) else complaints.append(asked.url)
    )
    page.goto(f"{live.url}/")
    yield page, complaints
    context.close()


def test_a_prompt_becomes_a_picture_by_keyboard_alone(visit: Visited) -> None:
    page, complaints = visit
    expect(page.locator("#model option")).to_have_text(["tiny"])
    page.keyboard.type("it's a <b>red</b> boat")
    page.locator("[name=num_inference_steps]").fill("4")
    page.locator("#prompt").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#gallery img")).to_have_count(1)
    expect(page.locator("#picture img")).to_have_js_property("naturalWidth", 32)
    expect(page.locator("#facts")).to_contain_text("it's a <b>red</b> boat")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not page.locator("#door").evaluate("door => door.open")
    page.locator("#prompt").press("Enter")
    expect(page.locator("#gallery img")).to_have_count(2)
    page.locator("#gallery button").last.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#gallery button").last).to_have_attribute("aria-pressed", "true")
    assert complaints == []


def test_the_examples_fit_the_window(visit: Visited, live: Live) -> None:
    page, complaints = visit
    page.goto(f"{live.url}/docs")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []


def test_a_server_with_keys_shows_where_the_key_goes(
    browser: Browser,  # noqa: F811
    own_settings: ApiSettings,
    tmp_path: Path,
) -> None:
    store = KeyStore(tmp_path / "keys.json")
    secret, key = make_key("painter", ("generate",), time.time())
    store.add(key)
    with run_server(own_settings, Parts(gatekeeper=KeyDoor(store, Quotas()))) as live:
        page = browser.new_page()
        page.goto(f"{live.url}/")
        page.locator("#key").fill(secret)  # waits until it can be seen
        page.locator("#key").press("Tab")
        expect(page.locator("#model option")).to_have_text(["tiny"])
        page.close()


def test_the_curl_line_gives_the_same_picture(visit: Visited) -> None:
    page, _ = visit
    page.locator("#prompt").fill("it's a boat")
    page.locator("[name=num_inference_steps]").fill("2")
    page.locator("[name=seed]").fill("9007199254740993")
    page.locator("#make").click()
    expect(page.locator("#gallery img")).to_have_count(1)
    words = shlex.split(page.locator("#curl").inner_text())
    assert words[0] == "curl"
    answer = httpx.post(words[1], content=words[words.index("-d") + 1], headers={"content-type": "application/json"})
    entry = answer.json()["data"][0]
    assert entry["seed"] == 9007199254740993
    assert entry["id"] == re.search(r"Id\s+([0-9a-f]{32})", page.locator("#facts").inner_text())[1]  # type: ignore[index]


def test_what_is_wrong_is_said_and_a_long_one_can_be_stopped(visit: Visited, live: Live) -> None:
    page, _ = visit
    page.locator("#prompt").fill("a boat")
    page.locator("[name=size]").fill("33x33")
    page.locator("#make").click()
    expect(page.locator("#error")).to_contain_text("size: got 33")
    page.locator("[name=size]").fill("")
    page.locator("[name=num_inference_steps]").fill("250")
    page.locator("[name=n]").fill("10")
    page.locator("#make").click()
    expect(page.locator("#stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#error")).to_be_hidden()
