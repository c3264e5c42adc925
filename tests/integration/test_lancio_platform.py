# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The platform migrations 001 to 007 on a real PostgreSQL: schema, encryption, secrets, row level security, tenants."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import typing as t
import uuid

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from ansible_collections.surefoot.dbops.tests.support import lancio
from ansible_collections.surefoot.dbops.tests.support.lancio import DATABASES, REGISTRATION, RESTRICTIVE, RLS
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

pytestmark = pytest.mark.versions

FACTS = pathlib.Path(__file__).resolve().parents[3] / "shared" / "reference" / "platform-schema.md"
UNKNOWN = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def finished(pg_server: PgServer) -> t.Iterator[Database]:
    """At 006, the databases registered; for tests that change nothing."""
    with temporary_database(pg_server) as database:
        lancio.apply(database, REGISTRATION)
        yield database


@pytest.fixture
def registry(database: Database) -> Database:
    """At 006 step 2: an empty registry."""
    lancio.apply(database, RLS)
    return database


def describe(error: psycopg2.Error) -> str:
    """Everything the server says about an error."""
    diag = error.diag
    parts = (diag.message_primary, diag.message_detail, diag.message_hint, diag.context, diag.internal_query)
    return "\n".join(part for part in parts if part)


@contextlib.contextmanager
def role(database: Database, prefix: str, options: str = "LOGIN") -> t.Iterator[str]:
    """A role for one database, as long as the block; roles belong to the whole server, hence the random name."""
    name = f"{prefix}_{uuid.uuid4().hex[:8]}"
    database.query(f"CREATE ROLE {name} {options}")
    try:
        yield name
    finally:
        database.query(f"DROP OWNED BY {name} CASCADE")
        database.query(f"DROP ROLE {name}")


# ---------------------------------------------------------------------------------------------------------------------
# The schema


def test_every_column_has_the_type_and_nullability_of_the_facts(finished: Database) -> None:
    found: dict[str, dict[str, tuple[str, bool]]] = {}
    for table, name, kind, required in finished.query(
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull FROM pg_class AS c"
        " JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " WHERE c.relnamespace = 'platform'::regnamespace AND c.relkind = 'r'"
    ):
        found.setdefault(table, {})[name] = (kind, required)
    assert len(found) == 26
    assert found == lancio.columns()


def test_foreign_keys_and_uniques_are_those_of_the_facts(finished: Database) -> None:
    found: dict[str, set[str]] = {}
    for table, kind, definition in finished.query(
        "SELECT conrelid::regclass::text, contype::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'platform'::regnamespace AND contype IN ('f', 'u')"
    ):
        text = (
            re.sub(r"FOREIGN KEY (.*) REFERENCES platform\.(\w+)", r"FK \1 -> \2", definition)
            if kind == "f"
            else definition
        )
        found.setdefault(table.removeprefix("platform."), set()).add(text)
    assert found == lancio.keys()


def test_views_and_functions_are_those_of_the_facts(finished: Database) -> None:
    views = {row[0] for row in finished.query("SELECT viewname FROM pg_views WHERE schemaname = 'platform'")}
    assert views == set(lancio.VIEWS)
    functions = dict(
        finished.query(
            "SELECT proname || '(' || pg_get_function_identity_arguments(oid) || ')', pg_get_function_result(oid)"
            " FROM pg_proc WHERE pronamespace = 'platform'::regnamespace"
        )
    )
    assert {name: functions[name] for name in lancio.FUNCTIONS_BEFORE_006} == lancio.FUNCTIONS_BEFORE_006
    assert {re.sub(r"\(.*", "", name) for name in set(functions) - set(lancio.FUNCTIONS_BEFORE_006)} == {
        "encrypt_database_connection_string",
        "decrypt_database_connection_string",
        "get_project_databases",
        "update_database_health",
        "verify_rls_enabled",
        "test_rls_policies",
    }


@pytest.mark.skipif(not FACTS.exists(), reason="the schema facts are not beside this checkout")
def test_the_tables_of_the_tests_are_those_of_the_facts() -> None:
    text = FACTS.read_text(encoding="utf-8")
    columns = dict(re.findall(r"^- `(\w+)`: (id .*)$", text, re.MULTILINE))
    keys = dict(re.findall(r"^- `(\w+)`: (.*)$", text.split("## Foreign keys")[1].split("## Objects")[0], re.MULTILINE))
    assert dict(lancio._entries(lancio.COLUMNS)) == columns
    assert dict(lancio._entries(lancio.KEYS)) == keys


def test_the_functions_of_001_to_005_compute_what_they_say(database: Database) -> None:
    lancio.apply(database, "005_create_audit_logs")
    lancio.load_demo_data(database)
    one = database.scalar("SELECT id FROM platform.organizations WHERE slug = 'demo-company-1'")
    free = database.scalar("SELECT id FROM platform.organizations WHERE slug = 'demo-company-3'")
    owner, member = (
        database.scalar(
            "SELECT user_id FROM platform.organization_members WHERE organization_id = %s AND role = %s LIMIT 1",
            (one, role),
        )
        for role in ("owner", "member")
    )
    project, other = (
        database.scalar("SELECT id FROM platform.projects WHERE ref = %s", (ref,))
        for ref in ("demoref1x2", "demoref2x1")
    )
    assert database.scalar("SELECT platform.generate_slug('  Two Words & More! ')") == "two-words-more"
    assert database.scalar("SELECT (platform.get_organization_by_slug('demo-company-1')).id") == one
    assert database.scalar("SELECT (platform.get_project_by_ref('demoref1x2')).id") == project
    assert database.scalar("SELECT (platform.get_credentials_by_project_ref('demoref1x2')).project_id") == project
    assert database.scalar("SELECT (platform.get_active_subscription(%s)).plan_id", (one,)) == "pro"
    assert database.scalar("SELECT platform.get_available_credits(%s)", (one,)) == 40
    assert database.query("SELECT platform.is_free_tier(%s), platform.is_free_tier(%s)", (one, free)) == [(False, True)]
    # Two projects with 30 days each at 0.01 times the day, of which the first nine fall before the bound.
    period = "SELECT platform.calculate_usage_cost(%s, '2025-10-02 00:00+00', '2025-10-11 00:00+00')"
    assert float(database.scalar(period, (one,))) == pytest.approx(2 * 0.01 * sum(range(1, 10)))
    assert database.query(
        "SELECT platform.is_organization_owner(%s, %s), platform.is_organization_owner(%s, %s)",
        (owner, one, member, one),
    ) == [(True, False)]
    assert database.query(
        "SELECT platform.has_project_access(u, p) FROM unnest(%s::uuid[], %s::uuid[]) AS x (u, p)",
        ([owner, owner, member], [project, other, project]),
    ) == [(True,), (False,), (False,)]
    assert [row[0] for row in database.query("SELECT flag_key FROM platform.get_active_feature_flags(%s)", (one,))] == [
        "branching",
        "log_drains",
        "read_replicas",
    ]


def test_demo_data_fills_every_table_and_is_the_same_twice(database: Database) -> None:
    lancio.apply(database, "005_create_audit_logs")
    lancio.load_demo_data(database, audit_rows=500)
    tables = [row[0] for row in database.query("SELECT tablename FROM pg_tables WHERE schemaname = 'platform'")]
    counts = {table: database.scalar(f"SELECT count(*) FROM platform.{table}") for table in tables}
    assert len(counts) == 25
    assert min(counts.values()) > 0
    assert counts["organizations"] >= 3 and counts["projects"] >= 6 and counts["users"] >= 60
    assert counts["audit_logs"] == 500
    assert database.scalar("SELECT count(DISTINCT role) FROM platform.organization_members") == 5
    lancio.load_demo_data(database, audit_rows=500)
    assert {table: database.scalar(f"SELECT count(*) FROM platform.{table}") for table in tables} == counts


# ---------------------------------------------------------------------------------------------------------------------
# The plan's checks


def test_every_check_of_the_plan_passes_right_after_its_migration(database: Database) -> None:
    for name in lancio.ids():
        lancio.apply(database, only=name)
        results = lancio.verify(database, name)
        assert results, name
        assert [result.summary for result in results if not result.passed] == []


