# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real PostgreSQL server for a test session, and databases on it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import os
import pathlib
import typing as t
import uuid

import psycopg2
import psycopg2.extensions

from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import (
    SUPERUSER,
    EmbeddedServer,
    find_programs,
)

_PREFIX = f"/var/tmp/surefoot-test-{os.geteuid()}-"

# Durability is not what tests of a private, throw-away cluster are about; everything else is as near to a default
# server as the features under test allow.
TEST_SETTINGS: dict[str, t.Any] = {
    "fsync": False,
    "full_page_writes": False,
    "synchronous_commit": True,
    "max_prepared_transactions": 5,
    "max_connections": 60,
    "shared_buffers": "64MB",
    "wal_level": "logical",
    "max_wal_senders": 4,
    "max_replication_slots": 4,
}


@dataclasses.dataclass
class PgServer:
    """A running server. ``host`` is the directory of its socket, where no password is asked for."""

    bindir: str
    host: str
    port: int
    version: int
    log_path: str
    data_dir: str
    password_file: str
    server: EmbeddedServer
    superuser: str = SUPERUSER

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster."""
        return self.server.pid

    @property
    def password(self) -> str:
        """The superuser's password, for TCP on 127.0.0.1."""
        return pathlib.Path(self.password_file).read_text(encoding="utf-8").strip()

    def dsn(self, dbname: str = "postgres") -> str:
        """libpq connection string."""
        return psycopg2.extensions.make_dsn(host=self.host, port=self.port, user=self.superuser, dbname=dbname)

    def params(self, dbname: str = "postgres") -> dict[str, t.Any]:
        """Module options."""
        return {
            "login_unix_socket": self.host,
            "login_port": self.port,
            "login_user": self.superuser,
            "login_db": dbname,
        }

    def connect(self, dbname: str = "postgres", **keywords: t.Any) -> psycopg2.extensions.connection:
        """An autocommit connection."""
        connection: psycopg2.extensions.connection = psycopg2.connect(self.dsn(dbname), **keywords)
        connection.autocommit = True
        return connection

    def log_text(self) -> str:
        """Everything the server has logged so far."""
        return pathlib.Path(self.log_path).read_text(encoding="utf-8", errors="replace")

    def restart(self) -> None:
        """Stop and start with the same settings."""
        self.server.stop()
        self.server.start()


@dataclasses.dataclass
class Database:
    """One database of a server."""

    name: str
    server: PgServer

    @property
    def params(self) -> dict[str, t.Any]:
        """Module options."""
        return self.server.params(self.name)

    @property
    def dsn(self) -> str:
        """libpq connection string."""
        return self.server.dsn(self.name)

    def connect(self, **keywords: t.Any) -> psycopg2.extensions.connection:
        """An autocommit connection."""
        return self.server.connect(self.name, **keywords)

    def query(self, sql: str, parameters: t.Any = None) -> list[tuple[t.Any, ...]]:
        """Run one statement on a connection of its own and return its rows."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def scalar(self, sql: str, parameters: t.Any = None) -> t.Any:
        """First column of the first row."""
        return self.query(sql, parameters)[0][0]


@contextlib.contextmanager
def running_server(
    *, bindir: str | None = None, version: int | None = None, settings: t.Mapping[str, t.Any] | None = None
) -> t.Iterator[PgServer]:
    """A server that lives as long as the block."""
    _sweep()
    home = f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:6]}"
    programs = find_programs(bindir=bindir or os.environ.get("SUREFOOT_TEST_PG_BINDIR"), version=version)
    wanted: dict[str, t.Any] = dict(TEST_SETTINGS)
    library = os.path.join(_library_directory(programs.bindir), "pg_stat_statements.so")
    if os.path.exists(library):
        wanted["shared_preload_libraries"] = "pg_stat_statements"
        # One server sees the statements of hundreds of tests; of 5000, the default, those of this test may be gone.
        wanted["pg_stat_statements.max"] = 50000
    wanted.update(settings or {})
    server = EmbeddedServer(home, bindir=programs.bindir, settings=wanted, initdb_options=["--no-sync"])
    owner = open(home + ".new", "w", encoding="ascii")  # noqa: SIM115  (its lock says that this process lives)
    fcntl.flock(owner, fcntl.LOCK_EX)
    os.rename(owner.name, home + ".owner")
    try:
        server.start()
        port = server.port
        assert port is not None
        yield PgServer(
            bindir=programs.bindir,
            host=server.socket_dir,
            port=port,
            version=programs.version,
            log_path=server.log_path,
            data_dir=server.data_dir,
            password_file=server.password_file,
            server=server,
        )
    finally:
        server.remove()
        os.unlink(home + ".owner")
        owner.close()


@contextlib.contextmanager
def temporary_database(server: PgServer, *, template: str = "template1") -> t.Iterator[Database]:
    """A database that lives as long as the block: an empty one, or a copy of one that nobody is connected to."""
    database = Database(f"test_{uuid.uuid4().hex[:12]}", server)
    with contextlib.closing(server.connect()) as admin, admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {database.name} TEMPLATE {template}")
    try:
        yield database
    finally:
        _drop(server, database.name)


def _drop(server: PgServer, name: str) -> None:
    try:
        admin = server.connect()
    except psycopg2.OperationalError:
        # A test took the server down; the whole cluster goes at the end of the session.
        return
    with contextlib.closing(admin), admin.cursor() as cursor:
        cursor.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", (name,))
        prepared = [row[0] for row in cursor.fetchall()]
        if prepared:
            with contextlib.closing(server.connect(name)) as inside, inside.cursor() as inside_cursor:
                for gid in prepared:
                    inside_cursor.execute("ROLLBACK PREPARED %s", (gid,))
        cursor.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s AND NOT active", (name,))
        for (slot,) in cursor.fetchall():
            cursor.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _library_directory(bindir: str) -> str:
    for relative in ("../lib/postgresql", "../lib", "../lib64"):
        directory = os.path.normpath(os.path.join(bindir, relative))
        if os.path.exists(os.path.join(directory, "plpgsql.so")):
            return directory
    return os.path.normpath(os.path.join(bindir, "../lib"))


def _sweep() -> None:
    """Remove servers of test sessions that were killed."""
    for path in glob.glob(f"{_PREFIX}*.owner"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            EmbeddedServer(path[: -len(".owner")]).remove()
            os.unlink(path)
