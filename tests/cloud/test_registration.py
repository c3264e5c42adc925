# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""database_registration against a real server: the table of migration 006, and one that does not encrypt by itself."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions, connect
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation
from ansible_collections.surefoot.dbops.plugins.module_utils._registration import Registration, Request
from ansible_collections.surefoot.dbops.plugins.module_utils._registry import Registry
from ansible_collections.surefoot.dbops.plugins.modules import database_registration
from ansible_collections.surefoot.dbops.tests.support import lancio
from ansible_collections.surefoot.dbops.tests.support.bad_urls import BAD_URLS, NEEDLE
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEY = "first-Encryption-Key-71c0"
NEW_KEY = "second-Encryption-Key-b92f"
PASSWORD = "Registered-Secret-5d21"
URL = f"redis://default:{PASSWORD}@redis.example.net:6380/2"
OTHER_URL = f"rediss://default:{PASSWORD}x@redis2.example.net"
MONGODB = f"mongodb://mongo:{PASSWORD}@a.example.net,b.example.net:27018/app?authSource=admin"
NEEDLES = (KEY, NEW_KEY, PASSWORD)


@pytest.fixture(scope="module")
def registry_template(pg_server: PgServer) -> t.Iterator[Database]:
    """Migration 006, step 1, once for all tests of this file."""
    with temporary_database(pg_server) as template:
        lancio.apply(template, lancio.DATABASES)
        template.query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        yield template


@pytest.fixture
def platform(registry_template: Database) -> t.Iterator[Database]:
    """A copy of it that logs every statement."""
    with temporary_database(registry_template.server, template=registry_template.name) as database:
        for setting in ("log_statement = 'all'", "log_min_duration_statement = 0", "log_error_verbosity = verbose"):
            database.query(f"ALTER DATABASE {database.name} SET {setting}")
        yield database


@pytest.fixture
def plain_table(database: Database) -> Database:
    """A table of the shape that does not encrypt by itself, with names of its own."""
    database.query(
        """
        CREATE SCHEMA ops;
        CREATE TABLE ops."Stores %s" (
            nr bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            tenant text NOT NULL,
            name varchar(100) NOT NULL,
            type text NOT NULL,
            host text NOT NULL,
            port integer NOT NULL CHECK (port <> 6666),
            address text NOT NULL,
            sealed bytea NOT NULL,
            metadata jsonb
        )
        """
    )
    database.query(f"ALTER DATABASE {database.name} SET log_statement = 'all'")
    return database


PLAIN = {
    "schema": "ops",
    "table": "Stores %s",
    "columns": {
        "id": "nr",
        "project_id": "tenant",
        "connection_string": "address",
        "connection_string_encrypted": "sealed",
    },
    "encryption": "client",
    "project_id": "tenant-7",
}


def project(database: Database) -> str:
    return str(database.scalar("SELECT id FROM platform.projects WHERE name = 'Lancio Studio'"))


def task(database: Database, *, check: bool = False, **more: t.Any) -> dict[str, t.Any]:
    """The result of a task with these options."""
    given: dict[str, t.Any] = {"name": "cache", "url": URL, "encryption_key": KEY, **database.params, **more}
    if "project_id" not in given:
        given["project_id"] = project(database)
    spec = database_registration.argument_spec().argument_spec
    assert set(given) <= set(spec)
    params = {name: given.get(name, option.get("default")) for name, option in spec.items()}
    result = Invocation(params, check, True).perform(database_registration.run)
    text = json.dumps(result)
    assert not [needle for needle in NEEDLES if needle in text]
    return result


def rows(database: Database) -> list[tuple[t.Any, ...]]:
    return database.query(
        "SELECT name, type, host, port, database, username, ssl_enabled, connection_string, status,"
        " connection_string_encrypted IS NOT NULL, metadata - 'surefoot' FROM platform.databases ORDER BY name"
    )


def decrypted(database: Database, key: str = KEY) -> dict[str, str]:
    with contextlib.closing(lancio.session(database, key=key)) as session, session.cursor() as cursor:
        cursor.execute("SELECT name, platform.decrypt_database_connection_string(id) FROM platform.databases")
        return dict(cursor.fetchall())


def verdicts(result: dict[str, t.Any]) -> dict[str, str]:
    return {item["criterion"]: item["verdict"] for item in result["evidence"]}