BREAKAGES = [
    (DATABASES, "platform.databases.indexes", "DROP INDEX platform.idx_databases_health"),
    (DATABASES, "platform.databases.functions", "ALTER FUNCTION platform.get_project_databases RENAME TO databases_of"),
    (DATABASES, "platform.databases.views", "DROP VIEW platform.databases_safe"),
    (
        DATABASES,
        "platform.databases.triggers",
        "ALTER TABLE platform.databases ENABLE TRIGGER encrypt_databases_connection_string",
    ),
    (
        DATABASES,
        "platform.databases.security_definer",
        "GRANT EXECUTE ON FUNCTION platform.decrypt_database_connection_string TO PUBLIC",
    ),
    (
        DATABASES,
        "platform.databases.security_definer",
        "ALTER FUNCTION platform.decrypt_database_connection_string RESET search_path",
    ),
    (
        DATABASES,
        "platform.databases.foreign_key",
        "ALTER TABLE platform.databases DROP CONSTRAINT databases_project_id_fkey",
    ),
    (DATABASES, "platform.databases.port", "ALTER TABLE platform.databases DROP CONSTRAINT databases_port_in_range"),
    (
        DATABASES,
        "platform.databases.key_required",
        "ALTER TABLE platform.databases DISABLE TRIGGER encrypt_databases_connection_string",
    ),
    (RLS, "platform.rls.enabled", "ALTER TABLE platform.databases DISABLE ROW LEVEL SECURITY"),
    (RLS, "platform.rls.enabled", "CREATE TABLE platform.later (id integer)"),
    (RLS, "platform.rls.tables", "ALTER TABLE platform.databases DISABLE ROW LEVEL SECURITY"),
    (RLS, "platform.rls.policies", "DROP POLICY permissive_all_databases ON platform.databases"),
    (RLS, "platform.rls.permissive", "ALTER POLICY permissive_all_databases ON platform.databases USING (false)"),
    (RLS, "platform.rls.verify_rls_enabled", "DROP POLICY permissive_all_users ON platform.users"),
    (RLS, "platform.rls.test_rls_policies", "CREATE VIEW platform.leak AS SELECT * FROM platform.users"),
    (
        RLS,
        "platform.rls.test_rls_policies",
        "GRANT EXECUTE ON FUNCTION platform.decrypt_database_connection_string TO PUBLIC",
    ),
    (
        REGISTRATION,
        "platform.registration.rows",
        "UPDATE platform.databases SET status = 'inactive' WHERE type = 'redis'",
    ),
    (REGISTRATION, "platform.registration.rows", "DELETE FROM platform.databases WHERE type = 'redis'"),
    (
        REGISTRATION,
        "platform.registration.encrypted",
        "ALTER TABLE platform.databases DISABLE TRIGGER USER;"
        " UPDATE platform.databases SET connection_string_encrypted = NULL",
    ),
    (
        REGISTRATION,
        "platform.registration.redacted",
        "ALTER TABLE platform.databases DISABLE TRIGGER USER; UPDATE platform.databases SET password = 'plain'",
    ),
    (
        REGISTRATION,
        "platform.registration.decryption",
        "ALTER TABLE platform.databases DISABLE TRIGGER USER; UPDATE platform.databases SET id = gen_random_uuid()",
    ),
]


@pytest.mark.parametrize(("migration", "criterion", "breakage"), BREAKAGES)
def test_a_check_of_the_plan_fails_when_what_it_checks_is_broken(
    finished: Database, migration: str, criterion: str, breakage: str
) -> None:
    copy = Database(f"{finished.name}_copy", finished.server)
    with contextlib.closing(finished.server.connect()) as admin, admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {copy.name} TEMPLATE {finished.name}")
        try:
            with contextlib.closing(copy.connect()) as connection, connection.cursor() as inside:
                inside.execute(breakage)
            failed = {result.criterion for result in lancio.verify(copy, migration) if not result.passed}
        finally:
            cursor.execute(f"DROP DATABASE {copy.name} WITH (FORCE)")
    assert criterion in failed


# ---------------------------------------------------------------------------------------------------------------------
# Traps known from the wild


def test_005_says_what_is_wrong_with_an_older_audit_log_and_does_nothing(database: Database) -> None:
    lancio.apply(database, "004_create_lancio_org")
    database.query(
        "CREATE TABLE platform.audit_logs (id uuid PRIMARY KEY, event_type integer, happened_at timestamptz)"
    )
    before = lancio.catalog(database)
    with pytest.raises(psycopg2.errors.DuplicateTable) as caught:
        lancio.apply(database, only="005_create_audit_logs")
    assert "created_at timestamp with time zone (found: no such column)" in str(caught.value)
    assert "event_type text (found: integer)" in str(caught.value)
    assert lancio.catalog(database) == before


def test_005_takes_over_an_audit_log_with_the_same_columns(database: Database) -> None:
    lancio.apply(database, "005_create_audit_logs")
    database.query("DROP INDEX platform.idx_audit_logs_user_id")
    lancio.apply(database, only="005_create_audit_logs")
    indexes = database.query(
        "SELECT indexname FROM pg_indexes WHERE tablename = 'audit_logs' AND schemaname = 'platform'"
    )
    assert ("idx_audit_logs_user_id",) in indexes


def test_004_makes_no_member_of_a_user_that_does_not_exist(database: Database) -> None:
    lancio.apply(database, "004_create_lancio_org")
    assert database.scalar("SELECT count(*) FROM platform.organization_members") == 0
    assert database.scalar("SELECT count(*) FROM platform.projects WHERE name = 'Lancio Studio'") == 1


def test_004_twice_leaves_one_organization_and_makes_the_holder_of_the_billing_address_owner(
    database: Database,
) -> None:
    lancio.apply(database, "004_create_lancio_org")
    database.query("INSERT INTO platform.users (email) VALUES ('billing@lancio.example')")
    lancio.apply(database, only="004_create_lancio_org")
    lancio.apply(database, only="004_create_lancio_org")
    assert database.query("SELECT role FROM platform.organization_members") == [("owner",)]
    assert database.scalar("SELECT count(*) FROM platform.projects") == 1


def test_rls_covers_every_table_of_the_schema_also_one_nobody_listed(database: Database) -> None:
    lancio.apply(database, DATABASES)
    database.query('CREATE TABLE platform."Made by hand" (id integer)')
    lancio.apply(database, only=RLS)
    rows = database.query("SELECT table_name, rls_enabled, policy_count FROM platform.verify_rls_enabled()")
    assert len(rows) == 27
    assert all(enabled and count == 1 for _table, enabled, count in rows)
    assert database.query("SELECT DISTINCT permissive, roles::text, cmd, qual, with_check FROM pg_policies") == [
        ("PERMISSIVE", "{public}", "ALL", "true", "true")
    ]


def test_rls_again_changes_nothing(registry: Database) -> None:
    before = lancio.catalog(registry)
    lancio.apply(registry, only=RLS)
    assert lancio.catalog(registry) == before


@pytest.mark.parametrize(
    "rule",
    [
        "CREATE POLICY own ON platform.users USING (false)",
        "ALTER TABLE platform.users ENABLE ROW LEVEL SECURITY",
    ],
)
def test_rls_does_not_open_a_table_that_has_rules_of_its_own(database: Database, rule: str) -> None:
    lancio.apply(database, DATABASES)
    database.query(rule)
    with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState, match="in use already on: users"):
        lancio.apply(database, only=RLS)
    assert database.scalar("SELECT count(*) FROM pg_policies WHERE policyname LIKE 'permissive%'") == 0


def test_006_without_pgcrypto_says_what_to_do(database: Database) -> None:
    lancio.apply(database, "005_create_audit_logs")
    database.query("DROP EXTENSION pgcrypto")
    with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState, match="CREATE EXTENSION pgcrypto"):
        lancio.apply(database, only=DATABASES)


# ---------------------------------------------------------------------------------------------------------------------
# Encryption


