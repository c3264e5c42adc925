# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS with verify-full, set up by the very commands of docs/secrets.md: it works, and each mistake is said clearly."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import typing as t
import urllib.parse

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    child_environment,
    connect,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import ConnectionFailed
from ansible_collections.surefoot.dbops.tests.support.migrations import MigrationSet, run, wait_until
from ansible_collections.surefoot.dbops.tests.support.pgserver import PgServer, running_server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the program openssl is not installed")

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "secrets.md"
NAME = "db.example.com"  # resolved by nobody here: hostaddr says where it is


class Tls(t.NamedTuple):
    server: PgServer
    directory: pathlib.Path
    ca: str
    other_ca: str


def block(language: str, containing: str) -> str:
    """The code block of the page that contains this text."""
    found = [
        text
        for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
        if containing in text
    ]
    assert len(found) == 1
    return str(found[0])


def make_certificates(directory: pathlib.Path) -> None:
    directory.mkdir()
    done = subprocess.run(
        ["sh", "-euc", block("bash", "openssl req")], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Tls]:
    home = tmp_path_factory.mktemp("tls")
    make_certificates(home / "ours")
    make_certificates(home / "theirs")
    with running_server() as server:
        owner = os.stat(server.data_dir)
        for name in ("server.crt", "server.key"):
            target = pathlib.Path(server.data_dir, name)
            shutil.copyfile(home / "ours" / name, target)
            target.chmod(0o600)
            if os.geteuid() == 0:
                os.chown(target, owner.st_uid, owner.st_gid)
        with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
            for statement in block("sql", "ssl = on").strip().splitlines():
                cursor.execute(statement)
            cursor.execute("CREATE DATABASE app")

        def offers_tls() -> bool:
            with contextlib.closing(server.connect()) as fresh, fresh.cursor() as cursor:
                cursor.execute("SHOW ssl")
                return cursor.fetchone() == ("on",)

        wait_until(offers_tls, "the server offers TLS")
        yield Tls(server, home, str(home / "ours" / "ca.crt"), str(home / "theirs" / "ca.crt"))


def params(tls: Tls, **changes: t.Any) -> dict[str, t.Any]:
    return {
        "login_host": NAME,
        "login_port": tls.server.port,
        "login_user": tls.server.superuser,
        "login_password": tls.server.password,
        "login_db": "app",
        "ssl_mode": "verify-full",
        "ca_cert": tls.ca,
        "connect_params": {"hostaddr": "127.0.0.1"},
        **changes,
    }


def refused(tls: Tls, **changes: t.Any) -> str:
    """The one line a task says."""
    with pytest.raises(ConnectionFailed) as caught:
        connect(ConnectionOptions.from_params(params(tls, **changes)), purpose="test").close()
    text = str(caught.value)
    assert tls.server.password not in text and "\n" not in text
    assert text.startswith(f"cannot connect to {tls.server.superuser}@") and caught.value.remedy
    return text


def test_verify_full_encrypts_and_a_migration_runs_over_it(tls: Tls, tmp_path: pathlib.Path) -> None:
    plan = MigrationSet(tmp_path / "set").add(
        "001", f"CREATE TABLE seen AS {block('sql', 'pg_stat_ssl')}", rollback="DROP TABLE seen;"
    )
    assert run(plan, params(tls))["applied"] == ["001"]
    with contextlib.closing(tls.server.connect("app")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT ssl, version FROM seen")
        encrypted, version = cursor.fetchone()
    assert encrypted is True and version.startswith("TLSv1.")


def test_the_url_says_the_same(tls: Tls) -> None:
    password = urllib.parse.quote(tls.server.password, safe="")
    tail = urllib.parse.urlencode({"sslmode": "verify-full", "sslrootcert": tls.ca, "hostaddr": "127.0.0.1"})
    url = f"postgresql://{tls.server.superuser}:{password}@{NAME}:{tls.server.port}/app?{tail}"
    with contextlib.closing(connect(ConnectionOptions.from_params({"login_url": url}), purpose="test")) as connection:
        assert connection.info.ssl_in_use


def test_pg_dump_verifies_as_well(tls: Tls) -> None:
    def dump(**changes: t.Any) -> subprocess.CompletedProcess[str]:
        with child_environment(ConnectionOptions.from_params(params(tls, **changes))) as environment:
            return subprocess.run(
                [f"{tls.server.bindir}/pg_dump", "--schema-only"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )

    assert dump().returncode == 0, dump().stderr
    wrong = dump(ca_cert=tls.other_ca)
    assert wrong.returncode != 0 and "certificate verify failed" in wrong.stderr


def test_a_certificate_of_another_authority_is_refused(tls: Tls) -> None:
    text = refused(tls, ca_cert=tls.other_ca)
    assert "certificate verify failed" in text and "ca_cert" in text


def test_a_name_that_is_not_in_the_certificate_is_refused(tls: Tls) -> None:
    text = refused(tls, login_host="other.example.com")
    assert re.search(r'server certificate for "db.example.com"[^.]* does not match host name "other.example.com"', text)
    assert "the certificate must carry the host name used" in text


def test_verify_ca_does_not_look_at_the_name(tls: Tls) -> None:
    options = ConnectionOptions.from_params(params(tls, ssl_mode="verify-ca", login_host="other.example.com"))
    with contextlib.closing(connect(options, purpose="test")) as connection:
        assert connection.info.ssl_in_use
    assert "certificate verify failed" in refused(tls, ssl_mode="verify-ca", ca_cert=tls.other_ca)


def test_a_missing_ca_file_is_said(tls: Tls) -> None:
    missing = str(tls.directory / "nowhere.crt")
    text = refused(tls, ca_cert=missing)
    assert f'root certificate file "{missing}" does not exist' in text and "Check ssl_mode and ca_cert" in text


def test_a_server_without_tls_is_refused(tls: Tls, pg_server: PgServer) -> None:
    other = tls._replace(server=pg_server)
    text = refused(other, login_db="postgres")
    assert "server does not support SSL, but SSL was required" in text and "Check ssl_mode" in text
