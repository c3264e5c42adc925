# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What a rollback loses: the tables that its plan names are dumped, and the rows written since the apply counted.

Counts and dumps are of one snapshot. A count is exact for a table that a migration made, because every row in it is
younger than the table; otherwise it is an upper bound, from the statistics of the server where a run recorded them
after the apply, else from the number of all rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    child_environment,
    quote_identifier,
    redact,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    BackupError,
    EnvironmentProblem,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record, utc_now, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Ledger
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    SNAPSHOT_SETTINGS,
    Client,
    CopyRowCounter,
    Work,
    find_client,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, Plan, split_qualified
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import select_rollback
from ansible_collections.surefoot.dbops.plugins.module_utils._values import milliseconds
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import open_session

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

DIRECTORY = "losses"
RECORDED = "table-writes.json"
_CHUNK = 1024 * 1024

# How rows_since was found, and what it is.
BASES = {
    "created": "exact: a migration that is rolled back made the table, so what no such migration wrote came since",
    "statistics": "upper bound: rows inserted, updated and deleted since the apply, by the server's statistics",
    "all_rows": "upper bound: every row of the table; nothing was recorded after the apply",
    "absent": "exact: there is no such table",
}

# The row of a system column is written when the table is made and never again, so its xmin is the transaction that
# made the table; grants, ANALYZE and ALTER TABLE leave it alone.
_TABLE = """
SELECT c.oid::bigint, c.relkind::text, a.xmin::text
FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tableoid' AND a.attnum < 0
WHERE c.oid = to_regclass(%s)
"""
# xmin has 32 bits, xid8 has 64. The runs are those that applied what is applied now.
_APPLIED_BY = """
SELECT p.migration_id, a.run_id, a.action, (a.xid::text::numeric %% 4294967296)::text
FROM {s}.applied p JOIN {s}.attempts a USING (attempt_id) WHERE p.set_name = %s
"""
# Of a partitioned table, its partitions have the rows.
_WRITES = """
SELECT coalesce(sum(pg_stat_get_tuples_inserted(r.oid)), 0)::bigint,
       coalesce(sum(pg_stat_get_tuples_updated(r.oid)), 0)::bigint,
       coalesce(sum(pg_stat_get_tuples_deleted(r.oid)), 0)::bigint
FROM (SELECT relid::oid AS oid FROM pg_partition_tree(%s::oid::regclass) UNION SELECT %s::oid) r
"""
_LEAVES = """
SELECT n.nspname::text, c.relname::text FROM pg_partition_tree(%s::oid::regclass) p
JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
"""
# Differs once the counters may have begun anew: restart, reset by hand, or (that of the writer) after a crash.
_EPOCH = """
SELECT d.oid::bigint, pg_postmaster_start_time()::text, coalesce(pg_stat_get_db_stat_reset_time(d.oid)::text, ''),
       coalesce(pg_stat_get_bgwriter_stat_reset_time()::text, '')
FROM pg_database d WHERE d.datname = current_database()
"""


@dataclasses.dataclass(frozen=True)
class LossRequest:
    """What to look at, and how. Durations in seconds."""

    ledger_schema: str
    run_id: str
    run_dir: str | None
    to: str | None = None
    only: tuple[str, ...] = ()
    max_rows: int = 0
    dump: bool = True
    recorded_in: str | None = None
    bindir: str | None = None
    lock_timeout: float = 30.0


@dataclasses.dataclass
class Loss:
    """One table that the rollback loses rows of."""

    table: str
    migrations: tuple[str, ...]
    rows: int = 0
    rows_since: int = 0
    basis: str = "absent"
    dump: str | None = None
    sha256: str | None = None
    size: int | None = None

    @property
    def exact(self) -> bool:
        return BASES[self.basis].startswith("exact")

    def to_dict(self) -> dict[str, t.Any]:
        return {**dataclasses.asdict(self), "migrations": list(self.migrations), "exact": self.exact}


