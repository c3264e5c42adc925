#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_migration
short_description: Apply or roll back PostgreSQL schema migrations, each exactly once
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Brings a database to the state a migration set describes. The set is a directory with a C(plan.yml), or one of
    plain SQL files.
  - What is applied stands in the ledger, a schema of the same database, written in the same transaction as the change
    itself. A migration is therefore applied wholly or not at all, whatever kills the task, and a second run changes
    nothing.
  - Every file is validated before anything is written. Files are split by the lexical rules of C(psql); a file's own
    C(BEGIN) and C(COMMIT) are taken over; psql commands that change nothing are ignored, others are refused with
    file, line, and remedy.
  - Waiting for locks and holding them is bounded; a migration that meets a busy table is rolled back and tried again
    with growing pauses, and the session in its way is named.
  - An interrupt, C(SIGTERM), or the death of C(ansible-playbook) cancels the running statement and rolls back.
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._connection
  - surefoot.dbops._run
  - surefoot.dbops._variables
attributes:
  check_mode:
    support: full
    details:
      - Nothing is written, not even the ledger. The result lists what would run, after every file of it was validated.
  diff_mode:
    support: full
    details:
      - Shows the SQL text of the pending migrations, before variables are put in.
  idempotent:
    support: full
options:
  path:
    description:
      - Migration set. A directory with a C(plan.yml), the plan file itself, or a directory of files C(NNN_name.sql)
        with optional C(NNN_name.rollback.sql) (or C(.down.sql)) and C(NNN_name.verify.sql).
      - On the host that executes the module, which is usually the controller (C(ansible_connection=local)).
    type: path
    required: true
  state:
    description:
      - V(applied) applies what is pending.
      - V(rolled_back) runs the rollback files of what O(to) or O(only) name, newest first.
      - V(baselined) records pending migrations as applied without running them, for a database that has them already.
    type: str
    choices: [applied, rolled_back, baselined]
    default: applied
  to:
    description:
      - With O(state=applied) and O(state=baselined), the last migration to apply, inclusive.
      - With O(state=rolled_back), the oldest migration to roll back, inclusive.
    type: str
  only:
    description: Work on these migrations only. What they require must be applied, or be named too.
    type: list
    elements: str
    default: []
  include_manual:
    description: Migrations the plan marks C(manual) which may run this time. Without being named here they never do.
    type: list
    elements: str
    default: []
  lock_timeout:
    description:
      - Longest wait for a lock, such as V(500ms), before the transaction is rolled back and tried again. Overrides
        the plan.
      - Never more than O(lock_budget) is used.
    type: str
  statement_timeout:
    description: Longest run of one statement in a transaction, such as V(30s). Overrides the plan.
    type: str
  lock_budget:
    description:
      - Longest time a transaction may hold a lock that blocks readers or writers of a table that existed before.
      - Over it, the transaction is rolled back; after three such attempts the task fails.
      - With O(go), never more than the policy's is used.
    type: str
    default: 500ms
  retry:
    description:
      - How often and how long to try again when a lock cannot be had, after a deadlock, or a serialization failure.
      - Overrides the plan.
    type: dict
    suboptions:
      attempts:
        description: Number of attempts.
        type: int
      max_delay:
        description: Longest pause between two attempts, such as V(10s).
        type: str
      deadline:
        description:
          - Time after which no new attempt begins, such as V(5m).
          - It also bounds statements that no O(statement_timeout) applies to, such as C(CREATE INDEX CONCURRENTLY).
        type: str
  on_busy:
    description: What to do while another run holds the lock of the ledger.
    type: str
    choices: [wait, fail]
    default: wait
  busy_timeout:
    description: How long to wait for another run, or for the session of a killed one.
    type: str
    default: 60s
  on_orphan:
    description:
      - What to do when the session of a killed run is still at work on the server.
      - V(terminate) ends it. V(wait) waits for up to O(busy_timeout).
    type: str
    choices: [wait, terminate]
    default: wait
  on_drift:
    description:
      - What to do when an applied file was changed, or the catalog is not as the last run left it.
      - White space and comments in files do not count.
      - V(warn) goes on, and the catalog as it is after the run becomes the new reference.
    type: str
    choices: [fail, warn]
    default: fail
  verify:
    description:
      - Whether to run each migration's checks, those C(before_commit) inside its transaction and those
        C(after_commit) after it.
      - A failing check before commit means that nothing happened.
    type: bool
    default: true
  watch:
    description:
      - Samples the server on a connection of its own while migrations run, and stops the run when a limit stays
        exceeded, with the error code C(watch_limit). The running statement is cancelled and its transaction rolled
        back.
      - An empty dictionary is the watch with its defaults. Without this option nothing is sampled.
      - Each limit may be V(none); the value is then only recorded.
      - Evidence C(watch.*) has the worst and the last value of each criterion, C(watch.jsonl) of O(run_dir) every
        sample. What the role cannot see is V(not_measured); most takes nothing, some C(pg_monitor).
    type: dict
    suboptions:
      interval:
        description: Time between two samples.
        type: str
        default: 1s
      samples:
        description: Number of samples in a row over a limit that stop the run.
        type: int
        default: 3
      max_connections_used:
        description: Most connections used, as a percentage of C(max_connections) without the reserved ones.
        type: str
        default: 90%
      wal_rate_max:
        description: Most write-ahead log that the server may write in 60 seconds, as a size.
        type: str
        default: 1GB
      max_waiters:
        description: Most sessions that may be blocked by the migration, those queued behind blocked ones included.
        type: str
        default: "10"
      max_wait:
        description: Longest time that one of them may be blocked.
        type: str
        default: 5s
      replica_lag_max:
        description: Longest time that a replica may be behind.
        type: str
        default: 30s
      temp_max:
        description: Most that temporary files, temporary tables and O(watch.tables) may grow together, as a size.
        type: str
        default: none
      quarantine_max:
        description: Most that the ledger's quarantine may grow during the run, as a size.
        type: str
        default: 1GB
      disk_min_free:
        description: Least free space of the server's disks, when the server runs on the host that executes the module.
        type: str
        default: 1GB
      tables:
        description: Tables whose growth counts for O(watch.temp_max), as C(schema.name).
        type: list
        elements: str
        default: []
      endpoints:
        description: HTTP endpoints of the application that must go on answering during the run.
        type: list
        elements: dict
        default: []
        suboptions:
          url:
            description: What to ask, with C(GET).
            type: str
            required: true
          expect_status:
            description: Status codes that are right.
            type: list
            elements: int
            default: [200]
          timeout:
            description: Longest time for an answer.
            type: str
            default: 5s
          token:
            description: Bearer token to send.
            type: str
          validate_certs:
            description: Whether the server's certificate must be valid.
            type: bool
            default: true
          ca_path:
            description: File or directory of the certificate authorities to trust.
            type: path
  allow_session_pooler:
    description:
      - Accept an address that leads through a connection pooler in session mode.
      - In transaction mode a pooler breaks locks and settings; nothing can be applied safely through it.
    type: bool
    default: false
  ledger_schema:
    description: Schema of the ledger. Created when missing, which takes C(CREATE) on the database.
    type: str
    default: surefoot
  go:
    description:
      - The GO to apply under, C(go.json) of M(surefoot.dbops.postgresql_gate) or its directory. With O(state=applied)
        only.
      - It is held against the database, the files, the variables, and O(policy) under the runner lock, before anything
        is written. When one of them changed, or it expired, nothing is applied and the error has the code V(stale_go).
    type: path
  go_key:
    description: Key that sealed the GO, when it is not the C(go.key) beside it.
    type: str
  policy:
    description: The policy the GO was decided by, as given to M(surefoot.dbops.postgresql_gate).
    type: dict
    default: {}
  requested_by:
    description: Name recorded as who asked for the run, for example C({{ awx_user_name }}), beside the real OS user.
    type: str
  approved_by:
    description: Name recorded as who approved the run. With O(go), it must be the name the GO was approved by.
    type: str
