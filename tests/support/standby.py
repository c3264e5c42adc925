# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A streaming replica of a test server."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import tempfile
import typing as t

from ansible_collections.surefoot.dbops.tests.support.pgserver import TEST_SETTINGS, PgServer


@contextlib.contextmanager
def running_standby(pg_server: PgServer) -> t.Iterator[PgServer]:
    """A streaming standby of a server: a copy of its description with the standby's address."""
    owner = os.stat(pg_server.data_dir)
    home = tempfile.mkdtemp(prefix="surefoot-standby-", dir="/var/tmp")
    os.chown(home, owner.st_uid, owner.st_gid)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    data = os.path.join(home, "data")

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [os.path.join(pg_server.bindir, program), *arguments],
            check=True,
            cwd=home,
            stdout=subprocess.DEVNULL,
            user=owner.st_uid if os.geteuid() == 0 else None,
            group=owner.st_gid if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
        )

    try:
        run("pg_basebackup", "-d", pg_server.dsn(), "-D", data, "-R", "-X", "stream", "-c", "fast")
        with open(os.path.join(data, "postgresql.auto.conf"), "a", encoding="utf-8") as stream:
            # What -R wrote may hold keywords of a newer libpq than the one the server program finds.
            conninfo = f"host={pg_server.host} port={pg_server.port} user={pg_server.superuser} application_name=copy"
            stream.write(f"primary_conninfo = '{conninfo}'\n")
        settings = f"-p {port} -k {home} -c listen_addresses= -c fsync=off"
        for name in ("max_connections", "max_prepared_transactions", "max_wal_senders"):
            settings += f" -c {name}={TEST_SETTINGS[name]}"
        try:
            run("pg_ctl", "-D", data, "-w", "-l", os.path.join(home, "log"), "-o", settings, "start")
        except subprocess.CalledProcessError:
            with open(os.path.join(home, "log"), encoding="utf-8") as log:
                raise RuntimeError(log.read()) from None
        try:
            yield dataclasses.replace(pg_server, host=home, port=port, data_dir=data)
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)
