# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the whole chain costs: the playbook migrate_006 on the demonstration's data against by_hand.sh, which types the
commands of the migration plan, with a restore of the backup.

Both start from the same state of the same server, in turn, each round in the other order: the database is made anew
from a copy at migration 005 before each, and that is not timed. The script dumps as the plan types it, in plain text;
--format directory lets it use pg_dump -Fd -j2 and pg_restore -j2 instead. It judges nothing: the numbers depend on the
machine, the ratios much less.

    python tests/benchmarks/bench_run.py [--rounds 5] [--format plain|directory] [--audit-rows N]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import json
import os
import pathlib
import re
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t

import psycopg2

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "tree"))

from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import (  # noqa: E402
    EmbeddedServer,
    default_home,
)

DATABASE = "platform"
TEMPLATE = "platform_at_005"
# What both must leave behind.
STATE = """
SELECT (SELECT count(*) FROM pg_catalog.pg_policies WHERE schemaname = 'platform'),
       (SELECT count(*) FROM pg_catalog.pg_tables WHERE schemaname = 'platform' AND rowsecurity),
       (SELECT count(*) FROM platform.databases)
"""
Parts = dict[str, float]


class Timed(t.NamedTuple):
    """Seconds of one whole process: by the clock, and of processor time in it and in the children it waited for."""

    wall: float
    processor: float


