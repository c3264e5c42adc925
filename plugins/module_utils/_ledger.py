# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The ledger: a schema of the target database that says what is applied, by whom, with what text, and every attempt."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import getpass
import hashlib
import json
import os
import re
import secrets as random_bytes
import socket
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import Catalog
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    quote_identifier,
    redact,
    redact_sql,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import LedgerError, PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._remedies import remedy_for
from ansible_collections.surefoot.dbops.plugins.module_utils._values import to_plain

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

DEFAULT_SCHEMA = "surefoot"
FORMAT = 1
TEXT_LIMIT = 1024 * 1024  # bytes of executed text kept in the ledger; larger texts are kept as hashes

_DDL = """
CREATE SCHEMA IF NOT EXISTS {s};
CREATE TABLE {s}.meta (
    key text PRIMARY KEY,
    value text NOT NULL
);
COMMENT ON SCHEMA {s} IS 'Surefoot: the ledger of schema migrations. Written by the runner only.';
CREATE TABLE {s}.runs (
    run_id text PRIMARY KEY,
    set_name text NOT NULL,
    action text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz,
    outcome text,
    os_user text NOT NULL,
    host text NOT NULL,
    requested_by text,
    approved_by text,
    server_version integer NOT NULL,
    catalog_fingerprint text,
    catalog_entries bytea,
    evidence_head text
);
CREATE TABLE {s}.attempts (
    attempt_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text NOT NULL,
    set_name text NOT NULL,
    migration_id text NOT NULL,
    action text NOT NULL CHECK (action IN ('deploy', 'rollback', 'baseline')),
    outcome text NOT NULL CHECK (outcome IN ('succeeded', 'failed', 'unknown')),
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    raw_sha256 text,
    token_sha256 text,
    executed_text text,
    text_bytes bigint,
    attempts integer NOT NULL DEFAULT 1,
    xid xid8,
    session_user_name name NOT NULL DEFAULT session_user,
    error jsonb
);
CREATE TABLE {s}.applied (
    set_name text,
    migration_id text,
    attempt_id bigint NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    raw_sha256 text NOT NULL,
    token_sha256 text NOT NULL,
    PRIMARY KEY (set_name, migration_id)
);
CREATE TABLE {s}.progress (
    set_name text,
    migration_id text,
    action text,
    step integer,
    statement integer,
    state text NOT NULL CHECK (state IN ('intended', 'done', 'cursor')),
    text_sha256 text NOT NULL,
    object_oid oid,
    rows bigint,
    position jsonb,
    tries integer NOT NULL DEFAULT 1,
    run_id text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (set_name, migration_id, action, step, statement)
);
INSERT INTO {s}.meta (key, value) VALUES ('format', '{format}');
"""

# Made when the first row has to go there.
_QUARANTINE = """
CREATE TABLE IF NOT EXISTS {s}.quarantine (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text NOT NULL,
    set_name text NOT NULL,
    migration_id text NOT NULL,
    table_name text NOT NULL,
    key jsonb NOT NULL,
    reason text NOT NULL,
    row jsonb NOT NULL,
    dependents jsonb NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
)
"""
_QUARANTINED = """
SELECT migration_id, table_name, reason, count(*), sum(pg_catalog.jsonb_array_length(dependents))::bigint
FROM {s}.quarantine WHERE set_name = %s GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
_APPLIED = "SELECT migration_id, applied_at, raw_sha256, token_sha256 FROM {s}.applied WHERE set_name = %s"
_BEGUN = "SELECT DISTINCT migration_id, action FROM {s}.progress WHERE set_name = %s"
_MARK = """
SELECT r.run_id, r.finished_at, r.catalog_fingerprint, r.catalog_entries, r.server_version,
       (SELECT c.run_id FROM {s}.runs c WHERE c.outcome IS NULL AND c.started_at >= r.started_at
        ORDER BY c.started_at DESC LIMIT 1)
FROM {s}.runs r
WHERE r.catalog_fingerprint IS NOT NULL
ORDER BY r.finished_at DESC LIMIT 1
"""
_HISTORY = """
SELECT a.attempt_id, a.run_id, a.migration_id, a.action, a.outcome, a.started_at, a.finished_at, a.raw_sha256,
       a.token_sha256, a.text_bytes, a.attempts, a.session_user_name, a.error, r.os_user, r.host, r.requested_by,
       r.approved_by