def assert_kept_quiet(database: Database, *needles: str) -> None:
    """Nothing secret is in the server's log, its statistics or the table."""
    log = database.server.log_text()
    statements = json.dumps(database.query("SELECT query FROM pg_stat_statements"))
    table = json.dumps(
        database.query("SELECT to_jsonb(d) - 'connection_string_encrypted' FROM platform.databases AS d")
    )
    assert "surefoot_secret" in log, "the log shows no statement at all"
    for needle in (*NEEDLES, *needles):
        assert needle not in log and needle not in statements and needle not in table


# --- present


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (URL, ("redis", "redis.example.net", 6380, "2", "default", False, "redis://***@redis.example.net:6380/2")),
        (
            MONGODB,
            (
                "mongodb",
                "a.example.net",
                27017,
                "app",
                "mongo",
                False,
                "mongodb://***@a.example.net,b.example.net:27018/app",
            ),
        ),
        (
            f"postgresql://app:{PASSWORD}@db.example.net/app?sslmode=require",
            ("postgresql", "db.example.net", 5432, "app", "app", True, "postgresql://***@db.example.net/app"),
        ),
        (
            f"mongodb+srv://app:{PASSWORD}@c.d.example.net/app",
            ("mongodb", "c.d.example.net", 27017, "app", "app", True, "mongodb+srv://***@c.d.example.net/app"),
        ),
    ],
)
def test_a_url_becomes_an_encrypted_row(platform: Database, url: str, expected: tuple[t.Any, ...]) -> None:
    result = task(platform, url=url, metadata={"provider": "railway"})
    assert (result["changed"], result["action"], result["verified"]) == (True, "created", True)
    assert rows(platform) == [("cache", *expected, "active", True, {"provider": "railway"})]
    assert decrypted(platform) == {"cache": url}
    assert verdicts(result) == {"registration.encrypted": "pass", "registration.decryption": "pass"}
    assert_kept_quiet(platform)


def test_the_second_run_changes_nothing_although_a_ciphertext_would_differ(platform: Database) -> None:
    first = task(platform)
    before = platform.query("SELECT to_jsonb(d) FROM platform.databases AS d")
    second = task(platform, project_id=project(platform).upper())
    assert (second["changed"], second["action"], second["verified"]) == (False, "unchanged", True)
    assert second["fingerprint"] == first["fingerprint"] and second["database"] == first["database"]
    assert second["diff"]["before"] == second["diff"]["after"]
    assert platform.query("SELECT to_jsonb(d) FROM platform.databases AS d") == before


def test_another_url_updates_the_row_and_resets_its_health(platform: Database) -> None:
    first = task(platform)
    platform.query("SELECT platform.update_database_health(id, 'healthy') FROM platform.databases")
    result = task(platform, url=OTHER_URL)
    assert (result["changed"], result["action"]) == (True, "updated")
    assert result["fingerprint"] != first["fingerprint"]
    assert result["database"]["id"] == first["database"]["id"]
    assert rows(platform)[0][1:8] == (
        "redis",
        "redis2.example.net",
        6379,
        None,
        "default",
        True,
        "rediss://***@redis2.example.net",
    )
    assert platform.query("SELECT health_check_status, last_health_check_at FROM platform.databases") == [
        ("unknown", None)
    ]
    assert decrypted(platform) == {"cache": OTHER_URL}
    assert_kept_quiet(platform)


def test_a_ciphertext_that_somebody_else_wrote_is_noticed(platform: Database) -> None:
    task(platform)
    platform.query("DELETE FROM platform.databases WHERE name = 'x'")
    with contextlib.closing(lancio.session(platform, key=KEY)) as session, session.cursor() as cursor:
        cursor.execute("UPDATE platform.databases SET connection_string = 'redis://default:othersecret@elsewhere:1/0'")
    result = task(platform)
    assert (result["changed"], result["action"]) == (True, "updated")
    assert '"host": "elsewhere"' in result["diff"]["before"] and "othersecret" not in json.dumps(result)
    assert decrypted(platform) == {"cache": URL}


def test_a_row_that_the_migration_wrote_is_adopted_once(platform: Database) -> None:
    lancio.apply(platform, only=lancio.REGISTRATION)
    more = {"name": "Railway Redis", "url": lancio.REDIS_URL, "encryption_key": lancio.KEY}
    result = task(platform, **more)
    assert (result["changed"], result["action"]) == (True, "adopted")
    assert task(platform, **more)["changed"] is False
    assert decrypted(platform, lancio.KEY)["Railway Redis"] == lancio.REDIS_URL


