# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdicts of preflight on given facts, above all those that a test server cannot be brought to."""

from __future__ import annotations

import copy
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import ConnectionFailed, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._preflight import (
    ADVISORY,
    CRITERIA,
    Finding,
    Report,
    Wanted,
    criterion_name,
    failed,
    judge,
    pooler_finding,
    relation_name,
    unreachable,
)

FACTS: dict[str, t.Any] = {
    "pooler": {"reason": None, "pids": [7, 7, 7], "kept": True, "seconds": [0.001, 0.002, 0.001]},
    "connection": {
        "seconds": [0.001, 0.002, 0.001],
        "host": "db.example.com",
        "tls": True,
        "protocol": "TLSv1.3",
        "cipher": "TLS_AES_256_GCM_SHA384",
    },
    "server": {
        "version": "15.8",
        "version_num": 150008,
        "database": "platform",
        "user": "migrator",
        "in_recovery": False,
        "default_read_only": "off",
        "sees_statistics": True,
        "monitor": True,
        "superuser": False,
        "session_superuser": False,
        "role_limit": -1,
        "role_used": 1,
        "uses_reserved": False,
        "database_limit": -1,
        "database_used": 10,
        "used": 10,
        "max_connections": 100,
        "superuser_reserved": 3,
        "reserved": 0,
        "may_create_schema": True,
        "ledger": None,
        "ledger_owner": None,
        "ledger_create": None,
        "ledger_denied": None,
        "ledger_tables": 0,
        "database_size": 1000,
        "database_age": 1000,
        "freeze_max_age": 200_000_000,
        "synchronous_commit": "on",
        "synchronous_standby_names": "",
        "lock_slots": 6400,
        "lockable": 100,
        "log_statement": "none",
        "log_min_duration_statement": "-1",
        "log_min_duration_sample": "-1",
        "pgaudit_log": None,
        "auto_explain_log_min_duration": None,
    },
    "schemas": [],
    "tables": [{"name": "app.t", "oid": 1, "kind": "r", "owner": "migrator", "owned": True}],
    "touched": [{"name": "app.t", "oid": 1}],
    "relations": [],
    "extensions": [],
    "sessions": [],
    "prepared": [],
    "locks": [],
    "publications": [],
    "subscriptions": [],
    "vacuums": [],
    "slots": [],
    "replicas": [],
    "settings": [],
    "event_triggers": [],
    "typed_users": {"columns": [], "text_columns": [], "reason": None, "since": None, "evicted": None},
    "identity": {},
    "backup_room": None,
}
LOCK: dict[str, t.Any] = {
    "relation": "app.t",
    "mode": "ShareUpdateExclusiveLock",
    "granted": True,
    "pid": 9,
    "user": "postgres",
    "application_name": "",
    "state": "active",
    "backend_type": "client backend",
    "age": 1.0,
    "wraparound": False,
    "blocked_by": [],
}
REPLICA: dict[str, t.Any] = {
    "pid": 5,
    "application_name": "replica1",
    "state": "streaming",
    "sync_state": "async",
    "lag_seconds": None,
    "lag_bytes": 0,
}


def finding(criterion: str, wanted: Wanted | None = None, **changes: t.Any) -> Finding:
    """The finding on the facts with these changes; ``server={...}`` and other objects are merged, lists replaced."""
    facts = copy.deepcopy(FACTS)
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(facts[name], dict):
            facts[name].update(value)
        else:
            facts[name] = value
    return next(item for item in judge(facts, wanted or Wanted()) if item.criterion == f"preflight.{criterion}")


def test_every_criterion_is_judged_once_and_none_fails_on_good_facts() -> None:
    found = judge(FACTS, Wanted())
    assert [item.criterion for item in found] == list(CRITERIA)
    assert [item for item in found if item.verdict == "fail"] == []
    assert set(ADVISORY) < set(CRITERIA)


