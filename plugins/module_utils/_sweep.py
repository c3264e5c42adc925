# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Rows that a change of a table does not take: counted and listed, moved into the ledger's quarantine, or moved back.

Rows travel inside the server, from table to table: no value of theirs is in a statement's text or in a message.
"""

from __future__ import annotations

import contextlib
import functools
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._autonomous import one_batch, worker_lock
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import quote_identifier, quote_literal
from ansible_collections.surefoot.dbops.plugins.module_utils._context import WHOLE_STEP, Context
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    PlanError,
    SqlError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Progress
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Limits, Migration
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import ONLY, SweepStep, split_qualified
from ansible_collections.surefoot.dbops.plugins.module_utils._values import milliseconds

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

LISTED = 100  # rows that a refusal lists; it counts them all
_DEPTH = 10  # of tables that refer to tables that refer to the rows

_COUNT = """
WITH found AS MATERIALIZED ({rows})
SELECT (SELECT pg_catalog.count(*) FROM found),
       (SELECT pg_catalog.jsonb_object_agg(reason, number) FROM (SELECT surefoot_reason AS reason,
        pg_catalog.count(*) AS number FROM found GROUP BY 1) AS counted),
       (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('key', pg_catalog.jsonb_build_array({keys}), 'reason',
        surefoot_reason) ORDER BY {keys}) FROM (SELECT * FROM found ORDER BY {keys} LIMIT {listed}) AS listed)
"""
_MOVING = """
CREATE TEMPORARY TABLE surefoot_moving (
    number bigint GENERATED ALWAYS AS IDENTITY, root bigint, depth integer, relation oid, place tid, row jsonb,
    reason text, UNIQUE (relation, place)
) ON COMMIT DROP
"""
# The rows as they are once they are locked; each is asked again then. All are found before the first are taken: with
# the limit inside, the server expects to be done soon, and walks the table by its key with a look-up for every row.
_ROOTS = """
WITH found AS MATERIALIZED ({rows})
INSERT INTO surefoot_moving (depth, relation, place, row, reason)
SELECT 0, {relation}, t.ctid, pg_catalog.to_jsonb(t.*), q.surefoot_reason
FROM {table} AS t JOIN (SELECT * FROM found AS f ORDER BY {keys} LIMIT {batch}) AS q ON {join}
ORDER BY {order} FOR UPDATE OF t
"""
_STILL = "DELETE FROM surefoot_moving AS m WHERE m.place NOT IN (SELECT s.surefoot_place FROM ({rows}) AS s)"
_CHOSEN = "t.ctid = ANY (ARRAY(SELECT m.place FROM surefoot_moving AS m WHERE m.depth = 0))"
_REFERRERS = """
SELECT k.conrelid::bigint, n.nspname, c.relname, c.relkind::text, k.confdeltype::text,
       ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number ORDER BY u.place),
       ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS u(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number ORDER BY u.place)
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND k.confrelid = {relation} ORDER BY 1, k.conname
"""
_DEPENDENTS = """
INSERT INTO surefoot_moving (root, depth, relation, place, row)
SELECT coalesce(m.root, m.number), m.depth + 1, {child_oid}, c.ctid, pg_catalog.to_jsonb(c.*)
FROM surefoot_moving AS m CROSS JOIN LATERAL pg_catalog.jsonb_populate_record(NULL::{parent}, m.row) AS p
JOIN {child} AS c ON {join}
WHERE m.depth = {depth} AND m.relation = {parent_oid}
FOR UPDATE OF c
ON CONFLICT (relation, place) DO NOTHING
"""
_KEEP = """
INSERT INTO {quarantine} (run_id, set_name, migration_id, table_name, key, reason, row, dependents)
SELECT {run}, {set}, {migration}, {table}, pg_catalog.jsonb_build_array({keys}), m.reason, m.row,
       coalesce((SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('table',
                 pg_catalog.format('%I.%I', n.nspname, c.relname), 'row', d.row) ORDER BY d.depth, d.number)
                 FROM surefoot_moving AS d JOIN pg_catalog.pg_class c ON c.oid = d.relation
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE d.root = m.number), '[]'::jsonb)
FROM surefoot_moving AS m WHERE m.depth = 0 ORDER BY m.number
"""
_KEPT = """
SELECT q.id, q.table_name, (SELECT pg_catalog.array_agg(d.value ->> 'table' ORDER BY d.place)
       FROM pg_catalog.jsonb_array_elements(q.dependents) WITH ORDINALITY AS d(value, place))
