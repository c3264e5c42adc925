# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The schema and a sample of the rows of a live database too large to dump, for a shadow of it.

What lies on the disk in between looks like a backup (``manifest.json``, ``dump/``) whose dump holds no rows; those are
in ``rows/``, a file a table. All of it is of one snapshot, in which every row is known by its place (ctid). Small
tables come whole; of the others come rows chosen by the md5 of their primary key, so that the same database gives the
same sample. Then come the rows that those refer to, and the ones that these refer to, until every foreign key holds.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import threading
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    connect,
    quote_identifier,
    quote_literal,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import BackupError, PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import utc_now
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    SNAPSHOT_SETTINGS,
    BackupRequest,
    Manifest,
    Relation,
    Snapshot,
    Work,
    database_facts,
    describe_snapshot,
    execute,
    fetch,
    find_client,
    hash_statement,
    qualified,
    run_pg_dump,
    seal,
    sequence_values,
    snapshot_facts,
    take_snapshot,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration

with contextlib.suppress(ImportError):  # require_driver() reports it
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

ROWS_NAME = "rows"

_MOST_ROWS = 1_000_000  # chosen in all: their places are kept in memory
_FOLLOWED = 100  # times as many rows of one table may come in by foreign keys as by choice
_FARTHEST = 1000  # steps from a chosen row to one that it needs
_BATCH = 1000
_LEAST = 10
_OVERHEAD = 24 * 1024  # bytes on disk of a table that is empty, with an index

# Lookups by a key, one row after the other: a hash join would read the whole of a large parent.
_LOOK_UP = ("enable_hashjoin", "enable_mergejoin", "enable_seqscan")

# Those of partitions stand for the one they were made from; of a key to a partitioned table the whole one is enough.
_FOREIGN_KEYS = """
SELECT c.conrelid::bigint AS child, c.confrelid::bigint AS parent, p.relkind::text AS kind,
       pn.nspname::text AS schema, p.relname::text AS name,
       ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k(n, i)
             JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n ORDER BY k.i) AS columns,
       ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY AS k(n, i)
             JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n ORDER BY k.i) AS referred,
       ARRAY(SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname) FROM unnest(c.conpfeqop) WITH ORDINALITY AS k(o, i)
             JOIN pg_operator o ON o.oid = k.o JOIN pg_namespace n ON n.oid = o.oprnamespace ORDER BY k.i) AS operators
FROM pg_constraint c JOIN pg_class p ON p.oid = c.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
WHERE c.contype = 'f' AND NOT EXISTS (SELECT FROM pg_constraint AS above
  WHERE above.oid = c.conparentid AND above.conrelid = c.conrelid)
ORDER BY c.conrelid, c.conname
"""
# ``key`` in the order of its index, which a scan in that order needs; ``plain``: the columns that COPY can write.
_TABLES = """
SELECT c.oid::bigint AS oid, greatest(c.reltuples, 0)::bigint AS rows,
       coalesce((SELECT array_agg(a.attname::text ORDER BY k.i) FROM pg_index x
         CROSS JOIN LATERAL unnest(x.indkey::int2[]) WITH ORDINALITY AS k(n, i)
         JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.n
         WHERE x.indrelid = c.oid AND x.indisprimary AND k.i <= x.indnkeyatts), '{}') AS key,
       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid
         AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), '{}') AS plain,
       rn.nspname::text AS root_schema, r.relname::text AS root_name
FROM pg_class c JOIN pg_class r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid)
JOIN pg_namespace rn ON rn.oid = r.relnamespace WHERE c.relkind = 'r'
"""


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """How much of each table. Sizes in bytes, durations in seconds."""

    rows: int = 1000
    size: int = 10 * 1024 * 1024
    scan_max: int = 10 * 1024**3
    timeout: float = 600.0
    lock_timeout: float = 30.0

    def validate(self) -> None:
        """:raises PlanError: an option makes no sense"""
        for name, value in (("sample_rows", self.rows), ("sample_size", self.size), ("sample_timeout", self.timeout)):
            if value <= 0:
                raise PlanError(f"{name} is {value}", remedy="Use more than 0.")


@dataclasses.dataclass
class _Table:
    """One table, and the places of the rows that are taken of it."""

    relation: Relation
    estimate: int
    key: list[str]
    plain: list[str]
    into: tuple[str, str]
    method: str = "all"  # all | md5 | ends (of the primary key) | start (of the file)
    places: dict[str, None] = dataclasses.field(default_factory=dict)
    left_out: int = 0

    @property
    def complete(self) -> bool:
        return self.method == "all" and not self.left_out


@dataclasses.dataclass(frozen=True)
class _ForeignKey:
    parent: int
    query: str  # of the places of children; their own, and the parent's table and place


