# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A column's type changed while clients use it: converted, quarantined, refused, killed, and taken back."""

from __future__ import annotations

import contextlib
import pathlib
import random
import threading
import time
import typing as t
import uuid

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SqlError, SurefootError, VerificationFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._rehearsal import RehearsalRequest, rehearse
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    MigrationSet,
    applied,
    dump,
    fails,
    run,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

pytestmark = pytest.mark.versions

TENANTS = [str(uuid.UUID(int=number)) for number in range(1, 6)]
SEED = f"""
CREATE SCHEMA app;
CREATE ROLE reader_of_test;
CREATE TABLE app.tenants (id uuid PRIMARY KEY);
CREATE TABLE app.profiles (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id text NOT NULL DEFAULT '{TENANTS[0]}',
    name text
);
CREATE TABLE app.roles (id integer PRIMARY KEY, profile bigint REFERENCES app.profiles ON DELETE CASCADE, role text);
CREATE TABLE app.logins (profile bigint, at integer);
CREATE INDEX profiles_tenant ON app.profiles (tenant_id, name DESC);
COMMENT ON COLUMN app.profiles.tenant_id IS 'it''s 100% the tenant';
ALTER TABLE app.profiles ALTER tenant_id SET STATISTICS 200;
INSERT INTO app.tenants SELECT unnest(ARRAY{TENANTS}::uuid[]);
INSERT INTO app.profiles (tenant_id, name)
SELECT CASE n % 4 WHEN 0 THEN upper(id::text) WHEN 1 THEN '{{' || id || '}}' ELSE id::text END, 'p' || n
FROM generate_series(1, 400) AS n JOIN (SELECT id, row_number() OVER () AS place FROM app.tenants) AS x
ON x.place = 1 + n % 5;
INSERT INTO app.roles SELECT n, n, 'r' || n FROM generate_series(1, 400) AS n;
INSERT INTO app.logins SELECT n, n FROM generate_series(1, 400) AS n;
"""
ROLE_SEED = "DO $$ BEGIN CREATE ROLE reader_of_test; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
CHANGE: dict[str, t.Any] = {
    "table": "app.profiles",
    "column": "tenant_id",
    "to": "uuid",
    "key": "id",
    "default": f"'{TENANTS[0]}'",
    "not_null": True,
    "indexes": [{"name": "profiles_tenant", "columns": ["tenant_id", "name DESC"]}],
    "references": {
        "name": "profiles_tenant_fk",
        "table": "app.tenants",
        "columns": "id",
        "on_delete": "cascade",
        "deferrable": True,
        "initially": "deferred",
    },
    "batch": 30,
}
NOBODY = "00000000-0000-0000-0000-000000000000"
DIRTY = (
    "UPDATE app.profiles SET tenant_id = 'not a uuid ' || id WHERE id IN (10, 20, 30);"
    " UPDATE app.profiles SET tenant_id = '99999999-0000-0000-0000-000000000000' WHERE id IN (40, 50)"
)


def change(**fields: t.Any) -> dict[str, t.Any]:
    merged = {**CHANGE, **fields}
    return {"change_type": {key: value for key, value in merged.items() if value is not None}}


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


@pytest.fixture
def app(database: Database) -> Database:
    database.query(ROLE_SEED + SEED.replace("CREATE ROLE reader_of_test;", ""))
    database.query("GRANT SELECT (tenant_id) ON app.profiles TO reader_of_test")
    return database


def schema(database: Database) -> str:
    return dump(database, "--schema-only", "--exclude-schema=surefoot")


def rows(database: Database) -> dict[str, t.Any]:
    return {
        "profiles": database.query("SELECT id, tenant_id::text, name FROM app.profiles ORDER BY id"),
        "roles": database.query("SELECT * FROM app.roles ORDER BY id"),
        "logins": database.query("SELECT * FROM app.logins ORDER BY 1, 2"),
    }


def normal(value: str) -> str:
    return str(uuid.UUID(value))


def type_of(database: Database) -> str:
    return str(
        database.scalar(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'app.profiles'::regclass AND attname = 'tenant_id'"
        )
    )


