# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The watch over a real migration: each limit exceeded for real, and runs that nothing must stop."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pathlib
import stat
import threading
import typing as t

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import DEFAULT_SCHEMA, advisory_key
from ansible_collections.surefoot.dbops.plugins.module_utils._vitals import Limits, Vitals, run_watched
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    Background,
    MigrationSet,
    applied,
    attempts,
    exists,
    nothing_left,
    run,
    run_module,
    sessions,
    wait_until,
    worker_running,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database
from ansible_collections.surefoot.dbops.tests.support.standby import running_standby

BRISK = {"interval": 0.1, "samples": 2}
SLEEPS = "CREATE TABLE made(i int); SELECT pg_sleep(25);"


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


@pytest.fixture
def run_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "run"


def watched(
    plan: MigrationSet,
    database: Database,
    run_dir: pathlib.Path | None = None,
    *,
    user: str | None = None,
    engine: dict[str, t.Any] | None = None,
    **options: t.Any,
) -> dict[str, t.Any]:
    """A run with the watch around it, as the module does it."""
    params = {**database.params, **({"login_user": user} if user else {})}
    vitals = Vitals(
        ConnectionOptions.from_params(params),
        Limits.from_options({**BRISK, **options}),
        run_id="r1",
        worker_key=advisory_key(DEFAULT_SCHEMA, "worker"),
        run_dir=str(run_dir) if run_dir else None,
        ledger_schema=DEFAULT_SCHEMA,
    )
    keywords = {"guard": vitals.guard, "run_dir": str(run_dir) if run_dir else None, "run_id": "r1", **(engine or {})}
    return run_watched(vitals, lambda: run(plan, params, **keywords), keywords["run_dir"])


def verdicts(results: dict[str, t.Any]) -> dict[str, str]:
    return {item["criterion"]: item["verdict"] for item in results["evidence"] if item["criterion"][:6] == "watch."}


def record_of(results: dict[str, t.Any], criterion: str) -> dict[str, t.Any]:
    found = [item for item in results["evidence"] if item["criterion"] == criterion]
    assert len(found) == 1
    record: dict[str, t.Any] = found[0]
    return record


def stopped(task: Background[dict[str, t.Any]], database: Database, criterion: str) -> SurefootError:
    """The run must have been stopped for this criterion, and nothing of it be left."""
    with pytest.raises(SurefootError) as caught:
        task.result(25)
    error = caught.value
    assert (error.code, error.details["criterion"]) == ("watch_limit", criterion), error
    assert {name for name, verdict in verdicts(error.results).items() if verdict == "fail"} == {criterion}
    assert error.results["applied"] == [] and error.results["changed"] is False
    assert applied(database) == [] and not exists(database, "made")
    assert attempts(database) == [("001", "deploy", "failed")]
    nothing_left(database)
    return error


def working(database: Database) -> int | None:
    return worker_running(database, "pg_sleep")


# --- what stops a run


def test_a_server_filling_up_with_connections_stops_the_run(plan: MigrationSet, database: Database) -> None:
    plan.add("001", SLEEPS)
    task = Background(lambda: watched(plan, database, max_connections_used="40%"))
    wait_until(lambda: working(database), "the migration works")
    with contextlib.ExitStack() as others:
        for _number in range(24):
            others.enter_context(contextlib.closing(database.connect()))
        error = stopped(task, database, "watch.connections")
    assert "connections used" in str(error) and "at most 40%" in str(error) and str(error.remedy) in str(error)
    assert error.details["measured"] > 40


def test_a_server_without_a_free_connection_for_the_watch_is_full(database: Database) -> None:
    role = f"late_{database.name}"
    database.query(f"CREATE ROLE {role} LOGIN")
    stops: list[SurefootError] = []
    vitals = Vitals(
        ConnectionOptions.from_params({**database.params, "login_user": role}),
        Limits.from_options(BRISK),
        run_id="r1",
        worker_key=advisory_key(DEFAULT_SCHEMA, "worker"),
    )
    with contextlib.ExitStack() as others:
        with contextlib.suppress(psycopg2.OperationalError):
            while True:
                others.enter_context(contextlib.closing(database.connect()))
        with vitals.guard(stops.append):
            wait_until(lambda: stops, "the run is stopped")
    assert [error.details["criterion"] for error in stops] == ["watch.connections"]
    found = {item.criterion: item.verdict for item in vitals.evidence()}
    assert (found["watch.connections"], found["watch.wal_rate"]) == ("fail", "not_measured")
    database.query(f"DROP ROLE {role}")


