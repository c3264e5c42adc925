#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_restore
short_description: Restore a backup into a new database and prove that it is what was backed up
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Restores a backup of M(surefoot.dbops.postgresql_backup) into a new database, in parallel, and compares the result
    with what the backup recorded in the snapshot of its dump. It compares every table's row count and content hash,
    sequences, constraints and indexes and their validity, versions of extensions, owners and grants, and the
    definition of every other object. Then it runs ANALYZE.
  - The new database is a shadow, a scratch copy for a rehearsal. It bears a marker with its run and its expiry, nobody
    but its owner may connect to it, and what would act on the outside is not restored (subscriptions, user mappings of
    foreign servers, the jobs of pg_cron).
  - Never restores over an existing database. When anything differs, the task fails, says what, and the new database is
    gone.
  - As the last resort of a rollback, O(state=swapped) restores beside the live database, compares, and lets the two
    change names.
attributes:
  check_mode:
    support: full
    details:
      - With O(state=present), the backup's files, the client programs, and the room and connections of the place are
        checked; nothing is written.
      - With O(state=absent), says what would be removed.
      - With O(state=swapped), the same as for O(state=present), and how many rows would be lost at most.
  diff_mode:
    support: none
    details:
      - A shadow is wholly new or wholly gone; there is nothing to compare.
  idempotent:
    support: partial
    details:
      - O(state=absent) is idempotent.
      - O(state=present) makes a new shadow each time, and fails when O(target_db) exists, because a shadow that was
        used is no proof any more.
      - O(state=swapped) replaces the database each time.
options:
  state:
    description:
      - V(present) restores O(backup) into a new database and compares it.
      - V(absent) drops a shadow, or all shadows of a run. Anything that does not bear the marker is left alone and
        refused. No shadow is no error.
      - V(swapped) replaces the live database O(target_db) of the server that the connection options name by a restored
        and compared copy. Sessions are disconnected, both databases change names in one transaction, owner, ACL,
        connection limit and settings are carried over, and the old database is kept, closed for connections, under a
        dated name. What was written since the backup is lost; see O(accept_loss).
      - All also remove shadows whose time is over, and what killed runs left.
    type: str
    choices: [present, absent, swapped]
    default: present
  backup:
    description:
      - The backup, its directory or its C(manifest.json), on the host that executes the module.
      - Required for O(state=present) and O(state=swapped).
    type: path
  manifest_sha256:
    description:
      - The sha256 of the backup's manifest, kept outside the backup. It is what tells an intact backup from one that
        was rewritten together with its manifest.
      - Required for O(state=present) and O(state=swapped).
    type: str
  where:
    description:
      - V(embedded) makes a fresh cluster of the same major version on the host that executes the module, tuned for a
        copy that need not survive a crash. It listens on a Unix socket only; the connection options are ignored,
        except O(login_unix_socket) with O(state=absent).
      - V(server) makes a database on the server that the connection options name. It must have the backup's major
        version.
    type: str
    choices: [embedded, server]
    default: embedded
  same_server:
    description:
      - Allow O(where=server) to be the very server the backup was taken from, or one that cannot be told from it.
      - The restore then takes disk, WAL and processor time from production, and makes the roles it lacks.
    type: bool
    default: false
  target_db:
    description:
      - Name of the new database, with O(state=absent) of the shadow to drop, with O(state=swapped) of the live database
        to replace (required).
      - The default is the name of the source with O(where=embedded), and C(<source>_shadow_<run id>) with
        O(where=server).
    type: str
  jobs:
    description: Number of sessions that restore, and of those that compare.
    type: int
    default: 2
  bindir:
    description:
      - Directory of C(pg_restore), and with O(where=embedded) of the server programs if it holds them.
      - By default E(PATH) and the usual directories are searched.
    type: path
  locale:
    description:
      - libc locale for the new database in place of the recorded one, such as V(C.UTF-8), for a machine that lacks it.
      - Sort order, and with it the plans of some queries, may then differ from the source.
    type: str
  settings:
    description:
      - With O(where=embedded), further settings of the cluster, such as C(shared_preload_libraries) for extensions that
        need it.
    type: dict
    default: {}
  data_dir:
    description:
      - With O(where=embedded), directory in which the cluster's data directory is made. The server's user must be able
        to enter it.
      - Below C(/var/tmp) by default.
    type: path
  database_free_space:
    description:
      - With O(where=server), the free disk of that server, such as V(120GB). SQL cannot see it.
      - Required with O(same_server=true) and O(state=swapped). Without it, another server's disk is not checked, and a
        warning says what the restore needs.
    type: str
  min_free:
    description: Room that must stay free beside what the restore needs.
    type: str
    default: 500MB
  expires:
    description:
      - How long the shadow may live. Afterwards the next task of this module in the same place removes it.
    type: str
    default: 24h
  guard:
    description:
      - Leave a process behind that removes the shadows of O(run_id) as soon as C(ansible-playbook) ends, in whatever
        way. After Ctrl-C or a kill Ansible runs no C(always), and a shadow holds production data.
      - Works where the task runs in the controller's own Python, and needs O(run_id); elsewhere O(expires) remains.
    type: bool
    default: false
  accept_loss:
    description:
      - Required to be true for O(state=swapped), because what was written since the backup is not in the copy.
        RV(lost) says how much that is at most, in check mode too.
    type: bool
    default: false
  max_lost_rows:
    description:
      - With O(state=swapped), refuse when more rows may be lost, or when their number cannot be known.
    type: int
  replacement:
    description:
      - With O(state=swapped), a restored copy that an earlier attempt left because the swap itself failed. It is
        compared again instead of restored.
    type: str
  drain_timeout:
    description: With O(state=swapped), how long disconnected sessions have to be gone.
    type: str
    default: 30s
