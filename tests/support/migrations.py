# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Migration sets made on the spot, and the engine over them: in this process, or the module in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing as t

import yaml

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._context import RunOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import DEFAULT_SCHEMA, Actor, new_run_id
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._runner import Runner
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

ROOT = pathlib.Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "tree"

T = t.TypeVar("T")


class MigrationSet:
    """A plan.yml and its files in a directory. What is given is written at once; change it by giving it again."""

    def __init__(self, directory: pathlib.Path, name: str = "set", **fields: t.Any) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.fields: dict[str, t.Any] = {"name": name, **fields}
        self.migrations: list[dict[str, t.Any]] = []

    @property
    def path(self) -> str:
        return str(self.directory)

    def file(self, name: str, text: str | bytes) -> pathlib.Path:
        """Write a file of the set."""
        path = self.directory / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return path

    def add(
        self,
        id: str,  # noqa: A002
        deploy: str | bytes | None = None,
        *,
        rollback: str | None = None,
        steps: t.Sequence[t.Any] = (),
        **fields: t.Any,
    ) -> MigrationSet:
        """One migration more. A step is SQL text, ``(text, False)`` outside a transaction, a backfill's dict, or a
        step as the plan writes it."""
        migration: dict[str, t.Any] = {"id": id, **fields}
        if deploy is not None:
            self.file(f"{id}.sql", deploy)
            migration["deploy"] = f"{id}.sql"
        if steps:
            migration["steps"] = [self._step(id, number, step) for number, step in enumerate(steps, start=1)]
        if rollback is not None:
            self.file(f"{id}.rollback.sql", rollback)
            migration["rollback"] = f"{id}.rollback.sql"
        self.migrations = [other for other in self.migrations if other["id"] != id] + [migration]
        self.write()
        return self

    def _step(self, id_: str, number: int, step: t.Any) -> t.Any:
        if isinstance(step, dict):
            return {"backfill": step} if "set" in step else step
        text, transaction = step if isinstance(step, tuple) else (step, True)
        name = f"{id_}.{number}.sql"
        self.file(name, text)
        return {"sql": name} if transaction else {"sql": name, "transaction": False}

    def remove(self, id: str) -> None:  # noqa: A002
        """Take a migration out of the plan; its files stay."""
        self.migrations = [other for other in self.migrations if other["id"] != id]
        self.write()

    def write(self) -> None:
        """Write the plan."""
        text = yaml.safe_dump({**self.fields, "migrations": self.migrations}, sort_keys=False, allow_unicode=True)
        (self.directory / "plan.yml").write_text(text, encoding="utf-8")


def path_of(where: MigrationSet | str | os.PathLike[str]) -> str:
    return where.path if isinstance(where, MigrationSet) else os.fspath(where)


def run(
    where: MigrationSet | str | os.PathLike[str], database: Database | t.Mapping[str, t.Any], **options: t.Any
) -> dict[str, t.Any]:
    """Run the engine in this process.

    :param database: a database, or module options of the connection
    :param options: fields of RunOptions
    :raises SurefootError: as the engine does, with its results attached
    """
    params = database.params if isinstance(database, Database) else database
    values: dict[str, t.Any] = {
        "state": "applied",
        "run_id": new_run_id(),
        "actor": Actor.current(),
        "ledger_schema": DEFAULT_SCHEMA,
        **options,
    }
    return Runner(load_plan(path_of(where)), ConnectionOptions.from_params(params), RunOptions(**values)).run()


def fails(
    kind: type[SurefootError],
    where: MigrationSet | str | os.PathLike[str],
    database: Database | t.Mapping[str, t.Any],
    **options: t.Any,
) -> t.Any:
    """Run the engine, which must fail with this error; returns it."""
    try:
        results = run(where, database, **options)
    except kind as exc:
        return exc
    raise AssertionError(f"expected {kind.__name__}, but the run succeeded: {results}")


class Background(t.Generic[T]):
    """A call in a thread of its own. Off the main thread no signal reaches the engine."""

    def __init__(self, call: t.Callable[[], T]) -> None:
        self._call = call
        self._value: list[T] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value.append(self._call())
        except BaseException as exc:  # handed to the caller of result()
            self.error = exc

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, timeout: float = 60) -> T:
        """What the call returned; raises what it raised."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "still running"
        if self.error is not None:
            raise self.error
        return self._value[0]


def wait_until(condition: t.Callable[[], T], what: str, timeout: float = 20) -> T:
    """Poll until the condition is true; returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------------------------
# The module in a process of its own


