#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: database_health
short_description: Probe PostgreSQL, Redis and MongoDB databases, given or registered
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Logs in to each database and pings it once, all at the same time, in bounded time, and says what came of it in one
    word.
  - Takes databases that are given in O(targets), those of a registry that O(encryption_key) reads, or both. Results of
    the registry's rows are written back to it.
  - V(ok) is a login and an answer. V(auth_failed) is a server that is up and refuses the login, which is not healthy.
    V(unreachable), V(timeout) and V(tls_error) are what they say, V(bad_url) is a URL that means nothing or two things,
    V(error) a server that answers and cannot serve, such as one that is still starting. V(not_probed) was not measured,
    because its URL cannot be read or the total time was over.
  - No URL, password or text of a driver is in any result. The URLs of a registry never leave the module.
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details:
      - Databases are probed, because a probe only reads. Nothing is written, neither to the registry nor to O(run_dir).
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)) in diff mode.
    support: full
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled or queried by the module has not changed in a relevant way.
    support: full
    details:
      - A change is another health or another error in the registry. The time of the check is written each time and
        does not count.
options:
  targets:
    description: Databases to probe. This, O(encryption_key) or both must be given.
    type: list
    elements: dict
    suboptions:
      name:
        description: What results and evidence call it.
        type: str
        required: true
      url:
        description: Its URL. One that cannot be parsed is V(bad_url), not an error of the task.
        type: str
        required: true
      type:
        description: What the URL must be a URL of. The default is what its scheme says.
        type: str
        choices: [mongodb, redis, postgresql]
      criterion:
        description: A criterion that this database alone decides, such as C(railway.redis.healthy).
        type: str
  project_ids:
    description: Projects of the registry to probe. The default is all of them.
    type: list
    elements: str
    default: []
  names:
    description: Names of the registry's databases to probe. The default is all of them. One that is missing fails.
    type: list
    elements: str
    default: []
  statuses:
    description: What the registry's column C(status) must say. An empty list takes all rows.
    type: list
    elements: str
    default: [active]
  criteria:
    description:
      - Criteria that one database of the registry decides, by its name. C(railway.redis.healthy) for the one that is
        called C(Railway Redis), for example.
    type: dict
    default: {}
  optional:
    description:
      - Names of databases that are probed and reported, and whose failure fails neither the task nor the criterion
        C(databases.healthy).
    type: list
    elements: str
    default: []
  update_registry:
    description: Whether results are written to the registry.
    type: bool
    default: true
  update_function:
    description:
      - The function that writes them. It takes the id of a row, V(healthy), V(unhealthy) or V(unknown), and the error.
      - Empty, the three columns of O(columns) are updated instead.
    type: str
    default: update_database_health
  timeout:
    description: How long one probe may take, connection, TLS, login and answer together.
    type: str
    default: 5s
  total_timeout:
    description: How long all probes together may take. What has had no turn by then is V(not_probed).
    type: str
    default: 60s
  fail_on_error:
    description: Whether the task fails when a database that counts is not V(ok), or there is none.
    type: bool
    default: true
extends_documentation_fragment:
  - surefoot.dbops._connection
  - surefoot.dbops._registry
  - surefoot.dbops._run
  - surefoot.dbops._attributes
requirements:
  - redis (redis-py), pymongo and, for C(mongodb+srv), dnspython, for what is probed
notes:
  - Up to 32 databases are probed at the same time.
seealso:
  - module: surefoot.dbops.database_registration
  - module: surefoot.dbops.http_probe
"""

EXAMPLES = r"""
- name: Probe every registered database and note its health
  surefoot.dbops.database_health:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    encryption_key: "{{ lookup('ansible.builtin.env', 'DATABASE_ENCRYPTION_KEY') }}"
    criteria:
      Railway Redis: railway.redis.healthy
      Railway MongoDB: railway.mongodb.healthy

- name: Probe two databases that are not registered yet, before the migration
  surefoot.dbops.database_health:
    targets:
      - name: redis
        url: "{{ redis_url }}"
        criterion: railway.redis.healthy
      - name: mongodb
        url: "{{ mongodb_url }}"
        criterion: railway.mongodb.healthy
    timeout: 3s
    run_dir: /var/lib/surefoot/runs/r42

- name: Look, and write nothing
  surefoot.dbops.database_health:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    encryption_key: "{{ lookup('ansible.builtin.env', 'DATABASE_ENCRYPTION_KEY') }}"
    update_registry: false
    fail_on_error: false
