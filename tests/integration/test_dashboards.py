# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each panel's SQL runs as the read-only role of the guide, macros expanded as Grafana does. No Grafana runs."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import typing as t

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from ansible_collections.surefoot.dbops.tests.support import lancio
from ansible_collections.surefoot.dbops.tests.support.migrations import MigrationSet, run
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

pytestmark = pytest.mark.versions

ROOT = pathlib.Path(__file__).resolve().parents[2]
BOARDS = {path.stem: json.loads(path.read_text("utf-8")) for path in (ROOT / "playbooks/files/grafana").glob("*.json")}
PANELS = [
    pytest.param(board, panel, id=f"{name}:{panel['id']}:{panel['title']}")
    for name, board in sorted(BOARDS.items())
    for panel in board["panels"]
]
FROM, TO = "2020-01-01T00:00:00Z", "2100-01-01T00:00:00Z"


def expand(sql: str, board: dict[str, t.Any]) -> str:
    """Variables, then the macros of Grafana's PostgreSQL data source."""
    for variable in board["templating"]["list"]:
        if variable["type"] == "constant":
            sql = sql.replace("${" + variable["name"] + "}", variable["query"])
    sql = re.sub(r"\$__timeFilter\(([^()]+)\)", rf"\1 BETWEEN '{FROM}' AND '{TO}'", sql)
    sql = sql.replace("$__interval", "'3600s'")
    sql = re.sub(
        r"\$__timeGroupAlias\(([^(),]+),\s*'(\d+)s'\)",
        r'floor(extract(epoch from \1)/\2)*\2 AS "time"',
        sql,
    )
    assert "$" not in sql, f"not expanded: {sql}"
    return sql


@pytest.fixture(scope="module")
def platform(pg_server: PgServer, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Database]:
    with temporary_database(pg_server) as database:
        lancio.apply(database)
        # For a ledger: the platform's own migrations keep to a lock budget, which a busy machine may not.
        run(MigrationSet(tmp_path_factory.mktemp("set"), name="app").add("001", "CREATE TABLE ours (i int);"), database)
        database.query(
            "CREATE TABLE parent (a int, b int, PRIMARY KEY (a, b)); CREATE TABLE child (x int, y int);"
            " INSERT INTO parent VALUES (1, 1); INSERT INTO child VALUES (1, 1), (1, 2), (2, NULL), (3, 3);"
            " ALTER TABLE child ADD CONSTRAINT child_parent FOREIGN KEY (x, y) REFERENCES parent (a, b) NOT VALID;"
            ' CREATE TABLE "Rows_Quarantine" (id int); INSERT INTO "Rows_Quarantine" SELECT generate_series(1, 7);'
        )
        connection = database.connect()
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute("CREATE TABLE twice (i int); INSERT INTO twice VALUES (1), (1)")
            with contextlib.suppress(psycopg2.errors.UniqueViolation):
                cursor.execute("CREATE UNIQUE INDEX CONCURRENTLY twice_i ON twice (i)")
        yield database


@pytest.fixture(scope="module")
def grafana(platform: Database) -> t.Iterator[psycopg2.extensions.connection]:
    """A connection of the role that docs/dashboards.md makes, by the statements of that page."""
    page = (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8")
    role = f"grafana_{platform.name}"
    for block in re.findall(r"```sql\n(.*?)```", page, re.S):
        platform.query(re.sub(r"\bgrafana\b", role, block).replace("DATABASE app", f"DATABASE {platform.name}"))
    connection = psycopg2.connect(platform.dsn)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"SET SESSION AUTHORIZATION {role}")
            cursor.execute("SET default_transaction_read_only = on")
        yield connection
    finally:
        connection.close()
        platform.query(f"DROP OWNED BY {role} CASCADE")
        platform.query(f"DROP ROLE {role}")


