#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: database_registration
short_description: Register a database with its URL encrypted, remove it, or exchange the encryption key
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Turns a URL of PostgreSQL, Redis or MongoDB into a row of C(platform.databases) or of a table of its shape, with the
    URL encrypted, and its host, port, database, user name and TLS in columns of their own.
  - The URL is parsed by the driver that will use it, inside strict rules. What could be understood in two ways, such as
    an unescaped C(@) in a password, a missing host or an unresolved reference, is refused. No message shows any part of
    it.
  - Each task is one transaction. What was written is decrypted and compared before the commit.
  - No URL and no key is ever in the text of a statement, so none is in the server log or in C(pg_stat_statements).
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details:
      - Reads the row and decrypts it, in a transaction that may only read.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)) in diff mode.
    support: full
    details:
      - The URL is shown without user, password and query.
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled or queried by the module has not changed in a relevant way.
    support: full
    details:
      - A ciphertext differs each time. Beside it, in C(metadata), lies a keyed HMAC of the URL that tells whether it is
        the same, and that no longer fits once somebody else has written the ciphertext.
options:
  state:
    description:
      - V(present) registers the URL of one database, or changes it.
      - V(absent) removes the row.
      - V(rotated) exchanges the encryption key of all rows, or of those of O(project_ids). Every row is decrypted with
        the new key before the commit. A row that neither key reads makes the task fail, and nothing is changed.
    type: str
    choices: [present, absent, rotated]
    default: present
  project_id:
    description: Which project the database belongs to, as the column holds it. Needed but for O(state=rotated).
    type: str
  name:
    description: Name of the database within the project. Needed but for O(state=rotated).
    type: str
  type:
    description: What the URL must be a URL of. The default is what its scheme says.
    type: str
    choices: [mongodb, redis, postgresql]
  url:
    description:
      - The URL, such as C(redis://default:password@host:6379/0). C(mongodb+srv) is taken without asking DNS.
      - Reserved characters of user and password must be percent-encoded.
    type: str
  old_encryption_key:
    description: The key in force until now. With O(state=rotated).
    type: str
  project_ids:
    description: With O(state=rotated), the projects whose rows get the new key. The default is every row of the table.
    type: list
    elements: str
    default: []
  status:
    description: What the column C(status) says. The default is V(active) for a new row, and what it was for others.
    type: str
  metadata:
    description: Keys to merge into the column C(metadata), which is not secret. The key C(surefoot) is the module's.
    type: dict
    default: {}
  replace_unreadable:
    description:
      - Whether a stored URL that O(encryption_key) does not read is replaced. Otherwise that is an error, and so is a
        key that does not read another database of the same project.
    type: bool
    default: false
extends_documentation_fragment:
  - surefoot.dbops._connection
  - surefoot.dbops._registry
  - surefoot.dbops._run
  - surefoot.dbops._attributes
seealso:
  - module: surefoot.dbops.database_health
"""

EXAMPLES = r"""
- name: Register Redis
  surefoot.dbops.database_registration:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    project_id: "{{ project_id }}"
    name: Railway Redis
    url: "{{ lookup('ansible.builtin.env', 'REDIS_URL') }}"
    encryption_key: "{{ lookup('ansible.builtin.env', 'DATABASE_ENCRYPTION_KEY') }}"
    metadata:
      provider: railway

- name: Exchange the key of every row
  surefoot.dbops.database_registration:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    state: rotated
    old_encryption_key: "{{ old_key }}"
    encryption_key: "{{ new_key }}"

- name: Register in a table of another name that does not encrypt by itself
  surefoot.dbops.database_registration:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    schema: ops
    table: stores
    columns:
      project_id: tenant
      connection_string: address
      connection_string_encrypted: sealed
    encryption: client
    project_id: tenant-7
    name: sessions
    url: "{{ redis_url }}"
    encryption_key: "{{ encryption_key }}"

- name: Remove it
  surefoot.dbops.database_registration:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    state: absent
    project_id: "{{ project_id }}"
    name: Railway Redis
"""

RETURN = r"""
action:
  description:
    - What was done, or would be in check mode, V(created), V(updated), V(adopted), V(removed), V(rotated) or
      V(unchanged).
    - V(adopted) is a row that somebody else wrote, with this very URL. It gets its fingerprint.
  returned: success
  type: str
  sample: created
database:
  description: The row without anything secret; null when there is none, and with O(state=rotated).
  returned: success
  type: dict
  sample:
    id: 0b4b8d6e-6c9a-4f0e-9d0c-0f6f6f4d9b1a
    project_id: 7d3c1f4e-2f5b-4a8e-8f6a-0a1b2c3d4e5f
    name: Railway Redis
    type: redis
    connection_string: redis://***@redis.railway.internal:6379/0
    host: redis.railway.internal
    port: 6379
    database: "0"
    username: default
    ssl_enabled: false
    status: active
    metadata: {provider: railway}
    fingerprint: 9f2c4e71a0d3b85c6e17f4a2d9b03c58e6a1f7d24c90b35e8f61a2d7c4b09e53
fingerprint:
  description: Keyed HMAC of the URL; the same for the same URL, name, project and key. Null without a URL.
  returned: success
  type: str
  sample: 9f2c4e71a0d3b85c6e17f4a2d9b03c58e6a1f7d24c90b35e8f61a2d7c4b09e53
key_id:
  description: Tells one encryption key from another. Nothing can be derived from it. Null with O(state=absent).
  returned: success
  type: str
  sample: 5b1e0c9a7d42f836
verified:
  description: Whether what is stored was decrypted and compared; null when check mode left it undone.
  returned: success
  type: bool
  sample: true
rotation:
  description:
    - With O(state=rotated), the number of C(rows), of those that were C(rotated), of those that had the new key
      C(already), and of those that were C(verified), which is null when check mode left it undone.
  returned: success
  type: dict
  sample: {rows: 2, rotated: 2, already: 0, verified: 2}
evidence:
  description: Evidence records with the criteria C(registration.encrypted) and C(registration.decryption).
  returned: success
  type: list
  elements: dict
  sample:
    - criterion: registration.decryption
      phase: register
      verdict: pass
      measured: {rows: 1, verified: true, action: created}
      required: every row decrypts to its URL
      source: platform.databases, decrypted in the transaction that wrote it
      time: "2026-11-22T02:00:12.345Z"
      details: {subject: 7d3c1f4e-2f5b-4a8e-8f6a-0a1b2c3d4e5f Railway Redis}
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: plan, message: "url is not a redis URL: it has no host"}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    registry_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._registration import Registration, Request
from ansible_collections.surefoot.dbops.plugins.module_utils._registry import Registry
from ansible_collections.surefoot.dbops.plugins.module_utils._stores import secrets_of_url


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "rotated"], "default": "present"},
            "project_id": {"type": "str"},
            "name": {"type": "str"},
            "type": {"type": "str", "choices": ["mongodb", "redis", "postgresql"]},
            "url": {"type": "str", "no_log": True},
            "old_encryption_key": {"type": "str", "no_log": True},
            "project_ids": {"type": "list", "elements": "str", "default": []},
            "status": {"type": "str"},
            "metadata": {"type": "dict", "default": {}},
            "replace_unreadable": {"type": "bool", "default": False},
        },
        required_if=[
            ("state", "present", ("project_id", "name", "url", "encryption_key")),
            ("state", "absent", ("project_id", "name")),
            ("state", "rotated", ("old_encryption_key", "encryption_key")),
        ],
    ).merge(connection_argument_spec(), registry_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    for secret in [*secrets_of_url(params["url"]), params["encryption_key"], params["old_encryption_key"]]:
        module.never_show(secret)
    registration = Registration(
        connection_options(module),
        Registry.from_params(params),
        Request(
            state=params["state"],
            project_id=params["project_id"],
            project_ids=tuple(params["project_ids"]),
            name=params["name"],
            kind=params["type"],
            url=params["url"],
            encryption_key=params["encryption_key"],
            old_encryption_key=params["old_encryption_key"],
            status=params["status"],
            metadata=params["metadata"],
            replace_unreadable=params["replace_unreadable"],
            check_mode=module.check_mode,
        ),
    )
    outcome = run_interruptible(registration.run, registration.stop)
    return outcome.results(None if module.check_mode else params["run_dir"], module.diff)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
