# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy takes the place of a live database, on a real server; whatever fails, everything is as it was."""

from __future__ import annotations

import contextlib
import datetime
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time
import uuid

import psycopg2
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import LockBusy, PlanError, SqlError
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import BackupRequest, read_manifest, take_backup
from ansible_collections.surefoot.dbops.plugins.module_utils._swap import (
    SwapFailed,
    kept_name,
    lost_writes,
    reopen,
    swap,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

CHILD = """
import json, sys
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._swap import swap
given = json.load(sys.stdin)
swap(ConnectionOptions.from_params(given.pop("login")), **given)
"""
STATE = """
SELECT d.datname::text, d.oid::bigint, pg_get_userbyid(d.datdba)::text, d.datallowconn, d.datconnlimit,
       shobj_description(d.oid, 'pg_database'),
       (SELECT array_agg(a::text ORDER BY a::text) FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS a),
       (SELECT array_agg(format('%s %s', s.setrole, s.setconfig) ORDER BY s.setrole) FROM pg_db_role_setting AS s
         WHERE s.setdatabase = d.oid)
  FROM pg_database AS d ORDER BY 1
"""


class Pair:
    """A live database and a copy of it with marks that tell them apart."""

    def __init__(self, server, name):
        self.server = server
        self.live = Database(name, server)
        self.copy = Database(f"{name}_copy", server)
        self.admin("CREATE DATABASE {}", name)
        self.live.query("CREATE TABLE place AS SELECT 'live'::text AS name")
        self.live.query("CREATE TABLE counted AS SELECT g AS id FROM generate_series(1, 100) g")
        self.admin(f"CREATE DATABASE {{}} TEMPLATE {name}", self.copy.name)
        self.copy.query("UPDATE place SET name = 'copy'")

    def admin(self, statement, *names):
        with contextlib.closing(self.server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement.format(*names))
            return cursor.fetchall() if cursor.description else []

    @property
    def options(self):
        return ConnectionOptions.from_params(self.server.params())

    def state(self):
        """Everything the server knows about the databases, by name."""
        return {row[0]: row[1:] for row in self.admin(STATE.replace("{", "{{").replace("}", "}}"))}

    def swap(self, **more):
        given = {"database": self.live.name, "replacement": self.copy.name, "accept_loss": True, **more}
        return swap(self.options, **given)

    def start(self, **more):
        """The same as a process of its own."""
        tree = pathlib.Path(__file__).resolve().parents[2] / "build" / "tree"
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": str(tree)},
        )  # fmt: skip
        given = {"database": self.live.name, "replacement": self.copy.name, "accept_loss": True, **more}
        process.stdin.write(json.dumps({"login": self.server.params(), **given}))
        process.stdin.close()
        process.stdin = None
        return process


@pytest.fixture
def pair(pg_server):
    name = f"swap_{uuid.uuid4().hex[:10]}"
    made = Pair(pg_server, name)
    yield made
    for (found,) in made.admin("SELECT datname FROM pg_database WHERE datname LIKE '{}%'", name):
        for (gid,) in made.admin("SELECT gid FROM pg_prepared_xacts WHERE database = '{}'", found):
            Database(found, pg_server).query("ROLLBACK PREPARED %s", (gid,))
        made.admin("DROP DATABASE {} WITH (FORCE)", found)


@pytest.fixture
def role(pg_server):
    """Makes roles that are gone afterwards."""
    made = []

    def create(options=""):
        name = f"role_{uuid.uuid4().hex[:10]}"
        with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE ROLE {name} LOGIN {options}")
        made.append(name)
        return name

    yield create
    with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
        for name in made:
            cursor.execute("SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = %s", (name,))
            for (database,) in cursor.fetchall():
                cursor.execute(f'ALTER DATABASE "{database}" OWNER TO postgres')
        for name in made:
            cursor.execute(f"DROP OWNED BY {name} CASCADE")
        for name in made:
            cursor.execute(f"DROP ROLE {name}")


