# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors counted in the log of a real server, and logs that must not be believed."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import shutil
import typing as t

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _serverlog
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import DEFAULT_SCHEMA, advisory_key
from ansible_collections.surefoot.dbops.plugins.module_utils._serverlog import examine
from ansible_collections.surefoot.dbops.plugins.module_utils._vitals import Limits, Vitals
from ansible_collections.surefoot.dbops.tests.support.migrations import ModuleProcess, wait_until
from ansible_collections.surefoot.dbops.tests.support.pgserver import (
    Database,
    PgServer,
    running_server,
    temporary_database,
)

SECRET = "hunter2-4111"


@pytest.fixture(scope="module")
def logging_server() -> t.Iterator[PgServer]:
    """A server that writes every format there is; jsonlog came with PostgreSQL 15."""
    settings = {
        "logging_collector": True,
        "log_destination": "stderr,csvlog",
        "log_filename": "log-%Y%m%d_%H%M%S.log",
        "log_timezone": "Europe/Berlin",
    }
    with running_server(settings=settings) as server:
        if server.version >= 150000:
            with contextlib.closing(server.connect()) as admin, admin.cursor() as cursor:
                cursor.execute("ALTER SYSTEM SET log_destination = 'stderr,csvlog,jsonlog'")
                cursor.execute("SELECT pg_reload_conf()")
                wait_until(lambda: current(server, "jsonlog"), "the server writes jsonlog")
        yield server


@pytest.fixture
def logged(logging_server: PgServer) -> t.Iterator[Database]:
    with temporary_database(logging_server) as database:
        yield database


def current(server: PgServer, kind: str) -> str | None:
    with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_logfile(%s)", (kind,))
        name = (cursor.fetchone() or (None,))[0]
    return os.path.join(server.data_dir, name) if name else None


@pytest.fixture(params=["jsonlog", "csvlog"])
def path(request: pytest.FixtureRequest, logging_server: PgServer) -> str:
    found = current(logging_server, request.param)
    if found is None:
        pytest.skip("this PostgreSQL has no jsonlog")
    return found


def ask(database: Database, user: str | None = None, **options: t.Any) -> dict[str, t.Any]:
    with contextlib.closing(
        database.connect(application_name="surefoot:log", **({"user": user} if user else {}))
    ) as own:
        return examine(own, **options)


def fail(database: Database, *statements: str, name: str = "api") -> None:
    """Statements that the server refuses, in a session of an application."""
    with contextlib.closing(database.connect(application_name=name)) as session, session.cursor() as cursor:
        for statement in statements:
            with pytest.raises(psycopg2.Error):
                cursor.execute(statement)


DENIED = "SET ROLE pg_monitor; SELECT * FROM hidden"


def verdicts(results: dict[str, t.Any]) -> dict[str, str]:
    return {item.criterion.partition(".")[2]: item.verdict for item in results["evidence"]}


def prepare(database: Database) -> None:
    database.query("CREATE TABLE hidden(i int PRIMARY KEY); CREATE TABLE child(i int REFERENCES hidden)")


def test_errors_since_a_position_are_counted_by_kind(logged: Database, path: str) -> None:
    prepare(logged)
    fail(logged, DENIED)
    start = ask(logged, path=path)
    assert start["readable"] and start["counts"] is None and start["evidence"] == []
    quiet = ask(logged, path=path, start=start["position"])
    assert verdicts(quiet) == dict.fromkeys(["permission_denied", "foreign_key_violation", "fatal"], "pass") | {
        "errors": "pass"
    }
    fail(
        logged,
        DENIED,
        "RESET ROLE; INSERT INTO child VALUES (7)",
        f"SELECT '{SECRET}, \"quoted\"\nand more'::int",
        f"DO $$ BEGIN RAISE 'permission denied for table {SECRET}' USING ERRCODE = '23503'; END $$",
        f"DO $$ BEGIN RAISE 'a line' USING DETAIL = '{SECRET}', HINT = E'two\\nlines \"'; END $$",
    )
    with pytest.raises(psycopg2.OperationalError):
        logged.connect(user="nobody_at_all")
    results = ask(logged, path=path, start=start["position"], limits={"errors": None})
    counts = results["counts"]
    assert (counts["errors"], counts["permission_denied"], counts["foreign_key_violation"]) == (6, 1, 2)
    assert (counts["fatal"], counts["panic"], counts["own"], counts["unreadable"]) == (1, 0, 0, 0)
    assert counts["by_sqlstate"] == {"42501": 1, "23503": 2, "22P02": 1, "P0001": 1, "28000": 1}
    assert verdicts(results) == {
        "permission_denied": "fail",
        "foreign_key_violation": "fail",
        "fatal": "fail",
        "errors": "not_applicable",
    }
    shown = results["entries"]
    assert shown[0]["message"] == "permission denied for table hidden"
    assert {key: shown[0][key] for key in ("user", "database", "application_name", "severity", "sqlstate")} == {
        "user": "postgres",
        "database": logged.name,
        "application_name": "api",
        "severity": "ERROR",
        "sqlstate": "42501",
    }
    assert 'violates foreign key constraint "child_i_fkey"' in shown[1]["message"]
    assert shown[2]["message"] == "(invalid_text_representation)"
    assert "4111" not in json.dumps([results["entries"], counts, [e.to_dict() for e in results["evidence"]]])


