# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units, and values JSON can hold."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, condition_name, sqlstate_of
from ansible_collections.surefoot.dbops.plugins.module_utils._values import (
    human_duration,
    human_size,
    milliseconds,
    parse_duration,
    parse_size,
    to_plain,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("5min", 300),
        ("2h", 7200),
        ("1d", 86400),
        (3, 3),
        (0.25, 0.25),
        ("7", 7),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5 parsecs", "-1s", -1, None, True, "1h30m", float("nan"), "٣s"])
def test_no_durations(text):
    with pytest.raises(PlanError):
        parse_duration(text)


@pytest.mark.parametrize(("text", "size"), [("1GB", 2**30), ("100kB", 102400), ("512 MB", 2**29), (12, 12), ("7", 7)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1GBps", "-1", -1, None, True, "1PB"])
def test_no_sizes(text):
    with pytest.raises(PlanError):
        parse_size(text)


def test_a_timeout_is_never_zero_which_would_mean_none():
    assert milliseconds(0.0001) == 1
    assert milliseconds(1.5) == 1500


def test_human_units():
    assert [human_duration(value) for value in (0.45, 3.21, 245, 7380)] == ["450 ms", "3.2 s", "4 min 5 s", "2 h 3 min"]
    assert [human_size(value) for value in (12, 2048, 3 * 2**30)] == ["12 B", "2.0 kB", "3.0 GB"]


def test_database_values_survive_json():
    row = {
        "id": uuid.UUID(int=1),
        "price": decimal.Decimal("1.50"),
        "count": decimal.Decimal("3"),
        "nan": float("nan"),
        "infinite": decimal.Decimal("Infinity"),
        "at": datetime.datetime(2026, 11, 22, 3, tzinfo=datetime.timezone.utc),
        "for": datetime.timedelta(minutes=1),
        "raw": memoryview(b"\x00\xff"),
        "list": (1, None, {"k": {1}}),
    }
    plain = to_plain(row)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["price"] == "1.50"
    assert plain["count"] == 3
    assert plain["nan"] == "nan"
    assert plain["raw"] == "\\x00ff"
    assert plain["for"] == 60
    assert plain["list"] == [1, None, {"k": [1]}]


def test_conditions_by_name_and_by_code():
    assert sqlstate_of("foreign_key_violation") == "23503"
    assert sqlstate_of("23503") == "23503"
    assert condition_name("55P03") == "lock_not_available"
    assert condition_name("ZZZZZ") is None
    with pytest.raises(PlanError, match="foreign_key_violatoin"):
        sqlstate_of("foreign_key_violatoin")
