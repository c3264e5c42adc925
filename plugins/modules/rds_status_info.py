#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rds_status_info
short_description: Say what an RDS instance is and does, what waits, and whether it failed over
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Reads state, pending maintenance, pending modifications, Blue/Green deployments and the events of a DB instance of
    Amazon RDS.
  - RDS has no switch that forbids a failover. With O(compare_with) of a look before a run, this module notices one, by
    events and because availability zones change places, and a restart, a recovery and an instance of the same name that
    is another one as well.
  - With O(metrics), compares CPU and freeable memory with the days before, by CloudWatch.
  - Clusters (Aurora, Multi-AZ DB cluster) and their members are refused.
extends_documentation_fragment:
  - surefoot.dbops._attributes.info_module
  - surefoot.dbops._aws
  - surefoot.dbops._run
options:
  db_instance_identifier:
    description: The DB instance.
    type: str
    required: true
    aliases: [instance_id, id]
  since:
    description:
      - From when on events count, as V(2026-11-22T02:00:00Z), or how long ago, as V(24h). At most 14 days, for which
        RDS keeps them.
      - The default is the time of O(compare_with), and without it V(1h).
    type: str
  compare_with:
    description: RV(instance) of an earlier call, to compare with.
    type: dict
  metrics:
    description: Compare CPU and freeable memory with the days before. They are not asked for without it.
    type: dict
    suboptions:
      period:
        description: How much of the time up to now is looked at, V(1h) to V(24h).
        type: str
        default: 24h
      days:
        description: The number of days before, 1 to 14. The same time of each of them is looked at.
        type: int
        default: 7
      cpu_max_increase:
        description: By how many percentage points the average of C(CPUUtilization) may be above the median of the days.
        type: float
        default: 20
      memory_max_decrease:
        description: By which share the average of C(FreeableMemory) may be below the median of the days.
        type: str
        default: 20%
seealso:
  - module: surefoot.dbops.rds_maintenance_window
  - module: surefoot.dbops.rds_log_info
"""

EXAMPLES = r"""
- name: How it stands before the run
  surefoot.dbops.rds_status_info:
    region: eu-central-1
    db_instance_identifier: platform-prod
    run_dir: /var/lib/surefoot/runs/r42
  register: before

- name: Apply what is pending
  surefoot.dbops.postgresql_migration:
    login_url: "{{ database_url }}"
    path: migrations/lancio_platform

- name: Was there a failover meanwhile?
  surefoot.dbops.rds_status_info:
    region: eu-central-1
    db_instance_identifier: platform-prod
    compare_with: "{{ before.instance }}"
    run_dir: /var/lib/surefoot/runs/r42
  register: after
  failed_when: after.evidence | selectattr('verdict', 'ne', 'pass') | list

- name: A day later, does it work harder than before?
  surefoot.dbops.rds_status_info:
    region: eu-central-1
    db_instance_identifier: platform-prod
    since: 24h
    metrics:
      period: 24h
      days: 7
"""

RETURN = r"""
instance:
  description: The instance, for O(compare_with) of a later call.
  returned: success
  type: dict
  contains:
    time:
      description: When it was looked at, by the clock of AWS.
      type: str
      sample: "2026-11-22T02:00:00.123Z"
    db_instance_identifier:
      description: Its identifier.
      type: str
      sample: platform-prod
    db_instance_arn:
      description: Its ARN.
      type: str
      sample: arn:aws:rds:eu-central-1:123456789012:db:platform-prod
    dbi_resource_id:
      description: Its resource id.
      type: str
      sample: db-ABCDEFGHIJKLMNOPQRSTUVWXYZ
    db_instance_status:
      description: Its status.
      type: str
      sample: available
    engine:
      description: The engine.
      type: str
      sample: postgres
    engine_version:
      description: The version of the engine.
      type: str
      sample: "15.8"
    db_instance_class:
      description: The class of the instance.
      type: str
      sample: db.m7g.large
    multi_az:
      description: Whether there is a standby in another availability zone.
      type: bool
      sample: true
    availability_zone:
      description: The zone it is in.
      type: str
      sample: eu-central-1a
    secondary_availability_zone:
      description: The zone of the standby. A failover makes the two change places.
      type: str
      sample: eu-central-1b
    endpoint_address:
      description: The host name of the endpoint.
      type: str
      sample: platform-prod.abc.eu-central-1.rds.amazonaws.com
    preferred_maintenance_window:
      description: The maintenance window.
      type: str
      sample: sun:08:00-sun:09:00
    preferred_backup_window:
      description: The backup window.
      type: str
      sample: 03:00-03:30
    auto_minor_version_upgrade:
      description: Whether AWS upgrades to new minor versions.
      type: bool
      sample: true
    held:
      description: Whether a run holds maintenance off.
      type: bool
      sample: false
    backup_retention_period:
      description: For how many days a point in time can be restored; 0 for none.
      type: int
      sample: 7
    latest_restorable_time:
      description: The latest point in time that can be restored, or null.
      type: str
      sample: "2026-11-22T01:55:00Z"
    storage_encrypted:
      description: Whether its storage, and so its snapshots, are encrypted.
      type: bool
      sample: true
pending_maintenance:
  description: Maintenance actions that wait.
  returned: success
  type: list
  elements: dict
  sample: []
pending_modifications:
  description: Modifications that wait for the window.
  returned: success
  type: dict
  sample: {}
since:
  description: From when on events counted.
  returned: success
  type: str
  sample: "2026-11-22T01:00:00Z"
events:
  description: The events, oldest first as AWS gives them.
  returned: success
  type: list
  elements: dict
  sample:
    - time: "2026-11-22T01:20:00Z"
      categories: [failover]
      message: Multi-AZ instance failover completed
blue_green_deployments:
  description: Those of which this instance is the source or the target; null when they could not be asked for.
  returned: success
  type: list
  elements: dict
  sample: []
metrics:
  description: With O(metrics), what was compared.
  returned: success
  type: dict
  sample:
    period_seconds: 86400.0
    days: 7
    cpu: {now: 31.5, before: 29.0, days_measured: 7}
    memory: {now: 2147483648.0, before: 2254857830.4, days_measured: 7}
evidence:
  description: A record of C(rds.no_failover), and with O(metrics) one of C(rds.cpu_memory).
  returned: success
  type: list
  elements: dict
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: aws, message: "AWS refused rds:DescribeDBInstances (DBInstanceNotFound)"}
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
from ansible_collections.surefoot.dbops.plugins.module_utils._rds import check_identifier, finished
from ansible_collections.surefoot.dbops.plugins.module_utils._rds_status import status_info, status_request


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "db_instance_identifier": {"type": "str", "required": True, "aliases": ["instance_id", "id"]},
            "since": {"type": "str"},
            "compare_with": {"type": "dict"},
            "metrics": {
                "type": "dict",
                "options": {
                    "period": {"type": "str", "default": "24h"},
                    "days": {"type": "int", "default": 7},
                    "cpu_max_increase": {"type": "float", "default": 20},
                    "memory_max_decrease": {"type": "str", "default": "20%"},
                },
            },
        },
    ).merge(aws_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    request = status_request(params)
    identifier = check_identifier(params["db_instance_identifier"], "db_instance_identifier", 63)
    options = AwsOptions.from_params(params)
    api = options.client("rds")

    def work() -> dict[str, t.Any]:
        return status_info(api, lambda: options.client("cloudwatch"), identifier, request)

    return finished(lambda: run_interruptible(work, api.stop), None if module.check_mode else params["run_dir"])


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
