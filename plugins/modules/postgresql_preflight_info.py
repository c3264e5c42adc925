#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_preflight_info
short_description: Measure whether a PostgreSQL migration may start
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Measures, in one task and one read-only transaction, what must be so before a migration starts. Nothing is written.
  - Every criterion gets a verdict. V(pass) and V(fail) are measured; V(not_measured) means that the role could not
    see it, which is
    never taken for a pass; V(not_applicable) means that there is nothing to measure, for example no tables were named.
  - The criteria are C(preflight.blockers), C(preflight.connection), C(preflight.connections),
    C(preflight.create_on_schema),
    C(preflight.disk_backup), C(preflight.disk_server), C(preflight.event_triggers), C(preflight.extensions),
    C(preflight.idle_in_transaction), C(preflight.ledger), C(preflight.lock_table), C(preflight.long_transactions),
    C(preflight.pg_monitor), C(preflight.pooler), C(preflight.prepared_transactions), C(preflight.primary),
    C(preflight.publications), C(preflight.relations_exist), C(preflight.replica_lag), C(preflight.replication_slots),
    C(preflight.role_settings), C(preflight.server_logging), C(preflight.server_version), C(preflight.subscriptions),
    C(preflight.synchronous_standby), C(preflight.table_ownership), C(preflight.tls), C(preflight.typed_users),
    C(preflight.wraparound), and C(preflight.writable).
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._attributes.info_module
  - surefoot.dbops._connection
  - surefoot.dbops._run
