# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The RBAC set killed at any moment while clients write: the next run finishes, and the counts add up.

``SUREFOOT_FAULT_RUNS`` is the number of moments (12), ``SUREFOOT_FAULT_SEED`` picks others.
"""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import random
import signal
import time
import typing as t

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.tests.support.migrations import (
    dump,
    nothing_left,
    run,
    sessions,
    wait_until,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import (
    Database,
    PgServer,
    running_server,
    temporary_database,
)
from ansible_collections.surefoot.dbops.tests.support.playbook import Playbook
from ansible_collections.surefoot.dbops.tests.support.rbac import (
    SET,
    Writers,
    account,
    contents,
    expected,
    fill,
    writers,
)

RUNS = int(os.environ.get("SUREFOOT_FAULT_RUNS", "12"))
SEED = int(os.environ.get("SUREFOOT_FAULT_SEED", "2026"))
# kill -9 of a backend takes the whole server down; it comes back by itself.
KINDS = (
    "kill parent", "kill group", "terminate worker", "kill tree", "terminate control", "kill backend",
)  # fmt: skip
WAYS = ("worker", "module")
ROWS, EVERY = 3000, 50
FIRST = "1_1_profiles_tenant_uuid"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")]


@pytest.fixture(scope="module")
def server() -> t.Iterator[PgServer]:
    """Of its own, as it is made to fall."""
    with running_server() as found:
        yield found


def prepare(database: Database) -> None:
    run(SET, database, only=("000_baseline",), include_manual=("000_baseline",))
    fill(database, ROWS, every=EVERY)


@pytest.fixture(scope="module")
def seconds(server: PgServer, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long an undisturbed run takes."""
    with temporary_database(server) as database:
        prepare(database)
        with writers(database, ROWS, every=EVERY):
            playbook = Playbook(tmp_path_factory.mktemp("whole"), SET, database, "worker")
            wait_until(lambda: sessions(database), "the run begins", 40)
            began = time.monotonic()
            wait_until(lambda: not sessions(database), "the run is over", 60)
            took = time.monotonic() - began
            output = playbook.wait()
            assert playbook.process.returncode == 0, output
            return took


def strike(kind: str, playbook: Playbook, database: Database, clients: Writers) -> None:
    if "worker" in kind or "backend" in kind:  # between two of its sessions there is none
        wait_until(lambda: sessions(database, "surefoot:worker%") or playbook.process.poll() is not None, "it works")
    if kind != "kill backend":
        playbook.strike(kind, database)
        return
    clients.may_be_cut_off()
    with contextlib.closing(database.connect()) as witness:
        if not _kill_one(database):
            return
        wait_until(lambda: not _answers(witness), "the server falls", 60)
    wait_until(lambda: _is_up(database), "the server is back", 60)


def _kill_one(database: Database) -> bool:
    """Kill a backend of the run; False when it has none any more."""
    while pids := sessions(database, "surefoot:worker%") or sessions(database):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile: another one will do
            os.kill(pids[0], signal.SIGKILL)
            return True
    return False


def _answers(connection: t.Any) -> bool:
    try:
        connection.cursor().execute("SELECT true")
        return True
    except psycopg2.Error:
        return False


def _is_up(database: Database) -> bool:
    try:
        return bool(database.scalar("SELECT true"))
    except psycopg2.Error:
        return False


def done(database: Database) -> str:
    """What the ledger says: what is applied, and how far the next one has come."""
    if database.scalar("SELECT to_regclass('surefoot.applied')") is None:
        return "nothing"
    names = [row[0] for row in database.query("SELECT migration_id FROM surefoot.applied ORDER BY applied_at")]
    steps = database.query("SELECT migration_id, max(step) FROM surefoot.progress GROUP BY 1")
    return f"{len(names) - 1} applied{''.join(f', {name} at {step}' for name, step in steps)}"


@pytest.mark.parametrize("number", range(RUNS))
def test_killed_at_a_random_moment_the_counts_add_up(
    number: int, server: PgServer, tmp_path: pathlib.Path, seconds: float
) -> None:
    chance = random.Random(SEED * 1000 + number)
    kind, way = KINDS[number % len(KINDS)], WAYS[number // len(KINDS) % len(WAYS)]
    moment, back = chance.uniform(0, seconds), number % 4 == 3
    with temporary_database(server) as database:
        prepare(database)
        schema, before = dump(database, "--schema-only", "--exclude-schema=surefoot"), contents(database)
        with writers(database, ROWS, every=EVERY) as clients:
            playbook = Playbook(tmp_path, SET, database, way)
            wait_until(lambda: sessions(database), "the run begins", 40)
            time.sleep(moment)
            strike(kind, playbook, database, clients)
            output = playbook.wait()
            nothing_left(database, 20)
            where = f"{kind} of the {way} after {moment:.2f} s of {seconds:.2f} s: {done(database)}"
            print(where)
            assert "Traceback" not in output, (where, output)
            if back and (database.scalar("SELECT count(*) FROM surefoot.progress") or FIRST in done_ids(database)):
                run(SET, database, state="rolled_back", to=FIRST)
                _is_back(database, schema, before, clients, where)
            assert run(SET, database)["pending"] == []
            time.sleep(0.2)
            _adds_up(database, before, clients, where)
            run(SET, database, state="rolled_back", to=FIRST)
            _is_back(database, schema, before, clients, where)
        assert clients.failures == [], where
        assert clients.changes > 50


def done_ids(database: Database) -> list[str]:
    return [row[0] for row in database.query("SELECT migration_id FROM surefoot.applied")]


def _adds_up(database: Database, before: t.Any, clients: Writers, where: str) -> None:
    """Rows at the start and written, less those deleted, are converted or in the quarantine, each once."""
    with clients.paused() as written:
        account(database, expected(before, written))
    assert database.scalar("SELECT pg_typeof(tenant_id)::text FROM profiles LIMIT 1") == "uuid"
    reasons = collections.Counter(
        (row[0], row[1].partition(" (")[0])
        for row in database.query("SELECT migration_id, reason FROM surefoot.quarantine")
    )
    share = ROWS // EVERY
    assert dict(reasons) == {
        (FIRST, "invalid value"): share,
        (FIRST, "no parent"): share,
        (FIRST, "null"): share,
        ("2_1_user_roles_profile", "no parent"): share,
        ("3_1_sidebar_features_permission", "no parent"): share,
    }, where


def _is_back(database: Database, schema: str, before: t.Any, clients: Writers, where: str) -> None:
    assert dump(database, "--schema-only", "--exclude-schema=surefoot") == schema, where
    with clients.paused() as written:
        assert set(account(database, expected(before, written)).values()) == {0}, where