def test_write_ahead_log_written_too_fast_by_anybody_stops_the_run(plan: MigrationSet, database: Database) -> None:
    plan.add("001", SLEEPS)
    database.query("CREATE TABLE filler(t text)")
    task = Background(lambda: watched(plan, database, wal_rate_max="8MB/min"))
    wait_until(lambda: working(database), "the migration works")
    database.query("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 15000)")
    error = stopped(task, database, "watch.wal_rate")
    assert error.details["measured"] > 8 * 2**20


@pytest.mark.parametrize(
    "limit", [{"max_waiters": 2, "max_wait": "none"}, {"max_waiters": "none", "max_wait": "300ms"}]
)
def test_sessions_queued_behind_the_migration_stop_it_and_then_get_their_turn(
    plan: MigrationSet, database: Database, limit: dict[str, t.Any]
) -> None:
    database.query("CREATE TABLE busy(i int)")
    plan.add("001", "SET application_name = 'in disguise'; LOCK TABLE busy IN ACCESS EXCLUSIVE MODE; " + SLEEPS)
    task = Background(lambda: watched(plan, database, engine={"lock_budget": 20.0}, **limit))
    wait_until(
        lambda: database.scalar(
            "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"
            " AND relation = to_regclass('busy')"
        ),
        "the migration holds its lock",
    )
    readers = [Background(lambda: database.scalar("SELECT count(*) FROM busy")) for _number in range(3)]
    error = stopped(task, database, "watch.waiters")
    assert "blocked by the migration" in str(error)
    assert [reader.result(5) for reader in readers] == [0, 0, 0]
    assert record_of(error.results, "watch.waiters")["measured"]["waiters"]["max"] == 3


TEMPORARY = {
    "table": "CREATE TEMP TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 9000)",
    "file": "SET work_mem = '64kB'; BEGIN; DECLARE c CURSOR FOR SELECT repeat('x', 1000) FROM"
    " generate_series(1, 9000) AS i ORDER BY random(); FETCH 1 FROM c",
    "named": "INSERT INTO quarantine SELECT repeat('x', 1000) FROM generate_series(1, 9000)",
}


@pytest.mark.parametrize("kind", TEMPORARY)
def test_growing_temporary_data_stop_the_run(plan: MigrationSet, database: Database, kind: str) -> None:
    database.query("CREATE TABLE quarantine AS SELECT repeat('x', 1000) AS t FROM generate_series(1, 9000)")
    plan.add("001", SLEEPS)
    task = Background(lambda: watched(plan, database, temp_max="5MB", tables=["public.quarantine", "no.such"]))
    wait_until(lambda: working(database), "the migration works")
    with contextlib.closing(database.connect()) as other, other.cursor() as cursor:
        cursor.execute(TEMPORARY[kind])
        stopped(task, database, "watch.temp_tables")


def test_a_growing_quarantine_stops_the_run(plan: MigrationSet, database: Database) -> None:
    plan.add("001", SLEEPS)
    task = Background(lambda: watched(plan, database, quarantine_max="5MB"))
    wait_until(lambda: working(database), "the migration works")
    database.query("CREATE TABLE surefoot.quarantine AS SELECT repeat('x', 1000) FROM generate_series(1, 9000)")
    error = stopped(task, database, "watch.quarantine")
    assert "growth of the quarantine" in str(error) and "at most 5.0 MB" in str(error)


def test_too_little_room_on_the_servers_disk_stops_the_run(plan: MigrationSet, database: Database) -> None:
    plan.add("001", SLEEPS)
    error = stopped(Background(lambda: watched(plan, database, disk_min_free="9000TB")), database, "watch.disk")
    assert "at least 9000.0 TB" in str(error)
    assert error.details["measured"] > 0


def test_a_replica_that_stops_replaying_stops_the_run(plan: MigrationSet, database: Database) -> None:
    plan.add("001", SLEEPS)
    database.query("CREATE TABLE filler(t text)")
    with running_standby(database.server) as standby, contextlib.closing(standby.connect()) as there:
        with there.cursor() as cursor:
            cursor.execute("SELECT pg_wal_replay_pause()")
        task = Background(lambda: watched(plan, database, replica_lag_max="500ms"))
        wait_until(lambda: working(database), "the migration works")
        database.query("INSERT INTO filler VALUES ('x')")
        stopped(task, database, "watch.replica_lag")