@contextlib.contextmanager
def held(server, *statements, dbname="postgres", **keywords):
    """A session in a transaction that did this."""
    with contextlib.closing(server.connect(dbname, **keywords)) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        for statement in statements:
            cursor.execute(statement)
        yield connection


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def lock_of(pair):
    """What keeps the copy from being renamed as long as it is not committed, and from nothing else."""
    return f"ALTER ROLE postgres IN DATABASE {pair.copy.name} SET work_mem = '5MB'"


# --- it works ----------------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_the_copy_takes_the_name_and_the_old_one_is_kept_closed(pair):
    before = pair.state()
    outcome = pair.swap()
    after = pair.state()
    assert outcome.changed and outcome.seconds < 30
    assert outcome.kept.startswith(f"{pair.live.name}_before_2")
    assert pair.live.scalar("SELECT name FROM place") == "copy"
    assert pair.copy.name not in after
    assert after[pair.live.name][0] == before[pair.copy.name][0]
    assert after[outcome.kept][0] == before[pair.live.name][0]
    assert after[pair.live.name][1:] == before[pair.live.name][1:]
    with pytest.raises(psycopg2.OperationalError, match="not currently accepting connections"):
        pair.server.connect(outcome.kept)
    pair.admin("ALTER DATABASE {} ALLOW_CONNECTIONS true", outcome.kept)
    assert Database(outcome.kept, pair.server).scalar("SELECT name FROM place") == "live"
    assert pair.state()[outcome.kept][1:] == before[pair.live.name][1:]


