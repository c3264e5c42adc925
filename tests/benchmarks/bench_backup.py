# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a proven backup costs: backup and restore against the bare programs, interleaved, on the same data.

The yardstick is ``pg_dump -Fd -j2`` and ``pg_restore -j2`` as one types them. A second bare run uses the compression
that the module chose, so that the ratio without the compression's gain can be read too. It judges nothing: the numbers
depend on the machine, the ratios much less.

    python tests/benchmarks/bench_backup.py [--gb 0.2] [--rounds 3] [--jobs 2] [--all]
"""

from __future__ import annotations

import argparse
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

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions  # noqa: E402
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (  # noqa: E402
    BackupRequest,
    Work,
    choose_compression,
    find_client,
    take_backup,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._restore import (  # noqa: E402
    drop,
    open_backup,
    restore_beside,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import (  # noqa: E402
    Database,
    PgServer,
    running_server,
    temporary_database,
)

# Like a server with a little care taken of it; durable, as production is.
SETTINGS = {
    "fsync": True,
    "full_page_writes": True,
    "wal_level": "replica",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "maintenance_work_mem": "128MB",
}
MB_PER_UNIT = 127  # what the statements below make, indexes included, with n = 100000
TABLES = (
    "CREATE TABLE users (id bigint PRIMARY KEY, email text NOT NULL, name text, created timestamptz, settings jsonb)",
    "CREATE TABLE audit (id bigint PRIMARY KEY, at timestamptz, actor bigint, action text NOT NULL, detail jsonb)",
    "CREATE TABLE items (id uuid PRIMARY KEY, owner bigint NOT NULL, title text, price numeric(12, 2), tags text[])",
    "CREATE TABLE events (id bigint, item uuid, kind int, value float8, day date)",
    """INSERT INTO users SELECT g, 'user' || g || '@example.com', initcap(md5(g::text)),
        now() - g * interval '1 minute', jsonb_build_object('theme', g % 3, 'mail', g % 2 = 0)
        FROM generate_series(1, {n}) g""",
    """INSERT INTO audit SELECT g, now() - g * interval '1 second', g % 5000, 'action ' || g % 40, jsonb_build_object(
        'ip', '10.0.0.' || g % 255, 'path', '/api/v1/items/' || md5(g::text), 'ok', g % 7 > 0, 'ms', g % 900,
        'agent', 'Mozilla/5.0 (X11; Linux x86_64) ' || md5((g % 97)::text)) FROM generate_series(1, 2 * {n}) g""",
    """INSERT INTO items SELECT md5(g::text)::uuid, g % 5000, repeat(md5((g % 1000)::text), 3), (g % 100000) / 7.0,
        ARRAY['tag' || g % 10, 'tag' || g % 30] FROM generate_series(1, {n}) g""",
    """INSERT INTO events SELECT g, md5((g % {n})::text)::uuid, g % 12, g / 3.0, date '2026-01-01' + g % 300
        FROM generate_series(1, 2 * {n}) g""",
    "CREATE INDEX ON users (email)",
    "CREATE INDEX ON audit (at)",
    "CREATE INDEX ON audit (actor, action)",
    "CREATE INDEX ON items (owner)",
    "CREATE INDEX ON events (day, kind)",
    "VACUUM ANALYZE",
)


def fill(database: Database, gigabytes: float) -> None:
    """Four tables of usual column types and their indexes, about that large together."""
    n = max(1000, round(gigabytes * 1024 / MB_PER_UNIT * 100_000))
    for statement in TABLES:
        database.query(statement.format(n=n))


def run(argv: t.Sequence[str]) -> None:
    """One program, nothing measured but its time."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def bare(server: PgServer, source: Database, place: str, jobs: int, compression: str | None) -> dict[str, float]:
    """The two programs as one types them."""
    dump = os.path.join(place, "dump")
    started = time.perf_counter()
    argv = [f"{server.bindir}/pg_dump", "-Fd", f"-j{jobs}", f"--file={dump}"]
    if compression:
        argv.append(f"--compress={compression}")
    run([*argv, f"--dbname={source.dsn}"])
    dumped = time.perf_counter() - started
    with temporary_database(server) as target:
        started = time.perf_counter()
        run([f"{server.bindir}/pg_restore", f"-j{jobs}", f"--dbname={target.dsn}", dump])
        return {"backup": dumped, "restore": time.perf_counter() - started}