@pytest.mark.parametrize(
    ("kind", "url", "host", "port", "name", "username", "ssl", "redacted"),
    [
        ("redis", "redis://h", "h", 6379, None, None, False, "redis://***@h"),
        ("redis", "redis://h:6380/2", "h", 6380, "2", None, False, "redis://***@h:6380/2"),
        ("redis", "redis://:pw@h:1/", "h", 1, None, None, False, "redis://***@h:1"),
        ("redis", "rediss://u:p%40w@h:2/0?x=1", "h", 2, "0", "u", True, "rediss://***@h:2/0"),
        ("redis", "redis://barepassword@h", "h", 6379, None, None, False, "redis://***@h"),
        ("redis", "REDIS://u:p@H.Example", "H.Example", 6379, None, "u", False, "redis://***@H.Example"),
        ("mongodb", "mongodb://u:p@[2001:db8::1]:27018/db", "2001:db8::1", 27018, "db", "u", False, None),
        ("mongodb", "mongodb://u:p@[::1]", "::1", 27017, None, "u", False, "mongodb://***@[::1]"),
        (
            "mongodb",
            "mongodb://u:p@a:1,b:2,[::1]:3/db?tls=true",
            "a",
            1,
            "db",
            "u",
            True,
            "mongodb://***@a:1,b:2,[::1]:3/db",
        ),
        ("mongodb", "mongodb://%75ser:p@a,b/", "a", 27017, None, "%75ser", False, "mongodb://***@a,b"),
        ("mongodb", "mongodb+srv://u:p@c.example.net/app", "c.example.net", 27017, "app", "u", True, None),
        ("mongodb", "mongodb://%2Ftmp%2Fm.sock/db", "%2Ftmp%2Fm.sock", 27017, "db", None, False, None),
        ("postgresql", "postgres://u:p:q@h/db?sslmode=require", "h", 5432, "db", "u", True, "postgres://***@h/db"),
        ("postgresql", "postgresql://h/db?sslmode=disable", "h", 5432, "db", None, False, "postgresql://***@h/db"),
    ],
)
def test_the_columns_come_from_the_url_and_the_url_comes_back(
    finished: Database,
    kind: str,
    url: str,
    host: str,
    port: int,
    name: str | None,
    username: str | None,
    ssl: bool,
    redacted: str | None,
) -> None:
    row = lancio.store(finished, url, kind=kind)
    try:
        measured = finished.query(
            "SELECT host, port, database, username, ssl_enabled, password, status, health_check_status"
            " FROM platform.databases WHERE id = %s",
            (row,),
        )
        assert measured == [(host, port, name, username, ssl, None, "active", "unknown")]
        shown = finished.scalar("SELECT connection_string FROM platform.databases WHERE id = %s", (row,))
        assert redacted is None or shown == redacted
        assert "p" + "@" not in shown and "p%40w" not in shown and "barepassword" not in shown
        assert decrypted(finished, row) == url
    finally:
        finished.query("DELETE FROM platform.databases WHERE id = %s", (row,))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:6379",
        "redis://",
        "redis://u:sec#ret@h:6379",
        "redis://u:sec/ret@h:6379",
        "redis://u:12/34@h:6379",
        "redis://u:12?34@h:6379",
        "redis://u:sec@ret@h:6379",
        "redis://u:sec%zzret@h:6379",
        "redis://u:secret@h:port/0",
        "redis://u:secret@h:123456",
        "redis://u:sec ret@h",
        "redis://u:secret@h/0#frag",
        "redis://${{Redis.PASSWORD}}@h",
        "mongodb://u:secret@h",
        "host=h password=secret",
        "redis://u:secret@h/0\nredis://u:secret@h/0",
    ],
)
def test_what_is_not_such_a_url_is_refused_and_not_shown(finished: Database, url: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue) as caught:
        lancio.store(finished, url.replace("\n", "\\n"))
    assert "connection_string is not" in str(caught.value)
    for part in ("secret", "ret@", "34@", "sec", "frag"):
        assert part not in describe(caught.value).replace("is not shown here", "")


def decrypted(database: Database, row: str, key: str | None = lancio.KEY) -> t.Any:
    with contextlib.closing(lancio.session(database, key=key)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT platform.decrypt_database_connection_string(%s)", (row,))
        return cursor.fetchall()[0][0]


def test_the_plan_registers_both_services_encrypted(finished: Database) -> None:
    rows = finished.query(
        "SELECT d.name, d.type, d.host, d.port, d.username, d.status, d.health_check_status, p.name,"
        " d.connection_string FROM platform.databases AS d JOIN platform.projects AS p ON p.id = d.project_id"
        " ORDER BY d.name"
    )
    assert rows == [
        ("Railway MongoDB", "mongodb", "mongodb.railway.internal", 27017, "mongo", "active", "unknown", "Lancio Studio")
        + ("mongodb://***@mongodb.railway.internal:27017",),
        ("Railway Redis", "redis", "redis.railway.internal", 6379, "default", "active", "unknown", "Lancio Studio")
        + ("redis://***@redis.railway.internal:6379/0",),
    ]
    with contextlib.closing(lancio.session(finished)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name, connection_string FROM platform.databases_with_connection_strings ORDER BY name")
        assert cursor.fetchall() == [("Railway MongoDB", lancio.MONGODB_URL), ("Railway Redis", lancio.REDIS_URL)]


def test_the_wrong_key_is_an_error_that_says_so(finished: Database) -> None:
    row = finished.scalar("SELECT id FROM platform.databases WHERE type = 'redis'")
    with pytest.raises(psycopg2.errors.ExternalRoutineInvocationException, match="wrong key or damaged data"):
        decrypted(finished, row, key="another key")
    for absent in (None, ""):
        with pytest.raises(
            psycopg2.errors.ObjectNotInPrerequisiteState, match="app.database_encryption_key is not set"
        ):
            decrypted(finished, row, key=absent)


def test_decrypting_an_unknown_row_gives_null(finished: Database) -> None:
    assert decrypted(finished, UNKNOWN) is None


def test_without_the_key_nothing_is_registered(registry: Database) -> None:
    for absent in (None, ""):
        with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState) as caught:
            lancio.apply(registry, only=REGISTRATION, key=absent)
        assert "app.database_encryption_key is not set" in str(caught.value)
    assert registry.scalar("SELECT count(*) FROM platform.databases") == 0


@pytest.fixture
def row(registry: Database) -> t.Iterator[tuple[Database, str, psycopg2.extensions.connection]]:
    """A stored database, and a session that has the key."""
    stored = lancio.store(registry, "redis://u:old@h:6379/0")
    with contextlib.closing(lancio.session(registry)) as connection:
        yield registry, stored, connection


Row = tuple[Database, str, psycopg2.extensions.connection]


def update(connection: psycopg2.extensions.connection, row: str, assignments: str, *values: t.Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE platform.databases SET {assignments} WHERE id = %s", (*values, row))
        assert cursor.rowcount == 1


def test_an_update_of_other_columns_keeps_the_ciphertext_and_needs_no_key(row: Row) -> None:
    database, stored, connection = row
    query = "SELECT connection_string_encrypted, connection_string FROM platform.databases"
    before = bytes(database.query(query)[0][0]), database.query(query)[0][1]
    with contextlib.closing(lancio.session(database, key=None)) as keyless:
        update(keyless, stored, "status = 'maintenance', name = 'renamed'")
        update(keyless, stored, "connection_string = %s", "redis://***@h:6379/0")
        with keyless.cursor() as cursor:
            cursor.execute(
                "SELECT platform.update_database_health(%s, 'unhealthy', %s)",
                (stored, "AUTH failed for redis://u:old@h:6379/0"),
            )
            assert cursor.fetchall() == [(True,)]
    assert (bytes(database.query(query)[0][0]), database.query(query)[0][1]) == before
    assert decrypted(database, stored) == "redis://u:old@h:6379/0"
    error = database.scalar("SELECT health_check_error FROM platform.databases")
    assert error == "AUTH failed for redis://***@h:6379/0"


def test_a_new_url_is_encrypted_and_takes_the_derived_columns_along(row: Row) -> None:
    database, stored, connection = row
    before = bytes(database.scalar("SELECT connection_string_encrypted FROM platform.databases"))
    update(connection, stored, "connection_string = %s, password = 'new'", "rediss://v:new@g:6390/1")
    assert decrypted(database, stored) == "rediss://v:new@g:6390/1"
    assert bytes(database.scalar("SELECT connection_string_encrypted FROM platform.databases")) != before
    assert database.query(
        "SELECT host, port, database, username, password, ssl_enabled, connection_string FROM platform.databases"
    ) == [("g", 6390, "1", "v", "***", True, "rediss://***@g:6390/1")]
    update(connection, stored, "connection_string = %s, host = 'public', port = 7", "redis://v:new2@g:6390/1")
    assert database.query("SELECT host, port FROM platform.databases") == [("public", 7)]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ("connection_string = 'redis://***@elsewhere:6379/0'", "redacted text of another URL"),
        ("connection_string_encrypted = '\\x00'", "cannot be set"),
        ("password = 'secret'", "a password alone cannot be stored"),
        ("password = 'secret', connection_string = 'redis://h:6379/0'", "password is given but"),
        ("id = gen_random_uuid()", "belongs to the row's id and project"),
        ("project_id = gen_random_uuid()", "belongs to the row's id and project"),
    ],
)
def test_an_update_that_would_part_url_and_ciphertext_is_refused(row: Row, assignments: str, message: str) -> None:
    database, stored, connection = row
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=message):
        update(connection, stored, assignments)
    assert decrypted(database, stored) == "redis://u:old@h:6379/0"


def test_redacted_text_alone_cannot_be_inserted(registry: Database) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="no encrypted one beside it"):
        lancio.store(registry, "redis://***@h:6379/0")


