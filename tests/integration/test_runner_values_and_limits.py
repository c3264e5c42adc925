# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values in SQL text, and the limits of time and locks."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import typing as t

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    PlanError,
    SqlError,
    SqlTextError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    Background,
    MigrationSet,
    applied,
    exists,
    fails,
    run,
    wait_until,
    worker_running,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer

BRIEF = {"attempts": 3, "max_delay": 0.2, "deadline": 10.0}


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


# --- variables

HOSTILE = [
    "'; DROP TABLE victim; --",
    "\\'; DROP TABLE victim; --",
    'it\'s "quoted" \\ back\\\\slash',
    "$$ ; $x$ COMMIT; $x$",
    "first\nsecond\r\nthird\ttab",
    "ünïcödé \U0001f600 \u202e end",
    ":'other' :other %s %(x)s {{ x }}",
    "",
    "/* -- */",
]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("strings", ["on", "off"])
def test_literal_arrives_exactly_and_nothing_of_it_is_executed(
    plan: MigrationSet, database: Database, value: str, strings: str
) -> None:
    database.query("CREATE TABLE victim(i int); CREATE TABLE got(v text)")
    plan.add("001", f"SET standard_conforming_strings = {strings};\nINSERT INTO got VALUES (:'value');")
    run(plan, database, variables={"value": value})
    assert database.query("SELECT v FROM got") == [(value,)]
    assert exists(database, "victim")


@pytest.mark.parametrize("name", ['odd "name"', "semi;colon", "Mixed Case", "select", "ünï", "a'b"])
def test_identifier_is_quoted(plan: MigrationSet, database: Database, name: str) -> None:
    plan.add("001", 'CREATE TABLE :"name"(i int); INSERT INTO :"name" VALUES (1);')
    run(plan, database, variables={"name": name})
    assert database.query("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [(name,)]


def test_plain_reference_takes_numbers_and_booleans_only(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a AS SELECT :number AS n, :flag AS f, :'number'::text AS t LIMIT :number;")
    run(plan, database, variables={"number": 42, "flag": True})
    assert database.query("SELECT * FROM a") == [(42, True, "42")]
    plan.add("002", "CREATE TABLE b AS\nSELECT :text;")
    error = fails(SurefootError, plan, database, variables={"number": 42, "flag": True, "text": "1; DROP TABLE a"})
    assert "002.sql:2:8" in str(error) and ":'text'" in (error.remedy or "")
    assert exists(database, "a") and not exists(database, "b")


def test_values_of_other_types(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a AS SELECT :'missing'::text AS m, :'list'::text AS l, :'number'::numeric AS n;")
    try:
        run(plan, database, variables={"missing": None, "list": ["a", "b"], "number": 1.5})
    except SurefootError as exc:
        assert "missing" in str(exc) or "list" in str(exc)
        assert exc.remedy
    else:
        assert database.scalar("SELECT m FROM a") is None


def test_undefined_variable_is_an_error_with_its_place_before_anything_runs(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("000", "CREATE TABLE earlier(i int);").add(
        "001", "CREATE TABLE a(i int);\nINSERT INTO a VALUES (:'nope');"
    )
    error = fails(SurefootError, plan, database)
    assert "nope" in str(error) and "001.sql" in str(error) and "variables" in error.remedy
    assert not exists(database, "earlier")
    assert "001.sql:2:" in str(error), "the place of the reference"


def test_declared_variable_without_value_is_an_error(plan: MigrationSet, database: Database) -> None:
    plan.fields["variables"] = {"who": None, "level": 3}
    plan.add("001", "CREATE TABLE a AS SELECT :'who'::text AS who, :level AS level;")
    assert "who" in str(fails(PlanError, plan, database))
    run(plan, database, variables={"who": "x"})
    assert database.query("SELECT * FROM a") == [("x", 3)]


def test_casts_array_slices_and_times_are_not_variables(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001",
        "CREATE TABLE a AS SELECT '1'::int AS i, (ARRAY[1,2,3])[1:2] AS s, '10:30'::time AS t, ':x' AS x, $$:y$$ AS y;",
    )
    run(plan, database)
    assert database.scalar("SELECT s FROM a") == [1, 2]


# --- secret variables

SECRET = "s3cr3t 'quoted' \\ \t\n ünï :'x' \U0001f511"


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO kept VALUES (md5(:'key'))",
        "UPDATE kept SET v = md5(:'key')",
        "INSERT INTO kept SELECT md5(:'key') FROM generate_series(1, 1)",
        "WITH k AS (SELECT :'key' AS k) INSERT INTO kept SELECT md5(k) FROM k",
        "DELETE FROM kept WHERE :'key' IS NOT NULL; INSERT INTO kept VALUES (md5(:'key'))",
    ],
)
@pytest.mark.parametrize("transaction", [True, False])
def test_secret_is_usable_where_a_subquery_can_stand(
    plan: MigrationSet, database: Database, statement: str, transaction: bool
) -> None:
    database.query("CREATE TABLE kept(v text); INSERT INTO kept VALUES ('')")
    plan.fields["secret_variables"] = ["key"]
    plan.add("001", f"{statement};", transaction=transaction)
    run(plan, database, secrets={"key": SECRET})
    assert database.scalar("SELECT bool_or(v = md5(%s)) FROM kept", (SECRET,)) is True
    text = database.scalar("SELECT executed_text FROM surefoot.attempts WHERE outcome = 'succeeded'")
    assert ":'key'" in text and "s3cr3t" not in text


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE ROLE x PASSWORD :'key'",
        "ALTER TABLE kept ALTER v SET DEFAULT :'key'",
        "CREATE TABLE leak AS SELECT :'key'",
        "CREATE VIEW leak AS SELECT :'key'",
        "COPY kept TO :'key'",
        "SET app.key = :'key'",
        "DO :'key'",
        "COMMENT ON TABLE kept IS :'key'",
        'INSERT INTO :"key" VALUES (1)',
        "INSERT INTO kept VALUES (:key)",
    ],
)
def test_secret_is_refused_elsewhere_with_its_place(plan: MigrationSet, database: Database, statement: str) -> None:
    database.query("CREATE TABLE kept(v text)")
    plan.fields["secret_variables"] = ["key"]
    plan.add("001", f"INSERT INTO kept VALUES ('before');\n{statement};")
    error = fails(SqlTextError, plan, database, secrets={"key": "s3cr3t-value"})
    assert "key" in str(error) and "001.sql:2:" in str(error) and error.remedy
    assert "s3cr3t-value" not in str(error)
    assert database.scalar("SELECT count(*) FROM kept") == 0


