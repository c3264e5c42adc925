# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks as a user types them: the collection built and installed, a project directory, a real server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import typing as t
import urllib.parse
import uuid

import pytest
import yaml

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Actor
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._runner import Runner, RunOptions
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(sys.executable).parent
PLATFORM = ROOT / "playbooks" / "migrations" / "lancio_platform"
MIGRATIONS_006 = (
    "006_add_platform_databases_table",
    "006_enable_rls_with_permissive_policies",
    "006_register_railway_databases",
)


CALLBACKS = pathlib.Path(__file__).parent / "callbacks"
# Actions that run no module: they decide, remember or speak, in the process of ansible-playbook.
NO_MODULE = re.compile(
    r"surefoot\.dbops\.(run|write_pause)|ansible\.(builtin|legacy)\.(assert|debug|fail|set_fact|(include|import)_\w+|meta|validate_argument_spec)"
)


@dataclasses.dataclass
class Outcome:
    """What a command printed, how it ended, and what tasks it ran: the action of each, and whether it changed."""

    returncode: int
    output: str
    tasks: list[tuple[str, bool]]

    @property
    def module_tasks(self) -> list[str]:
        """Modules that were executed, in order."""
        return [action for action, _changed in self.tasks if not NO_MODULE.fullmatch(action)]

    @property
    def changing(self) -> list[str]:
        """Those of this collection that changed something, in order, by their short names."""
        return [action.rpartition(".")[2] for action, changed in self.tasks if changed]

    @property
    def errors(self) -> list[str]:
        """The error lines, whole."""
        return [line for line in self.output.splitlines() if re.match(r"\[ERROR\]|ERROR!", line)]

    @property
    def error(self) -> str:
        """The one error, with the lines it goes on for."""
        assert len(self.errors) == 1, self.output
        return self.errors[0] + self.output.partition(self.errors[0])[2].partition("\nOrigin:")[0]

    @property
    def changed(self) -> int:
        """Sum of ``changed=`` over the recap."""
        return sum(int(number) for number in re.findall(r"changed=(\d+)", self.output.partition("PLAY RECAP")[2]))

    def summary(self) -> str:
        """What the run said about itself, unfolded."""
        text = self.output.rpartition(": Sum up]")[2].partition("\nTASK ")[0].partition("PLAY RECAP")[0]
        return " ".join(text.split())


@dataclasses.dataclass
class Workplace:
    """A directory, and the environment of the shell that stands in it."""

    directory: pathlib.Path
    environment: dict[str, str]

    def run(self, *words: str, env: t.Mapping[str, str | None] | None = None) -> Outcome:
        """A command as typed here. A variable of ``env`` that is None is unset."""
        noted = self.directory.with_name(self.directory.name + ".tasks")
        noted.write_text("", encoding="utf-8")
        environment = {
            **self.environment,
            "PWD": str(self.directory),
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "tasks_run",
            "TASKS_RUN": str(noted),
        }
        for name, value in (env or {}).items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        tasks = [json.loads(line) for line in noted.read_text(encoding="utf-8").splitlines()]
        return Outcome(done.returncode, done.stdout, [(task["action"], task["changed"]) for task in tasks])

    def playbook(self, *words: str, env: t.Mapping[str, str | None] | None = None) -> Outcome:
        """``ansible-playbook`` as typed here."""
        return self.run("ansible-playbook", *words, env=env)

    def run_directories(self) -> list[pathlib.Path]:
        """Run directories, in the order they were used last."""
        base = self.directory / "surefoot-runs"
        found = [path for path in base.glob("2*") if path.is_dir()]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def last_run(self) -> dict[str, t.Any]:
        """What the last run said about itself in ``run.json``."""
        return t.cast("dict[str, t.Any]", json.loads((self.run_directories()[-1] / "run.json").read_text("utf-8")))

    def evidence(self) -> dict[str, dict[str, t.Any]]:
        """The last record of each criterion in the evidence of the last run."""
        lines = (self.run_directories()[-1] / "evidence.jsonl").read_text("utf-8").splitlines()
        return {record["criterion"]: record for record in map(json.loads, lines)}