def test_a_ciphertext_copied_to_another_row_does_not_decrypt(row: Row) -> None:
    database, stored, _connection = row
    other = lancio.store(database, "redis://u:other@h:6379/0", name="other")
    with contextlib.closing(database.connect()) as owner, owner.cursor() as cursor:
        cursor.execute("ALTER TABLE platform.databases DISABLE TRIGGER encrypt_databases_connection_string")
        cursor.execute(
            "UPDATE platform.databases SET connection_string_encrypted ="
            " (SELECT s.connection_string_encrypted FROM platform.databases AS s WHERE s.id = %s) WHERE id = %s",
            (stored, other),
        )
    assert decrypted(database, stored) == "redis://u:old@h:6379/0"
    with pytest.raises(psycopg2.errors.DataCorrupted, match="belongs to another row"):
        decrypted(database, other)


def test_dumped_rows_come_back_through_the_trigger_and_without_the_key(row: Row) -> None:
    database, stored, _connection = row
    with contextlib.closing(database.connect()) as keyless, keyless.cursor() as cursor:
        cursor.execute("CREATE TABLE saved AS SELECT * FROM platform.databases")
        cursor.execute("DELETE FROM platform.databases")
        cursor.execute("SET session_replication_role = replica")
        cursor.execute("INSERT INTO platform.databases SELECT * FROM saved")
    assert decrypted(database, stored) == "redis://u:old@h:6379/0"


def test_a_data_load_without_triggers_is_encrypted_all_the_same(registry: Database) -> None:
    with contextlib.closing(lancio.session(registry)) as connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(
            "INSERT INTO platform.databases (project_id, name, type, connection_string)"
            " SELECT id, 'loaded', 'redis', 'redis://u:loaded@h' FROM platform.projects"
        )
    assert registry.scalar("SELECT connection_string FROM platform.databases") == "redis://***@h"


def test_encryption_works_wherever_pgcrypto_lives_and_cannot_be_shadowed(database: Database) -> None:
    database.query("CREATE SCHEMA extensions")
    database.query("CREATE EXTENSION pgcrypto SCHEMA extensions")
    lancio.apply(database, RLS)
    # What somebody with CREATE on schema public could do to a function whose search_path names that schema.
    for signature in (
        "pgp_sym_encrypt(text, text, text) RETURNS bytea",
        "pgp_sym_decrypt(bytea, text) RETURNS text",
        "concat_ws(text, text, text, text, text) RETURNS text",
        "strpos(text, text) RETURNS integer",
        "starts_with(text, text) RETURNS boolean",
    ):
        body = "BEGIN RAISE EXCEPTION 'somebody else''s function was called'; END"
        database.query(f"CREATE FUNCTION public.{signature} LANGUAGE plpgsql AS $${body}$$")
    with role(database, "writer") as writer:
        for grant in (
            "GRANT USAGE ON SCHEMA platform TO {}",
            "GRANT SELECT ON platform.projects TO {}",
            "GRANT INSERT, SELECT ON platform.databases TO {}",
            "GRANT EXECUTE ON FUNCTION platform.decrypt_database_connection_string(uuid) TO {}",
        ):
            database.query(grant.format(writer))
        with contextlib.closing(lancio.session(database, user=writer)) as connection, connection.cursor() as cursor:
            cursor.execute("SET search_path = public, pg_catalog")
            cursor.execute(
                "INSERT INTO platform.databases (project_id, name, type, connection_string)"
                " SELECT id, 'w', 'redis', 'redis://u:w@h' FROM platform.projects RETURNING id"
            )
            stored = cursor.fetchall()[0][0]
            cursor.execute("SELECT platform.decrypt_database_connection_string(%s)", (stored,))
            assert cursor.fetchall() == [("redis://u:w@h",)]


def test_the_functions_that_run_as_owner_are_closed_to_everybody_else(finished: Database) -> None:
    with role(finished, "stranger") as stranger:
        finished.query(f"GRANT USAGE ON SCHEMA platform TO {stranger}")
        with contextlib.closing(lancio.session(finished, user=stranger)) as connection, connection.cursor() as cursor:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute("SELECT platform.decrypt_database_connection_string(%s)", (UNKNOWN,))
            for view in ("databases_safe", "databases_with_connection_strings", "databases"):
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    cursor.execute(f"SELECT * FROM platform.{view}")


# ---------------------------------------------------------------------------------------------------------------------
# Registration


def test_registering_again_updates_the_two_rows(finished: Database) -> None:
    with temporary_database(finished.server) as database:
        lancio.apply(database, REGISTRATION)
        ids = database.query("SELECT id FROM platform.databases ORDER BY name")
        database.query("SELECT platform.update_database_health(id, 'unhealthy', 'down') FROM platform.databases")
        lancio.apply(
            database,
            only=REGISTRATION,
            secrets={**lancio.SECRETS, "railway_redis_url": "rediss://default:n3w@new.host:1234"},
        )
        assert database.query("SELECT id FROM platform.databases ORDER BY name") == ids
        assert database.query(
            "SELECT host, port, status, health_check_status, health_check_error FROM platform.databases"
            " WHERE type = 'redis'"
        ) == [("new.host", 1234, "active", "unknown", None)]


def test_a_service_that_is_switched_off_needs_no_url(registry: Database) -> None:
    variables = {"register_mongodb": False}
    secrets = {**lancio.SECRETS, "railway_mongodb_url": ""}
    lancio.apply(registry, only=REGISTRATION, variables=variables, secrets=secrets)
    assert registry.query("SELECT name FROM platform.databases") == [("Railway Redis",)]
    assert all(result.passed for result in lancio.verify(registry, REGISTRATION, variables=variables))
    failed = {result.criterion for result in lancio.verify(registry, REGISTRATION) if not result.passed}
    assert failed == {"platform.registration.rows"}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "  ",
        "redis://placeholder:6379",
        "${{Redis.REDIS_URL}}",
        "<parse from URL>",
        "redis://***@h:6379",
        "CHANGE_ME",
    ],
)
def test_a_placeholder_is_refused_by_name_and_not_shown(registry: Database, value: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="railway_redis_url is") as caught:
        lancio.apply(registry, only=REGISTRATION, secrets={**lancio.SECRETS, "railway_redis_url": value})
    assert not value.strip() or value not in describe(caught.value)
    assert registry.scalar("SELECT count(*) FROM platform.databases") == 0


def test_a_url_of_the_other_kind_is_refused(registry: Database) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="not the URL of a redis database"):
        lancio.apply(registry, only=REGISTRATION, secrets={**lancio.SECRETS, "railway_redis_url": lancio.MONGODB_URL})


def test_registration_without_the_project_names_the_migration_to_apply(registry: Database) -> None:
    registry.query("UPDATE platform.projects SET name = 'Another'")
    with pytest.raises(psycopg2.errors.NoDataFound, match="Apply migration 004 first"):
        lancio.apply(registry, only=REGISTRATION)


def test_two_registrations_at_once_leave_two_rows(registry: Database) -> None:
    registry.query(f"ALTER DATABASE {registry.name} SET lock_timeout = '200ms'")
    with contextlib.closing(registry.connect()) as first, first.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT FROM platform.projects WHERE name = 'Lancio Studio' FOR NO KEY UPDATE")
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            lancio.apply(registry, only=REGISTRATION)
        cursor.execute("ROLLBACK")
    lancio.apply(registry, only=REGISTRATION)
    assert registry.scalar("SELECT count(*) FROM platform.databases") == 2


# ---------------------------------------------------------------------------------------------------------------------
# Secrets


def refused(database: Database, **arguments: t.Any) -> psycopg2.Error:
    with pytest.raises(psycopg2.Error) as caught:
        lancio.store(database, **arguments)
    return caught.value


