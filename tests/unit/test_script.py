# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file may contain, what a statement is, and what is left to execute."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _script
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SqlTextError
from ansible_collections.surefoot.dbops.plugins.module_utils._script import (
    ConcurrentTarget,
    Script,
    classify,
    concurrent_target,
    executable,
    inspect,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement


@pytest.fixture
def write(tmp_path: pathlib.Path) -> t.Callable[[str | bytes], str]:
    def _write(sql: str | bytes) -> str:
        path = tmp_path / "m.sql"
        path.write_bytes(sql.encode() if isinstance(sql, str) else sql)
        return str(path)

    return _write


Write = t.Callable[[t.Union[str, bytes]], str]


def run(path: str, **options: t.Any) -> list[str]:
    script = inspect(path, **options)
    return [statement.text for statement, _entry in executable(path, script)]


# -- the file's own transaction


def test_the_files_own_transaction_is_taken_over_with_its_modes(write: Write) -> None:
    path = write(
        "\\set ON_ERROR_STOP on\nSET lock_timeout = '1s';\nSELECT 1;\n"
        "START TRANSACTION ISOLATION LEVEL repeatable read READ WRITE, NOT DEFERRABLE;\n"
        "SET TRANSACTION DEFERRABLE;\nCREATE TABLE t (i int);\nSAVEPOINT s;\nROLLBACK TO SAVEPOINT s;\nRELEASE s;\n"
        "END TRANSACTION AND NO CHAIN;\nSELECT count(*) FROM t;\nSHOW search_path;\n\\echo done\n"
    )
    script = inspect(path)
    assert script.taken_over
    assert script.begin_modes == "ISOLATION LEVEL REPEATABLE READ, READ WRITE, DEFERRABLE"
    assert run(path) == [
        "SET lock_timeout = '1s'",
        "SELECT 1",
        "CREATE TABLE t (i int)",
        "SAVEPOINT s",
        "ROLLBACK TO SAVEPOINT s",
        "RELEASE s",
        "SELECT count(*) FROM t",
        "SHOW search_path",
    ]
    assert script.statement_count == 8
    assert script.disarms == {"lock_timeout"}


def test_set_transaction_before_the_first_query_is_a_mode(write: Write) -> None:
    path = write("SET search_path = a; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; CREATE TABLE t ();")
    script = inspect(path)
    assert (script.begin_modes, script.taken_over) == ("ISOLATION LEVEL SERIALIZABLE", False)
    assert run(path) == ["SET search_path = a", "CREATE TABLE t ()"]
    # The same when the file is read again instead of kept.
    unkept = Script(**{**{name: getattr(script, name) for name in script.__dataclass_fields__}, "prepared": None})
    assert [entry.text for entry, _class in executable(path, unkept)] == run(path)


@pytest.mark.parametrize(
    ("sql", "place", "words"),
    [
        ("BEGIN;\nSELECT 1;\nCOMMIT;\nBEGIN;\nCOMMIT;", "4:1", "one file a transaction"),
        ("BEGIN;\nBEGIN;\nCOMMIT;", "2:1", "a second BEGIN"),
        ("BEGIN;\nCOMMIT;\nCOMMIT;", "3:1", "a second COMMIT"),
        ("BEGIN;\nCOMMIT AND CHAIN;", "2:1", "COMMIT AND CHAIN"),
        ("BEGIN;\nPREPARE TRANSACTION 'x';", "2:1", "two-phase"),
        ("COMMIT PREPARED 'x';", "1:1", "two-phase"),
        ("BEGIN;\nCREATE TABLE t ();\nROLLBACK;", "3:1", "rehearsal or check mode"),
        ("CREATE TABLE t ();\nABORT;", "2:1", "ABORT would undo"),
        ("CREATE TABLE t ();\n END;", "2:2", "COMMIT without BEGIN"),
        ("SELECT 1;\nBEGIN;\nCREATE TABLE t ();", "2:1", "BEGIN without COMMIT"),
        ("SELECT 1;\nCREATE TABLE t ();\nBEGIN;\nCOMMIT;", "2:1", "outside the file's own BEGIN"),
        ("BEGIN;\nCOMMIT;\nCREATE TABLE t ();", "3:1", "after the file's COMMIT"),
        ("BEGIN;\nCOMMIT;\nWITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x;", "3:1", "after the file's COMMIT"),
        ("BEGIN READ ONLY;\nCOMMIT;", "1:1", "ledger row"),
        ("SET TRANSACTION READ ONLY;", "1:1", "ledger row"),
        ("BEGIN ISOLATION LEVEL CHAOS;\nCOMMIT;", "1:1", "transaction mode"),
        ("SET TRANSACTION SNAPSHOT 'x';", "1:1", "SNAPSHOT"),
        ("SELECT 1;\n/* x */ CREATE INDEX CONCURRENTLY i ON t (a);", "2:9", "`transaction: false`"),
        ("VACUUM t;", "1:1", "`transaction: false`"),
        ("SET client_encoding = 'LATIN1';", "1:1", "--encoding=UTF8"),
        ("SET NAMES 'latin1';", "1:1", "--encoding=UTF8"),
        ("COPY t TO STDOUT;", "1:1", "COPY ... TO STDOUT"),
        ("COPY (SELECT 1) TO STDOUT (FORMAT csv);", "1:1", "COPY ... TO STDOUT"),
        ("COPY t FROM STDIN (FORMAT binary);\n\\.\n", "1:1", "binary"),
    ],
)
def test_transaction_control_that_cannot_be_kept_is_refused(write: Write, sql: str, place: str, words: str) -> None:
    path = write(sql)
    with pytest.raises(SqlTextError) as raised:
        inspect(path)
    assert f"({path}:{place})" in str(raised.value)
    assert words in str(raised.value)
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("BEGIN;\nCOMMIT;", "BEGIN in a migration without a transaction"),
        ("COMMIT;", "COMMIT in a migration"),
        ("ROLLBACK;", "ROLLBACK in a migration"),
        ("SAVEPOINT s;", "SAVEPOINT in a migration"),
        ("CREATE INDEX CONCURRENTLY ON t (a);", "Name the index"),
        ("CREATE INDEX CONCURRENTLY ON ONLY s.t (a);", "Name the index"),
    ],
)
def test_without_a_transaction_other_things_are_refused(write: Write, sql: str, words: str) -> None:
    with pytest.raises(SqlTextError, match="m.sql:1:1") as raised:
        inspect(write(sql), transaction=False)
    assert words in str(raised.value)


