"""The report of an evaluation in a real browser, opened from disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from dgate_core.evaluation.results import SCORES_FILE, EvaluationError, write_evaluation
from dgate_core.storage import open_storage
from reports.evaluation import EvaluationPageOptions, render_evaluation
from tests.reports.conftest import DESKTOP, PHONE, Visit, Visitor
from tests.reports.sample_evaluation import (
    MISSING_ROW,
    NASTY_ROW,
    make_evaluation,
    write_evaluated_runs,
    write_pictures,
    write_record,
    write_scores,
)
from tests.reports.sample_run import NASTY_PROMPT


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that failed the gate, in a folder whose name needs escaping."""
    candidate, _ = write_evaluated_runs(tmp_path_factory.mktemp("it's 100% #1"))
    return Path(candidate.uri) / render_evaluation(candidate.uri)


def check_is_quiet(visit: Visit, page_file: Path) -> None:
    """Nothing was complained about, and nothing asked for but the page itself."""
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith(("data:", page_file.as_uri()))] == []


def keep_screenshot(visit: Visit, name: str) -> None:
    if folder := os.environ.get("DGATE_SCREENSHOTS"):
        visit.page.screenshot(path=Path(folder) / f"evaluation-{name}.png", full_page=True)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_verdict_comes_first_and_everything_fits(
    visitor: Visitor, page_file: Path, size: tuple[int, int], scheme: str
) -> None:
    visit = visitor.open(page_file, size, scheme)
    page = visit.page
    verdict = page.locator(".verdict")
    expect(verdict.locator("h2")).to_have_text("Fail")
    expect(verdict).to_contain_text("2 of 5 checks failed: defects, clip_score.")
    box = verdict.bounding_box()
    assert box is not None
    assert box["y"] < 150
    first = verdict.locator(".check").nth(1)
    expect(first).to_contain_text("1 picture is black and 1 is missing")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    overflowing = """[...document.querySelectorAll('main *, header *')].filter((one) =>
        !one.closest('.strip') && !one.closest('svg') && !one.closest('.visually-hidden')
        && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.className)"""
    assert page.evaluate(overflowing) == []
    keep_screenshot(visit, f"{'desktop' if size == DESKTOP else 'phone'}-{scheme}")
    check_is_quiet(visit, page_file)


def test_metrics_show_intervals_change_history_and_what_they_depend_on(visitor: Visitor, page_file: Path) -> None:
    visit = visitor.open(page_file)
    rows = visit.page.locator(".metric")
    clip = rows.first
    expect(clip).to_contain_text(re.compile(r"28\.09\s*27\.68 to 28\.49"))
    expect(clip.locator(".change")).to_contain_text("−0.81 from 28.90")
    assert clip.locator("svg.history").get_attribute("aria-label").startswith("over 8 evaluations, the oldest first: ")
    expect(clip.locator("dl")).to_be_hidden()
    clip.locator("summary").focus()
    visit.page.keyboard.press("Enter")
    expect(clip.locator("dl")).to_contain_text("starter-clip")
    expect(clip.locator("dl")).to_contain_text("3f" * 32)
    expect(rows.nth(1).locator(".change")).to_have_attribute("data-direction", "worse")
    expect(rows.nth(4)).to_contain_text("below 2,048 KID and FD lead")
    expect(rows.last).to_contain_text("not measured")
    check_is_quiet(visit, page_file)


def test_the_slider_and_the_pictures_work_by_keyboard_alone(visitor: Visitor, page_file: Path) -> None:
    visit = visitor.open(page_file)
    page = visit.page
    cut = "getComputedStyle(document.getElementById('stage')).getPropertyValue('--cut')"
    slider = page.locator("#slider")
    slider.focus()
    assert page.evaluate(cut) == "50%"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(cut) == "51%"
    page.keyboard.press("Shift+ArrowLeft")
    assert page.evaluate(cut) == "41%"
    page.keyboard.press("End")
    assert page.evaluate(cut) == "100%"
    expect(slider).to_have_attribute("aria-valuetext", "100 % baseline, 0 % this run")
    assert page.evaluate("document.getElementById('now').naturalWidth") == 96
    expect(page.locator("#place")).to_have_text("1 of 12")
    before = page.locator("#prompt").text_content()
    page.keyboard.press("]")
    expect(page.locator("#place")).to_have_text("2 of 12")
    expect(page.locator("#prompt")).not_to_have_text(before or "")
    page.locator("#strip button").nth(1).focus()
    page.keyboard.press("End")
    expect(page.locator("#place")).to_have_text("12 of 12")
    expect(page.locator("#next")).to_be_disabled()
    visit.wait_until("document.activeElement.getAttribute('aria-pressed') === 'true'")
    check_is_quiet(visit, page_file)


