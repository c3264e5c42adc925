# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight on a real server: what each criterion says when all is well, and when something is provoked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
import typing as t
import uuid

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _preflight
from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import fingerprint
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions, connect
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation
from ansible_collections.surefoot.dbops.plugins.module_utils._preflight import Finding, Report, Wanted, pooler_evidence
from ansible_collections.surefoot.dbops.plugins.modules import postgresql_preflight_info
from ansible_collections.surefoot.dbops.tests.support.pgserver import (
    Database,
    PgServer,
    temporary_database,
)
from ansible_collections.surefoot.dbops.tests.support.standby import running_standby

pytestmark = pytest.mark.versions

SCHEMA = """
CREATE SCHEMA app;
CREATE TABLE app.users (id integer PRIMARY KEY, name text);
CREATE TABLE app.orders (id integer);
CREATE TABLE app."Odd Name" (id integer);
"""


@pytest.fixture
def app(database: Database) -> Database:
    database.query(SCHEMA)
    return database


@pytest.fixture
def role(pg_server: PgServer) -> t.Iterator[str]:
    """A role that may log in, and nothing else. Request it before a database, so that it is dropped after it."""
    name = f"pre_{uuid.uuid4().hex[:8]}"
    with contextlib.closing(pg_server.connect()) as admin, admin.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {name} LOGIN")
        try:
            yield name
        finally:
            cursor.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def options(database: Database, **params: t.Any) -> ConnectionOptions:
    return ConnectionOptions.from_params({**database.params, **params})


def report(database: Database, wanted: Wanted | None = None, **params: t.Any) -> Report:
    return _preflight.preflight(options(database, **params), wanted or Wanted())


def finding(database: Database, criterion: str, wanted: Wanted | None = None, **params: t.Any) -> Finding:
    found = [item for item in report(database, wanted, **params).findings if item.criterion == f"preflight.{criterion}"]
    assert len(found) == 1
    return found[0]


def perform(database: Database, **params: t.Any) -> tuple[dict[str, t.Any], list[str]]:
    """The module's result and warnings, with its own defaults."""
    spec = postgresql_preflight_info.argument_spec().argument_spec
    values = {name: option.get("default") for name, option in spec.items()}
    invocation = Invocation({**values, **database.params, **params}, check_mode=False, diff=False)
    return invocation.perform(postgresql_preflight_info.run), invocation.warnings


@contextlib.contextmanager
def session(database: Database, *statements: str, **keywords: t.Any) -> t.Iterator[t.Any]:
    """Another session that has run these and stays as they leave it."""
    with contextlib.closing(database.connect(**keywords)) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        yield connection


WANTED = Wanted(
    schemas=["app"], tables=["app.users", "app.orders"], extensions=["pgcrypto"], relations_exist=["app.users"]
)


def test_quiet_server_meets_every_criterion(app: Database) -> None:
    result = report(app, WANTED)
    assert [item.criterion for item in result.findings] == list(_preflight.CRITERIA)
    stopping, warning = result.failures()
    assert (stopping, warning) == ([], [])
    passed = {item.criterion for item in result.findings if item.verdict == "pass"}
    assert {"preflight.blockers", "preflight.pooler", "preflight.extensions", "preflight.wraparound"} <= passed


def test_server_facts_identify_the_database(app: Database) -> None:
    server = report(app).server
    assert server["version_num"] == app.server.version
    assert server["database"] == app.name
    assert server["database_oid"] == app.scalar(
        "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
    )
    assert server["system_identifier"] == app.scalar("SELECT system_identifier::text FROM pg_control_system()")
    assert server["timeline"] == 1


