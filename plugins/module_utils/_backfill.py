# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A backfill as SQL: one batch a transaction, in key order, from where the last batch ended."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._autonomous import worker_lock
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import quote_identifier, quote_literal
from ansible_collections.surefoot.dbops.plugins.module_utils._context import WHOLE_STEP, Context
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import LockBusy, OutcomeUnknown, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Progress
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import BackfillStep, Limits, Migration
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import guarded_row, render, secret_names
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import load as load_secrets
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import statements
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, milliseconds
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import CommitLost, Worker

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
# Positions, not replay_lag: that is NULL for a replica that has stopped replaying. Without pg_monitor the positions of
# others are NULL and nothing is waited for; the preflight sees to that right.
_POSITIONS = """
SELECT (pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
       (SELECT min(replay_lsn - '0/0'::pg_lsn)::bigint FROM pg_catalog.pg_stat_replication)
"""
_LAG_POLL = 0.5
_SAY_EVERY = 5.0  # seconds


class ReplicaLag:
    """How far the slowest replica is behind what this backfill wrote, in seconds."""

    def __init__(self) -> None:
        self._written: collections.deque[tuple[int, float]] = collections.deque()

    def measure(self, worker: Worker) -> float:
        """Age of the oldest of our positions that some replica has not replayed; 0 when all have."""
        now, replayed = worker.fetch(_POSITIONS)[0]
        while self._written and (replayed is None or self._written[0][0] <= replayed):
            self._written.popleft()
        lag = time.monotonic() - self._written[0][1] if self._written else 0.0
        if not self._written or self._written[-1][0] < now:
            self._written.append((now, time.monotonic()))
        return lag


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

    def window(self, connection: Connection, position: t.Sequence[str] | None) -> str:
        """The query for the next batch: (number of its rows, its last key as text array or NULL).

        The batch is cut by the key alone. With ``where`` before the limit, the server guesses how rare such rows are;
        of a column that was just added it guesses wrong, and would read and sort the whole table for every batch.
        """
        keys = [quote_identifier(name, connection) for name in self.keys]
        columns = ", ".join(f"t.{key} AS key_{number}" for number, key in enumerate(keys))
        order = ", ".join(f"t.{key}" for key in keys)
        last = ", ".join(f"b.key_{number}::text" for number in range(len(keys)))
        newest = ", ".join(f"b.key_{number} DESC" for number in range(len(keys)))
        after = f" WHERE {self._after(connection, '>', position)}" if position is not None else ""
        return (
            f"WITH b AS MATERIALIZED (SELECT {columns} FROM {self.table} AS t{after} ORDER BY {order}"
            f" LIMIT {int(self.step.batch)}) SELECT (SELECT pg_catalog.count(*) FROM b),"
            f" (SELECT ARRAY[{last}] FROM b ORDER BY {newest} LIMIT 1)"
        )

    def batch(self, connection: Connection, position: t.Sequence[str] | None, last: t.Sequence[str]) -> str:
        """The statement that changes the rows up to a key; it returns how many.

        Both ends of the batch are in its text, so that the server knows how few rows they are, and walks the index.
        """
        conditions = [self._after(connection, ">", position)] if position is not None else []
        conditions.append(self._after(connection, "<=", last))
        if self.step.where:
            conditions.append(f"({self.step.where})")
        assignments = ", ".join(
            f"{quote_identifier(column, connection)} = {sql}" for column, sql in self.step.set.items()
        )
        return (
            f"WITH changed AS (UPDATE {self.table} AS t SET {assignments} WHERE {' AND '.join(conditions)} RETURNING 1)"
            f" SELECT pg_catalog.count(*) FROM changed"
        )


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
        self._action = context.action
        self._ledger = context.ledger
        self._worker = context.worker
        self._watch = context.watch
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
            worker, watch = self._worker, self._watch
            sql = prepare_backfill(worker.connection, step)
            earlier = progress.get((number, WHOLE_STEP))
            position: list[str] | None = earlier.position if earlier is not None else None
            rows = int(earlier.rows or 0) if earlier is not None else 0
            clock = time.monotonic()
            finished = False
            lag = ReplicaLag()
            pace = Pace(step.name, sql.estimated_rows if position is None else 0, self._options.say)

            def attempt(_number: int) -> tuple[int, int, list[str] | None]:
                watch.begin(worker.pid, enforce=True)
                try:
                    worker.execute(
                        f"BEGIN; SET LOCAL lock_timeout = {milliseconds(limits.lock_timeout)};"
                        f" SET LOCAL statement_timeout = {milliseconds(limits.statement_timeout)}"
                    )
                    read, changed, last = self._batch(sql, position, step)
                    worker.execute(
                        self._ledger.progress_sql(
                            worker.connection,
                            migration.id,
                            self._action,
                            number,
                            WHOLE_STEP,
                            "done" if read < step.batch else "cursor",
                            digest,
                            rows=rows + changed,
                            position=last or position,
                        )
                    )
                    worker.commit()
                    return read, changed, last
                except CommitLost:
                    raise OutcomeUnknown(
                        f"{migration.id}: the connection died at COMMIT of a batch",
                        remedy="Run again: the position was in the same transaction, so the next run knows.",
                        location=step.location,
                    ) from None
                except psycopg2.Error as exc:
                    raise self._context.failed(exc, step.location, None) from None
                finally:
                    worker.rollback()
                    watch.end()

            while not finished:
                self._await_replicas(lag, step, limits)
                read, changed, last = self._context.with_retries(migration, limits, attempt)
                rows, position = rows + changed, last or position
                pace.went_through(read)
                finished = read < step.batch
                if not finished and step.pause:
                    worker.sleep(step.pause)
            self._journal.note(migration, step.name, step.location.line, f"BACKFILL {rows}", time.monotonic() - clock)

    def _await_replicas(self, lag: ReplicaLag, step: BackfillStep, limits: Limits) -> None:
        """Wait while a replica lags by more than the step allows.

        :raises LockBusy: it still does at the deadline
        """
        deadline = time.monotonic() + limits.retry.deadline
        while step.max_lag is not None:
            seconds = lag.measure(self._worker)
            if seconds <= step.max_lag:
                return
            if time.monotonic() > deadline:
                raise LockBusy(
                    f"{step.name}: a replica lags by {human_duration(seconds)}, more than max_lag allows",
                    remedy="Run again when it has caught up: the batches that are done stay done.",
                    location=step.location,
                )
            self._worker.sleep(_LAG_POLL)

    def _batch(self, sql: BackfillSql, position: list[str] | None, step: BackfillStep) -> tuple[int, int, t.Any]:
        worker = self._worker
        read, last = worker.fetch(sql.window(worker.connection, position))[0]
        if last is None:
            return 0, 0, None
        text = sql.batch(worker.connection, position, last)
        statement = next(statements(io.BytesIO(text.encode()), name=str(step.location.file)))
        names = secret_names(statement, self._options.secrets)
        if names:
            load_secrets(worker.connection, names, self._options.secrets)
        batch = render(
            statement,
            variables=self._context.variables,
            secrets=self._options.secrets,
            connection=worker.connection,
        )
        if names:
            packed = worker.fetch(guarded_row(batch, worker.connection))[0][0]
            changed = next(value for _name, value in json.loads(packed, object_pairs_hook=list))
        else:
            changed = worker.fetch(batch)[0][0]
        return int(read), int(changed), last
