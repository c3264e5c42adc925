# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide's SQL runs against a real ledger, and what it says of a run that was stopped is so."""

from __future__ import annotations

import contextlib
import pathlib
import re
import typing as t

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    DriftError,
    LedgerError,
    OutcomeUnknown,
    SqlError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._status import Status, read_status
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    Background,
    MigrationSet,
    applied,
    attempts,
    exists,
    fails,
    nothing_left,
    run,
    sessions,
    wait_until,
    worker_running,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
TYPES = {"timestamptz": "timestamp with time zone"}


def sql_blocks(page: str, section: str = "") -> list[str]:
    """The page's SQL; with a heading, that of its section only."""
    text = (DOCS / page).read_text(encoding="utf-8")
    if section:
        text = re.split(r"^#+ ", text.split(f"# {section}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    found = re.findall(r"```sql\n(.*?)```", text, re.S)
    assert found, f"{page}: no SQL"
    return [str(block) for block in found]


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    plan = MigrationSet(tmp_path / "set", name="app")
    plan.add("001_create_customers", "CREATE TABLE customers (id int);", rollback="DROP TABLE customers;")
    plan.add("002_customers_status", "ALTER TABLE customers ADD status text;")
    return plan


@pytest.fixture
def roles(database: Database) -> t.Iterator[dict[str, str]]:
    """The pages' roles under names of this test's own, because roles are the whole server's."""
    names = {name: f"{name}_{database.name}" for name in ("auditor", "migrator", "second_migrator")}
    for name in names.values():
        database.query(f"CREATE ROLE {name} LOGIN")
    yield names
    for name in names.values():
        database.query(f"DROP OWNED BY {name} CASCADE")
    for name in names.values():
        database.query(f"DROP ROLE {name}")


def with_roles(sql: str, roles: dict[str, str]) -> str:
    return re.sub(r"\b(auditor|second_migrator|migrator)\b", lambda found: roles[found.group()], sql)


def status(plan: MigrationSet, params: dict[str, t.Any], history: int = 20) -> Status:
    return read_status(
        load_plan(plan.path),
        ConnectionOptions.from_params(params),
        ledger_schema="surefoot",
        to=None,
        only=(),
        include_manual=(),
        history=history,
        validate=True,
        allow_session_pooler=False,
    )


def test_every_table_and_column_of_the_ledger_is_described(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE t (id int PRIMARY KEY, c text)")
    step = {"table": "public.t", "column": "c", "to": "integer", "key": "id", "on_invalid": "quarantine"}
    plan.add("003", steps=[{"change_type": step}])  # makes the table quarantine
    run(plan, database)
    documented = []
    text = (DOCS / "ledger.md").read_text(encoding="utf-8")
    for table, body in re.findall(r"^### `(\w+)`[^\n]*\n(.*?)(?=^##)", text, re.M | re.S):
        rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", body, re.M)
        documented += [(table, column, TYPES.get(kind, kind)) for column, kind, _meaning in rows]
    assert documented
    real = database.query(
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'surefoot'"
    )
    assert sorted(documented) == sorted(real)


@pytest.mark.parametrize("page", ["ledger.md", "how-it-applies.md"])
def test_the_sql_of_the_page_runs(page: str, plan: MigrationSet, database: Database, roles: dict[str, str]) -> None:
    run(plan, database)
    with contextlib.closing(psycopg2.connect(database.dsn)) as connection, connection.cursor() as cursor:
        for block in sql_blocks(page):
            if block.startswith("CREATE SCHEMA surefoot "):  # there is one already; see the test of its own
                continue
            cursor.execute(with_roles(block, roles))
        connection.rollback()


def test_the_query_of_who_applied_what_names_both(plan: MigrationSet, database: Database) -> None:
    run(plan, database, run_id="the-run")
    rows = database.query(sql_blocks("ledger.md", "Queries")[0])
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("app", "001_create_customers", "the-run"),
        ("app", "002_customers_status", "the-run"),
    ]
    assert database.query(sql_blocks("ledger.md", "Queries")[2]) == [("CREATE TABLE customers (id int);",)]


def test_an_auditor_reads_with_the_rights_of_the_page(
    plan: MigrationSet, database: Database, roles: dict[str, str]
) -> None:
    run(plan, database)
    params = {**database.params, "login_user": roles["auditor"]}
    with pytest.raises(LedgerError) as caught:
        status(plan, params)
    assert "GRANT USAGE ON SCHEMA surefoot" in str(caught.value)
    database.query(with_roles(sql_blocks("ledger.md", "Rights")[0], roles))
    assert [item["state"] for item in status(plan, params).to_dict()["migrations"]] == ["applied", "applied"]
    database.query(f"REVOKE SELECT ON surefoot.attempts FROM {roles['auditor']}")
    assert status(plan, params, history=0).to_dict()["history"] == []


def test_a_role_without_create_uses_the_schema_an_administrator_made(
    plan: MigrationSet, database: Database, roles: dict[str, str]
) -> None:
    both = f"{roles['migrator']}, {roles['second_migrator']}"
    database.query(f"REVOKE CREATE ON DATABASE {database.name} FROM PUBLIC; GRANT CREATE ON SCHEMA public TO {both}")
    params = {**database.params, "login_user": roles["migrator"]}
    assert "CREATE SCHEMA surefoot" in fails(LedgerError, plan, params).remedy
    made, second = sql_blocks("ledger.md", "Rights")[1:]
    database.query(with_roles(made, roles))
    assert run(plan, params)["applied"] == ["001_create_customers", "002_customers_status"]
    database.query(with_roles(second, roles))
    plan.add("003", "CREATE TABLE orders (id int);")
    assert run(plan, {**database.params, "login_user": roles["second_migrator"]})["applied"] == ["003"]


PROCEDURE = """
CREATE PROCEDURE reorganise() LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO journal VALUES (1);
  COMMIT;
  PERFORM pg_sleep(CASE WHEN (SELECT count(*) FROM journal) > 1 THEN 0 ELSE 60 END);
END $$
"""


@pytest.mark.parametrize(("number", "calls"), [(1, 1), (2, 2)], ids=["marked done", "forgotten"])
def test_a_call_that_was_cut_off_is_repaired_as_the_page_says(
    number: int, calls: int, plan: MigrationSet, database: Database
) -> None:
    database.query("CREATE TABLE journal (i int);" + PROCEDURE)
    plan.add("003_reorganise", "CALL reorganise();\nCREATE TABLE after_it (i int);", transaction=False)
    job = Background(lambda: fails(ConnectionFailed, plan, database))
    pid = wait_until(lambda: worker_running(database, "CALL reorganise"), "the procedure runs")
    wait_until(lambda: database.scalar("SELECT count(*) FROM journal") == 1, "it has committed a part")
    database.query("SELECT pg_terminate_backend(%s)", (pid,))
    job.result()
    error = fails(OutcomeUnknown, plan, database)
    assert "cut off in CALL" in str(error) and "step = 0 AND statement = 0" in error.remedy
    assert attempts(database)[-1] == ("003_reorganise", "deploy", "unknown")
    assert database.scalar("SELECT count(*) FROM journal") == 1  # it was not called again
    assert len(database.query(sql_blocks("ledger.md", "Queries")[3])) == 2
    database.query(sql_blocks("ledger.md", "After outcome unknown")[number])
    assert run(plan, database)["applied"] == ["003_reorganise"]
    assert database.scalar("SELECT count(*) FROM journal") == calls and exists(database, "after_it")


def test_a_half_applied_file_is_not_edited_but_rolled_back_or_forgotten(plan: MigrationSet, database: Database) -> None:
    text = "CREATE TABLE half (i int);\nSELECT 1/0;"
    plan.add("003_reorganise", text, transaction=False, rollback="DROP TABLE IF EXISTS half;")
    fails(SqlError, plan, database)
    plan.file("003_reorganise.sql", "CREATE TABLE half (i int);\nSELECT 1;")
    assert "was changed after a part of it was applied" in str(fails(DriftError, plan, database))
    run(plan, database, state="rolled_back", only=("003_reorganise",))
    assert not exists(database, "half")
    assert run(plan, database)["applied"] == ["003_reorganise"]
    plan.add("004", "CREATE TABLE other (i int);\nSELECT 1/0;", transaction=False)
    fails(SqlError, plan, database)
    database.query("DROP TABLE other")
    (forget,) = sql_blocks("ledger.md", "A half-applied migration that must be corrected")
    database.query(forget.replace("003_reorganise", "004"))
    plan.file("004.sql", "CREATE TABLE other (i int);")
    assert run(plan, database, on_drift="warn")["applied"] == ["004"]


def test_what_was_undone_by_hand_is_applied_again_after_the_repair(plan: MigrationSet, database: Database) -> None:
    run(plan, database)
    database.query("ALTER TABLE customers DROP status")
    (repair,) = sql_blocks("ledger.md", "A migration that was applied or undone by hand")
    database.query(repair)
    assert attempts(database)[-1] == ("002_customers_status", "rollback", "succeeded")
    assert run(plan, database, on_drift="warn")["applied"] == ["002_customers_status"]


def test_a_renamed_migration_is_the_same_one(plan: MigrationSet, database: Database) -> None:
    run(plan, database)
    plan.remove("002_customers_status")
    plan.add("002_customers_state", (pathlib.Path(plan.path) / "002_customers_status.sql").read_bytes())
    assert "not in the plan" in str(fails(DriftError, plan, database))
    (rename,) = sql_blocks("ledger.md", "A renamed set or migration")
    database.query(rename)
    assert run(plan, database)["changed"] is False


def test_stopping_from_the_server_leaves_what_the_page_says(plan: MigrationSet, database: Database) -> None:
    watching, blocked, ending = sql_blocks("how-it-applies.md", "Stopping a run")
    plan.add("003", "CREATE TABLE half (i int);\nLOCK TABLE customers;\nSELECT pg_sleep(60);", lock_timeout="60s")
    run(plan, database, to="002_customers_status")
    options: dict[str, t.Any] = {"run_id": "20261122T030000Z-5f2c1a", "lock_budget": 60.0, "statement_timeout": 60.0}
    with contextlib.closing(psycopg2.connect(database.dsn, application_name="a reader")) as reader:
        with reader.cursor() as cursor:
            cursor.execute("SELECT * FROM customers")
        job = Background(lambda: fails(ConnectionFailed, plan, database, **options))
        wait_until(lambda: worker_running(database, "LOCK TABLE"), "the worker waits")
        names = [row[1] for row in database.query(watching)]
        assert names == ["surefoot:control 20261122T030000Z-5f2c1a", "surefoot:worker 20261122T030000Z-5f2c1a"]
        assert [row[1] for row in database.query(blocked)] == ["a reader"]
        assert [row[1] for row in database.query(ending)] == [True]
        job.result()
    nothing_left(database)
    assert not exists(database, "half") and attempts(database)[-1] == ("003", "deploy", "failed")
    plan.add("003", "CREATE TABLE half (i int);")
    assert run(plan, database)["applied"] == ["003"]


def test_a_run_without_its_control_connection_ends_and_records_no_outcome(
    plan: MigrationSet, database: Database
) -> None:
    plan.file("001_create_customers.sql", "CREATE TABLE customers (id int);\nSELECT pg_sleep(1);")
    job = Background(lambda: fails(ConnectionFailed, plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "the worker works")
    (control,) = sessions(database, "surefoot:control%")
    database.query("SELECT pg_terminate_backend(%s)", (control,))
    job.result()
    done = applied(database)
    assert done in ([], ["001_create_customers"]) and exists(database, "customers") == bool(done)
    assert database.query(sql_blocks("ledger.md", "Queries")[4])[0][1] == "app"
    nothing_left(database)
    run(plan, database)
    assert applied(database) == ["001_create_customers", "002_customers_status"]


def test_a_violating_key_stays_out_of_the_server_log_with_terse_verbosity_and_without(
    plan: MigrationSet, database: Database, roles: dict[str, str]
) -> None:
    secret = "k3y-of-" + database.name
    database.query(f"GRANT CREATE ON DATABASE {database.name} TO {roles['migrator']}")
    database.query(f"CREATE SCHEMA app AUTHORIZATION {roles['migrator']}")
    set_ = MigrationSet(pathlib.Path(plan.path) / "other", secret_variables=["key"])
    insert = "CREATE TABLE app.keys (k text UNIQUE);\nINSERT INTO app.keys SELECT :'key' FROM generate_series(1, 2);"
    set_.add("001", insert)
    params = {**database.params, "login_user": roles["migrator"]}
    role = roles["migrator"]
    text = (DOCS / "secrets.md").read_text(encoding="utf-8")
    (terse,) = re.findall(r"`(ALTER ROLE migrator SET log_error_verbosity = terse)`", " ".join(text.split()))
    database.query(terse.replace("migrator", role))
    error = fails(SqlError, set_, params, secrets={"key": secret})
    assert error.sqlstate == "23505" and secret not in str(error)
    assert secret not in database.server.log_text()
    database.query(f"ALTER ROLE {role} RESET log_error_verbosity")
    fails(SqlError, set_, params, secrets={"key": secret})
    assert secret not in database.server.log_text()