def test_nothing_is_written(role: str, app: Database) -> None:
    app.query(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    with contextlib.closing(app.connect()) as connection:
        before = fingerprint(connection)
        assert finding(app, "writable", login_user=role).verdict == "fail"
        assert fingerprint(connection) == before


def test_long_transaction_is_named_by_pid_and_application_not_by_its_query(app: Database) -> None:
    with session(app, "BEGIN; SELECT 'a-literal-4711'", application_name="nightly") as other:
        found = finding(app, "long_transactions", Wanted(max_transaction_age=0.0))
        assert found.verdict == "fail"
        assert found.measured[0]["pid"] == other.info.backend_pid
        assert found.measured[0]["application_name"] == "nightly"
        assert "a-literal-4711" not in json.dumps(found.to_dict())
        assert f"pg_terminate_backend({other.info.backend_pid})" in found.remedy
        assert finding(app, "long_transactions").verdict == "pass"


def test_transaction_in_another_database_does_not_count(app: Database, pg_server: PgServer) -> None:
    with temporary_database(pg_server) as elsewhere, session(elsewhere, "BEGIN; SELECT 1"):
        assert finding(app, "long_transactions", Wanted(max_transaction_age=0.0)).verdict == "pass"


def test_idle_in_transaction(app: Database) -> None:
    with session(app, "BEGIN; SELECT 1"):
        assert finding(app, "idle_in_transaction", Wanted(max_idle_in_transaction=0.0)).verdict == "fail"
        assert finding(app, "idle_in_transaction").verdict == "pass"
    with session(app, "SELECT 1"):
        assert finding(app, "idle_in_transaction", Wanted(max_idle_in_transaction=0.0)).verdict == "pass"


def test_prepared_transaction(app: Database) -> None:
    with session(app, "BEGIN; SELECT 1; PREPARE TRANSACTION 'idle one'"):
        assert finding(app, "prepared_transactions", WANTED).verdict == "pass"
        old = finding(app, "prepared_transactions", Wanted(max_transaction_age=0.0))
        assert (old.verdict, old.measured[0]["gid"]) == ("fail", "idle one")
    with session(app, "BEGIN; INSERT INTO app.users VALUES (1); PREPARE TRANSACTION 'with lock'"):
        assert finding(app, "prepared_transactions", WANTED).verdict == "fail"
        assert "a prepared transaction holds RowExclusiveLock on app.users" in finding(app, "blockers", WANTED).summary
        assert finding(app, "blockers", Wanted(tables=["app.orders"])).verdict == "pass"


def test_strong_lock_and_queue_on_a_touched_table(app: Database) -> None:
    with session(app, "BEGIN; LOCK TABLE app.users IN SHARE MODE", application_name="report") as holder:
        found = finding(app, "blockers", WANTED)
        assert found.verdict == "fail"
        assert "'report' holds ShareLock on app.users" in found.summary
        with contextlib.closing(app.connect(application_name="writer")) as writer:
            thread = threading.Thread(target=_insert, args=(writer,))
            thread.start()
            try:
                _until(lambda: app.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted") == 1)
                queue = [item for item in finding(app, "blockers", WANTED).measured if not item["granted"]]
                assert queue[0]["blocked_by"] == [holder.info.backend_pid]
            finally:
                holder.cursor().execute("ROLLBACK")
                thread.join()


def test_ordinary_lock_counts_only_when_it_is_old(app: Database) -> None:
    with session(app, "BEGIN; SELECT FROM app.users"):
        assert finding(app, "blockers", WANTED).verdict == "pass"
        old = finding(app, "blockers", Wanted(tables=["app.users"], max_lock_age=0.0))
        assert (old.verdict, old.measured[0]["mode"]) == ("fail", "AccessShareLock")
        # Without tables, those of the schemas count.
        assert finding(app, "blockers", Wanted(schemas=["app"], max_lock_age=0.0)).verdict == "fail"
        assert finding(app, "blockers", Wanted(max_lock_age=0.0)).verdict == "not_applicable"


def _insert(connection: t.Any) -> None:
    connection.cursor().execute("INSERT INTO app.users VALUES (9)")


def _until(condition: t.Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def test_role_without_pg_monitor_measures_nothing_it_cannot_see(role: str, app: Database) -> None:
    with session(app, "BEGIN; SELECT FROM app.users"):
        result = report(app, Wanted(tables=["app.users"], max_transaction_age=0.0, max_lock_age=0.0), login_user=role)
        verdicts = {item.criterion.partition(".")[2]: item.verdict for item in result.findings}
        assert verdicts["pg_monitor"] == "fail"
        for criterion in ("long_transactions", "idle_in_transaction", "blockers", "wraparound"):
            assert verdicts[criterion] == "not_measured", criterion
        long = next(item for item in result.findings if item.criterion == "preflight.long_transactions")
        assert long.measured is None
        assert long.remedy == f"GRANT pg_monitor TO {role};"
        stopping, _warning = result.failures(required=["long_transactions"])
        assert "preflight.long_transactions" in [item.criterion for item in stopping]
    # A strong lock shows without any right.
    with session(app, "BEGIN; LOCK TABLE app.users"):
        assert finding(app, "blockers", Wanted(tables=["app.users"]), login_user=role).verdict == "fail"
    app.query(f"GRANT pg_read_all_stats TO {role}")
    assert finding(app, "pg_monitor", login_user=role).verdict == "pass"
    assert finding(app, "long_transactions", login_user=role).verdict == "pass"


def test_role_without_rights_is_told_what_to_be_granted(role: str, app: Database) -> None:
    app.query(f"REVOKE CREATE ON DATABASE {app.name} FROM PUBLIC")
    result = report(
        app, Wanted(schemas=["app", "missing"], tables=["app.users"], extensions=["pgcrypto"]), login_user=role
    )
    found = {item.criterion.partition(".")[2]: item for item in result.findings}
    assert found["create_on_schema"].verdict == "fail"
    assert f"GRANT USAGE, CREATE ON SCHEMA app TO {role};" in found["create_on_schema"].remedy
    assert f"GRANT CREATE ON DATABASE {app.name} TO {role};" in found["create_on_schema"].remedy
    assert found["table_ownership"].verdict == "fail"
    assert found["table_ownership"].remedy == f"GRANT postgres TO {role}; or set session_role: postgres."
    assert found["ledger"].verdict == "fail"
    assert f"CREATE SCHEMA surefoot AUTHORIZATION {role};" in found["ledger"].remedy
    assert (found["extensions"].verdict, "CREATE EXTENSION" in found["extensions"].remedy) == ("fail", True)


def test_role_with_rights_passes(role: str, app: Database) -> None:
    app.query(
        f"GRANT CREATE ON DATABASE {app.name} TO {role}; GRANT ALL ON SCHEMA app TO {role}; ALTER TABLE app.users"
        f" OWNER TO {role}"
    )
    result = report(app, Wanted(schemas=["app", "new"], tables=["app.users"], extensions=["pgcrypto"]), login_user=role)
    verdicts = {item.criterion.partition(".")[2]: item.verdict for item in result.findings}
    # pgcrypto is trusted: CREATE on the database is enough.
    for criterion in ("create_on_schema", "table_ownership", "ledger", "extensions"):
        assert verdicts[criterion] == "pass", criterion
    app.query("CREATE EXTENSION pgcrypto")
    assert finding(app, "extensions", Wanted(extensions=["pgcrypto"])).measured["pgcrypto"]["installed"]


def test_untrusted_extension_needs_a_superuser(role: str, app: Database) -> None:
    app.query(f"GRANT CREATE ON DATABASE {app.name} TO {role}")
    assert finding(app, "extensions", Wanted(extensions=["pageinspect"]), login_user=role).verdict == "fail"
    assert finding(app, "extensions", Wanted(extensions=["pageinspect"])).verdict == "pass"
    absent = finding(app, "extensions", Wanted(extensions=["no_such_extension"]))
    assert (absent.verdict, absent.summary) == ("fail", "no_such_extension is not available on the server")


def test_session_role_is_the_role_that_is_judged(role: str, app: Database) -> None:
    assert finding(app, "table_ownership", WANTED, session_role=role).verdict == "fail"
    app.query(f"GRANT postgres TO {role}")
    assert finding(app, "table_ownership", WANTED, login_user=role).verdict == "pass"


def test_existing_ledger_must_be_writable(role: str, app: Database) -> None:
    app.query("CREATE SCHEMA surefoot; CREATE TABLE surefoot.runs (id integer)")
    assert finding(app, "ledger").verdict == "pass"
    denied = finding(app, "ledger", login_user=role)
    assert (denied.verdict, denied.measured["owner"]) == ("fail", "postgres")
    app.query(f"GRANT ALL ON SCHEMA surefoot TO {role}")
    assert "may not read and write runs" in finding(app, "ledger", login_user=role).summary
    app.query(f"GRANT ALL ON surefoot.runs TO {role}")
    assert finding(app, "ledger", login_user=role).verdict == "pass"
    assert finding(app, "ledger", Wanted(ledger_schema="other")).measured["exists"] is False


def test_missing_relations_are_named(app: Database) -> None:
    wanted = Wanted(
        relations_exist=["app.users", 'app."Odd Name"', "APP.ORDERS", "app.absent", "users"], tables=["app.absent"]
    )
    found = finding(app, "relations_exist", wanted)
    assert (found.verdict, found.measured["missing"]) == ("fail", ["app.absent", "users"])
    assert "app.absent does not exist" in finding(app, "table_ownership", wanted).summary
    app.query(f"ALTER DATABASE {app.name} SET search_path = app")
    assert finding(app, "relations_exist", Wanted(relations_exist=["users"])).verdict == "pass"


def test_free_connections_respect_the_limits_of_database_and_role(role: str, app: Database) -> None:
    free = finding(app, "connections").measured["free"]
    assert finding(app, "connections", Wanted(min_free_connections=free + 10)).verdict == "fail"
    assert finding(app, "connections", Wanted(max_pool_saturation=0.5)).verdict == "fail"
    as_role = finding(app, "connections", login_user=role).measured
    assert as_role["reserved"] >= 3
    app.query(f"ALTER DATABASE {app.name} CONNECTION LIMIT 3")
    limited = finding(app, "connections", login_user=role)
    assert (limited.verdict, limited.measured["free"]) == ("fail", 2)
    app.query(f"ALTER DATABASE {app.name} CONNECTION LIMIT -1; ALTER ROLE {role} CONNECTION LIMIT 2")
    assert finding(app, "connections", login_user=role).measured["free"] == 1


def test_publication_on_a_touched_table(app: Database) -> None:
    app.query("CREATE PUBLICATION feed FOR TABLE app.users")
    assert finding(app, "publications", Wanted(tables=["app.orders"])).verdict == "pass"
    found = finding(app, "publications", WANTED)
    assert (found.verdict, found.measured) == ("fail", [{"publication": "feed", "table": "app.users"}])
    app.query("DROP PUBLICATION feed; CREATE PUBLICATION everything FOR ALL TABLES")
    orders = finding(app, "publications", Wanted(tables=["app.orders"]))
    assert (orders.verdict, orders.details["without_replica_identity"]) == ("fail", ["app.orders"])


def test_subscription_on_a_touched_table(app: Database, pg_server: PgServer) -> None:
    slot = f"slot_{uuid.uuid4().hex[:8]}"
    with temporary_database(pg_server) as publisher:
        publisher.query(SCHEMA)
        publisher.query("CREATE PUBLICATION feed FOR TABLE app.users")
        publisher.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
        app.query(
            f"CREATE SUBSCRIPTION {slot} CONNECTION '{publisher.dsn}' PUBLICATION feed"
            f" WITH (create_slot = false, copy_data = false, enabled = false, slot_name = '{slot}')"
        )
        try:
            found = finding(app, "subscriptions", WANTED)
            assert (found.verdict, found.measured) == ("fail", [{"subscription": slot, "table": "app.users"}])
            assert finding(app, "subscriptions", Wanted(tables=["app.orders"])).verdict == "pass"
        finally:
            app.query(f"ALTER SUBSCRIPTION {slot} SET (slot_name = NONE)")
            app.query(f"DROP SUBSCRIPTION {slot}")


def test_inactive_replication_slot(app: Database) -> None:
    assert finding(app, "replication_slots").verdict == "not_applicable"
    slot = f"slot_{uuid.uuid4().hex[:8]}"
    app.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    app.query("INSERT INTO app.orders SELECT generate_series(1, 1000)")
    assert finding(app, "replication_slots").verdict == "pass"
    found = finding(app, "replication_slots", Wanted(max_retained_wal=1000))
    assert (found.verdict, found.measured[0]["slot"], found.measured[0]["active"]) == ("fail", slot, False)
    assert found.measured[0]["retained"] > 1000
    assert finding(app, "publications", WANTED).details["logical_slots"][0]["slot"] == slot


def test_event_trigger_warns_unless_required(app: Database) -> None:
    name = f"watch_{uuid.uuid4().hex[:8]}"
    app.query(
        "CREATE FUNCTION app.watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        f" CREATE EVENT TRIGGER {name} ON ddl_command_end EXECUTE FUNCTION app.watch()"
    )
    result = report(app)
    stopping, warning = result.failures()
    assert (stopping, [item.criterion for item in warning]) == ([], ["preflight.event_triggers"])
    assert f"{name} on ddl_command_end runs app.watch" in warning[0].summary
    stopping, warning = result.failures(required=["event_triggers"], optional=["event_triggers"])
    assert ([item.criterion for item in stopping], warning) == (["preflight.event_triggers"], [])
    app.query(f"ALTER EVENT TRIGGER {name} DISABLE")
    assert finding(app, "event_triggers").verdict == "pass"


def test_settings_of_role_and_database(role: str, app: Database) -> None:
    app.query(f"ALTER ROLE {role} SET idle_in_transaction_session_timeout = '10s'")
    app.query(f"ALTER DATABASE {app.name} SET statement_timeout = '1s'")
    app.query(f"ALTER DATABASE {app.name} SET lock_timeout = 0")
    found = finding(app, "role_settings", login_user=role)
    assert found.verdict == "fail"
    assert found.measured == {
        "idle_in_transaction_session_timeout": {"value": "10s", "level": "role"},
        "statement_timeout": {"value": "1s", "level": "database"},
    }
    assert finding(app, "role_settings").measured == {"statement_timeout": {"value": "1s", "level": "database"}}
    # What stands in the database's settings does not disturb the measuring itself.
    assert finding(app, "pooler").verdict == "pass"


def test_read_only_database(app: Database) -> None:
    app.query(f"ALTER DATABASE {app.name} SET default_transaction_read_only = on")
    found = finding(app, "writable")
    assert (found.verdict, found.summary) == ("fail", "default_transaction_read_only is on (set for the database)")


def test_statement_logging_warns(app: Database) -> None:
    assert finding(app, "server_logging").verdict == "pass"
    app.query(f"ALTER DATABASE {app.name} SET log_min_duration_statement = '1min'")
    found = finding(app, "server_logging")
    assert (found.verdict, found.measured) == ("fail", {"log_min_duration_statement": "1min"})


def test_room_for_the_backup(app: Database, tmp_path: t.Any) -> None:
    size = app.scalar("SELECT pg_database_size(current_database())")
    room = finding(app, "disk_backup", Wanted(backup_dir=str(tmp_path / "not" / "yet")))
    assert (room.verdict, room.measured["at"]) == ("pass", str(tmp_path))
    assert room.measured["free"] >= size
    assert finding(app, "disk_backup", Wanted(backup_dir=str(tmp_path), backup_size_factor=1e12)).verdict == "fail"
    assert finding(app, "disk_backup").verdict == "not_applicable"
    assert finding(app, "disk_server").verdict == "not_measured"
    assert finding(app, "disk_server", Wanted(database_free_space=size * 10)).verdict == "pass"
    assert finding(app, "disk_server", Wanted(database_free_space=1000)).verdict == "fail"


def test_login_by_tcp_without_tls_is_local(app: Database) -> None:
    found = finding(
        app,
        "tls",
        login_unix_socket=None,
        login_host="127.0.0.1",
        login_password=app.server.password,
        ssl_mode="disable",
    )
    assert (found.verdict, found.measured["local"], found.details["ssl_mode"]) == ("not_applicable", True, "disable")


class _Relay:
    """A proxy on TCP that answers the login with a process number of its own, as poolers do."""

    def __init__(self, server: PgServer) -> None:
        self._upstream = f"{server.host}/.s.PGSQL.{server.port}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                upstream = socket.socket(socket.AF_UNIX)
                upstream.connect(self._upstream)
                threading.Thread(target=self._copy, args=(client, upstream), daemon=True).start()
                threading.Thread(target=self._answer, args=(upstream, client), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    @staticmethod
    def _answer(source: socket.socket, target: socket.socket) -> None:
        stream = source.makefile("rb")
        with contextlib.suppress(OSError, struct.error):
            while head := stream.read(5):
                kind, length = struct.unpack("!cI", head)
                body = stream.read(length - 4)
                if kind == b"K":
                    body = struct.pack("!I", 4_000_000) + body[4:]
                target.sendall(head + body)
        target.close()


def test_pooler_in_between_is_found(app: Database) -> None:
    relay = _Relay(app.server)
    try:
        direct = {"login_unix_socket": None, "login_host": "127.0.0.1", "login_port": relay.port, "ssl_mode": "disable"}
        found = finding(app, "pooler", **direct)
        assert found.verdict == "fail"
        assert "answers as process 4000000" in found.summary
        with contextlib.closing(connect(options(app, **direct), purpose="test")) as connection:
            assert pooler_evidence(connection).verdict == "fail"
    finally:
        relay.close()


def test_direct_connection_is_no_pooler_and_stays_as_it_was(app: Database) -> None:
    with contextlib.closing(connect(options(app), purpose="test", settings={"work_mem": "5MB"})) as connection:
        evidence = pooler_evidence(connection, {"work_mem": "5MB"})
        assert (evidence.criterion, evidence.verdict) == ("preflight.pooler", "pass")
        connection.cursor().execute("SET work_mem = '6MB'")
        assert "startup setting work_mem" in pooler_evidence(connection, {"work_mem": "5MB"}).measured
        cursor = connection.cursor()
        cursor.execute("SELECT current_setting('surefoot.probe')")
        assert cursor.fetchone() == ("",)


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed")
@pytest.mark.parametrize("mode", ["transaction", "statement", "session"])
def test_pgbouncer_is_found(app: Database, mode: str) -> None:
    home = tempfile.mkdtemp(prefix="surefoot-bouncer-", dir="/var/tmp")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    configuration = os.path.join(home, "pgbouncer.ini")
    with open(configuration, "w", encoding="utf-8") as stream:
        stream.write(
            f"[databases]\n* = host={app.server.host} port={app.server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {home}/users\npool_mode ="
            f" {mode}\n"
            "ignore_startup_parameters = options\n"
        )
    with open(os.path.join(home, "users"), "w", encoding="utf-8") as stream:
        stream.write('"postgres" ""\n')
    os.chmod(home, 0o755)
    owner = os.stat(app.server.data_dir).st_uid
    process = subprocess.Popen(
        [t.cast(str, shutil.which("pgbouncer")), configuration],
        user=owner if os.geteuid() == 0 else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        through = {"login_unix_socket": None, "login_host": "127.0.0.1", "login_port": port, "ssl_mode": "disable"}

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        _until(answers)
        if mode == "statement":
            # It refuses transactions, so that nothing else can be measured.
            results, _warnings = perform(app, **through)
            assert (results["failed"], results["error"]["code"]) == (True, "pooler")
            assert [(item["criterion"], item["verdict"]) for item in results["evidence"]] == [
                ("preflight.pooler", "fail")
            ]
        else:
            assert finding(app, "pooler", **through).verdict == "fail"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def standby(pg_server: PgServer) -> t.Iterator[PgServer]:
    with running_standby(pg_server) as server:
        yield server


def test_standby_is_refused_and_can_be_measured(standby: PgServer) -> None:
    on_standby = Database("postgres", standby)
    assert finding(on_standby, "primary").verdict == "fail"
    assert finding(on_standby, "replica_lag").verdict == "not_applicable"


def test_replica_lag(role: str, app: Database, standby: PgServer) -> None:
    on_standby = Database("postgres", standby)
    _until(lambda: finding(app, "replica_lag").verdict == "pass")
    assert finding(app, "primary").verdict == "pass"
    # The role sees that there is a replica, but not how far it is.
    assert finding(app, "replica_lag", login_user=role).verdict == "not_measured"
    on_standby.query("SELECT pg_wal_replay_pause()")
    try:
        _until(lambda: on_standby.scalar("SELECT pg_get_wal_replay_pause_state()") == "paused")

        app.query("INSERT INTO app.orders SELECT generate_series(1, 1000)")
        found = finding(app, "replica_lag", Wanted(max_replica_lag_size=10_000))
        assert (found.verdict, found.measured[0]["application_name"]) == ("fail", "copy")
        assert found.measured[0]["lag_bytes"] > 10_000
    finally:
        on_standby.query("SELECT pg_wal_replay_resume()")


def test_module_returns_evidence_and_records_it(app: Database, tmp_path: t.Any) -> None:
    run_dir = tmp_path / "run"
    results, warnings = perform(app, schemas=["app"], tables=["app.users"], run_dir=str(run_dir), run_id="r1")
    assert "failed" not in results
    assert (results["changed"], results["failures"], warnings) == (False, [], [])
    assert results["not_measured"] == ["preflight.disk_server"]
    assert [item["criterion"] for item in results["evidence"]] == list(_preflight.CRITERIA)
    assert {item["details"]["run_id"] for item in results["evidence"]} == {"r1"}
    recorded = run_dir / "evidence.jsonl"
    assert stat.S_IMODE(recorded.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in recorded.read_text(encoding="utf-8").splitlines()]
    assert all(line.pop("previous") for line in lines)
    assert lines == results["evidence"]


def test_module_fails_with_one_line_for_all_findings(app: Database) -> None:
    params = {"relations_exist": ["app.absent"], "extensions": ["no_such_extension"]}
    results, _warnings = perform(app, **params)
    assert results["failed"]
    assert "\n" not in results["msg"]
    assert "2 criteria are not met" in results["msg"]
    assert "missing: app.absent; required: every relation named exists" in results["msg"]
    assert "no_such_extension is not available" in results["msg"]
    assert [item["criterion"] for item in results["failures"]] == ["preflight.extensions", "preflight.relations_exist"]
    results, _warnings = perform(app, **params, fail_on_error=False)
    assert ("failed" in results, len(results["failures"])) == (False, 2)
    results, warnings = perform(app, **params, optional=["extensions", "preflight.relations_exist"])
    assert ("failed" in results, len(warnings)) == (False, 2)


def test_required_criterion_that_cannot_be_measured_fails_the_module(app: Database) -> None:
    results, _warnings = perform(app, required=["disk_server"])
    assert results["failed"]
    assert "disk_server: not measured, SQL cannot see the server's disk" in results["msg"]


def test_misspelt_criterion_fails_before_connecting(app: Database) -> None:
    results, _warnings = perform(app, login_port=1, optional=["long_transaction"])
    assert "there is no preflight criterion 'long_transaction'" in results["msg"]


def test_unreachable_server_leaves_evidence(app: Database, tmp_path: t.Any) -> None:
    results, _warnings = perform(app, login_port=1, run_dir=str(tmp_path))
    assert results["failed"]
    assert "cannot connect" in results["msg"]
    line = json.loads((tmp_path / "evidence.jsonl").read_text(encoding="utf-8"))
    assert (line["criterion"], line["verdict"]) == ("preflight.connection", "fail")


def test_dropped_connection_is_a_clear_error(app: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    collect = _preflight.collect

    def killed(connection: t.Any, *arguments: t.Any) -> dict[str, t.Any]:
        app.query("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        return collect(connection, *arguments)

    monkeypatch.setattr(_preflight, "collect", killed)
    results, _warnings = perform(app)
    assert results["failed"]
    assert "the connection broke while measuring" in results["msg"]
    assert results["error"]["code"] == "connection"