@pytest.mark.versions
def test_owner_privileges_limit_settings_and_comment_are_carried_over(pair, role):
    owner, reader, other = role(), role(), role()
    for statement in (
        f"ALTER DATABASE {{0}} OWNER TO {owner}",
        "REVOKE ALL ON DATABASE {0} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {{0}} TO {reader} WITH GRANT OPTION",
        f"SET ROLE {reader}; GRANT CONNECT ON DATABASE {{0}} TO {other}; RESET ROLE",
        "ALTER DATABASE {0} CONNECTION LIMIT 17",
        'ALTER DATABASE {0} SET search_path = app, "We ird, name", public',
        "ALTER DATABASE {0} SET work_mem = '7MB'",
        "ALTER DATABASE {0} SET app.key = 'hush, don''t tell'",
        "ALTER DATABASE {0} SET log_min_duration_statement = '5s'",
        f"ALTER ROLE {reader} IN DATABASE {{0}} SET statement_timeout = '5s'",
        "COMMENT ON DATABASE {0} IS 'the one that counts'",
        "GRANT ALL ON DATABASE {1} TO PUBLIC",
        "ALTER DATABASE {1} SET work_mem = '9MB'",
        f"ALTER ROLE {other} IN DATABASE {{1}} SET statement_timeout = '9s'",
        "ALTER DATABASE {1} CONNECTION LIMIT 1",
        "COMMENT ON DATABASE {1} IS 'a shadow'",
    ):
        pair.admin(statement, pair.live.name, pair.copy.name)
    logged = len(pair.server.log_text())
    before = pair.state()[pair.live.name]
    outcome = pair.swap()
    assert outcome.carried == ["owner", "privileges", "connection limit", "settings", "comment"]
    after = pair.state()
    assert after[pair.live.name][1:] == before[1:]
    assert after[outcome.kept][0] == before[0] and after[outcome.kept][3:] == before[3:]
    with contextlib.closing(pair.live.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('search_path'), current_setting('app.key'), current_setting('work_mem')")
        assert cursor.fetchone() == ('app, "We ird, name", public', "hush, don't tell", "7MB")
    assert "hush" not in pair.server.log_text()[logged:]
    assert "hush" not in json.dumps(outcome.results(None))


def test_a_setting_that_cannot_be_carried_over_is_found_while_everybody_works(pair, role):
    login = role("CREATEDB")
    for name in (pair.live.name, pair.copy.name):
        pair.admin(f"ALTER DATABASE {{}} OWNER TO {login}", name)
    pair.admin("ALTER DATABASE {} SET log_min_duration_statement = '5s'", pair.live.name)  # a superuser's to set
    before = pair.state()
    options = ConnectionOptions.from_params({**pair.server.params(), "login_user": login})
    with held(pair.server, "SELECT 1", dbname=pair.live.name) as session:
        with pytest.raises(SqlError, match="cannot carry over the setting log_min_duration"):
            swap(options, database=pair.live.name, replacement=pair.copy.name, accept_loss=True)
        with session.cursor() as cursor:
            cursor.execute("SELECT 'still here'")
    assert pair.state() == before


def test_clients_that_keep_coming_back_find_the_copy(pair):
    seen, stop = [], threading.Event()

    def client():
        while not stop.is_set():
            with (
                contextlib.suppress(psycopg2.Error),
                contextlib.closing(pair.live.connect(application_name="stubborn")) as connection,
                connection.cursor() as cursor,
            ):
                while not stop.is_set():
                    cursor.execute("SELECT name FROM place")
                    seen.append(cursor.fetchone()[0])

    threads = [threading.Thread(target=client) for _number in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(seen) > 20)
        outcome = pair.swap()
        wait_for(lambda: seen[-1] == "copy")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {session["application"] for session in outcome.terminated} == {"stubborn"}
    assert {"pid", "user", "client", "state", "seconds", "database"} <= set(outcome.terminated[0])
    assert seen == ["live"] * seen.count("live") + ["copy"] * seen.count("copy")


def test_an_owner_who_may_create_databases_need_not_be_a_superuser(pair, role):
    login = role("CREATEDB")
    for name in (pair.live.name, pair.copy.name):
        pair.admin(f"ALTER DATABASE {{}} OWNER TO {login}", name)
    options = ConnectionOptions.from_params({**pair.server.params(), "login_user": login})
    assert swap(options, database=pair.live.name, replacement=pair.copy.name, accept_loss=True).changed
    assert pair.live.scalar("SELECT name FROM place") == "copy"


# --- what gets lost ----------------------------------------------------------------------------------------------


@pytest.fixture
def backed_up(pair, tmp_path):
    request = BackupRequest(dest=str(tmp_path), min_free=0, verify="files", bindir=pair.server.bindir)
    backup = take_backup(ConnectionOptions.from_params(pair.live.params), request).backup
    return read_manifest(backup["path"], backup["manifest_sha256"])


def write(pair):
    pair.live.query("INSERT INTO counted SELECT generate_series(101, 105)")
    pair.live.query("DELETE FROM counted WHERE id <= 2")
    pair.live.query("UPDATE counted SET id = -id WHERE id IN (10, 11, 12)")
    pair.live.query("TRUNCATE place")
    pair.live.query("CREATE TABLE fresh AS SELECT generate_series(1, 4) AS id")


@pytest.mark.versions
def test_the_rows_lost_are_bounded_by_what_was_written(pair, backed_up):
    write(pair)
    outcome = pair.swap(manifest=backed_up, max_lost_rows=20)
    tables = {table["name"]: table for table in outcome.lost.tables}
    # 10 changed rows, the one row of the truncated table, 4 rows of a table the backup does not know.
    assert (tables["counted"]["inserted"], tables["counted"]["updated"], tables["counted"]["deleted"]) == (5, 3, 2)
    assert tables["place"]["rewritten"] and tables["place"]["at_most"] == 1
    assert tables["fresh"]["at_most"] == 4
    assert outcome.lost.at_most == 15
    (evidence,) = outcome.results(None)["evidence"]
    assert (evidence["criterion"], evidence["verdict"], evidence["measured"]) == ("rescue.lost_rows", "pass", 15)


def test_without_a_yes_nothing_happens_but_the_number_is_said(pair, backed_up):
    write(pair)
    time.sleep(1.1)  # a session reports its counters when it ends, at the latest a second after the statement
    before = pair.state()
    with pytest.raises(PlanError, match="gives up at most 15 rows written since the backup") as caught:
        pair.swap(manifest=backed_up, accept_loss=False)
    assert caught.value.details["lost"]["at_most"] == 15
    assert pair.state() == before


def test_more_than_the_limit_is_refused_and_put_back(pair, backed_up):
    before = pair.state()
    # Not counted before the session is gone: the bound is judged again when nobody can write any more.
    with (
        held(pair.server, "INSERT INTO counted SELECT generate_series(1, 50)", dbname=pair.live.name),
        pytest.raises(PlanError, match="at most 50 rows .*limit is 20"),
    ):
        pair.swap(manifest=backed_up, max_lost_rows=20)
    assert pair.state() == before
    assert pair.live.scalar("SELECT name FROM place") == "live"


def test_nobody_knows_how_many_after_the_counters_were_reset(pair, backed_up):
    pair.live.query("SELECT pg_stat_reset()")
    with contextlib.closing(pair.live.connect()) as connection:
        lost = lost_writes(connection, backed_up)
    assert lost.at_most is None and "began anew" in lost.reason
    with pytest.raises(PlanError, match="unknown number of rows"):
        pair.swap(manifest=backed_up, max_lost_rows=1_000_000)
    outcome = pair.swap(manifest=backed_up)
    assert outcome.results(None)["evidence"][0]["verdict"] == "not_measured"


def test_nobody_knows_how_many_without_a_manifest_or_with_that_of_another_database(pair, backed_up):
    with contextlib.closing(pair.copy.connect()) as connection:
        assert "another database" in lost_writes(connection, backed_up).reason
        assert "no manifest" in lost_writes(connection, None).reason


# --- what stands in the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["live", "copy"])
def test_a_prepared_transaction_is_named_and_left_alone(pair, which):
    database = getattr(pair, which)
    gid = f"{pair.live.name} two-phase"
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"BEGIN; UPDATE place SET name = 'prepared'; PREPARE TRANSACTION '{gid}'")
    before = pair.state()
    with pytest.raises(SwapFailed, match=f"prepared transactions of {database.name} stand in the way: {gid}"):
        pair.swap()
    assert pair.state() == before
    assert pair.admin("SELECT count(*) FROM pg_prepared_xacts WHERE gid = '{}'", gid) == [(1,)]


