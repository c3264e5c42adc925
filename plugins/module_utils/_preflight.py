# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Whether a migration may start: what must be so in the server, measured, before anything is written.

:func:`collect` asks the server (read only, a few set-based queries), :func:`judge` compares with :class:`Wanted`; the
    second is pure. What the role cannot see is "not measured", never "pass": without ``pg_read_all_stats`` the
    statistics views show empty columns.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    connect,
    pooler_reason,
    redact,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    PlanError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence
from ansible_collections.surefoot.dbops.plugins.module_utils._load import NOT_INSTALLED, NOT_LOADED
from ansible_collections.surefoot.dbops.plugins.module_utils._typed_users import KINDS, LISTED
from ansible_collections.surefoot.dbops.plugins.module_utils._typed_users import collect as collect_typed_users
from ansible_collections.surefoot.dbops.plugins.module_utils._typed_users import users as typed_users
from ansible_collections.surefoot.dbops.plugins.module_utils._values import (
    human_duration,
    human_size,
    parse_duration,
    parse_size,
    to_plain,
)

try:
    import psycopg2
    import psycopg2.extensions
except ImportError:  # the edge reports the missing package
    psycopg2 = None  # type: ignore[assignment]

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PHASE = "preflight"
MIN_VERSION, MAX_VERSION = 14, 18
PINGS = 3

# A failing verdict of these is a warning unless the caller requires it: each can be right for a given server.
ADVISORY = ("preflight.event_triggers", "preflight.role_settings", "preflight.server_logging", "preflight.tls")

CRITERIA = (
    "preflight.blockers",
    "preflight.connection",
    "preflight.connections",
    "preflight.create_on_schema",
    "preflight.disk_backup",
    "preflight.disk_server",
    "preflight.event_triggers",
    "preflight.extensions",
    "preflight.idle_in_transaction",
    "preflight.ledger",
    "preflight.lock_table",
    "preflight.long_transactions",
    "preflight.pg_monitor",
    "preflight.pooler",
    "preflight.prepared_transactions",
    "preflight.primary",
    "preflight.publications",
    "preflight.relations_exist",
    "preflight.replica_lag",
    "preflight.replication_slots",
    "preflight.role_settings",
    "preflight.server_logging",
    "preflight.server_version",
    "preflight.subscriptions",
    "preflight.synchronous_standby",
    "preflight.table_ownership",
    "preflight.tls",
    "preflight.typed_users",
    "preflight.wraparound",
    "preflight.writable",
)