def timed(argv: t.Sequence[str], log: pathlib.Path, **options: t.Any) -> Timed:
    """Run it; it must succeed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w", encoding="utf-8") as stream:
        started = time.perf_counter()
        code = subprocess.run(argv, stdout=stream, stderr=subprocess.STDOUT, check=False, **options).returncode
        wall = time.perf_counter() - started
    if code:
        sys.exit(f"{' '.join(argv)} failed:\n{log.read_text(encoding='utf-8')[-6000:]}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Timed(wall, now.ru_utime - used.ru_utime + now.ru_stime - used.ru_stime)


class Bench:
    """A server with the demonstration's data, and the two ways over it."""

    def __init__(self, place: pathlib.Path, dump_format: str, audit_rows: int | None) -> None:
        self._place = place
        self._format = dump_format
        self._server = EmbeddedServer(default_home(str(place)))
        left_out = re.compile(r"ANSIBLE|PG|PSQL|SUREFOOT|RAILWAY|DATABASE")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not left_out.match(name)},
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "tree"),
            "ANSIBLE_HOME": str(place / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
            "PSQLRC": os.devnull,
            "PWD": str(place),
            "SUREFOOT_PROJECT": str(place),
        }
        # psql, which loads the data, hands it on to the server.
        self._scale = {"PGOPTIONS": f"-c demo.audit_rows={audit_rows}"} if audit_rows else {}

    def _playbook(self, name: str, more: t.Mapping[str, str] | None = None) -> Timed:
        ansible = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
        argv = [ansible, str(ROOT / "playbooks" / f"{name}.yml"), "-i", str(ROOT / "inventories" / "local")]
        options = {"cwd": self._place, "env": {**self._environment, **(more or {})}, "stdin": subprocess.DEVNULL}
        return timed(argv, self._place / f"{name}.log", **options)

    def _query(self, database: str, *statements: str) -> t.Any:
        """First row of the last statement, if it has any."""
        login = self._server.login(database)
        address = {"host": login["login_unix_socket"], "port": login["login_port"], "user": login["login_user"]}
        with contextlib.closing(psycopg2.connect(dbname=database, **address)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return cursor.fetchone() if cursor.description else None

    def prepare(self) -> str:
        """Make the server, with a copy of its database to begin each run from; what it is, in words."""
        self._playbook("demo", self._scale)
        self._query("postgres", f"ALTER DATABASE {DATABASE} RENAME TO {TEMPLATE}")
        rows, size, version = self._query(
            TEMPLATE,
            "VACUUM ANALYZE",
            "SELECT (SELECT count(*) FROM platform.audit_logs),"
            " pg_catalog.pg_size_pretty(pg_catalog.pg_database_size(current_database())),"
            " pg_catalog.current_setting('server_version')",
        )
        return f"PostgreSQL {version}, fsync on, {os.cpu_count()} cores; {size}, {rows} rows in the audit log"

    def remove(self) -> None:
        """The server and its data."""
        self._server.remove()

    def reset(self) -> None:
        """The database as it was. A checkpoint, so that neither way writes out what the other one left."""
        drop = f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"
        self._query("postgres", drop, f"CREATE DATABASE {DATABASE} TEMPLATE {TEMPLATE}", "CHECKPOINT")

    def state(self) -> t.Any:
        """See STATE."""
        return self._query(DATABASE, STATE)

    def playbook(self) -> tuple[Timed, Parts]:
        """The playbook, and its parts by the timeline of its run directory."""
        spent = self._playbook("migrate_006")
        newest = max((self._place / "surefoot-runs").glob("2*"), key=lambda path: path.stat().st_mtime_ns)
        lines = (newest / "timeline.jsonl").read_text(encoding="utf-8").splitlines()
        return spent, _of_timeline([json.loads(line) for line in lines], spent.wall)

    def nothing_to_do(self) -> Timed:
        """The same playbook, when everything is applied."""
        return self._playbook("migrate_006")

    def by_hand(self) -> tuple[Timed, Parts]:
        """The script, and its parts."""
        place = self._place / "by-hand"
        place.mkdir(exist_ok=True)
        login = self._server.login()
        address = f"host={login['login_unix_socket']}&port={login['login_port']}&user={login['login_user']}"
        address = address.replace("/", "%2F")
        bindir = self._server.describe_programs()["client_bindir"]
        environment = {
            **self._environment,
            "PATH": f"{bindir}{os.pathsep}{os.environ['PATH']}",
            "PWD": str(place),
            "DATABASE_URL": f"postgresql:///{DATABASE}?{address}",
            "TEST_DATABASE": "restore_test",
            "TEST_DATABASE_URL": f"postgresql:///restore_test?{address}",
            "MIGRATIONS": str(ROOT / "playbooks" / "migrations" / "lancio_platform"),
            "RAILWAY_MONGODB_URL": "mongodb://demo:of-no-worth@mongodb.railway.internal:27017/lancio",
            "RAILWAY_REDIS_URL": "redis://default:of-no-worth@redis.railway.internal:6379",
            "DATABASE_ENCRYPTION_KEY": secrets.token_hex(16),
            "FORMAT": self._format,
        }
        parts = place / "parts"
        command = f'exec "$0" 3>"{parts}"'
        argv = ["bash", "-c", command, str(ROOT / "tests" / "benchmarks" / "by_hand.sh")]
        log = self._place / "by-hand.log"
        spent = timed(argv, log, cwd=place, env=environment, stdin=subprocess.DEVNULL)
        marks = [line.rpartition(" ") for line in parts.read_text(encoding="utf-8").splitlines()]
        return spent, {
            name: float(following[2]) - float(begun)
            for (name, _space, begun), following in zip(marks, marks[1:])  # the last one is "end"
        }


def _of_timeline(entries: t.Sequence[t.Mapping[str, t.Any]], wall: float) -> Parts:
    """Seconds by module, in the order of the run; a module that ran more than once is numbered."""
    seen: collections.Counter[str] = collections.Counter()
    parts: Parts = {}
    for entry in entries:
        begun, ended = (_when(entry[key]) for key in ("started", "finished"))
        name = " ".join(filter(None, (entry["module"], entry["state"])))
        seen[name] += 1
        parts[f"{name} {seen[name]}" if seen[name] > 1 else name] = (ended - begun).total_seconds()
    parts["between the modules (Ansible, report)"] = wall - sum(parts.values())
    return parts


def _when(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def show(title: str, spent: t.Sequence[Timed], parts: t.Sequence[Parts]) -> float:
    """The medians, printed; that of the whole is returned."""
    wall = statistics.median(item.wall for item in spent)
    processor = statistics.median(item.processor for item in spent)
    print(f"\n{title:47} {wall:7.2f} s   (its own processor time {processor:.2f} s)")
    for name in parts[0] if parts else ():
        print(f"  {name:45} {statistics.median(item.get(name, 0.0) for item in parts):7.2f} s")
    return wall


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").partition("\n\n")[0].split()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--format", choices=("plain", "directory"), default="plain")
    parser.add_argument("--audit-rows", type=int, help="rows of the audit log instead of the demonstration's own")
    arguments = parser.parse_args()
    # Below /var/tmp like the server: backups of the demonstration belong on a disk, not into memory.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="surefoot-bench-") as directory:
        bench = Bench(pathlib.Path(directory), arguments.format, arguments.audit_rows)
        try:
            print(bench.prepare(), flush=True)
            measure(bench, arguments.rounds)
        finally:
            bench.remove()


def measure(bench: Bench, rounds: int) -> None:
    ways: dict[str, t.Callable[[], tuple[Timed, Parts]]] = {"playbook": bench.playbook, "by hand": bench.by_hand}
    spent: dict[str, list[Timed]] = {name: [] for name in (*ways, "nothing")}
    parts: dict[str, list[Parts]] = {name: [] for name in ways}
    for number in range(rounds):
        left = {}
        for name in list(ways)[:: -1 if number % 2 else 1]:
            bench.reset()
            whole, divided = ways[name]()
            spent[name].append(whole)
            parts[name].append(divided)
            left[name] = bench.state()
            if name == "playbook":
                spent["nothing"].append(bench.nothing_to_do())
        if left["playbook"] != left["by hand"]:
            sys.exit(f"they did not do the same: {left}")
        shown = ", ".join(f"{name} {items[-1].wall:.2f} s" for name, items in spent.items())
        ratio = spent["playbook"][-1].wall / spent["by hand"][-1].wall
        print(f"  round {number + 1}: {shown}; playbook / by hand {ratio:.2f}", flush=True)
    print(f"\nmedian of {rounds}")
    ours = show("playbook migrate_006", spent["playbook"], parts["playbook"])
    reference = show("the plan's commands by hand", spent["by hand"], parts["by hand"])
    show("playbook migrate_006 with nothing to do", spent["nothing"], [])
    ratios = [mine.wall / other.wall for mine, other in zip(spent["playbook"], spent["by hand"])]
    print(
        f"\nplaybook / by hand: {ours / reference:.2f} of the medians, {statistics.median(ratios):.2f} within a round"
    )


if __name__ == "__main__":
    main()
