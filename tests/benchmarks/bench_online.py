# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients notice while a column's type changes from text to uuid, with a foreign key.

Five ways on the same table: no migration (control), one transaction with ALTER TYPE and ADD FOREIGN KEY (naive), a
plain online script (by hand), ``change_type``, and the same held back by a pause between small batches (throttled).
pgbench reads and writes by primary key all the while, with eight clients at a fixed rate, by default half of what the
machine can do; latency counts from the moment a transaction was due, so waiting behind a lock counts. "we blocked" are
the lines of the server's log that name a session of the migration as holder of a lock that a client waited 250 ms for.
It judges nothing: the numbers depend on the machine, the ratios much less.

    python tests/benchmarks/bench_online.py [--rows 200000] [--rate 0] [--control-seconds 120] [--batch 5000]
        [--ways control,naive,by_hand,change_type,throttled] [--throttled-batch 500] [--pause 20ms]

The whole measurement, some fifteen minutes:  --rows 5000000
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import typing as t

import psycopg2

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "tree"))

from ansible_collections.surefoot.dbops.tests.support.migrations import MigrationSet, run_module  # noqa: E402
from ansible_collections.surefoot.dbops.tests.support.pgserver import (  # noqa: E402
    Database,
    PgServer,
    running_server,
    temporary_database,
)

SETTINGS: dict[str, t.Any] = {
    "fsync": True,
    "full_page_writes": True,
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "log_lock_waits": True,
    "deadlock_timeout": "250ms",
}
SEED = """
CREATE TABLE tenants (id uuid PRIMARY KEY);
INSERT INTO tenants SELECT md5('t' || n)::uuid FROM generate_series(1, 1000) AS n;
CREATE TABLE profiles (id bigint PRIMARY KEY, tenant_id text NOT NULL, touched integer NOT NULL DEFAULT 0, note text)
WITH (fillfactor = 90);
INSERT INTO profiles SELECT n, md5('t' || 1 + n % 1000)::uuid::text, 0, repeat('x', 100)
FROM generate_series(1, {rows}) AS n;
"""
READ = "\\set id random(1, {rows})\nSELECT tenant_id, note FROM profiles WHERE id = :id;\n"
WRITE = "\\set id random(1, {rows})\nUPDATE profiles SET touched = touched + 1 WHERE id = :id;\n"


@dataclasses.dataclass
class Outcome:
    """What clients saw while something ran."""

    seconds: float
    reads: list[float]
    writes: list[float]
    failed: int
    waits: int
    blocked: int
    slowest: list[tuple[float, float]]
    blockers: list[str]


class Sessions:
    """The processes of all sessions but the clients', while the block lasts."""

    def __init__(self, database: Database) -> None:
        self._connection = database.connect()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.pids: set[int] = set()

    def __enter__(self) -> Sessions:
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._connection.close()

    def _look(self) -> None:
        with self._connection.cursor() as cursor:
            while not self._stopped.wait(0.1):
                cursor.execute(
                    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
                    " AND application_name <> 'pgbench' AND pid <> pg_backend_pid()"
                )
                self.pids |= {int(row[0]) for row in cursor.fetchall()}


class Clients:
    """pgbench with eight clients, from the beginning of the block to its end."""

    def __init__(self, server: PgServer, database: Database, directory: pathlib.Path, rows: int, rate: int) -> None:
        program = shutil.which("pgbench") or f"{server.bindir}/pgbench"
        for name, text in (("read", READ), ("write", WRITE)):
            (directory / f"{name}.sql").write_text(text.format(rows=rows))
        self.directory = directory
        self.process = subprocess.Popen(
            [program, "-n", "-c", "8", "-j", "2", "-T", "100000", "-l", "-f", "read.sql"]
            + (["-R", str(rate)] if rate else [])
            + ["-f", "write.sql", "-h", server.host, "-p", str(server.port), "-U", server.superuser, database.name],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self, began: float) -> tuple[list[float], list[float], int, list[tuple[float, float]]]:
        """Latencies in milliseconds of reads and of writes, the number of failures, and the five slowest transactions
        as (seconds since ``began``, milliseconds)."""
        self.process.terminate()
        output, _nothing = self.process.communicate(timeout=60)
        found: tuple[list[float], list[float]] = ([], [])
        ends = []
        for path in self.directory.glob("pgbench_log.*"):
            for line in path.read_text().splitlines():
                fields = line.split()
                if len(fields) >= 6 and fields[2].isdigit():
                    found[int(fields[3])].append(int(fields[2]) / 1000)
                    ends.append((int(fields[2]) / 1000, int(fields[4]) + int(fields[5]) / 1e6 - began))
        slowest = [(at, latency) for latency, at in sorted(ends, reverse=True)[:5]]
        return found[0], found[1], len(re.findall(r"(?i)\berror\b|aborted", output)), slowest