def test_no_secret_is_left_anywhere_also_after_failures(pg_server: PgServer, database: Database) -> None:
    lancio.apply(database, RLS)
    with contextlib.closing(pg_server.connect(database.name)) as admin, admin.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        cursor.execute("ALTER SYSTEM SET pg_stat_statements.track = 'all'")
        cursor.execute("SELECT pg_reload_conf()")
    secret = "redis-secret-0815"
    said = []

    def registration_fails(**arguments: t.Any) -> None:
        with pytest.raises(psycopg2.Error) as caught:
            lancio.apply(database, only=REGISTRATION, **arguments)
        said.append(describe(caught.value))

    registration_fails(key=None)
    for wrong in (f"redis://u:{secret}@h:port", f"redis://u:{secret}@h:99999", f"redis://u:{secret}#@h", secret):
        registration_fails(secrets={**lancio.SECRETS, "railway_redis_url": wrong})
    registration_fails(secrets={**lancio.SECRETS, "railway_redis_url": lancio.MONGODB_URL})
    errors = [
        refused(database, url=lancio.REDIS_URL, status="unheard of"),
        refused(database, url=lancio.REDIS_URL, port=0),
        refused(database, url=lancio.REDIS_URL, host=" "),
        refused(database, url=lancio.REDIS_URL, name=None),
        refused(database, url=lancio.REDIS_URL, id=UNKNOWN, created_at=None),
        refused(database, url=lancio.REDIS_URL, kind="oracle"),
        refused(database, url=lancio.REDIS_URL, kind="mongodb"),
    ]
    codes = {error.pgcode for error in errors}
    assert codes == {"23514", "23502", "22023"}
    lancio.apply(database, only=REGISTRATION)
    row = database.scalar("SELECT id FROM platform.databases WHERE type = 'redis'")
    assert decrypted(database, row) == lancio.REDIS_URL
    duplicate = refused(database, url=lancio.REDIS_URL, id=row)
    assert duplicate.pgcode == "23505"
    with pytest.raises(psycopg2.Error) as caught:
        decrypted(database, row, key="wrong")
    said += [describe(error) for error in [*errors, duplicate, caught.value]]

    places: dict[str, bytes] = {"error messages": "\n".join(said).encode()}
    for (table,) in database.query("SELECT tablename FROM pg_tables WHERE schemaname = 'platform'"):
        places[table] = str(database.query(f"SELECT x::text FROM platform.{table} AS x")).encode()
    places["pg_stat_statements"] = str(database.query("SELECT query FROM pg_stat_statements")).encode()
    places["server log"] = pathlib.Path(pg_server.log_path).read_bytes()
    with contextlib.closing(pg_server.connect(database.name)) as admin, admin.cursor() as cursor:
        cursor.execute("ALTER SYSTEM RESET pg_stat_statements.track")
        cursor.execute("SELECT pg_reload_conf()")
        cursor.execute("CHECKPOINT")
        cursor.execute("SELECT pg_read_binary_file(pg_relation_filepath('platform.databases'))")
        places["heap"] = bytes(cursor.fetchall()[0][0])
    for segment in pathlib.Path(pg_server.data_dir, "pg_wal").iterdir():
        if segment.is_file():
            places[f"WAL {segment.name}"] = segment.read_bytes()
    # The places are the right ones: what is not secret is found in them.
    assert b"unheard of" in places["server log"] and b"redis.railway.internal" in places["heap"]
    assert b"pgp_sym_encrypt" in places["pg_stat_statements"]
    found = [
        (needle, place) for place, content in places.items() for needle in lancio.NEEDLES if needle.encode() in content
    ]
    assert found == []


# ---------------------------------------------------------------------------------------------------------------------
# The way back


@pytest.mark.parametrize("name", [name for name in lancio.ids() if name != "004_create_lancio_org"])
def test_a_rollback_returns_to_the_exact_catalog_and_the_migration_applies_again(database: Database, name: str) -> None:
    names = lancio.ids()
    database.query("CREATE EXTENSION pgcrypto SCHEMA public")
    if names.index(name):
        lancio.apply(database, names[names.index(name) - 1])
    before = lancio.catalog(database)
    lancio.apply(database, only=name)
    after = lancio.catalog(database)
    assert (after == before) == (name == REGISTRATION)
    lancio.roll_back(database, name)
    assert lancio.catalog(database) == before
    lancio.apply(database, only=name)
    assert lancio.catalog(database) == after
    lancio.roll_back(database, name)
    assert lancio.catalog(database) == before


def test_everything_rolls_back_in_reverse_order(database: Database) -> None:
    database.query("CREATE EXTENSION pgcrypto SCHEMA public")
    before = lancio.catalog(database)
    lancio.apply(database, RESTRICTIVE)
    for name in reversed(lancio.ids()):
        lancio.roll_back(database, name)
    assert lancio.catalog(database) == before


def test_the_rollback_of_rls_leaves_no_policy_and_no_table_under_rls(registry: Database) -> None:
    lancio.roll_back(registry, RLS)
    assert registry.scalar("SELECT count(*) FROM pg_policies WHERE schemaname = 'platform'") == 0
    assert registry.scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'platform' AND rowsecurity") == 0
    lancio.roll_back(registry, DATABASES)
    assert registry.scalar("SELECT to_regclass('platform.databases')") is None


def test_the_rollback_of_rls_does_not_make_policies_of_others_void(registry: Database) -> None:
    registry.query("CREATE POLICY own ON platform.users USING (false)")
    with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState, match="not from migration 006: users"):
        lancio.roll_back(registry, RLS)
    assert registry.scalar("SELECT count(*) FROM pg_policies") == 27


def test_the_rollback_of_the_registration_keeps_rows_that_had_been_there(registry: Database) -> None:
    row = lancio.store(registry, "redis://u:p@h", name="Railway Redis")
    lancio.apply(registry, only=REGISTRATION)
    assert registry.scalar("SELECT count(*) FROM platform.databases") == 2
    lancio.roll_back(registry, REGISTRATION)
    assert registry.query("SELECT id::text FROM platform.databases") == [(row,)]
    assert decrypted(registry, row) == lancio.REDIS_URL


def test_the_registry_is_not_dropped_while_something_depends_on_it(registry: Database) -> None:
    registry.query("CREATE VIEW public.mine AS SELECT id FROM platform.databases")
    with pytest.raises(psycopg2.errors.DependentObjectsStillExist):
        lancio.roll_back(registry, DATABASES)
    assert registry.scalar("SELECT count(*) FROM platform.databases_safe") == 0


# ---------------------------------------------------------------------------------------------------------------------
# Views


@pytest.fixture
def reader(pg_server: PgServer, database: Database) -> t.Iterator[str]:
    """A role that may read tables and views of a database with demo data at 006."""
    lancio.apply(database, DATABASES)
    lancio.load_demo_data(database)
    lancio.store(database, lancio.REDIS_URL)
    with role(database, "reader") as name:
        database.query(f"GRANT USAGE ON SCHEMA platform TO {name}")
        database.query(f"GRANT SELECT ON ALL TABLES IN SCHEMA platform TO {name}")
        database.query(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA platform TO {name}")
        lancio.apply(database, only=RLS)
        yield name


def count(database: Database, user: str, relation: str) -> int:
    with contextlib.closing(lancio.session(database, user=user)) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM (SELECT * FROM platform.{relation} OFFSET 0) AS x")
        return int(cursor.fetchall()[0][0])


def test_views_show_no_row_the_policies_hide(database: Database, reader: str) -> None:
    shown = {view: count(database, reader, view) for view in lancio.VIEWS}
    assert min(shown.values()) > 0
    for table in ("organizations", "projects", "subscriptions", "databases"):
        database.query(f"ALTER POLICY permissive_all_{table} ON platform.{table} USING (false)")
    assert {view: count(database, reader, view) for view in lancio.VIEWS} == dict.fromkeys(lancio.VIEWS, 0)
    # Before PostgreSQL 15 that holds for the owner of the tables and for superusers too, since the view has an owner.
    unbound = database.scalar("SELECT count(*) FROM platform.projects_with_credentials") > 0
    assert unbound == (database.server.version >= 150000)


def test_the_policy_of_the_joined_table_counts_too(database: Database, reader: str) -> None:
    database.query("ALTER POLICY permissive_all_credentials ON platform.credentials USING (false)")
    with contextlib.closing(lancio.session(database, user=reader)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*), count(service_role_key) FROM platform.projects_with_credentials")
        total, keys = cursor.fetchall()[0]
    assert (total > 0, keys) == (True, 0)


def test_a_reader_of_a_view_alone_does_not_lose_it_unnoticed(pg_server: PgServer, database: Database) -> None:
    lancio.apply(database, DATABASES)
    with role(database, "dashboard") as dashboard:
        database.query(f"GRANT USAGE ON SCHEMA platform TO {dashboard}")
        database.query(f"GRANT SELECT ON platform.databases_safe TO {dashboard}")
        if pg_server.version >= 150000:
            with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState, match=f"{dashboard} .view databases_safe"):
                lancio.apply(database, only=RLS)
            database.query(f"GRANT SELECT ON platform.databases TO {dashboard}")
        lancio.apply(database, only=RLS)
        assert count(database, dashboard, "databases_safe") == 0


