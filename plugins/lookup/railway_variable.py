# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: railway_variable
short_description: The value of a variable of a Railway service
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Gives one value, that of the first of the named variables that can be used from here. It goes from Railway's API
    into the option it is written for, and is never a task's result.
  - A variable that is missing, sealed, empty, or a URL that cannot be used from here is an error that says so.
  - Uses Railway's API, not its command line program. Reads only.
options:
  _terms:
    description:
      - Names of variables, best first. The first that can be used wins; together they give one value.
      - The default is C(REDIS_PUBLIC_URL), C(REDIS_URL) for V(redis), and C(MONGO_PUBLIC_URL), C(MONGO_URL),
        C(MONGODB_URL) for V(mongodb) in O(kind). For V(other) there is none.
    type: list
    elements: str
  service:
    description: Name or id of the service. Two services of the same name are refused, with their ids.
    type: str
    required: true
  kind:
    description: What the service is. V(redis) and V(mongodb) demand a URL of that kind.
    type: str
    choices: [redis, mongodb, other]
    default: other
  endpoint:
    description:
      - Which address can be used, where the value is a URL.
      - V(auto) takes a public one, or one of Railway's private network if its name is known on the controller, as it is
        inside that network only.
      - V(private) takes private ones alone, without looking whether they can be reached from here. V(public) takes no
        private one.
    type: str
    choices: [auto, private, public]
    default: auto
extends_documentation_fragment:
  - surefoot.dbops._railway
notes:
  - Ansible evaluates a lookup whenever it needs the template. Railway is asked once for a service, and once for its
    project, by each process of the run that evaluates it. Every task has a process of its own. A value that many tasks
    need is best kept by C(ansible.builtin.set_fact) with C(no_log=true).
  - An option that a module does not mark as secret is printed at C(-vvv). Hand the value to options that are secret,
    or give the task C(no_log=true).
seealso:
  - module: surefoot.dbops.railway_variables_info
"""

EXAMPLES = r"""
- name: Register the URLs as they are, without showing them
  surefoot.dbops.postgresql_migration:
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    path: migrations/lancio_platform
    secret_variables:
      railway_redis_url: >-
        {{ lookup('surefoot.dbops.railway_variable', service='Redis', kind='redis',
                  project='lancio', environment='production') }}
      railway_mongodb_url: >-
        {{ lookup('surefoot.dbops.railway_variable', 'MONGO_PUBLIC_URL', 'MONGO_URL', 'MONGODB_URL', service='MongoDB',
                  project='lancio', environment='production') }}

- name: A variable that is no URL, with a project token
  ansible.builtin.set_fact:
    redis_password: >-
      {{ lookup('surefoot.dbops.railway_variable', 'REDIS_PASSWORD', service='Redis', project_token=railway_token) }}
  no_log: true
"""

RETURN = r"""
_raw:
  description: The value, as a list of one.
  type: list
  elements: str
"""

import hashlib
import typing as t

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._railway import Client, Scope, resolve_scope
from ansible_collections.surefoot.dbops.plugins.module_utils._railway_services import (
    DEFAULT_CANDIDATES,
    Variable,
    read_variables,
    variable_value,
)

# What this process has asked already. A worker that Ansible forks starts with what its parent had, and keeps what it
# adds to itself; no lock is held here that a fork could leave locked.
_scopes: dict[tuple[str, ...], Scope] = {}
_variables: dict[tuple[str, ...], dict[str, Variable]] = {}


class LookupModule(LookupBase):
    """The lookup."""

    def run(self, terms: list[t.Any], variables: dict[str, t.Any] | None = None, **kwargs: t.Any) -> list[str]:
        """One value."""
        self.set_options(var_options=variables, direct=kwargs)
        params = self.get_options()
        try:
            return [_value([str(term) for term in terms], params)]
        except SurefootError as exc:
            raise AnsibleLookupError(redact(str(exc))) from None


def _value(terms: list[str], params: t.Mapping[str, t.Any]) -> str:
    kind = str(params["kind"])
    candidates = terms or list(DEFAULT_CANDIDATES[kind])
    if not candidates:
        raise PlanError("railway_variable names no variable", remedy="Name one, or say kind='redis' or kind='mongodb'.")
    client = Client.from_params(params)
    token = hashlib.sha256(client.token.value.encode("utf-8")).hexdigest()
    place = (str(params["api_url"]), token, str(params.get("project")), str(params.get("environment")))
    scope = _scopes.get(place)
    if scope is None:
        scope = _scopes.setdefault(place, resolve_scope(client, params))
    service = scope.service(str(params["service"]))
    if service is None:
        names = ", ".join(sorted(item.name for item in scope.services)) or "none"
        raise PlanError(
            f"the project {scope.project.name} has no service {params['service']}", remedy=f"It has: {names}."
        )
    known = (*place, service.id)
    if known not in _variables:
        _variables[known] = read_variables(client, scope, service)
    endpoint = str(params["endpoint"])
    return variable_value(client, scope, _variables[known], service.name, candidates, kind=kind, endpoint=endpoint)
