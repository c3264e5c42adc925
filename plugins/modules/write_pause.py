#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: write_pause
short_description: Note that the writes of an application are paused, so that somebody resumes them
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Keeps a note beside the run directories from before writes are paused until they go on. It neither pauses nor
    resumes; the tasks between do. The role P(surefoot.dbops.surefoot_pause#role) puts both together.
  - With O(state=begun), writes the note, and leaves a process behind. When C(ansible-playbook) ends while the note is
    there, also when it is killed, that process runs the playbook C(surefoot.dbops.resume_writes) with the same
    inventory.
  - With O(state=found), tells what is to be resumed from here. That is what this playbook paused, and what a run that
    is over left paused.
  - With O(state=paused) or O(state=resumed), records how the tasks ended as evidence, and fails when they failed.
attributes:
  action:
    description:
      - Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details:
      - Nothing is noted, and nothing is to be resumed.
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
    description: What happened, or is about to.
    type: str
    choices: [begun, paused, found, resumed]
    required: true
  run_base:
    description:
      - Directory of the run directories, where the note lies. Relative to the directory C(ansible-playbook) was started
        in.
      - The default is V(surefoot-runs).
    type: path
  run_id:
    description: Identifier of the run that pauses writes. Required for O(state=begun).
    type: str
  run_dir:
    description: Run directory that the evidence is added to.
    type: path
  pause:
    description: File of the tasks that pause writes. Required for O(state=begun).
    type: path
  resume:
    description:
      - File of the tasks that resume writes. Required for O(state=begun).
      - With O(state=found), what to use when the file of the note is not there any more.
    type: path
  requested_by:
    description: Name recorded as who asked for the pause. The default is the user of the operating system.
    type: str
  error:
    description: Why the tasks failed. Empty when they ended well.
    type: str
    default: ""
  force:
    description:
      - With O(state=found), V(true) also takes what was paused from another machine, of which nobody here can tell
        whether its run is over.
    type: bool
    default: false
  timeout:
    description: With O(state=found), seconds to wait for a process that is resuming writes already.
    type: int
    default: 600
seealso:
  - module: surefoot.dbops.pgbouncer
"""

EXAMPLES = r"""
- name: Change something while nobody writes
  block:
    - name: Note that writes are being paused
      surefoot.dbops.write_pause:
        state: begun
        run_id: "{{ started.run_id }}"
        pause: "{{ inventory_dir }}/scale_down.yml"
        resume: "{{ inventory_dir }}/scale_up.yml"

    - name: Pause
      ansible.builtin.include_tasks: "{{ inventory_dir }}/scale_down.yml"

    - name: Note that they are paused
      surefoot.dbops.write_pause:
        state: paused
  always:
    - name: Resume
      ansible.builtin.include_tasks: "{{ inventory_dir }}/scale_up.yml"

    - name: Note that they go on
      surefoot.dbops.write_pause:
        state: resumed
"""

RETURN = r"""
pause:
  description:
    - The note. Empty when nothing is to be resumed, and in check mode.
    - C(pause) and C(resume) are the files, C(since) and C(by) say when and who, C(process) is pid and start time of who
      answers for the resume, C(seconds) how long it took so far.
  type: dict
  returned: always
  sample:
    host: platform
    run_id: 20261122T030000Z-5f2c1a
    since: "2026-11-22T03:04:00.000Z"
    by: ops@bastion
    controller: bastion
    pause: /home/ops/platform/prod/scale_down.yml
    resume: /home/ops/platform/prod/scale_up.yml
    process: [4711, 918273]
    guardian: false
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

REQUIRED_IF = [("state", "begun", ("run_id", "pause", "resume"))]


def argument_spec() -> dict[str, dict[str, t.Any]]:
    """The options, for the action plugin that does the work."""
    return {
        "state": {"type": "str", "choices": ["begun", "paused", "found", "resumed"], "required": True},
        "run_base": {"type": "path"},
        "run_id": {"type": "str"},
        "run_dir": {"type": "path"},
        "pause": {"type": "path"},
        "resume": {"type": "path"},
        "requested_by": {"type": "str"},
        "error": {"type": "str", "default": ""},
        "force": {"type": "bool", "default": False},
        "timeout": {"type": "int", "default": 600},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), required_if=REQUIRED_IF, supports_check_mode=True)
    module.fail_json(
        msg="surefoot.dbops.write_pause works on the controller, and its action plugin was not found. Install all."
    )


if __name__ == "__main__":
    main()
