# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of lock modes against the manual's table 13.2, written down here a second time as it is printed there."""

from __future__ import annotations

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._lockmodes import (
    CONFLICTS,
    MODES,
    blocks,
    documented,
    spelt,
)

# Rows and columns from ACCESS SHARE to ACCESS EXCLUSIVE; X where the two conflict.
TABLE_13_2 = (
    ".......X",
    "......XX",
    "....XXXX",
    "...XXXXX",
    "..XX.XXX",
    "..XXXXXX",
    ".XXXXXXX",
    "XXXXXXXX",
)


@pytest.mark.parametrize("row", range(8))
def test_conflicts_are_those_of_the_manual(row: int) -> None:
    printed = {mode for mode, mark in zip(MODES, TABLE_13_2[row]) if mark == "X"}
    assert CONFLICTS[MODES[row]] == printed


def test_conflicts_go_both_ways() -> None:
    assert all((a in CONFLICTS[b]) == (b in CONFLICTS[a]) for a in MODES for b in MODES)


@pytest.mark.parametrize(
    ("mode", "blocked"),
    [
        ("AccessShareLock", ()),
        ("RowExclusiveLock", ()),
        ("ShareUpdateExclusiveLock", ()),
        ("ShareLock", ("INSERT", "UPDATE", "DELETE")),
        ("ShareRowExclusiveLock", ("INSERT", "UPDATE", "DELETE")),
        ("ExclusiveLock", ("INSERT", "UPDATE", "DELETE")),
        ("AccessExclusiveLock", ("SELECT", "INSERT", "UPDATE", "DELETE")),
        ("SIReadLock", ()),
    ],
)
def test_who_waits_for_a_mode(mode: str, blocked: tuple[str, ...]) -> None:
    assert blocks(mode) == blocked


def test_modes_of_statements_outside_a_transaction() -> None:
    assert documented("CREATE INDEX CONCURRENTLY") == "ShareUpdateExclusiveLock"
    assert documented("VACUUM FULL") == "AccessExclusiveLock"
    assert documented("ALTER TABLE DETACH PARTITION CONCURRENTLY") == "AccessExclusiveLock"
    assert documented("CALL") is None


def test_modes_are_spelt_as_in_sql() -> None:
    assert [spelt(mode) for mode in MODES] == [
        "ACCESS SHARE",
        "ROW SHARE",
        "ROW EXCLUSIVE",
        "SHARE UPDATE EXCLUSIVE",
        "SHARE",
        "SHARE ROW EXCLUSIVE",
        "EXCLUSIVE",
        "ACCESS EXCLUSIVE",
    ]