def test_every_value_is_converted_and_everything_carried_over(plan: MigrationSet, app: Database) -> None:
    before = rows(app)["profiles"]
    plan.add("001", steps=[change()])
    results = run(plan, app)
    assert results["applied"] == ["001"] and all(check["passed"] for check in results["checks"])
    assert type_of(app) == "uuid"
    assert rows(app)["profiles"] == [(number, normal(value), name) for number, value, name in before]
    described = app.query(
        "SELECT attnotnull, col_description(attrelid, attnum), attstattarget, attacl::text,"
        " (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum)"
        " FROM pg_attribute WHERE attrelid = 'app.profiles'::regclass AND attname = 'tenant_id'"
    )[0]
    assert described == (
        True, "it's 100% the tenant", 200, "{reader_of_test=r/postgres}", f"'{TENANTS[0]}'::uuid",
    )  # fmt: skip
    assert app.scalar("SELECT pg_get_indexdef('app.profiles_tenant'::regclass)").endswith("(tenant_id, name DESC)")
    assert app.query("SELECT convalidated, pg_get_constraintdef(oid) FROM pg_constraint WHERE conname LIKE '%_fk'") == [
        (
            True,
            "FOREIGN KEY (tenant_id) REFERENCES app.tenants(id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED",
        )
    ]
    assert run(plan, app)["changed"] is False


def test_rollback_brings_back_schema_old_values_and_new_rows(plan: MigrationSet, app: Database) -> None:
    before, old = schema(app), rows(app)["profiles"]
    plan.add("001", steps=[change()])
    run(plan, app)
    app.query(f"UPDATE app.profiles SET tenant_id = '{TENANTS[2]}' WHERE id = 1")
    app.query(f"INSERT INTO app.profiles (tenant_id, name) VALUES ('{TENANTS[3]}', 'new')")
    app.query("INSERT INTO app.profiles (name) VALUES ('default')")
    run(plan, app, state="rolled_back", to="001")
    assert schema(app) == before and type_of(app) == "text"
    now = rows(app)["profiles"]
    assert now[0] == (1, TENANTS[2], old[0][2]) and now[1:400] == old[1:]  # also in their old spelling
    assert [row[1:] for row in now[400:]] == [(TENANTS[3], "new"), (TENANTS[0], "default")]
    assert run(plan, app)["applied"] == ["001"] and type_of(app) == "uuid"


def test_insert_without_columns_still_works_after_the_swap(plan: MigrationSet, app: Database) -> None:
    """The old column keeps its place until contract_type."""
    plan.add("001", steps=[change()])
    run(plan, app)
    app.query(
        f"INSERT INTO app.profiles OVERRIDING SYSTEM VALUE VALUES (1000, '{TENANTS[1].upper()}', 'old style', NULL)"
    )
    assert app.scalar("SELECT tenant_id::text FROM app.profiles WHERE id = 1000") == TENANTS[1]


def test_abort_counts_lists_and_changes_nothing(plan: MigrationSet, app: Database) -> None:
    app.query(DIRTY)
    before, old = schema(app), rows(app)
    plan.add("001", steps=[change()])
    error = fails(VerificationFailed, plan, app)
    assert "5 rows of app.profiles cannot be changed: 3 invalid value (22P02), 2 no parent" in str(error)
    assert error.details["total"] == 5
    assert [row["key"] for row in error.details["rows"]] == [[10], [20], [30], [40], [50]]
    assert schema(app) == before and rows(app) == old and applied(app) == []
    assert app.scalar("SELECT count(*) FROM surefoot.progress") == 0
    assert error.results["unfinished"] is None


def test_quarantine_takes_rows_with_their_dependents_and_gives_them_back(plan: MigrationSet, app: Database) -> None:
    app.query(DIRTY)
    before, old = schema(app), rows(app)
    dependents = [{"table": "app.logins", "columns": "profile", "references": "id"}]
    plan.add("001", steps=[change(on_invalid="quarantine", dependents=dependents)])
    run(plan, app)
    moved = {10, 20, 30, 40, 50}
    assert {row[0] for row in rows(app)["profiles"]} == set(range(1, 401)) - moved
    assert {row[0] for row in rows(app)["roles"]} == set(range(1, 401)) - moved
    assert {row[0] for row in rows(app)["logins"]} == set(range(1, 401)) - moved
    kept = app.query("SELECT key ->> 0, reason, row ->> 'name', dependents FROM surefoot.quarantine ORDER BY id")
    assert [(key, reason) for key, reason, _name, _more in kept] == [
        ("10", "invalid value (22P02)"),
        ("20", "invalid value (22P02)"),
        ("30", "invalid value (22P02)"),
        ("40", "no parent"),
        ("50", "no parent"),
    ]
    assert {item["table"] for item in kept[0][3]} == {"app.roles", "app.logins"}
    run(plan, app, state="rolled_back", to="001")
    assert schema(app) == before and rows(app) == old
    assert app.scalar("SELECT count(*) FROM surefoot.quarantine") == 0


