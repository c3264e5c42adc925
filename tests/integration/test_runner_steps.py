# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Migrations of several steps, backfills, all in one transaction, and the way back."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _backfill
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    DriftError,
    PlanError,
    SqlError,
    SqlTextError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    Background,
    MigrationSet,
    ModuleProcess,
    applied,
    attempts,
    dump,
    exists,
    fails,
    module_params,
    nothing_left,
    run,
    sessions,
    wait_until,
    worker_running,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


def progress(database: Database) -> list[tuple[t.Any, ...]]:
    return database.query("SELECT step, statement, state FROM surefoot.progress ORDER BY 1, 2")


# --- steps


def test_steps_run_in_order_and_leave_no_progress_behind(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001",
        steps=[
            "CREATE TABLE a(i int PRIMARY KEY, j int);\nINSERT INTO a SELECT g FROM generate_series(1, 100) g;",
            ("CREATE INDEX CONCURRENTLY ix ON a(j);\nVACUUM a;", False),
            {"table": "public.a", "key": "i", "set": {"j": "i * 2"}, "batch": 30},
            "ALTER TABLE a ALTER j SET NOT NULL;",
        ],
    )
    results = run(plan, database)
    assert results["applied"] == ["001"]
    assert [item["tag"] for item in results["statements"]] == [
        "CREATE TABLE", "INSERT", "CREATE INDEX CONCURRENTLY", "VACUUM", "BACKFILL 100", "ALTER TABLE",
    ]  # fmt: skip
    assert database.scalar("SELECT sum(j) FROM a") == 10100
    assert progress(database) == [] and attempts(database) == [("001", "deploy", "succeeded")]
    assert run(plan, database)["changed"] is False


def test_backfill_says_how_far_it_is(plan: MigrationSet, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backfill, "_SAY_EVERY", 0.0)
    database.query("CREATE TABLE a(i int PRIMARY KEY, j int); INSERT INTO a SELECT generate_series(1, 100)")
    database.query("ANALYZE a")
    plan.add("001", steps=[{"table": "public.a", "key": "i", "set": {"j": "1"}, "batch": 40, "pause": "30ms"}])
    said: list[str] = []
    run(plan, database, say=said.append)
    assert [line.split(",")[0] for line in said] == [
        "backfill public.a: 40 rows", "backfill public.a: 80 rows", "backfill public.a: 100 rows",
    ]  # fmt: skip
    assert "rows/s, about" in said[0] and said[0].endswith("left") and "left" not in said[2]


def test_failure_in_the_second_step_resumes_there(plan: MigrationSet, database: Database) -> None:
    plan.add("001", steps=["CREATE TABLE a(i int); INSERT INTO a VALUES (1);", "INSERT INTO a SELECT n FROM needed;"])
    assert fails(SqlError, plan, database).sqlstate == "42P01"
    assert database.query("SELECT i FROM a") == [(1,)] and applied(database) == []
    assert [(step, state) for step, _statement, state in progress(database)] == [(0, "done")]
    database.query("CREATE TABLE needed(n int); INSERT INTO needed VALUES (2)")
    assert run(plan, database, on_drift="warn")["applied"] == ["001"]
    assert database.query("SELECT i FROM a ORDER BY i") == [(1,), (2,)]


def test_step_that_was_done_and_then_changed_is_refused(plan: MigrationSet, database: Database) -> None:
    plan.add("001", steps=["CREATE TABLE a(i int);", "SELECT 1/0;"])
    fails(SqlError, plan, database)
    plan.file("001.1.sql", "CREATE TABLE a(i bigint);")
    error = fails(DriftError, plan, database)
    assert "001.1.sql was changed after a part of it was applied" in str(error) and "roll back" in error.remedy


def test_half_applied_migration_is_rolled_back_and_forgotten(plan: MigrationSet, database: Database) -> None:
    plan.add("001", steps=["CREATE TABLE a(i int);", "SELECT 1/0;"], rollback="DROP TABLE IF EXISTS a;")
    fails(SqlError, plan, database)
    results = run(plan, database, state="rolled_back", to="001")
    assert results["rolled_back"] == ["001"] and progress(database) == [] and not exists(database, "a")
    plan.file("001.2.sql", "INSERT INTO a VALUES (1);")
    assert run(plan, database)["applied"] == ["001"]
    assert database.query("SELECT i FROM a") == [(1,)]