seealso:
  - module: surefoot.dbops.postgresql_migration_info
  - module: surefoot.dbops.postgresql_backup
  - module: surefoot.dbops.postgresql_verification
"""

EXAMPLES = r"""
- name: Apply what is pending
  surefoot.dbops.postgresql_migration:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    path: migrations/lancio_platform

- name: Apply up to and including one migration, waiting at most 200 ms for any lock
  surefoot.dbops.postgresql_migration:
    login_host: db.example.com
    login_user: migrator
    login_password: "{{ migrator_password }}"
    login_db: app
    ssl_mode: verify-full
    ca_cert: /etc/ssl/certs/db-ca.pem
    path: migrations/lancio_platform
    to: 006_enable_rls_with_permissive_policies
    lock_timeout: 200ms

- name: Give variables and secrets to the SQL files
  surefoot.dbops.postgresql_migration:
    login_url: "{{ database_url }}"
    path: migrations/lancio_platform
    secret_variables:
      railway_redis_url: "{{ redis_url }}"
      database_encryption_key: "{{ encryption_key }}"

- name: Stop when the server or the application suffers
  surefoot.dbops.postgresql_migration:
    login_url: "{{ database_url }}"
    path: migrations/lancio_platform
    watch:
      wal_rate_max: 512MB
      endpoints:
        - url: https://app.example.com/health

