#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_rehearsal
short_description: Rehearse pending PostgreSQL migrations on a shadow database
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Deploys what is pending on a shadow (a restored copy), runs the checks, rolls back, compares, and deploys again,
    with the same runner as M(surefoot.dbops.postgresql_migration).
  - Measures which locks every statement takes on what was there before, how long they are held, and which of
    C(SELECT), C(INSERT), C(UPDATE), and C(DELETE) would have waited for them. Finds tables that are rewritten.
  - Proves that the rollback leads back to the same catalog (grants, defaults, policies, and comments included), and to
    the same rows and sequence values in every table the plan does not name in C(rollback_loses).
  - Runs the linter C(squawk) over the files when it is installed.
  - The connection options lead to the shadow. A database that is none is refused. Production is not connected to.
  - The shadow is left with the migrations applied.
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._connection
  - surefoot.dbops._run
  - surefoot.dbops._variables
attributes:
  check_mode:
    support: full
    details:
      - Nothing is run. The files are validated, and the result lists what would be rehearsed and is not yet measured.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - The first rehearsal leaves the migrations applied on the shadow, so that for a second one nothing is pending.
options:
  path:
    description:
      - Migration set, as for M(surefoot.dbops.postgresql_migration).
    type: path
    required: true
  to:
    description: The last migration to rehearse, inclusive.
    type: str
  only:
    description: Rehearse these migrations only. What they require must be applied, or be named too.
    type: list
    elements: str
    default: []
  include_manual:
    description: Migrations the plan marks C(manual) which are rehearsed this time.
    type: list
    elements: str
    default: []
  ledger_schema:
    description: Schema of the ledger. It is left out of every comparison.
    type: str
    default: surefoot
  lock_budget:
    description:
      - Longest time that a lock may be held which blocks readers or writers of a table that existed before.
      - It is judged, not enforced, so that the whole duration is measured.
    type: str
    default: 500ms
  shadow_factor:
    description:
      - How many times as long as on the shadow the same work takes in production. Measured holds are multiplied by it
        before they are judged.
      - What comes out is a lower bound all the same, as nobody else works on the shadow.
    type: float
    default: 1.0
  rewrite_max_size:
    description: Size of a table, such as V(100MB), above which rewriting it fails the criterion C(rehearsal.rewrites).
    type: str
    default: 100MB
  sample_interval:
    description: How often another session looks at the locks of a statement that no transaction can hold.
    type: str
    default: 20ms
  lock_timeout:
    description: Longest wait for a lock. Overrides the plan.
    type: str
  statement_timeout:
    description:
      - Longest run of one statement in a transaction. Overrides the plan.
      - It stays in force, as production has it too; a statement that reaches it fails C(rehearsal.deploy) and says so.
        Give what the production task gives.
    type: str
  retry:
    description: As for M(surefoot.dbops.postgresql_migration). Overrides the plan.
    type: dict
    suboptions:
      attempts:
        description: Number of attempts.
        type: int
      max_delay:
        description: Longest pause between two attempts, such as V(10s).
        type: str
      deadline:
        description: Time after which no new attempt begins; it bounds C(CREATE INDEX CONCURRENTLY) too.
        type: str
  shadow:
    description:
      - V(marked) accepts only a database whose comment marks it as a shadow, as M(surefoot.dbops.postgresql_restore)
        writes it. Statements that reach beyond one database (roles, databases, tablespaces, C(ALTER SYSTEM)) are
        refused, unless the shadow has a server of its own.
      - V(any) accepts any database and any statement. Only for a scratch server, as the migrations are applied there.
    type: str
    choices: [marked, any]
    default: marked
  squawk:
    description:
      - V(auto) runs the linter when it is installed; otherwise C(rehearsal.hazards) is C(not_measured).
      - V(required) fails when it is not installed.
      - V(never) does not look for it; C(rehearsal.hazards) is then C(not_applicable).
    type: str
    choices: [auto, required, never]
    default: auto
  squawk_path:
    description: The linter's program. By default looked for in C(PATH) and beside the Python that runs the module.
    type: path
  squawk_ignore:
    description:
      - Rules whose findings do not count. A given list replaces the default.
      - By default those about running a file twice and about missing timeouts, which the runner sees to, and those
        about the taste of new columns.
    type: list
    elements: str
    default:
      - ban-char-field
      - prefer-bigint-over-int
      - prefer-bigint-over-smallint
      - prefer-identity
      - prefer-repack
      - prefer-robust-stmts
      - prefer-text-field
      - prefer-timestamp-tz
      - require-lock-timeout
      - require-statement-timeout
      - require-timeout-settings
      - unused-ignore
  on_failure:
    description:
      - V(fail) fails the task when any criterion but C(rehearsal.hazards) failed.
      - V(report) only returns and records the evidence, for a gate that follows.
    type: str
    choices: [fail, report]
    default: fail
  allow_session_pooler:
    description: Accept an address that leads through a connection pooler in session mode.
    type: bool
    default: false
