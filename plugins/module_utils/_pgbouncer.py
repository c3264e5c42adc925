# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""PgBouncer's admin console: pause, resume and reconnect one of its databases, bounded, and resumed after a failure.

The console speaks the simple protocol only, knows no transaction and no parameters. PAUSE and WAIT_CLOSE return when
clients let go of their server connections, which in session pooling can be never; and that one of them returned proves
nothing. So commands run on a connection that is polled against a clock, on a second one lies the way back, and what was
reached is read from SHOW, by the names of its columns, which become more from version to version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import select
import threading
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    open_console,
    quote_identifier,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    EnvironmentProblem,
    Interrupted,
    PlanError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, to_plain

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2
    import psycopg2.extensions

CONSOLE = "pgbouncer"
PAUSED, RESUMED, RECONNECTED = "paused", "resumed", "reconnected"
STATES = (PAUSED, RESUMED, RECONNECTED)
_POLL = 0.1
_ANSWER = 10.0  # for what PgBouncer answers at once
_LAST_ATTEMPTS, _BETWEEN = 3, 0.5

Row = t.Mapping[str, t.Any]


class PoolerError(SurefootError):
    """PgBouncer did not do what it was asked for."""

    code = "pgbouncer"


# --- the console -----------------------------------------------------------------------------------------------------


class Console:
    """One connection to the admin console. No command waits longer than it is told."""

    def __init__(self, options: ConnectionOptions, *, timeout: float = _ANSWER) -> None:
        """:raises ConnectionFailed: with what to do about it"""
        self._options = options
        self._connection = open_console(options, lambda connection: self._wait(connection, time.monotonic() + timeout))

    def close(self) -> None:
        """Also while a command is waited for: PgBouncer then forgets it, though not what it did."""
        self._connection.close()

    def quoted(self, name: str) -> str:
        """A name as the console's parser wants it."""
        return quote_identifier(name, self._connection)

    def show(self, what: str) -> list[dict[str, t.Any]]:
        """Rows of ``SHOW what``, by the names that this version gives to its columns.

        :raises PoolerError: this PgBouncer refuses it, or knows no such command
        :raises ConnectionFailed: it does not answer
        """
        with self._connection.cursor() as cursor:
            self._execute(cursor, f"SHOW {what}", time.monotonic() + _ANSWER)
            names = [str(column.name).lower() for column in cursor.description or ()]
            return [dict(zip(names, row)) for row in cursor.fetchall()]

    def command(self, text: str, deadline: float | None = None, meanwhile: t.Callable[[], None] | None = None) -> None:
        """Run a command to its end.

        :param deadline: of the monotonic clock
        :param meanwhile: called while it is waited for; what it raises ends the waiting
        :raises TimeoutError: it did not end in time; the connection is of no use any more
        :raises PoolerError: PgBouncer refuses it
        """
        with self._connection.cursor() as cursor:
            self._execute(cursor, text, time.monotonic() + _ANSWER if deadline is None else deadline, meanwhile)

    def _execute(
        self, cursor: t.Any, text: str, deadline: float, meanwhile: t.Callable[[], None] | None = None
    ) -> None:
        try:
            cursor.execute(text)
            self._wait(self._connection, deadline, meanwhile)
        except psycopg2.Error as exc:
            if exc.pgcode:  # its refusals have the class of connection errors
                raise _refused(text, str(exc)) from None
            raise ConnectionFailed(
                f"PgBouncer at {self._options.label} closed the connection of its console",
                remedy="Look into its log; if it was restarted, run the task again.",
            ) from None

    @staticmethod
    def _wait(connection: t.Any, deadline: float, meanwhile: t.Callable[[], None] | None = None) -> None:
        while True:
            state = connection.poll()
            if state == psycopg2.extensions.POLL_OK:
                return
            if meanwhile is not None:
                meanwhile()
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            readers, writers = ([], [connection]) if state == psycopg2.extensions.POLL_WRITE else ([connection], [])
            select.select(readers, writers, [], min(left, _POLL))


