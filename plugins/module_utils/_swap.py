# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A restored database takes the place of the live one: the last resort, because writes since the backup are lost.

Everything that changes names, owners, privileges and settings is one transaction. What can be left behind by a run that
was killed are two databases closed for connections, with a mark that says so in the comment of the replacement.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    connect,
    quote_identifier,
    quote_literal,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    Interrupted,
    LockBusy,
    OutcomeUnknown,
    PlanError,
    SqlError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import Manifest, activity
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible

with contextlib.suppress(ImportError):  # require_driver() reports it
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PHASE = "rollback"
MARK = "surefoot swap of database {}: "  # before the comment of the replacement, with the oid of the live one

_SETTINGS = {
    "search_path": "pg_catalog",
    "statement_timeout": "0",
    "lock_timeout": "5s",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_read_only": "off",
}
_MAINTENANCE = ("postgres", "template1")
# object in use (PostgreSQL itself waits 5 s for sessions to go), lock not available, deadlock
_AGAIN = ("55006", "55P03", "40P01")
_POLL = 0.1
_RECONNECT_SECONDS = 30.0
_ORPHAN_SECONDS = 12.0
# Their stored values are lists that are quoted already; pg_dump knows the same ones.
_LISTS = (
    "local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
    "temp_tablespaces", "unix_socket_directories",
)  # fmt: skip


class SwapFailed(SurefootError):
    """The databases could not be exchanged; both are as they were before."""

    code = "swap"


# --- what gets lost --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LostWrites:
    """An upper bound of the rows written since a backup. None: there is none, and ``reason`` says why."""

    at_most: int | None
    reason: str | None = None
    tables: t.Sequence[t.Mapping[str, t.Any]] = ()

    def __str__(self) -> str:
        if self.at_most is None:
            return f"an unknown number of rows written since the backup ({self.reason})"
        return f"at most {self.at_most} rows written since the backup"

    def to_dict(self) -> dict[str, t.Any]:
        return {"at_most": self.at_most, "reason": self.reason, "tables": [dict(table) for table in self.tables]}


_TABLES = """
SELECT c.oid::text AS oid, n.nspname::text AS schema, c.relname::text AS name, c.relfilenode::bigint AS filenode
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
 ORDER BY 2, 3
"""


def lost_writes(connection: Connection, manifest: Manifest | None) -> LostWrites:
    """How many rows were inserted, updated or deleted at most since the backup, by the server's own counters.

    They count what was rolled back too, and some writes that the backup has. A table that was truncated or rewritten
    since counts with all rows the backup has of it. Changes of the schema are not counted.

    :param connection: to the live database
    """
    if manifest is None:
        return LostWrites(None, "no manifest to compare with")
    # Before version 15 counters travel through a collector, which may be half a second behind.
    if connection.server_version < 150000:
        time.sleep(1.0)
    now, then = activity(connection), manifest.data["activity"]
    here = _rows(connection, "SELECT oid::bigint AS oid FROM pg_database WHERE datname = current_database()")[0]["oid"]
    if here != manifest.data["database"]["oid"]:
        return LostWrites(None, f"the backup is of another database, oid {manifest.data['database']['oid']}")
    if not (now["counted"] and then["counted"]):
        return LostWrites(None, "track_counts is off")
    recorded = {str(table["oid"]): table for table in manifest.tables}
    tables: list[dict[str, t.Any]] = []
    restarted = any(now[key] != then[key] for key in ("server_reset", "database_reset"))
    for table in _rows(connection, _TABLES):
        before = recorded.get(table["oid"], {})
        counts = now["written"].get(table["oid"]) or [0, 0, 0]
        changes = [new - old for new, old in zip(counts, before.get("written") or [0, 0, 0])]
        restarted = restarted or min(changes) < 0
        rewritten = before.get("filenode", table["filenode"]) != table["filenode"]
        at_most = sum(changes) + (before.get("rows") or 0 if rewritten else 0)
        if at_most:
            names = ("inserted", "updated", "deleted")
            tables.append(
                {"schema": table["schema"], "name": table["name"], **dict(zip(names, changes)),
                 "rewritten": rewritten, "at_most": at_most}
            )  # fmt: skip
    if restarted:
        return LostWrites(None, "the server's counters began anew since the backup (a crash, a failover or a reset)")
    return LostWrites(sum(table["at_most"] for table in tables), None, tables)


