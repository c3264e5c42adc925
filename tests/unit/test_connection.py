# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options to a connection, and that nothing secret leaves as text."""

from __future__ import annotations

import os
import signal
import stat

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _connection
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    child_environment,
    connect,
    redact,
    redact_sql,
    register_secret,
    startup_options,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import ConnectionFailed, PlanError


@pytest.fixture(autouse=True)
def no_registered_secrets(monkeypatch):
    monkeypatch.setattr(_connection, "_secrets", set())


def test_parts_become_libpq_keywords():
    options = ConnectionOptions.from_params(
        {"login_host": "db", "login_port": 6432, "login_user": "me", "login_db": "app", "ssl_mode": "verify-full"}
    )
    assert options.keywords == {"host": "db", "port": "6432", "user": "me", "dbname": "app", "sslmode": "verify-full"}
    assert options.label == "me@db:6432/app"


def test_a_url_is_parsed_by_libpq():
    options = ConnectionOptions.from_params({"login_url": "postgresql://me:p%40ss%2Fw@db:5433/app?sslmode=require"})
    assert options.keywords["password"] == "p@ss/w"
    assert options.keywords["sslmode"] == "require"
    assert options.secrets == ["p@ss/w"]


def test_the_socket_directory_wins_over_the_host():
    options = ConnectionOptions.from_params({"login_host": "db", "login_unix_socket": "/run/pg"})
    assert options.keywords["host"] == "/run/pg"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "It is empty"),
        ("host=db password=hunter22", "key=value"),
        ("{{ lookup('env', 'X') }}", "untemplated"),
        ("mysql://u:hunter22@h/db", "does not start with postgresql://"),
        ("postgresql://u:hunter22@h:notaport:5/db@x", "cannot be parsed"),
        ("postgresql://u:hunt%er22%zz@h/db", "cannot be parsed"),
        ("postgresql://u:x@hunter22@h/db", "cannot be parsed"),
    ],
)
def test_a_bad_url_is_refused_without_repeating_it(url, said):
    with pytest.raises(PlanError) as caught:
        ConnectionOptions.from_params({"login_url": url})
    assert said in str(caught.value)
    assert "hunt" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "hunt" not in repr(caught.value)


def test_the_password_is_in_neither_repr_nor_label():
    options = ConnectionOptions.from_params({"login_url": "postgresql://me:hunter22@db/app"})
    assert "hunter22" not in repr(options)
    assert "hunter22" not in options.label


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at mongodb://u:p@ss@h/db failed", "at mongodb://***@h/db failed"),
        ("redis://:secret@h:6379/0", "redis://***@h:6379/0"),
        ("ALTER ROLE x PASSWORD 'it''s' LOGIN", "ALTER ROLE x PASSWORD '***' LOGIN"),
        ("CREATE USER x ENCRYPTED PASSWORD $$abc$$", "CREATE USER x ENCRYPTED PASSWORD '***'"),
        ("password=abc host=db", "password=*** host=db"),
        ("sslpassword='a b' x", "sslpassword=*** x"),
        ("https://example.com/path", "https://example.com/path"),
    ],
)
def test_redaction(text, expected):
    assert redact(text) == expected


def test_registered_secrets_are_masked_longest_first():
    register_secret("abcd")
    register_secret("abcdef")
    register_secret("abc")  # too short to be a secret; masking it would blank out ordinary words
    assert redact("abcdef abcd abc") == "*** *** abc"


def test_the_ledgers_copy_keeps_ordinary_sql():
    text = "UPDATE t SET token = 'x', password_hash = md5(y); ALTER ROLE r PASSWORD 'z'"
    assert redact_sql(text) == "UPDATE t SET token = 'x', password_hash = md5(y); ALTER ROLE r PASSWORD '***'"


def test_startup_options_are_escaped():
    assert startup_options({"app.key": "a b\\c"}) == ["-c app.key=a\\ b\\\\c"]


def test_the_child_gets_a_private_passfile_that_goes_away(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "from-the-environment")
    options = ConnectionOptions.from_params({"login_url": "postgresql://me:a%3Ab%5Cc@db:5433/app"})
    with child_environment(options) as environment:
        passfile = environment["PGPASSFILE"]
        assert stat.S_IMODE(os.stat(passfile).st_mode) == 0o600
        with open(passfile, encoding="utf-8") as stream:
            assert stream.read() == "*:*:*:*:a\\:b\\\\c\n"
        assert environment["PGHOST"] == "db"
        assert environment["PGDATABASE"] == "app"
        assert "PGPASSWORD" not in environment
        assert not any("a:b" in value for value in environment.values())
    assert not os.path.exists(passfile)


def test_the_passfile_of_a_killed_process_goes_with_the_next_and_one_in_use_stays(tmp_path):
    options = ConnectionOptions.from_params({"login_host": "db", "login_user": "me", "login_password": "left-1"})
    pid = os.fork()
    if pid == 0:
        with child_environment(options, str(tmp_path)):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = tmp_path.iterdir()
    assert "left-1" in left.read_text(encoding="utf-8")
    with child_environment(options, str(tmp_path)) as first, child_environment(options, str(tmp_path)) as second:
        assert {str(path) for path in tmp_path.iterdir()} == {first["PGPASSFILE"], second["PGPASSFILE"]}
    assert not list(tmp_path.iterdir())


def test_an_unreachable_server_is_one_line_with_a_remedy():
    options = ConnectionOptions.from_params({"login_url": "postgresql://me:hunter22@127.0.0.1:1/app"})
    with pytest.raises(ConnectionFailed) as caught:
        connect(options, purpose="test", timeout=2)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("cannot connect to me@127.0.0.1:1/app: ")
    assert "Check that the server runs" in text
    assert "hunter22" not in text
