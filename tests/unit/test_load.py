# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as slower, and as a host that became busy."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._load import (
    LoadRequest,
    _host_evidence,
    _serves,
    slower,
)

REQUEST = LoadRequest(slow_ms=100, factor=1.5, min_calls=5)


def statement(calls: int, total: float) -> dict[str, t.Any]:
    return {"calls": calls, "total_ms": total, "rows": 0}


@pytest.mark.parametrize(
    ("before", "now", "worse", "new"),
    [
        (statement(10, 1000), statement(20, 2000), False, False),  # 100 ms as before
        (statement(10, 1000), statement(20, 2600), True, False),  # 160 ms since
        (statement(10, 10), statement(20, 900), False, False),  # 89 ms: much slower, and not slow
        (statement(10, 1000), statement(13, 9000), False, False),  # three calls say nothing
        (statement(1000, 1000), statement(10, 2000), True, False),  # reset since: 200 ms against 1 ms
        (None, statement(10, 2000), False, True),
        (None, statement(10, 200), False, False),
    ],
)
def test_a_statement_is_slower_by_its_mean_since_the_look_before(
    before: dict[str, t.Any] | None, now: dict[str, t.Any], worse: bool, new: bool
) -> None:
    found = slower({"1": now}, {"1": before} if before else {}, REQUEST)
    assert (bool(found[0]), bool(found[1])) == (worse, new)


def host(load: float, free: float) -> dict[str, t.Any]:
    return {"load_per_processor": load, "memory_available_percent": free}


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (host(0.2, 60), host(0.9, 60), "pass"),
        (host(0.2, 60), host(1.1, 60), "fail"),
        (host(0.9, 60), host(1.1, 60), "pass"),
        (host(0.2, 60), host(0.2, 9), "fail"),
        (host(0.2, 11), host(0.2, 9), "pass"),
        (None, host(9, 1), "not_applicable"),
    ],
)
def test_a_host_became_busy_or_short_of_memory(before: t.Any, now: t.Any, verdict: str) -> None:
    request = LoadRequest(before={"host": before} if before else None)
    assert _host_evidence(now, request).verdict == verdict


def test_a_server_elsewhere_is_not_measured() -> None:
    assert _host_evidence(None, REQUEST).verdict == "not_measured"
    assert _serves(b"postgres: app platform 10.0.0.7(5432) idle\0\0", "platform")
    assert not _serves(b"postgres: app other [local] idle\0", "platform")
    assert not _serves(b"/usr/bin/vim platform\0", "platform")
