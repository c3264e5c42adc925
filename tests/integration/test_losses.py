# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollback would lose is dumped and counted before it; what is called exact is so, and a bound is never low."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import stat
import subprocess
import threading
import typing as t

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._chain import read_chain
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import BackupError, PlanError, SqlError
from ansible_collections.surefoot.dbops.plugins.module_utils._losses import LossRequest, measure_losses, record_writes
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    MigrationSet,
    ModuleProcess,
    nothing_left,
    run,
    wait_until,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer

pytestmark = pytest.mark.versions


@pytest.fixture(autouse=True)
def client_programs(pg_server: PgServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the server under test."""
    monkeypatch.setenv("SUREFOOT_PG_SEARCH", pg_server.bindir)


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    """001 is there before; 002 makes a table; 003 changes one that exists."""
    plan = MigrationSet(tmp_path / "set")
    plan.add("001", "CREATE TABLE public.old (id int PRIMARY KEY, note text); INSERT INTO old VALUES (1), (2), (3);")
    plan.add(
        "002",
        'CREATE SCHEMA app; CREATE TABLE app."New one" (id serial PRIMARY KEY, note text);',
        rollback="DROP SCHEMA app CASCADE;",
        rollback_loses=['app."New one"'],
    )
    plan.add(
        "003",
        "ALTER TABLE public.old ADD COLUMN extra text;",
        rollback="ALTER TABLE public.old DROP COLUMN extra;",
        rollback_loses=["public.old"],
    )
    return plan


@pytest.fixture
def applied(plan: MigrationSet, database: Database, tmp_path: pathlib.Path) -> Database:
    run(plan, database, to="001", run_id="r1", run_dir=str(tmp_path / "runs" / "r1"))
    run(plan, database, run_id="r2", run_dir=str(tmp_path / "runs" / "r2"))
    return database


def request(tmp_path: pathlib.Path, run_id: str = "r3", **options: t.Any) -> LossRequest:
    values: dict[str, t.Any] = {"ledger_schema": "surefoot", "to": "002", **options}
    return LossRequest(run_id=run_id, run_dir=str(tmp_path / "runs" / run_id), **values)


def losses(
    plan: MigrationSet,
    database: Database | dict[str, t.Any],
    tmp_path: pathlib.Path,
    *,
    check: bool = False,
    **options: t.Any,
) -> dict[str, t.Any]:
    params = database.params if isinstance(database, Database) else database
    connection = ConnectionOptions.from_params(params)
    return measure_losses(load_plan(plan.path), connection, request(tmp_path, **options), check_mode=check)


def recorded(plan: MigrationSet, database: Database, tmp_path: pathlib.Path, run_id: str = "r2") -> list[str]:
    """Recorded once the server's statistics have caught up."""
    connection = ConnectionOptions.from_params(database.params)
    wait_until(lambda: counter(database, "n_tup_ins") >= 3, "the statistics know the rows")
    found: list[str] = record_writes(load_plan(plan.path), connection, request(tmp_path, run_id))["recorded"]
    return found


def counter(database: Database, column: str) -> int:
    return int(database.scalar(f"SELECT coalesce(max({column}), 0) FROM pg_stat_user_tables WHERE relname = 'old'"))


def restored(database: Database, dump: str, table: str) -> list[tuple[t.Any, ...]]:
    """The rows of the dump, restored into a database of their own."""
    name = f"{database.name}_restored"
    database.query(f"CREATE DATABASE {name}")
    copy = Database(name, database.server)
    try:
        copy.query("CREATE SCHEMA app")
        done = subprocess.run(
            [f"{database.server.bindir}/pg_restore", "--no-owner", f"--dbname={copy.dsn}", dump],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return copy.query(f"SELECT * FROM {table} ORDER BY 1")
    finally:
        database.query(f"DROP DATABASE {name} WITH (FORCE)")


# --- a table that the migration made


def test_all_rows_of_a_table_that_the_migration_made_are_counted_exactly_and_dumped(
    plan: MigrationSet, applied: Database, tmp_path: pathlib.Path
) -> None:
    applied.query("""INSERT INTO app."New one" (note) SELECT E'a\\nb\\\\.' FROM generate_series(1, 7)""")
    applied.query("""GRANT SELECT ON app."New one" TO pg_monitor; ANALYZE app."New one" """)
    applied.query("""ALTER TABLE app."New one" ADD COLUMN later int""")
    applied.query("VACUUM FREEZE")
    result = losses(plan, applied, tmp_path, only=("002",), to=None)
    (table,) = result["tables"]
    assert (table["table"], table["rows"], table["rows_since"]) == ('app."New one"', 7, 7)
    assert (table["exact"], table["basis"], table["migrations"]) == (True, "created", ["002"])
    assert (result["total"], result["exact"], result["exceeded"], result["changed"]) == (7, True, True, False)
    dump = pathlib.Path(table["dump"])
    assert dump == tmp_path / "runs" / "r3" / "losses" / "app._New_one_.dump"
    assert (stat.S_IMODE(dump.stat().st_mode), stat.S_IMODE(dump.parent.stat().st_mode)) == (0o600, 0o700)
    assert table["sha256"] == hashlib.sha256(dump.read_bytes()).hexdigest() and table["size"] == dump.stat().st_size
    before = applied.query('SELECT * FROM app."New one" ORDER BY 1')
    run(plan, applied, state="rolled_back", to="002", run_id="r4", on_drift="warn")
    assert restored(applied, str(dump), 'app."New one"') == before
    nothing_left(applied)


def test_rows_that_the_migrations_wrote_themselves_are_not_lost(database: Database, tmp_path: pathlib.Path) -> None:
    plan = MigrationSet(tmp_path / "set")
    plan.add("001", "CREATE TABLE made (id int, n int);", rollback="DROP TABLE made;", rollback_loses=["public.made"])
    plan.add("002", "INSERT INTO made SELECT generate_series(1, 3);", rollback="DELETE FROM made;")
    run(plan, database)
    database.query("VACUUM FREEZE made")
    (table,) = losses(plan, database, tmp_path, to="001")["tables"]
    assert (table["rows"], table["rows_since"], table["basis"]) == (3, 0, "created")

    database.query("UPDATE made SET n = 1 WHERE id = 1")
    database.query("INSERT INTO made VALUES (4)")
    (table,) = losses(plan, database, tmp_path, to="001")["tables"]
    assert (table["rows"], table["rows_since"]) == (4, 2)
    assert table["dump"]


def test_the_same_in_a_block_and_in_several_steps_is_never_called_less_than_it_is(
    database: Database, tmp_path: pathlib.Path
) -> None:
    plan = MigrationSet(tmp_path / "set").add(
        "001",
        "DO $$ BEGIN CREATE TABLE made (id int); EXCEPTION WHEN duplicate_table THEN NULL; END $$;",
        rollback="DROP TABLE made;",
        rollback_loses=["public.made"],
    )
    plan.add(
        "002",
        steps=["CREATE TABLE stepped (id int);", ("CREATE INDEX CONCURRENTLY i ON stepped (id);", False)],
        rollback="DROP TABLE stepped;",
        rollback_loses=["public.stepped"],
    )
    run(plan, database)
    database.query("INSERT INTO made SELECT generate_series(1, 4); INSERT INTO stepped SELECT generate_series(1, 5)")
    result = losses(plan, database, tmp_path, to="001")
    assert {item["table"]: item["rows_since"] for item in result["tables"]} == {"public.made": 4, "public.stepped": 5}
    assert all(item["exact"] or item["basis"] == "all_rows" for item in result["tables"])


# --- a table that existed before


def test_without_a_record_every_row_is_the_bound(plan: MigrationSet, applied: Database, tmp_path: pathlib.Path) -> None:
    result = losses(plan, applied, tmp_path)
    old, new = result["tables"]
    assert (old["table"], old["rows"], old["rows_since"], old["exact"], old["basis"]) == (
        "public.old",
        3,
        3,
        False,
        "all_rows",
    )
    assert (new["rows"], new["exact"], result["total"], result["exact"]) == (0, True, 3, False)


def test_with_a_record_only_what_was_written_since_counts(
    plan: MigrationSet, applied: Database, tmp_path: pathlib.Path
) -> None:
    assert recorded(plan, applied, tmp_path) == ['app."New one"', "public.old"]
    applied.query("INSERT INTO old VALUES (4)")
    applied.query("UPDATE old SET note = 'x' WHERE id IN (1, 2)")
    applied.query("DELETE FROM old WHERE id = 3")
    wait_until(lambda: counter(applied, "n_tup_del") >= 1 and counter(applied, "n_tup_upd") >= 2, "the statistics know")
    # Found beside the directory of the rollback's own run, by the run that applied.
    old = losses(plan, applied, tmp_path)["tables"][0]
    assert (old["rows"], old["rows_since"], old["exact"], old["basis"]) == (3, 4, False, "statistics")
    named = losses(plan, applied, tmp_path, recorded_in=str(tmp_path / "runs" / "r2"))["tables"][0]
    assert named["rows_since"] == 4
    elsewhere = losses(plan, applied, tmp_path, recorded_in=str(tmp_path / "runs" / "r1"))["tables"][0]
    assert elsewhere["basis"] == "all_rows"


def test_a_record_that_the_server_has_outlived_does_not_count(
    plan: MigrationSet, applied: Database, tmp_path: pathlib.Path
) -> None:
    recorded(plan, applied, tmp_path)
    assert losses(plan, applied, tmp_path)["tables"][0]["rows_since"] == 0
    applied.query("SELECT pg_stat_reset()")
    wait_until(lambda: counter(applied, "n_tup_ins") == 0, "the statistics were reset")
    assert losses(plan, applied, tmp_path)["tables"][0]["basis"] == "all_rows"
    recorded_file = tmp_path / "runs" / "r2" / "table-writes.json"
    for text in ("{", "[]", "{}", '{"epoch": 1, "time": "x", "tables": {"public.old": {"oid": 1}}}'):
        recorded_file.write_text(text, encoding="utf-8")
        assert losses(plan, applied, tmp_path)["tables"][0]["basis"] == "all_rows"


@pytest.mark.parametrize("end", ["restart", "crash"])
def test_counters_do_not_count_beyond_the_end_of_the_server(
    plan: MigrationSet, applied: Database, tmp_path: pathlib.Path, end: str
) -> None:
    recorded(plan, applied, tmp_path)
    assert losses(plan, applied, tmp_path)["tables"][0]["basis"] == "statistics"
    if end == "restart":
        applied.server.restart()
    else:
        with contextlib.closing(applied.connect()) as connection, contextlib.closing(applied.connect()) as other:
            os.kill(connection.info.backend_pid, signal.SIGKILL)

            def over() -> bool:
                # The crash of one session ends every other, once the server has noticed: not before.
                with contextlib.suppress(psycopg2.Error), other.cursor() as cursor:
                    cursor.execute("SELECT 1")
                return bool(other.closed)

            wait_until(over, "the server has crashed")
    wait_until(lambda: accepts(applied), "the server is back")
    assert losses(plan, applied, tmp_path)["tables"][0]["basis"] == "all_rows"


def accepts(database: Database) -> bool:
    with contextlib.suppress(psycopg2.OperationalError):
        return database.scalar("SELECT pg_is_in_recovery()") is False
    return False


def test_a_table_that_was_made_anew_since_the_record_is_counted_whole(
    plan: MigrationSet, applied: Database, tmp_path: pathlib.Path
) -> None:
    recorded(plan, applied, tmp_path)
    applied.query("CREATE TABLE copy AS SELECT * FROM old")
    applied.query("DROP TABLE old")
    applied.query("ALTER TABLE copy RENAME TO old")
    old = losses(plan, applied, tmp_path)["tables"][0]
    assert (old["basis"], old["rows_since"]) == ("all_rows", 3)


# --- the limit, the record of evidence, and what is left alone


@pytest.mark.parametrize(("limit", "expected"), [(2, "fail"), (3, "pass"), (0, "fail")])
def test_the_limit_decides_the_verdict(
    plan: MigrationSet, applied: Database, tmp_path: pathlib.Path, limit: int, expected: str
) -> None:
    result = losses(plan, applied, tmp_path, max_rows=limit, dump=False)
    assert result["exceeded"] == (expected == "fail")
    (evidence,) = result["evidence"]
    assert (evidence["criterion"], evidence["verdict"], evidence["measured"]) == ("rescue.lost_rows", expected, 3)
    (line,) = read_chain(str(tmp_path / "runs" / "r3")).records
    assert line is not None and line["details"]["tables"] == result["tables"]
    assert not (tmp_path / "runs" / "r3" / "losses").exists()


def test_check_mode_counts_and_writes_nothing(plan: MigrationSet, applied: Database, tmp_path: pathlib.Path) -> None:
    assert losses(plan, applied, tmp_path, check=True)["total"] == 3
    assert not (tmp_path / "runs" / "r3").exists()


def test_nothing_to_roll_back_or_to_lose_is_nothing(
    plan: MigrationSet, database: Database, tmp_path: pathlib.Path
) -> None:
    result = losses(plan, database, tmp_path)
    assert (result["tables"], result["total"], result["evidence"][0]["verdict"]) == ([], 0, "pass")
    run(plan, database, to="002")
    database.query("DROP SCHEMA app CASCADE")
    (gone,) = losses(plan, database, tmp_path)["tables"]
    assert (gone["basis"], gone["rows"], gone["exact"], gone["dump"]) == ("absent", 0, True, None)
    with pytest.raises(PlanError, match="nothing says what to roll back"):
        losses(plan, database, tmp_path, to=None)


def test_a_dump_is_never_replaced(plan: MigrationSet, applied: Database, tmp_path: pathlib.Path) -> None:
    first = losses(plan, applied, tmp_path)["tables"][0]
    applied.query("TRUNCATE old")
    second = losses(plan, applied, tmp_path)["tables"][0]
    assert (first["rows"], second["rows"]) == (3, 0) and second["dump"].endswith("public.old-2.dump")
    assert hashlib.sha256(pathlib.Path(first["dump"]).read_bytes()).hexdigest() == first["sha256"]


def test_a_partitioned_table_is_dumped_with_its_partitions(database: Database, tmp_path: pathlib.Path) -> None:
    plan = MigrationSet(tmp_path / "set").add(
        "001",
        "CREATE TABLE parts (id int, place text) PARTITION BY LIST (place);"
        " CREATE TABLE here PARTITION OF parts FOR VALUES IN ('here');"
        " CREATE TABLE rest PARTITION OF parts DEFAULT;",
        rollback="DROP TABLE parts;",
        rollback_loses=["public.parts"],
    )
    run(plan, database)
    database.query("INSERT INTO parts VALUES (1, 'here'), (2, 'there'), (3, 'here')")
    (table,) = losses(plan, database, tmp_path, to="001")["tables"]
    assert (table["rows"], table["basis"]) == (3, "created")
    assert restored(database, table["dump"], "parts") == [(1, "here"), (2, "there"), (3, "here")]


# --- what goes wrong


def test_rows_that_are_hidden_or_may_not_be_read_are_an_error_and_no_count(
    plan: MigrationSet, applied: Database, tmp_path: pathlib.Path
) -> None:
    role = f"limited_{applied.name}"
    applied.query(f"CREATE ROLE {role} LOGIN; GRANT pg_read_all_data TO {role}")
    try:
        params = {**applied.params, "login_user": role}
        assert losses(plan, params, tmp_path)["total"] == 3
        applied.query("ALTER TABLE old ENABLE ROW LEVEL SECURITY")
        with pytest.raises(SqlError, match="would be affected by row-level security"):
            losses(plan, params, tmp_path, dump=False)
        applied.query(f"ALTER TABLE old DISABLE ROW LEVEL SECURITY; REVOKE pg_read_all_data FROM {role}")
        applied.query(f"GRANT USAGE ON SCHEMA surefoot, app TO {role}")
        applied.query(f"GRANT SELECT ON ALL TABLES IN SCHEMA surefoot, app, public TO {role}")
        with pytest.raises(BackupError, match=r"app\.\"New one\" cannot be dumped: pg_dump: .*Nothing was rolled back"):
            losses(plan, params, tmp_path)
        assert len(list((tmp_path / "runs" / "r3" / "losses").glob("app*"))) == 1, "the one that succeeded"
    finally:
        applied.query(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_table_that_somebody_holds_is_waited_for_only_so_long(
    plan: MigrationSet, applied: Database, tmp_path: pathlib.Path
) -> None:
    with contextlib.closing(applied.connect()) as holder, holder.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE old IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SqlError, match="lock timeout"):
            losses(plan, applied, tmp_path, lock_timeout=0.3)
    nothing_left(applied)


def test_rows_written_while_it_runs_are_in_both_or_neither(
    plan: MigrationSet, applied: Database, tmp_path: pathlib.Path
) -> None:
    stop = threading.Event()

    def write() -> None:
        with contextlib.closing(applied.connect()) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                cursor.execute("""INSERT INTO app."New one" (note) SELECT 'x' FROM generate_series(1, 20)""")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _round in range(4):
            losses(plan, applied, tmp_path)  # raises when a dump holds another number of rows than were counted
    finally:
        stop.set()
        writer.join()


# --- as a task


def test_the_module_dumps_counts_and_fails_in_one_line(
    plan: MigrationSet, applied: Database, tmp_path: pathlib.Path
) -> None:
    run_dir = tmp_path / "runs" / "r3"
    params = {**applied.params, "path": plan.path, "to": "002", "run_dir": str(run_dir), "run_id": "r3"}
    outcome = ModuleProcess({**params, "max_rows": 10}, module="postgresql_losses").wait().result
    assert (outcome["total"], outcome["exceeded"], outcome["changed"]) == (3, False, False)
    assert json.loads((run_dir / "timeline.jsonl").read_text(encoding="utf-8"))["state"] == "dumped"
    assert {path.stat().st_mode & 0o077 for path in run_dir.rglob("*")} == {0}
    failed = ModuleProcess({**params, "bindir": str(tmp_path)}, module="postgresql_losses").wait().result
    assert failed["failed"] and "no usable pg_dump" in failed["msg"] and "\n" not in failed["msg"]
    missing = {name: value for name, value in params.items() if name != "run_dir"}
    refused = ModuleProcess(missing, module="postgresql_losses").wait().result
    assert refused["failed"] and "run_dir" in refused["msg"]
