# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sixteen situations in which migration tools are known to lose or double work, each provoked on a real server.

The number in a test's name is the number of the case.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import typing as t

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    DriftError,
    EnvironmentProblem,
    LockBusy,
    OutcomeUnknown,
    SqlError,
    SqlTextError,
    SurefootError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import advisory_key
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
    psql,
    run,
    sessions,
    wait_until,
    worker_running,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

PATIENT = {"attempts": 1000, "max_delay": 0.2, "deadline": 60.0}
BRIEF = {"attempts": 3, "max_delay": 0.2, "deadline": 10.0}


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


@contextlib.contextmanager
def idle_transaction(database: Database, statement: str, name: str = "a forgotten client") -> t.Iterator[int]:
    """A session that has run this statement in a transaction and does nothing more; its process id."""
    connection = psycopg2.connect(database.dsn, application_name=name)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
        yield connection.info.backend_pid
    finally:
        connection.close()


def index_state(database: Database, name: str) -> bool | None:
    """Whether the index is valid and ready; None when there is none."""
    rows = database.query("SELECT indisvalid AND indisready FROM pg_index WHERE indexrelid = to_regclass(%s)", (name,))
    return rows[0][0] if rows else None


# ---------------------------------------------------------------------------------------------------------------------
# 5.1 CREATE INDEX CONCURRENTLY and its kin


def test_5_1_concurrent_index_waits_for_an_idle_transaction_and_becomes_valid(
    plan: MigrationSet, database: Database
) -> None:
    database.query("CREATE TABLE t(i int); INSERT INTO t SELECT generate_series(1, 1000)")
    plan.add("001", "CREATE INDEX CONCURRENTLY ix ON t(i);", transaction=False, lock_timeout="100ms")
    with idle_transaction(database, "INSERT INTO t VALUES (0)"):
        job = Background(lambda: run(plan, database))
        wait_until(lambda: worker_running(database, "CREATE INDEX CONCURRENTLY"), "the index is being built")
        time.sleep(0.5)  # several times the lock_timeout, which must not apply to these waits
        assert job.running
        database.query("INSERT INTO t VALUES (2)")  # it blocks no writer meanwhile
    assert job.result()["applied"] == ["001"]
    assert index_state(database, "ix") is True


def test_5_1_concurrent_index_gives_up_at_the_deadline_names_the_blocker_and_the_next_run_repairs(
    plan: MigrationSet, database: Database
) -> None:
    database.query("CREATE TABLE t(i int)")
    plan.add("000", "CREATE TABLE before(i int);")
    run(plan, database)  # so that a catalog to compare with is on record
    plan.add("001", "CREATE INDEX CONCURRENTLY ix ON t(i);", transaction=False)
    with idle_transaction(database, "INSERT INTO t VALUES (0)") as pid:
        error = fails(SqlError, plan, database, retry={"deadline": 1.0})
        assert error.sqlstate == "57014"
        assert str(pid) in str(error) and "a forgotten client" in str(error)
    assert index_state(database, "ix") is False
    results = run(plan, database)
    assert results["applied"] == ["001"]
    assert any("invalid" in note for note in results["notes"])
    assert index_state(database, "ix") is True


@pytest.mark.parametrize("guard", ["", "IF NOT EXISTS "])
def test_5_1_invalid_leftover_is_dropped_and_rebuilt_and_if_not_exists_is_not_believed(
    plan: MigrationSet, database: Database, guard: str
) -> None:
    database.query('CREATE SCHEMA "App"; CREATE TABLE "App".t(i int); INSERT INTO "App".t VALUES (1), (1)')
    with pytest.raises(psycopg2.errors.UniqueViolation):
        database.query('CREATE UNIQUE INDEX CONCURRENTLY "Ix 1" ON "App".t(i)')
    assert index_state(database, '"App"."Ix 1"') is False
    plan.add("001", f'CREATE INDEX CONCURRENTLY {guard}"Ix 1" ON "App".t(i);', transaction=False)
    run(plan, database)
    assert index_state(database, '"App"."Ix 1"') is True
    assert database.scalar("SELECT count(*) FROM pg_index WHERE indrelid = '\"App\".t'::regclass") == 1


def test_5_1_failed_unique_build_is_an_error_each_time_and_done_once_the_duplicates_are_gone(
    plan: MigrationSet, database: Database
) -> None:
    database.query("CREATE TABLE t(i int); INSERT INTO t VALUES (1), (1)")
    plan.add("001", "CREATE UNIQUE INDEX CONCURRENTLY ix ON t(i);", transaction=False)
    for _attempt in range(2):
        error = fails(SqlError, plan, database)
        assert error.sqlstate == "23505" and "duplicates" in error.remedy
        assert applied(database) == []
    database.query("TRUNCATE t")
    run(plan, database)
    assert index_state(database, "ix") is True


def test_5_1_valid_index_of_that_name_that_was_there_before_is_never_taken_for_ours(
    plan: MigrationSet, database: Database
) -> None:
    database.query("CREATE TABLE t(a int, b int); CREATE INDEX ix ON t(b)")
    plan.add("001", "CREATE INDEX CONCURRENTLY ix ON t(a);", transaction=False)
    for _attempt in range(2):
        assert fails(SqlError, plan, database).sqlstate == "42P07"
    assert "(b)" in database.scalar("SELECT pg_get_indexdef('ix'::regclass)")