class Application(http.server.ThreadingHTTPServer):
    """An application of which the test says what it answers."""

    status = 200
    daemon_threads = True

    def __init__(self) -> None:
        self.first: list[int] = []  # answers to the first requests
        super().__init__(("127.0.0.1", 0), _Answer)


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = t.cast(Application, self.server)
        self.send_response(server.first.pop(0) if server.first else server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: t.Any) -> None:
        pass


@pytest.fixture
def application() -> t.Iterator[Application]:
    with Application() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def url_of(application: Application) -> str:
    return f"http://127.0.0.1:{application.server_address[1]}/health"


@pytest.mark.parametrize("status", [500, 403])
def test_an_endpoint_that_breaks_during_the_run_stops_it(
    plan: MigrationSet, database: Database, application: Application, status: int
) -> None:
    plan.add("001", SLEEPS)
    task = Background(lambda: watched(plan, database, endpoints=[{"url": url_of(application)}]))
    wait_until(lambda: working(database), "the migration works")
    application.status = status
    error = stopped(task, database, "watch.endpoints")
    assert str(status) in str(error) and "/health" in str(error)
    assert error.details["measured"][0]["last_status"] == status


# --- what does not


def test_a_quiet_run_passes_every_criterion_that_has_a_limit(
    plan: MigrationSet, database: Database, application: Application, run_dir: pathlib.Path
) -> None:
    plan.add("001", "CREATE TABLE made(i int); SELECT pg_sleep(0.5);")
    results = watched(
        plan, database, run_dir, disk_min_free="1MB", temp_max="1GB", endpoints=[{"url": url_of(application)}]
    )
    assert results["applied"] == ["001"] and exists(database, "made") and results["notes"] == []
    assert verdicts(results) == {
        "watch.connections": "pass",
        "watch.wal_rate": "pass",
        "watch.waiters": "pass",
        "watch.replica_lag": "not_applicable",
        "watch.temp_tables": "pass",
        "watch.quarantine": "pass",
        "watch.disk": "pass",
        "watch.endpoints": "pass",
    }
    recorded = [json.loads(line) for line in (run_dir / "evidence.jsonl").read_text().splitlines()]
    assert {item["criterion"] for item in recorded} >= set(verdicts(results))
    samples = [json.loads(line) for line in (run_dir / "watch.jsonl").read_text().splitlines()]
    assert len(samples) >= 3
    assert stat.S_IMODE(os.stat(run_dir / "watch.jsonl").st_mode) == 0o600
    assert all(sample["connections_percent"] > 0 and sample["disk_free"] > 2**20 for sample in samples)
    assert samples[-1]["endpoints"][0]["last_status"] == 200
    nothing_left(database)


def test_a_migration_of_a_moment_has_a_sample_before_and_after(
    plan: MigrationSet, database: Database, run_dir: pathlib.Path
) -> None:
    plan.add("001", "CREATE TABLE made(i int);")
    results = watched(plan, database, run_dir, interval=60, disk_min_free="none")
    assert record_of(results, "watch.connections")["verdict"] == "pass"
    assert record_of(results, "watch.disk")["verdict"] == "not_applicable"
    assert record_of(results, "watch.disk")["measured"]["last"] > 0
    assert len((run_dir / "watch.jsonl").read_text().splitlines()) == 2
    assert verdicts(watched(plan, database)) == {}  # nothing pending, nothing watched


def test_two_failures_in_a_row_are_no_reason_to_stop_when_three_are_asked_for(
    plan: MigrationSet, database: Database, application: Application
) -> None:
    plan.add("001", "SELECT pg_sleep(0.6);")
    application.first = [500, 500, 200, 403, 403]
    results = watched(plan, database, samples=3, endpoints=[{"url": url_of(application)}])
    record = record_of(results, "watch.endpoints")
    assert record["verdict"] == "pass"
    assert record["details"]["endpoints"][0]["longest_run_of_failures"] == 2


