# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pausing and resuming a database of PgBouncer costs: a playbook with the module against one that pings in its
place, plus a bare script that sends the same commands, each in a Python of its own as each task of the module is one.

In turn, each round in the other order. It judges nothing; the numbers depend on the machine, the ratios much less.

    python tests/benchmarks/bench_cloud_pgbouncer.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "tree"))

from ansible_collections.surefoot.dbops.tests.support.pgbouncer import PROGRAM, Bouncer, running_bouncer  # noqa: E402
from ansible_collections.surefoot.dbops.tests.support.pgserver import running_server, temporary_database  # noqa: E402

# What one task of the module asks, by hand: the state before, the command, the state after.
BARE = """
import json, sys
import psycopg2
command, params = sys.argv[1], json.load(sys.stdin)
connection = psycopg2.connect(**params)
connection.autocommit = True
cursor = connection.cursor()
for sql in ("SHOW VERSION", "SHOW DATABASES", "SHOW SERVERS", "SHOW POOLS", f'{command} "app"',
            "SHOW DATABASES", "SHOW SERVERS", "SHOW POOLS"):
    cursor.execute(sql)
"""
HEAD = [("hosts", "localhost"), ("connection", "local"), ("gather_facts", False)]


def play(directory: pathlib.Path, name: str, tasks: list[dict[str, t.Any]], module: bool) -> list[str]:
    if module:
        tasks = [{**task, "environment": {"SUREFOOT_BENCH": "a module of its own"}} for task in tasks]
    path = directory / f"{name}.yml"
    variables = {"ansible_python_interpreter": sys.executable}
    path.write_text(json.dumps([{**dict(HEAD), "vars": variables, "tasks": tasks}]), encoding="utf-8")
    return [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(path)]


def timed(calls: t.Sequence[tuple[list[str], str]], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    for words, given in calls:
        subprocess.run(words, input=given, text=True, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def measure(bouncer: Bouncer, directory: pathlib.Path, rounds: int) -> None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(directory / "home")}
    params = bouncer.params()
    names = {"host": "login_host", "port": "login_port", "user": "login_user", "password": "login_password"}
    given = json.dumps(
        {**{key: params[name] for key, name in names.items()}, "dbname": "pgbouncer", "sslmode": "disable"}
    )
    bare = [([sys.executable, "-c", BARE, command], given) for command in ("PAUSE", "RESUME")]
    states = ("paused", "resumed")
    ours = [{"surefoot.dbops.pgbouncer": {**params, "database": "app", "state": state}} for state in states]
    ping = [{"ansible.builtin.ping": {}} for _state in states]
    for title, module in (("in Ansible's worker", False), ("as a module", True)):
        ways = {
            "module": [(play(directory, "ours", ours, module), "")],
            "script + ping": [(play(directory, "ping", ping, module), ""), *bare],
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                seconds = timed(ways[name], environment)
                if number:  # the first warms up
                    times[name].append(seconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"pause and resume {title}: module {medians['module']:.2f} s,"
            f" script and ping {medians['script + ping']:.2f} s,"
            f" ratio {medians['module'] / medians['script + ping']:.2f} (median of {rounds})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if PROGRAM is None:
        print("pgbouncer is not installed: nothing to measure")
        return
    with (
        tempfile.TemporaryDirectory(prefix="surefoot-bench-") as directory,
        running_server() as server,
        temporary_database(server) as database,
        running_bouncer(server, {"app": database.name}, "transaction") as bouncer,
    ):
        measure(bouncer, pathlib.Path(directory), rounds)


if __name__ == "__main__":
    main()
