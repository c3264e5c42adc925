# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reviewer broke: lost locks, half-done rollbacks, stops at the wrong moment, hostile schemas, large results."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    DriftError,
    LedgerError,
    OutcomeUnknown,
    SqlError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import advisory_key
from ansible_collections.surefoot.dbops.plugins.module_utils._process import AncestorWatch
from ansible_collections.surefoot.dbops.plugins.module_utils._watch import LockWatch
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    Background,
    MigrationSet,
    ModuleProcess,
    applied,
    attempts,
    exists,
    fails,
    module_params,
    run,
    sessions,
    wait_until,
    worker_running,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


@pytest.fixture
def role(database: Database) -> t.Iterator[str]:
    name = f"r_{database.name}"
    database.query(f"CREATE ROLE {name} LOGIN; GRANT ALL ON SCHEMA public TO {name}")
    yield name
    database.query(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def end_control(database: Database) -> None:
    """End the session that holds the runner lock."""
    (control,) = sessions(database, "surefoot:control%")
    database.query("SELECT pg_terminate_backend(%s)", (control,))
    wait_until(lambda: control not in sessions(database, "surefoot:control%"), "the control session is gone")


# --- the runner lock, lost in the middle (patch 30)

# The watch reads locks, and so notices, only after a statement that may block others.
SLEEPS = "INSERT INTO log SELECT 1 FROM pg_sleep(1.5);"


def test_lost_runner_lock_stops_before_the_next_step(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE log(step int)")
    plan.add("001", steps=[SLEEPS, "INSERT INTO log VALUES (2);", "INSERT INTO log VALUES (3);"])
    job = Background(lambda: run(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "the first step runs")
    end_control(database)
    with pytest.raises(ConnectionFailed, match="runner lock"):
        job.result()
    assert database.query("SELECT step FROM log") == [(1,)]
    assert run(plan, database)["applied"] == ["001"]
    assert database.query("SELECT step FROM log ORDER BY 1") == [(1,), (2,), (3,)]


def test_lost_runner_lock_stops_before_the_next_step_outside_a_transaction(
    plan: MigrationSet, database: Database
) -> None:
    database.query("CREATE TABLE log(step int)")
    plan.add("001", steps=[SLEEPS, ("INSERT INTO log VALUES (2);", False)])
    job = Background(lambda: run(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "the first step runs")
    end_control(database)
    with pytest.raises(ConnectionFailed, match="runner lock"):
        job.result()
    assert database.query("SELECT step FROM log") == [(1,)]


def test_rollback_whose_runner_lock_was_lost_is_not_done_twice(plan: MigrationSet, database: Database) -> None:
    """The first attempt fails for a lock, meanwhile another run rolls back; the second attempt must not do it again."""
    database.query("CREATE TABLE n(i int); INSERT INTO n VALUES (10)")
    plan.add("001", "SELECT 1;", rollback="UPDATE n SET i = i - 1;")
    run(plan, database)
    blocker = database.connect()
    with contextlib.closing(blocker), blocker.cursor() as cursor:
        cursor.execute("BEGIN; UPDATE n SET i = i")
        retry = {"attempts": 500, "max_delay": 0.5}
        job = Background(lambda: run(plan, database, state="rolled_back", to="001", lock_timeout=0.05, retry=retry))
        wait_until(lambda: worker_running(database, "UPDATE n"), "the first attempt waits")
        end_control(database)
        other = Background(lambda: run(plan, database, state="rolled_back", to="001", lock_timeout=0.4, retry=retry))
        wait_until(lambda: len(sessions(database, "surefoot:worker%")) == 1 + job.running, "the other one is at work")
        cursor.execute("COMMIT")
    with contextlib.suppress(SurefootError):
        job.result()
    with contextlib.suppress(SurefootError):
        other.result()
    assert database.query("SELECT i FROM n") == [(9,)]
    assert [row for row in attempts(database) if row[1:] == ("rollback", "succeeded")] == [
        ("001", "rollback", "succeeded")
    ]


# --- a rollback's COMMIT (patch 31)


def test_rollback_of_a_half_applied_migration_cut_before_commit_is_not_called_done(
    plan: MigrationSet, database: Database
) -> None:
    from ansible_collections.surefoot.dbops.tests.integration.test_hard_cases import CommitCutter

    plan.add("001", steps=["CREATE TABLE a(i int);", "SELECT 1/0;"], rollback="DROP TABLE a;")
    fails(SqlError, plan, database)
    with CommitCutter(database.server, "before") as proxy:
        error = fails(SqlError, plan, proxy.params(database), state="rolled_back", to="001")
        assert "nothing was committed" in str(error) and error.results["rolled_back"] == []
        assert exists(database, "a")
        assert run(plan, proxy.params(database), state="rolled_back", to="001")["rolled_back"] == ["001"]
    assert not exists(database, "a")


def test_step_whose_connection_is_cut_after_commit_goes_on(plan: MigrationSet, database: Database) -> None:
    from ansible_collections.surefoot.dbops.tests.integration.test_hard_cases import CommitCutter

    plan.add("001", steps=["CREATE TABLE a(i int);", "INSERT INTO a VALUES (1);"])
    with CommitCutter(database.server, "after") as proxy:
        assert run(plan, proxy.params(database))["applied"] == ["001"]
    assert database.query("SELECT i FROM a") == [(1,)]


# --- half a rollback (patch 32)


def half_rolled_back(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int); CREATE TABLE b(i int);")
    plan.file("back1.sql", "DROP TABLE b;")
    plan.file("back2.sql", "SELECT 1/0; DROP TABLE a;")
    plan.migrations[0]["rollback"] = [{"sql": "back1.sql"}, {"sql": "back2.sql"}]
    plan.write()
    run(plan, database)
    fails(SqlError, plan, database, state="rolled_back", to="001")
    assert exists(database, "a") and not exists(database, "b")


def test_half_a_rollback_is_not_reported_as_applied(plan: MigrationSet, database: Database) -> None:
    half_rolled_back(plan, database)
    error = fails(LedgerError, plan, database)
    assert "rollback of 001" in str(error) and "rolled_back" in error.remedy
    status = ModuleProcess(module_params(plan, database), module="postgresql_migration_info").wait().result
    assert [item["state"] for item in status["migrations"]] == ["partial"]
    verdicts = {item["criterion"]: item["verdict"] for item in status["evidence"]}
    assert verdicts["ledger.nothing_half_done"] == "fail"
    plan.file("back2.sql", "DROP TABLE a;")
    assert run(plan, database, state="rolled_back", to="001", on_drift="warn")["rolled_back"] == ["001"]
    assert run(plan, database)["applied"] == ["001"]
    assert exists(database, "b")


def test_half_applied_and_half_rolled_back_is_not_gone_on_with(plan: MigrationSet, database: Database) -> None:
    plan.add("001", steps=["CREATE TABLE a(i int);", "CREATE TABLE b(i int);", "SELECT 1/0;"])
    plan.file("back1.sql", "DROP TABLE b;")
    plan.file("back2.sql", "SELECT 1/0;")
    plan.migrations[0]["rollback"] = [{"sql": "back1.sql"}, {"sql": "back2.sql"}]
    plan.write()
    fails(SqlError, plan, database)
    fails(SqlError, plan, database, state="rolled_back", to="001")
    plan.file("001.3.sql", "SELECT 1;")
    fails(LedgerError, plan, database)
    assert applied(database) == []


# --- steps that became one file (patch 33)


def test_half_applied_migration_that_became_one_step_does_not_run_it_again(
    plan: MigrationSet, database: Database
) -> None:
    database.query("CREATE TABLE log(i int)")
    plan.add("001", steps=["INSERT INTO log VALUES (1);", "SELECT 1/0;"])
    fails(SqlError, plan, database)
    plan.add("001", steps=["INSERT INTO log VALUES (1);"])
    assert run(plan, database)["applied"] == ["001"]
    assert database.query("SELECT i FROM log") == [(1,)]
    assert database.scalar("SELECT count(*) FROM surefoot.progress") == 0


def test_half_applied_migration_that_became_another_file_is_refused(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE log(i int)")
    plan.add("001", steps=["INSERT INTO log VALUES (1);", "SELECT 1/0;"])
    fails(SqlError, plan, database)
    plan.migrations.clear()
    plan.add("001", "INSERT INTO log VALUES (1); INSERT INTO log VALUES (2);")
    fails(DriftError, plan, database)
    assert database.query("SELECT i FROM log") == [(1,)]


def test_half_applied_migration_is_not_started_over_by_together(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE log(i int)")
    plan.add("001", steps=["INSERT INTO log VALUES (1);", "SELECT 1/0;"])
    fails(SqlError, plan, database)
    plan.fields["transaction"] = "together"
    plan.add("001", steps=["INSERT INTO log VALUES (1);", "SELECT 1;"])
    error = fails(LedgerError, plan, database)
    assert "001" in str(error)
    assert database.query("SELECT i FROM log") == [(1,)]


# --- a retry of what commits by itself (patch 34)


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03"])
def test_block_that_committed_a_part_is_not_tried_again(plan: MigrationSet, database: Database, state: str) -> None:
    database.query("CREATE TABLE log(i int)")
    block = f"DO $$ BEGIN INSERT INTO log VALUES (1); COMMIT; RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$;"
    plan.add("001", block, transaction=False)
    error = fails(SqlError, plan, database, retry={"attempts": 4, "max_delay": 0.1})
    assert error.sqlstate == state
    assert database.scalar("SELECT count(*) FROM log") == 1
    fails(OutcomeUnknown, plan, database)
    assert database.scalar("SELECT count(*) FROM log") == 1


# --- one step outside a transaction after another (patch 35)


def test_step_outside_a_transaction_does_not_meet_its_own_predecessor(plan: MigrationSet, database: Database) -> None:
    """A session with many temporary tables takes its time to end, and keeps its locks until then."""
    many = (
        "DO $$ BEGIN FOR i IN 1..1500 LOOP EXECUTE format('CREATE TEMPORARY TABLE t%s(i int PRIMARY KEY, t text)', i);"
        " IF i % 50 = 0 THEN COMMIT; END IF; END LOOP; END $$;"
    )
    plan.add("001", steps=[(many, False), ("SELECT 1;", False), "SELECT 2;"])
    results = run(plan, database, retry={"attempts": 1})
    assert results["applied"] == ["001"] and results["retries"] == []


# --- hostile schema (patch 36)


def test_operator_of_another_role_does_not_run_with_the_ledgers_rights(
    plan: MigrationSet, database: Database, role: str
) -> None:
    """The file works as a lesser role with public before pg_catalog, as old pg_dump wrote it; the ledger does not."""
    database.query("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with contextlib.closing(database.connect(user=role)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE seen(who text); GRANT INSERT ON seen TO PUBLIC;"
            " CREATE FUNCTION public.trap(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO public.seen VALUES (current_user); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;"
            " CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.trap)"
        )
    plan.add("001", "SELECT 1;", rollback=f"SET ROLE {role}; SET search_path = public, pg_catalog; SELECT 1;")
    run(plan, database)
    run(plan, database, state="rolled_back", to="001")
    assert database.query("SELECT DISTINCT who FROM seen WHERE who <> %s", (role,)) == []
    database.query("DROP OPERATOR public.= (text, text)")


# --- a stop when a statement is just done (patch 37)


def test_stop_at_the_end_of_a_block_that_committed_does_not_leave_its_outcome_open(
    plan: MigrationSet, database: Database
) -> None:
    """The block swallows the cancel and ends well: the server has said so, so its record must be written."""
    database.query("CREATE TABLE log(i int)")
    plan.add(
        "001",
        "DO $$ BEGIN INSERT INTO log VALUES (1); COMMIT;"
        " BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END $$;"
        "\nINSERT INTO log VALUES (2);",
        transaction=False,
        statement_timeout="2m",
    )
    module = ModuleProcess(module_params(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "the block sleeps")
    module.kill(signal.SIGTERM)
    assert module.wait().result["error"]["code"] == "interrupted"
    assert run(plan, database)["applied"] == ["001"]
    assert database.query("SELECT i FROM log ORDER BY i") == [(1,), (2,)]


# --- large results (patch 38)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_rows_of_a_query(plan: MigrationSet, database: Database) -> None:
    from ansible_collections.surefoot.dbops.tests.integration.test_hard_cases import _MB, _measured

    database.query(
        "CREATE SEQUENCE s; CREATE TABLE big AS SELECT i, repeat('x', 400) AS t FROM generate_series(1, 150000) i"
    )
    plan.add("001", "SELECT 1;")
    small, _backend, _result = _measured(ModuleProcess(module_params(plan, database)), database)
    plan.add(
        "002",
        "SELECT *, nextval('s') FROM big -- all of it\n; TABLE big; WITH w AS (SELECT * FROM big) SELECT * FROM w;",
    )
    plan.add("003", "SELECT * FROM big;", transaction=False)
    runner, _backend, result = _measured(ModuleProcess(module_params(plan, database)), database)
    assert result["applied"] == ["002", "003"], result
    assert database.scalar("SELECT last_value FROM s") == 150000
    assert runner - small < 20 * _MB


@pytest.mark.parametrize(
    "text",
    [
        "SELECT i INTO copied FROM a;",
        "WITH x AS (INSERT INTO a VALUES (2) RETURNING i) SELECT i FROM x;",
        "SELECT i FROM a FOR UPDATE;",
        "(SELECT i FROM a) UNION ALL (SELECT 1);",
        'SELECT \'into\', "insert" FROM (SELECT i AS "insert" FROM a) s;',
        "VALUES (1), (2);",
        "SELECT i FROM a; -- end",
        "DECLARE c CURSOR FOR SELECT i FROM a; FETCH ALL FROM c; SELECT i FROM a; CLOSE c;",
    ],
)
def test_queries_of_every_form_run(plan: MigrationSet, database: Database, text: str) -> None:
    database.query("CREATE TABLE a(i int); INSERT INTO a VALUES (1)")
    assert run(plan.add("001", text), database)["applied"] == ["001"]


def test_error_in_a_query_names_its_place(plan: MigrationSet, database: Database) -> None:
    error = fails(SqlError, plan.add("001", "CREATE TABLE a(i int);\nSELECT i,\n  nope FROM a;"), database)
    assert "001.sql:3:3" in str(error) and "in: SELECT i," in str(error)
    error = fails(
        SqlError, plan.add("001", "CREATE TABLE a(i int); INSERT INTO a VALUES (0);\nSELECT 1/i FROM a;"), database
    )
    assert "001.sql:2:1" in str(error) and error.sqlstate == "22012"


# --- nohup (patch 39)


def test_hang_up_that_the_caller_ignores_does_not_stop_a_run(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "SELECT pg_sleep(1.5); CREATE TABLE a(i int);")
    module = ModuleProcess(module_params(plan, database), hangup=signal.SIG_IGN)
    wait_until(lambda: worker_running(database, "pg_sleep"), "it sleeps")
    module.kill(signal.SIGHUP)
    assert module.wait().result["applied"] == ["001"]


# --- the catalog mark (patch 41)


def test_failed_second_part_of_a_run_keeps_the_mark_of_the_first(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int);")
    run(plan, database, run_id="A")
    plan.add("002", "CREATE TABLE b(i int);")
    run(plan, database, run_id="B")
    plan.add("003", "SELECT 1/0;")
    fails(SqlError, plan, database, run_id="B")
    plan.add("003", "SELECT 1;")
    assert run(plan, database, run_id="C")["applied"] == ["003"]


# --- the run directory (patch 42)


def test_run_directory_that_cannot_be_written_does_not_hide_what_was_done(
    plan: MigrationSet, database: Database, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    run_dir = str(tmp_path / "file" / "run")
    results = run(plan.add("001", "CREATE TABLE a(i int);"), database, run_dir=run_dir)
    assert results["applied"] == ["001"] and results["changed"]
    assert any(run_dir in note for note in results["notes"])
    error = fails(SqlError, plan.add("002", "SELECT 1/0;"), database, run_dir=run_dir)
    assert error.sqlstate == "22012" and error.results["pending"] == ["002"]


# --- evidence of steps (patch 43)


def test_lock_hold_and_attempts_of_every_step_count(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE a(i int); CREATE TABLE busy(i int)")
    plan.add(
        "001", steps=["LOCK TABLE busy; ALTER TABLE a ADD COLUMN b int; SELECT pg_sleep(0.2);", ("SELECT 1;", False)]
    )
    blocker = database.connect()
    with contextlib.closing(blocker), blocker.cursor() as cursor:
        cursor.execute("BEGIN; INSERT INTO busy VALUES (1)")
        job = Background(lambda: run(plan, database, lock_timeout=0.1))
        wait_until(lambda: worker_running(database, "LOCK TABLE"), "it waits")
        time.sleep(0.3)
        cursor.execute("COMMIT")
    (item,) = job.result()["migrations"]
    assert item["lock_held_seconds"] >= 0.2 and item["attempts"] > 1
    assert any(record["criterion"] == "migration.lock_budget" for record in job.result()["evidence"])


def test_lock_hold_of_a_statement_on_its_own_counts(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE a(i int); INSERT INTO a VALUES (1)")
    plan.add(
        "001",
        "ALTER TABLE a ALTER COLUMN i TYPE int USING i + (SELECT count(*) FROM (SELECT pg_sleep(0.2)) x);".replace(
            "(SELECT count(*) FROM (SELECT pg_sleep(0.2)) x)", "length(pg_sleep(0.2)::text)"
        ),
        transaction=False,
    )
    (item,) = run(plan, database)["migrations"]
    assert item["lock_held_seconds"] is not None and item["lock_held_seconds"] >= 0.2


# --- orphans (patch 44)


def test_orphan_is_terminated_although_other_runs_are_not_waited_for(plan: MigrationSet, database: Database) -> None:
    orphan = database.connect()
    with contextlib.closing(orphan), orphan.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (advisory_key("surefoot", "worker"),))
        # Ending takes its time, and the locks last until then.
        for _batch in range(30):
            cursor.execute(
                f"DO $$ BEGIN FOR i IN 1..50 LOOP EXECUTE"
                f" format('CREATE TEMPORARY TABLE t{_batch}_%s(i int PRIMARY KEY)', i); END LOOP; END $$"
            )
        plan.add("001", "CREATE TABLE a(i int);")
        assert run(plan, database, on_busy="fail", on_orphan="terminate")["applied"] == ["001"]


def test_discard_in_a_file_does_not_drop_the_worker_lock(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001", "DISCARD ALL; SELECT pg_advisory_unlock_all(); CALL p();", transaction=False, statement_timeout="2m"
    )
    database.query("CREATE PROCEDURE p() LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); END'")
    module = ModuleProcess(module_params(plan, database))
    wait_until(lambda: worker_running(database, "CALL"), "it works")
    key = advisory_key("surefoot", "worker")
    free = database.scalar("SELECT pg_try_advisory_lock(%s)", (key,))
    module.kill(signal.SIGTERM)
    module.wait()
    assert not free


# --- session set up by a function (patch 45)


def test_resume_sets_the_session_up_again_when_a_function_did_it(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE SCHEMA app; CREATE TABLE app.t(i int); CREATE TABLE public.t(i int)")
    text = (
        "SELECT pg_catalog.set_config('search_path', 'app', false);\nINSERT INTO t VALUES ({});\n"
        "CREATE INDEX CONCURRENTLY j ON t (i);"
    )
    plan.add("001", text.format("1/(SELECT count(*) FROM public.ready)"), transaction=False)
    database.query("CREATE TABLE public.ready(i int)")
    fails(SqlError, plan, database)
    database.query("INSERT INTO public.ready VALUES (1)")
    assert run(plan, database)["applied"] == ["001"]
    assert database.query("SELECT (SELECT count(*) FROM app.t), (SELECT count(*) FROM public.t)") == [(1, 0)]
    assert exists(database, "app.j") and not exists(database, "public.j")


# --- blocking statements outside a transaction (patch 46)


def test_vacuum_full_does_not_queue_the_clients_behind_it(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE a(i int)")
    plan.add("001", "VACUUM FULL a;", transaction=False)
    reader = database.connect()
    with contextlib.closing(reader), reader.cursor() as cursor:
        cursor.execute("BEGIN; SELECT * FROM a")
        error = fails(
            SqlError, plan, database, lock_timeout=0.2, retry={"attempts": 2, "max_delay": 0.1, "deadline": 20.0}
        )
        assert error.sqlstate == "55P03"
        cursor.execute("COMMIT")
    assert run(plan, database)["applied"] == ["001"]


# --- statements that the server refused (patch 47)


def test_database_that_was_there_before_is_never_taken_for_ours(plan: MigrationSet, database: Database) -> None:
    name = f"x_{database.name}"
    database.query(f"CREATE DATABASE {name}")
    try:
        plan.add("001", f"CREATE DATABASE {name};", transaction=False)
        for _time in range(2):
            assert fails(SqlError, plan, database).sqlstate == "42P04"
        assert applied(database) == []
    finally:
        database.query(f"DROP DATABASE {name}")
    plan.add("001", f"DROP DATABASE {name};", transaction=False)
    run(plan, database, state="rolled_back", to="001") if applied(database) else None


def test_drop_of_a_database_that_never_was_is_an_error_each_time(plan: MigrationSet, database: Database) -> None:
    plan.add("001", f"DROP DATABASE x_{database.name};", transaction=False)
    for _time in range(2):
        assert fails(SqlError, plan, database).sqlstate == "3D000"


# --- messages (patch 48)


def test_remedy_for_an_open_outcome_touches_only_its_own_record(plan: MigrationSet, database: Database) -> None:
    block = "DO $$ BEGIN COMMIT; RAISE EXCEPTION 'x'; END $$;"
    plan.add("001", block, transaction=False)
    other = MigrationSet(plan.directory.parent / "other", name="other").add("001", block, transaction=False)
    for each in (plan, other):
        fails(SqlError, each, database, ledger_schema="Mixed")
    error = fails(OutcomeUnknown, plan, database, ledger_schema="Mixed")
    update = re.search(r"UPDATE .*(?=\.)", error.remedy)
    assert update
    database.query(update.group().rstrip("."))
    rows = database.query('SELECT set_name, state FROM "Mixed".progress WHERE statement >= 0 ORDER BY 1')
    assert rows == [("other", "intended"), ("set", "done")]


# --- a late cancel (patch 49)


def test_cancel_for_one_transaction_never_hits_the_next(database: Database) -> None:
    """The watch decides about one transaction while it ends; the scheduler lets the next begin before it acts."""
    database.query("CREATE TABLE a(i int)")
    worker, control = database.connect(), database.connect()
    hits: list[int] = []
    current = [0]

    class Slow(LockWatch):
        def remaining(self) -> float | None:
            left = super().remaining()
            if left is not None and left < 0 and not reached:
                reached.append(1)
                time.sleep(0.5)
            return left

    reached: list[int] = []
    with (
        contextlib.closing(worker),
        contextlib.closing(control),
        worker.cursor() as cursor,
        Slow(control, 0.05, lambda: hits.append(current[0])) as watch,
    ):
        current[0] = 1
        watch.begin(worker.info.backend_pid, enforce=True)
        cursor.execute("BEGIN; LOCK TABLE a")
        with watch.statement(may_block=True):
            wait_until(lambda: reached, "the watch decides")
        cursor.execute("COMMIT")
        watch.end()
        current[0] = 2
        watch.begin(worker.info.backend_pid, enforce=True)
        with watch.statement(may_block=False):
            time.sleep(0.8)
        watch.end()
        over = watch.over_budget
    assert 2 not in hits and not over


# --- ancestors (patch 50)


def test_only_a_program_of_ansible_counts_as_the_controller(tmp_path: pathlib.Path) -> None:
    """A login as user ansible that ends (sshd: ansible@pts/0) is no reason to stop what runs on under nohup."""
    code = (
        "import os, sys, time\n"
        "if os.fork():\n time.sleep(1.0); os._exit(0)\n"  # the login
        "if os.fork():\n time.sleep(6); os._exit(0)\n"  # ansible-playbook's place
        "sys.path.insert(0, sys.argv[1])\n"
        "from ansible_collections.surefoot.dbops.plugins.module_utils._process import AncestorWatch\n"
        "watch = AncestorWatch(); time.sleep(2.0); open(sys.argv[2], 'w').write(repr(watch.lost()))\n"
    )
    from ansible_collections.surefoot.dbops.tests.support.migrations import TREE

    out = tmp_path / "out"
    subprocess.run(
        [
            "bash",
            "-c",
            f'exec -a \'sshd: ansible@pts/0\' {sys.executable} -c "$1" "$2" "$3"',
            "x",
            code,
            str(TREE),
            str(out),
        ],
        check=False,
    )
    wait_until(lambda: out.exists() and out.read_text(), "the grandchild has looked")
    assert out.read_text() == "None"
    assert isinstance(AncestorWatch().lost(), type(None))


# --- info (patch 51)


def test_info_of_a_ledger_that_may_not_be_read_wholly_is_one_line(
    plan: MigrationSet, database: Database, role: str
) -> None:
    run(plan.add("001", "SELECT 1;"), database)
    database.query(
        f"GRANT USAGE ON SCHEMA surefoot TO {role};"
        f" GRANT SELECT ON surefoot.meta, surefoot.applied, surefoot.progress, surefoot.runs TO {role}"
    )
    params = {**module_params(plan, database), "login_user": role}
    outcome = ModuleProcess(params, module="postgresql_migration_info").wait()
    assert outcome.result["failed"] and "attempts" in outcome.result["msg"] and "GRANT" in outcome.result["msg"]
    assert "Traceback" not in outcome.stderr