def test_half_applied_migration_blocks_nothing_and_goes_first(plan: MigrationSet, database: Database) -> None:
    plan.add("001", steps=["CREATE TABLE a(i int);", "INSERT INTO a SELECT 1 / (SELECT count(*) FROM flag);"])
    plan.add("002", "CREATE TABLE b(i int);")
    database.query("CREATE TABLE flag(i int)")
    fails(SqlError, plan, database)
    assert not exists(database, "b")
    database.query("INSERT INTO flag VALUES (1)")
    assert run(plan, database)["applied"] == ["001", "002"]


def test_resume_outside_a_transaction_sets_the_session_up_again(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE SCHEMA app; CREATE TABLE app.t(i int); INSERT INTO app.t VALUES (1), (1)")
    plan.add(
        "001",
        "SET search_path = app;\nCREATE TABLE once(i int);\nINSERT INTO once VALUES (1);\n"
        "CREATE UNIQUE INDEX CONCURRENTLY ix ON t(i);\nCREATE TABLE late(i int);",
        transaction=False,
    )
    assert fails(SqlError, plan, database).sqlstate == "23505"
    database.query("TRUNCATE app.t")
    run(plan, database)
    assert exists(database, "app.late") and database.query("SELECT i FROM app.once") == [(1,)]


def test_statement_outside_a_transaction_that_fails_keeps_what_was_done_before(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("001", "CREATE TABLE a(i int);\nINSERT INTO a VALUES (1);\nSELECT 1 / count(*) FROM b;", transaction=False)
    database.query("CREATE TABLE b(i int)")
    error = fails(SqlError, plan, database)
    assert error.sqlstate == "22012" and "001.sql:3:1" in str(error)
    database.query("INSERT INTO b VALUES (1)")
    run(plan, database)
    assert database.query("SELECT i FROM a") == [(1,)]


def test_procedure_cut_off_in_the_middle_is_not_run_again_blindly(plan: MigrationSet, database: Database) -> None:
    database.query(
        "CREATE TABLE a(i int); CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO a VALUES (1); COMMIT;"
        " PERFORM pg_sleep(60); END $$"
    )
    plan.add("001", "CALL p();", transaction=False)
    module = ModuleProcess(module_params(plan, database))
    wait_until(lambda: worker_running(database, "CALL p"), "it runs")
    wait_until(lambda: database.scalar("SELECT count(*) FROM a") == 1, "its first part is committed")
    module.kill()
    module.wait()
    nothing_left(database)
    error = fails(SurefootError, plan, database)
    assert "cannot be told" in str(error) and "001.sql:1:1" in str(error) and "state = 'done'" in error.remedy
    assert database.scalar("SELECT count(*) FROM a") == 1
    database.query("UPDATE surefoot.progress SET state = 'done' WHERE statement >= 0")
    assert run(plan, database)["applied"] == ["001"]


# --- backfill


def rows(database: Database, count: int) -> None:
    database.query("CREATE TABLE big(id bigint PRIMARY KEY, a int, b text)")
    database.query("INSERT INTO big SELECT g, g %% 7, NULL FROM generate_series(1, %s) g", (count,))


def test_backfill_touches_exactly_the_rows_of_its_condition(plan: MigrationSet, database: Database) -> None:
    rows(database, 1000)
    plan.add(
        "001",
        steps=[{"table": "public.big", "key": "id", "set": {"b": "'v' || a"}, "where": "a < 3", "batch": 64}],
    )
    results = run(plan, database)
    assert results["statements"][-1]["tag"] == "BACKFILL 428"
    assert database.query("SELECT a < 3, count(*), count(b) FROM big GROUP BY 1 ORDER BY 1") == [
        (False, 572, 0),
        (True, 428, 428),
    ]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200])
def test_backfill_of_every_size_around_a_batch(plan: MigrationSet, database: Database, count: int) -> None:
    rows(database, count)
    plan.add("001", steps=[{"table": "public.big", "key": "id", "set": {"b": "id::text"}, "batch": 100}])
    run(plan, database)
    assert database.scalar("SELECT count(*) FROM big WHERE b = id::text") == count


