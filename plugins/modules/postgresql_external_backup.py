#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_external_backup
short_description: Have another program back up a PostgreSQL database, and record what it said
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - For databases too large to dump. Runs the program that takes your backups (pgBackRest, WAL-G, Barman, a snapshot of
    the storage), or takes over what a task before this one said of its backup, checks the answer strictly, and records
    it beside the identity of server and database and a hash of every entry of the catalog.
  - The record is what a GO is bound to, as it is to a backup of M(surefoot.dbops.postgresql_backup). Another server, a
    failover, or a schema that changed since is noticed in the same way.
  - Nobody here has read what such a backup holds. C(backup.verified), C(backup.contains_tables),
    C(backup.stored_securely) and every C(restore.*) criterion are therefore not measured, and the gate says NO-GO until
    the policy waives them or makes them optional.
attributes:
  check_mode:
    support: full
    details:
      - Programs, database and directory are checked; nothing is run and nothing is written.
  diff_mode:
    support: none
    details:
      - The whole result of a backup is new; there is nothing to compare.
  idempotent:
    support: partial
    details:
      - Every run takes a new backup, unless O(max_age) is given and the record of one is young enough.
options:
  method:
    description:
      - What takes the backup. It stands in the record, and in what the gate says.
    type: str
    choices: [external, rds_snapshot]
    default: external
  command:
    description:
      - Program and arguments that take the backup, and end when it is complete. Not run by a shell.
      - C({database}), C({run_id}) and C({method}) in the arguments are replaced.
      - The last line that it prints is a JSON object with C(id) (a word), C(created) (a time with its zone, the moment
        whose state the backup brings back), C(size) (bytes) and C(location) (one line of text). It may have
        C(verified) (true or false), C(system_identifier), C(timeline) and C(database) (compared with the server's),
        C(address) (the host by which the server is reached), and C(details) (an object of at most 16 kB). Nothing else.
      - Without C(system_identifier), or an C(address) that is the connection's, nothing shows that the backup is of
        this server, and C(gate.backup_identity) is not measured.
      - It gets the environment of the module without E(PGPASSWORD) and E(PGPASSFILE), and no standard input. It may
        print at most 16 MB.
      - Exactly one of O(command) and O(reported) is required.
    type: list
    elements: str
  reported:
    description:
      - What a task before this one said of the backup it took, with the same keys as the answer of O(command).
    type: dict
  verify_command:
    description:
      - Program and arguments that confirm the backup, run after it.
      - C({id}), C({location}), C({database}) and C({method}) in the arguments are replaced.
      - It ends with exit code 0, and the last line that it prints is a JSON object with the same C(id) and
        C(verified=true). Anything else fails the task, and nothing is recorded.
    type: list
    elements: str
  timeout:
    description: How long each of the programs may take. Then it is stopped, with all it started.
    type: str
    default: 4h
  lock_timeout:
    description: How long to wait for a lock of the catalog.
    type: str
    default: 30s
  dest:
    description:
      - Directory the records are kept in, on the host that executes the module. Made with mode 0700 when it does not
        exist. It may be that of the dumps.
    type: path
    required: true
  minimum_size:
    description: Size a credible backup has at least, for the evidence RV(evidence) C(backup.minimum_size).
    type: str
    default: 100KB
  max_age:
    description:
      - Use the newest record in O(dest) of the same database with the same catalog, if its backup is not older than
        this. O(verify_command) confirms it again. Then nothing is changed.
    type: str
  since:
    description:
      - A backup created before this time is not of this run. What the catalog was then is unknown, and its record holds
        none, so that C(gate.catalog) is not measured.
      - The start of O(command) by default.
    type: str
requirements:
  - the program that takes the backup
seealso:
  - module: surefoot.dbops.postgresql_backup
  - module: surefoot.dbops.postgresql_restore
    description: Makes the shadow of such a database from its schema and a sample of its rows.
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._connection
  - surefoot.dbops._run
"""

EXAMPLES = r"""
- name: Have pgBackRest back up, by a script that ends with the JSON object
  surefoot.dbops.postgresql_external_backup:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    command: [/usr/local/bin/backup-with-pgbackrest, --stanza=main, "--annotation=run={run_id}"]
    verify_command: [/usr/local/bin/verify-with-pgbackrest, --stanza=main, "--set={id}"]
    timeout: 8h
    dest: /var/backups/surefoot
  register: backup

- name: Record a snapshot that a task before this one took
  surefoot.dbops.postgresql_external_backup:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    method: rds_snapshot
    reported:
      id: platform-before-007
      created: "2026-11-22T02:00:00Z"
      size: 107374182400
      location: arn:aws:rds:eu-central-1:123456789012:snapshot:platform-before-007
    since: "2026-11-22T01:50:00Z"
    dest: /var/backups/surefoot
"""

RETURN = r"""
backup:
  description: The backup, and its record.
  returned: success, except in check mode when a backup would be taken
  type: dict
  contains:
    method:
      description: What took it.
      type: str
      sample: external
    path:
      description: Directory of its record.
      type: str
      sample: /var/backups/surefoot/platform-20261122T020000Z-r42
    name:
      description: Name of that directory.
      type: str
      sample: platform-20261122T020000Z-r42
    id:
      description: Random identifier of the record.
      type: str
      sample: 5f0c1f6e4b1d4f0f8e7d6c5b4a392817
    run_id:
      description: The run it was taken in.
      type: str
      sample: r42
    manifest:
      description: File of the record.
      type: str
      sample: /var/backups/surefoot/platform-20261122T020000Z-r42/manifest.json
    manifest_sha256:
      description: The record's sha256. Keep it apart from the record.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    created:
      description: The moment whose state it brings back, as the program said, UTC.
      type: str
      sample: "2026-11-22T02:00:00.000Z"
    seconds:
      description: How long programs and record took.
      type: float
      sample: 812.3
    size:
      description: Bytes, as the program said.
      type: int
      sample: 107374182400
    external_id:
      description: Name of the backup, as the program said.
      type: str
      sample: 20261122-020000F
    location:
      description: Where it lies, as the program said.
      type: str
      sample: s3://example-backups/main
    confirmed:
      description: Whether O(verify_command) confirmed it.
      type: bool
      sample: true
    earlier:
      description: Whether it was taken before O(since).
      type: bool
      sample: false
    database:
      description: Name of the database.
      type: str
      sample: platform
    database_oid:
      description: Oid of the database.
      type: int
      sample: 16385
    database_size:
      description: Bytes of the database on the server, indexes included.
      type: int
      sample: 2000000000000
    system_identifier:
      description: Identifier of the server's cluster; null where the service hides it.
      type: str
      sample: "7312345678901234567"
    timeline:
      description: Timeline of the server; null where the service hides it.
      type: int
      sample: 1
    server_version:
      description: Version of the server.
      type: str
      sample: "15.18"
    catalog_fingerprint:
      description:
        - SHA-256 over the schema of the database, the ledger left out, the same before and after the backup; null for
          an earlier one.
      type: str
      sample: 5d41402abc4b2a76b9719d911017c592ae2b1c5e8f6f0c2f5d6c1d3a9b8e7f60
    reused:
      description: Whether its record existed before this task.
      type: bool
      sample: false
evidence:
  description:
    - Evidence records with the criteria C(backup.created), C(backup.minimum_size), C(backup.confirmed), and, not
      measured, C(backup.verified), C(backup.contains_tables), and C(backup.stored_securely).
  returned: always
  type: list
  elements: dict
  contains:
    criterion:
      description: What was measured.
      type: str
      sample: backup.created
    phase:
      description: Always V(backup).
      type: str
      sample: backup
    verdict:
      description: V(pass), V(fail), V(not_measured), or V(not_applicable).
      type: str
      sample: pass
    measured:
      description: What was measured.
      type: raw
      sample: {id: 20261122-020000F, location: "s3://example-backups/main"}
    required:
      description: What was required.
      type: raw
      sample: a complete backup of this database
    source:
      description: How it was measured.
      type: str
      sample: exit code and answer of command
    time:
      description: When, UTC.
      type: str
      sample: "2026-11-22T02:14:12.345Z"
    details:
      description: Further facts, such as the record's sha256 and what the program said in details.
      type: dict
      sample: {manifest_sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}
removed:
  description: Always empty. Records are small, and the backups are the program's to remove.
  returned: always
  type: list
  elements: str
  sample: []
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: backup, message: command (backup) ended with exit code 3, remedy: No backup was recorded.}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._external import (
    METHODS,
    ExternalRequest,
    take_external_backup,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration, parse_size


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "method": {"type": "str", "choices": list(METHODS), "default": "external"},
            "command": {"type": "list", "elements": "str"},
            "reported": {"type": "dict"},
            "verify_command": {"type": "list", "elements": "str"},
            "timeout": {"type": "str", "default": "4h"},
            "lock_timeout": {"type": "str", "default": "30s"},
            "dest": {"type": "path", "required": True},
            "minimum_size": {"type": "str", "default": "100KB"},
            "max_age": {"type": "str"},
            "since": {"type": "str"},
        },
        mutually_exclusive=[("command", "reported")],
        required_one_of=[("command", "reported")],
    ).merge(connection_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    request = ExternalRequest(
        dest=params["dest"],
        method=params["method"],
        command=params["command"] or (),
        reported=params["reported"],
        verify_command=params["verify_command"] or (),
        timeout=parse_duration(params["timeout"]),
        lock_timeout=parse_duration(params["lock_timeout"]),
        minimum_size=parse_size(params["minimum_size"]),
        max_age=None if params["max_age"] is None else parse_duration(params["max_age"]),
        since=params["since"],
        run_id=params["run_id"],
        run_dir=params["run_dir"],
    )
    outcome = take_external_backup(connection_options(module), request, check_mode=module.check_mode)
    for warning in outcome.warnings:
        module.warn(warning)
    return outcome.results(None if module.check_mode else request.run_dir)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
