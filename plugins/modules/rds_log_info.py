#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rds_log_info
short_description: Count errors in the server log of an RDS instance since a time
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Counts what a PostgreSQL server on Amazon RDS logged as errors, by SQLSTATE, from the log files that the API of RDS
    hands out. M(surefoot.dbops.postgresql_log_info) is the same for a log that can be read as a file.
  - Reads C(csvlog), which takes C(log_destination = csvlog) in the parameter group. Fields of the C(stderr) format,
    which is what RDS logs by default, cannot be told apart.
  - The server is made to log a line of its own, C(surefoot marker), which must appear in the files. This shows that
    they are those of the server that O(login_url) or O(login_host) leads to, and complete up to now.
  - What cannot be read is V(not_measured), with the reason and what to do; it is never taken for zero errors.
  - Errors of sessions whose C(application_name) begins with C(surefoot:) are those that checks provoke on purpose; they
    are counted apart. Errors of other databases of the server are, too, except C(PANIC).
extends_documentation_fragment:
  - surefoot.dbops._attributes.info_module
  - surefoot.dbops._aws
  - surefoot.dbops._connection
  - surefoot.dbops._run
options:
  db_instance_identifier:
    description: The DB instance.
    type: str
    required: true
    aliases: [instance_id, id]
  since:
    description:
      - Time from which on to count, ISO 8601 with a time zone, such as V(2026-11-22T02:00:00Z).
      - The files that were written since are fetched as a whole; RDS begins a new one every hour by default.
    type: str
    required: true
  timeout:
    description: How long to wait for the marker. The API hands out lines some time after they were written.
    type: str
    default: 2m
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
      - Without it they are recorded, and the criterion is V(not_applicable).
    type: int
seealso:
  - module: surefoot.dbops.postgresql_log_info
"""

EXAMPLES = r"""
- name: Was anybody denied something since the run began?
  surefoot.dbops.rds_log_info:
    region: eu-central-1
    db_instance_identifier: platform-prod
    login_url: "{{ database_url }}"
    since: "2026-11-22T02:00:00Z"
    run_dir: /var/lib/surefoot/runs/r42
  register: log
  failed_when: log.evidence | selectattr('verdict', 'ne', 'pass') | rejectattr('verdict', 'eq', 'not_applicable') | list
"""

RETURN = r"""
readable:
  description: Whether the log could be read and is that of the server connected to.
  returned: always
  type: bool
reason:
  description: Why it could not be read, or null.
  returned: always
  type: str
  sample: platform-prod has only files of the stderr format, whose fields cannot be told apart
remedy:
  description: What to do about it, or null.
  returned: always
  type: str
  sample: Set log_destination = csvlog in the parameter group of the instance; it takes no restart.
files:
  description: The log files that were read.
  returned: always
  type: list
  elements: str
  sample: [error/postgresql.log.2026-11-22-02.csv]
counts:
  description: Numbers of errors, as of M(surefoot.dbops.postgresql_log_info); null when the log cannot be read.
  returned: always
  type: dict
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
  description: The first 20 of them, without statements and details, as those hold values.
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
    C(serverlog.errors).
  returned: always
  type: list
  elements: dict
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: aws, message: "AWS refused rds:DescribeDBLogFiles (AccessDenied)"}
"""

import contextlib
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    aws_argument_spec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._aws import AwsOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import connect
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._rds import check_identifier, finished
from ansible_collections.surefoot.dbops.plugins.module_utils._rds_log import examine_rds
from ansible_collections.surefoot.dbops.plugins.module_utils._serverlog import parse_moment
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "db_instance_identifier": {"type": "str", "required": True, "aliases": ["instance_id", "id"]},
            "since": {"type": "str", "required": True},
            "timeout": {"type": "str", "default": "2m"},
            "max_permission_denied": {"type": "int", "default": 0},
            "max_foreign_key_violations": {"type": "int", "default": 0, "no_log": False},
            "max_fatal": {"type": "int", "default": 0},
            "max_errors": {"type": "int"},
        },
    ).merge(aws_argument_spec(), connection_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    since = parse_moment(params["since"])
    timeout = parse_duration(params["timeout"])
    identifier = check_identifier(params["db_instance_identifier"], "db_instance_identifier", 63)
    api = AwsOptions.from_params(params).client("rds")
    limits = {
        "permission_denied": params["max_permission_denied"],
        "foreign_key_violation": params["max_foreign_key_violations"],
        "fatal": params["max_fatal"],
        "errors": params["max_errors"],
    }
    with contextlib.closing(connect(connection_options(module), purpose="log")) as connection:

        def work() -> dict[str, t.Any]:
            found = examine_rds(api, connection, identifier, since=since, limits=limits, timeout=timeout)
            return {"changed": False, **found}

        return finished(lambda: run_interruptible(work, api.stop), None if module.check_mode else params["run_dir"])


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