def test_an_owner_who_is_no_superuser_can_do_all_of_it(pg_server: PgServer) -> None:
    with temporary_database(pg_server) as database, role(database, "deployer", "LOGIN CREATEROLE") as deployer:
        database.query(f"ALTER DATABASE {database.name} OWNER TO {deployer}")
        database.query(f"ALTER SCHEMA public OWNER TO {deployer}")
        for name in lancio.ids():
            lancio.apply(database, only=name, user=deployer)
        with contextlib.closing(lancio.session(database, user=deployer)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT test_name FROM platform.test_rls_policies() WHERE NOT test_result")
            assert cursor.fetchall() == []
            cursor.execute("SELECT count(*) FROM platform.databases_safe")
            assert cursor.fetchall() == [(2,)] if pg_server.version >= 150000 else True
        for name in reversed(lancio.ids()):
            lancio.roll_back(database, name, user=deployer)
        assert database.scalar("SELECT to_regnamespace('platform')") is None
        database.query(f"REASSIGN OWNED BY {deployer} TO postgres")


# ---------------------------------------------------------------------------------------------------------------------
# 007: tenants


class Tenants(t.NamedTuple):
    """A database at 007 with two tenants. ``users``: role -> a user of A; ``keys_of_b``: table -> ids of B's rows."""

    database: Database
    application: str
    a: str
    b: str
    users: dict[str, str]
    keys_of_b: dict[str, list[str]]
    rows_of_b: dict[str, dict[str, t.Any]]
    users_of_b: dict[str, str]


ROLES = ("owner", "admin", "billing_admin", "developer", "member")
GLOBAL = {"billing_plans", "feature_flags"}
TABLES = sorted(lancio.columns())

# Of each table the rows that are B's, for one B.
_OF_PROJECT = "project_id IN (SELECT id FROM platform.projects WHERE organization_id = %(b)s)"
_USERS = (
    "(SELECT user_id FROM platform.organization_members WHERE organization_id = %(b)s EXCEPT"
    " SELECT user_id FROM platform.organization_members WHERE organization_id <> %(b)s)"
)


def _belongs(table: str) -> str:
    names = lancio.columns()[table]
    if table == "organizations":
        return "id = %(b)s"
    if table == "users":
        return f"id IN {_USERS}"
    if "organization_id" in names:
        return "organization_id = %(b)s"
    if "project_id" in names:
        return _OF_PROJECT
    return f"user_id IN {_USERS}"


@pytest.fixture(scope="module")
def tenants(pg_server: PgServer) -> t.Iterator[Tenants]:
    with temporary_database(pg_server) as database, role(database, "application") as application:
        lancio.apply(database, "005_create_audit_logs")
        lancio.load_demo_data(database)
        database.query("DELETE FROM platform.organizations WHERE slug = 'lancio'")
        lancio.apply(database, only="004_create_lancio_org")
        lancio.apply(database, only=DATABASES)
        with contextlib.closing(lancio.session(database)) as connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO platform.databases (project_id, name, type, connection_string)"
                " SELECT id, 'Redis', 'redis', 'redis://u:p' || slug || '@h' FROM platform.projects"
            )
        lancio.apply(database, only=RLS)
        for grant in (
            "GRANT USAGE ON SCHEMA platform TO {}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA platform TO {}",
            "GRANT EXECUTE ON FUNCTION platform.decrypt_database_connection_string(uuid),"
            " platform.get_project_databases(uuid, text), platform.update_database_health(uuid, text, text) TO {}",
        ):
            database.query(grant.format(application))
        lancio.apply(database, only=RESTRICTIVE)
        a, b = (
            database.scalar("SELECT id::text FROM platform.organizations WHERE slug = %s", (f"demo-company-{n}",))
            for n in (1, 2)
        )
        only = (
            "SELECT m.role, min(m.user_id::text) FROM platform.organization_members AS m WHERE m.organization_id = %s"
            " AND NOT EXISTS (SELECT FROM platform.organization_members AS o"
            " WHERE o.user_id = m.user_id AND o.id <> m.id) GROUP BY m.role"
        )
        keys = {}
        rows = {}
        for table in TABLES:
            if table in GLOBAL:
                continue
            found = database.query(
                f"SELECT x.id::text, to_jsonb(x) FROM platform.{table} AS x WHERE {_belongs(table)} ORDER BY x.id",
                {"b": b},
            )
            keys[table] = [row[0] for row in found]
            rows[table] = found[0][1]
        users = dict(database.query(only, (a,)))
        assert set(users) == set(ROLES)
        yield Tenants(database, application, a, b, users, keys, rows, dict(database.query(only, (b,))))


@contextlib.contextmanager
def acting(
    tenants: Tenants, user: str | None, org: str | None, *, key: str | None = lancio.KEY
) -> t.Iterator[psycopg2.extensions.cursor]:
    """A transaction of the application on behalf of a user; rolled back."""
    connection = lancio.session(tenants.database, user=tenants.application, key=key)
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("BEGIN")
        for setting, value in (("app.current_user_id", user), ("app.current_org_id", org)):
            if value is not None:
                cursor.execute("SELECT set_config(%s, %s, true)", (setting, value))
        yield cursor
        cursor.execute("ROLLBACK")


def attempt(cursor: psycopg2.extensions.cursor, command: str, values: t.Any = None) -> int:
    """Rows a statement reached; 0 when the policies refuse it. Undone at once."""
    cursor.execute("SAVEPOINT attempt")
    try:
        cursor.execute(command, values)
        reached = cursor.rowcount
    except psycopg2.errors.InsufficientPrivilege:
        reached = 0
    cursor.execute("ROLLBACK TO attempt")
    return reached


def all_rows(cursor: psycopg2.extensions.cursor, table: str) -> int:
    cursor.execute(f"SELECT count(*) FROM platform.{table}")
    return int(cursor.fetchall()[0][0])


def test_there_is_something_to_protect(tenants: Tenants) -> None:
    assert set(tenants.keys_of_b) == set(TABLES) - GLOBAL
    assert min(len(keys) for keys in tenants.keys_of_b.values()) > 0
    with contextlib.closing(tenants.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolsuper, rolbypassrls, EXISTS (SELECT FROM pg_class WHERE relowner = r.oid) FROM pg_roles AS r"
            " WHERE rolname = %s",
            (tenants.application,),
        )
        assert cursor.fetchall() == [(False, False, False)]


@pytest.mark.parametrize("table", sorted(set(TABLES) - GLOBAL))
def test_no_role_of_a_reaches_a_row_of_b(tenants: Tenants, table: str) -> None:
    keys = tenants.keys_of_b[table]
    copy = {**tenants.rows_of_b[table], "id": str(uuid.uuid4())}
    for name in ("slug", "email", "username", "token", "refresh_token", "key_hash", "stripe_invoice_id", "ref"):
        if copy.get(name):
            copy[name] = f"copied {copy['id']}"
    references = {
        "organization_id": tenants.b,
        "project_id": tenants.keys_of_b["projects"][0],
        "user_id": tenants.keys_of_b["users"][0],
    }
    # Somebody else's organization in the setting must not help either.
    for user in tenants.users.values():
        for org in (tenants.a, tenants.b, None):
            with acting(tenants, user, org) as cursor:
                cursor.execute(f"SELECT count(*) FROM platform.{table} WHERE id = ANY (%s::uuid[])", (keys,))
                assert cursor.fetchall() == [(0,)]
                assert attempt(cursor, f"UPDATE platform.{table} SET id = id WHERE id = ANY (%s::uuid[])", (keys,)) == 0
                assert attempt(cursor, f"DELETE FROM platform.{table} WHERE id = ANY (%s::uuid[])", (keys,)) == 0
                cursor.execute("SAVEPOINT attempt")
                with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="row-level security"):
                    cursor.execute(
                        f"INSERT INTO platform.{table} SELECT * FROM jsonb_populate_record(NULL::platform.{table}, %s)",
                        (json.dumps(copy),),
                    )
                cursor.execute("ROLLBACK TO attempt")
                # Handing own rows over to B would plant them there.
                for column in set(references) & set(lancio.columns()[table]):
                    if table == "databases":
                        # The trigger refuses before the policies are asked, so give it a new URL.
                        command = f"UPDATE platform.{table} SET {column} = %s, connection_string = 'redis://h'"
                    else:
                        command = f"UPDATE platform.{table} SET {column} = %s"
                    if (table, column) == ("organization_members", "user_id"):
                        continue  # an owner may add any user to the own organization
                    assert attempt(cursor, command, (references[column],)) == 0, column


@pytest.mark.parametrize("table", TABLES)
def test_without_the_settings_nothing_is_visible_or_writable(tenants: Tenants, table: str) -> None:
    columns = lancio.columns()[table]
    for user, org in ((None, None), ("", ""), (None, tenants.a), (UNKNOWN, tenants.a), (UNKNOWN, UNKNOWN)):
        with acting(tenants, user, org) as cursor:
            assert (all_rows(cursor, table) > 0) == (table in GLOBAL)
            assert attempt(cursor, f"UPDATE platform.{table} SET created_at = now()") == 0
            assert attempt(cursor, f"DELETE FROM platform.{table}") == 0
            if table in tenants.rows_of_b and "id" in columns:
                command = (
                    f"INSERT INTO platform.{table} SELECT * FROM jsonb_populate_record(NULL::platform.{table}, %s)"
                )
                assert attempt(cursor, command, (json.dumps(tenants.rows_of_b[table]),)) == 0