def test_row_whose_place_was_taken_stays_in_the_quarantine(plan: MigrationSet, app: Database) -> None:
    app.query(DIRTY)
    plan.add("001", steps=[change(on_invalid="quarantine")])
    run(plan, app)
    app.query(f"INSERT INTO app.profiles (id, tenant_id) OVERRIDING SYSTEM VALUE VALUES (10, '{TENANTS[0]}')")
    results = run(plan, app, state="rolled_back", to="001")
    assert any("stays there: 23505" in note for note in results["notes"])
    assert app.query("SELECT key ->> 0 FROM surefoot.quarantine") == [("10",)]
    assert app.scalar("SELECT count(*) FROM app.profiles") == 400


REFUSED = {
    "a view": ("CREATE VIEW app.v AS SELECT tenant_id FROM app.profiles", {}, "is used by rule _RETURN on view app.v"),
    "a check": (
        "ALTER TABLE app.profiles ADD CHECK (tenant_id <> 'x')",
        {},
        "is used by constraint profiles_tenant_id",
    ),
    "a policy": ("CREATE POLICY p ON app.profiles USING (tenant_id = 'x')", {}, "is used by policy p"),
    "an index": ("CREATE INDEX other ON app.profiles (tenant_id)", {}, "is used by index app.other"),
    "not null": ("SELECT 1", {"not_null": False}, "is NOT NULL, and would not be so afterwards"),
    "a default": ("SELECT 1", {"default": None}, "has a default, and would have none afterwards"),
    "a name": (
        "CREATE TABLE app.ix (i int)",
        {"indexes": [{"name": "ix", "columns": "tenant_id"}]},
        "ix exists and is",
    ),
    "a constraint": (
        "ALTER TABLE app.profiles ADD CONSTRAINT profiles_tenant_fk CHECK (id > 0)",
        {},
        "has a constraint profiles_tenant_fk",
    ),
    "the type": ("SELECT 1", {"to": "text"}, "is of that type already"),
    "no table": ("SELECT 1", {"table": "app.nothing"}, "there is no table app.nothing"),
    "no column": ("SELECT 1", {"column": "nothing", "indexes": None}, "there is no column app.profiles.nothing"),
    "no parent": ("DROP TABLE app.tenants", {}, "there is no table app.tenants"),
}


