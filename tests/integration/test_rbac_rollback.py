# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The RBAC set taken back behind each of its steps while clients write: the schema is the start's, no write is lost."""

from __future__ import annotations

import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._plan import SqlStep, load_plan
from ansible_collections.surefoot.dbops.tests.support.gate import PART, Gate, gated_run
from ansible_collections.surefoot.dbops.tests.support.migrations import applied, dump, run
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database
from ansible_collections.surefoot.dbops.tests.support.rbac import (
    SET,
    Writers,
    account,
    contents,
    expected,
    fill,
    writers,
)

pytestmark = pytest.mark.versions

ROWS, EVERY = 1000, 20
PLAN = load_plan(str(SET))
MIGRATIONS = [migration for migration in PLAN.migrations if not migration.manual]


def _stops() -> t.Iterator[t.Any]:
    """Behind each step, and when the whole migration is applied: None."""
    for migration in MIGRATIONS:
        last = migration.steps[-1]
        # The ledger's row is in the transaction of such a step.
        at_once = isinstance(last, SqlStep) and last.transaction and not last.brief
        for number, step in enumerate(migration.steps[: -1 if at_once else None], start=1):
            yield pytest.param(
                migration.id, number, id=f"{migration.id}-{number}-{step.name.rpartition(': ')[2].partition(' ')[0]}"
            )
        yield pytest.param(migration.id, None, id=f"{migration.id}-applied")


@pytest.fixture(scope="module")
def template(pg_server: PgServer) -> t.Iterator[str]:
    """The tables with dirty data."""
    with temporary_database(pg_server) as database:
        run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))
        fill(database, ROWS, every=EVERY)
        yield database.name


def schema(database: Database) -> str:
    return dump(database, "--schema-only", "--exclude-schema=surefoot")


def is_back(database: Database, before: t.Any, start: str, clients: Writers) -> dict[str, int]:
    """:returns: how many rows are in the quarantine, by table"""
    assert schema(database) == start
    with clients.paused() as written:
        return account(database, expected(before, written))


def stop(database: Database, gate: Gate, parts: int) -> None:
    """The next migration, cut off behind so many of its steps."""
    engine = gated_run(gate, str(SET), database)
    assert gate.advance(engine, PART, parts, patience=60) and engine.running
    gate.stop(engine)


@pytest.mark.parametrize(("migration", "number"), list(_stops()))
def test_rollback_behind_each_step_under_load(
    migration: str, number: int | None, pg_server: PgServer, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = [found.id for found in MIGRATIONS if found.id < migration]
    with temporary_database(pg_server, template=template) as database:
        start, before = schema(database), contents(database)
        gate = Gate(monkeypatch)
        with writers(database, ROWS, every=EVERY) as clients:
            if earlier:
                run(SET, database, to=earlier[-1])
            middle = schema(database)
            if number is None:
                run(SET, database, to=migration)
                assert applied(database)[-1] == migration
            else:
                stop(database, gate, number)
                done = database.query(
                    "SELECT step FROM surefoot.progress WHERE state = 'done' AND statement = -1 AND migration_id = %s",
                    (migration,),
                )
                assert {row[0] for row in done} == set(range(number)), "it stands behind the step"
            changes = clients.changes
            time.sleep(0.1)
            run(SET, database, state="rolled_back", to=migration)
            kept = is_back(database, before, middle, clients)
            if earlier:
                run(SET, database, state="rolled_back", to=earlier[0])
                kept = is_back(database, before, start, clients)
        assert set(kept.values()) == {0}
        assert clients.failures == [] and clients.changes > changes
