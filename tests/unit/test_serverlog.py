# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of the server log: taken apart, counted, and shown without values."""

from __future__ import annotations

import csv
import datetime
import io
import json
import pathlib
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.surefoot.dbops.plugins.module_utils import _serverlog
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._serverlog import (
    Counts,
    Entry,
    NotReadable,
    Position,
    ServerLog,
    collect,
    parse_csv,
    parse_json,
    parse_moment,
)

TIME = "2026-11-22 02:00:01.123 UTC"


def entry(**fields: str) -> Entry:
    values = {"time": TIME, "user": "web", "database": "app", "application": "api", "severity": "ERROR"}
    return Entry(**{**values, "sqlstate": "42501", "message": "", "context": "", **fields})


def csv_record(**fields: str) -> str:
    """A record as the server writes it: text quoted, what is missing empty."""
    values = [""] * 26
    given_fields = {"timestamp": TIME, "error_severity": "ERROR", "state_code": "42501", "dbname": "app", **fields}
    for name, value in given_fields.items():
        values[_serverlog._CSV[name]] = value
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.text(st.characters(codec="ascii")))
def test_every_text_comes_back_from_a_csv_record(message: str, name: str) -> None:
    found = parse_csv(csv_record(message=message, application_name=name).removesuffix("\n"))
    assert found is not None
    assert (found.message, found.application, found.sqlstate) == (message, name, "42501")


@pytest.mark.parametrize(
    "text", ["", "x", '"open', '2026-11-22 02:00:01 UTC,"a"b,c', csv_record(timestamp="yesterday"), f"{TIME},a,b"]
)
def test_what_is_no_csv_record_is_not_guessed_at(text: str) -> None:
    assert parse_csv(text.rstrip("\n")) is None


@pytest.mark.parametrize("text", ["", "x", "[]", '{"message": "x"}', '{"error_severity": "ERR'])
def test_what_is_no_json_record_is_not_guessed_at(text: str) -> None:
    assert parse_json(text) is None


def test_json_fields_that_are_missing_are_empty() -> None:
    found = parse_json(json.dumps({"timestamp": TIME, "error_severity": "PANIC", "state_code": "XX000"}))
    assert found == entry(user="", database="", application="", severity="PANIC", sqlstate="XX000")


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, "permission_denied"),
        ({"sqlstate": "23503"}, "foreign_key_violation"),
        ({"severity": "FATAL", "database": ""}, "fatal"),
        ({"severity": "PANIC", "database": "other"}, "panic"),
        ({"database": "other"}, "other_databases"),
        ({"application": "surefoot:worker r1"}, "own"),
    ],
)
def test_a_record_is_counted_where_it_belongs(fields: dict[str, str], key: str) -> None:
    counts = Counts("app")
    counts.add(entry(**fields))
    assert counts.to_dict()[key] == 1
    assert counts.errors == (0 if key in ("own", "other_databases") else 1)


def test_messages_that_are_no_errors_are_not_counted() -> None:
    counts = Counts("app")
    for severity in ("LOG", "WARNING", "NOTICE", "INFO", "DEBUG1"):
        counts.add(entry(severity=severity))
    assert counts.errors == 0 and counts.entries == []


def test_as_many_entries_are_kept_as_can_be_read() -> None:
    counts = Counts("app")
    for _number in range(100):
        counts.add(entry())
    assert counts.errors == 100 and len(counts.entries) == _serverlog.MAX_ENTRIES


VALUES = [
    'invalid input syntax for type integer: "4111"',
    'syntax error at or near "4111"',
    "permission denied for user with the card 4111",
    "permission denied for table a\n4111",
    'duplicate key value violates unique constraint "a" 4111',
    "anything 4111",
]


@pytest.mark.parametrize("message", VALUES)
def test_a_message_that_may_hold_a_value_is_replaced_by_its_condition(message: str) -> None:
    assert entry(message=message).to_dict()["message"] == "(insufficient_privilege)"


def test_a_message_raised_by_a_function_is_replaced_whatever_it_looks_like() -> None:
    shown = entry(
        message="permission denied for table t4111", context="PL/pgSQL function f() line 1 at RAISE"
    ).to_dict()
    assert "4111" not in json.dumps(shown)


