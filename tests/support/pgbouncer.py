# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real PgBouncer before a server of the tests."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import typing as t

import psycopg2

from ansible_collections.surefoot.dbops.tests.support.migrations import wait_until
from ansible_collections.surefoot.dbops.tests.support.pgserver import PgServer

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
ADMIN, READER, NOBODY = "pooler_admin", "pooler_reader", "application"
PASSWORDS = {ADMIN: "adm1n-Secret-11", READER: "read3r-Secret-12", NOBODY: "n0body-Secret-13"}


@dataclasses.dataclass
class Bouncer:
    """A running PgBouncer."""

    port: int
    directory: str
    process: subprocess.Popen[bytes]

    def params(self, user: str = ADMIN, database: str = "pgbouncer") -> dict[str, t.Any]:
        """Options of a module."""
        return {
            "login_host": "127.0.0.1",
            "login_port": self.port,
            "login_user": user,
            "login_password": PASSWORDS[user],
            "login_db": database,
            "ssl_mode": "disable",
        }

    def connect(self, database: str, user: str = NOBODY) -> psycopg2.extensions.connection:
        """An application's connection through the pool."""
        connection: psycopg2.extensions.connection = psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user=user,
            password=PASSWORDS[user],
            dbname=database,
            sslmode="disable",
            gssencmode="disable",
            connect_timeout=20,
        )
        connection.autocommit = True
        return connection

    def show(self, what: str) -> list[dict[str, t.Any]]:
        """Rows of a SHOW command, read by the tests' own hand."""
        with contextlib.closing(self.connect("pgbouncer", ADMIN)) as connection, connection.cursor() as cursor:
            cursor.execute(f"SHOW {what}")
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row)) for row in cursor.fetchall()]

    def command(self, text: str) -> None:
        with contextlib.closing(self.connect("pgbouncer", ADMIN)) as connection, connection.cursor() as cursor:
            cursor.execute(text)

    def paused(self, database: str) -> bool:
        return any(row["name"] == database and row["paused"] for row in self.show("DATABASES"))

    @property
    def version(self) -> tuple[int, ...]:
        found = re.search(r"(\d+)\.(\d+)", str(self.show("VERSION")[0]["version"]))
        assert found
        return tuple(int(part) for part in found.groups())

    def log_text(self) -> str:
        return pathlib.Path(self.directory, "out").read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def running_bouncer(
    server: PgServer, entries: t.Mapping[str, str], mode: str, *, settings: str = "", pool_size: int = 5
) -> t.Iterator[Bouncer]:
    """A PgBouncer that lives as long as the block; its users are those of ``PASSWORDS``.

    :param entries: databases as clients call them, to those of the server; ``*`` stands for all others
    """
    assert PROGRAM
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    owner = os.stat(server.data_dir)
    directory = tempfile.mkdtemp(prefix="surefoot-bouncer-", dir="/var/tmp")
    try:
        lines = "".join(
            f"{name} = user=postgres host={server.host} port={server.port} dbname={real}\n"
            for name, real in entries.items()
        )
        users = pathlib.Path(directory, "users.txt")
        users.write_text("".join(f'"{name}" "{word}"\n' for name, word in PASSWORDS.items()), encoding="utf-8")
        ini = pathlib.Path(directory, "pgbouncer.ini")
        ini.write_text(
            f"[databases]\n{lines}[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\nadmin_users = {ADMIN}\nstats_users = {READER}\n"
            f"pool_mode = {mode}\ndefault_pool_size = {pool_size}\nunix_socket_dir =\nserver_tls_sslmode = disable\n"
            f"ignore_startup_parameters = extra_float_digits\n{settings}\n",
            encoding="utf-8",
        )
        for path in (directory, str(ini), str(users)):
            os.chown(path, owner.st_uid, owner.st_gid)
        as_root = os.geteuid() == 0
        output = pathlib.Path(directory, "out").open("wb")  # noqa: SIM115  (closed below)
        process = subprocess.Popen(
            [PROGRAM, str(ini)],
            user=owner.st_uid if as_root else None,
            group=owner.st_gid if as_root else None,
            extra_groups=[] if as_root else None,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            bouncer = Bouncer(port, directory, process)

            def answers() -> bool:
                assert process.poll() is None, bouncer.log_text()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    return True
                return False

            wait_until(answers, "PgBouncer answers")
            yield bouncer
        finally:
            process.kill()
            process.wait(10)
            output.close()
    finally:
        shutil.rmtree(directory)