@pytest.mark.parametrize("table", sorted(GLOBAL))
def test_nobody_writes_the_global_tables(tenants: Tenants, table: str) -> None:
    for user in tenants.users.values():
        with acting(tenants, user, tenants.a) as cursor:
            assert all_rows(cursor, table) == 4
            assert attempt(cursor, f"UPDATE platform.{table} SET description = description") == 0
            assert attempt(cursor, f"DELETE FROM platform.{table}") == 0
    with acting(tenants, tenants.users["owner"], tenants.a) as cursor:
        assert attempt(cursor, "INSERT INTO platform.billing_plans (id, name) VALUES ('own', 'Own')") == 0
        assert attempt(cursor, "INSERT INTO platform.feature_flags (flag_key, flag_name) VALUES ('own', 'Own')") == 0


@pytest.mark.parametrize("view", lancio.VIEWS)
def test_no_role_of_a_reaches_b_through_a_view(tenants: Tenants, view: str) -> None:
    column, keys = {
        "organizations_with_stats": ("id", [tenants.b]),
        "databases_safe": ("project_id", tenants.keys_of_b["projects"]),
        "databases_with_connection_strings": ("project_id", tenants.keys_of_b["projects"]),
    }.get(view, ("organization_id", [tenants.b]))
    seen = 0
    for user in tenants.users.values():
        for org in (tenants.a, tenants.b, None):
            with acting(tenants, user, org) as cursor:
                cursor.execute(f"SELECT count(*) FROM platform.{view} WHERE {column} = ANY (%s::uuid[])", (keys,))
                assert cursor.fetchall() == [(0,)]
                if view.startswith("databases"):
                    assert (
                        attempt(cursor, f"DELETE FROM platform.{view} WHERE {column} = ANY (%s::uuid[])", (keys,)) == 0
                    )
                    assert (
                        attempt(
                            cursor, f"UPDATE platform.{view} SET name = 'x' WHERE {column} = ANY (%s::uuid[])", (keys,)
                        )
                        == 0
                    )
                seen += all_rows(cursor, view)
    assert seen > 0


def test_no_function_tells_a_about_b(tenants: Tenants) -> None:
    project = tenants.keys_of_b["projects"][0]
    database = tenants.keys_of_b["databases"][0]
    values = {"b": tenants.b, "project": project, "database": database, "user": tenants.users_of_b["owner"]}
    for user in tenants.users.values():
        for org in (tenants.a, tenants.b):
            with acting(tenants, user, org) as cursor:
                for expression, nothing in (
                    ("(platform.get_organization_by_slug('demo-company-2')).id", None),
                    ("(platform.get_project_by_ref('demoref2x1')).id", None),
                    ("(platform.get_credentials_by_project_ref('demoref2x1')).id", None),
                    ("(platform.get_active_subscription(%(b)s)).id", None),
                    ("platform.calculate_usage_cost(%(b)s, '2020-01-01', '2030-01-01')", 0),
                    ("platform.get_available_credits(%(b)s)", 0),
                    ("platform.is_organization_owner(%(user)s, %(b)s)", False),
                    ("platform.has_project_access(%(user)s, %(project)s)", False),
                    ("platform.decrypt_database_connection_string(%(database)s)", None),
                    ("(SELECT count(*) FROM platform.get_project_databases(%(project)s))", 0),
                    ("platform.update_database_health(%(database)s, 'healthy')", False),
                    ("platform.is_member_of_current_org(%(user)s)", False),
                    (
                        "(SELECT count(*) FROM platform.organization_directory() AS d"
                        " JOIN platform.organization_members AS m ON m.user_id = d.user_id"
                        " WHERE m.organization_id = %(b)s)",
                        0,
                    ),
                ):
                    cursor.execute(f"SELECT {expression}", values)
                    assert cursor.fetchall() == [(nothing,)], expression


def test_each_role_sees_of_its_organization_what_it_should(tenants: Tenants) -> None:
    everything = {"organizations", "organization_members", "organization_feature_flags", "subscriptions", "invoices"}
    everything |= {"credits", "users", "user_sessions"} | GLOBAL
    projects = {"projects", "project_members", "databases", "compute_config", "disk_config", "addons", "project_addons"}
    projects |= {"project_metrics", "usage_metrics"}
    billing = {"customer_profiles", "payment_methods", "tax_ids", "addons", "project_addons", "usage_metrics"}
    expected = {
        "owner": set(TABLES),
        "admin": set(TABLES),
        "billing_admin": everything | billing | {"api_keys"},
        "developer": everything | projects | {"credentials", "api_keys"},
        "member": everything | projects,
    }
    measured = {}
    for name, user in tenants.users.items():
        with acting(tenants, user, tenants.a) as cursor:
            measured[name] = {table for table in TABLES if all_rows(cursor, table)}
    assert measured == expected


def test_sessions_keys_and_the_user_are_visible_to_oneself_only(tenants: Tenants) -> None:
    for user in tenants.users.values():
        with acting(tenants, user, tenants.a) as cursor:
            for table, column in (("users", "id"), ("user_sessions", "user_id"), ("api_keys", "user_id")):
                cursor.execute(f"SELECT DISTINCT {column}::text FROM platform.{table}")
                assert cursor.fetchall() in ([(user,)], [] if table == "api_keys" else None)
    with acting(tenants, tenants.users["owner"], tenants.a) as cursor:
        cursor.execute(
            "SELECT count(*) > 10, bool_and(email LIKE '%%@demo.example') FROM platform.organization_directory()"
        )
        assert cursor.fetchall() == [(True, True)]


def test_members_of_two_organizations_see_the_current_one(tenants: Tenants) -> None:
    user = tenants.database.scalar(
        "SELECT user_id::text FROM platform.organization_members WHERE organization_id IN (%s, %s)"
        " GROUP BY user_id HAVING count(*) = 2 LIMIT 1",
        (tenants.a, tenants.b),
    )
    for org in (tenants.a, tenants.b):
        with acting(tenants, user, org) as cursor:
            cursor.execute("SELECT count(*) FROM platform.organizations")
            assert cursor.fetchall() == [(2,)]
            cursor.execute("SELECT DISTINCT organization_id::text FROM platform.invoices")
            assert cursor.fetchall() == [(org,)]


@pytest.mark.parametrize("change", ["deleted_at = now()", "banned_until = now() + interval '1 day'"])
def test_deleted_and_banned_users_reach_nothing_of_the_organization(tenants: Tenants, change: str) -> None:
    user = tenants.users["owner"]
    tenants.database.query(f"UPDATE platform.users SET {change} WHERE id = %s", (user,))
    try:
        with acting(tenants, user, tenants.a) as cursor:
            visible = {table for table in TABLES if all_rows(cursor, table)}
            assert visible == GLOBAL | {"users", "user_sessions", "organization_members"}
            assert attempt(cursor, "UPDATE platform.users SET banned_until = NULL, deleted_at = NULL") == 0
    finally:
        tenants.database.query(
            "UPDATE platform.users SET deleted_at = NULL, banned_until = NULL WHERE id = %s", (user,)
        )