def test_a_session_that_may_not_be_ended_is_named_and_everything_put_back(pair, role):
    login = role("CREATEDB")
    for name in (pair.live.name, pair.copy.name):
        pair.admin(f"ALTER DATABASE {{}} OWNER TO {login}", name)
    options = ConnectionOptions.from_params({**pair.server.params(), "login_user": login})
    before = pair.state()
    with held(pair.server, "SELECT 1", dbname=pair.live.name) as session:
        with pytest.raises(SwapFailed, match=r"not end within 1 s: process \d+ \(postgres, state hidden\)") as caught:
            swap(options, database=pair.live.name, replacement=pair.copy.name, accept_loss=True, drain_timeout=1)
        with session.cursor() as cursor:
            cursor.execute("SELECT 'still here'")
    assert [session["user"] for session in caught.value.results["terminated"]] == ["postgres"]
    assert pair.state() == before
    assert pair.live.scalar("SELECT name FROM place") == "live"


def test_a_rename_that_fails_in_the_middle_undoes_the_first_one(pair):
    pair.admin("ALTER DATABASE {} CONNECTION LIMIT 17", pair.live.name)
    pair.admin("COMMENT ON DATABASE {} IS 'a shadow''s'", pair.copy.name)
    before = pair.state()
    # The first rename works, the second waits in vain.
    with (
        held(pair.server, lock_of(pair)),
        pytest.raises(SwapFailed, match="could not be renamed within 1 s: canceling statement due to lock timeout"),
    ):
        pair.swap(rename_timeout=1)
    assert pair.state() == before
    assert pair.live.scalar("SELECT name FROM place") == "live" and pair.copy.scalar("SELECT name FROM place") == "copy"


def test_a_rename_is_tried_again_until_the_lock_is_free(pair):
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(pair.server, lock_of(pair)))
        timer = threading.Timer(6.0, stack.close)  # longer than one attempt waits
        timer.start()
        assert pair.swap().changed
        timer.join()
    assert pair.live.scalar("SELECT name FROM place") == "copy"