# --- the outcome -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class SwapOutcome:
    """What was done, as the module returns it."""

    changed: bool
    database: str
    kept: str | None = None  # the name the old database has now
    lost: LostWrites | None = None
    terminated: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    carried: list[str] = dataclasses.field(default_factory=list)
    seconds: float | None = None  # for which nobody could connect
    warnings: list[str] = dataclasses.field(default_factory=list)

    def evidence(self) -> list[Evidence]:
        """The writes that were given up."""
        if self.lost is None:
            return []
        known = self.lost.at_most is not None
        return [
            Evidence(
                "rescue.lost_rows", PHASE, "pass" if known else "not_measured",
                self.lost.at_most if known else self.lost.reason, "known, and accepted explicitly",
                "pg_stat_get_tuples_* since the backup, an upper bound",
                details={"database": self.database, "kept": self.kept, "tables": [dict(x) for x in self.lost.tables]},
            )
        ]  # fmt: skip

    def results(self, run_dir: str | None) -> dict[str, t.Any]:
        """The module's results; the evidence is written to the run directory too."""
        return {
            "changed": self.changed,
            "database": self.database,
            "kept": self.kept,
            "lost": self.lost.to_dict() if self.lost else None,
            "terminated": self.terminated,
            "carried": self.carried,
            "seconds_closed": self.seconds,
            "evidence": record(run_dir, self.evidence()),
        }


# --- databases as the server knows them ------------------------------------------------------------------------------

_DATABASE = """
SELECT d.oid::bigint AS oid, d.datname::text AS name, pg_get_userbyid(d.datdba)::text AS owner,
       d.datallowconn AS open, d.datistemplate AS template, d.datconnlimit AS connection_limit,
       shobj_description(d.oid, 'pg_database') AS comment,
       pg_has_role(d.datdba, 'USAGE') AS mine,
       (SELECT coalesce(jsonb_agg(jsonb_build_array(CASE WHEN a.grantee = 0 THEN NULL ELSE pg_get_userbyid(a.grantee)
                 END, pg_get_userbyid(a.grantor), a.privilege_type, a.is_grantable)
                 ORDER BY a.grantor <> d.datdba, a.grantor, a.grantee, a.privilege_type), '[]')
          FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS a) AS acl,
       (SELECT coalesce(jsonb_agg(jsonb_build_array(s.setrole::bigint, split_part(c, '=', 1),
                 encode(sha256(convert_to(c, 'UTF8')), 'hex')) ORDER BY s.setrole, c), '[]')
          FROM pg_db_role_setting AS s, unnest(s.setconfig) AS c
         WHERE s.setdatabase = d.oid) AS settings,
       (SELECT m.datname::text FROM pg_database AS m
         WHERE starts_with(shobj_description(m.oid, 'pg_database'), format(%(mark)s, d.oid)) LIMIT 1) AS closed_for,
       EXISTS (SELECT FROM pg_shseclabel AS l WHERE l.classoid = 'pg_database'::regclass AND l.objoid = d.oid)
         AS labelled,
       (SELECT array_agg(gid ORDER BY gid) FROM pg_prepared_xacts AS p WHERE p.database = d.datname) AS prepared,
       (SELECT array_agg(slot_name::text ORDER BY 1) FROM pg_replication_slots AS r WHERE r.database = d.datname)
         AS slots
  FROM pg_database AS d WHERE d.datname = %(name)s
"""

# Autovacuum has no user; a rename ends it by itself. Of other users' sessions, an ordinary role sees not much more.
_SESSIONS = """
SELECT pid, datname::text AS database, usename::text AS "user", application_name AS application,
       coalesce(host(client_addr), backend_type) AS client, coalesce(state, backend_type, 'state hidden') AS state,
       round(extract(epoch FROM clock_timestamp() - coalesce(xact_start, state_change, backend_start)))::int AS seconds
  FROM pg_stat_activity
 WHERE datid = ANY (%(oids)s::oid[]) AND pid <> ALL (%(own)s::int[]) AND usesysid IS NOT NULL
 ORDER BY pid
"""


