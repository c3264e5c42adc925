# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The session that does the work: clean for every migration, stoppable at any statement, never once COMMIT was sent."""

from __future__ import annotations

import contextlib
import threading
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    connect,
    pooler_reason,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    EnvironmentProblem,
    Interrupted,
    SurefootError,
)

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2
    import psycopg2.extensions as ext

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# A server whose client is gone looks up only between statements, unless told to look (PostgreSQL 14 and newer).
# Killing the playbook thus stops its work, and frees its locks, within seconds.
_CHECK_CLIENT = {"client_connection_check_interval": "2s"}
_NO_IDLE_LIMITS = {"idle_in_transaction_session_timeout": "0", "idle_session_timeout": "0"}


DRAIN_PREFIX = "COPY ("


class _Nothing:
    """A file that forgets."""

    def write(self, data: bytes) -> int:
        return len(data)


class CommitLost(Exception):
    """The connection died after COMMIT was sent: the transaction may be committed, aborted or still in progress."""


def open_session(
    options: ConnectionOptions,
    purpose: str,
    settings: t.Mapping[str, str] | None = None,
    *,
    allow_session_pooler: bool = False,
) -> Connection:
    """A direct connection without idle limits.

    :raises ConnectionFailed: the server cannot be reached
    :raises EnvironmentProblem: the address is a connection pooler
    """
    startup = {**_NO_IDLE_LIMITS, **(settings or {})}
    try:
        connection = connect(options, purpose=purpose, settings={**startup, **_CHECK_CLIENT})
    except ConnectionFailed as exc:
        if "client_connection_check_interval" not in exc.message:
            raise
        connection = connect(options, purpose=purpose, settings=startup)  # a server platform that cannot look
    reason = pooler_reason(connection, _NO_IDLE_LIMITS)
    if reason and not allow_session_pooler:
        connection.close()
        raise EnvironmentProblem(
            f"{options.label} leads through a connection pooler: {reason}",
            remedy="Give the server's direct address; for a pooler in session mode, set allow_session_pooler: true.",
            code="pooler",
        )
    return connection


