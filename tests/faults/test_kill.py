# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A playbook killed at any moment: no lock stays, the next run finishes, and nothing is lost or done twice.

``SUREFOOT_FAULT_RUNS`` is the number of moments (12), ``SUREFOOT_FAULT_SEED`` picks others.
"""

from __future__ import annotations

import os
import pathlib
import random
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.tests.support.migrations import (
    MigrationSet,
    nothing_left,
    run,
    sessions,
    wait_until,
    worker_running,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database
from ansible_collections.surefoot.dbops.tests.support.playbook import Playbook

RUNS = int(os.environ.get("SUREFOOT_FAULT_RUNS", "12"))
SEED = int(os.environ.get("SUREFOOT_FAULT_SEED", "2026"))
KINDS = ("kill parent", "kill tree", "terminate worker", "terminate control", "SIGTERM parent", "SIGINT parent")
# As a module of its own, or inside Ansible's worker: what is between ansible-playbook and the server differs.
WAYS = ("module", "worker")
ROWS = 240

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")]


def migration_set(directory: pathlib.Path) -> MigrationSet:
    plan = MigrationSet(directory)
    plan.add(
        "000",
        "CREATE TABLE log(what text); CREATE TABLE big(id int PRIMARY KEY, n int NOT NULL, t text);"
        f" INSERT INTO big SELECT g, 0, NULL FROM generate_series(1, {ROWS}) g;",
    )
    plan.add(
        "001",
        "BEGIN;\nCREATE TABLE a(i int);\nINSERT INTO log VALUES ('001 a');\nSELECT pg_sleep(0.25);\n"
        "INSERT INTO log VALUES ('001 b');\nCOMMIT;\n",
        verify=[{"name": "two", "query": "SELECT count(*) FROM log", "expect": {"scalar": 2}, "when": "before_commit"}],
    )
    plan.add(
        "002",
        steps=[
            "INSERT INTO log VALUES ('002 1');\nALTER TABLE big ADD done boolean;\nSELECT pg_sleep(0.15);",
            (
                "SET search_path = public;\nINSERT INTO log VALUES ('002 2');\n"
                "CREATE INDEX CONCURRENTLY big_n ON big((slow(n)));\nSELECT pg_sleep(0.1);\nVACUUM big;\n"
                "INSERT INTO log VALUES ('002 3');\nDROP INDEX CONCURRENTLY IF EXISTS nowhere;\n",
                False,
            ),
            {"table": "public.big", "key": "id", "set": {"n": "n + 1", "t": "'x' || id"}, "batch": 30, "pause": "40ms"},
            "INSERT INTO log VALUES ('002 4');\nALTER TABLE big ALTER t SET NOT NULL;\nSELECT pg_sleep(0.1);",
        ],
    )
    plan.add("003", "INSERT INTO log VALUES ('003');\nCREATE VIEW v AS SELECT * FROM big;")
    return plan


def prepare(database: Database, plan: MigrationSet) -> None:
    database.query(
        "CREATE FUNCTION slow(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
        " $$ BEGIN PERFORM pg_sleep(0.001); RETURN $1; END $$"
    )
    run(plan, database, to="000")


def picture(database: Database) -> dict[str, t.Any]:
    """Everything that must be equal after an undisturbed and after a disturbed run."""
    return {
        "log": database.query("SELECT what FROM log ORDER BY 1"),
        "big": database.query("SELECT id, n, t, done FROM big ORDER BY 1"),
        "relations": database.query(
            "SELECT c.relname, c.relkind, pg_get_indexdef(c.oid), x.indisvalid, x.indisready FROM pg_class c"
            " LEFT JOIN pg_index x ON x.indexrelid = c.oid WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1"
        ),
        "columns": database.query(
            "SELECT table_name, column_name, is_nullable, ordinal_position FROM information_schema.columns"
            " WHERE table_schema = 'public' ORDER BY 1, 4"
        ),
        "applied": database.query("SELECT migration_id, raw_sha256, token_sha256 FROM surefoot.applied ORDER BY 1"),
        "progress": database.query("SELECT * FROM surefoot.progress"),
        "succeeded": database.query(
            "SELECT migration_id, action FROM surefoot.attempts WHERE outcome = 'succeeded' ORDER BY 1"
        ),
    }


@pytest.fixture(scope="module")
def undisturbed(pg_server: PgServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, t.Any], float]:
    """What an undisturbed run leaves, and how long it takes from its first session on."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with temporary_database(pg_server) as database:
        plan = migration_set(directory / "set")
        prepare(database, plan)
        playbook = Playbook(directory, plan, database, "module")
        wait_until(lambda: sessions(database), "the run begins", 40)
        began = time.monotonic()
        output = playbook.wait()
        seconds = time.monotonic() - began
        assert playbook.process.returncode == 0, output
        return picture(database), seconds


