#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: notify
short_description: Send the messages of a run to webhooks
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot)
description:
  - Posts messages written in Markdown to Slack, to Microsoft Teams (Workflows), or as JSON to any other service.
  - Records C(notify.sent) in the evidence of the run, with the host and the time, never with the path of an address or
    a header.
  - A message that a target has accepted is not sent to it again in the same run.
  - Server errors (5xx) and lost connections are tried again, at growing intervals. Redirects are not followed.
  - A proxy is taken from the environment (E(HTTPS_PROXY), E(NO_PROXY)).
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details:
      - Options and messages are checked; nothing is sent.
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
    details:
      - Within one run, whose O(run_dir) remembers what was sent.
options:
  targets:
    description: Where the messages go.
    type: list
    elements: dict
    required: true
    suboptions:
      url:
        description: Address of the webhook. It is treated as a secret.
        type: str
        required: true
      kind:
        description:
          - What the other side understands.
          - V(json) is an object with C(run_id), C(message), C(format), C(text), and C(sha256).
        type: str
        choices: [slack, teams, json]
        default: slack
      name:
        description:
          - What evidence and messages call the target. The default is its host.
          - Two targets need two names.
        type: str
      headers:
        description: Further headers, such as C(Authorization). Their values are treated as secrets.
        type: dict
  messages:
    description:
      - Files with the messages. A name without a directory is looked up in C(messages/) of O(run_dir).
      - Either this or O(text) is required.
    type: list
    elements: str
  text:
    description: A message itself, in Markdown.
    type: str
  subject:
    description: What evidence calls the message of O(text).
    type: str
    default: text
  required:
    description:
      - Fail the task when a message was not accepted, after all others were sent. By default that is a warning.
    type: bool
    default: false
  timeout:
    description: How long one attempt may take, from its beginning to the answer.
    type: str
    default: 10s
  attempts:
    description: How often a message is tried at most.
    type: int
    default: 4
  ca_cert:
    description: File of the certificate authorities the service's certificate is checked against.
    type: path
  allow_http:
    description: Send without TLS to other machines than this one.
    type: bool
    default: false
seealso:
  - module: surefoot.dbops.sign_off
extends_documentation_fragment:
  - surefoot.dbops._run
"""

EXAMPLES = r"""
- name: Announce the migration a day ahead
  surefoot.dbops.notify:
    targets:
      - url: "{{ lookup('ansible.builtin.env', 'SLACK_WEBHOOK_URL') }}"
        name: dba channel
      - url: https://hooks.example.com/surefoot
        kind: json
        headers:
          Authorization: "Bearer {{ lookup('ansible.builtin.env', 'HOOK_TOKEN') }}"
    messages: [pre-migration.md]
    run_dir: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f
    required: true

- name: Say something
  surefoot.dbops.notify:
    targets:
      - url: "{{ lookup('ansible.builtin.env', 'TEAMS_WEBHOOK_URL') }}"
        kind: teams
    text: "**Migration 006** starts in ten minutes."
    subject: reminder
    run_dir: /var/lib/surefoot/runs/20261122T020000Z-5f0c1f
"""

RETURN = r"""
sent:
  description: One entry a message and target.
  returned: always, except when options are wrong
  type: list
  elements: dict
  contains:
    message:
      description: File name of the message without its ending, or O(subject).
      type: str
      sample: pre-migration
    target:
      description: Name of the target.
      type: str
      sample: dba channel
    host:
      description: Its host.
      type: str
      sample: hooks.slack.com
    kind:
      description: What it understands.
      type: str
      sample: slack
    outcome:
      description: V(sent), V(sent before), V(would be sent) in check mode, or V(failed).
      type: str
      sample: sent
    status:
      description: HTTP status; null when there was no answer or no call.
      type: int
      sample: 200
    attempts:
      description: Number of calls.
      type: int
      sample: 1
evidence:
  description: One record with the criterion C(notify.sent) for each message and target that was called.
  returned: always, except when options are wrong
  type: list
  elements: dict
  sample:
    - criterion: notify.sent
      phase: notify
      verdict: pass
      measured: {message: pre-migration, target: dba channel, host: hooks.slack.com, kind: slack, status: 200}
      required: accepted by the service (2xx)
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: environment, message: the message pre-migration did not reach dba channel, remedy: Check the address.}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import ArgumentSpec, run_argument_spec
from ansible_collections.surefoot.dbops.plugins.module_utils._chain import run_id_of
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, run_module
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration
from ansible_collections.surefoot.dbops.plugins.module_utils._webhook import (
    KINDS,
    Delivery,
    Message,
    notify,
    read_messages,
    read_targets,
)


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "targets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "url": {"type": "str", "required": True, "no_log": True},
                    "kind": {"type": "str", "choices": list(KINDS), "default": "slack"},
                    "name": {"type": "str"},
                    "headers": {"type": "dict", "no_log": True},
                },
            },
            "messages": {"type": "list", "elements": "str"},
            "text": {"type": "str"},
            "subject": {"type": "str", "default": "text"},
            "required": {"type": "bool", "default": False},
            "timeout": {"type": "str", "default": "10s"},
            "attempts": {"type": "int", "default": 4},
            "ca_cert": {"type": "path"},
            "allow_http": {"type": "bool", "default": False},
        },
        required_one_of=[("messages", "text")],
    ).merge(run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    run_dir = params["run_dir"]
    messages = read_messages(params["messages"] or (), run_dir)
    if params["text"]:
        messages.append(Message(params["subject"], params["text"]))
    sent = notify(
        read_targets(params["targets"], allow_http=params["allow_http"]),
        messages,
        Delivery(parse_duration(params["timeout"]), params["attempts"], params["ca_cert"]),
        run_id=params["run_id"] or (run_id_of(run_dir) if run_dir else ""),
        run_dir=run_dir,
        required=params["required"],
        check_mode=module.check_mode,
    )
    return sent.results()


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