class Worker:
    """One session at a time. Thread-safe are only the three methods that stop or cancel."""

    def __init__(self, options: ConnectionOptions, run_id: str, *, allow_session_pooler: bool = False) -> None:
        self._options = options
        self._purpose = f"worker {run_id}"
        self._allow_session_pooler = allow_session_pooler
        self._connection: Connection | None = None
        self._settings: dict[str, str] = {}
        self._used = False
        self._tainted = False
        self._uncancelled = False
        self._guard = threading.Lock()
        self._stop: SurefootError | None = None
        self._stopped = threading.Event()

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            raise ConnectionFailed(
                "the connection to the server was lost", remedy="Run again: what was open is rolled back."
            )
        return self._connection

    @property
    def pid(self) -> int:
        return int(self.connection.info.backend_pid)

    def ready(self, settings: t.Mapping[str, str]) -> Connection:
        """A session nothing leaked into, made with these startup settings.

        ``DISCARD ALL`` brings the startup settings back; what it cannot undo, or what cannot be judged, costs a new
        session.
        """
        wanted = dict(settings)
        if (
            self._connection is not None
            and not self._connection.closed
            and not self._tainted
            and wanted == self._settings
        ):
            if self._used:
                self.execute("DISCARD ALL")
                self._used = False
            return self._connection
        self.close()
        self.check_stop()
        self._connection = open_session(
            self._options, self._purpose, wanted, allow_session_pooler=self._allow_session_pooler
        )
        self._settings, self._used, self._tainted = wanted, False, False
        return self._connection

    def taint(self) -> None:
        """This session must not be used for the next migration."""
        self._tainted = True

    def execute(self, text: str) -> None:
        """Send this text as it is.

        :raises psycopg2.Error: what the server says
        :raises Interrupted: the run was told to stop
        """
        self._do(text)

    def fetch(self, text: str) -> list[tuple[t.Any, ...]]:
        """Send this text; the rows of its last statement."""
        cursor = self._do(text)
        return list(cursor.fetchall()) if cursor.description else []

    def change(self, text: str) -> int:
        """Send this UPDATE; the number of rows it changed."""
        return int(self._do(text).rowcount)

    def _do(self, text: str) -> t.Any:
        # Written out, as thousands of short statements go through here: a context manager costs as much as sending.
        if self._stop is not None:
            raise self._stop
        self._used = True
        try:
            cursor = self.connection.cursor()
            cursor.execute(text)
        except psycopg2.Error:
            self.check_stop()
            raise
        return cursor

    def drain(self, query: str) -> None:
        """Run a query to its last row and keep none: the driver would hold the whole result in memory.

        An error's position counts from the beginning of what is sent, which is ``DRAIN_PREFIX`` and the query.
        """
        with self._interruptible() as cursor:
            # The query may end in a comment.
            cursor.copy_expert(f"{DRAIN_PREFIX}{query}\n) TO STDOUT", _Nothing())

    def copy(self, text: str, stream: t.Any) -> None:
        """Run a COPY ... FROM STDIN with the data of a file-like object."""
        with self._interruptible() as cursor:
            cursor.copy_expert(text, stream)

    def record(self, text: str) -> None:
        """Send a record of what the server has already done: a stop neither refuses nor cancels it.

        :raises psycopg2.Error: what the server says
        """
        with self._guard:
            self._uncancelled = True
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(text)
        finally:
            with self._guard:
                self._uncancelled = False

    @contextlib.contextmanager
    def _interruptible(self) -> t.Iterator[t.Any]:
        self.check_stop()
        self._used = True
        try:
            with self.connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error:
            self.check_stop()
            raise

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open and not failed."""
        return bool(self.connection.info.transaction_status == ext.TRANSACTION_STATUS_INTRANS)

    def commit(self) -> None:
        """COMMIT; from here on nothing cancels.

        :raises CommitLost: the connection died and the outcome is open
        :raises psycopg2.Error: the server refused; nothing was committed
        """
        with self._guard:
            self.check_stop()
            self._uncancelled = True
        try:
            with self.connection.cursor() as cursor:
                cursor.execute("COMMIT")
                status = cursor.statusmessage
        except psycopg2.Error as exc:
            if self.connection.closed or exc.pgcode is None:
                self.close()
                raise CommitLost() from None
            raise
        finally:
            with self._guard:
                self._uncancelled = False
        if status != "COMMIT":
            raise sql_error(psycopg2.InternalError(f"the server answered {status} to COMMIT"))

    def rollback(self) -> None:
        """Leave no transaction open; a session that cannot roll back is dropped, which does the same."""
        if self._connection is None:
            return
        try:
            if self._connection.info.transaction_status != ext.TRANSACTION_STATUS_IDLE:
                with self._connection.cursor() as cursor:
                    cursor.execute("ROLLBACK")
        except psycopg2.Error:
            self.close()

    def close(self) -> None:
        """End the session; never raises."""
        with self._guard:
            connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg2.Error):
                connection.close()

    def request_stop(self, reason: str) -> None:
        """Stop as soon as possible: cancel what runs, and refuse what comes. Not once COMMIT was sent."""
        self.stop_for(
            Interrupted(
                f"stopped: {reason}", remedy="What was open is rolled back; run again to go on where it stopped."
            )
        )

    def stop_for(self, error: SurefootError) -> None:
        """The same, with the error that the run then fails with. The first one counts."""
        self._stop = self._stop or error
        self._stopped.set()
        self.cancel_statement()

    def cancel_statement(self) -> None:
        """Cancel the statement that runs now, if one does."""
        with self._guard:
            if self._connection is None or self._uncancelled or self._connection.closed:
                return
            with contextlib.suppress(psycopg2.Error):
                self._connection.cancel()

    @property
    def stopping(self) -> bool:
        """Whether the run was told to stop."""
        return self._stop is not None

    @property
    def lost(self) -> bool:
        """Whether there is no session to work with."""
        return self._connection is None or bool(self._connection.closed)

    def check_stop(self) -> None:
        """:raises SurefootError: the run was told to stop, and why"""
        if self._stop is not None:
            raise self._stop

    def sleep(self, seconds: float) -> None:
        """Wait, but not when told to stop.

        :raises Interrupted: the run was told to stop
        """
        self._stopped.wait(seconds)
        self.check_stop()
