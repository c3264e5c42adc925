# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A second connection watches the first: who blocks it, and how long it holds a lock that blocks others."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import ConnectionFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SAMPLE_SECONDS = 0.05

# The modes are those that conflict with ROW EXCLUSIVE, which every INSERT, UPDATE and DELETE takes (PostgreSQL manual,
# table 13.2); ACCESS EXCLUSIVE also conflicts with the ACCESS SHARE of a SELECT.
# Seen from another session, relations the worker has just created are not in pg_class: what remains existed before.
_PREPARE_HOLDS = """
PREPARE surefoot_holds (integer) AS
SELECT n.nspname || '.' || c.relname, l.mode
FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_class c ON c.oid = l.relation
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE l.pid = $1 AND l.granted AND l.locktype = 'relation' AND n.nspname !~ '^pg_'
  AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""
_BLOCKERS = """
SELECT b.pid, a.usename, a.application_name, a.client_addr::text, a.backend_type, a.state,
       extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)::float8,
       (SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_locks w
        JOIN pg_catalog.pg_class c ON c.oid = w.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE w.pid = %s AND NOT w.granted LIMIT 1)
FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(%s)) AS b(pid)
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
WHERE b.pid <> 0
"""


@dataclasses.dataclass(frozen=True)
class Blocker:
    """A session that stood in the way. Its statement is left out: literals in it may be secrets."""

    pid: int
    user: str | None
    application: str | None
    client: str | None
    kind: str | None
    state: str | None
    transaction_seconds: float | None
    relation: str | None

    def __str__(self) -> str:
        who = self.application or self.kind or "unknown"
        age = f" for {human_duration(self.transaction_seconds)}" if self.transaction_seconds is not None else ""
        what = f" on {self.relation}" if self.relation else ""
        return f"process {self.pid} ({who}, {self.user or 'system'}, {self.state or 'active'}{age}){what}"

    def to_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)


def blockers_of(connection: Connection, pid: int) -> list[Blocker]:
    """Who blocks this process now."""
    with connection.cursor() as cursor:
        cursor.execute(_BLOCKERS, (pid, pid))
        return [Blocker(row[0], row[1], redact(row[2] or "") or None, *row[3:]) for row in cursor.fetchall()]


def runner_lock_lost() -> ConnectionFailed:
    """The error for a run that lost its control connection."""
    return ConnectionFailed(
        "the control connection, and with it the runner lock, was lost",
        remedy="Run again: what was open is rolled back, what was applied stays applied.",
    )


class LockWatch:
    """Watches one worker's transaction. Times are seconds of the monotonic clock.

    The watching thread samples only while a statement runs longer than a sample interval; a short statement costs
    nothing. When a hold outlasts the budget it cancels the statement and sets ``over_budget``.
    """

    def __init__(self, connection: Connection, budget: float, cancel: t.Callable[[], None]) -> None:
        self._connection = connection
        self._budget = budget
        self._cancel = cancel
        self._pid = 0
        self._prepared = False
        self._statement_started: float | None = None
        self._last_clear = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="surefoot-watch", daemon=True)
        self.held_since: float | None = None
        self.held: dict[str, str] = {}
        self.blockers: list[Blocker] = []
        self.over_budget = False
        self.enforced = False
        self.lost = False

    def __enter__(self) -> LockWatch:
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=5)

    def begin(self, pid: int, *, enforce: bool) -> None:
        """A new transaction of this worker process begins; ``enforce`` whether its holds are bounded."""
        with self._lock:
            self._pid = pid
            self.enforced = enforce
            self.held_since, self.held, self.blockers, self.over_budget = None, {}, [], False
            self._statement_started = None

    def end(self) -> float | None:
        """The transaction is over; returns the seconds it held a blocking lock, None when it held none."""
        with self._lock:
            held = time.monotonic() - self.held_since if self.held_since is not None else None
            self._pid = 0
            self._statement_started = None
            return held

    @contextlib.contextmanager
    def statement(self, *, may_block: bool) -> t.Iterator[None]:
        """Around one statement of the worker. After one that may block others the locks are read at once."""
        self._last_clear = self._statement_started = time.monotonic()
        try:
            yield
        finally:
            self._statement_started = None
        if may_block and self.held_since is None:
            try:
                self._sample(with_blockers=False)
            except psycopg2.Error:
                # Not the worker's error: its statement must not be blamed for it.
                raise runner_lock_lost() from None

    def remaining(self) -> float | None:
        """Seconds of the budget that are left; None while no blocking lock is held."""
        return None if self.held_since is None else self._budget - (time.monotonic() - self.held_since)

    def _watch(self) -> None:
        while not self._stopped.wait(_SAMPLE_SECONDS):
            started = self._statement_started
            if started is None or time.monotonic() - started < _SAMPLE_SECONDS:
                continue
            try:
                self._sample(with_blockers=True)
            except psycopg2.Error:
                self.lost = True  # the next transaction does not begin
                continue
            # Under the lock, so that no other transaction can begin between the decision and the cancel.
            with self._lock:
                left = self.remaining()
                if self.enforced and left is not None and left < 0 and self._statement_started is not None:
                    self.over_budget = True
                    self._cancel()

    def _sample(self, *, with_blockers: bool) -> None:
        with self._lock:
            pid = self._pid
            if not pid:
                return
            now = time.monotonic()
            with self._connection.cursor() as cursor:
                if not self._prepared:
                    cursor.execute(_PREPARE_HOLDS)
                    self._prepared = True
                cursor.execute(f"EXECUTE surefoot_holds({pid})")
                held = {str(name): str(mode) for name, mode in cursor.fetchall()}
            if held:
                self.held.update(held)
                if self.held_since is None:
                    # Taken at some moment since it was last seen free: count from the earliest possible one.
                    self.held_since = self._last_clear
            else:
                self._last_clear = now
            if with_blockers:
                found = blockers_of(self._connection, pid)
                if found:
                    self.blockers = found
