# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A backfill as SQL: one batch a transaction, in key order, from where the last batch ended."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._autonomous import one_batch, worker_lock
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import quote_identifier, quote_literal
from ansible_collections.surefoot.dbops.plugins.module_utils._context import WHOLE_STEP, Context
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Progress
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import BackfillStep, Limits, Migration
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import guarded_row, render, secret_names
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import load as load_secrets
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import statements
from ansible_collections.surefoot.dbops.plugins.module_utils._throttle import Brake
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, milliseconds

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_KEY = """
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), c.reltuples,
       EXISTS (SELECT FROM pg_catalog.pg_index x WHERE x.indrelid = c.oid AND x.indisunique AND x.indisvalid
               AND x.indpred IS NULL AND x.indexprs IS NULL AND a.attnotnull
               AND (SELECT array_agg(k.attname::text ORDER BY k.attname) FROM pg_catalog.pg_attribute k
                    WHERE k.attrelid = c.oid AND k.attnum = ANY (x.indkey[0:x.indnkeyatts - 1]))
                 = (SELECT array_agg(name ORDER BY name) FROM unnest(%s::text[]) AS name))
FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = ANY (%s) AND
a.attnum > 0 WHERE c.oid = pg_catalog.to_regclass(%s) AND c.relkind IN ('r', 'p')
"""
# The type that a text of this expression becomes by being read as it, as in a function's assignment: where the server
# has no other conversion, a cast does the same. Without its length, as a cast cuts what an assignment refuses.
_READ_AS = """
WITH surefoot_given AS (SELECT y.oid FROM pg_catalog.pg_type y WHERE y.typcategory = 'S'
                        AND y.oid = pg_catalog.pg_typeof((SELECT {value} FROM {table} AS t LIMIT 0)))
SELECT pg_catalog.format_type(y.oid, -1)
FROM surefoot_given AS given CROSS JOIN pg_catalog.pg_attribute a JOIN pg_catalog.pg_type d ON d.oid = a.atttypid
JOIN pg_catalog.pg_type y ON y.oid = CASE d.typtype WHEN 'd' THEN d.typbasetype ELSE d.oid END
WHERE a.attrelid = pg_catalog.to_regclass({name}) AND a.attname = {column} AND y.typtype IN ('b', 'e')
AND y.typcategory <> 'S' AND NOT EXISTS (SELECT FROM pg_catalog.pg_cast x
WHERE x.castsource = given.oid AND x.casttarget = y.oid)
"""
_SAY_EVERY = 5.0  # seconds
# What the conversion of a value raises when it does not like it, and 42804, an expression of a type that only a
# function's assignment converts: see _steps.BackfillStep.
_REFUSED = re.compile("22...|23502|23514|42804|P0001")


class Pace:
    """Says every few seconds how far a backfill has come.

    :param expected: rows of the table as far as the server knows; 0: nobody knows how many are left
    """

    def __init__(self, name: str, expected: int, say: t.Callable[[str], None] | None) -> None:
        self._name = name
        self._expected = expected
        self._say = say
        self._rows = 0
        self._began = self._said = time.monotonic()

    def went_through(self, rows: int) -> None:
        """One more batch is done."""
        self._rows += rows
        now = time.monotonic()
        if self._say is None or now - self._said < _SAY_EVERY:
            return
        self._said = now
        rate = self._rows / max(now - self._began, 0.001)
        line = f"{self._name}: {self._rows} rows, {rate:.0f} rows/s"
        left = self._expected - self._rows
        if left > 0 and rate > 0:
            line += f", about {human_duration(round(left / rate))} left"
        self._say(line)