def test_backfill_with_a_composite_key_of_awkward_names_and_types(plan: MigrationSet, database: Database) -> None:
    database.query(
        'CREATE SCHEMA "App"; CREATE TABLE "App"."Order Lines"("Order No" uuid, "at" timestamptz,'
        ' "code" text COLLATE "C", "Value" numeric, PRIMARY KEY ("Order No", "at", "code"));'
        ' INSERT INTO "App"."Order Lines" SELECT md5((g % 10)::text)::uuid,'
        " timestamptz '2026-01-01 00:00:00.123456+00' +"
        " g * interval '1.000001 s', repeat('x''\\', g % 3) || g, NULL FROM generate_series(1, 500) g"
    )
    plan.add(
        "001",
        steps=[
            {
                "table": '"App"."Order Lines"',
                "key": ['"Order No"', "at", "code"],
                "set": {'"Value"': 'coalesce("Value", 0) + 1'},
                "batch": 7,
            }
        ],
    )
    run(plan, database)
    assert database.query('SELECT "Value", count(*) FROM "App"."Order Lines" GROUP BY 1') == [(1, 500)]


def test_backfill_takes_variables_and_secrets(plan: MigrationSet, database: Database) -> None:
    rows(database, 50)
    plan.fields.update(variables={"who": None}, secret_variables=["key"])
    plan.add(
        "001",
        steps=[
            {
                "table": "public.big",
                "key": "id",
                "set": {"b": ":'who' || md5(:'key')", "a": "length(:'key')"},
                "batch": 20,
            }
        ],
    )
    run(plan, database, variables={"who": "it's"}, secrets={"key": "k3y with space"})
    assert database.query("SELECT DISTINCT a, b = 'it''s' || md5('k3y with space') FROM big") == [(14, True)]


def test_backfill_killed_in_the_middle_goes_on_where_it_was(plan: MigrationSet, database: Database) -> None:
    rows(database, 400)
    plan.add(
        "001",
        steps=[
            {"table": "public.big", "key": "id", "set": {"a": "a + 1000"}, "batch": 20, "pause": "50ms"},
            "CREATE TABLE finished(i int);",
        ],
    )
    for _round in range(2):
        before = database.scalar("SELECT count(*) FROM big WHERE a >= 1000")
        module = ModuleProcess(module_params(plan, database))
        goal = before + 60
        wait_until(
            lambda goal=goal: database.scalar("SELECT count(*) FROM big WHERE a >= 1000") >= goal, "it is under way"
        )
        module.kill(signal.SIGKILL)
        module.wait()
    assert 120 <= database.scalar("SELECT count(*) FROM big WHERE a >= 1000") < 400
    assert run(plan, database)["applied"] == ["001"]
    assert database.query("SELECT count(*), min(a), max(a) FROM big") == [(400, 1000, 1006)]  # each row once
    assert exists(database, "finished")


def test_backfill_and_concurrent_writers_lose_nothing(plan: MigrationSet, database: Database) -> None:
    rows(database, 600)
    database.query("ALTER TABLE big ADD hits int NOT NULL DEFAULT 0")
    plan.add("001", steps=[{"table": "public.big", "key": "id", "set": {"b": "'done'"}, "batch": 25, "pause": "5ms"}])
    job = Background(lambda: run(plan, database))
    writes = 0
    with contextlib.closing(database.connect()) as client, client.cursor() as cursor:
        while job.running or writes < 50:
            cursor.execute("UPDATE big SET hits = hits + 1 WHERE id = %s", (writes * 37 % 600 + 1,))
            writes += 1
    job.result()
    assert database.query("SELECT count(*), sum(hits) FROM big WHERE b = 'done'") == [(600, writes)]


def test_backfill_behind_a_locked_row_retries_and_names_nobody_else(plan: MigrationSet, database: Database) -> None:
    rows(database, 100)
    plan.add("001", steps=[{"table": "public.big", "key": "id", "set": {"b": "'x'"}, "batch": 40}])
    blocker = database.connect()
    with blocker.cursor() as cursor:
        cursor.execute("BEGIN; UPDATE big SET a = -1 WHERE id = 50")
        job = Background(lambda: run(plan, database, lock_timeout=0.1, retry={"attempts": 500, "max_delay": 0.1}))
        wait_until(lambda: database.scalar("SELECT count(*) FROM big WHERE b = 'x'") == 40, "the first batch is done")
        time.sleep(0.5)  # several times the lock_timeout
        cursor.execute("COMMIT")
    assert job.result()["retries"]
    assert database.query("SELECT count(*), count(b), min(a) FROM big") == [(100, 100, -1)]
    blocker.close()


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"table": "public.nope", "key": "id", "set": {"b": "1"}}, "no table public.nope"),
        ({"table": "public.big", "key": "nope", "set": {"b": "1"}}, "no column nope"),
        ({"table": "public.big", "key": "a", "set": {"b": "1"}}, "not a unique key"),
    ],
)
def test_backfill_that_cannot_be_resumed_is_refused(
    plan: MigrationSet, database: Database, step: dict[str, t.Any], words: str
) -> None:
    rows(database, 10)
    error = fails(PlanError, plan.add("001", steps=[step]), database)
    assert words in str(error) and "plan.yml:" in str(error)