def _environment(collections: pathlib.Path, home: pathlib.Path) -> dict[str, str]:
    left_out = re.compile(r"ANSIBLE|PG|SUREFOOT|RAILWAY|DATABASE")
    kept = {name: value for name, value in os.environ.items() if not left_out.match(name)}
    return {
        **kept,
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_HOME": str(home),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The collection, built and installed as from a release."""
    place = tmp_path_factory.mktemp("collections")
    environment = _environment(place, place / "home")
    for words in (
        ("collection", "build", "--output-path", str(place), str(ROOT)),
        ("collection", "install", "--offline", "-p", str(place), "ARCHIVE"),
    ):
        archive = next((str(path) for path in place.glob("surefoot-dbops-*.tar.gz")), "")
        words = tuple(archive if word == "ARCHIVE" else word for word in words)
        done = subprocess.run(
            [str(BIN / "ansible-galaxy"), *words],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture
def workplace(collections: pathlib.Path, tmp_path: pathlib.Path) -> Workplace:
    """An empty directory on a machine with the collection installed."""
    directory = tmp_path / "work place"
    directory.mkdir()
    return Workplace(directory, _environment(collections, tmp_path / "home"))


def _laid_out(collections: pathlib.Path, directory: pathlib.Path, migrations: str) -> pathlib.Path:
    place = Workplace(directory, _environment(collections, directory.with_name(directory.name + ".home")))
    outcome = place.playbook("surefoot.dbops.init", "-e", "dest=.", "-e", f"migrations={migrations}")
    assert outcome.returncode == 0, outcome.output
    return directory


@pytest.fixture(scope="session")
def _template(collections: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return _laid_out(collections, tmp_path_factory.mktemp("project"), "lancio_platform")


@pytest.fixture(scope="session")
def _starter(collections: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return _laid_out(collections, tmp_path_factory.mktemp("starter"), "starter")


# What the on-call sets for a run at this hour: prod's window is at night, and only a person knows of incidents.
TONIGHT = {
    "surefoot_policy_overrides": {"window": "any"},
    "surefoot_attestations": [
        {
            "criterion": "attestation.no_incident",
            "by": "on-call",
            "at": "2026-01-01T00:00:00Z",
            "until": "2999-01-01T00:00:00Z",
            "statement": "no critical incident is in progress",
        }
    ],
}


@pytest.fixture
def project(workplace: Workplace, _template: pathlib.Path) -> Workplace:
    """A project directory as the playbook init lays it out, with what production asks persons for."""
    shutil.copytree(_template, workplace.directory, dirs_exist_ok=True)
    variables = workplace.directory / "prod" / "group_vars" / "databases"
    (variables / "policy.yml").write_text(yaml.safe_dump(TONIGHT), encoding="utf-8")
    return workplace


# A policy for tests of what comes after the gate: nothing is proven first, and nobody is asked.
UNPROVEN: dict[str, t.Any] = {
    "backup": "never",
    "restore_proof": False,
    "rehearsal": "never",
    "window": "any",
    "approvals": [],
    "criteria": {"attestation.no_incident": "optional"},
}


@dataclasses.dataclass
class App(Workplace):
    """A project in the starter layout, with the migrations of one test, and its database."""

    database: Database
    migrations: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)

    @property
    def url(self) -> str:
        return self.url_of(self.database.name)

    def url_of(self, name: str) -> str:
        """The URL of a database of the same server, by its socket."""
        server = self.database.server
        host = urllib.parse.quote(server.host, safe="")
        return f"postgresql://{server.superuser}@/{name}?host={host}&port={server.port}"

    def migration(self, name: str, deploy: str, rollback: str | None = None, **keys: t.Any) -> None:
        """Add a migration to the plan."""
        directory = self.directory / "migrations" / "app"
        entry: dict[str, t.Any] = {"id": name, "deploy": f"{name}.sql", **keys}
        (directory / entry["deploy"]).write_text(deploy + "\n", encoding="utf-8")
        if rollback is not None:
            entry["rollback"] = f"{name}.rollback.sql"
            (directory / entry["rollback"]).write_text(rollback + "\n", encoding="utf-8")
        self.migrations.append(entry)
        plan = {
            "name": "app",
            "defaults": {"retry": {"attempts": 2, "max_delay": "50ms", "deadline": "5s"}},
            "migrations": self.migrations,
        }
        (directory / "plan.yml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")

    def migrate(
        self, *words: str, policy: t.Mapping[str, t.Any] | None = None, database: str | None = None, **variables: t.Any
    ) -> Outcome:
        """The playbook migrate against this database, under the policy :data:`UNPROVEN` with these keys changed."""
        given = {"surefoot_policy": {**UNPROVEN, **(policy or {})}, **variables}
        return self.playbook(
            *("migrate.yml", "-i", "staging", "-e", json.dumps(given), *words),
            env={"DATABASE_URL": self.url_of(database or self.database.name)},
        )

    def run_program(self, name: str, *words: str) -> str:
        """What a program of the server's version prints."""
        command = [os.path.join(self.database.server.bindir, name), *words]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    def schema(self) -> str:
        """The schema as ``pg_dump`` writes it, without the ledger."""
        text = self.run_program("pg_dump", "--schema-only", "--exclude-schema=surefoot", self.database.dsn)
        # Newer ones guard their scripts with a random word.
        return re.sub(r"(?m)^\\(un)?restrict .*\n", "", text)

    def applied(self) -> list[str]:
        """What the ledger says is applied; nothing without a ledger."""
        if self.database.scalar("SELECT to_regclass('surefoot.applied')") is None:
            return []
        return [row[0] for row in self.database.query("SELECT migration_id FROM surefoot.applied ORDER BY applied_at")]


@pytest.fixture
def app(collections: pathlib.Path, tmp_path: pathlib.Path, _starter: pathlib.Path, database: Database) -> App:
    """A starter project without migrations, and an empty database."""
    directory = tmp_path / "app"
    shutil.copytree(_starter, directory)
    for path in (directory / "migrations" / "app").iterdir():
        path.unlink()
    return App(directory, _environment(collections, tmp_path / "home"), database)


@dataclasses.dataclass
class Secrets:
    """The secrets of one test; none may be found anywhere afterwards."""

    login: str
    key: str
    mongodb: str
    redis: str

    def found_in(self, text: str) -> list[str]:
        """Names of the secrets that stand in the text."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) in text]


@dataclasses.dataclass
class Platform:
    """A database at migration 005, reached with a password by TCP, and the secrets of its environment."""

    database: Database
    user: str
    secrets: Secrets

    @property
    def url(self) -> str:
        return self.url_with()

    def url_with(
        self, *, password: str | None = None, name: str | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> str:
        """The URL with something else in it."""
        password = urllib.parse.quote(password or self.secrets.login, safe="")
        return (
            f"postgresql://{self.user}:{password}@{host}:{port or self.database.server.port}"
            f"/{name or self.database.name}?sslmode=disable"
        )

    @property
    def environment(self) -> dict[str, str | None]:
        """What an operator exports before typing the command."""
        return {
            "DATABASE_URL": self.url,
            "DATABASE_ENCRYPTION_KEY": self.secrets.key,
            "RAILWAY_MONGODB_URL": f"mongodb://app:{self.secrets.mongodb}@mongodb.railway.internal:27017/lancio",
            "RAILWAY_REDIS_URL": f"redis://default:{self.secrets.redis}@redis.railway.internal:6379",
            **{f"SUREFOOT_{name}_BY": f"{name.lower()} person" for name in ("PREPARED", "REVIEWED", "APPROVED")},
        }

    def applied(self) -> list[str]:
        """What of 006 the ledger says is applied."""
        rows = self.database.query(
            "SELECT migration_id FROM surefoot.applied WHERE migration_id LIKE '006%' ORDER BY applied_at"
        )
        return [row[0] for row in rows]

    def ledger_text(self) -> str:
        """Every row of every table of the ledger, as text."""
        tables = self.database.query("SELECT tablename FROM pg_tables WHERE schemaname = 'surefoot'")
        return "\n".join(str(self.database.query(f"SELECT t::text FROM surefoot.{name} AS t")) for (name,) in tables)


@pytest.fixture(scope="session")
def _migrator(pg_server: PgServer) -> tuple[str, str]:
    """A role as for production: owner of its database, no superuser. And its password."""
    name, password = "migrator", "pw-" + secrets.token_hex(12)
    with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {name} LOGIN")
        # Not as statement text: the tests search the server's log and statistics for it.
        cursor.execute("SET log_statement = 'none'; SET pg_stat_statements.track = 'none'")
        cursor.execute(f"ALTER ROLE {name} PASSWORD %s", (password,))
        cursor.execute(f"GRANT pg_monitor TO {name}")
        cursor.execute("CREATE ROLE visitor LOGIN")
        cursor.execute("ALTER ROLE visitor PASSWORD %s", (password,))
    return name, password


@pytest.fixture(scope="session")
def _at_005(pg_server: PgServer, _migrator: tuple[str, str]) -> str:
    """Name of a template database at migration 005."""
    name = f"at_005_{uuid.uuid4().hex[:8]}"
    with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} OWNER {_migrator[0]}")
    target = ConnectionOptions.from_params({**pg_server.params(name), "login_user": _migrator[0]})
    options = RunOptions(
        state="applied", run_id="setup", actor=Actor.current(), ledger_schema="surefoot", to="005_create_audit_logs"
    )
    results = Runner(load_plan(str(PLATFORM)), target, options).run()
    assert len(results["applied"]) == 5
    return name


@pytest.fixture
def platform(pg_server: PgServer, _migrator: tuple[str, str], _at_005: str) -> t.Iterator[Platform]:
    """The platform at migration 005."""
    name = f"platform_{uuid.uuid4().hex[:8]}"
    with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} OWNER {_migrator[0]} TEMPLATE {_at_005}")
    random = [f"{kind}-{secrets.token_hex(12)}" for kind in ("key", "mongo", "redis")]
    yield Platform(Database(name, pg_server), _migrator[0], Secrets(_migrator[1], *random))
    with contextlib.closing(pg_server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def wait_for_the_end(playbook: subprocess.Popen[bytes], press: t.Callable[[], None]) -> None:
    """Of a playbook that was told to stop.

    Now and then ansible-playbook hangs after Ctrl-C, in a lock that a worker died with. Whoever sits in front of it
    presses the keys again, and at last kills it; so what must be left behind is looked at after any of these.
    """
    for again in (press, playbook.kill):
        with contextlib.suppress(subprocess.TimeoutExpired):
            playbook.wait(30)
            return
        again()
    playbook.wait(30)