options:
  schemas:
    description:
      - Schemas in which the migration creates objects. The role needs C(USAGE) and C(CREATE) on each; one that does
        not exist needs
        C(CREATE) on the database.
      - Without O(tables), all tables in them count as touched.
    type: list
    elements: str
    default: []
  tables:
    description:
      - Existing tables that the migration alters, as C(schema.name). The role must own them or be a member of the
        owner.
      - Locks, vacuums, publications, and subscriptions are looked for on these.
    type: list
    elements: str
    default: []
  extensions:
    description: Extensions that must be installed, or that the role must be able to install.
    type: list
    elements: str
    default: []
  relations_exist:
    description: Tables, views, and sequences that must exist, as C(schema.name).
    type: list
    elements: str
    default: []
  type_changes:
    description:
      - Columns that a pending migration gives another type (C(change_type)), as
        RV(surefoot.dbops.postgresql_migration_info#module:type_changes) has them.
      - Who uses them as text is looked for in C(pg_stat_statements) and in the sources of functions.
    type: list
    elements: dict
    default: []
    suboptions:
      table:
        description: Table, as C(schema.name).
        type: str
        required: true
      column:
        description: Column, by its real name.
        type: str
        required: true
      to:
        description: The new type.
        type: str
        required: true
  ledger_schema:
    description: Schema of the ledger. It must be writable, or creatable.
    type: str
    default: surefoot
  max_latency:
    description: Longest time the server may take to answer a trivial query, as a duration such as V(500ms).
    type: str
    default: 1s
  min_free_connections:
    description: Connections that must be free for the role, after reserved slots and the limits of role and database.
    type: int
    default: 5
  max_pool_saturation:
    description: Highest share of C(max_connections) that may be in use, in percent.
    type: float
    default: 90
  max_transaction_age:
    description: Longest time a transaction in this database, prepared ones included, may have been open, as a duration.
    type: str
    default: 5m
  max_idle_in_transaction:
    description: Longest time a session may have been idle in a transaction, as a duration.
    type: str
    default: 1m
  max_lock_age:
    description:
      - Longest time another session's transaction may hold any lock on a table touched, as a duration.
      - A lock that blocks more than reads and writes do, and a queue, are a finding whatever their age.
    type: str
    default: 10s
  max_replica_lag:
    description: Longest time a replica may be behind, as a duration.
    type: str
    default: 30s
  max_replica_lag_size:
    description:
      - Most WAL that a replica may have still to replay, as a size.
      - A replica that stands still shows no delay in time.
    type: str
    default: 64MB
  max_retained_wal:
    description: Most WAL that an inactive replication slot may keep, as a size such as V(1GB).
    type: str
    default: 1GB
  backup_dir:
    description:
      - Directory on the host that executes the module into which the backup will go. It need not exist.
      - Its file system must have room for the database's size times O(backup_size_factor).
    type: path
  backup_size_factor:
    description: Room required for the backup, and for a copy on the server, as a multiple of the database's size.
    type: float
    default: 1
  database_free_space:
    description:
      - Free space of the server's data disk, as a size, from its operating system or its provider's console.
      - SQL cannot see it. Without this figure, C(preflight.disk_server) is not measured.
    type: str
  required:
    description:
      - Criteria that must be measured and met; V(not_measured) fails the task, too. The prefix C(preflight.) may be
        left out.
      - Wins over O(optional).
    type: list
    elements: str
    default: []
  optional:
    description:
      - Criteria whose failing is only a warning. The prefix C(preflight.) may be left out.
      - C(event_triggers), C(role_settings), C(server_logging), and C(tls) are optional unless they are named in
        O(required).
    type: list
    elements: str
    default: []
  fail_on_error:
    description:
      - Fail the task when a criterion is not met, with one line that names each, what was measured, what is required,
        and what to do.
      - V(false) returns the findings in RV(failures) instead.
    type: bool
    default: true
seealso:
  - module: surefoot.dbops.postgresql_migration_info
  - module: surefoot.dbops.postgresql_migration
"""

EXAMPLES = r"""
- name: May migration 006 start?
  surefoot.dbops.postgresql_preflight_info:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    schemas: [platform]
    tables: [platform.projects]
    extensions: [pgcrypto]
    relations_exist: [platform.projects, platform.audit_logs]
    backup_dir: /var/backups/surefoot
    required: [long_transactions, blockers]

- name: Collect evidence for the gate, which decides later
  surefoot.dbops.postgresql_preflight_info:
    login_host: db.example.com
    login_user: migrator
    login_db: platform
    ssl_mode: verify-full
    ca_cert: /etc/ssl/certs/db-ca.pem
    schemas: [platform]
    database_free_space: 120GB
    max_transaction_age: 10m
    optional: [publications]
    fail_on_error: false
    run_dir: "{{ surefoot_run_dir }}"
  register: preflight
"""

RETURN = r"""
evidence:
  description: One record for each criterion.
  returned: when a connection was attempted
  type: list
  elements: dict
  sample:
    - criterion: preflight.connections
      phase: preflight
      verdict: pass
      measured: {"free": 87, "max_connections": 100, "reserved": 3, "saturation_percent": 10.0, "used": 10}
      required: at least 5 free, at most 90% used
      source: pg_stat_database.numbackends, connection limits and reserved slots
      time: "2026-11-22T02:00:00.000Z"
      details: {"summary": "87 connections free for this role, 10 of 100 used (10%)"}
failures:
  description: The criteria that are not met and not optional, and required ones that could not be measured.
  returned: when the server was reached
  type: list
  elements: dict
  contains:
    criterion:
      description: Identifier.
      type: str
      sample: preflight.long_transactions
    verdict:
      description: V(fail) or V(not_measured).
      type: str
    measured:
      description: The measured value; its form depends on the criterion.
      type: raw
    required:
      description: What is required.
      type: str
    remedy:
      description: What to do.
      type: str
    message:
      description: All of it in one line.
      type: str
not_measured:
  description: Criteria that could not be measured.
  returned: when the server was reached
  type: list
  elements: str
  sample: [preflight.disk_server]
server:
  description: Facts about the server and the session.
  returned: when the server was reached
  type: dict
  contains:
    version:
      description: Version of the server.
      type: str
      sample: "15.8"
    version_num:
      description: The version as a number.
      type: int
      sample: 150008
    database:
      description: Name of the database.
      type: str
    database_oid:
      description: OID of the database.
      type: int
    database_size:
      description: Size of the database in bytes.
      type: int
    encoding:
      description: Encoding of the database.
      type: str
    user:
      description: Role that the session acts as.
      type: str
    session_user:
      description: Role that logged in.
      type: str
    superuser:
      description: Whether the role is a superuser.
      type: bool
    system_identifier:
      description: Identifier of the cluster; V(null) when the role may not see it.
      type: str
      sample: "7711049014479162575"
    timeline:
      description: Timeline of the cluster; V(null) when the role may not see it.
      type: int
      sample: 1
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import ConnectionFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import record
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._preflight import (
    Wanted,
    criterion_name,
    failed,
    preflight,
    unreachable,
)


def run(module: Invocation) -> dict[str, t.Any]:
    params = module.params
    wanted = Wanted.from_params(params)
    # A misspelt criterion is an error before anything is measured, and whatever is measured.
    required = [criterion_name(name) for name in params["required"]]
    optional = [criterion_name(name) for name in params["optional"]]
    try:
        report = preflight(connection_options(module), wanted)
    except ConnectionFailed as exc:
        exc.results["evidence"] = record(params["run_dir"], [unreachable(exc)])
        raise
    stopping, warning = report.failures(required, optional)
    results = {
        "changed": False,
        "evidence": record(params["run_dir"], report.evidence(params["run_id"])),
        "failures": [finding.to_dict() for finding in stopping],
        "not_measured": [finding.criterion for finding in report.findings if finding.verdict == "not_measured"],
        "server": report.server,
        "notes": [finding.line() for finding in warning],
    }
    if stopping and params["fail_on_error"]:
        error = failed(stopping)
        error.results.update(results)
        raise error
    return results


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    names = {"type": "list", "elements": "str", "default": []}
    return ArgumentSpec(
        argument_spec={
            "schemas": dict(names),
            "tables": dict(names),
            "extensions": dict(names),
            "relations_exist": dict(names),
            "type_changes": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {name: {"type": "str", "required": True} for name in ("table", "column", "to")},
            },
            "ledger_schema": {"type": "str", "default": "surefoot"},
            "max_latency": {"type": "str", "default": "1s"},
            "min_free_connections": {"type": "int", "default": 5},
            "max_pool_saturation": {"type": "float", "default": 90},
            "max_transaction_age": {"type": "str", "default": "5m"},
            "max_idle_in_transaction": {"type": "str", "default": "1m"},
            "max_lock_age": {"type": "str", "default": "10s"},
            "max_replica_lag": {"type": "str", "default": "30s"},
            "max_replica_lag_size": {"type": "str", "default": "64MB"},
            "max_retained_wal": {"type": "str", "default": "1GB"},
            "backup_dir": {"type": "path"},
            "backup_size_factor": {"type": "float", "default": 1},
            "database_free_space": {"type": "str"},
            "required": dict(names),
            "optional": dict(names),
            "fail_on_error": {"type": "bool", "default": True},
        }
    ).merge(connection_argument_spec(), run_argument_spec())


def main() -> None:
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
