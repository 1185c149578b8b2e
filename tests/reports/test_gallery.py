"""The gallery in a real browser, opened from disk."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from dgate_core.storage import open_storage
from reports.gallery import GalleryOptions, write_gallery
from tests.reports.conftest import PHONE, Visit, Visitor
from tests.reports.sample_run import (
    BARE_RUN,
    BIG_SEED,
    NASTY_PROMPT,
    draw_noise,
    encode_picture,
    make_samples,
    pack_tar,
    write_run,
)

LARGE_RUN = 10_000


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of 300 rows in a folder whose name needs escaping."""
    folder = tmp_path_factory.mktemp("it's 100% #1") / "a run"
    run = open_storage(folder)
    write_run(run, make_samples(300))
    return folder / write_gallery(run)


@pytest.fixture(scope="module")
def large_gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of 10,000 rows."""
    folder = tmp_path_factory.mktemp("large")
    run = open_storage(folder)
    write_run(run, make_samples(LARGE_RUN))
    started = time.perf_counter()
    page = folder / write_gallery(run)
    megabytes = sum(file.stat().st_size for file in page.parent.iterdir()) / 1e6
    print(f"\ngallery of {LARGE_RUN:,} rows: {time.perf_counter() - started:.1f} s, {megabytes:.1f} MB")
    return page


def check_is_quiet(visit: Visit, page_file: Path) -> None:
    """Nothing was complained about, and nothing asked for from outside the run's folder."""
    assert visit.complaints == []
    run_address = page_file.parent.parent.as_uri()
    assert [url for url in visit.requests if not url.startswith((run_address, "data:"))] == []


@pytest.mark.parametrize("size", [(1280, 900), PHONE], ids=["desktop", "phone"])
def test_the_page_opens_from_disk_and_fits(visitor: Visitor, gallery: Path, size: tuple[int, int]) -> None:
    visit = visitor.open(gallery, size)
    expect(visit.page.locator(".tile")).to_have_count(120)
    visit.wait_until(
        "[...document.querySelectorAll('.tile img')].slice(0, 6).every((image) => image.naturalWidth === 64)"
    )
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    expect(visit.page.locator("h1")).to_have_text("first")
    expect(visit.page.locator(".figures")).to_contain_text("288")
    assert list(gallery.parent.iterdir()) == [gallery]
    check_is_quiet(visit, gallery)
    visit.screenshot("desktop" if size[0] > 1000 else "phone")


def test_text_and_status_filter_and_the_address_keeps_them(visitor: Visitor, gallery: Path) -> None:
    visit = visitor.open(gallery)
    tiles = visit.page.locator(".tile")
    visit.page.keyboard.press("/")
    visit.page.keyboard.type("ROW-000001 boat")
    expect(tiles).to_have_count(1)
    expect(visit.page.locator('#statuses [data-status="ok"] b')).to_have_text("1")
    visit.page.locator("#text").fill("no such words")
    expect(visit.page.locator("#empty")).to_be_visible()
    visit.page.locator("#reset").click()
    visit.page.locator('#statuses [data-status="duplicate"]').click()
    expect(tiles).to_have_count(3)
    visit.page.locator("#model").select_option("night-vision")
    expect(tiles).to_have_count(3)
    assert "status=duplicate" in visit.page.url
    visit.page.reload()
    expect(tiles).to_have_count(3)
    expect(visit.page.locator('#statuses [aria-pressed="true"]')).to_contain_text("duplicate")
    check_is_quiet(visit, gallery)


def test_slowest_first(visitor: Visitor, gallery: Path) -> None:
    visit = visitor.open(gallery)
    visit.page.locator("#sort").select_option("slowest")
    visit.page.locator(".tile").first.click()
    expect(visit.page.locator("#viewer-title")).to_contain_text("row-000006")
    visit.page.keyboard.press("Escape")
    visit.page.locator("#sort").select_option("fastest")
    visit.page.locator(".tile").first.click()
    expect(visit.page.locator("#viewer-title")).to_contain_text("row-000007")