@dataclasses.dataclass(frozen=True)
class _Database:
    oid: int
    name: str
    owner: str
    open: bool
    template: bool
    connection_limit: int
    comment: str | None
    mine: bool
    acl: list[list[t.Any]]
    settings: list[list[t.Any]]
    closed_for: str | None  # the replacement of a swap that closed it
    labelled: bool
    prepared: list[str] | None
    slots: list[str] | None


def _rows(connection: Connection, statement: str, parameters: t.Any = None) -> list[dict[str, t.Any]]:
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            if cursor.description is None:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row)) for row in cursor.fetchall()]
    except psycopg2.Error as exc:
        raise sql_error(exc, statement=statement) from None


def _database(connection: Connection, name: str) -> _Database:
    found = _rows(connection, _DATABASE, {"name": name, "mark": MARK.replace("{}", "%s")})
    if not found:
        raise PlanError(f"there is no database {name} on this server", remedy="Check the name; nothing was changed.")
    return _Database(**found[0])


def _describe(sessions: t.Sequence[t.Mapping[str, t.Any]], limit: int = 5) -> str:
    shown = [
        f"process {s['pid']} ({', '.join(filter(None, (s['user'], s['application'] or s['client'], s['state'])))})"
        for s in sessions
    ]
    rest = len(shown) - limit
    return ", ".join(shown[:limit]) + (f" and {rest} more" if rest > 0 else "")


# --- the swap --------------------------------------------------------------------------------------------------------


def kept_name(database: str, now: datetime.datetime | None = None) -> str:
    """The dated name of the old database, at most 63 bytes: ``app_before_20261122t021530z``."""
    stamp = (now or datetime.datetime.now(datetime.timezone.utc)).strftime("_before_%Y%m%dt%H%M%Sz")
    return database.encode()[: 63 - len(stamp)].decode("utf-8", "ignore") + stamp


def swap(
    options: ConnectionOptions,
    *,
    database: str,
    replacement: str,
    accept_loss: bool,
    manifest: Manifest | None = None,
    drain_timeout: float = 30.0,
    rename_timeout: float = 60.0,
    max_lost_rows: int | None = None,
    check_mode: bool = False,
) -> SwapOutcome:
    """Give the name ``database`` to ``replacement``, a restored and verified database on the same server, and keep the
    old one, closed for connections, under :func:`kept_name`.

    :param options: any database of the server; the login must own both databases and have CREATEDB, or be a superuser
    :param accept_loss: must be true: what was written since the backup is not in the replacement
    :param manifest: of the backup the replacement was restored from, for the number of rows lost
    :param drain_timeout: seconds the sessions have to be gone once they were terminated
    :param rename_timeout: seconds for the attempts to rename
    :param max_lost_rows: refuse when more rows may be lost, or when nobody can tell how many
    :raises PlanError: names or permissions do not fit, or the loss was not accepted; nothing was touched
    :raises LockBusy: another swap of this database, or a migration in it, is running
    :raises SwapFailed: sessions did not go, or the rename failed; everything is as it was
    :raises Interrupted: told to stop; everything is as it was
    """
    work = _Swap(
        options, SwapOutcome(False, database), replacement, manifest, accept_loss=accept_loss,
        drain_timeout=drain_timeout, rename_timeout=rename_timeout, max_lost_rows=max_lost_rows,
    )  # fmt: skip
    return run_interruptible(lambda: work.run(check_mode), work.interrupt)


def reopen(options: ConnectionOptions, database: str) -> bool:
    """Let sessions in again after a swap that was killed before it renamed anything; False: it was not closed by one.

    :raises PlanError: there is no such database
    :raises LockBusy: the swap is alive
    """
    with contextlib.closing(_administrator(options, (database,))) as admin:
        _lock(admin, database)
        found = _database(admin, database)
        if found.closed_for:
            _open(admin, found)
        return found.closed_for is not None


