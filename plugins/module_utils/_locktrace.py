# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Looks on while the runner works: which locks each statement took on what was there before, until when, and which
tables it wrote anew.

In a transaction the worker's own session is asked after each statement, so that no lock is missed that is still held
then. A statement that no transaction can hold is sampled by a second session. The clock stands still while this one
looks: the times are those of a run nobody looks on at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils import _lockmodes
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    quote_identifier,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._context import Trace
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._script import StatementClass, concurrent_target
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Statement
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import open_session

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

SAMPLE_INTERVAL = 0.02  # seconds
_REMEMBERED = 1000  # statements without a lock of their own; a file may hold half a million

# Who looks sees its own uncommitted changes: the file number that a rewrite gives a table at once.
_OWN_LOCKS = """
SELECT l.relation::bigint, l.mode, c.relfilenode::bigint FROM pg_catalog.pg_locks l
LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation
WHERE l.pid = {pid} AND l.granted AND l.locktype = 'relation'
  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
"""
# Asked in another session, which does not see what the worker has not committed: what it finds existed before.
_RELATIONS = """
SELECT c.oid::bigint, n.nspname, c.relname, c.relkind::text, c.relfilenode::bigint,
       tn.nspname || '.' || t.relname,
       c.relpages::bigint * pg_catalog.current_setting('block_size')::bigint, c.reltuples::bigint
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
LEFT JOIN pg_catalog.pg_class t ON t.oid = i.indrelid LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND n.nspname <> %s
  AND (%s::bigint[] IS NULL OR c.oid = ANY (%s::bigint[]))
"""
_NAMED = """
SELECT c.oid::bigint, n.nspname || '.' || c.relname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = ANY (%s)
"""
# Scans of the table and of its indexes, rows written. Those of maintenance (a constraint that is validated, an index
# that is built) count as scans too.
_OWN_COUNTERS = """
SELECT w.oid::bigint, sum(pg_catalog.pg_stat_get_xact_numscans(r.oid)),
       sum(pg_catalog.pg_stat_get_xact_tuples_inserted(r.oid) + pg_catalog.pg_stat_get_xact_tuples_updated(r.oid)
         + pg_catalog.pg_stat_get_xact_tuples_deleted(r.oid)),
       pg_catalog.current_setting('track_counts') = 'on'
FROM pg_catalog.unnest(%s::oid[]) AS w(oid) CROSS JOIN LATERAL (SELECT w.oid UNION ALL
  SELECT i.indexrelid FROM pg_catalog.pg_index i WHERE i.indrelid = w.oid) AS r(oid) GROUP BY 1
"""
_UNKNOWN = (-1, -1)
_KINDS = {
    "r": "table",
    "p": "partitioned table",
    "m": "materialized view",
    "v": "view",
    "i": "index",
    "I": "partitioned index",
    "S": "sequence",
    "f": "foreign table",
    "c": "composite type",
}
_HAS_ROWS = ("r", "m")


@dataclasses.dataclass
class Relation:
    """A relation that existed before. ``bytes`` and ``rows`` are None where nobody knows; ``table`` is the table of an
    index."""

    oid: int
    name: str
    kind: str  # pg_class.relkind
    filenode: int
    table: str | None
    bytes: int | None
    rows: int | None


@dataclasses.dataclass
class HeldLock:
    """One lock on one relation; ``since`` and ``until`` in seconds from the beginning of its transaction.

    ``source``: ``pg_locks`` (own session, exact), ``sampled`` (another session: at most one interval too long) or
    ``documented`` (by the manual; no sample caught it, so the whole statement counts).
    """

    phase: str
    migration: str
    transaction: int
    file: str
    line: int | None
    tag: str
    relation: Relation
    mode: str
    since: float
    until: float | None
    source: str

    @property
    def blocks(self) -> tuple[str, ...]:
        """Which of SELECT, INSERT, UPDATE, DELETE on the relation wait for it."""
        return _lockmodes.blocks(self.mode)

    @property
    def seconds(self) -> float:
        """How long it was held."""
        return (self.until if self.until is not None else self.since) - self.since

    @property
    def mode_name(self) -> str:
        """The mode as SQL spells it."""
        return _lockmodes.spelt(self.mode)

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "phase": self.phase,
            "migration": self.migration,
            "transaction": self.transaction,
            "file": self.file,
            "line": self.line,
            "tag": self.tag,
            "relation": self.relation.name,
            "kind": _KINDS.get(self.relation.kind, self.relation.kind),
            "table": self.relation.table,
            "bytes": self.relation.bytes,
            "rows": self.relation.rows,
            "mode": self.mode_name,
            "blocks": list(self.blocks),
            "from_seconds": round(self.since, 4),
            "to_seconds": round(self.until if self.until is not None else self.since, 4),
            "seconds": round(self.seconds, 4),
            "source": self.source,
        }


