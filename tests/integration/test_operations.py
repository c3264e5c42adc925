# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declared operations on a real server: done, verified, resumed, undone, and what they lock."""

from __future__ import annotations

import contextlib
import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SqlError, VerificationFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._rehearsal import RehearsalRequest, rehearse
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    Background,
    MigrationSet,
    ModuleProcess,
    applied,
    dump,
    exists,
    fails,
    module_params,
    nothing_left,
    run,
    run_module,
    wait_until,
    worker_running,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

pytestmark = pytest.mark.versions

SEED = """
CREATE SCHEMA app;
CREATE TABLE app.parents (id integer PRIMARY KEY, code text);
CREATE TABLE app."Children" (id integer PRIMARY KEY, parent integer, "Note" text);
INSERT INTO app.parents SELECT n, 'p' || n FROM generate_series(1, 20) AS n;
INSERT INTO app."Children" SELECT n, 1 + n % 20, 'n' || n FROM generate_series(1, 200) AS n;
"""
CHILDREN = 'app."Children"'
INDEX = {"create_index": {"table": CHILDREN, "name": "children_parent", "columns": "parent"}}
FOREIGN_KEY = {
    "add_foreign_key": {
        "table": CHILDREN,
        "name": "children_parent_fk",
        "columns": ["parent"],
        "references": {"table": "app.parents", "columns": ["id"]},
        "on_delete": "cascade",
        "deferrable": True,
        "initially": "deferred",
    }
}
NOT_NULL = {"set_not_null": {"table": CHILDREN, "column": "parent"}}


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


@pytest.fixture
def app(database: Database) -> Database:
    database.query(SEED)
    return database


def schema(database: Database) -> str:
    return dump(database, "--schema-only", "--exclude-schema=surefoot")


def state(database: Database) -> dict[str, t.Any]:
    return {
        "index": database.query(
            "SELECT indisvalid, indisready, pg_get_indexdef(indexrelid) FROM pg_index"
            " WHERE indexrelid = to_regclass('app.children_parent')"
        ),
        "constraints": database.query(
            "SELECT conname, convalidated, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = 'app.\"Children\"'::regclass AND contype IN ('f', 'c') ORDER BY 1"
        ),
        "not_null": database.scalar(
            "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'app.\"Children\"'::regclass AND attname = 'parent'"
        ),
    }


DONE = {
    "index": [(True, True, 'CREATE INDEX children_parent ON app."Children" USING btree (parent)')],
    "constraints": [
        (
            "children_parent_fk",
            True,
            "FOREIGN KEY (parent) REFERENCES app.parents(id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED",
        )
    ],
    "not_null": True,
}
UNTOUCHED = {"index": [], "constraints": [], "not_null": False}


def test_operations_are_done_verified_and_undone(plan: MigrationSet, app: Database) -> None:
    before = schema(app)
    plan.add("001", steps=[INDEX, FOREIGN_KEY, NOT_NULL])
    results = run(plan, app)
    assert results["applied"] == ["001"] and state(app) == DONE
    assert [check["passed"] for check in results["checks"]] == [True, True, True]
    assert app.scalar("SELECT count(*) FROM surefoot.progress") == 0
    text = app.scalar("SELECT executed_text FROM surefoot.attempts")
    assert "CREATE INDEX CONCURRENTLY" in text and "NOT VALID" in text and "VALIDATE CONSTRAINT" in text
    again = run(plan, app)
    assert again["changed"] is False and again["drift"] == []
    back = run(plan, app, state="rolled_back", to="001")
    assert back["rolled_back"] == ["001"] and state(app) == UNTOUCHED and schema(app) == before
    assert run(plan, app)["applied"] == ["001"] and state(app) == DONE


def test_check_mode_shows_the_sql_and_does_nothing(plan: MigrationSet, app: Database) -> None:
    plan.add("001", steps=[INDEX, FOREIGN_KEY, NOT_NULL])
    outcome = run_module(plan, app, check=True, diff=True)
    assert outcome.returncode == 0 and outcome.result["changed"] is True
    after = outcome.result["diff"]["after"]
    assert "create_index app.Children.children_parent" in after
    assert 'VALIDATE CONSTRAINT "children_parent_fk"' in after
    assert state(app) == UNTOUCHED and applied(app) == []