def test_without_a_transaction_concurrent_statements_pass(write: Write) -> None:
    path = write(
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON t (a); DROP INDEX CONCURRENTLY j; SET LOCAL work_mem = 1;"
    )
    script = inspect(path, transaction=False)
    assert script.statement_count == 3
    assert len(script.warnings) == 1 and "SET LOCAL has no effect" in script.warnings[0]


def test_a_body_that_mentions_statements_is_not_one_of_them(write: Write) -> None:
    path = write(
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN\n"
        " -- CREATE INDEX CONCURRENTLY i ON t (a); COMMIT; VACUUM;\nEND $$;\n"
        "COMMENT ON FUNCTION f() IS 'COMMIT; set_config(1)';\nSELECT 'set_config';\n"
        "CREATE PROCEDURE p() BEGIN ATOMIC SELECT 1; END;\n"
    )
    script = inspect(path)
    assert (script.statement_count, script.needs_fresh_connection, script.taken_over) == (4, False, False)


# -- psql commands


def test_harmless_psql_commands_are_skipped(write: Write) -> None:
    path = write(
        "\\restrict Ab1\n\\echo hi; there\n\\qecho x\n\\warn x\n\\timing\n\\timing off\n\\pset pager off\n\\t\n\\a\n"
        "\\set ON_ERROR_STOP 1\n\\set ON_ERROR_STOP\n\\set ECHO all\n\\set QUIET on\n\\set VERBOSITY verbose\n"
        "\\set AUTOCOMMIT on\n\\unset ECHO\n\\encoding 'utf-8'\nSELECT 1;\n\\unrestrict Ab1\n\\q\n-- the end\n"
    )
    script = inspect(path)
    assert (run(path), script.warnings) == (["SELECT 1"], ())