FROM {s}.attempts a LEFT JOIN {s}.runs r USING (run_id)
WHERE a.set_name = %s
ORDER BY a.attempt_id DESC LIMIT %s
"""
_START_RUN = """
INSERT INTO {s}.runs (run_id, set_name, action, os_user, host, requested_by, approved_by, server_version)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (run_id) DO UPDATE SET action = excluded.action, finished_at = NULL, outcome = NULL
RETURNING catalog_fingerprint IS NOT NULL
"""
_FINISH_RUN = """
UPDATE {s}.runs
SET finished_at = pg_catalog.clock_timestamp(), outcome = %s, catalog_fingerprint = %s, catalog_entries = %s
WHERE run_id = %s
"""
# {change} is one of the two below. The primary key of applied is the last guard of "exactly once".
_TAKE_OVER = """
INSERT INTO {s}.meta (key, value) VALUES ('runner', %(token)s) ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""
_TURN = """
SELECT pg_catalog.pg_try_advisory_xact_lock(%(key)s), value OPERATOR(pg_catalog.=) %(token)s
FROM {s}.meta WHERE key OPERATOR(pg_catalog.=) 'runner' FOR SHARE
"""
_SUCCEEDED = """
INSERT INTO {s}.attempts (run_id, set_name, migration_id, action, outcome, started_at, raw_sha256, token_sha256,
                          executed_text, text_bytes, attempts, xid)
VALUES (%(run)s, %(set)s, %(id)s, %(action)s, 'succeeded', %(started)s, %(raw)s, %(token)s, %(text)s, %(size)s,
        %(tries)s, pg_catalog.pg_current_xact_id());
{change};
SELECT pg_catalog.pg_current_xact_id()::text
"""
_MAKE_APPLIED = """
INSERT INTO {s}.applied (set_name, migration_id, attempt_id, raw_sha256, token_sha256)
VALUES (%(set)s, %(id)s, pg_catalog.lastval(), %(raw)s, %(token)s)
"""
_MAKE_UNAPPLIED = "DELETE FROM {s}.applied WHERE set_name = %(set)s AND migration_id = %(id)s"
_FAILED = """
INSERT INTO {s}.attempts (run_id, set_name, migration_id, action, outcome, started_at, raw_sha256, token_sha256,
                          text_bytes, attempts, error)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_IS_RECORDED = """
SELECT 1 FROM {s}.attempts
WHERE set_name = %s AND migration_id = %s AND action = %s AND outcome = 'succeeded' AND xid = %s::xid8
"""
_IS_STEP_RECORDED = """
SELECT 1 FROM {s}.progress
WHERE set_name = %s AND migration_id = %s AND action = %s AND step = %s AND statement = -1 AND state = 'done'
      AND run_id = %s
"""
_PROGRESS = """
SELECT step, statement, state, text_sha256, object_oid, rows, position, tries
FROM {s}.progress WHERE set_name = %s AND migration_id = %s AND action = %s
"""
# What the first attempt found (object_oid) stays: it tells what was there before.
_MARK_PROGRESS = """
INSERT INTO {s}.progress (set_name, migration_id, action, step, statement, state, text_sha256, object_oid, rows,
                          position, run_id)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (set_name, migration_id, action, step, statement) DO UPDATE
SET state = excluded.state, text_sha256 = excluded.text_sha256, rows = excluded.rows, position = excluded.position,
    tries = progress.tries + (excluded.state = 'intended')::integer, run_id = excluded.run_id,
    updated_at = pg_catalog.clock_timestamp()
"""
_FORGET_INTENT = """
DELETE FROM {s}.progress
WHERE set_name = %s AND migration_id = %s AND action = %s AND step = %s AND statement = %s AND state = 'intended'
"""
# A ledger made before the column was thought of has format 1 as well: nothing that reads it needs the column.
_HAS_HEAD = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = %s AND c.relname = 'runs' AND a.attname = 'evidence_head')
"""
_ADD_HEAD = "ALTER TABLE {s}.runs ADD COLUMN IF NOT EXISTS evidence_head text"
_KNOWS_RUN = "SELECT 1 FROM {s}.runs WHERE run_id = %s"
_READ_HEAD = "SELECT evidence_head FROM {s}.runs WHERE run_id = %s"
_KEEP_HEAD = """
UPDATE {s}.runs SET evidence_head = %s WHERE run_id = %s AND evidence_head IS DISTINCT FROM %s RETURNING 1
"""
_LAST_CHANGE = """
SELECT COALESCE(pg_catalog.max(attempt_id), 0) FROM {s}.attempts WHERE set_name = %s AND outcome <> 'failed'
"""
_CLEAR_PROGRESS = "DELETE FROM {s}.progress WHERE set_name = %s AND migration_id = %s"


