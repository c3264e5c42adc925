#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: railway_service_info
short_description: Say whether Railway services are deployed and run
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - A service is deployed and runs when an active deployment has the status C(SUCCESS), was not stopped, and has a
    replica that is C(RUNNING). Nothing of that is assumed; what the token may not see is not measured.
  - A failed deployment beside one that still serves shows in RV(services[].latest_status).
  - Uses Railway's API, not its command line program. Reads only. Whether a database answers is a question to the
    database.
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
        description: What it is. It names the criterion.
        type: str
        choices: [redis, mongodb, other]
        default: other
  allow_sleeping:
    description:
      - Whether a service that App Sleeping has put to sleep counts. It answers nothing until it is woken, which an
        application does by calling it, and a client of a database may not wait for.
    type: bool
    default: false
  wait:
    description: How long to wait for deployments in progress. With V(0s), one is a service that does not run yet.
    type: str
    default: 0s
  poll_interval:
    description: How often to look meanwhile. Each look is a request of Railway's hourly limit.
    type: str
    default: 5s
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
  - Costs one request of Railway's hourly limit for the project and one for all services, and with O(project) as a name
    one more and one a workspace. A token that may not list the services of an environment needs one a service.
  - Whether a project token may list them is not documented by Railway; the module tries both ways.
seealso:
  - module: surefoot.dbops.railway_variables_info
"""

EXAMPLES = r"""
- name: Are Redis and MongoDB deployed, and do they run?
  surefoot.dbops.railway_service_info:
    api_token: "{{ railway_api_token }}"
    project: lancio
    environment: production
    services:
      - name: Redis
        kind: redis
      - name: MongoDB
        kind: mongodb

- name: Wait for a deployment that is on its way
  surefoot.dbops.railway_service_info:
    project_token: "{{ railway_project_token }}"
    services:
      - name: Redis
        kind: redis
    wait: 5m
    poll_interval: 10s
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
  description: What each service is.
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
    state:
      description:
        - V(running), V(degraded) (some replicas crashed), V(sleeping), V(deploying), V(stopped), V(not_running),
          V(unconfirmed) (no replica is named), V(not_deployed), V(not_found), V(unknown) (the token may not see it),
          or the status of the latest deployment in lower case.
      type: str
      sample: running
    serving:
      description: Whether an active deployment serves, be it with some replicas crashed.
      type: bool
      sample: true
    healthy:
      description: Whether the criterion is met; null when that could not be measured.
      type: bool
      sample: true
    latest_status:
      description: Status of the latest deployment; null when there is none.
      type: str
      sample: SUCCESS
    deployment_id:
      description: Id of the latest deployment.
      type: str
      sample: 1f6a9c3e-52d8-4b7e-9d2a-6e5f4d3c2b1a
    instances:
      description: Number of replicas of the active deployments by state.
      type: dict
      sample: {RUNNING: 1}
    reason:
      description: The state in words.
      type: str
      sample: is deployed and runs
waited:
  description: Seconds that were spent on waiting for deployments.
  returned: success
  type: float
  sample: 0.0
requests:
  description: Number of requests that were sent.
  returned: success
  type: int
  sample: 2
failed_criteria:
  description: Criteria that were not met.
  returned: success
  type: list
  elements: str
  sample: []
evidence:
  description:
    - Evidence records with the criteria C(railway.redis.deployed), C(railway.mongodb.deployed) or
      C(railway.other.deployed), one a service.
  returned: always, except when options are wrong
  type: list
  elements: dict
  sample:
    - criterion: railway.redis.deployed
      phase: preflight
      verdict: pass
      measured: {state: running, serving: true, latest_status: SUCCESS, instances: {RUNNING: 1}}
      required: an active deployment with status SUCCESS, not stopped, and a replica RUNNING
      source: Railway's API, environment production of project lancio, service instances of the environment
      time: "2026-11-22T02:00:12.345Z"
      details: {subject: Redis}
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: verification, message: "Redis does not run: its latest deployment is FAILED"}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import (
    ArgumentSpec,
    railway_argument_spec,
    run_argument_spec,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, run_module
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._railway import Client
from ansible_collections.surefoot.dbops.plugins.module_utils._railway_services import KINDS, Patience, service_info
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration


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
                },
            },
            "allow_sleeping": {"type": "bool", "default": False},
            "wait": {"type": "str", "default": "0s"},
            "poll_interval": {"type": "str", "default": "5s"},
            "kinds": {"type": "list", "elements": "str", "choices": ["redis", "mongodb"], "default": []},
            "fail_on_error": {"type": "bool", "default": True},
        },
    ).merge(railway_argument_spec(), run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    clients: list[Client] = []

    def client() -> Client:
        clients.append(Client.from_params(module.params))
        module.never_show(clients[0].token.value)
        return clients[0]

    def stop(reason: str) -> None:
        for asking in clients:
            asking.stop(reason)

    # More often than once a second would only use up the hourly limit.
    patience = Patience(parse_duration(module.params["wait"]), max(1.0, parse_duration(module.params["poll_interval"])))
    params = {**module.params, "run_dir": None if module.check_mode else module.params["run_dir"]}
    return {"changed": False, **run_interruptible(lambda: service_info(params, client, patience), stop)}


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