@pytest.mark.parametrize(
    ("criterion", "changes"),
    [
        ("connection", {"connection": {"seconds": [0.001, 1.5, 0.001]}}),
        ("tls", {"connection": {"tls": False, "protocol": None}}),
        ("server_version", {"server": {"version_num": 130011, "version": "13.11"}}),
        ("primary", {"server": {"in_recovery": True}}),
        ("writable", {"server": {"default_read_only": "on"}}),
        ("connections", {"server": {"used": 93}}),
        ("connections", {"server": {"used": 88, "reserved": 5}}),
        ("connections", {"server": {"role_limit": 3, "role_used": 2}}),
        ("connections", {"server": {"database_limit": 12}}),
        ("wraparound", {"server": {"database_age": 1_700_000_000}}),
        (
            "wraparound",
            {"vacuums": [{"pid": 3, "relid": 1, "table": "app.t", "wraparound": True, "phase": "scanning heap"}]},
        ),
        ("blockers", {"locks": [LOCK]}),
        ("blockers", {"locks": [{**LOCK, "backend_type": "autovacuum worker", "wraparound": True}]}),
        ("blockers", {"locks": [{**LOCK, "mode": "AccessShareLock", "granted": False, "blocked_by": [4]}]}),
        (
            "replication_slots",
            {
                "slots": [
                    {
                        "slot": "s",
                        "type": "physical",
                        "here": None,
                        "active": True,
                        "wal_status": "lost",
                        "retained": None,
                    }
                ]
            },
        ),
        ("replica_lag", {"replicas": [{**REPLICA, "lag_seconds": 31.0}]}),
        ("replica_lag", {"replicas": [{**REPLICA, "lag_bytes": 2**30}]}),
        ("synchronous_standby", {"server": {"synchronous_standby_names": "replica1"}, "replicas": [REPLICA]}),
        (
            "synchronous_standby",
            {
                "server": {"synchronous_standby_names": "ANY 2 (a, b, c)"},
                "replicas": [{**REPLICA, "sync_state": "quorum"}],
            },
        ),
        ("lock_table", {"server": {"lockable": 5200}}),
        ("server_logging", {"server": {"log_statement": "ddl"}}),
        ("server_logging", {"server": {"log_min_duration_statement": "0"}}),
        ("server_logging", {"server": {"pgaudit_log": "write, ddl"}}),
        ("disk_backup", {"backup_room": {"free": 10**9, "at": "/x", "writable": False}}),
    ],
)
def test_bad_facts_fail_with_a_remedy(criterion: str, changes: dict[str, t.Any]) -> None:
    found = finding(criterion, **changes)
    assert found.verdict == "fail"
    assert found.remedy
    assert found.line().startswith(f"{criterion}: ")
    assert found.evidence().details["remedy"] == found.remedy


@pytest.mark.parametrize(
    ("criterion", "changes"),
    [
        ("server_version", {"server": {"version_num": 180006, "version": "18.6"}}),
        ("connections", {"server": {"used": 88, "reserved": 5, "uses_reserved": True}}),
        ("connections", {"server": {"used": 89, "session_superuser": True, "superuser_reserved": 10}}),
        ("wraparound", {"vacuums": [{"pid": 3, "relid": 2, "table": "app.o", "wraparound": True, "phase": "x"}]}),
        ("wraparound", {"vacuums": [{"pid": 3, "relid": 1, "table": "app.t", "wraparound": False, "phase": "x"}]}),
        ("blockers", {"locks": [{**LOCK, "backend_type": "autovacuum worker"}]}),
        ("blockers", {"locks": [{**LOCK, "mode": "RowExclusiveLock"}]}),
        ("replica_lag", {"replicas": [REPLICA]}),
        (
            "synchronous_standby",
            {
                "server": {"synchronous_standby_names": "FIRST 1 (a, b)"},
                "replicas": [{**REPLICA, "sync_state": "sync"}, {**REPLICA, "sync_state": "potential"}],
            },
        ),
        ("disk_backup", {"backup_room": {"free": 1000, "at": "/x", "writable": True}}),
    ],
)
def test_good_facts_pass(criterion: str, changes: dict[str, t.Any]) -> None:
    assert finding(criterion, **changes).verdict == "pass"


@pytest.mark.parametrize(
    ("criterion", "changes"),
    [
        ("long_transactions", {}),
        ("idle_in_transaction", {}),
        ("wraparound", {}),
        ("replica_lag", {"replicas": [{**REPLICA, "state": None, "lag_bytes": None}]}),
        ("synchronous_standby", {"replicas": [{**REPLICA, "state": None, "sync_state": None}]}),
        ("blockers", {"locks": [{**LOCK, "mode": "RowExclusiveLock", "age": None, "state": None}]}),
        ("disk_backup", {"backup_room": {"free": None, "at": "/x", "writable": False, "error": "Input/output error"}}),
        ("disk_server", {}),
    ],
)
def test_what_the_role_cannot_see_is_never_a_pass(criterion: str, changes: dict[str, t.Any]) -> None:
    server = {"sees_statistics": False, "monitor": False}
    if criterion == "synchronous_standby":
        server["synchronous_standby_names"] = "replica1"
    found = finding(criterion, server=server, **changes)
    assert (found.verdict, found.measured) == ("not_measured", None)
    assert found.remedy


def test_long_transaction_that_is_visible_fails_without_pg_monitor() -> None:
    row = {
        "pid": 3,
        "user": "migrator",
        "application_name": "x",
        "state": "active",
        "transaction_age": 900.0,
        "state_age": 1.0,
    }
    assert finding("long_transactions", server={"sees_statistics": False}, sessions=[row]).verdict == "fail"


def test_receiver_of_wal_that_replays_nothing_is_no_replica() -> None:
    assert finding("replica_lag", replicas=[{**REPLICA, "lag_bytes": None}]).verdict == "not_applicable"


@pytest.mark.parametrize("host", ["", "/run/postgresql", "localhost", "127.0.0.1", "::1"])
def test_tls_is_not_asked_for_on_a_local_connection(host: str) -> None:
    assert finding("tls", connection={"host": host, "tls": False, "protocol": None}).verdict == "not_applicable"