def test_each_part_takes_the_documented_locks(plan: MigrationSet, app: Database) -> None:
    """docs/online-changes.md says which locks; only short statements may take one that blocks."""
    plan.add("001", steps=[INDEX, FOREIGN_KEY, NOT_NULL])
    request = RehearsalRequest(ledger_schema="surefoot", shadow="any", squawk="never", lock_budget=30.0)
    results = rehearse(load_plan(plan.path), ConnectionOptions.from_params(app.params), request)
    deploy = [lock for lock in results["locks"] if lock["phase"] == "deploy" and lock["blocks"]]
    found = {(lock["file"], lock["tag"], lock["relation"], lock["mode"]) for lock in deploy}
    fk, nn = "add_foreign_key app.Children.children_parent_fk", "set_not_null app.Children.parent"
    assert found == {
        (fk, "ALTER TABLE", "app.Children", "SHARE ROW EXCLUSIVE"),
        (fk, "ALTER TABLE", "app.parents", "SHARE ROW EXCLUSIVE"),
        (nn, "ALTER TABLE", "app.Children", "ACCESS EXCLUSIVE"),
        (f"{nn}: not null", "ALTER TABLE", "app.Children", "ACCESS EXCLUSIVE"),
    }
    assert {item["criterion"]: item["verdict"] for item in results["evidence"]}["rehearsal.rollback_catalog"] == "pass"


# --- what is there already is not taken for ours


def test_index_of_that_name_is_an_error_and_stays(plan: MigrationSet, app: Database) -> None:
    app.query('CREATE INDEX children_parent ON app."Children" ("Note")')
    plan.add("001", steps=[INDEX])
    error = fails(SqlError, plan, app)
    assert error.sqlstate == "42P07"
    assert run(plan, app, state="rolled_back", to="001")["rolled_back"] == ["001"]
    assert exists(app, "app.children_parent")


def test_constraint_of_that_name_is_an_error_and_stays(plan: MigrationSet, app: Database) -> None:
    app.query('ALTER TABLE app."Children" ADD CONSTRAINT children_parent_fk CHECK (id > 0)')
    plan.add("001", steps=[INDEX, FOREIGN_KEY])
    assert fails(SqlError, plan, app).sqlstate == "42710"
    # The index is of this migration and goes; the constraint is not.
    run(plan, app, state="rolled_back", to="001")
    assert [row[0] for row in state(app)["constraints"]] == ["children_parent_fk"]
    assert not exists(app, "app.children_parent")


def test_column_that_is_not_null_already_is_refused_and_stays_so(plan: MigrationSet, app: Database) -> None:
    app.query('ALTER TABLE app."Children" ALTER parent SET NOT NULL')
    plan.add("001", steps=[INDEX, NOT_NULL])
    error = fails(SqlError, plan, app)
    assert error.sqlstate == "55000" and "app.Children.parent is NOT NULL already" in str(error)
    run(plan, app, state="rolled_back", to="001")
    assert state(app)["not_null"] is True and not exists(app, "app.children_parent")


def test_other_index_under_the_name_fails_the_check(plan: MigrationSet, app: Database) -> None:
    """An index that somebody made while the migration was half done is not what the plan declares."""
    plan.add("001", steps=[INDEX, NOT_NULL])
    app.query('UPDATE app."Children" SET parent = NULL WHERE id = 1')
    assert fails(SqlError, plan, app).sqlstate == "23514"
    app.query(
        'UPDATE app."Children" SET parent = 1 WHERE id = 1; DROP INDEX app.children_parent;'
        ' CREATE INDEX children_parent ON app."Children" (parent) WHERE id > 5'
    )
    error = fails(VerificationFailed, plan, app, on_drift="warn")
    assert "index children_parent is valid and as declared" in str(error)
    assert applied(app) == []


# --- dirty data


def test_orphans_fail_the_validation_and_the_next_run_goes_on(plan: MigrationSet, app: Database) -> None:
    app.query('UPDATE app."Children" SET parent = 999 WHERE id IN (3, 4)')
    plan.add("001", steps=[INDEX, FOREIGN_KEY, NOT_NULL])
    assert fails(SqlError, plan, app).sqlstate == "23503"
    assert state(app)["constraints"][0][1] is False  # new rows are held to it already
    app.query('UPDATE app."Children" SET parent = 1 WHERE parent = 999')
    assert run(plan, app)["applied"] == ["001"] and state(app) == DONE