@pytest.mark.parametrize("policy", ["abort", "quarantine"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_lost_is_refused_before_anything_is_there(
    what: str, policy: str, plan: MigrationSet, app: Database
) -> None:
    sql, fields, message = REFUSED[what]
    app.query(sql)
    before = schema(app)
    plan.add("001", steps=[change(**{**fields, "on_invalid": policy})])
    error = fails(SqlError, plan, app)
    assert message in str(error) and error.remedy
    assert schema(app) == before
    if app.scalar("SELECT count(*) FROM surefoot.progress"):
        run(plan, app, state="rolled_back", to="001")
    assert schema(app) == before


def test_expression_that_cannot_work_fails_before_clients_meet_it(plan: MigrationSet, app: Database) -> None:
    before = schema(app)
    plan.add("001", steps=[change(using="no_such_function(tenant_id)", on_invalid="quarantine")])
    assert fails(SqlError, plan, app).sqlstate == "42883"
    assert schema(app) == before


def test_contract_removes_the_old_column_and_the_way_back(plan: MigrationSet, app: Database) -> None:
    plan.add("001", steps=[change()])
    contract = {"contract_type": {"table": "app.profiles", "column": "tenant_id"}}
    plan.add("002", steps=[contract], requires=["001"], manual="when nobody goes back any more")
    assert run(plan, app)["applied"] == ["001"]
    assert run(plan, app, include_manual=("002",))["applied"] == ["002"]
    text = schema(app)
    assert "surefoot_" not in text and type_of(app) == "uuid"
    app.query(f"UPDATE app.profiles SET tenant_id = '{TENANTS[1]}' WHERE id = 1")


def test_other_types_and_expressions(plan: MigrationSet, app: Database) -> None:
    app.query('CREATE TABLE app."Odd" ("Key" text PRIMARY KEY, "Am%ount\'s" integer)')
    app.query(
        'INSERT INTO app."Odd" SELECT n::text, n FROM generate_series(1, 50) AS n; INSERT INTO app."Odd" VALUES (0)'
    )
    before = schema(app)
    step = {
        "change_type": {
            "table": 'app."Odd"',
            "column": '"Am%ount\'s"',
            "to": "numeric(12,2)",
            "key": '"Key"',
            "using": '"Am%ount\'s" / 100.0',
            "back": '("Am%ount\'s" * 100)::integer',
        }
    }
    plan.add("001", steps=[step])
    run(plan, app)
    assert app.scalar('SELECT sum("Am%%ount\'s")::text FROM app."Odd"', ()) == "12.75"
    app.query('UPDATE app."Odd" SET "Am%ount\'s" = 7.5 WHERE "Key" = $$1$$')
    run(plan, app, state="rolled_back", to="001")
    assert app.scalar('SELECT sum("Am%%ount\'s") FROM app."Odd"', ()) == 1275 - 1 + 750
    assert schema(app) == before


@pytest.mark.parametrize(
    ("to", "good", "bad"), [("varchar(3)", "abc", "abcd"), ("numeric(4,1)", "12.34", "123456"), ("integer", "7", "x")]
)
def test_value_that_is_too_long_or_too_large_is_unfit(
    to: str, good: str, bad: str, plan: MigrationSet, app: Database
) -> None:
    app.query("CREATE TABLE app.w (id integer PRIMARY KEY, v text)")
    app.query("INSERT INTO app.w VALUES (1, %s), (2, %s), (3, NULL)", (good, bad))
    step = {"table": "app.w", "column": "v", "to": to, "key": "id"}
    plan.add("001", steps=[{"change_type": step}])
    assert fails(VerificationFailed, plan, app).details["rows"][0]["key"] == [2]
    plan.add("001", steps=[{"change_type": {**step, "on_invalid": "quarantine"}}])
    run(plan, app)
    assert [row[0] for row in app.query("SELECT id FROM app.w ORDER BY 1")] == [1, 3]
    run(plan, app, state="rolled_back", to="001")
    assert app.query("SELECT * FROM app.w ORDER BY 1") == [(1, good), (2, bad), (3, None)]


@pytest.mark.parametrize(
    ("given", "to", "values"),
    [
        ("text", "uuid", TENANTS),
        ("char(36)", "uuid", TENANTS),
        ("varchar(50)", "inet", ["10.0.0.0/8", "::/64"]),
        ("text", "bit(4)", ["1010", "0101"]),
        ("text", "jsonb", ['{"a": 1}', "[]"]),
        ("text", "app.colour", ["red", "green"]),
        ("text", "app.tenant", TENANTS),
        ("text", "varchar(4)", ["abc", "abcd"]),
        ("integer", "bigint", [1, 2]),
        ("bigint", "integer", [1, 2]),
        ("integer", "text", [1, 2]),
    ],
)
def test_values_that_fit_are_converted_without_an_error_in_the_log(
    given: str, to: str, values: list[t.Any], plan: MigrationSet, app: Database
) -> None:
    app.query("CREATE TYPE app.colour AS ENUM ('red', 'green')")
    app.query(f"CREATE DOMAIN app.tenant AS uuid CHECK (VALUE <> '{NOBODY}')")
    app.query(f"CREATE TABLE app.w (id integer PRIMARY KEY, v {given}); INSERT INTO app.w VALUES (0, NULL)")
    for number, value in enumerate(values, 1):
        app.query("INSERT INTO app.w VALUES (%s, %s)", (number, value))
    plan.add("001", steps=[{"change_type": {"table": "app.w", "column": "v", "to": to, "key": "id"}}])
    before = len(app.server.log_text())
    run(plan, app)
    assert "ERROR" not in app.server.log_text()[before:]
    assert [row[0] for row in app.query("SELECT v::text FROM app.w WHERE id > 0 ORDER BY id")] == [
        str(value) for value in values
    ]


@pytest.mark.parametrize("policy", ["abort", "quarantine"])
def test_an_expression_may_speak_of_braces(policy: str, plan: MigrationSet, app: Database) -> None:
    """As the texts do that it is put into."""
    app.query("CREATE TABLE app.w (id integer PRIMARY KEY, v text)")
    app.query("INSERT INTO app.w VALUES (1, %s), (2, %s)", ("{keys}" + TENANTS[0], "{table}" + TENANTS[1]))
    using = "replace(replace(v, '{keys}', ''), '{table}', '')::uuid"
    step = {"table": "app.w", "column": "v", "to": "uuid", "key": "id", "using": using, "on_invalid": policy}
    plan.add("001", steps=[{"change_type": step}])
    run(plan, app)
    assert [row[0] for row in app.query("SELECT v::text FROM app.w ORDER BY id")] == TENANTS[:2]


@pytest.mark.parametrize(("to", "bad"), [("bit(4)", "10101"), ("boolean", 2), ("app.tenant", NOBODY)])
def test_a_value_is_not_bent_until_it_fits(to: str, bad: str | int, plan: MigrationSet, app: Database) -> None:
    """A cast cuts the first and takes the second for true; what is assigned does not do so, nor does a client's row."""
    app.query(f"CREATE DOMAIN app.tenant AS uuid CHECK (VALUE <> '{NOBODY}')")
    app.query(f"CREATE TABLE app.w (id integer PRIMARY KEY, v {'integer' if to == 'boolean' else 'text'})")
    app.query("INSERT INTO app.w VALUES (1, %s)", (bad,))
    plan.add("001", steps=[{"change_type": {"table": "app.w", "column": "v", "to": to, "key": "id"}}])
    assert fails(VerificationFailed, plan, app).details["total"] == 1


def test_rehearsal_proves_the_way_back_and_traces_the_locks(plan: MigrationSet, app: Database) -> None:
    app.query(DIRTY)
    plan.add("001", steps=[change(on_invalid="quarantine")])
    request = RehearsalRequest(ledger_schema="surefoot", shadow="any", squawk="never", lock_budget=30.0)
    results = rehearse(load_plan(plan.path), ConnectionOptions.from_params(app.params), request)
    verdicts = {item["criterion"]: item["verdict"] for item in results["evidence"]}
    for name in ("deploy", "verify", "rollback_catalog", "rollback_data", "redeploy", "rewrites"):
        assert verdicts[f"rehearsal.{name}"] == "pass", name
    deploy = [lock for lock in results["locks"] if lock["phase"] == "deploy" and lock["blocks"]]
    found = {(lock["file"].rpartition(": ")[2], lock["relation"], lock["mode"]) for lock in deploy}
    assert {item for item in found if not item[1].startswith("app.profiles_")} == {
        ("prepare", "app.profiles", "ACCESS EXCLUSIVE"),
        ("prepare", "app.profiles", "SHARE ROW EXCLUSIVE"),
        ("close", "app.profiles", "ACCESS EXCLUSIVE"),
        ("close", "app.profiles", "SHARE ROW EXCLUSIVE"),
        ("close", "app.tenants", "SHARE ROW EXCLUSIVE"),
        ("swap", "app.profiles", "ACCESS EXCLUSIVE"),
        ("swap", "app.profiles", "SHARE ROW EXCLUSIVE"),
    }


class Clients:
    """Sessions that write all the time, and remember what they were told is there."""

    def __init__(self, database: Database, number: int = 4) -> None:
        self.failures: list[str] = []
        self.written: dict[int, str] = {}
        self.changes = 0
        self._database = database
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(seed,), daemon=True) for seed in range(number)]
        for thread in self._threads:
            thread.start()

    def _work(self, seed: int) -> None:
        choice = random.Random(seed)
        with contextlib.closing(self._database.connect()) as connection, connection.cursor() as cursor:
            while not self._stop.is_set():
                # Each has rows of its own, so that the last write of each is known.
                number = choice.randrange(20) * 4 + seed + 101
                tenant = choice.choice(TENANTS)
                text = choice.choice([tenant, tenant.upper(), "{" + tenant + "}"])
                try:
                    what = choice.random()
                    if what < 0.6:
                        cursor.execute("UPDATE app.profiles SET tenant_id = %s WHERE id = %s", (text, number))
                    elif what < 0.8:
                        cursor.execute(
                            "INSERT INTO app.profiles (tenant_id, name) VALUES (%s, 'live') RETURNING id", (text,)
                        )
                        number = cursor.fetchone()[0]
                    else:
                        cursor.execute("SELECT tenant_id FROM app.profiles WHERE id = %s", (number,))
                        found = normal(str(cursor.fetchone()[0]))
                        with self._lock:
                            if number in self.written and self.written[number] != found:
                                self.failures.append(f"{number} is {found} instead of {self.written[number]}")
                        continue
                    with self._lock:
                        self.written[number] = tenant
                        self.changes += 1
                except psycopg2.Error as exc:
                    self.failures.append(str(exc))

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


