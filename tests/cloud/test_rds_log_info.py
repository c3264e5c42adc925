# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of a real PostgreSQL server, handed out by the shim as the API of RDS does."""

from __future__ import annotations

import contextlib
import datetime
import os
import pathlib
import typing as t

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._rds_log import _CUT, LogFile
from ansible_collections.surefoot.dbops.plugins.modules import rds_log_info
from ansible_collections.surefoot.dbops.tests.support.pgserver import (
    Database,
    PgServer,
    running_server,
    temporary_database,
)
from ansible_collections.surefoot.dbops.tests.support.rds_shim import Shim
from ansible_collections.surefoot.dbops.tests.support.rds_tasks import perform, verdicts

pytest_plugins = ["ansible_collections.surefoot.dbops.tests.support.rds_fixtures"]


@pytest.fixture(scope="module")
def csv_server() -> t.Iterator[PgServer]:
    settings = {
        "logging_collector": True,
        "log_destination": "stderr,csvlog",
        "log_filename": "postgresql.log.%Y-%m-%d-%H",
        "log_timezone": "UTC",
    }
    with running_server(settings=settings) as server:
        yield server


@pytest.fixture
def logged(csv_server: PgServer) -> t.Iterator[Database]:
    with temporary_database(csv_server) as database:
        yield database


@pytest.fixture
def files(rds: Shim, csv_server: PgServer) -> dict[str, pathlib.Path]:
    """The shim hands out the files of the real server under the names RDS gives them."""
    directory = pathlib.Path(csv_server.data_dir) / "log"
    rds.log_files = {f"error/{path.name}": path for path in directory.iterdir()}
    assert any(name.endswith(".csv") for name in rds.log_files)
    return rds.log_files


def log(rds: Shim, database: Database, since: datetime.datetime, **options: t.Any) -> dict[str, t.Any]:
    return perform(rds_log_info, rds, since=since.isoformat(), **database.params, **options)


def provoke(database: Database, *statements: str, name: str = "api") -> None:
    with contextlib.closing(database.connect(application_name=name)) as session, session.cursor() as cursor:
        for statement in statements:
            with pytest.raises(psycopg2.Error):
                cursor.execute(statement)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


FOREIGN_KEY = "CREATE TABLE a (i int PRIMARY KEY); CREATE TABLE b (i int REFERENCES a)"
MULTI_LINE = "SELECT 'line one\nline \"two\", with a comma\n' / 1"


@pytest.mark.parametrize("portion", [100, 4096, 10**7])
def test_errors_since_a_time_are_counted_over_pages(
    rds: Shim, logged: Database, files: dict[str, pathlib.Path], portion: int
) -> None:
    """Pages end anywhere: within a line, within a quoted field."""
    rds.portion = portion
    provoke(logged, "SELECT 1/0")  # before
    since = now()
    logged.query(FOREIGN_KEY)
    provoke(logged, "INSERT INTO b VALUES (1)", MULTI_LINE, "SELECT no_such_column")
    provoke(logged, "SELECT 1/0", name="surefoot:verify")
    results = log(rds, logged, since)
    assert results["readable"], results["reason"]
    assert results["counts"]["errors"] == 3 and results["counts"]["foreign_key_violation"] == 1
    assert results["counts"]["own"] == 1 and results["counts"]["unreadable"] == 0
    found = verdicts(results)
    assert found["serverlog.foreign_key_violation"] == "fail" and found["serverlog.permission_denied"] == "pass"
    assert found["serverlog.errors"] == "not_applicable"
    assert any(name.endswith(".csv") for name in results["files"])
    assert "line one" not in str(results)


def test_nothing_since_is_zero_and_passes(rds: Shim, logged: Database, files: dict[str, pathlib.Path]) -> None:
    provoke(logged, "SELECT 1/0")
    results = log(rds, logged, now(), max_errors=0)
    assert results["counts"]["errors"] == 0 and set(verdicts(results).values()) == {"pass"}


def test_the_log_of_another_server_is_not_believed(
    rds: Shim, logged: Database, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_bytes(b"")
    rds.log_files = {"error/other.csv": other}
    results = log(rds, logged, now() - datetime.timedelta(hours=1), timeout="600ms")
    assert not results["readable"] and "did not appear" in results["reason"]
    assert set(verdicts(results).values()) == {"not_measured"}


def test_lines_that_come_late_are_waited_for(
    rds: Shim, logged: Database, files: dict[str, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = now()
    provoke(logged, "SELECT 1/0")
    late = tmp_path / "late.csv"
    late.write_bytes(b"")
    real = next(path for name, path in files.items() if name.endswith(".csv"))
    rds.log_files = {"error/late.csv": late}
    from ansible_collections.surefoot.dbops.plugins.module_utils import _aws

    def pause(_self: _aws.Api, _seconds: float) -> None:
        late.write_bytes(real.read_bytes())

    monkeypatch.setattr(_aws.Api, "pause", pause)
    results = log(rds, logged, since)
    assert results["readable"] and results["counts"]["errors"] == 1


@pytest.mark.parametrize("left", ["stderr", "none"])
def test_without_csvlog_it_says_what_to_set(
    rds: Shim, logged: Database, files: dict[str, pathlib.Path], left: str
) -> None:
    rds.log_files = {name: path for name, path in files.items() if left == "stderr" and not name.endswith(".csv")}
    results = log(rds, logged, now() - datetime.timedelta(hours=1))
    assert not results["readable"] and "log_destination = csvlog" in results["remedy"]
    assert set(verdicts(results).values()) == {"not_measured"}


def test_a_record_that_was_cut_keeps_a_zero_from_passing(
    rds: Shim, logged: Database, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    since = now()
    cut = tmp_path / "cut.csv"
    cut.write_text(f"2026-11-22 02:00:01.123 UTC,,{_CUT}\n", encoding="utf-8")
    rds.log_files = {**files, "error/cut.csv": cut}
    os.utime(cut)
    results = log(rds, logged, since, max_errors=0)
    assert results["readable"] and results["counts"]["unreadable"] == 1
    assert set(verdicts(results).values()) == {"not_measured"}


def test_a_right_that_is_missing_is_an_error(rds: Shim, logged: Database, files: dict[str, pathlib.Path]) -> None:
    text = "User: x is not authorized to perform: rds:DownloadDBLogFilePortion"
    rds.refused["DownloadDBLogFilePortion"] = (403, "AccessDenied", text)
    results = log(rds, logged, now())
    assert results["failed"] and "rds:DownloadDBLogFilePortion" in results["msg"]


def test_a_record_that_never_ends_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.surefoot.dbops.plugins.module_utils import _rds_log

    monkeypatch.setattr(_rds_log, "_MAX_RECORD", 1000)
    file = LogFile(t.cast("t.Any", None), "x", "y")
    assert list(file._feed('a,"' + "long\n" * 1000)) == []
    assert sum(map(len, file._record)) <= 1000
    assert list(file._feed('"\n')) == [None]
