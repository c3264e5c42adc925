# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups restored on real servers: what a shadow is, what is compared, and how its life ends."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time
import typing as t
import uuid

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import default_home
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    BackupError,
    EnvironmentProblem,
    PlanError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    BackupRequest,
    Manifest,
    Work,
    read_manifest,
    take_backup,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._restore import Comparison, compare
from ansible_collections.surefoot.dbops.plugins.module_utils._shadow import (
    ShadowOutcome,
    ShadowRequest,
    make_shadow,
    remove_shadow,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import (
    Database,
    PgServer,
    running_server,
    temporary_database,
)

RUNNER = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.surefoot.dbops.plugins.modules import postgresql_restore
with patch_module_args(json.loads(sys.stdin.read())):
    postgresql_restore.main()
"""
COMPARED = {
    f"restore.{name}"
    for name in ("row_counts", "content", "sequences", "constraints", "extensions", "privileges", "catalog")
}
OWNER, READER = f"owner_{uuid.uuid4().hex[:8]}", f"reader_{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module", autouse=True)
def _programs_of_the_server(pg_server: PgServer) -> t.Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUREFOOT_PG_SEARCH", pg_server.bindir)
        yield


@pytest.fixture(scope="module")
def other_server(pg_server: PgServer) -> t.Iterator[PgServer]:
    """Another cluster of the same version, without any role of the source."""
    with running_server(bindir=pg_server.bindir) as server:
        yield server


@pytest.fixture(scope="module")
def source(pg_server: PgServer) -> t.Iterator[Database]:
    """A database with one of each thing that a restore could lose, and things that must not live in a copy."""
    with temporary_database(pg_server) as database:
        for statement in (
            f"CREATE ROLE {OWNER} LOGIN PASSWORD 'shadow-secret-1'",
            f"CREATE ROLE {READER}",
            "CREATE EXTENSION pgcrypto",
            "CREATE SCHEMA app",
            f"ALTER SCHEMA app OWNER TO {OWNER}",
            "CREATE TYPE app.colour AS ENUM ('red', 'blue')",
            "CREATE TABLE app.users (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL,"
            " c app.colour DEFAULT 'red', born date, CONSTRAINT young CHECK (born > '1900-01-01'))",
            "INSERT INTO app.users (name, born) SELECT md5(g::text), date '1950-01-01' + g FROM"
            " generate_series(1, 1000) g",
            f"ALTER TABLE app.users OWNER TO {OWNER}",
            f"GRANT SELECT ON app.users TO {READER}",
            f"GRANT UPDATE (name) ON app.users TO {READER}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO {READER}",
            "ALTER TABLE app.users ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE app.users FORCE ROW LEVEL SECURITY",
            f"CREATE POLICY own ON app.users TO {READER} USING (name = current_user)",
            "CREATE TABLE app.orders (id bigint PRIMARY KEY, who int REFERENCES app.users, at timestamptz, f float8)",
            "INSERT INTO app.orders SELECT g, g % 1000 + 1, now(), random() FROM generate_series(1, 500) g",
            "CREATE INDEX orders_who ON app.orders (who) WHERE who > 3",
            "ALTER TABLE app.orders ADD CONSTRAINT later CHECK (id > 0) NOT VALID",
            "CREATE TABLE app.parts (i int, j int) PARTITION BY RANGE (i)",
            "CREATE TABLE app.parts_1 PARTITION OF app.parts FOR VALUES FROM (0) TO (10)",
            "INSERT INTO app.parts VALUES (1, 2), (1, 2)",
            "CREATE SEQUENCE app.tickets START 10 INCREMENT -1 MINVALUE -100 MAXVALUE 10",
            "SELECT nextval('app.tickets') FROM generate_series(1, 4)",
            "CREATE VIEW app.names AS SELECT name FROM app.users",
            "COMMENT ON VIEW app.names IS 'who there is'",
            "CREATE MATERIALIZED VIEW app.totals AS SELECT count(*) FROM app.users",
            "CREATE FUNCTION app.twice(i int) RETURNS int LANGUAGE sql AS 'SELECT i * 2'",
            "CREATE TRIGGER nothing BEFORE UPDATE ON app.orders FOR EACH ROW EXECUTE FUNCTION"
            " suppress_redundant_updates_trigger()",
            "CREATE PUBLICATION all_orders FOR TABLE app.orders",
            "CREATE SUBSCRIPTION elsewhere CONNECTION 'host=127.0.0.1 port=1 dbname=x password=shadow-secret-2'"
            " PUBLICATION p WITH (connect = false, slot_name = NONE)",
            "CREATE FOREIGN DATA WRAPPER remote",
            "CREATE SERVER away FOREIGN DATA WRAPPER remote",
            f"CREATE USER MAPPING FOR {READER} SERVER away OPTIONS (password 'shadow-secret-3')",
            "SELECT lo_from_bytea(0, 'large object')",
            f'ALTER DATABASE {database.name} SET search_path = app, "We ird", public',
            f"ALTER DATABASE {database.name} SET app.tenant = 'it''s; 1'",
            f"ALTER ROLE {READER} IN DATABASE {database.name} SET work_mem = '9MB'",
        ):
            database.query(statement)
        # An index whose building failed stays behind, invalid; pg_dump leaves it out.
        with pytest.raises(psycopg2.errors.UniqueViolation):
            database.query("CREATE UNIQUE INDEX CONCURRENTLY parts_once ON app.parts_1 (i)")
        yield database
        database.query("ALTER SUBSCRIPTION elsewhere DISABLE")
        database.query("DROP SUBSCRIPTION elsewhere")
    with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP ROLE {OWNER}, {READER}")


@pytest.fixture(scope="module")
def backup(source: Database, tmp_path_factory: pytest.TempPathFactory) -> dict[str, t.Any]:
    return back_up(source, tmp_path_factory.mktemp("backups"))


def back_up(database: Database, dest: pathlib.Path, **more: t.Any) -> dict[str, t.Any]:
    request = BackupRequest(dest=str(dest), min_free=0, minimum_size=0, **more)
    made = take_backup(ConnectionOptions.from_params(database.params), request).backup
    assert made is not None
    return made


def request_for(backup: t.Mapping[str, t.Any], **more: t.Any) -> ShadowRequest:
    values = {"backup": backup["path"], "manifest_sha256": backup["manifest_sha256"], "min_free": 0, **more}
    return ShadowRequest(**values)


def options_of(server: PgServer, **more: t.Any) -> ConnectionOptions:
    return ConnectionOptions.from_params({**server.params(), **more})


def on_server(server: PgServer, backup: t.Mapping[str, t.Any], **more: t.Any) -> ShadowOutcome:
    return make_shadow(options_of(server), request_for(backup, where="server", **more))


@contextlib.contextmanager
def session(login: t.Mapping[str, t.Any]) -> t.Iterator[t.Any]:
    connection = psycopg2.connect(
        host=login["login_unix_socket"],
        port=login["login_port"],
        user=login["login_user"],
        dbname=login["login_db"],
    )
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        yield cursor


def query(login: t.Mapping[str, t.Any], statement: str) -> list[tuple[t.Any, ...]]:
    with session(login) as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def names(server: PgServer) -> set[str]:
    return {row[0] for row in query(server.params(), "SELECT datname FROM pg_database")}


def roles(server: PgServer) -> set[str]:
    return {row[0] for row in query(server.params(), "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'")}


def verdicts(results: t.Mapping[str, t.Any]) -> dict[str, str]:
    return {item["criterion"]: item["verdict"] for item in results["evidence"]}


def start_module(params: t.Mapping[str, t.Any], *, check_mode: bool = False) -> subprocess.Popen[str]:
    tree = pathlib.Path(__file__).resolve().parents[2] / "build" / "tree"
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )
    assert process.stdin
    process.stdin.write(json.dumps({**params, "_ansible_check_mode": check_mode}))
    process.stdin.close()
    process.stdin = None
    return process


def run_module(params: t.Mapping[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
    output, errors = start_module(params, **options).communicate(timeout=60)
    assert errors == ""
    return t.cast("dict[str, t.Any]", json.loads(output))


def wait_for(condition: t.Callable[[], t.Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# --- a cluster of its own --------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_an_embedded_shadow_is_proven_private_and_removed(
    source: Database, backup: dict[str, t.Any], tmp_path: pathlib.Path
) -> None:
    run_id = uuid.uuid4().hex
    run_dir = tmp_path / "run"
    params = {
        "backup": backup["path"],
        "manifest_sha256": backup["manifest_sha256"],
        "min_free": "0",
        "run_id": run_id,
        "run_dir": str(run_dir),
    }
    result = run_module(params)
    try:
        assert result.get("msg") is None and result["changed"] and result["database"] == source.name
        assert verdicts(result) == {"restore.completed": "pass", **dict.fromkeys(COMPARED, "pass")}
        assert result["comparison"]["passed"] and result["comparison"]["differences"] == []
        tables = {item["table"]: (item["rows"], item["same"]) for item in result["comparison"]["tables"]}
        assert tables == {"app.users": (1000, True), "app.orders": (500, True), "app.parts_1": (2, True)}
        saved = json.loads((run_dir / "restore.json").read_text())
        assert saved["comparison"] == result["comparison"] and saved["connection"] == result["connection"]
        assert stat.S_IMODE((run_dir / "restore.json").stat().st_mode) == 0o600
        assert len((run_dir / "evidence.jsonl").read_text().splitlines()) == 8
        login = result["connection"]
        assert set(login) == {"login_unix_socket", "login_port", "login_user", "login_db"}
        assert query(login, "SHOW listen_addresses") == [("",)] and query(login, "SHOW fsync") == [("off",)]
        assert query(login, "SELECT count(*) FROM app.users") == [(1000,)]
        # Analyzed, partitioned parents too.
        assert query(login, "SELECT reltuples FROM pg_class WHERE oid = 'app.users'::regclass") == [(1000,)]
        assert query(login, "SELECT count(*) > 0 FROM pg_stats WHERE tablename = 'parts'") == [(True,)]
        # Owners and grantees are there and cannot log in.
        shown = query(login, f"SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname IN ('{OWNER}', '{READER}')")
        assert sorted(shown) == [(OWNER, False), (READER, False)]
        # So are the settings of the database, in the cluster of its own even those that may be secrets.
        assert query(login, "SHOW search_path") == [('app, "We ird", public',)]
        assert query(login, "SHOW app.tenant") == [("it's; 1",)]
        assert query(login, "SELECT setconfig FROM pg_db_role_setting WHERE setrole <> 0") == [(["work_mem=9MB"],)]
        # Nothing in it acts on the outside.
        assert query(login, "SELECT count(*) FROM pg_subscription") == [(0,)]
        assert query(login, "SELECT count(*) FROM pg_user_mapping") == [(0,)]
        assert query(login, "SELECT count(*) FROM pg_foreign_server") == [(1,)]
        assert query(login, f"SELECT has_database_privilege('{READER}', current_database(), 'CONNECT')") == [(False,)]
        assert "shadow-secret" not in json.dumps(result) + (run_dir / "restore.json").read_text()
        home = os.path.dirname(login["login_unix_socket"])
        gone = {"state": "absent", "login_unix_socket": login["login_unix_socket"]}
        assert run_module(gone, check_mode=True)["removed"] == [source.name] and os.path.exists(home)
    finally:
        result = run_module({"state": "absent", "run_id": run_id})
    assert result["changed"] and source.name in result["removed"]
    assert not os.path.exists(home)
    again = run_module({"state": "absent", "run_id": run_id})
    assert not again["changed"] and again["removed"] == []


def test_check_mode_looks_and_writes_nothing(backup: dict[str, t.Any], tmp_path: pathlib.Path) -> None:
    params = {"backup": backup["path"], "manifest_sha256": backup["manifest_sha256"], "min_free": "0"}
    run_dir = tmp_path / "run"
    result = run_module({**params, "run_id": "checked", "run_dir": str(run_dir)}, check_mode=True)
    assert result["changed"] and result["comparison"] is None and result["connection"] == {}
    assert result["cost"]["free_bytes"] > result["cost"]["disk_bytes"] > 0
    assert not run_dir.exists()
    assert run_module({"state": "absent", "run_id": "checked"})["removed"] == []
    refused = run_module({**params, "manifest_sha256": "0" * 64}, check_mode=True)
    assert refused["failed"] and "is not the manifest" in refused["msg"]


@pytest.mark.versions
def test_tables_in_a_tablespace_are_in_one_of_that_name(pg_server: PgServer, tmp_path: pathlib.Path) -> None:
    with temporary_database(pg_server) as database:
        name = f"Fast {database.name}"
        with contextlib.closing(pg_server.connect()) as admin, admin.cursor() as cursor:
            cursor.execute("SET allow_in_place_tablespaces = on")
            cursor.execute(f"CREATE TABLESPACE \"{name}\" LOCATION ''")
        database.query(f'CREATE TABLE t (i int PRIMARY KEY USING INDEX TABLESPACE "{name}") TABLESPACE "{name}"')
        outcome = make_shadow(None, request_for(back_up(database, tmp_path)))
        assert outcome.comparison is not None and outcome.comparison.passed
        assert query(outcome.connection, "SELECT tablespace FROM pg_tables WHERE tablename = 't'") == [(name,)]
        socket = outcome.connection["login_unix_socket"]
        remove_shadow(None, ShadowRequest(), socket=socket)
        assert not os.path.exists(os.path.dirname(socket))
        database.query("DROP TABLE t")
        database.query(f'DROP TABLESPACE "{name}"')


def test_a_database_in_a_tablespace_comes_back_in_it(pg_server: PgServer, tmp_path: pathlib.Path) -> None:
    name = f"own_{uuid.uuid4().hex[:8]}"
    database = Database(name, pg_server)
    with contextlib.closing(pg_server.connect()) as admin, admin.cursor() as cursor:
        cursor.execute("SET allow_in_place_tablespaces = on")
        cursor.execute(f"CREATE TABLESPACE {name} LOCATION ''")
        cursor.execute(f"CREATE DATABASE {name} TABLESPACE {name}")
        database.query("CREATE TABLE elsewhere (i int) TABLESPACE pg_default")
        outcome = make_shadow(
            options_of(pg_server),
            request_for(back_up(database, tmp_path), where="server", same_server=True, database_free_space=10**12),
        )
        assert outcome.comparison is not None and outcome.comparison.passed
        cursor.execute(
            "SELECT spcname FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace WHERE datname = %s",
            (outcome.database,),
        )
        assert cursor.fetchall() == [(name,)]
        for made in (name, outcome.database):
            cursor.execute(f"DROP DATABASE {made} WITH (FORCE)")
        cursor.execute(f"DROP TABLESPACE {name}")


def test_only_a_shadow_is_removed_by_its_socket(pg_server: PgServer) -> None:
    with pytest.raises(PlanError, match="is not a shadow made by"):
        remove_shadow(None, ShadowRequest(), socket=pg_server.host)
    assert query(pg_server.params(), "SELECT 1") == [(1,)]
    with pytest.raises(PlanError, match="nothing says which shadow"):
        remove_shadow(None, ShadowRequest(), socket=None)


def test_too_little_room_is_noticed_before_anything_is_made(backup: dict[str, t.Any]) -> None:
    with pytest.raises(EnvironmentProblem, match="not enough room for the shadow") as caught:
        make_shadow(None, request_for(backup, min_free=10**18))
    assert "\n" not in str(caught.value)
    assert verdicts(caught.value.results) == {"restore.completed": "fail"}


def test_an_embedded_shadow_can_lie_elsewhere_with_other_settings(backup: dict[str, t.Any]) -> None:
    place = f"/var/tmp/surefoot-test-place-{uuid.uuid4().hex[:8]}"
    os.mkdir(place, 0o755)
    run_id = uuid.uuid4().hex
    try:
        request = request_for(
            backup, data_dir=place, settings={"work_mem": "7MB"}, locale="C", run_id=run_id, target_db="elsewhere"
        )
        outcome = make_shadow(None, request)
        assert query(outcome.connection, "SHOW work_mem") == [("7MB",)]
        assert query(outcome.connection, "SHOW data_directory")[0][0].startswith(place + "/")
        assert query(outcome.connection, "SELECT datcollate FROM pg_database WHERE datname = 'elsewhere'") == [("C",)]
        assert remove_shadow(None, ShadowRequest(run_id=run_id), socket=None).removed == ["elsewhere"]
        assert os.listdir(place) == []
    finally:
        remove_shadow(None, ShadowRequest(run_id=run_id), socket=None)
        os.rmdir(place)


# --- a database of a server ------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_a_shadow_on_another_server_brings_its_roles_and_takes_them_away(
    other_server: PgServer, source: Database, backup: dict[str, t.Any]
) -> None:
    before = roles(other_server)
    outcome = on_server(other_server, backup, run_id="r-42", expires=60.0)
    assert outcome.comparison is not None and outcome.comparison.passed
    assert outcome.database == f"{source.name}_shadow_r_42"
    assert any("its free disk was not checked" in warning for warning in outcome.warnings)
    assert roles(other_server) == before | {OWNER, READER}
    login = outcome.connection
    assert query(login, f"SELECT has_table_privilege('{READER}', 'app.users', 'SELECT')") == [(True,)]
    assert query(login, f"SELECT has_database_privilege('{READER}', current_database(), 'CONNECT')") == [(False,)]
    assert query(login, "SHOW search_path") == [('app, "We ird", public',)]
    with pytest.raises(psycopg2.errors.UndefinedObject):
        query(login, "SHOW app.tenant")
    comment = query(
        login, "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
    )[0][0]
    assert comment.startswith("surefoot shadow: ") and '"run_id": "r-42"' in comment
    # Never over an existing one.
    with pytest.raises(EnvironmentProblem, match=r"exists already \(an earlier shadow\).*state: absent"):
        on_server(other_server, backup, run_id="r-42")
    request = ShadowRequest(where="server", target_db=outcome.database)
    assert remove_shadow(options_of(other_server), request, socket=None, check_mode=True).changed
    assert remove_shadow(options_of(other_server), request, socket=None).removed == [outcome.database]
    assert outcome.database not in names(other_server) and roles(other_server) == before
    assert not remove_shadow(options_of(other_server), request, socket=None).changed


def test_a_database_that_is_no_shadow_is_neither_overwritten_nor_dropped(
    other_server: PgServer, backup: dict[str, t.Any]
) -> None:
    with temporary_database(other_server) as mine:
        mine.query("CREATE TABLE precious (i int)")
        remove = ShadowRequest(where="server", target_db=mine.name)
        for comment in (
            "NULL",
            "'surefoot shadow: of my own'",
            # A marker that came with a dump of a shadow: it names another database's oid.
            """'surefoot shadow: {"run_id": "x", "oid": 1, "expires": "2020-01-01T00:00:00.000Z"}'""",
        ):
            mine.query(f"COMMENT ON DATABASE {mine.name} IS {comment}")
            with pytest.raises(EnvironmentProblem, match=r"exists already \(not a shadow\)"):
                on_server(other_server, backup, target_db=mine.name)
            with pytest.raises(PlanError, match="is not a shadow made by surefoot.dbops"):
                remove_shadow(options_of(other_server), remove, socket=None)
            run = ShadowRequest(where="server", run_id="x")
            assert mine.name not in remove_shadow(options_of(other_server), run, socket=None).removed
        assert mine.scalar("SELECT count(*) FROM precious") == 0


def test_the_source_server_must_be_meant_and_its_disk_named(pg_server: PgServer, backup: dict[str, t.Any]) -> None:
    before = names(pg_server)
    with pytest.raises(PlanError, match="is the server the backup was taken from.*same_server"):
        on_server(pg_server, backup)
    with pytest.raises(PlanError, match="needs about .* of disk, writes about .* of WAL .* cannot be seen by SQL"):
        on_server(pg_server, backup, same_server=True)
    with pytest.raises(EnvironmentProblem, match=r"but 1\.0 MB are free"):
        on_server(pg_server, backup, same_server=True, database_free_space=2**20)
    with pytest.raises(EnvironmentProblem, match=r"uses 1003 connections, but \d+ are free"):
        on_server(pg_server, backup, same_server=True, database_free_space=10**12, jobs=1000)
    assert names(pg_server) == before
    outcome = on_server(pg_server, backup, same_server=True, database_free_space=10**12, run_id="same")
    assert outcome.comparison is not None and outcome.comparison.passed and outcome.warnings == []
    # The source's own roles are as they were.
    assert query(pg_server.params(), f"SELECT rolcanlogin FROM pg_roles WHERE rolname = '{OWNER}'") == [(True,)]
    remove_shadow(options_of(pg_server), ShadowRequest(where="server", run_id="same"), socket=None)
    assert names(pg_server) == before and OWNER in roles(pg_server)


def test_shadows_whose_time_is_over_go_with_the_next_task(other_server: PgServer, backup: dict[str, t.Any]) -> None:
    first = on_server(other_server, backup, run_id="first", expires=0.001)
    kept = on_server(other_server, backup, run_id="kept")
    assert kept.removed == [first.database]
    outcome = on_server(other_server, backup, run_id="third")
    assert outcome.removed == []
    removed = remove_shadow(options_of(other_server), ShadowRequest(where="server", run_id="kept"), socket=None)
    assert removed.removed == [kept.database] and outcome.database in names(other_server)
    # The roles stay while a shadow needs them.
    assert OWNER in roles(other_server)
    remove_shadow(options_of(other_server), ShadowRequest(where="server", run_id="third"), socket=None)
    assert OWNER not in roles(other_server)


def test_no_password_is_in_the_result(other_server: PgServer, backup: dict[str, t.Any], tmp_path: pathlib.Path) -> None:
    url = f"postgresql://postgres:{other_server.password}@127.0.0.1:{other_server.port}/postgres?sslmode=disable"
    params = {
        "login_url": url,
        "where": "server",
        "backup": backup["path"],
        "manifest_sha256": backup["manifest_sha256"],
        "run_id": "secret",
        "run_dir": str(tmp_path / "run"),
    }
    result = run_module(params)
    written = "".join(path.read_text() for path in (tmp_path / "run").iterdir())
    assert result.get("msg") is None
    assert other_server.password not in json.dumps(result).replace(json.dumps(url), "") + written
    assert result["connection"] == {
        "login_host": "127.0.0.1",
        "login_port": other_server.port,
        "login_user": "postgres",
        "ssl_mode": "disable",
        "login_db": result["database"],
    }
    assert run_module({"login_url": url, "where": "server", "state": "absent", "run_id": "secret"})["changed"]


def test_a_role_that_may_create_databases_and_roles_is_enough(
    other_server: PgServer, pg_server: PgServer, tmp_path: pathlib.Path
) -> None:
    role = f"restorer_{uuid.uuid4().hex[:8]}"
    with temporary_database(pg_server) as plain:
        for statement in (
            f"CREATE ROLE {role}_owner",
            f"CREATE SCHEMA s AUTHORIZATION {role}_owner",
            "CREATE TABLE s.t (i int PRIMARY KEY)",
            f"ALTER TABLE s.t OWNER TO {role}_owner",
            "INSERT INTO s.t VALUES (1)",
        ):
            plain.query(statement)
        backup = back_up(plain, tmp_path)
        with contextlib.closing(other_server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE ROLE {role} LOGIN CREATEDB CREATEROLE")
        try:
            options = options_of(other_server, login_user=role)
            outcome = make_shadow(options, request_for(backup, where="server", run_id="plain"))
            assert outcome.comparison is not None and outcome.comparison.passed
            assert remove_shadow(options, ShadowRequest(where="server", run_id="plain"), socket=None).changed
            assert roles(other_server) & {f"{role}_owner"} == set()
        finally:
            with contextlib.closing(other_server.connect()) as connection, connection.cursor() as cursor:
                cursor.execute(f"DROP ROLE {role}")
    with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP ROLE {role}_owner")


def test_what_the_role_may_not_do_is_one_line_and_leaves_nothing(
    other_server: PgServer, backup: dict[str, t.Any]
) -> None:
    role = f"nobody_{uuid.uuid4().hex[:8]}"
    before = names(other_server), roles(other_server)
    with contextlib.closing(other_server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {role} LOGIN CREATEROLE")
        try:
            with pytest.raises(EnvironmentProblem, match="cannot create the database.*CREATEDB") as caught:
                make_shadow(options_of(other_server, login_user=role), request_for(backup, where="server"))
            assert "\n" not in str(caught.value)
            cursor.execute(f"ALTER ROLE {role} CREATEDB")
            # A subscription, FDW and event triggers aside, FORCE ROW LEVEL SECURITY and owners need more than that.
            with pytest.raises(SurefootError) as refused:
                make_shadow(options_of(other_server, login_user=role), request_for(backup, where="server"))
            assert "\n" not in str(refused.value)
            assert verdicts(refused.value.results)["restore.completed"] == "fail"
        finally:
            cursor.execute(f"DROP ROLE {role}")
    assert (names(other_server), roles(other_server)) == before


# --- what is found ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def restored(other_server: PgServer, backup: dict[str, t.Any]) -> t.Iterator[str]:
    """A shadow to make altered copies of."""
    outcome = on_server(other_server, backup, target_db="restored", run_id="restored")
    assert outcome.comparison is not None and outcome.comparison.passed
    yield "restored"
    remove_shadow(options_of(other_server), ShadowRequest(where="server", target_db="restored"), socket=None)


def altered(server: PgServer, template: str, manifest: Manifest, *statements: str) -> Comparison:
    name = f"altered_{uuid.uuid4().hex[:8]}"
    with contextlib.closing(server.connect()) as admin, admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            for statement in statements:
                query(server.params(name), statement)
            return compare(Work(), options_of(server, login_db=name), manifest, jobs=2)
        finally:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


ALTERATIONS = {
    "a row deleted": ("DELETE FROM app.orders WHERE id = 9", "row_counts", "app.orders", 499, 500),
    "a row twice": ("INSERT INTO app.parts VALUES (1, 2)", "row_counts", "app.parts_1", 3, 2),
    "a table dropped": ("DROP TABLE app.parts", "row_counts", "app.parts_1", "missing", 2),
    "a table more": ("CREATE TABLE more (i int)", "row_counts", "public.more", "there", "not in the backup"),
    "a large object lost": ("SELECT lo_unlink(oid) FROM pg_largeobject_metadata", "row_counts", "large objects", 0, 1),
    "a last bit of a float": (
        "UPDATE app.orders SET f = f + 1e-15 WHERE id = (SELECT min(id) FROM app.orders WHERE f BETWEEN 0.6 AND 0.9)",
        "content", "app.orders", "other rows", "the recorded 500 rows",
    ),
    "a NULL": ("UPDATE app.orders SET at = NULL WHERE id = 1", "content", "app.orders", "other rows", None),
    "rows of two users exchanged": (
        "UPDATE app.users SET name = CASE id WHEN 1 THEN md5('2') ELSE md5('1') END WHERE id IN (1, 2)",
        "content", "app.users", "other rows", None,
    ),
    "a column": ("ALTER TABLE app.orders DROP f", "content", "app.orders", "a column is missing", None),
    "a sequence": ("SELECT setval('app.tickets', 3)", "sequences", "app.tickets", 3, 7),
    "an identity": ("ALTER TABLE app.users ALTER id RESTART", "sequences", "app.users_id_seq", None, 1000),
    "an index": ("DROP INDEX app.orders_who", "constraints", "index app.orders_who", "missing", None),
    "another index": (
        "DROP INDEX app.orders_who; CREATE INDEX orders_who ON app.orders (who) WHERE who > 4",
        "constraints", "index app.orders_who", None, None,
    ),
    "a constraint": (
        "ALTER TABLE app.users DROP CONSTRAINT young", "constraints", "constraint app.users.young", "missing", None,
    ),
    "a constraint no longer valid": (
        "ALTER TABLE app.users DROP CONSTRAINT young;"
        " ALTER TABLE app.users ADD CONSTRAINT young CHECK (born > '1900-01-01') NOT VALID",
        "constraints", "constraint app.users.young", "NOT VALID", "valid",
    ),
    "an index no longer valid": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'app.orders_who'::regclass",
        "constraints", "index app.orders.orders_who", "INVALID", "valid",
    ),
    "an extension": ("DROP EXTENSION pgcrypto", "extensions", "pgcrypto", "missing", None),
    "an extension's version": (
        "UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'pgcrypto'", "extensions", "pgcrypto", "0.9", None,
    ),
    "an owner": ("ALTER TABLE app.users OWNER TO postgres", "privileges", "owner of table app.users", "postgres", None),
    "a grant": (f"REVOKE SELECT ON app.users FROM {READER}", "privileges", "grants on table app.users", None, None),
    "a default privilege": (
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA app REVOKE SELECT ON TABLES FROM {READER}", "privileges", None, None, None,
    ),
    "a policy": ("DROP POLICY own ON app.users", "catalog", "policy app.users.own", "missing", None),
    "row security": ("ALTER TABLE app.users NO FORCE ROW LEVEL SECURITY", "catalog", "table app.users", None, None),
    "a default": ("ALTER TABLE app.users ALTER c DROP DEFAULT", "catalog", "column app.users.c", None, None),
    "a comment": ("COMMENT ON VIEW app.names IS 'x'", "catalog", "comment on view app.names", "x", None),
    "a trigger": ("DROP TRIGGER nothing ON app.orders", "catalog", "trigger app.orders.nothing", "missing", None),
    "a function": (
        "CREATE OR REPLACE FUNCTION app.twice(i int) RETURNS int LANGUAGE sql AS 'SELECT i * 3'",
        "catalog", "function app.twice(integer)", None, None,
    ),
    "a publication": ("DROP PUBLICATION all_orders", "catalog", "publication all_orders", "missing", None),
}  # fmt: skip


@pytest.mark.parametrize("change", ALTERATIONS)
def test_each_difference_is_found_and_named(
    other_server: PgServer, restored: str, backup: dict[str, t.Any], change: str
) -> None:
    statement, criterion, name, measured, required = ALTERATIONS[change]
    if "pg_index" in statement or "pg_extension SET" in statement:
        statement = f"SET allow_system_table_mods = on; {statement}"
    result = altered(other_server, restored, read_manifest(backup["path"]), *statement.split("; "))
    assert not result.passed
    failed = {item.criterion.removeprefix("restore."): item for item in result.evidence() if item.verdict == "fail"}
    assert criterion in failed
    evidence = failed[criterion]
    assert name is None or name in evidence.measured, evidence
    if name is not None:
        assert measured is None or evidence.measured[name] == measured
        assert required is None or evidence.required[name] == required
        assert evidence.measured.keys() == evidence.required.keys()


def test_an_unaltered_copy_raises_no_alarm(other_server: PgServer, restored: str, backup: dict[str, t.Any]) -> None:
    result = altered(other_server, restored, read_manifest(backup["path"]), "SELECT 1")
    assert result.passed and {item.verdict for item in result.evidence()} == {"pass"}
    counts = {item.criterion: item.measured for item in result.evidence()}
    assert counts["restore.constraints"]["not_valid"] == 1 and counts["restore.constraints"]["invalid_in_source"] == 1


@pytest.mark.parametrize(("hashes", "expected"), [("counts", "not_measured"), ("sampled", "pass")])
def test_content_is_claimed_only_as_far_as_it_was_recorded(
    other_server: PgServer, source: Database, tmp_path: pathlib.Path, hashes: str, expected: str
) -> None:
    outcome = on_server(other_server, back_up(source, tmp_path, hashes=hashes, hash_sample=7), run_id="partly")
    results = outcome.results(None)
    assert verdicts(results)["restore.content"] == expected
    assert verdicts(results)["restore.row_counts"] == "pass"
    if hashes == "sampled":
        measured = next(item["measured"] for item in results["evidence"] if item["criterion"] == "restore.content")
        assert measured == {"tables": 3, "sampled": 2}
    remove_shadow(options_of(other_server), ShadowRequest(where="server", run_id="partly"), socket=None)


def test_an_empty_database_has_nothing_to_compare(other_server: PgServer, pg_server: PgServer, tmp_path) -> None:
    with temporary_database(pg_server) as empty:
        outcome = on_server(other_server, back_up(empty, tmp_path), run_id="empty")
    found = verdicts(outcome.results(None))
    assert found["restore.completed"] == "pass" and found["restore.row_counts"] == "not_applicable"
    remove_shadow(options_of(other_server), ShadowRequest(where="server", run_id="empty"), socket=None)


# What pg_dump does not write, or pg_restore makes otherwise, although nothing is lost.
ODD_SOURCES = {
    "no schema public": ("CREATE SCHEMA app", "DROP SCHEMA public", "CREATE TABLE app.t (i int)"),
    "no plpgsql": ("DROP EXTENSION plpgsql",),
    "a column added to a parent": (
        "CREATE TABLE parent (i int)",
        "CREATE TABLE child (own int) INHERITS (parent)",
        "ALTER TABLE parent ADD later text",
        "INSERT INTO child VALUES (1, 2, 'x')",
    ),
    "hash partitions by an enum": (
        "CREATE TYPE kind AS ENUM ('b', 'a', 'c', 'd')",
        "ALTER TYPE kind ADD VALUE 'z' BEFORE 'a'",
        "CREATE TABLE spread (k kind, i int) PARTITION BY HASH (k)",
        "CREATE TABLE spread_0 PARTITION OF spread FOR VALUES WITH (modulus 2, remainder 0)",
        "CREATE TABLE spread_1 PARTITION OF spread FOR VALUES WITH (modulus 2, remainder 1) PARTITION BY RANGE (i)",
        "CREATE TABLE spread_2 PARTITION OF spread_1 DEFAULT",
        "INSERT INTO spread SELECT (enum_range(null::kind))[g % 5 + 1], g FROM generate_series(1, 100) AS g",
    ),
    "another owner of public": ("ALTER SCHEMA public OWNER TO pg_monitor", "COMMENT ON SCHEMA public IS 'ours'"),
}


@pytest.mark.versions
@pytest.mark.parametrize("what", ODD_SOURCES)
def test_what_no_restore_brings_back_by_itself_raises_no_alarm(
    other_server: PgServer, database: Database, tmp_path: pathlib.Path, what: str
) -> None:
    for statement in ODD_SOURCES[what]:
        database.query(statement)
    backup = back_up(database, tmp_path)
    outcome = on_server(other_server, backup, run_id="odd")
    assert outcome.comparison is not None and outcome.comparison.passed
    if "by an enum" in what:
        for change, found in (
            ("UPDATE spread SET i = i + 1 WHERE i = 7", "content"),
            ("DELETE FROM spread WHERE i = 7", "row_counts"),
        ):
            result = altered(other_server, str(outcome.database), read_manifest(backup["path"]), change)
            assert [(item.criterion, item.object) for item in result.differences] == [(found, "public.spread")]
    remove_shadow(options_of(other_server), ShadowRequest(where="server", run_id="odd"), socket=None)


@pytest.mark.versions
def test_a_copy_never_reads_a_foreign_table(
    pg_server: PgServer, other_server: PgServer, database: Database, tmp_path: pathlib.Path
) -> None:
    file = pathlib.Path(pg_server.data_dir) / f"{uuid.uuid4().hex}.txt"
    file.write_text("1\n", encoding="ascii")
    file.chmod(0o644)
    for statement in (
        "CREATE EXTENSION file_fdw",
        "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw",
        "CREATE TABLE parted (i int) PARTITION BY RANGE (i)",
        "CREATE TABLE here PARTITION OF parted FOR VALUES FROM (5) TO (9)",
        "CREATE FOREIGN TABLE away PARTITION OF parted FOR VALUES FROM (0) TO (5)"
        f" SERVER files OPTIONS (filename '{file}')",
        "INSERT INTO parted VALUES (6)",
        "CREATE MATERIALIZED VIEW copied AS SELECT * FROM parted",
        "CREATE MATERIALIZED VIEW twice AS SELECT * FROM copied",
        "CREATE MATERIALIZED VIEW own AS SELECT * FROM here",
    ):
        database.query(statement)
    backup = back_up(database, tmp_path)
    file.unlink()  # whoever reads the foreign table now fails
    outcome = on_server(other_server, backup, run_id="foreign")
    assert outcome.comparison is not None and outcome.comparison.passed
    assert outcome.warnings[-1] == "not filled, because they read foreign tables: public.copied, public.twice"
    shadow = other_server.params(str(outcome.database))
    assert query(shadow, "SELECT relname FROM pg_class WHERE relkind = 'm' AND relispopulated") == [("own",)]
    remove_shadow(options_of(other_server), ShadowRequest(where="server", run_id="foreign"), socket=None)


def test_an_extension_the_server_lacks_is_named_before_anything_is_made(
    other_server: PgServer, database: Database, tmp_path: pathlib.Path
) -> None:
    before = names(other_server)
    for statement in (
        "CREATE EXTENSION pgcrypto",
        "UPDATE pg_extension SET extname = 'nowhere_to_be_had' WHERE extname = 'pgcrypto'",
    ):
        database.query(statement)
    with pytest.raises(EnvironmentProblem, match="lacks the extension nowhere_to_be_had"):
        on_server(other_server, back_up(database, tmp_path))
    assert names(other_server) == before


# --- the last resort -------------------------------------------------------------------------------------------------


@pytest.fixture
def live(pg_server: PgServer) -> t.Iterator[Database]:
    """A database that gets replaced: what is left under its dated name goes too."""
    with temporary_database(pg_server) as database:
        database.query("CREATE TABLE t (i int PRIMARY KEY)")
        database.query("INSERT INTO t SELECT generate_series(1, 100)")
        database.query(f"ALTER DATABASE {database.name} SET work_mem = '5MB'")
        yield database
        for name in names(pg_server) - {database.name}:
            if name.startswith(database.name):
                with contextlib.closing(pg_server.connect()) as admin, admin.cursor() as cursor:
                    cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def swap_params(live: Database, backup: t.Mapping[str, t.Any], **more: t.Any) -> dict[str, t.Any]:
    return {
        **live.server.params(),
        "state": "swapped",
        "target_db": live.name,
        "backup": backup["path"],
        "manifest_sha256": backup["manifest_sha256"],
        "database_free_space": "1TB",
        "min_free": "0",
        **more,
    }


def test_a_backup_takes_the_place_of_the_live_database_when_the_loss_is_accepted(
    pg_server: PgServer, live: Database, tmp_path: pathlib.Path
) -> None:
    backup = back_up(live, tmp_path / "backups")
    live.query("DELETE FROM t WHERE i > 40")
    before = names(pg_server)
    looked = run_module(swap_params(live, backup), check_mode=True)
    assert looked["changed"] and looked["lost"]["at_most"] == 60 and names(pg_server) == before
    refused = run_module(swap_params(live, backup))
    assert refused["failed"] and "would be lost" in refused["msg"] and names(pg_server) == before
    result = run_module(swap_params(live, backup, accept_loss=True, run_dir=str(tmp_path / "run")))
    assert result.get("msg") is None and result["changed"] and result["lost"]["at_most"] == 60
    found = verdicts(result)
    assert found["restore.completed"] == "pass" and found["restore.content"] == "pass"
    assert (
        found["rescue.lost_rows"] == "pass" and len((tmp_path / "run" / "evidence.jsonl").read_text().splitlines()) == 9
    )
    assert live.scalar("SELECT count(*) FROM t") == 100
    assert live.scalar("SHOW work_mem") == "5MB"
    assert live.scalar("SELECT has_database_privilege('public', current_database(), 'CONNECT')") is True
    comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
    assert live.scalar(comment) is None
    assert names(pg_server) - before == {result["kept"]}


def test_what_is_not_the_databases_backup_does_not_take_its_place(
    pg_server: PgServer, live: Database, backup: dict[str, t.Any], tmp_path: pathlib.Path
) -> None:
    before = names(pg_server)
    refused = run_module(swap_params(live, backup, accept_loss=True))
    assert refused["failed"] and "the backup is of the database" in refused["msg"]
    own = back_up(live, tmp_path)
    refused = run_module(swap_params(live, own, accept_loss=True, manifest_sha256="0" * 64))
    assert refused["failed"] and "is not the manifest" in refused["msg"]
    assert names(pg_server) == before


def test_a_copy_whose_swap_failed_is_kept_and_compared_again(
    pg_server: PgServer, live: Database, tmp_path: pathlib.Path
) -> None:
    own = back_up(live, tmp_path)
    with contextlib.closing(live.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("DELETE FROM t WHERE i = 1")
        cursor.execute("PREPARE TRANSACTION 'keeps the database in use'")
    try:
        failed = run_module(swap_params(live, own, accept_loss=True))
        assert failed["failed"] and f"replacement: {failed['replacement']}" in failed["msg"]
        assert live.scalar("SELECT count(*) FROM t") == 100
    finally:
        live.query("ROLLBACK PREPARED 'keeps the database in use'")
    copy = failed["replacement"]
    query(pg_server.params(copy), "DELETE FROM t WHERE i = 2")
    refused = run_module(swap_params(live, own, accept_loss=True, replacement=copy))
    assert refused["failed"] and "public.t is 99, recorded was 100" in refused["msg"]
    query(pg_server.params(copy), "INSERT INTO t VALUES (2)")
    done = run_module(swap_params(live, own, accept_loss=True, replacement=copy))
    assert done.get("msg") is None and done["changed"] and copy not in names(pg_server)


# --- stopped and killed ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_backup(pg_server: PgServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, t.Any]:
    """One that takes a while to restore: a check that sleeps on some rows."""
    with temporary_database(pg_server) as database:
        for statement in (
            "CREATE FUNCTION wait(i int) RETURNS bool LANGUAGE sql AS 'SELECT true'",
            "CREATE TABLE slow (i int CHECK (wait(i)))",
            "INSERT INTO slow SELECT generate_series(1, 200)",
            "CREATE OR REPLACE FUNCTION wait(i int) RETURNS bool LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_catalog.pg_sleep(0.05); RETURN true; END'",
        ):
            database.query(statement)
        return back_up(database, tmp_path_factory.mktemp("slow"))


def building(server: PgServer) -> list[str]:
    return sorted(name for name in names(server) if name.startswith("surefoot_building_"))


def loading(server: PgServer) -> bool:
    shown = query(server.params(), "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY public.slow%'")
    return bool(building(server)) and shown[0][0] > 0


def slow_params(server: PgServer, backup: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {
        **server.params(),
        "where": "server",
        "backup": backup["path"],
        "manifest_sha256": backup["manifest_sha256"],
        "run_id": "slow",
    }


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_stopped_restore_leaves_nothing(other_server: PgServer, slow_backup: dict[str, t.Any]) -> None:
    before = names(other_server)
    process = start_module(slow_params(other_server, slow_backup))
    wait_for(lambda: loading(other_server) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    output, _errors = process.communicate(timeout=30)
    result = json.loads(output)
    assert result["failed"] and "SIGTERM" in result["msg"] and result["error"]["code"] == "interrupted"
    assert names(other_server) == before


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_what_a_killed_restore_left_is_removed_and_one_at_work_is_not(
    other_server: PgServer, slow_backup: dict[str, t.Any], backup: dict[str, t.Any]
) -> None:
    process = start_module(slow_params(other_server, slow_backup))
    try:
        wait_for(lambda: loading(other_server) or process.poll() is not None)
        (left,) = building(other_server)
        outcome = on_server(other_server, backup, run_id="beside")
        assert outcome.removed == [] and left in names(other_server)
    finally:
        process.kill()
        process.communicate(timeout=30)
    wait_for(lambda: not query(other_server.params(), "SELECT 1 FROM pg_stat_activity WHERE application_name"
                               " LIKE 'surefoot:building-%'"))  # fmt: skip
    assert building(other_server) == [left]
    removed = remove_shadow(options_of(other_server), ShadowRequest(where="server", run_id="beside"), socket=None)
    assert sorted(removed.removed) == sorted([left, outcome.database])
    assert building(other_server) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_cluster_whose_maker_was_killed_is_removed(slow_backup: dict[str, t.Any]) -> None:
    params = {
        "backup": slow_backup["path"],
        "manifest_sha256": slow_backup["manifest_sha256"],
        "min_free": "0",
        "run_id": f"killed-{uuid.uuid4().hex}",
    }
    place = pathlib.Path(default_home("/shadow")).parent

    def mine() -> list[pathlib.Path]:
        found = []
        for path in place.glob(f"surefoot-{os.geteuid()}-*/shadow.json"):
            with contextlib.suppress(OSError, ValueError):
                if json.loads(path.read_text())["run_id"] == params["run_id"]:
                    found.append(path.parent)
        return found

    process = start_module(params)
    try:
        wait_for(lambda: (mine() and (mine()[0] / "data" / "postmaster.pid").exists()) or process.poll() is not None)
        (home,) = mine()
        other = remove_shadow(None, ShadowRequest(run_id="another"), socket=None)
        assert home.exists(), other
    finally:
        process.kill()
        process.communicate(timeout=30)
    pid = int((home / "data" / "postmaster.pid").read_text().split()[0])
    remove_shadow(None, ShadowRequest(run_id="another"), socket=None)
    assert not home.exists()
    # Gone, or waiting for an init that takes its time to bury it.
    status = pathlib.Path(f"/proc/{pid}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_two_tasks_that_find_the_same_dead_cluster_do_not_disturb_each_other() -> None:
    home = pathlib.Path(default_home(f"/shadow/{uuid.uuid4().hex}"))
    home.mkdir(mode=0o700)
    # Enough of a cluster that its removal takes a while.
    for number in range(200):
        (home / f"d{number}").mkdir()
        for file in range(50):
            (home / f"d{number}" / str(file)).touch()
    state = {"run_id": "dead", "database": "x", "data_dir": str(home / "data"), "state": "building"}
    (home / "shadow.json").write_text(json.dumps(state), encoding="ascii")
    tasks = [start_module({"state": "absent", "run_id": f"another-{number}"}) for number in range(3)]
    results = [json.loads(task.communicate(timeout=60)[0]) for task in tasks]
    assert [result.get("msg") for result in results] == [None] * 3
    assert not home.exists()


def test_a_backup_that_does_not_exist_is_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackupError, match="cannot read"):
        make_shadow(None, ShadowRequest(backup=str(tmp_path / "none"), manifest_sha256="0" * 64))
