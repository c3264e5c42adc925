#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_migration_info
short_description: Tell which PostgreSQL schema migrations are applied, pending, or changed since
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Compares a migration set with the ledger of a database, and the files and the catalog with what the ledger recorded.
  - Reads only. Works before the first run, when there is no ledger yet.
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._attributes.info_module
  - surefoot.dbops._connection
  - surefoot.dbops._run
options:
  path:
    description: Migration set, as in M(surefoot.dbops.postgresql_migration).
    type: path
    required: true
  to:
    description: Last migration that counts as pending, inclusive.
    type: str
  only:
    description: Migrations that can count as pending.
    type: list
    elements: str
    default: []
  include_manual:
    description: Manual migrations that count as pending.
    type: list
    elements: str
    default: []
  validate:
    description: Whether to validate the SQL files of what is pending, as M(surefoot.dbops.postgresql_migration) would.
    type: bool
    default: true
  history:
    description: Number of latest attempts to return.
    type: int
    default: 20
  ledger_schema:
    description: Schema of the ledger.
    type: str
    default: surefoot
  allow_session_pooler:
    description: Accept an address that leads through a connection pooler in session mode.
    type: bool
    default: false
seealso:
  - module: surefoot.dbops.postgresql_migration
"""

EXAMPLES = r"""
- name: What is pending?
  surefoot.dbops.postgresql_migration_info:
    login_url: "{{ database_url }}"
    path: migrations/lancio_platform
  register: plan

- name: Stop when somebody changed the schema by hand
  ansible.builtin.assert:
    that: plan.drift | length == 0
    fail_msg: "{{ plan.drift | map(attribute='message') | join('; ') }}"
"""

RETURN = r"""
ledger_exists:
  description: Whether the database has a ledger.
  type: bool
  returned: always
migrations:
  description: Every migration of the plan, and what the ledger knows beyond it.
  type: list
  elements: dict
  returned: always
  contains:
    id:
      description: Identifier.
      type: str
    summary:
      description: What it is for.
      type: str
    state:
      description:
        - V(applied), V(pending), V(partial) (begun, or its rollback begun, by a run that did not finish), V(manual),
          V(held) (not asked for by O(to) or O(only)), or V(unknown) (applied, but not in the plan).
      type: str
    risk:
      description: Its line of the plan's risk table.
      type: dict
    expected_seconds:
      description: Planned duration.
      type: float
    applied_at:
      description: When it was applied.
      type: str
    sha256:
      description: SHA-256 of its files, as applied or, when it is not applied, as they are.
      type: str
    rollback:
      description: Whether it has a rollback.
      type: bool
    loses:
      description: Tables whose rows its rollback loses.
      type: list
      elements: str
pending:
  description: Migrations that would be applied, in order.
  type: list
  elements: str
  returned: always
manual:
  description: Pending migrations that are left alone because the plan marks them manual.
  type: list
  elements: dict
  returned: always
type_changes:
  description:
    - Columns that a pending C(change_type) gives another type, as
      O(surefoot.dbops.postgresql_preflight_info#module:type_changes) takes them.
  type: list
  elements: dict
  returned: always
  sample: [{"table": "public.profiles", "column": "tenant_id", "to": "uuid"}]
drift:
  description: Applied migrations whose files were changed, and changes of the catalog since the last run.
  type: list
  elements: dict
  returned: always
  contains:
    migration_id:
      description: Migration; empty for the catalog.
      type: str
    kind:
      description: V(changed), V(spacing) (white space or comments only), V(missing), or V(catalog).
      type: str
    message:
      description: One line.
      type: str
history:
  description: The latest attempts, newest first.
  type: list
  elements: dict
  returned: always
evidence:
  description: What was measured, one record a criterion.
  type: list
  elements: dict
  returned: always
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import record
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import DEFAULT_SCHEMA
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._status import read_status


def run(module: Invocation) -> dict[str, t.Any]:
    params = module.params
    connection = connection_options(module)
    status = read_status(
        load_plan(params["path"]),
        connection,
        ledger_schema=params["ledger_schema"],
        to=params["to"],
        only=params["only"],
        include_manual=params["include_manual"],
        history=params["history"],
        validate=params["validate"],
        allow_session_pooler=params["allow_session_pooler"],
    )
    evidence = record(None if module.check_mode else params["run_dir"], status.evidence())
    return {"changed": False, **status.to_dict(), "evidence": evidence}


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "path": {"type": "path", "required": True},
            "to": {"type": "str"},
            "only": {"type": "list", "elements": "str", "default": []},
            "include_manual": {"type": "list", "elements": "str", "default": []},
            "validate": {"type": "bool", "default": True},
            "history": {"type": "int", "default": 20},
            "ledger_schema": {"type": "str", "default": DEFAULT_SCHEMA},
            "allow_session_pooler": {"type": "bool", "default": False},
        }
    ).merge(connection_argument_spec(), run_argument_spec())


def main() -> None:
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
