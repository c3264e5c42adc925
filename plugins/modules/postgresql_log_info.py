#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_log_info
short_description: Count errors in a PostgreSQL server's log since a moment
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Counts what the server logged as errors, by SQLSTATE, since a position that an earlier call returned, or since a
    time.
  - Reads C(jsonlog) (PostgreSQL 15 and newer) and C(csvlog), where the host that executes the module can read the
    server's log files. Fields of the C(stderr) format cannot be told apart, so it is not read.
  - What cannot be read is V(not_measured), with the reason and what to do; it is never taken for zero errors.
  - The server is made to log a line of its own, C(surefoot marker), which must appear in the file that is read. This
    shows that it is the log of this server and complete up to now.
  - Errors of sessions whose C(application_name) begins with C(surefoot:) are those that checks provoke on purpose; they
    are counted apart. Errors of other databases of the server are, too, except C(PANIC).
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._attributes.info_module
  - surefoot.dbops._connection
  - surefoot.dbops._run
options:
  position:
    description:
      - RV(position) of an earlier call. What was logged after it is counted, over log rotations.
      - Without it and without O(since), only the present position is returned.
    type: dict
  since:
    description:
      - Time from which on to count, ISO 8601 with a time zone, such as V(2026-11-22T02:00:00Z).
      - A position is exact; a time includes what was logged in the hour that a clock set back repeats.
    type: str
  path:
    description:
      - Directory of the server's log files, or one of them, on the host that executes the module.
      - Without it the server is asked, which takes C(pg_monitor).
    type: path
  max_permission_denied:
    description: Most errors of SQLSTATE C(42501) for C(serverlog.permission_denied) to pass.
    type: int
    default: 0
  max_foreign_key_violations:
    description: Most errors of SQLSTATE C(23503) for C(serverlog.foreign_key_violation) to pass.
    type: int
    default: 0
  max_fatal:
    description: Most messages of severity C(FATAL) or C(PANIC) for C(serverlog.fatal) to pass.
    type: int
    default: 0
  max_errors:
    description:
      - Most errors of any kind for C(serverlog.errors) to pass.
      - Without it they are recorded, and the criterion is V(not_applicable); an application has errors on good days.
    type: int
seealso:
  - module: surefoot.dbops.postgresql_migration
"""

EXAMPLES = r"""
- name: Where the log ends before the migration
  surefoot.dbops.postgresql_log_info:
    login_url: "{{ database_url }}"
  register: before

- name: Apply what is pending
  surefoot.dbops.postgresql_migration:
    login_url: "{{ database_url }}"
    path: migrations/lancio_platform

- name: Was anybody denied something since?
  surefoot.dbops.postgresql_log_info:
    login_url: "{{ database_url }}"
    position: "{{ before.position }}"
    run_dir: "{{ surefoot_run_dir }}"
  register: log
  failed_when: log.evidence | selectattr('verdict', 'ne', 'pass') | rejectattr('verdict', 'eq', 'not_applicable') | list

- name: Errors of the last hours, from a directory the log is mounted in
  surefoot.dbops.postgresql_log_info:
    login_url: "{{ database_url }}"
    path: /var/log/postgresql
    since: "2026-11-22T02:00:00Z"
"""

RETURN = r"""
readable:
  description: Whether the log could be read and is that of this server.
  returned: always
  type: bool
reason:
  description: Why it could not be read, or null.
  returned: always
  type: str
  sample: this role may not see where the server logs
remedy:
  description: What to do about it, or null.
  returned: always
  type: str
  sample: GRANT pg_monitor to the role, or give path.
log:
  description: What was read, or null.
  returned: always
  type: dict
  sample: {"format": "jsonlog", "directory": "/var/lib/postgresql/15/main/log"}
position:
  description: Where the log ends now, for O(position) of a later call; null when it cannot be read.
  returned: always
  type: dict
  sample:
    file: postgresql-2026-11-22_020000.json
    offset: 20480
    tail_sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
counts:
  description: Numbers of errors; null when nothing was to be counted, or the log cannot be read.
  returned: always
  type: dict
  contains:
    errors:
      description: Messages of severity C(ERROR), C(FATAL) and C(PANIC) that concern this database.
      type: int
    permission_denied:
      description: Those of SQLSTATE C(42501).
      type: int
    foreign_key_violation:
      description: Those of SQLSTATE C(23503).
      type: int
    fatal:
      description: Those of severity C(FATAL) or C(PANIC).
      type: int
    panic:
      description: Those of severity C(PANIC).
      type: int
    by_sqlstate:
      description: Number by SQLSTATE.
      type: dict
    own:
      description: Errors of Surefoot's own sessions, not among the above.
      type: int
    other_databases:
      description: Errors of other databases, not among the above.
      type: int
    unreadable:
      description: Records that could not be taken apart. They keep a criterion from passing.
      type: int
  sample:
    errors: 2
    permission_denied: 2
    foreign_key_violation: 0
    fatal: 0
    panic: 0
    by_sqlstate: {"42501": 2}
    own: 5
    other_databases: 0
    unreadable: 0
entries:
  description:
    - The first 20 of them. Statements and details are left out, as they hold values; of the message only forms of the
      server's own are kept that name nothing but objects and roles.
  returned: always
  type: list
  elements: dict
  sample:
    - time: "2026-11-22 02:00:01.123 UTC"
      severity: ERROR
      sqlstate: "42501"
      user: web
      database: app
      application_name: api
      message: permission denied for table audit_logs
evidence:
  description: >-
    One record for each of C(serverlog.permission_denied), C(serverlog.foreign_key_violation), C(serverlog.fatal), and
    C(serverlog.errors). Empty when nothing was to be counted and the log can be read.
  returned: always
  type: list
  elements: dict
"""

import contextlib
import datetime
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import connect
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import record
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._serverlog import examine, parse_moment


def run(module: Invocation) -> dict[str, t.Any]:
    params = module.params
    since: datetime.datetime | None = parse_moment(params["since"]) if params["since"] else None
    with contextlib.closing(connect(connection_options(module), purpose="log")) as connection:
        results = examine(
            connection,
            path=params["path"],
            start=params["position"],
            since=since,
            limits={
                "permission_denied": params["max_permission_denied"],
                "foreign_key_violation": params["max_foreign_key_violations"],
                "fatal": params["max_fatal"],
                "errors": params["max_errors"],
            },
        )
    return {"changed": False, **results, "evidence": record(params["run_dir"], results["evidence"])}


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "position": {"type": "dict"},
            "since": {"type": "str"},
            "path": {"type": "path"},
            "max_permission_denied": {"type": "int", "default": 0},
            "max_foreign_key_violations": {"type": "int", "default": 0, "no_log": False},
            "max_fatal": {"type": "int", "default": 0},
            "max_errors": {"type": "int"},
        },
        mutually_exclusive=[("position", "since")],
    ).merge(connection_argument_spec(), run_argument_spec())


def main() -> None:
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