def measure_losses(
    plan: Plan, options: ConnectionOptions, request: LossRequest, *, check_mode: bool = False
) -> dict[str, t.Any]:
    """Count, and unless told otherwise dump, what rolling back these migrations loses; returns the module's results.

    :raises BackupError: a table cannot be dumped or read back whole; roll back only when that is accepted
    :raises SurefootError: what keeps plan, ledger or server from being read
    """
    work = Work()

    def measure() -> list[Loss]:
        try:
            return _measure(work, plan, options, request, dump=request.dump and not check_mode)
        except SurefootError as exc:
            work.check()  # an interruption looks like whatever it interrupted
            raise exc
        except psycopg2.Error as exc:
            work.check()
            raise sql_error(exc) from None

    losses = run_interruptible(measure, work.interrupt)
    total = sum(loss.rows_since for loss in losses)
    evidence = Evidence(
        criterion="rescue.lost_rows",
        phase="rescue",
        verdict=verdict(total <= request.max_rows),
        measured=total,
        required=f"at most {request.max_rows} rows",
        source=", ".join(dict.fromkeys(loss.basis for loss in losses)) or "plan",
        details={"exact": all(loss.exact for loss in losses), "tables": [loss.to_dict() for loss in losses]},
    )
    return {
        "changed": False,
        "tables": [loss.to_dict() for loss in losses],
        "total": total,
        "exact": all(loss.exact for loss in losses),
        "exceeded": total > request.max_rows,
        "evidence": record(None if check_mode else request.run_dir, [evidence]),
    }


def record_writes(
    plan: Plan, options: ConnectionOptions, request: LossRequest, *, check_mode: bool = False
) -> dict[str, t.Any]:
    """Note, after an apply, how many rows were ever written to the tables a rollback would lose rows of, so that a
    rollback can tell how many came later; returns the module's results.

    :raises SurefootError: what keeps plan, ledger or server from being read
    """
    wanted = [migration for migration in plan.migrations if not request.only or migration.id in request.only]
    with contextlib.closing(_session(options)) as connection:
        epoch = _first(connection, _EPOCH)
        tables = {}
        for name in _named(wanted):
            found = _first(connection, _TABLE, (name,))
            if found:
                tables[name] = {"oid": found[0], "writes": list(_writes(connection, found[0]))}
    if request.run_dir and not check_mode:
        content = {"time": utc_now(), "run_id": request.run_id, "epoch": list(epoch), "tables": tables}
        write_json(request.run_dir, RECORDED, content)
    return {"changed": False, "recorded": sorted(tables)}


# --- counting --------------------------------------------------------------------------------------------------------


