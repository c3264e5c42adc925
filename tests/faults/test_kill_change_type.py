# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``change_type`` killed at any moment while clients write: the next run finishes, and the counts add up.

``SUREFOOT_FAULT_RUNS`` is the number of moments (12), ``SUREFOOT_FAULT_SEED`` picks others.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import threading
import time
import typing as t
import uuid

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.tests.support.migrations import (
    MigrationSet,
    ModuleProcess,
    applied,
    dump,
    module_params,
    nothing_left,
    run,
    sessions,
    wait_until,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

RUNS = int(os.environ.get("SUREFOOT_FAULT_RUNS", "12"))
SEED = int(os.environ.get("SUREFOOT_FAULT_SEED", "2026"))
KINDS = ("kill", "terminate worker", "terminate control")
ROWS = 3000
TENANTS = [str(uuid.UUID(int=number)) for number in range(1, 6)]


def prepare(database: Database) -> None:
    """Every fiftieth row cannot be converted, and every fiftieth has no parent."""
    database.query("CREATE TABLE tenants (id uuid PRIMARY KEY)")
    database.query("INSERT INTO tenants SELECT unnest(%s::uuid[])", (TENANTS,))
    database.query("CREATE TABLE profiles (id bigint PRIMARY KEY, tenant_id text NOT NULL)")
    database.query("CREATE TABLE roles (id bigint PRIMARY KEY, profile bigint REFERENCES profiles)")
    database.query("CREATE INDEX profiles_tenant ON profiles (tenant_id)")
    database.query(
        "INSERT INTO profiles SELECT n, CASE n %% 50 WHEN 0 THEN 'dirt ' || n WHEN 1 THEN gen_random_uuid()::text"
        " ELSE (%s::text[])[1 + n %% 5] END FROM generate_series(1, %s) AS n",
        (TENANTS, ROWS),
    )
    database.query("INSERT INTO roles SELECT id, id FROM profiles")


def migration_set(directory: pathlib.Path) -> MigrationSet:
    step = {
        "change_type": {
            "table": "public.profiles",
            "column": "tenant_id",
            "to": "uuid",
            "key": "id",
            "not_null": True,
            "indexes": [{"name": "profiles_tenant", "columns": "tenant_id"}],
            "references": {"name": "profiles_tenant_fk", "table": "public.tenants", "columns": "id"},
            "on_invalid": "quarantine",
            "batch": 100,
            "pause": "20ms",
        }
    }
    retry = {"attempts": 200, "max_delay": "200ms", "deadline": "60s"}
    return MigrationSet(directory).add("001", steps=[step], lock_timeout="100ms", retry=retry)


class Client:
    """Writes rows all the time, each of which must be there in the end as it was last written."""

    def __init__(self, database: Database) -> None:
        self.failures: list[str] = []
        self.written: dict[int, str] = {}
        self._database = database
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        choice = random.Random(SEED)
        good = [number for number in range(1, ROWS + 1) if number % 50 > 1]
        with contextlib.closing(self._database.connect()) as connection, connection.cursor() as cursor:
            new = ROWS
            while not self._stop.is_set():
                tenant = choice.choice(TENANTS)
                try:
                    if choice.random() < 0.7:
                        number = choice.choice(good)
                        cursor.execute("UPDATE profiles SET tenant_id = %s WHERE id = %s", (tenant.upper(), number))
                    else:
                        new += 1
                        number = new
                        cursor.execute("INSERT INTO profiles (id, tenant_id) VALUES (%s, %s)", (number, tenant))
                    self.written[number] = tenant
                except psycopg2.Error as exc:
                    self.failures.append(str(exc))
                time.sleep(0.002)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


@pytest.fixture(scope="module")
def seconds(pg_server: PgServer, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long an undisturbed run takes."""
    with temporary_database(pg_server) as database:
        prepare(database)
        process = ModuleProcess(module_params(migration_set(tmp_path_factory.mktemp("whole") / "set"), database))
        wait_until(lambda: sessions(database), "the run begins", 40)
        began = time.monotonic()
        outcome = process.wait()
        assert outcome.returncode == 0, outcome
        return time.monotonic() - began


def strike(kind: str, process: ModuleProcess, database: Database) -> None:
    if kind == "kill":
        process.kill()
        return
    for pid in sessions(database, f"surefoot:{kind.split()[1]}%"):
        database.query("SELECT pg_terminate_backend(%s)", (pid,))


@pytest.mark.parametrize("number", range(RUNS))
def test_killed_at_a_random_moment_the_counts_add_up(
    number: int, pg_server: PgServer, tmp_path: pathlib.Path, seconds: float
) -> None:
    chance = random.Random(SEED * 1000 + number)
    kind, moment, back = KINDS[number % len(KINDS)], chance.uniform(0, seconds), number % 4 == 3
    with temporary_database(pg_server) as database:
        prepare(database)
        plan = migration_set(tmp_path / "set")
        schema = dump(database, "--schema-only", "--exclude-schema=surefoot")
        original = dict(database.query("SELECT id, tenant_id FROM profiles"))
        client = Client(database)
        try:
            process = ModuleProcess(module_params(plan, database))
            wait_until(lambda: sessions(database), "the run begins", 40)
            time.sleep(moment)
            strike(kind, process, database)
            process.wait()
            nothing_left(database, 20)
            if back and database.scalar("SELECT to_regclass('surefoot.progress') IS NOT NULL"):
                begun = database.scalar("SELECT count(*) FROM surefoot.progress") or applied(database)
                if begun:
                    run(plan, database, state="rolled_back", to="001")
                _is_back(database, schema, original, client)
            assert run(plan, database)["pending"] == []
        finally:
            client.stop()
        assert client.failures == []
        _adds_up(database, client)
        run(plan, database, state="rolled_back", to="001")
        _is_back(database, schema, original, client)


def _adds_up(database: Database, client: Client) -> None:
    """Each row is converted, or in the quarantine with what refers to it."""
    here: dict[int, str] = dict(database.query("SELECT id, tenant_id::text FROM profiles"))
    kept = {int(row[0]) for row in database.query("SELECT key ->> 0 FROM surefoot.quarantine")}
    dirty = {number for number in range(1, ROWS + 1) if number % 50 < 2}
    assert kept == dirty and not kept & set(here)
    assert set(here) | kept == set(range(1, ROWS + 1)) | set(client.written)
    assert {number: here[number] for number in client.written} == client.written
    for number in range(1, ROWS + 1):
        if number not in dirty and number not in client.written:
            assert here[number] == TENANTS[number % 5]
    roles = {row[0] for row in database.query("SELECT id FROM roles")}
    assert roles == set(range(1, ROWS + 1)) - kept


def _is_back(database: Database, schema: str, original: dict[int, str], client: Client) -> None:
    assert dump(database, "--schema-only", "--exclude-schema=surefoot") == schema
    now: dict[int, t.Any] = dict(database.query("SELECT id, tenant_id FROM profiles"))
    written = dict(client.written)
    assert {number: value for number, value in now.items() if number <= ROWS and number not in written} == {
        number: value for number, value in original.items() if number not in written
    }
    assert database.scalar("SELECT count(*) FROM roles") == ROWS
