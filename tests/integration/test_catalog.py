# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalog fingerprint on a real server: every kind of object, one change at a time, and a restored copy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import typing as t
import uuid

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import (
    DATABASE_LEVEL,
    Catalog,
    diff,
    entry_hashes,
    fingerprint,
    snapshot,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SqlError, SurefootError
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

pytestmark = pytest.mark.versions

# {owner} and {reader} are roles of the test.
SCHEMA = """
CREATE EXTENSION citext;
CREATE EXTENSION pgcrypto;
CREATE SCHEMA app AUTHORIZATION {owner};
COMMENT ON SCHEMA app IS 'the application';
SET ROLE {owner};
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE TYPE app.address AS (street text, zip varchar(10));
COMMENT ON COLUMN app.address.zip IS 'postal code';
CREATE DOMAIN app.email AS text COLLATE "C" NOT NULL CONSTRAINT has_at CHECK (VALUE ~ '@');
CREATE TYPE app.floatrange AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE SEQUENCE app.counter INCREMENT 5 CACHE 3;
CREATE COLLATION app.plain (provider = libc, locale = 'C');
CREATE FUNCTION app.add_one(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
CREATE FUNCTION app.twice(x integer, y integer DEFAULT 2) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $body$ BEGIN RETURN x * y; END $body$;
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN NEW.changed := now(); RETURN NEW; END
    $body$;
CREATE FUNCTION app.standard_body(p text) RETURNS boolean LANGUAGE sql
    BEGIN ATOMIC SELECT p::varchar IN ('a', 'b'); END;
CREATE PROCEDURE app.noop(IN x integer) LANGUAGE plpgsql AS $body$ BEGIN NULL; END $body$;
CREATE AGGREGATE app.total(integer) (SFUNC = int4pl, STYPE = integer, INITCOND = '0');
CREATE FUNCTION app.same(app.address, app.address) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1.zip = $2.zip';
CREATE OPERATOR app.=== (FUNCTION = app.same, LEFTARG = app.address, RIGHTARG = app.address,
    COMMUTATOR = OPERATOR(app.===));
CREATE FUNCTION app.mood_number(app.mood) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT length($1::text)';
CREATE CAST (app.mood AS integer) WITH FUNCTION app.mood_number(app.mood);
CREATE TEXT SEARCH DICTIONARY app.words (TEMPLATE = pg_catalog.simple, stopwords = english);
CREATE TEXT SEARCH CONFIGURATION app.search (COPY = pg_catalog.simple);
ALTER TEXT SEARCH CONFIGURATION app.search ALTER MAPPING FOR asciiword WITH app.words;
CREATE TABLE app.users (
    gone text, id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email app.email, name varchar(100) COLLATE "C",
    state varchar(10) DEFAULT 'new' CHECK (state IN ('new', 'old')), mood app.mood DEFAULT 'ok',
    upper_name text GENERATED ALWAYS AS (upper(name)) STORED, "Odd.Name" integer, changed timestamptz,
    since timestamptz NOT NULL DEFAULT '2020-01-01 00:00+00', "window" interval DEFAULT '1 day 2 hours');
ALTER TABLE app.users DROP COLUMN gone, ALTER COLUMN name SET STORAGE EXTERNAL, ALTER COLUMN email SET STATISTICS 500;
COMMENT ON TABLE app.users IS 'who';
COMMENT ON COLUMN app.users.email IS 'where';
CREATE UNIQUE INDEX users_email ON app.users (lower(email)) WHERE state IN ('new', 'old');
COMMENT ON INDEX app.users_email IS 'one each';
ALTER TABLE app.users REPLICA IDENTITY FULL;
ALTER TABLE app.users ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON app.users FOR SELECT TO {reader}, {owner} USING (state IN ('new', 'old'));
CREATE TRIGGER touch BEFORE UPDATE ON app.users FOR EACH ROW EXECUTE FUNCTION app.touch();
COMMENT ON TRIGGER touch ON app.users IS 'stamps';
CREATE TABLE app.orders (id serial PRIMARY KEY, user_id bigint REFERENCES app.users DEFERRABLE INITIALLY DEFERRED,
    at timestamptz NOT NULL, place app.address, price numeric(10, 2), span int4range, seen app.floatrange,
        UNIQUE (user_id, at),
    CONSTRAINT apart EXCLUDE USING gist (span WITH &&)) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);
COMMENT ON CONSTRAINT apart ON app.orders IS 'no overlap';
ALTER TABLE app.orders ADD CONSTRAINT positive CHECK (price > 0) NOT VALID;
CREATE STATISTICS app.orders_stats (dependencies) ON user_id, at FROM app.orders;
CREATE UNLOGGED TABLE app.scratch (a integer, b integer);
CREATE RULE keep AS ON DELETE TO app.scratch DO INSTEAD NOTHING;
CREATE TABLE app.typed OF app.address (zip WITH OPTIONS NOT NULL);
CREATE TABLE app.base (a integer CHECK (a > 0));
CREATE TABLE app.derived (b integer) INHERITS (app.base);
CREATE TABLE app.events (id bigint NOT NULL, at timestamptz NOT NULL, user_id bigint REFERENCES app.users,
    kind varchar(5),
    PRIMARY KEY (id, at), CHECK (kind IN ('a', 'b'))) PARTITION BY RANGE (at);
CREATE TABLE app.events_2020 PARTITION OF app.events FOR VALUES FROM ('2020-01-01+00') TO ('2021-01-01+00');
CREATE TABLE app.events_rest PARTITION OF app.events DEFAULT;
CREATE INDEX events_user ON app.events (user_id);
CREATE TRIGGER touch AFTER INSERT ON app.events FOR EACH ROW EXECUTE FUNCTION app.touch();
CREATE VIEW app.new_users WITH (security_barrier) AS SELECT id, email, name FROM app.users WHERE state IN ('new',
    'old');
COMMENT ON COLUMN app.new_users.email IS 'in the view';
CREATE MATERIALIZED VIEW app.per_state AS SELECT state, count(*) AS number FROM app.users GROUP BY state;
CREATE UNIQUE INDEX per_state_key ON app.per_state (state);
GRANT SELECT ON app.users TO {reader};
GRANT UPDATE (name), SELECT (name) ON app.users TO {reader};
GRANT USAGE ON SCHEMA app TO {reader};
GRANT USAGE ON SEQUENCE app.counter TO {reader} WITH GRANT OPTION;
REVOKE EXECUTE ON FUNCTION app.twice(integer, integer) FROM PUBLIC;
REVOKE USAGE ON TYPE app.mood FROM PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO {reader};
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
RESET ROLE;
CREATE FUNCTION app.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $body$ BEGIN NULL; END $body$;
CREATE EVENT TRIGGER watch_{owner} ON ddl_command_end WHEN TAG IN ('DROP TABLE',
    'ALTER TABLE') EXECUTE FUNCTION app.on_ddl();
CREATE PUBLICATION feed FOR TABLE app.users, app.orders WITH (publish = 'insert, update');
CREATE FOREIGN DATA WRAPPER dummy;
CREATE SERVER far FOREIGN DATA WRAPPER dummy OPTIONS (host 'db.example', password 'server-secret-1');
CREATE USER MAPPING FOR {reader} SERVER far OPTIONS (user 'u', password 'mapping-secret-2');
CREATE FOREIGN TABLE app.remote (id integer OPTIONS (column_name 'ident')) SERVER far OPTIONS (table_name 'remote');
"""


@contextlib.contextmanager
def _roles(server: PgServer) -> t.Iterator[dict[str, str]]:
    tag = uuid.uuid4().hex[:8]
    names = {"owner": f"cat_owner_{tag}", "reader": f"cat_reader_{tag}"}
    with contextlib.closing(server.connect()) as admin, admin.cursor() as cursor:
        for name in names.values():
            cursor.execute(f"CREATE ROLE {name} LOGIN")
        try:
            yield names
        finally:
            for name in names.values():
                cursor.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


class Populated(t.NamedTuple):
    database: Database
    roles: dict[str, str]
    before: Catalog


@pytest.fixture(scope="module")
def populated(pg_server: PgServer) -> t.Iterator[Populated]:
    with _roles(pg_server) as roles, temporary_database(pg_server) as database:
        with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(SCHEMA.format(**roles))
            cursor.execute(f"ALTER DATABASE {database.name} SET work_mem = '5MB'")
            cursor.execute(f"ALTER DATABASE {database.name} SET app.key = 'setting-secret-3'")
            before = snapshot(connection)
        yield Populated(database, roles, before)


# Statement, and what it must change: + added, - removed, ~ changed. Nothing else may differ.
CHANGES: list[tuple[str, str, set[str]]] = [
    ("schema added", "CREATE SCHEMA extra", {"+schema extra", "+owner of schema extra"}),
    ("table comment", "COMMENT ON TABLE app.users IS 'else'", {"~comment on table app.users"}),
    ("table comment gone", "COMMENT ON TABLE app.users IS NULL", {"-comment on table app.users"}),
    ("column comment", "COMMENT ON COLUMN app.users.email IS 'else'", {"~comment on column app.users.email"}),
    (
        "view column comment",
        "COMMENT ON COLUMN app.new_users.email IS 'else'",
        {"~comment on column app.new_users.email"},
    ),
    ("attribute comment", "COMMENT ON COLUMN app.address.zip IS 'else'", {"~comment on column app.address.zip"}),
    ("index comment", "COMMENT ON INDEX app.users_email IS 'else'", {"~comment on index app.users_email"}),
    (
        "constraint comment",
        "COMMENT ON CONSTRAINT apart ON app.orders IS 'else'",
        {"~comment on constraint app.orders.apart"},
    ),
    ("trigger comment", "COMMENT ON TRIGGER touch ON app.users IS NULL", {"-comment on trigger app.users.touch"}),
    ("function comment", "COMMENT ON FUNCTION app.add_one IS 'x'", {"+comment on function app.add_one(integer)"}),
    ("table owner", "ALTER TABLE app.scratch OWNER TO {reader}", {"~owner of table app.scratch"}),
    ("function owner", "ALTER FUNCTION app.add_one OWNER TO {reader}", {"~owner of function app.add_one(integer)"}),
    ("table grant", "GRANT INSERT ON app.users TO {reader}", {"~grants on table app.users"}),
    ("first table grant", "GRANT SELECT ON app.scratch TO PUBLIC", {"+grants on table app.scratch"}),
    ("grant option", "GRANT SELECT ON app.users TO {reader} WITH GRANT OPTION", {"~grants on table app.users"}),
    ("column grant", "GRANT UPDATE (email) ON app.users TO {reader}", {"+grants on column app.users.email"}),
    ("column revoke", "REVOKE UPDATE (name) ON app.users FROM {reader}", {"~grants on column app.users.name"}),
    (
        "function grant",
        "GRANT EXECUTE ON FUNCTION app.twice TO {reader}",
        {"~grants on function app.twice(integer, integer)"},
    ),
    ("sequence revoke", "REVOKE ALL ON app.counter FROM {reader}", {"-grants on sequence app.counter"}),
    ("schema grant", "GRANT CREATE ON SCHEMA app TO {reader}", {"~grants on schema app"}),
    ("type grant", "GRANT USAGE ON TYPE app.mood TO {reader}", {"~grants on enum app.mood"}),
    (
        "default privileges",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA app GRANT INSERT ON TABLES TO {reader}",
        {"~default privileges for {owner} in app on tables"},
    ),
    (
        "default privileges added",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT USAGE ON SEQUENCES TO {reader}",
        {"+default privileges for {owner} on sequences"},
    ),
    (
        "column added",
        "ALTER TABLE app.scratch ADD COLUMN c integer",
        {"+column app.scratch.c", "~column order app.scratch"},
    ),
    (
        "column in the middle dropped",
        "ALTER TABLE app.orders DROP COLUMN seen",
        {"-column app.orders.seen", "~column order app.orders"},
    ),
    (
        "column renamed",
        "ALTER TABLE app.scratch RENAME b TO c",
        {"-column app.scratch.b", "+column app.scratch.c", "~column order app.scratch"},
    ),
    ("column type", "ALTER TABLE app.scratch ALTER a TYPE bigint", {"~column app.scratch.a"}),
    (
        "column length",
        "ALTER TABLE app.events ALTER kind TYPE varchar(6)",
        {"~column app.events.kind", "~column app.events_2020.kind", "~column app.events_rest.kind"},
    ),
    ("column default", "ALTER TABLE app.users ALTER mood SET DEFAULT 'sad'", {"~column app.users.mood"}),
    ("column default gone", "ALTER TABLE app.users ALTER mood DROP DEFAULT", {"~column app.users.mood"}),
    ("identity kind", "ALTER TABLE app.users ALTER id SET GENERATED BY DEFAULT", {"~column app.users.id"}),
    ("generated gone", "ALTER TABLE app.users ALTER upper_name DROP EXPRESSION", {"~column app.users.upper_name"}),
    ("not null", "ALTER TABLE app.scratch ALTER a SET NOT NULL", {"~column app.scratch.a"}),
    (
        "collation",
        'ALTER TABLE app.users ALTER "Odd.Name" TYPE text COLLATE app.plain',
        {'~column app.users."Odd.Name"'},
    ),
    ("storage", "ALTER TABLE app.users ALTER name SET STORAGE MAIN", {"~column app.users.name"}),
    ("compression", "ALTER TABLE app.users ALTER name SET COMPRESSION pglz", {"~column app.users.name"}),
    ("statistics target", "ALTER TABLE app.users ALTER email SET STATISTICS 10", {"~column app.users.email"}),
    ("attribute options", "ALTER TABLE app.scratch ALTER a SET (n_distinct = 5)", {"~column app.scratch.a"}),
    ("check added", "ALTER TABLE app.scratch ADD CONSTRAINT c CHECK (a > 0)", {"+constraint app.scratch.c"}),
    (
        "constraint validated",
        "ALTER TABLE app.orders VALIDATE CONSTRAINT positive",
        {"~constraint app.orders.positive"},
    ),
    (
        "constraint deferrable",
        "ALTER TABLE app.orders ALTER CONSTRAINT orders_user_id_fkey NOT DEFERRABLE",
        {"~constraint app.orders.orders_user_id_fkey"},
    ),
    (
        "primary key dropped",
        "ALTER TABLE app.orders DROP CONSTRAINT orders_pkey",
        {"-constraint app.orders.orders_pkey", "-index app.orders_pkey"},
    ),
    ("domain check", "ALTER DOMAIN app.email DROP CONSTRAINT has_at", {"-constraint app.email.has_at"}),
    ("index added", "CREATE INDEX added ON app.scratch (a)", {"+index app.added"}),
    ("index dropped", "DROP INDEX app.users_email", {"-index app.users_email", "-comment on index app.users_email"}),
    ("index options", "ALTER INDEX app.users_email SET (fillfactor = 50)", {"~index app.users_email"}),
    ("index clustered", "ALTER TABLE app.orders CLUSTER ON orders_pkey", {"~index app.orders_pkey"}),
    ("row security off", "ALTER TABLE app.users DISABLE ROW LEVEL SECURITY", {"~table app.users"}),
    ("row security forced", "ALTER TABLE app.users FORCE ROW LEVEL SECURITY", {"~table app.users"}),
    ("replica identity", "ALTER TABLE app.users REPLICA IDENTITY NOTHING", {"~table app.users"}),
    (
        "replica identity index",
        "ALTER TABLE app.events REPLICA IDENTITY USING INDEX events_pkey",
        {"~table app.events"},
    ),
    ("storage parameter", "ALTER TABLE app.orders SET (fillfactor = 80)", {"~table app.orders"}),
    ("toast parameter", "ALTER TABLE app.users SET (toast.autovacuum_enabled = false)", {"~table app.users"}),
    ("persistence", "ALTER TABLE app.scratch SET LOGGED", {"~table app.scratch"}),
    (
        "inheritance",
        "ALTER TABLE app.derived NO INHERIT app.base",
        {"~table app.derived", "~column app.derived.a", "~constraint app.derived.base_a_check"},
    ),
    ("policy expression", "ALTER POLICY own ON app.users USING (true)", {"~policy app.users.own"}),
    ("policy roles", "ALTER POLICY own ON app.users TO PUBLIC", {"~policy app.users.own"}),
    ("policy added", "CREATE POLICY p ON app.orders WITH CHECK (true)", {"+policy app.orders.p"}),
    ("policy dropped", "DROP POLICY own ON app.users", {"-policy app.users.own"}),
    ("trigger disabled", "ALTER TABLE app.users DISABLE TRIGGER touch", {"~trigger app.users.touch"}),
    (
        "trigger definition",
        "CREATE OR REPLACE TRIGGER touch BEFORE INSERT ON app.users FOR EACH ROW EXECUTE FUNCTION app.touch()",
        {"~trigger app.users.touch"},
    ),
    ("rule", "CREATE OR REPLACE RULE keep AS ON DELETE TO app.scratch DO ALSO NOTHING", {"~rule app.scratch.keep"}),
    (
        "function body",
        "CREATE OR REPLACE FUNCTION app.add_one(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 2'",
        {"~function app.add_one(integer)"},
    ),
    ("function option", "ALTER FUNCTION app.twice SECURITY INVOKER", {"~function app.twice(integer, integer)"}),
    ("function setting", "ALTER FUNCTION app.twice RESET search_path", {"~function app.twice(integer, integer)"}),
    ("function cost", "ALTER FUNCTION app.add_one COST 7", {"~function app.add_one(integer)"}),
    (
        "procedure body",
        "CREATE OR REPLACE PROCEDURE app.noop(IN x integer) LANGUAGE plpgsql AS 'BEGIN RETURN; END'",
        {"~procedure app.noop(integer)"},
    ),
    (
        "aggregate",
        "CREATE OR REPLACE AGGREGATE app.total(integer) (SFUNC = int4pl, STYPE = integer, INITCOND = '1')",
        {"~aggregate app.total(integer)"},
    ),
    (
        "operator",
        "ALTER OPERATOR app.===(app.address, app.address) SET (RESTRICT = eqsel)",
        {"~operator app.===(app.address, app.address)"},
    ),
    ("cast dropped", "DROP CAST (app.mood AS integer)", {"-cast (app.mood AS integer)"}),
    (
        "view",
        "CREATE OR REPLACE VIEW app.new_users WITH (security_barrier) AS SELECT id, email, name FROM app.users",
        {"~view app.new_users"},
    ),
    ("view option", "ALTER VIEW app.new_users RESET (security_barrier)", {"~view app.new_users"}),
    ("view column default", "ALTER VIEW app.new_users ALTER name SET DEFAULT 'x'", {"~view app.new_users"}),
    (
        "materialized view dropped",
        "DROP MATERIALIZED VIEW app.per_state",
        {
            "-materialized view app.per_state",
            "-owner of materialized view app.per_state",
            "-index app.per_state_key",
        },
    ),
    ("sequence definition", "ALTER SEQUENCE app.counter INCREMENT 7", {"~sequence app.counter"}),
    ("sequence type", "ALTER SEQUENCE app.counter AS integer", {"~sequence app.counter"}),
    ("sequence ownership", "ALTER SEQUENCE app.orders_id_seq OWNED BY NONE", {"~sequence app.orders_id_seq"}),
    ("sequence cache", "ALTER TABLE app.users ALTER id SET CACHE 9", {"~sequence app.users_id_seq"}),
    ("enum label", "ALTER TYPE app.mood ADD VALUE 'fine' AFTER 'sad'", {"~enum app.mood"}),
    (
        "composite attribute",
        "ALTER TYPE app.address RENAME ATTRIBUTE street TO road CASCADE",
        {
            "~composite type app.address",
            "-column app.typed.street",
            "+column app.typed.road",
            "~column order app.typed",
        },
    ),
    ("domain default", "ALTER DOMAIN app.email SET DEFAULT 'a@b'", {"~domain app.email"}),
    (
        "range type dropped",
        "ALTER TABLE app.orders ALTER seen TYPE text; DROP TYPE app.floatrange",
        {"~column app.orders.seen", "-range type app.floatrange", "-owner of range type app.floatrange"},
    ),
    (
        "statistics target of an object",
        "ALTER STATISTICS app.orders_stats SET STATISTICS 7",
        {"~statistics app.orders_stats"},
    ),
    ("collation dropped", "DROP COLLATION app.plain", {"-collation app.plain", "-owner of collation app.plain"}),
    (
        "text search mapping",
        "ALTER TEXT SEARCH CONFIGURATION app.search DROP MAPPING FOR asciiword",
        {"~text search configuration app.search"},
    ),
    (
        "text search option",
        "ALTER TEXT SEARCH DICTIONARY app.words (accept = false)",
        {"~text search dictionary app.words"},
    ),
    ("extension dropped", "DROP EXTENSION pgcrypto", {"-extension pgcrypto", "-comment on extension pgcrypto"}),
    ("extension moved", "ALTER EXTENSION citext SET SCHEMA app", {"~extension citext"}),
    ("event trigger", "ALTER EVENT TRIGGER watch_{owner} DISABLE", {"~event trigger watch_{owner}"}),
    ("publication table", "ALTER PUBLICATION feed DROP TABLE app.orders", {"~publication feed"}),
    ("publication option", "ALTER PUBLICATION feed SET (publish = 'insert')", {"~publication feed"}),
    ("server option", "ALTER SERVER far OPTIONS (SET host 'other')", {"~server far"}),
    (
        "foreign data wrapper",
        "ALTER FOREIGN DATA WRAPPER dummy OPTIONS (ADD debug 'on')",
        {"~foreign data wrapper dummy"},
    ),
    ("user mapping", "DROP USER MAPPING FOR {reader} SERVER far", {"-user mapping for {reader} server far"}),
    (
        "foreign table option",
        "ALTER FOREIGN TABLE app.remote OPTIONS (SET table_name 'x')",
        {"~foreign table app.remote"},
    ),
    (
        "foreign column option",
        "ALTER FOREIGN TABLE app.remote ALTER id OPTIONS (SET column_name 'x')",
        {"~column app.remote.id"},
    ),
    ("database setting", "ALTER DATABASE {database} SET work_mem = '6MB'", {"~setting work_mem"}),
    (
        "setting of a role in the database",
        "ALTER ROLE {reader} IN DATABASE {database} SET statement_timeout = '1s'",
        {"+setting statement_timeout for {reader}"},
    ),
    ("database comment", "COMMENT ON DATABASE {database} IS 'x'", {"+comment on this database"}),
    ("database grant", "REVOKE CONNECT ON DATABASE {database} FROM PUBLIC", {"+grants on this database"}),
    (
        "partition detached",
        "ALTER TABLE app.events DETACH PARTITION app.events_2020",
        {
            "~table app.events_2020",
            # What a partition inherited becomes its own: the foreign key gets an entry, the rest loses its mark.
            "+constraint app.events_2020.events_user_id_fkey",
            "~constraint app.events_2020.events_2020_pkey",
            "~constraint app.events_2020.events_kind_check",
            "~index app.events_2020_pkey",
            "~index app.events_2020_user_id_idx",
            "~column app.events_2020.id",
            "~column app.events_2020.at",
            "~column app.events_2020.user_id",
            "~column app.events_2020.kind",
        },
    ),
]


@pytest.mark.parametrize(
    ("statement", "expected"), [change[1:] for change in CHANGES], ids=[change[0] for change in CHANGES]
)
def test_one_change_changes_exactly_its_entries(populated: Populated, statement: str, expected: set[str]) -> None:
    names = {**populated.roles, "database": populated.database.name}
    with contextlib.closing(populated.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; SET LOCAL search_path = app, public")
        cursor.execute(statement.format(**names))
        after = snapshot(connection)
        assert fingerprint(connection) == after.digest
        cursor.execute("SHOW search_path")
        assert cursor.fetchone() == ("app, public",)
        cursor.execute("ROLLBACK")
        found = diff(populated.before, after)
        marked = (
            {f"+{item}" for item in found.added}
            | {f"-{item}" for item in found.removed}
            | {f"~{item}" for item in found.changed}
        )
        assert marked == {item.format(**names) for item in expected}
        assert fingerprint(connection) == populated.before.digest


def test_values_statistics_and_search_path_do_not_count(populated: Populated) -> None:
    with contextlib.closing(populated.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "BEGIN; INSERT INTO app.scratch SELECT i, i FROM generate_series(1, 100) AS i; SELECT"
            " nextval('app.counter');"
            " ANALYZE app.scratch; REFRESH MATERIALIZED VIEW app.per_state; CREATE TEMPORARY TABLE t (a integer);"
            " SET LOCAL search_path = app; SET LOCAL TimeZone = 'Asia/Tokyo'; SET LOCAL DateStyle = 'German';"
            " SET LOCAL IntervalStyle = 'sql_standard'; SET LOCAL quote_all_identifiers = on"
        )
        assert diff(populated.before, snapshot(connection)).identities() == []
        cursor.execute("SHOW DateStyle")
        assert cursor.fetchone() == ("German, DMY",)


def test_order_of_grants_does_not_count(populated: Populated) -> None:
    reader, owner = populated.roles["reader"], populated.roles["owner"]
    with contextlib.closing(populated.database.connect()) as connection, connection.cursor() as cursor:
        digests = []
        for grants in (
            (f"SELECT ON app.scratch TO {reader}", "INSERT ON app.scratch TO PUBLIC"),
            ("INSERT ON app.scratch TO PUBLIC", f"SELECT ON app.scratch TO {reader}"),
        ):
            cursor.execute("BEGIN; " + "; ".join(f"GRANT {grant}" for grant in grants))
            digests.append(fingerprint(connection))
            cursor.execute("ROLLBACK")
        assert digests[0] == digests[1] != populated.before.digest
        # Granting what the owner has anyway turns a missing ACL into an equal one.
        cursor.execute(f"BEGIN; GRANT SELECT ON app.scratch TO {owner}")
        assert fingerprint(connection) == populated.before.digest


def test_definitions_of_an_object_are_readable(populated: Populated) -> None:
    before, roles = populated.before, populated.roles
    assert before["column app.users.state"] == "character varying(10) default 'new'::character varying"
    assert before["column app.users.id"].startswith("bigint")
    assert "generated always as identity" in before["column app.users.id"]
    assert before["column order app.users"] == (
        'id, email, name, state, mood, upper_name, "Odd.Name", changed, since, "window"'
    )
    assert before["table app.users"] == "table, row security enabled, replica identity full"
    assert before["table app.events_2020"] == (
        "table, partition of app.events FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2021-01-01 00:00:00+00')"
    )
    assert before["table app.events"] == "partitioned by RANGE (at)"
    assert before["grants on table app.users"].startswith(f"{roles['owner']}: ")
    assert before["grants on table app.users"].endswith(f"; {roles['reader']}: SELECT")
    assert before["grants on column app.users.name"] == f"{roles['reader']}: SELECT, UPDATE"
    assert before["enum app.mood"] == "('sad', 'ok')"
    assert before["sequence app.orders_id_seq"].endswith("owned by app.orders.id")
    assert before["index app.events_2020_pkey"].endswith("attached to app.events_pkey")
    assert before["extension citext"].endswith(", schema public")
    assert before["owner of this database"] == "postgres"


def test_members_of_extensions_and_system_objects_are_left_out(populated: Populated) -> None:
    with_citext = [identity for identity in populated.before if "citext" in identity]
    assert with_citext == ["extension citext", "comment on extension citext"]
    assert not [
        identity for identity in populated.before if "pg_toast" in identity or "pg_catalog" in identity.split(".")[0]
    ]


def test_no_secret_enters_a_definition(populated: Populated) -> None:
    text = "\n".join(populated.before.values())
    assert "server-secret-1" not in text
    assert "mapping-secret-2" not in text
    assert "setting-secret-3" not in text
    assert "password=***" in populated.before["server far"]
    assert populated.before["setting app.key"] == "***"


def test_server_and_client_compute_the_same_digest(populated: Populated) -> None:
    with contextlib.closing(populated.database.connect()) as connection:
        hashes = entry_hashes(connection)
        assert hashes.hashes == populated.before.hashes
        assert fingerprint(connection) == hashes.digest == populated.before.digest
        patterns = ["app.events*", "setting *", "comment on table app.user?"]
        filtered = populated.before.filter(patterns)
        assert entry_hashes(connection, ignore=patterns).hashes == filtered.hashes
        assert fingerprint(connection, ignore=patterns) == filtered.digest
        gone = diff(populated.before, filtered).identities()
        assert "column app.events_2020.kind" in gone
        assert "owner of table app.events_2020" in gone
        assert "comment on table app.users" in gone
        assert "comment on column app.users.email" not in gone


def test_excluded_schema_is_left_out_with_everything_in_it(populated: Populated) -> None:
    with contextlib.closing(populated.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "BEGIN; CREATE SCHEMA surefoot; CREATE TABLE surefoot.runs (id serial PRIMARY KEY);"
            " GRANT SELECT ON surefoot.runs TO PUBLIC; COMMENT ON TABLE surefoot.runs IS 'x'"
        )
        assert fingerprint(connection) == populated.before.digest
        added = diff(populated.before, snapshot(connection, exclude_schemas=())).added
        assert "table surefoot.runs" in added
        assert "comment on table surefoot.runs" in added


def test_role_without_any_right_sees_the_same(populated: Populated) -> None:
    with contextlib.closing(psycopg2.connect(populated.database.dsn, user=populated.roles["reader"])) as connection:
        assert fingerprint(connection) == populated.before.digest
        # Neither autocommit nor a transaction was asked for: none is left open.
        assert connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE


def test_restored_copy_has_the_same_digest(populated: Populated, tmp_path: t.Any) -> None:
    server, archive = populated.database.server, str(tmp_path / "dump")
    address = ["-h", server.host, "-p", str(server.port), "-U", server.superuser]
    subprocess.run(
        [os.path.join(server.bindir, "pg_dump"), *address, "-Fc", "-f", archive, populated.database.name], check=True
    )
    with temporary_database(server) as copy:
        with contextlib.closing(copy.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"REVOKE CONNECT ON DATABASE {copy.name} FROM PUBLIC")
        subprocess.run(
            [os.path.join(server.bindir, "pg_restore"), *address, "--exit-on-error", "-d", copy.name, archive],
            check=True,
        )
        with contextlib.closing(copy.connect()) as connection:
            restored = snapshot(connection)
            original = populated.before.filter(DATABASE_LEVEL)
            found = diff(original, restored.filter(DATABASE_LEVEL))
            assert found.to_dict() == {"added": [], "removed": [], "changed": []}
            assert fingerprint(connection, ignore=DATABASE_LEVEL) == original.digest
            assert diff(populated.before, restored)


def test_snapshot_of_the_ledger_shows_drift(populated: Populated) -> None:
    recorded = Catalog.unpack(populated.before.pack())
    assert recorded.digest == populated.before.digest
    with contextlib.closing(populated.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; CREATE TABLE app.byhand (a integer); ALTER TABLE app.users DISABLE ROW LEVEL SECURITY")
        found = diff(recorded, snapshot(connection))
    assert found.to_dict()["changed"] == [{"object": "table app.users", "after": "table, replica identity full"}]
    assert "table app.byhand" in found.to_dict()["added"]


def test_invalid_index_is_shown_as_such(database: Database) -> None:
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a integer); INSERT INTO t VALUES (1), (1)")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            cursor.execute("CREATE UNIQUE INDEX CONCURRENTLY t_a ON t (a)")
        assert (
            snapshot(connection)["index public.t_a"]
            == "CREATE UNIQUE INDEX t_a ON public.t USING btree (a), INVALID, NOT READY"
        )


def test_waiting_behind_a_lock_ends_with_the_callers_lock_timeout(database: Database) -> None:
    with contextlib.closing(database.connect()) as holder, contextlib.closing(database.connect()) as connection:
        holder.cursor().execute("CREATE TABLE t (a integer); CREATE VIEW v AS SELECT a FROM t")
        holder.cursor().execute("BEGIN; LOCK TABLE t")
        connection.cursor().execute("SET lock_timeout = '20ms'")
        with pytest.raises(SqlError, match=r"cannot read the catalog.*55P03") as caught:
            snapshot(connection)
        assert caught.value.sqlstate == "55P03"
        assert connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE


def test_lock_released_meanwhile_is_waited_for_and_nobody_becomes_the_victim_of_a_deadlock(database: Database) -> None:
    with contextlib.closing(database.connect()) as other, contextlib.closing(database.connect()) as connection:
        cursor = other.cursor()
        # The snapshot takes a, then waits for b; the other holds b and then wants a.
        cursor.execute(
            "CREATE TABLE a (x integer); CREATE TABLE b (x integer);"
            " CREATE VIEW v1 AS SELECT x FROM a; CREATE VIEW v2 AS SELECT x FROM b"
        )
        cursor.execute("BEGIN; LOCK TABLE b")
        found: list[Catalog] = []
        thread = threading.Thread(target=lambda: found.append(snapshot(connection)))
        thread.start()
        try:
            while not database.query("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'b'::regclass"):
                assert thread.is_alive()
            cursor.execute("LOCK TABLE a")
        finally:
            cursor.execute("ROLLBACK")
            thread.join()
        assert "view public.v2" in found[0]


def test_failed_transaction_is_refused_with_a_remedy(database: Database) -> None:
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg2.errors.DivisionByZero):
            cursor.execute("BEGIN; SELECT 1/0")
        with pytest.raises(SurefootError, match="Roll it back first"):
            fingerprint(connection)


def test_objects_dropped_meanwhile_do_not_disturb(database: Database) -> None:
    stop = threading.Event()

    def churn() -> None:
        with contextlib.closing(database.connect()) as other, other.cursor() as cursor:
            while not stop.is_set():
                cursor.execute(
                    "CREATE TABLE churn (a integer PRIMARY KEY CHECK (a > 0)); CREATE VIEW churned AS SELECT a FROM"
                    " churn"
                )
                cursor.execute("DROP TABLE churn CASCADE")

    thread = threading.Thread(target=churn)
    with contextlib.closing(database.connect()) as connection:
        connection.cursor().execute("CREATE TABLE stays (a integer)")
        thread.start()
        try:
            for _round in range(40):
                assert "table public.stays" in snapshot(connection)
        finally:
            stop.set()
            thread.join()
