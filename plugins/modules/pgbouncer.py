#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbouncer
short_description: Pause, resume and reconnect a database of PgBouncer around a migration
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Holds the clients of a database at PgBouncer while its schema changes, and gives them new server connections
    afterwards, so that none keeps a prepared statement of the schema from before.
  - Nothing waits for longer than O(timeout). A pause that does not come about in time, fails or is interrupted is taken
    back before the task ends.
  - A pause does not outlive the playbook. Where the task runs on the controller, in Ansible's own process, it leaves a
    process behind that resumes the database when ansible-playbook ends, also when it is killed. On another host, resume
    in C(always); after a kill of C(ansible-playbook) nobody else does.
  - What was reached is read from C(SHOW DATABASES), C(SHOW POOLS) and C(SHOW SERVERS), not concluded from a
    command that returned.
  - The connection options name the admin console of PgBouncer, not the database behind it. This module is not in the
    action group C(postgresql), whose defaults name the latter.
extends_documentation_fragment:
  - surefoot.dbops._connection
  - surefoot.dbops._run
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details:
      - State and rights are read; nothing is paused.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)) in diff mode.
    support: full
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled or queried by the module has not changed in a relevant way.
    support: partial
    details:
      - V(paused) and V(resumed) are idempotent. V(reconnected) is an act; it changes nothing only where PgBouncer
        has no server connection.
options:
  database:
    description: The database by the name that clients give to PgBouncer.
    type: str
    required: true
  state:
    description:
      - V(paused) waits until each client has let go of its server connection, and keeps new queries waiting. In
        transaction pooling that is the end of a transaction; in session pooling a client lets go when it disconnects.
      - V(resumed) lets them go on.
      - V(reconnected) has PgBouncer replace each server connection as soon as its client lets go, and waits for that.
    type: str
    choices: [paused, resumed, reconnected]
    default: paused
  timeout:
    description: How long to wait for clients to let go.
    type: str
    default: 30s
  login_db:
    description: The admin console. The default is V(pgbouncer), unless O(login_url) names one.
    type: str
seealso:
  - module: surefoot.dbops.pgbouncer_info
  - module: surefoot.dbops.postgresql_migration
"""

EXAMPLES = r"""
- name: Change a type while nobody uses the database
  module_defaults:
    surefoot.dbops.pgbouncer:
      login_host: 127.0.0.1
      login_port: 6432
      login_user: pgbouncer_admin
      login_password: "{{ pgbouncer_admin_password }}"
      database: app
  block:
    - name: Hold the clients
      surefoot.dbops.pgbouncer:
        state: paused
        timeout: 10s

    - name: Apply what is pending
      surefoot.dbops.postgresql_migration:
        login_url: "{{ database_url }}"
        path: migrations/app

    - name: Give the clients new server connections
      surefoot.dbops.pgbouncer:
        state: reconnected
  always:
    - name: Let the clients go on
      surefoot.dbops.pgbouncer:
        state: resumed
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
  description: Whether it is paused now.
  returned: success
  type: bool
pools:
  description: Its rows of C(SHOW POOLS), with the columns of this version.
  returned: success
  type: list
  elements: dict
  sample: [{"database": "app", "user": "web", "cl_active": 12, "cl_waiting": 3, "sv_active": 0, "maxwait": 1}]
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
  sample: 0
servers_to_close:
  description: Number of server connections that are to be closed as soon as their clients let go.
  returned: success
  type: int
  sample: 0
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 0.412
evidence:
  description: >-
    One record, C(pgbouncer.paused), C(pgbouncer.resumed) or C(pgbouncer.reconnected); none in check mode.
  returned: always, except when it could not be tried
  type: list
  elements: dict
  sample:
    - criterion: pgbouncer.paused
      phase: apply
      verdict: pass
      measured: {"paused": true, "servers_busy": 0, "servers_to_close": 0}
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {"code": "pooler_busy", "message": "PgBouncer's database app could not be paused within 10.0 s"}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import record
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, run_module
from ansible_collections.surefoot.dbops.plugins.module_utils._pgbouncer import (
    STATES,
    PoolRequest,
    act,
    console_options,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    options = console_options(params)
    for secret in options.secrets:
        module.never_show(secret)
    request = PoolRequest(
        database=params["database"],
        state=params["state"],
        timeout=parse_duration(params["timeout"]),
        check_mode=module.check_mode,
    )
    try:
        results = act(options, request)
    except SurefootError as exc:
        exc.results["evidence"] = record(params["run_dir"], exc.results.pop("evidence_objects", []))
        raise
    return {**results, "evidence": record(params["run_dir"], results["evidence"])}


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "database": {"type": "str", "required": True},
            "state": {"type": "str", "choices": list(STATES), "default": "paused"},
            "timeout": {"type": "str", "default": "30s"},
        },
    ).merge(connection_argument_spec(), run_argument_spec())


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
