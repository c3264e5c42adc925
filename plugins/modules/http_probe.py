#!/usr/bin/python
# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: http_probe
short_description: Ask HTTP endpoints several times, and judge answers, latency and errors
version_added: 0.1.0
author:
  - Surefoot contributors (@surefoot-dbops)
description:
  - Sends each endpoint a number of requests, in turn and some at a time, and says how many were answered as expected,
    the 50th, 95th and 99th percentile of the time, and the share of errors.
  - With O(compare_with), says whether an endpoint answers 403 now that did not before.
  - Every request is a new connection without a proxy. Its time is that of connection, TLS, request and whole answer.
    No redirect is followed unless asked for.
  - What was not answered is classified as V(refused), V(timeout), V(dns), V(tls), V(network), V(closed) or
    V(protocol). After three requests in a row without an answer, an endpoint is not asked again.
  - Answers are judged and thrown away. No body, no header and no secret of a request is in the result.
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: partial
    details:
      - Endpoints with another method than C(GET), C(HEAD) or C(OPTIONS) are not asked, and no file is written.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)) in diff mode.
    support: N/A
    details:
      - This module does not know what a request changes.
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled or queried by the module has not changed in a relevant way.
    support: full
    details:
      - It always reports no change. What a C(POST) does to the application is not known to it.
options:
  endpoints:
    description: What to ask.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - What results, evidence and the comparison call it.
          - The default is the method and the URL without secrets.
        type: str
      url:
        description:
          - An C(http) or C(https) URL.
          - Results show it without user and password, and with the values of query parameters masked whose name looks
            like a secret. Put secrets into O(endpoints[].token) or O(endpoints[].secret_headers) instead, because
            Ansible itself logs the options of a task.
        type: str
        required: true
      method:
        description: The HTTP method.
        type: str
        choices: [GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE]
        default: GET
      headers:
        description: Headers that are no secrets. One whose name looks like a secret is refused here.
        type: dict
        default: {}
      secret_headers:
        description: Headers whose values are secrets, such as C(Cookie).
        type: dict
        default: {}
      token:
        description: A bearer token, for the header C(Authorization).
        type: str
      body:
        description:
          - What to send. A dictionary or list is sent as JSON, with that content type unless O(endpoints[].headers)
            has one.
        type: raw
      expect_status:
        description: The status codes that are right.
        type: list
        elements: int
        default: [200]
      expect_body:
        description:
          - A JMESPath expression over the JSON of the answer that must come out true. As in JMESPath itself, false,
            null, and empty texts, lists and objects are not true, and every number is.
        type: str
      timeout:
        description: How long one request may take as a whole.
        type: str
        default: 10s
      validate_certs:
        description: Whether the server's certificate must be valid and carry the host's name.
        type: bool
        default: true
      ca_path:
        description:
          - File with the CA certificates to trust instead of the system's, or a directory of them as made by
            C(openssl rehash).
        type: path
      follow_redirects:
        description:
          - Whether to follow up to five redirects of C(GET), C(HEAD) and C(OPTIONS). Another scheme, host or port is
            not sent the headers of the endpoint.
        type: bool
        default: false
  requests:
    description: Requests of each endpoint whose time is counted, 1 to 10000.
    type: int
    default: 20
  warmup:
    description: Requests of each endpoint before those. Their answers count, their time does not.
    type: int
    default: 1
  concurrency:
    description: Requests at the same time, over all endpoints, 1 to 64.
    type: int
    default: 1
  p95_max:
    description: The 95th percentile that no endpoint may exceed.
    type: str
    default: 200ms
  error_rate_max:
    description:
      - Share of an endpoint's requests that may have no answer, or a server error (5xx) that is not expected, as a
        percentage.
    type: str
    default: 0%
  label:
    description:
      - What this measurement is, V(before) or V(after). The result file is C(probes-<label>.json) in O(run_dir).
    type: str
    default: after
  compare_with:
    description: The result file of an earlier measurement, on the host that executes the module.
    type: path
  fail_on_error:
    description: Whether the task fails when a criterion is not met. The results are returned in either case.
    type: bool
    default: true
extends_documentation_fragment:
  - surefoot.dbops._run
requirements:
  - jmespath for O(endpoints[].expect_body)
notes:
  - With twenty requests, the 95th percentile by nearest rank is the second slowest.
seealso:
  - module: surefoot.dbops.postgresql_baseline
    description: The same question, asked of the database.
  - module: ansible.builtin.uri
    description: One request whose answer you want.
"""

EXAMPLES = r"""
- name: Ask before the migration
  surefoot.dbops.http_probe:
    label: before
    run_dir: /var/lib/surefoot/runs/r42
    endpoints: &endpoints
      - name: session
        url: https://studio.example.com/api/auth/validate
        token: "{{ probe_token }}"
        expect_body: valid
      - name: organizations
        url: https://studio.example.com/api/platform/organizations
        token: "{{ probe_token }}"
        expect_body: "[0].id"
      - name: audit log
        url: "https://studio.example.com/api/platform/audit-logs?organizationId={{ organization_id }}"
        token: "{{ probe_token }}"
      - name: without a token it is refused
        url: https://studio.example.com/api/platform/projects
        expect_status: [401, 403]

- name: Ask afterwards; no 403 that was not there before, p95 below 200 ms
  surefoot.dbops.http_probe:
    label: after
    compare_with: /var/lib/surefoot/runs/r42/probes-before.json
    run_dir: /var/lib/surefoot/runs/r42
    requests: 50
    concurrency: 4
    p95_max: 200ms
    endpoints: *endpoints