def test_status_and_metadata_change_without_touching_the_url(platform: Database) -> None:
    task(platform, metadata={"provider": "railway", "team": "a"})
    sealed = platform.scalar("SELECT connection_string_encrypted FROM platform.databases").tobytes()
    result = task(platform, status="maintenance", metadata={"team": "b"})
    assert (result["changed"], result["action"]) == (True, "updated")
    assert rows(platform)[0][8:] == ("maintenance", True, {"provider": "railway", "team": "b"})
    assert platform.scalar("SELECT connection_string_encrypted FROM platform.databases").tobytes() == sealed
    assert task(platform, metadata={"team": "b"})["changed"] is False


@pytest.mark.parametrize("state", ["created", "updated", "removed"])
def test_check_mode_predicts_and_writes_nothing(platform: Database, state: str) -> None:
    more: dict[str, t.Any] = {"url": URL}
    if state != "created":
        task(platform)
        more = {"url": OTHER_URL} if state == "updated" else {"state": "absent"}
    before = platform.query("SELECT to_jsonb(d) FROM platform.databases AS d")
    predicted = task(platform, check=True, **more)
    assert platform.query("SELECT to_jsonb(d) FROM platform.databases AS d") == before
    assert (predicted["changed"], predicted["action"], predicted["verified"]) == (True, state, None)
    assert set(verdicts(predicted).values()) <= {"not_measured"}
    done = task(platform, **more)
    assert (done["changed"], done["diff"]) == (True, predicted["diff"])


def test_absent_removes_the_row_and_then_nothing(platform: Database) -> None:
    task(platform)
    task(platform, name="kept")
    result = task(platform, state="absent", url=None, encryption_key=None)
    assert (result["changed"], result["action"], result["diff"]["after"]) == (True, "removed", "")
    assert result["database"]["host"] == "redis.example.net"
    assert [row[0] for row in rows(platform)] == ["kept"]
    again = task(platform, state="absent", url=None, encryption_key=None)
    assert (again["changed"], again["action"]) == (False, "unchanged")


def test_two_tasks_at_once_make_one_row(platform: Database) -> None:
    results: list[dict[str, t.Any]] = []
    threads = [threading.Thread(target=lambda: results.append(task(platform))) for _number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result["action"] for result in results) == ["created", "unchanged", "unchanged", "unchanged"]
    assert len(rows(platform)) == 1


# --- what is refused, and what the server writes down meanwhile


def refused(database: Database, words: str, **more: t.Any) -> None:
    before = database.query("SELECT to_jsonb(d) FROM platform.databases AS d")
    result = task(database, **more)
    assert result["failed"] and not result["changed"]
    assert words in result["msg"] and "\n" not in result["msg"]
    assert database.query("SELECT to_jsonb(d) FROM platform.databases AS d") == before


def test_another_key_than_the_rows_is_refused(platform: Database) -> None:
    task(platform)
    refused(platform, "the stored URL of cache cannot be read: another key", encryption_key=NEW_KEY)
    refused(platform, "does not read cache, another database of the project", encryption_key=NEW_KEY, name="second")
    result = task(platform, encryption_key=NEW_KEY, replace_unreadable=True)
    assert result["action"] == "updated" and decrypted(platform, NEW_KEY) == {"cache": URL}
    assert_kept_quiet(platform)


def test_a_violated_constraint_leaves_no_secret_in_the_log(platform: Database) -> None:
    task(platform, name="first")  # so that the log holds a statement to compare with
    refused(platform, "violates foreign key constraint", project_id="00000000-0000-0000-0000-000000000000")
    refused(platform, 'violates check constraint "databases_status_known"', status="nonsense")
    refused(platform, "violates check constraint", name="  ")
    refused(platform, "invalid input syntax for type uuid", project_id="no uuid")
    # The server says that, and not the row.
    assert 'constraint "databases_status_known"' in platform.server.log_text()
    assert "Failing row contains" not in platform.server.log_text()
    assert_kept_quiet(platform)


