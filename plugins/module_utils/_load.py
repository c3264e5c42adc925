# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What the days after a migration are compared by: slow statements of pg_stat_statements, and processors and memory of
the server's host where this is it.

Which columns the view has is decided by the installed version of the extension, which a pg_upgrade keeps, so they are
read from the catalog. Statements are named by queryid: their text may hold values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import quote_identifier, sql_error
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, utc_now, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._values import to_plain

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

LOAD_FILE = "load-{label}.json"
_MOST = 50
# Busier than this is not called similar to what was quiet before.
_MOST_LOAD, _LEAST_MEMORY = 1.0, 10.0

_VIEW = """
SELECT n.nspname, array_agg(a.attname::text)
FROM pg_catalog.pg_extension e
JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'pg_stat_statements'
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE e.extname = 'pg_stat_statements'
GROUP BY n.nspname
"""
# Own sessions are not told apart by the view; what this collection asks runs seldom.
_STATEMENTS = """
SELECT s.queryid::text, sum(s.calls)::bigint, sum(s.{total})::float8, sum(s.rows)::bigint
FROM {schema}.pg_stat_statements s
WHERE s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
  AND s.queryid IS NOT NULL
GROUP BY 1
HAVING sum(s.calls) >= %(calls)s
ORDER BY 3 DESC
LIMIT 2000
"""


@dataclasses.dataclass(frozen=True)
class LoadRequest:
    """``slow_ms``: a statement that takes longer on average is slow. ``factor``: how much longer than before is a
    regression. ``min_calls``: fewer calls say nothing."""

    slow_ms: float = 100.0
    factor: float = 1.5
    min_calls: int = 5
    before: t.Mapping[str, t.Any] | None = None


def read_before(path: str) -> dict[str, t.Any]:
    """What an earlier task wrote.

    :raises PlanError: there is no such file, or it is none of ours
    """
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
        if not isinstance(content, dict) or "time" not in content:
            raise ValueError
    except (OSError, ValueError):
        raise PlanError(
            f"{path} is not what an earlier task wrote", remedy="Give the file that postgresql_load_info made."
        ) from None
    return content


def measure(connection: Connection, request: LoadRequest) -> dict[str, t.Any]:
    """Statements and host as an object, with ``evidence`` as objects; what cannot be seen is said, and nothing raised.

    :raises SqlError: the server refused a query of ours
    """
    statements, why_not = _statements(connection, request)
    host = _host(connection)
    evidence = [_statement_evidence(statements, why_not, request), _host_evidence(host, request)]
    content = {"time": utc_now(), "statements": statements, "host": host}
    return {**content, "reason": why_not, "evidence": evidence}


# --- statements ------------------------------------------------------------------------------------------------------


NOT_INSTALLED = "extension pg_stat_statements is not installed in this database"
NOT_LOADED = "pg_stat_statements is not in shared_preload_libraries"


def statements_view(cursor: t.Any) -> tuple[str, frozenset[str]] | None:
    """Schema and columns of the view pg_stat_statements; None when the extension is not installed."""
    cursor.execute(_VIEW)
    row = cursor.fetchone()
    return None if row is None else (row[0], frozenset(row[1]))


def _statements(connection: Connection, request: LoadRequest) -> tuple[dict[str, t.Any] | None, str | None]:
    with connection.cursor() as cursor:
        try:
            view = statements_view(cursor)
            if view is None:
                return None, NOT_INSTALLED
            schema, columns = view
            total = next((name for name in ("total_exec_time", "total_time") if name in columns), None)
            if total is None:
                return None, "this pg_stat_statements has no column of the time spent"
            cursor.execute(
                "SELECT pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
                " OR (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)"
            )
            allowed = cursor.fetchone()
            if not allowed or not allowed[0]:
                return None, "the role sees its own statements only: GRANT pg_monitor to it"
            sql = _STATEMENTS.format(
                total=quote_identifier(total, connection), schema=quote_identifier(schema, connection)
            )
            cursor.execute(sql, {"calls": request.min_calls})
            found = cursor.fetchall()
        except psycopg2.Error as exc:
            if exc.pgcode == "55000":  # object_not_in_prerequisite_state
                return None, NOT_LOADED
            raise sql_error(exc, statement="SELECT FROM pg_stat_statements") from None
    return {str(id_): {"calls": calls, "total_ms": round(ms, 3), "rows": rows} for id_, calls, ms, rows in found}, None


