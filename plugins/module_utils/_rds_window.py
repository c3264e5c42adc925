# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Maintenance and backup windows of Amazon RDS, in minutes of the week.

A week is a ring of 10080 minutes that begins on Monday 00:00 UTC, so that a window may go over the end of Sunday. A
window holds its first minute and not its last: windows that touch do not overlap.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError

DAY = 24 * 60
WEEK = 7 * DAY
SHORTEST = 30
LONGEST = DAY
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_WEEKLY = re.compile(r"([a-z]+):(\d{1,2}):(\d{1,2})-([a-z]+):(\d{1,2}):(\d{1,2})", re.ASCII)
_DAILY = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
_SHAPE = "Write it as ddd:hh:mm-ddd:hh:mm in UTC, such as sun:23:45-mon:00:15."


@dataclasses.dataclass(frozen=True)
class Window:
    """A weekly window: its first minute of the week, and its length in minutes."""

    start: int
    length: int

    def __str__(self) -> str:
        """As AWS returns it: lower case."""
        return f"{_moment(self.start)}-{_moment(self.start + self.length)}"

    def includes(self, minute: float) -> bool:
        """Whether a minute of the week lies in it."""
        return (minute - self.start) % WEEK < self.length

    def overlaps(self, other: Window) -> bool:
        """Whether the two have a minute in common. Of two pieces of a ring that meet, one holds the other's start."""
        return self.includes(other.start) or other.includes(self.start)

    def shifted(self, minutes: int) -> Window:
        """The same window, later."""
        return Window((self.start + minutes) % WEEK, self.length)

    def begins_in(self, minute: float) -> float:
        """Minutes from a minute of the week to when it begins next."""
        return (self.start - minute) % WEEK


def parse_window(text: object, what: str = "preferred_maintenance_window") -> Window:
    """A maintenance window as RDS takes it; case does not matter.

    :raises PlanError: it is none, shorter than 30 minutes or longer than 24 hours
    """
    written = str(text).strip()
    found = _WEEKLY.fullmatch(written.lower())
    if found is None:
        raise PlanError(f"{what}: {written!r} is no maintenance window", remedy=_SHAPE)
    first = _minute(written, what, found[1], found[2], found[3])
    last = _minute(written, what, found[4], found[5], found[6])
    length = (last - first) % WEEK
    if length < SHORTEST:
        raise PlanError(
            f"{what}: {written!r} lasts {length} minutes", remedy=f"A maintenance window takes at least {SHORTEST}."
        )
    if length > LONGEST:
        raise PlanError(
            f"{what}: {written!r} lasts {length // 60} h {length % 60} min",
            remedy="A maintenance window takes at most 24 hours; look whether start and end are the right way round.",
        )
    return Window(first, length)


def parse_backup_window(text: object) -> tuple[Window, ...]:
    """The seven occurrences of a daily backup window ``hh:mm-hh:mm``; it may go over midnight.

    :raises PlanError: it is none
    """
    found = _DAILY.fullmatch(str(text).strip())
    numbers = [int(part) for part in found.groups()] if found else []
    if not numbers or max(numbers[0], numbers[2]) > 23 or max(numbers[1], numbers[3]) > 59:
        raise PlanError(
            f"the backup window {str(text)!r} cannot be read",
            remedy="RDS writes it as hh:mm-hh:mm.",
        )
    first, last = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    return tuple(Window(first + day * DAY, (last - first) % DAY) for day in range(7))


def refuse_overlap(window: Window, backup_window: str | None) -> None:
    """Hold a maintenance window against the instance's daily backup window.

    :raises PlanError: they have a minute in common
    """
    if backup_window and any(window.overlaps(item) for item in parse_backup_window(backup_window)):
        raise PlanError(
            f"the maintenance window {window} overlaps the backup window {backup_window}",
            remedy="RDS refuses that. Choose a time outside; the two may touch.",
        )


def minute_of_week(moment: datetime.datetime) -> float:
    """The minute of the week of a moment, in UTC."""
    utc = moment.astimezone(datetime.timezone.utc)
    return utc.weekday() * DAY + utc.hour * 60 + utc.minute + utc.second / 60


def is_clear_of(window: Window, start: float, minutes: float) -> bool:
    """Whether no minute of the window lies within so many minutes from a minute of the week on."""
    if minutes + window.length > WEEK:
        return False
    return not window.includes(start) and window.begins_in(start) >= minutes


def clear_window(window: Window, start: float, minutes: float, backup_window: str | None = None) -> Window | None:
    """Where to put a window so that it is clear of a time: where it is, or at the same time of another day, the one
    that comes last. None when the time is too long for that."""
    if is_clear_of(window, start, minutes):
        return window
    daily = parse_backup_window(backup_window) if backup_window else ()
    others: t.Iterable[Window] = (window.shifted(days * DAY) for days in range(1, 7))
    fitting = [
        other
        for other in others
        if is_clear_of(other, start, minutes) and not any(other.overlaps(item) for item in daily)
    ]
    return max(fitting, key=lambda other: other.begins_in(start), default=None)


def _minute(text: str, what: str, day: str, hour: str, minute: str) -> int:
    if day not in DAYS:
        raise PlanError(f"{what}: {text!r} names no day {day!r}", remedy=f"Days are {', '.join(DAYS)}. {_SHAPE}")
    if len(hour) != 2 or len(minute) != 2 or int(hour) > 23 or int(minute) > 59:
        raise PlanError(f"{what}: {text!r} has no time {hour}:{minute}", remedy=f"From 00:00 to 23:59. {_SHAPE}")
    return DAYS.index(day) * DAY + int(hour) * 60 + int(minute)


def _moment(minute: int) -> str:
    minute %= WEEK
    return f"{DAYS[minute // DAY]}:{minute % DAY // 60:02d}:{minute % 60:02d}"
