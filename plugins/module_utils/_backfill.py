# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A backfill as SQL: one batch a transaction, in key order, from where the last batch ended."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import quote_identifier, quote_literal
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import BackfillStep

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


@dataclasses.dataclass(frozen=True)
class BackfillSql:
    """The pieces of a backfill's statements that do not change between batches."""

    step: BackfillStep
    table: str
    keys: tuple[str, ...]
    types: tuple[str, ...]
    estimated_rows: int

    def batch(self, connection: Connection, position: t.Sequence[str] | None) -> str:
        """The statement of the next batch; it returns (rows read, rows changed, last key as text array or NULL).

        Rows are locked in key order, with the lock an UPDATE of non-key columns takes, so that two batches cannot
        deadlock.
        """
        keys = [quote_identifier(name, connection) for name in self.keys]
        conditions = [f"({self.step.where})"] if self.step.where else []
        if position is not None:
            after = ", ".join(
                f"{quote_literal(value, connection)}::{kind}" for value, kind in zip(position, self.types)
            )
            conditions.append(f"({', '.join(f't.{key}' for key in keys)}) > ({after})")
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        # The batch's own columns get names nobody uses: bare column names in the plan's expressions must mean the
        # table's.
        columns = ", ".join(f"t.{key} AS surefoot_key_{number}" for number, key in enumerate(keys))
        join = " AND ".join(f"t.{key} = b.surefoot_key_{number}" for number, key in enumerate(keys))
        order = ", ".join(f"t.{key}" for key in keys)
        last = ", ".join(f"b.surefoot_key_{number}::text" for number in range(len(keys)))
        newest = ", ".join(f"b.surefoot_key_{number} DESC" for number in range(len(keys)))
        assignments = ", ".join(
            f"{quote_identifier(column, connection)} = {sql}" for column, sql in self.step.set.items()
        )
        return (
            f"WITH b AS MATERIALIZED (SELECT {columns} FROM {self.table} AS t{where} ORDER BY {order}"
            f" LIMIT {int(self.step.batch)} FOR NO KEY UPDATE),"
            f" changed AS (UPDATE {self.table} AS t SET {assignments} FROM b WHERE {join} RETURNING 1)"
            f" SELECT (SELECT pg_catalog.count(*) FROM b), (SELECT pg_catalog.count(*) FROM changed),"
            f" (SELECT ARRAY[{last}] FROM b ORDER BY {newest} LIMIT 1)"
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