def test_a_file_that_wants_errors_ignored_is_warned_that_they_are_not(write: Write) -> None:
    script = inspect(write("\\set ON_ERROR_STOP off\nSELECT 1;\n\\unset ON_ERROR_STOP\n"))
    assert len(script.warnings) == 2


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("\\i other.sql", "as steps"),
        ("\\ir other.sql", "as steps"),
        ("\\include other.sql", "as steps"),
        ("\\set v 1", "`variables`"),
        ("\\unset v", "`variables`"),
        ("\\prompt 'x' v", "`variables`"),
        ("\\copy t from 'x.csv'", "COPY ... FROM STDIN"),
        ("\\connect other", "one run a database"),
        ("\\c other", "one run a database"),
        ("\\if true", "DO block"),
        ("\\! rm x", "a task of the playbook"),
        ("\\echo `date`", "a task of the playbook"),
        ("\\gexec", "DO block"),
        ("\\d+ t", "a check of the plan"),
        ("\\dt", "a check of the plan"),
        ("\\o out.txt", "report"),
        ("\\encoding LATIN1", "Convert"),
        ("\\set AUTOCOMMIT off", "AUTOCOMMIT off"),
        ("\\restrict a\n", "without \\unrestrict"),
        ("\\unrestrict a\n", "does not match"),
        ("\\.", "COPY ... FROM STDIN"),
        ("\\nonsense", "\\nonsense"),
        ("\\q\nSELECT 1;", "psql runs nothing behind it"),
    ],
)
def test_other_psql_commands_are_refused_with_what_to_do(write: Write, sql: str, words: str) -> None:
    with pytest.raises(SqlTextError, match=r"m\.sql:1:1\)") as raised:
        inspect(write(sql))
    assert words in str(raised.value)


def test_a_changed_restrict_key_is_refused(write: Write) -> None:
    with pytest.raises(SqlTextError, match=r"m\.sql:2:1"):
        inspect(write("\\restrict a\n\\unrestrict b\n"))


# -- what is known of a file


def test_hashes_variables_and_warnings_of_a_file(write: Write) -> None:
    sql = "INSERT INTO t VALUES (:a, :'b');\r\nSELECT 'x\r\ny', :\"c\"; COPY t FROM stdin;\r\n:no\r\n\\.\r\n"
    script = inspect(write(sql))
    assert script.variables == {"a", "b", "c"}
    assert script.size == len(sql)
    assert len(script.warnings) == 1 and "lines 2)" in script.warnings[0]
    assert (
        script.token_sha256
        == inspect(write("-- c\n" + sql.replace("(:a, :'b');\r\n", "( :a,\n:'b' );\n"))).token_sha256
    )


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SqlTextError, match="none.sql"):
        inspect(tmp_path / "none.sql")


def test_a_small_file_runs_as_it_was_inspected(write: Write) -> None:
    path = write("SELECT 1;")
    script = inspect(path)
    write("SELECT 2;")
    assert [statement.text for statement, _entry in executable(path, script)] == ["SELECT 1"]
    assert script.content == b"SELECT 1;"  # and this is what the ledger keeps