requirements:
  - pg_restore of the version that wrote the backup, or newer
  - server programs of the backup's major version, for O(where=embedded)
seealso:
  - module: surefoot.dbops.postgresql_backup
  - module: surefoot.dbops.postgresql_embedded
extends_documentation_fragment:
  - surefoot.dbops._attributes
  - surefoot.dbops._connection
  - surefoot.dbops._run
"""

EXAMPLES = r"""
- name: Prove the backup, and keep the copy for the rehearsal
  surefoot.dbops.postgresql_restore:
    backup: "{{ backup.backup.path }}"
    manifest_sha256: "{{ backup.backup.manifest_sha256 }}"
    run_id: "{{ run_id }}"
    run_dir: "{{ run_dir }}"
  register: shadow
  delegate_to: localhost

- name: Look into it
  surefoot.dbops.postgresql_verification:
    login_unix_socket: "{{ shadow.connection.login_unix_socket }}"
    login_port: "{{ shadow.connection.login_port }}"
    login_user: "{{ shadow.connection.login_user }}"
    login_db: "{{ shadow.connection.login_db }}"
    checks:
      - name: users are there
        query: SELECT count(*) FROM public.users
        expect: {scalar: {at_least: 1}}

- name: Restore into another server
  surefoot.dbops.postgresql_restore:
    backup: /var/backups/surefoot/platform-20261122T020000Z-r42
    manifest_sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    where: server
    login_host: shadow.example.com
    login_user: postgres
    login_password: "{{ shadow_password }}"
    login_db: postgres
    database_free_space: 120GB
    expires: 6h

- name: Replace the live database by its backup, the last resort
  surefoot.dbops.postgresql_restore:
    state: swapped
    login_host: db.example.com
    login_user: postgres
    login_password: "{{ admin_password }}"
    login_db: postgres
    target_db: platform
    backup: /var/backups/surefoot/platform-20261122T020000Z-r42
    manifest_sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    database_free_space: 120GB
    accept_loss: true

- name: Remove every shadow of the run (in an always section)
  surefoot.dbops.postgresql_restore:
    state: absent
    run_id: "{{ run_id }}"
  delegate_to: localhost
"""

RETURN = r"""
database:
  description: Name of the shadow, or of the database that was replaced; null when there is none.
  returned: always
  type: str
  sample: platform
