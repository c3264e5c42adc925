#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_baseline
short_description: Measure named queries, and tell whether they became slower
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Runs named queries warm, several times and in turn, and records of each the median and 95th percentile, the shape of
    its plan, its estimated cost, and the buffers it touches.
  - With O(compare_with), compares with an earlier result. A query counts as slower only when it is so beyond a
    threshold and beyond what the runs differ among themselves.
  - Sessions are read-only, and every run is a transaction that is rolled back.
  - Can analyze the tables that have no statistics, which a migration leaves behind.
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._connection
  - surefoot.dbops._run
attributes:
  check_mode:
    support: full
    details:
      - Queries are measured in check mode as well, because they only read. Nothing is analyzed, and no file is written.
  diff_mode:
    support: none
    details:
      - There is no earlier state to show; RV(plan_changes) says how plans differ.
  idempotent:
    support: full
    details:
      - With O(analyze=true), tables that have statistics are left alone.
options:
  queries:
    description:
      - The queries to measure, after those of O(path).
      - One of O(queries) and O(path) is needed, except with O(analyze=true).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What results, evidence and the comparison call it.
        type: str
        required: true
      query:
        description:
          - One C(SELECT), C(WITH), C(VALUES) or C(TABLE) statement.
          - Variables are written C(:'name'). Add a cast where the type is not text, as in C(:'id'::uuid), because
            secret variables and samples arrive as text.
        type: str
        required: true
      variables:
        description: Values for this query only.
        type: dict
      sample:
        description:
          - Variables whose value is taken from the database. Each is a query that returns one value; later ones can use
            earlier ones.
          - Write C(ORDER BY) and C(LIMIT 1), so that the same value is found before and after.
          - The value stays on the server. It is not in the statement's text, in any log, or in the result.
          - When it finds no row, the query is not measured.
        type: dict
  path:
    description:
      - A YAML file with a list C(queries), whose entries have the keys of O(queries), and a dictionary C(variables) for
        all of them. It is read on the host that executes the module.
    type: path
  label:
    description:
      - What this measurement is. V(before), V(after), or V(shadow); with V(shadow), or a word that begins with it, the
        comparison is the evidence C(baseline.shadow_regression).
      - The result file is C(baseline-<label>.json) in O(run_dir).
    type: str
    default: before
  compare_with:
    description:
      - The result file of an earlier measurement, on the host that executes the module.
      - A measurement of another server is scaled by what the reference query says of the two. Comparing a server with
        itself says more.
    type: path
  threshold:
    description:
      - How much slower than before a query may be, as a percentage.
    type: str
    default: 10%
  floor:
    description:
      - A difference of less than this is never a regression, whatever the percentage. It is what makes queries of less
        than a millisecond comparable.
    type: str
    default: 200us
  runs:
    description:
      - Runs of each query that are timed, 8 to 1000. They are spread over eight sessions.
    type: int
    default: 40
  warmup:
    description: Runs of each query at the begin of each session that are not counted, at least one.
    type: int
    default: 2
  budget:
    description:
      - Time that all timed runs together may take. Queries that are too slow for it run fewer times, at least once a
        session.
    type: str
    default: 20s
  statement_timeout:
    description: A query that takes longer has failed.
    type: str
    default: 10s
  settings:
    description: Custom settings of the sessions, such as C(app.current_org_id). Their names contain a dot.
    type: dict
    default: {}
  variables:
    description: Values for C(:'name') in the queries.
    type: dict
    default: {}
  secret_variables:
    description:
      - Values for C(:'name') that must not be statement text. They travel as settings of the session, and the query
        reads them by C(current_setting()).
    type: dict
    default: {}
  analyze:
    description:
      - Run C(ANALYZE) first on tables with rows that were never analyzed, or have a column or an index expression
        without statistics.
      - Needs the table's owner, the database's owner, or the privilege C(MAINTAIN). Tables that it may not analyze are
        warned of.
    type: bool
    default: false
  fail_on_regression:
    description:
      - Whether the task fails when a query became slower, fails, or returns no rows any more.
      - By default it does not. Whether that is a reason to roll back is for the policy to decide.
    type: bool
    default: false