def _refused(text: str, said: str) -> PoolerError:
    # Its own words may quote what it was given; ours say the same.
    word = text.partition(" ")[0]
    if "admin access" in said:
        return PoolerError(
            f"PgBouncer does not let this user {word}: it may look (stats_users), not act",
            remedy="Log in as a user that admin_users of pgbouncer.ini names.",
            code="pooler_privilege",
        )
    if "not allowed" in said:
        return PoolerError(
            f"PgBouncer does not let this user {word}",
            remedy="Log in as a user that admin_users of pgbouncer.ini names.",
        )
    if "no such database" in said.lower():
        return PoolerError(f"PgBouncer knows no such database for {word}", remedy="See SHOW DATABASES on its console.")
    if "suspended" in said or "paused" in said:
        return PoolerError(
            f"PgBouncer says that {word} does not fit its state", remedy="See SHOW DATABASES, SHOW STATE."
        )
    return PoolerError(f"PgBouncer refuses {word}", remedy="Look into its log.")


# --- what there is ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pools:
    """What PgBouncer says of one of its databases."""

    database: str
    version: str
    paused: bool
    disabled: bool
    all_paused: bool
    pools: tuple[dict[str, t.Any], ...]
    servers: int
    old_servers: int

    @property
    def mode(self) -> str:
        """Pooling mode; that of the pools in use, which users and databases may have of their own."""
        modes = sorted({str(pool.get("pool_mode")) for pool in self.pools if pool.get("pool_mode")})
        return "/".join(modes)

    def total(self, *columns: str) -> int:
        """Sum over the pools. A column that this version does not have counts nothing."""
        return sum(int(pool.get(column) or 0) for pool in self.pools for column in columns)

    @property
    def waiting(self) -> int:
        """Clients that wait for a server connection."""
        return self.total("cl_waiting")

    @property
    def busy(self) -> int:
        """Server connections that a client holds, or that a query is being cancelled on."""
        return self.total("sv_active", "sv_active_cancel", "sv_being_canceled")

    @property
    def longest_wait(self) -> float:
        """Seconds that the first in the queue has waited."""
        waits = (int(pool.get("maxwait") or 0) + int(pool.get("maxwait_us") or 0) / 1e6 for pool in self.pools)
        return max(waits, default=0.0)

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "database": self.database,
            "version": self.version,
            "pool_mode": self.mode or None,
            "paused": self.paused or self.all_paused,
            "pools": list(self.pools),
            "clients_waiting": self.waiting,
            "longest_wait_seconds": round(self.longest_wait, 3),
            "servers_busy": self.busy,
            "servers_to_close": self.old_servers,
        }


def _flag(row: Row, name: str) -> bool:
    return str(row.get(name) or 0).lower() in ("1", "t", "true", "yes", "on")


def read_version(console: Console, options: ConnectionOptions) -> str:
    """:raises EnvironmentProblem: it is not PgBouncer's console that answers"""
    try:
        rows = console.show("VERSION")
    except PoolerError:
        rows = []
    found = re.search(
        r"PgBouncer[^\n]*?(\d+(?:\.\d+)+)", " ".join(str(value) for row in rows for value in row.values())
    )
    if found is None:
        raise EnvironmentProblem(
            f"{options.label} is not the admin console of a PgBouncer",
            remedy=f"Give PgBouncer's own address and port, and login_db: {CONSOLE}.",
            code="not_pgbouncer",
        )
    return found.group(1)


def read_pools(console: Console, database: str, version: str) -> Pools:
    """:raises PlanError: PgBouncer knows no such database"""
    rows = {str(row.get("name")): row for row in console.show("DATABASES")}
    row = rows.get(database)
    if row is None or database == CONSOLE:
        known = ", ".join(sorted(name for name in rows if name != CONSOLE)) or "none"
        raise PlanError(
            f"PgBouncer knows no database {database!r}; it knows {known}",
            remedy="Give the name that clients connect with. One that only the entry * covers is known once a client"
            " has used it: give it an entry of its own in [databases].",
            code="unknown_database",
        )
    if "paused" not in row:
        raise EnvironmentProblem(
            "SHOW DATABASES of this PgBouncer has no column paused", remedy="Use PgBouncer 1.8 or newer."
        )
    servers = [row for row in console.show("SERVERS") if row.get("database") == database]
    pools = [to_plain(pool) for pool in console.show("POOLS") if pool.get("database") == database]
    return Pools(
        database=database,
        version=version,
        paused=_flag(row, "paused"),
        disabled=_flag(row, "disabled"),
        all_paused=_all_paused(console),
        pools=tuple(pools),
        servers=len(servers),
        old_servers=sum(_flag(server, "close_needed") for server in servers),
    )


