#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: railway_variables_info
short_description: Say which variables of Railway services are set, and which of them can be used from here
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Lists the variables of services by name, with the state of each, the class of its host, and, with a key of yours, a
    fingerprint that tells whether two values are the same.
  - Of the variables you name as candidates, says which is the first that can be used from here, and why each other
    cannot.
  - Values are in the result only with O(values). To use a value, prefer the lookup
    P(surefoot.dbops.railway_variable#lookup).
  - Uses Railway's API, not its command line program. Reads only.
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details:
      - It asks all the same. No evidence is written to the run directory.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)) in diff mode.
    support: N/A
    details:
      - This module changes nothing.
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled or queried by the module has not changed in a relevant way.
    support: full
options:
  services:
    description: The services to look at.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name or id of the service. Two services of the same name are refused, with their ids.
        type: str
        required: true
      kind:
        description:
          - What it is. V(redis) and V(mongodb) demand a URL of that kind, and name the criterion.
          - With V(other), any value counts.
        type: str
        choices: [redis, mongodb, other]
        default: other
      variables:
        description:
          - Candidates, best first. One that can be used must be among them.
          - The default is C([REDIS_PUBLIC_URL, REDIS_URL]) for V(redis), C([MONGO_PUBLIC_URL, MONGO_URL, MONGODB_URL])
            for V(mongodb), and none for V(other), which demands nothing.
        type: list
        elements: str
  endpoint:
    description:
      - Which address can be used.
      - V(auto) takes a public one, or one of Railway's private network if its name is known on this host, as it is
        inside that network only.
      - V(private) takes private ones alone, without looking whether they can be reached from here.
      - V(public) takes no private one.
    type: str
    choices: [auto, private, public]
    default: auto
  shared:
    description: Whether to list the shared variables of the environment too.
    type: bool
    default: false
  fingerprint_key:
    description:
      - Key of the fingerprints, at least 16 characters. Without it there are none.
      - Keep it, and keep it secret. With it, a value that is easy to guess can be guessed from its fingerprint.
    type: str
  values:
    description:
      - Whether to return the values of the candidates, as RV(variable_values).
      - The task must have C(no_log=true), else it is refused. Ansible would print and log the values.
    type: bool
    default: false
  kinds:
    description:
      - Kinds of which the absence from O(services) is recorded as evidence, as not configured.
      - Use it where O(services) is all that the environment has, as the role P(surefoot.dbops.surefoot_railway#role)
        does.
    type: list
    elements: str
    choices: [redis, mongodb]
    default: []
  fail_on_error:
    description: Whether the task fails when a criterion is not met. The results are returned in either case.
    type: bool
    default: true
extends_documentation_fragment:
  - surefoot.dbops._railway
  - surefoot.dbops._run
notes:
  - Costs one request of Railway's hourly limit for the project, one a service, and with O(project) as a name one more
    and one a workspace.
seealso:
  - module: surefoot.dbops.railway_service_info
  - plugin: surefoot.dbops.railway_variable
    plugin_type: lookup
"""

EXAMPLES = r"""
- name: Which URLs are set, and can they be used from here?
  surefoot.dbops.railway_variables_info:
    api_token: "{{ railway_api_token }}"
    project: lancio
    environment: production
    services:
      - name: Redis
        kind: redis
      - name: MongoDB
        kind: mongodb
        variables: [MONGO_PUBLIC_URL, MONGO_URL, MONGODB_URL]

- name: Has a password changed since the last time?
  surefoot.dbops.railway_variables_info:
    project_token: "{{ railway_project_token }}"
    services:
      - name: Redis
    fingerprint_key: "{{ fingerprint_key }}"
  register: variables

- name: The value itself, where a lookup will not do
  surefoot.dbops.railway_variables_info:
    project_token: "{{ railway_project_token }}"
    services:
      - name: Redis
        kind: redis
    values: true
  no_log: true
  register: variables
"""

RETURN = r"""
project:
  description: The project; null when there was nothing to ask.
  returned: success
  type: dict
  sample: {id: 5d2c8e7a-0d0b-4c5e-9f57-3f9b7a1c2d01, name: lancio}
environment:
  description: The environment; null when there was nothing to ask.
  returned: success
  type: dict
  sample: {id: 0b6c1d8e-77f3-4d2c-8b1a-4f1e2d3c4b5a, name: production}
services:
  description: What each service has.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: As in O(services).
      type: str
      sample: Redis
    id:
      description: Its id; null when the project has no such service.
      type: str
      sample: 8c1f0a52-6f0e-4a55-b7f5-0c9d1e2f3a4b
    kind:
      description: As in O(services).
      type: str
      sample: redis
    found:
      description: Whether the project has it.
      type: bool
      sample: true
    selected:
      description: The first candidate that can be used; null when there is none.
      type: str
      sample: REDIS_PUBLIC_URL
    host_class:
      description: The class of that one's host.
      type: str
      sample: railway_proxy
    candidates:
      description:
        - The candidates in their order, with C(usable), and C(reason) where it is not. C(usable) is null for one of
          the private network that was not tried, because an earlier one can be used.
      type: list
      elements: dict
      sample:
        - name: REDIS_PUBLIC_URL
          state: value
          host_class: railway_proxy
          fingerprint: null
          usable: true
          reason: null
    variables:
      description:
        - All variables by name. C(state) is V(value), V(sealed) (set, and never handed out), V(empty) or
          V(unresolved) (a reference is still in it, or a URL has no host or port).
        - C(host_class) of a URL is V(railway_private), V(railway_proxy) or V(other).
      type: list
      elements: dict
      sample:
        - {name: REDIS_URL, state: value, host_class: railway_private, fingerprint: null}
shared:
  description: The shared variables, as in RV(services[].variables); null without O(shared).
  returned: success
  type: list
  elements: dict
  sample: null
variable_values:
  description: The values of the candidates by service and name. No other place of the result has a value.
  returned: with O(values)
  type: dict
  sample: {Redis: {REDIS_URL: "..."}}
requests:
  description: Number of requests that were sent.
  returned: success
  type: int
  sample: 3
failed_criteria:
  description: Criteria that were not met.
  returned: success
  type: list
  elements: str
  sample: []
evidence:
  description:
    - Evidence records with the criteria C(railway.redis.variable), C(railway.mongodb.variable) or
      C(railway.other.variable), one a service with candidates. A sealed candidate, and none that can be used, is not
      measured.
  returned: always, except when options are wrong
  type: list
  elements: dict
  sample:
    - criterion: railway.redis.variable
      phase: preflight
      verdict: pass
      measured: {selected: REDIS_PUBLIC_URL, REDIS_PUBLIC_URL: can be used (railway_proxy)}
      required: one of REDIS_PUBLIC_URL, REDIS_URL has a value that can be used (endpoint auto)
      source: Railway's API, environment production of project lancio
      time: "2026-11-22T02:00:12.345Z"
      details: {subject: Redis}
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: verification, message: "Redis has no variable that can be used: REDIS_URL is sealed"}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    railway_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, run_module
from ansible_collections.surefoot.dbops.plugins.module_utils._railway import Client
from ansible_collections.surefoot.dbops.plugins.module_utils._railway_services import ENDPOINTS, KINDS, variables_info


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "services": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "kind": {"type": "str", "choices": list(KINDS), "default": "other"},
                    "variables": {"type": "list", "elements": "str"},
                },
            },
            "endpoint": {"type": "str", "choices": list(ENDPOINTS), "default": "auto"},
            "shared": {"type": "bool", "default": False},
            "fingerprint_key": {"type": "str", "no_log": True},
            "values": {"type": "bool", "default": False},
            "kinds": {"type": "list", "elements": "str", "choices": ["redis", "mongodb"], "default": []},
            "fail_on_error": {"type": "bool", "default": True},
        },
    ).merge(railway_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""

    def client() -> Client:
        found = Client.from_params(module.params)
        module.never_show(found.token.value)
        return found

    params = {**module.params, "run_dir": None if module.check_mode else module.params["run_dir"]}
    return {"changed": False, **variables_info(params, client)}


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
