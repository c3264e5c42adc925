# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds a backfill back: replicas, write-ahead log, sessions that wait for locks, connections; and what a watch
would stop is held back before."""

from __future__ import annotations

import contextlib
import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import LockBusy
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    Background,
    MigrationSet,
    fails,
    run,
    run_module,
    wait_until,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer
from ansible_collections.surefoot.dbops.tests.support.standby import running_standby


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


def fill(database: Database, plan: MigrationSet, rows: int, deadline: str = "1s", **options: t.Any) -> None:
    """A table, and the backfill of it with these limits."""
    database.query("CREATE TABLE big (id int PRIMARY KEY, done boolean, filler text)")
    database.query("INSERT INTO big SELECT n, NULL, repeat('x', 500) FROM generate_series(1, %s) AS n", (rows,))
    step = {"table": "public.big", "key": "id", "set": {"done": "true"}, "batch": rows // 20, **options}
    plan.add("001_fill", steps=[step], retry={"attempts": 3, "deadline": deadline})


def filled(database: Database) -> int:
    return int(database.scalar("SELECT count(*) FROM big WHERE done"))


def test_write_ahead_log_is_written_at_the_rate_that_is_allowed(plan: MigrationSet, database: Database) -> None:
    """Some 3 MB at 1 MB a second."""
    fill(database, plan, 4000, "1m", max_wal_rate="60MB/min")
    before = database.scalar("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
    results = run(plan, database)
    written = float(database.scalar("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn") - before)
    record = next(item for item in results["statements"] if item["tag"].startswith("BACKFILL"))
    assert "BACKFILL 4000, held back " in record["tag"]
    # One batch, before anything was measured, is free; so is what follows the last look.
    assert record["seconds"] >= 0.75 * written / 2**20
    assert filled(database) == 4000


def test_a_rate_that_others_use_up_is_waited_for_and_said(plan: MigrationSet, database: Database) -> None:
    fill(database, plan, 200, max_wal_rate="1kB/min", pause="20ms")
    error = fails(LockBusy, plan, database)
    assert error.code == "busy" and "more write-ahead log than 1.0 kB a minute; it waited" in str(error)
    assert "batches that are done stay done" in error.remedy
    assert 0 < filled(database) < 200


@contextlib.contextmanager
def somebody_waits(database: Database) -> t.Iterator[None]:
    """Two sessions that have nothing to do with the table of the backfill; one waits for the other."""
    database.query("CREATE TABLE other (id int)")
    with contextlib.closing(database.connect()) as holder, contextlib.closing(database.connect()) as waiter:
        holder.cursor().execute("BEGIN; LOCK TABLE other")
        waiting = Background(lambda: _ends(waiter, "LOCK TABLE other"))
        wait_until(lambda: database.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted"), "the session to wait")
        try:
            yield
        finally:
            holder.cursor().execute("ROLLBACK")
            waiting.result()


def _ends(connection: t.Any, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"BEGIN; {sql}; ROLLBACK")


def test_while_sessions_wait_for_locks_the_next_batch_waits(plan: MigrationSet, database: Database) -> None:
    fill(database, plan, 200, max_waiters=0)
    with somebody_waits(database):
        error = fails(LockBusy, plan, database)
        assert "1 sessions wait for locks, more than 0" in str(error)
        assert filled(database) == 0
    assert run(plan, database)["applied"] == ["001_fill"]
    assert filled(database) == 200


def test_while_connections_are_short_the_next_batch_waits(plan: MigrationSet, database: Database) -> None:
    fill(database, plan, 200, max_connections_used="1%")
    error = fails(LockBusy, plan, database)
    assert "% of the connections are used, more than 1%" in str(error) and filled(database) == 0


def test_a_backfill_stays_below_what_would_stop_the_run(plan: MigrationSet, database: Database) -> None:
    """The plan says nothing, so the limits are those of the watch, which is told to be patient here."""
    fill(database, plan, 200, pause="20ms")
    ended = run_module(plan, database, watch={"wal_rate_max": "10kB", "samples": 1000})
    assert ended.result["failed"] and "more write-ahead log than 8.0 kB a minute" in ended.result["msg"]
    assert 0 < filled(database) < 200


def test_the_plan_has_the_last_word(plan: MigrationSet, database: Database) -> None:
    fill(database, plan, 200, max_wal_rate="none")
    ended = run_module(plan, database, watch={"wal_rate_max": "10kB", "samples": 1000})
    assert ended.result["applied"] == ["001_fill"] and filled(database) == 200


def test_the_pace_of_a_backfill_that_is_half_done_can_be_changed(plan: MigrationSet, database: Database) -> None:
    fill(database, plan, 200, max_wal_rate="1kB/min", pause="20ms")
    fails(LockBusy, plan, database)
    step = {"table": "public.big", "key": "id", "set": {"done": "true"}, "batch": 7, "max_lag": "1m"}
    faster = MigrationSet(plan.directory).add("001_fill", steps=[step])
    assert run(faster, database)["applied"] == ["001_fill"] and filled(database) == 200
    assert run(plan, database)["changed"] is False


@pytest.mark.parametrize(("pace", "alone"), [({}, False), ({"max_lag": "none"}, False), ({"pause": "1ms"}, True)])
def test_who_holds_back_takes_no_parallel_workers(
    pace: dict[str, str], alone: bool, plan: MigrationSet, database: Database
) -> None:
    """All parts of such a migration: its scans and index builds as well."""
    asked = " + ".join(
        f"current_setting('max_parallel_{name}')::int" for name in ("maintenance_workers", "workers_per_gather")
    )
    fill(database, plan, 20, set={"done": f"{asked} > 0"}, **pace)
    plan.add("002_look", f"UPDATE big SET filler = {asked};")
    run(plan, database)
    assert database.query("SELECT DISTINCT done FROM big") == [(not alone,)]
    assert database.scalar("SELECT min(filler::int) FROM big") > 0  # the next migration is another matter


def test_backfill_waits_for_a_replica_and_resumes(pg_server: PgServer, database: Database, plan: MigrationSet) -> None:
    database.query("CREATE TABLE big (id int PRIMARY KEY, done boolean)")
    database.query("INSERT INTO big SELECT generate_series(1, 100)")
    step = {
        "table": "public.big",
        "key": "id",
        "set": {"done": "true"},
        "batch": 2,
        "pause": "50ms",
        "max_lag": "300ms",
    }
    plan.add("001_fill", steps=[step], retry={"attempts": 3, "deadline": "2s"})
    with running_standby(pg_server) as standby:
        on_standby = Database("postgres", standby)
        caught_up = "SELECT bool_and(replay_lsn >= pg_current_wal_lsn()) FROM pg_stat_replication"
        wait_until(lambda: database.scalar(caught_up), "the standby to catch up")
        on_standby.query("SELECT pg_wal_replay_pause()")
        wait_until(lambda: on_standby.scalar("SELECT pg_get_wal_replay_pause_state()") == "paused", "the pause")
        error = fails(LockBusy, plan, database)
        assert error.code == "busy"
        assert "a replica lags by" in str(error)
        begun = database.scalar("SELECT count(*) FROM big WHERE done")
        assert 0 < begun < 100
        on_standby.query("SELECT pg_wal_replay_resume()")
        run(plan, database)
    assert database.scalar("SELECT count(*) FROM big WHERE done") == 100