@pytest.mark.parametrize("limit", [1 << 20, 0])
def test_a_larger_file_that_changed_after_inspection_is_not_committed(
    write: Write, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(_script, "_PREPARED_FILE", 0)
    monkeypatch.setattr(_script, "_SMALL_FILE", limit)
    path = write("SELECT 1;")
    script = inspect(path)
    write("SELECT 2;")
    with pytest.raises(SqlTextError, match="changed while"):
        list(executable(path, script))


def test_a_second_pass_of_a_large_file_gives_the_same_statements(write: Write) -> None:
    sql = (
        "BEGIN;\nCOPY t FROM stdin;\n"
        + "row\n" * 300_000
        + "\\.\n"
        + "INSERT INTO t VALUES ('r');\n" * 10_000
        + "COMMIT;\n"
    )
    path = write(sql)
    script = inspect(path)
    rows = 0
    count = 0
    for statement, entry in executable(path, script):
        count += 1
        assert entry.tag in ("COPY", "INSERT")
        if statement.copy_data is not None:
            rows = sum(len(piece) for piece in iter(lambda: statement.copy_data.read(8192), b""))  # noqa: B023
    assert (count, rows, script.statement_count) == (10_001, 4 * 300_000, 10_001)


def test_statements_are_kept_for_the_second_pass_only_of_a_small_file(write: Write) -> None:
    small = inspect(write("CREATE TABLE t (i int);\nSELECT 1;"))
    large = inspect(write("INSERT INTO t VALUES ('" + "x" * 20_000 + "');\n" + "SELECT 1;\n" * 5_000))
    copying = inspect(write("COPY t FROM stdin;\n1\n\\.\n"))
    assert small.prepared is not None and len(small.prepared) == 2
    assert (large.prepared, copying.prepared) == (None, None)


# -- classes


def of(sql: str) -> t.Any:
    return classify(Statement(sql.encode()))


@pytest.mark.parametrize(
    ("sql", "tag", "in_transaction"),
    [
        ("create unique index concurrently i on t (a)", "CREATE INDEX CONCURRENTLY", "never"),
        ('create index "concurrently" on t (a)', "CREATE INDEX", "yes"),
        ("reindex (verbose, concurrently) table t", "REINDEX CONCURRENTLY", "never"),
        ("reindex (concurrently off) table t", "REINDEX TABLE", "yes"),
        ("reindex system postgres", "REINDEX SYSTEM", "never"),
        (
            "alter table only a.b detach partition c.d concurrently",
            "ALTER TABLE DETACH PARTITION CONCURRENTLY",
            "never",
        ),
        ("alter table a detach partition c finalize", "ALTER TABLE DETACH PARTITION FINALIZE", "yes"),
        ('alter table a detach partition "concurrently"', "ALTER TABLE DETACH PARTITION", "yes"),
        ("alter database d set tablespace x", "ALTER DATABASE", "never"),
        ("alter database d set lock_timeout = 1", "ALTER DATABASE", "yes"),
        ("cluster", "CLUSTER", "never"),
        ("cluster (verbose)", "CLUSTER", "never"),
        ("cluster verbose t", "CLUSTER", "yes"),
        ("discard all", "DISCARD ALL", "never"),
        ("create subscription s connection 'x' publication p with (connect = 'false')", "CREATE SUBSCRIPTION", "yes"),
        ("create subscription s connection 'x' publication p with (create_slot)", "CREATE SUBSCRIPTION", "never"),
        ("alter subscription s add publication p", "ALTER SUBSCRIPTION", "never"),
        ("alter subscription s add publication p with (refresh = off)", "ALTER SUBSCRIPTION", "yes"),
        ("rollback to s", "ROLLBACK TO", "yes"),
        ("rollback work to savepoint s", "ROLLBACK TO", "yes"),
        ("rollback work", "ROLLBACK", "control"),
        ("abort", "ROLLBACK", "control"),
        ("end", "COMMIT", "control"),
        ("prepare transaction 'x'", "PREPARE TRANSACTION", "control"),
        ("prepare p as select 1", "PREPARE", "yes"),
        ("create materialized view v as select 1", "CREATE MATERIALIZED VIEW", "yes"),
        ("create or replace function f() returns int", "CREATE FUNCTION", "yes"),
        ("call p()", "CALL", "yes"),
        ("(select 1) union (select 2)", "SELECT", "yes"),
        ("insert into t values (1)", "INSERT", "yes"),
    ],
)
def test_the_tag_and_the_transaction_come_from_the_first_tokens(sql: str, tag: str, in_transaction: str) -> None:
    assert (of(sql).tag, of(sql).in_transaction) == (tag, in_transaction)
    shouted = sql.upper().replace(" ", " -- c\n")
    if '"' not in sql and "'" not in sql:
        assert (of(shouted).tag, of(shouted).in_transaction) == (tag, in_transaction)


@pytest.mark.parametrize(
    ("sql", "session"),
    [
        ("create table t (i int)", "clean"),
        ("insert into t select 1", "clean"),
        ("set constraints all immediate", "clean"),
        ("set lock_timeout = 0", "settings"),
        ("set local lock_timeout = 0", "settings"),
        ("reset all", "settings"),
        ("create temp table t (i int)", "settings"),
        ("prepare p as select 1", "settings"),
        ("listen x", "settings"),
        ("select pg_advisory_lock(1)", "settings"),
        ("select * into temp x from t", "settings"),
        ("set role x", "unknown"),
        ("set local role x", "unknown"),
        ("set session authorization x", "unknown"),
        ("set session_authorization = x", "unknown"),
        ('set "role" = x', "unknown"),
        ("reset role", "unknown"),
        ("reset session authorization", "unknown"),
        ("load 'x'", "unknown"),
        ("do $$ begin end $$", "unknown"),
        ("call p()", "unknown"),
        ("select pg_catalog.set_config('a', 'b', false)", "unknown"),
        ("insert into t select SET_CONFIG('a', 'b', false)", "unknown"),
        ("select \"set_config\"('a', 'b', false)", "unknown"),
        ("insert into t values ('set_config')", "clean"),
        ("explain analyze select f()", "unknown"),
        ("something new", "unknown"),
    ],
)
def test_the_effect_on_the_session(sql: str, session: str) -> None:
    assert of(sql).session == session


@pytest.mark.parametrize(
    ("sql", "limits"),
    [
        ("set lock_timeout = 0", {"lock_timeout"}),
        ("SET SESSION Statement_Timeout TO '1s'", {"statement_timeout"}),
        ("set local idle_in_transaction_session_timeout = 0", {"idle_in_transaction_session_timeout"}),
        ("set schema 'x'", {"search_path"}),
        ('set "lock_timeout" = 0', {"lock_timeout"}),
        ("select pg_catalog.set_config('search_path', '', false)", {"search_path"}),
        ("set lock_timeout to default", set()),
        ("reset lock_timeout", set()),
        ("set work_mem = '1MB'", set()),
    ],
)
def test_the_limits_that_a_text_disarms_are_named(sql: str, limits: set[str]) -> None:
    assert of(sql).disarms == limits


def test_the_preamble_of_pg_dump_is_understood(write: Write) -> None:
    script = inspect(
        write(
            "\\restrict k\nSET statement_timeout = 0;\nSET lock_timeout = 0;\n"
            "SET idle_in_transaction_session_timeout = 0;\nSET transaction_timeout = 0;\n"
            "SET client_encoding = 'UTF8';\nSET standard_conforming_strings = on;\n"
            "SELECT pg_catalog.set_config('search_path', '', false);\n"
            "SET check_function_bodies = false;\nSET default_tablespace = '';\n\\unrestrict k\n"
        )
    )
    assert script.needs_fresh_connection
    assert script.disarms == _script.LIMITS
    assert not script.may_block


@pytest.mark.parametrize(
    "sql",
    ["select f()", "select s.f(1)", "create table t (i int references u)", "alter table t add c int", "something new"],
)
def test_in_doubt_a_statement_may_block(sql: str) -> None:
    assert of(sql).may_block


# -- concurrent targets


@pytest.mark.parametrize(
    ("sql", "target"),
    [
        (
            'CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS "My Ix" ON ONLY s."T" USING btree (a)',
            ConcurrentTarget("create_index", "s", "My Ix", "s", "T", "index", (33, 46)),
        ),
        ("create index concurrently on t(a)", ConcurrentTarget("create_index", None, None, None, "t", "index")),
        ("create index concurrently If_x on T(a)", ConcurrentTarget("create_index", None, "if_x", None, "t", "index")),
        (
            "DROP INDEX CONCURRENTLY IF EXISTS a.b",
            ConcurrentTarget("drop_index", "a", "b", None, None, "index", (24, 33)),
        ),
        ("REINDEX TABLE CONCURRENTLY a.b", ConcurrentTarget("reindex", "a", "b", "a", "b", "table")),
        ("REINDEX (CONCURRENTLY) INDEX b", ConcurrentTarget("reindex", None, "b", None, None, "index")),
        ("REINDEX SCHEMA CONCURRENTLY b", ConcurrentTarget("reindex", None, "b", None, None, "schema")),
        (
            "ALTER TABLE IF EXISTS ONLY a.b DETACH PARTITION c.d CONCURRENTLY",
            ConcurrentTarget("detach_partition", "c", "d", "a", "b", "table", (12, 21)),
        ),
    ],
)
def test_what_a_concurrent_statement_works_on(sql: str, target: ConcurrentTarget) -> None:
    assert concurrent_target(sql) == target
    assert concurrent_target(Statement(sql.encode())) == target


@pytest.mark.parametrize("sql", ["create index i on t (a)", "select 1", "alter table a detach partition b", "vacuum"])
def test_other_statements_have_no_concurrent_target(sql: str) -> None:
    assert concurrent_target(sql) is None