@dataclasses.dataclass(frozen=True)
class BackfillSql:
    """The pieces of a backfill's statements that do not change between batches."""

    step: BackfillStep
    table: str
    keys: tuple[str, ...]
    types: tuple[str, ...]
    estimated_rows: int

    def _after(self, connection: Connection, operator: str, position: t.Sequence[str]) -> str:
        keys = ", ".join(f"t.{quote_identifier(name, connection)}" for name in self.keys)
        values = ", ".join(f"{quote_literal(value, connection)}::{kind}" for value, kind in zip(position, self.types))
        return f"({keys}) {operator} ({values})"

    def end(self, connection: Connection, position: t.Sequence[str] | None) -> str:
        """The query for the last key of the next batch, as text array; no row when fewer rows than a batch are left.

        The batch is cut by the key alone. With ``where`` before the limit, the server guesses how rare such rows are;
        of a column that was just added it guesses wrong, and would read and sort the whole table for every batch.
        """
        keys = ", ".join(f"t.{quote_identifier(name, connection)}" for name in self.keys)
        last = ", ".join(f"t.{quote_identifier(name, connection)}::text" for name in self.keys)
        after = f" WHERE {self._after(connection, '>', position)}" if position is not None else ""
        skipped = int(self.step.batch) - 1
        return f"SELECT ARRAY[{last}] FROM {self.table} AS t{after} ORDER BY {keys} OFFSET {skipped} LIMIT 1"

    def batch(
        self,
        connection: Connection,
        position: t.Sequence[str] | None,
        last: t.Sequence[str] | None,
        assignments: t.Mapping[str, str],
    ) -> str:
        """The statement that changes the rows up to a key, or all that are left.

        Both ends of the batch are in its text, so that the server knows how few rows they are, and walks the index.
        """
        conditions = [self._after(connection, ">", position)] if position is not None else []
        if last is not None:
            conditions.append(self._after(connection, "<=", last))
        if self.step.where:
            conditions.append(f"({self.step.where})")
        changes = ", ".join(f"{quote_identifier(name, connection)} = {sql}" for name, sql in assignments.items())
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"UPDATE {self.table} AS t SET {changes}{where}"


def prepare_backfill(connection: Connection, step: BackfillStep) -> BackfillSql:
    """Look up the key's types, and that it can carry a resume position.

    :raises PlanError: no such table or column, or the key is not unique and NOT NULL
    """
    with connection.cursor() as cursor:
        cursor.execute(_KEY, (list(step.key), list(step.key), step.table))
        rows = cursor.fetchall()
    if not rows:
        raise PlanError(
            f"backfill: there is no table {step.table}", location=step.location, remedy="Check the name and schema."
        )
    found = {str(row[0]): row for row in rows if row[0] is not None}
    missing = [name for name in step.key if name not in found]
    if missing:
        raise PlanError(
            f"backfill: {step.table} has no column {missing[0]}", location=step.location, remedy="Correct key."
        )
    if not all(found[name][3] for name in step.key):
        raise PlanError(
            f"backfill: ({', '.join(step.key)}) is not a unique key of {step.table}",
            remedy="Name the primary key, or another set of NOT NULL columns with a unique index.",
            location=step.location,
        )
    return BackfillSql(
        step, step.table, tuple(step.key), tuple(str(found[name][1]) for name in step.key), max(0, round(rows[0][2]))
    )


