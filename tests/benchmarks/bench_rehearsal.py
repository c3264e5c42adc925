# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rehearsal predicts beside what the target then does: locks, durations, and how long clients really waited.

A target with one large table, a shadow restored from its dump on the same server (fsync on), the same migrations on
both; the target has clients that read and write the table meanwhile. Prints seconds and ratios and judges nothing.
Then the verdicts by lock_budget on the shadow: a column made wider by a rewrite, and the same change done online.

    python tests/benchmarks/bench_rehearsal.py [--table-mb 100] [--budget 500ms] [--readers 1] [--writers 1]

With --table-mb 1024 --verdicts-only it is the rewrite of a 1 GB table, rehearsed but not done on the target.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "tree"))

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions  # noqa: E402
from ansible_collections.surefoot.dbops.plugins.module_utils._locktrace import LockTrace  # noqa: E402
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan  # noqa: E402
from ansible_collections.surefoot.dbops.plugins.module_utils._rehearsal import (  # noqa: E402
    RehearsalRequest,
    rehearse,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration  # noqa: E402
from ansible_collections.surefoot.dbops.tests.support.migrations import MigrationSet, run  # noqa: E402
from ansible_collections.surefoot.dbops.tests.support.pgserver import (  # noqa: E402
    Database,
    PgServer,
    running_server,
    temporary_database,
)

ROW_BYTES = 240  # of the table, without its indexes
NO_BUDGET = 86400.0
LIMITS = {"statement_timeout": "1h", "retry": {"deadline": "1h"}}


def seed(database: Database, megabytes: int) -> int:
    """The table; returns its number of rows."""
    rows = megabytes * 1024 * 1024 // ROW_BYTES
    database.query(
        "CREATE SCHEMA shop;"
        "CREATE TABLE shop.orders (id integer PRIMARY KEY, amount integer NOT NULL, quantity integer NOT NULL,"
        " state text NOT NULL, body text);"
        f"INSERT INTO shop.orders SELECT n, n, n, 'new', repeat(md5(n::text), 6) FROM generate_series(1, {rows}) AS n;"
        "CREATE INDEX orders_amount ON shop.orders (amount)"
    )
    database.query("VACUUM ANALYZE shop.orders")
    return rows


def change(directory: pathlib.Path) -> MigrationSet:
    """Changes of every kind: quick, blocking writers, blocking nobody, blocking everybody."""
    plan = MigrationSet(directory, "bench", defaults=LIMITS)
    plan.add(
        "001_column",
        "ALTER TABLE shop.orders ADD COLUMN note text DEFAULT '';\n"
        "CREATE TABLE shop.lines (id bigint PRIMARY KEY, orders integer REFERENCES shop.orders);",
        rollback="DROP TABLE shop.lines; ALTER TABLE shop.orders DROP COLUMN note;",
    )
    plan.add(
        "002_check",
        "ALTER TABLE shop.orders ADD CONSTRAINT positive CHECK (amount > 0);",
        rollback="ALTER TABLE shop.orders DROP CONSTRAINT positive;",
    )
    plan.add("003_index", "CREATE INDEX by_state ON shop.orders (state, id);", rollback="DROP INDEX shop.by_state;")
    plan.add(
        "004_index_online",
        steps=[("CREATE INDEX CONCURRENTLY by_body ON shop.orders (body);", False)],
        rollback="DROP INDEX shop.by_body;",
    )
    plan.add(
        "005_rewrite",
        "ALTER TABLE shop.orders ALTER COLUMN amount TYPE bigint;",
        rollback="ALTER TABLE shop.orders ALTER COLUMN amount TYPE integer;",
    )
    return plan


def online(directory: pathlib.Path) -> MigrationSet:
    """The change of 005 without a rewrite, on another column."""
    plan = MigrationSet(directory, "bench_online", defaults=LIMITS)
    return plan.add(
        "101_wider_online",
        steps=[
            "ALTER TABLE shop.orders ADD COLUMN quantity_wide bigint;",
            {"table": "shop.orders", "key": ["id"], "set": {"quantity_wide": "quantity"}, "batch": 10000},
            "ALTER TABLE shop.orders RENAME quantity TO quantity_narrow;\n"
            "ALTER TABLE shop.orders RENAME quantity_wide TO quantity;",
        ],
        rollback="ALTER TABLE shop.orders DROP COLUMN quantity;"
        "ALTER TABLE shop.orders RENAME quantity_narrow TO quantity;",
    )


def copy(server: PgServer, source: Database, target: Database) -> None:
    """The target's rows in the shadow, as a restore brings them."""
    with tempfile.TemporaryDirectory() as directory:
        dump = os.path.join(directory, "dump")
        subprocess.run([f"{server.bindir}/pg_dump", "-Fd", "-Z0", "-f", dump, source.dsn], check=True)
        subprocess.run([f"{server.bindir}/pg_restore", "-d", target.dsn, dump], check=True)
    target.query("VACUUM ANALYZE")
    oid = target.scalar("SELECT oid::bigint FROM pg_database WHERE datname = current_database()")
    target.query(f"COMMENT ON DATABASE {target.name} IS 'surefoot shadow: {json.dumps({'run_id': 'b', 'oid': oid})}'")


class Client(threading.Thread):
    """Runs one statement again and again; ``longest`` is what the slowest took, in seconds."""

    def __init__(self, database: Database, statement: str, rows: int) -> None:
        super().__init__(daemon=True)
        self._database = database
        self._statement = statement
        self._rows = rows
        self._stopped = threading.Event()
        self.longest = 0.0
        self.count = 0

    def run(self) -> None:
        with contextlib.closing(self._database.connect()) as connection, connection.cursor() as cursor:
            while not self._stopped.wait(0.01):
                clock = time.perf_counter()
                cursor.execute(self._statement, (self.count * 7919 % self._rows + 1,))
                self.longest = max(self.longest, time.perf_counter() - clock)
                self.count += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def deploy_on(target: Database, plan: MigrationSet, rows: int, arguments: argparse.Namespace) -> dict[str, t.Any]:
    """One migration after the other on the target, with clients; its trace, and each migration's longest waits."""
    trace = LockTrace(ConnectionOptions.from_params(target.params), "surefoot")
    trace.phase = "deploy"
    waits: dict[str, dict[str, float]] = {}
    with contextlib.closing(trace):
        for migration in load_plan(plan.path).migrations:
            clients = {
                "SELECT": [
                    Client(target, "SELECT body FROM shop.orders WHERE id = %s", rows)
                    for _reader in range(arguments.readers)
                ],
                "UPDATE": [
                    Client(target, "UPDATE shop.orders SET state = 'sold' WHERE id = %s", rows)
                    for _writer in range(arguments.writers)
                ],
            }
            for client in [*clients["SELECT"], *clients["UPDATE"]]:
                client.start()
            time.sleep(0.3)
            run(plan, target, only=(migration.id,), lock_budget=NO_BUDGET, trace=trace)
            for client in [*clients["SELECT"], *clients["UPDATE"]]:
                client.stop()
            waits[migration.id] = {
                name: max((client.longest for client in some), default=0.0) for name, some in clients.items()
            }
    return {
        "locks": [lock.to_dict() for lock in trace.locks],
        "statements": trace.remembered(),
        "waits": waits,
    }


def ratio(real: float, predicted: float) -> str:
    return f"{real / predicted:6.2f}" if predicted >= 0.0005 else "     -"


def compare(predicted: t.Mapping[str, t.Any], real: t.Mapping[str, t.Any]) -> None:
    def of(results: t.Mapping[str, t.Any], name: str) -> list[dict[str, t.Any]]:
        return [item for item in results[name] if item["phase"] == "deploy"]

    print("\nstatements: seconds on the shadow, on the target, ratio")
    key = ("migration", "line", "tag")
    there = {tuple(item[name] for name in key): item["seconds"] for item in of(real, "statements")}
    for item in of(predicted, "statements"):
        seconds = there.get(tuple(item[name] for name in key))
        if seconds is None:
            print(f"  {item['migration']:18} {item['tag']:26} {item['seconds']:8.3f}  (not seen on the target)")
            continue
        print(
            f"  {item['migration']:18} {item['tag']:26} {item['seconds']:8.3f} {seconds:8.3f}"
            f" {ratio(seconds, item['seconds'])}"
        )
    print("\nlocks on what existed before: seconds held on the shadow, on the target, ratio, whom they block")
    key = ("migration", "relation", "mode")
    there = {tuple(item[name] for name in key): item["seconds"] for item in of(real, "locks")}
    seen = set()
    for item in of(predicted, "locks"):
        name = tuple(item[part] for part in key)
        seen.add(name)
        seconds = there.get(name)
        shown = f"{seconds:8.3f} {ratio(seconds, item['seconds'])}" if seconds is not None else "(not seen)     "
        print(
            f"  {item['migration']:18} {item['relation']:22} {item['mode']:23} {item['seconds']:8.3f} {shown}"
            f"  {', '.join(item['blocks']) or 'nobody'}"
        )
    missed = sorted(there.keys() - seen)
    print(f"  on the target and not predicted: {missed or 'none'}")
    print("\nclients on the target: longest statement in seconds, longest lock held and predicted that blocks it")

    def longest_hold(results: t.Mapping[str, t.Any], migration: str, statement: str) -> float:
        locks = [item for item in of(results, "locks") if item["relation"] == "shop.orders"]
        holds = [i["seconds"] for i in locks if i["migration"] == migration and statement in i["blocks"]]
        return max(holds, default=0.0)

    for migration, longest in real["waits"].items():
        for statement, waited in longest.items():
            held, foretold = (longest_hold(results, migration, statement) for results in (real, predicted))
            print(f"  {migration:18} {statement}  waited {waited:8.3f}  held {held:8.3f}  predicted {foretold:8.3f}")


def judge(name: str, results: t.Mapping[str, t.Any]) -> None:
    found = next(item for item in results["evidence"] if item["criterion"] == "rehearsal.lock_budget")
    answer = {"pass": "GO", "fail": "NO-GO"}.get(found["verdict"], found["verdict"])
    print(f"  {name:8} {answer:6} {found['measured']} (required: {found['required']})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table-mb", type=int, default=100)
    parser.add_argument("--budget", default="500ms")
    parser.add_argument("--readers", type=int, default=1)
    parser.add_argument("--writers", type=int, default=1)
    parser.add_argument("--verdicts-only", action="store_true", help="the two verdicts, and nothing on the target")
    arguments = parser.parse_args()
    settings = {"fsync": True, "full_page_writes": True, "max_wal_size": "2GB"}
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(running_server(settings=settings))
        target = stack.enter_context(temporary_database(server))
        shadow = stack.enter_context(temporary_database(server))
        print(
            f"PostgreSQL {server.version // 10000}.{server.version % 10000}, fsync on, {os.cpu_count()} cores; table of"
            f" {arguments.table_mb} MB; {arguments.readers} readers and {arguments.writers} writers on the target"
        )
        rows = seed(target, arguments.table_mb)
        copy(server, target, shadow)
        plan, options = change(directory / "change"), ConnectionOptions.from_params(shadow.params)
        request = RehearsalRequest(
            ledger_schema="surefoot",
            lock_budget=parse_duration(arguments.budget),
            squawk="never",
            on_failure="report",
        )
        clock = time.monotonic()
        if arguments.verdicts_only:
            request = dataclasses.replace(request, only=("005_rewrite",))
        predicted = rehearse(load_plan(plan.path), options, request)
        print(f"rehearsal: {time.monotonic() - clock:.1f} s")
        if not arguments.verdicts_only:
            compare(predicted, deploy_on(target, plan, rows, arguments))
        print(f"\nverdicts by a lock budget of {arguments.budget}")
        judge("rewrite", predicted)
        request = dataclasses.replace(request, only=())
        clock = time.monotonic()
        judge("online", rehearse(load_plan(online(directory / "online").path), options, request))
        print(f"rehearsal of the online change: {time.monotonic() - clock:.1f} s")


if __name__ == "__main__":
    main()