def test_the_pointer_slides_too(visitor: Visitor, page_file: Path) -> None:
    visit = visitor.open(page_file)
    stage = visit.page.locator("#stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 80)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 80, steps=4)
    visit.page.mouse.up()
    assert 75 <= int(visit.page.locator("#slider").input_value()) <= 85


def test_the_worst_come_first_and_defects_have_an_order_of_their_own(visitor: Visitor, page_file: Path) -> None:
    visit = visitor.open(page_file)
    page = visit.page
    lost = [float(text.replace("−", "-")) for text in page.locator("#strip b").all_text_contents()]
    assert lost == sorted(lost)
    assert lost[0] < -4
    expect(page.locator("#scores tr").first).to_contain_text("clip_score")
    page.locator("#order").select_option("defects")
    expect(page.locator("#place")).to_have_text("1 of 2")
    expect(page.locator("#now-told")).to_have_text("black")
    page.locator("#next").click()
    expect(page.locator("#identity")).to_contain_text(f"row-{MISSING_ROW:04d}")
    expect(page.locator("#now-told")).to_have_text("missing")
    expect(page.locator("#now")).to_be_hidden()
    expect(page.locator("#before")).to_be_visible()
    check_is_quiet(visit, page_file)


def test_distributions_attributes_and_gaps_are_there(visitor: Visitor, page_file: Path) -> None:
    page = visitor.open(page_file).page
    expect(page.locator("svg.distribution")).to_have_count(3)
    expect(page.locator("svg.distribution").first.locator(".outline")).to_have_count(1)
    assert "mean" in (page.locator("svg.distribution").first.get_attribute("aria-label") or "")
    expect(page.locator(".attribute caption")).to_have_text(["Colour", "Object", "Count"])
    yellow = page.locator(".attribute").first.locator("tr").nth(1)
    expect(yellow).to_contain_text(re.compile(r"yellow.*55\.6 %.*−33.*9", re.DOTALL))
    gaps = page.locator("#gaps")
    expect(gaps).to_contain_text("has no final layer; next: give another file of weights")
    expect(gaps).to_contain_text("1 of 96 pictures are not in the number")


def test_dark_has_its_own_colours(visitor: Visitor, page_file: Path) -> None:
    colour = "getComputedStyle(document.querySelector('svg .mass')).fill"
    light, dark = (visitor.open(page_file, scheme=scheme).page.evaluate(colour) for scheme in ("light", "dark"))
    assert light != dark


def test_a_nasty_prompt_is_text(visitor: Visitor, tmp_path: Path) -> None:
    candidate, _ = write_evaluated_runs(tmp_path, earlier=0)
    options = EvaluationPageOptions(worst_pictures=100)
    visit = visitor.open(tmp_path / "candidate" / render_evaluation(candidate.uri, options=options))
    tile = visit.page.locator("#strip button").filter(has_text="pwned")
    tile.click()
    expect(visit.page.locator("#identity")).to_contain_text(f"row-{NASTY_ROW:04d}")
    assert visit.page.locator("#prompt").evaluate("(words) => words.textContent") == NASTY_PROMPT
    assert visit.page.evaluate("window.pwned") is None
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_run_alone_has_a_page_without_verdict_and_slider(visitor: Visitor, tmp_path: Path) -> None:
    run = open_storage(tmp_path / "alone")
    write_record(run)
    write_scores(run, write_pictures(run, is_candidate=False), 1, is_candidate=False)
    write_evaluation(run, make_evaluation(run, 0.0, "2031-05-04T12:30:00+00:00", is_candidate=False))
    visit = visitor.open(tmp_path / "alone" / render_evaluation(run.uri), PHONE)
    expect(visit.page.locator(".verdict h2")).to_have_text("Not gated")
    expect(visit.page.locator("#slider")).to_be_hidden()
    expect(visit.page.locator("#pictures-title")).to_have_text("Worst pictures")
    expect(visit.page.locator("#gaps")).to_contain_text("there is no baseline")
    expect(visit.page.locator("svg.history")).to_have_count(0)
    check_is_quiet(visit, tmp_path / "alone/report/evaluation.html")


def test_a_baseline_without_scores_still_shows_its_pictures(visitor: Visitor, tmp_path: Path) -> None:
    candidate, baseline = write_evaluated_runs(tmp_path, earlier=0)
    rows = open_storage(tmp_path / "night-12").read_bytes(SCORES_FILE)
    baseline.write_bytes("results.parquet", rows)
    baseline.delete(SCORES_FILE)
    visit = visitor.open(tmp_path / "candidate" / render_evaluation(candidate.uri, baseline.uri))
    expect(visit.page.locator("#gaps")).to_contain_text("the baseline has not been evaluated")
    visit.wait_until("document.getElementById('before').naturalWidth === 96")


def test_a_run_that_was_not_evaluated_says_what_to_do(tmp_path: Path) -> None:
    run = open_storage(tmp_path)
    write_record(run)
    with pytest.raises(EvaluationError, match="run: dgate evaluate"):
        render_evaluation(run.uri)
