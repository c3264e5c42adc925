#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_verification
short_description: Check what a PostgreSQL database answers and what it refuses
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Runs verification checks, given in the task or taken from a plan, and says of each what was measured and what was
    required.
  - A check is a query whose rows are compared, or a statement that must succeed, or a statement that must be refused
    with a certain error.
  - Every check runs in a transaction of its own that is rolled back, statements that change rows included. Only
    sequences move, and what a function does outside of the database stays done.
  - All checks run, whatever fails before them. A check that does not end within its timeout is a failed check.
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._connection
  - surefoot.dbops._run
  - surefoot.dbops._variables
attributes:
  check_mode:
    support: full
    details:
      - Checks run in check mode as well, because they leave nothing behind.
  diff_mode:
    support: N/A
    details:
      - This module does not modify state.
  idempotent:
    support: full
    details:
      - This module does not modify state.
options:
  checks:
    description:
      - The checks.
      - Mutually exclusive with O(path).
    type: list
    elements: dict
    suboptions:
      name:
        description: What is checked, in words. It appears in results, evidence and the report.
        type: str
        required: true
      query:
        description:
          - One query. Needs O(checks[].expect).
          - At most 10000 rows are fetched, or as many as O(checks[].expect) names.
        type: str
      statement:
        description: One statement that must succeed, or, with O(checks[].expect_error), must be refused.
        type: str
      expect:
        description:
          - What the rows of O(checks[].query) must be. A dictionary with one of the following keys.
          - V(rows), the number of rows. A number, or a dictionary with V(min), V(max) or both.
          - V(scalar), the value of the only column of the only row. A value, or a dictionary of operators.
          - V(set), the different values of the only column in any order, or rows as lists when there are several
            columns.
          - V(list), the same in the order of the query.
          - V(rows_equal), the rows as dictionaries of columns, in the order of the query.
          - V(jmespath), a JMESPath expression over the list of rows as objects. Beside it stand the operators for its
            result.
          - V(true) with the value V(all). There is at least one row, and every value of the only column is true.
          - The operators are V(equals), V(not), V(in), V(min), V(max) and V(matches) (a regular expression found in a
            text). Every operator given must hold.
          - Numbers compare by value whatever their types are. A boolean equals only a boolean, NULL only NULL, and a
            text only a text. Other types compare as the text this module returns for them, with times in UTC.
        type: dict
      expect_error:
        description:
          - The error with which the server must refuse O(checks[].statement), as SQLSTATE or as the condition name of
            PostgreSQL's Appendix A, such as V(foreign_key_violation). With several, any one of them.
          - Deferrable constraints are made immediate first, so that they are tested as well.
        type: list
        elements: str
      when:
        description:
          - When a migration runs the check. This module runs every check now, whatever it says.
        type: str
        choices: [before_commit, after_commit]
      timeout:
        description: How long the check may take, such as V(500ms) or V(2m).
        type: str
        default: 30s
      as_role:
        description: Role to run the check as. The login role must be a member of it.
        type: str
      settings:
        description: Custom settings for the check, such as V(app.current_org_id). Their names contain a dot.
        type: dict
      criterion:
        description: Identifier of the evidence. The default is V(verify.) and the name.
        type: str
  path:
    description:
      - A plan file, or a directory that holds a migration set, on the host that executes the module.
      - Mutually exclusive with O(checks).
    type: path
  migration:
    description: Ids of the migrations of the plan whose checks run. The default is all of them.
    type: list
    elements: str
  phase:
    description: Phase of the run that the evidence belongs to.
    type: str
    default: verify
  fail_on_error:
    description: Whether the task fails when a check fails. The results are returned in either case.
    type: bool
    default: true
requirements:
  - PyYAML for O(path) with a plan file
  - jmespath, where a check uses it
notes:
  - A verification file of a plan (C(NNN_name.verify.sql)) is a list of checks. Each of its statements must run
    without an error, and where a query returns a single boolean column, every value must be true.
  - A check starts with the C(search_path) and C(row_security) of the session, with C(TimeZone) UTC and C(DateStyle)
    ISO.
seealso:
  - module: surefoot.dbops.postgresql_migration
    description: Runs the checks of a plan as part of a migration.
"""

EXAMPLES = r"""
- name: The schema is as the design says
  surefoot.dbops.postgresql_verification:
    login_url: "{{ lookup('env', 'DATABASE_URL') }}"
    checks:
      - name: eight indexes
        query: SELECT indexname FROM pg_indexes WHERE schemaname = 'platform' AND tablename = 'databases'
        expect: {rows: 8}

      - name: row level security is on everywhere
        query: >-
          SELECT c.relrowsecurity FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE n.nspname = 'platform' AND c.relkind = 'r'
        expect: {true: all}

      - name: the types of databases
        query: SELECT DISTINCT type FROM platform.databases
        expect: {set: [mongodb, redis]}

      - name: no project without an owner
        query: SELECT count(*) FROM platform.projects WHERE organization_id IS NULL
        expect: {scalar: 0}
        timeout: 2m

