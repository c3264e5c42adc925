# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rehearsal on a real server: what it finds, what it must not complain of, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import stat
import sys
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _squawk
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import BackupRequest, take_backup
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._rehearsal import RehearsalRequest, rehearse
from ansible_collections.surefoot.dbops.plugins.module_utils._shadow import ShadowRequest, make_shadow, remove_shadow
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    Background,
    MigrationSet,
    ModuleProcess,
    applied,
    module_params,
    nothing_left,
    run,
    wait_until,
    worker_running,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

SEED = """
CREATE SCHEMA app;
CREATE SEQUENCE app.numbers;
CREATE TABLE app.accounts (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    balance integer DEFAULT 0
);
ALTER TABLE app.accounts ENABLE ROW LEVEL SECURITY;
CREATE TABLE app.notes (account integer REFERENCES app.accounts, body text);
INSERT INTO app.accounts (name, balance) SELECT 'account ' || n, n FROM generate_series(1, 50) AS n;
INSERT INTO app.notes SELECT n, 'note ' || n FROM generate_series(1, 50) AS n;
SELECT nextval('app.numbers');
"""
CRITERIA = ("deploy", "verify", "rollback_catalog", "rollback_data", "redeploy", "lock_budget", "rewrites", "hazards")


def mark(database: Database, oid: int | None = None) -> None:
    """What postgresql_restore writes on a shadow."""
    own = database.scalar("SELECT oid::bigint FROM pg_database WHERE datname = current_database()")
    marker = {"run_id": "r1", "expires": "2999-01-01T00:00:00.000Z", "oid": own if oid is None else oid}
    database.query(f"COMMENT ON DATABASE {database.name} IS 'surefoot shadow: {json.dumps(marker)}'")


@pytest.fixture
def shadow(database: Database) -> Database:
    database.query(SEED)
    mark(database)
    return database


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


def perform(plan: MigrationSet, database: Database, **request: t.Any) -> dict[str, t.Any]:
    values: dict[str, t.Any] = {
        "ledger_schema": "surefoot",
        "on_failure": "report",
        "squawk": "never",
        "lock_budget": 30.0,
        **request,
    }
    options = ConnectionOptions.from_params(database.params)
    return rehearse(load_plan(plan.path), options, RehearsalRequest(**values))


def verdicts(results: t.Mapping[str, t.Any]) -> dict[str, str]:
    return {item["criterion"].partition(".")[2]: item["verdict"] for item in results["evidence"]}


def evidence(results: t.Mapping[str, t.Any], name: str) -> dict[str, t.Any]:
    return next(item for item in results["evidence"] if item["criterion"] == f"rehearsal.{name}")


# --- what a rollback forgets -----------------------------------------------------------------------------------------