def test_a_missing_key_leaves_no_secret_in_the_log(platform: Database) -> None:
    """The trigger finds no key because it reads another setting than the one that is sent."""
    task(platform, name="first")
    platform.query("DELETE FROM platform.databases")
    source = platform.scalar("SELECT pg_get_functiondef('platform.encrypt_database_connection_string()'::regprocedure)")
    broken = source.replace("current_setting('app.database_encryption_key'", "current_setting('app.other_key'")
    platform.query(broken)
    refused(platform, "app.database_encryption_key is not set")
    assert_kept_quiet(platform)


def test_a_trigger_that_keeps_plain_text_is_found_out_and_rolled_back(platform: Database) -> None:
    platform.query(
        "CREATE OR REPLACE FUNCTION platform.encrypt_database_connection_string() RETURNS trigger"
        " LANGUAGE plpgsql AS $$"
        " BEGIN NEW.connection_string_encrypted := convert_to("
        "concat(NEW.connection_string, current_setting('app.database_encryption_key', true)), 'UTF8');"
        " RETURN NEW; END $$"
    )
    refused(platform, "kept the URL of cache in plain text")
    assert rows(platform) == []


def test_a_table_without_the_trigger_is_refused_before_a_url_is_sent(platform: Database) -> None:
    task(platform)
    platform.query("ALTER TABLE platform.databases DISABLE TRIGGER encrypt_databases_connection_string")
    refused(platform, "would be stored in plain text", url=OTHER_URL)
    refused(platform, "would be stored in plain text", name="second")
    assert_kept_quiet(platform)


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("there is no table nowhere.databases", {"schema": "nowhere"}),
        ("has no column label", {"columns": {"name": "label"}}),
        ("has no column dbname", {"columns": {"database": "dbname"}}),
        ("has no row trigger BEFORE INSERT OR UPDATE that reads app.other", {"key_setting": "app.other"}),
        ("there is no function platform.nothing", {"decrypt_function": "nothing"}),
        ("encrypts by itself, in the trigger encrypt_databases_connection_string", {"encryption": "client"}),
        ("is text, not bytea", {"columns": {"connection_string_encrypted": "host"}}),
    ],
)
def test_a_table_of_another_shape_is_one_clear_line(platform: Database, words: str, more: dict[str, t.Any]) -> None:
    refused(platform, words, **more)