def take_sample(
    work: Work,
    options: ConnectionOptions,
    request: SampleRequest,
    directory: str,
    *,
    bindir: str | None,
    jobs: int,
    lock: int,
) -> Manifest:
    """Write schema and sample of the database to the (empty) directory. The database is only read.

    :param lock: a descriptor that pg_dump inherits, whose lock says that it lives
    :raises SurefootError: something cannot be read, or it took too long
    """
    request.validate()
    late = BackupError(
        f"schema and sample were not read within {human_duration(request.timeout)}",
        remedy="Raise sample_timeout, or lower sample_scan_max: tables over it are not read whole.",
    )
    timer = threading.Timer(request.timeout, work.fail, [late])
    timer.daemon = True
    timer.start()
    try:
        return _take(work, options, request, directory, bindir=bindir, jobs=jobs, lock=lock)
    except SurefootError:
        work.check()  # what stopped it is a better reason than what failed because of that
        raise
    finally:
        timer.cancel()


def _take(
    work: Work,
    options: ConnectionOptions,
    request: SampleRequest,
    directory: str,
    *,
    bindir: str | None,
    jobs: int,
    lock: int,
) -> Manifest:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        snapshot = take_snapshot(work, stack, options, request.lock_timeout)
        connection = snapshot.connection
        created = utc_now()
        database = database_facts(connection)
        client = find_client(database["server_version_num"] // 10000, bindir)
        before = sequence_values(connection, snapshot.relations)
        facts = snapshot_facts(connection)
        plain = BackupRequest(dest=directory, jobs=1, lock_timeout=request.lock_timeout)
        run_pg_dump(work, options, plain, client, "gzip:1", snapshot.identifier, directory, lock, schema_only=True)
        work.check()
        execute(connection, "SET LOCAL synchronize_seqscans = off")
        tables = _choose_all(work, connection, snapshot, request)
        _follow(work, connection, tables, request)
        os.mkdir(os.path.join(directory, ROWS_NAME), 0o700)
        measured = {oid: _write(work, connection, table, directory) for oid, table in tables.items()}
        after = sequence_values(connection, snapshot.relations)
        execute(connection, "COMMIT")  # fails when the snapshot did not live until here
    data = {
        **describe_snapshot(snapshot, database, client, facts, measured, before, after),
        "content": "sample",
        "run_id": None,
        "name": os.path.basename(directory),
        "created": created,
        "compression": "gzip:1",
        "jobs": 1,
        "hashes": "full",
        "large_objects": 0,
        "fill": [
            [r.schema, r.name] for r in snapshot.relations if r.kind == "m" and r.populated and r.extension is None
        ],
    }
    data["sample"] = _describe(tables, measured, directory, snapshot)
    return seal(work, directory, data, started, jobs)


# --- choosing --------------------------------------------------------------------------------------------------------


def _choose_all(work: Work, connection: Connection, snapshot: Snapshot, request: SampleRequest) -> dict[int, _Table]:
    wanted = {r.oid: r for r in snapshot.relations if r.kind == "r" and r.data == "all"}
    tables = {
        row["oid"]: _Table(
            wanted[row["oid"]], row["rows"], row["key"], row["plain"], (row["root_schema"], row["root_name"])
        )
        for row in fetch(connection, _TABLES)
        if row["oid"] in wanted
    }
    most = min(request.rows, max(_LEAST, _MOST_ROWS // max(1, len(tables))))
    for table in tables.values():
        work.check()
        _choose(connection, table, most, request)
    return tables


def _choose(connection: Connection, table: _Table, most: int, request: SampleRequest) -> None:
    """All rows of a small table; of another one ``most`` of them, fewer when they are wide."""
    name, size = qualified(table.relation, connection), table.relation.size
    first = _places(connection, f"SELECT ctid FROM ONLY {name} LIMIT {most + 1}")
    if len(first) <= most:
        table.estimate = len(first)
        if size <= request.size:
            table.places = dict.fromkeys(first)
            return
    table.estimate = max(table.estimate, len(first))
    wide = max(1, request.size * table.estimate // max(1, size))
    most = max(1, min(most, wide, table.estimate))
    key = [quote_identifier(column, connection) for column in table.key or table.relation.columns]
    if size <= request.scan_max and key:
        text = f"md5(ROW({', '.join(key)})::text)"
        modulus = max(1, table.estimate // (2 * most))
        chosen = _places(
            connection,
            f"SELECT ctid FROM ONLY {name} WHERE ('x' || substr({text}, 1, 8))::bit(32)::bigint % {modulus} = 0"
            f" ORDER BY {text}, ctid LIMIT {most}",
        )
        if chosen:  # none when the statistics say far too many rows
            table.method, table.places = "md5", dict.fromkeys(chosen)
            return
    if table.key:
        half, ends = (most + 1) // 2, ""
        for way in ("ASC", "DESC"):
            order = ", ".join(f"{column} {way}" for column in key)
            ends += f"{' UNION ALL ' if ends else ''}(SELECT ctid FROM ONLY {name} ORDER BY {order} LIMIT {half})"
        table.method, table.places = "ends", dict.fromkeys(_places(connection, ends))
        return
    table.method, table.places = "start", dict.fromkeys(first[:most])


def _places(connection: Connection, statement: str) -> list[str]:
    return [str(row["ctid"]) for row in fetch(connection, statement)]


# --- foreign keys ----------------------------------------------------------------------------------------------------


def _foreign_keys(connection: Connection, tables: t.Mapping[int, _Table]) -> dict[int, list[_ForeignKey]]:
    found: dict[int, list[_ForeignKey]] = {}
    for row in fetch(connection, _FOREIGN_KEYS):
        child = tables.get(row["child"])
        if child is None:
            continue
        parent = ".".join(quote_identifier(row[part], connection) for part in ("schema", "name"))
        only = "" if row["kind"] == "p" else "ONLY "
        on = " AND ".join(
            f"p.{quote_identifier(referred, connection)} {operator} c.{quote_identifier(column, connection)}"
            for referred, operator, column in zip(row["referred"], row["operators"], row["columns"])
        )
        query = (
            f"SELECT c.ctid::text AS child, p.tableoid::bigint AS parent, p.ctid::text AS place"
            f" FROM ONLY {qualified(child.relation, connection)} AS c JOIN {only}{parent} AS p ON {on} WHERE c.ctid = "
        )
        found.setdefault(row["child"], []).append(_ForeignKey(row["parent"], query))
    return found


def _any_of(places: t.Sequence[str], connection: Connection) -> str:
    return f"ANY ({quote_literal(list(places), connection)}::tid[])"


def _follow(work: Work, connection: Connection, tables: dict[int, _Table], request: SampleRequest) -> None:
    """Take what the rows refer to, until nothing is missing. What would become too much is left out, with every row
    that refers to it."""
    keys = _foreign_keys(connection, tables)
    limit = _FOLLOWED * request.rows
    children: dict[tuple[int, str], list[tuple[int, str]]] = collections.defaultdict(list)
    missing: dict[tuple[int, str], None] = {}
    front: dict[int, list[str]] = {oid: list(table.places) for oid, table in tables.items() if oid in keys}
    for setting in _LOOK_UP:
        execute(connection, f"SET LOCAL {setting} = off")
    steps = 0
    while front:
        steps += 1
        coming: dict[int, list[str]] = collections.defaultdict(list)
        for oid, places in front.items():
            for key in keys.get(oid, ()):
                for start in range(0, len(places), _BATCH):
                    work.check()
                    batch = places[start : start + _BATCH]
                    for row in fetch(connection, key.query + _any_of(batch, connection)):
                        parent, place = row["parent"], row["place"]
                        if parent not in tables:  # of an extension, which brings its rows itself
                            continue
                        children[parent, place].append((oid, row["child"]))
                        if place in tables[parent].places or (parent, place) in missing:
                            continue
                        if len(tables[parent].places) >= limit or steps > _FARTHEST:
                            missing[parent, place] = None
                        else:
                            tables[parent].places[place] = None
                            coming[parent].append(place)
        front = dict(coming)
    for setting in _LOOK_UP:
        execute(connection, f"RESET {setting}")
    gone = list(missing)
    while gone:
        for oid, place in children.get(gone.pop(), ()):
            if place in tables[oid].places:
                del tables[oid].places[place]
                tables[oid].left_out += 1
                gone.append((oid, place))


# --- writing and loading ---------------------------------------------------------------------------------------------


def _write(work: Work, connection: Connection, table: _Table, directory: str) -> dict[str, t.Any]:
    """The rows as COPY text, and how many and which they are, as :func:`hash_statement` sees them."""
    relation, places = table.relation, list(table.places)
    name = qualified(relation, connection)
    columns = ", ".join(quote_identifier(column, connection) for column in table.plain)
    total = {"rows": 0, "high": 0, "low": 0}
    path = os.path.join(directory, ROWS_NAME, f"{relation.oid}.copy")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        for start in range(0, len(places), _BATCH):
            work.check()
            where = f"ctid = {_any_of(places[start : start + _BATCH], connection)}"
            try:
                with connection.cursor() as cursor:
                    cursor.copy_expert(f"COPY (SELECT {columns} FROM ONLY {name} WHERE {where}) TO STDOUT", stream)
            except psycopg2.Error as exc:
                raise sql_error(exc) from None
            found = fetch(
                connection,
                hash_statement(name, relation.columns, (), modulus=None, connection=connection, where=where),
            )[0]
            total["rows"] += found["rows"]
            total["high"] += int(found["high"])
            total["low"] += int(found["low"])
    if total["rows"] != len(places):
        raise BackupError(
            f"{relation.label} changed under the snapshot", remedy="Connect to the server itself, and try again."
        )
    hashed = {
        "method": "full",
        "columns": relation.columns,
        "rows": total["rows"],
        "high": str(total["high"]),
        "low": str(total["low"]),
    }
    return {"rows": total["rows"], "hash": hashed}


def _describe(
    tables: t.Mapping[int, _Table],
    measured: t.Mapping[int, t.Mapping[str, t.Any]],
    directory: str,
    snapshot: Snapshot,
) -> dict[str, t.Any]:
    written = sum(os.stat(os.path.join(directory, ROWS_NAME, f"{oid}.copy")).st_size for oid in tables)
    return {
        "load": [
            {"file": f"{oid}.copy", "into": list(table.into), "columns": table.plain}
            for oid, table in tables.items()
            if table.places
        ],
        # On disk a row takes more than its text where it is short, and indexes come on top.
        "bytes": 4 * written + _OVERHEAD * len(snapshot.relations) + 16 * 1024 * 1024,
        "rows": sum(int(item["rows"]) for item in measured.values()),
        "tables": len(tables),
        # As (rows, bytes) of the source; what a rehearsal cannot say anything of.
        "incomplete": {
            table.relation.label: [max(table.estimate, len(table.places)), table.relation.size]
            for table in tables.values()
            if not table.complete
        },
        "methods": {
            table.relation.label: {"method": table.method, "rows": len(table.places), "left_out": table.left_out}
            for table in tables.values()
            if not table.complete
        },
    }


def load_rows(work: Work, options: ConnectionOptions, manifest: Manifest) -> None:
    """Load the rows of a sample into a database that has its tables, and nothing yet that checks or fires; then give
    the sequences their values.

    :raises SurefootError: the server refused
    """
    settings = {**SNAPSHOT_SETTINGS, "default_transaction_read_only": "off", "synchronous_commit": "off"}
    with work.connection(connect(options, purpose="restore-sample", settings=settings)) as connection:
        for item in manifest.data["sample"]["load"]:
            work.check()
            name = ".".join(quote_identifier(part, connection) for part in item["into"])
            columns = ", ".join(quote_identifier(column, connection) for column in item["columns"])
            try:
                with (
                    open(os.path.join(manifest.directory, ROWS_NAME, item["file"]), "rb") as stream,
                    connection.cursor() as cursor,
                ):
                    cursor.copy_expert(f"COPY {name} {f'({columns})' if columns else ''} FROM STDIN", stream)
            except psycopg2.Error as exc:
                raise sql_error(exc, remedy="The shadow is gone; nothing but it was touched.") from None
        for sequence in manifest.data["sequences"]:
            if sequence["after"] is not None:
                name = ".".join(quote_identifier(sequence[part], connection) for part in ("schema", "name"))
                execute(connection, f"SELECT setval({quote_literal(name, connection)}::regclass, {sequence['after']})")


def fill_views(
    work: Work, options: ConnectionOptions, manifest: Manifest, remote: t.Container[tuple[str, str]]
) -> list[str]:
    """Fill the materialized views that are filled in the source, each after those that it reads; returns a line about
    those that could not be.

    :param remote: schema and name of what reads foreign tables, and stays empty
    """
    waiting = [(schema, name) for schema, name in manifest.data["fill"] if (schema, name) not in remote]
    skipped = sorted(f"{schema}.{name}" for schema, name in manifest.data["fill"] if (schema, name) in remote)
    settings = {**SNAPSHOT_SETTINGS, "default_transaction_read_only": "off", "row_security": "on"}
    with work.connection(connect(options, purpose="restore-views", settings=settings)) as connection:
        while waiting:
            left = []
            for schema, name in waiting:
                work.check()
                view = f"{quote_identifier(schema, connection)}.{quote_identifier(name, connection)}"
                try:
                    execute(connection, f"REFRESH MATERIALIZED VIEW {view}")
                except SurefootError:
                    work.check()
                    left.append((schema, name))
            if len(left) == len(waiting):
                break
            waiting = left
        else:
            waiting = []
    failed = sorted(f"{schema}.{name}" for schema, name in waiting)
    lines = [f"not filled, because they read foreign tables: {', '.join(skipped)}"] if skipped else []
    return lines + ([f"not filled in the sample: {', '.join(failed)}"] if failed else [])
