# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real PgBouncer, paused, resumed and reconnected; and what that does to prepared statements."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing as t

import psycopg2
import psycopg2.errors
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    EnvironmentProblem,
    PlanError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation
from ansible_collections.surefoot.dbops.plugins.module_utils._pgbouncer import PoolerError
from ansible_collections.surefoot.dbops.plugins.modules import pgbouncer, pgbouncer_info
from ansible_collections.surefoot.dbops.tests.support.migrations import Background, environment, wait_until
from ansible_collections.surefoot.dbops.tests.support.pgbouncer import (
    NOBODY,
    PASSWORDS,
    PROGRAM,
    READER,
    Bouncer,
    running_bouncer,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")

# A name that must be quoted on the console.
APP = "App-1.x"


@pytest.fixture
def session_pool(database: Database) -> t.Iterator[Bouncer]:
    with running_bouncer(database.server, {APP: database.name, "*": "postgres"}, "session") as bouncer:
        yield bouncer


@pytest.fixture
def transaction_pool(database: Database) -> t.Iterator[Bouncer]:
    # One server connection, so that each client gets it.
    with running_bouncer(database.server, {APP: database.name}, "transaction", pool_size=1) as bouncer:
        yield bouncer


def call(
    params: dict[str, t.Any], state: str = "paused", *, database: str = APP, check: bool = False, **options: t.Any
) -> dict[str, t.Any]:
    """The module in this process; what would be its results."""
    given = {"database": database, "state": state, "timeout": "20s", "run_dir": None, **params, **options}
    return pgbouncer.run(Invocation(given, check, True, name="pgbouncer"))


def look(params: dict[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
    given = {"database": APP, "max_wait": "1s", "run_dir": None, **params, **options}
    return pgbouncer_info.run(Invocation(given, False, False, name="pgbouncer_info"))


def fails(kind: type[SurefootError], params: dict[str, t.Any], state: str = "paused", **more: t.Any) -> t.Any:
    with pytest.raises(kind) as caught:
        call(params, state, **more)
    text = str(caught.value)
    assert "\n" not in text and not any(word in text for word in PASSWORDS.values())
    return caught.value


@contextlib.contextmanager
def client(bouncer: Bouncer, database: str = APP) -> t.Iterator[t.Any]:
    with contextlib.closing(bouncer.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        yield cursor


# --- states


def test_a_pause_that_returned_at_once_is_not_taken_for_one(session_pool: Bouncer) -> None:
    session_pool.command(f'WAIT_CLOSE "{APP}"')  # after this, PAUSE of PgBouncer 1.18 does not wait
    with client(session_pool):
        error = fails(PoolerError, session_pool.params(), timeout="1s")
        assert error.code == "pooler_busy" and not session_pool.paused(APP)


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_paused_database_keeps_its_clients_waiting_and_a_resumed_one_serves_them(
    database: Database, mode: str
) -> None:
    with running_bouncer(database.server, {APP: database.name}, mode) as bouncer:
        params = bouncer.params()
        with client(bouncer):
            pass
        foreseen = call(params, check=True)
        assert foreseen["changed"] and not bouncer.paused(APP) and foreseen["evidence"] == []
        done = call(params)
        assert done["changed"] and done["paused"] and bouncer.paused(APP)
        assert foreseen["diff"] == done["diff"]
        assert done["diff"]["before"] == {"database": APP, "paused": False}
        assert done["diff"]["after"] == {"database": APP, "paused": True}
        assert [(item["criterion"], item["verdict"]) for item in done["evidence"]] == [("pgbouncer.paused", "pass")]
        again = call(params)
        assert not again["changed"] and again["paused"]
        assert not call(params, check=True)["changed"]

        def ask() -> t.Any:
            with client(bouncer) as cursor:
                cursor.execute("SELECT 41 + 1")
                return cursor.fetchone()[0]

        query = Background(ask)
        wait_until(lambda: look(params)["clients_waiting"] == 1, "the client waits")
        assert query.running
        assert call(params, "resumed", check=True)["changed"] and bouncer.paused(APP)
        assert call(params, "resumed")["changed"] and not bouncer.paused(APP)
        assert query.result() == 42
        assert not call(params, "resumed")["changed"]


def test_a_busy_session_pool_is_not_paused_for_longer_than_the_timeout_and_is_resumed(
    session_pool: Bouncer, tmp_path: pathlib.Path
) -> None:
    with client(session_pool) as cursor:
        error = fails(PoolerError, session_pool.params(), timeout="1s", run_dir=str(tmp_path))
        assert error.code == "pooler_busy" and "1 server connection" in str(error) and "it is resumed" in str(error)
        assert not session_pool.paused(APP)
        assert error.results["evidence"][0]["verdict"] == "fail"
        cursor.execute("SELECT 1")  # and goes on
    with client(session_pool) as cursor:  # others do, too
        cursor.execute("SELECT 1")
    assert '"pgbouncer.paused"' in (tmp_path / "evidence.jsonl").read_text(encoding="utf-8")


def test_a_transaction_is_waited_for(transaction_pool: Bouncer) -> None:
    with contextlib.closing(transaction_pool.connect(APP)) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        pause = Background(lambda: call(transaction_pool.params()))
        wait_until(lambda: transaction_pool.paused(APP), "it is asked to pause")
        assert pause.running
        cursor.execute("COMMIT")
        assert pause.result()["servers_busy"] == 0


def test_a_pause_that_somebody_else_ends_is_not_taken_for_one(session_pool: Bouncer) -> None:
    with client(session_pool):
        pause = Background(lambda: call(session_pool.params()))
        wait_until(lambda: session_pool.paused(APP), "it is asked to pause")
        session_pool.command(f'RESUME "{APP}"')
        with pytest.raises(PoolerError, match="somebody else resumed it"):
            pause.result()


def test_the_pause_of_somebody_else_is_not_taken_back(session_pool: Bouncer) -> None:
    with client(session_pool):
        Background(lambda: session_pool.command(f'PAUSE "{APP}"'))  # does not return, also when it is resumed
        wait_until(lambda: session_pool.paused(APP), "somebody pauses")
        error = fails(PoolerError, session_pool.params(), timeout="500ms")
        assert "it is resumed" not in str(error) and session_pool.paused(APP)


def test_a_pooler_that_dies_meanwhile_is_said_not_to_answer(session_pool: Bouncer) -> None:
    with client(session_pool):
        pause = Background(lambda: call(session_pool.params()))
        wait_until(lambda: session_pool.paused(APP), "it is asked to pause")
        session_pool.process.kill()
        with pytest.raises(PoolerError, match=f'may STILL BE PAUSED.*RESUME "{APP}"'):
            pause.result()


# --- refusals


def test_who_may_only_look_is_refused_with_the_remedy(session_pool: Bouncer) -> None:
    for check in (False, True):
        error = fails(PoolerError, session_pool.params(READER), check=check)
        assert error.code == "pooler_privilege" and "admin_users" in str(error)
    assert look(session_pool.params(READER))["paused"] is False
    error = fails(ConnectionFailed, session_pool.params(NOBODY))
    assert "admin_users" in str(error)
    wrong = {**session_pool.params(), "login_password": PASSWORDS[READER]}
    assert "password" in str(fails(ConnectionFailed, wrong))


def test_an_unknown_database_is_refused_and_not_made_up(session_pool: Bouncer) -> None:
    # PgBouncer itself takes PAUSE of a name that only its entry * covers, says PAUSE, and makes the database up.
    for name in ("App-1", "app-1.x", "nowhere", "pgbouncer", 'a" b'):
        for state in ("paused", "resumed", "reconnected"):
            error = fails(PlanError, session_pool.params(), state, database=name)
            assert error.code == "unknown_database" and APP in str(error)
    assert {row["name"] for row in session_pool.show("DATABASES")} == {APP, "pgbouncer"}


def test_what_is_not_the_console_is_refused(session_pool: Bouncer, database: Database) -> None:
    for params in (session_pool.params(NOBODY, APP), database.params):
        error = fails(EnvironmentProblem, params)
        assert error.code == "not_pgbouncer" and "login_db: pgbouncer" in str(error)


def test_nobody_there_is_said_in_one_line(session_pool: Bouncer) -> None:
    session_pool.process.kill()
    session_pool.process.wait(10)
    assert "Connection refused" in str(fails(ConnectionFailed, session_pool.params()))


def test_without_login_db_the_console_is_meant(session_pool: Bouncer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATABASE", "postgres")
    assert look({**session_pool.params(), "login_db": None})["version"]


def test_a_pause_of_everything_is_not_hidden(session_pool: Bouncer) -> None:
    if session_pool.version < (1, 22):
        pytest.skip("this PgBouncer has no SHOW STATE, so that PAUSE without a name cannot be seen")
    session_pool.command("PAUSE")
    assert look(session_pool.params())["paused"]
    assert "without a name" in str(fails(PoolerError, session_pool.params(), "resumed"))


# --- who waits


def test_clients_that_queue_are_counted(transaction_pool: Bouncer) -> None:
    with contextlib.closing(transaction_pool.connect(APP)) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")

        def ask() -> None:
            with client(transaction_pool):
                pass

        queue = [Background(ask) for _client in range(2)]
        params = transaction_pool.params(READER)
        found = wait_until(
            lambda: next(
                iter([found] if (found := look(params, max_wait="1ms"))["clients_waiting"] == 2 else []), None
            ),
            "two clients wait",
        )
        assert found["servers_busy"] == 1 and found["pool_mode"] == "transaction"
        assert found["pools"][0]["database"] == APP and "maxwait" in found["pools"][0]
        late = wait_until(
            lambda: next(
                (item for item in look(params, max_wait="1ms")["evidence"] if item["verdict"] == "fail"), None
            ),
            "they wait too long",
        )
        assert late["measured"]["clients_waiting"] == 2
        cursor.execute("COMMIT")
        for one in queue:
            one.result()
    assert look(params)["evidence"][0]["verdict"] == "pass"


# --- prepared statements


def _prepare(cursor: t.Any) -> None:
    cursor.execute("PREPARE everything AS SELECT * FROM things")
    cursor.execute("EXECUTE everything")


def _change(database: Database) -> None:
    database.query("ALTER TABLE things ALTER COLUMN n TYPE bigint")


@pytest.fixture
def things(database: Database) -> Database:
    database.query("CREATE TABLE things (n int); INSERT INTO things VALUES (1)")
    return database


def test_session_pooling_a_connected_client_stays_broken_and_a_new_one_is_not(
    session_pool: Bouncer, things: Database
) -> None:
    params = session_pool.params()
    assert not call(params, "reconnected")["changed"]  # no server connection
    with client(session_pool) as cursor:
        _prepare(cursor)
        _change(things)
        with pytest.raises(psycopg2.errors.FeatureNotSupported, match="cached plan must not change result type"):
            cursor.execute("EXECUTE everything")
        error = fails(PoolerError, params, "reconnected", timeout="1s")
        assert "1 server connection from before" in str(error) and "session pooling" in str(error)
        assert error.results["changed"]
        # Its server connection is the one from before, until it disconnects.
        with pytest.raises(psycopg2.errors.FeatureNotSupported):
            cursor.execute("EXECUTE everything")
        with client(session_pool) as other:
            _prepare(other)
        cursor.execute("DEALLOCATE ALL")  # what an application can do itself
        _prepare(cursor)
    assert call(params, "reconnected")["evidence"][0]["verdict"] == "pass"


def test_transaction_pooling_is_healed_by_reconnecting(transaction_pool: Bouncer, things: Database) -> None:
    params = transaction_pool.params()
    with client(transaction_pool) as cursor:
        _prepare(cursor)
        _change(things)
        for _again in range(2):
            with pytest.raises(psycopg2.errors.FeatureNotSupported, match="cached plan must not change result type"):
                cursor.execute("EXECUTE everything")
        # Another client gets the same server connection, and the statement with it.
        with client(transaction_pool) as other, pytest.raises(psycopg2.errors.FeatureNotSupported):
            other.execute("EXECUTE everything")
        assert call(params, "reconnected", check=True)["changed"]
        done = call(params, "reconnected")
        assert done["changed"] and done["servers_to_close"] == 0
        with pytest.raises(psycopg2.errors.InvalidSqlStatementName):
            cursor.execute("EXECUTE everything")  # of SQL's PREPARE the pooler knows nothing: the client prepares again
        _prepare(cursor)


def test_a_change_under_a_pause_meets_no_client(transaction_pool: Bouncer, things: Database) -> None:
    params = transaction_pool.params()
    with client(transaction_pool) as cursor:
        _prepare(cursor)
        call(params)
        _change(things)
        # The pause itself closed the server connections.
        assert not call(params, "reconnected")["changed"]
        call(params, "resumed")
        _prepare(cursor)
        cursor.execute("SELECT pg_typeof(n)::text FROM things")
        assert cursor.fetchone() == ("bigint",)


# --- from a playbook

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  module_defaults:
    surefoot.dbops.pgbouncer: "{{ console }}"
  tasks:
"""
PAUSE = '    - {surefoot.dbops.pgbouncer: {state: paused}, environment: "{{ elsewhere }}"}\n'
RESUME = '    - {surefoot.dbops.pgbouncer: {state: resumed}, environment: "{{ elsewhere }}"}\n'
SLEEP = "    - {ansible.builtin.command: 'sh -c \"echo > {{ here }}/asleep; sleep {{ seconds }}\"'}\n"
WAYS = pytest.mark.parametrize("way", ["worker", "module"])


class Playbook:
    """A real ansible-playbook, in a process group of its own."""

    def __init__(self, directory: pathlib.Path, bouncer: Bouncer, tasks: str, *arguments: str, **more: t.Any) -> None:
        self.directory = directory
        variables = {
            "console": {**bouncer.params(), "database": APP, "timeout": "60s"},
            "here": str(directory),
            "seconds": 60,
            "elsewhere": {"SUREFOOT_TEST": "1"} if more.pop("way", "worker") == "module" else {},
            **more,
        }
        (directory / "play.yml").write_text(PLAY + tasks, encoding="utf-8")
        (directory / "vars.json").write_text(json.dumps(variables), encoding="utf-8")
        self.process = subprocess.Popen(
            [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "play.yml"]
            + ["-e", "@vars.json", *arguments],
            cwd=directory,
            env=environment(
                LC_ALL="C.UTF-8",
                ANSIBLE_HOME=str(directory / "home"),
                ANSIBLE_REMOTE_TEMP=str(directory / "remote"),
                ANSIBLE_NOCOLOR="1",
                ANSIBLE_PYTHON_INTERPRETER=sys.executable,
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> str:
        output, _nothing = self.process.communicate(timeout=120)
        assert not any(word in output for word in PASSWORDS.values())
        return output

    def is_asleep(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()[0]
        return (self.directory / "asleep").exists()

    def end(self) -> None:
        """Whatever of it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=60)


@WAYS
def test_from_a_playbook_it_does_the_same_and_shows_no_secret(
    session_pool: Bouncer, tmp_path: pathlib.Path, way: str
) -> None:
    output = Playbook(tmp_path, session_pool, PAUSE + PAUSE + RESUME + RESUME, "-vvv", "--diff", way=way).wait()
    assert "changed=2" in output and "failed=0" in output, output
    assert ("AnsiballZ_pgbouncer" in output) == (way == "module")
    assert not any(word in session_pool.log_text() for word in PASSWORDS.values())
    assert not session_pool.paused(APP)
    with client(session_pool):
        output = Playbook(
            tmp_path, session_pool, PAUSE.replace("paused}", "paused, timeout: 1s}"), "-vvv", way=way
        ).wait()
    assert "pooler_busy" in output and "failed=1" in output and not session_pool.paused(APP), output


@pytest.mark.parametrize("whom", ["ansible-playbook", "all of it"])
@pytest.mark.parametrize("when", ["it waits", "it is paused"])
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_killed_playbook_leaves_nothing_paused(
    session_pool: Bouncer, tmp_path: pathlib.Path, when: str, whom: str
) -> None:
    holder = session_pool.connect(APP) if when == "it waits" else None
    if holder is not None:
        holder.cursor().execute("SELECT 1")
    playbook = Playbook(tmp_path, session_pool, PAUSE + SLEEP)
    try:
        wait_until(lambda: session_pool.paused(APP), "it is asked to pause", 60)
        if holder is None:
            wait_until(playbook.is_asleep, "the pause is over", 60)
        if whom == "all of it":
            os.killpg(playbook.process.pid, signal.SIGKILL)
        else:
            playbook.process.kill()
        wait_until(lambda: not session_pool.paused(APP), "it is resumed", 60)
    finally:
        playbook.end()
        if holder is not None:
            holder.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_module_that_is_told_to_stop_resumes(
    session_pool: Bouncer, tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    with client(session_pool):
        playbook = Playbook(tmp_path, session_pool, PAUSE, way="module")
        try:
            wait_until(lambda: session_pool.paused(APP), "it is asked to pause", 60)
            os.killpg(playbook.process.pid, number)
            wait_until(lambda: not session_pool.paused(APP), "it is resumed", 60)
        finally:
            playbook.end()


def test_a_playbook_that_forgets_to_resume_is_resumed_after_it(session_pool: Bouncer, tmp_path: pathlib.Path) -> None:
    output = Playbook(tmp_path, session_pool, PAUSE).wait()
    assert "changed=1" in output, output
    wait_until(lambda: not session_pool.paused(APP), "it is resumed", 60)


def test_the_guardian_of_a_resumed_pool_leaves_the_pause_of_somebody_else_alone(
    session_pool: Bouncer, tmp_path: pathlib.Path
) -> None:
    playbook = Playbook(tmp_path, session_pool, PAUSE + RESUME + SLEEP)
    try:
        wait_until(playbook.is_asleep, "it has resumed", 60)
        wait_until(lambda: _guardians(tmp_path) == 0, "the guardian has gone", 60)
        session_pool.command(f'PAUSE "{APP}"')
        # One that finds it paused already is not to resume it, either.
        (tmp_path / "second").mkdir()
        output = Playbook(tmp_path / "second", session_pool, PAUSE).wait()
        assert "changed=0" in output, output
    finally:
        playbook.end()
    wait_until(lambda: _guardians(tmp_path) == 0, "no guardian is left", 60)
    time.sleep(1)  # not a measurement: what must not happen would have happened by now
    assert session_pool.paused(APP)


def _guardians(home: pathlib.Path) -> int:
    """Guardians left by playbooks of this test: told by the environment they were given."""
    found = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = pathlib.Path(entry.path, "cmdline").read_bytes().split(b"\0")
                mine = f"ANSIBLE_HOME={home}".encode() in pathlib.Path(entry.path, "environ").read_bytes()
                found += mine and any(word.endswith(b"plugin_utils._guardian") for word in words)
    return found


ROLE = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    surefoot_pgbouncer: "{{ console }}"
    surefoot_run_started: {run_id: r1, run_dir: "{{ here }}/run"}
  tasks:
    - ansible.builtin.include_role: {name: surefoot.dbops.surefoot_pgbouncer, tasks_from: "{{ item }}"}
      loop: [pause, reconnect, resume, main]
    - ansible.builtin.include_role: {name: surefoot.dbops.surefoot_pgbouncer, tasks_from: "{{ item }}"}
      loop: [pause, reconnect, resume, main]
      vars: {surefoot_pgbouncer_console: {}}
    - ansible.builtin.debug: {msg: "waiting {{ surefoot_pgbouncer_pools is defined }}"}
"""


def test_the_role_pauses_reconnects_and_resumes_and_does_nothing_where_nothing_is_set(
    session_pool: Bouncer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PLAY", ROLE)
    output = Playbook(tmp_path, session_pool, "", "-vvv").wait()
    assert "changed=2" in output and "failed=0" in output and "skipped=4" in output, output
    records = (tmp_path / "run" / "evidence.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["criterion"].partition(".")[2] for line in records] == [
        "paused",
        "reconnected",
        "resumed",
        "clients_waiting",
    ]
    assert not session_pool.paused(APP)