@dataclasses.dataclass(frozen=True)
class AppliedMigration:
    """One row of what is applied."""

    migration_id: str
    applied_at: datetime.datetime
    raw_sha256: str
    token_sha256: str


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far one statement or backfill of a step has come; it outlives the run that wrote it."""

    step: int
    statement: int
    state: str
    text_sha256: str
    object_oid: int | None
    rows: int | None
    position: t.Any
    tries: int


@dataclasses.dataclass(frozen=True)
class CatalogMark:
    """What the catalog looked like after the last run that changed anything."""

    run_id: str
    finished_at: datetime.datetime
    fingerprint: str
    packed: bytes

    def catalog(self) -> Catalog:
        """The entries' hashes, unpacked when they are asked for."""
        return Catalog.unpack(self.packed)


@dataclasses.dataclass(frozen=True)
class State:
    """What the ledger says of one migration set. ``exists`` is False before the first run."""

    exists: bool
    applied: t.Mapping[str, AppliedMigration] = dataclasses.field(default_factory=dict)
    partial: frozenset[str] = frozenset()
    undoing: frozenset[str] = frozenset()  # their rollback was begun and is not finished
    mark: CatalogMark | None = None
    # A run that began after the mark and never recorded its end; it may have changed the catalog.
    cut_off: str | None = None


@dataclasses.dataclass(frozen=True)
class Actor:
    """Who runs this: the real OS user, and the names recorded beside it."""

    os_user: str
    host: str
    requested_by: str | None
    approved_by: str | None

    @classmethod
    def current(cls, requested_by: str | None = None, approved_by: str | None = None) -> Actor:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a uid without a passwd entry, as in many containers
            user = f"uid {os.getuid()}"
        sudo = os.environ.get("SUDO_USER")
        return cls(f"{user} (sudo from {sudo})" if sudo else user, socket.gethostname(), requested_by, approved_by)


@dataclasses.dataclass(frozen=True)
class Text:
    """The text that was executed, as the ledger keeps it."""

    raw_sha256: str
    token_sha256: str
    text: str | None
    size: int