def test_a_role_that_may_not_decrypt_is_told_so(platform: Database) -> None:
    role = f"clerk_{platform.name}"
    platform.query(f"CREATE ROLE {role}")
    try:
        platform.query(f"GRANT USAGE ON SCHEMA platform TO {role}; GRANT ALL ON platform.databases TO {role}")
        refused(platform, "the role may not execute platform.decrypt_database_connection_string", session_role=role)
    finally:
        platform.query(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_two_rows_of_one_name_are_refused(platform: Database) -> None:
    for _number in range(2):
        lancio.store(platform, URL, name="cache")
    refused(platform, "2 rows of platform.databases have this project and the name cache")


def test_what_decrypts_to_another_url_is_not_committed(platform: Database) -> None:
    platform.query("ALTER FUNCTION platform.decrypt_database_connection_string(uuid) RENAME TO real_one")
    platform.query(
        "CREATE FUNCTION platform.decrypt_database_connection_string(uuid) RETURNS text LANGUAGE sql"
        " AS $$ SELECT platform.real_one($1) || '1' $$"
    )
    refused(platform, "what was written for cache decrypts to another URL")
    assert rows(platform) == []
    assert_kept_quiet(platform)


def test_a_task_that_is_told_to_stop_changes_nothing(platform: Database) -> None:
    task(platform)
    spec = database_registration.argument_spec().argument_spec
    params = {name: option.get("default") for name, option in spec.items()}
    request = Request("present", project(platform), name="cache", url=OTHER_URL, encryption_key=KEY)
    registration = Registration(ConnectionOptions.from_params(platform.params), Registry.from_params(params), request)
    errors: list[SurefootError] = []

    def work() -> None:
        try:
            registration.run()
        except SurefootError as exc:
            errors.append(exc)

    with contextlib.closing(platform.connect()) as blocker, blocker.cursor() as cursor:
        cursor.execute("BEGIN; SELECT 1 FROM platform.databases FOR UPDATE")
        thread = threading.Thread(target=work)
        thread.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        for _attempt in range(200):
            if platform.scalar(waiting):
                break
            time.sleep(0.02)
        registration.stop("the test says so")
        thread.join()
        cursor.execute("ROLLBACK")
    assert [error.code for error in errors] == ["sql"] and "cancel" in str(errors[0])
    assert decrypted(platform) == {"cache": URL}


# --- rotated


def register_three(database: Database) -> None:
    task(database)
    task(database, name="docs", url=MONGODB)
    task(database, name="third", url=OTHER_URL)
    # Set on purpose by somebody: a rotation must not take it from the URL again.
    database.query("UPDATE platform.databases SET host = 'tunnel.internal' WHERE name = 'third'")


ROTATE = {"state": "rotated", "name": None, "url": None, "old_encryption_key": KEY, "encryption_key": NEW_KEY}


def rotate(database: Database, **more: t.Any) -> dict[str, t.Any]:
    return task(database, **{**ROTATE, **more})


def test_rotation_exchanges_the_key_of_every_row_in_one_transaction(platform: Database) -> None:
    register_three(platform)
    plain, shown = decrypted(platform), rows(platform)
    predicted = rotate(platform, check=True)
    assert predicted["rotation"] == {"rows": 3, "rotated": 3, "already": 0, "verified": None}
    assert decrypted(platform) == plain
    result = rotate(platform)
    assert (result["changed"], result["action"], result["verified"]) == (True, "rotated", True)
    assert result["rotation"] == {"rows": 3, "rotated": 3, "already": 0, "verified": 3}
    assert result["diff"] == predicted["diff"]
    assert decrypted(platform, NEW_KEY) == plain and rows(platform) == shown
    assert_kept_quiet(platform)
    again = rotate(platform)
    assert (again["changed"], again["rotation"]) == (False, {"rows": 3, "rotated": 0, "already": 3, "verified": 3})
    # The fingerprints are those of the new key: registering again changes nothing.
    assert task(platform, encryption_key=NEW_KEY)["changed"] is False


def test_rotation_of_rows_that_the_migration_wrote(platform: Database) -> None:
    lancio.apply(platform, only=lancio.REGISTRATION)
    plain = decrypted(platform, lancio.KEY)
    assert rotate(platform, old_encryption_key=lancio.KEY)["rotation"]["rotated"] == 2
    assert decrypted(platform, NEW_KEY) == plain
    assert rotate(platform, old_encryption_key=lancio.KEY)["changed"] is False


def test_rotation_goes_on_where_some_rows_have_the_new_key(platform: Database) -> None:
    task(platform)
    task(platform, name="docs", url=MONGODB, encryption_key=NEW_KEY, replace_unreadable=True)
    result = rotate(platform)
    assert result["rotation"] == {"rows": 2, "rotated": 1, "already": 1, "verified": 2}
    assert decrypted(platform, NEW_KEY) == {"cache": URL, "docs": MONGODB}


def test_a_row_that_neither_key_reads_stops_the_rotation(platform: Database) -> None:
    task(platform)
    task(platform, name="lost", encryption_key="third-Encryption-Key-0000", replace_unreadable=True)
    before = platform.query("SELECT to_jsonb(d) FROM platform.databases AS d ORDER BY name")
    result = rotate(platform)
    assert result["failed"] and "neither key reads lost (another key, or damaged data)" in result["msg"]
    assert platform.query("SELECT to_jsonb(d) FROM platform.databases AS d ORDER BY name") == before


def test_a_rotation_that_fails_half_way_changes_nothing(platform: Database) -> None:
    register_three(platform)
    platform.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.name = 'third' THEN"
        " RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$;"
        " CREATE TRIGGER refuse BEFORE UPDATE ON platform.databases FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    plain = decrypted(platform)
    result = rotate(platform)
    assert result["failed"] and "not this one" in result["msg"]
    assert decrypted(platform) == plain
    assert_kept_quiet(platform)


def test_rotation_of_one_project_leaves_the_others(platform: Database) -> None:
    task(platform)
    platform.query(
        "INSERT INTO platform.projects SELECT (jsonb_populate_record(p, jsonb_build_object('id', gen_random_uuid(),"
        " 'name', 'Other', 'slug', 'other', 'ref', 'other'))).* FROM platform.projects AS p"
        " WHERE name = 'Lancio Studio'"
    )
    other = str(platform.scalar("SELECT id FROM platform.projects WHERE name = 'Other'"))
    task(platform, name="elsewhere", project_id=other)
    assert rotate(platform, project_ids=[project(platform)])["rotation"]["rows"] == 1
    sealed = dict(platform.query("SELECT name, metadata->'surefoot'->>'key_id' FROM platform.databases"))
    assert sealed["cache"] != sealed["elsewhere"]


def test_the_same_key_twice_is_refused(platform: Database) -> None:
    task(platform)
    result = rotate(platform, old_encryption_key=NEW_KEY)
    assert "old_encryption_key and encryption_key are the same" in result["msg"]


def test_a_role_that_policies_bind_cannot_rotate_a_part(platform: Database) -> None:
    register_three(platform)
    role = f"clerk_{platform.name}"
    platform.query(f"CREATE ROLE {role}")
    try:
        platform.query(
            f"GRANT USAGE ON SCHEMA platform TO {role}; GRANT ALL ON platform.databases TO {role};"
            f" GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA platform TO {role};"
            " ALTER TABLE platform.databases ENABLE ROW LEVEL SECURITY;"
            " CREATE POLICY one ON platform.databases USING (name = 'cache')"
        )
        result = rotate(platform, session_role=role)
        assert result["failed"] and "row-level security" in result["msg"]
    finally:
        platform.query(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert len(decrypted(platform)) == 3


# --- after 007


def test_after_007_the_session_says_for_whom_it_works(database: Database) -> None:
    lancio.apply(database, lancio.RESTRICTIVE)
    (organization,) = database.query("SELECT id FROM platform.organizations WHERE slug = 'lancio'")[0]
    (owner,) = database.query("INSERT INTO platform.users (email) VALUES ('o@example.com') RETURNING id")[0]
    database.query(
        "INSERT INTO platform.organization_members (organization_id, user_id, role) VALUES (%s, %s, 'owner')",
        (organization, owner),
    )
    refused(database, "the decrypting function returns nothing; it may read for certain users only")
    database.query("DELETE FROM platform.databases")
    refused(database, "the decrypting function returns nothing; it may read for certain users only")
    acting = {"options": f"-c app.current_user_id={owner} -c app.current_org_id={organization}"}
    assert task(database, connect_params=acting)["action"] == "created"
    assert task(database, connect_params=acting)["changed"] is False
    more = {"connect_params": acting, "project_ids": [project(database)]}
    assert rotate(database, **more)["rotation"]["verified"] == 1


# --- encryption on the client


def sealed_rows(database: Database) -> list[tuple[t.Any, ...]]:
    return database.query('SELECT tenant, name, type, host, port, address FROM ops."Stores %s" ORDER BY name')


def test_a_table_that_does_not_encrypt_gets_sealed_urls(plain_table: Database) -> None:
    result = task(plain_table, **PLAIN)
    assert (result["changed"], result["action"], result["verified"]) == (True, "created", True)
    expected = ("tenant-7", "cache", "redis", "redis.example.net", 6380, "redis://***@redis.example.net:6380/2")
    assert sealed_rows(plain_table) == [expected]
    assert task(plain_table, **PLAIN)["changed"] is False
    assert task(plain_table, **{**PLAIN, "url": OTHER_URL})["action"] == "updated"
    rotated = rotate(plain_table, **PLAIN)
    assert rotated["rotation"] == {"rows": 1, "rotated": 1, "already": 0, "verified": 1}
    assert rotate(plain_table, **PLAIN)["changed"] is False
    assert task(plain_table, **{**PLAIN, "url": OTHER_URL, "encryption_key": NEW_KEY})["changed"] is False
    assert "cannot be read: stored with another key" in task(plain_table, **PLAIN)["msg"]
    # The same server log that every statement is in.
    log = plain_table.server.log_text()
    assert "Stores %s" in log and not [needle for needle in NEEDLES if needle in log]
    assert task(plain_table, **PLAIN, state="absent")["action"] == "removed"


def test_a_ciphertext_that_was_copied_to_another_row_is_refused(plain_table: Database) -> None:
    task(plain_table, **PLAIN)
    task(plain_table, **{**PLAIN, "name": "second", "url": OTHER_URL})
    plain_table.query(
        'UPDATE ops."Stores %s" SET sealed = (SELECT sealed FROM ops."Stores %s" WHERE name = \'second\')'.replace(
            "%s", "%s"
        )
    )
    result = task(plain_table, **PLAIN)
    assert result["failed"] and "damaged, or the ciphertext of another row" in result["msg"]


def test_a_constraint_of_that_table_is_one_line(plain_table: Database) -> None:
    result = task(plain_table, **{**PLAIN, "url": f"redis://default:{PASSWORD}@h:6666/0"})
    assert result["failed"] and "violates check constraint" in result["msg"]
    assert sealed_rows(plain_table) == []


def test_a_pooler_is_refused_before_anything_is_sent(platform: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pooler does to a connection: the startup setting is gone. Whether a real one is recognised is shown by the
    tests of the runner."""

    def losing(*args: t.Any, settings: t.Any = None, **more: t.Any) -> t.Any:
        kept = {name: value for name, value in (settings or {}).items() if not name.startswith("app.")}
        return connect(*args, settings=kept, **more)

    monkeypatch.setattr("ansible_collections.surefoot.dbops.plugins.module_utils._registry.connect", losing)
    refused(
        platform, "the key may not travel over this connection: startup setting app.database_encryption_key got lost"
    )


# --- as a task


HEAD = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  module_defaults:
    group/surefoot.dbops.postgresql:
      login_unix_socket: "{{ server_socket }}"
      login_port: "{{ server_port }}"
      login_user: "{{ server_user }}"
      login_db: "{{ server_db }}"
  tasks:
"""
# Without no_log on the task: what is shown is what the modules let through.
TASK = """
    - surefoot.dbops.database_registration:
        project_id: "{{ project }}"
        name: entry %(number)d
        type: "{{ kinds[%(number)d] | default(omit, true) }}"
        url: "{{ urls[%(number)d] }}"
        encryption_key: "{{ key }}"
      ignore_errors: true
      register: result_%(number)d
    - surefoot.dbops.database_health:
        targets:
          - name: entry %(number)d
            url: "{{ urls[%(number)d] }}"
      ignore_errors: true
      register: health_%(number)d
"""
TAIL = """
    - ansible.builtin.debug:
        msg: "{{ query('ansible.builtin.vars', *query('ansible.builtin.varnames', '^(result|health)_')) }}"
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["in the worker", "as a module"])
def test_fifty_bad_urls_leave_no_trace_at_vvv_or_in_the_log(
    platform: Database, tmp_path: pathlib.Path, way: str
) -> None:
    task(platform, name="first")  # so that the log holds statements
    entries = BAD_URLS if way == "in the worker" else BAD_URLS[::16]
    play = HEAD + "".join(TASK % {"number": number} for number in range(len(entries))) + TAIL
    if way == "as a module":
        # A task with an environment of its own is not run in Ansible's worker, but packed and sent as a module.
        play = play.replace(
            "      ignore_errors: true\n", "      ignore_errors: true\n      environment: {SOME: thing}\n"
        )
    (tmp_path / "play.yml").write_text(play, encoding="utf-8")
    variables = {
        "server_socket": platform.server.host,
        "server_port": platform.server.port,
        "server_user": platform.server.superuser,
        "server_db": platform.name,
        "project": project(platform),
        "key": KEY,
        "kinds": [kind or "" for _name, kind, _url in entries],
        "urls": [url for _name, _kind, url in entries],
    }
    # JSON, because its texts are no templates to Ansible: "{{" arrives at the module as it is.
    (tmp_path / "vars.json").write_text(json.dumps(variables), encoding="utf-8")
    loading = "  vars:\n    given: \"{{ lookup('ansible.builtin.file', '%s') | from_json }}\"\n" % (
        tmp_path / "vars.json"
    )
    loading += "".join(f'    {name}: "{{{{ given.{name} }}}}"\n' for name in variables)
    (tmp_path / "play.yml").write_text(play.replace("  vars:\n", loading, 1), encoding="utf-8")
    done = subprocess.run(
        [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-vvv", "--diff"]
        + [str(tmp_path / "play.yml")],
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0 and f"ignored={2 * len(entries)}" in output, output[-3000:]
    assert output.count("code: plan") >= len(entries) and "status: bad_url" in output
    assert NEEDLE not in output and KEY not in output
    assert NEEDLE not in platform.server.log_text() and KEY not in platform.server.log_text()
    assert [row[0] for row in rows(platform)] == ["first"]
