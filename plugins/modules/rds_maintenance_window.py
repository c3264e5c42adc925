#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rds_maintenance_window
short_description: Set the maintenance window of an RDS instance, or hold maintenance off during a run
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Sets the maintenance window of a DB instance of Amazon RDS, Multi-AZ ones included. Format, days, length (30 minutes
    to 24 hours) and overlap with the backup window are checked before AWS is asked to change anything, in check mode
    too.
  - V(held) keeps what AWS does by itself away from a run. It turns automatic minor upgrades off and, where the window
    lies within O(horizon), moves it to the same time of another day. What was there before is kept in tags of the
    instance. V(released) puts it back.
  - C(ApplyImmediately) is never sent. With it, AWS would apply everything that waits for the window.
  - There is no way to forbid a failover in RDS. M(surefoot.dbops.rds_status_info) notices one. Multi-AZ is not touched.
  - Clusters (Aurora, Multi-AZ DB cluster) and their members are refused.
attributes:
  check_mode:
    support: full
    details:
      - The instance is read and everything is checked. What AWS itself would refuse besides is not known.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - A run that was killed between two calls is continued. The tags are written before the first change and removed
        after the last.
extends_documentation_fragment:
  - surefoot.dbops._aws
  - surefoot.dbops._run
options:
  db_instance_identifier:
    description: The DB instance.
    type: str
    required: true
    aliases: [instance_id, id]
  state:
    description:
      - V(present) sets O(preferred_maintenance_window) and O(auto_minor_version_upgrade). It is refused while the
        instance is held.
      - V(held) keeps maintenance away for O(horizon). It fails when a pending maintenance action is due within it, when
        the instance is not available, or when modifications wait.
      - V(released) restores what V(held) found. An instance that is not held is left as it is.
    type: str
    choices: [present, held, released]
    default: present
  preferred_maintenance_window:
    description:
      - The window in UTC, as V(sun:23:45-mon:00:15). Case does not matter.
      - With O(state=held), where to move the window, instead of the same time of another day.
    type: str
    aliases: [maintenance_window]
  auto_minor_version_upgrade:
    description: Whether AWS upgrades to new minor versions in the window. For O(state=present); unchanged if not given.
    type: bool
  horizon:
    description: For how long nothing of AWS's own may begin, up to five days. For O(state=held).
    type: str
    default: 4h
  allow_immediate_maintenance:
    description:
      - Whether the window may be moved onto the present while maintenance or modifications wait. AWS then begins with
        them at once, a restart included. For O(state=present) and O(state=released).
    type: bool
    default: false
  allow_pending_modifications:
    description:
      - Whether O(state=held) accepts modifications that wait for the window. The hold moves the window, and with it
        them.
    type: bool
    default: false
  wait_timeout:
    description: How long to wait for AWS to show the change.
    type: str
    default: 5m
seealso:
  - module: surefoot.dbops.rds_status_info
  - module: amazon.aws.rds_instance
    description: Everything else of an instance.
"""

EXAMPLES = r"""
- name: The window is on Sunday night
  surefoot.dbops.rds_maintenance_window:
    region: eu-central-1
    db_instance_identifier: platform-prod
    preferred_maintenance_window: sun:23:45-mon:00:15

- name: Change the schema while AWS keeps its hands off
  module_defaults:
    group/surefoot.dbops.rds:
      region: eu-central-1
      profile: migrations
  block:
    - name: Hold maintenance off for four hours
      surefoot.dbops.rds_maintenance_window:
        db_instance_identifier: platform-prod
        state: held
        horizon: 4h

    - name: Apply what is pending
      surefoot.dbops.postgresql_migration:
        login_url: "{{ database_url }}"
        path: migrations/lancio_platform
  always:
    - name: Put window and automatic upgrades back
      surefoot.dbops.rds_maintenance_window:
        db_instance_identifier: platform-prod
        state: released
"""

RETURN = r"""
db_instance_identifier:
  description: The instance.
  returned: always
  type: str
  sample: platform-prod
db_instance_arn:
  description: Its ARN.
  returned: always
  type: str
  sample: arn:aws:rds:eu-central-1:123456789012:db:platform-prod
db_instance_status:
  description: Its status.
  returned: always
  type: str
  sample: available
preferred_maintenance_window:
  description: The window, in lower case as AWS keeps it; in check mode, what it would be.
  returned: always
  type: str
  sample: sun:23:45-mon:00:15
preferred_backup_window:
  description: The daily backup window.
  returned: always
  type: str
  sample: 03:00-03:30
auto_minor_version_upgrade:
  description: Whether AWS upgrades to new minor versions in the window.
  returned: always
  type: bool
  sample: true
held:
  description: Whether the instance is held.
  returned: always
  type: bool
  sample: false
originals:
  description: What a hold found and will restore, or null.
  returned: always
  type: dict
  sample:
    preferred_maintenance_window: sun:08:00-sun:09:00
    auto_minor_version_upgrade: true
horizon:
  description: The time that must stay clear, C(from) and C(to); null unless O(state=held).
  returned: always
  type: dict
  sample: {"from": "2026-11-22T02:00:00Z", "to": "2026-11-22T06:00:00Z"}
pending_maintenance:
  description: Maintenance actions that wait; null where they did not matter and were not asked for.
  returned: always
  type: list
  elements: dict
  sample:
    - action: system-update
      description: New Operating System update is available
      opt_in_status: null
      current_apply_date: "2026-12-06T08:00:00Z"
      auto_applied_after_date: null
      forced_apply_date: null
pending_modifications:
  description: Modifications that wait for the window, by the name AWS gives them.
  returned: always
  type: dict
  sample: {"DBInstanceClass": "db.m7g.large"}
diff:
  description: Window, automatic minor upgrades and the tags of a hold, before and after.
  returned: success
  type: dict
evidence:
  description: With O(state=held), one record of C(rds.maintenance_held).
  returned: always
  type: list
  elements: dict
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: rds, message: "platform-prod is modifying, not available"}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    aws_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._aws import AwsOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, run_module
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._rds import (
    MaintenanceWindow,
    check_identifier,
    finished,
    window_request,
)


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "db_instance_identifier": {"type": "str", "required": True, "aliases": ["instance_id", "id"]},
            "state": {"type": "str", "choices": ["present", "held", "released"], "default": "present"},
            "preferred_maintenance_window": {"type": "str", "aliases": ["maintenance_window"]},
            "auto_minor_version_upgrade": {"type": "bool"},
            "horizon": {"type": "str", "default": "4h"},
            "allow_immediate_maintenance": {"type": "bool", "default": False},
            "allow_pending_modifications": {"type": "bool", "default": False},
            "wait_timeout": {"type": "str", "default": "5m"},
        },
        required_if=[("state", "present", ("preferred_maintenance_window", "auto_minor_version_upgrade"), True)],
    ).merge(aws_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    request = window_request(params, check_mode=module.check_mode)
    identifier = check_identifier(params["db_instance_identifier"], "db_instance_identifier", 63)
    api = AwsOptions.from_params(params).client("rds")
    work = MaintenanceWindow(api, identifier, request)
    return finished(lambda: run_interruptible(work.run, api.stop), None if module.check_mode else params["run_dir"])


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