def test_a_role_that_sees_no_statistics_gets_no_verdict_from_zeros(plan: MigrationSet, database: Database) -> None:
    role = f"blind_{database.name}"
    database.query(f"CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {database.name} TO {role}")
    database.query(f"GRANT CREATE ON SCHEMA public TO {role}")
    plan.add("001", "CREATE TABLE made(i int);")
    try:
        with running_standby(database.server):
            results = watched(plan, database, user=role, temp_max="1GB")
        assert verdicts(results) == {
            "watch.connections": "pass",
            "watch.wal_rate": "pass",
            "watch.waiters": "pass",
            "watch.replica_lag": "not_measured",
            "watch.temp_tables": "not_measured",
            "watch.quarantine": "pass",
            "watch.disk": "not_measured",
            "watch.endpoints": "not_applicable",
        }
        assert "pg_monitor" in record_of(results, "watch.replica_lag")["details"]["reason"]
    finally:
        database.query(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def end_watch(database: Database) -> int:
    pid = wait_until(lambda: sessions(database, "surefoot:watch%"), "the watch is connected")[0]
    database.query("SELECT pg_terminate_backend(%s)", (pid,))
    return pid


def test_the_watch_comes_back_after_its_session_was_ended(plan: MigrationSet, database: Database) -> None:
    plan.add("001", SLEEPS)
    task = Background(lambda: watched(plan, database, samples=12, max_connections_used="none", wal_rate_max="8MB"))
    wait_until(lambda: working(database), "the migration works")
    pid = end_watch(database)
    wait_until(lambda: set(sessions(database, "surefoot:watch%")) - {pid}, "the watch is back")
    database.query("CREATE TABLE filler AS SELECT repeat('x', 1000) AS t FROM generate_series(1, 15000)")
    error = stopped(task, database, "watch.wal_rate")
    assert record_of(error.results, "watch.waiters")["details"]["samples_missed_in_a_row"] >= 1


def test_a_watch_that_stays_lost_stops_nothing_and_passes_nothing(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE made(i int); SELECT pg_sleep(1.5);")
    task = Background(lambda: watched(plan, database))
    wait_until(lambda: working(database), "the migration works")
    with contextlib.closing(database.connect()) as admin, admin.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'surefoot:watch%%'")
        cursor.execute(f"ALTER DATABASE {database.name} CONNECTION LIMIT 0")
        cursor.execute(f"UPDATE pg_database SET datallowconn = false WHERE datname = '{database.name}'")
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'surefoot:watch%'"
        )
        results = task.result()
        cursor.execute(f"UPDATE pg_database SET datallowconn = true WHERE datname = '{database.name}'")
    assert results["applied"] == ["001"]
    assert {verdicts(results)[f"watch.{name}"] for name in ("connections", "wal_rate", "waiters", "disk")} == {
        "not_measured"
    }
    record = record_of(results, "watch.connections")
    assert record["measured"]["last"] > 0 and "connection failed" in record["details"]["reason"]


def test_statements_outside_a_transaction_are_stopped_too(plan: MigrationSet, database: Database) -> None:
    plan.add("001", steps=[("CREATE INDEX CONCURRENTLY late ON busy (i);", False)])
    database.query("CREATE TABLE busy(i int)")
    with contextlib.closing(database.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN; INSERT INTO busy VALUES (1)")  # what CREATE INDEX CONCURRENTLY waits for
        with pytest.raises(SurefootError) as caught:
            watched(plan, database, disk_min_free="9000TB")
    assert caught.value.code == "watch_limit"
    assert applied(database) == []
    assert watched(plan, database, disk_min_free="1MB")["applied"] == ["001"]  # and the next run goes on
    assert database.query("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('late')") == [(True,)]


def test_the_module_takes_the_watch_as_an_option(plan: MigrationSet, database: Database, run_dir: pathlib.Path) -> None:
    plan.add("001", "CREATE TABLE made(i int); SELECT pg_sleep(25);")
    watch = {"interval": "100ms", "samples": 2, "disk_min_free": "9000TB"}
    failed = run_module(plan, database, watch=watch, run_dir=str(run_dir)).result
    assert failed["failed"] and failed["error"]["code"] == "watch_limit"
    assert verdicts(failed)["watch.disk"] == "fail" and applied(database) == []
    plan.add("001", "CREATE TABLE made(i int);")
    done = run_module(plan, database, watch={}, run_dir=str(run_dir)).result
    assert done["applied"] == ["001"] and verdicts(done)["watch.wal_rate"] == "pass"
    again = run_module(plan, database, watch={}, run_dir=str(run_dir)).result
    assert again["changed"] is False and verdicts(again) == {}