def rows(connection: t.Any, board: dict[str, t.Any], panel: dict[str, t.Any]) -> tuple[list[str], list[t.Any]]:
    with connection.cursor() as cursor:
        cursor.execute(expand(panel["targets"][0]["rawSql"], board))
        return [column.name for column in cursor.description], cursor.fetchall()


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_the_sql_of_the_panel_runs_as_a_read_only_role_of_pg_monitor(
    grafana: t.Any, board: dict[str, t.Any], panel: dict[str, t.Any]
) -> None:
    names, found = rows(grafana, board, panel)
    assert len(set(names)) == len(names)
    if panel["type"] == "stat":
        assert len(found) == 1 and len(names) == 1
    if panel["type"] == "timeseries":
        assert names[:2] == ["time", "metric"]
    overridden = {item["matcher"]["options"] for item in panel["fieldConfig"]["overrides"]}
    assert overridden <= set(names)


def value(grafana: t.Any, board: str, title: str) -> t.Any:
    panel = next(item for item in BOARDS[board]["panels"] if item["title"] == title)
    return rows(grafana, BOARDS[board], panel)[1]


def test_the_counts_are_those_of_the_data(grafana: t.Any, platform: Database) -> None:
    health = "surefoot-health"
    # The page lets the role read one of the tables only where it says so.
    assert value(grafana, health, "Invalid indexes") == [(1,)]
    assert value(grafana, health, "Constraints not validated") == [(1,)]
    title = "Foreign keys not validated, and their orphans"
    assert [row[:4] for row in value(grafana, health, title)] == [("child", "child_parent", "parent", None)]
    assert value(grafana, health, "Orphaned rows") == [(0,)]
    role = f"grafana_{platform.name}"
    platform.query(f'GRANT SELECT ON parent, child, "Rows_Quarantine" TO {role}')
    # (1, 2) and (3, 3); a key that is NULL in part refers to nothing and is none.
    assert value(grafana, health, "Orphaned rows") == [(2,)]
    assert value(grafana, health, title)[0][3] == 2
    assert value(grafana, health, "Rows in quarantine") == [(7,)]
    security = value(grafana, health, "Row level security")
    assert security and all(row[2] for row in security)
    platform.query("ALTER TABLE platform.projects DISABLE ROW LEVEL SECURITY")
    try:
        assert value(grafana, health, "Row level security")[0][:3] == ("platform", "projects", False)
    finally:
        platform.query("ALTER TABLE platform.projects ENABLE ROW LEVEL SECURITY")


def test_runs_and_registered_databases_are_shown(grafana: t.Any, platform: Database) -> None:
    applied = platform.scalar("SELECT count(*) FROM surefoot.applied")
    assert value(grafana, "surefoot-runs", "Migrations applied") == [(applied,)]
    assert value(grafana, "surefoot-runs", "What is applied")
    assert value(grafana, "surefoot-runs", "Duration of migrations")
    registered = platform.scalar("SELECT count(*) FROM platform.databases")
    assert registered and value(grafana, "surefoot-databases", "Registered") == [(registered,)]
    assert value(grafana, "surefoot-databases", "Never checked, or not for an hour") == [(registered,)]


def test_connections_of_others_are_seen(grafana: t.Any, platform: Database) -> None:
    with contextlib.closing(platform.connect(application_name="somebody else")):
        seen = {row[2] for row in value(grafana, "surefoot-server", "Pools: who has the connections")}
    assert "somebody else" in seen
    assert value(grafana, "surefoot-server", "Connections used")[0][0] > 0


def test_the_role_reads_neither_connection_strings_nor_texts_and_writes_nothing(grafana: t.Any) -> None:
    for sql in (
        "SELECT connection_string_encrypted FROM platform.databases",
        "SELECT executed_text FROM surefoot.attempts",
        "SELECT * FROM platform.credentials",
    ):
        with grafana.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(sql)
    with grafana.cursor() as cursor, pytest.raises(psycopg2.Error):
        cursor.execute("CREATE TABLE mine (i int)")