- name: An endpoint with a certificate of a private CA
  surefoot.dbops.http_probe:
    endpoints:
      - url: https://db-admin.internal:8443/healthz
        ca_path: /etc/ssl/private-ca.pem
        timeout: 2s
"""

RETURN = r"""
endpoints:
  description: What each endpoint answered.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: organizations
    request:
      description: Method and URL without secrets.
      type: str
      sample: GET https://studio.example.com/api/platform/organizations
    requests:
      description: Number of requests that were sent, warm-up included.
      type: int
      sample: 21
    gave_up:
      description: Whether it was not asked again after three requests in a row without an answer.
      type: bool
      sample: false
    statuses:
      description: Number of answers by status.
      type: dict
      sample: {"200": 21}
    errors:
      description: Number of requests without an answer by class.
      type: dict
      sample: {}
    error_rate:
      description: Share of requests without an answer or with a server error that was not expected.
      type: float
      sample: 0.0
    unexpected:
      description: Number of requests that did not come out as expected.
      type: int
      sample: 0
    reason:
      description: Why the first of those did not.
      type: str
      sample: null
    expect_status:
      description: The status codes that are right.
      type: list
      elements: int
      sample: [200]
    p50_ms:
      description: Median of the time in milliseconds.
      type: float
      sample: 12.1
    p95_ms:
      description: 95th percentile, by nearest rank.
      type: float
      sample: 18.4
    p99_ms:
      description: 99th percentile, by nearest rank.
      type: float
      sample: 19.9
comparison:
  description: The comparison with O(compare_with); null without it.
  returned: success
  type: dict
  sample:
    label: before
    not_asked_again: []
    endpoints:
      - name: organizations
        new_403: 0
        answered: true
        p95_ms_before: 17.9
        p95_ms: 18.4
        error_rate_before: 0.0
        error_rate: 0.0
skipped_endpoints:
  description: Endpoints that check mode left out.
  returned: success
  type: list
  elements: str
  sample: []
failed_criteria:
  description: Criteria that were not met.
  returned: success
  type: list
  elements: str
  sample: []
path:
  description: The result file; null without O(run_dir) and in check mode.
  returned: success
  type: str
  sample: /var/lib/surefoot/runs/r42/probes-after.json
evidence:
  description:
    - Evidence records with the criteria C(http.status), C(http.latency_p95), C(http.error_rate) and, with
      O(compare_with), C(http.no_new_403).
  returned: success
  type: list
  elements: dict
  sample:
    - criterion: http.latency_p95
      phase: compare
      verdict: pass
      measured: {slowest_ms: 18.4, organizations: 18.4}
      required: at most 200 ms
      source: 21 requests to 1 endpoints, 1 at a time, label after
      time: "2026-11-22T02:00:12.345Z"
      details: {}
error:
  description: The error as an object, with C(code), C(message) and C(remedy).
  returned: failure
  type: dict
  sample: {code: verification, message: "the probes failed http.status: session: status 403, not 200"}
"""

import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import ArgumentSpec, run_argument_spec
from ansible_collections.surefoot.dbops.plugins.module_utils._http import (
    METHODS,
    ProbeLimits,
    Probing,
    failure,
    load_earlier,
    parse_endpoint,
    secrets_of,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation, run_module
from ansible_collections.surefoot.dbops.plugins.module_utils._noise import parse_share
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration


def argument_spec() -> ArgumentSpec:
    """The module's options and their constraints."""
    return ArgumentSpec(
        argument_spec={
            "endpoints": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str"},
                    "url": {"type": "str", "required": True},
                    "method": {"type": "str", "choices": list(METHODS), "default": "GET"},
                    "headers": {"type": "dict", "default": {}},
                    "secret_headers": {"type": "dict", "default": {}, "no_log": True},
                    "token": {"type": "str", "no_log": True},
                    "body": {"type": "raw"},
                    "expect_status": {"type": "list", "elements": "int", "default": [200]},
                    "expect_body": {"type": "str"},
                    "timeout": {"type": "str", "default": "10s"},
                    "validate_certs": {"type": "bool", "default": True},
                    "ca_path": {"type": "path"},
                    "follow_redirects": {"type": "bool", "default": False},
                },
            },
            "requests": {"type": "int", "default": 20},
            "warmup": {"type": "int", "default": 1},
            "concurrency": {"type": "int", "default": 1},
            "p95_max": {"type": "str", "default": "200ms"},
            "error_rate_max": {"type": "str", "default": "0%"},
            "label": {"type": "str", "default": "after"},
            "compare_with": {"type": "path"},
            "fail_on_error": {"type": "bool", "default": True},
        },
    ).merge(run_argument_spec())


def run(module: Invocation) -> dict[str, t.Any]:
    """Options to the library and back."""
    params = module.params
    for given in params["endpoints"]:
        for secret in secrets_of(given):
            module.never_show(secret)
    endpoints = [parse_endpoint(given, f"endpoints[{number}]") for number, given in enumerate(params["endpoints"])]
    probing = Probing(
        endpoints,
        requests=params["requests"],
        warmup=params["warmup"],
        concurrency=params["concurrency"],
        limits=ProbeLimits(parse_duration(params["p95_max"]), parse_share(params["error_rate_max"])),
        before=load_earlier(params["compare_with"]),
        label=params["label"],
        safe_only=module.check_mode,
    )
    run_interruptible(probing.run, probing.stop)
    results = probing.results(None if module.check_mode else params["run_dir"])
    failed = failure(results)
    if failed is not None and params["fail_on_error"]:
        failed.results.update(results)
        raise failed
    return results


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), run)


if __name__ == "__main__":
    main()
