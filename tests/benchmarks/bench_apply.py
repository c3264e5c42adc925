# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run costs beyond the server's own work: N small migrations against psql, a run with nothing to do, a large
file.

Prints ratios of whole processes, measured interleaved in one run on a private server with fsync on. It judges
nothing: the numbers depend on the machine, the ratios much less.

    python tests/benchmarks/bench_apply.py [--migrations 1000] [--rounds 5] [--large-mb 100]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "tree"))

from ansible_collections.surefoot.dbops.tests.support.pgserver import (  # noqa: E402
    Database,
    running_server,
    temporary_database,
)

PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
"""
PING = "    - ansible.builtin.ping:\n"
MIGRATE = """
    - surefoot.dbops.postgresql_migration:
        path: %(path)s
        login_unix_socket: %(host)s
        login_port: %(port)s
        login_user: %(user)s
        login_db: "{{ db }}"
        lock_budget: 30s
"""


def small_migration(number: int) -> str:
    """A table of five columns, an index, a comment and a PL/pgSQL function: four statements."""
    return f"""-- migration {number}
CREATE TABLE t_{number:04d} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    amount numeric(12, 2) DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    data jsonb
);
CREATE INDEX t_{number:04d}_name_idx ON t_{number:04d} (name);
COMMENT ON TABLE t_{number:04d} IS 'made by migration {number}; nothing else';
CREATE FUNCTION f_{number:04d}(a integer) RETURNS integer LANGUAGE plpgsql AS $body$
BEGIN
    -- a semicolon; inside
    RETURN a + {number};
END;
$body$;
"""


def timed(argv: list[str], environment: dict[str, str]) -> float:
    """Wall seconds of a whole process; it must succeed."""
    started = time.perf_counter()
    done = subprocess.run(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stdout[-4000:]}")
    return seconds


class Peak(threading.Thread):
    """The largest resident set of the runner and of the server process that serves it, sampled every 20 ms."""

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self._stop_now = threading.Event()
        self._control = database.server.connect()
        self.backend = 0

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop_now.wait(0.02):
            with self._control.cursor() as cursor:
                cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'surefoot:worker%'")
                for (pid,) in cursor.fetchall():
                    with contextlib.suppress(OSError):
                        fields = pathlib.Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
                        # Shared buffers count for the server, not for one backend.
                        self.backend = max(self.backend, (int(fields[1]) - int(fields[2])) * page)

    def stop(self) -> int:
        """Ends the sampling; the peak in bytes."""
        self._stop_now.set()
        self.join()
        self._control.close()
        return self.backend


LARGE_RUN = """
import json, resource, sys
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Actor, new_run_id
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._runner import Runner, RunOptions
params = json.loads(sys.argv[1])
options = RunOptions(state="applied", run_id=new_run_id(), actor=Actor.current(), ledger_schema="surefoot")
Runner(load_plan(sys.argv[2]), ConnectionOptions.from_params(params), options).run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def bench_small(server: t.Any, directory: pathlib.Path, count: int, rounds: int) -> None:
    files = directory / "migrations"
    files.mkdir()
    script = directory / "all.sql"
    with script.open("w", encoding="utf-8") as stream:
        for number in range(1, count + 1):
            name = files / f"{number:04d}_table.sql"
            name.write_text(small_migration(number), encoding="utf-8")
            stream.write(f"BEGIN;\n\\i {name}\nCOMMIT;\n")
    values = {"path": files, "host": server.host, "port": server.port, "user": server.superuser}
    (directory / "ping.yml").write_text(PLAYBOOK + PING, encoding="utf-8")
    (directory / "migrate.yml").write_text(PLAYBOOK + MIGRATE % values, encoding="utf-8")
    ansible = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "tree"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
    }
    seconds: dict[str, list[float]] = {"psql": [], "ping": [], "apply": [], "no-op": []}
    for number in range(rounds):
        with temporary_database(server) as database:
            psql = [f"{server.bindir}/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(script), database.dsn]
            seconds["psql"].append(timed(psql, environment))
        seconds["ping"].append(timed([ansible, "-i", "localhost,", str(directory / "ping.yml")], environment))
        with temporary_database(server) as database:
            argv = [ansible, "-i", "localhost,", str(directory / "migrate.yml"), "-e", f"db={database.name}"]
            seconds["apply"].append(timed(argv, environment))
            seconds["no-op"].append(timed(argv, environment))
        print(
            f"  round {number + 1}: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()),
            flush=True,
        )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{count} small migrations, median of {rounds}:")
    print(f"  psql, one process, BEGIN/COMMIT a file       {median['psql']:8.2f} s")
    print(f"  playbook with one ping task                  {median['ping']:8.2f} s")
    print(f"  playbook that applies them                   {median['apply']:8.2f} s")
    print(f"  playbook that finds nothing to do            {median['no-op']:8.2f} s")
    print(f"  (apply - ping) / psql                        {(median['apply'] - median['ping']) / median['psql']:8.2f}")
    print(f"  no-op - ping                                 {median['no-op'] - median['ping']:8.2f} s")


def bench_large(server: t.Any, directory: pathlib.Path, megabytes: int) -> None:
    files = directory / "large"
    files.mkdir()
    size = megabytes * 1024 * 1024
    with (files / "001_rows.sql").open("w", encoding="utf-8") as stream:
        stream.write("CREATE TABLE large_rows (id bigint, body text);\n")
        number = 0
        while stream.tell() < size:
            block = "".join(
                f"INSERT INTO large_rows (id, body) VALUES ({number + i}, 'row {number + i}; it''s {'x' * 150}');\n"
                for i in range(1000)
            )
            stream.write(block)
            number += 1000
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "build" / "tree")}
    with temporary_database(server) as database:
        peak = Peak(database)
        peak.start()
        started = time.perf_counter()
        argv = [sys.executable, "-c", LARGE_RUN, json.dumps(database.params), str(files)]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        backend = peak.stop()
        if done.returncode:
            sys.exit(done.stderr[-4000:])
    with temporary_database(server) as database:
        psql = [
            f"{server.bindir}/psql",
            "-X",
            "-q",
            "-1",
            "-v",
            "ON_ERROR_STOP=1",
            "-f",
            str(files / "001_rows.sql"),
            database.dsn,
        ]
        reference = timed(psql, environment)
    print(f"one file of {megabytes} MB of INSERTs ({number} statements):")
    print(f"  runner, peak resident set                    {int(done.stdout) / 1024:8.0f} MB")
    print(f"  server process, peak private memory          {backend / 1024 / 1024:8.0f} MB")
    print(
        f"  runner / psql -1 -f                          {seconds / reference:8.2f}  ({seconds:.1f} s / "
        f"{reference:.1f} s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--migrations", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-mb", type=int, default=100)
    arguments = parser.parse_args()
    settings = {"fsync": True, "full_page_writes": True}
    with running_server(settings=settings) as server, tempfile.TemporaryDirectory() as directory:
        print(f"PostgreSQL {server.version // 10000}.{server.version % 10000}, fsync on, {os.cpu_count()} cores")
        if arguments.migrations:
            bench_small(server, pathlib.Path(directory), arguments.migrations, arguments.rounds)
        if arguments.large_mb:
            bench_large(server, pathlib.Path(directory), arguments.large_mb)


if __name__ == "__main__":
    main()