_STARTUP = {"statement_timeout": "30s", "lock_timeout": "5s"}
_NAME_PART = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_RELATION_NAME = re.compile(rf"(?:({_NAME_PART})\.)?({_NAME_PART})")
# Settings of a role or database that can end or hinder a session nobody thinks of as theirs.
_HINDERING = (
    "default_transaction_isolation",
    "default_transaction_read_only",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "lock_timeout",
    "role",
    "session_replication_role",
    "statement_timeout",
    "transaction_timeout",
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is required. Durations in seconds, sizes in bytes, the saturation in percent of ``max_connections``."""

    schemas: t.Sequence[str] = ()
    tables: t.Sequence[str] = ()
    extensions: t.Sequence[str] = ()
    relations_exist: t.Sequence[str] = ()
    # table, column and to of each column that gets another type
    type_changes: t.Sequence[t.Mapping[str, str]] = ()
    ledger_schema: str = "surefoot"
    max_latency: float = 1.0
    min_free_connections: int = 5
    max_pool_saturation: float = 90.0
    max_transaction_age: float = 300.0
    max_idle_in_transaction: float = 60.0
    max_lock_age: float = 10.0
    max_replica_lag: float = 30.0
    max_replica_lag_size: int = 64 * 2**20
    max_retained_wal: int = 2**30
    backup_dir: str | None = None
    backup_size_factor: float = 1.0
    database_free_space: int | None = None

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any]) -> Wanted:
        """From module options of the same names, durations and sizes as text.

        :raises PlanError: a duration, a size or a name is none
        """
        free = params["database_free_space"]
        for name in (*params["tables"], *params["relations_exist"]):
            relation_name(name)
        for change in params["type_changes"]:
            if relation_name(change["table"])[0] is None:
                raise PlanError(f"{change['table']!r} in type_changes has no schema", remedy="Write schema.table.")
        return cls(
            schemas=params["schemas"],
            tables=params["tables"],
            extensions=params["extensions"],
            relations_exist=params["relations_exist"],
            type_changes=params["type_changes"],
            ledger_schema=params["ledger_schema"],
            min_free_connections=params["min_free_connections"],
            max_pool_saturation=params["max_pool_saturation"],
            backup_dir=params["backup_dir"],
            backup_size_factor=params["backup_size_factor"],
            max_latency=parse_duration(params["max_latency"]),
            max_transaction_age=parse_duration(params["max_transaction_age"]),
            max_idle_in_transaction=parse_duration(params["max_idle_in_transaction"]),
            max_lock_age=parse_duration(params["max_lock_age"]),
            max_replica_lag=parse_duration(params["max_replica_lag"]),
            max_replica_lag_size=parse_size(params["max_replica_lag_size"]),
            max_retained_wal=parse_size(params["max_retained_wal"]),
            database_free_space=None if free is None else parse_size(free),
        )


@dataclasses.dataclass(frozen=True)
class Finding:
    """One criterion's outcome. ``verdict`` as in :class:`Evidence`; ``summary`` is what was measured as words,
    ``required`` likewise."""

    criterion: str
    verdict: str
    measured: t.Any
    summary: str
    required: str
    source: str
    remedy: str = ""
    details: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)

    def evidence(self, run_id: str | None = None) -> Evidence:
        details: dict[str, t.Any] = {"summary": redact(self.summary), **self.details}
        if self.verdict == "fail":
            details["remedy"] = self.remedy
        if run_id:
            details["run_id"] = run_id
        return Evidence(self.criterion, PHASE, self.verdict, self.measured, self.required, self.source, details=details)

    def line(self) -> str:
        """``long_transactions: measured ..., required .... What to do``."""
        name = self.criterion.rpartition(".")[2]
        text = (
            f"{name}: {'not measured, ' if self.verdict == 'not_measured' else ''}{redact(self.summary)}; required:"
            f" {self.required}."
        )
        return f"{text} {self.remedy}" if self.remedy else text

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "criterion": self.criterion,
            "verdict": self.verdict,
            "measured": to_plain(self.measured),
            "required": self.required,
            "remedy": self.remedy,
            "message": self.line(),
        }


@dataclasses.dataclass
class Report:
    """Every finding, in the order of :data:`CRITERIA`, and facts about the server."""

    findings: list[Finding]
    server: dict[str, t.Any]

    def failures(
        self, required: t.Sequence[str] = (), optional: t.Sequence[str] = ()
    ) -> tuple[list[Finding], list[Finding]]:
        """What stops the run, and what only deserves a warning.

        A failing criterion stops it unless it is optional (by the caller or by :data:`ADVISORY`); one the caller
        requires stops it also when it could not be measured.

        :raises PlanError: a criterion that does not exist
        """
        must = {criterion_name(item) for item in required}
        may = ({criterion_name(item) for item in optional} | set(ADVISORY)) - must
        stopping: list[Finding] = []
        warning: list[Finding] = []
        for finding in self.findings:
            if finding.verdict == "fail":
                (warning if finding.criterion in may else stopping).append(finding)
            elif finding.verdict == "not_measured" and finding.criterion in must:
                stopping.append(finding)
        return stopping, warning

    def evidence(self, run_id: str | None = None) -> list[Evidence]:
        return [finding.evidence(run_id) for finding in self.findings]


def criterion_name(name: str) -> str:
    """The full identifier of ``long_transactions`` or ``preflight.long_transactions``.

    :raises PlanError: there is no such criterion
    """
    full = name if name.startswith(PHASE + ".") else f"{PHASE}.{name}"
    if full not in CRITERIA:
        raise PlanError(
            f"there is no preflight criterion {name!r}",
            remedy="Criteria are " + ", ".join(criterion.rpartition(".")[2] for criterion in CRITERIA) + ".",
        )
    return full


def failed(stopping: t.Sequence[Finding]) -> VerificationFailed:
    """The error of a preflight that must not go on: one line that names each criterion."""
    word = "criterion is" if len(stopping) == 1 else "criteria are"
    return VerificationFailed(
        f"preflight: {len(stopping)} {word} not met: " + " | ".join(finding.line() for finding in stopping),
        code="preflight",
    )


def relation_name(text: str) -> tuple[str | None, str]:
    """Schema (None when not given) and name of a relation, as SQL reads them: unquoted names in lower case.

    :raises PlanError: not a name
    """
    match = _RELATION_NAME.fullmatch(text.strip())
    if not match:
        raise PlanError(
            f"{text!r} is not the name of a relation",
            remedy='Write schema.name, or "Schema"."Name" to keep upper case.',
        )
    schema, name = match.groups()
    return (_unquoted(schema) if schema else None), _unquoted(name)


def _unquoted(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()


# --- measuring --------------------------------------------------------------------------------------------------------


def preflight(options: ConnectionOptions, wanted: Wanted) -> Report:
    """Connect, measure, judge.

    :raises ConnectionFailed: no connection; :func:`unreachable` makes evidence of it
    :raises SqlError: the server refused a query
    :raises PlanError: a name among the options is none
    """
    for name in (*wanted.tables, *wanted.relations_exist):
        relation_name(name)
    begin = time.monotonic()
    connection = connect(options, purpose=PHASE, settings=_STARTUP)
    connected = time.monotonic() - begin
    pooler: dict[str, t.Any] | None = None
    try:
        pooler = pooler_facts(connection, _STARTUP)
        facts = collect(connection, wanted, pooler)
        facts["connection"]["connect_seconds"] = connected
        facts["connection"]["ssl_mode"] = options.keywords.get("sslmode")
    except psycopg2.Error as exc:
        if pooler is not None and pooler_finding(pooler).verdict == "fail":
            found = pooler_finding(pooler)
            raise ConnectionFailed(
                f"{options.label} leads through a connection pooler: {found.summary}",
                remedy=found.remedy,
                code="pooler",
            ) from None
        if connection.closed:
            raise ConnectionFailed(
                f"the connection broke while measuring: {redact(' '.join(str(exc).split()))}",
                remedy="Run again; if it happens again, see the server log and the network in between.",
            ) from None
        raise sql_error(exc, remedy="See the server log.") from None
    finally:
        connection.close()
    return Report(judge(facts, wanted), server_facts(facts))


def unreachable(exc: ConnectionFailed) -> Evidence:
    """A connection that could not be made, as evidence."""
    pooled = exc.code == "pooler" or "startup parameter" in exc.message
    return Evidence(
        "preflight.pooler" if pooled else "preflight.connection",
        PHASE,
        "fail",
        redact(exc.message),
        "a direct connection" if pooled else "a connection",
        "libpq",
        details={"remedy": exc.remedy},
    )


def pooler_facts(connection: Connection, settings: t.Mapping[str, str] | None = None) -> dict[str, t.Any]:
    """What tells a pooler from a server: the process that answered the login and those that run statements, startup
    settings that got lost, and whether a session's setting is still there in the next statement. Leaves the session as
    it was; autocommit only.

    :param settings: startup settings of the connection, in the spelling ``current_setting`` returns
    """
    facts: dict[str, t.Any] = {"reason": pooler_reason(connection, settings), "pids": [], "kept": True, "seconds": []}
    with connection.cursor() as cursor:
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        cursor.execute("SELECT pg_catalog.set_config('surefoot.probe', %s, false)", (mark,))
        for _ping in range(PINGS):
            begin = time.monotonic()
            cursor.execute("SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('surefoot.probe', true)")
            pid, seen = cursor.fetchone() or (None, None)
            facts["seconds"].append(time.monotonic() - begin)
            facts["pids"].append(pid)
            facts["kept"] = facts["kept"] and seen == mark
        cursor.execute("SELECT pg_catalog.set_config('surefoot.probe', '', false)")
    return facts


def pooler_finding(facts: t.Mapping[str, t.Any]) -> Finding:
    """The verdict on :func:`pooler_facts`."""
    reason = facts["reason"]
    if not reason and len(set(facts["pids"])) > 1:
        reason = f"statements of one session ran in {len(set(facts['pids']))} server processes"
    if not reason and not facts["kept"]:
        reason = "a setting of the session was gone in the next statement"
    return Finding(
        "preflight.pooler",
        "fail" if reason else "pass",
        reason or "direct",
        reason or "direct connection",
        "a direct connection to one server process",
        "backend_pid of libpq, pg_backend_pid(), startup settings, set_config",
        "Give the server's direct address instead of the pooler's; advisory locks and session settings do not survive"
        " a pooler.",
    )


def pooler_evidence(connection: Connection, settings: t.Mapping[str, str] | None = None) -> Evidence:
    """:func:`pooler_facts` judged, as evidence ``preflight.pooler``."""
    return pooler_finding(pooler_facts(connection, settings)).evidence()


def collect(connection: Connection, wanted: Wanted, pooler: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Everything :func:`judge` needs, asked of the server in one read-only transaction.

    :param connection: autocommit
    :param pooler: :func:`pooler_facts` of the connection
    :raises psycopg2.Error: the server refused a query
    """
    info = connection.info
    facts: dict[str, t.Any] = {
        "pooler": pooler,
        "connection": {
            "seconds": pooler["seconds"],
            "host": info.host or "",
            "tls": bool(info.ssl_in_use),
            "protocol": info.ssl_attribute("protocol") if info.ssl_in_use else None,
            "cipher": info.ssl_attribute("cipher") if info.ssl_in_use else None,
        },
    }
    with connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        try:
            facts["server"] = _row(cursor, _SERVER, {"ledger": wanted.ledger_schema})
            facts["schemas"] = _rows(cursor, _SCHEMAS, {"names": list(wanted.schemas)})
            tables = [relation_name(name) for name in wanted.tables]
            facts["tables"] = _relations(cursor, tables, wanted.tables)
            facts["relations"] = _relations(
                cursor, [relation_name(name) for name in wanted.relations_exist], wanted.relations_exist
            )
            if not tables and wanted.schemas:
                facts["touched"] = _rows(cursor, _TABLES_OF_SCHEMAS, {"names": list(wanted.schemas)})
            else:
                facts["touched"] = [row for row in facts["tables"] if row["oid"] is not None]
            facts["extensions"] = (
                _rows(cursor, _EXTENSIONS, {"names": list(wanted.extensions)}) if wanted.extensions else []
            )
            facts["sessions"] = _rows(cursor, _SESSIONS)
            facts["prepared"] = _rows(cursor, _PREPARED)
            oids = {"oids": [row["oid"] for row in facts["touched"]]}
            facts["locks"] = _rows(cursor, _LOCKS, oids) if facts["touched"] else []
            facts["publications"] = _rows(cursor, _PUBLICATIONS, oids) if facts["touched"] else []
            facts["subscriptions"] = _rows(cursor, _SUBSCRIPTIONS, oids) if facts["touched"] else []
            facts["vacuums"] = _rows(cursor, _VACUUMS)
            facts["slots"] = _rows(cursor, _SLOTS)
            facts["replicas"] = _rows(cursor, _REPLICAS)
            facts["settings"] = _rows(cursor, _SETTINGS)
            facts["event_triggers"] = _rows(cursor, _EVENT_TRIGGERS)
            changes = []
            for change in wanted.type_changes:
                schema, table = relation_name(change["table"])
                changes.append({"schema": schema, "table": table, "column": change["column"], "to": change["to"]})
            facts["typed_users"] = collect_typed_users(cursor, changes)
            # Not inside another query: permission to execute is checked even for a branch that is never reached.
            facts["identity"] = (
                _row(cursor, "SELECT system_identifier::text AS system_identifier FROM pg_catalog.pg_control_system()")
                if facts["server"]["sees_control_system"]
                else {}
            )
            if facts["server"]["sees_control_checkpoint"]:
                facts["identity"].update(
                    _row(cursor, "SELECT timeline_id AS timeline FROM pg_catalog.pg_control_checkpoint()")
                )
        finally:
            if not connection.closed:
                cursor.execute("ROLLBACK")
    facts["backup_room"] = _room(wanted.backup_dir) if wanted.backup_dir else None
    return facts


def server_facts(facts: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What a report says about the server."""
    server = facts["server"]
    return {
        "version": server["version"],
        "version_num": server["version_num"],
        "database": server["database"],
        "database_oid": server["database_oid"],
        "database_size": server["database_size"],
        "user": server["user"],
        "session_user": server["session_user"],
        "superuser": server["superuser"],
        "encoding": server["encoding"],
        "system_identifier": facts["identity"].get("system_identifier"),
        "timeline": facts["identity"].get("timeline"),
    }


def _rows(cursor: t.Any, query: str, parameters: t.Mapping[str, t.Any] | None = None) -> list[dict[str, t.Any]]:
    cursor.execute(query, parameters or {})
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor.fetchall()]


def _row(cursor: t.Any, query: str, parameters: t.Mapping[str, t.Any] | None = None) -> dict[str, t.Any]:
    return _rows(cursor, query, parameters)[0]


def _relations(
    cursor: t.Any, names: t.Sequence[tuple[str | None, str]], texts: t.Sequence[str]
) -> list[dict[str, t.Any]]:
    if not names:
        return []
    return _rows(
        cursor,
        _RELATIONS,
        {
            "texts": list(texts),
            "schemas": [schema for schema, _name in names],
            "names": [name for _schema, name in names],
        },
    )


def _room(path: str) -> dict[str, t.Any]:
    """Free bytes, for an ordinary user, of the file system ``path`` lies on or would lie on."""
    there = os.path.abspath(path)
    while not os.path.exists(there):
        there = os.path.dirname(there)
    try:
        status = os.statvfs(there)
        return {"free": status.f_bavail * status.f_frsize, "at": there, "writable": os.access(there, os.W_OK | os.X_OK)}
    except OSError as exc:
        return {"free": None, "at": there, "writable": False, "error": exc.strerror}


_SERVER = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS version_num,
    current_database()::text AS database, d.oid::bigint AS database_oid, current_user::text AS "user",
        session_user::text AS session_user,
    pg_encoding_to_char(d.encoding) AS encoding, pg_is_in_recovery() AS in_recovery,
    current_setting('default_transaction_read_only') AS default_read_only,
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_statistics, pg_has_role(current_user, 'pg_monitor',
        'USAGE') AS monitor,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
    (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS session_superuser,
    (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user) AS role_limit,
    (SELECT count(*) FROM pg_stat_get_activity(NULL) AS s WHERE s.usesysid = (SELECT oid FROM pg_roles
        WHERE rolname = session_user))
        AS role_used,
    EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_use_reserved_connections' AND pg_has_role(session_user, oid,
        'USAGE')) AS uses_reserved,
    d.datconnlimit AS database_limit, (SELECT numbackends FROM pg_stat_database WHERE datid = d.oid) AS database_used,
    (SELECT coalesce(sum(numbackends), 0)::int FROM pg_stat_database) AS used,
    current_setting('max_connections')::int AS max_connections,
    current_setting('superuser_reserved_connections')::int AS superuser_reserved,
    coalesce(current_setting('reserved_connections', true), '0')::int AS reserved,
    has_database_privilege(d.oid, 'CREATE') AS may_create_schema,
    (SELECT n.nspname FROM pg_namespace AS n WHERE n.nspname = %(ledger)s) AS ledger,
    (SELECT pg_get_userbyid(n.nspowner)::text FROM pg_namespace AS n WHERE n.nspname = %(ledger)s) AS ledger_owner,
    (SELECT has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE') FROM pg_namespace AS n
        WHERE n.nspname = %(ledger)s) AS ledger_create,
    (SELECT array_agg(c.relname::text ORDER BY c.relname) FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %(ledger)s AND c.relkind = 'r' AND has_schema_privilege(n.oid, 'USAGE')
        AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
            AND has_table_privilege(c.oid, 'UPDATE')))
        AS ledger_denied,
    (SELECT count(*)::int FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %(ledger)s
        AND c.relkind = 'r') AS ledger_tables,
    pg_database_size(d.oid)::bigint AS database_size, age(d.datfrozenxid) AS database_age,
    current_setting('autovacuum_freeze_max_age')::bigint AS freeze_max_age,
    current_setting('synchronous_commit') AS synchronous_commit, current_setting('synchronous_standby_names') AS
        synchronous_standby_names,
    current_setting('max_locks_per_transaction')::int * (current_setting('max_connections')::int
        + current_setting('max_prepared_transactions')::int) AS lock_slots,
    (SELECT count(*)::int FROM pg_class WHERE relkind IN ('r', 'p', 'S', 'm', 'v', 'f')
        AND relnamespace <> 'pg_catalog'::regnamespace
        AND relnamespace <> 'information_schema'::regnamespace AND relpersistence <> 't') AS lockable,
    current_setting('log_statement') AS log_statement, current_setting('log_min_duration_statement') AS
        log_min_duration_statement,
    current_setting('log_min_duration_sample') AS log_min_duration_sample, current_setting('pgaudit.log',
        true) AS pgaudit_log,
    current_setting('auto_explain.log_min_duration', true) AS auto_explain_log_min_duration,
    has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') AS sees_control_system,
    has_function_privilege('pg_catalog.pg_control_checkpoint()', 'EXECUTE') AS sees_control_checkpoint
FROM pg_database AS d WHERE d.datname = current_database()
"""

_SCHEMAS = """
SELECT w.name, n.oid IS NOT NULL AS found, has_schema_privilege(n.oid, 'CREATE') AS may_create,
    has_schema_privilege(n.oid, 'USAGE') AS may_use,
    pg_get_userbyid(n.nspowner)::text AS owner
FROM unnest(%(names)s::text[]) AS w (name) LEFT JOIN pg_namespace AS n ON n.nspname = w.name ORDER BY w.name
"""

_RELATIONS = """
SELECT w.text AS name, c.oid::bigint AS oid, c.relkind::text AS kind, pg_get_userbyid(c.relowner)::text AS owner,
    pg_has_role(current_user, c.relowner, 'USAGE') AS owned
FROM unnest(%(texts)s::text[], %(schemas)s::text[], %(names)s::text[]) WITH ORDINALITY AS w (text, schema, name, place)
LEFT JOIN LATERAL (
    SELECT r.oid, r.relkind, r.relowner FROM pg_class AS r JOIN pg_namespace AS n ON n.oid = r.relnamespace
    WHERE r.relname = w.name AND r.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        AND CASE WHEN w.schema IS NULL THEN n.nspname = ANY (current_schemas(true)) ELSE n.nspname = w.schema END
    ORDER BY array_position(current_schemas(true), n.nspname) LIMIT 1) AS c ON true ORDER BY w.place
"""

_TABLES_OF_SCHEMAS = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, c.oid::bigint AS oid FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY (%(names)s::text[])
    ORDER BY 1
"""

_EXTENSIONS = """
SELECT w.name, e.extversion AS installed, n.nspname::text AS schema, a.default_version AS available,
    v.superuser AS needs_superuser,
    v.trusted AS trusted
FROM unnest(%(names)s::text[]) AS w (name) LEFT JOIN pg_extension AS e ON e.extname = w.name
LEFT JOIN pg_namespace AS n ON n.oid = e.extnamespace LEFT JOIN pg_available_extensions AS a ON a.name = w.name
LEFT JOIN pg_available_extension_versions AS v ON v.name = w.name AND v.version = a.default_version ORDER BY w.name
"""

# Ages from clock_timestamp(): the transaction's own now() is as old as the transaction.
_SESSIONS = """
SELECT a.pid, a.usename::text AS "user", a.application_name, a.state, a.backend_type, a.wait_event_type,
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS transaction_age,
    extract(epoch FROM clock_timestamp() - a.state_change)::float8 AS state_age
FROM pg_stat_activity AS a WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
    AND coalesce(a.backend_type, '') NOT IN ('autovacuum worker', 'walsender') ORDER BY a.xact_start NULLS LAST, a.pid
"""

_PREPARED = """
SELECT gid, owner::text AS owner, extract(epoch FROM clock_timestamp() - prepared)::float8 AS age FROM pg_prepared_xacts
WHERE database = current_database() ORDER BY prepared
"""

_LOCKS = """
SELECT n.nspname || '.' || c.relname AS relation, l.mode, l.granted, l.pid, a.usename::text AS "user",
    a.application_name, a.state,
    a.backend_type, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age,
    a.backend_type = 'autovacuum worker' AND a.query LIKE '%%(to prevent wraparound)' AS wraparound,
    CASE WHEN l.granted THEN '{}'::int[] ELSE pg_blocking_pids(l.pid) END AS blocked_by
FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.relation = ANY (%(oids)s::oid[]) AND l.pid IS DISTINCT FROM pg_backend_pid() ORDER BY 1, l.granted DESC, l.pid
"""

_PUBLICATIONS = """
SELECT p.pubname::text AS publication, quote_ident(p.schemaname) || '.' || quote_ident(p.tablename) AS "table",
    c.relreplident::text AS identity,
    EXISTS (SELECT FROM pg_index AS x WHERE x.indrelid = c.oid AND x.indisprimary) AS has_key
FROM pg_publication_tables AS p JOIN pg_namespace AS n ON n.nspname = p.schemaname
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename WHERE c.oid = ANY (%(oids)s::oid[]) ORDER BY 1,
    2
"""

_SUBSCRIPTIONS = """
SELECT s.subname::text AS subscription, r.srrelid::regclass::text AS "table" FROM pg_subscription_rel AS r
JOIN pg_subscription AS s ON s.oid = r.srsubid WHERE r.srrelid = ANY (%(oids)s::oid[]) ORDER BY 1, 2
"""

_VACUUMS = """
SELECT a.pid, v.relid::bigint AS relid, v.relid::regclass::text AS "table",
    a.query LIKE '%%(to prevent wraparound)' AS wraparound, v.phase
FROM pg_stat_progress_vacuum AS v JOIN pg_stat_activity AS a ON a.pid = v.pid WHERE v.datname = current_database()
    ORDER BY a.pid
"""

_SLOTS = """
SELECT slot_name::text AS slot, slot_type AS type, database = current_database() AS here, active, wal_status,
    pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
        restart_lsn)::bigint AS retained
FROM pg_replication_slots ORDER BY 1
"""

_REPLICAS = """
SELECT pid, application_name, state, sync_state, extract(epoch FROM replay_lag)::float8 AS lag_seconds,
    pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
        replay_lsn)::bigint AS lag_bytes