def test_our_own_negative_tests_and_other_databases_are_counted_apart(logged: Database, path: str) -> None:
    prepare(logged)
    start = ask(logged, path=path)["position"]
    fail(logged, DENIED, DENIED, name="surefoot:worker r1")
    with temporary_database(logged.server) as other:
        prepare(other)
        fail(other, DENIED)
    results = ask(logged, path=path, start=start)
    assert (results["counts"]["errors"], results["counts"]["own"], results["counts"]["other_databases"]) == (0, 2, 1)
    assert set(verdicts(results).values()) == {"pass"}
    assert results["evidence"][0].details["own_errors"] == 2


def test_errors_are_followed_over_rotations(logged: Database, logging_server: PgServer) -> None:
    prepare(logged)
    start = ask(logged)["position"]
    for _number in range(2):
        fail(logged, DENIED)
        before = current(logging_server, "csvlog")

        def rotated(before: str | None = before) -> bool:
            logged.query("SELECT pg_rotate_logfile()")
            return current(logging_server, "csvlog") != before

        wait_until(rotated, "the server writes another file")
    fail(logged, DENIED)
    results = ask(logged, start=start)
    assert results["counts"]["permission_denied"] == 3
    assert results["position"]["file"] != start["file"]


def test_a_file_that_was_begun_anew_is_not_measured(logged: Database, logging_server: PgServer) -> None:
    position = ask(logged)["position"]
    gone = os.path.join(logging_server.data_dir, "log", position["file"])
    text = pathlib.Path(gone).read_bytes()
    pathlib.Path(gone).write_bytes(text[-300:] + text)  # as a log_filename of the weekday has it after a week
    results = ask(logged, start=position)
    assert not results["readable"] and "begun anew" in results["reason"]
    assert set(verdicts(results).values()) == {"not_measured"}
    results = ask(logged, start={**position, "file": "log-19990101_000000.csv"})
    assert not results["readable"] and "No such file" in results["reason"]


def test_errors_since_a_time_are_counted_in_the_servers_time_zone(logged: Database, path: str) -> None:
    prepare(logged)
    fail(logged, DENIED)
    moment = logged.scalar("SELECT clock_timestamp()")
    fail(logged, DENIED, DENIED)
    assert ask(logged, path=os.path.dirname(path), since=moment)["counts"]["permission_denied"] == 2
    later = moment + datetime.timedelta(hours=1)
    assert ask(logged, path=path, since=later)["counts"]["permission_denied"] == 0


def test_the_stderr_format_is_not_measured_and_the_remedy_says_what_to_set(database: Database) -> None:
    results = ask(database)
    assert not results["readable"] and results["position"] is None
    assert "logging_collector = on" in results["remedy"] and "log_destination = '" in results["remedy"]
    assert set(verdicts(results).values()) == {"not_measured"}


def test_a_role_that_may_not_see_the_log_is_told_what_to_ask_for(logged: Database, path: str) -> None:
    role = f"blind_{logged.name}"
    logged.query(f"CREATE ROLE {role} LOGIN")
    try:
        assert "pg_monitor" in ask(logged, user=role)["remedy"]
        assert ask(logged, user=role, path=path)["readable"]  # who can read the file needs no privilege
    finally:
        logged.query(f"DROP ROLE {role}")


def test_the_log_of_another_server_is_not_believed(
    logged: Database, path: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_serverlog, "_MARKER_SECONDS", 0.3)
    shutil.copy(path, tmp_path)
    results = ask(logged, path=str(tmp_path))
    assert not results["readable"] and "did not appear" in results["reason"]


@pytest.mark.parametrize("level", ["log", "fatal"])
def test_a_log_that_errors_do_not_reach_is_not_measured(logged: Database, path: str, level: str) -> None:
    logged.query(f"ALTER DATABASE {logged.name} SET log_min_messages = {level}")
    results = ask(logged, path=path)
    assert not results["readable"] and f"log_min_messages={level}" in results["reason"]


def test_a_directory_without_logs_is_not_measured(logged: Database, tmp_path: pathlib.Path) -> None:
    assert not ask(logged, path=str(tmp_path))["readable"]
    assert "cannot be read here" in ask(logged, path=str(tmp_path / "none" / "x.csv"))["reason"]


def test_a_position_that_leads_out_of_the_directory_is_refused(logged: Database) -> None:
    with pytest.raises(PlanError):
        ask(logged, start={"file": "../../etc/passwd", "offset": 0, "tail_sha256": ""})


def test_the_module_hands_the_position_from_call_to_call(logged: Database, tmp_path: pathlib.Path) -> None:
    prepare(logged)
    first = ModuleProcess({**logged.params}, module="postgresql_log_info").wait()
    assert first.returncode == 0, first.stdout + first.stderr
    fail(logged, DENIED)
    params = {**logged.params, "position": first.result["position"], "run_dir": str(tmp_path / "run")}
    second = ModuleProcess(params, module="postgresql_log_info").wait().result
    assert second["changed"] is False and second["counts"]["permission_denied"] == 1
    lines = (tmp_path / "run" / "evidence.jsonl").read_text().splitlines()
    assert {json.loads(line)["criterion"] for line in lines} == set(_serverlog.CRITERIA)


def test_the_watch_reads_the_log_during_the_run(logged: Database, tmp_path: pathlib.Path) -> None:
    prepare(logged)
    vitals = Vitals(
        ConnectionOptions.from_params(logged.params),
        Limits(interval=0.1),
        run_id="r1",
        worker_key=advisory_key(DEFAULT_SCHEMA, "worker"),
        run_dir=str(tmp_path),
    )

    def denials() -> int:
        last = (tmp_path / "watch.jsonl").read_text().splitlines()[-1]
        count: int = json.loads(last)["server_log"]["permission_denied"]
        return count

    with vitals.guard(lambda _error: None):
        assert denials() == 0
        fail(logged, DENIED)
        wait_until(lambda: denials() == 1, "a sample shows the error")