def capacity(server: PgServer, rows: int) -> float:
    """Transactions a second that eight clients can do when nothing holds them back."""
    with temporary_database(server) as database, tempfile.TemporaryDirectory() as name:
        prepare(database, rows)
        clients = Clients(server, database, pathlib.Path(name), rows, 0)
        time.sleep(15)
        reads, writes, _failed, _slowest = clients.stop(0)
        return (len(reads) + len(writes)) / 15


def prepare(database: Database, rows: int) -> None:
    database.query(SEED.format(rows=rows))
    database.query("VACUUM ANALYZE profiles")
    database.query("CHECKPOINT")


def naive(database: Database) -> None:
    database.query(
        "BEGIN; ALTER TABLE profiles ALTER tenant_id TYPE uuid USING tenant_id::uuid,"
        " ADD CONSTRAINT profiles_tenant_fk FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE; COMMIT"
    )
    database.query("CREATE INDEX CONCURRENTLY profiles_tenant ON profiles (tenant_id)")


def by_hand(database: Database, batch: int = 5000) -> None:
    """What a careful person would write for this one table."""
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:

        def short(sql: str) -> None:
            while True:
                try:
                    cursor.execute(f"BEGIN; SET LOCAL lock_timeout = '100ms'; {sql}; COMMIT")
                    return
                except psycopg2.errors.LockNotAvailable:
                    cursor.execute("ROLLBACK")
                    time.sleep(0.1)

        short("ALTER TABLE profiles ADD COLUMN tenant_new uuid")
        cursor.execute(
            "CREATE FUNCTION sync_tenant() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.tenant_new := NEW.tenant_id::uuid; RETURN NEW; END $$"
        )
        short(
            "CREATE TRIGGER sync_tenant BEFORE INSERT OR UPDATE OF tenant_id ON profiles"
            " FOR EACH ROW EXECUTE FUNCTION sync_tenant()"
        )
        cursor.execute("SELECT max(id) FROM profiles")
        last = (cursor.fetchone() or (0,))[0]
        for first in range(1, last + 1, batch):
            cursor.execute(
                "UPDATE profiles SET tenant_new = tenant_id::uuid WHERE id >= %s AND id < %s AND tenant_new IS NULL",
                (first, first + batch),
            )
        cursor.execute("CREATE INDEX CONCURRENTLY profiles_tenant ON profiles (tenant_new)")
        short(
            "ALTER TABLE profiles ADD CONSTRAINT profiles_tenant_fk FOREIGN KEY (tenant_new) REFERENCES tenants (id)"
            " ON DELETE CASCADE NOT VALID"
        )
        cursor.execute("ALTER TABLE profiles VALIDATE CONSTRAINT profiles_tenant_fk")
        short("ALTER TABLE profiles ADD CONSTRAINT tenant_there CHECK (tenant_new IS NOT NULL) NOT VALID")
        cursor.execute("ALTER TABLE profiles VALIDATE CONSTRAINT tenant_there")
        short(
            "LOCK TABLE profiles; ALTER TABLE profiles ALTER tenant_new SET NOT NULL;"
            " ALTER TABLE profiles DROP CONSTRAINT tenant_there; DROP TRIGGER sync_tenant ON profiles;"
            " ALTER TABLE profiles RENAME tenant_id TO tenant_old; ALTER TABLE profiles RENAME tenant_new TO tenant_id;"
            " ALTER TABLE profiles ALTER tenant_old DROP NOT NULL"
        )


