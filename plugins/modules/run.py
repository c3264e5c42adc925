#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: run
short_description: Begin and end a run over one database, on the controller
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - With O(state=started), checks what a run is given before anything connects. The policy, that a database is named,
    and that every secret variable of the plan has a value. Then makes the run directory.
  - With O(state=judged), holds what went wrong after GO against the rollback matrix of the policy and returns what that
    decides.
  - With O(state=reported), writes C(run.json), the report and its messages to the run directory.
  - With O(state=finished), does the same again, with what was judged since, and shows what was done. The role
    P(surefoot.dbops.surefoot_run#role) calls both in C(always), so that a failed run is summed up as well.
  - Its own files do not count as a change.
attributes:
  action:
    description:
      - Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details:
      - No run directory is made.
  diff_mode:
    description:
      - Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: none
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled or queried by the module has not changed in a relevant way.
    support: full
options:
  state:
    description: Which end of the run.
    type: str
    choices: [started, judged, reported, finished]
    required: true
  run_id:
    description: Identifier of the run and name of its directory. Made up from time and a random part when not given.
    type: str
  run_base:
    description:
      - Directory the run directories are made in. Relative to the directory C(ansible-playbook) was started in.
      - The default is V(surefoot-runs).
    type: path
  action:
    description: What the run does.
    type: str
    choices: [migrate, rollback, baseline, announce, sign_off, monitor]
    default: migrate
  path:
    description:
      - Migration set, as in M(surefoot.dbops.postgresql_migration). Read for the names of its secret variables.
      - Required for O(state=started).
    type: path
  go:
    description:
      - Run directory of a run that was stopped after its rehearsal or its GO and applied nothing. This run goes on with
        it.
    type: path
  connection:
    description:
      - Connection options, as of the other modules. Only checked for naming a database.
      - Required for O(state=started).
    type: dict
  secret_variables:
    description: Secret variables. Only checked for having values.
    type: dict
  policy:
    description:
      - What the environment demands. Keys that are not given take their strictest value; unknown keys are errors.
      - The page about the gate in the collection's C(docs) describes the keys.
    type: dict
  policy_overrides:
    description: Merged over O(policy).
    type: dict
  backup:
    description: V(false) leaves out a backup that the policy says is optional.
    type: bool
    default: true
  rehearsal:
    description: V(false) leaves out a rehearsal that the policy says is optional.
    type: bool
    default: true
  requested_by:
    description: Name recorded as who asked for the run.
    type: str
  approved_by:
    description: Name recorded as who approved the run.
    type: str
  run:
    description: What the start returned. Required for O(state=judged), O(state=reported), and O(state=finished).
    type: dict
  phases:
    description:
      - Registered results of the run's tasks, or the names of the variables that hold them, under C(plan),
        C(preflight), C(probes_before), C(baseline_before), C(backup), C(shadow), C(rehearsal), C(baseline_shadow),
        C(gate), C(pause), C(migration), C(verification), C(resume), C(probes_after), C(baseline_after), C(server_log),
        C(sign_off), and C(monitor).
    type: dict
    default: {}
  stop_after:
    description: The phase the run was asked to end after, V(rehearse), V(gate), or nothing.
    type: str
    default: ""
  judgement:
    description: What O(state=judged) returned.
    type: dict
    default: {}
  rescue:
    description: Registered result of the rollback that was decided.
    type: dict
    default: {}
  complete:
    description: Whether the last phase came to its end.
    type: bool
    default: false
  rollback_hint:
    description: The command that takes back what was applied, for the closing lines.
    type: str
    default: ""
  attestations:
    description: What persons say, as of M(surefoot.dbops.postgresql_gate). Only checked for being complete.
    type: list
    elements: dict
    default: []
  pause_writes:
    description:
      - Files of tasks that pause the writes of the application before the apply and resume them afterwards, C(pause)
        and C(resume). Only read here, with O(state=started). Relative to the directory C(ansible-playbook) was started
        in.
      - Empty where writes are not paused.
    type: dict
    default: {}
  rollback_checks:
    description:
      - What must hold after a rollback. Only read here, with O(state=started), so that a mistake does not come to light
        when it is needed.
    type: list
    elements: dict
    default: []
  notes:
    description:
      - Notes of the operators for the report, each with C(text), C(kind) (V(note), V(issue), V(resolution), or
        V(next_step)), and C(by).
    type: list
    elements: dict
    default: []
  notice:
    description:
      - What the messages say of the time, the contact, the controls, and who owns which phase.
      - Its keys are in the guide's page on messages. An unknown one is an error.
    type: dict
    default: {}
seealso:
  - module: surefoot.dbops.postgresql_migration
"""

EXAMPLES = r"""
- name: Start the run
  surefoot.dbops.run:
    state: started
    path: migrations/app
    connection:
      login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    policy:
      backup: required
      lock_budget: 200ms
  register: started

- name: Sum up
  surefoot.dbops.run:
    state: finished
    run: "{{ started }}"
    complete: true
    phases:
      migration: migration
"""

RETURN = r"""
run_id:
  description: Identifier of the run.
  type: str
  returned: when O(state=started)
  sample: 20261122T030000Z-5f2c1a
run_dir:
  description: The run directory, of mode 0700. Null in check mode.
  type: str
  returned: when O(state=started)
  sample: /home/ops/platform/surefoot-runs/20261122T030000Z-5f2c1a
run_base:
  description: The directory it lies in.
  type: str
  returned: when O(state=started)
  sample: /home/ops/platform/surefoot-runs
policy:
  description: The policy in force, every key with its value.
  type: dict
  returned: when O(state=started)
  sample: {backup: required, backup_max_age: 0s, lock_budget: 500ms, pool_saturation_max: 90%}
backup:
  description: Whether a backup is to be taken when something is to be done.
  type: bool
  returned: when O(state=started)
  sample: true
rehearse:
  description: Whether the migration is to be rehearsed.
  type: bool
  returned: when O(state=started)
  sample: true
restore:
  description: Whether the backup is to be restored, as proof and for the rehearsal.
  type: bool
  returned: when O(state=started)
  sample: true
decided:
  description: Whether a run that goes on has its GO.
  type: bool
  returned: when O(state=started)
  sample: false
backup_taken:
  description: The backup that a run that goes on took before, with C(path) and C(manifest_sha256).
  type: dict
  returned: when O(state=started)
  sample: {}
pause_writes:
  description: The files of tasks with absolute paths, C(pause) and C(resume). Empty when there are none.
  type: dict
  returned: when O(state=started)
  sample: {}
writes_paused:
  description: What a run that was killed left paused, as of M(surefoot.dbops.write_pause). Empty when nothing is.
  type: dict
  returned: when O(state=started)
  sample: {}
started:
  description: When, UTC.
  type: str
  returned: when O(state=started)
  sample: "2026-11-22T03:00:00.000Z"
actor:
  description: The real user and host, and the names recorded beside them.
  type: dict
  returned: when O(state=started)
  sample: {os_user: ops, host: bastion, requested_by: null, approved_by: null}
decision:
  description: What the rollback matrix decides, V(roll_back), V(ask), V(fix_forward), V(monitor), or V(go_on).
  type: str
  returned: when O(state=judged)
  sample: roll_back
severity:
  description: The worst of what failed, V(CRITICAL), V(HIGH), or V(MEDIUM); null when nothing failed.
  type: str
  returned: when O(state=judged)
  sample: CRITICAL
failures:
  description: What failed, each with C(kind) (its class in the matrix), C(reason), and C(severity).
  type: list
  elements: dict
  returned: when O(state=judged)
roll_back:
  description: The migrations that a rollback would take back, newest first.
  type: list
  elements: str
  returned: when O(state=judged)
line:
  description: What failed and what is to be done, in one line.
  type: str
  returned: when O(state=judged)
wrote:
  description: Whether a report was written. There is none when nothing was to be done.
  type: bool
  returned: when O(state=reported) or O(state=finished)
  sample: true
applied:
  description: Whether the run succeeded and applied something.
  type: bool
  returned: when O(state=reported) or O(state=finished)
  sample: true
report:
  description: The report, or why there is none; null when nothing was to be done.
  type: str
  returned: when O(state=reported) or O(state=finished)
  sample: /home/ops/platform/surefoot-runs/20261122T030000Z-5f2c1a/report.html
msg:
  description: What was done, in lines for an operator.
  type: list
  elements: str
  returned: when O(state=finished)
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

REQUIRED_IF = [
    ("state", "started", ("connection", "path")),
    ("state", "judged", ("run",)),
    ("state", "reported", ("run",)),
    ("state", "finished", ("run",)),
]


def argument_spec() -> dict[str, dict[str, t.Any]]:
    """The options, for the action plugin that does the work."""
    return {
        "state": {"type": "str", "choices": ["started", "judged", "reported", "finished"], "required": True},
        "run_id": {"type": "str"},
        "run_base": {"type": "path"},
        "action": {
            "type": "str",
            "choices": ["migrate", "rollback", "baseline", "announce", "sign_off", "monitor"],
            "default": "migrate",
        },
        "path": {"type": "path"},
        "go": {"type": "path"},
        "connection": {"type": "dict", "no_log": True},
        "secret_variables": {"type": "dict", "no_log": True},
        "policy": {"type": "dict"},
        "policy_overrides": {"type": "dict"},
        "backup": {"type": "bool", "default": True},
        "rehearsal": {"type": "bool", "default": True},
        "requested_by": {"type": "str"},
        "approved_by": {"type": "str"},
        "run": {"type": "dict"},
        "phases": {"type": "dict", "default": {}},
        "stop_after": {"type": "str", "default": ""},
        "judgement": {"type": "dict", "default": {}},
        "rescue": {"type": "dict", "default": {}},
        "complete": {"type": "bool", "default": False},
        "rollback_hint": {"type": "str", "default": ""},
        "attestations": {"type": "list", "elements": "dict", "default": []},
        "pause_writes": {"type": "dict", "default": {}},
        "rollback_checks": {"type": "list", "elements": "dict", "default": []},
        "notes": {"type": "list", "elements": "dict", "default": []},
        "notice": {"type": "dict", "default": {}},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), required_if=REQUIRED_IF, supports_check_mode=True)
    module.fail_json(
        msg="surefoot.dbops.run works on the controller, but its action plugin was not found. Install all of it."
    )


if __name__ == "__main__":
    main()
