# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a program says of the backup it took, and what a shadow says of its sample."""

from __future__ import annotations

import datetime
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import BackupError
from ansible_collections.surefoot.dbops.plugins.module_utils._external import parse_answer
from ansible_collections.surefoot.dbops.plugins.module_utils._rehearsal import partial_tables

NOW = datetime.datetime(2026, 11, 22, 2, 0, 0, tzinfo=datetime.timezone.utc)
SAID = {"id": "b-1", "created": "2026-11-22T01:00:00Z", "size": 10, "location": "s3://backups/main"}


@pytest.mark.parametrize(
    "created",
    [
        "2026-11-22T01:00:00Z",
        "2026-11-22 01:00:00z",
        "2026-11-22T02:00:00+01:00",
        "2026-11-22T02:00:00+0100",
        "2026-11-22T02:00:00+01",
        "2026-11-21T20:00:00.000-05:00",
    ],
)
def test_a_time_is_understood_with_its_zone(created: str) -> None:
    assert parse_answer({**SAID, "created": created}, now=NOW).to_dict()["created"] == "2026-11-22T01:00:00.000Z"


def test_clocks_may_differ_by_a_little() -> None:
    assert parse_answer({**SAID, "created": "2026-11-22T02:00:50Z"}, now=NOW).id == "b-1"
    with pytest.raises(BackupError, match="from the future"):
        parse_answer({**SAID, "created": "2026-11-22T02:01:10Z"}, now=NOW)


def test_secrets_in_what_is_kept_are_masked() -> None:
    said = {
        **SAID,
        "location": "s3://key:sesame-1@host/bucket",
        "details": {"log": ["password=sesame-2", {"url": "https://me:sesame-3@host/"}], "n": 1},
    }
    kept = str(parse_answer(said, now=NOW).to_dict())
    assert "sesame" not in kept
    assert "bucket" in kept


def test_an_error_says_which_part_and_quotes_nothing() -> None:
    for key in SAID:
        with pytest.raises(BackupError) as caught:
            parse_answer({**SAID, key: "\nsesame"}, now=NOW)
        assert key in caught.value.message
        assert "sesame" not in str(caught.value)
    with pytest.raises(BackupError) as caught:
        parse_answer({**SAID, "sesame": 1}, now=NOW)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("identifier", [7312345678901234567, "7312345678901234567"])
def test_a_system_identifier_is_a_number_or_its_text(identifier: t.Any) -> None:
    assert parse_answer({**SAID, "system_identifier": identifier}, now=NOW).system_identifier == "7312345678901234567"
    for wrong in (True, 1.5, "x", -1, ""):
        with pytest.raises(BackupError, match="system_identifier"):
            parse_answer({**SAID, "system_identifier": wrong}, now=NOW)


def test_a_shadow_says_which_tables_are_there_in_part() -> None:
    assert partial_tables(None) == {}
    assert partial_tables({"run_id": "r1"}) == {}
    assert partial_tables({"incomplete": {"public.large": [5, 4096]}}) == {"public.large": (4096, 5)}