def test_backfill_expression_that_fails_names_its_place(plan: MigrationSet, database: Database) -> None:
    rows(database, 10)
    plan.add("001", steps=[{"table": "public.big", "key": "id", "set": {"a": "1 / (id - 5)"}, "batch": 3}])
    error = fails(SqlError, plan, database)
    assert error.sqlstate == "22012" and "plan.yml:" in str(error)


# --- together


def test_together_is_all_or_nothing_in_one_transaction(tmp_path: pathlib.Path, database: Database) -> None:
    plan = MigrationSet(tmp_path / "set", transaction="together")
    plan.add("001", "CREATE TABLE a(i int);").add("002", "CREATE TABLE b(i int);\nSELECT 1/0;")
    error = fails(SqlError, plan, database)
    assert "002.sql:2:" in str(error)
    assert not exists(database, "a") and applied(database) == [] and error.results["applied"] == []
    plan.file("002.sql", "SET search_path = pg_catalog; SET LOCAL lock_timeout = '7ms'; CREATE TABLE public.b(i int);")
    plan.add(
        "003",
        "CREATE TABLE c AS SELECT current_setting('search_path') AS path, current_setting('lock_timeout') AS lock;",
    )
    assert run(plan, database)["applied"] == ["001", "002", "003"]
    assert database.scalar("SELECT count(DISTINCT xid::text) FROM surefoot.attempts WHERE outcome = 'succeeded'") == 1
    assert database.query("SELECT * FROM c") == [('"$user", public', "500ms")]


def test_together_keeps_the_limits_of_each_migration(tmp_path: pathlib.Path, database: Database) -> None:
    plan = MigrationSet(tmp_path / "set", transaction="together")
    plan.add("001", "CREATE TABLE a(i int);", statement_timeout="100ms").add(
        "002", "SELECT pg_sleep(0.3);", statement_timeout="20s"
    )
    assert run(plan, database)["applied"] == ["001", "002"]


def test_together_with_own_transactions_and_modes(tmp_path: pathlib.Path, database: Database) -> None:
    plan = MigrationSet(tmp_path / "set", transaction="together")
    plan.add("001", "BEGIN; CREATE TABLE a(i int); COMMIT;").add("002", "BEGIN; INSERT INTO a VALUES (1); COMMIT;")
    assert run(plan, database)["applied"] == ["001", "002"]
    plan.add(
        "003",
        "BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO a"
        " SELECT length(current_setting('transaction_isolation')); COMMIT;",
    )
    plan.add("004", "INSERT INTO a VALUES (2);")
    # The mode of one file either holds for the one transaction, or it is said that it cannot.
    try:
        run(plan, database)
    except SurefootError as exc:
        assert "003" in str(exc)
    else:
        assert database.query("SELECT i FROM a ORDER BY i") == [(1,), (2,), (len("serializable"),)]


# --- the way back


def chain(plan: MigrationSet) -> MigrationSet:
    plan.add("001", "CREATE TABLE a(i int PRIMARY KEY);", rollback="DROP TABLE a;")
    plan.add("002", "CREATE TABLE b(i int REFERENCES a);", rollback="DROP TABLE b;", requires=["001"])
    plan.add("003", "CREATE TABLE c(i int);", rollback="DROP TABLE c;")
    return plan


def test_rollback_is_newest_first_and_leaves_the_database_as_it_was(plan: MigrationSet, database: Database) -> None:
    before = dump(database)
    run(chain(plan), database)
    results = run(plan, database, state="rolled_back", to="001")
    assert results["rolled_back"] == ["003", "002", "001"] and results["applied"] == []
    assert dump(database, "--exclude-schema=surefoot") == before
    assert attempts(database)[3:] == [(name, "rollback", "succeeded") for name in ("003", "002", "001")]
    assert run(plan, database, state="rolled_back", to="001")["changed"] is False
    assert run(plan, database)["applied"] == ["001", "002", "003"]