FROM {quarantine} AS q WHERE q.set_name = {set} AND q.migration_id = {migration} AND q.id > {after}
ORDER BY q.id LIMIT {batch}
"""
_COLUMNS = """
SELECT a.attname FROM pg_catalog.pg_attribute a
WHERE a.attrelid = pg_catalog.to_regclass({table}) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
      AND ({row}) ? a.attname::text
ORDER BY a.attnum
"""


class Sweeps:
    """Runs sweeps. A batch that is moved is one transaction, so any stop leaves each row in one place."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ledger = context.ledger
        self._worker = context.worker
        self._watch = context.watch
        self._journal = context.journal
        # Of rows to be put back: why one could not be, and whether another was since the first of them was tried.
        self._refused: dict[int, str] = {}
        self._restored = False

    def run(
        self,
        migration: Migration,
        number: int,
        step: SweepStep,
        digest: str,
        progress: t.Mapping[tuple[int, int], Progress],
        limits: Limits,
    ) -> None:
        """:raises VerificationFailed: there are such rows, and the plan says abort"""
        earlier = progress.get((number, WHOLE_STEP))
        rows = int(earlier.rows or 0) if earlier is not None else 0
        clock = time.monotonic()
        with worker_lock(self._context, migration, limits):
            self._session(step, limits)
            if step.mode == "count":
                self._context.with_retries(migration, limits, lambda _number: self._count(migration, step))
                self._mark(migration, number, digest, "done", 0)
                tag = "SWEEP 0"
            else:
                self._ledger.make_quarantine(self._worker.execute, self._worker.connection)
                move = self._move if step.mode == "quarantine" else self._restore
                after = int(earlier.position or 0) if earlier is not None and step.mode == "restore" else 0
                more = True
                self._refused, self._restored = {}, after > 0
                while more:
                    attempt = functools.partial(self._batch, move, migration, number, step, digest, rows, after)
                    found, after, more = self._context.with_retries(migration, limits, attempt)
                    rows += found
                if step.mode == "quarantine":
                    self._journal.moved[migration.id] = self._journal.moved.get(migration.id, 0) + rows
                for reason in self._refused.values():
                    self._journal.warn(reason)
                tag = f"{'QUARANTINE' if step.mode == 'quarantine' else 'RESTORE'} {rows}"
        self._journal.note(migration, step.name, step.location.line, tag, time.monotonic() - clock)

    def _session(self, step: SweepStep, limits: Limits) -> None:
        worker = self._worker
        try:
            # A sweep reads the whole table, and locks nothing but the rows it moves.
            worker.execute(f"SET statement_timeout = {milliseconds(limits.retry.deadline)}")
            worker.execute(f"SET lock_timeout = {milliseconds(limits.lock_timeout)}")
            if step.prelude:
                worker.execute(step.prelude)
        except psycopg2.Error as exc:
            raise self._context.failed(exc, step.location, None) from None

    def _mark(
        self, migration: Migration, number: int, digest: str, state: str, rows: int, position: int | None = None
    ) -> None:
        self._worker.execute(
            self._ledger.progress_sql(
                self._worker.connection,
                migration.id,
                self._context.action,
                number,
                WHOLE_STEP,
                state,
                digest,
                rows=rows,
                position=position,
            )
        )

    def _keys(self, step: SweepStep, prefix: str = "") -> str:
        return ", ".join(f"{prefix}surefoot_key_{number}" for number in range(len(step.key)))

    def _count(self, migration: Migration, step: SweepStep) -> None:
        text = _COUNT.format(rows=step.rows, keys=self._keys(step), listed=LISTED)
        try:
            total, reasons, listed = self._worker.fetch(text)[0]
        except psycopg2.Error as exc:
            raise self._context.failed(exc, step.location, None) from None
        if not total:
            return
        parts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        rows = f"{total} row{'' if total == 1 else 's'} of {'.'.join(split_qualified(step.table))}"
        raise VerificationFailed(
            f"{migration.id}: {rows} cannot be changed: {parts}",
            remedy="Mend them (the error's details list the keys of the first 100), or set on_invalid: quarantine.",
            location=step.location,
            details={"total": total, "reasons": reasons, "key": list(step.key), "rows": listed},
        )

    def _batch(
        self,
        move: t.Callable[[Migration, SweepStep, int], tuple[int, int, bool]],
        migration: Migration,
        number: int,
        step: SweepStep,
        digest: str,
        rows: int,
        after: int,
        _attempt: int,
    ) -> tuple[int, int, bool]:
        worker = self._worker
        with one_batch(self._context, migration, step.location, enforce=False):
            worker.execute("BEGIN")
            with self._watch.statement(may_block=False):
                found, position, more = move(migration, step, after)
            self._mark(migration, number, digest, "cursor" if more else "done", rows + found, position)
            worker.execute("SET LOCAL synchronous_commit = on")
        return found, position, more

    # --- into the quarantine

    def _move(self, migration: Migration, step: SweepStep, _after: int) -> tuple[int, int, bool]:
        worker = self._worker
        connection = worker.connection
        quoted = [quote_identifier(name, connection) for name in step.key]
        table = self._table(*split_qualified(step.table))
        relation = self._oid(table)
        worker.execute(_MOVING)
        worker.execute(
            _ROOTS.format(
                relation=relation,
                table=table,
                rows=step.rows,
                keys=self._keys(step, "f."),
                batch=step.batch,
                join=" AND ".join(f"q.surefoot_key_{n} = t.{key}" for n, key in enumerate(quoted)),
                order=", ".join(f"t.{key}" for key in quoted),
            )
        )
        found = int(worker.fetch("SELECT pg_catalog.count(*) FROM surefoot_moving")[0][0])
        if not found:
            return 0, 0, False
        worker.execute(_STILL.format(rows=step.rows.replace(ONLY, _CHOSEN)))
        levels = self._collect(step, relation, table)
        for depth in range(len(levels) - 1, -1, -1):
            for oid, name in levels[depth].items():
                worker.execute(
                    f"DELETE FROM {name} AS c USING surefoot_moving AS m"
                    f" WHERE c.ctid = m.place AND m.depth = {depth} AND m.relation = {oid}"
                )
        keys = ", ".join(f"m.row -> {quote_literal(name, connection)}" for name in step.key)
        worker.execute(
            _KEEP.format(
                quarantine=self._ledger.quarantine(connection),
                run=quote_literal(self._ledger.run_id, connection),
                set=quote_literal(self._ledger.set_name, connection),
                migration=quote_literal(migration.id, connection),
                table=quote_literal(table, connection),
                keys=keys,
            )
        )
        moved = int(worker.fetch("SELECT pg_catalog.count(*) FROM surefoot_moving WHERE depth = 0")[0][0])
        return moved, 0, True

    def _table(self, schema: str, name: str) -> str:
        connection = self._worker.connection
        return f"{quote_identifier(schema, connection)}.{quote_identifier(name, connection)}"

    def _oid(self, table: str) -> int:
        literal = quote_literal(table, self._worker.connection)
        return int(self._worker.fetch(f"SELECT {literal}::pg_catalog.regclass::oid::bigint")[0][0])

    def _collect(self, step: SweepStep, relation: int, table: str) -> list[dict[int, str]]:
        """Put what refers to the rows beside them, level by level; the tables of each level by their oid.

        :raises PlanError: a reference that a quarantine could not bring back as it was
        """
        worker = self._worker
        levels: list[dict[int, str]] = [{relation: table}]
        for depth in range(_DEPTH):
            # Else the server expects one row, and reads each table that refers to them once for each of them.
            worker.execute("ANALYZE surefoot_moving")
            below: dict[int, str] = {}
            for parent_oid, parent in levels[depth].items():
                for child_oid, child, action, columns, parent_columns in self._referrers(step, relation, parent_oid):
                    self._dependents(depth, (parent_oid, parent), (child_oid, child), columns, parent_columns)
                    found = worker.fetch(
                        "SELECT pg_catalog.count(*) FROM surefoot_moving"
                        f" WHERE depth = {depth + 1} AND relation = {child_oid}"
                    )[0][0]
                    if not found:
                        continue
                    if action in ("n", "d"):
                        raise PlanError(
                            f"{child} refers to rows that must be moved, ON DELETE SET NULL or SET DEFAULT",
                            location=step.location,
                            remedy="Such a reference cannot be brought back: mend these rows by hand first.",
                        )
                    below[child_oid] = child
            if not below:
                return levels
            levels.append(below)
        raise PlanError(
            f"tables refer to {table} over more than {_DEPTH} levels", location=step.location, remedy="Mend by hand."
        )

    def _referrers(
        self, step: SweepStep, root: int, parent: int
    ) -> list[tuple[int, str, str, t.Sequence[str], t.Sequence[str]]]:
        worker = self._worker
        found: list[tuple[int, str, str, t.Sequence[str], t.Sequence[str]]] = []
        for oid, schema, name, kind, action, columns, refers in worker.fetch(_REFERRERS.format(relation=parent)):
            if kind != "r":
                raise PlanError(
                    f"{schema}.{name} is partitioned and refers to rows that may have to be moved",
                    location=step.location,
                    remedy="Mend the rows by hand first.",
                )
            found.append((int(oid), self._table(schema, name), action, columns, refers))
        if parent == root:
            for declared, columns, refers in step.dependents:
                name = self._table(*split_qualified(declared))
                found.append((self._oid(name), name, "a", columns, refers))
        return found

    def _dependents(
        self,
        depth: int,
        parent: tuple[int, str],
        child: tuple[int, str],
        columns: t.Sequence[str],
        parent_columns: t.Sequence[str],
    ) -> None:
        connection = self._worker.connection
        join = " AND ".join(
            f"c.{quote_identifier(one, connection)} = p.{quote_identifier(other, connection)}"
            for one, other in zip(columns, parent_columns)
        )
        self._worker.execute(
            _DEPENDENTS.format(
                child_oid=child[0],
                child=child[1],
                parent_oid=parent[0],
                parent=parent[1],
                join=join,
                depth=depth,
            )
        )

    # --- and back

    def _restore(self, migration: Migration, step: SweepStep, after: int) -> tuple[int, int, bool]:
        """Rows whose place was taken meanwhile stay in the quarantine.

        Rows may refer to others that come later: as long as one could be put back, the others are tried again.
        """
        worker = self._worker
        connection = worker.connection
        quarantine = self._ledger.quarantine(connection)
        kept = worker.fetch(
            _KEPT.format(
                quarantine=quarantine,
                set=quote_literal(self._ledger.set_name, connection),
                migration=quote_literal(migration.id, connection),
                after=after,
                batch=step.batch,
            )
        )
        restored = 0
        for id_, table, dependents in kept:
            of_row = f"SELECT q.row FROM {quarantine} AS q WHERE q.id = {id_}"
            parts = [self._insert(table, of_row)]
            for number, name in enumerate(dependents or ()):
                of_dependent = f"SELECT q.dependents -> {number} -> 'row' FROM {quarantine} AS q WHERE q.id = {id_}"
                parts.append(self._insert(name, of_dependent))
            parts.append(f"DELETE FROM {quarantine} WHERE id = {id_}")
            worker.execute("SAVEPOINT surefoot_restore")
            try:
                for part in parts:
                    worker.execute(part)
                worker.execute("SET CONSTRAINTS ALL IMMEDIATE")
                worker.execute("SET CONSTRAINTS ALL DEFERRED; RELEASE SAVEPOINT surefoot_restore")
                restored += 1
                self._restored = True
                self._refused.pop(id_, None)
            except psycopg2.IntegrityError as exc:
                worker.execute("ROLLBACK TO SAVEPOINT surefoot_restore")
                self._refused[id_] = (
                    f"{migration.id}: quarantine {id_} of {table} stays there: {exc.pgcode} when it was to be put back"
                )
        if len(kept) == step.batch:
            return restored, int(kept[-1][0]), True
        again = bool(self._refused) and self._restored
        self._restored = False
        return restored, 0, again

    def _insert(self, table: str, row: str) -> str:
        connection: Connection = self._worker.connection
        literal = quote_literal(table, connection)
        names = [
            quote_identifier(str(found[0]), connection)
            for found in self._worker.fetch(_COLUMNS.format(table=literal, row=row))
        ]
        if not names:
            raise SqlError(f"there is no table {table} to put rows back into", sqlstate="42P01")
        return (
            f"INSERT INTO {table} ({', '.join(names)}) OVERRIDING SYSTEM VALUE"
            f" SELECT {', '.join(f'r.{name}' for name in names)}"
            f" FROM ({row}) AS kept(value) CROSS JOIN LATERAL"
            f" pg_catalog.jsonb_populate_record(NULL::{table}, kept.value) AS r"
        )