def proven(server: PgServer, source: Database, place: str, jobs: int, hashes: str, verify: str) -> dict[str, float]:
    """The library's own: a backup, and its restore compared with it and analyzed."""
    options = ConnectionOptions.from_params(source.params)
    started = time.perf_counter()
    request = BackupRequest(dest=place, jobs=jobs, hashes=hashes, verify=verify, min_free=0, bindir=server.bindir)
    backup = t.cast("dict[str, t.Any]", take_backup(options, request).backup)
    seconds = {"backup": time.perf_counter() - started}
    target = f"{source.name}_copy"
    started = time.perf_counter()
    manifest = open_backup(backup["path"], backup["manifest_sha256"], jobs=jobs)
    client = find_client(server.version // 10000, server.bindir)
    server_options = ConnectionOptions.from_params(server.params())
    comparison = restore_beside(Work(), server_options, manifest, client, target, jobs=jobs, live=False)
    seconds["restore"] = time.perf_counter() - started
    drop(server_options, target)
    if not comparison.passed:
        raise SystemExit(f"the copy differs: {comparison.summary()}")
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gb", type=float, default=0.2, help="size of the database, indexes included (default: 0.2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="also verify: full and sampled hashes")
    arguments = parser.parse_args()
    variants = [("bare", ""), ("bare, our compression", ""), ("counts", "files"), ("full", "files")]
    if arguments.all:
        variants += [("sampled", "files"), ("counts", "full"), ("full", "full")]
    seconds: dict[tuple[str, str], list[dict[str, float]]] = {variant: [] for variant in variants}
    compression: str | None = None
    with running_server(settings=SETTINGS) as server, temporary_database(server) as source:
        fill(source, arguments.gb)
        size = source.scalar("SELECT pg_database_size(current_database())")
        for number in range(arguments.rounds):
            # Another one goes first each time; whoever follows a restore finds its dirty pages.
            for hashes, verify in [*variants[number % len(variants) :], *variants[: number % len(variants)]]:
                if hashes == "bare, our compression" and compression is None:
                    client = find_client(server.version // 10000, server.bindir)
                    compression = choose_compression("auto", client).replace("gzip:", "")
                with tempfile.TemporaryDirectory(prefix="surefoot-bench-", dir="/var/tmp") as place:
                    source.query("CHECKPOINT")
                    if not verify:
                        chosen = compression if "our" in hashes else None
                        took = bare(server, source, place, arguments.jobs, chosen)
                    else:
                        took = proven(server, source, place, arguments.jobs, hashes, verify)
                seconds[hashes, verify].append(took)
                print(
                    f"round {number + 1}: {hashes} {verify}: {took['backup']:.1f} + {took['restore']:.1f} s", flush=True
                )
    report(seconds, size, arguments.jobs)


def report(seconds: t.Mapping[tuple[str, str], list[dict[str, float]]], size: int, jobs: int) -> None:
    """Medians of the rounds, and their ratios to the bare programs of the same rounds."""

    def median(variant: tuple[str, str], part: str | None) -> float:
        return statistics.median(sum(t_.values()) if part is None else t_[part] for t_ in seconds[variant])

    def ratio(variant: tuple[str, str], base: tuple[str, str]) -> float:
        return statistics.median(
            sum(mine.values()) / sum(theirs.values()) for mine, theirs in zip(seconds[variant], seconds[base])
        )

    print(f"\n{size / 1e9:.2f} GB database, {jobs} jobs, medians of {len(seconds['bare', ''])} interleaved rounds")
    heads = ["backup", "restore", "sum", "/ bare", "/ bare, our compression"]
    print(f"{'hashes':24s}{'verify':8s}" + "".join(f"{head:>{max(9, len(head) + 2)}s}" for head in heads))
    for variant in seconds:
        numbers = [median(variant, "backup"), median(variant, "restore"), median(variant, None)]
        ratios = [ratio(variant, ("bare", "")), ratio(variant, ("bare, our compression", ""))]
        line = "".join(f"{number:8.1f}s" for number in numbers) + f"{ratios[0]:9.2f}{ratios[1]:25.2f}"
        print(f"{variant[0]:24s}{variant[1]:8s}{line}")


if __name__ == "__main__":
    main()
