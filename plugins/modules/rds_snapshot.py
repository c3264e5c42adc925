#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rds_snapshot
short_description: Take a snapshot of an RDS instance, and confirm that it is one to rely on
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Makes a DB snapshot of an instance of Amazon RDS, waits until it is available, and confirms status, age, encryption,
    and that it is of this very instance by its resource id.
  - A snapshot of the given name that exists already is waited for if it is being made, and accepted only if it fits all
    of that. A name alone proves nothing.
  - An instance that is restored from a snapshot has another endpoint, and restoring takes long. It is the last resort
    beside a backup that was restored and compared (M(surefoot.dbops.postgresql_restore)), not instead of one.
  - Clusters (Aurora, Multi-AZ DB cluster) and their members are refused.
attributes:
  check_mode:
    support: full
    details:
      - A snapshot that is being made is not waited for.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - As long as the snapshot is not older than O(max_age). After that the task fails, and a new name is needed.
extends_documentation_fragment:
  - surefoot.dbops._aws
  - surefoot.dbops._run
options:
  db_instance_identifier:
    description: The DB instance.
    type: str
    required: true
    aliases: [instance_id, id]
  db_snapshot_identifier:
    description: The name of the snapshot. One with the run's identifier in it is new for each run.
    type: str
    required: true
    aliases: [snapshot_id]
  max_age:
    description: How old the snapshot may be.
    type: str
    default: 2h
  require_encrypted:
    description: Whether the snapshot must be encrypted. It is if the storage of the instance is.
    type: bool
    default: true
  tags:
    description: Tags of a new snapshot.
    type: dict
    default: {}
  timeout:
    description:
      - How long to wait for the snapshot. The first of an instance is complete and may take hours; later ones hold what
        changed.
      - When it is over, AWS goes on. The same task waits on.
    type: str
    default: 2h
  interval:
    description: How long to wait between two looks.
    type: str
    default: 15s
seealso:
  - module: surefoot.dbops.postgresql_backup
  - module: surefoot.dbops.rds_status_info
    description: Says up to when a point in time can be restored.
"""

EXAMPLES = r"""
- name: A snapshot for this run
  surefoot.dbops.rds_snapshot:
    region: eu-central-1
    db_instance_identifier: platform-prod
    db_snapshot_identifier: pgmig-platform-{{ run_id | lower }}
    run_dir: /var/lib/surefoot/runs/r42
    tags:
      purpose: migration 006

- name: Is there one of the last hour?
  surefoot.dbops.rds_snapshot:
    region: eu-central-1
    db_instance_identifier: platform-prod
    db_snapshot_identifier: pgmig-platform-r42
    max_age: 1h
  check_mode: true
  register: snapshot
  failed_when: snapshot is changed or snapshot is failed
"""

RETURN = r"""
db_instance_identifier:
  description: The instance.
  returned: always
  type: str
  sample: platform-prod
dbi_resource_id:
  description: The resource id of the instance, which a new instance of the same name does not have.
  returned: always
  type: str
  sample: db-ABCDEFGHIJKLMNOPQRSTUVWXYZ
snapshot:
  description: The snapshot; null in check mode if there is none yet.
  returned: always
  type: dict
  contains:
    db_snapshot_identifier:
      description: Its name.
      type: str
      sample: pgmig-platform-r42
    db_snapshot_arn:
      description: Its ARN.
      type: str
      sample: arn:aws:rds:eu-central-1:123456789012:snapshot:pgmig-platform-r42
    status:
      description: Its status.
      type: str
      sample: available
    percent_progress:
      description: How much of it is made.
      type: int
      sample: 100
    snapshot_type:
      description: V(manual), or another type.
      type: str
      sample: manual
    snapshot_create_time:
      description: When it was made.
      type: str
      sample: "2026-11-22T02:00:00+00:00"
    original_snapshot_create_time:
      description: When the snapshot was made of which it is a copy.
      type: str
      sample: "2026-11-22T02:00:00+00:00"
    age_seconds:
      description: Its age, by the older of the two times.
      type: int
      sample: 42
    encrypted:
      description: Whether it is encrypted.
      type: bool
      sample: true
    kms_key_id:
      description: With which key.
      type: str
      sample: arn:aws:kms:eu-central-1:123456789012:key/1
    dbi_resource_id:
      description: The resource id of the instance it was made of.
      type: str
      sample: db-ABCDEFGHIJKLMNOPQRSTUVWXYZ
    engine_version:
      description: The version of the engine.
      type: str
      sample: "15.8"
    allocated_storage:
      description: Size of the storage in GiB.
      type: int
      sample: 100
progress:
  description:
    - What was seen while waiting, up to 100 entries.
    - Where the task runs on the controller, each is shown as a line when it is seen.
  returned: always
  type: list
  elements: dict
  sample:
    - {seconds: 0.0, status: creating, percent: 0}
    - {seconds: 45.2, status: available, percent: 100}
evidence:
  description: One record of C(rds.snapshot_available); none in check mode.
  returned: always
  type: list
  elements: dict
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: verification, message: "the snapshot r42 is not what is required: it is 3 d old"}
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
from ansible_collections.surefoot.dbops.plugins.module_utils._rds_snapshot import Snapshot, snapshot_request


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "db_instance_identifier": {"type": "str", "required": True, "aliases": ["instance_id", "id"]},
            "db_snapshot_identifier": {"type": "str", "required": True, "aliases": ["snapshot_id"]},
            "max_age": {"type": "str", "default": "2h"},
            "require_encrypted": {"type": "bool", "default": True},
            "tags": {"type": "dict", "default": {}},
            "timeout": {"type": "str", "default": "2h"},
            "interval": {"type": "str", "default": "15s"},
        },
    ).merge(aws_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    request = snapshot_request(params, check_mode=module.check_mode)
    identifier = check_identifier(params["db_instance_identifier"], "db_instance_identifier", 63)
    api = AwsOptions.from_params(params).client("rds")
    work = Snapshot(api, identifier, request, module.say)
    return finished(lambda: run_interruptible(work.run, api.stop), None if module.check_mode else params["run_dir"])


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
