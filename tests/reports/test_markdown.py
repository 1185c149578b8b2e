"""A run's figures in words: what is missing is left out, and no text breaks the page that it stands in."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from reports.markdown import summarise_run
from reports.summary import format_duration, format_rate, read_summary, read_time

RUN = {
    "name": "night *shift*",
    "state": "completed_with_errors",
    "counts": {"ok": 9_950, "error": 50, "duplicate": 0},
    "spec": {"defaults": {"model": "starter-unet"}},
    "seconds": {"denoise": 75, "write": 25, "upload": 0},
    "started_at": "2031-05-04T12:00:00Z",
    "finished_at": "2031-05-04T12:16:35Z",
}


def test_a_summary_names_counts_speed_failures_and_the_gallery() -> None:
    text = summarise_run(
        RUN,
        {"not_finite": 2, "out_of_memory": 48},
        "s3://bucket/a run/report/index.html",
        {"out_of_memory": "7.9 GiB | asked for\n<b>at batch 1</b>"},
    )
    lines = text.splitlines()
    assert lines[0] == "# night \\*shift\\*: completed with errors"
    assert "- ok: 9,950" in lines
    assert "- error: 50" in lines
    assert "- pictures per second: 10" in lines
    assert "- wall time: 16 min 35 s" in lines
    assert "[Open the gallery](<s3://bucket/a run/report/index.html>)" in lines
    ranked = [line for line in lines if line.startswith("| `")]
    assert ranked[0] == "| `out_of_memory` | 48 | 7.9 GiB \\| asked for &lt;b&gt;at batch 1&lt;/b&gt; |"
    assert ranked[1].startswith("| `not_finite` | 2 |")
    assert "| denoise | 1 min 15 s | 75% |" in lines
    assert not [line for line in lines if "upload" in line or "duplicate" in line]


def test_many_codes_are_cut_with_their_number_said() -> None:
    text = summarise_run({}, {f"code_{number:02d}": 1 for number in range(25)}, "")
    assert "| 5 more codes | 5 | |" in text
    assert "gallery" not in text


def test_an_empty_run_json_gives_a_title_and_nothing_made_up() -> None:
    assert summarise_run({}, {}, "") == "# run: unknown\n"
    summary = read_summary({"counts": None, "seconds": 4.2, "started_at": "yesterday"})
    assert (summary.total, summary.stages, summary.started, summary.wall_seconds) == (0, (), None, None)


def test_what_run_json_measured_goes_before_what_is_computed() -> None:
    summary = read_summary({**RUN, "wall_seconds": 500.0, "pictures_per_second": 21.5})
    assert (summary.wall_seconds, summary.pictures_per_second) == (500.0, 21.5)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2031-05-04T14:00:00+02:00", datetime(2031, 5, 4, 12, tzinfo=UTC)),
        ("2031-05-04T12:00:00", datetime(2031, 5, 4, 12, tzinfo=UTC)),
        (1935576000, datetime(2031, 5, 3, 12, tzinfo=UTC)),
        ("soon", None),
        (None, None),
    ],
)
def test_times_are_read_as_utc(value: object, moment: datetime | None) -> None:
    assert read_time(value) == moment


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.85, "850 ms"),
        (12.34, "12.3 s"),
        (59.99, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7620, "2 h 07 min"),
        (4e6, "1,111 h 06 min"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_rates_have_three_digits() -> None:
    assert [format_rate(rate) for rate in (0.01234, 3.2, 12.345, 1234.5)] == ["0.0123", "3.2", "12.3", "1,234"]