@contextlib.contextmanager
def clients(database: Database) -> t.Iterator[Clients]:
    found = Clients(database)
    try:
        yield found
    finally:
        found.stop()


def test_no_client_fails_and_no_write_is_lost_there_and_back(plan: MigrationSet, app: Database) -> None:
    before = schema(app)
    plan.add("001", steps=[change(pause="5ms")], lock_timeout="100ms", retry={"attempts": 200, "max_delay": "200ms"})
    with clients(app) as found:
        run(plan, app)
        time.sleep(0.5)
        middle = found.changes
        run(plan, app, state="rolled_back", to="001")
        time.sleep(0.3)
    assert found.failures == [] and found.changes > middle > 0
    values = {row[0]: normal(row[1]) for row in rows(app)["profiles"]}
    assert {number: values[number] for number in found.written} == found.written
    assert schema(app) == before


STOPS = ["backfill", "index profiles_tenant", "close", "sweep again", "validate"]


@pytest.mark.parametrize("stop", STOPS)
def test_rollback_at_each_step_keeps_what_was_written_meanwhile(stop: str, plan: MigrationSet, app: Database) -> None:
    """The run fails at the end of the step."""
    plan.add("000", "SELECT 1;")
    run(plan, app)
    plan.add("001", steps=[change()], lock_timeout="100ms", retry={"attempts": 200, "max_delay": "200ms"})
    app.query(
        "CREATE FUNCTION app.stop_here() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.state = 'done' AND NEW.statement = -1 AND NEW.step = TG_ARGV[0]::integer THEN"
        " RAISE EXCEPTION 'stopped by the test' USING ERRCODE = 'ZZ001'; END IF; RETURN NEW; END $$"
    )
    before = schema(app)
    names = [step.name.rpartition(": ")[2] for step in load_plan(plan.path).migrations[1].steps]
    app.query(
        "CREATE TRIGGER stop_here BEFORE INSERT OR UPDATE ON surefoot.progress"
        f" FOR EACH ROW EXECUTE FUNCTION app.stop_here('{names.index(stop)}')"
    )
    with clients(app) as found:
        error = fails(SurefootError, plan, app, on_drift="warn")
        assert "stopped by the test" in str(error)
        app.query("DROP TRIGGER stop_here ON surefoot.progress")
        time.sleep(0.2)
        run(plan, app, state="rolled_back", to="001")
    assert found.failures == []
    values = {row[0]: normal(row[1]) for row in rows(app)["profiles"]}
    assert {number: values[number] for number in found.written} == found.written
    assert schema(app) == before