seealso:
  - module: surefoot.dbops.postgresql_restore
  - module: surefoot.dbops.postgresql_migration
"""

EXAMPLES = r"""
- name: Rehearse what is pending on the shadow
  surefoot.dbops.postgresql_rehearsal:
    login_unix_socket: /var/tmp/surefoot/shadow/socket
    login_user: postgres
    login_db: platform_shadow
    path: migrations/lancio_platform
    lock_budget: 500ms
    run_dir: "{{ surefoot_run.directory }}"
  register: rehearsal

- name: Say which locks would keep readers or writers waiting
  ansible.builtin.debug:
    msg: "{{ item.mode }} on {{ item.relation }} for {{ item.seconds }} s blocks {{ item.blocks | join(', ') }}"
  loop: "{{ rehearsal.locks | selectattr('blocks') }}"

- name: Let the gate judge, with production half as fast as the shadow
  surefoot.dbops.postgresql_rehearsal:
    login_url: "{{ shadow_url }}"
    path: migrations/lancio_platform
    shadow_factor: 2.0
    squawk: required
    on_failure: report
    run_dir: "{{ surefoot_run.directory }}"
"""

RETURN = r"""
run_id:
  description: Identifier of the run.
  type: str
  returned: success, or a failed rehearsal
  sample: 20261122T020000Z-5f2c1a
time:
  description: When the rehearsal was done, UTC.
  type: str
  returned: success, or a failed rehearsal
  sample: "2026-11-22T02:01:09.345Z"
plan:
  description: Name and sha256 of the plan.
  type: dict
  returned: success, or a failed rehearsal
  sample: {name: lancio_platform, sha256: 9f86d081884c7d65}
migrations:
  description: The migrations that were rehearsed, with the sha256 of their files.
  type: list
  elements: dict
  returned: success, or a failed rehearsal
  sample:
    - id: 006_add_platform_databases_table
      sha256: 9f86d081884c7d65
      rollback_sha256: 2c26b46b68ffc68f
      rollback_loses: [platform.databases]
      expected: 2.0
shadow:
  description: The database, and what its comment says of it as a shadow.
  type: dict
  returned: success, or a failed rehearsal
  sample:
    database: postgres@/var/tmp/surefoot/shadow/socket:5432/platform_shadow
    marker: {run_id: r42, expires: "2026-11-23T02:00:00.000Z"}
lock_budget:
  description: The budget that was judged by, in seconds.
  type: float
  returned: success, or a failed rehearsal
  sample: 0.5
shadow_factor:
  description: The factor that was judged with.
  type: float
  returned: success, or a failed rehearsal
  sample: 1.0
sample_interval:
  description: Seconds between two looks at statements outside a transaction.
  type: float
  returned: success, or a failed rehearsal
  sample: 0.02
