# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded server on real programs, damaged in the ways that machines and people damage it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
import typing as t
import uuid

import psycopg2
import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import (
    EmbeddedServer,
    default_home,
    find_programs,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError
from ansible_collections.surefoot.dbops.plugins.modules import postgresql_embedded
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer

FAST = {"fsync": False, "shared_buffers": "16MB"}


@pytest.fixture
def home() -> t.Iterator[str]:
    """A place for one server, which is removed whatever became of it."""
    path = f"/var/tmp/surefoot-embedded-{uuid.uuid4().hex[:8]}"
    yield path
    if os.path.islink(path):
        os.unlink(path)
    elif os.path.isdir(path):
        EmbeddedServer(path).remove()


@pytest.fixture
def make(home: str, pg_server: PgServer) -> t.Callable[..., EmbeddedServer]:
    """Another object for the same server, as the next task of a playbook would make it."""

    def factory(**options: t.Any) -> EmbeddedServer:
        options.setdefault("bindir", pg_server.bindir)
        options.setdefault("settings", FAST)
        return EmbeddedServer(options.pop("home", home), initdb_options=["--no-sync"], **options)

    return factory


def ask(server: EmbeddedServer, sql: str, database: str = "postgres") -> t.Any:
    login = server.login(database)
    with contextlib.closing(
        psycopg2.connect(
            host=login["login_unix_socket"], port=login["login_port"], user=login["login_user"], dbname=database
        )
    ) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if cursor.description else None


def test_start_stop_start_keeps_data_and_port_and_says_what_changed(make):
    assert make().start(database="platform") is True
    assert make().start(database="platform") is False
    ask(make(), "CREATE TABLE kept AS SELECT 42 AS answer", "platform")
    port = make().port
    assert make().stop() is True
    assert make().stop() is False
    assert make().describe()["running"] is False
    assert make().start() is True
    assert make().port == port
    assert ask(make(), "SELECT answer FROM kept", "platform") == 42
    assert make().remove() is True
    assert make().remove() is False


def test_check_mode_foretells_and_writes_nothing(make, home):
    assert make().start(check=True) is True
    assert not os.path.exists(home)
    make().start()
    pid = make().pid
    assert make().start(check=True) is False
    assert make().start(database="missing", check=True) is True
    assert make(settings={**FAST, "work_mem": "8MB"}).start(check=True) is True
    assert make().stop(check=True) is True
    assert make().remove(check=True) is True
    assert make().pid == pid
    assert ask(make(), "SELECT count(*) FROM pg_database WHERE datname = 'missing'") == 0


def test_killed_postmaster_is_started_again_on_the_same_data(make):
    make().start()
    ask(make(), "CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(make().pid, signal.SIGKILL)
    assert make().start() is True
    assert ask(make(), "SELECT answer FROM kept") == 42


def test_backend_that_outlives_a_killed_postmaster_does_not_block_the_next_start(make):
    server = make()
    server.start()
    busy = psycopg2.connect(
        host=server.socket_dir, port=server.port, user="postgres", dbname="postgres", application_name="busy"
    )
    with busy.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend = cursor.fetchone()[0]
    os.kill(backend, signal.SIGSTOP)
    os.kill(server.pid, signal.SIGKILL)
    assert make().start() is True
    assert ask(make(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'busy'") == 0
    with pytest.raises(ProcessLookupError):
        # A stopped process that was only told to end would still be there.
        for _attempt in range(100):
            os.kill(backend, 0)
            time.sleep(0.05)


def test_pid_file_that_names_a_process_of_someone_else_is_stale(make):
    server = make()
    server.start()
    server.stop()
    with subprocess.Popen(["sleep", "300"], cwd="/", **server.user.popen_options()) as stranger:
        try:
            path = os.path.join(server.data_dir, "postmaster.pid")
            with open(path, "w", encoding="ascii") as stream:
                stream.write(f"{stranger.pid}\n{server.data_dir}\n0\n{server.port}\n{server.socket_dir}\n\n\nready\n")
            if server.user.switch:
                os.chown(path, server.user.uid, server.user.gid)
            assert make().describe()["running"] is False
            assert make().stop() is False
            assert make().start() is True
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_cluster_of_someone_else_is_never_touched(make, pg_server):
    foreign = make(home=f"/var/tmp/surefoot-embedded-{uuid.uuid4().hex[:8]}")
    foreign.start()
    marker = os.path.join(foreign.data_dir, "surefoot_embedded")
    os.rename(marker, marker + ".away")
    try:
        pid = foreign.pid
        for method in ("start", "stop", "remove"):
            with pytest.raises(EnvironmentProblem, match="was not made by this module; it is left alone"):
                getattr(make(data_dir=foreign.data_dir), method)()
        assert foreign.pid == pid
        assert ask(foreign, "SELECT 1") == 1
    finally:
        os.rename(marker + ".away", marker)
        foreign.remove()


@pytest.mark.parametrize("trap", ["link", "file", "writable"])
def test_a_private_directory_that_someone_else_prepared_is_refused(make, home, tmp_path, trap):
    if trap == "link":
        os.symlink(tmp_path, home)
    elif trap == "file":
        with open(home, "w", encoding="ascii"):
            pass
    else:
        os.mkdir(home)
        os.chmod(home, 0o777)
    try:
        with pytest.raises(EnvironmentProblem, match="only this user can write to"):
            make().start()
        assert os.listdir(tmp_path) == []
    finally:
        if trap != "link":
            shutil.rmtree(home) if os.path.isdir(home) else os.unlink(home)


def test_password_is_needed_on_tcp_and_stands_nowhere_but_in_its_file(make, home):
    server = make()
    server.start()
    with open(server.password_file, encoding="ascii") as stream:
        password = stream.read().strip()
    assert stat.S_IMODE(os.stat(server.password_file).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(server.socket_dir).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(server.data_dir).st_mode) == 0o700
    tcp = {"host": "127.0.0.1", "port": server.port, "user": "postgres", "dbname": "postgres"}
    for wrong in ("", "wrong"):
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(**tcp, password=wrong)
    psycopg2.connect(**tcp, password=password).close()
    assert ask(server, "SELECT rolpassword ~ '^SCRAM-SHA-256' FROM pg_authid WHERE rolname = 'postgres'") is True
    assert password not in json.dumps({**server.describe(), **server.describe_programs()})
    for directory, _names, files in os.walk(home):
        for name in files:
            path = os.path.join(directory, name)
            if path != server.password_file and os.path.isfile(path):
                with open(path, "rb") as stream:
                    assert password.encode() not in stream.read(), path


def test_lost_password_file_gets_a_new_password(make):
    make().start()
    with open(make().password_file, encoding="ascii") as stream:
        old = stream.read().strip()
    make().stop()
    os.unlink(make().password_file)
    make().start()
    with open(make().password_file, encoding="ascii") as stream:
        new = stream.read().strip()
    assert new != old
    psycopg2.connect(host="127.0.0.1", port=make().port, user="postgres", dbname="postgres", password=new).close()
    with open(make().log_path, encoding="utf-8") as stream:
        assert new not in stream.read()


def test_changed_settings_take_effect_and_impossible_ones_leave_the_server_running(make):
    make().start()
    assert make(settings={**FAST, "max_prepared_transactions": 7}).start() is True
    assert ask(make(), "SHOW max_prepared_transactions") == "7"
    pid = make().pid
    with pytest.raises(PlanError, match='"fsync" requires a Boolean value'):
        make(settings={"fsync": "perhaps"}).start()
    with pytest.raises(PlanError, match='unrecognized configuration parameter "no_such"'):
        make(settings={"no_such": 1}).start()
    assert make().pid == pid


def test_a_value_with_quotes_and_backslashes_arrives_as_it_was_written(make):
    value = 'it\'s a \\ "test" # no comment'
    make(settings={**FAST, "app.motto": value}).start()
    assert ask(make(), "SHOW app.motto") == value


def test_a_server_that_cannot_start_says_why_in_one_line(make):
    with pytest.raises(EnvironmentProblem) as caught:
        make(settings={**FAST, "shared_preload_libraries": "no_such_library"}).start()
    assert 'could not access file "no_such_library"' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert make().log_path in str(caught.value)


def test_a_taken_port_is_an_error_if_it_was_asked_for_and_avoided_otherwise(make):
    make().start()
    port = make().port
    make().stop()
    with contextlib.closing(socket.socket()) as squatter:
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        with pytest.raises(EnvironmentProblem, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            make(port=port).start()
        assert make().start() is True
        assert make().port != port
        assert ask(make(), "SELECT 1") == 1


def test_data_of_another_major_version_is_refused_by_name(make):
    make().start()
    major = make().major
    other = 14 if major != 14 else 15
    with pytest.raises(EnvironmentProblem, match=f"was made by PostgreSQL {major}, not {other}"):
        make(version=other, bindir=None).start()


def test_database_name_is_quoted(make):
    name = "we\"ird; DROP's name"
    assert make().start(database=name) is True
    assert make().start(database=name) is False
    assert ask(make(), "SELECT current_database()", name) == name


def test_half_made_data_of_a_killed_initdb_is_made_again(make):
    server = make()
    server.start()
    server.remove()
    os.mkdir(server.home, 0o700)
    leftover = os.path.join(server.home, ".data.surefoot_embedded")
    os.makedirs(os.path.join(leftover, "base"))
    assert make().start() is True
    assert not os.path.exists(leftover)


def test_two_starts_at_once_make_one_server(make):
    servers = [make(), make()]
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import EmbeddedServer\n"
        "s = EmbeddedServer(sys.argv[2], bindir=sys.argv[3], settings={'fsync': False}); print(s.start(), s.pid)\n"
    )
    import sys

    import ansible_collections  # the tree that the root conftest put on the path

    tree = os.path.dirname(next(iter(ansible_collections.__path__)))
    argv = [sys.executable, "-c", script, tree, servers[0].home, servers[0].programs().bindir]
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _server in servers]
    answers = sorted(child.communicate(timeout=120)[0].split() for child in children)
    assert [answer[0] for answer in answers] == ["False", "True"]
    assert answers[0][1] == answers[1][1] == str(servers[0].pid)


def test_server_never_runs_as_root(pg_server):
    uid = os.stat(f"/proc/{pg_server.pid}").st_uid
    assert uid != 0
    assert uid == os.stat(pg_server.data_dir).st_uid


@pytest.mark.versions
def test_server_is_the_version_that_its_programs_say_and_has_contrib(pg_server: PgServer, database: Database):
    assert int(database.scalar("SHOW server_version_num")) == pg_server.version
    database.query("CREATE EXTENSION pgcrypto")
    assert database.scalar("SELECT encode(digest('a', 'sha256'), 'hex') LIKE 'ca978112%%'", ()) is True
    database.query("CREATE EXTENSION pg_stat_statements")
    assert database.scalar("SELECT count(*) >= 0 FROM pg_stat_statements") is True
    assert database.scalar("SHOW max_prepared_transactions") == "5"
    assert database.scalar("SHOW wal_level") == "logical"
    assert database.scalar("SELECT upper('ä') || pg_encoding_to_char(encoding) FROM pg_database LIMIT 1") == "ÄUTF8"


def test_module_reports_changes_and_facts_without_the_password(tmp_path, capfd, monkeypatch, pg_server):
    home = default_home(str(tmp_path))
    monkeypatch.setenv("SUREFOOT_PROJECT", str(tmp_path))

    def call(**options: t.Any) -> dict[str, t.Any]:
        params = {"bindir": pg_server.bindir, "settings": FAST, **options}
        with patch_module_args(params), pytest.raises(SystemExit):
            postgresql_embedded.main()
        out: dict[str, t.Any] = json.loads(capfd.readouterr().out)
        return out

    try:
        foretold = call(_ansible_check_mode=True)
        assert foretold["changed"] is True and not os.path.exists(home)
        first = call(database="platform")
        assert first["changed"] is True and first["running"] is True
        with contextlib.closing(psycopg2.connect(first["url"])) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT current_database()")
            assert cursor.fetchone() == ("platform",)
        assert call(database="platform")["changed"] is False
        with open(first["password_file"], encoding="ascii") as stream:
            assert stream.read().strip() not in json.dumps(first)
        failed = call(settings={"port": 1})
        assert failed["failed"] is True and "Use the options port and data_dir" in failed["msg"]
        assert call(state="stopped")["running"] is False
        assert call(state="absent")["changed"] is True
        assert not os.path.exists(home)
    finally:
        EmbeddedServer(home).remove()


def test_programs_found_without_options_are_the_newest_of_this_machine(monkeypatch):
    monkeypatch.delenv("SUREFOOT_PG_SEARCH", raising=False)
    found = find_programs()
    assert os.path.realpath(found.bindir) == found.bindir
    assert all(os.access(found.path(name), os.X_OK) for name in ("initdb", "pg_ctl", "postgres"))
