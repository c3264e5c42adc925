#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_backup
short_description: Take a verified backup of a PostgreSQL database, or verify one
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Dumps one database with C(pg_dump) (directory format, parallel, compressed), records in a manifest what the dump's
    own snapshot contained, reads the dump back, and only then gives the backup its name. A backup that exists under
    its name is complete and was read back.
  - The manifest holds the sha256 of every file, every table's row count and content hash, sequences, extensions, the
    roles a restore needs, and the identity of server and database.
  - An earlier backup is never touched before the new one is verified, and whatever goes wrong (full disk, lost
    connection, killed program, killed playbook) leaves nothing under a backup's name.
  - Refuses to back up what it cannot see whole, such as tables it may not read or rows that row level security hides
    from it.
attributes:
  check_mode:
    support: full
    details:
      - Client programs, privileges, the directory and the room in it are checked; nothing is written.
  diff_mode:
    support: none
    details:
      - The whole result of a backup is new; there is nothing to compare.
  idempotent:
    support: partial
    details:
      - Every run takes a new backup, unless O(max_age) is given and an intact one is young enough.
options:
  state:
    description:
      - V(present) takes a backup.
      - V(verified) verifies the existing backup O(path) against O(manifest_sha256). It needs no database, and the
        connection options are ignored.
    type: str
    choices: [present, verified]
    default: present
  dest:
    description:
      - Directory the backups are kept in, on the host that executes the module. Made with mode 0700 when it does not
        exist.
      - Refused when it belongs to another user, or when everybody can write to it.
      - Each backup is a directory of mode 0700 in it, C(<database>-<UTC time>-<run id>), whose files have mode 0600.
      - Required for O(state=present).
    type: path
  path:
    description:
      - The backup to verify, its directory or its C(manifest.json).
      - Required for O(state=verified).
    type: path
  manifest_sha256:
    description:
      - The sha256 of the manifest, as RV(backup.manifest_sha256) and the evidence said when the backup was taken.
      - Keep it somewhere else than the backup. It is what tells an intact backup from one that was rewritten together
        with its manifest.
      - Required for O(state=verified).
    type: str
  jobs:
    description:
      - Number of tables dumped at the same time, and of sessions that count and hash rows meanwhile.
      - 2 * O(jobs) + 3 connections are used.
    type: int
    default: 2
  compression:
    description:
      - V(none), C(gzip:N), C(lz4:N), or C(zstd:N); without a level, level 1.
      - V(auto) takes C(zstd:1) or C(lz4:1) where the client programs support them (PostgreSQL 16 or newer), else
        C(gzip:1). The default level of gzip would cost three times the whole dump for 6 percent less size.
    type: str
    default: auto
  bindir:
    description:
      - Directory of C(pg_dump) and C(pg_restore).
      - By default, E(PATH) and the usual directories of the distributions are searched, and of the versions not older
        than the server the nearest is taken, because a dump of a newer version may not restore into the older server.
      - Debian's C(/usr/bin/pg_dump) is resolved to the versions behind it.
    type: path
  hashes:
    description:
      - What the manifest records about the rows of each table, measured in the dump's own snapshot.
      - V(full) records the row count and an order-independent hash of all rows. It costs the server about half
        as much processor time as the dump, beside it.
      - V(sampled) hashes one row in O(hash_sample), chosen by primary key; tables without a primary key are hashed as
        a whole.
      - V(counts) records the row counts only.
    type: str
    choices: [full, sampled, counts]
    default: full
  hash_sample:
    description: With O(hashes=sampled), one row in this many is hashed.
    type: int
    default: 100
  verify:
    description:
      - How the backup is read back.
      - V(full) compares every file with its hash, decompresses and reads all data with C(pg_restore), and compares
        each table's number of rows with the snapshot's.
      - V(files) compares every file with its hash and reads the table of contents only. Enough when the backup is
        restored right afterwards anyway.
    type: str
    choices: [full, files]
    default: full
  minimum_size:
    description:
      - Size a credible backup has at least, for the evidence RV(evidence) C(backup.minimum_size). A smaller one is
        not an error of this module.
      - Measured as SQL text, as a plain C(pg_dump) would have written it; with O(verify=files), the size of the files.
    type: str
    default: 100KB
  min_free:
    description: Room that must be left in O(dest) when the backup is there.
    type: str
    default: 100MB
  lock_timeout:
    description: How long to wait for the read locks (ACCESS SHARE) on all tables.
    type: str
    default: 30s
  max_age:
    description:
      - Use the newest backup of the same database in O(dest) if it is not older than this, has at least the O(hashes)
        asked for, and is verified again as O(verify) says. Then nothing is changed.
      - Same database means the same system identifier, database oid and name.
    type: str
  keep:
    description:
      - Number of backups of this database to keep in O(dest), the new one included.
      - With O(keep_days) as well, a backup goes only when it is beyond both.
      - Only complete backups taken by this module of the same database are counted and removed, after the new one was
        verified and copied.
    type: int
  keep_days:
    description: Age in days beyond which older backups of this database are removed. See O(keep).
    type: float
  copy_to:
    description:
      - Program and arguments that copy the finished backup to another host. Not run by a shell.
      - C({path}), C({name}) and C({manifest}) are replaced; without any of them, the backup's path is added as the
        last argument.
      - When it fails the task fails, the backup itself stays, and no older backup is removed.
    type: list
    elements: str
