# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Windows of RDS against a model that counts single minutes of the week."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._rds_window import (
    DAY,
    LONGEST,
    SHORTEST,
    WEEK,
    Window,
    clear_window,
    is_clear_of,
    minute_of_week,
    parse_backup_window,
    parse_window,
    refuse_overlap,
)

windows = st.builds(Window, st.integers(0, WEEK - 1), st.integers(SHORTEST, LONGEST))
minutes = st.integers(0, WEEK - 1)


def all_minutes(window: Window) -> set[int]:
    return {(window.start + offset) % WEEK for offset in range(window.length)}


@given(windows)
def test_a_window_is_read_as_it_is_written(window: Window) -> None:
    assert parse_window(str(window)) == window
    assert parse_window(str(window).upper()) == window
    assert parse_window(f" {str(window).title()} ") == window


@given(windows, minutes)
def test_a_minute_is_in_a_window_when_it_is_one_of_its_minutes(window: Window, minute: int) -> None:
    assert window.includes(minute) is (minute in all_minutes(window))


@given(windows, windows)
def test_windows_overlap_when_they_have_a_minute_in_common(one: Window, other: Window) -> None:
    assert one.overlaps(other) is bool(all_minutes(one) & all_minutes(other))
    assert one.overlaps(other) is other.overlaps(one)


@given(windows, st.integers(SHORTEST, LONGEST))
def test_windows_that_touch_do_not_overlap(window: Window, length: int) -> None:
    after = Window((window.start + window.length) % WEEK, length)
    assert not window.overlaps(after)
    assert window.overlaps(Window((after.start - 1) % WEEK, length))


@given(windows, minutes, st.integers(1, 6 * DAY))
def test_clear_of_a_time_means_none_of_its_minutes(window: Window, start: int, length: int) -> None:
    time = {(start + offset) % WEEK for offset in range(length)}
    assert is_clear_of(window, start, length) is not bool(time & all_minutes(window))


@given(windows, minutes, st.integers(1, 5 * DAY), st.integers(0, DAY - 1), st.integers(30, 120))
def test_a_held_window_is_clear_and_as_long_and_leaves_the_backup_alone(
    window: Window, start: int, length: int, backup_start: int, backup_length: int
) -> None:
    end = (backup_start + backup_length) % DAY
    backup = f"{backup_start // 60:02d}:{backup_start % 60:02d}-{end // 60:02d}:{end % 60:02d}"
    held = clear_window(window, start, length, backup)
    if held is None:
        shifted = [window.shifted(days * DAY) for days in range(7)]
        daily = parse_backup_window(backup)
        assert not any(
            is_clear_of(other, start, length) and not any(other.overlaps(item) for item in daily) for other in shifted
        )
        return
    assert held.length == window.length and (held.start - window.start) % DAY == 0
    assert is_clear_of(held, start, length)
    if held != window:
        refuse_overlap(held, backup)  # raises nothing
        assert not is_clear_of(window, start, length)
    # What is held stays where it is when the same is asked again.
    assert clear_window(held, start, length, backup) == held


@given(st.integers(0, DAY - 1), st.integers(1, DAY - 1))
def test_a_backup_window_is_every_day(start: int, length: int) -> None:
    end = (start + length) % DAY
    found = parse_backup_window(f"{start // 60:02d}:{start % 60:02d}-{end // 60:02d}:{end % 60:02d}")
    assert len(found) == 7
    held = set().union(*(all_minutes(item) for item in found))
    assert held == {(start + offset) % DAY + day * DAY for offset in range(length) for day in range(7)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("garbage", "no maintenance window"),
        ("", "no maintenance window"),
        ("None", "no maintenance window"),
        ("sun:08:00", "no maintenance window"),
        ("sun:08:00-sun:09:00-sun:10:00", "no maintenance window"),
        ("08:00-09:00", "no maintenance window"),
        ("sun 08:00-sun 09:00", "no maintenance window"),
        ("sun:08:00-sun:09:0\N{ARABIC-INDIC DIGIT ZERO}", "no maintenance window"),
        ("sum:08:00-sun:09:00", "names no day 'sum'"),
        ("sunday:08:00-sunday:09:00", "names no day 'sunday'"),
        ("sun:24:00-mon:01:00", "no time 24:00"),
        ("sun:08:60-sun:09:00", "no time 08:60"),
        ("sun:8:00-sun:09:00", "no time 8:00"),
        ("sun:08:00-sun:08:29", "lasts 29 minutes"),
        ("sun:08:00-sun:08:00", "lasts 0 minutes"),
        ("sun:23:45-mon:00:14", "lasts 29 minutes"),
        ("tue:09:00-tue:08:00", "lasts 167 h 0 min"),
        ("mon:22:00-tue:22:01", "lasts 24 h 1 min"),
    ],
)
def test_what_is_no_window_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_window(text)
    assert says in str(caught.value) and caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["sun:23:45-mon:00:15", "mon:22:00-tue:22:00", "Sun:08:00-Sun:08:30", "SAT:00:00-sat:01:00"]
)
def test_what_is_a_window_is_accepted(text: str) -> None:
    assert str(parse_window(text)) == text.lower()


@pytest.mark.parametrize(
    ("window", "backup", "overlap"),
    [
        ("sun:03:30-sun:04:30", "03:00-03:30", False),  # touching
        ("sun:02:00-sun:03:00", "03:00-03:30", False),
        ("sun:03:29-sun:04:30", "03:00-03:30", True),
        ("sun:02:00-sun:03:01", "03:00-03:30", True),
        ("sun:23:45-mon:00:15", "00:00-00:30", True),  # over the end of the week
        ("sun:23:45-mon:00:15", "00:15-00:45", False),
        ("mon:00:10-mon:01:00", "23:45-00:15", True),  # the backup of Sunday ends on Monday
        ("mon:00:15-mon:01:00", "23:45-00:15", False),
        ("mon:00:00-tue:00:00", "12:00-12:30", True),
    ],
)
def test_a_window_must_leave_the_daily_backup_alone(window: str, backup: str, overlap: bool) -> None:
    if overlap:
        with pytest.raises(PlanError, match="overlaps the backup window"):
            refuse_overlap(parse_window(window), backup)
    else:
        refuse_overlap(parse_window(window), backup)


@pytest.mark.parametrize("text", ["3:00-03:30", "24:00-00:30", "03:60-04:00", "mon:03:00-mon:03:30", "x"])
def test_a_backup_window_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        parse_backup_window(text)


def test_the_week_begins_on_monday_in_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    assert minute_of_week(datetime.datetime(2026, 11, 23, 2, 0, tzinfo=zone)) == 0
    assert minute_of_week(datetime.datetime(2026, 11, 23, 1, 59, 30, tzinfo=zone)) == WEEK - 0.5


def test_no_day_is_clear_of_a_whole_week() -> None:
    assert clear_window(parse_window("sun:08:00-sun:09:00"), 0, WEEK) is None