connection:
  description:
    - Options with which the next tasks reach the shadow (C(login_unix_socket) or C(login_host), C(login_port),
      C(login_user), C(login_db), TLS options). No password; one that was needed to make the shadow is needed again.
  returned: success
  type: dict
  sample:
    login_unix_socket: /var/tmp/surefoot-1000-0c1d2e3f4a/run
    login_port: 21345
    login_user: postgres
    login_db: platform
where:
  description: Where the shadow is, as O(where).
  returned: always, save when the backup was refused
  type: str
  sample: embedded
backup:
  description: The backup that was restored.
  returned: O(state=present), once the backup was found intact
  type: dict
  contains:
    path:
      description: Its directory.
      type: str
      sample: /var/backups/surefoot/platform-20261122T020000Z-r42
    id:
      description: Its random identifier.
      type: str
      sample: 5f0c1f6e4b1d4f0f8e7d6c5b4a392817
    manifest_sha256:
      description: The sha256 of its manifest.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    created:
      description: Time of its snapshot, UTC.
      type: str
      sample: "2026-11-22T02:00:00.123Z"
    hashes:
      description: What it recorded about rows.
      type: str
      sample: full
expires:
  description: When the shadow may be removed by other runs, UTC.
  returned: O(state=present), once the place was found fit
  type: str
  sample: "2026-11-23T02:00:30.123Z"
cost:
  description: What the restore was expected to take, and what was free. Null is not measured.
  returned: O(state=present), once the place was found fit
  type: dict
  contains:
    disk_bytes:
      description: Disk, indexes and WAL included.
      type: int
      sample: 2100000000
    wal_bytes:
      description: WAL that is written.
      type: int
      sample: 0
    connections:
      description: Connections used; 0 for a cluster of its own.
      type: int
      sample: 5
    free_bytes:
      description: Free disk.
      type: int
      sample: 64000000000
    free_connections:
      description: Connections that were free.
      type: int
      sample: 87
comparison:
  description: The restored database against what the backup recorded. Null before anything was compared.
  returned: always
  type: dict
  contains:
    passed:
      description: Whether nothing differs.
      type: bool
      sample: true
    tables:
      description: Each table whose rows are comparable.
      type: list
      elements: dict
      sample: [{table: public.users, required: 3000, rows: 3000, same: true, method: full}]
    counts:
      description: By criterion, how many objects were compared.
      type: dict
      sample: {row_counts: {tables: 26, rows: 104532}, sequences: {sequences: 3}}
    not_measured:
      description: By criterion, why it could not be compared.
      type: dict
      sample: {content: "the backup recorded no hashes (hashes: counts)"}
    differences:
      description: Each object that differs, at most 500.
      type: list
      elements: dict
      sample: [{criterion: restore.row_counts, object: public.users, measured: 2999, required: 3000}]
seconds:
  description: How long the task's work took.
  returned: always
  type: float
  sample: 14.2
kept:
  description: Name the replaced database has now.
  returned: O(state=swapped)
  type: str
  sample: platform_replaced_20261122T031500Z
lost:
  description: Rows written since the backup, which the copy does not have.
  returned: O(state=swapped)
  type: dict
  contains:
    at_most:
      description: Upper bound of their number; null when it cannot be known.
      type: int
      sample: 17
    reason:
      description: Why it cannot be known.
      type: str
      sample: track_counts is off
    tables:
      description: By table, what the server counted.
      type: list
      elements: dict
      sample: [{schema: public, name: users, inserted: 17, updated: 0, deleted: 0, rewritten: false, at_most: 17}]
terminated:
  description: Sessions that were disconnected.
  returned: O(state=swapped), when the swap took place
  type: list
  elements: dict
  sample: [{pid: 4711, user: app, application: worker, client: 10.0.0.7, state: idle, seconds: 12}]
carried:
  description: What was carried over from the replaced database.
  returned: O(state=swapped), when the swap took place
  type: list
  elements: str
  sample: [owner app, connection limit 100]
seconds_closed:
  description: For how long nobody could connect.
  returned: O(state=swapped), when the swap took place
  type: float
  sample: 1.3
replacement:
  description: Name of the restored copy, for O(replacement).
  returned: O(state=swapped), when the copy was made and the swap failed
  type: str
  sample: platform_restored_0c1d2e3f