- name: Roll back the newest migrations down to and including this one
  surefoot.dbops.postgresql_migration:
    login_url: "{{ database_url }}"
    path: migrations/lancio_platform
    state: rolled_back
    to: 006_add_platform_databases_table

- name: Take over a database that has the first five already
  surefoot.dbops.postgresql_migration:
    login_url: "{{ database_url }}"
    path: migrations/lancio_platform
    state: baselined
    to: 005_create_audit_logs
"""

RETURN = r"""
run_id:
  description: Identifier of this run in the ledger.
  type: str
  returned: always
  sample: 20261122T030000Z-5f2c1a
applied:
  description: Migrations applied (or, with O(state=baselined), recorded) by this task, in order.
  type: list
  elements: str
  returned: always
rolled_back:
  description: Migrations rolled back by this task, in order.
  type: list
  elements: str
  returned: always
pending:
  description: Migrations still to do. In check mode, what would be done.
  type: list
  elements: str
  returned: always
unfinished:
  description: The migration that failed after a part of it had been committed (steps outside a transaction), if any.
  type: str
  returned: always
manual:
  description: Pending migrations left alone because the plan marks them manual.
  type: list
  elements: dict
  returned: always
  contains:
    id:
      description: Identifier.
      type: str
    reason:
      description: Why it is manual.
      type: str
migrations:
  description: What was done for each migration.
  type: list
  elements: dict
  returned: always
  contains:
    id:
      description: Identifier.
      type: str
    seconds:
      description: Duration, waiting and attempts included.
      type: float
    statements:
      description: Number of statements run.
      type: int
    attempts:
      description: Number of attempts it took.
      type: int
    lock_held_seconds:
      description:
        - How long a lock was held that blocks readers or writers of a table that existed before.
        - Null when none was.
      type: float
statements:
  description: The slowest statements, at most 100, in order. C(statements.jsonl) of O(run_dir) has up to 1000.
  type: list
  elements: dict
  returned: always
  contains:
    number:
      description: Position in the run.
      type: int
    migration:
      description: Migration it belongs to.
      type: str
    file:
      description: File it stands in.
      type: str
    line:
      description: Line it begins at.
      type: int
    tag:
      description: Kind of statement.
      type: str
      sample: ALTER TABLE
    seconds:
      description: Duration.
      type: float
statement_count:
  description: Number of statements run.
  type: int
  returned: always
retries:
  description: Attempts that were rolled back and tried again, with the sessions that stood in the way.
  type: list
  elements: dict
  returned: always
checks:
  description: Results of the migrations' checks, as from M(surefoot.dbops.postgresql_verification).
  type: list
  elements: dict
  returned: always
drift:
  description: Differences between the ledger and the files or the catalog.
  type: list
  elements: dict
  returned: always
evidence:
  description: What was measured, one record a criterion.
  type: list
  elements: dict
  returned: always
