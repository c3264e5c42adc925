# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Statements that cannot run in a transaction: what became of them, and what a new attempt must do first."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import quote_identifier
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import LedgerError, Location
from ansible_collections.surefoot.dbops.plugins.module_utils._script import ConcurrentTarget

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

DONE, RUN, WAIT = "done", "run", "wait"

# Tags whose statement may simply be run again: the second time does no harm and the catalog keeps no trace of the
# first.
RERUNNABLE = frozenset(
    {
        "VACUUM",
        "CLUSTER",
        "REINDEX SCHEMA",
        "REINDEX DATABASE",
        "REINDEX SYSTEM",
        "ALTER SYSTEM",
        "ALTER DATABASE",
        "DISCARD ALL",
    }
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What to do about one statement: it is ``done``, must be ``run``, or somebody is at it (``wait``)."""

    action: str
    reason: str
    before: tuple[str, ...] = ()  # statements to run first, such as dropping an invalid leftover
    instead: str | None = None  # statement to run in its place, such as DETACH ... FINALIZE
    oid: int | None = None


_INDEX = """
SELECT i.oid, x.indisvalid AND x.indisready AND x.indislive, x.indrelid, i.relkind,
       EXISTS (SELECT FROM pg_catalog.pg_constraint c WHERE c.conindid = i.oid),
       EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index p WHERE p.index_relid = i.oid
               AND p.datid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
FROM pg_catalog.pg_class i LEFT JOIN pg_catalog.pg_index x ON x.indexrelid = i.oid
WHERE i.oid = pg_catalog.to_regclass(%s)
"""


def judge(connection: Connection, target: ConcurrentTarget, *, intended: bool, location: Location) -> Verdict:
    """What the catalog says about a concurrent statement.

    :param intended: an earlier attempt of ours recorded that it was about to run it and that the object was not there
        (or, for a drop, was there)
    :raises LedgerError: an object of that name is there and is something else
    """
    return _JUDGES[target.kind](connection, target, intended, location)


def _name(connection: Connection, schema: str | None, name: str) -> str:
    quoted = quote_identifier(name, connection)
    return f"{quote_identifier(schema, connection)}.{quoted}" if schema else quoted


def _row(connection: Connection, sql: str, *parameters: t.Any) -> tuple[t.Any, ...] | None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()


def _create_index(connection: Connection, target: ConcurrentTarget, intended: bool, location: Location) -> Verdict:
    # An index is made in its table's schema, whatever the search_path says.
    table = _name(connection, target.table_schema, target.table or "")
    row = _row(
        connection,
        "SELECT c.oid, n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.oid = pg_catalog.to_regclass(%s)",
        table,
    )
    if row is None:
        return Verdict(RUN, "the table is not there; the server will say so")
    table_oid, schema = row
    index = _name(connection, str(schema), target.name or "")
    found = _row(connection, _INDEX, index)
    if found is None:
        return Verdict(RUN, "not built yet")
    oid, valid, indexed_table, relkind, of_constraint, being_built = found
    if relkind not in ("i", "I") or indexed_table != table_oid:
        raise LedgerError(
            f"{index} exists and is not an index of {table}",
            remedy="Choose another name for the index, or drop what is in its place.",
            location=location,
        )
    if valid:
        if intended:
            return Verdict(DONE, "built and valid", oid=oid)
        if target.if_exists:
            return Verdict(DONE, "a valid index of that name was there before", oid=oid)
        return Verdict(RUN, "an index of that name is there; the server will say so", oid=oid)
    if being_built:
        return Verdict(WAIT, f"{index} is being built by another session", oid=oid)
    if of_constraint:
        raise LedgerError(
            f"{index} is invalid and belongs to a constraint",
            remedy="Drop or repair the constraint by hand first.",
            location=location,
        )
    return Verdict(RUN, "an earlier build left it invalid", (f"DROP INDEX CONCURRENTLY {index}",), oid=oid)


def _drop_index(connection: Connection, target: ConcurrentTarget, intended: bool, location: Location) -> Verdict:
    index = _name(connection, target.schema, target.name or "")
    found = _row(connection, _INDEX, index)
    if found is None and (intended or target.if_exists):
        return Verdict(DONE, "the index is gone")
    return Verdict(RUN, "the index is there, or the server will say that it is not", oid=found[0] if found else None)


# A REINDEX CONCURRENTLY that was cut off leaves the new (_ccnew) or the old (_ccold) copy behind, invalid.
_LEFTOVERS = """
SELECT n.nspname, i.relname
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = i.relnamespace
WHERE NOT x.indisvalid AND i.relname ~ '_cc(new|old)[0-9]*$' AND n.nspname <> 'pg_toast'
  AND (x.indrelid = pg_catalog.to_regclass(%s)
       OR x.indrelid = (SELECT indrelid FROM pg_catalog.pg_index WHERE indexrelid = pg_catalog.to_regclass(%s)))
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index p WHERE p.index_relid = i.oid)
ORDER BY 1, 2
"""


def _reindex(connection: Connection, target: ConcurrentTarget, intended: bool, location: Location) -> Verdict:
    if not intended or not target.name:
        return Verdict(RUN, "not done yet")
    name = _name(connection, target.schema, target.name)
    with connection.cursor() as cursor:
        cursor.execute(_LEFTOVERS, (name, name))
        leftovers = tuple(f"DROP INDEX CONCURRENTLY {_name(connection, row[0], row[1])}" for row in cursor.fetchall())
    return Verdict(RUN, "an earlier attempt may have been cut off", leftovers)


def _detach(connection: Connection, target: ConcurrentTarget, intended: bool, location: Location) -> Verdict:
    parent = _name(connection, target.table_schema, target.table or "")
    partition = _name(connection, target.schema, target.name or "")
    row = _row(
        connection,
        "SELECT inhdetachpending, inhrelid FROM pg_catalog.pg_inherits WHERE inhrelid = pg_catalog.to_regclass(%s)"
        " AND inhparent = pg_catalog.to_regclass(%s)",
        partition,
        parent,
    )
    if row is None:
        return Verdict(DONE, "detached") if intended else Verdict(RUN, "not a partition; the server will say so")
    if row[0]:
        return Verdict(
            RUN,
            "an earlier attempt left the detach pending",
            instead=f"ALTER TABLE {parent} DETACH PARTITION {partition} FINALIZE",
            oid=row[1],
        )
    return Verdict(RUN, "still attached", oid=row[1])


_JUDGES: dict[str, t.Callable[[Connection, ConcurrentTarget, bool, Location], Verdict]] = {
    "create_index": _create_index,
    "drop_index": _drop_index,
    "reindex": _reindex,
    "detach_partition": _detach,
}


_OF_CATALOG = {
    "DATABASE": ("pg_database", "datname"),
    "TABLESPACE": ("pg_tablespace", "spcname"),
    "SUBSCRIPTION": ("pg_subscription", "subname"),
}


def in_catalog(tag: str) -> bool:
    """Whether the catalog tells if it took effect; its error then means that it did not."""
    verb, _space, kind = tag.partition(" ")
    return verb in ("CREATE", "DROP") and kind in _OF_CATALOG


def catalog_says_done(connection: Connection, tag: str, name: str | None) -> bool | None:
    """Whether an intended statement of another kind took effect, where the catalog can tell; None where it cannot."""
    if not in_catalog(tag) or not name:
        return None
    verb, _space, kind = tag.partition(" ")
    catalog, column = _OF_CATALOG[kind]
    there = _row(connection, f"SELECT 1 FROM pg_catalog.{catalog} WHERE {column} = %s", name) is not None
    return there if verb == "CREATE" else not there