def test_newer_server_than_tested_passes_with_a_note() -> None:
    found = finding("server_version", server={"version_num": 190000, "version": "19beta1"})
    assert (found.verdict, found.details["note"]) == ("pass", "newer than 18, the newest that was tested")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reason": "the address answers as process 1 but statements run in process 2"}, "answers as process 1"),
        ({"pids": [7, 8, 7]}, "ran in 2 server processes"),
        ({"kept": False}, "a setting of the session was gone"),
    ],
)
def test_signs_of_a_pooler(changes: dict[str, t.Any], words: str) -> None:
    found = pooler_finding({**FACTS["pooler"], **changes})
    assert (found.verdict, words in found.summary, "direct address" in found.remedy) == ("fail", True, True)


def test_refused_startup_parameter_is_evidence_of_a_pooler() -> None:
    pooled = unreachable(ConnectionFailed("cannot connect: unsupported startup parameter: options", remedy="r"))
    plain = unreachable(ConnectionFailed("cannot connect: Connection refused", remedy="r"))
    assert (pooled.criterion, plain.criterion) == ("preflight.pooler", "preflight.connection")
    assert pooled.verdict == plain.verdict == "fail"


def report(**verdicts: str) -> Report:
    return Report(
        [Finding(f"preflight.{name}", verdict, None, "m", "r", "s") for name, verdict in verdicts.items()], {}
    )


@pytest.mark.parametrize(
    ("required", "optional", "stopping", "warning"),
    [
        ([], [], ["ledger"], ["tls"]),
        (["tls"], [], ["ledger", "tls"], []),
        ([], ["preflight.ledger"], [], ["ledger", "tls"]),
        (["ledger"], ["ledger"], ["ledger"], ["tls"]),
        (["disk_server"], [], ["ledger", "disk_server"], ["tls"]),
        (["primary", "replica_lag"], [], ["ledger"], ["tls"]),
    ],
)
def test_what_stops_and_what_warns(
    required: list[str], optional: list[str], stopping: list[str], warning: list[str]
) -> None:
    found = report(ledger="fail", tls="fail", disk_server="not_measured", primary="pass", replica_lag="not_applicable")
    stop, warn = found.failures(required, optional)
    assert sorted(item.criterion for item in stop) == sorted(f"preflight.{name}" for name in stopping)
    assert [item.criterion for item in warn] == [f"preflight.{name}" for name in warning]


def test_error_is_one_line_with_every_finding() -> None:
    stopping, _warning = report(ledger="fail", primary="fail").failures()
    error = failed(stopping)
    assert str(error) == "preflight: 2 criteria are not met: ledger: m; required: r. | primary: m; required: r."
    assert error.code == "preflight"


def test_unknown_criterion_is_refused() -> None:
    assert criterion_name("ledger") == criterion_name("preflight.ledger") == "preflight.ledger"
    with pytest.raises(PlanError, match="no preflight criterion 'ledgers'"):
        report().failures(required=["ledgers"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("users", (None, "users")),
        ("App.Users", ("app", "users")),
        ('"App"."Odd ""Name"""', ("App", 'Odd "Name"')),
        ("app.t$1", ("app", "t$1")),
        ("schéma.tablé", ("schéma", "tablé")),
    ],
)
def test_relation_names_are_read_as_sql_does(text: str, name: tuple[str | None, str]) -> None:
    assert relation_name(text) == name


@pytest.mark.parametrize("text", ["", "a.b.c", "a b", "1a", 'a."b', "a;b", "a."])
def test_what_is_no_relation_name_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="is not the name of a relation"):
        relation_name(text)


def test_secret_like_text_of_other_sessions_is_masked() -> None:
    row = {
        "pid": 3,
        "user": "x",
        "application_name": "postgres://u:hunter22@h/d",
        "state": "active",
        "transaction_age": 900.0,
        "state_age": 1.0,
    }
    found = finding("long_transactions", sessions=[row])
    assert "hunter22" not in found.line()
    assert "hunter22" not in str(found.to_dict())
    assert "hunter22" not in str(found.evidence().to_dict())


def test_wanted_is_read_from_options() -> None:
    params: dict[str, t.Any] = {
        "schemas": ["app"],
        "tables": ["app.t"],
        "extensions": [],
        "type_changes": [{"table": "app.t", "column": "a", "to": "uuid"}],
        "relations_exist": [],
        "ledger_schema": "surefoot",
        "backup_dir": None,
        "min_free_connections": 5,
        "max_pool_saturation": 80.0,
        "backup_size_factor": 1.5,
        "max_latency": "500ms",
        "max_transaction_age": "5m",
        "max_idle_in_transaction": "1m",
        "max_lock_age": "10s",
        "max_replica_lag": "30s",
        "max_replica_lag_size": "64MB",
        "max_retained_wal": "1GB",
        "database_free_space": "2GB",
    }
    wanted = Wanted.from_params(params)
    assert (wanted.max_latency, wanted.max_transaction_age) == (0.5, 300.0)
    assert (wanted.max_retained_wal, wanted.database_free_space) == (2**30, 2**31)
    with pytest.raises(PlanError, match="not a duration"):
        Wanted.from_params({**params, "max_lock_age": "soon"})
    with pytest.raises(PlanError, match="not the name"):
        Wanted.from_params({**params, "tables": ["a b"]})
