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
  content:
    description:
      - V(full) restores O(backup), which proves it.
      - V(sample) is for a database too large for that. It makes the shadow from the live database O(source) instead,
        of its whole schema and a sample of its rows, read in one snapshot. Small tables come whole, of the others come
        rows chosen by the md5 of their primary key, and with them whatever they refer to, so that every foreign key
        holds.
      - With V(sample), O(backup) may also be a record of M(surefoot.dbops.postgresql_external_backup). It must be of
        the same database with the same catalog, and proves nothing but that, since it is not restored.
    type: str
    choices: [full, sample]
    default: full
  source:
    description:
      - Connection options of the live database. It is only read.
      - Required with O(content=sample).
    type: dict
    suboptions:
      login_url:
        description: As O(login_url).
        type: str
      login_host:
        description: As O(login_host).
        type: str
      login_port:
        description: As O(login_port).
        type: int
      login_user:
        description: As O(login_user).
        type: str
      login_password:
        description: As O(login_password).
        type: str
      login_db:
        description: As O(login_db).
        type: str
      login_unix_socket:
        description: As O(login_unix_socket).
        type: path
      session_role:
        description: As O(session_role).
        type: str
      ssl_mode:
        description: As O(ssl_mode).
        type: str
        choices: [disable, allow, prefer, require, verify-ca, verify-full]
      ca_cert:
        description: As O(ca_cert).
        type: path
        aliases: [ssl_rootcert]
      ssl_cert:
        description: As O(ssl_cert).
        type: path
      ssl_key:
        description: As O(ssl_key).
        type: path
      connect_params:
        description: As O(connect_params).
        type: dict
  sample_rows:
    description:
      - With O(content=sample), how many rows of each table are chosen. A table that has no more comes whole.
      - A hundred times as many may come in because chosen rows refer to them, over a thousand steps. Beyond that they
        are left out, and so are the rows that refer to them.
    type: int
    default: 1000
  sample_size:
    description: With O(content=sample), size of a table's chosen rows, by their average width.
    type: str
    default: 10MB
  sample_scan_max:
    description:
      - With O(content=sample), a table over this size is not read whole to choose its rows. Its first and last rows by
        primary key are taken, and without one those at the start of its file.
    type: str
    default: 10GB
  sample_timeout:
    description: With O(content=sample), how long reading the live database may take, which holds a snapshot meanwhile.
    type: str
    default: 10m
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

- name: Make a shadow of a database too large to restore
  surefoot.dbops.postgresql_restore:
    content: sample
    source:
      login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    backup: "{{ external.backup.path }}"
    manifest_sha256: "{{ external.backup.manifest_sha256 }}"
    run_id: "{{ run_id }}"
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
sample:
  description: What of the live database is in the shadow.
  returned: O(state=present) and O(content=sample), once it was read
  type: dict
  contains:
    rows:
      description: Number of rows.
      type: int
      sample: 26004
    tables:
      description: Number of tables with rows of their own.
      type: int
      sample: 41
    incomplete:
      description: By table of whose rows a part is there, number (estimated) and bytes of all of them in the source.
      type: dict
      sample: {public.audit_logs: {rows: 2000000000, bytes: 400000000000}}
    methods:
      description: By the same tables, how rows were chosen (V(md5), V(ends), V(start)), how many there are, and how
        many chosen ones were left out.
      type: dict
      sample: {public.audit_logs: {method: ends, rows: 1000, left_out: 0}}
    created:
      description: Time of the snapshot, UTC.
      type: str
      sample: "2026-11-22T02:00:00.123Z"
    seconds:
      description: How long reading took.
      type: float
      sample: 21.4
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
      C(restore.catalog); with O(content=sample) C(shadow.sample) in their place; with O(state=swapped) also
      C(rescue.lost_rows).
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
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._sample import SampleRequest
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
            "content": {"type": "str", "choices": ["full", "sample"], "default": "full"},
            "source": {"type": "dict", "options": connection_argument_spec().argument_spec},
            "sample_rows": {"type": "int", "default": 1000},
            "sample_size": {"type": "str", "default": "10MB"},
            "sample_scan_max": {"type": "str", "default": "10GB"},
            "sample_timeout": {"type": "str", "default": "10m"},
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
            ("content", "sample", ("source",)),
        ],
    ).merge(connection_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    free = params["database_free_space"]
    request = ShadowRequest(
        backup=params["backup"] or "",
        manifest_sha256=params["manifest_sha256"] or "",
        content=params["content"],
        sample=SampleRequest(
            rows=params["sample_rows"],
            size=parse_size(params["sample_size"]),
            scan_max=parse_size(params["sample_scan_max"]),
            timeout=parse_duration(params["sample_timeout"]),
        ),
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
        source = ConnectionOptions.from_params(params["source"]) if params["source"] else None
        for secret in source.secrets if source else ():
            module.never_show(secret)
        outcome = make_shadow(options, request, source=source, check_mode=module.check_mode)
    for warning in outcome.warnings:
        module.warn(warning)
    return outcome.results(None if module.check_mode else request.run_dir)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