def test_failures_link_to_their_rows(visitor: Visitor, gallery: Path) -> None:
    visit = visitor.open(gallery)
    visit.page.locator(".failures a", has_text="out_of_memory").click()
    tiles = visit.page.locator(".tile")
    expect(tiles).to_have_count(4)
    expect(tiles.first).to_contain_text("out_of_memory")
    expect(tiles.first).to_contain_text("7.9 GiB asked for")
    visit.screenshot("errors")
    tiles.first.click()
    expect(visit.page.locator("#viewer-picture")).to_contain_text("next: lower width and height")
    visit.page.keyboard.press("Escape")
    visit.page.locator("#code").click()
    expect(tiles).to_have_count(9)
    visit.page.go_back()
    expect(tiles).to_have_count(120)
    check_is_quiet(visit, gallery)


def test_the_viewer_works_by_keyboard_alone(visitor: Visitor, gallery: Path) -> None:
    visit = visitor.open(gallery)
    page = visit.page
    page.locator(".tile").first.focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    expect(page.locator("#viewer-title")).to_contain_text("row-000002")
    expect(viewer).to_contain_text("num_inference_steps")
    expect(viewer).to_contain_text("dpmsolver++")
    expect(viewer).to_contain_text("campaign")
    visit.wait_until("document.querySelector('#viewer-picture img').src.includes('/shards/00000/images/00000002-')")
    visit.screenshot("dialog")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-title")).to_contain_text("row-000003")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    visit.wait_until("document.activeElement.dataset.place === '3'")
    check_is_quiet(visit, gallery)


def test_moving_over_the_end_of_a_page_turns_it(visitor: Visitor, gallery: Path) -> None:
    visit = visitor.open(gallery)
    visit.page.locator(".tile").nth(119).click()
    visit.page.keyboard.press("ArrowRight")
    expect(visit.page.locator("#viewer-title")).to_contain_text("121 of 300")
    visit.page.keyboard.press("Escape")
    visit.wait_until("document.activeElement.dataset.place === '0'")
    expect(visit.page.locator(".toolbar .range")).to_have_text("121–240 of 300")


def test_a_nasty_prompt_is_text(visitor: Visitor, gallery: Path) -> None:
    visit = visitor.open(gallery)
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.page.locator(".tile").nth(3).click()
    assert visit.page.locator(".words.prompt").evaluate("(words) => words.textContent") == NASTY_PROMPT
    expect(visit.page.locator("#viewer-facts")).to_contain_text(str(BIG_SEED))
    expect(visit.page.locator("#viewer-facts")).to_contain_text("prompt cut at 77 tokens")
    assert visit.page.evaluate("window.pwned") is None
    copied = {}
    for label in ("Copy prompt", "Copy seed", "Copy reproduce command"):
        visit.page.get_by_role("button", name=label).click()
        copied[label] = visit.page.evaluate("navigator.clipboard.readText()")
    picture = next((gallery.parent.parent / "shards/00000/images").glob("00000003-*.png"))
    quoted = str(picture).replace("'", "'\\''")
    assert copied == {
        "Copy prompt": NASTY_PROMPT,
        "Copy seed": str(BIG_SEED),
        "Copy reproduce command": f"dgate reproduce '{quoted}'",
    }
    check_is_quiet(visit, gallery)