error:
  description:
    - The error as an object, with C(code), C(message), C(remedy), C(file), C(line), C(column), and for server errors
      C(sqlstate), C(condition) and C(statement).
  type: dict
  returned: failure
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
    variables_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._go import before_apply
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import (
    DEFAULT_SCHEMA,
    Actor,
    advisory_key,
    new_run_id,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Plan, load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import resolve_policy
from ansible_collections.surefoot.dbops.plugins.module_utils._runner import Runner, RunOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import Throttle
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration
from ansible_collections.surefoot.dbops.plugins.module_utils._vitals import Limits, Vitals, run_watched


def run(module: Invocation) -> dict[str, t.Any]:
    params = module.params
    connection = connection_options(module)
    plan = load_plan(params["path"])
    run_id = params["run_id"] or new_run_id()
    vitals = _vitals(params, connection, run_id)
    retry = {key: value for key, value in (params["retry"] or {}).items() if value is not None}
    options = RunOptions(
        state=params["state"],
        run_id=run_id,
        actor=Actor.current(params["requested_by"], params["approved_by"]),
        ledger_schema=params["ledger_schema"],
        to=params["to"],
        only=tuple(params["only"]),
        include_manual=tuple(params["include_manual"]),
        variables=params["variables"],
        secrets=params["secret_variables"],
        lock_timeout=_seconds(params["lock_timeout"]),
        statement_timeout=_seconds(params["statement_timeout"]),
        lock_budget=_lock_budget(params),
        retry={key: value if key == "attempts" else parse_duration(value) for key, value in retry.items()},
        on_busy=params["on_busy"],
        busy_timeout=parse_duration(params["busy_timeout"]),
        on_orphan=params["on_orphan"],
        on_drift=params["on_drift"],
        verify=params["verify"],
        allow_session_pooler=params["allow_session_pooler"],
        run_dir=params["run_dir"],
        check_mode=module.check_mode,
        show_text=module.diff,
        before_apply=_check_of_go(module, plan),
        guard=vitals.guard if vitals is not None else None,
        throttle=vitals.limits.throttle() if vitals is not None else Throttle(),
        say=module.say,
    )
    return run_watched(vitals, Runner(plan, connection, options).run, params["run_dir"])


def _vitals(params: dict[str, t.Any], connection: ConnectionOptions, run_id: str) -> Vitals | None:
    if params["watch"] is None:
        return None
    return Vitals(
        connection,
        Limits.from_options(params["watch"]),
        run_id=run_id,
        worker_key=advisory_key(params["ledger_schema"], "worker"),
        run_dir=params["run_dir"],
        ledger_schema=params["ledger_schema"],
    )


def _check_of_go(module: Invocation, plan: Plan) -> t.Any:
    params = module.params
    if not params["go"] or module.check_mode:
        return None
    if params["state"] != "applied":
        raise PlanError("go is given with another state than applied", remedy="Leave it out: a GO is for applying.")
    module.never_show(params["go_key"])
    return before_apply(
        params["go"],
        plan,
        go_key=params["go_key"],
        variables=params["variables"],
        secrets=params["secret_variables"],
        policy=resolve_policy(params["policy"]),
        ledger_schema=params["ledger_schema"],
        approved_by=params["approved_by"],
    )


def _lock_budget(params: t.Mapping[str, t.Any]) -> float:
    """Under a GO no more than the policy it was decided by allows."""
    budget = parse_duration(params["lock_budget"])
    return min(budget, parse_duration(resolve_policy(params["policy"])["lock_budget"])) if params["go"] else budget


def _seconds(value: str | None) -> float | None:
    return None if value is None else parse_duration(value)


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["applied", "rolled_back", "baselined"], "default": "applied"},
            "to": {"type": "str"},
            "only": {"type": "list", "elements": "str", "default": []},
            "include_manual": {"type": "list", "elements": "str", "default": []},
            "lock_timeout": {"type": "str"},
            "statement_timeout": {"type": "str"},
            "lock_budget": {"type": "str", "default": "500ms"},
            "retry": {
                "type": "dict",
                "options": {
                    "attempts": {"type": "int"},
                    "max_delay": {"type": "str"},
                    "deadline": {"type": "str"},
                },
            },
            "on_busy": {"type": "str", "choices": ["wait", "fail"], "default": "wait"},
            "busy_timeout": {"type": "str", "default": "60s"},
            "on_orphan": {"type": "str", "choices": ["wait", "terminate"], "default": "wait"},
            "on_drift": {"type": "str", "choices": ["fail", "warn"], "default": "fail"},
            "verify": {"type": "bool", "default": True},
            "watch": {
                "type": "dict",
                "options": {
                    "interval": {"type": "str", "default": "1s"},
                    "samples": {"type": "int", "default": 3},
                    "max_connections_used": {"type": "str", "default": "90%"},
                    "wal_rate_max": {"type": "str", "default": "1GB"},
                    "max_waiters": {"type": "str", "default": "10"},
                    "max_wait": {"type": "str", "default": "5s"},
                    "replica_lag_max": {"type": "str", "default": "30s"},
                    "temp_max": {"type": "str", "default": "none"},
                    "quarantine_max": {"type": "str", "default": "1GB"},
                    "disk_min_free": {"type": "str", "default": "1GB"},
                    "tables": {"type": "list", "elements": "str", "default": []},
                    "endpoints": {
                        "type": "list",
                        "elements": "dict",
                        "default": [],
                        "options": {
                            "url": {"type": "str", "required": True},
                            "expect_status": {"type": "list", "elements": "int", "default": [200]},
                            "timeout": {"type": "str", "default": "5s"},
                            "token": {"type": "str", "no_log": True},
                            "validate_certs": {"type": "bool", "default": True},
                            "ca_path": {"type": "path"},
                        },
                    },
                },
            },
            "allow_session_pooler": {"type": "bool", "default": False},
            "ledger_schema": {"type": "str", "default": DEFAULT_SCHEMA},
            "go": {"type": "path"},
            "go_key": {"type": "str", "no_log": True},
            "policy": {"type": "dict", "default": {}},
            "requested_by": {"type": "str"},
            "approved_by": {"type": "str"},
        },
    ).merge(connection_argument_spec(), run_argument_spec(), variables_argument_spec())


def main() -> None:
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
