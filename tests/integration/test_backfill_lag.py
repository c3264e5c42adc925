# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backfill waits for a real replica that stopped replaying, and goes on where it was once it replays again."""

from __future__ import annotations

import pathlib

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import LockBusy
from ansible_collections.surefoot.dbops.tests.support.migrations import MigrationSet, fails, run, wait_until
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer
from ansible_collections.surefoot.dbops.tests.support.standby import running_standby


def test_backfill_waits_for_a_replica_and_resumes(
    pg_server: PgServer, database: Database, tmp_path: pathlib.Path
) -> None:
    database.query("CREATE TABLE big (id int PRIMARY KEY, done boolean)")
    database.query("INSERT INTO big SELECT generate_series(1, 100)")
    plan = MigrationSet(tmp_path / "set")
    step = {
        "table": "public.big",
        "key": "id",
        "set": {"done": "true"},
        "batch": 10,
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