def environment(**more: str) -> dict[str, str]:
    """For a child Python process that imports the collection, without what the tests' caller has set for libpq."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {
        **kept,
        "PYTHONPATH": str(TREE),
        "ANSIBLE_COLLECTIONS_PATH": str(TREE),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


# How AnsiballZ starts a module, without its zip file.
_START = """
import json, sys
from ansible.module_utils import basic
basic._ANSIBLE_ARGS = open(sys.argv[1], "rb").read()
basic._ANSIBLE_PROFILE = "legacy"
import runpy
runpy.run_module("ansible_collections.surefoot.dbops.plugins.modules." + sys.argv[2], run_name="__main__")
"""


@dataclasses.dataclass
class Outcome:
    """What a module process left: its result, and everything it printed."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, t.Any]:
        line = next((line for line in self.stdout.splitlines() if line.startswith("{")), None)
        assert line is not None, f"no result: {self.stdout!r} {self.stderr!r}"
        value: dict[str, t.Any] = json.loads(line)
        return value


class ModuleProcess:
    """postgresql_migration in a process (and process group) of its own."""

    def __init__(
        self,
        params: t.Mapping[str, t.Any],
        *,
        check: bool = False,
        diff: bool = False,
        module: str = "postgresql_migration",
        hangup: signal.Handlers = signal.SIG_DFL,
    ) -> None:
        arguments = {**params, "_ansible_check_mode": check, "_ansible_diff": diff, "_ansible_no_log": False}
        descriptor, self._arguments = tempfile.mkstemp(prefix="surefoot-test-", suffix=".json")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"ANSIBLE_MODULE_ARGS": arguments}, stream)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, self._arguments, module],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # As a terminal or as nohup gives it, whatever the tests themselves were started with.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),
        )

    def wait(self, timeout: float = 90) -> Outcome:
        """Wait for its end."""
        try:
            stdout, stderr = self.process.communicate(timeout=timeout)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._arguments)
        return Outcome(self.process.returncode, stdout, stderr)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A signal to the process."""
        self.process.send_signal(number)


def module_params(
    where: MigrationSet | str | os.PathLike[str], database: Database | t.Mapping[str, t.Any], **params: t.Any
) -> dict[str, t.Any]:
    """Options of postgresql_migration."""
    connection = database.params if isinstance(database, Database) else dict(database)
    return {**connection, "path": path_of(where), **params}


def run_module(
    where: MigrationSet | str | os.PathLike[str],
    database: Database | t.Mapping[str, t.Any],
    *,
    check: bool = False,
    diff: bool = False,
    timeout: float = 90,
    **params: t.Any,
) -> Outcome:
    """Run postgresql_migration in a process of its own and wait for its end."""
    return ModuleProcess(module_params(where, database, **params), check=check, diff=diff).wait(timeout)


# ---------------------------------------------------------------------------------------------------------------------
# What the database shows


def applied(database: Database, schema: str = DEFAULT_SCHEMA) -> list[str]:
    """Ids of the applied migrations in the order of their recording; empty without a ledger."""
    if not database.scalar("SELECT to_regclass(%s) IS NOT NULL", (f'"{schema}".applied',)):
        return []
    return [row[0] for row in database.query(f'SELECT migration_id FROM "{schema}".applied ORDER BY attempt_id')]


def attempts(database: Database) -> list[tuple[str, str, str]]:
    """(migration, action, outcome) of every attempt in order."""
    rows = database.query("SELECT migration_id, action, outcome FROM surefoot.attempts ORDER BY attempt_id")
    return [(row[0], row[1], row[2]) for row in rows]


def exists(database: Database, name: str) -> bool:
    """Whether there is a relation of this (quoted, qualified) name."""
    return bool(database.scalar("SELECT to_regclass(%s) IS NOT NULL", (name,)))


_OURS = "datname = %s AND application_name LIKE 'surefoot:%%' AND pid <> pg_backend_pid()"


def sessions(database: Database, like: str = "%") -> list[int]:
    """Process ids of the engine's sessions on this database."""
    with contextlib.closing(database.server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"SELECT pid FROM pg_stat_activity WHERE {_OURS} AND application_name LIKE %s", (database.name, like)
        )
        return [row[0] for row in cursor.fetchall()]


def worker_running(database: Database, text: str) -> int | None:
    """Process id of the worker session whose active statement contains this text."""
    with contextlib.closing(database.server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"SELECT pid FROM pg_stat_activity WHERE {_OURS} AND state = 'active' AND query LIKE %s",
            (database.name, f"%{text}%"),
        )
        row = cursor.fetchone()
        return row[0] if row else None


def nothing_left(database: Database, timeout: float = 20) -> None:
    """No session of the engine and no advisory lock remains on this database."""
    wait_until(lambda: not sessions(database), "no session of the engine is left", timeout)
    left = database.scalar(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    assert left == 0


def dump(database: Database, *arguments: str) -> str:
    """pg_dump of the database, without what differs between two runs of pg_dump."""
    done = subprocess.run(
        [f"{database.server.bindir}/pg_dump", *arguments, database.dsn], capture_output=True, text=True, check=True
    )
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def psql(database: Database, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run text through psql."""
    return subprocess.run(
        [f"{database.server.bindir}/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *arguments, "-d", database.dsn],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