def _administrator(options: ConnectionOptions, not_in: t.Sequence[str]) -> Connection:
    """A connection to a database that is not renamed."""
    names = [name for name in _MAINTENANCE if name not in not_in]
    for name in names[:-1]:
        with contextlib.suppress(ConnectionFailed):
            return connect(options.with_database(name), purpose="swap", settings=_SETTINGS)
    if not names:
        raise PlanError("both maintenance databases are named", remedy="Name a database of your own.")
    return connect(options.with_database(names[-1]), purpose="swap", settings=_SETTINGS)


def _lock(admin: Connection, database: str) -> None:
    """:raises LockBusy: another swap of it is alive"""
    # The session of one that was killed lives on until its last statement ends, which lock_timeout bounds.
    deadline = time.monotonic() + _ORPHAN_SECONDS
    key = f"surefoot swap {database}"
    while not _rows(admin, "SELECT pg_try_advisory_lock(hashtextextended(%s, 0)) AS got", (key,))[0]["got"]:
        if time.monotonic() > deadline:
            raise LockBusy(f"another swap of {database} is running", remedy="Wait for it to end.")
        time.sleep(_POLL)


def _open(admin: Connection, live: _Database) -> None:
    """Let sessions in again, and take the mark away."""
    statements = [f"ALTER DATABASE {quote_identifier(live.name, admin)} ALLOW_CONNECTIONS true"]
    if live.closed_for:
        quoted = quote_identifier(live.closed_for, admin)
        comment = str(_database(admin, live.closed_for).comment)[len(MARK.format(live.oid)) :]
        statements.append(f"ALTER DATABASE {quoted} ALLOW_CONNECTIONS true")
        statements.append(f"COMMENT ON DATABASE {quoted} IS {quote_literal(comment, admin) if comment else 'NULL'}")
    _rows(admin, "; ".join(statements))  # one message is one transaction