FORGOTTEN = {
    "an index": (
        "CREATE INDEX by_balance ON app.accounts (balance)",
        "rollback_catalog",
        "+index app.by_balance",
    ),
    "a policy": (
        "CREATE POLICY everyone ON app.accounts USING (true)",
        "rollback_catalog",
        "policy app.accounts.everyone",
    ),
    "a default": (
        "ALTER TABLE app.accounts ALTER balance SET DEFAULT 5",
        "rollback_catalog",
        "~column app.accounts.balance",
    ),
    "a grant": ("GRANT SELECT ON app.accounts TO PUBLIC", "rollback_catalog", "grants on table app.accounts"),
    "a comment": ("COMMENT ON COLUMN app.notes.body IS 'free text'", "rollback_catalog", "comment on column"),
    "a constraint": (
        "ALTER TABLE app.accounts ADD CHECK (balance >= 0)",
        "rollback_catalog",
        "constraint app.accounts.accounts_balance_check",
    ),
    "a sequence value": (
        "SELECT setval('app.numbers', 100)",
        "rollback_data",
        "app.numbers: sequence at 1 before, 100",
    ),
    "a row": (
        "INSERT INTO app.notes VALUES (1, 'left behind')",
        "rollback_data",
        "app.notes: 50 rows before, 51 after",
    ),
    "a changed row": (
        "UPDATE app.notes SET body = 'changed' WHERE account = 7",
        "rollback_data",
        "app.notes: 50 rows before and after, with other content",
    ),
    "a deleted row": (
        "DELETE FROM app.notes WHERE account = 7",
        "rollback_data",
        "app.notes: 50 rows before, 49 after",
    ),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_rollback_that_forgets_something_is_found(what: str, plan: MigrationSet, shadow: Database) -> None:
    deploy, criterion, text = FORGOTTEN[what]
    honest = "ALTER TABLE app.notes ADD COLUMN read boolean"
    plan.add("001_change", f"{honest};\n{deploy};", rollback="ALTER TABLE app.notes DROP COLUMN read;")
    results = perform(plan, shadow)
    found = evidence(results, criterion)
    assert found["verdict"] == "fail"
    assert text in found["measured"]
    assert [name for name, value in verdicts(results).items() if value == "fail" and name.startswith("rollback")] == [
        criterion
    ]


HONEST = """
CREATE TABLE app.tags (id serial PRIMARY KEY, account integer REFERENCES app.accounts, tag text);
CREATE INDEX by_balance ON app.accounts (balance);
CREATE POLICY everyone ON app.accounts USING (true);
ALTER TABLE app.accounts ALTER balance SET DEFAULT 5;
GRANT SELECT ON app.accounts TO PUBLIC;
COMMENT ON COLUMN app.notes.body IS 'free text';
INSERT INTO app.notes VALUES (1, 'of the migration');
INSERT INTO app.tags (account, tag) SELECT id, 'x' FROM app.accounts;
SELECT setval('app.numbers', 100);
"""
HONEST_ROLLBACK = """
SELECT setval('app.numbers', 1);
DELETE FROM app.notes WHERE body = 'of the migration';
COMMENT ON COLUMN app.notes.body IS NULL;
REVOKE SELECT ON app.accounts FROM PUBLIC;
ALTER TABLE app.accounts ALTER balance SET DEFAULT 0;
DROP POLICY everyone ON app.accounts;
DROP INDEX app.by_balance;
DROP TABLE app.tags;
"""


def test_an_honest_migration_raises_no_alarm(plan: MigrationSet, shadow: Database) -> None:
    plan.add(
        "001_honest",
        HONEST,
        rollback=HONEST_ROLLBACK,
        rollback_loses=["app.tags"],
        verify=[
            {"name": "tags", "query": "SELECT id FROM app.tags", "expect": {"rows": 50}},
            {
                # It moves the sequence of app.accounts, which was there before.
                "name": "a second account of the same name is refused",
                "statement": "INSERT INTO app.accounts (name) VALUES ('account 1')",
                "expect_error": "unique_violation",
            },
        ],
    )
    results = perform(plan, shadow)
    expected = {name: "pass" for name in CRITERIA} | {"hazards": "not_applicable"}
    assert verdicts(results) == expected
    assert applied(shadow) == ["001_honest"]
    assert results["rollback_proof"]["sequences_moved_by_checks"] == ["app.accounts_id_seq"]
    assert evidence(results, "rollback_data")["measured"] == {"tables": 2, "rows": 100, "sequences": 2}
    assert "table app.tags" in results["catalog_diff"]["added"]
    assert "index app.by_balance" in results["catalog_diff"]["added"]


def test_a_sequence_the_migration_moves_is_found_although_its_checks_move_it_too(
    plan: MigrationSet, shadow: Database
) -> None:
    check = {"name": "refused", "statement": "INSERT INTO app.accounts (name) VALUES ('account 1')"}
    plan.add(
        "001_moves",
        "SELECT setval('app.accounts_id_seq', 1000);",
        rollback="SELECT 1;",
        verify=[{**check, "expect_error": "unique_violation"}],
    )
    found = evidence(perform(plan, shadow), "rollback_data")
    assert found["verdict"] == "fail"
    assert "app.accounts_id_seq: sequence at 50 before, 1000 after" in found["measured"]


def test_what_the_plan_says_is_lost_is_not_compared(plan: MigrationSet, shadow: Database) -> None:
    plan.add(
        "001_clears",
        "DELETE FROM app.notes; SELECT setval('app.numbers', 9);",
        rollback="SELECT 1;",
        rollback_loses=["app.notes", "app.numbers"],
    )
    results = perform(plan, shadow)
    assert evidence(results, "rollback_data")["verdict"] == "pass"
    assert results["rollback_proof"]["left_out"] == ["app.notes", "app.numbers"]


def test_of_a_lost_partitioned_table_its_partitions_and_their_sequences_are_lost(
    plan: MigrationSet, shadow: Database
) -> None:
    for statement in (
        "CREATE TABLE app.log (i int, t text) PARTITION BY RANGE (i)",
        "CREATE TABLE app.log_1 PARTITION OF app.log FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (i)",
        "CREATE TABLE app.log_2 PARTITION OF app.log_1 DEFAULT",
        "CREATE SEQUENCE app.log_numbers OWNED BY app.log_2.i",
        "INSERT INTO app.log VALUES (1, 'x')",
    ):
        shadow.query(statement)
    text = "DELETE FROM app.log; SELECT nextval('app.log_numbers');"
    plan.add("001_clears", text, rollback="SELECT 1;", rollback_loses=["app.log"])
    results = perform(plan, shadow)
    assert evidence(results, "rollback_data")["verdict"] == "pass"
    assert results["rollback_proof"]["left_out"] == ["app.log_2", "app.log_numbers"]


def test_a_sequence_with_an_odd_name_is_put_back_too(plan: MigrationSet, shadow: Database) -> None:
    shadow.query('CREATE SCHEMA "s.d"; CREATE SEQUENCE "s.d"."N.o"')
    check = {"name": "moves", "query": """SELECT nextval('"s.d"."N.o"') > 0""", "expect": {"scalar": True}}
    plan.add("001_new", "CREATE TABLE app.t (i int);", rollback="DROP TABLE app.t;", verify=[check])
    results = perform(plan, shadow)
    assert evidence(results, "rollback_data")["verdict"] == "pass"
    assert results["rollback_proof"]["sequences_moved_by_checks"] == ["s.d.N.o"]


def test_a_second_deployment_that_ends_differently_is_found(plan: MigrationSet, shadow: Database) -> None:
    # Whether the index is made depends on something the rollback leaves behind: a sequence it says it loses.
    plan.add(
        "001_once",
        "SELECT nextval('app.numbers');\n"
        "DO $$ BEGIN IF (SELECT last_value FROM app.numbers) = 2 THEN"
        " CREATE INDEX once ON app.notes (body); END IF; END $$;",
        rollback="DROP INDEX IF EXISTS app.once;",
        rollback_loses=["app.numbers"],
    )
    found = evidence(perform(plan, shadow), "redeploy")
    assert found["verdict"] == "fail"
    assert "-index app.once" in found["measured"]


def test_a_rollback_that_fails_is_a_failure_with_its_place(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_column", "ALTER TABLE app.notes ADD a integer;", rollback="\nALTER TABLE app.notes DROP COLUMN b;")
    results = perform(plan, shadow)
    assert verdicts(results)["rollback_catalog"] == verdicts(results)["rollback_data"] == "fail"
    assert results["rollback_proof"]["error"]["line"] == 2
    assert verdicts(results)["redeploy"] == "not_measured"


def test_without_a_rollback_there_is_no_proof_but_the_rest_is_measured(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_no_way_back", "ALTER TABLE app.notes ADD a integer;")
    results = perform(plan, shadow)
    assert verdicts(results) == {
        **{name: "pass" for name in ("deploy", "lock_budget", "rewrites")},
        **{name: "not_measured" for name in ("rollback_catalog", "rollback_data", "redeploy")},
        **{name: "not_applicable" for name in ("verify", "hazards")},
    }
    assert evidence(results, "rollback_catalog")["measured"] == "001_no_way_back has no rollback"
    assert results["catalog_diff"]["added"] == ["column app.notes.a"]


def test_what_comes_after_a_migration_without_a_rollback_is_proven_for_itself(
    plan: MigrationSet, shadow: Database
) -> None:
    plan.add("001_no_way_back", "ALTER TABLE app.notes ADD a integer;")
    plan.add("002_index", "CREATE INDEX by_a ON app.notes (a);", rollback="SELECT 1;")
    results = perform(plan, shadow)
    assert results["rollback_proof"]["migrations"] == ["002_index"]
    assert evidence(results, "rollback_catalog")["verdict"] == "fail"
    plan.add("002_index", "CREATE INDEX by_a ON app.notes (a);", rollback="DROP INDEX app.by_a;")
    shadow.query("DELETE FROM surefoot.applied WHERE migration_id = '002_index'; DROP INDEX app.by_a")
    results = perform(plan, shadow, only=("002_index",))
    assert verdicts(results)["rollback_catalog"] == "pass"


# --- locks -----------------------------------------------------------------------------------------------------------


def big_table(shadow: Database) -> None:
    """About 13 MB, and two indexes."""
    shadow.query(
        "CREATE TABLE app.big (id integer PRIMARY KEY, amount integer, body text);"
        "INSERT INTO app.big SELECT n, n, repeat('x', 60) FROM generate_series(1, 120000) AS n;"
        "CREATE INDEX big_amount ON app.big (amount); ANALYZE app.big;"
        "ALTER TABLE app.big SET (autovacuum_enabled = off)"
    )


def test_a_rewrite_is_a_no_go_with_lock_and_seconds_and_the_same_change_online_is_a_go(
    plan: MigrationSet, shadow: Database, tmp_path: pathlib.Path
) -> None:
    big_table(shadow)
    plan.add(
        "001_bigint",
        "\nALTER TABLE app.big ALTER COLUMN amount TYPE bigint;",
        rollback="ALTER TABLE app.big ALTER COLUMN amount TYPE integer;",
    )
    # Half of what the rewrite takes is the budget of both, on any machine.
    trial = perform(plan, shadow, lock_budget=0.001)
    longest = evidence(trial, "lock_budget")["details"]["longest_seconds"]
    shadow.query("DELETE FROM surefoot.applied; ALTER TABLE app.big ALTER COLUMN amount TYPE integer; ANALYZE app.big")
    budget = longest / 3
    with pytest.raises(SurefootError) as caught:
        perform(plan, shadow, lock_budget=budget, rewrite_max_size=1024 * 1024, on_failure="fail")
    results = caught.value.results
    assert caught.value.code == "rehearsal"
    assert caught.value.details["criteria"] == ["rehearsal.lock_budget", "rehearsal.rewrites"]
    found = evidence(results, "lock_budget")
    assert found["verdict"] == "fail"
    assert "ACCESS EXCLUSIVE on app.big (" in found["measured"]
    assert "blocks SELECT, INSERT, UPDATE, DELETE; 001_bigint, ALTER TABLE (001_bigint.sql:2)" in found["measured"]
    assert "ACCESS EXCLUSIVE on app.big" in str(caught.value)
    # Its indexes are locked too, and say no more than the table.
    assert "big_amount" not in found["measured"]
    assert "app.big_amount" in {item["relation"] for item in results["locks"]}
    lock = next(item for item in results["locks"] if item["relation"] == "app.big" and item["phase"] == "deploy")
    assert lock["seconds"] == pytest.approx(lock["to_seconds"] - lock["from_seconds"], abs=0.001)
    assert lock["seconds"] > budget
    assert lock["rows"] == 120000
    assert lock["bytes"] > 8_000_000
    rewrites = evidence(results, "rewrites")
    assert rewrites["verdict"] == "fail"
    assert "app.big (" in rewrites["measured"]
    assert [item["relation"] for item in rewrites["details"]["rewrites"]] == ["app.big", "app.big"]

    shadow.query("DELETE FROM surefoot.applied; ALTER TABLE app.big ALTER COLUMN amount TYPE integer; ANALYZE app.big")
    online = MigrationSet(tmp_path / "online")
    online.add(
        "001_bigint",
        steps=[
            "ALTER TABLE app.big ADD COLUMN amount_wide bigint;",
            {"table": "app.big", "key": ["id"], "set": {"amount_wide": "amount"}, "batch": 20000},
            "ALTER TABLE app.big RENAME amount TO amount_narrow; ALTER TABLE app.big RENAME amount_wide TO amount;",
        ],
        rollback="ALTER TABLE app.big DROP COLUMN amount; ALTER TABLE app.big RENAME amount_narrow TO amount;",
    )
    results = perform(online, shadow, lock_budget=budget, rewrite_max_size=1024 * 1024, on_failure="fail")
    assert verdicts(results)["lock_budget"] == verdicts(results)["rewrites"] == "pass"
    assert verdicts(results)["rollback_catalog"] == verdicts(results)["rollback_data"] == "pass"
    assert "ACCESS EXCLUSIVE on app.big" in evidence(results, "lock_budget")["measured"]
    assert "BACKFILL 120000" in {item["tag"] for item in results["statements"]}


def test_the_factor_scales_what_is_judged(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_sleeps", "LOCK TABLE app.notes IN SHARE MODE;\nSELECT pg_sleep(0.2);", rollback="SELECT 1;")
    assert verdicts(perform(plan, shadow, lock_budget=5.0))["lock_budget"] == "pass"
    shadow.query("DELETE FROM surefoot.applied")
    found = evidence(perform(plan, shadow, lock_budget=5.0, shadow_factor=100.0), "lock_budget")
    assert found["verdict"] == "fail"
    assert "times 100" in found["measured"]
    assert "SHARE on app.notes" in found["measured"]
    assert "blocks INSERT, UPDATE, DELETE;" in found["measured"]


def test_a_rollback_over_the_budget_counts_as_production_would_cut_it_short(
    plan: MigrationSet, shadow: Database
) -> None:
    plan.add(
        "001_quick",
        "ALTER TABLE app.notes ADD a integer;",
        rollback="ALTER TABLE app.notes DROP COLUMN a;\nSELECT pg_sleep(1.5);",
    )
    found = evidence(perform(plan, shadow, lock_budget=1.0), "lock_budget")
    assert found["verdict"] == "fail"
    assert "rollback of 001_quick" in found["measured"]


def test_every_lock_on_what_existed_is_listed_and_none_on_what_is_new(plan: MigrationSet, shadow: Database) -> None:
    plan.add(
        "001_many",
        "CREATE TABLE app.fresh (account integer REFERENCES app.accounts);\n"
        "CREATE INDEX on_fresh ON app.fresh (account);\n"
        "INSERT INTO app.notes VALUES (2, 'new');\n"
        "CREATE INDEX notes_body ON app.notes (body);\n"
        "SAVEPOINT s;\n"
        "LOCK TABLE app.notes IN ACCESS EXCLUSIVE MODE;\n"
        "ROLLBACK TO SAVEPOINT s;\n"
        "SELECT pg_sleep(0.3);\n",
        lock_tables=["app.accounts"],
    )
    results = perform(plan, shadow)
    locks = {(item["relation"], item["mode"]): item for item in results["locks"]}
    assert not [name for name, _mode in locks if "fresh" in name]
    # The plan's own LOCK TABLE, from the beginning.
    first = locks["app.accounts", "ACCESS EXCLUSIVE"]
    assert (first["tag"], first["from_seconds"], first["file"]) == ("LOCK TABLE", 0.0, "plan.yml")
    reference = locks["app.accounts", "SHARE ROW EXCLUSIVE"]
    assert (reference["line"], reference["blocks"]) == (1, ["INSERT", "UPDATE", "DELETE"])
    assert locks["app.notes", "ROW EXCLUSIVE"]["line"] == 3
    assert locks["app.notes", "ROW EXCLUSIVE"]["blocks"] == []
    build = locks["app.notes", "SHARE"]
    assert (build["line"], build["tag"], build["source"]) == (4, "CREATE INDEX", "pg_locks")
    # Given back with the savepoint, not with the transaction.
    undone = locks["app.notes", "ACCESS EXCLUSIVE"]
    assert undone["line"] == 6
    assert undone["to_seconds"] + 0.25 < build["to_seconds"]
    assert build["seconds"] > 0.25


def test_waiting_for_a_lock_is_not_holding_it(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_waits", "SELECT 'rehearsed';\nLOCK TABLE app.notes IN ACCESS EXCLUSIVE MODE;\n")
    with contextlib.closing(shadow.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN; SELECT FROM app.notes")
        rehearsal = Background(lambda: perform(plan, shadow, lock_timeout=20.0))
        wait_until(lambda: worker_running(shadow, "LOCK TABLE"), "the worker waits")
        time.sleep(1.0)
        cursor.execute("COMMIT")
        results = rehearsal.result()
    lock = next(item for item in results["locks"] if item["mode"] == "ACCESS EXCLUSIVE")
    taken = next(item for item in results["statements"] if item["tag"] == "LOCK")
    assert taken["seconds"] > 0.9
    assert lock["from_seconds"] > taken["from_seconds"] + 0.8
    assert lock["seconds"] < taken["seconds"]


def test_locks_of_an_index_name_its_table(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_reindex", "REINDEX INDEX app.accounts_pkey;", rollback="SELECT 1;")
    locks = {(item["relation"], item["mode"]): item for item in perform(plan, shadow)["locks"]}
    found = locks["app.accounts_pkey", "ACCESS EXCLUSIVE"]
    assert (found["kind"], found["table"]) == ("index", "app.accounts")
    assert "SELECT" in found["blocks"]


def test_a_statement_outside_a_transaction_is_sampled(plan: MigrationSet, shadow: Database) -> None:
    big_table(shadow)
    plan.add(
        "001_online_index",
        steps=[("CREATE INDEX CONCURRENTLY big_body ON app.big (body);", False)],
        rollback="DROP INDEX app.big_body;",
    )
    results = perform(plan, shadow, sample_interval=0.005)
    found = [item for item in results["locks"] if item["phase"] == "deploy" and item["relation"] == "app.big"]
    assert {item["mode"] for item in found} == {"SHARE UPDATE EXCLUSIVE"}
    assert {item["source"] for item in found} == {"sampled"}
    assert not any(item["blocks"] for item in found)
    assert verdicts(results)["lock_budget"] == "pass"
    assert "big_body" not in {item["relation"] for item in found}


def test_what_no_sample_caught_is_taken_from_the_manual(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_full", steps=[("VACUUM FULL app.notes;", False)], rollback="SELECT 1;")
    results = perform(plan, shadow, sample_interval=10.0)
    # A sample at the right moment catches weaker ones of the same statement as well.
    found = {
        item["mode"]: item["blocks"]
        for item in results["locks"]
        if item["relation"] == "app.notes" and item["phase"] == "deploy"
    }
    assert found["ACCESS EXCLUSIVE"] == ["SELECT", "INSERT", "UPDATE", "DELETE"]
    assert [item["relation"] for item in results["rewrites"] if item["phase"] == "deploy"] == ["app.notes"]


# --- what fails, and what is refused ---------------------------------------------------------------------------------


def test_a_migration_that_fails_says_where_and_leaves_the_rest_unmeasured(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_broken", "SELECT 1;\nALTER TABLE app.missing ADD a integer;", rollback="SELECT 1;")
    with pytest.raises(SurefootError) as caught:
        perform(plan, shadow, on_failure="fail")
    results = caught.value.results
    assert "001_broken.sql:2" in evidence(results, "deploy")["measured"]
    assert verdicts(results) == {
        "deploy": "fail",
        **{name: "not_measured" for name in ("verify", "rollback_catalog", "rollback_data", "redeploy", "lock_budget")},
        "rewrites": "pass",
        "hazards": "not_applicable",
    }


def test_a_failing_check_is_told_from_a_failing_deployment(plan: MigrationSet, shadow: Database) -> None:
    plan.add(
        "001_checked",
        "ALTER TABLE app.notes ADD a integer;",
        rollback="ALTER TABLE app.notes DROP COLUMN a;",
        verify=[
            {"name": "too many", "query": "SELECT 1 FROM app.notes", "expect": {"rows": 3}, "when": "after_commit"}
        ],
    )
    results = perform(plan, shadow)
    assert verdicts(results)["deploy"] == "pass"
    assert evidence(results, "verify")["measured"] == {"checks": 1, "failed": ["too many of 001_checked"]}
    assert verdicts(results)["verify"] == "fail"
    assert verdicts(results)["rollback_catalog"] == "pass"


def _three_columns(plan: MigrationSet) -> None:
    query = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'made'"
    plan.add(
        "000_made",
        "CREATE TABLE made (a integer, b integer, c integer);",
        rollback="DROP TABLE made;",
        verify=[{"name": "three columns", "query": query, "expect": {"scalar": 3}}],
    )


def test_a_migration_that_breaks_a_check_of_an_earlier_one_is_found(plan: MigrationSet, shadow: Database) -> None:
    _three_columns(plan)
    run(plan, shadow)
    plan.add("001_more", "ALTER TABLE made ADD d integer;", rollback="ALTER TABLE made DROP COLUMN d;")
    found = evidence(perform(plan, shadow), "verify")
    assert found["verdict"] == "fail"
    assert found["measured"] == {"checks": 1, "failed": ["three columns of 000_made"]}


def test_a_check_that_failed_before_the_migration_is_named_as_such(plan: MigrationSet, shadow: Database) -> None:
    _three_columns(plan)
    run(plan, shadow)
    shadow.query("ALTER TABLE made DROP COLUMN c")
    plan.add("001_other", "CREATE TABLE other (i integer);", rollback="DROP TABLE other;")
    found = evidence(perform(plan, shadow), "verify")
    assert found["verdict"] == "fail"
    assert found["measured"]["failed"] == ["three columns of 000_made, before this migration as well"]
    only = evidence(perform(plan, shadow, only=("001_other",)), "verify")
    assert only["verdict"] == "not_applicable"  # nor does the run look at it then


def test_a_statement_over_its_timeout_fails_as_it_would_in_production(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_slow", "SELECT pg_sleep(5);", rollback="SELECT 1;")
    found = evidence(perform(plan, shadow, statement_timeout=0.2), "deploy")
    assert found["verdict"] == "fail"
    assert "query_canceled" in found["measured"]


def test_a_database_that_is_no_shadow_is_refused(plan: MigrationSet, database: Database) -> None:
    plan.add("001_table", "CREATE TABLE t (i integer);", rollback="DROP TABLE t;")
    with pytest.raises(SurefootError) as caught:
        perform(plan, database)
    assert caught.value.code == "shadow"
    mark(database, oid=1)  # a comment that came with a dump of a shadow
    with pytest.raises(SurefootError) as caught:
        perform(plan, database)
    assert caught.value.code == "shadow"
    assert database.query("SELECT 1 FROM pg_namespace WHERE nspname = 'surefoot'") == []
    assert verdicts(perform(plan, database, shadow="any"))["deploy"] == "pass"


def test_what_reaches_beyond_the_shadow_is_refused_before_anything_is_run(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_ok", "CREATE TABLE app.t (i integer);", rollback="DROP TABLE app.t;")
    plan.add("002_role", "SELECT 1;\nCREATE ROLE surefoot_test_never_made;", rollback="SELECT 1;")
    with pytest.raises(PlanError) as caught:
        perform(plan, shadow)
    assert "002_role.sql:2" in str(caught.value)
    assert applied(shadow) == []


def test_nothing_pending_needs_no_rehearsal(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_table", "CREATE TABLE app.t (i integer);", rollback="DROP TABLE app.t;")
    perform(plan, shadow)
    results = perform(plan, shadow)
    assert results["changed"] is False
    assert set(verdicts(results).values()) == {"not_applicable"}


def test_on_a_restored_shadow_the_targets_own_ledger_says_what_is_pending(
    plan: MigrationSet, database: Database, tmp_path: pathlib.Path
) -> None:
    database.query(SEED)
    plan.add("001_before", "ALTER TABLE app.notes ADD a integer;", rollback="ALTER TABLE app.notes DROP COLUMN a;")
    run(plan, database)
    role = f"surefoot_test_{database.name}"
    # A shadow with a server of its own may have what belongs to no database.
    plan.add(
        "002_pending",
        f"CREATE ROLE {role};\nCREATE INDEX by_a ON app.notes (a);\nGRANT SELECT ON app.notes TO {role};",
        rollback=f"DROP INDEX app.by_a; REVOKE SELECT ON app.notes FROM {role}; DROP ROLE {role};",
    )
    request = BackupRequest(dest=str(tmp_path / "backups"), run_id="r1", min_free=0)
    made = take_backup(ConnectionOptions.from_params(database.params), request).backup
    assert made is not None
    run_id = f"rehearsal-{database.name}"
    try:
        restored = make_shadow(
            None,
            ShadowRequest(backup=made["path"], manifest_sha256=made["manifest_sha256"], min_free=0, run_id=run_id),
        )
        options = ConnectionOptions.from_params(restored.connection)
        results = rehearse(
            load_plan(plan.path),
            options,
            RehearsalRequest(ledger_schema="surefoot", squawk="never", lock_budget=30.0, on_failure="report"),
        )
    finally:
        remove_shadow(None, ShadowRequest(run_id=run_id), socket=None)
    expected = {name: "pass" for name in CRITERIA} | {"hazards": "not_applicable", "verify": "not_applicable"}
    assert verdicts(results) == expected
    assert [item["id"] for item in results["migrations"]] == ["002_pending"]
    assert results["shadow"]["marker"]["run_id"] == run_id
    # That a copy's catalog is not its original's (owner, rights and comment of the database) is no news.
    assert results["notes"] == []
    assert applied(database) == ["001_before"]


# --- hazards ---------------------------------------------------------------------------------------------------------

needs_squawk = pytest.mark.skipif(_squawk.find_program() is None, reason="squawk is not installed: squawk-cli")


@needs_squawk
def test_hazards_carry_rule_file_and_line_and_do_not_fail_the_task(plan: MigrationSet, shadow: Database) -> None:
    plan.add(
        "001_hazard",
        "SELECT 1;\nALTER TABLE app.notes\n  ADD COLUMN required text NOT NULL DEFAULT 'x';\n"
        "ALTER TABLE app.accounts DROP COLUMN balance;",
    )
    results = perform(plan, shadow, squawk="required", on_failure="fail")
    found = evidence(results, "hazards")
    assert found["verdict"] == "fail"
    assert "ban-drop-column (001_hazard.sql:4)" in found["measured"]
    assert results["hazards"]["findings"][0]["rule"]
    assert found["source"].startswith("squawk ")


@needs_squawk
def test_a_file_without_hazards_passes(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_fine", "CREATE TABLE app.fresh (id bigint);", rollback="DROP TABLE app.fresh;")
    assert verdicts(perform(plan, shadow, squawk="required"))["hazards"] == "pass"


def test_without_squawk_hazards_are_not_measured(
    plan: MigrationSet, shadow: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.add("001_fine", "CREATE TABLE app.fresh (id bigint);", rollback="DROP TABLE app.fresh;")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EnvironmentProblem, match="pip install squawk-cli"):
        perform(plan, shadow, squawk="required")
    found = evidence(perform(plan, shadow, squawk="auto"), "hazards")
    assert (found["verdict"], found["measured"].partition(":")[0]) == ("not_measured", "squawk was not run")


# --- the module ------------------------------------------------------------------------------------------------------


def module(plan: MigrationSet, shadow: Database, *, check: bool = False, **params: t.Any) -> ModuleProcess:
    return ModuleProcess(
        module_params(plan, shadow, squawk="never", **params), check=check, module="postgresql_rehearsal"
    )


def test_the_module_fails_with_the_evidence_recorded(
    plan: MigrationSet, shadow: Database, tmp_path: pathlib.Path
) -> None:
    plan.add("001_index", "CREATE INDEX by_body ON app.notes (body);", rollback="SELECT 1;")
    run_dir = tmp_path / "run"
    outcome = module(plan, shadow, run_dir=str(run_dir), lock_budget="30s").wait()
    assert outcome.returncode == 1
    result = outcome.result
    assert result["failed"] is True
    assert result["error"]["criteria"] == ["rehearsal.rollback_catalog", "rehearsal.redeploy"]
    assert "+index app.by_body" in result["msg"]
    written = run_dir / "rehearsal.json"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    saved = json.loads(written.read_text(encoding="utf-8"))
    assert {"statements", "locks", "catalog_diff", "rollback_proof", "hazards", "seconds"} <= saved.keys()
    lines = [json.loads(line) for line in (run_dir / "evidence.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["criterion"] for line in lines] == [f"rehearsal.{name}" for name in CRITERIA]
    # What the runner says of itself is said of the shadow: a gate must not take it for production.
    assert not (run_dir / "statements.jsonl").exists()


def test_check_mode_runs_nothing(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_index", "CREATE INDEX by_body ON app.notes (body);", rollback="DROP INDEX app.by_body;")
    result = module(plan, shadow, check=True).wait().result
    assert result["changed"] is True
    assert {item["verdict"] for item in result["evidence"]} == {"not_measured"}
    assert shadow.query("SELECT 1 FROM pg_namespace WHERE nspname = 'surefoot'") == []


def test_a_signal_stops_the_rehearsal_and_leaves_no_session(plan: MigrationSet, shadow: Database) -> None:
    plan.add("001_long", "SELECT pg_sleep(60), 'rehearsed';", rollback="SELECT 1;", statement_timeout="90s")
    process = module(plan, shadow)
    wait_until(lambda: worker_running(shadow, "rehearsed"), "the statement runs", 30)
    process.kill(signal.SIGTERM)
    result = process.wait(30).result
    assert result["error"]["code"] == "interrupted"
    nothing_left(shadow)