def test_rollback_stops_at_the_named_one_and_only_takes_what_is_named(plan: MigrationSet, database: Database) -> None:
    run(chain(plan), database)
    assert run(plan, database, state="rolled_back", to="003")["rolled_back"] == ["003"]
    assert run(plan, database, state="rolled_back", only=("002",))["rolled_back"] == ["002"]
    assert applied(database) == ["001"]


def test_rollback_of_what_others_require_is_refused(plan: MigrationSet, database: Database) -> None:
    run(chain(plan), database)
    error = fails(PlanError, plan, database, state="rolled_back", only=("001",))
    assert "002 is applied and requires 001" in str(error) and "Roll back 002" in error.remedy
    assert exists(database, "a")


def test_rollback_without_a_file_or_a_goal_is_refused(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int);")
    run(plan, database)
    assert "has no rollback" in str(fails(PlanError, plan, database, state="rolled_back", to="001"))
    assert "what to roll back" in str(fails(PlanError, plan, database, state="rolled_back"))


def test_failed_rollback_leaves_the_migration_applied(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int); CREATE VIEW v AS SELECT * FROM a;", rollback="DROP TABLE a;")
    run(plan, database)
    error = fails(SqlError, plan, database, state="rolled_back", to="001")
    assert error.sqlstate == "2BP01" and "001.rollback.sql:1:1" in str(error)
    assert applied(database) == ["001"] and attempts(database)[-1] == ("001", "rollback", "failed")
    assert run(plan, database)["changed"] is False


def test_rollback_of_several_steps_resumes(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int); CREATE INDEX ix ON a(i); CREATE TABLE log(i int);")
    plan.file("back1.sql", "DROP INDEX CONCURRENTLY ix;\nINSERT INTO log VALUES (1);")
    plan.file("back2.sql", "DROP TABLE a;")
    plan.migrations[0]["rollback"] = [{"sql": "back1.sql", "transaction": False}, {"sql": "back2.sql"}]
    plan.write()
    run(plan, database)
    database.query("CREATE VIEW v AS SELECT * FROM a")
    fails(SqlError, plan, database, state="rolled_back", to="001", on_drift="warn")
    assert applied(database) == ["001"]
    database.query("DROP VIEW v")
    assert run(plan, database, state="rolled_back", to="001", on_drift="warn")["rolled_back"] == ["001"]
    assert database.query("SELECT i FROM log") == [(1,)] and not exists(database, "a") and progress(database) == []


def test_rollback_refuses_a_file_that_was_changed_after_it_was_applied(plan: MigrationSet, database: Database) -> None:
    run(chain(plan), database)
    plan.file("003.sql", "CREATE TABLE c(i bigint);")
    fails(DriftError, plan, database, state="rolled_back", to="003")
    plan.file("003.sql", "CREATE TABLE c(i int);")
    plan.file("003.rollback.sql", "DROP TABLE c;\n\\connect other")
    assert "003.rollback.sql:2:1" in str(fails(SqlTextError, plan, database, state="rolled_back", to="003"))
    assert exists(database, "c")


def test_no_session_is_left_after_success_and_failure(plan: MigrationSet, database: Database) -> None:
    run(chain(plan), database)
    plan.add("004", "SELECT 1/0;")
    fails(SqlError, plan, database)
    wait_until(lambda: not sessions(database), "the sessions have ended")


def test_an_index_on_a_table_of_the_same_transaction_is_no_blocking_lock_but_on_another_it_is(
    plan: MigrationSet, database: Database
) -> None:
    database.query("CREATE SCHEMA other; CREATE TABLE other.t (i int); CREATE TABLE old (i int)")
    plan.add("001", "CREATE TABLE t (i int);\nCREATE INDEX ON t (i);")
    plan.add("002", "CREATE TABLE fresh (i int);\nCREATE INDEX ON old (i);")
    plan.add("003", "CREATE TABLE public.u (i int);\nSET search_path = other;\nCREATE INDEX ON t (i);")
    held = [item["lock_held_seconds"] for item in run(plan, database)["migrations"]]
    assert held[0] is None
    assert held[1] is not None
    assert held[2] is not None
