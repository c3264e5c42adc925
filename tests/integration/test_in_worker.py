# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A task does the same in Ansible's worker and, as anywhere else, as a module in a process of its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ANSIBLE = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
PASSWORD = "not-for-anybodys-eyes"

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - surefoot.dbops.postgresql_migration:
        path: "{{ path }}"
        login_unix_socket: "{{ host }}"
        login_port: "{{ at_port }}"
        login_user: postgres
        login_password: "{{ password }}"
        login_db: "{{ db }}"
        secret_variables:
          key: "{{ password }}"
      environment: "{{ {'ELSEWHERE': '1'} if as_module else {} }}"
"""


def play(database, directory, *, as_module, arguments=(), text=PLAY):
    playbook = directory / "play.yml"
    playbook.write_text(text, encoding="utf-8")
    variables = {
        "path": str(directory / "sql"),
        "host": database.server.host,
        "at_port": database.server.port,
        "db": database.name,
        "password": PASSWORD,
        "as_module": as_module,
    }
    environment = {
        **os.environ,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
    }
    argv = [ANSIBLE, "-i", "localhost,", "-vvv", str(playbook), "-e", json.dumps(variables), *arguments]
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, check=False, cwd=directory, timeout=120
    )
    assert PASSWORD not in done.stdout + done.stderr.replace(json.dumps(variables), "")
    return done


@pytest.fixture
def migrations(tmp_path):
    directory = tmp_path / "sql"
    directory.mkdir()
    (directory / "001_first.sql").write_text("CREATE TABLE first (id int, note text);\n", encoding="utf-8")
    (directory / "002_second.sql").write_text("INSERT INTO first VALUES (1, :'key');\n", encoding="utf-8")
    return directory


@pytest.mark.parametrize("as_module", [False, True])
def test_applies_then_finds_nothing_to_do(database, tmp_path, migrations, as_module):
    first = play(database, tmp_path, as_module=as_module)
    assert first.returncode == 0, first.stdout
    assert "AnsiballZ_postgresql_migration" in first.stdout if as_module else "AnsiballZ" not in first.stdout
    assert database.query("SELECT note FROM first") == [(PASSWORD,)]
    second = play(database, tmp_path, as_module=as_module)
    assert "changed=0" in second.stdout
    assert second.returncode == 0


@pytest.mark.parametrize("as_module", [False, True])
def test_a_failure_is_one_line_and_fails_the_play(database, tmp_path, migrations, as_module):
    (migrations / "003_third.sql").write_text("CREATE TABLE first (id int);\n", encoding="utf-8")
    done = play(database, tmp_path, as_module=as_module)
    assert done.returncode == 2
    assert "003_third.sql:1:1) [42P07 duplicate_table] in: CREATE TABLE first (id int)." in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert database.scalar("SELECT count(*) FROM surefoot.applied") == 2


@pytest.mark.parametrize("as_module", [False, True])
def test_check_mode_writes_nothing(database, tmp_path, migrations, as_module):
    done = play(database, tmp_path, as_module=as_module, arguments=("--check", "--diff"))
    assert done.returncode == 0, done.stdout
    assert "CREATE TABLE first" in done.stdout
    assert database.scalar("SELECT count(*) FROM pg_namespace WHERE nspname = 'surefoot'") == 0


@pytest.mark.parametrize("as_module", [False, True])
def test_a_wrong_option_is_refused(database, tmp_path, migrations, as_module):
    misspelt = PLAY.replace("login_db:", "ledger_shema: x\n        login_db:")
    done = play(database, tmp_path, as_module=as_module, text=misspelt)
    assert done.returncode == 2
    assert "ledger_shema" in done.stdout + done.stderr
