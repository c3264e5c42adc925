#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbouncer_info
short_description: Tell whether a database of PgBouncer is paused, and who waits for it
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Reads C(SHOW DATABASES), C(SHOW POOLS) and C(SHOW SERVERS) of PgBouncer's admin console. A user of C(stats_users)
    may do so.
  - The connection options name the admin console of PgBouncer, not the database behind it.
extends_documentation_fragment:
  - surefoot.dbops._connection
  - surefoot.dbops._run
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details:
      - This module does not modify state.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)) in diff mode.
    support: N/A
    details:
      - This module does not modify state.
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled or queried by the module has not changed in a relevant way.
    support: full
    details:
      - This module does not modify state.
options:
  database:
    description: The database by the name that clients give to PgBouncer.
    type: str
    required: true
  max_wait:
    description: Longest wait of a client for C(pgbouncer.clients_waiting) to pass.
    type: str
    default: 1s
  login_db:
    description: The admin console. The default is V(pgbouncer), unless O(login_url) names one.
    type: str
seealso:
  - module: surefoot.dbops.pgbouncer
"""

EXAMPLES = r"""
- name: Who waits for a server connection?
  surefoot.dbops.pgbouncer_info:
    login_host: 127.0.0.1
    login_port: 6432
    login_user: pgbouncer_reader
    login_password: "{{ pgbouncer_reader_password }}"
    database: app
  register: pools

- name: Say it
  ansible.builtin.debug:
    msg: "{{ pools.clients_waiting }} clients wait, the first for {{ pools.longest_wait_seconds }} s"
"""

RETURN = r"""
database:
  description: The database.
  returned: success
  type: str
  sample: app
version:
  description: Version of PgBouncer.
  returned: success
  type: str
  sample: 1.18.0
pool_mode:
  description: Pooling mode of the pools in use; null when there is none.
  returned: success
  type: str
  sample: transaction
paused:
  description: Whether it is paused.
  returned: success
  type: bool
pools:
  description: Its rows of C(SHOW POOLS), with the columns of this version.
  returned: success
  type: list
  elements: dict
  sample: [{"database": "app", "user": "web", "cl_active": 12, "cl_waiting": 3, "sv_active": 5, "maxwait": 1}]
clients_waiting:
  description: Number of clients that wait for a server connection.
  returned: success
  type: int
  sample: 3
longest_wait_seconds:
  description: How long the first of them has waited.
  returned: success
  type: float
  sample: 1.2
servers_busy:
  description: Number of server connections that a client holds.
  returned: success
  type: int
  sample: 5
servers_to_close:
  description: Number of server connections that are to be closed as soon as their clients let go.
  returned: success
  type: int
  sample: 0
evidence:
  description: One record, C(pgbouncer.clients_waiting).
  returned: success
  type: list
  elements: dict
  sample:
    - criterion: pgbouncer.clients_waiting
      phase: apply
      verdict: pass
      measured: {"clients_waiting": 3, "longest_wait_seconds": 0.2}
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {"code": "unknown_database", "message": "PgBouncer knows no database 'ap'; it knows app"}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import record
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, run_module
from ansible_collections.surefoot.dbops.plugins.module_utils._pgbouncer import console_options, look, waiting_evidence
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    options = console_options(params)
    for secret in options.secrets:
        module.never_show(secret)
    longest = parse_duration(params["max_wait"])
    found = look(options, params["database"])
    evidence = record(params["run_dir"], [waiting_evidence(found, longest)])
    return {"changed": False, **found.to_dict(), "evidence": evidence}


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "database": {"type": "str", "required": True},
            "max_wait": {"type": "str", "default": "1s"},
        },
    ).merge(connection_argument_spec(), run_argument_spec())


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