removed:
  description: Names of the shadows that were removed.
  returned: always
  type: list
  elements: str
  sample: [platform_shadow_r41]
evidence:
  description:
    - Evidence records with the criteria C(restore.completed), C(restore.row_counts), C(restore.content),
      C(restore.sequences), C(restore.constraints), C(restore.extensions), C(restore.privileges), and
      C(restore.catalog); with O(state=swapped) also C(rescue.lost_rows).
  returned: always
  type: list
  elements: dict
  contains:
    criterion:
      description: What was measured.
      type: str
      sample: restore.row_counts
    phase:
      description: V(restore), or V(rollback) for C(rescue.lost_rows).
      type: str
      sample: restore
    verdict:
      description: V(pass), V(fail), V(not_measured), or V(not_applicable).
      type: str
      sample: fail
    measured:
      description: Counts when it passes, else what each differing object is.
      type: raw
      sample: {public.users: 2999}
    required:
      description: What was required; of each differing object when it fails.
      type: raw
      sample: {public.users: 3000}
    source:
      description: How it was measured.
      type: str
      sample: count(*) of every table
    time:
      description: When, UTC.
      type: str
      sample: "2026-11-22T02:00:42.345Z"
    details:
      description: Further facts, such as the manifest's sha256, or the number of differences.
      type: dict
      sample: {differences: 1, objects: [public.users]}
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: verification, message: the restored backup is not what was backed up, remedy: Take a new backup.}
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
from ansible_collections.surefoot.dbops.plugins.module_utils._shadow import (
    ShadowRequest,
    make_shadow,
    remove_shadow,
    replace_database,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration, parse_size


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "swapped"], "default": "present"},
            "backup": {"type": "path"},
            "manifest_sha256": {"type": "str"},
            "where": {"type": "str", "choices": ["embedded", "server"], "default": "embedded"},
            "same_server": {"type": "bool", "default": False},
            "target_db": {"type": "str"},
            "jobs": {"type": "int", "default": 2},
            "bindir": {"type": "path"},
            "locale": {"type": "str"},
            "settings": {"type": "dict", "default": {}},
            "data_dir": {"type": "path"},
            "database_free_space": {"type": "str"},
            "min_free": {"type": "str", "default": "500MB"},
            "expires": {"type": "str", "default": "24h"},
            "guard": {"type": "bool", "default": False},
            "accept_loss": {"type": "bool", "default": False},
            "max_lost_rows": {"type": "int"},
            "replacement": {"type": "str"},
            "drain_timeout": {"type": "str", "default": "30s"},
        },
        required_if=[
            ("state", "present", ("backup", "manifest_sha256")),
            ("state", "swapped", ("backup", "manifest_sha256", "target_db")),
        ],
    ).merge(connection_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    free = params["database_free_space"]
    request = ShadowRequest(
        backup=params["backup"] or "",
        manifest_sha256=params["manifest_sha256"] or "",
        where=params["where"],
        same_server=params["same_server"],
        target_db=params["target_db"],
        jobs=params["jobs"],
        bindir=params["bindir"],
        locale=params["locale"],
        settings=params["settings"],
        data_dir=params["data_dir"],
        database_free_space=None if free is None else parse_size(free),
        min_free=parse_size(params["min_free"]),
        expires=parse_duration(params["expires"]),
        run_id=params["run_id"],
        run_dir=params["run_dir"],
    )
    options = connection_options(module)
    if params["state"] == "swapped":
        return replace_database(
            options,
            request,
            accept_loss=params["accept_loss"],
            replacement=params["replacement"],
            max_lost_rows=params["max_lost_rows"],
            drain_timeout=parse_duration(params["drain_timeout"]),
            check_mode=module.check_mode,
        )
    if params["state"] == "absent":
        outcome = remove_shadow(options, request, socket=params["login_unix_socket"], check_mode=module.check_mode)
    else:
        outcome = make_shadow(options, request, check_mode=module.check_mode)
    for warning in outcome.warnings:
        module.warn(warning)
    return outcome.results(None if module.check_mode else request.run_dir)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