def _since(now: t.Mapping[str, t.Any], before: t.Mapping[str, t.Any] | None) -> tuple[int, float]:
    """Calls and mean of a statement since it was looked at; since the reset of the view where that came after."""
    calls, total = int(now["calls"]), float(now["total_ms"])
    if before and int(before["calls"]) <= calls and float(before["total_ms"]) <= total:
        calls, total = calls - int(before["calls"]), total - float(before["total_ms"])
    return calls, total / calls if calls else 0.0


def slower(
    now: t.Mapping[str, t.Any], before: t.Mapping[str, t.Any], request: LoadRequest
) -> tuple[list[dict[str, t.Any]], list[dict[str, t.Any]]]:
    """Statements that are slow now: those that became so by the factor, and those that were not there before."""
    worse: list[dict[str, t.Any]] = []
    new: list[dict[str, t.Any]] = []
    for id_, item in now.items():
        earlier = before.get(id_)
        calls, mean = _since(item, earlier)
        if calls < request.min_calls or mean <= request.slow_ms:
            continue
        entry: dict[str, t.Any] = {"queryid": id_, "calls": calls, "mean_ms": round(mean, 3)}
        if earlier is None or not int(earlier["calls"]):
            new.append(entry)
            continue
        was = float(earlier["total_ms"]) / int(earlier["calls"])
        if mean > was * request.factor:
            worse.append({**entry, "mean_ms_before": round(was, 3)})
    for found in (worse, new):
        found.sort(key=lambda entry: -float(entry["mean_ms"]))
    return worse[:_MOST], new[:_MOST]


def _statement_evidence(
    statements: t.Mapping[str, t.Any] | None, why_not: str | None, request: LoadRequest
) -> Evidence:
    required = f"no statement slower than {request.slow_ms:g} ms and {request.factor:g} times its mean before"
    source = "pg_stat_statements, means since the look before"
    before = (request.before or {}).get("statements")
    if statements is None:
        return Evidence("statements.slow", "observe", "not_measured", why_not, required, source)
    if not isinstance(before, dict):
        slow = [id_ for id_, item in statements.items() if _since(item, None)[1] > request.slow_ms]
        measured = {"statements": len(statements), "slow": slow[:_MOST]}
        return Evidence(
            "statements.slow", "observe", "not_applicable", measured, required, "pg_stat_statements, nothing before it"
        )
    worse, new = slower(statements, before, request)
    return Evidence("statements.slow", "observe", verdict(not worse), {"slower": worse, "new": new}, required, source)


# --- the host --------------------------------------------------------------------------------------------------------


def _host(connection: Connection) -> dict[str, t.Any] | None:
    """Load and memory of this machine, when the server's processes are seen to run on it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.pg_backend_pid()")
        row = cursor.fetchone()
    try:
        with open(f"/proc/{int(row[0] if row else 0)}/cmdline", "rb") as stream:
            # Its title says which database it serves; another machine's or container's process of this pid does not.
            if not _serves(stream.read(), connection.info.dbname):
                return None
        with open("/proc/meminfo", encoding="ascii") as stream2:
            memory = {line.partition(":")[0]: int(line.split()[1]) for line in stream2 if len(line.split()) > 1}
        load = os.getloadavg()[1]
        total, available = memory["MemTotal"], memory["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    processors = os.cpu_count() or 1
    return {
        "processors": processors,
        "load_5min": round(load, 2),
        "load_per_processor": round(load / processors, 3),
        "memory_available_percent": round(100.0 * available / total, 1),
        "memory_total_bytes": total * 1024,
    }


def _serves(title: bytes, database: str) -> bool:
    text = title.replace(b"\0", b" ").decode("utf-8", errors="replace")
    return text.startswith("postgres") and f" {database} " in f"{text} "


def _host_evidence(host: t.Mapping[str, t.Any] | None, request: LoadRequest) -> Evidence:
    required = (
        f"not both more than {_MOST_LOAD:g} running for each processor and twice as many as before;"
        f" not both less than {_LEAST_MEMORY:g}% of the memory free and half of what was before"
    )
    source = "/proc of the server's host"
    before = (request.before or {}).get("host")
    if host is None:
        reason = "the server does not run where this task does"
        return Evidence("host.cpu_memory", "observe", "not_measured", reason, required, source)
    if not isinstance(before, dict):
        return Evidence("host.cpu_memory", "observe", "not_applicable", to_plain(dict(host)), required, source)
    load, was_load = float(host["load_per_processor"]), float(before["load_per_processor"])
    free, was_free = float(host["memory_available_percent"]), float(before["memory_available_percent"])
    busy = load > _MOST_LOAD and load > 2 * was_load
    short = free < _LEAST_MEMORY and free < was_free / 2
    measured = {"now": dict(host), "before": dict(before)}
    return Evidence("host.cpu_memory", "observe", verdict(not busy and not short), measured, required, source)