def test_secret_in_a_plain_variable_is_refused(plan: MigrationSet, database: Database) -> None:
    plan.fields["secret_variables"] = ["key"]
    plan.add("001", "SELECT :'key';")
    error = fails(PlanError, plan, database, variables={"key": "s3cr3t-value"})
    assert "secret_variables" in str(error) and "s3cr3t-value" not in str(error)
    error = fails(PlanError, plan, database)
    assert "key" in str(error) and "secret_variables" in str(error)


def test_session_settings_carry_a_secret_for_one_migration_only(plan: MigrationSet, database: Database) -> None:
    plan.fields["secret_variables"] = ["key"]
    plan.add(
        "001",
        "CREATE TABLE a AS SELECT md5(current_setting('app.key')) AS v;",
        session_settings={"app.key": "key"},
        verify=[
            {"name": "there", "query": "SELECT current_setting('app.key', true) <> ''", "expect": {"scalar": True}}
        ],
    )
    plan.add("002", "CREATE TABLE b AS SELECT coalesce(current_setting('app.key', true), '') AS v;")
    secret = 'pa\'ss \\ with "all" = kinds; $x$ ünï'
    run(plan, database, secrets={"key": secret})
    assert database.scalar("SELECT v = md5(%s) FROM a", (secret,)) and database.scalar("SELECT v FROM b") == ""


# --- lock budget and timeouts


