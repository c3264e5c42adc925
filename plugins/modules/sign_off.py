#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sign_off
short_description: Post the completion of a run to the service that signs it off
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Seals the run directory and posts the run's identifier, the decision, the head of the chain of evidence, the
    migrations that were applied and the actor, as a JSON object with a bearer token.
  - The identifier of the run is the idempotency key. A run that was signed off is not signed off again.
  - Server errors (5xx) are tried again. Redirects are not followed, and a connection that was lost is not repeated by
    itself, because the call may have arrived.
  - Anchor the evidence afterwards with M(surefoot.dbops.postgresql_evidence), so that C(sign_off.posted) is covered.
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details:
      - Options, token and evidence are checked; nothing is posted.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)) in diff mode.
    support: none
    details:
      - There is no state to compare.
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled or queried by the module has not changed in a relevant way.
    support: full
options:
  url:
    description: Address of the service. It is treated as a secret.
    type: str
    required: true
  token:
    description:
      - Bearer token. An empty one, a template that was not filled in, and placeholders such as C(<token>) or C($TOKEN)
        are refused.
    type: str
    required: true
  decision:
    description: The decision. The default is that of C(gate.json), of the gate before the sign-off when it was asked.
    type: str
  applied:
    description: The migrations that were applied. The default is what C(run.json) says.
    type: list
    elements: str
  actor:
    description: Who ran it and who approved it. The default is what C(run.json) says.
    type: dict
  timeout:
    description: How long one attempt may take, from its beginning to the answer.
    type: str
    default: 10s
  attempts:
    description: How often the call is tried at most.
    type: int
    default: 4
  ca_cert:
    description: File of the certificate authorities the service's certificate is checked against.
    type: path
  allow_http:
    description: Send the token without TLS to another machine than this one.
    type: bool
    default: false
  run_dir:
    description: The run directory, on the host that executes the module.
    type: path
    required: true
  run_id:
    description: Identifier of the run. By default what C(run.json) says, else the name of the run directory.
    type: str
seealso:
  - module: surefoot.dbops.postgresql_evidence
  - module: surefoot.dbops.notify
"""

EXAMPLES = r"""
- name: Sign off
  surefoot.dbops.sign_off:
    url: https://changes.example.com/api/migrations/complete
    token: "{{ lookup('ansible.builtin.env', 'SIGN_OFF_TOKEN') }}"
    run_dir: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f

- name: Anchor the evidence, the sign-off included
  surefoot.dbops.postgresql_evidence:
    state: anchored
    login_url: "{{ lookup('ansible.builtin.env', 'DATABASE_URL') }}"
    run_dir: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f
"""

RETURN = r"""
outcome:
  description: V(posted), V(posted before), V(would be posted) in check mode, or V(failed).
  returned: always, except when options are wrong
  type: str
  sample: posted
run_id:
  description: The run.
  returned: always, except when options are wrong
  type: str
  sample: 20261122T020000Z-5f0c1f
host:
  description: Host of the service.
  returned: always, except when options are wrong
  type: str
  sample: changes.example.com
status:
  description: HTTP status; null when there was no answer or no call.
  returned: always, except when options are wrong
  type: int
  sample: 201
attempts:
  description: Number of calls.
  returned: always, except when options are wrong
  type: int
  sample: 1
head:
  description: Head of the chain of evidence that was sent; null without a call.
  returned: always, except when options are wrong
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
evidence:
  description: One record with the criterion C(sign_off.posted), when there was a call.
  returned: always, except when options are wrong
  type: list
  elements: dict
  sample:
    - criterion: sign_off.posted
      phase: sign_off
      verdict: pass
      measured: {host: changes.example.com, status: 201, problem: null}
      required: accepted by the service (2xx)
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: plan, message: the token of the sign-off is empty, remedy: Give the token itself.}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.surefoot.dbops.plugins.module_utils._chain import run_id_of
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, run_module
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration
from ansible_collections.surefoot.dbops.plugins.module_utils._webhook import Address, Delivery, check_token, sign_off


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "url": {"type": "str", "required": True, "no_log": True},
            "token": {"type": "str", "required": True, "no_log": True},
            "decision": {"type": "str"},
            "applied": {"type": "list", "elements": "str"},
            "actor": {"type": "dict"},
            "timeout": {"type": "str", "default": "10s"},
            "attempts": {"type": "int", "default": 4},
            "ca_cert": {"type": "path"},
            "allow_http": {"type": "bool", "default": False},
            "run_dir": {"type": "path", "required": True},
            "run_id": {"type": "str"},
        },
    )


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    token = check_token(params["token"])
    address = Address.parse(params["url"], what="url", allow_http=params["allow_http"])
    delivery = Delivery(parse_duration(params["timeout"]), params["attempts"], params["ca_cert"], retry_lost=False)
    return sign_off(
        address,
        token,
        delivery,
        run_dir=params["run_dir"],
        run_id=params["run_id"] or run_id_of(params["run_dir"]),
        given={name: params[name] for name in ("decision", "applied", "actor")},
        check_mode=module.check_mode,
    )


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
