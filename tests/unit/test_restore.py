# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores and shadows: what can be told without a database."""

from __future__ import annotations

import json

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _restore, _shadow
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._restore import Comparison, criterion_of, keeps, within
from ansible_collections.surefoot.dbops.plugins.module_utils._shadow import ShadowRequest
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement


@pytest.mark.parametrize(
    "line",
    [
        "3400; 6100 16500 SUBSCRIPTION - elsewhere postgres",
        "3401; 0 0 COMMENT - SUBSCRIPTION elsewhere postgres",
        "3402; 1418 16501 USER MAPPING - USER MAPPING app SERVER away postgres",
        "2; 3079 16502 EXTENSION - pg_cron ",
        "3403; 0 0 COMMENT - EXTENSION pg_cron ",
        "3404; 0 16503 TABLE DATA cron job postgres",
        "3405; 0 0 SEQUENCE SET cron jobid_seq postgres",
        "3406; 0 0 ACL cron TABLE job postgres",
        "3407; 0 0 ACL - SCHEMA cron postgres",
    ],
)
def test_what_acts_on_the_outside_is_left_out_of_a_shadow_only(line: str) -> None:
    assert not keeps(line, live=False)
    assert keeps(line, live=True)


@pytest.mark.parametrize(
    "line",
    [
        "200; 1259 16400 TABLE public users postgres",
        "201; 0 16400 TABLE DATA public users postgres",
        "202; 0 16400 TABLE DATA public cron postgres",
        "203; 1259 16401 TABLE public SUBSCRIPTION postgres",
        "204; 0 0 COMMENT public TABLE cron postgres",
        "3; 3079 16504 EXTENSION - pg_cron_extras ",
        "205; 6104 16505 PUBLICATION - all_orders postgres",
        "206; 1417 16506 SERVER - away postgres",
        "207; 1255 16507 FUNCTION public elsewhere() postgres",
    ],
)
def test_everything_else_is_restored(line: str) -> None:
    assert keeps(line, live=False)


@pytest.mark.parametrize(
    ("value", "before", "after", "expected"),
    [
        (5, 5, 5, True),
        (4, 5, 5, False),
        (6, 5, 9, True),
        (9, 5, 9, True),
        (10, 5, 9, False),
        (7, 9, 5, True),  # counts downwards
        (4, 9, 5, False),
        (None, None, None, True),  # never used
        (1, None, None, False),
        (None, 5, 5, False),
        (None, None, 3, True),  # first used while the dump ran
        (3, None, 3, True),
    ],
)
def test_a_sequence_may_lie_between_its_values_before_and_after_the_dump(
    value: int | None, before: int | None, after: int | None, expected: bool
) -> None:
    assert within(value, before, after) is expected


@pytest.mark.parametrize(
    ("identity", "criterion"),
    [
        ("owner of table app.users", "privileges"),
        ("grants on column app.users.name", "privileges"),
        ("default privileges of postgres on tables in app", "privileges"),
        ("constraint app.users.young", "constraints"),
        ("index app.users_pkey", "constraints"),
        ("comment on index app.users_pkey", "constraints"),
        ("column app.users.name", "catalog"),
        ("comment on table app.users", "catalog"),
        ("policy app.users.own", "catalog"),
    ],
)
def test_each_entry_of_the_catalog_belongs_to_one_criterion(identity: str, criterion: str) -> None:
    assert criterion_of(identity) == criterion


def test_evidence_says_what_differs_and_no_more_than_was_compared() -> None:
    comparison = Comparison(
        counts={"row_counts": {"tables": 2, "rows": 9}, "sequences": {"sequences": 0}},
        not_measured={"content": "no hashes"},
    )
    comparison.differ("row_counts", "app.us\ners", 2, 3)
    found = {item.criterion: item for item in comparison.evidence()}
    assert set(found) == {f"restore.{name}" for name in _restore.COMPARED}
    failed = found["restore.row_counts"]
    assert (failed.verdict, failed.measured, failed.required) == ("fail", {"app.us?ers": 2}, {"app.us?ers": 3})
    assert failed.details == {"differences": 1, "objects": ["app.us?ers"]}
    assert found["restore.content"].verdict == "not_measured" and found["restore.content"].measured == "no hashes"
    assert found["restore.sequences"].verdict == "not_applicable"
    assert not comparison.passed and comparison.summary() == "app.us?ers is 2, recorded was 3"


def test_many_differences_are_counted_and_the_first_named() -> None:
    comparison = Comparison()
    for number in range(1000):
        comparison.differ("catalog", f"view v{number}", "missing", "there")
    evidence = next(item for item in comparison.evidence() if item.verdict == "fail")
    assert evidence.details["differences"] == 1000 and len(evidence.measured) == 20
    assert comparison.summary().endswith("; and 997 more")
    assert len(comparison.to_dict()["differences"]) == 500


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ALTER DATABASE app SET search_path TO 'a', 'b'", ("app", "search_path")),
        ("""ALTER DATABASE "A p" SET "my.key" TO 'it''s TO'""", ('"A p"', "my.key")),
        ("ALTER ROLE r IN DATABASE app SET work_mem TO '8MB'", ("app", "work_mem")),
        ("""ALTER ROLE "R" IN DATABASE app SET work_mem TO '8MB'""", ("app", "work_mem")),
        ("ALTER DATABASE app OWNER TO postgres", None),
        ("ALTER DATABASE app CONNECTION LIMIT = 3", None),
        ("CREATE DATABASE app", None),
        ("SET lock_timeout = 0", None),
    ],
)
def test_settings_of_the_database_are_told_from_the_rest(text: str, expected: tuple[str, str] | None) -> None:
    found = _restore._setting(Statement(text.encode()).head)
    assert (found and (found[0].text, found[1])) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"jobs": 0}, "jobs is 0"),
        ({"expires": 0.0}, "expires is 0"),
        ({"target_db": ""}, "target_db is ''"),
        ({"target_db": "ä" * 32}, "target_db is"),
    ],
)
def test_options_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ShadowRequest(**values).validate()  # type: ignore[arg-type]
    ShadowRequest(target_db="ä" * 31).validate()


def test_a_shadow_has_a_name_of_its_own_on_a_server_and_the_sources_in_a_cluster_of_its_own() -> None:
    server, embedded = ShadowRequest(where="server"), ShadowRequest(where="embedded")
    assert _shadow._default_name("platform", server, "R-42") == "platform_shadow_r_42"
    assert len(_shadow._default_name("ä" * 31, server, "x" * 99).encode()) <= 63
    assert _shadow._default_name("platform", embedded, "r42") == "platform"
    assert _shadow._default_name("postgres", embedded, "r42") == "postgres_shadow"


def test_only_a_marker_with_the_databases_own_oid_counts() -> None:
    marker = {"run_id": "r42", "oid": 16400}
    comment = "surefoot shadow: " + json.dumps(marker)
    assert _shadow._marker({"oid": 16400, "comment": comment}) == marker
    for oid, text in (
        (16401, comment),
        (16400, None),
        (16400, "our production database"),
        (16400, "surefoot shadow: {"),
        (16400, "surefoot shadow: []"),
        (16400, "not a " + comment),
    ):
        assert _shadow._marker({"oid": oid, "comment": text}) is None


def test_a_shadow_without_expiry_lives_until_it_is_removed() -> None:
    assert _shadow._expired({"expires": "2020-01-01T00:00:00.000Z"})
    assert not _shadow._expired({"expires": "2999-01-01T00:00:00.000Z"})
    assert not _shadow._expired({})