@dataclasses.dataclass(frozen=True)
class _Place:
    phase: str
    migration: str
    transaction: int
    file: str
    line: int | None
    tag: str


@dataclasses.dataclass
class _Transaction:
    number: int
    started: float
    open: dict[tuple[int, str], HeldLock] = dataclasses.field(default_factory=dict)
    known: dict[int, Relation] = dataclasses.field(default_factory=dict)
    others: set[int] = dataclasses.field(default_factory=set)  # new ones, catalogs, the ledger's
    alike: set[tuple[str, ...]] = dataclasses.field(default_factory=set)
    looked: bool = False
    watched: dict[int, str] = dataclasses.field(default_factory=dict)  # the partial tables
    counters: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)


class LockTrace(Trace):
    """One trace for one run after the other; set ``phase`` before each. Not for two runs at the same time.

    :param sizes: name to (bytes, rows) where they are known better than by the planner's statistics
    :param partial: tables of whose rows only a part is there; see ``touched``
    :raises ConnectionFailed: the second session cannot be opened
    """

    def __init__(
        self,
        options: ConnectionOptions,
        ledger_schema: str,
        *,
        sizes: t.Mapping[str, tuple[int, int]] | None = None,
        interval: float = SAMPLE_INTERVAL,
        allow_session_pooler: bool = False,
        partial: t.Collection[str] = (),
    ) -> None:
        self._ledger_schema = ledger_schema
        self._partial = sorted(partial)
        self._sizes = sizes or {}
        self._interval = interval
        self._observer = open_session(options, "trace", allow_session_pooler=allow_session_pooler)
        self._transaction: _Transaction | None = None
        self._number = 0
        self._aside = 0.0  # seconds spent on looking
        self.phase = ""
        self.locks: list[HeldLock] = []
        self.rewrites: list[dict[str, t.Any]] = []
        self.statements: list[dict[str, t.Any]] = []
        # Phase and number of a transaction to the partial tables that it looked into, and to those whose rows it
        # changed: what it found there, and how long it took, is not what it would find, and take, where all rows are.
        self.touched: dict[tuple[str, int], set[str]] = {}
        self.written: dict[tuple[str, int], set[str]] = {}

    def close(self) -> None:
        """End the second session."""
        with contextlib.suppress(psycopg2.Error):
            self._observer.close()

    # --- the runner's calls ------------------------------------------------------------------------------------------

    def begin(self, connection: Connection) -> None:
        self._transaction = self._next()

    def end(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            self._release(transaction, list(transaction.open), self._now())

    @contextlib.contextmanager
    def statement(
        self, connection: Connection, migration: Migration, statement: Statement, kind: StatementClass
    ) -> t.Iterator[None]:
        transaction = self._transaction or self._next()
        if not transaction.looked:
            # What is held before the first statement came from the plan's lock_tables.
            transaction.looked = True
            self._begin_to_watch(connection, transaction)
            place = _Place(
                self.phase,
                migration.id,
                transaction.number,
                os.path.basename(migration.location.file),
                migration.location.line,
                "LOCK TABLE",
            )
            self._look(connection, transaction, place, transaction.started)
        place = self._place(transaction, migration, statement, kind)
        # Samples tell waiting for a lock from holding it, and a lock taken late from one taken at once.
        sampler = _Sampler(self._observer, int(connection.info.backend_pid), self._interval, self._interval)
        started = self._now()
        if kind.may_block:
            sampler.start()
        try:
            yield
        finally:
            finished = self._now()
            with self._looking():
                sampler.stop()
        seen = len(self.locks)
        if self._partial or self._worth_a_look(transaction, statement, kind):
            self._look(connection, transaction, place, started, sampler)
        self._note(place, started - transaction.started, finished - started, len(self.locks) - seen)

    @contextlib.contextmanager
    def alone(
        self, connection: Connection, migration: Migration, statement: Statement, kind: StatementClass
    ) -> t.Iterator[None]:
        transaction = self._next()
        with self._looking():
            transaction.known = {relation.oid: relation for relation in self._existing(None)}
        place = self._place(transaction, migration, statement, kind)
        transaction.started = self._now()
        sampler = _Sampler(self._observer, int(connection.info.backend_pid), self._interval)
        seen = len(self.locks)
        sampler.start()
        try:
            yield
        finally:
            finished = self._now()
            sampler.stop()
            with self._looking():
                self._take_over(transaction, place, sampler, statement, kind, finished)
            self._note(place, 0.0, finished - transaction.started, len(self.locks) - seen)

    # --- in a transaction --------------------------------------------------------------------------------------------

    def _look(
        self,
        connection: Connection,
        transaction: _Transaction,
        place: _Place,
        started: float,
        sampler: _Sampler | None = None,
    ) -> None:
        with self._looking():
            if connection.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_INTRANS:
                return
            finished = self._now()
            with connection.cursor() as cursor:
                cursor.execute(_OWN_LOCKS.format(pid="pg_catalog.pg_backend_pid()"))
                rows: list[tuple[int, str, int | None]] = cursor.fetchall()
            self._watch_partial(connection, transaction)
            self._learn(transaction, {oid for oid, _mode, _filenode in rows})
            held = {(oid, mode) for oid, mode, _filenode in rows}
            # A savepoint rolled back gives its locks back.
            self._release(transaction, [key for key in transaction.open if key not in held], finished)
            for oid, mode, filenode in rows:
                relation = transaction.known.get(oid)
                if relation is None:
                    continue
                if (oid, mode) not in transaction.open:
                    lock = HeldLock(
                        **dataclasses.asdict(place),
                        relation=relation,
                        mode=mode,
                        since=started - transaction.started + (sampler.since(oid, mode) if sampler else 0.0),
                        until=None,
                        source="pg_locks",
                    )
                    transaction.open[oid, mode] = lock
                    self.locks.append(lock)
                if filenode is not None:
                    self._compare(place, relation, filenode, finished - started)

    def _begin_to_watch(self, connection: Connection, transaction: _Transaction) -> None:
        if not self._partial:
            return
        with self._looking():
            with self._observer.cursor() as cursor:
                cursor.execute(_NAMED, (self._partial,))
                transaction.watched = dict(cursor.fetchall())
            transaction.counters = self._counters(connection, transaction)

    @staticmethod
    def _counters(connection: Connection, transaction: _Transaction) -> dict[int, tuple[int, int]]:
        """Of each partial table what this session has read and written, and has not reported yet: which it does
        between transactions only."""
        if connection.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_INTRANS:
            return transaction.counters
        with connection.cursor() as cursor:
            cursor.execute(_OWN_COUNTERS, (list(transaction.watched),))
            rows = cursor.fetchall()
        # Where nothing is counted, everything may have happened.
        return {oid: (int(read), int(written)) if counted else _UNKNOWN for oid, read, written, counted in rows}

    def _watch_partial(self, connection: Connection, transaction: _Transaction) -> None:
        if not transaction.watched:
            return
        for oid, (read, written) in self._counters(connection, transaction).items():
            before = transaction.counters.get(oid, (0, 0))
            unknown = _UNKNOWN in (before, (read, written))
            if unknown or written != before[1]:
                self.written.setdefault((self.phase, transaction.number), set()).add(transaction.watched[oid])
            if unknown or (read, written) != before:
                self.touched.setdefault((self.phase, transaction.number), set()).add(transaction.watched[oid])

    def _learn(self, transaction: _Transaction, oids: set[int]) -> None:
        unknown = oids - transaction.known.keys() - transaction.others
        if unknown:
            found = {relation.oid: relation for relation in self._existing(sorted(unknown))}
            transaction.known.update(found)
            transaction.others |= unknown - found.keys()

    def _compare(self, place: _Place, relation: Relation, filenode: int, seconds: float) -> None:
        if filenode == relation.filenode or relation.kind not in _HAS_ROWS:
            return
        relation.filenode = filenode
        if relation.name in self._partial:
            for found in (self.touched, self.written):
                found.setdefault((place.phase, place.transaction), set()).add(relation.name)
        self.rewrites.append(
            {
                **dataclasses.asdict(place),
                "relation": relation.name,
                "kind": _KINDS[relation.kind],
                "bytes": relation.bytes,
                "rows": relation.rows,
                "seconds": round(seconds, 4),
            }
        )

    def _release(self, transaction: _Transaction, keys: t.Sequence[tuple[int, str]], when: float) -> None:
        for key in keys:
            transaction.open.pop(key).until = when - transaction.started

    @staticmethod
    def _worth_a_look(transaction: _Transaction, statement: Statement, kind: StatementClass) -> bool:
        """Not again after one INSERT more into the same table: what it locks is locked already."""
        if kind.may_block:
            return True
        key = (kind.tag, *(token.value for token in statement.peek(8)[1:6] if token.kind != "string"))
        if key in transaction.alike:
            return False
        transaction.alike.add(key)
        return True

    # --- outside one -------------------------------------------------------------------------------------------------

    def _take_over(
        self,
        transaction: _Transaction,
        place: _Place,
        sampler: _Sampler,
        statement: Statement,
        kind: StatementClass,
        finished: float,
    ) -> None:
        length = finished - transaction.started
        before = transaction.known
        for (oid, mode), (since, until) in sampler.held.items():
            if oid in before:
                self._outside(place, before[oid], mode, min(since, length), min(until, length), "sampled")
        if self._observer.closed:
            return
        self._assume_touched(transaction, sampler, statement)
        rewritten = []
        for now in self._existing(None):
            earlier = before.get(now.oid)
            if earlier is not None and earlier.filenode != now.filenode and earlier.kind in _HAS_ROWS:
                rewritten.append(earlier)
                self._compare(place, earlier, now.filenode, length)
        by_manual = _lockmodes.documented("VACUUM FULL" if kind.tag == "VACUUM" and kind.may_block else kind.tag)
        if by_manual is None:
            return
        for relation in rewritten or self._target(statement, before):
            if (relation.oid, by_manual) not in sampler.held:
                self._outside(place, relation, by_manual, 0.0, length, "documented")

    def _assume_touched(self, transaction: _Transaction, sampler: _Sampler, statement: Statement) -> None:
        """No counter can be read of what ran outside a transaction: the table that it names was looked into, and if it
        names none, all were."""
        if not self._partial:
            return
        named = self._target(statement, transaction.known)
        names = {relation.table or relation.name for relation in named}
        names |= {known.table or known.name for oid, _mode in sampler.held if (known := transaction.known.get(oid))}
        found = names.intersection(self._partial) if named else set(self._partial)
        if found:
            self.touched.setdefault((self.phase, transaction.number), set()).update(found)

    def _outside(self, place: _Place, relation: Relation, mode: str, since: float, until: float, source: str) -> None:
        self.locks.append(
            HeldLock(**dataclasses.asdict(place), relation=relation, mode=mode, since=since, until=until, source=source)
        )

    def _target(self, statement: Statement, before: t.Mapping[int, Relation]) -> list[Relation]:
        target = concurrent_target(statement)
        if target is None or target.name is None and target.table is None:
            return []
        made = target.kind == "create_index"
        parts = [target.table_schema, target.table] if made else [target.schema, target.name]
        name = ".".join(quote_identifier(part, self._observer) for part in parts if part)
        with self._observer.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.to_regclass(%s)::oid::bigint", (name,))
            oid = (cursor.fetchone() or (None,))[0]
        found = before.get(oid) if oid is not None else None
        if found is None:  # dropped by now
            wanted = ".".join(part for part in parts if part)
            found = next((item for item in before.values() if item.name == wanted), None)
        return [found] if found is not None else []

    # --- common ------------------------------------------------------------------------------------------------------

    def _existing(self, oids: t.Sequence[int] | None) -> list[Relation]:
        try:
            with self._observer.cursor() as cursor:
                cursor.execute(_RELATIONS, (self._ledger_schema, oids, oids))
                rows = cursor.fetchall()
        except psycopg2.Error as exc:  # must not pass for an error of the worker's statement
            error = sql_error(exc)
            error.message = f"the session that looks on cannot read the catalog: {error.message}"
            raise error from None
        relations = []
        for oid, schema, name, kind, filenode, table, size, tuples in rows:
            label = f"{schema}.{name}"
            known = self._sizes.get(label) if kind in _HAS_ROWS else None
            # reltuples is -1 before the first ANALYZE, and relpages 0.
            estimated = (size, tuples) if kind in (*_HAS_ROWS, "i") and tuples >= 0 else (None, None)
            relations.append(Relation(oid, label, kind, filenode, table, *(known or estimated)))
        return relations

    def _next(self) -> _Transaction:
        self._number += 1
        return _Transaction(self._number, self._now())

    def _place(
        self, transaction: _Transaction, migration: Migration, statement: Statement, kind: StatementClass
    ) -> _Place:
        return _Place(
            self.phase, migration.id, transaction.number, file_of(migration, statement), statement.line, kind.tag
        )

    def _note(self, place: _Place, since: float, seconds: float, locks: int) -> None:
        self.statements.append(
            {**dataclasses.asdict(place), "from_seconds": round(since, 4), "seconds": round(seconds, 4), "locks": locks}
        )
        if len(self.statements) > 4 * _REMEMBERED:
            self.statements = self.remembered()

    def remembered(self) -> list[dict[str, t.Any]]:
        """Every statement that took a lock of its own, and of the others the slowest, in the order they ran."""
        idle = sorted((item["seconds"] for item in self.statements if not item["locks"]), reverse=True)
        if len(idle) <= _REMEMBERED:
            return list(self.statements)
        least = idle[_REMEMBERED]
        return [item for item in self.statements if item["locks"] or item["seconds"] > least]

    def _now(self) -> float:
        return time.perf_counter() - self._aside

    @contextlib.contextmanager
    def _looking(self) -> t.Iterator[None]:
        """The clock stands still."""
        at = self._now()
        try:
            yield
        finally:
            self._aside = time.perf_counter() - at


class _Sampler(threading.Thread):
    """Reads another session's locks at an interval, after a delay.

    ``held`` maps (relation, mode) to the seconds from the start at which it was last seen without the lock, and first
    seen without it again.
    """

    def __init__(self, connection: Connection, pid: int, interval: float, delay: float = 0.0) -> None:
        super().__init__(name="surefoot-trace", daemon=True)
        self._delay = delay
        self._connection = connection
        self._statement = _OWN_LOCKS.format(pid=pid)
        self._interval = interval
        self._stopped = threading.Event()
        self._started_at = time.perf_counter()
        self._last = 0.0
        self._open: set[tuple[int, str]] = set()
        self.held: dict[tuple[int, str], tuple[float, float]] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._stopped.wait(self._delay):
                self._delay = self._interval
                self._sample()
        except psycopg2.Error as exc:  # the statement's own fate is the worker's to tell
            self.error = exc
        self._close(self._open, time.perf_counter() - self._started_at)

    def stop(self) -> None:
        """No more samples; what was held is held until now."""
        self._stopped.set()
        if self.is_alive():
            self.join(timeout=10)

    def since(self, relation: int, mode: str) -> float:
        """Seconds from the start at which a lock, held now, was last seen not to be held."""
        return self.held[relation, mode][0] if (relation, mode) in self.held else self._last

    def _sample(self) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(self._statement)
            now = {(int(oid), str(mode)) for oid, mode, _filenode in cursor.fetchall()}
        at = time.perf_counter() - self._started_at
        self._close(self._open - now, at)
        for key in now - self._open:
            earlier = self.held.get(key)
            self.held[key] = (earlier[0] if earlier else self._last, at)
        self._open, self._last = now, at

    def _close(self, keys: t.Iterable[tuple[int, str]], at: float) -> None:
        for key in keys:
            self.held[key] = (self.held[key][0], at)


def file_of(migration: Migration, statement: Statement) -> str:
    """The file of a statement as the plan names it."""
    for step in (*migration.steps, *(migration.rollback or ())):
        if isinstance(step, SqlStep) and step.path == statement.name:
            return step.file
    return statement.name