def test_dark_by_preference(visitor: Visitor, gallery: Path) -> None:
    visit = visitor.open(gallery, scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert visit.page.evaluate(background) == "rgb(18, 20, 23)"
    assert visitor.open(gallery).page.evaluate(background) == "rgb(246, 247, 248)"
    visit.screenshot("dark")


def test_ten_thousand_rows_do_not_choke_the_page(visitor: Visitor, large_gallery: Path) -> None:
    started = time.perf_counter()
    visit = visitor.open(large_gallery)
    visit.page.wait_for_selector(".tile img[src]")
    print(f"\ntime to first grid: {time.perf_counter() - started:.2f} s")
    assert visit.page.locator(".tile").count() == 120
    assert visit.page.evaluate("document.querySelectorAll('*').length") < 1500
    assert len([url for url in visit.requests if "thumbnails-" in url]) == 0
    last_page = visit.page.locator(".toolbar .pager input")
    last_page.fill("84")
    last_page.press("Enter")
    expect(visit.page.locator(".toolbar .range")).to_have_text("9,961–10,000 of 10,000")
    visit.wait_until("document.querySelectorAll('.tile img[src]').length > 10")
    assert {url.rpartition("/")[2] for url in visit.requests if "thumbnails-" in url} == {"thumbnails-0020.js"}
    visit.page.locator("#text").fill("windmill")
    expect(visit.page.locator("#found")).not_to_have_text("10,000 shown")
    assert visit.page.locator(".tile").count() <= 120
    check_is_quiet(visit, large_gallery)


def test_a_page_without_its_chunks_says_so(visitor: Visitor, large_gallery: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(large_gallery, tmp_path / "alone.html"))
    visit = visitor.open(alone, fragment="#page=50")
    expect(visit.page.locator(".missing").first).to_contain_text("thumbnails-0012.js is not beside this page")


def test_what_is_left_out_or_unreadable_is_said(visitor: Visitor, tmp_path: Path) -> None:
    run = open_storage(tmp_path)
    rows = write_run(run, make_samples(60))
    run.delete(rows[2]["path"])
    write_gallery(run, options=GalleryOptions(max_pictures=20))
    visit = visitor.open(tmp_path / "report/index.html")
    notes = visit.page.locator(".note")
    expect(notes.first).to_contain_text("37 rows with status ok")
    expect(notes.last).to_contain_text("1 picture named in the results could not be read")
    expect(visit.page.locator(".tile").nth(2)).to_contain_text("picture cannot be read")
    expect(visit.page.locator('#statuses [data-status="error"] b')).to_have_text("3")
    assert visit.complaints == []


def test_pictures_in_a_tar_show_their_thumbnails(visitor: Visitor, tmp_path: Path) -> None:
    run = open_storage(tmp_path)
    samples = list(make_samples(3))[1:]
    pictures = {f"{number}.png": encode_picture(draw_noise("RGB", (300, 200), number)) for number in range(2)}
    for number, sample in enumerate(samples):
        sample.row.update(path=f"shards/00000/images.tar#{number}.png", width=300, height=200)
    run.write_bytes("shards/00000/images.tar", pack_tar(pictures))
    write_run(run, [type(sample)(sample.row, None) for sample in samples])
    visit = visitor.open(tmp_path / write_gallery(run))
    visit.page.locator(".tile").nth(1).click()
    visit.wait_until("document.querySelector('#viewer-picture img').naturalWidth === 128")
    expect(visit.page.get_by_role("link", name="Open original")).to_have_count(0)
    expect(visit.page.locator("#viewer-facts")).to_contain_text("images.tar#1.png")
    check_is_quiet(visit, tmp_path / "report/index.html")


def test_a_run_that_has_no_rows_yet_has_a_page(visitor: Visitor, tmp_path: Path) -> None:
    run = open_storage(tmp_path)
    run.write_bytes("run.json", json.dumps(BARE_RUN).encode())
    visit = visitor.open(tmp_path / write_gallery(run))
    expect(visit.page.locator("#empty")).to_contain_text("This run has no rows yet.")
    check_is_quiet(visit, tmp_path / "report/index.html")


def test_a_smaller_gallery_leaves_no_chunk_of_a_larger_one(tmp_path: Path) -> None:
    run = open_storage(tmp_path)
    write_run(run, make_samples(30))
    write_gallery(run, options=GalleryOptions(chunk_size=10))
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == [
        "index.html",
        "thumbnails-0002.js",
        "thumbnails-0003.js",
    ]
    write_gallery(run)
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["index.html"]
