# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Endpoints as they are written, and what is concluded from answers; no server."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _http
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._http import (
    ProbeLimits,
    Probing,
    compare,
    judge,
    parse_endpoint,
    public_url,
    secrets_of,
)

SECRET = "t0p-s3cret-9a7f"
URL = "https://app.example.com/api"


def answers(name: str = "a", **given: t.Any) -> dict[str, t.Any]:
    """What an endpoint that is all right measured, with differences."""
    return {
        "name": name,
        "statuses": {"200": 21},
        "errors": {},
        "error_rate": 0.0,
        "unexpected": 0,
        "reason": None,
        "expect_status": [200],
        "p95_ms": 20.0,
        **given,
    }


def verdicts(endpoints: list[dict[str, t.Any]], before: list[dict[str, t.Any]] | None = None) -> dict[str, str]:
    comparison = None if before is None else compare({"label": "before", "endpoints": before}, endpoints)
    return {criterion: verdict for criterion, verdict, _m, _r in judge(endpoints, comparison, ProbeLimits())}


# --- endpoints


def test_an_endpoint_has_sensible_defaults():
    endpoint = parse_endpoint({"url": URL})
    assert (endpoint.method, endpoint.expect_status, endpoint.timeout) == ("GET", (200,), 10.0)
    assert endpoint.verify and not endpoint.follow_redirects
    assert endpoint.name == endpoint.label == f"GET {URL}"


def test_a_token_becomes_a_bearer_header_and_is_never_shown():
    endpoint = parse_endpoint({"url": URL, "token": SECRET, "secret_headers": {"X-Api-Key": SECRET + "2"}})
    assert endpoint.headers["Authorization"] == f"Bearer {SECRET}"
    assert endpoint.headers["X-Api-Key"] == SECRET + "2"
    assert SECRET not in repr(endpoint) + endpoint.label


def test_credentials_of_the_url_become_a_basic_header():
    endpoint = parse_endpoint({"url": f"https://ada:{SECRET}%40@app.example.com/"})
    assert endpoint.headers["Authorization"].startswith("Basic ")
    assert SECRET not in repr(endpoint) + endpoint.label
    assert endpoint.label == "GET https://app.example.com/"


@pytest.mark.parametrize("name", ["token", "api_key", "access_token", "sig", "X-Amz-Signature", "password", "code"])
def test_secret_query_values_are_masked(name):
    shown = public_url(f"{URL}?page=2&{name}={SECRET}#part")
    assert shown == f"{URL}?page=2&{name}=***"
    assert secrets_of({"url": f"{URL}?{name}={SECRET}"}) == [SECRET, f"{URL}?{name}={SECRET}"]


def test_a_url_without_a_secret_is_shown_as_it_is():
    assert public_url(f"{URL}?organizationId=42&q=a%20b") == f"{URL}?organizationId=42&q=a%20b"
    assert secrets_of({"url": f"{URL}?page=2"}) == []


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"url": "ftp://x/"}, "not one that can be asked"),
        ({"url": "https:///path"}, "not one that can be asked"),
        ({"url": "https://x:99999/"}, "not one that can be asked"),
        ({"url": "https://x/a b"}, "not one that can be asked"),
        ({"url": "https://x/\r\nHost: y"}, "not one that can be asked"),
        ({"url": "https://{{ host }}/"}, "placeholder"),
        ({"url": "https://x/?organizationId=<org-id>"}, "placeholder"),
        ({"url": URL, "token": ""}, "empty or a placeholder"),
        ({"url": URL, "token": "<test-token>"}, "empty or a placeholder"),
        ({"url": URL, "token": "{{ token }}"}, "empty or a placeholder"),
        ({"url": f"https://a:{SECRET}@x/", "token": SECRET}, "credentials in its URL and a token"),
        ({"url": URL, "headers": {"Authorization": f"Bearer {SECRET}"}}, "looks like a secret"),
        ({"url": URL, "headers": {"Cookie": SECRET}}, "looks like a secret"),
        ({"url": URL, "headers": {"X-A": "b\r\nX-C: d"}}, "cannot be sent"),
        ({"url": URL, "headers": {"X A": "b"}}, "cannot be sent"),
        ({"url": URL, "method": "BREW"}, "has the method BREW"),
        ({"url": URL, "expect_status": [20]}, "expect_status"),
        ({"url": URL, "timeout": 0}, "no time to answer"),
        ({"url": URL, "timeout": "soon"}, "not a duration"),
        ({"url": URL, "expect_body": "a ||"}, "no JMESPath expression"),
        ({"url": URL, "redirects": 3}, "unknown key redirects"),
    ],
)
def test_what_cannot_be_asked_is_refused_without_showing_secrets(given, match):
    with pytest.raises(PlanError, match=match) as caught:
        parse_endpoint(given, "endpoints[0]")
    assert SECRET not in str(caught.value)


