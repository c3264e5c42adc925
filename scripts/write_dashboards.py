# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the Grafana dashboards of ``playbooks/files/grafana/`` from the table below.

A panel that counts takes its number from the catalog, from the statistics views or from tables, never from the text of
queries. A table that may be missing or unreadable is looked for in the catalog first and counted by query_to_xml, so
that the panel does not fail.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing as t

DIRECTORY = pathlib.Path(__file__).resolve().parent.parent / "playbooks" / "files" / "grafana"
TYPE = "grafana-postgresql-datasource"
SCHEMA_VERSION = 41
WIDTH = 24
DATASOURCE = {"type": TYPE, "uid": "${datasource}"}

Thresholds = t.Sequence[tuple[t.Optional[float], str]]
ZERO_IS_GOOD: Thresholds = ((None, "green"), (1, "red"))
PLAIN: Thresholds = ((None, "blue"),)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel. ``kind``: stat | table | timeseries."""

    title: str
    kind: str
    sql: str
    says: str
    width: int = 4
    height: int = 4
    unit: str = "short"
    thresholds: Thresholds = PLAIN
    units: t.Mapping[str, str] = dataclasses.field(default_factory=dict)  # of single columns


@dataclasses.dataclass(frozen=True)
class Board:
    uid: str
    title: str
    says: str
    panels: t.Sequence[Panel]
    variables: t.Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)  # name -> label, value
    since: str = "now-7d"
    refresh: str = "1m"


LEDGER = {"ledger": ("Schema of the ledger", "surefoot")}

# Rows of the referencing table without a row they refer to, counted for constraints that PostgreSQL has not validated:
# for all others there can be none. Tables the role may not read are shown without a number.
_ORPHANS = """
SELECT con.conrelid::regclass::text AS "table", con.conname AS "constraint",
       con.confrelid::regclass::text AS "refers to",
       CASE WHEN has_table_privilege(con.conrelid, 'SELECT') AND has_table_privilege(con.confrelid, 'SELECT') THEN
         (xpath('/row/n/text()', query_to_xml(
           format('SELECT count(*) AS n FROM %s AS c WHERE %s AND NOT EXISTS (SELECT FROM %s AS p WHERE %s)',
                  con.conrelid::regclass, keys.filled, con.confrelid::regclass, keys.joined),
           false, true, '')))[1]::text::bigint
       END AS "orphans"
FROM pg_constraint AS con
CROSS JOIN LATERAL (
  SELECT string_agg(format('c.%I IS NOT NULL', child.attname), ' AND ') AS filled,
         string_agg(format('p.%I = c.%I', parent.attname, child.attname), ' AND ') AS joined
  FROM unnest(con.conkey, con.confkey) AS pair (child, parent)
  JOIN pg_attribute AS child ON child.attrelid = con.conrelid AND child.attnum = pair.child
  JOIN pg_attribute AS parent ON parent.attrelid = con.confrelid AND parent.attnum = pair.parent
) AS keys
WHERE con.contype = 'f' AND NOT con.convalidated
"""
# Tables that migrations move rows to which no constraint lets in.
_QUARANTINE = """
SELECT c.oid::regclass::text AS "table",
       CASE WHEN has_table_privilege(c.oid, 'SELECT') THEN
         (xpath('/row/n/text()', query_to_xml(
           format('SELECT count(*) AS n FROM %s', c.oid::regclass), false, true, '')))[1]::text::bigint
       END AS "rows",
       pg_total_relation_size(c.oid) AS "size"
FROM pg_class AS c
WHERE c.relkind IN ('r', 'p') AND c.relname ~* '(quarantine|orphan|invalid)' AND NOT c.relispartition
  AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
