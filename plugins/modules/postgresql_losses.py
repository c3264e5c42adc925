#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_losses
short_description: Dump and count what a rollback of PostgreSQL schema migrations would lose
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - A plan names, as C(rollback_loses), the tables whose rows the rollback of a migration loses. Before a rollback, this
    module dumps them and counts the rows that were written since the migration was applied.
  - Counts and dumps are of one snapshot, and every dump is read back and its rows counted.
  - Changes nothing in the database. Rows written between this task and the rollback are in neither count nor dump.
attributes:
  check_mode:
    support: full
    details:
      - Rows are counted; nothing is written to the run directory.
  diff_mode:
    support: none
    details:
      - There is no state to compare.
  idempotent:
    support: full
    details:
      - The database is not changed. Each run makes new dumps and replaces none.
options:
  path:
    description: Migration set, as in M(surefoot.dbops.postgresql_migration).
    type: path
    required: true
  state:
    description:
      - V(dumped) counts and dumps.
      - V(counted) only counts.
      - V(recorded) is for the end of an apply. It notes how many rows were ever written to the tables, by the
        statistics of the server, in C(table-writes.json) of O(run_dir), so that a later task can tell how many came
        since.
    type: str
    choices: [dumped, counted, recorded]
    default: dumped
  to:
    description: Oldest migration that is to be rolled back, inclusive. Not for O(state=recorded).
    type: str
  only:
    description: Migrations that are to be rolled back. With O(state=recorded), those to record; all when empty.
    type: list
    elements: str
    default: []
  max_rows:
    description:
      - Number of rows that may be lost, for the evidence RV(evidence). More is no error of this module.
    type: int
    default: 0
  recorded_in:
    description:
      - Run directory with the C(table-writes.json) of the apply.
      - By default that of the run itself, and those of the runs that applied the migrations, beside it.
    type: path
  bindir:
    description: Directory of C(pg_dump) and C(pg_restore). By default they are looked for.
    type: path
  lock_timeout:
    description: How long to wait for the read locks (ACCESS SHARE).
    type: str
    default: 30s
  ledger_schema:
    description: Schema of the ledger.
    type: str
    default: surefoot
requirements:
  - pg_dump and pg_restore, not older than the server
seealso:
  - module: surefoot.dbops.postgresql_migration
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._connection
  - surefoot.dbops._run
"""

EXAMPLES = r"""
- name: Note what was written up to the apply
  surefoot.dbops.postgresql_losses:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    path: migrations/platform
    state: recorded
    run_dir: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f

- name: Dump what the rollback of 006 would lose
  surefoot.dbops.postgresql_losses:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    path: migrations/platform
    only: [006_add_platform_databases_table]
    max_rows: 100
    run_dir: /var/lib/surefoot/runs/20261122T030000Z-8a1b2c
  register: losses

- name: Ask before losing more
  ansible.builtin.fail:
    msg: "The rollback would lose up to {{ losses.total }} rows; decide by hand."
  when: losses.exceeded
"""

RETURN = r"""
tables:
  description: One entry a table that the migrations to roll back name.
  returned: when O(state) is V(dumped) or V(counted)
  type: list
  elements: dict
  contains:
    table:
      description: Its name, as in the plan.
      type: str
      sample: platform.databases
    migrations:
      description: Migrations that name it.
      type: list
      elements: str
      sample: [006_add_platform_databases_table]
    rows:
      description: Number of its rows.
      type: int
      sample: 120
    rows_since:
      description: Number of rows written since the apply.
      type: int
      sample: 120
    exact:
      description: Whether RV(tables[].rows_since) is exact. Otherwise it is an upper bound.
      type: bool
      sample: true
    basis:
      description:
        - V(created) (exact) when a migration that is to be rolled back made the table, so that every row in it was
          written since, those of the migration itself included.
        - V(statistics) (upper bound) when the apply was recorded. Rows inserted, updated and deleted since.
        - V(all_rows) (upper bound) when nothing is known. Every row of the table.
        - V(absent) (exact) when there is no such table.
      type: str
      sample: created
    dump:
      description: File of the dump, in custom format; null when none was made.
      type: str
      sample: /var/lib/surefoot/runs/20261122T030000Z-8a1b2c/losses/platform.databases.dump
    sha256:
      description: Its sha256.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    size:
      description: Its size in bytes.
      type: int
      sample: 24576
total:
  description: Sum of the rows written since the apply.
  returned: when O(state) is V(dumped) or V(counted)
  type: int
  sample: 120
exact:
  description: Whether all counts are exact.
  returned: when O(state) is V(dumped) or V(counted)
  type: bool
  sample: true
exceeded:
  description: Whether RV(total) is above O(max_rows).
  returned: when O(state) is V(dumped) or V(counted)
  type: bool
  sample: false
recorded:
  description: Tables whose writes were recorded.
  returned: when O(state) is V(recorded)
  type: list
  elements: str
  sample: [platform.users]
evidence:
  description: One record with the criterion C(rescue.lost_rows), whose verdict is V(fail) above O(max_rows).
  returned: when O(state) is V(dumped) or V(counted)
  type: list
  elements: dict
  sample:
    - criterion: rescue.lost_rows
      phase: rescue
      verdict: fail
      measured: 120
      required: at most 100 rows
      source: created
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: backup, message: platform.databases cannot be dumped, remedy: Dump as the owner of the table.}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import new_run_id
from ansible_collections.surefoot.dbops.plugins.module_utils._losses import LossRequest, measure_losses, record_writes
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, connection_options, run_module
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["dumped", "counted", "recorded"], "default": "dumped"},
            "to": {"type": "str"},
            "only": {"type": "list", "elements": "str", "default": []},
            "max_rows": {"type": "int", "default": 0},
            "recorded_in": {"type": "path"},
            "bindir": {"type": "path"},
            "lock_timeout": {"type": "str", "default": "30s"},
            "ledger_schema": {"type": "str", "default": "surefoot"},
        },
        required_if=[("state", "dumped", ("run_dir",)), ("state", "recorded", ("run_dir",))],
    ).merge(connection_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    request = LossRequest(
        ledger_schema=params["ledger_schema"],
        run_id=params["run_id"] or new_run_id(),
        run_dir=params["run_dir"],
        to=params["to"],
        only=tuple(params["only"]),
        max_rows=params["max_rows"],
        dump=params["state"] == "dumped",
        recorded_in=params["recorded_in"],
        bindir=params["bindir"],
        lock_timeout=parse_duration(params["lock_timeout"]),
    )
    work = record_writes if params["state"] == "recorded" else measure_losses
    return work(load_plan(params["path"]), connection_options(module), request, check_mode=module.check_mode)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