def test_a_missing_ca_is_found_before_asking():
    with pytest.raises(EnvironmentProblem, match="there is no /nowhere/ca.pem"):
        parse_endpoint({"url": URL, "ca_path": "/nowhere/ca.pem"})


def test_a_dictionary_is_sent_as_json():
    endpoint = parse_endpoint({"url": URL, "method": "POST", "body": {"a": [1]}})
    assert json.loads(endpoint.body or b"") == {"a": [1]}
    assert endpoint.headers["Content-Type"] == "application/json"
    given = {"url": URL, "method": "POST", "body": "x=1", "headers": {"Content-Type": "text/plain"}}
    assert (parse_endpoint(given).body, parse_endpoint(given).headers["Content-Type"]) == (b"x=1", "text/plain")


@pytest.mark.parametrize(
    ("body", "expression", "passed"),
    [
        (b'{"ok": true}', "ok", True),
        (b'{"ok": false}', "ok", False),
        (b"[]", "[0]", False),
        (b'[{"id": 0}]', "[0].id", True),
        (b'{"items": [1, 2]}', "length(items) > `1`", True),
        (b'{"items": 3}', "length(items)", False),
        (b"<html>", "ok", False),
        (b"\xff", "ok", False),
        (b'{"ok": 1}' + b" " * 2**20, "ok", False),
    ],
)
def test_the_body_must_satisfy_the_expression(body, expression, passed):
    endpoint = parse_endpoint({"url": URL, "expect_body": expression})
    reason = _http._disagreement(endpoint, 200, None, body)
    assert (reason is None) == passed


def test_a_redirect_is_named_without_its_query():
    endpoint = parse_endpoint({"url": URL})
    reason = _http._disagreement(endpoint, 302, f"/login?next=1&ticket={SECRET}", b"")
    assert reason == "status 302 to https://app.example.com/login, not 200"


# --- verdicts


def test_what_is_as_expected_passes():
    assert set(verdicts([answers()], [answers()]).values()) == {"pass"}


@pytest.mark.parametrize(
    ("criterion", "given"),
    [
        ("http.status", {"unexpected": 1, "reason": "status 404, not 200"}),
        ("http.latency_p95", {"p95_ms": 200.1}),
        ("http.error_rate", {"error_rate": 0.01}),
        ("http.no_new_403", {"statuses": {"200": 20, "403": 1}}),
    ],
)
def test_each_criterion_fails_on_what_it_is_about_and_no_other(criterion, given):
    found = verdicts([answers("fine"), answers(**given)], [answers("fine"), answers()])
    assert {name for name, verdict in found.items() if verdict == "fail"} == {criterion}


def test_the_limit_itself_is_not_over_the_limit():
    assert verdicts([answers(p95_ms=200.0)])["http.latency_p95"] == "pass"


def test_a_403_that_was_there_before_is_not_new():
    now = [answers(statuses={"403": 21}, unexpected=21, reason="status 403, not 200")]
    assert verdicts(now, [answers(statuses={"403": 21})])["http.no_new_403"] == "pass"
    assert verdicts(now, [answers()])["http.no_new_403"] == "fail"
    assert verdicts(now, [])["http.no_new_403"] == "fail"  # not asked before: it is new


def test_a_403_that_is_expected_is_none():
    now = [answers(statuses={"403": 21}, expect_status=[403])]
    assert verdicts(now, [answers()])["http.no_new_403"] == "pass"


def test_what_did_not_answer_was_not_measured():
    silent = answers(statuses={}, errors={"refused": 3}, error_rate=1.0, p95_ms=None, unexpected=3, reason="refused")
    found = verdicts([silent], [answers()])
    assert found == {
        "http.status": "fail",
        "http.latency_p95": "not_measured",
        "http.error_rate": "fail",
        "http.no_new_403": "not_measured",
    }


def test_an_endpoint_that_is_not_asked_again_leaves_its_403_unknown():
    assert verdicts([answers("a")], [answers("a"), answers("b")])["http.no_new_403"] == "not_measured"


def test_no_endpoint_at_all_passes_nothing():
    assert set(verdicts([], []).values()) == {"not_measured"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"requests": 0}, "requests is 0"),
        ({"requests": 10_001}, "requests is 10001"),
        ({"concurrency": 65}, "concurrency is 65"),
        ({"warmup": -1}, "warmup is -1"),
        ({"label": "../x"}, "label is"),
    ],
)
def test_numbers_are_bounded(options, match):
    with pytest.raises(PlanError, match=match):
        Probing([parse_endpoint({"url": "http://x/"})], **options)


def test_two_endpoints_of_one_name_are_refused():
    with pytest.raises(PlanError, match="two endpoints are called"):
        Probing([parse_endpoint({"url": "http://x/"}), parse_endpoint({"url": "http://x/"})])
    with pytest.raises(PlanError, match="no endpoints"):
        Probing([])