@pytest.mark.parametrize(
    "message",
    [
        "permission denied for table audit_logs",
        "permission denied for materialized view m",
        "must be owner of table x",
        'new row violates row-level security policy for table "x"',
        'insert or update on table "a" violates foreign key constraint "b"',
        'update or delete on table "a" violates foreign key constraint "b" on table "c"',
        "sorry, too many clients already",
    ],
)
def test_a_message_of_the_server_that_names_objects_is_kept(message: str) -> None:
    assert entry(message=message).to_dict()["message"] == message


def log_in(directory: pathlib.Path, zone: str = "UTC") -> ServerLog:
    return ServerLog(str(directory), "csvlog", None, zone)


def test_a_record_that_is_still_being_written_is_left_for_later(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("")
    log = log_in(tmp_path)
    start = log.end()
    whole = csv_record(message='two\nlines and a "quote"')
    for cut in range(1, len(whole)):
        file.write_text(whole[:cut])
        assert collect(log, "app", start=start).to_dict() == Counts("app").to_dict(), cut
    file.write_text(whole)
    assert collect(log, "app", start=start).errors == 1


def test_a_record_too_long_to_keep_is_one_that_cannot_be_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_serverlog, "_MAX_RECORD", 1000)
    (tmp_path / "a.csv").write_text("")
    log = log_in(tmp_path)
    start = log.end()
    (tmp_path / "a.csv").write_text(csv_record() + csv_record(message="x\n" * 2000) + csv_record())
    counts = collect(log, "app", start=start)
    assert (counts.errors, counts.unreadable) == (2, 1)


def test_a_count_of_zero_beside_unreadable_records_is_not_measured() -> None:
    counts = Counts("app")
    counts.add(None)
    counts.add(entry(sqlstate="23503"))
    found = {item.criterion: item.verdict for item in _serverlog.judge_counts(counts, None, {"errors": 5})}
    assert found == {
        "serverlog.permission_denied": "not_measured",
        "serverlog.foreign_key_violation": "fail",
        "serverlog.fatal": "not_measured",
        "serverlog.errors": "not_measured",
    }


def test_a_limit_above_zero_lets_that_many_pass() -> None:
    counts = Counts("app")
    for _number in range(3):
        counts.add(entry())
    limits: dict[str, int | None] = {"permission_denied": 3, "errors": 2}
    found = {item.criterion: item.verdict for item in _serverlog.judge_counts(counts, None, limits)}
    assert found["serverlog.permission_denied"] == "pass" and found["serverlog.errors"] == "fail"


def at(text: str) -> str:
    return csv_record(timestamp=text)


def test_of_the_hour_that_comes_twice_nothing_is_left_out(tmp_path: pathlib.Path) -> None:
    # In Berlin 02:30 came twice on 25 October 2026: at 00:30 and at 01:30 UTC.
    (tmp_path / "a.csv").write_text(at("2026-10-25 01:59:00 CEST") + at("2026-10-25 02:30:00 CEST"))
    log = log_in(tmp_path, "Europe/Berlin")
    moment = datetime.datetime(2026, 10, 25, 1, 0, tzinfo=datetime.timezone.utc)
    assert collect(log, "app", since=moment).errors == 1


def test_an_unknown_time_zone_is_not_guessed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.csv").write_text(csv_record())
    with pytest.raises(NotReadable, match="Mars"):
        collect(
            log_in(tmp_path, "Mars/Olympus"), "app", since=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
        )


@pytest.mark.parametrize("text", ["2026-11-22T02:00:00", "noon", ""])
def test_a_time_without_a_zone_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="time zone"):
        parse_moment(text)


def test_a_time_may_be_written_with_z() -> None:
    assert parse_moment("2026-11-22T02:00:00Z") == parse_moment("2026-11-22T03:00:00+01:00")


@pytest.mark.parametrize(
    "given_position",
    [{}, {"file": "a", "offset": "x", "tail_sha256": ""}, {"file": "a/b", "offset": 0, "tail_sha256": ""}, {"file": 1}],
)
def test_a_position_that_none_was_given_out_as_is_refused(given_position: dict[str, t.Any]) -> None:
    with pytest.raises(PlanError, match="position"):
        Position.of(given_position)