def new_run_id() -> str:
    """UTC time and a random part: sorts by time, and two runs never share one."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{now:%Y%m%dT%H%M%SZ}-{random_bytes.token_hex(3)}"


def advisory_key(schema: str, purpose: str) -> int:
    """The 64-bit advisory lock key of this ledger; PostgreSQL adds the database itself."""
    digest = hashlib.sha256(f"surefoot:{purpose}:{schema}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def executed_text(files: t.Sequence[tuple[str, bytes]], raw_sha256: str, token_sha256: str) -> Text:
    """The ledger's copy of a migration's files: before substitution, passwords masked, at most 1 MiB."""
    size = sum(len(content) for _name, content in files)
    if size > TEXT_LIMIT:
        return Text(raw_sha256, token_sha256, None, size)
    parts = [
        (f"-- file: {name}\n" if len(files) > 1 else "") + content.decode("utf-8", errors="replace")
        for name, content in files
    ]
    return Text(raw_sha256, token_sha256, redact_sql("\n".join(parts)), size)


class Ledger:
    """Reads and writes the ledger of one migration set. Every statement is schema-qualified."""

    def __init__(self, schema: str, set_name: str, run_id: str) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]{0,62}", schema):
            raise PlanError(f"{schema!r} is not a usable name for ledger_schema", remedy="Use letters, digits and _.")
        self.schema = schema
        self.set_name = set_name
        self.run_id = run_id
        self.runner_key = advisory_key(schema, "runner")
        self.worker_key = advisory_key(schema, "worker")
        self._token = f"{run_id} {random_bytes.token_hex(8)}"
        self._quoted = ""
        self._turn = ""

    def _sql(self, connection: Connection, text: str) -> str:
        if not self._quoted:
            self._quoted = quote_identifier(self.schema, connection)
        return text.replace("{s}", self._quoted)

    def quarantine(self, connection: Connection) -> str:
        """The quarantine's name, for SQL."""
        return self._sql(connection, "{s}.quarantine")

    def make_quarantine(self, execute: t.Callable[[str], None], connection: Connection) -> None:
        """Make the quarantine where it is not there yet. Call it under the worker lock only."""
        execute(self._sql(connection, _QUARANTINE))

    def quarantined(self, connection: Connection) -> dict[str, t.Any] | None:
        """Rows of this set in the quarantine, by migration, table and reason, and the quarantine's size in bytes; None
        when there is none."""
        name = self.quarantine(connection)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.pg_total_relation_size(pg_catalog.to_regclass(%s))", (name,))
            size = (cursor.fetchone() or (None,))[0]
            if size is None:
                return None
            cursor.execute(self._sql(connection, _QUARANTINED), (self.set_name,))
            keys = ("migration", "table", "reason", "rows", "dependents")
            by = [dict(zip(keys, row)) for row in cursor.fetchall()]
        return {"rows": sum(item["rows"] for item in by), "bytes": int(size), "by": by}

    def exists(self, connection: Connection) -> bool:
        """Whether the ledger is there, in a format this version reads.

        :raises LedgerError: it was written by a newer version, or belongs to something else
        """
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT c.relname FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid"
                " WHERE n.nspname = %s AND c.relkind IN ('r', 'v', 'm', 'p', 'f')",
                (self.schema,),
            )
            tables = {str(row[0]) for row in cursor.fetchall()}
            if not tables:
                return False
            if "meta" not in tables or "applied" not in tables:
                raise LedgerError(
                    f"schema {self.schema} exists but holds no ledger",
                    remedy="Choose another ledger_schema, or an empty one.",
                )
            try:
                cursor.execute(self._sql(connection, "SELECT value FROM {s}.meta WHERE key = 'format'"))
            except psycopg2.Error as exc:
                raise self.unreadable(exc) from None
            row = cursor.fetchone()
        found = int(row[0]) if row and str(row[0]).isdigit() else 0
        if found > FORMAT:
            raise LedgerError(
                f"the ledger in schema {self.schema} has format {found}; this version knows {FORMAT}",
                remedy="Update the collection surefoot.dbops on this machine.",
            )
        return True

    def create(self, connection: Connection) -> None:
        """Make the ledger. Call it under the runner lock only: concurrent CREATE ... IF NOT EXISTS collide.

        :raises LedgerError: the role may not create it
        """
        statements = _DDL.replace("{format}", str(FORMAT))
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %s", (self.schema,))
                if cursor.fetchone():  # made beforehand by an administrator: CREATE on the database is not needed
                    statements = re.sub(r"CREATE SCHEMA[^;]*;|COMMENT ON SCHEMA[^;]*;", "", statements)
                cursor.execute("BEGIN;" + self._sql(connection, statements) + "COMMIT")
        except psycopg2.Error as exc:
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")
            if exc.pgcode == "42501":
                raise LedgerError(
                    f"the role may not create the ledger schema {self.schema}: "
                    f"{redact(exc.diag.message_primary or '')}",
                    remedy=f"GRANT CREATE ON DATABASE to it, or have an administrator run: CREATE SCHEMA {self.schema}"
                    " AUTHORIZATION <role>.",
                ) from None
            remedy = remedy_for(exc.pgcode, exc.diag.message_primary or "")
            raise sql_error(exc, statement="CREATE SCHEMA (ledger)", remedy=remedy) from None

    def read(self, connection: Connection) -> State:
        """What is applied, what is half done, and the catalog mark."""
        if not self.exists(connection):
            return State(exists=False)
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    self._sql(connection, _APPLIED),
                    (self.set_name,),
                )
                applied = {row[0]: AppliedMigration(*row) for row in cursor.fetchall()}
                cursor.execute(
                    self._sql(connection, _BEGUN),
                    (self.set_name,),
                )
                begun = cursor.fetchall()
                partial = frozenset(str(row[0]) for row in begun if row[1] == "deploy") - set(applied)
                undoing = frozenset(str(row[0]) for row in begun if row[1] == "rollback")
                cursor.execute(self._sql(connection, _MARK))
                row = cursor.fetchone()
        except psycopg2.Error as exc:
            raise self.unreadable(exc) from None
        cut_off = row[5] if row else None
        # How definitions are printed differs between major versions: an upgrade is no drift.
        same_major = row is not None and row[4] // 10000 == connection.server_version // 10000
        mark = CatalogMark(row[0], row[1], row[2], bytes(row[3])) if row and same_major and not cut_off else None
        return State(True, applied, partial, undoing, mark, cut_off)

    def last_change(self, connection: Connection) -> int:
        """Number of the latest attempt that changed something, or may have; 0 without one.

        :raises LedgerError: the server does not let it be read
        """
        if not self.exists(connection):
            return 0
        try:
            with connection.cursor() as cursor:
                cursor.execute(self._sql(connection, _LAST_CHANGE), (self.set_name,))
                return int((cursor.fetchone() or (0,))[0])
        except psycopg2.Error as exc:
            raise self.unreadable(exc) from None

    def unreadable(self, exc: t.Any) -> SurefootError:
        """What to raise when the server does not let the ledger be read."""
        return LedgerError(
            f"the ledger in schema {self.schema} cannot be read: {redact(exc.diag.message_primary or str(exc))}",
            remedy=f"Connect as its owner, or GRANT USAGE ON SCHEMA {self.schema} and SELECT ON ALL TABLES IN it.",
        )

    def history(self, connection: Connection, limit: int) -> list[dict[str, t.Any]]:
        """The latest attempts, newest first, as plain objects."""
        with connection.cursor() as cursor:
            cursor.execute(
                self._sql(connection, _HISTORY),
                (self.set_name, limit),
            )
            names = [column.name for column in cursor.description or ()]
            return [to_plain(dict(zip(names, row))) for row in cursor.fetchall()]

    def start_run(self, connection: Connection, action: str, actor: Actor) -> bool:
        """Record that this run began. A run id that is already there continues it: a split run has one id.

        Returns whether an earlier part of it left a catalog mark, which the end of this part must renew.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                self._sql(connection, _START_RUN),
                (
                    self.run_id,
                    self.set_name,
                    action,
                    actor.os_user,
                    actor.host,
                    actor.requested_by,
                    actor.approved_by,
                    connection.server_version,
                ),
            )
            return bool((cursor.fetchone() or (False,))[0])

    def finish_run(self, connection: Connection, outcome: str, catalog: Catalog | None) -> None:
        """Record how this run ended, with the catalog as it is now when something was changed."""
        with connection.cursor() as cursor:
            cursor.execute(
                self._sql(connection, _FINISH_RUN),
                (
                    outcome,
                    catalog.digest if catalog is not None else None,
                    psycopg2.Binary(catalog.pack()) if catalog is not None else None,
                    self.run_id,
                ),
            )

    def knows_run(self, connection: Connection) -> bool:
        """Whether this run wrote anything here; False as well when there is no ledger."""
        try:
            return self.exists(connection) and bool(self._first(connection, _KNOWS_RUN, (self.run_id,)))
        except psycopg2.Error as exc:
            raise self.unreadable(exc) from None

    def evidence_head(self, connection: Connection) -> str | None:
        """The head of this run's chain of evidence as it was kept; None when it was not."""
        if not self.knows_run(connection) or not self._first(connection, _HAS_HEAD, (self.schema,)):
            return None
        found = self._first(connection, _READ_HEAD, (self.run_id,))
        return None if found is None else str(found)

    def keep_evidence_head(self, connection: Connection, head: str) -> bool:
        """Keep the head of this run's chain of evidence; returns whether it is another one than before.

        :raises LedgerError: the role may not write it, or may not add the column to a ledger that lacks it
        """
        try:
            if not self._first(connection, _HAS_HEAD, (self.schema,)):
                with connection.cursor() as cursor:
                    cursor.execute(self._sql(connection, _ADD_HEAD))
            return bool(self._first(connection, _KEEP_HEAD, (head, self.run_id, head)))
        except psycopg2.Error as exc:
            raise LedgerError(
                f"the head of the evidence cannot be kept in ledger {self.schema}: "
                f"{redact(exc.diag.message_primary or str(exc))}",
                remedy=f"Connect as its owner, or have it run: {self._sql(connection, _ADD_HEAD)}; and GRANT UPDATE.",
            ) from None

    def _first(self, connection: Connection, sql: str, values: t.Sequence[t.Any]) -> t.Any:
        """First column of the first row; None without a row."""
        with connection.cursor() as cursor:
            cursor.execute(self._sql(connection, sql), values)
            return (cursor.fetchone() or (None,))[0]

    def record_applied_sql(
        self, connection: Connection, migration_id: str, action: str, text: Text, started: datetime.datetime, tries: int
    ) -> str:
        """Statements that record the attempt, make the migration applied or no longer so, and return the
        transaction id."""
        sql = _SUCCEEDED.replace("{change}", _MAKE_UNAPPLIED if action == "rollback" else _MAKE_APPLIED)
        with connection.cursor() as cursor:
            return cursor.mogrify(
                self._sql(connection, sql),
                {
                    "run": self.run_id,
                    "set": self.set_name,
                    "id": migration_id,
                    "action": action,
                    "started": started,
                    "raw": text.raw_sha256,
                    "token": text.token_sha256,
                    "text": text.text,
                    "size": text.size,
                    "tries": tries,
                },
            ).decode("utf-8")

    def take_over(self, connection: Connection) -> None:
        """Make this run the one whose work counts. Call it under the runner lock and the worker lock: from here on no
        transaction of an earlier run, should one still be alive, gets past :meth:`turn_sql`."""
        with connection.cursor() as cursor:
            cursor.execute(self._sql(connection, _TAKE_OVER), {"token": self._token})

    def turn_sql(self, connection: Connection) -> str:
        """Query whether the worker lock could be taken for the transaction, and whether no other run has taken over.

        The row is locked so that it is the newest one at every isolation level: at REPEATABLE READ the snapshot is
        older than the worker lock, and the server refuses to lock a row that was changed since (40001).
        """
        if not self._turn:
            with connection.cursor() as cursor:
                values = {"key": self.worker_key, "token": self._token}
                self._turn = cursor.mogrify(self._sql(connection, _TURN), values).decode("utf-8")
        return self._turn

    def forget_intent_sql(
        self, connection: Connection, migration_id: str, action: str, step: int, statement: int
    ) -> str:
        """Statement that takes back an intent: the server refused the statement, nothing of it took effect."""
        with connection.cursor() as cursor:
            return cursor.mogrify(
                self._sql(connection, _FORGET_INTENT), (self.set_name, migration_id, action, step, statement)
            ).decode("utf-8")

    def clear_progress_sql(self, connection: Connection, migration_id: str) -> str:
        """Statement that forgets the step records of a migration that is wholly applied or rolled back."""
        with connection.cursor() as cursor:
            return cursor.mogrify(
                self._sql(connection, _CLEAR_PROGRESS),
                (self.set_name, migration_id),
            ).decode("utf-8")

    def record_failure(
        self,
        connection: Connection,
        migration_id: str,
        action: str,
        text: Text | None,
        started: datetime.datetime,
        tries: int,
        outcome: str,
        error: t.Mapping[str, t.Any],
    ) -> None:
        """Record a failed attempt, after its transaction was rolled back."""
        with connection.cursor() as cursor:
            cursor.execute(
                self._sql(connection, _FAILED),
                (
                    self.run_id,
                    self.set_name,
                    migration_id,
                    action,
                    outcome,
                    started,
                    text.raw_sha256 if text else None,
                    text.token_sha256 if text else None,
                    text.size if text else None,
                    tries,
                    json.dumps(error, default=str),
                ),
            )

    def is_recorded(self, connection: Connection, migration_id: str, action: str, xid: str) -> bool:
        """Whether the record this transaction wrote is there; decides when a connection died at COMMIT.

        Not whether the migration is applied: that a half-applied one is not says nothing about its rollback.
        """
        with connection.cursor() as cursor:
            cursor.execute(self._sql(connection, _IS_RECORDED), (self.set_name, migration_id, action, xid))
            return cursor.fetchone() is not None

    def is_step_recorded(self, connection: Connection, migration_id: str, action: str, step: int) -> bool:
        """The same for a step that is not the last one; steps that were done before this run are not run again."""
        with connection.cursor() as cursor:
            cursor.execute(
                self._sql(connection, _IS_STEP_RECORDED), (self.set_name, migration_id, action, step, self.run_id)
            )
            return cursor.fetchone() is not None

    def progress(self, connection: Connection, migration_id: str, action: str) -> dict[tuple[int, int], Progress]:
        """The step and statement records of a migration that is under way, by (step, statement)."""
        with connection.cursor() as cursor:
            cursor.execute(
                self._sql(connection, _PROGRESS),
                (self.set_name, migration_id, action),
            )
            return {(row[0], row[1]): Progress(*row) for row in cursor.fetchall()}

    def progress_sql(
        self,
        connection: Connection,
        migration_id: str,
        action: str,
        step: int,
        statement: int,
        state: str,
        text_sha256: str,
        *,
        object_oid: int | None = None,
        rows: int | None = None,
        position: t.Any = None,
    ) -> str:
        """Statement that records the state of one statement (or -1: of the whole step)."""
        with connection.cursor() as cursor:
            return cursor.mogrify(
                self._sql(connection, _MARK_PROGRESS),
                (
                    self.set_name,
                    migration_id,
                    action,
                    step,
                    statement,
                    state,
                    text_sha256,
                    object_oid,
                    rows,
                    json.dumps(position) if position is not None else None,
                    self.run_id,
                ),
            ).decode("utf-8")