passes:
  description: The runs of the runner, in order. C(phase) is V(deploy), V(rollback), or V(redeploy).
  type: list
  elements: dict
  returned: success, or a failed rehearsal
  sample:
    - phase: deploy
      migrations: [{id: 006_add_platform_databases_table, seconds: 0.1, statements: 14, attempts: 1}]
      seconds: 0.3
      error: null
statements:
  description: Every statement that took a lock of its own, and of the others the slowest 1000.
  type: list
  elements: dict
  returned: success, or a failed rehearsal
  sample:
    - phase: deploy
      migration: 006_add_platform_databases_table
      transaction: 1
      file: 006_add_platform_databases_table.sql
      line: 12
      tag: ALTER TABLE
      from_seconds: 0.01
      seconds: 0.02
      locks: 2
locks:
  description: Every lock taken on a relation that existed before the transaction.
  type: list
  elements: dict
  returned: success, or a failed rehearsal
  contains:
    phase:
      description: V(deploy), V(rollback), or V(redeploy).
      type: str
      sample: deploy
    migration:
      description: Migration.
      type: str
      sample: 006_add_platform_databases_table
    transaction:
      description: Number of the transaction in this rehearsal. Times count from its beginning.
      type: int
      sample: 1
    file:
      description: File the statement stands in.
      type: str
      sample: 006_add_platform_databases_table.sql
    line:
      description: Line it begins at.
      type: int
      sample: 12
    tag:
      description: Kind of statement.
      type: str
      sample: ALTER TABLE
    relation:
      description: The locked relation.
      type: str
      sample: platform.projects
    kind:
      description: What it is.
      type: str
      sample: table
    table:
      description: Table of an index.
      type: str
      sample: null
    bytes:
      description: Size before. Null where it is not known.
      type: int
      sample: 8192
    rows:
      description: Rows before. Null where it is not known.
      type: int
      sample: 40
    mode:
      description: Lock mode.
      type: str
      sample: SHARE ROW EXCLUSIVE
    blocks:
      description: Which of SELECT, INSERT, UPDATE, DELETE have to wait for it.
      type: list
      elements: str
      sample: [INSERT, UPDATE, DELETE]
    from_seconds:
      description: When it was taken at the earliest, from the beginning of the transaction.
      type: float
      sample: 0.01
    to_seconds:
      description: When it was given back.
      type: float
      sample: 0.05
    seconds:
      description: How long it was held, as measured.
      type: float
      sample: 0.04
    source:
      description:
        - V(pg_locks) for the session's own locks (exact), V(sampled) for those another session saw, V(documented) for
          those PostgreSQL's manual names and no sample caught.
      type: str
      sample: pg_locks
rewrites:
  description: Tables that existed before and got a new file, with statement and size.
  type: list
  elements: dict
  returned: success, or a failed rehearsal
  sample: []
checks:
  description: Results of the checks during the first deployment.
  type: list
  elements: dict
  returned: success, or a failed rehearsal
  sample: []
catalog_diff:
  description: What deploying changes in the catalog.
  type: dict
  returned: success, or a failed rehearsal
  sample: {added: [table platform.databases], removed: [], changed: []}
rollback_proof:
  description:
    - What was compared after the rollback, and what differs. C(not_measured) says why it was not, or not for all
      migrations, tried.
  type: dict
  returned: success, or a failed rehearsal
  sample:
    migrations: [006_add_platform_databases_table]
    not_measured: null
    error: null
    catalog: {added: [], removed: [], changed: []}
    tables: {}
    sequences: {}
    left_out: []
    sequences_moved_by_checks: []
    compared: {tables: 25, rows: 104532, sequences: 3}
    roles_changed: []
hazards:
  description: Findings of squawk, or C(not_measured) with the reason.
  type: dict
  returned: success, or a failed rehearsal
  sample: {version: 2.70.0, findings: [], unread: [], ignored_rules: []}
seconds:
  description: How long the rehearsal took.
  type: float
  returned: success, or a failed rehearsal
  sample: 4.2
