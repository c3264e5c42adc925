# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How often the baseline raises an alarm on an unchanged database, and how often it finds a query made slower.

A trial is one measurement compared with the one before it, the confirmation of a finding included; nothing changes
between them. The same with other sessions that keep a processor busy in random trials, and with lower limits, where
only the test of the spread stands against an alarm. Then a query that is longer by a known factor.

It judges nothing; the numbers depend on the machine.

    python tests/benchmarks/bench_baseline.py [--trials 200] [--found 20] [--audit-rows 20000]
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import random
import sys
import threading
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "tree"))

from ansible_collections.surefoot.dbops.plugins.module_utils._baseline import (  # noqa: E402
    Baseline,
    Query,
    Request,
    load_queries,
    parse_queries,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions  # noqa: E402
from ansible_collections.surefoot.dbops.plugins.module_utils._noise import Rule  # noqa: E402
from ansible_collections.surefoot.dbops.tests.support import lancio  # noqa: E402
from ansible_collections.surefoot.dbops.tests.support.pgserver import (  # noqa: E402
    Database,
    running_server,
    temporary_database,
)

QUERIES = ROOT / "playbooks" / "migrations" / "lancio_platform" / "queries.yml"
LONGER = [
    {
        "name": "count_by_type",
        "query": "SELECT event_type, count(*) FROM platform.audit_logs GROUP BY event_type ORDER BY event_type",
    },
    {"name": "computed", "query": "SELECT count(*) FROM generate_series(1, :work::int)", "variables": {"work": 20000}},
]
RULES = {
    "as shipped: 10%, 0.2 ms": Rule(),
    "10%, no floor": Rule(floor=0.0),
    "no threshold, no floor": Rule(threshold=0.0, floor=0.0),
}


class Load:
    """Sessions that compute; on or off."""

    def __init__(self, database: Database, sessions: int) -> None:
        self._on, self._end = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(database,)) for _session in range(sessions)]
        for thread in self._threads:
            thread.start()

    def _work(self, database: Database) -> None:
        with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
            while not self._end.is_set():
                if self._on.wait(0.1):
                    cursor.execute("SELECT count(*) FROM generate_series(1, 200000)")

    def switch(self, on: bool) -> None:
        (self._on.set if on else self._on.clear)()

    def end(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def measure(
    database: Database, queries: t.Sequence[Query], before: t.Mapping[str, t.Any] | None, rule: Rule
) -> tuple[dict[str, t.Any], dict[str, t.Any] | None]:
    request = Request(queries, label="after" if before else "before", before=before, rule=rule)
    baseline = Baseline(ConnectionOptions.from_params(database.params), request)
    baseline.run()
    return baseline._content(), baseline.results(None)["comparison"]


def alarms(database: Database, queries: t.Sequence[Query], rule: Rule, trials: int, load: Load | None) -> str:
    chance = random.Random(1)
    before, _none = measure(database, queries, None, rule)
    raised = first = unjudged = judged = 0
    for _trial in range(trials):
        if load is not None:
            load.switch(chance.random() < 0.5)
        before, comparison = measure(database, queries, before, rule)
        assert comparison is not None
        raised += bool(comparison["regressions"])
        first += bool(comparison["measured_again"])
        unjudged += len(comparison["unjudged"])
        judged += len(comparison["queries"])
    if load is not None:
        load.switch(False)
    return (
        f"{raised:4d} of {trials} trials ({100 * raised / trials:.1f}%), {first:4d} measured twice;"
        f" {unjudged} of {judged} query comparisons too noisy to judge"
    )


def found(database: Database, factor: float, trials: int) -> str:
    def query(work: int) -> list[Query]:
        sql = "SELECT count(*) FROM generate_series(1, current_setting('bench.work')::int)"
        return parse_queries([{"name": "computed", "query": sql}], f"bench {work}")

    options = ConnectionOptions.from_params(database.params)
    hits = 0
    for _trial in range(trials):
        first = Baseline(options, Request(query(0), settings={"bench.work": "20000"}))
        first.run()
        settings = {"bench.work": str(round(20000 * factor))}
        second = Baseline(options, Request(query(0), label="after", before=first._content(), settings=settings))
        second.run()
        hits += bool(second.results(None)["regressions"])
    return f"{hits:4d} of {trials}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--found", type=int, default=20)
    parser.add_argument("--audit-rows", type=int, default=20000)
    arguments = parser.parse_args()
    with running_server() as server, temporary_database(server) as database:
        lancio.apply(database, "005_create_audit_logs")
        lancio.load_demo_data(database, audit_rows=arguments.audit_rows)
        database.query("ANALYZE")
        queries = load_queries(str(QUERIES))[0] + parse_queries(LONGER, "bench")
        started = time.perf_counter()
        content, _none = measure(database, queries, None, Rule())
        print(
            f"{len(queries)} queries, {Request(queries).runs} runs each:"
            f" {time.perf_counter() - started:.2f} s a measurement"
        )
        for item in content["queries"]:
            print(
                f"  {item['name']:22s} median {item['median_ms']:8.3f} ms  p95 {item['p95_ms']:8.3f} ms"
                f"  spread of the sessions {item['spread_ms']:7.3f} ms"
            )
        print("\nalarms on the unchanged database")
        load = Load(database, 2)
        try:
            for name, rule in RULES.items():
                trials = arguments.trials if rule == Rule() else max(1, arguments.trials // 4)
                for shown, used in (("no load added", None), ("load in random trials", load)):
                    print(
                        f"  {name:26s} {shown:22s} {alarms(database, queries, rule, trials, used)}",
                        flush=True,
                    )
        finally:
            load.end()
        print("\nfound, when the query is longer by a factor (rule as shipped)")
        for factor in (1.05, 1.2, 1.5, 2.0, 20.0):
            print(f"  x{factor:<5g} {found(database, factor, arguments.found)}", flush=True)


if __name__ == "__main__":
    main()