def _all_paused(console: Console) -> bool:
    """Whether PAUSE without a name holds; versions before 1.22 cannot tell."""
    try:
        rows = console.show("STATE")
    except PoolerError:
        return False
    return any(
        str(row.get("key")).lower() in ("paused", "suspended") and str(row.get("value")).lower() == "yes"
        for row in rows
    )


def _check_admin(console: Console, options: ConnectionOptions) -> None:
    """What a command would say, without one: for check mode.

    :raises PoolerError: the user may only look
    """
    config = {str(row.get("key")): str(row.get("value") or "") for row in console.show("CONFIG")}
    user = options.keywords.get("user", "")
    admins = [name.strip() for name in config.get("admin_users", "").split(",")]
    readers = [name.strip() for name in config.get("stats_users", "").split(",")]
    if config.get("auth_type") != "any" and user in readers and user not in admins:
        raise _refused("act", "admin access needed")


# --- what is asked for -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PoolRequest:
    """``timeout`` in seconds: for PAUSE until the last client has let go, for RECONNECT until the last old server
    connection is closed."""

    database: str
    state: str
    timeout: float = 30.0
    check_mode: bool = False


def console_options(params: t.Mapping[str, t.Any]) -> ConnectionOptions:
    """The console that a task's options describe.

    :raises PlanError: see :meth:`ConnectionOptions.from_params`
    """
    options = ConnectionOptions.from_params(params)
    # libpq would take PGDATABASE, or the name of the user.
    return options if options.keywords.get("dbname") else options.with_database(CONSOLE)


def look(options: ConnectionOptions, database: str) -> Pools:
    """Read only.

    :raises SurefootError: see :func:`act`
    """
    with contextlib.closing(Console(options)) as console:
        return read_pools(console, database, read_version(console, options))


def act(options: ConnectionOptions, request: PoolRequest) -> dict[str, t.Any]:
    """Bring a database of PgBouncer into the state asked for; the task's results, ``evidence`` as objects still.

    A pause that does not come about in time, or is interrupted, is taken back before this raises.

    :raises ConnectionFailed: no answer
    :raises EnvironmentProblem: not a PgBouncer's console
    :raises PlanError: PgBouncer knows no such database
    :raises PoolerError: the user may only look, or it did not come about in time
    :raises Interrupted: a signal, or the playbook's death
    """
    stop = threading.Event()
    return run_interruptible(lambda: _Work(options, request, stop).run(), lambda _reason: stop.set())


