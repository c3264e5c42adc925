# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scanner against what it has to agree with: psql cuts the same statements, the server judges classes alike."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import typing as t

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._script import (
    classify,
    executable,
    inspect,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Scanner, Statement, tokens
from ansible_collections.surefoot.dbops.tests.support.corpus import corpus
from ansible_collections.surefoot.dbops.tests.support.pgserver import (
    Database,
    PgServer,
    temporary_database,
)

FILES = corpus()

# psql reads standard_conforming_strings once a line and forgets the rules of an E'' string at the line's end; in the
# corpus, files that depend on it are written so that both agree.
_LOGGED = re.compile(rb"\A[^\n]*?\[(\d+)\] (?:[^\n]*? )?LOG:  (?:statement|execute [^:]*): ")


def _program(server: PgServer, name: str) -> str:
    return os.path.join(server.bindir, name)


def _environment(database: Database) -> dict[str, str]:
    server = database.server
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {
        **keep,
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": server.superuser,
        "PGCLIENTENCODING": "UTF8",
    }


def _run_psql(database: Database, path: pathlib.Path) -> int:
    """Run a file with psql; the process id of its backend."""
    done = subprocess.run(
        [_program(database.server, "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database.name]
        + ["-c", "SELECT pg_backend_pid()", "-f", str(path)],
        env=_environment(database),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return int(done.stdout.split(b"\n", 1)[0])


def _logged_statements(log: bytes, pid: int) -> list[str]:
    """What one backend was sent by simple queries; continuation lines of an entry begin with a tab."""
    found: list[bytes] = []
    current: list[bytes] | None = None
    for line in log.split(b"\n"):
        if line.startswith(b"\t") and current is not None:
            current.append(line[1:])
            continue
        if current is not None:
            found.append(b"\n".join(current))
            current = None
        start = _LOGGED.match(line)
        if start is not None and int(start.group(1)) == pid:
            current = [line[start.end() :]]
    if current is not None:
        found.append(b"\n".join(current))
    return [entry.decode("utf-8") for entry in found]


def _without_lead(sent: str, wanted: str) -> str:
    """``sent`` without the comments in front, which are no part of ``Statement.text``, and without its terminator."""
    body = sent.rstrip()
    if body.endswith(";") and not wanted.endswith(";"):
        body = body[:-1].rstrip()
    lead = body[: len(body) - len(wanted.rstrip())]
    assert not list(tokens(lead)), f"psql sent more: {lead!r}"
    return body[len(lead) :]


def _ours(path: pathlib.Path) -> list[Statement]:
    with path.open("rb") as stream:
        return [entry for entry in Scanner(stream, path.name).statements() if entry.meta is None]


def _compare_with_psql(database: Database, path: pathlib.Path) -> int:
    database.query(f"ALTER DATABASE \"{database.name}\" SET log_statement = 'all'")
    log = pathlib.Path(database.server.log_path)
    start = log.stat().st_size
    pid = _run_psql(database, path)
    with log.open("rb") as stream:
        stream.seek(start)
        sent = _logged_statements(stream.read(), pid)[1:]
    # psql sends empty statements too, and its \\encoding is one.
    sent = [entry for entry in sent if list(tokens(entry.rstrip().rstrip(";")))]
    sent = [entry for entry in sent if entry != "set client_encoding to 'UTF8'"]
    ours = [entry.text for entry in _ours(path)]
    assert len(sent) == len(ours), list(zip(sent, ours))
    assert [_without_lead(theirs, own) for theirs, own in zip(sent, ours)] == [own.rstrip() for own in ours]
    return len(ours)


def _dump(database: Database) -> str:
    done = subprocess.run(
        [_program(database.server, "pg_dump"), "-d", database.name, "--no-owner"],
        env=_environment(database),
        capture_output=True,
        check=True,
    )
    text = done.stdout.decode("utf-8")
    return re.sub(r"(?m)^\\(un)?restrict .*$", "", text)


def _apply(database: Database, path: pathlib.Path) -> None:
    """Execute a file by the library in one transaction, as a runner does."""
    script = inspect(path)
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        if script.begin_modes:
            cursor.execute(f"SET TRANSACTION {script.begin_modes}")
        for statement, _entry in executable(path, script):
            if statement.copy_data is not None:
                cursor.copy_expert(statement.text, statement.copy_data)
            else:
                cursor.execute(statement.text)
        cursor.execute("COMMIT")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_psql_sends_the_same_statements(database: Database, path: pathlib.Path) -> None:
    assert _compare_with_psql(database, path) > 0


# Files with more than one transaction are refused by inspect().
@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "off_strings"], ids=lambda path: path.stem)
def test_a_file_leaves_what_psql_leaves(pg_server: PgServer, database: Database, path: pathlib.Path) -> None:
    _run_psql(database, path)
    with temporary_database(pg_server) as other:
        _apply(other, path)
        assert _dump(other) == _dump(database)


def test_pg_dump_output_of_a_real_schema(pg_server: PgServer, database: Database, tmp_path: pathlib.Path) -> None:
    for path in FILES:
        _run_psql(database, path)
    for options in ([], ["--inserts", "--quote-all-identifiers"], ["--column-inserts", "--clean", "--if-exists"]):
        text = _dump_with(database, options)
        path = tmp_path / "dump.sql"
        path.write_bytes(text)
        with temporary_database(pg_server) as same:
            # For psql the dump's own \restrict line is a command; the log comparison covers the rest.
            assert _compare_with_psql(same, path) > 80
        with temporary_database(pg_server) as restored:
            script = inspect(path)
            assert script.needs_fresh_connection, "pg_dump calls set_config"
            assert "search_path" in script.disarms and "statement_timeout" in script.disarms
            _apply(restored, path)
            assert _dump(restored) == _dump(database)


def _dump_with(database: Database, options: t.Sequence[str]) -> bytes:
    done = subprocess.run(
        [_program(database.server, "pg_dump"), "-d", database.name, "--no-owner", *options],
        env=_environment(database),
        capture_output=True,
        check=True,
    )
    return done.stdout


def test_an_error_position_of_the_server_is_found_in_the_file(database: Database, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "wrong.sql"
    path.write_text(
        "-- größe\nselect 1;\n  /* ä */ select 'ö',\n    wrong_column\nfrom (select 1) x;\n", encoding="utf-8"
    )
    script = inspect(path)
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        for statement, _entry in executable(path, script):
            if statement.index == 0:
                continue
            with pytest.raises(psycopg2.errors.UndefinedColumn) as raised:
                cursor.execute(statement.text)
            position = raised.value.diag.statement_position
            assert position is not None
            assert statement.location_of(int(position) - 1) == (4, 5)


@pytest.fixture(scope="module")
def objects(pg_server: PgServer) -> t.Iterator[Database]:
    """A database with something for each statement below to work on."""
    with temporary_database(pg_server) as fresh:
        for sql in (
            "CREATE TABLE parted (i int) PARTITION BY RANGE (i)",
            "CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (10)",
            "CREATE TABLE plain (i int)",
            "CREATE INDEX plain_i ON plain (i)",
            "CREATE MATERIALIZED VIEW mat AS SELECT 1 AS i",
            "CREATE UNIQUE INDEX mat_i ON mat (i)",
            "CREATE TYPE color AS ENUM ('red')",
            "CREATE SUBSCRIPTION sub CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false)",
            "CREATE PROCEDURE proc() LANGUAGE plpgsql AS 'BEGIN PERFORM 1; END'",
        ):
            fresh.query(sql)
        yield fresh
        fresh.query("ALTER SUBSCRIPTION sub SET (slot_name = NONE)")
        fresh.query("DROP SUBSCRIPTION sub")


NEVER = [
    "CREATE INDEX CONCURRENTLY ix ON plain (i)",
    "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS ix ON plain (i)",
    "DROP INDEX CONCURRENTLY plain_i",
    "DROP INDEX CONCURRENTLY IF EXISTS plain_i",
    "REINDEX INDEX CONCURRENTLY plain_i",
    "REINDEX TABLE CONCURRENTLY plain",
    "REINDEX (CONCURRENTLY) INDEX plain_i",
    "REINDEX (VERBOSE, CONCURRENTLY true) TABLE plain",
    "REINDEX SCHEMA public",
    "REINDEX DATABASE postgres",
    "REINDEX SYSTEM postgres",
    "ALTER TABLE parted DETACH PARTITION part CONCURRENTLY",
    "VACUUM",
    "VACUUM (ANALYZE) plain",
    "VACUUM FULL plain",
    "CLUSTER",
    "CLUSTER VERBOSE",
    "CREATE DATABASE other",
    "DROP DATABASE IF EXISTS other",
    "ALTER DATABASE postgres SET TABLESPACE pg_default",
    "CREATE TABLESPACE other LOCATION '/nowhere'",
    "DROP TABLESPACE other",
    "ALTER SYSTEM SET work_mem = '8MB'",
    "ALTER SYSTEM RESET work_mem",
    "DISCARD ALL",
    "CREATE SUBSCRIPTION s2 CONNECTION 'dbname=none' PUBLICATION p",
    "DROP SUBSCRIPTION sub",
]
ALLOWED = [
    "CREATE INDEX ix ON plain (i)",
    "DROP INDEX plain_i",
    "REINDEX INDEX plain_i",
    "REINDEX (CONCURRENTLY off) INDEX plain_i",
    "REINDEX TABLE plain",
    "ALTER TABLE parted DETACH PARTITION part",
    "CLUSTER plain USING plain_i",
    "ANALYZE plain",
    "ALTER DATABASE postgres SET work_mem = '8MB'",
    "REFRESH MATERIALIZED VIEW CONCURRENTLY mat",
    "ALTER TYPE color ADD VALUE 'green'",
    "DISCARD PLANS",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
    "CHECKPOINT",
    "LISTEN x",
    "CREATE SUBSCRIPTION s2 CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false)",
    "ALTER SUBSCRIPTION sub SET PUBLICATION q WITH (refresh = false)",
    "SET lock_timeout = '1s'",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "DO $$ BEGIN EXECUTE 'SELECT 1 /* CREATE INDEX CONCURRENTLY */'; END $$",
    "CALL proc()",
    "LOAD 'plpgsql'",
    "TRUNCATE plain",
    "LOCK TABLE plain",
    "EXPLAIN ANALYZE SELECT 1",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1 -- CREATE INDEX CONCURRENTLY'",
    "COMMENT ON TABLE plain IS 'VACUUM'",
]


def _sqlstate_in_transaction(database: Database, sql: str) -> str | None:
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        try:
            cursor.execute(sql)
        except psycopg2.Error as exc:
            return t.cast("str | None", exc.pgcode)
        finally:
            cursor.execute("ROLLBACK")
    return None


@pytest.mark.parametrize("sql", NEVER)
def test_what_is_never_transactional_the_server_refuses_in_a_transaction(objects: Database, sql: str) -> None:
    assert classify(Statement(sql.encode())).in_transaction == "never"
    assert _sqlstate_in_transaction(objects, sql) == "25001"


@pytest.mark.parametrize("sql", ALLOWED)
def test_what_is_transactional_the_server_takes_in_a_transaction(objects: Database, sql: str) -> None:
    assert classify(Statement(sql.encode())).in_transaction == "yes"
    assert _sqlstate_in_transaction(objects, sql) is None


def test_finalizing_a_detach_is_transactional(objects: Database) -> None:
    sql = "ALTER TABLE parted DETACH PARTITION part FINALIZE"
    assert classify(Statement(sql.encode())).in_transaction == "yes"
    # Refused because nothing is pending, not because of the transaction.
    assert _sqlstate_in_transaction(objects, sql) == "55000"


# The server's own lock table judges: these modes block neither readers nor writers.
_HARMLESS_LOCKS = {"AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock"}
LOCKS = [
    "CREATE TABLE fresh (i int PRIMARY KEY)",
    "CREATE TABLE fresh (LIKE plain INCLUDING ALL)",
    "CREATE TABLE fresh AS SELECT * FROM plain",
    "CREATE TABLE fresh (i int REFERENCES keyed (i))",
    "CREATE TABLE fresh PARTITION OF parted FOR VALUES FROM (10) TO (20)",
    "CREATE TABLE fresh () INHERITS (plain)",
    "CREATE VIEW fresh AS SELECT * FROM plain",
    "CREATE OR REPLACE VIEW seen AS SELECT i FROM plain",
    "CREATE INDEX fresh ON plain (i)",
    "CREATE FUNCTION fresh() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TRIGGER fresh BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE POLICY fresh ON plain USING (true)",
    "CREATE RULE fresh AS ON INSERT TO plain DO NOTHING",
    "CREATE SCHEMA fresh",
    "CREATE TYPE fresh AS ENUM ('a')",
    "CREATE SEQUENCE fresh",
    "CREATE STATISTICS fresh ON i, j FROM plain",
    "CREATE PUBLICATION fresh FOR TABLE plain",
    "CREATE MATERIALIZED VIEW fresh AS SELECT * FROM plain",
    "COMMENT ON TABLE plain IS 'x'",
    "COMMENT ON COLUMN plain.i IS 'x'",
    "GRANT SELECT ON plain TO PUBLIC",
    "REVOKE SELECT ON plain FROM PUBLIC",
    "ANALYZE plain",
    "INSERT INTO plain VALUES (1)",
    "UPDATE plain SET i = 2",
    "DELETE FROM plain",
    "SELECT count(*) FROM plain",
    "SELECT * FROM plain FOR UPDATE",
    "ALTER TABLE plain ADD COLUMN k int",
    "ALTER TABLE plain VALIDATE CONSTRAINT plain_check",
    "ALTER TABLE plain ENABLE ROW LEVEL SECURITY",
    "ALTER SEQUENCE counted INCREMENT 2",
    "ALTER TYPE color ADD VALUE 'green'",
    "ALTER FUNCTION f() STABLE",
    "DROP TABLE plain CASCADE",
    "DROP INDEX plain_i",
    "DROP VIEW seen",
    "DROP FUNCTION f()",
    "TRUNCATE plain",
    "LOCK TABLE plain",
    "REINDEX TABLE plain",
    "REFRESH MATERIALIZED VIEW mat",
    "CLUSTER plain USING plain_i",
]


@pytest.mark.parametrize("sql", LOCKS)
def test_a_statement_that_takes_a_blocking_lock_is_never_called_harmless(database: Database, sql: str) -> None:
    for setup in (
        "CREATE TABLE plain (i int, j int)",
        "ALTER TABLE plain ADD CONSTRAINT plain_check CHECK (i > -1) NOT VALID",
        "CREATE INDEX plain_i ON plain (i)",
        "CREATE TABLE keyed (i int PRIMARY KEY)",
        "CREATE TABLE parted (i int) PARTITION BY RANGE (i)",
        "CREATE VIEW seen AS SELECT i FROM plain",
        "CREATE MATERIALIZED VIEW mat AS SELECT 1 AS i",
        "CREATE SEQUENCE counted",
        "CREATE TYPE color AS ENUM ('red')",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ):
        database.query(setup)
    existing = {row[0] for row in database.query("SELECT oid FROM pg_class WHERE oid >= 16384")}
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(sql)
        cursor.execute("SELECT relation, mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation IS NOT NULL")
        blocking = {mode for relation, mode in cursor.fetchall() if relation in existing} - _HARMLESS_LOCKS
        cursor.execute("ROLLBACK")
    if blocking:
        assert classify(Statement(sql.encode())).may_block
    elif sql.startswith(("CREATE", "COMMENT", "GRANT", "INSERT", "UPDATE", "DELETE", "SELECT", "ANALYZE")):
        assert not classify(Statement(sql.encode())).may_block