def test_5_1_another_kind_of_object_of_that_name_is_not_dropped(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE t(a int); CREATE TABLE ix(i int)")
    plan.add("001", "CREATE INDEX CONCURRENTLY ix ON t(a);", transaction=False)
    error = fails(SurefootError, plan, database)
    assert "not an index" in str(error) and "001.sql:1:1" in str(error)
    assert exists(database, "ix")


def test_5_1_index_that_another_session_is_building_is_waited_for(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE t(i int)")
    plan.add("001", "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix ON t(i);", transaction=False)
    with idle_transaction(database, "INSERT INTO t VALUES (0)"):
        other = Background(lambda: database.query("CREATE INDEX CONCURRENTLY ix ON t(i)"))
        wait_until(lambda: index_state(database, "ix") is False, "the other session began")
        oid = database.scalar("SELECT 'ix'::regclass::oid::int8")
        job = Background(lambda: run(plan, database))
        wait_until(lambda: sessions(database, "surefoot:worker%"), "the run works")
        time.sleep(0.5)
        assert job.running
    other.result()
    assert job.result()["applied"] == ["001"]
    assert database.scalar("SELECT 'ix'::regclass::oid::int8") == oid


def test_5_1_unnamed_concurrent_index_is_refused(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "\n  CREATE INDEX CONCURRENTLY ON t(i);", transaction=False)
    error = fails(SqlTextError, plan, database)
    assert "001.sql:2:3" in str(error) and "Name the index" in error.remedy


def test_5_1_reindex_concurrently_clears_away_what_a_cut_off_one_left(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE t(i int); CREATE INDEX ix ON t(i); INSERT INTO t VALUES (1)")
    plan.add("001", "REINDEX INDEX CONCURRENTLY ix;", transaction=False)
    with idle_transaction(database, "INSERT INTO t VALUES (0)"):
        fails(SqlError, plan, database, retry={"deadline": 1.0})
    assert index_state(database, "ix_ccnew") is False
    run(plan, database)
    assert index_state(database, "ix") is True
    assert database.scalar("SELECT count(*) FROM pg_index WHERE indrelid = 't'::regclass") == 1


def test_5_1_drop_index_concurrently_cut_off_is_done_again(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE t(i int); CREATE INDEX ix ON t(i)")
    plan.add("001", "DROP INDEX CONCURRENTLY ix;", transaction=False)
    with idle_transaction(database, "INSERT INTO t VALUES (0)"):
        fails(SqlError, plan, database, retry={"deadline": 1.0})
    assert index_state(database, "ix") is False
    run(plan, database)
    assert index_state(database, "ix") is None


def test_5_1_drop_of_an_index_that_never_was_is_an_error_each_time(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "DROP INDEX CONCURRENTLY nowhere;", transaction=False)
    for _attempt in range(2):
        assert fails(SqlError, plan, database).sqlstate == "42704"


def test_5_1_detach_concurrently_cut_off_is_finalized(plan: MigrationSet, database: Database) -> None:
    database.query(
        "CREATE TABLE p(i int) PARTITION BY RANGE (i); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)"
    )
    plan.add("001", "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY;", transaction=False)
    with idle_transaction(database, "SELECT * FROM p"):
        fails(SqlError, plan, database, retry={"deadline": 2.0, "attempts": 2})
    pending = database.query("SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = 'p1'::regclass")
    assert pending == [(True,)]
    results = run(plan, database)
    assert results["applied"] == ["001"]
    assert database.query("SELECT inhrelid::regclass::text FROM pg_inherits") == [("p2",)]


def test_5_1_detach_of_what_is_no_partition_is_an_error_each_time(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE p(i int) PARTITION BY RANGE (i); CREATE TABLE p1(i int)")
    plan.add("001", "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY;", transaction=False)
    for _attempt in range(2):
        assert fails(SqlError, plan, database).sqlstate == "42P01"


# ---------------------------------------------------------------------------------------------------------------------
# 5.2 kill -9


def test_5_2_runner_killed_in_a_concurrent_build_next_run_finishes(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE t(i int)")
    plan.add("001", "CREATE TABLE first(i int);")
    plan.add("002", "CREATE INDEX CONCURRENTLY ix ON t(i);\nCREATE TABLE after_it(i int);", transaction=False)
    with idle_transaction(database, "INSERT INTO t VALUES (0)"):
        module = ModuleProcess(module_params(plan, database))
        wait_until(lambda: worker_running(database, "CREATE INDEX CONCURRENTLY"), "the index is being built")
        module.kill()
        assert module.wait().returncode == -signal.SIGKILL
        nothing_left(database)  # the server notices that its client is gone although the build waits
    assert index_state(database, "ix") is False
    assert applied(database) == ["001"]
    assert run(plan, database)["applied"] == ["002"]
    assert index_state(database, "ix") is True and exists(database, "after_it")
    assert run(plan, database)["changed"] is False


def test_5_2_runner_killed_in_a_transaction_leaves_nothing_and_the_next_run_does_it(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("001", "CREATE TABLE a(i int);\nSELECT pg_sleep(1.5);\nINSERT INTO a VALUES (1);")
    module = ModuleProcess(module_params(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "it sleeps")
    module.kill()
    module.wait()
    assert run(plan, database)["applied"] == ["001"]  # waits for the orphan, if it is still there
    assert database.query("SELECT i FROM a") == [(1,)]
    assert [row for row in attempts(database) if row[2] == "succeeded"] == [("001", "deploy", "succeeded")]


@contextlib.contextmanager
def orphan(database: Database) -> t.Iterator[int]:
    """Stands for the backend of a killed run that is still at work: any session with the worker lock looks the same."""
    connection = psycopg2.connect(database.dsn, application_name="surefoot:worker of a killed run")
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (advisory_key("surefoot", "worker"),))
        yield connection.info.backend_pid
    finally:
        connection.close()


def test_5_2_orphan_of_a_killed_run_is_waited_for(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int);")
    with orphan(database) as pid:
        error = fails(LockBusy, plan, database, busy_timeout=0.5)
        assert "killed run" in str(error) and f"pg_terminate_backend({pid})" in str(error)
        job = Background(lambda: run(plan, database))
        time.sleep(0.5)
        assert job.running and not exists(database, "a")
    assert job.result()["applied"] == ["001"]


def test_5_2_orphan_of_a_killed_run_is_terminated_by_policy(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int);")
    with orphan(database) as pid:
        results = run(plan, database, on_orphan="terminate")
        assert results["applied"] == ["001"]
        assert any(str(pid) in note and "killed run" in note for note in results["notes"])
        assert not database.scalar("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_5_2_signal_cancels_rolls_back_and_says_so(plan: MigrationSet, database: Database, number: int) -> None:
    plan.add("001", "CREATE TABLE a(i int);\nSELECT pg_sleep(60);", statement_timeout="2m")
    module = ModuleProcess(module_params(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "it sleeps")
    module.kill(number)
    outcome = module.wait(20)
    assert outcome.result["failed"] and outcome.result["error"]["code"] == "interrupted"
    assert signal.Signals(number).name in outcome.result["msg"]
    nothing_left(database)
    assert not exists(database, "a") and attempts(database) == [("001", "deploy", "failed")]


# ---------------------------------------------------------------------------------------------------------------------
# 5.3 the connection dies at COMMIT


class CommitCutter:
    """A TCP proxy that cuts worker connections at COMMIT: ``before`` the server gets it, or ``after`` it did it.

    What the runner and the server see is real; only the network's failure is made here.
    """

    def __init__(self, server: PgServer, when: str, times: int = 1) -> None:
        self._server, self._when, self._left = server, when, times
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.refuse = False
        self.cut = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CommitCutter:
        return self

    def __exit__(self, *_args: object) -> None:
        self._listener.close()

    def params(self, database: Database) -> dict[str, t.Any]:
        return {
            "login_host": "127.0.0.1",
            "login_port": self.port,
            "login_user": self._server.superuser,
            "login_password": self._server.password,
            "login_db": database.name,
            "ssl_mode": "disable",
            "connect_params": {"gssencmode": "disable"},
        }

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._server.port))
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client, server:
            length = client.recv(4, socket.MSG_WAITALL)
            startup = length + client.recv(struct.unpack("!I", length)[0] - 4, socket.MSG_WAITALL)
            worker = b"surefoot:worker" in startup
            server.sendall(startup)
            muted = threading.Event()
            threading.Thread(target=self._back, args=(server, client, muted), daemon=True).start()
            while True:
                head = client.recv(5, socket.MSG_WAITALL)
                if len(head) < 5:
                    return
                size = struct.unpack("!I", head[1:])[0] - 4
                body = client.recv(size, socket.MSG_WAITALL) if size else b""
                if worker and self._left and head[:1] == b"Q" and body == b"COMMIT\0":
                    self._left -= 1
                    self.cut += 1
                    if self._when == "after":
                        muted.set()
                        server.sendall(head + body)
                        time.sleep(0.3)
                    server.shutdown(socket.SHUT_RDWR)
                    client.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(head + body)

    @staticmethod
    def _back(server: socket.socket, client: socket.socket, muted: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if not muted.is_set():
                    client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


def test_5_3_connection_cut_before_the_server_got_commit_nothing_is_applied_and_nothing_retried(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("001", "CREATE TABLE a(i int); INSERT INTO a VALUES (1);")
    with CommitCutter(database.server, "before") as proxy:
        error = fails(SqlError, plan, proxy.params(database))
        assert proxy.cut == 1
        assert "nothing was committed" in str(error)
        assert not exists(database, "a") and applied(database) == []
        assert run(plan, proxy.params(database))["applied"] == ["001"]
    assert database.query("SELECT i FROM a") == [(1,)]


def test_5_3_connection_cut_after_the_server_committed_counts_as_applied_once(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("001", "CREATE TABLE a(i int); INSERT INTO a VALUES (1);").add("002", "INSERT INTO a VALUES (2);")
    with CommitCutter(database.server, "after") as proxy:
        results = run(plan, proxy.params(database))
    assert results["applied"] == ["001", "002"]
    assert any("died at COMMIT" in note for note in results["notes"])
    assert database.query("SELECT i FROM a ORDER BY i") == [(1,), (2,)]
    assert [row for row in attempts(database) if row[0] == "001"] == [("001", "deploy", "succeeded")]


def test_5_3_rollback_whose_connection_is_cut_after_commit_counts_as_rolled_back(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("001", "CREATE TABLE a(i int);", rollback="DROP TABLE a;")
    run(plan, database)
    with CommitCutter(database.server, "after") as proxy:
        results = run(plan, proxy.params(database), state="rolled_back", to="001")
    assert results["rolled_back"] == ["001"] and applied(database) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_5_3_cut_at_the_commit_of_a_step_the_next_run_goes_on_at_the_right_step(
    plan: MigrationSet, database: Database, when: str
) -> None:
    plan.add("001", steps=["CREATE TABLE a(i int); INSERT INTO a VALUES (1);", "INSERT INTO a VALUES (2);"])
    with CommitCutter(database.server, when) as proxy:
        with contextlib.suppress(SurefootError):
            run(plan, proxy.params(database))
        assert proxy.cut == 1
    if applied(database) == []:
        run(plan, database)
    assert database.query("SELECT i FROM a ORDER BY i") == [(1,), (2,)]


def test_5_3_server_out_of_reach_after_the_cut_is_unknown_and_the_ledger_tells_the_next_run(
    plan: MigrationSet, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.add("001", "CREATE TABLE a(i int); INSERT INTO a VALUES (1);")
    with CommitCutter(database.server, "after") as proxy:
        # The time it waits for the server to come back, shortened: only the clock is not real.
        real = time.monotonic
        offset = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: real() + offset[0])

        def cut_off() -> None:
            wait_until(lambda: proxy.cut, "COMMIT was sent")
            proxy.refuse = True
            time.sleep(1.0)
            offset[0] = 120.0

        helper = Background(cut_off)
        error = fails(SurefootError, plan, proxy.params(database))
        helper.result()
    assert isinstance(error, OutcomeUnknown)
    assert "001" in str(error) and error.details["xid"]
    assert run(plan, database)["changed"] is False
    assert database.query("SELECT i FROM a") == [(1,)]


# ---------------------------------------------------------------------------------------------------------------------
# 5.4 a file's own transaction


def test_5_4_own_begin_and_commit_are_taken_over_and_stay_one_unit_with_the_ledger(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("001", "SET search_path = public;\nBEGIN;\nCREATE TABLE a(i int);\nSELECT 1/0;\nCOMMIT;\nSELECT 'done';\n")
    error = fails(SqlError, plan, database)
    assert "001.sql:4:" in str(error)
    assert not exists(database, "a") and applied(database) == []
    plan.file("001.sql", "SET search_path = public;\nBEGIN;\nCREATE TABLE a(i int);\nCOMMIT;\nSELECT 'done';\n")
    run(plan, database)
    assert exists(database, "a") and applied(database) == ["001"]


def test_5_4_modes_of_begin_are_kept(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE seen(level text, deferred text)")
    insert = (
        "INSERT INTO seen SELECT current_setting('transaction_isolation'), current_setting('transaction_deferrable');"
    )
    plan.add("001", f"BEGIN ISOLATION LEVEL SERIALIZABLE, DEFERRABLE; {insert} COMMIT;")
    plan.add("002", f"START TRANSACTION ISOLATION LEVEL REPEATABLE READ; {insert} END;")
    plan.add("003", f"BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; {insert} COMMIT;")
    plan.add("004", f"BEGIN; {insert} COMMIT;")
    run(plan, database)
    assert database.query("SELECT level, deferred FROM seen") == [
        ("serializable", "on"),
        ("repeatable read", "off"),
        ("serializable", "off"),
        ("read committed", "off"),
    ]


def test_5_4_savepoints_are_the_files_own_business(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001",
        "CREATE TABLE a(i int); SAVEPOINT s; INSERT INTO a VALUES (1); ROLLBACK TO SAVEPOINT s;"
        " INSERT INTO a VALUES (2); RELEASE s;",
    )
    run(plan, database)
    assert database.query("SELECT i FROM a") == [(2,)]


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TABLE a(i int);\nCOMMIT;\nCREATE TABLE b(i int);",
        "BEGIN;\nCREATE TABLE a(i int);\nCOMMIT;\nBEGIN;\nCREATE TABLE b(i int);\nCOMMIT;",
        "BEGIN;\nCREATE TABLE a(i int);\nCOMMIT AND CHAIN;\nCOMMIT;",
        "BEGIN;\nCREATE TABLE a(i int);\nROLLBACK;",
        "BEGIN;\nCREATE TABLE a(i int);\nABORT;",
        "BEGIN;\nCREATE TABLE a(i int);\nPREPARE TRANSACTION 'x';",
        "BEGIN;\nCREATE TABLE a(i int);",
        "CREATE TABLE a(i int);\nBEGIN;\nCREATE TABLE b(i int);\nCOMMIT;",
        "BEGIN;\nCREATE TABLE a(i int);\nCOMMIT;\nCREATE TABLE b(i int);",
        "CREATE TABLE a(i int);\nEND;",
        "BEGIN READ ONLY;\nCREATE TABLE a(i int);\nCOMMIT;",
    ],
    ids=["commit", "two", "chain", "rollback", "abort", "prepare", "unclosed", "before", "after", "end", "readonly"],
)
def test_5_4_transaction_control_that_would_split_the_unit_is_refused_with_its_line(
    plan: MigrationSet, database: Database, text: str
) -> None:
    plan.add("000", "CREATE TABLE earlier(i int);").add("001", text)
    error = fails(SqlTextError, plan, database)
    assert re.search(r"001\.sql:\d+:1", str(error)) and error.remedy
    assert not exists(database, "earlier") and not exists(database, "a")  # nothing began before all files were read


def test_5_4_server_side_commit_inside_a_block_is_refused_and_nothing_stays(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("001", "CREATE TABLE a(i int);\nDO $$ BEGIN INSERT INTO a VALUES (1); COMMIT; END $$;")
    error = fails(SqlError, plan, database)
    assert error.sqlstate == "2D000" and "transaction: false" in error.remedy and "001.sql:2:" in str(error)
    assert not exists(database, "a")


# ---------------------------------------------------------------------------------------------------------------------
# 5.5 what cannot run in a transaction

NEVER = [
    "CREATE INDEX CONCURRENTLY iy ON t(i)",
    "DROP INDEX CONCURRENTLY ix",
    "REINDEX INDEX CONCURRENTLY ix",
    "REINDEX (CONCURRENTLY) TABLE t",
    "REINDEX SCHEMA public",
    "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY",
    "VACUUM t",
    "VACUUM (FULL, ANALYZE) t",
    "CLUSTER",
    "ALTER SYSTEM SET log_min_duration_statement = -1",
    "DISCARD ALL",
]


def _objects(database: Database) -> None:
    database.query(
        "CREATE TABLE t(i int); CREATE INDEX ix ON t(i); CREATE TABLE p(i int) PARTITION BY RANGE (i);"
        " CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1)"
    )


@pytest.mark.parametrize("statement", NEVER)
def test_5_5_is_refused_in_a_transaction_before_anything_runs_and_works_outside_one(
    plan: MigrationSet, database: Database, statement: str
) -> None:
    _objects(database)
    plan.add("001", f"CREATE TABLE a(i int);\n{statement};")
    error = fails(SqlTextError, plan, database)
    assert "001.sql:2:1" in str(error) and "transaction: false" in error.remedy
    assert not exists(database, "a") and not exists(database, "surefoot.applied")
    plan.add("001", f"{statement};", transaction=False)
    assert run(plan, database)["applied"] == ["001"]


def test_5_5_create_and_drop_database_outside_a_transaction(plan: MigrationSet, database: Database) -> None:
    other = f"{database.name}_other"
    plan.add("001", f"CREATE DATABASE {other};", transaction=False)
    plan.add("002", f"DROP DATABASE {other};", transaction=False)
    assert run(plan, database)["applied"] == ["001", "002"]
    assert not database.scalar("SELECT count(*) FROM pg_database WHERE datname = %s", (other,))


def test_5_5_procedures_and_blocks_that_commit_work_outside_a_transaction(
    plan: MigrationSet, database: Database
) -> None:
    plan.add(
        "001",
        "CREATE TABLE a(i int); CREATE PROCEDURE fill() LANGUAGE plpgsql AS $$ BEGIN FOR n IN 1..3 LOOP"
        " INSERT INTO a VALUES (n); COMMIT; END LOOP; END $$;",
    )
    plan.add("002", "CALL fill();\nDO $$ BEGIN INSERT INTO a VALUES (4); COMMIT; END $$;", transaction=False)
    run(plan, database)
    assert database.scalar("SELECT count(*) FROM a") == 4


def test_5_5_allowed_in_a_transaction(plan: MigrationSet, database: Database) -> None:
    _objects(database)
    database.query(
        "CREATE TYPE mood AS ENUM ('ok'); CREATE MATERIALIZED VIEW mv AS SELECT 1 AS i; CREATE UNIQUE INDEX ON mv(i)"
    )
    plan.add(
        "001",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY mv; ALTER TYPE mood ADD VALUE 'sad'; REINDEX INDEX ix; REINDEX TABLE t;"
        " CLUSTER t USING ix;",
    )
    assert run(plan, database)["applied"] == ["001"]


def test_5_5_new_enum_value_used_too_early_names_the_remedy(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE m(m mood)")
    plan.add("001", "ALTER TYPE mood ADD VALUE 'sad';\nINSERT INTO m VALUES ('sad');")
    error = fails(SqlError, plan, database)
    assert error.sqlstate == "55P04" and "001.sql:2:" in str(error)
    assert "must be committed before" in error.remedy or "later migration" in error.remedy
    assert database.scalar("SELECT count(*) FROM pg_enum WHERE enumlabel = 'sad'") == 0


def test_5_5_concurrent_index_on_a_partitioned_table_is_the_servers_error(
    plan: MigrationSet, database: Database
) -> None:
    _objects(database)
    plan.add("001", "CREATE INDEX CONCURRENTLY ip ON p(i);", transaction=False)
    for _attempt in range(2):
        assert fails(SqlError, plan, database).sqlstate == "0A000"


def test_5_5_words_in_bodies_comments_and_names_are_not_statements(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001",
        "-- CREATE INDEX CONCURRENTLY\n/* VACUUM; COMMIT; */\n"
        "CREATE FUNCTION f() RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN 'CREATE INDEX CONCURRENTLY; COMMIT'; END $$;\n"
        'CREATE TABLE "vacuum; commit"("create index concurrently" int);',
    )
    assert run(plan, database)["applied"] == ["001"]


# ---------------------------------------------------------------------------------------------------------------------
# 5.6 session state


def test_5_6_a_pg_dump_preamble_does_not_reach_the_next_migration(plan: MigrationSet, database: Database) -> None:
    with temporary_database(database.server) as source:
        source.query("CREATE TABLE dumped(i int); CREATE VIEW v AS SELECT i FROM dumped")
        preamble = dump(source, "--schema-only")
    assert "statement_timeout = 0" in preamble and "search_path" in preamble
    plan.add("001", preamble)
    plan.add(
        "002",
        "CREATE TABLE seen AS SELECT current_setting('lock_timeout') AS lock_timeout,"
        " current_setting('search_path') AS path, current_setting('statement_timeout') AS statement_timeout,"
        " current_setting('check_function_bodies') AS bodies, current_setting('row_security') AS security;",
    )
    results = run(plan, database, lock_timeout=0.2, statement_timeout=20.0)
    assert results["applied"] == ["001", "002"] and exists(database, "dumped")
    assert database.query("SELECT * FROM seen") == [("200ms", '"$user", public', "20s", "on", "on")]
    assert any("lock_timeout" in note and "stays in force" in note for note in results["notes"])


@pytest.mark.parametrize(
    "text",
    [
        "SET ROLE {role};",
        "SET SESSION AUTHORIZATION {role};",
        "DO $$ BEGIN EXECUTE 'SET ROLE {role}'; PERFORM set_config('search_path', 'pg_catalog', false); END $$;",
        "SELECT set_config('role', '{role}', false);",
        "SET search_path = pg_catalog; SET default_tablespace = ''; SET session_replication_role = replica;",
        "SET default_transaction_read_only = on;",
        "SET standard_conforming_strings = off; SET datestyle = 'German, DMY'; SET TimeZone = 'Asia/Kolkata';",
        "CREATE TEMPORARY TABLE left_over(i int); PREPARE p AS SELECT 1; LISTEN x;"
        " DECLARE c CURSOR WITH HOLD FOR SELECT 1;",
    ],
    ids=["role", "authorization", "do", "set_config", "path", "read_only", "strings", "temporary"],
)
def test_5_6_nothing_a_migration_does_to_its_session_reaches_the_next_or_the_ledger(
    plan: MigrationSet, database: Database, text: str, role: str
) -> None:
    plan.add("001", text.format(role=role))
    plan.add(
        "002",
        "CREATE TABLE seen AS SELECT current_user::text AS me, session_user::text AS login,"
        " current_setting('search_path') AS path,"
        " current_setting('session_replication_role') AS replica, current_setting('TimeZone') = (SELECT reset_val FROM"
        " pg_settings WHERE name = 'TimeZone') AS zone, to_regclass('pg_temp.left_over') IS NULL AS clean,"
        " (SELECT count(*) FROM pg_prepared_statements) + (SELECT count(*) FROM pg_cursors) AS things,"
        " 'a\\b'::text AS text;",
    )
    assert run(plan, database)["applied"] == ["001", "002"]
    assert database.query("SELECT * FROM public.seen") == [
        ("postgres", "postgres", '"$user", public', "origin", True, True, 0, "a\\b")
    ]
    assert applied(database) == ["001", "002"]


@pytest.fixture
def role(database: Database) -> t.Iterator[str]:
    name = f"r_{database.name}"
    database.query(f"CREATE ROLE {name} LOGIN; GRANT ALL ON SCHEMA public TO {name}")
    yield name
    database.query(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_5_6_role_taken_on_in_a_step_does_not_reach_the_next_step(
    plan: MigrationSet, database: Database, role: str
) -> None:
    plan.add("001", steps=[f"SET ROLE {role}; CREATE TABLE a(i int);", "CREATE TABLE b(i int);"])
    run(plan, database)
    assert database.query("SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'public' ORDER BY 1") == [
        ("a", role),
        ("b", "postgres"),
    ]


def test_5_6_role_change_outside_a_transaction_is_refused(plan: MigrationSet, database: Database, role: str) -> None:
    plan.add("001", f"SET ROLE {role};\nCREATE TABLE a(i int);", transaction=False)
    error = fails(SqlTextError, plan, database)
    assert "001.sql:1:1" in str(error) and "session_role" in error.remedy


@pytest.mark.parametrize("transaction", ["per_migration", "together"])
def test_5_6_session_role_holds_for_every_migration_and_the_ledger_for_none_but_it(
    tmp_path: pathlib.Path, database: Database, role: str, transaction: str
) -> None:
    database.query(f"GRANT CREATE ON DATABASE {database.name} TO {role}")
    plan = MigrationSet(tmp_path / "set", transaction=transaction)
    plan.add("001", "CREATE TABLE a(i int);").add("002", "RESET ALL; CREATE TABLE b(i int);").add(
        "003", "CREATE TABLE c(i int);"
    )
    run(plan, {**database.params, "session_role": role})
    owners = database.query("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname IN ('public', 'surefoot')")
    assert owners == [(role,)]


# ---------------------------------------------------------------------------------------------------------------------
# 5.7 the lock queue


def test_5_7_clients_are_not_stalled_and_the_retry_succeeds_once_the_blocker_is_gone(
    plan: MigrationSet, database: Database
) -> None:
    database.query("CREATE TABLE q(i int); INSERT INTO q VALUES (1)")
    plan.add("001", "ALTER TABLE q ADD c int;")
    reads = 0
    with idle_transaction(database, "SELECT * FROM q") as pid:
        job = Background(lambda: run(plan, database, lock_timeout=0.15, retry=PATIENT))
        wait_until(lambda: worker_running(database, "ALTER TABLE q"), "it waits for the lock")
        with (
            contextlib.closing(database.connect(options="-c statement_timeout=5s")) as client,
            client.cursor() as cursor,
        ):
            while reads < 8:
                cursor.execute("SELECT count(*) FROM q")  # cancelled by the server if it were stalled until the end
                reads += 1
                time.sleep(0.1)
        assert job.running
    results = job.result()
    assert results["applied"] == ["001"]
    assert len(results["retries"]) >= 2
    first = results["retries"][0]
    assert first["reason"] == "lock_not_available" and first["delay_seconds"] is not None
    named = [blocker for retry in results["retries"] for blocker in retry["blockers"]]
    assert {blocker["pid"] for blocker in named} == {pid}
    assert named[0]["application"] == "a forgotten client" and named[0]["relation"] == "public.q"
    assert "SELECT" not in str(named), "the blocker's statement may hold literals"


def test_5_7_blocker_that_never_ends_is_named_in_the_error(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE q(i int)")
    plan.add("001", "CREATE TABLE a(i int);\nALTER TABLE q ADD c int;")
    with idle_transaction(database, "SELECT * FROM q") as pid:
        error = fails(SqlError, plan, database, lock_timeout=0.15, retry=BRIEF)
    assert error.sqlstate == "55P03" and "001.sql:2:1" in str(error)
    assert f"process {pid}" in str(error) and "a forgotten client" in str(error) and "public.q" in str(error)
    assert "after 3 attempts" in str(error)
    assert [blocker["pid"] for blocker in error.details["blockers"]] == [pid]
    assert not exists(database, "a")
    assert len(error.results["retries"]) == 3 and error.results["retries"][-1]["delay_seconds"] is None


def test_5_7_lock_tables_takes_all_locks_before_any_work(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE l1(i int); CREATE TABLE l2(i int); CREATE SEQUENCE work")
    plan.add(
        "001",
        "SELECT nextval('work'); ALTER TABLE l1 ADD c int; ALTER TABLE l2 ADD c int;",
        lock_tables=["public.l2", "public.l1"],
    )
    with idle_transaction(database, "SELECT * FROM l2"):
        error = fails(SqlError, plan, database, lock_timeout=0.15, retry=BRIEF)
        assert error.sqlstate == "55P03"
        assert database.scalar("SELECT is_called FROM work") is False  # the sequence would have kept a step forward
        database.query("SELECT * FROM l1")
    run(plan, database)
    assert database.scalar("SELECT last_value FROM work") == 1


# ---------------------------------------------------------------------------------------------------------------------
# 5.8 two runners


def test_5_8_two_processes_at_once_apply_exactly_once(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE runs_of(i int)")
    plan.add("001", "INSERT INTO runs_of VALUES (1); SELECT pg_sleep(0.7);")
    both = [ModuleProcess(module_params(plan, database)) for _number in range(2)]
    results = [module.wait().result for module in both]
    assert [result.get("failed", False) for result in results] == [False, False], results
    assert sorted(result["applied"] for result in results) == [[], ["001"]]
    assert database.scalar("SELECT count(*) FROM runs_of") == 1


def test_5_8_second_runner_fails_by_policy_and_names_the_holder(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "SELECT pg_sleep(60);", statement_timeout="2m")
    first = ModuleProcess(module_params(plan, database, run_id="the-first-run"))
    wait_until(lambda: worker_running(database, "pg_sleep"), "the first run is at work")
    (control,) = sessions(database, "surefoot:control%")
    error = fails(LockBusy, plan, database, on_busy="fail")
    assert f"process {control}" in str(error) and "the-first-run" in str(error)
    error = fails(LockBusy, plan, database, on_busy="wait", busy_timeout=0.5)
    assert f"process {control}" in str(error)
    first.kill(signal.SIGTERM)
    first.wait()


def test_5_8_eight_runners_on_a_fresh_database_none_fails(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int);").add("002", "INSERT INTO a VALUES (1);")
    start = threading.Barrier(8)

    def one() -> list[str]:
        start.wait()
        return t.cast("list[str]", run(plan, database)["applied"])

    jobs = [Background(one) for _number in range(8)]
    done = [job.result() for job in jobs]
    assert sorted(done) == [[]] * 7 + [["001", "002"]]
    assert database.query("SELECT i FROM a") == [(1,)]


def test_5_8_runner_that_waits_does_not_deadlock_with_a_concurrent_build(
    plan: MigrationSet, database: Database
) -> None:
    database.query("CREATE TABLE t(i int)")
    plan.add("001", "CREATE INDEX CONCURRENTLY ix ON t(i);", transaction=False)
    with idle_transaction(database, "INSERT INTO t VALUES (0)"):
        first = Background(lambda: run(plan, database))
        wait_until(lambda: worker_running(database, "CREATE INDEX CONCURRENTLY"), "the index is being built")
        second = Background(lambda: run(plan, database))
        wait_until(lambda: len(sessions(database, "surefoot:control%")) == 2, "the second run waits")
        time.sleep(1.2)  # longer than deadlock_timeout
    assert first.result()["applied"] == ["001"]
    assert second.result()["applied"] == []


@pytest.mark.parametrize("text", ["SELECT pg_advisory_unlock_all();", "DISCARD ALL;"])
def test_5_8_migration_cannot_drop_the_runner_lock(plan: MigrationSet, database: Database, text: str) -> None:
    plan.add("001", f"{text} SELECT pg_sleep(60);", transaction=False, statement_timeout="2m")
    first = ModuleProcess(module_params(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "the first run is at work")
    fails(LockBusy, plan, database, on_busy="fail")
    first.kill(signal.SIGTERM)
    first.wait()


def test_5_8_runs_of_other_databases_and_other_ledgers_do_not_wait(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "SELECT pg_sleep(60);", statement_timeout="2m")
    other = MigrationSet(plan.directory.parent / "other").add("001", "SELECT 1;")
    first = ModuleProcess(module_params(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "the first run is at work")
    assert run(other, database, on_busy="fail", ledger_schema="second_ledger")["applied"] == ["001"]
    with temporary_database(database.server) as elsewhere:
        assert run(other, elsewhere, on_busy="fail")["applied"] == ["001"]
    fails(LockBusy, other, database, on_busy="fail")
    first.kill(signal.SIGTERM)
    first.wait()


def test_5_8_lost_runner_lock_stops_before_the_next_migration(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "SELECT pg_sleep(1);").add("002", "CREATE TABLE a(i int);")
    job = Background(lambda: run(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "it sleeps")
    (control,) = sessions(database, "surefoot:control%")
    database.query("SELECT pg_terminate_backend(%s)", (control,))
    with pytest.raises(ConnectionFailed, match="runner lock"):
        job.result()
    assert not exists(database, "a")
    assert run(plan, database)["pending"] == []
    assert exists(database, "a")


# ---------------------------------------------------------------------------------------------------------------------
# 5.9 poolers


@contextlib.contextmanager
def pgbouncer(server: PgServer, mode: str) -> t.Iterator[int]:
    """A real pgbouncer before the server; its port."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    owner = os.stat(server.data_dir)
    directory = tempfile.mkdtemp(prefix="surefoot-bouncer-", dir="/var/tmp")
    try:
        ini = pathlib.Path(directory, "pgbouncer.ini")
        ini.write_text(
            f"[databases]\n* = user=postgres host={server.host} port={server.port}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = {mode}\n"
            "unix_socket_dir =\nserver_tls_sslmode = disable\n"
            f"ignore_startup_parameters = options,extra_float_digits\nlogfile = {directory}/log\n",
            encoding="utf-8",
        )
        for path in (directory, str(ini)):
            os.chown(path, owner.st_uid, owner.st_gid)
        process = subprocess.Popen(
            [program, str(ini)],
            user=owner.st_uid if os.geteuid() == 0 else None,
            group=owner.st_gid if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:

            def answers() -> bool:
                assert process.poll() is None, pathlib.Path(directory, "log").read_text(encoding="utf-8")
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    return True
                return False

            wait_until(answers, "pgbouncer answers")
            yield port
        finally:
            process.terminate()
            process.wait(10)
    finally:
        shutil.rmtree(directory)


def _through(port: int, database: Database) -> dict[str, t.Any]:
    return {
        "login_host": "127.0.0.1",
        "login_port": port,
        "login_user": "postgres",
        "login_db": database.name,
        "ssl_mode": "disable",
        "connect_params": {"gssencmode": "disable"},
    }


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_5_9_pooler_is_refused_with_the_remedy_and_nothing_is_written(
    plan: MigrationSet, database: Database, mode: str
) -> None:
    plan.add("001", "CREATE TABLE a(i int);")
    with pgbouncer(database.server, mode) as port:
        error = fails(EnvironmentProblem, plan, _through(port, database))
    assert error.code == "pooler" and "direct address" in error.remedy
    assert not exists(database, "surefoot.applied")


def test_5_9_pooler_that_takes_no_startup_settings_is_recognised(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int);")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Stands for a pooler that refuses the settings, in its words.
        def answer() -> None:
            client, _address = listener.accept()
            with client:
                client.recv(4096)
                text = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
                client.sendall(b"E" + struct.pack("!I", len(text) + 4) + text)

        helper = Background(answer)
        error = fails(ConnectionFailed, plan, _through(listener.getsockname()[1], database))
        helper.result()
    assert "pooler" in error.remedy and "direct address" in error.remedy


# ---------------------------------------------------------------------------------------------------------------------
# 5.10 - 5.12 text

TORTURE = r"""
create table a$$b (i int); create table c$$d (j int);
/* outer /* inner ; */ still comment ; */ select 'nested ok';
select 'it''s; ok', E'back\'s; ok', U&'d\0061t\+000061; ok', $q$ ; $$ ; $q$;
select 'multi'
 ';line';
create rule r as on insert to a$$b do also (insert into c$$d values(1); insert into c$$d values(2));
create function ba(x int) returns int begin atomic select case when x>0 then 1 else 2 end; select 3; end;
set standard_conforming_strings=off;
select 'a\'; select b'; reset standard_conforming_strings;
copy c$$d from stdin;
1
\.
create table "semi;colon" ("a;b" int, "q""$$;" int);
copy "semi;colon" from stdin with (format csv);
1,2
\.
create table txt(t text); copy txt from stdin;
; -- $$ ' /* not a comment
\\. is not the end
\.
"""


def test_5_10_torture_file_does_what_psql_does(plan: MigrationSet, database: Database) -> None:
    plan.add("001", TORTURE)
    run(plan, database)
    with temporary_database(database.server) as reference:
        done = psql(reference, TORTURE)
        assert done.returncode == 0, done.stderr
        assert dump(database, "--exclude-schema=surefoot") == dump(reference)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SELECT 1;\n\\i other.sql\n", 2),
        ("SELECT 1;\n\\ir other.sql\n", 2),
        ("\\set v 1\nSELECT :v;\n", 1),
        ("SELECT 1\n\\gexec\n", 2),
        ("\\if true\nSELECT 1;\n\\endif\n", 1),
        ("\n\\copy t from 'x'\n", 2),
        ("\\connect other\n", 1),
        ("\\! ls\n", 1),
        ("CREATE TABLE t(i int);\nCOPY t FROM stdin;\n1\n", 2),
        ("\\restrict abc\nSELECT 1;\n\\unrestrict xyz\n", 3),
    ],
)
def test_5_10_what_cannot_be_done_is_refused_with_its_line(
    plan: MigrationSet, database: Database, text: str, line: int
) -> None:
    plan.add("001", text)
    error = fails(SqlTextError, plan, database)
    assert re.search(rf"001\.sql:{line}:\d+", str(error)), error
    assert error.remedy
    assert not exists(database, "surefoot.applied")


def test_5_11_byte_order_mark_is_ignored(plan: MigrationSet, database: Database) -> None:
    plan.add("001", b"\xef\xbb\xbfCREATE TABLE a(i int);\r\n-- caf\xc3\xa9\r\nINSERT INTO a VALUES (1);\r\n")
    run(plan, database)
    assert database.query("SELECT i FROM a") == [(1,)]


@pytest.mark.parametrize(
    "content",
    [
        b"CREATE TABLE a(i int);\nINSERT INTO a VALUES (1);\0 INSERT INTO a VALUES (2);",
        b"CREATE TABLE a(i int);\n-- comment \0\nINSERT INTO a VALUES (2);",
        b"CREATE TABLE a(i int);\n-- caf\xe9\n",
        b"CREATE TABLE a(t text);\nINSERT INTO a VALUES ('caf\xe9');",
        b"CREATE TABLE a(t text);\nINSERT INTO a VALUES ('open);",
        b"CREATE TABLE a(t text);\n/* open /* */",
        b"CREATE TABLE a(t text);\nSELECT $x$ open $y$;",
    ],
    ids=["nul", "nul-comment", "latin-comment", "latin-literal", "string", "comment", "dollar"],
)
def test_5_11_bytes_that_would_be_misread_are_refused_with_their_line(
    plan: MigrationSet, database: Database, content: bytes
) -> None:
    plan.add("001", content)
    error = fails(SqlTextError, plan, database)
    assert "001.sql:2:" in str(error)
    assert not exists(database, "a")


def test_5_11_carriage_returns_in_bodies_warn_and_do_not_change_the_hash_elsewhere(
    plan: MigrationSet, database: Database
) -> None:
    text = "CREATE TABLE a(i int);\nCREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT\n1';\n"
    plan.add("001", "CREATE TABLE b(i int);\n").add("002", text.replace("\n", "\r\n"))
    results = run(plan, database)
    assert any("CRLF" in note and "002.sql" in note for note in results["notes"])
    plan.file("001.sql", "CREATE TABLE b(i int);\r\n")
    assert any("only white space" in note for note in run(plan, database)["notes"])


def test_5_12_a_statement_that_appears_by_losing_a_line_break_is_drift(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE t(i int)")
    plan.add("001", "SELECT 1;\n-- note\nDELETE FROM t;\n")
    run(plan, database)
    plan.file("001.sql", "SELECT 1;\n-- noteDELETE FROM t;\n")
    error = fails(DriftError, plan, database)
    assert "001 was changed after it was applied" in str(error)


def test_5_12_white_space_and_comments_only_warn_and_both_hashes_and_the_text_are_kept(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("001", "CREATE TABLE t(i int); -- first\n")
    run(plan, database)
    plan.file("001.sql", "-- another comment\nCREATE   TABLE t\n(i int)  ;\n")
    results = run(plan, database)
    assert results["changed"] is False
    assert any("001" in note and "white space or comments" in note for note in results["notes"])
    raw, token, text = database.query("SELECT raw_sha256, token_sha256, executed_text FROM surefoot.attempts")[0]
    assert len(raw) == len(token) == 64 and raw != token
    assert text == "CREATE TABLE t(i int); -- first\n"


# ---------------------------------------------------------------------------------------------------------------------
# 5.13 deferred constraints

DEFERRED = (
    "CREATE TABLE parent(i int PRIMARY KEY);\n"
    "CREATE TABLE child(i int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);\n"
    "INSERT INTO child VALUES (42);\n"
)


def test_5_13_deferred_violation_fails_the_migration_before_the_ledger_row(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("001", DEFERRED)
    error = fails(SqlError, plan, database)
    assert error.sqlstate == "23503" and "child" in str(error) and "orphans" in error.remedy
    assert "001.sql" in str(error), "it must say where"
    assert not exists(database, "child") and applied(database) == []
    assert attempts(database) == [("001", "deploy", "failed")]


def test_5_13_checks_before_commit_see_deferred_constraints_checked(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001",
        DEFERRED,
        verify=[
            {
                "name": "one child",
                "query": "SELECT count(*) FROM child",
                "expect": {"scalar": 1},
                "when": "before_commit",
            }
        ],
    )
    error = fails(SqlError, plan, database)
    assert error.sqlstate == "23503"
    assert not exists(database, "child")


def test_5_13_constraint_trigger_that_fires_at_commit_only_fails_the_migration(
    plan: MigrationSet, database: Database
) -> None:
    database.query(
        "CREATE TABLE t(i int); CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'not today'; END $$;"
        " CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION no()"
    )
    plan.add("001", "CREATE TABLE a(i int); INSERT INTO t VALUES (1);")
    error = fails(SqlError, plan, database)
    assert "not today" in str(error) and error.sqlstate == "P0001"
    assert not exists(database, "a") and applied(database) == []


def test_5_13_failing_check_before_commit_means_nothing_happened(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001",
        "CREATE TABLE a(i int);",
        verify=[{"name": "rows", "query": "SELECT count(*) FROM a", "expect": {"scalar": 5}, "when": "before_commit"}],
    )
    error = fails(VerificationFailed, plan, database)
    assert "rows" in str(error) and "nothing was changed" in str(error)
    assert not exists(database, "a")


def test_5_13_pending_trigger_events_name_the_remedy(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001",
        DEFERRED.replace("(42)", "(1)").replace("INSERT", "INSERT INTO parent VALUES (1); INSERT")
        + "ALTER TABLE child ADD c int;",
    )
    error = fails(SqlError, plan, database)
    assert error.sqlstate == "55006" and "SET CONSTRAINTS ALL IMMEDIATE" in error.remedy


# ---------------------------------------------------------------------------------------------------------------------
# 5.14 large files

_MB = 1024 * 1024


def _peak(pid: int, field: str) -> int:
    """Bytes of one field of /proc/<pid>/status; 0 when the process is gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def _measured(module: ModuleProcess, database: Database) -> tuple[int, int, dict[str, t.Any]]:
    """(peak memory of the module, peak private memory of its backend, result)."""
    runner = backend = 0
    pids: list[int] = []
    collected: list[t.Any] = []
    reader = Background(lambda: collected.append(module.wait(120)))
    while reader.running:
        runner = max(runner, _peak(module.process.pid, "VmHWM"))
        pids = pids or sessions(database, "surefoot:worker%")
        for pid in pids:
            backend = max(backend, _peak(pid, "RssAnon"))
        time.sleep(0.02)
    reader.result()
    return runner, backend, collected[0].result


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_5_14_memory_does_not_grow_with_the_file(plan: MigrationSet, database: Database) -> None:
    row = "INSERT INTO big VALUES ({number}, '" + "x" * 1400 + "');\n"
    plan.add("001", "CREATE TABLE big(i int, t text);\n" + row.format(number=0))
    small, _backend, _result = _measured(ModuleProcess(module_params(plan, database)), database)
    text = "".join(row.format(number=number) for number in range(1, 21_001))
    assert len(text) > 28 * _MB
    plan.add("002", text)
    runner, backend, result = _measured(ModuleProcess(module_params(plan, database)), database)
    assert result["applied"] == ["002"], result
    assert database.scalar("SELECT count(*) FROM big") == 21_001
    again, _backend, result = _measured(ModuleProcess(module_params(plan, database)), database)
    assert result["changed"] is False
    print(f"runner {small / _MB:.0f} MB, with 30 MB {runner / _MB:.0f} MB, again {again / _MB:.0f} MB")
    print(f"backend {backend / _MB:.0f} MB")
    assert runner - small < 20 * _MB and runner < 150 * _MB
    assert again - small < 20 * _MB
    assert 0 < backend < 50 * _MB


def test_5_14_one_large_copy_is_streamed(plan: MigrationSet, database: Database) -> None:
    rows = "".join(f"{number}\t{'y' * 500}\n" for number in range(40_000))
    plan.add("001", f"CREATE TABLE big(i int, t text);\nCOPY big FROM stdin;\n{rows}\\.\n")
    runner, backend, result = _measured(ModuleProcess(module_params(plan, database)), database)
    assert result["applied"] == ["001"]
    assert database.scalar("SELECT count(*) FROM big") == 40_000
    assert runner < 100 * _MB and backend < 50 * _MB
    text, size = database.query("SELECT executed_text, text_bytes FROM surefoot.attempts")[0]
    assert text is None and size > 19 * _MB  # too large for the ledger: hashes only


# ---------------------------------------------------------------------------------------------------------------------
# 5.15 idle limits


def test_5_15_idle_limits_of_the_role_do_not_end_a_run(plan: MigrationSet, database: Database, role: str) -> None:
    database.query(
        f"ALTER ROLE {role} SET idle_in_transaction_session_timeout = '300ms';"
        f" ALTER ROLE {role} SET idle_session_timeout = '300ms';"
        f" GRANT CREATE ON DATABASE {database.name} TO {role}"
    )
    plan.add("001", "CREATE TABLE a(i int); SELECT pg_sleep(1);")
    plan.add("002", steps=[("SELECT pg_sleep(1);\nVACUUM a;", False), "INSERT INTO a VALUES (1);"])
    params = {**database.params, "login_user": role}
    assert run(plan, params)["applied"] == ["001", "002"]
    assert database.query("SELECT i FROM a") == [(1,)]


def test_5_15_worker_ended_by_an_administrator_is_reported_and_nothing_stays(
    plan: MigrationSet, database: Database
) -> None:
    plan.add("001", "CREATE TABLE a(i int);\nSELECT pg_sleep(30);")
    job = Background(lambda: run(plan, database))
    pid = wait_until(lambda: worker_running(database, "pg_sleep"), "it sleeps")
    database.query("SELECT pg_terminate_backend(%s)", (pid,))
    with pytest.raises(ConnectionFailed) as caught:
        job.result()
    assert "001.sql:2:1" in str(caught.value) and "run again" in str(caught.value)
    assert not exists(database, "a") and attempts(database) == [("001", "deploy", "failed")]


# ---------------------------------------------------------------------------------------------------------------------
# 5.16 a restored copy


def test_5_16_restored_copy_brings_the_ledger_along_and_no_lock(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int PRIMARY KEY); INSERT INTO a VALUES (1);")
    run(plan, database)
    plan.add("002", "SELECT pg_sleep(60);", statement_timeout="2m").add("003", "CREATE TABLE c(i int);")
    busy = ModuleProcess(module_params(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "a run is in progress")
    text = dump(database)
    busy.kill(signal.SIGTERM)
    busy.wait()
    with temporary_database(database.server) as copy:
        done = psql(copy, text, "--single-transaction")
        assert done.returncode == 0, done.stderr
        plan.file("002.sql", "CREATE TABLE b(i int);")
        assert run(plan, copy, on_busy="fail")["applied"] == ["002", "003"]
        assert copy.query("SELECT i FROM a") == [(1,)]


def test_5_16_copy_that_was_restored_whole_has_nothing_pending_and_no_drift(
    plan: MigrationSet, database: Database
) -> None:
    plan.add(
        "001",
        "CREATE TABLE a(i int PRIMARY KEY, t text GENERATED ALWAYS AS (i::text) STORED);"
        " CREATE VIEW v AS SELECT * FROM a;",
    )
    run(plan, database)
    with temporary_database(database.server) as copy:
        assert psql(copy, dump(database)).returncode == 0
        results = run(plan, copy)
        assert results["changed"] is False and results["drift"] == []
        plan.add("002", "CREATE TABLE b(i int);")
        assert run(plan, copy)["applied"] == ["002"]