def test_duplicates_leave_no_invalid_index_behind_a_rollback(plan: MigrationSet, app: Database) -> None:
    before = schema(app)
    plan.add("001", steps=[{"create_index": {**INDEX["create_index"], "unique": True}}])
    assert fails(SqlError, plan, app).sqlstate == "23505"
    assert state(app)["index"][0][0] is False
    run(plan, app, state="rolled_back", to="001")
    assert schema(app) == before


# --- under load, killed


def test_short_lock_waits_are_tried_again(plan: MigrationSet, app: Database) -> None:
    plan.add("001", steps=[FOREIGN_KEY, NOT_NULL], lock_timeout="50ms", retry={"attempts": 100, "max_delay": "100ms"})
    with contextlib.closing(app.connect()) as idle:
        idle.autocommit = False
        idle.cursor().execute('UPDATE app."Children" SET "Note" = $$x$$ WHERE id = 1')
        running = Background(lambda: run(plan, app))
        wait_until(lambda: worker_running(app, "ADD CONSTRAINT"), "it waits for the lock")
        # A client that comes later is held up for no longer than lock_timeout.
        with contextlib.closing(app.connect()) as client, client.cursor() as cursor:
            cursor.execute("SET lock_timeout = '5s'")
            cursor.execute('UPDATE app."Children" SET "Note" = $$y$$ WHERE id = 2')
        idle.commit()
        results = running.result()
    assert results["retries"] and state(app)["not_null"] is True


def test_killed_while_it_builds_the_index_the_next_run_finishes(plan: MigrationSet, app: Database) -> None:
    app.query(
        "CREATE FUNCTION app.slow(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS"
        " $$ BEGIN PERFORM pg_sleep(0.02); RETURN $1; END $$;"
    )
    index = {"create_index": {"table": CHILDREN, "name": "children_parent", "expression": "app.slow(parent)"}}
    plan.add("001", steps=[index, FOREIGN_KEY])
    process = ModuleProcess(module_params(plan, app))
    try:
        wait_until(lambda: worker_running(app, "CREATE INDEX CONCURRENTLY"), "it builds the index", 40)
    finally:
        process.kill()
        process.wait()
    nothing_left(app)
    assert run(plan, app)["applied"] == ["001"]
    assert state(app)["constraints"] == DONE["constraints"] and state(app)["index"][0][0] is True
    run(plan, app, state="rolled_back", to="001")
    assert state(app) == UNTOUCHED


def test_killed_between_adding_and_validating_the_next_run_finishes(plan: MigrationSet, app: Database) -> None:
    app.query('UPDATE app."Children" SET parent = 999 WHERE id = 3')
    plan.add("001", steps=[FOREIGN_KEY, NOT_NULL])
    fails(SqlError, plan, app)
    app.query('UPDATE app."Children" SET parent = 1 WHERE id = 3')
    with contextlib.closing(app.connect()) as holder:
        holder.autocommit = False
        holder.cursor().execute("LOCK TABLE app.parents IN EXCLUSIVE MODE")
        process = ModuleProcess(module_params(plan, app))
        try:
            wait_until(lambda: worker_running(app, "VALIDATE CONSTRAINT"), "it validates", 40)
        finally:
            process.kill()
            process.wait()
    nothing_left(app)
    assert state(app)["constraints"][0][1] is False
    assert run(plan, app)["applied"] == ["001"] and state(app) == {**DONE, "index": []}


def test_rollback_that_was_killed_goes_on(plan: MigrationSet, app: Database) -> None:
    before = schema(app)
    plan.add("001", steps=[INDEX, FOREIGN_KEY, NOT_NULL])
    run(plan, app)
    with contextlib.closing(app.connect()) as reader:
        reader.autocommit = False
        reader.cursor().execute("SELECT 1 FROM app.parents")  # the foreign key cannot be dropped meanwhile
        process = ModuleProcess(module_params(plan, app, state="rolled_back", to="001"))
        wait_until(lambda: worker_running(app, "DROP CONSTRAINT"), "it drops the foreign key", 40)
        wait_until(lambda: not state(app)["not_null"], "the first part is undone")
        process.kill()
        process.wait()
    nothing_left(app)
    assert run(plan, app, state="rolled_back", to="001")["rolled_back"] == ["001"]
    assert schema(app) == before
