# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No password and no key used in a run is found anywhere afterwards, whether the run succeeded or failed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import typing as t
import urllib.parse
import uuid

import pytest

from ansible_collections.surefoot.dbops.tests.support.migrations import (
    MigrationSet,
    Outcome,
    environment,
    run_module,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set", secret_variables=["key", "url"])


class Secrets:
    """Values nobody else uses, and a login whose password is one of them."""

    def __init__(self, database: Database) -> None:
        mark = uuid.uuid4().hex
        self.database = database
        self.key = f"key-{mark}-it's \\ odd"
        self.url = f"mongodb://user:pass-{mark}@mongo.example.com:27017/db"
        self.password = f"pw-{mark}/@: %"
        self.literal = f"literal-{mark}"
        self.mark = mark
        self.role = f"r_{database.name}"

    @property
    def given(self) -> dict[str, str]:
        return {"key": self.key, "url": self.url}

    @property
    def parts(self) -> dict[str, t.Any]:
        """Connection options with the password."""
        return {
            "login_host": "127.0.0.1",
            "login_port": self.database.server.port,
            "login_user": self.role,
            "login_password": self.password,
            "login_db": self.database.name,
            "ssl_mode": "disable",
        }

    @property
    def login_url(self) -> str:
        quoted = urllib.parse.quote(self.password, safe="")
        return f"postgresql://{self.role}:{quoted}@127.0.0.1:{self.database.server.port}/{self.database.name}?sslmode=disable"

    def in_text(self, text: str) -> list[str]:
        """The marks found; all secrets contain the mark, in any spelling a program might give it."""
        spellings = (self.mark, base64.b64encode(self.mark.encode()).decode()[:24], self.mark.encode().hex())
        return [text[max(0, text.find(s) - 60) : text.find(s) + 40] for s in spellings if s in text]


@pytest.fixture
def secrets(database: Database) -> t.Iterator[Secrets]:
    found = Secrets(database)
    with contextlib.closing(database.connect()) as admin, admin.cursor() as cursor:
        # As a careful administrator would: the password itself never reaches the server in clear.
        done = subprocess.run(
            [
                f"{database.server.bindir}/psql",
                "-X",
                "-q",
                "-d",
                database.dsn,
                "-c",
                f"CREATE ROLE {found.role} LOGIN SUPERUSER",
            ],
            check=True,
            capture_output=True,
        )
        assert done.returncode == 0
        from psycopg2.extensions import encrypt_password

        cursor.execute(
            f"ALTER ROLE {found.role} PASSWORD %s",
            (encrypt_password(found.password, found.role, admin, "scram-sha-256"),),
        )
        cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    yield found
    with contextlib.closing(database.server.connect(database.name)) as admin, admin.cursor() as cursor:
        cursor.execute(f"DROP OWNED BY {found.role} CASCADE; DROP ROLE {found.role}")


class Watcher:
    """Samples pg_stat_activity while a run works."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stop = threading.Event()
        self.seen: list[str] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        with contextlib.closing(self._database.server.connect()) as connection, connection.cursor() as cursor:
            while not self._stop.is_set():
                cursor.execute("SELECT array_agg(a::text) FROM pg_stat_activity a WHERE pid <> pg_backend_pid()")
                self.seen.extend((cursor.fetchone() or ([],))[0] or [])
                time.sleep(0.005)


def _everything_readable(secrets: Secrets, *directories: pathlib.Path) -> dict[str, str]:
    """Every place a secret could have been left in, as text."""
    database = secrets.database
    found = {"server log": database.server.log_text()}
    tables = database.query(
        "SELECT quote_ident(relname) FROM pg_class WHERE relnamespace = to_regnamespace('surefoot') AND relkind = 'r'"
    )
    for (table,) in tables:
        rows = database.query(f"SELECT t::text FROM surefoot.{table} t")
        found[f"ledger table {table}"] = "\n".join(row[0] for row in rows)
    found["pg_stat_statements"] = "\n".join(
        row[0] or "" for row in database.query("SELECT query FROM pg_stat_statements")
    )
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                if path.suffix == ".gz":
                    import gzip

                    content = gzip.decompress(content)
                found[str(path)] = content.decode("utf-8", errors="replace")
    return found


def nothing_is_found(secrets: Secrets, outcome: Outcome, watcher: Watcher, run_dir: pathlib.Path) -> None:
    places = _everything_readable(secrets, run_dir)
    places["stdout"], places["stderr"] = outcome.stdout, outcome.stderr
    places["pg_stat_activity"] = "\n".join(watcher.seen)
    leaks = {name: found for name, text in places.items() if (found := secrets.in_text(text))}
    assert leaks == {}
    assert places["server log"] and watcher.seen, "what was searched is not empty"


@pytest.fixture
def run_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    return directory


def _run(plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path, **params: t.Any) -> tuple[Outcome, Watcher]:
    options = {"secret_variables": secrets.given, "run_dir": str(run_dir), **params}
    connection = options.pop("connection", secrets.parts)
    with Watcher(secrets.database) as watcher:
        outcome = run_module(plan, connection, diff=True, **options)
    return outcome, watcher


SESSION = {"session_settings": {"app.key": "key"}}


@pytest.mark.parametrize("by_url", [False, True])
def test_nothing_is_found_after_success(
    plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path, by_url: bool
) -> None:
    plan.add(
        "001",
        "CREATE TABLE kept(v text, at timestamptz DEFAULT now());\nINSERT INTO kept VALUES (md5(:'key'));\n"
        "UPDATE kept SET v = md5(:'url') WHERE v = md5(:'key');\nSELECT pg_sleep(0.2);\n"
        "SELECT length(:'key') > 0 AS there;",
        verify=[
            {"name": "kept", "query": "SELECT count(*) FROM kept WHERE v = md5(:'url')", "expect": {"scalar": 1}},
            {"name": "refused", "statement": "INSERT INTO kept VALUES (md5(:'key'), 'x')", "expect_error": "22007"},
        ],
    )
    plan.add("002", "INSERT INTO kept SELECT md5(current_setting('app.key'));", **SESSION)
    plan.add("003", steps=[{"table": "public.b", "key": "id", "set": {"v": "md5(:'key')"}, "batch": 3}])
    secrets.database.query("CREATE TABLE b(id int PRIMARY KEY, v text); INSERT INTO b SELECT generate_series(1, 10)")
    connection = {"login_url": secrets.login_url} if by_url else secrets.parts
    outcome, watcher = _run(plan, secrets, run_dir, connection=connection)
    assert outcome.result.get("applied") == ["001", "002", "003"], outcome
    nothing_is_found(secrets, outcome, watcher, run_dir)


FAILURES = {
    "failing statement": ("CREATE TABLE k(v text);\nINSERT INTO k SELECT :'key' FROM nowhere;", {}),
    "constraint violation": (
        "CREATE TABLE k(v text UNIQUE);\nINSERT INTO k VALUES (:'key');\nINSERT INTO k VALUES (:'key');",
        {},
    ),
    "check violation": ("CREATE TABLE k(v text CHECK (v = 'x'));\nINSERT INTO k VALUES (:'key');", {}),
    "not null violation": ("CREATE TABLE k(v text, w int NOT NULL);\nINSERT INTO k VALUES (:'url', NULL);", {}),
    "cast": ("SELECT (:'key')::int;", {}),
    "cast of a setting": ("SELECT current_setting('app.key')::int;", SESSION),
    "constraint violation by a setting": (
        "CREATE TABLE k(v text CHECK (v = 'x'));\nINSERT INTO k VALUES (current_setting('app.key'));",
        SESSION,
    ),
    "constraint violation outside a transaction": (
        "CREATE TABLE k(v text CHECK (v = 'x'));\nINSERT INTO k VALUES (:'key');",
        {"transaction": False},
    ),
    "raised by a function": (
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 / 0; END $$;\nSELECT f(), :'key';",
        SESSION,
    ),
    "statement timeout": ("SET LOCAL statement_timeout = '100ms';\nSELECT pg_sleep(5), :'key';", {}),
    "refused place": ("CREATE ROLE z PASSWORD :'key';", {}),
}


@pytest.mark.parametrize("case", FAILURES)
def test_nothing_is_found_after_a_failure(
    plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path, case: str
) -> None:
    text, fields = FAILURES[case]
    plan.add("001", text, **fields)
    outcome, watcher = _run(plan, secrets, run_dir)
    assert outcome.result["failed"], outcome.stdout
    assert "Traceback" not in outcome.stderr + outcome.stdout
    nothing_is_found(secrets, outcome, watcher, run_dir)


@pytest.mark.parametrize(
    "text",
    [
        "CREATE ROLE z PASSWORD '{literal}' NONSENSE;",
        "CREATE ROLE z PASSWORD '{literal}",
        "CREATE ROLE z ENCRYPTED PASSWORD $x${literal}$x$ NONSENSE;",
        "ALTER USER nobody_of_that_name WITH PASSWORD E'{literal}';",
        "CREATE USER MAPPING FOR CURRENT_USER SERVER nowhere OPTIONS (user 'x', password '{literal}');",
        "CREATE SUBSCRIPTION s CONNECTION 'host=nowhere password={literal}' PUBLICATION p;",
        "SELECT dblink_connect('postgresql://u:{literal}@nowhere/db');",
    ],
    ids=["syntax", "open string", "dollar", "no role", "user mapping", "subscription", "url"],
)
def test_password_literal_of_a_file_is_masked_in_messages_diff_and_ledger(
    plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path, text: str
) -> None:
    plan.add("001", f"SELECT 1;\n{text.format(literal=secrets.literal)}")
    outcome, _watcher = _run(plan, secrets, run_dir)
    assert outcome.result["failed"] and "001.sql:2:" in outcome.result["msg"]
    places = {**_everything_readable(secrets, run_dir), "stdout": outcome.stdout, "stderr": outcome.stderr}
    for theirs in ("server log", "pg_stat_statements"):  # the file's author sent it there
        places.pop(theirs)
    assert {name: found for name, content in places.items() if (found := secrets.in_text(content))} == {}


@pytest.mark.parametrize(
    "change",
    [
        {"login_password": "wrong-{mark}"},
        {"login_host": "127.0.0.1", "login_port": 1},
        {"login_db": "no_such_database"},
        {"ssl_mode": "verify-full", "ca_cert": "/nowhere"},
        {"session_role": "no_such_role"},
    ],
    ids=["wrong password", "no server", "no database", "no tls", "no role"],
)
def test_nothing_is_found_after_a_connection_that_failed(
    plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path, change: dict[str, t.Any]
) -> None:
    plan.add("001", "SELECT 1;")
    changed = {
        key: value.format(mark=secrets.mark) if isinstance(value, str) else value for key, value in change.items()
    }
    outcome, watcher = _run(plan, secrets, run_dir, connection={**secrets.parts, **changed})
    assert (
        outcome.result["failed"]
        and outcome.result["error"]["code"] == "connection"
        and outcome.result["error"]["remedy"]
    )
    nothing_is_found(secrets, outcome, watcher, run_dir)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:{password}@host:notaport/db",
        "postgres:/user:{password}@host/db",
        "postgresql://user:{password}/@half@host:5432/db",
        "mysql://user:{password}@host/db",
        "host=x password={password}",
        "postgresql://user:{password}@[::1/db",
        "postgresql://user:{password}@127.0.0.1:1/db?nonsense=1",
    ],
)
def test_nothing_is_found_after_a_malformed_url(
    plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path, url: str
) -> None:
    plan.add("001", "SELECT 1;")
    outcome, watcher = _run(plan, secrets, run_dir, connection={"login_url": url.format(password=f"pw-{secrets.mark}")})
    assert outcome.result["failed"] and outcome.result["error"]["code"] in ("plan", "connection")
    nothing_is_found(secrets, outcome, watcher, run_dir)


def test_missing_key_is_named_and_nothing_else_is_found(
    plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path
) -> None:
    plan.add("001", "SELECT :'key', :'url';", **SESSION)
    outcome, watcher = _run(plan, secrets, run_dir, secret_variables={"url": secrets.url})
    assert outcome.result["failed"] and "key" in outcome.result["msg"] and "secret_variables" in outcome.result["msg"]
    nothing_is_found(secrets, outcome, watcher, run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_found_in_the_output_of_a_playbook_at_its_most_talkative(
    plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path, tmp_path: pathlib.Path, fails: bool
) -> None:
    plan.add(
        "001",
        "CREATE TABLE k(v text UNIQUE);\nINSERT INTO k VALUES (:'key');\n" + "INSERT INTO k VALUES (:'key');" * fails,
    )
    variables = {"url": secrets.login_url, "secrets": secrets.given}
    (tmp_path / "vars.json").write_text(json.dumps(variables), encoding="utf-8")
    task = {
        "surefoot.dbops.postgresql_migration": {
            "login_url": "{{ url }}",
            "path": plan.path,
            "secret_variables": "{{ secrets }}",
            "run_dir": str(run_dir),
        },
        "register": "result",
    }
    show = {"ansible.builtin.debug": {"var": "result"}, "when": "true"}
    for environment_of_task in ({}, {"SUREFOOT_TEST": "a module of its own"}):
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars_files": [str(tmp_path / "vars.json")],
            "tasks": [{"block": [{**task, "environment": environment_of_task}], "always": [show]}],
        }
        (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
        with Watcher(secrets.database) as watcher:
            done = subprocess.run(
                [
                    os.path.join(os.path.dirname(sys.executable), "ansible-playbook"),
                    "-i",
                    "localhost,",
                    "-vvvv",
                    "--diff",
                    str(tmp_path / "play.yml"),
                ],
                env=environment(
                    LC_ALL="C.UTF-8",
                    ANSIBLE_PYTHON_INTERPRETER=sys.executable,
                    ANSIBLE_HOME=str(tmp_path / "home"),
                    ANSIBLE_LOG_PATH=str(tmp_path / "log"),
                ),
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
        assert (done.returncode != 0) == fails, done.stdout
        outcome = Outcome(done.returncode, done.stdout + (tmp_path / "log").read_text(encoding="utf-8"), done.stderr)
        nothing_is_found(secrets, outcome, watcher, run_dir)


def test_nothing_is_found_after_a_backfill_that_violates_a_constraint(
    plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path
) -> None:
    secrets.database.query("CREATE TABLE b(id int PRIMARY KEY, v text CHECK (v = 'x')); INSERT INTO b VALUES (1, 'x')")
    plan.add("001", steps=[{"table": "public.b", "key": "id", "set": {"v": ":'key'"}}])
    outcome, watcher = _run(plan, secrets, run_dir)
    assert outcome.result["failed"] and outcome.result["error"]["sqlstate"] == "23514"
    nothing_is_found(secrets, outcome, watcher, run_dir)


def test_nothing_is_found_after_a_deferred_constraint_was_violated(
    plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path
) -> None:
    plan.add(
        "001",
        "CREATE TABLE p(v text PRIMARY KEY);\nCREATE TABLE c(v text REFERENCES p DEFERRABLE INITIALLY DEFERRED);\n"
        "INSERT INTO c VALUES (:'key');",
    )
    outcome, watcher = _run(plan, secrets, run_dir)
    assert outcome.result["failed"] and outcome.result["error"]["sqlstate"] == "23503"
    nothing_is_found(secrets, outcome, watcher, run_dir)


@pytest.mark.parametrize("when", ["before_commit", "after_commit"])
def test_nothing_is_found_after_a_negative_check_with_a_secret(
    plan: MigrationSet, secrets: Secrets, run_dir: pathlib.Path, when: str
) -> None:
    check = {"name": "refused", "statement": "INSERT INTO k VALUES (:'key')", "expect_error": "check_violation"}
    plan.add("001", "CREATE TABLE k(v text CHECK (v = 'x'));", verify=[{**check, "when": when}])
    outcome, watcher = _run(plan, secrets, run_dir)
    assert outcome.result["checks"][0]["passed"] is True
    nothing_is_found(secrets, outcome, watcher, run_dir)