requirements:
  - PyYAML for O(path)
notes:
  - Measure as the role the application uses (O(session_role)). Row level security does nothing for the owner of a table
    or a superuser.
  - Functions that a query calls can have effects outside of the database, which nothing takes back.
seealso:
  - module: surefoot.dbops.http_probe
    description: The same question, asked of the application.
"""

EXAMPLES = r"""
- name: Measure before the migration
  surefoot.dbops.postgresql_baseline:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    session_role: app_user
    path: migrations/lancio_platform/queries.yml
    label: before
    run_dir: /var/lib/surefoot/runs/r42

- name: Measure afterwards, and compare
  surefoot.dbops.postgresql_baseline:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    session_role: app_user
    path: migrations/lancio_platform/queries.yml
    label: after
    compare_with: /var/lib/surefoot/runs/r42/baseline-before.json
    threshold: 10%
    analyze: true
    run_dir: /var/lib/surefoot/runs/r42
  register: baseline

- name: A query of one's own
  surefoot.dbops.postgresql_baseline:
    login_db: shop
    label: before
    run_dir: /var/lib/surefoot/runs/r43
    queries:
      - name: open_orders
        query: |-
          SELECT * FROM orders WHERE customer = :'customer'::bigint AND state = :'state'
          ORDER BY placed DESC LIMIT 20
        variables:
          state: open
        sample:
          customer: SELECT customer FROM orders GROUP BY customer ORDER BY count(*) DESC, customer LIMIT 1

- name: Only analyze what was never analyzed
  surefoot.dbops.postgresql_baseline:
    login_db: shop
    analyze: true
"""

RETURN = r"""
queries:
  description: What was measured, one entry a query. Times are milliseconds from sending a query to having its answer.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: session_lookup
    problem:
      description:
        - Why it was not measured. V(absent) when a table, column or function is not there, V(no_sample) when a sample
          found no row, V(error) otherwise; null when it was measured.
      type: str
      sample: null
    message:
      description: What the server said, when there was a problem.
      type: str
      sample: null
    query:
      description: Its text as written.
      type: str
      sample: SELECT 1
    sha256:
      description: Hash of its text and its samples' text.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    runs:
      description: Number of timed runs.
      type: int
      sample: 40
    rows:
      description: Number of rows it returned.
      type: int
      sample: 50
    median_ms:
      description: Median.
      type: float
      sample: 0.213
    p95_ms:
      description: 95th percentile, by nearest rank.
      type: float
      sample: 0.241
    spread_ms:
      description: Distance between the lowest and the highest lower quartile of a session.
      type: float
      sample: 0.047
    plan:
      description: Shape of its plan, one indented line a node.
      type: list
      elements: str
      sample: [Limit, "  Index Scan using idx_audit_logs_organization_id on platform.audit_logs"]
    plan_hash:
      description: sha256 of the shape, which holds node types, relations, indexes and join types, and no costs.
      type: str
      sample: 60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752
    cost:
      description: Estimated total cost.
      type: float
      sample: 9.43
    buffers:
      description: Shared buffers that one run found in memory (C(hit)) and had to read (C(read)).
      type: dict
      sample: {hit: 6, read: 0}
comparison:
  description: The comparison with O(compare_with); null without it.
  returned: success
  type: dict
  sample:
    label: before
    same_server: true
    drift: 1.004
    rule: median and lower quartile grew by more than 10% and 0.2 ms, and those of the sessions moved
    verdict: pass
    queries:
      - {name: session_lookup, verdict: unchanged, ratio: 1.03, scale: 1.004, probability: 0.11, detectable: 1.97}
    regressions: []
    unjudged: {}
    measured_again: []
    slowest_ratio: 1.03
    plan_changes: []