def test_row_whose_key_changes_during_the_backfill_is_converted(plan: MigrationSet, app: Database) -> None:
    """It goes to where the backfill has been."""
    app.query("CREATE TABLE app.w (id integer PRIMARY KEY, v text, note text)")
    app.query("INSERT INTO app.w SELECT n, n::text FROM generate_series(1, 10) AS n")
    app.query(
        "CREATE FUNCTION app.move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF OLD.id = 1 THEN UPDATE app.w SET id = -10 WHERE id = 10; END IF; RETURN NULL; END $$;"
        " CREATE TRIGGER move AFTER UPDATE ON app.w FOR EACH ROW EXECUTE FUNCTION app.move()"
    )
    step = {"table": "app.w", "column": "v", "to": "integer", "key": "id", "batch": 3}
    plan.add("001", steps=[{"change_type": {**step, "not_null": True, "on_invalid": "quarantine"}}])
    run(plan, app)
    assert app.scalar("SELECT count(*) FROM surefoot.quarantine") == 0
    assert app.scalar("SELECT v FROM app.w WHERE id = -10") == 10


def test_rows_that_refer_to_each_other_all_come_back(plan: MigrationSet, app: Database) -> None:
    """The first of them refers to the last, which is put back after it."""
    app.query("CREATE TABLE app.tree (id integer PRIMARY KEY, parent integer REFERENCES app.tree, v text)")
    app.query("INSERT INTO app.tree SELECT n, nullif(n + 1, 6), 'x' FROM generate_series(5, 1, -1) AS n")
    before, old = schema(app), app.query("SELECT * FROM app.tree ORDER BY 1")
    step = {"table": "app.tree", "column": "v", "to": "integer", "key": "id", "on_invalid": "quarantine"}
    plan.add("001", steps=[{"change_type": step}])
    run(plan, app)
    assert app.scalar("SELECT count(*) FROM app.tree") == 0
    results = run(plan, app, state="rolled_back", to="001")
    assert app.query("SELECT * FROM app.tree ORDER BY 1") == old and schema(app) == before
    assert not any("stays there" in note for note in results["notes"])