def _check(database: Database, plan: MigrationSet, expected: dict[str, t.Any]) -> None:
    nothing_left(database, 20)
    results = run(plan, database)
    assert results["pending"] == []
    found = picture(database)
    for what, value in expected.items():
        assert found[what] == value, what
    assert run(plan, database)["changed"] is False
    nothing_left(database)


@pytest.mark.parametrize("number", range(RUNS))
def test_killed_at_a_random_moment_the_next_run_finishes(
    number: int, pg_server: PgServer, tmp_path: pathlib.Path, undisturbed: tuple[dict[str, t.Any], float]
) -> None:
    expected, seconds = undisturbed
    kind, way = KINDS[number % len(KINDS)], WAYS[number // len(KINDS) % len(WAYS)]
    moment = random.Random(SEED * 1000 + number).uniform(0, seconds)
    with temporary_database(pg_server) as database:
        plan = migration_set(tmp_path / "set")
        prepare(database, plan)
        playbook = Playbook(tmp_path, plan, database, way)
        wait_until(lambda: sessions(database), "the run begins", 40)
        time.sleep(moment)
        before = database.query("SELECT what FROM log ORDER BY 1")
        playbook.strike(kind, database)
        output = playbook.wait()
        where = f"{kind} of the {way} after {moment:.2f} s of {seconds:.2f} s at {before}"
        assert "Traceback" not in output, f"{where}: {output}"
        try:
            _check(database, plan, expected)
        except Exception as exc:
            raise AssertionError(f"{where}: {exc}\n{output}") from exc


# Where a random moment rarely hits: the statement the run is in, and what ends it there.
STATEMENTS = ("pg_sleep(0.25)", "CREATE INDEX CONCURRENTLY", "pg_sleep(0.15)")


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("kind", ["kill tree", "terminate worker"])
def test_killed_inside_a_statement_the_next_run_finishes(
    statement: str, kind: str, pg_server: PgServer, tmp_path: pathlib.Path, undisturbed: tuple[dict[str, t.Any], float]
) -> None:
    expected, _seconds = undisturbed
    with temporary_database(pg_server) as database:
        plan = migration_set(tmp_path / "set")
        prepare(database, plan)
        playbook = Playbook(tmp_path, plan, database, "worker")
        wait_until(lambda: worker_running(database, statement), f"it runs {statement}", 40)
        playbook.strike(kind, database)
        output = playbook.wait()
        assert "Traceback" not in output
        _check(database, plan, expected)


@pytest.mark.parametrize("way", WAYS)
def test_long_statement_ends_soon_after_the_playbook_was_killed(
    way: str, pg_server: PgServer, tmp_path: pathlib.Path
) -> None:
    with temporary_database(pg_server) as database:
        plan = MigrationSet(tmp_path / "set").add(
            "001", "CREATE TABLE a(i int); SELECT pg_sleep(600);", statement_timeout="20m"
        )
        playbook = Playbook(tmp_path, plan, database, way)
        wait_until(lambda: worker_running(database, "pg_sleep"), "it sleeps", 40)
        playbook.process.kill()
        nothing_left(database, 20)  # far less than the statement would take
        playbook.wait()
        plan.file("001.sql", "CREATE TABLE a(i int);")
        assert run(plan, database)["applied"] == ["001"]
