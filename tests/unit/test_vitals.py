# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arithmetic of the watch, its options, and what it makes of gaps."""

from __future__ import annotations

import pathlib
import sys
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _vitals
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._vitals import (
    Limits,
    ReplicaAges,
    Track,
    Window,
    _Unseen,
    behind,
)


@pytest.mark.parametrize(
    ("blocked", "expected"),
    [
        ({}, (0, 0.0)),
        ({2: ([1], 0.5)}, (1, 0.5)),
        ({2: ([9], 0.5)}, (0, 0.0)),  # waits for somebody else
        ({2: ([1], 0.5), 3: ([2], 4.0), 4: ([3, 9], 1.0)}, (3, 4.0)),  # queued behind who waits for us
        ({1: ([9], 7.0), 2: ([1], 0.5)}, (1, 0.5)),  # our own wait is not one behind us
        ({2: ([3], 1.0), 3: ([2], 1.0)}, (0, 0.0)),  # a deadlock of others
    ],
)
def test_sessions_behind_ours_are_counted_with_those_behind_them(
    blocked: dict[int, t.Any], expected: tuple[int, float]
) -> None:
    assert behind([1], blocked) == expected


def test_a_window_forgets_what_was_written_before_it() -> None:
    window = Window(60)
    assert [window.gained(now, value) for now, value in [(0, 100), (30, 150), (60, 400), (90, 400)]] == [
        0,
        50,
        300,
        250,
    ]
    assert window.gained(200, 400) == 0


def test_what_was_written_in_a_gap_between_samples_counts_whole() -> None:
    window = Window(60)
    window.gained(0, 0)
    assert window.gained(100, 500) == 500


def test_a_replica_is_as_late_as_the_oldest_position_it_has_not_replayed() -> None:
    ages = ReplicaAges()
    assert ages.lag(0, 100, 100, None) == 0
    assert ages.lag(10, 200, 100, None) == 0
    assert ages.lag(15, 300, 100, None) == 5
    assert ages.lag(16, 300, 200, None) == 1
    assert ages.lag(17, 300, 250, 40.0) == 40.0  # the server knows of older ones
    assert ages.lag(18, 300, 300, 40.0) == 0  # and shows its last figure for a while after


LOST = _Unseen("lost")
NONE = _Unseen("none there", nothing=True)


@pytest.mark.parametrize(
    ("values", "limit", "expected"),
    [
        ([1.0, 2.0], 5.0, "pass"),
        ([9.0, 1.0, 9.0], 5.0, "pass"),  # never twice in a row
        ([1.0], None, "not_applicable"),
        ([], 5.0, "not_measured"),
        ([LOST], 5.0, "not_measured"),
        ([NONE], 5.0, "not_applicable"),
        ([1.0, LOST, 1.0], 5.0, "pass"),
        ([1.0, LOST, LOST, 1.0], 5.0, "not_measured"),  # two in a row could have been too high
        ([NONE, NONE, 1.0], 5.0, "not_measured"),  # a replica that came late
        ([1.0, NONE, NONE], 5.0, "not_measured"),  # one that went away
    ],
)
def test_a_verdict_needs_enough_samples_without_a_gap(values: list[t.Any], limit: float | None, expected: str) -> None:
    track = Track()
    for value in values:
        track.note(value, limit, False)
    assert track.verdict(limit, 2) == expected


def test_only_samples_in_a_row_count_as_over() -> None:
    track = Track()
    steps: list[tuple[t.Any, int]] = [(9.0, 1), (1.0, 0), (9.0, 1), (LOST, 1), (9.0, 2)]
    for value, over in steps:
        track.note(value, 5.0, False)
        assert track.over == over
    assert (track.worst, track.last, track.over_total) == (9.0, 9.0, 3)


def test_a_floor_is_broken_from_above() -> None:
    track = Track()
    for value in (7.0, 3.0, 6.0):
        track.note(value, 5.0, True)
    assert (track.worst, track.last, track.over_total) == (3.0, 6.0, 1)


def test_options_are_read_with_their_units() -> None:
    limits = Limits.from_options(
        {
            "interval": "500ms",
            "samples": "2",
            "max_connections_used": "80%",
            "wal_rate_max": "2GB/min",
            "max_wait": "none",
            "temp_max": "64MB",
            "tables": ["a.b"],
            "endpoints": [
                "http://127.0.0.1:1/x",
                {"url": "http://127.0.0.1:1/y", "timeout": "1s", "expect_status": None},
            ],
            "disk_min_free": None,
        }
    )
    assert (limits.interval, limits.samples, limits.max_connections_used) == (0.5, 2, 80.0)
    assert (limits.wal_rate_max, limits.max_wait, limits.temp_max) == (2 * 2**30, None, 64 * 2**20)
    assert limits.disk_min_free == Limits().disk_min_free
    assert [endpoint.timeout for endpoint in limits.endpoints] == [5.0, 1.0]


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"samples": 0}, "samples"),
        ({"samples": True}, "samples"),
        ({"interval": "0s"}, "interval"),
        ({"interval": "2min"}, "interval"),
        ({"max_connections_used": "0%"}, "max_connections_used"),
        ({"max_connections_used": "120%"}, "max_connections_used"),
        ({"wal_rate_max": "1GB/s"}, "wal_rate_max"),
        ({"max_waiters": -1}, "max_waiters"),
        ({"max_wait": "long"}, "max_wait"),
        ({"disk_min_free": "some"}, "disk_min_free"),
        ({"wal_rate": "1GB"}, "wal_rate"),
        ({"endpoints": [{"url": "ftp://x"}]}, "endpoints, number 1"),
    ],
)
def test_an_option_that_cannot_be_is_named(given: dict[str, t.Any], word: str) -> None:
    with pytest.raises(PlanError, match=word):
        Limits.from_options(given)


def test_a_data_directory_of_another_server_is_not_measured(tmp_path: pathlib.Path) -> None:
    (tmp_path / "global").mkdir()
    (tmp_path / "pg_tblspc").mkdir()
    (tmp_path / "global" / "pg_control").write_bytes((7).to_bytes(8, sys.byteorder) + b"rest")
    assert _vitals.disks(str(tmp_path), 7)[0] == str(tmp_path)
    with pytest.raises(_Unseen, match="another server"):
        _vitals.disks(str(tmp_path), 8)
    with pytest.raises(OSError):
        _vitals.disks(str(tmp_path / "none"), 7)