class _Swap:
    def __init__(
        self,
        options: ConnectionOptions,
        outcome: SwapOutcome,
        replacement: str,
        manifest: Manifest | None,
        *,
        accept_loss: bool,
        drain_timeout: float,
        rename_timeout: float,
        max_lost_rows: int | None,
    ) -> None:
        self._options = options
        self._outcome = outcome
        self._database = outcome.database
        self._replacement = replacement
        self._manifest = manifest
        self._accept_loss = accept_loss
        self._drain_timeout = drain_timeout
        self._rename_timeout = rename_timeout
        self._max_lost_rows = max_lost_rows
        self._reason: str | None = None

    def interrupt(self, reason: str) -> None:
        """Stop at the next step; each takes seconds at most. Once COMMIT was sent, nothing is stopped."""
        self._reason = self._reason or reason

    def _check(self) -> None:
        if self._reason:
            raise Interrupted(self._reason, remedy="Both databases are as they were; run it again.")

    def run(self, check_mode: bool) -> SwapOutcome:
        if self._database == self._replacement:
            raise PlanError("database and replacement are the same", remedy="Name the restored copy as replacement.")
        with contextlib.ExitStack() as stack:
            admin = stack.enter_context(
                contextlib.closing(_administrator(self._options, (self._database, self._replacement)))
            )
            _lock(admin, self._database)
            live = _database(admin, self._database)
            if live.closed_for:
                # An earlier swap was killed. We hold its lock, so it is dead.
                if check_mode:
                    raise SwapFailed(
                        f"an earlier swap left {self._database} closed for connections",
                        remedy="Run it without check mode, which goes on; or open it again (docs/swap.md).",
                    )
                _open(admin, live)
                self._outcome.warnings.append(f"an earlier swap had left {self._database} closed for connections")
            live, new = _database(admin, self._database), _database(admin, self._replacement)
            self._refuse(admin, live, new)
            inside = stack.enter_context(
                contextlib.closing(connect(self._options.with_database(live.name), purpose="swap", settings=_SETTINGS))
            )
            self._judge(lost_writes(inside, self._manifest))
            # Whatever cannot be carried over is found while everybody still works.
            _rows(admin, "BEGIN")
            try:
                self._outcome.carried = _carry_over(admin, live, new)
            finally:
                _rows(admin, "ROLLBACK")
            if not check_mode:
                self._exchange(admin, inside, live, new)
            self._outcome.changed = True
            return self._outcome

    def _refuse(self, admin: Connection, live: _Database, new: _Database) -> None:
        """:raises SurefootError: it cannot work, or would break something"""
        role = _rows(
            admin, "SELECT current_user::text AS name, rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        )[0]
        if live.template or new.template:
            raise PlanError("a template database cannot be swapped", remedy="Name ordinary databases.")
        for one in (live, new):
            if not (role["rolsuper"] or (one.mine and role["rolcreatedb"])):
                raise PlanError(
                    f"the role {role['name']} may not rename {one.name}",
                    remedy="Use its owner with CREATEDB, or a superuser.",
                )
            if not one.open:
                raise PlanError(
                    f"{one.name} is closed for connections, and not by a swap",
                    remedy="Find out who closed it, and why.",
                )
            if one.prepared:
                raise SwapFailed(
                    f"prepared transactions of {one.name} stand in the way: {', '.join(one.prepared)}",
                    remedy="End each with COMMIT PREPARED or ROLLBACK PREPARED; nothing was changed.",
                )
        running = [s for s in self._sessions(admin, [live.oid]) if str(s["application"]).startswith("surefoot:control")]
        if running:
            raise LockBusy(f"a migration of {live.name} is running: {_describe(running)}", remedy="Wait for its end.")
        for kind, found in (("logical replication slots", live.slots), ("security labels", live.labelled)):
            if found:
                names = f" ({', '.join(live.slots or [])})" if kind.startswith("logical") else ""
                self._outcome.warnings.append(f"{kind} of {live.name}{names} are not carried over")

    def _judge(self, lost: LostWrites) -> None:
        """:raises PlanError: that loss was not accepted"""
        self._outcome.lost = lost
        if not self._accept_loss:
            raise PlanError(
                f"replacing {self._database} gives up {lost}",
                remedy="If that is what you want, accept the loss explicitly.",
                details={"lost": lost.to_dict()},
            )
        if self._max_lost_rows is not None and (lost.at_most is None or lost.at_most > self._max_lost_rows):
            raise PlanError(
                f"replacing {self._database} gives up {lost}, the limit is {self._max_lost_rows}",
                remedy="Raise the limit, or save those rows first; both databases are as they were.",
                details={"lost": lost.to_dict()},
            )

    def _sessions(self, admin: Connection, oids: t.Sequence[int], own: t.Sequence[int] = ()) -> list[dict[str, t.Any]]:
        return _rows(admin, _SESSIONS, {"oids": list(oids), "own": list(own)})

    def _exchange(self, admin: Connection, inside: Connection, live: _Database, new: _Database) -> None:
        started = time.monotonic()
        try:
            self._close(admin, live, new)
            self._drain(admin, [live.oid, new.oid], [inside.info.backend_pid])
            # Nobody can write any more, and whoever left has reported what it wrote.
            self._judge(lost_writes(inside, self._manifest))
            inside.close()
            self._rename(admin, live, new)
        except BaseException as exc:
            if not self._settle(admin, live, new):
                if isinstance(exc, SurefootError):
                    exc.results = {"terminated": self._outcome.terminated, **exc.results}
                raise
        self._outcome.seconds = round(time.monotonic() - started, 3)

    def _close(self, admin: Connection, live: _Database, new: _Database) -> None:
        self._check()
        quoted = [quote_identifier(one.name, admin) for one in (live, new)]
        note = quote_literal(MARK.format(live.oid) + (new.comment or ""), admin)
        statements = [f"ALTER DATABASE {name} ALLOW_CONNECTIONS false" for name in quoted]
        statements.append(f"COMMENT ON DATABASE {quoted[1]} IS {note}")
        _rows(admin, "; ".join(statements))

    def _drain(self, admin: Connection, oids: t.Sequence[int], own: t.Sequence[int]) -> None:
        """:raises SwapFailed: sessions are still there"""
        deadline = time.monotonic() + self._drain_timeout
        told = {item["pid"] for item in self._outcome.terminated}
        while True:
            self._check()
            sessions = self._sessions(admin, oids, own)
            if not sessions:
                return
            if time.monotonic() > deadline:
                raise SwapFailed(
                    f"sessions did not end within {self._drain_timeout:g} s: {_describe(sessions)}",
                    remedy="Both databases are as they were; end them (a superuser's can only be ended by one).",
                )
            for session in sessions:
                if session["pid"] not in told:
                    self._outcome.terminated.append(session)
                    told.add(session["pid"])
                with contextlib.suppress(SqlError):  # a superuser's session; named when the time is over
                    _rows(admin, "SELECT pg_terminate_backend(%s)", (session["pid"],))
            time.sleep(_POLL)

    def _rename(self, admin: Connection, live: _Database, new: _Database) -> None:
        deadline = time.monotonic() + self._rename_timeout
        while True:
            self._check()
            kept = kept_name(live.name)
            self._outcome.kept = kept
            quoted = {name: quote_identifier(name, admin) for name in (live.name, new.name, kept)}
            try:
                _rows(admin, "BEGIN")
                _carry_over(admin, live, new)
                for statement in (
                    f"ALTER DATABASE {quoted[live.name]} RENAME TO {quoted[kept]}",
                    f"ALTER DATABASE {quoted[new.name]} RENAME TO {quoted[live.name]}",
                    f"ALTER DATABASE {quoted[live.name]} ALLOW_CONNECTIONS true",
                ):
                    _rows(admin, statement)
                self._check()
                _rows(admin, "COMMIT")
                return
            except SurefootError as exc:
                self._outcome.kept = None
                if admin.closed:
                    raise
                _rows(admin, "ROLLBACK")
                if not isinstance(exc, SqlError) or exc.sqlstate not in _AGAIN:
                    raise
                if time.monotonic() > deadline:
                    raise SwapFailed(
                        f"the databases could not be renamed within {self._rename_timeout:g} s: {exc.message}",
                        remedy="Both databases are as they were; see who uses them (pg_stat_activity, pg_locks).",
                    ) from None
                self._drain(admin, [live.oid, new.oid], [])

    def _settle(self, admin: Connection, live: _Database, new: _Database) -> bool:
        """After a failure: True when the exchange was committed nevertheless; else everything is put back.

        :raises OutcomeUnknown: the server cannot be reached
        """
        pid = admin.info.backend_pid
        admin.close()
        deadline = time.monotonic() + _RECONNECT_SECONDS
        while True:
            try:
                with contextlib.closing(_administrator(self._options, (live.name, new.name))) as fresh:
                    # The transaction of a connection that was lost may still be at work.
                    time.sleep(_POLL)
                    _rows(fresh, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = %s", (pid,))
                    name = _rows(fresh, "SELECT datname::text FROM pg_database WHERE oid = %s", (live.oid,))
                    if name and name[0]["datname"] != live.name:
                        self._outcome.kept = name[0]["datname"]
                        return True
                    _open(fresh, _database(fresh, live.name))
                    return False
            except (SqlError, ConnectionFailed) as exc:
                if time.monotonic() > deadline:
                    raise OutcomeUnknown(
                        f"{live.name} may be closed for connections: {exc.message}",
                        remedy="As soon as the server answers, run it again, or open it (docs/swap.md).",
                    ) from None
                time.sleep(0.5)


# --- what a database has beside its contents -------------------------------------------------------------------------


def _carry_over(admin: Connection, live: _Database, new: _Database) -> list[str]:
    """Give the replacement the live database's owner, privileges, connection limit, settings and comment, where they
    differ; returns what differed. Inside a transaction.

    :raises SurefootError: not possible for this role, or the result differs
    """
    target = quote_identifier(new.name, admin)
    wanted, changed = _database(admin, live.name), []
    if wanted.owner != _database(admin, new.name).owner:
        _rows(admin, f"ALTER DATABASE {target} OWNER TO {quote_identifier(wanted.owner, admin)}")
        changed.append("owner")
    present = _database(admin, new.name)
    if wanted.acl != present.acl:
        _grant_as(admin, target, wanted, present)
        changed.append("privileges")
    if wanted.connection_limit != present.connection_limit:
        _rows(admin, f"ALTER DATABASE {target} CONNECTION LIMIT {wanted.connection_limit}")
        changed.append("connection limit")
    if wanted.settings != present.settings:
        _rows(admin, _settings_statement(admin, live, new))
        changed.append("settings")
    if wanted.comment != present.comment:
        text = "NULL" if wanted.comment is None else quote_literal(wanted.comment, admin)
        _rows(admin, f"COMMENT ON DATABASE {target} IS {text}")
        changed.append("comment")
    result = _database(admin, new.name)
    for field in ("owner", "acl", "connection_limit", "settings", "comment"):
        if getattr(result, field) != getattr(wanted, field):
            raise SwapFailed(
                f"the {field.replace('_', ' ')} of {live.name} cannot be given to {new.name} exactly",
                remedy="Swap as a superuser; both databases are as they were.",
            )
    return changed


def _grant_as(admin: Connection, target: str, wanted: _Database, present: _Database) -> None:
    def role(name: str | None) -> str:
        return "PUBLIC" if name is None else quote_identifier(name, admin)

    for grantee in {entry[0] for entry in present.acl}:
        _rows(admin, f"REVOKE ALL ON DATABASE {target} FROM {role(grantee)} CASCADE")
    pending = list(wanted.acl)
    may_grant: set[tuple[str | None, str]] = set()
    while pending:
        # Who grants must have been granted the right to: the owner has it.
        ready = [entry for entry in pending if entry[1] == wanted.owner or (entry[1], entry[2]) in may_grant]
        if not ready:
            return  # the comparison that follows says so
        for grantee, grantor, privilege, grantable in ready:
            option = " WITH GRANT OPTION" if grantable else ""
            grant = f"GRANT {privilege} ON DATABASE {target} TO {role(grantee)}{option}"
            if grantor != wanted.owner:
                grant = f"SET LOCAL ROLE {role(grantor)}; {grant}; RESET ROLE"
            _rows(admin, grant)
            if grantable:
                may_grant.add((grantee, privilege))
        pending = [entry for entry in pending if entry not in ready]


def _settings_statement(admin: Connection, live: _Database, new: _Database) -> str:
    """One block that copies settings inside the server: values may be secrets, so they are in no statement's text, and
    an error names the setting only. An application's own settings and lists go by FROM CURRENT, for the same reason
    and because lists are stored quoted."""
    source, target, name = str(live.oid), str(new.oid), quote_literal(new.name, admin)
    lists = ", ".join(f"'{item}'" for item in _LISTS)
    return f"""DO $surefoot$
DECLARE item record; target text;
BEGIN
    FOR item IN SELECT r.rolname FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r
        ON r.oid = s.setrole WHERE s.setdatabase = {target}
    LOOP
        EXECUTE CASE WHEN item.rolname IS NULL THEN pg_catalog.format('ALTER DATABASE %I RESET ALL', {name})
            ELSE pg_catalog.format('ALTER ROLE %I IN DATABASE %I RESET ALL', item.rolname, {name}) END;
    END LOOP;
    FOR item IN SELECT r.rolname, pg_catalog.split_part(c, '=', 1) AS name,
            pg_catalog.substr(c, pg_catalog.strpos(c, '=') + 1) AS value
        FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole,
            pg_catalog.unnest(s.setconfig) WITH ORDINALITY AS u(c, n)
        WHERE s.setdatabase = {source} ORDER BY s.setrole, n
    LOOP
        target := CASE WHEN item.rolname IS NULL THEN pg_catalog.format('ALTER DATABASE %I', {name})
            ELSE pg_catalog.format('ALTER ROLE %I IN DATABASE %I', item.rolname, {name}) END;
        BEGIN
            IF item.name IN ({lists}) OR pg_catalog.strpos(item.name, '.') > 0 THEN
                PERFORM pg_catalog.set_config(item.name, item.value, true);
                EXECUTE target || pg_catalog.format(' SET %I FROM CURRENT', item.name);
            ELSE
                EXECUTE target || pg_catalog.format(' SET %I TO %L', item.name, item.value);
            END IF;
        EXCEPTION WHEN OTHERS THEN
            RAISE EXCEPTION USING ERRCODE = SQLSTATE,
                MESSAGE = pg_catalog.format('cannot carry over the setting %s', item.name);
        END;
    END LOOP;
END $surefoot$"""