def test_lock_held_over_the_budget_is_rolled_back_and_named(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE q(i int)")
    plan.add("001", "ALTER TABLE q ADD c int;\nSELECT pg_sleep(30);")
    error = fails(SqlError, plan, database, lock_budget=0.3)
    assert error.code == "lock_budget"
    assert "public.q (AccessExclusiveLock)" in str(error) and "after 3 attempts" in str(error)
    assert "CONCURRENTLY" in error.remedy and error.details["held"] == {"public.q": "AccessExclusiveLock"}
    assert database.scalar("SELECT count(*) FROM pg_attribute WHERE attrelid = 'q'::regclass AND attnum > 0") == 1
    assert all(retry["reason"] == "lock_budget" for retry in error.results["retries"])


def test_lock_of_a_single_long_statement_is_bounded_too(plan: MigrationSet, database: Database) -> None:
    database.query(
        "CREATE TABLE q(i int); INSERT INTO q SELECT generate_series(1, 100); CREATE FUNCTION slow(int) RETURNS int"
        " LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN $1; END $$"
    )
    plan.add("001", "CREATE INDEX ix ON q (slow(i));")
    error = fails(SqlError, plan, database, lock_budget=0.3)
    assert error.code == "lock_budget" and "public.q (ShareLock)" in str(error)
    assert not exists(database, "ix")


def test_work_on_new_tables_and_row_locks_have_no_budget(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE old(i int); INSERT INTO old VALUES (1)")
    plan.add("001", "CREATE TABLE a(i int); ALTER TABLE a ADD c int; UPDATE old SET i = 2; SELECT pg_sleep(0.6);")
    results = run(plan, database, lock_budget=0.2)
    assert results["applied"] == ["001"] and results["migrations"][0]["lock_held_seconds"] is None


def test_held_lock_within_the_budget_is_measured(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE q(i int)")
    plan.add("001", "ALTER TABLE q ADD c int; SELECT pg_sleep(0.2);")
    results = run(plan, database, lock_budget=5.0)
    assert 0.2 <= results["migrations"][0]["lock_held_seconds"] < 5.0
    record = next(item for item in results["evidence"] if item["criterion"] == "migration.lock_budget")
    assert record["verdict"] == "pass" and record["measured"] >= 0.2


def test_statement_timeout_ends_the_migration_with_the_remedy(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int);\nSELECT pg_sleep(30);", statement_timeout="200ms")
    error = fails(SqlError, plan, database)
    assert error.sqlstate == "57014" and "001.sql:2:1" in str(error) and "statement_timeout" in error.remedy
    assert error.results["retries"] == [] and not exists(database, "a")
    assert run(plan.add("001", "SELECT pg_sleep(0.4);", statement_timeout="100ms"), database, statement_timeout=20.0)[
        "applied"
    ]


@pytest.mark.parametrize(
    "disarm",
    [
        "SET lock_timeout = 0; SET statement_timeout = 0;",
        "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0;",
        "SET SESSION lock_timeout TO '1h'; SET statement_timeout TO DEFAULT; SET statement_timeout = '1h';",
        "SELECT pg_catalog.set_config('lock_timeout', '0', false), set_config('statement_timeout', '0', true);",
        "DO $$ BEGIN PERFORM set_config('lock_timeout', '0', false); SET statement_timeout = 0; END $$;",
        'RESET lock_timeout; RESET ALL; SET "lock_timeout" = 0; SET statement_timeout = 0;',
    ],
    ids=["set", "local", "hour", "set_config", "do", "reset"],
)
def test_limits_the_text_disarms_are_armed_again_and_reported(
    plan: MigrationSet, database: Database, disarm: str
) -> None:
    database.query("CREATE TABLE q(i int)")
    show = "SELECT current_setting('lock_timeout') AS l, current_setting('statement_timeout') AS s"
    plan.add("001", f"{disarm}\nCREATE TABLE seen AS {show};")
    results = run(plan, database, lock_timeout=0.2, statement_timeout=7.0)
    assert database.query("SELECT * FROM seen") == [("200ms", "7s")]
    assert any("001.sql:1:" in note and "stays in force" in note for note in results["notes"])


def test_stricter_limits_of_the_text_stay(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001", "SET LOCAL lock_timeout = '5ms';\nCREATE TABLE seen AS SELECT current_setting('lock_timeout') AS l;"
    )
    assert run(plan, database)["notes"] == []
    assert database.query("SELECT l FROM seen") == [("5ms",)]


def test_deadlock_is_retried(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE d(id int PRIMARY KEY, n int DEFAULT 0); INSERT INTO d VALUES (1), (2)")
    plan.add(
        "001",
        "SET LOCAL deadlock_timeout = '20ms';\nUPDATE d SET n = n + 1 WHERE id = 1;\nSELECT pg_sleep(0.5);\n"
        "UPDATE d SET n = n + 1 WHERE id = 2;",
    )
    with contextlib.closing(database.connect()) as other, other.cursor() as cursor:
        cursor.execute("SET deadlock_timeout = '1h'; BEGIN; UPDATE d SET n = n + 10 WHERE id = 2")
        job = Background(lambda: run(plan, database, lock_timeout=10.0, lock_budget=10.0))
        wait_until(lambda: worker_running(database, "pg_sleep"), "it holds the first row")
        cursor.execute("UPDATE d SET n = n + 10 WHERE id = 1")  # returns when the migration was rolled back
        cursor.execute("COMMIT")
        results = job.result()
    assert results["retries"][0]["reason"] == "deadlock_detected" and results["retries"][0]["sqlstate"] == "40P01"
    assert database.query("SELECT n FROM d ORDER BY id") == [(11,), (11,)]
    assert results["migrations"][0]["attempts"] == len(results["retries"]) + 1


def test_serialization_failure_is_retried(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE s(n int); INSERT INTO s VALUES (0)")
    plan.add(
        "001",
        "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT * FROM s;\nSELECT pg_sleep(0.4);\n"
        "UPDATE s SET n = n + 1;\nCOMMIT;",
    )
    job = Background(lambda: run(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "its snapshot is taken")
    database.query("UPDATE s SET n = n + 10")
    results = job.result()
    assert results["retries"][0]["reason"] == "serialization_failure"
    assert database.query("SELECT n FROM s") == [(11,)]


def test_other_errors_are_not_retried(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE SEQUENCE tries")
    plan.add("001", "SELECT nextval('tries'); SELECT 1/0;")
    fails(SqlError, plan, database)
    assert database.scalar("SELECT last_value FROM tries") == 1


# --- a standby


@contextlib.contextmanager
def standby(server: PgServer) -> t.Iterator[dict[str, t.Any]]:
    """A real hot standby of the server; its connection options without the database."""
    owner = os.stat(server.data_dir)
    as_owner: dict[str, t.Any] = {}
    if os.geteuid() == 0:
        as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    directory = tempfile.mkdtemp(prefix="surefoot-sb-", dir="/var/tmp")
    os.chown(directory, owner.st_uid, owner.st_gid)
    data = f"{directory}/data"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def program(name: str, *arguments: str) -> None:
        argv = [f"{server.bindir}/{name}", *arguments]
        done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, check=False, **as_owner)
        log = pathlib.Path(directory, "log")
        assert done.returncode == 0, done.stderr + (log.read_text(encoding="utf-8") if log.exists() else "")

    try:
        program(
            "pg_basebackup",
            "-h",
            server.host,
            "-p",
            str(server.port),
            "-U",
            "postgres",
            "-D",
            data,
            "-R",
            "-c",
            "fast",
            "--no-sync",
        )
        # A standby must not have less of these than its primary.
        names = (
            "max_connections max_prepared_transactions max_worker_processes max_wal_senders max_locks_per_transaction"
        )
        with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", (names.split(),))
            settings = " ".join(f"-c {name}={setting}" for name, setting in cursor.fetchall())
        # Plain enough for an older libpq, which unpacked server programs may find on the machine.
        upstream = f'"primary_conninfo=host={server.host} port={server.port} user=postgres"'
        options = f"-p {port} -k {directory} -c listen_addresses= -c {upstream} {settings}"
        program("pg_ctl", "-D", data, "-o", options, "-l", f"{directory}/log", "-w", "start")
        try:
            yield {"login_unix_socket": directory, "login_port": port, "login_user": "postgres"}
        except AssertionError as exc:
            log = pathlib.Path(directory, "log").read_text(encoding="utf-8")
            raise AssertionError(f"{exc}; the standby's log: {log}") from exc
        finally:
            program("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory)


@pytest.mark.slow
def test_standby_is_refused_with_the_remedy_and_has_nothing_pending_when_it_has_not(
    plan: MigrationSet, database: Database, tmp_path: pathlib.Path
) -> None:
    plan.add("001", "CREATE TABLE a(i int);")
    other = MigrationSet(tmp_path / "other", name="other").add("001", "CREATE TABLE b(i int);")
    with standby(database.server) as params:
        there = {**params, "login_db": database.name}
        error = fails(SurefootError, plan, there)
        assert "read-only" in str(error) and "primary" in str(error)
        run(plan, database)
        lsn = database.scalar("SELECT pg_current_wal_lsn()::text")

        def caught_up() -> bool:
            connection = psycopg2.connect(
                host=params["login_unix_socket"], port=params["login_port"], user="postgres", dbname=database.name
            )
            with contextlib.closing(connection), connection.cursor() as cursor:
                cursor.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (lsn,))
                row = cursor.fetchone()
                return bool(row and row[0])

        wait_until(caught_up, "the standby has caught up")
        assert run(plan, there)["changed"] is False
        error = fails(SqlError, other, there)
        assert error.sqlstate == "25006" and "primary" in error.remedy
    assert applied(database) == ["001"]


def test_variable_that_a_plan_with_declared_ones_does_not_know_is_noted(plan: MigrationSet, database: Database) -> None:
    plan.fields["variables"] = {"level": 1}
    plan.add("001", "CREATE TABLE a AS SELECT :level AS level;")
    assert run(plan, database, check_mode=True)["notes"] == []
    notes = run(plan, database, variables={"levle": 2})["notes"]
    assert any("levle" in note and "declare" in note for note in notes)