class _Work:
    def __init__(self, options: ConnectionOptions, request: PoolRequest, stop: threading.Event) -> None:
        self._options, self._request, self._stop = options, request, stop
        self._started = time.monotonic()

    def run(self) -> dict[str, t.Any]:
        # Opened before anything is paused: the way back must not depend on a connection that is still to be made.
        with contextlib.closing(Console(self._options)) as console:
            version = read_version(console, self._options)
            before = read_pools(console, self._request.database, version)
            if self._request.check_mode:
                _check_admin(console, self._options)
                return self._results(before, self._foresee(before), changed=self._would_change(before))
            do = {PAUSED: self._pause, RESUMED: self._resume, RECONNECTED: self._reconnect}[self._request.state]
            after, changed = do(console, before)
            return self._results(before, after, changed=changed)

    def check_stop(self) -> None:
        """:raises Interrupted: the task was told to stop"""
        if self._stop.is_set():
            raise Interrupted("the task was told to stop")

    # --- pause and resume

    def _pause(self, console: Console, before: Pools) -> tuple[Pools, bool]:
        name = self._request.database
        if before.disabled:
            raise PoolerError(f"PgBouncer's database {name} is disabled", remedy="ENABLE it on the console first.")
        if (before.paused or before.all_paused) and not before.busy:
            return before, False
        deadline = self._started + self._request.timeout
        watch = _PauseWatch(self, console, before)
        try:
            with contextlib.closing(Console(self._options)) as worker:
                worker.command(f"PAUSE {worker.quoted(name)}", deadline, watch)
                # After an earlier WAIT_CLOSE, PgBouncer 1.18 lets PAUSE return at once, with that one's tag.
                while watch.now.busy or not watch.now.paused:
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    watch(returned=True)
                    time.sleep(_POLL)
            after = watch.now
            self.check_stop()  # who asked for it may be gone by now
        except TimeoutError:
            held = self._busy(console, before)
            self._take_back(console, before)
            error = PoolerError(
                f"PgBouncer's database {name} could not be paused within"
                f" {human_duration(self._request.timeout)}: {held}" + ("" if before.paused else "; it is resumed"),
                remedy="Let long transactions end or raise timeout; in session pooling a client lets go only when it"
                " disconnects: stop those clients, or leave the pause out and use state: reconnected after the change.",
                code="pooler_busy",
            )
            error.results = {"evidence_objects": [self._evidence(False, held, before.version)]}
            raise error from None
        except BaseException:
            self._take_back(console, before)
            raise
        return after, not before.paused

    def _busy(self, console: Console, before: Pools) -> str:
        try:
            now = read_pools(console, self._request.database, before.version)
        except SurefootError:
            return "PgBouncer does not say who holds it"
        connections = f"{now.busy} server connection{'s' if now.busy != 1 else ''}"
        return f"clients still hold {connections} ({now.mode or 'unknown'} pooling)"

    def _take_back(self, console: Console, before: Pools) -> None:
        """RESUME, unless somebody else had paused it before."""
        if before.paused:
            return
        resume_if_paused(self._options, self._request.database, console)

    def _resume(self, console: Console, before: Pools) -> tuple[Pools, bool]:
        name = self._request.database
        if before.all_paused:
            raise PoolerError(
                f"all of this PgBouncer is paused, {name} with it", remedy="Run RESUME without a name on its console."
            )
        if not before.paused:
            return before, False
        console.command(f"RESUME {console.quoted(name)}")
        after = read_pools(console, name, before.version)
        if after.paused:
            raise PoolerError(f"PgBouncer's database {name} is paused again", remedy="Find out who pauses it.")
        return after, True

    # --- reconnect

    def _reconnect(self, console: Console, before: Pools) -> tuple[Pools, bool]:
        name = self._request.database
        if not before.servers:
            return before, False
        console.command(f"RECONNECT {console.quoted(name)}")
        with contextlib.suppress(TimeoutError), contextlib.closing(Console(self._options)) as worker:
            worker.command(f"WAIT_CLOSE {worker.quoted(name)}", self._started + self._request.timeout, self.check_stop)
        after = read_pools(console, name, before.version)
        if after.old_servers:
            left = f"{after.old_servers} server connection{'s' if after.old_servers != 1 else ''} from before"
            error = PoolerError(
                f"RECONNECT of {name}: clients still hold {left} after {human_duration(self._request.timeout)}"
                f" ({after.mode or 'unknown'} pooling)",
                remedy="They are closed as soon as their clients let go: in transaction pooling at the end of a"
                " transaction, in session pooling when the client disconnects. Restart those, or raise timeout.",
                code="pooler_busy",
            )
            error.results = {"changed": True, "evidence_objects": [self._evidence(False, left, before.version)]}
            raise error
        return after, True

    # --- results

    def _would_change(self, before: Pools) -> bool:
        paused = before.paused or before.all_paused
        return {PAUSED: not paused, RESUMED: paused, RECONNECTED: bool(before.servers)}[self._request.state]

    def _foresee(self, before: Pools) -> Pools:
        if self._request.state == RECONNECTED:
            return dataclasses.replace(before, servers=0)
        return dataclasses.replace(before, paused=self._request.state == PAUSED)

    def _results(self, before: Pools, after: Pools, *, changed: bool) -> dict[str, t.Any]:
        evidence = []
        if not self._request.check_mode:
            measured = {"paused": after.paused, "servers_busy": after.busy, "servers_to_close": after.old_servers}
            evidence = [self._evidence(True, measured, after.version)]
        shown = [self._shown(pools) for pools in (before, after)]
        return {
            "changed": changed,
            **(before if self._request.check_mode else after).to_dict(),
            "seconds": round(time.monotonic() - self._started, 3),
            "diff": {"before": shown[0], "after": shown[1]},
            "evidence": evidence,
        }

    def _shown(self, pools: Pools) -> dict[str, t.Any]:
        shown: dict[str, t.Any] = {"database": pools.database}
        if self._request.state == RECONNECTED:
            return {**shown, "server_connections_from_before": pools.servers if pools.servers else 0}
        return {**shown, "paused": pools.paused or pools.all_paused}

    def _evidence(self, passed: bool, measured: t.Any, version: str) -> Evidence:
        required = {
            PAUSED: f"paused, no client served, within {human_duration(self._request.timeout)}",
            RESUMED: "not paused",
            RECONNECTED: "no server connection from before is left, within " + human_duration(self._request.timeout),
        }[self._request.state]
        return Evidence(
            criterion=f"pgbouncer.{self._request.state}",
            phase="apply",
            verdict="pass" if passed else "fail",
            measured=measured,
            required=required,
            source=f"SHOW DATABASES, POOLS and SERVERS of PgBouncer {version}",
            details={"subject": self._request.database},
        )


