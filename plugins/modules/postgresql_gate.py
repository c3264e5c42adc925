#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_gate
short_description: Decide GO or NO-GO for a PostgreSQL migration from its evidence
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Reads the evidence in the run directory, checks its chain, and holds it against the policy. Every criterion must be
    met, or be waived with reason, name and expiry. What was not measured does not pass.
  - A GO is bound to what was decided on. That is the database, its timeline and catalog, the files, the variables and
    secrets, the policy, the backup, and the approvals. M(surefoot.dbops.postgresql_migration) refuses it when one of
    them changed, or when it expired.
  - The database is only read. After a NO-GO nothing in it was touched.
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._connection
  - surefoot.dbops._run
  - surefoot.dbops._variables
attributes:
  check_mode:
    support: full
    details:
      - Nothing is written and no GO is given. The result lists what would still have to be measured, which does not
        fail the task; what was measured and failed does.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - Writes to the run directory only, which does not count as a change.
options:
  path:
    description: Migration set, as in M(surefoot.dbops.postgresql_migration).
    type: path
    required: true
  state:
    description:
      - V(go) decides before the apply, and writes the bound GO.
      - V(sign_off) decides after the apply, whether the migration can be signed off.
      - V(monitor) decides in the days after it.
      - Only V(go) connects to the database.
    type: str
    choices: [go, sign_off, monitor]
    default: go
  to:
    description: Last migration that is to be applied, inclusive.
    type: str
  only:
    description: Migrations that are to be applied.
    type: list
    elements: str
    default: []
  include_manual:
    description: Manual migrations that are to be applied.
    type: list
    elements: str
    default: []
  policy:
    description:
      - What the environment demands. Keys that are not given take their strictest value; unknown keys are errors.
      - The result RV(surefoot.dbops.run#module:policy) of M(surefoot.dbops.run) can be given as it is.
    type: dict
    default: {}
  attestations:
    description:
      - What people say where nothing can be measured. One whose O(attestations[].until) is past does not count.
    type: list
    elements: dict
    default: []
    suboptions:
      criterion:
        description: Name of the attestation, such as V(attestation.no_incident).
        type: str
        required: true
      by:
        description: Who says so.
        type: str
        required: true
      at:
        description: When, as a date or an ISO 8601 time. UTC where no zone is named.
        type: str
        required: true
      statement:
        description: What.
        type: str
        required: true
      until:
        description: Until when it counts. A date counts to its end.
        type: str
        required: true
  approvals:
    description:
      - Names for the approvals that the policy demands, such as C({prepared, reviewed, approved}).
    type: dict
    default: {}
  backup:
    description: The backup of the run. Without it there is no proof of a backup's age and identity.
    type: dict
    suboptions:
      path:
        description: Directory of the backup.
        type: path
        required: true
      manifest_sha256:
        description: SHA-256 of its manifest, as M(surefoot.dbops.postgresql_backup) returned it.
        type: str
        required: true
  notified_at:
    description:
      - When the pre-migration notification went out, if M(surefoot.dbops.notify) did not send it in this run.
    type: str
  configured:
    description:
      - What the run is set up to measure, as criteria or their first words, such as V(http). Then all of it must have
        been measured.
    type: list
    elements: str
    default: []
  evidence:
    description:
      - Evidence records that other tasks returned. Looked at in check mode only, where there is no run directory.
    type: list
    elements: dict
    default: []
  fail_on_no_go:
    description: Whether a NO-GO fails the task.
    type: bool
    default: true
  go_key:
    description:
      - Key that seals the GO, at least 32 random characters, the same for the apply.
      - Without it a key is made and kept as C(go.key), mode 0600, beside the GO.
    type: str
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
  - module: surefoot.dbops.postgresql_backup
  - module: surefoot.dbops.run
"""

EXAMPLES = r"""
- name: Decide
  surefoot.dbops.postgresql_gate:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    path: migrations/app
    run_id: "{{ started.run_id }}"
    run_dir: "{{ started.run_dir }}"
    policy: "{{ started.policy }}"
    backup:
      path: "{{ backup.backup.path }}"
      manifest_sha256: "{{ backup.backup.manifest_sha256 }}"
    approvals:
      prepared: Ada Lovelace
      reviewed: Grace Hopper
      approved: Katherine Johnson
    attestations:
      - criterion: attestation.no_incident
        by: on-call
        at: "2026-11-22T01:45:00Z"
        statement: no incident is open
        until: "2026-11-22T04:00:00Z"
  register: gate

- name: Apply, unless something changed since
  surefoot.dbops.postgresql_migration:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    path: migrations/app
    go: "{{ gate.go }}"
    policy: "{{ started.policy }}"
    run_id: "{{ started.run_id }}"
    run_dir: "{{ started.run_dir }}"

- name: Decide whether it can be signed off
  surefoot.dbops.postgresql_gate:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    path: migrations/app
    state: sign_off
    run_id: "{{ started.run_id }}"
    run_dir: "{{ started.run_dir }}"
    policy: "{{ started.policy }}"
"""

RETURN = r"""
decision:
  description:
    - V(GO), V(NO-GO), or in check mode V(UNDECIDED) when nothing failed and something is still to be measured.
  type: str
  returned: always
  sample: GO
time:
  description: When it was decided, UTC.
  type: str
  returned: always
  sample: "2026-11-22T02:05:00Z"
criteria:
  description: Every criterion of the stage.
  type: list
  elements: dict
  returned: always
  contains:
    criterion:
      description: Name.
      type: str
      sample: backup.verified
    stage:
      description: Stage it was judged in.
      type: str
    demand:
      description: What the policy demands of it, V(required), V(demanded) (by name), V(when_configured),
        V(when_measurable), or V(optional).
      type: str
    verdict:
      description: Verdict of its evidence.
      type: str
    status:
      description: V(pass), V(fail), V(missing), V(waived), V(not_required), or V(not_applicable).
      type: str
    measured:
      description: What was measured.
      type: raw
    required:
      description: What is required.
      type: raw
    how:
      description: What measures it.
      type: str
    phase:
      description: Phase of the run it was measured in.
      type: str
    time:
      description: When it was measured.
      type: str
    waiver:
      description: The waiver, with C(reason), C(by), and C(expires).
      type: dict
failures:
  description: What failed, one line each, measured against required.
  type: list
  elements: str
  returned: always
  sample: ["backup.minimum_size: measured 5120, required 102400"]
missing:
  description: What is demanded and was not measured, one line each, with what measures it.
  type: list
  elements: str
  returned: always
  sample: ["rehearsal.deploy: not measured; measured by: postgresql_rehearsal on the restored copy"]
waived:
  description: Waivers that were needed.
  type: list
  elements: dict
  returned: always
  sample: [{criterion: watch.disk, reason: managed service, by: dba-oncall, expires: "2026-12-31", verdict: fail}]
boxes:
  description: The tick boxes of the source documents that belong to this stage, with the status of their criteria.
  type: list
  elements: dict
  returned: always
  sample:
    - id: platform:90
      section: Database Backup
      text: larger than 100 KB
      stage: go
      criteria: [backup.minimum_size]
      status: pass
notes:
  description: What should be known beside, such as a waiver that was not needed.
  type: list
  elements: str
  returned: on success
go:
  description: Path of the bound GO, for M(surefoot.dbops.postgresql_migration). Null for a NO-GO.
  type: str
  returned: always
  sample: /home/ops/platform/surefoot-runs/20261122T020000Z-5f2c1a/go.json
expires:
  description: When the GO expires, UTC.
  type: str
  returned: always
  sample: "2026-11-22T03:05:00Z"
msg:
  description: The decision in lines for an operator; of a failed task one line.
  type: raw
  returned: always
evidence:
  description: What the gate measured itself, and its decision, as records.
  type: list
  elements: dict
  returned: always
error:
  description: The error as an object, with C(code), C(message), C(remedy).
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
from ansible_collections.surefoot.dbops.plugins.module_utils._gate import GateRequest, hold_gate, no_go
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import DEFAULT_SCHEMA, new_run_id
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import resolve_policy


def run(module: Invocation) -> dict[str, t.Any]:
    params = module.params
    module.never_show(params["go_key"])
    request = GateRequest(
        stage=params["state"],
        run_id=params["run_id"] or new_run_id(),
        run_dir=params["run_dir"],
        policy=resolve_policy(params["policy"]),
        ledger_schema=params["ledger_schema"],
        check_mode=module.check_mode,
        to=params["to"],
        only=tuple(params["only"]),
        include_manual=tuple(params["include_manual"]),
        variables=params["variables"],
        secrets=params["secret_variables"],
        attestations=params["attestations"],
        approvals=params["approvals"],
        backup=params["backup"],
        notified_at=params["notified_at"],
        configured=tuple(params["configured"]),
        records=tuple(params["evidence"]),
        go_key=params["go_key"],
        allow_session_pooler=params["allow_session_pooler"],
    )
    outcome = hold_gate(load_plan(params["path"]), connection_options(module), request)
    if params["fail_on_no_go"] and outcome.decision.decision == "NO-GO":
        raise no_go(outcome)
    return outcome.results()


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["go", "sign_off", "monitor"], "default": "go"},
            "to": {"type": "str"},
            "only": {"type": "list", "elements": "str", "default": []},
            "include_manual": {"type": "list", "elements": "str", "default": []},
            "policy": {"type": "dict", "default": {}},
            "attestations": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    name: {"type": "str", "required": True} for name in ("criterion", "by", "at", "statement", "until")
                },
            },
            "approvals": {"type": "dict", "default": {}},
            "backup": {
                "type": "dict",
                "options": {
                    "path": {"type": "path", "required": True},
                    "manifest_sha256": {"type": "str", "required": True},
                },
            },
            "notified_at": {"type": "str"},
            "configured": {"type": "list", "elements": "str", "default": []},
            "evidence": {"type": "list", "elements": "dict", "default": []},
            "fail_on_no_go": {"type": "bool", "default": True},
            "go_key": {"type": "str", "no_log": True},
            "ledger_schema": {"type": "str", "default": DEFAULT_SCHEMA},
            "allow_session_pooler": {"type": "bool", "default": False},
        },
    ).merge(connection_argument_spec(), run_argument_spec(), variables_argument_spec())


def main() -> None:
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