requirements:
  - pg_dump and pg_restore, not older than the server
seealso:
  - module: community.postgresql.postgresql_db
    description: Dumps and restores without verification.
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._connection
  - surefoot.dbops._run
"""

EXAMPLES = r"""
- name: Back up before a migration
  surefoot.dbops.postgresql_backup:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    dest: /var/backups/surefoot
  register: backup

- name: Use a backup of the last two hours if there is one, and keep a week and at least five
  surefoot.dbops.postgresql_backup:
    login_host: db.example.com
    login_user: backup
    login_db: platform
    ssl_mode: verify-full
    ca_cert: /etc/ssl/certs/db-ca.pem
    dest: /var/backups/surefoot
    max_age: 2h
    keep: 5
    keep_days: 7

- name: Copy it to another host
  surefoot.dbops.postgresql_backup:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    dest: /var/backups/surefoot
    copy_to: [aws, s3, cp, --recursive, --only-show-errors, "{path}", "s3://example-backups/{name}"]

- name: Verify the backup a year later
  surefoot.dbops.postgresql_backup:
    state: verified
    path: "{{ backup.backup.path }}"
    manifest_sha256: "{{ backup.backup.manifest_sha256 }}"
"""

RETURN = r"""
backup:
  description: The backup that was taken, reused or verified.
  returned: success, except in check mode when a backup would be taken; also when only O(copy_to) failed
  type: dict
  contains:
    path:
      description: Its directory.
      type: str
      sample: /var/backups/surefoot/platform-20261122T020000Z-r42
    name:
      description: Name of the directory.
      type: str
      sample: platform-20261122T020000Z-r42
    id:
      description: Random identifier of the backup.
      type: str
      sample: 5f0c1f6e4b1d4f0f8e7d6c5b4a392817
    run_id:
      description: The run it was taken in.
      type: str
      sample: r42
    manifest:
      description: Its manifest file.
      type: str
      sample: /var/backups/surefoot/platform-20261122T020000Z-r42/manifest.json
    manifest_sha256:
      description: The manifest's sha256. Keep it apart from the backup.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    created:
      description: Time of the snapshot, UTC.
      type: str
      sample: "2026-11-22T02:00:00.123Z"
    seconds:
      description: How long the dump and its measurement took.
      type: float
      sample: 12.3
    size:
      description: Bytes of the dump's files.
      type: int
      sample: 247000000
    files:
      description: Number of the dump's files.
      type: int
      sample: 41
    tables:
      description: Number of tables, partitioned ones included.
      type: int
      sample: 26
    rows:
      description: Number of rows in them.
      type: int
      sample: 104532
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
      sample: 1000000000
    system_identifier:
      description: Identifier of the server's cluster; null where the service hides it.
      type: str
      sample: "7312345678901234567"
    timeline:
      description: Timeline of the server; null where the service hides it.
      type: int
      sample: 1
    lsn:
      description: Position in the write-ahead log when the snapshot was taken.
      type: str
      sample: 0/1A2B3C4
    server_version:
      description: Version of the server.
      type: str
      sample: "15.18"
    client_version:
      description: Version of the C(pg_dump) that wrote the dump.
      type: str
      sample: "15.18"
    compression:
      description: Compression of the dump, as C(pg_dump) was told.
      type: str
      sample: gzip:1
    hashes:
      description: What was recorded about rows.
      type: str
      sample: full
    catalog_fingerprint:
      description:
        - SHA-256 over the schema of the database in the snapshot, the ledger left out. What a GO is bound to.
      type: str
      sample: 5d41402abc4b2a76b9719d911017c592ae2b1c5e8f6f0c2f5d6c1d3a9b8e7f60
    reused:
      description: Whether it existed before this task.
      type: bool
      sample: false