def test_a_running_migration_is_not_cut_off(pair):
    before = pair.state()
    with (
        held(pair.server, "SELECT 1", dbname=pair.live.name, application_name="surefoot:control r42"),
        pytest.raises(LockBusy, match="a migration of .* is running"),
    ):
        pair.swap()
    assert pair.state() == before


def test_two_swaps_of_one_database_do_not_meet(pair):
    key = f"SELECT pg_advisory_lock(hashtextextended('surefoot swap {pair.live.name}', 0))"
    with held(pair.server, key), pytest.raises(LockBusy, match="another swap"):
        pair.swap()


def test_names_that_make_no_sense_are_refused(pair):
    before = pair.state()
    for given, said in (
        ({"replacement": "nowhere"}, "no database nowhere"),
        ({"replacement": pair.live.name}, "are the same"),
        ({"replacement": "template1"}, "template"),
    ):
        with pytest.raises(PlanError, match=said):
            pair.swap(**given)
    pair.admin("ALTER DATABASE {} ALLOW_CONNECTIONS false", pair.live.name)
    with pytest.raises(PlanError, match="closed for connections, and not by a swap"):
        pair.swap()
    pair.admin("ALTER DATABASE {} ALLOW_CONNECTIONS true", pair.live.name)
    assert pair.state() == before


def test_check_mode_says_what_would_be_carried_over_and_changes_nothing(pair):
    pair.admin("ALTER DATABASE {} CONNECTION LIMIT 17", pair.live.name)
    before = pair.state()
    outcome = pair.swap(check_mode=True)
    assert outcome.changed and outcome.carried == ["connection limit"] and outcome.kept is None
    assert pair.state() == before


def test_the_dated_name_fits_whatever_the_databases_name():
    now = datetime.datetime(2026, 11, 22, 2, 15, 30, tzinfo=datetime.timezone.utc)
    assert kept_name("app", now) == "app_before_20261122t021530z"
    long = kept_name("ü" * 31, now)
    assert long.startswith("üü") and long.endswith("_before_20261122t021530z") and len(long.encode()) <= 63


# --- killed half way ---------------------------------------------------------------------------------------------


def is_closed(pair):
    return not pair.state()[pair.live.name][2]


def test_a_killed_swap_leaves_a_closed_database_that_is_opened_again(pair):
    before = pair.state()
    with held(pair.server, lock_of(pair)):
        process = pair.start()
        wait_for(lambda: is_closed(pair))
        process.kill()
        process.communicate()
    with pytest.raises(psycopg2.OperationalError, match="not currently accepting connections"):
        pair.live.connect()
    with pytest.raises(SwapFailed, match="an earlier swap left"):
        pair.swap(check_mode=True)
    assert reopen(pair.options, pair.live.name) is True
    assert pair.state()[pair.live.name] == before[pair.live.name]
    assert reopen(pair.options, pair.live.name) is False


def test_a_killed_swap_can_be_run_again(pair):
    with held(pair.server, lock_of(pair)):
        process = pair.start()
        wait_for(lambda: is_closed(pair))
        process.kill()
        process.communicate()
    outcome = pair.swap()
    assert outcome.changed and any("an earlier swap had left" in warning for warning in outcome.warnings)
    assert pair.live.scalar("SELECT name FROM place") == "copy"


def test_an_interrupted_swap_puts_everything_back(pair):
    before = pair.state()
    with held(pair.server, lock_of(pair)):
        process = pair.start()
        wait_for(lambda: is_closed(pair))
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "signal SIGTERM received" in errors
    assert pair.state() == before


def test_a_lost_connection_puts_everything_back(pair):
    before = pair.state()
    with held(pair.server, lock_of(pair)):
        process = pair.start()
        wait_for(lambda: is_closed(pair))
        wait_for(
            lambda: pair.admin(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'surefoot:swap' AND query LIKE '%RENAME TO%'"
            )
        )
        errors = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "RENAME TO" in errors
    assert pair.state() == before