def _measure(work: Work, plan: Plan, options: ConnectionOptions, request: LossRequest, *, dump: bool) -> list[Loss]:
    ledger = Ledger(request.ledger_schema, plan.name, request.run_id)
    with work.connection(_session(options, request.lock_timeout)) as connection:
        todo = select_rollback(plan, ledger.read(connection), to=request.to, only=request.only).todo
        named = _named(todo)
        if not named:
            return []
        ids = {migration.id for migration in todo}
        applied = [item for id_, item in _applied(connection, ledger).items() if id_ in ids]
        xids = {item.xid for item in applied if item.action == "deploy" and item.xid}
        recorded = _recorded(connection, request, {item.run_id for item in applied})
        client = find_client(connection.server_version // 10000, request.bindir) if dump else None
        losses = [Loss(name, migrations) for name, migrations in named.items()]
        there = [loss for loss in losses if _first(connection, _TABLE, (loss.table,))]
        # Rows are counted and dumped in one snapshot, taken under locks against DROP, TRUNCATE and rewrites.
        _execute(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for loss in there:
            _execute(connection, f"LOCK TABLE {_quoted(loss.table, connection)} IN ACCESS SHARE MODE")
        snapshot = _first(connection, "SELECT pg_export_snapshot()")[0]
        for loss in there:
            oid, kind, made_by = _first(connection, _TABLE, (loss.table,))
            loss.basis = "created" if made_by in xids else "all_rows"
            if loss.basis == "created":
                # What the migrations wrote, applying them again writes again. A row that was frozen keeps its xmin.
                others = "count(*) FILTER (WHERE xmin::text <> ALL (%s::text[]))"
                counted = f"SELECT count(*), {others} FROM {_quoted(loss.table, connection)}"
                loss.rows, loss.rows_since = _first(connection, counted, (sorted(xids),))
            else:
                counted = f"SELECT count(*) FROM {_quoted(loss.table, connection)}"
                loss.rows = loss.rows_since = _first(connection, counted)[0]
            before = recorded.get((loss.table, oid))
            if loss.basis == "all_rows" and before is not None:
                written = [now - then for now, then in zip(_writes(connection, oid), before)]
                if min(written) >= 0:
                    loss.basis, loss.rows_since = "statistics", sum(written)
            if client is not None:
                _dump(work, options, request, client, loss, snapshot, _patterns(connection, loss.table, oid, kind))
        _execute(connection, "COMMIT")
    return losses


def _named(migrations: t.Sequence[Migration]) -> dict[str, tuple[str, ...]]:
    """Table -> the migrations that name it."""
    named: dict[str, tuple[str, ...]] = {}
    for migration in migrations:
        for table in migration.rollback_loses:
            named[table] = (*named.get(table, ()), migration.id)
    return named


class _Applied(t.NamedTuple):
    run_id: str
    action: str
    xid: str | None


def _applied(connection: Connection, ledger: Ledger) -> dict[str, _Applied]:
    quoted = quote_identifier(ledger.schema, connection)
    with connection.cursor() as cursor:
        cursor.execute(_APPLIED_BY.replace("{s}", quoted), (ledger.set_name,))
        return {row[0]: _Applied(*row[1:]) for row in cursor.fetchall()}


def _recorded(
    connection: Connection, request: LossRequest, runs: t.Collection[str]
) -> dict[tuple[str, int], tuple[int, int, int]]:
    """(Table, oid) -> rows inserted, updated, deleted up to the apply; of the run directories of the runs that applied,
    which lie beside the one of this run. What the server has forgotten since does not count."""
    epoch = _first(connection, _EPOCH)
    places = [request.recorded_in] if request.recorded_in else []
    if request.run_dir and not request.recorded_in:
        base = os.path.dirname(os.path.realpath(request.run_dir))
        places = [request.run_dir, *(os.path.join(base, run) for run in sorted(runs))]
    contents = []
    for place in places:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with open(os.path.join(place, RECORDED), encoding="utf-8") as stream:
                content = json.load(stream)
            tables = {(str(name), int(item["oid"])): tuple(item["writes"]) for name, item in content["tables"].items()}
            if tuple(content["epoch"]) == tuple(epoch):
                contents.append((str(content["time"]), tables))
    # Of several, the earliest: more may have been written since then than since the others.
    recorded: dict[tuple[str, int], tuple[int, int, int]] = {}
    for _time, tables in sorted(contents, key=lambda item: item[0], reverse=True):
        recorded.update(tables)
    return recorded


def _writes(connection: Connection, oid: int) -> tuple[int, int, int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(_WRITES, (oid, oid))
        row = cursor.fetchone() or (0, 0, 0)
    return (int(row[0]), int(row[1]), int(row[2]))


def _patterns(connection: Connection, table: str, oid: int, kind: str) -> list[str]:
    """Patterns of pg_dump for the table and its partitions, which it leaves out by itself."""
    names = [split_qualified(table)]
    if kind == "p":
        with connection.cursor() as cursor:
            cursor.execute(_LEAVES, (oid,))
            names += [row for row in cursor.fetchall() if row != names[0]]
    # In quotes a pattern is the name itself.
    return [".".join('"' + part.replace('"', '""') + '"' for part in name) for name in names]


# --- dumping ---------------------------------------------------------------------------------------------------------


def _dump(
    work: Work,
    options: ConnectionOptions,
    request: LossRequest,
    client: Client,
    loss: Loss,
    snapshot: str,
    patterns: t.Sequence[str],
) -> None:
    if not request.run_dir:
        raise EnvironmentProblem("there is no place for the dumps", remedy="Give run_dir, or dump: false.")
    path = _free_path(request.run_dir, loss.table)
    try:
        with child_environment(options) as environment:
            environment["LC_ALL"] = "C"
            argv = [
                client.path("pg_dump"),
                "--format=custom",
                f"--file={path}",
                f"--snapshot={snapshot}",
                f"--lock-wait-timeout={milliseconds(request.lock_timeout)}",
                "--no-password",
                *(f"--table={pattern}" for pattern in patterns),
            ]
            if options.session_role:
                argv.append(f"--role={options.session_role}")
            code, errors = work.run(argv, environment)
        work.check()
        if code != 0:
            raise _failed(loss, "pg_dump", code, errors)
        _read_back(work, client, loss, path)
        digest, loss.size = _hash(path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    loss.dump, loss.sha256 = path, digest


def _read_back(work: Work, client: Client, loss: Loss, path: str) -> None:
    """Every row that was counted must come out of the dump again."""
    counter = CopyRowCounter()

    def consume(stream: t.IO[bytes]) -> None:
        for piece in iter(lambda: stream.read(_CHUNK), b""):
            counter.feed(piece)

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    argv = [client.path("pg_restore"), "--data-only", "--file=-", path]
    code, errors = work.run(argv, {**environment, "LC_ALL": "C"}, consume=consume)
    work.check()
    if code != 0:
        raise _failed(loss, "pg_restore", code, errors)
    found = sum(counter.counts)
    if found != loss.rows or not counter.complete:
        raise BackupError(
            f"the dump of {loss.table} holds {found} rows instead of {loss.rows}",
            remedy="Dump it by hand before you roll back.",
        )


def _failed(loss: Loss, program: str, code: int, errors: str) -> BackupError:
    lines = [line.strip() for line in redact(errors).splitlines() if line.strip()]
    reason = next((line for line in lines if "error:" in line), lines[-1] if lines else f"exit code {code}")
    return BackupError(
        f"{loss.table} cannot be dumped: {re.sub(r'^.*?error: ', f'{program}: ', reason)}",
        remedy="Nothing was rolled back. Dump as the table's owner, or set dump: false to do without.",
    )


def _free_path(run_dir: str, table: str) -> str:
    """A file in ``losses/`` that does not exist: a dump is never replaced by a later one, of fewer rows perhaps."""
    directory = os.path.join(run_dir, DIRECTORY)
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", table).lstrip(".") or "table"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for number in range(1, 10_000):
            path = os.path.join(directory, f"{stem}{f'-{number}' if number > 1 else ''}.dump")
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                return path
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot write to {directory}: {exc.strerror}", remedy="Make the run directory writable."
        ) from exc
    raise EnvironmentProblem(f"{directory} is full of dumps of {table}", remedy="Move them away.")


def _hash(path: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


# --- the session -----------------------------------------------------------------------------------------------------


def _session(options: ConnectionOptions, lock_timeout: float = 30.0) -> Connection:
    # row_security off: rows that this role may not see are an error, and not missing from the count.
    settings = {**SNAPSHOT_SETTINGS, "lock_timeout": f"{milliseconds(lock_timeout)}ms"}
    return open_session(options, "losses", settings, allow_session_pooler=True)


def _quoted(table: str, connection: Connection) -> str:
    return ".".join(quote_identifier(part, connection) for part in split_qualified(table))


def _first(connection: Connection, sql: str, values: t.Sequence[t.Any] | None = None) -> t.Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchone()


def _execute(connection: Connection, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)