# Who may do it; everybody else is refused. %(a)s: the organization, %(project)s: one of its projects in which developer
# and member take part, %(new)s: a user of no organization, %(me)s: the acting user, %(other)s: another one, %(owner)s:
# the organization's owner.
WRITES: list[tuple[str, str]] = [
    ("owner admin", "UPDATE platform.organizations SET name = 'New' WHERE id = %(a)s"),
    ("owner", "DELETE FROM platform.organizations WHERE id = %(a)s"),
    ("", "INSERT INTO platform.organizations (name, slug) VALUES ('Own', 'own')"),
    (
        "owner admin",
        "INSERT INTO platform.organization_members (organization_id, user_id, role) VALUES (%(a)s, %(new)s, 'member')"
        " RETURNING id",
    ),
    (
        "owner",
        "INSERT INTO platform.organization_members (organization_id, user_id, role) VALUES (%(a)s, %(new)s, 'owner')",
    ),
    ("owner", "UPDATE platform.organization_members SET role = 'owner' WHERE user_id = %(me)s"),
    ("owner", "UPDATE platform.organization_members SET role = 'member' WHERE user_id = %(owner)s"),
    ("owner", "DELETE FROM platform.organization_members WHERE user_id = %(owner)s"),
    (
        "owner admin billing_admin developer member",
        "DELETE FROM platform.organization_members WHERE user_id = %(me)s",
    ),
    ("owner admin", "DELETE FROM platform.organization_members WHERE user_id = %(other)s"),
    (
        "owner admin",
        "INSERT INTO platform.organization_invitations (organization_id, invited_email, invited_by, role, token)"
        " VALUES (%(a)s, 'x@y.example', %(me)s, 'member', 'tok-1')",
    ),
    (
        "owner",
        "INSERT INTO platform.organization_invitations (organization_id, invited_email, invited_by, role, token)"
        " VALUES (%(a)s, 'x@y.example', %(me)s, 'owner', 'tok-1')",
    ),
    ("owner admin", "DELETE FROM platform.organization_invitations WHERE organization_id = %(a)s"),
    ("owner admin", "UPDATE platform.organization_feature_flags SET enabled = false WHERE organization_id = %(a)s"),
    ("owner admin billing_admin", "UPDATE platform.subscriptions SET plan_id = 'team' WHERE organization_id = %(a)s"),
    ("owner admin billing_admin", "UPDATE platform.customer_profiles SET city = 'X' WHERE organization_id = %(a)s"),
    ("owner admin billing_admin", "UPDATE platform.invoices SET status = 'paid' WHERE organization_id = %(a)s"),
    ("owner admin billing_admin", "DELETE FROM platform.payment_methods WHERE organization_id = %(a)s"),
    (
        "owner admin billing_admin",
        "INSERT INTO platform.tax_ids (organization_id, type, value) VALUES (%(a)s, 'eu_vat', 'X1') RETURNING id",
    ),
    ("owner admin billing_admin", "UPDATE platform.credits SET remaining = 0 WHERE organization_id = %(a)s"),
    ("owner admin billing_admin", "UPDATE platform.addons SET quantity = 2 WHERE project_id = %(project)s"),
    (
        "owner admin billing_admin",
        "INSERT INTO platform.project_addons (project_id, addon_id) VALUES (%(project)s, 'ipv4') RETURNING id",
    ),
    (
        "owner admin",
        "INSERT INTO platform.projects (organization_id, name, slug, ref, database_host, database_name, database_user,"
        " database_password, postgres_meta_url, supabase_url)"
        " VALUES (%(a)s, 'n', 'n', 'new-ref', 'h', 'd', 'u', '', 'm', 's') RETURNING id",
    ),
    ("owner admin", "UPDATE platform.projects SET name = 'New' WHERE id = %(project)s"),
    ("owner admin", "DELETE FROM platform.projects WHERE id = %(project)s"),
    (
        "owner admin",
        "INSERT INTO platform.project_members (project_id, user_id, role) VALUES (%(project)s, %(owner)s, 'developer')",
    ),
    # Not even an owner brings somebody into a project who is not in the organization.
    ("", "INSERT INTO platform.project_members (project_id, user_id, role) VALUES (%(project)s, %(new)s, 'developer')"),
    ("owner admin", "UPDATE platform.project_members SET role = 'admin' WHERE project_id = %(project)s"),
    ("owner admin", "UPDATE platform.credentials SET anon_key = 'x' WHERE project_id = %(project)s"),
    (
        "owner admin developer",
        "INSERT INTO platform.databases (project_id, name, type, connection_string)"
        " VALUES (%(project)s, 'n', 'redis', 'redis://h') RETURNING id",
    ),
    (
        "owner admin developer",
        "UPDATE platform.databases SET connection_string = 'redis://g' WHERE project_id = %(project)s",
    ),
    ("owner admin", "DELETE FROM platform.databases WHERE project_id = %(project)s"),
    ("owner admin", "UPDATE platform.compute_config SET instance_size = 'large' WHERE project_id = %(project)s"),
    ("owner admin", "UPDATE platform.disk_config SET size_gb = 64 WHERE project_id = %(project)s"),
    ("", "DELETE FROM platform.project_metrics"),
    ("", "UPDATE platform.usage_metrics SET cost = 0"),
    (
        "owner admin billing_admin developer member",
        "INSERT INTO platform.audit_logs (organization_id, user_id, event_type, action)"
        " VALUES (%(a)s, %(me)s, 'e', 'x')",
    ),
    (
        "",
        "INSERT INTO platform.audit_logs (organization_id, user_id, event_type, action)"
        " VALUES (%(a)s, %(new)s, 'e', 'x')",
    ),
    ("", "DELETE FROM platform.audit_logs"),
    ("", "UPDATE platform.audit_logs SET action = 'x'"),
    ("owner admin billing_admin developer member", "UPDATE platform.users SET first_name = 'X' WHERE id = %(me)s"),
    ("", "UPDATE platform.users SET first_name = 'X' WHERE id = %(new)s"),
    ("", "INSERT INTO platform.users (email) VALUES ('x@y.example')"),
    ("owner admin billing_admin developer member", "DELETE FROM platform.user_sessions"),
    (
        "owner admin billing_admin developer member",
        "INSERT INTO platform.api_keys (organization_id, user_id, name, key_prefix, key_hash)"
        " VALUES (%(a)s, %(me)s, 'n', 'p', 'hash-1') RETURNING id",
    ),
    (
        "",
        "INSERT INTO platform.api_keys (organization_id, user_id, name, key_prefix, key_hash)"
        " VALUES (%(a)s, %(new)s, 'n', 'p', 'hash-1')",
    ),
]


@pytest.mark.parametrize(("allowed", "command"), WRITES)
def test_each_role_writes_what_it_should_and_nothing_else(tenants: Tenants, allowed: str, command: str) -> None:
    database = tenants.database
    project = database.scalar("SELECT id::text FROM platform.projects WHERE ref = 'demoref1x1'")
    new = str(uuid.uuid4())
    database.query("INSERT INTO platform.users (id, email) VALUES (%s, %s)", (new, new))
    try:
        measured = set()
        for name, user in tenants.users.items():
            other = tenants.users["billing_admin" if name != "billing_admin" else "developer"]
            values = {"a": tenants.a, "project": project, "new": new, "me": user, "owner": tenants.users["owner"]}
            with acting(tenants, user, tenants.a) as cursor:
                if attempt(cursor, command, {**values, "other": other}) > 0:
                    measured.add(name)
        assert measured == set(allowed.split())
    finally:
        database.query("DELETE FROM platform.users WHERE id = %s", (new,))


def test_connection_strings_are_decrypted_for_sufficient_roles_only(tenants: Tenants) -> None:
    measured = {}
    for name, user in tenants.users.items():
        with acting(tenants, user, tenants.a) as cursor:
            cursor.execute("SELECT connection_string FROM platform.databases_with_connection_strings")
            measured[name] = {row[0] is not None and row[0].startswith("redis://u:p") for row in cursor.fetchall()}
    assert measured == {
        "owner": {True},
        "admin": {True},
        "billing_admin": set(),
        "developer": {True},
        "member": {False},
    }


def test_the_settings_end_with_the_transaction(tenants: Tenants) -> None:
    connection = lancio.session(tenants.database, user=tenants.application)
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(
            "SELECT set_config('app.current_user_id', %s, true), set_config('app.current_org_id', %s, true)",
            (tenants.users["owner"], tenants.a),
        )
        assert all_rows(cursor, "invoices") > 0
        cursor.execute("COMMIT")
        assert all_rows(cursor, "invoices") == 0


def test_the_checks_of_007_pass_and_notice_a_policy_too_many(tenants: Tenants) -> None:
    assert [result.summary for result in lancio.verify(tenants.database, RESTRICTIVE) if not result.passed] == []
    tenants.database.query("CREATE POLICY permissive_all_users ON platform.users USING (true)")
    try:
        failed = {result.criterion for result in lancio.verify(tenants.database, RESTRICTIVE) if not result.passed}
    finally:
        tenants.database.query("DROP POLICY permissive_all_users ON platform.users")
    assert failed == {
        "platform.tenancy.no_permissive_policy",
        "platform.tenancy.open_tables",
        "platform.tenancy.test_rls_policies",
    }


def test_007_is_manual_and_wants_the_state_that_006_leaves(database: Database) -> None:
    assert lancio.plan().migration(RESTRICTIVE).manual
    lancio.apply(database, DATABASES)
    with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState, match="not as migration 006 leaves them"):
        lancio.apply(database, only=RESTRICTIVE)


def test_007_is_refused_to_somebody_who_does_not_own_the_tables(registry: Database) -> None:
    with role(registry, "other") as other:
        registry.query(f"GRANT USAGE, CREATE ON SCHEMA platform TO {other}")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="does not own these tables"):
            lancio.apply(registry, only=RESTRICTIVE, user=other)