evidence:
  description:
    - Evidence records with the criteria C(rehearsal.deploy), C(rehearsal.verify), C(rehearsal.rollback_catalog),
      C(rehearsal.rollback_data), C(rehearsal.redeploy), C(rehearsal.lock_budget), C(rehearsal.rewrites), and
      C(rehearsal.hazards).
  type: list
  elements: dict
  returned: success, or a failed rehearsal
  sample:
    - criterion: rehearsal.redeploy
      phase: rehearsal
      verdict: pass
      measured: {migrations: [006_add_platform_databases_table], seconds: 0.3}
      required: a second deployment ends as the first
      source: the runner and the catalog, after the rollback
      time: "2026-11-22T02:01:09.345Z"
      details: {}
error:
  description: The error as an object; its C(code) is V(rehearsal), with C(criteria), when a criterion failed.
  type: dict
  returned: failure
  sample: {code: rehearsal, message: "the rehearsal failed: ...", criteria: [rehearsal.lock_budget]}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
    variables_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import DEFAULT_SCHEMA
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._rehearsal import RehearsalRequest, rehearse
from ansible_collections.surefoot.dbops.plugins.module_utils._squawk import DEFAULT_IGNORE
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration, parse_size


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "path": {"type": "path", "required": True},
            "to": {"type": "str"},
            "only": {"type": "list", "elements": "str", "default": []},
            "include_manual": {"type": "list", "elements": "str", "default": []},
            "ledger_schema": {"type": "str", "default": DEFAULT_SCHEMA},
            "lock_budget": {"type": "str", "default": "500ms"},
            "shadow_factor": {"type": "float", "default": 1.0},
            "rewrite_max_size": {"type": "str", "default": "100MB"},
            "sample_interval": {"type": "str", "default": "20ms"},
            "lock_timeout": {"type": "str"},
            "statement_timeout": {"type": "str"},
            "retry": {
                "type": "dict",
                "options": {
                    "attempts": {"type": "int"},
                    "max_delay": {"type": "str"},
                    "deadline": {"type": "str"},
                },
            },
            "shadow": {"type": "str", "choices": ["marked", "any"], "default": "marked"},
            "squawk": {"type": "str", "choices": ["auto", "required", "never"], "default": "auto"},
            "squawk_path": {"type": "path"},
            "squawk_ignore": {"type": "list", "elements": "str", "default": list(DEFAULT_IGNORE)},
            "on_failure": {"type": "str", "choices": ["fail", "report"], "default": "fail"},
            "allow_session_pooler": {"type": "bool", "default": False},
        },
    ).merge(connection_argument_spec(), run_argument_spec(), variables_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    retry = {key: value for key, value in (params["retry"] or {}).items() if value is not None}
    request = RehearsalRequest(
        ledger_schema=params["ledger_schema"],
        to=params["to"],
        only=tuple(params["only"]),
        include_manual=tuple(params["include_manual"]),
        variables=params["variables"],
        secrets=params["secret_variables"],
        lock_budget=parse_duration(params["lock_budget"]),
        shadow_factor=params["shadow_factor"],
        rewrite_max_size=parse_size(params["rewrite_max_size"]),
        lock_timeout=_seconds(params["lock_timeout"]),
        statement_timeout=_seconds(params["statement_timeout"]),
        retry={key: value if key == "attempts" else parse_duration(value) for key, value in retry.items()},
        shadow=params["shadow"],
        squawk=params["squawk"],
        squawk_path=params["squawk_path"],
        squawk_ignore=tuple(params["squawk_ignore"]),
        sample_interval=parse_duration(params["sample_interval"]),
        on_failure=params["on_failure"],
        allow_session_pooler=params["allow_session_pooler"],
        run_id=params["run_id"],
        run_dir=params["run_dir"],
    )
    return rehearse(load_plan(params["path"]), connection_options(module), request, check_mode=module.check_mode)


def _seconds(value: str | None) -> float | None:
    return None if value is None else parse_duration(value)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