class _PauseWatch:
    """Looks, on the other connection, whether PAUSE still holds: it does not say when somebody else resumes."""

    def __init__(self, work: _Work, console: Console, before: Pools) -> None:
        self._work, self._console, self._next, self._begun = work, console, 0.0, False
        self.now = before

    def __call__(self, returned: bool = False) -> None:
        """:raises Interrupted: the task was told to stop
        :raises PoolerError: it was resumed
        """
        self._work.check_stop()
        if not returned and time.monotonic() < self._next:
            return
        self.now = read_pools(self._console, self.now.database, self.now.version)
        self._next = time.monotonic() + _BETWEEN
        if not self.now.paused and (self._begun or returned):
            raise PoolerError(
                f"PgBouncer's database {self.now.database} was to be paused, and somebody else resumed it",
                remedy="Find out who works on this PgBouncer.",
            )
        self._begun = self._begun or self.now.paused


def resume_if_paused(options: ConnectionOptions, database: str, console: Console | None = None) -> None:
    """RESUME, whatever it takes: over the open console, else over new ones.

    :raises PoolerError: it stays paused; who reads this must act
    """
    how = "IS STILL PAUSED"
    for attempt in range(_LAST_ATTEMPTS):
        if attempt:
            time.sleep(_BETWEEN)
        try:
            with contextlib.ExitStack() as stack:
                if attempt or console is None:
                    console = stack.enter_context(contextlib.closing(Console(options)))
                if not read_pools(console, database, "").paused:
                    return
                with contextlib.suppress(PoolerError):  # somebody was faster
                    console.command(f"RESUME {console.quoted(database)}")
                if not read_pools(console, database, "").paused:
                    return
                how = "IS STILL PAUSED"
        except (ConnectionFailed, TimeoutError):
            how = "may STILL BE PAUSED, for the console does not answer"
        except SurefootError:
            how = "IS STILL PAUSED"
    raise PoolerError(
        f"PgBouncer's database {database} {how}: its clients wait, and it could not be resumed",
        remedy=f'Run RESUME "{database}" on the console now.',
        code="pooler_paused",
    )


def waiting_evidence(found: Pools, longest: float) -> Evidence:
    """Whether clients queue for server connections.

    :param longest: seconds that the first in the queue may have waited
    """
    return Evidence(
        criterion="pgbouncer.clients_waiting",
        phase="apply",
        verdict="pass" if found.longest_wait <= longest else "fail",
        measured={"clients_waiting": found.waiting, "longest_wait_seconds": round(found.longest_wait, 3)},
        required=f"no client waits longer than {human_duration(longest)}",
        source=f"SHOW POOLS of PgBouncer {found.version}",
        details={"subject": found.database},
    )
