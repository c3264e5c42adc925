# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy: the strictest where the inventory is silent, an error where nothing would enforce it."""

from __future__ import annotations

import datetime
import pathlib
import re
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import (
    KEYS,
    ROLLBACK_MATRIX,
    parse_time,
    percent,
    policy_hash,
    resolve_policy,
    window_at,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_rate

STRICTEST = {
    "backup": "required",
    "backup_max_age": "0s",
    "restore_proof": True,
    "rehearsal": "required",
    "lock_budget": "500ms",
    "baseline_regression": "10%",
    "pool_saturation_max": "90%",
    "wal_rate_max": "1GB/min",
    "replica_lag_max": "30s",
    "quarantine_max": "1GB",
    "api_p95_max": "200ms",
    "watch_samples": 3,
    "window": None,
    "approvals": ["prepared", "reviewed", "approved"],
    "waivers": [],
    "go_max_age": "1h",
    "rollback": {
        "syntax_error": "roll_back",
        "verification_failed": "roll_back",
        "queries_denied": "roll_back",
        "endpoint_broken": "fix_forward",
        "slow_queries": "monitor",
        "encryption_not_working": "roll_back",
        "lock_budget_exceeded": "roll_back",
        "watch_limit": "roll_back",
    },
    "rollback_max_lost_rows": 0,
    "criteria": {},
}
WAIVER = {"criterion": "watch.disk", "reason": "managed", "by": "dba-oncall", "expires": "2026-12-31"}
WINDOW = {"start": "Sun 02:00", "end": "Sun 04:00", "reserve": "1h"}


@pytest.mark.parametrize("silent", [None, {}])
def test_silence_is_the_strictest(silent: t.Any) -> None:
    assert resolve_policy(silent, silent) == STRICTEST


def test_overrides_win_key_by_key() -> None:
    policy = resolve_policy({"backup": "optional", "lock_budget": "1s"}, {"lock_budget": "200ms"})
    assert policy == {**STRICTEST, "backup": "optional", "lock_budget": "200ms"}


def test_a_resolved_policy_resolves_to_itself() -> None:
    policy = resolve_policy(
        {
            "window": {"start": "sunday 2:00", "end": "Sun 04:00"},
            "waivers": [{**WAIVER, "expires": datetime.date(2026, 12, 31)}],
            "rollback": {"slow_queries": "ask"},
            "criteria": {"watch.disk": "required"},
        }
    )
    assert policy["window"] == WINDOW
    assert policy["waivers"] == [WAIVER]
    assert policy["rollback"] == {**ROLLBACK_MATRIX, "slow_queries": "ask"}
    assert resolve_policy(policy) == policy
    assert policy_hash(resolve_policy(policy)) == policy_hash(policy) != policy_hash(resolve_policy(None))


def test_nobody_can_change_the_strictest_by_accident() -> None:
    policy = resolve_policy(None)
    policy["approvals"].clear()
    policy["rollback"]["watch_limit"] = "monitor"
    assert resolve_policy(None) == STRICTEST


GOOD: list[tuple[str, t.Any, t.Any]] = [
    ("restore_proof", False, False),
    ("restore_proof", "no", False),
    ("rehearsal", "optional", "optional"),
    ("baseline_regression", "150%", "150%"),
    ("wal_rate_max", "512 MB / min", "512MB/min"),
    ("watch_samples", "5", 5),
    ("window", "any", "any"),
    (
        "window",
        {"start": "22:00", "end": "2:30", "reserve": "30m"},
        {"start": "22:00", "end": "02:30", "reserve": "30m"},
    ),
    ("window", {"start": "Sat 23:00", "end": "Sun 03:00"}, {"start": "Sat 23:00", "end": "Sun 03:00", "reserve": "1h"}),
    ("approvals", [], []),
    ("approvals", ["approved", "approved"], ["approved"]),
    ("rollback_max_lost_rows", 100, 100),
]


@pytest.mark.parametrize(("key", "given", "resolved"), GOOD)
def test_a_value_that_can_be(key: str, given: t.Any, resolved: t.Any) -> None:
    assert resolve_policy({key: given})[key] == resolved


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lock_buget": "1s"}, "Did you mean lock_budget?"),
        ({"approval": ["a"]}, "Did you mean approvals?"),
        ({"colour": "red"}, "does not enforce it"),
        ({"backup": "yes"}, "required, optional, never"),
        ({"backup": True}, "required, optional, never"),
        ({"rehearsal": "requird"}, "Did you mean required?"),
        ({"lock_budget": "soon"}, "surefoot_policy.lock_budget"),
        ({"lock_budget": 0}, "above 0"),
        ({"lock_budget": True}, "surefoot_policy.lock_budget"),
        ({"backup_max_age": None}, "surefoot_policy.backup_max_age"),
        ({"go_max_age": 0}, "above 0"),
        ({"pool_saturation_max": "110%"}, "percentage"),
        ({"pool_saturation_max": "nan"}, "percentage"),
        ({"pool_saturation_max": True}, "percentage"),
        ({"baseline_regression": "-5%"}, "percentage"),
        ({"restore_proof": "maybe"}, "true or false"),
        ({"wal_rate_max": "1GB"}, "1GB/min"),
        ({"wal_rate_max": "0/min"}, "1GB/min"),
        ({"wal_rate_max": 5}, "1GB/min"),
        ({"wal_rate_max": "1GB/s"}, "1GB/min"),
        ({"watch_samples": 0}, "from 1 on"),
        ({"watch_samples": 1.5}, "from 1 on"),
        ({"rollback_max_lost_rows": -1}, "from 0 on"),
        ({"window": "night"}, "Sun 02:00"),
        ({"window": {"start": "Sun 02:00"}}, "has no end"),
        ({"window": {**WINDOW, "ende": "x"}}, "Did you mean end?"),
        ({"window": {**WINDOW, "end": "04:00"}}, "only one of"),
        ({"window": {**WINDOW, "end": "Sun 25:00"}}, "surefoot_policy.window.end"),
        ({"window": {**WINDOW, "start": "Sux 02:00"}}, "surefoot_policy.window.start"),
        ({"window": {**WINDOW, "start": "Mod 02:00"}}, "surefoot_policy.window.start"),
        ({"window": {**WINDOW, "reserve": "2h"}}, "nothing could ever begin"),
        ({"window": {**WINDOW, "end": "Sun 02:00"}}, "nothing could ever begin"),
        ({"approvals": "approved"}, "list of words"),
        ({"approvals": [""]}, "list of words"),
        ({"waivers": {}}, "not a list"),
        ({"waivers": ["x"]}, "not a dictionary"),
        ({"waivers": [{**WAIVER, "reason": ""}]}, "has no reason"),
        ({"waivers": [{**WAIVER, "reason": "  "}]}, "has no reason"),
        ({"waivers": [{**WAIVER, "by": " "}]}, "has no by"),
        ({"waivers": [{key: value for key, value in WAIVER.items() if key != "expires"}]}, "has no expires"),
        ({"waivers": [{**WAIVER, "expires": "never"}]}, "expires"),
        ({"waivers": [{**WAIVER, "until": "x"}]}, "unknown key until"),
        ({"waivers": [{**WAIVER, "criterion": "everything"}]}, "dotted name"),
        ({"waivers": [WAIVER, WAIVER]}, "twice"),
        ({"criteria": {"watch.disk": "required!"}}, "Did you mean required?"),
        ({"criteria": {"watch.disk": "never"}}, "required, optional"),
        ({"criteria": {"disk": "required"}}, "dotted name"),
        ({"criteria": ["watch.disk"]}, "not a dictionary"),
        ({"rollback": {"slow_querys": "ask"}}, "Did you mean slow_queries?"),
        ({"rollback": {"slow_queries": "rollback"}}, "Did you mean roll_back?"),
        ({"rollback": "ask"}, "not a dictionary"),
        (["backup"], "not a dictionary"),
    ],
)
def test_what_cannot_be_enforced_is_refused(given: t.Any, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        resolve_policy(given)
    assert says in str(caught.value)


@pytest.mark.parametrize(("given", "resolved"), [("85", "85%"), (85, "85%"), ("99.5 %", "99.5%"), (100.0, "100%")])
def test_a_percentage_may_be_written_in_several_ways(given: t.Any, resolved: str) -> None:
    policy = resolve_policy({"pool_saturation_max": given})
    assert policy["pool_saturation_max"] == resolved
    assert percent(resolved) == float(resolved[:-1])


@pytest.mark.parametrize(("text", "rate"), [("60MB/min", 60 * 2**20), ("1 kB/min", 1024), ("1GB/min", 2**30)])
def test_a_rate_in_bytes_per_minute(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


def at(text: str) -> datetime.datetime:
    return parse_time(text, "time")


# 2026-11-22 is a Sunday.
@pytest.mark.parametrize(
    ("window", "moment", "opens_in"),
    [
        ("any", "2026-11-24T12:00:00Z", 0),
        (WINDOW, "2026-11-22T01:59:59Z", 1),
        (WINDOW, "2026-11-22T02:00:00Z", 0),
        (WINDOW, "2026-11-22T03:00:00Z", 0),
        (WINDOW, "2026-11-22T03:00:01Z", 7 * 86400 - 3601),
        (WINDOW, "2026-11-22T04:30:00+02:00", 0),
        (WINDOW, "2026-11-23T02:00:00Z", 6 * 86400),
        # Across the end of the week, across midnight, every day.
        ({"start": "Sun 23:00", "end": "Mon 02:00", "reserve": "1h"}, "2026-11-23T00:59:00Z", 0),
        ({"start": "Sun 23:00", "end": "Mon 02:00", "reserve": "1h"}, "2026-11-23T01:01:00Z", 7 * 86400 - 7260),
        ({"start": "22:00", "end": "01:00", "reserve": "30m"}, "2026-11-25T00:30:00Z", 0),
        ({"start": "22:00", "end": "01:00", "reserve": "30m"}, "2026-11-25T00:31:00Z", 21 * 3600 + 29 * 60),
    ],
)
def test_a_window_is_open_until_its_reserve(window: t.Any, moment: str, opens_in: float) -> None:
    found = window_at(window, at(moment))
    assert (found.open, found.opens_in) == (opens_in == 0, opens_in)


def test_without_a_word_about_a_window_none_is_open() -> None:
    assert not window_at(None, at("2026-11-22")).open


def test_a_date_counts_to_its_end_where_it_ends_something() -> None:
    assert parse_time("2026-12-31", "expires", end_of_day=True) == at("2027-01-01T00:00:00Z")
    assert parse_time("9999-12-31", "expires", end_of_day=True) == at("9999-12-31T00:00:00Z")
    assert parse_time("2026-12-31", "at") == at("2026-12-31T00:00:00Z") == at("2026-12-31T00:00:00")
    with pytest.raises(PlanError, match="expires is 'soon'"):
        parse_time("soon", "expires")


def test_the_strictest_value_of_every_key_is_tested() -> None:
    assert set(STRICTEST) == set(KEYS)


def test_the_guide_lists_every_key() -> None:
    text = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "gate.md").read_text(encoding="utf-8")
    table = text.partition("## Policy")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(KEYS)