"""
_SQLSTATE = "coalesce(error ->> 'sqlstate', error -> 'details' ->> 'sqlstate')"
_OURS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

HEALTH = Board(
    "surefoot-health",
    "Surefoot: migration health",
    "What a migration may leave behind in the data and in the catalog.",
    [
        Panel(
            "Orphaned rows",
            "stat",
            f'SELECT coalesce(sum("orphans"), 0) AS "orphans" FROM ({_ORPHANS.strip()}) AS found',
            "Rows that refer to nothing, of foreign keys that are not validated. The table below says whose.",
            thresholds=ZERO_IS_GOOD,
        ),
        Panel(
            "Rows in quarantine",
            "stat",
            f'SELECT coalesce(sum("rows"), 0) AS "rows" FROM ({_QUARANTINE.strip()}) AS found',
            "Rows of tables whose name says quarantine, orphan or invalid.",
            thresholds=ZERO_IS_GOOD,
        ),
        Panel(
            "Constraints not validated",
            "stat",
            "SELECT count(*) AS \"constraints\" FROM pg_constraint WHERE NOT convalidated AND contype IN ('f', 'c')",
            "Foreign keys and checks that hold for new rows only.",
            thresholds=ZERO_IS_GOOD,
        ),
        Panel(
            "Invalid indexes",
            "stat",
            'SELECT count(*) AS "indexes" FROM pg_index WHERE NOT indisvalid OR NOT indisready',
            "Left by CREATE INDEX CONCURRENTLY that failed. The next run of the migration rebuilds them.",
            thresholds=ZERO_IS_GOOD,
        ),
        Panel(
            "Migrations half done",
            "stat",
            'SELECT count(DISTINCT (set_name, migration_id)) AS "migrations" FROM ${ledger}.progress',
            "Migrations outside a transaction that a run left unfinished.",
            thresholds=ZERO_IS_GOOD,
        ),
        Panel(
            "Constraint violations in runs",
            "stat",
            f'SELECT count(*) AS "violations" FROM ${{ledger}}.attempts\n'
            f"WHERE $__timeFilter(finished_at) AND {_SQLSTATE} LIKE '23%'",
            "Attempts of migrations that a constraint stopped. Those of the application are in the server log;"
            " monitor.yml counts them.",
            thresholds=ZERO_IS_GOOD,
        ),
        Panel(
            "Foreign keys not validated, and their orphans",
            "table",
            f"{_ORPHANS.strip()}\nORDER BY 4 DESC NULLS LAST, 1, 2",
            "No number: the role may not read one of the tables.",
            width=12,
            height=8,
        ),
        Panel(
            "Quarantine tables",
            "table",
            f"{_QUARANTINE.strip()}\nORDER BY 2 DESC NULLS LAST, 1",
            "No number: the role may not read the table.",
            width=12,
            height=8,
            units={"size": "bytes"},
        ),
        Panel(
            "Invalid indexes and checks that are not validated",
            "table",
            'SELECT \'index\' AS "kind", i.indrelid::regclass::text AS "table",\n'
            '       i.indexrelid::regclass::text AS "name"\n'
            "FROM pg_index AS i WHERE NOT i.indisvalid OR NOT i.indisready\n"
            "UNION ALL\n"
            "SELECT 'check', conrelid::regclass::text, conname FROM pg_constraint\n"
            "WHERE contype = 'c' AND NOT convalidated AND conrelid <> 0\n"
            "ORDER BY 1, 2, 3",
            "What is there and does not fully hold.",
            width=12,
            height=8,
        ),
        Panel(
            "Row level security",
            "table",
            'SELECT n.nspname AS "schema", c.relname AS "table", c.relrowsecurity AS "enabled",\n'
            '       c.relforcerowsecurity AS "for the owner", count(p.oid) AS "policies"\n'
            "FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace\n"
            "LEFT JOIN pg_policy AS p ON p.polrelid = c.oid\n"
            f"WHERE c.relkind IN ('r', 'p') AND {_OURS}\n"
            "GROUP BY 1, 2, 3, 4\n"
            "HAVING count(p.oid) > 0 OR c.relrowsecurity\n"
            "ORDER BY 3, 1, 2",
            "Tables with policies or with row level security; one with policies that is not enabled comes first.",
            width=12,
            height=8,
        ),
        Panel(
            "Attempts that failed, by condition",
            "timeseries",
            f"SELECT $__timeGroupAlias(finished_at, $__interval), coalesce({_SQLSTATE}, 'other') AS metric,\n"
            '       count(*) AS "attempts"\n'
            "FROM ${ledger}.attempts WHERE $__timeFilter(finished_at) AND outcome <> 'succeeded'\n"
            "GROUP BY 1, 2 ORDER BY 1",
            "By SQLSTATE: 23503 is a foreign key violation, 55P03 a lock that was not got.",
            width=24,
            height=8,
        ),
    ],
    LEDGER,
)

RUNS = Board(
    "surefoot-runs",
    "Surefoot: runs",
    "What the ledger says of runs and migrations.",
    [
        Panel(
            "Runs",
            "stat",
            'SELECT count(*) AS "runs" FROM ${ledger}.runs WHERE $__timeFilter(started_at)',
            "Runs that changed the database or tried to.",
            width=6,
        ),
        Panel(
            "Runs that failed",
            "stat",
            'SELECT count(*) AS "runs" FROM ${ledger}.runs\n'
            "WHERE $__timeFilter(started_at) AND outcome IS DISTINCT FROM 'succeeded' AND finished_at IS NOT NULL",
            "By their own account.",
            width=6,
            thresholds=ZERO_IS_GOOD,
        ),
        Panel(
            "Runs without an end",
            "stat",
            'SELECT count(*) AS "runs" FROM ${ledger}.runs WHERE finished_at IS NULL',
            "At work, or killed.",
            width=6,
            thresholds=((None, "green"), (1, "orange")),
        ),
        Panel(
            "Migrations applied",
            "stat",
            'SELECT count(*) AS "migrations" FROM ${ledger}.applied',
            "All that the ledger knows.",
            width=6,
        ),
        Panel(
            "Runs",
            "table",
            'SELECT started_at AS "started", run_id AS "run", set_name AS "set", action, outcome,\n'
            '       extract(epoch FROM finished_at - started_at)::float8 AS "seconds", os_user AS "by",\n'
            '       requested_by AS "requested by", approved_by AS "approved by",\n'
            '       evidence_head AS "head of the evidence"\n'
            "FROM ${ledger}.runs WHERE $__timeFilter(started_at) ORDER BY started_at DESC LIMIT 200",
            "The head anchors the run's evidence; the playbook verify_report compares it.",
            width=24,
            height=9,
            units={"seconds": "s"},
        ),
        Panel(
            "Duration of migrations",
            "timeseries",
            "SELECT $__timeGroupAlias(finished_at, $__interval), migration_id AS metric,\n"
            '       max(extract(epoch FROM finished_at - started_at))::float8 AS "seconds"\n'
            "FROM ${ledger}.attempts WHERE $__timeFilter(finished_at) AND outcome = 'succeeded'\n"
            "GROUP BY 1, 2 ORDER BY 1",
            "Of attempts that succeeded.",
            width=12,
            height=9,
            unit="s",
        ),
        Panel(
            "Attempts that failed",
            "table",
            'SELECT finished_at AS "at", run_id AS "run", migration_id AS "migration", action, outcome,\n'
            '       attempts AS "tries",\n'
            f'       {_SQLSTATE} AS "sqlstate", error ->> \'code\' AS "code"\n'
            "FROM ${ledger}.attempts WHERE $__timeFilter(finished_at) AND outcome <> 'succeeded'\n"
            "ORDER BY finished_at DESC LIMIT 200",
            "Messages are in the report of the run.",
            width=12,
            height=9,
        ),
        Panel(
            "What is applied",
            "table",
            'SELECT set_name AS "set", migration_id AS "migration", applied_at AS "applied",\n'
            '       left(raw_sha256, 12) AS "sha256"\n'
            "FROM ${ledger}.applied ORDER BY applied_at DESC LIMIT 500",
            "With the beginning of the hash of its file.",
            width=24,
            height=9,
        ),
    ],
    LEDGER,
    since="now-30d",
)

_USABLE = (
    "(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int\n"
    "  - coalesce(current_setting('reserved_connections', true), '0')::int)"
)
SERVER = Board(
    "surefoot-server",
    "Surefoot: server",
    "Connections, locks and WAL now. Grafana keeps no history of them: PostgreSQL shows the present only.",
    [
        Panel(
            "Connections used",
            "stat",
            f"SELECT 100.0 * count(*) FILTER (WHERE backend_type = 'client backend')\n  / {_USABLE} AS \"used\"\n"
            "FROM pg_stat_activity",
            "Of those that are not reserved. A role without pg_monitor sees zero.",
            unit="percent",
            thresholds=((None, "green"), (75, "orange"), (90, "red")),
        ),
        Panel(
            "Waiting for locks",
            "stat",
            "SELECT count(*) AS \"sessions\" FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
            "Sessions that another one holds up.",
            thresholds=ZERO_IS_GOOD,
        ),
        Panel(
            "Idle in transaction",
            "stat",
            "SELECT count(*) AS \"sessions\" FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'",
            "They keep locks and old rows.",
            thresholds=((None, "green"), (1, "orange")),
        ),
        Panel(
            "Oldest transaction",
            "stat",
            'SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 AS "age"\n'
            "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
            "A migration's lock waits for it.",
            unit="s",
            thresholds=((None, "green"), (60, "orange"), (600, "red")),
        ),
        Panel(
            "WAL since the last reset",
            "stat",
            "SELECT (60 * wal_bytes / greatest(extract(epoch FROM clock_timestamp() - stats_reset), 1))::float8\n"
            '  AS "bytes a minute"\nFROM pg_stat_wal',
            "Bytes a minute on average. The watch of a run measures the rate itself.",
            unit="bytes",
        ),
        Panel(
            "Prepared transactions",
            "stat",
            'SELECT count(*) AS "transactions" FROM pg_prepared_xacts',
            "One that is forgotten holds its locks for ever.",
            thresholds=ZERO_IS_GOOD,
        ),
        Panel(
            "Pools: who has the connections",
            "table",
            'SELECT datname AS "database", usename AS "user", application_name AS "application",\n'
            '       coalesce(host(client_addr), \'local\') AS "from", count(*) AS "connections",\n'
            "       count(*) FILTER (WHERE state = 'active') AS \"active\",\n"
            "       count(*) FILTER (WHERE state = 'idle') AS \"idle\",\n"
            "       count(*) FILTER (WHERE state LIKE 'idle in transaction%') AS \"idle in transaction\"\n"
            "FROM pg_stat_activity WHERE backend_type = 'client backend'\n"
            "GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4 LIMIT 100",
            "Server connections. Those who wait at PgBouncer are seen by pgbouncer_info only.",
            width=12,
            height=9,
        ),
        Panel(
            "Who waits for whom",
            "table",
            'SELECT a.pid, a.application_name AS "application", a.usename AS "user", l.mode,\n'
            '       l.relation::regclass::text AS "table",\n'
            '       extract(epoch FROM clock_timestamp() - a.state_change)::float8 AS "waits",\n'
            "       array_to_string(pg_blocking_pids(a.pid), ', ') AS \"blocked by\"\n"
            "FROM pg_stat_activity AS a JOIN pg_locks AS l ON l.pid = a.pid AND NOT l.granted\n"
            "ORDER BY 6 DESC LIMIT 100",
            "Without the text of queries, which may hold values. A table of another database has no name here.",
            width=12,
            height=9,
            units={"waits": "s"},
        ),
        Panel(
            "Strong locks held",
            "table",
            'SELECT l.pid, a.application_name AS "application", l.mode, l.relation::regclass::text AS "table",\n'
            '       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS "age"\n'
            "FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)\n"
            "WHERE l.granted AND l.locktype = 'relation'\n"
            "  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())\n"
            "  AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')\n"
            "ORDER BY 5 DESC NULLS LAST LIMIT 100",
            "Those that keep writers or readers waiting.",
            width=12,
            height=9,
            units={"age": "s"},
        ),
        Panel(
            "WAL that slots hold back",
            "table",
            'SELECT slot_name AS "slot", slot_type AS "type", active, wal_status AS "status",\n'
            "       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()\n"
            "                            ELSE pg_current_wal_lsn() END,\n"
            '                       restart_lsn)::float8 AS "held"\n'
            "FROM pg_replication_slots ORDER BY 5 DESC NULLS LAST",
            "A slot that nobody reads fills the disk.",
            width=12,
            height=9,
            units={"held": "bytes"},
        ),
        Panel(
            "Replicas",
            "table",
            'SELECT application_name AS "replica", state, sync_state AS "synchronous",\n'
            "       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()\n"
            "                            ELSE pg_current_wal_lsn() END,\n"
            '                       replay_lsn)::float8 AS "behind",\n'
            '       extract(epoch FROM replay_lag)::float8 AS "lag"\n'
            "FROM pg_stat_replication ORDER BY 4 DESC NULLS LAST",
            "The lag is empty while nothing is written.",
            width=12,
            height=9,
            units={"behind": "bytes", "lag": "s"},
        ),
        Panel(
            "Databases",
            "table",
            'SELECT datname AS "database", numbackends AS "connections", xact_commit AS "commits",\n'
            '       xact_rollback AS "rollbacks", deadlocks, temp_bytes AS "temporary files",\n'
            "       CASE WHEN has_database_privilege(datname, 'CONNECT')\n"
            '            THEN pg_database_size(datname) END AS "size"\n'
            "FROM pg_stat_database WHERE datname IS NOT NULL ORDER BY 7 DESC NULLS LAST",
            "Since the statistics were reset.",
            width=12,
            height=9,
            units={"temporary files": "bytes", "size": "bytes"},
        ),
    ],
    since="now-1h",
    refresh="10s",
)

REGISTRY = Board(
    "surefoot-databases",
    "Surefoot: registered databases",
    "The health of the databases that projects have registered, as the health check wrote it.",
    [
        Panel(
            "Registered",
            "stat",
            'SELECT count(*) AS "databases" FROM ${registry}',
            "All rows of the registry.",
            width=6,
        ),
        Panel(
            "Unhealthy",
            "stat",
            'SELECT count(*) AS "databases" FROM ${registry}\n'
            "WHERE health_check_status = 'unhealthy' AND status = 'active'",
            "Of those that are active.",
            width=6,
            thresholds=ZERO_IS_GOOD,
        ),
        Panel(
            "Never checked, or not for an hour",
            "stat",
            'SELECT count(*) AS "databases" FROM ${registry}\n'
            "WHERE status = 'active'\n"
            "  AND (last_health_check_at IS NULL OR last_health_check_at < now() - interval '1 hour')",
            "An old answer is no answer.",
            width=6,
            thresholds=((None, "green"), (1, "orange")),
        ),
        Panel(
            "Oldest check",
            "stat",
            'SELECT extract(epoch FROM now() - min(last_health_check_at))::float8 AS "age"\n'
            "FROM ${registry} WHERE status = 'active'",
            "Of those that were checked.",
            width=6,
            unit="s",
        ),
        Panel(
            "Databases",
            "table",
            'SELECT name, type, host, port, status, health_check_status AS "health",\n'
            '       last_health_check_at AS "checked",\n'
            '       left(health_check_error, 200) AS "error", ssl_enabled AS "tls"\n'
            "FROM ${registry} ORDER BY health_check_status = 'unhealthy' DESC, type, name LIMIT 500",
            "Without the connection strings, which the role may not read.",
            width=24,
            height=10,
        ),
        Panel(
            "Checks that were written",
            "timeseries",
            "SELECT $__timeGroupAlias(last_health_check_at, $__interval), health_check_status AS metric,\n"
            '       count(*) AS "databases"\n'
            "FROM ${registry} WHERE $__timeFilter(last_health_check_at)\n"
            "GROUP BY 1, 2 ORDER BY 1",
            "When each database was checked last, and how it was.",
            width=24,
            height=8,
        ),
    ],
    {"registry": ("Table of the registry", "platform.databases")},
    since="now-24h",
)

BOARDS = (HEALTH, RUNS, SERVER, REGISTRY)


def _variables(board: Board) -> list[dict[str, t.Any]]:
    found: list[dict[str, t.Any]] = [
        {
            "type": "datasource",
            "name": "datasource",
            "label": "Database",
            "description": "A PostgreSQL data source that logs in with the monitoring role",
            "query": TYPE,
            "regex": "",
            "refresh": 1,
            "hide": 0,
            "multi": False,
            "includeAll": False,
            "skipUrlSync": False,
            "options": [],
        }
    ]
    for name, (label, value) in board.variables.items():
        found.append(
            {
                # A constant, not a text box: it becomes part of the SQL.
                "type": "constant",
                "name": name,
                "label": label,
                "query": value,
                "current": {"text": value, "value": value, "selected": True},
                "hide": 2,
                "skipUrlSync": True,
                "options": [],
            }
        )
    return found


def _options(panel: Panel) -> dict[str, t.Any]:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
            "wideLayout": True,
        }
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _custom(panel: Panel) -> dict[str, t.Any]:
    if panel.kind == "timeseries":
        return {"custom": {"drawStyle": "bars", "fillOpacity": 60, "lineWidth": 1, "showPoints": "auto"}}
    if panel.kind == "table":
        return {"custom": {"align": "auto", "inspect": False, "cellOptions": {"type": "auto"}}}
    return {}


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, t.Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "targets": [
            {
                "refId": "A",
                "datasource": DATASOURCE,
                "format": "time_series" if panel.kind == "timeseries" else "table",
                "editorMode": "code",
                "rawQuery": True,
                "rawSql": panel.sql,
            }
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"value": value, "color": color} for value, color in panel.thresholds],
                },
                **_custom(panel),
            },
            "overrides": [
                {
                    "matcher": {"id": "byName", "options": column},
                    "properties": [{"id": "unit", "value": unit}],
                }
                for column, unit in panel.units.items()
            ],
        },
        "options": _options(panel),
    }


def dashboard(board: Board) -> dict[str, t.Any]:
    """The board as Grafana imports it."""
    panels: list[dict[str, t.Any]] = []
    x = y = row = 0
    for number, panel in enumerate(board.panels, start=1):
        if x + panel.width > WIDTH:
            x, y, row = 0, y + row, 0
        panels.append(_panel(panel, number, x, y))
        x, row = x + panel.width, max(row, panel.height)
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.says,
        "tags": ["surefoot", "postgresql"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "utc",
        "time": {"from": board.since, "to": "now"},
        "refresh": board.refresh,
        "fiscalYearStartMonth": 0,
        "links": [],
        "annotations": {"list": []},
        "templating": {"list": _variables(board)},
        "panels": panels,
    }


def text(board: Board) -> str:
    """The content of its file."""
    return json.dumps(dashboard(board), indent=2) + "\n"


def main() -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        (DIRECTORY / f"{board.uid}.json").write_text(text(board), encoding="utf-8")


if __name__ == "__main__":
    main()