- name: What must be refused is refused
  surefoot.dbops.postgresql_verification:
    login_host: db1.example.com
    login_user: verifier
    login_password: "{{ verifier_password }}"
    login_db: platform
    ssl_mode: verify-full
    checks:
      - name: a row for an unknown project
        statement: >-
          INSERT INTO platform.databases (project_id, name, type, host, port, connection_string, status)
          VALUES (gen_random_uuid(), 'x', 'redis', 'h', 6379, 'redis://h', 'active')
        expect_error: foreign_key_violation

      - name: another organization's rows
        statement: INSERT INTO platform.projects SELECT * FROM platform.projects WHERE organization_id = :'other'
        expect_error: [insufficient_privilege, "42501"]
        as_role: app_user
        settings:
          app.current_org_id: 7f3c0000-0000-4000-8000-000000000001
    variables:
      other: 7f3c0000-0000-4000-8000-000000000002

- name: The checks of two migrations of a plan, without failing the play
  surefoot.dbops.postgresql_verification:
    login_db: platform
    path: migrations/lancio_platform
    migration:
      - 006_add_platform_databases_table
      - 006_enable_rls_with_permissive_policies
    fail_on_error: false
  register: verification

- name: Nothing failed
  ansible.builtin.assert:
    that: verification.failed_checks == 0
"""

RETURN = r"""
checks:
  description:
    - One entry a check, in the order in which they ran. Also returned when the task fails because of a failed check.
    - Texts are cut at 500 characters and lists at 20 items. Secrets are masked.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the check.
      type: str
    criterion:
      description: Identifier of its evidence.
      type: str
    migration:
      description: Id of the migration the check belongs to.
      type: str
    passed:
      description: Whether what was measured is what was required.
      type: bool
    measured:
      description: What was measured.
      type: raw
      sample: 7
    required:
      description: What was required.
      type: raw
      sample: 8
    seconds:
      description: How long the check took.
      type: float
    when:
      description: When a migration runs the check, V(before_commit) or V(after_commit).
      type: str
    kind:
      description: V(query) or V(statement).
      type: str
    expect:
      description:
        - The form of the expectation.
        - V(error) for a statement that must be refused, V(success) for one that must not.
      type: str
    sql:
      description: The check's SQL as written, before its variables were put in.
      type: str
    rows:
      description: Rows of a failed query.
      type: list
      elements: raw
    error:
      description: What the server said, when it was not what was required.
      type: dict
    file:
      description: File the check stands in, or the option.
      type: str
    line:
      description: Line in that file.
      type: int
    column:
      description: Column in that file.
      type: int
failed_checks:
  description: Number of checks that failed.
  returned: success
  type: int
  sample: 0
evidence:
  description: One record a check, as also written to C(evidence.jsonl) of O(run_dir).
  returned: success
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
    variables_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._checks import CheckGroup, Verification, read_checks
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import record
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible


def groups_of(params: dict[str, t.Any]) -> tuple[list[CheckGroup], dict[str, t.Any], list[str]]:
    """The checks that the options ask for, the values of the plain variables, and warnings."""
    if params["path"] is None:
        given = [{key: value for key, value in check.items() if value is not None} for check in params["checks"]]
        checks = read_checks(given, "checks")
        return [CheckGroup(checks)], params["variables"], []
    plan = load_plan(params["path"])
    chosen = [plan.migration(name) for name in params["migration"]] if params["migration"] else plan.migrations
    variables, _secrets = plan.values(params["variables"], params["secret_variables"], complete=False)
    groups = [CheckGroup(item.verify, item.id, item.session_settings) for item in chosen if item.verify]
    without = [item.id for item in chosen if not item.verify]
    return groups, variables, [f"no checks in the plan for {', '.join(without)}"] if without else []


def run(module: Invocation) -> dict[str, t.Any]:
    params = module.params
    if params["checks"] == []:
        raise PlanError("there are no checks", remedy="Give at least one in the option checks.")
    groups, variables, notes = groups_of(params)
    verification = Verification(
        connection_options(module),
        groups,
        variables=variables,
        secret_variables=params["secret_variables"],
        phase=params["phase"],
    )

    def results() -> dict[str, t.Any]:
        return {
            "changed": False,
            "checks": [result.to_dict() for result in verification.results],
            "failed_checks": sum(1 for result in verification.results if not result.passed),
            "evidence": record(params["run_dir"], [result.evidence() for result in verification.results]),
            "notes": notes,
        }

    try:
        run_interruptible(verification.run, verification.stop)
        failure = verification.failure()
        if failure is not None and params["fail_on_error"]:
            raise failure
    except SurefootError as exc:
        exc.results.update(results())
        raise
    return results()


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "checks": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "query": {"type": "str"},
                    "statement": {"type": "str"},
                    "expect": {"type": "dict"},
                    "expect_error": {"type": "list", "elements": "str"},
                    "when": {"type": "str", "choices": ["before_commit", "after_commit"]},
                    "timeout": {"type": "str", "default": "30s"},
                    "as_role": {"type": "str"},
                    "settings": {"type": "dict"},
                    "criterion": {"type": "str"},
                },
            },
            "path": {"type": "path"},
            "migration": {"type": "list", "elements": "str"},
            "phase": {"type": "str", "default": "verify"},
            "fail_on_error": {"type": "bool", "default": True},
        },
        mutually_exclusive=[("checks", "path")],
        required_one_of=[("checks", "path")],
        required_by={"migration": ("path",)},
    ).merge(connection_argument_spec(), run_argument_spec(), variables_argument_spec())


def main() -> None:
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