regressions:
  description: The queries that became worse.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: audit_log_page
    kind:
      description:
        - V(regressed) when it became slower, V(failed) when it fails now, V(no_rows) when it returned rows before and
          returns none.
      type: str
      sample: regressed
    message:
      description: What happened, in one line.
      type: str
      sample: "audit_log_page: median 18.2 ms, 76 times the 0.24 ms before (platform.audit_logs: Seq Scan where ...)"
plan_changes:
  description: How plans differ from before, whether or not the query became slower.
  returned: success
  type: list
  elements: str
  sample: ["audit_log_page: platform.audit_logs: Seq Scan where Index Scan using idx_audit_logs_organization_id was"]
without_statistics:
  description: Tables with rows that lacked statistics when the task began.
  returned: success
  type: list
  elements: dict
  sample: [{table: platform.databases, reason: never analyzed, may_analyze: true}]
analyzed:
  description: Tables that were analyzed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [platform.databases]
path:
  description: The result file; null without O(run_dir) and in check mode.
  returned: success
  type: str
  sample: /var/lib/surefoot/runs/r42/baseline-after.json
evidence:
  description:
    - Evidence records with the criteria C(baseline.recorded) and, with O(compare_with), C(baseline.regression) or
      C(baseline.shadow_regression), and C(baseline.plan_changes).
  returned: success
  type: list
  elements: dict
  sample:
    - criterion: baseline.regression
      phase: compare
      verdict: pass
      measured: {slowest_ratio: 1.03}
      required: "no query slower: ..."
      source: 5 queries on app@db1:5432/platform, 8 sessions, label after
      time: "2026-11-22T02:00:12.345Z"
      details: {drift: 1.004, same_server: true, unjudged: {}}
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: verification, message: 1 of 5 queries became worse, remedy: Compare the plans ...}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._baseline import (
    Baseline,
    Request,
    load_earlier,
    load_queries,
    parse_queries,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._noise import Rule, parse_share
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "queries": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "query": {"type": "str", "required": True},
                    "variables": {"type": "dict"},
                    "sample": {"type": "dict"},
                },
            },
            "path": {"type": "path"},
            "label": {"type": "str", "default": "before"},
            "compare_with": {"type": "path"},
            "threshold": {"type": "str", "default": "10%"},
            "floor": {"type": "str", "default": "200us"},
            "runs": {"type": "int", "default": 40},
            "warmup": {"type": "int", "default": 2},
            "budget": {"type": "str", "default": "20s"},
            "statement_timeout": {"type": "str", "default": "10s"},
            "settings": {"type": "dict", "default": {}},
            "variables": {"type": "dict", "default": {}},
            "secret_variables": {"type": "dict", "default": {}, "no_log": True},
            "analyze": {"type": "bool", "default": False},
            "fail_on_regression": {"type": "bool", "default": False},
        },
    ).merge(connection_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    queries, variables = load_queries(params["path"]) if params["path"] else ([], {})
    request = Request(
        queries=[*queries, *parse_queries(params["queries"], "the option queries")],
        label=params["label"],
        variables={**variables, **params["variables"]},
        secret_variables=params["secret_variables"],
        settings={name: str(value) for name, value in params["settings"].items()},
        runs=params["runs"],
        warmup=params["warmup"],
        budget=parse_duration(params["budget"]),
        statement_timeout=parse_duration(params["statement_timeout"]),
        rule=Rule(parse_share(params["threshold"]), parse_duration(params["floor"]) * 1000),
        before=load_earlier(params["compare_with"]),
        analyze=params["analyze"],
    )
    baseline = Baseline(connection_options(module), request, check_mode=module.check_mode)
    run_interruptible(baseline.run, baseline.stop)
    results = baseline.results(None if module.check_mode else params["run_dir"])
    failure = baseline.failure()
    if failure is not None and params["fail_on_regression"]:
        failure.results.update(results)
        raise failure
    return results


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