FROM pg_stat_replication ORDER BY pid
"""

_SETTINGS = """
SELECT split_part(c, '=', 1) AS name, substr(c, strpos(c, '=') + 1) AS value,
    CASE WHEN s.setrole = 0 THEN 'database' WHEN s.setdatabase = 0 THEN 'role' ELSE 'role in database' END AS level
FROM pg_db_role_setting AS s, LATERAL unnest(s.setconfig) AS c
WHERE (s.setdatabase = 0 OR s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND (s.setrole = 0 OR s.setrole = (SELECT oid FROM pg_roles WHERE rolname = session_user)) ORDER BY 1, 3
"""

_EVENT_TRIGGERS = """
SELECT evtname::text AS name, evtevent::text AS event, evtfoid::regproc::text AS function FROM pg_event_trigger
    WHERE evtenabled IN ('O', 'A')
ORDER BY 1
"""


# --- judging ----------------------------------------------------------------------------------------------------------

_STATISTICS = "needs pg_read_all_stats (part of pg_monitor)"
_GRANT_MONITOR = "GRANT pg_monitor TO {user};"


def judge(facts: t.Mapping[str, t.Any], wanted: Wanted) -> list[Finding]:
    """One finding for each of :data:`CRITERIA`, from the facts alone."""
    judges: tuple[t.Callable[[t.Mapping[str, t.Any], Wanted], Finding], ...] = (
        _connection,
        _tls,
        lambda facts, wanted: pooler_finding(facts["pooler"]),
        _server_version,
        _primary,
        _writable,
        _ledger,
        _create_on_schema,
        _table_ownership,
        _relations_exist,
        _extensions,
        _pg_monitor,
        _connections,
        _long_transactions,
        _idle_in_transaction,
        _prepared_transactions,
        _blockers,
        _wraparound,
        _publications,
        _subscriptions,
        _replication_slots,
        _replica_lag,
        _synchronous_standby,
        _disk_backup,
        _disk_server,
        _lock_table,
        _role_settings,
        _event_triggers,
        _server_logging,
        _typed_users,
    )
    return sorted((one(facts, wanted) for one in judges), key=lambda finding: CRITERIA.index(finding.criterion))


def _verdict(passed: bool) -> str:
    return "pass" if passed else "fail"


def _listing(items: t.Sequence[str], limit: int = 3) -> str:
    rest = len(items) - limit
    return "; ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _grant_monitor(facts: t.Mapping[str, t.Any]) -> str:
    return _GRANT_MONITOR.format(user=_identifier(facts["server"]["user"]))


def _identifier(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def _connection(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    seconds = facts["connection"]["seconds"]
    slowest = max(seconds)
    return Finding(
        "preflight.connection",
        _verdict(slowest <= wanted.max_latency),
        {"slowest_seconds": round(slowest, 6), "pings": len(seconds)},
        f"{len(seconds)} pings answered, the slowest in {human_duration(slowest)}",
        f"{PINGS} pings answered, each within {human_duration(wanted.max_latency)}",
        "SELECT pg_backend_pid()",
        "Run from a host nearer to the server, or wait until the network is stable.",
        {"connect_seconds": facts["connection"].get("connect_seconds")},
    )


def _tls(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    connection = facts["connection"]
    host, used = connection["host"], connection["tls"]
    local = host.startswith(("/", "@")) or host in ("", "localhost", "127.0.0.1", "::1")
    summary = f"{connection['protocol']} ({connection['cipher']})" if used else "no TLS"
    return Finding(
        "preflight.tls",
        "pass" if used else "not_applicable" if local else "fail",
        {"tls": used, "protocol": connection["protocol"], "local": local},
        summary + (" on a local connection" if local and not used else ""),
        "TLS, except on a local connection",
        "libpq",
        "Set ssl_mode: verify-full and ca_cert.",
        {"ssl_mode": connection.get("ssl_mode")},
    )


def _server_version(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    major = facts["server"]["version_num"] // 10000
    details = {"note": f"newer than {MAX_VERSION}, the newest that was tested"} if major > MAX_VERSION else {}
    return Finding(
        "preflight.server_version",
        _verdict(major >= MIN_VERSION),
        facts["server"]["version"],
        f"PostgreSQL {facts['server']['version']}",
        f"PostgreSQL {MIN_VERSION} to {MAX_VERSION}",
        "server_version_num",
        f"Upgrade the server: PostgreSQL {MIN_VERSION} is the oldest supported.",
        details,
    )


def _primary(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    standby = facts["server"]["in_recovery"]
    return Finding(
        "preflight.primary",
        _verdict(not standby),
        "standby" if standby else "primary",
        "a standby" if standby else "the primary",
        "the primary server",
        "pg_is_in_recovery()",
        "Connect to the primary (connect_params: {target_session_attrs: read-write} with several hosts).",
    )


def _writable(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    value = facts["server"]["default_read_only"]
    where = [row["level"] for row in facts["settings"] if row["name"] == "default_transaction_read_only"]
    return Finding(
        "preflight.writable",
        _verdict(value == "off"),
        {"default_transaction_read_only": value},
        f"default_transaction_read_only is {value}" + (f" (set for the {', '.join(where)})" if where else ""),
        "default_transaction_read_only off",
        "current_setting",
        "ALTER ROLE ... or ALTER DATABASE ... RESET default_transaction_read_only; or ask whether the server is"
        " read-only for a reason.",
    )


def _ledger(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    server = facts["server"]
    name, user = wanted.ledger_schema, _identifier(server["user"])
    if server["ledger"] is None:
        passed = server["may_create_schema"]
        summary = f"schema {name} does not exist and the role " + (
            "may create it" if passed else "may not create schemas"
        )
        remedy = (
            f"GRANT CREATE ON DATABASE {_identifier(server['database'])} TO {user}; or have an administrator run"
            f" CREATE SCHEMA {_identifier(name)} AUTHORIZATION {user};"
        )
    else:
        denied = server["ledger_denied"] or []
        # An empty schema still has to be filled.
        passed = not denied and server["ledger_create"]
        summary = f"schema {name} exists with {server['ledger_tables']} tables, owner {server['ledger_owner']}"
        if denied:
            summary += f"; the role may not read and write {', '.join(denied)}"
        elif not passed:
            summary += "; the role lacks USAGE or CREATE on it"
        remedy = (
            f"Run as {server['ledger_owner']} (session_role), or ALTER SCHEMA {_identifier(name)} OWNER TO"
            f" {user}; and its tables."
        )
    return Finding(
        "preflight.ledger",
        _verdict(bool(passed)),
        {"exists": server["ledger"] is not None, "owner": server["ledger_owner"], "tables": server["ledger_tables"]},
        summary,
        "the ledger's schema can be written, or created",
        "pg_namespace, has_schema_privilege, has_table_privilege",
        remedy,
    )


def _create_on_schema(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    server = facts["server"]
    bad: list[str] = []
    grants: list[str] = []
    user = _identifier(server["user"])
    for row in facts["schemas"]:
        if not row["found"]:
            if not server["may_create_schema"]:
                bad.append(f"{row['name']} does not exist and the role may not create schemas")
                grants.append(f"GRANT CREATE ON DATABASE {_identifier(server['database'])} TO {user};")
        elif not (row["may_create"] and row["may_use"]):
            bad.append(f"no CREATE on {row['name']} (owner {row['owner']})")
            grants.append(f"GRANT USAGE, CREATE ON SCHEMA {_identifier(row['name'])} TO {user};")
    return Finding(
        "preflight.create_on_schema",
        "not_applicable" if not facts["schemas"] else _verdict(not bad),
        {
            row["name"]: "missing" if not row["found"] else bool(row["may_create"] and row["may_use"])
            for row in facts["schemas"]
        },
        _listing(bad)
        if bad
        else f"CREATE on {len(facts['schemas'])} schemas"
        if facts["schemas"]
        else "no schemas named",
        "CREATE and USAGE on every schema named, or the right to create it",
        "has_schema_privilege",
        " ".join(dict.fromkeys(grants)),
    )


def _table_ownership(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    bad = [
        f"{row['name']} does not exist" if row["oid"] is None else f"{row['name']} belongs to {row['owner']}"
        for row in facts["tables"]
        if row["oid"] is None or not row["owned"]
    ]
    owners = sorted({row["owner"] for row in facts["tables"] if row["oid"] is not None and not row["owned"]})
    missing = any(row["oid"] is None for row in facts["tables"])
    user = _identifier(facts["server"]["user"])
    remedies = [f"GRANT {_identifier(owner)} TO {user}; or set session_role: {owner}." for owner in owners]
    if missing:
        remedies.append("Check the names and the migrations this one requires.")
    return Finding(
        "preflight.table_ownership",
        "not_applicable" if not facts["tables"] else _verdict(not bad),
        {row["name"]: row["owner"] for row in facts["tables"]},
        _listing(bad)
        if bad
        else f"owner, or member of the owner, of {len(facts['tables'])} tables"
        if facts["tables"]
        else "no tables named",
        "the role owns every table to alter, or is a member of its owner",
        "pg_class.relowner, pg_has_role",
        " ".join(remedies),
    )


def _relations_exist(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    missing = [row["name"] for row in facts["relations"] if row["oid"] is None]
    return Finding(
        "preflight.relations_exist",
        "not_applicable" if not facts["relations"] else _verdict(not missing),
        {"missing": missing, "found": [row["name"] for row in facts["relations"] if row["oid"] is not None]},
        f"missing: {', '.join(missing)}"
        if missing
        else f"{len(facts['relations'])} found"
        if facts["relations"]
        else "none named",
        "every relation named exists",
        "pg_class",
        "Apply the migrations this one requires first, and check that this is the right database.",
    )


def _extensions(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    server = facts["server"]
    bad: list[str] = []
    remedies: list[str] = []
    measured: dict[str, t.Any] = {}
    for row in facts["extensions"]:
        name = row["name"]
        measured[name] = {"installed": row["installed"], "available": row["available"], "schema": row["schema"]}
        if row["installed"] is not None:
            continue
        if row["available"] is None:
            bad.append(f"{name} is not available on the server")
            remedies.append(f"Install the package that holds {name} (usually contrib) on the server.")
        elif (
            row["needs_superuser"] and not server["superuser"] and not (row["trusted"] and server["may_create_schema"])
        ):
            bad.append(f"{name} is available but the role may not install it")
            remedies.append(f"Have an administrator run CREATE EXTENSION IF NOT EXISTS {_identifier(name)};")
        elif not row["needs_superuser"] and not server["may_create_schema"]:
            bad.append(f"{name} is available but the role has no CREATE on the database")
            remedies.append(f"Have an administrator run CREATE EXTENSION IF NOT EXISTS {_identifier(name)};")
    return Finding(
        "preflight.extensions",
        "not_applicable" if not facts["extensions"] else _verdict(not bad),
        measured,
        _listing(bad) if bad else f"{len(measured)} installed or installable" if measured else "none named",
        "every extension named is installed, or can be installed by this role",
        "pg_extension, pg_available_extension_versions",
        " ".join(remedies),
    )


def _pg_monitor(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    server = facts["server"]
    return Finding(
        "preflight.pg_monitor",
        _verdict(server["sees_statistics"]),
        {"pg_read_all_stats": server["sees_statistics"], "pg_monitor": server["monitor"]},
        f"{server['user']} {'sees' if server['sees_statistics'] else 'does not see'} other sessions' statistics",
        "the role has pg_monitor, or pg_read_all_stats",
        "pg_has_role",
        _grant_monitor(facts),
    )


def _connections(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    server = facts["server"]
    reserved = 0 if server["session_superuser"] else server["superuser_reserved"]
    if not server["session_superuser"] and not server["uses_reserved"]:
        reserved += server["reserved"]
    free = server["max_connections"] - reserved - server["used"]
    limits = [free]
    if server["database_limit"] >= 0 and not server["session_superuser"]:
        limits.append(server["database_limit"] - server["database_used"])
    if server["role_limit"] >= 0 and not server["session_superuser"]:
        limits.append(server["role_limit"] - server["role_used"])
    usable = max(0, min(limits))
    saturation = 100.0 * server["used"] / server["max_connections"]
    return Finding(
        "preflight.connections",
        _verdict(usable >= wanted.min_free_connections and saturation <= wanted.max_pool_saturation),
        {
            "used": server["used"],
            "max_connections": server["max_connections"],
            "reserved": reserved,
            "free": usable,
            "saturation_percent": round(saturation, 1),
        },
        f"{usable} connections free for this role, {server['used']} of {server['max_connections']} used"
        f" ({saturation:.0f}%)",
        f"at least {wanted.min_free_connections} free, at most {wanted.max_pool_saturation:g}% used",
        "pg_stat_database.numbackends, connection limits and reserved slots",
        "End idle sessions, lower the applications' pool sizes, or raise max_connections (or the role's or database's"
        " CONNECTION LIMIT).",
    )


def _session(row: t.Mapping[str, t.Any], age: float) -> str:
    name = f" {row['application_name']!r}" if row.get("application_name") else ""
    return f"pid {row['pid']}{name} ({row['state'] or 'unknown'}, {human_duration(age)})"


def _session_facts(row: t.Mapping[str, t.Any], age: float) -> dict[str, t.Any]:
    return {
        "pid": row["pid"],
        "user": row["user"],
        "application_name": redact(row["application_name"] or ""),
        "state": row["state"],
        "age_seconds": round(age, 3),
    }


def _seen(facts: t.Mapping[str, t.Any], bad: bool) -> str:
    """The verdict on what only shows with ``pg_read_all_stats``: what is seen and bad is bad, but what is not seen is
    not good."""
    return "fail" if bad else "pass" if facts["server"]["sees_statistics"] else "not_measured"


def _long_transactions(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    limit = human_duration(wanted.max_transaction_age)
    old = [row for row in facts["sessions"] if (row["transaction_age"] or 0) > wanted.max_transaction_age]
    verdict = _seen(facts, bool(old))
    summary = f"none older than {limit}" if verdict == "pass" else _STATISTICS
    return Finding(
        "preflight.long_transactions",
        verdict,
        [_session_facts(row, row["transaction_age"]) for row in old] if verdict != "not_measured" else None,
        _listing([_session(row, row["transaction_age"]) for row in old]) if old else summary,
        f"no transaction in this database older than {limit}",
        "pg_stat_activity",
        "Wait for them, or end them: " + " ".join(f"SELECT pg_terminate_backend({row['pid']});" for row in old[:3])
        if old
        else _grant_monitor(facts),
    )


def _idle_in_transaction(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    limit = human_duration(wanted.max_idle_in_transaction)
    idle = [
        row
        for row in facts["sessions"]
        if (row["state"] or "").startswith("idle in transaction")
        and (row["state_age"] or 0) > wanted.max_idle_in_transaction
    ]
    verdict = _seen(facts, bool(idle))
    summary = f"none idle in transaction for more than {limit}" if verdict == "pass" else _STATISTICS
    return Finding(
        "preflight.idle_in_transaction",
        verdict,
        [_session_facts(row, row["state_age"]) for row in idle] if verdict != "not_measured" else None,
        _listing([_session(row, row["state_age"]) for row in idle]) if idle else summary,
        f"no session idle in a transaction for more than {limit}",
        "pg_stat_activity",
        "Have the applications commit, or end them: "
        + " ".join(f"SELECT pg_terminate_backend({row['pid']});" for row in idle[:3])
        if idle
        else _grant_monitor(facts),
    )


def _prepared_transactions(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    prepared = facts["prepared"]
    holding = any(row["pid"] is None for row in facts["locks"])
    old = [row for row in prepared if row["age"] > wanted.max_transaction_age]
    bad = prepared if holding else old
    limit = human_duration(wanted.max_transaction_age)
    return Finding(
        "preflight.prepared_transactions",
        _verdict(not bad),
        [{"gid": redact(row["gid"]), "owner": row["owner"], "age_seconds": round(row["age"], 3)} for row in prepared],
        _listing([f"{row['gid']!r} of {row['owner']} ({human_duration(row['age'])})" for row in bad])
        + (", with locks on the tables touched" if holding else "")
        if bad
        else f"{len(prepared)} prepared, none in the way",
        f"no prepared transaction older than {limit}, none with locks on the tables touched",
        "pg_prepared_xacts, pg_locks",
        "Their transaction manager must finish them: COMMIT PREPARED or ROLLBACK PREPARED with the gid, as their"
        " owner.",
    )


# Locks that ordinary reads and writes take and give back with their statement or short transaction.
_ORDINARY = ("AccessShareLock", "RowShareLock", "RowExclusiveLock")


def _blockers(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    bad: list[dict[str, t.Any]] = []
    texts: list[str] = []
    unseen = False
    for row in facts["locks"]:
        age = row["age"]
        autovacuum = row["backend_type"] == "autovacuum worker"
        if autovacuum and not row["wraparound"]:
            continue  # cancelled by whoever waits for its lock
        strong = row["mode"] not in _ORDINARY
        if row["granted"] and not strong and age is None and row["pid"] is not None:
            unseen = True
            continue
        if row["granted"] and not strong and (age or 0) <= wanted.max_lock_age and row["pid"] is not None:
            continue
        who = "a prepared transaction" if row["pid"] is None else f"pid {row['pid']}"
        if row["application_name"]:
            who += f" {row['application_name']!r}"
        since = f" for {human_duration(age)}" if age is not None else ""
        waits = f" behind {', '.join(f'pid {pid}' for pid in row['blocked_by'])}" if row["blocked_by"] else ""
        texts.append(
            f"{who} {'holds' if row['granted'] else 'waits for'} {row['mode']} on {row['relation']}{since}{waits}"
        )
        bad.append(
            {
                "pid": row["pid"],
                "relation": row["relation"],
                "mode": row["mode"],
                "granted": row["granted"],
                "application_name": redact(row["application_name"] or ""),
                "state": row["state"],
                "age_seconds": None if age is None else round(age, 3),
                "blocked_by": row["blocked_by"],
            }
        )
    verdict = "not_applicable" if not facts["touched"] else "fail" if bad else "not_measured" if unseen else "pass"
    summary = {
        "not_applicable": "no tables named",
        "fail": _listing(texts),
        "not_measured": f"how long locks are held {_STATISTICS}",
        "pass": f"nobody in the way on {len(facts['touched'])} tables",
    }[verdict]
    return Finding(
        "preflight.blockers",
        verdict,
        bad if verdict != "not_measured" else None,
        summary,
        "no strong lock, no queue, and no lock held longer than "
        f"{human_duration(wanted.max_lock_age)} on the tables touched, by another session",
        "pg_locks, pg_blocking_pids, pg_stat_activity",
        _grant_monitor(facts)
        if verdict == "not_measured"
        else "Wait for them, or end the session in the way (pg_terminate_backend).",
    )


def _wraparound(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    touched = {row["oid"] for row in facts["touched"]}
    running = [row for row in facts["vacuums"] if row["wraparound"] and row["relid"] in touched]
    age, limit = facts["server"]["database_age"], 1_600_000_000
    hidden = any(row["wraparound"] is None for row in facts["vacuums"])
    verdict = (
        "fail"
        if running or age >= limit
        else "not_measured"
        if hidden or not facts["server"]["sees_statistics"]
        else "pass"
    )
    texts = [f"pid {row['pid']} vacuums {row['table']} to prevent wraparound ({row['phase']})" for row in running]
    if age >= limit:
        texts.append(f"the database's oldest transaction id is {age:,} old")
    return Finding(
        "preflight.wraparound",
        verdict,
        {"running": running, "database_age": age} if verdict != "not_measured" else None,
        _listing(texts) if texts else f"none running, transaction id age {age:,}" if verdict == "pass" else _STATISTICS,
        f"no vacuum against wraparound on the tables touched; transaction id age below {limit:,}",
        "pg_stat_progress_vacuum, pg_database.datfrozenxid",
        _grant_monitor(facts)
        if verdict == "not_measured"
        else "Let the vacuum finish (it does not give way to DDL); if the age grows, find what holds the horizon back.",
    )


def _publications(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    rows = facts["publications"]
    without_key = sorted(
        {row["table"] for row in rows if row["identity"] == "n" or (row["identity"] == "d" and not row["has_key"])}
    )
    slots = [
        {"slot": row["slot"], "active": row["active"], "retained": row["retained"]}
        for row in facts["slots"]
        if row["type"] == "logical" and row["here"]
    ]
    texts = [f"{row['table']} is in publication {row['publication']}" for row in rows]
    return Finding(
        "preflight.publications",
        "not_applicable" if not facts["touched"] else _verdict(not rows),
        [{"publication": row["publication"], "table": row["table"]} for row in rows],
        _listing(texts) if rows else "no table touched is published" if facts["touched"] else "no tables named",
        "no table touched is in a publication",
        "pg_publication_tables, pg_replication_slots",
        "DDL is not replicated: change the subscribers first, then list publications in optional.",
        {"logical_slots": slots, "without_replica_identity": without_key},
    )


def _subscriptions(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    rows = facts["subscriptions"]
    return Finding(
        "preflight.subscriptions",
        "not_applicable" if not facts["touched"] else _verdict(not rows),
        rows,
        _listing([f"{row['table']} is filled by subscription {row['subscription']}" for row in rows])
        if rows
        else "no table touched is subscribed"
        if facts["touched"]
        else "no tables named",
        "no table touched is filled by a subscription",
        "pg_subscription_rel",
        "Change this side in step with the publisher, or disable the subscription meanwhile; then list subscriptions"
        " in optional.",
    )


def _replication_slots(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    bad = [
        row
        for row in facts["slots"]
        if row["wal_status"] in ("unreserved", "lost")
        or (not row["active"] and (row["retained"] or 0) > wanted.max_retained_wal)
    ]
    inactive = [row for row in facts["slots"] if not row["active"]]
    return Finding(
        "preflight.replication_slots",
        "not_applicable" if not facts["slots"] else _verdict(not bad),
        [{key: row[key] for key in ("slot", "type", "active", "wal_status", "retained")} for row in facts["slots"]],
        _listing(
            [
                f"slot {row['slot']} is {'active' if row['active'] else 'inactive'}, WAL {row['wal_status'] or 'not'}"
                " reserved,"
                f" {human_size(row['retained'] or 0)} kept"
                for row in bad
            ]
        )
        if bad
        else f"{len(facts['slots'])} slots, {len(inactive)} inactive",
        f"no inactive slot keeps more than {human_size(wanted.max_retained_wal)} of WAL, none has lost any",
        "pg_replication_slots",
        "Start the slot's consumer, or drop the slot: SELECT pg_drop_replication_slot('...'); a migration's WAL would"
        " pile up behind it.",
    )


def _replica_lag(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    seen = facts["server"]["sees_statistics"]
    # Who takes WAL without replaying it (pg_receivewal, pg_basebackup) is no replica; a role that may not look sees
    # every column empty.
    replicas = [
        row for row in facts["replicas"] if not seen or (row["state"] != "backup" and row["lag_bytes"] is not None)
    ]
    required = (
        f"every replica within {human_duration(wanted.max_replica_lag)} and {human_size(wanted.max_replica_lag_size)}"
    )
    if not replicas:
        return Finding(
            "preflight.replica_lag", "not_applicable", [], "no replica is connected", required, "pg_stat_replication"
        )
    measured = [
        {
            "application_name": row["application_name"],
            "state": row["state"],
            # NULL for a replica that has had nothing to replay for a while, and for one that stands still: the bytes
            # tell them apart.
            "lag_seconds": row["lag_seconds"] or 0.0,
            "lag_bytes": row["lag_bytes"],
        }
        for row in replicas
    ]
    late = [
        row
        for row in measured
        if row["lag_seconds"] > wanted.max_replica_lag or (row["lag_bytes"] or 0) > wanted.max_replica_lag_size
    ]
    verdict = "fail" if late else "pass" if seen else "not_measured"
    return Finding(
        "preflight.replica_lag",
        verdict,
        measured if verdict != "not_measured" else None,
        _listing(
            [
                f"{row['application_name']} is {human_duration(row['lag_seconds'])} and"
                f" {human_size(row['lag_bytes'] or 0)} behind"
                for row in late
            ]
        )
        if late
        else f"{len(replicas)} replicas in time"
        if verdict == "pass"
        else _STATISTICS,
        required,
        "pg_stat_replication",
        _grant_monitor(facts)
        if verdict == "not_measured"
        else "Wait until the replicas have caught up; look for long queries on them.",
    )


def _synchronous_standby(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    names, commit = facts["server"]["synchronous_standby_names"].strip(), facts["server"]["synchronous_commit"]
    source = "synchronous_standby_names, pg_stat_replication"
    required = "as many synchronous standbys connected as a commit waits for"
    if not names:
        return Finding(
            "preflight.synchronous_standby",
            "not_applicable",
            {"wanted": 0},
            "a commit waits for no standby",
            required,
            source,
        )
    match = re.match(r"(?i)(?:(?:first|any)\s+)?(\d+)\s*\(", names)
    needed = int(match.group(1)) if match else 1
    hidden = not facts["server"]["sees_statistics"]
    there = [
        row["application_name"]
        for row in facts["replicas"]
        if row["sync_state"] in ("sync", "quorum") and row["state"] == "streaming"
    ]
    verdict = "pass" if len(there) >= needed else "not_measured" if hidden else "fail"
    return Finding(
        "preflight.synchronous_standby",
        verdict,
        {"wanted": needed, "connected": len(there), "synchronous_commit": commit}
        if verdict != "not_measured"
        else None,
        f"{len(there)} of {needed} synchronous standbys connected" if verdict != "not_measured" else _STATISTICS,
        required,
        source,
        _grant_monitor(facts)
        if verdict == "not_measured"
        else "A COMMIT would hang: bring the standby back, or take it out of synchronous_standby_names.",
    )


def _disk_backup(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    size = facts["server"]["database_size"]
    needed = round(size * wanted.backup_size_factor)
    room = facts["backup_room"]
    required = (
        f"{human_size(needed)} free for the backup ({wanted.backup_size_factor:g} times the database's"
        f" {human_size(size)})"
    )
    if room is None:
        return Finding("preflight.disk_backup", "not_applicable", None, "no backup_dir named", required, "statvfs")
    if room["free"] is None:
        return Finding(
            "preflight.disk_backup",
            "not_measured",
            None,
            f"{room['at']}: {room['error']}",
            required,
            "statvfs",
            "Check backup_dir.",
        )
    enough = room["free"] >= needed
    return Finding(
        "preflight.disk_backup",
        _verdict(enough and room["writable"]),
        {"free": room["free"], "needed": needed, "at": room["at"], "writable": room["writable"]},
        f"{human_size(room['free'])} free at {room['at']}" + ("" if room["writable"] else ", not writable"),
        required,
        "statvfs, pg_database_size",
        "Make room or choose another backup_dir."
        if not enough
        else "Make the directory writable for the user who runs Ansible.",
    )


def _disk_server(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    size = facts["server"]["database_size"]
    needed = round(size * wanted.backup_size_factor)
    required = f"{human_size(needed)} free where the database lies (a shadow copy and index builds)"
    free = wanted.database_free_space
    return Finding(
        "preflight.disk_server",
        "not_measured" if free is None else _verdict(free >= needed),
        None if free is None else {"free": free, "needed": needed},
        "SQL cannot see the server's disk" if free is None else f"{human_size(free)} free, as told",
        required,
        "operator (database_free_space), pg_database_size",
        "Give the figure in database_free_space (from df, the provider's console or its metrics)."
        if free is None
        else "Enlarge the server's disk.",
    )


def _lock_table(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    slots, relations = facts["server"]["lock_slots"], facts["server"]["lockable"]
    allowed = int(slots * 0.8)
    return Finding(
        "preflight.lock_table",
        _verdict(relations <= allowed),
        {"lock_slots": slots, "relations": relations},
        f"{relations} relations, {slots} slots in the lock table",
        f"relations fill at most 80% of the lock table ({allowed}): a dump locks all of them at once",
        "max_locks_per_transaction * (max_connections + max_prepared_transactions), pg_class",
        "Raise max_locks_per_transaction and restart the server.",
    )


def _role_settings(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    rows = [
        row
        for row in facts["settings"]
        if row["name"] in _HINDERING and row["value"] not in ("0", "off", "origin", "none", "")
    ]
    return Finding(
        "preflight.role_settings",
        _verdict(not rows),
        {row["name"]: {"value": row["value"], "level": row["level"]} for row in rows},
        _listing([f"{row['name']} = {row['value']} (set for the {row['level']})" for row in rows])
        if rows
        else "none that matter",
        "no time limits or modes set for the role or the database that would hinder a migration",
        "pg_db_role_setting",
        "Surefoot's own sessions override the time limits; other tools under this role do not. ALTER ROLE ... RESET,"
        " or use a role of its own.",
    )


def _event_triggers(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    rows = facts["event_triggers"]
    return Finding(
        "preflight.event_triggers",
        _verdict(not rows),
        rows,
        _listing([f"{row['name']} on {row['event']} runs {row['function']}" for row in rows])
        if rows
        else "none enabled",
        "no event trigger, or each of them known: they run on every DDL statement of the migration",
        "pg_event_trigger",
        "Look at what they do to DDL, rehearse with them, or disable them for the run: ALTER EVENT TRIGGER ..."
        " DISABLE.",
    )


def _server_logging(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    server = facts["server"]
    on = {
        name: value
        for name, value in (
            ("log_statement", server["log_statement"]),
            ("log_min_duration_statement", server["log_min_duration_statement"]),
            ("log_min_duration_sample", server["log_min_duration_sample"]),
            ("pgaudit.log", server["pgaudit_log"]),
            ("auto_explain.log_min_duration", server["auto_explain_log_min_duration"]),
        )
        if value not in (None, "", "none", "-1")
    }
    return Finding(
        "preflight.server_logging",
        _verdict(not on),
        on,
        _listing([f"{name} = {value}" for name, value in on.items()], 5) if on else "statements are not logged",
        "statement text does not go to the server log",
        "log_statement, log_min_duration_*, pgaudit.log, auto_explain",
        "Keep secrets out of statement text: secret_variables and session_settings do; a literal in a file would be"
        " logged.",
    )


_INSTALL_STATEMENTS = (
    "Set shared_preload_libraries = 'pg_stat_statements' (takes a restart) and CREATE EXTENSION pg_stat_statements."
)
_LOOK_YOURSELF = (
    "Let the applications work for as long as their rarest job takes, and run again; or look through their SQL and"
    " waive preflight.typed_users."
)
_TYPED_REMEDY = (
    "Have them compare and bind values of the new type (drop ::text, LIKE and functions of text), or waive"
    " preflight.typed_users when they may fail; sessions with prepared statements must reconnect after the swap."
)


def _typed_users(facts: t.Mapping[str, t.Any], wanted: Wanted) -> Finding:
    asked = facts["typed_users"]
    result = typed_users(asked)
    reason = asked["reason"]
    if not reason and result.unread:
        reason = f"{result.unread} statements without a text: the role or pg_stat_statements' file does not show it"
    if not reason and result.silent:
        reason = (
            f"pg_stat_statements knows no statement that uses the column of {', '.join(dict.fromkeys(result.silent))}"
        )
        reason += f" since {asked['since']}" if asked["since"] else ""
    nothing = not asked["columns"]
    verdict = "not_applicable" if nothing else "fail" if result.found else "not_measured" if reason else "pass"
    measured = {
        "found": [user.to_dict() for user in result.found[:LISTED]],
        "total": len(result.found),
        "statements": result.seen,
        "functions": result.functions,
        "since": asked["since"],
        "evicted": asked["evicted"],
    }
    summary = {
        "not_applicable": "no pending migration gives a column another type",
        "fail": f"{len(result.found)} use the column as text: {_listing([str(user) for user in result.found])}",
        "not_measured": reason or "",
        "pass": f"none among {result.seen} statements and {result.functions} functions",
    }[verdict]
    remedy = _TYPED_REMEDY
    if verdict == "not_measured":
        install = f"{_INSTALL_STATEMENTS} " if asked["reason"] in (NOT_INSTALLED, NOT_LOADED) else ""
        remedy = f"{install}{_LOOK_YOURSELF}"
    kinds = {kind for user in result.found for kind in user.kinds}
    details: dict[str, t.Any] = {"kinds": {kind: text for kind, text in KINDS.items() if kind in kinds}}
    details["columns"] = [entry["column"].label for entry in asked["columns"]]
    if reason:
        details["not_seen"] = reason
    return Finding(
        "preflight.typed_users",
        verdict,
        # The gate shows what stands in the way of a measurement.
        {"pass": measured, "fail": measured, "not_measured": f"{reason}. {remedy}"}.get(verdict),
        summary,
        "nobody uses a column that gets another type as text",
        "pg_stat_statements, sources of functions",
        remedy,
        details,
    )