class Backfills:
    """Runs backfills, each from where an earlier run stopped."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._options = context.options
        self._say = context.options.say
        self._action = context.action
        self._ledger = context.ledger
        self._worker = context.worker
        self._journal = context.journal

    def run(
        self,
        migration: Migration,
        number: int,
        step: BackfillStep,
        digest: str,
        progress: t.Mapping[tuple[int, int], Progress],
        limits: Limits,
    ) -> None:
        """Batches until no row is left; the position is committed with each batch, so any stop resumes exactly
        there."""
        with worker_lock(self._context, migration, limits):
            worker = self._worker
            sql = prepare_backfill(worker.connection, step)
            if step.otherwise is not None:
                step = self._context.with_retries(migration, limits, lambda _number: self._assignable(step))
            earlier = progress.get((number, WHOLE_STEP))
            position: list[str] | None = earlier.position if earlier is not None else None
            rows = int(earlier.rows or 0) if earlier is not None else 0
            clock = time.monotonic()
            finished = False
            brake = Brake(step.name, step.location, step.throttle.or_else(self._options.throttle), worker, self._say)
            pace = Pace(step.name, sql.estimated_rows if position is None else 0, self._say)

            def attempt(_number: int) -> tuple[int, list[str] | None]:
                with one_batch(self._context, migration, step.location, enforce=True):
                    # Few messages: on a busy server each costs more than a hundred rows.
                    found = worker.fetch(
                        f"BEGIN; SET LOCAL lock_timeout = {milliseconds(limits.lock_timeout)};"
                        f" SET LOCAL statement_timeout = {milliseconds(limits.statement_timeout)};"
                        f" {sql.end(worker.connection, position)}"
                    )
                    last = found[0][0] if found else None
                    changed = self._batch(sql, position, last, step)
                    record = self._ledger.progress_sql(
                        worker.connection,
                        migration.id,
                        self._action,
                        number,
                        WHOLE_STEP,
                        "done" if last is None else "cursor",
                        digest,
                        rows=rows + changed,
                        position=last or position,
                    )
                    # What a crash takes back, it takes back together with the position in the same transaction.
                    worker.execute(record if last is None else f"SET LOCAL synchronous_commit = off; {record}")
                return changed, last

            while not finished:
                brake.hold(limits.retry.deadline)
                changed, last = self._context.with_retries(migration, limits, attempt)
                rows, position = rows + changed, last or position
                finished = last is None
                pace.went_through(step.batch if last is not None else changed)
                if not finished and step.throttle.pause:
                    worker.sleep(step.throttle.pause)
            tag = f"BACKFILL {rows}"
            if brake.waited >= 1:
                tag += f", held back {human_duration(brake.waited)}"
            self._journal.note(migration, step.name, step.location.line, tag, time.monotonic() - clock)

    def _assignable(self, step: BackfillStep) -> BackfillStep:
        """This one, with the conversion in ``set`` that a function's assignment would make."""
        worker = self._worker
        found = {}
        for column, value in step.set.items():
            query = _READ_AS.format(
                value=value,
                table=step.table,
                name=quote_literal(step.table, worker.connection),
                column=quote_literal(column, worker.connection),
            )
            try:
                rows = worker.fetch(query)
            except psycopg2.Error as exc:
                raise self._context.failed(exc, step.location, None) from None
            found[column] = f"CAST({value} AS {rows[0][0]})" if rows else value
        return dataclasses.replace(step, set=found)

    def _batch(self, sql: BackfillSql, position: list[str] | None, last: list[str] | None, step: BackfillStep) -> int:
        """How many rows of this batch were changed."""
        worker = self._worker
        text = sql.batch(worker.connection, position, last, step.set)
        if step.otherwise is None:
            return self._change(text, step)
        try:
            return self._change(text, step, before="SAVEPOINT surefoot_batch; ")
        except psycopg2.Error as exc:
            if worker.lost or not _REFUSED.fullmatch(exc.pgcode or ""):
                raise
        otherwise = sql.batch(worker.connection, position, last, step.otherwise)
        return self._change(otherwise, step, before="ROLLBACK TO SAVEPOINT surefoot_batch; ")

    def _change(self, text: str, step: BackfillStep, before: str = "") -> int:
        """How many rows the statement changed.

        :param before: a statement to send ahead of it
        """
        worker = self._worker
        statement = next(statements(io.BytesIO(text.encode()), name=str(step.location.file)))
        names = secret_names(statement, self._options.secrets)
        if names:
            # Only the row of a query can be had without the server logging the statement with its secrets.
            text = f"WITH changed AS ({text} RETURNING 1) SELECT pg_catalog.count(*) FROM changed"
            statement = next(statements(io.BytesIO(text.encode()), name=str(step.location.file)))
        batch = render(
            statement,
            variables=self._context.variables,
            secrets=self._options.secrets,
            connection=worker.connection,
        )
        if not names:
            return worker.change(before + batch)
        if before:
            worker.execute(before)
        load_secrets(worker.connection, names, self._options.secrets)
        packed = worker.fetch(guarded_row(batch, worker.connection))[0][0]
        return int(next(value for _name, value in json.loads(packed, object_pairs_hook=list)))