"""

RETURN = r"""
databases:
  description: What was probed.
  returned: success or failure
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: Railway Redis
    type:
      description: C(mongodb), C(redis) or C(postgresql); null when the URL does not say.
      type: str
      sample: redis
    address:
      description: Its URL without user, password and query; null when there is none that can be parsed.
      type: str
      sample: redis://***@redis.railway.internal:6379/0
    project_id:
      description: The project of its row; null for one of O(targets).
      type: str
      sample: 7d3c1f4e-2f5b-4a8e-8f6a-0a1b2c3d4e5f
    status:
      description:
        - V(ok), V(auth_failed), V(unreachable), V(timeout), V(tls_error), V(bad_url), V(error) or V(not_probed).
      type: str
      sample: ok
    reason:
      description: Why it is not V(ok).
      type: str
      sample: null
    milliseconds:
      description: Time of connection, TLS, login and ping; null when there was no probe.
      type: float
      sample: 2.4
    criterion:
      description: The criterion it decides alone.
      type: str
      sample: railway.redis.healthy
    optional:
      description: Whether it is named in O(optional).
      type: bool
      sample: false
healthy:
  description: Whether there is a database and all that count are V(ok).
  returned: success or failure
  type: bool
  sample: true
summary:
  description: The result in one line.
  returned: success or failure
  type: str
  sample: 2 of 2 databases are healthy.
written:
  description: Number of rows of the registry whose health was written.
  returned: success or failure
  type: int
  sample: 2
evidence:
  description:
    - Evidence records with the criterion C(databases.healthy) and those that were named. What was not probed is not
      measured, which is no pass.
  returned: success or failure
  type: list
  elements: dict
  sample:
    - criterion: databases.healthy
      phase: health
      verdict: pass
      measured: {7d3c1f4e-2f5b-4a8e-8f6a-0a1b2c3d4e5f Railway Redis: ok}
      required: every database that counts is ok
      source: login and ping, at most 5 s each
      time: "2026-11-22T02:00:12.345Z"
      details: {}
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: verification, message: "0 of 1 databases are healthy; redis: timeout, no answer in time."}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    connection_argument_spec,
    registry_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._health import (
    Health,
    RegistryRequest,
    parse_limit,
    parse_targets,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import (
    Invocation,
    connection_options,
    run_module,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._registry import Registry, check_key
from ansible_collections.surefoot.dbops.plugins.module_utils._stores import secrets_of_url


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "targets": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "url": {"type": "str", "required": True, "no_log": True},
                    "type": {"type": "str", "choices": ["mongodb", "redis", "postgresql"]},
                    "criterion": {"type": "str"},
                },
            },
            "project_ids": {"type": "list", "elements": "str", "default": []},
            "names": {"type": "list", "elements": "str", "default": []},
            "statuses": {"type": "list", "elements": "str", "default": ["active"]},
            "criteria": {"type": "dict", "default": {}},
            "optional": {"type": "list", "elements": "str", "default": []},
            "update_registry": {"type": "bool", "default": True},
            "update_function": {"type": "str", "default": "update_database_health"},
            "timeout": {"type": "str", "default": "5s"},
            "total_timeout": {"type": "str", "default": "60s"},
            "fail_on_error": {"type": "bool", "default": True},
        },
        required_one_of=[("targets", "encryption_key")],
    ).merge(connection_argument_spec(), registry_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    targets = params["targets"] or []
    for target in targets:
        for secret in secrets_of_url(target["url"]):
            module.never_show(secret)
    module.never_show(params["encryption_key"])
    request = None
    if params["encryption_key"] is not None:
        request = RegistryRequest(
            connection_options(module),
            Registry.from_params(params),
            check_key(params["encryption_key"], "encryption_key", short_allowed=True),
            project_ids=tuple(params["project_ids"]),
            names=tuple(params["names"]),
            statuses=tuple(params["statuses"]),
            write=params["update_registry"],
        )
    health = Health(
        parse_targets(targets),
        request,
        criteria=params["criteria"],
        optional=params["optional"],
        timeout=parse_limit(params["timeout"], "timeout"),
        total_timeout=parse_limit(params["total_timeout"], "total_timeout"),
        check_mode=module.check_mode,
    )
    run_interruptible(health.run, health.stop)
    for secret in health.secrets:
        module.never_show(secret)
    results = health.results(None if module.check_mode else params["run_dir"], module.diff)
    failed = health.failure()
    if failed is not None and params["fail_on_error"]:
        failed.results.update(results)
        raise failed
    return results


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