removed:
  description: Directories of the backups that retention removed.
  returned: always
  type: list
  elements: str
  sample: [/var/backups/surefoot/platform-20261101T020000Z-r7]
evidence:
  description:
    - Evidence records with the criteria C(backup.created), C(backup.minimum_size), C(backup.contains_tables),
      C(backup.verified), C(backup.stored_securely), C(backup.client_version), and C(backup.off_host_copy).
  returned: always
  type: list
  elements: dict
  contains:
    criterion:
      description: What was measured.
      type: str
      sample: backup.verified
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
      sample: {files: 41, bytes: 247000000, tables: 26, rows: 104532}
    required:
      description: What was required.
      type: raw
      sample: every file as hashed, every table present, every row count as in the snapshot
    source:
      description: How it was measured.
      type: str
      sample: sha256 of the files, pg_restore --list, pg_restore of all data
    time:
      description: When, UTC.
      type: str
      sample: "2026-11-22T02:00:12.345Z"
    details:
      description: Further facts, such as the manifest's sha256.
      type: dict
      sample: {manifest_sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: backup, message: the role app may not read public.users, remedy: GRANT pg_read_all_data ...}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    BackupOutcome,
    BackupRequest,
    take_backup,
    verify_backup,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration, parse_size


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "verified"], "default": "present"},
            "dest": {"type": "path"},
            "path": {"type": "path"},
            "manifest_sha256": {"type": "str"},
            "jobs": {"type": "int", "default": 2},
            "compression": {"type": "str", "default": "auto"},
            "bindir": {"type": "path"},
            "hashes": {"type": "str", "choices": ["full", "sampled", "counts"], "default": "full"},
            "hash_sample": {"type": "int", "default": 100},
            "verify": {"type": "str", "choices": ["full", "files"], "default": "full"},
            "minimum_size": {"type": "str", "default": "100KB"},
            "min_free": {"type": "str", "default": "100MB"},
            "lock_timeout": {"type": "str", "default": "30s"},
            "max_age": {"type": "str"},
            "keep": {"type": "int"},
            "keep_days": {"type": "float"},
            "copy_to": {"type": "list", "elements": "str"},
        },
        required_if=[
            ("state", "present", ("dest",)),
            ("state", "verified", ("path", "manifest_sha256")),
        ],
    ).merge(connection_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    request = BackupRequest(
        dest=params["dest"] or "",
        jobs=params["jobs"],
        compression=params["compression"],
        bindir=params["bindir"],
        hashes=params["hashes"],
        hash_sample=params["hash_sample"],
        verify=params["verify"],
        minimum_size=parse_size(params["minimum_size"]),
        min_free=parse_size(params["min_free"]),
        lock_timeout=parse_duration(params["lock_timeout"]),
        max_age=None if params["max_age"] is None else parse_duration(params["max_age"]),
        keep=params["keep"],
        keep_days=params["keep_days"],
        copy_to=params["copy_to"] or (),
        run_id=params["run_id"],
        run_dir=params["run_dir"],
    )
    outcome: BackupOutcome
    if params["state"] == "verified":
        outcome = verify_backup(params["path"], params["manifest_sha256"], request)
    else:
        outcome = take_backup(connection_options(module), request, check_mode=module.check_mode)
    for warning in outcome.warnings:
        module.warn(warning)
    return outcome.results(None if module.check_mode else request.run_dir)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