def change_type(database: Database, directory: pathlib.Path, batch: int, pause: str, policy: str) -> None:
    step = {
        "change_type": {
            "table": "public.profiles",
            "column": "tenant_id",
            "to": "uuid",
            "key": "id",
            "not_null": True,
            "indexes": [{"name": "profiles_tenant", "columns": "tenant_id"}],
            "references": {
                "name": "profiles_tenant_fk",
                "table": "public.tenants",
                "columns": "id",
                "on_delete": "cascade",
            },
            "on_invalid": policy,
            "batch": batch,
            "pause": pause,
        }
    }
    retry = {"attempts": 1000, "max_delay": "500ms", "deadline": "1h"}
    plan = MigrationSet(directory / "set").add("001", steps=[step], lock_timeout="100ms", retry=retry)
    outcome = run_module(plan, database, timeout=3600)
    if outcome.returncode:
        raise SystemExit(outcome.stdout + outcome.stderr)
    for item in outcome.result["statements"]:
        if item["seconds"] > 0.3:
            print(f"    {item['seconds']:8.2f} s  {item['file'].rpartition(': ')[2]}: {item['tag']}")
    print(f"    longest lock that blocks others: {outcome.result['migrations'][0]['lock_held_seconds']} s")


def measure(way: str, server: PgServer, options: argparse.Namespace) -> Outcome:
    with temporary_database(server) as database, tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        prepare(database, options.rows)
        logged = len(server.log_text())
        (directory / "clients").mkdir()
        clients = Clients(server, database, directory / "clients", options.rows, options.rate)
        time.sleep(2)
        began, clock = time.monotonic(), time.time()
        work: dict[str, t.Callable[[], None]] = {
            "control": lambda: time.sleep(options.control_seconds),
            "naive": lambda: naive(database),
            "by_hand": lambda: by_hand(database),
            "change_type": lambda: change_type(database, directory, options.batch, "0", options.policy),
            "throttled": lambda: change_type(
                database, directory, options.throttled_batch, options.pause, options.policy
            ),
        }
        with Sessions(database) as sessions:
            try:
                work[way]()
            finally:
                seconds = time.monotonic() - began
                time.sleep(1)
                reads, writes, failed, slowest = clients.stop(clock)
        # A line names who waits, and the next one who holds the lock.
        waits = re.findall(r"(still waiting for .*)\n.*holding the lock: ([0-9, ]+)\.", server.log_text()[logged:])
        ours = [what for what, pids in waits if not sessions.pids.isdisjoint(int(pid) for pid in pids.split(","))]
        return Outcome(seconds, reads, writes, failed, len(waits), len(ours), slowest, ours[:3])


def at(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rate", type=int, default=0, help="transactions a second; 0: half of what is possible")
    parser.add_argument("--ways", default="control,naive,by_hand,change_type,throttled")
    parser.add_argument("--batch", type=int, default=5000)
    parser.add_argument("--throttled-batch", type=int, default=500)
    parser.add_argument("--pause", default="20ms")
    parser.add_argument("--policy", default="quarantine", choices=("abort", "quarantine"))
    parser.add_argument("--control-seconds", type=float, default=120)
    options = parser.parse_args()
    with running_server(settings=SETTINGS) as server:
        options.rate = options.rate or round(capacity(server, options.rows) / 2)
        print(f"{options.rows} rows, pgbench -c 8 -R {options.rate}; milliseconds from when a transaction was due")
        outcomes = {}
        for way in options.ways.split(","):
            found = outcomes[way] = measure(way, server, options)
            parts = [
                f"{what} p99 {at(values, 0.99):.1f} p99.9 {at(values, 0.999):.1f} max {max(values, default=0):.1f}"
                for what, values in (("writes", found.writes), ("reads", found.reads))
            ]
            print(
                f"{way:12} {found.seconds:7.1f} s  {'; '.join(parts)}; {len(found.reads) + len(found.writes)} in all,"
                f" {found.failed} failed, {found.waits} lock waits of 250 ms logged, we blocked {found.blocked}\n"
                "    slowest: " + ", ".join(f"{milli:.0f} ms at {second:.1f} s" for second, milli in found.slowest),
                *(f"\n    we blocked: {what}" for what in found.blockers),
                sep="",
                flush=True,
            )
    for way, other in (("change_type", "by_hand"), ("throttled", "control")):
        if way in outcomes and other in outcomes:
            one, two = outcomes[way], outcomes[other]
            ours, theirs = one.reads + one.writes, two.reads + two.writes
            print(
                f"{way} / {other}: duration {one.seconds / two.seconds:.2f},"
                f" p99.9 {at(ours, 0.999) / at(theirs, 0.999):.2f}, max {max(ours) / max(theirs):.2f}"
            )


if __name__ == "__main__":
    main()
