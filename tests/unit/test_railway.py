# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What variables are, which is chosen, when a service counts as running, and which token is used."""

from __future__ import annotations

import importlib
import time
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _railway, _railway_services
from ansible_collections.surefoot.dbops.plugins.module_utils._argspec import railway_argument_spec
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._railway import Client, Named, Token, pick, resolve_token
from ansible_collections.surefoot.dbops.plugins.module_utils._railway_services import (
    DEFAULT_CANDIDATES,
    Deployment,
    choose,
    fingerprint,
    judge,
    read_services,
    read_variable,
    secrets_in,
)

PACKAGE = "ansible_collections.surefoot.dbops.plugins"


# --- variables

STATES = [
    (None, "sealed", None),
    ("", "empty", None),
    (" \n", "empty", None),
    (6379, "value", None),
    ("production", "value", None),
    ("${{Redis.REDIS_URL}}", "unresolved", None),
    ("redis://default:pw@${{shared.HOST}}:6379", "unresolved", None),
    ("mongodb://u:${{X}}@h", "unresolved", None),
    ("redis://default:pw@:", "unresolved", None),
    ("redis://default:pw@", "unresolved", None),
    ("mongodb://u:pw@host:", "unresolved", None),
    ("mongodb://u:pw@host:0", "unresolved", None),
    ("mongodb://u:pw@a:27017,:27018/db", "unresolved", None),
    ("redis://default:pw@redis.railway.internal:6379", "value", "railway_private"),
    ("redis://default:pw@REDIS.Railway.Internal.:6379", "value", "railway_private"),
    ("redis://default:pw@monorail.proxy.rlwy.net:26137", "value", "railway_proxy"),
    ("redis://default:pw@MONORAIL.proxy.RLWY.net.:26137", "value", "railway_proxy"),
    # Only the parsed host counts, whatever the password or the path holds.
    ("redis://default:a.proxy.rlwy.net@cache.example.com:6379", "value", "other"),
    ("redis://default:pw@cache.example.com:6379/redis.railway.internal", "value", "other"),
    ("redis://default:pw@proxy.rlwy.net.example.com:6379", "value", "other"),
    ("redis://default:pw@notrailway.internal:6379", "value", "other"),
    ("mongodb://u:p%40w@a.proxy.rlwy.net:1,b.proxy.rlwy.net:2/?replicaSet=r", "value", "railway_proxy"),
    ("mongodb://u:pw@a.proxy.rlwy.net:1,b.railway.internal:2", "value", "railway_private"),
    ("mongodb+srv://u:pw@cluster.example.net/db", "value", "other"),
    ("redis://[fd12::1]:6379", "value", "other"),
    ("redis://default:p@ss@redis.railway.internal:6379", "value", "railway_private"),
]


@pytest.mark.parametrize(("value", "state", "host_class"), STATES)
def test_state_and_host_class_of_a_variable(value: t.Any, state: str, host_class: str | None) -> None:
    found = read_variable("X_URL", value)
    assert (found.state, found.host_class) == (state, host_class)
    assert str(value) not in repr(found) or str(value).strip() in ("", "None", "production", "6379")


@pytest.mark.parametrize("value", ["redis://default:pa/ss@host:6379", "redis://user:12[3@host:x", "redis://h:12a4"])
def test_a_url_that_cannot_be_parsed_is_refused_without_a_part_of_it(value: str) -> None:
    choice = choose({"REDIS_URL": read_variable("REDIS_URL", value)}, ["REDIS_URL"], kind="redis")
    assert choice.selected is None
    assert choice.words == "REDIS_URL is a URL that cannot be parsed"


def test_masking_leaves_ordinary_words_alone() -> None:
    assert secrets_in(read_variable("RAILWAY_ENVIRONMENT", "production")) == []
    assert secrets_in(read_variable("REDIS_PASSWORD", "hunter2hunter2")) == ["hunter2hunter2"]
    url = "redis://default:p%40ssw0rd@h.example.com:1"
    assert secrets_in(read_variable("CACHE", url)) == [url, "p%40ssw0rd", "p@ssw0rd"]


def test_fingerprints_tell_equal_values_by_the_key_alone() -> None:
    key = "k" * 16
    assert fingerprint("a", key) == fingerprint("a", key)
    assert fingerprint("a", key) != fingerprint("b", key)
    assert fingerprint("a", key) != fingerprint("a", "l" * 16)


# --- the choice

PRIVATE = "redis://default:pw@redis.railway.internal:6379"
PUBLIC = "redis://default:pw@monorail.proxy.rlwy.net:26137"
OTHER = "rediss://default:pw@cache.example.com:6380"


def chosen(endpoint: str, known: bool, **values: t.Any) -> tuple[str | None, str]:
    variables = {name: read_variable(name, value) for name, value in values.items()}
    choice = choose(variables, list(values), kind="redis", endpoint=endpoint, known_here=lambda _host: known)
    return (choice.selected.name if choice.selected else None), choice.words


@pytest.mark.parametrize(
    ("endpoint", "known", "values", "selected"),
    [
        ("auto", False, {"A": PUBLIC, "B": PRIVATE}, "A"),
        ("auto", False, {"A": PRIVATE, "B": PUBLIC}, "B"),
        ("auto", True, {"A": PRIVATE, "B": PUBLIC}, "A"),
        ("auto", False, {"A": PRIVATE}, None),
        ("auto", False, {"A": None, "B": "", "C": OTHER}, "C"),
        ("public", True, {"A": PRIVATE, "B": OTHER}, "B"),
        ("public", True, {"A": PRIVATE}, None),
        ("private", False, {"A": PUBLIC, "B": PRIVATE}, "B"),
        ("private", False, {"A": PUBLIC, "B": OTHER}, None),
        ("auto", False, {"A": "mongodb://u:pw@h:1", "B": "plain text"}, None),
    ],
)
def test_the_first_candidate_that_can_be_used_from_here_wins(
    endpoint: str, known: bool, values: dict[str, t.Any], selected: str | None
) -> None:
    assert chosen(endpoint, known, **values)[0] == selected


def test_each_candidate_says_why_it_cannot_be_used() -> None:
    _none, words = chosen("auto", False, A=None, B="", C="redis://:pw@:", D=PRIVATE, E="mongodb://u:pw@h:1")
    assert words.split("; ") == [
        "A is sealed: Railway never hands its value out",
        "B is empty",
        "C has no host or no port: the service has no TCP proxy (Public Access is off)",
        "D leads into Railway's private network, which cannot be reached from here",
        "E is no redis:// URL",
    ]


def test_names_are_looked_up_until_one_can_be_used_and_what_was_not_tried_is_not_called_usable() -> None:
    asked: list[str] = []
    variables = {"A": read_variable("A", PUBLIC), "B": read_variable("B", PRIVATE)}
    choice = choose(variables, ["A", "B"], known_here=lambda host: asked.append(host) or True)  # type: ignore[func-returns-value]
    assert asked == []
    assert [item["usable"] for item in choice.shown(None)] == [True, None]


def test_the_candidates_of_the_runbook_are_among_the_defaults() -> None:
    assert DEFAULT_CANDIDATES["mongodb"] == ("MONGO_PUBLIC_URL", "MONGO_URL", "MONGODB_URL")
    assert "REDIS_URL" in DEFAULT_CANDIDATES["redis"]


def test_a_service_is_named_once() -> None:
    with pytest.raises(PlanError, match="names Redis twice"):
        read_services([{"name": "Redis"}, {"name": "Redis", "kind": "redis"}])
    with pytest.raises(PlanError, match=r"services\[0\] has no name"):
        read_services([{"name": " "}])


# --- deployments


def made(status: str, *replicas: str, stopped: bool = False) -> Deployment:
    return Deployment("d", status, stopped, replicas, "2026-11-22T02:00:00Z")


OK = made("SUCCESS", "RUNNING")
JUDGED: list[tuple[str, Deployment | None, list[Deployment], str, bool | None, bool]] = [
    ("one runs", OK, [OK], "running", True, True),
    ("one of two replicas runs", OK, [made("SUCCESS", "CRASHED", "RUNNING")], "running", True, True),
    ("a failed rollout beside it", made("FAILED"), [OK], "running", True, True),
    ("one that needs approval beside it", made("NEEDS_APPROVAL"), [OK], "running", True, True),
    ("a rollout in progress beside it", made("BUILDING"), [OK], "running", True, True),
    ("crashed with a replica left", made("CRASHED", "RUNNING", "CRASHED"), [], "crashed", False, False),
    ("crashed and active with a replica left", None, [made("CRASHED", "RUNNING", "CRASHED")], "degraded", False, True),
    ("all crashed", made("CRASHED", "CRASHED"), [made("CRASHED", "CRASHED")], "crashed", False, False),
    (
        "success, stopped",
        made("SUCCESS", stopped=True),
        [made("SUCCESS", "RUNNING", stopped=True)],
        "stopped",
        False,
        False,
    ),
    ("success, replicas exited", made("SUCCESS", "EXITED"), [made("SUCCESS", "EXITED")], "not_running", False, False),
    ("success, replica starting", OK, [made("SUCCESS", "INITIALIZING")], "not_running", False, False),
    ("success, no replica named", OK, [made("SUCCESS")], "unconfirmed", None, False),
    ("success, and nothing active", OK, [], "not_running", False, False),
    ("asleep", made("SLEEPING"), [made("SLEEPING", "STOPPED")], "sleeping", False, False),
    ("never deployed", None, [], "not_deployed", False, False),
    ("failed", made("FAILED"), [], "failed", False, False),
    ("removed", made("REMOVED"), [], "removed", False, False),
    *[(status, made(status), [], "deploying", False, False) for status in _railway_services.IN_PROGRESS],
]


@pytest.mark.parametrize(
    ("latest", "active", "state", "passed", "serving"), [row[1:] for row in JUDGED], ids=[row[0] for row in JUDGED]
)
def test_deployed_and_running(
    latest: Deployment | None, active: list[Deployment], state: str, passed: bool | None, serving: bool
) -> None:
    found = judge(latest, active)
    assert (found.state, found.passed, found.serving) == (state, passed, serving)


def test_a_broken_rollout_beside_a_service_that_serves_is_said() -> None:
    assert "its latest deployment is FAILED" in judge(made("FAILED"), [OK]).words


def test_a_sleeping_service_counts_only_when_that_is_allowed() -> None:
    asleep = made("SLEEPING", "STOPPED")
    assert judge(asleep, [asleep]).passed is False
    allowed = judge(asleep, [asleep], allow_sleeping=True)
    assert (allowed.passed, allowed.serving) == (True, False)


# --- the token

P, A = "project-token-value", "account-token-value"


@pytest.mark.parametrize(
    ("params", "environ", "value", "header"),
    [
        ({"project_token": P}, {}, P, "Project-Access-Token"),
        ({"api_token": A}, {}, A, "Authorization"),
        ({}, {"RAILWAY_TOKEN": P}, P, "Project-Access-Token"),
        ({}, {"RAILWAY_API_TOKEN": A, "RAILWAY_TOKEN": ""}, A, "Authorization"),
        ({"api_token": A}, {"RAILWAY_TOKEN": P, "RAILWAY_API_TOKEN": "x"}, A, "Authorization"),
        ({"project_token": P}, {"RAILWAY_TOKEN": "x", "RAILWAY_API_TOKEN": A}, P, "Project-Access-Token"),
    ],
)
def test_an_option_beats_the_environment_and_each_token_has_its_header(
    params: dict[str, str], environ: dict[str, str], value: str, header: str
) -> None:
    token = resolve_token(params, environ)
    assert token.header == {header: value if header != "Authorization" else f"Bearer {value}"}
    assert value not in repr(token) + token.label


@pytest.mark.parametrize(
    ("params", "environ", "said"),
    [
        ({"project_token": P, "api_token": A}, {}, "project_token and api_token are both given"),
        ({}, {"RAILWAY_TOKEN": P, "RAILWAY_API_TOKEN": A}, "the environment has RAILWAY_TOKEN (a project token) and"),
        ({}, {}, "there is no token for Railway"),
        ({"project_token": ""}, {"RAILWAY_API_TOKEN": A}, "the option project_token is empty, a placeholder"),
        ({"api_token": "{{ token }}"}, {}, "the option api_token is empty, a placeholder"),
        ({"api_token": "two words"}, {}, "the option api_token is empty, a placeholder"),
        ({}, {"RAILWAY_TOKEN": "with\nbreak"}, "RAILWAY_TOKEN is empty, a placeholder"),
    ],
)
def test_a_token_that_is_none_or_two_is_refused_in_one_line(
    params: dict[str, str], environ: dict[str, str], said: str
) -> None:
    with pytest.raises(PlanError) as caught:
        resolve_token(params, environ)
    assert str(caught.value).startswith(said)
    for secret in (P, A, "two words", "with\nbreak"):
        assert secret not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_tokens_are_masked_wherever_text_is_redacted() -> None:
    resolve_token({"project_token": "masked-token-1"}, {})
    assert "masked-token-1" not in redact("sent masked-token-1 away")


# --- the rest of the client


def test_an_ambiguous_name_is_an_error_with_the_ids_and_an_id_is_not() -> None:
    both = [Named("id-1", "Redis"), Named("id-2", "Redis"), Named("id-3", "id-1")]
    with pytest.raises(PlanError, match="2 services are called Redis: id-1, id-2. Give the id"):
        pick("Redis", both, "services")
    found = pick("id-1", both, "services")
    assert found is not None and found.name == "Redis"
    assert pick("redis", both, "services") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("30", 30.0), (" 7 ", 7.0), ("soon", None), ("-1", None), ("", None), (None, None)],
)
def test_retry_after_in_seconds(text: str | None, seconds: float | None) -> None:
    assert _railway._retry_after(text) == seconds


def test_retry_after_as_a_date() -> None:
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 600))
    found = _railway._retry_after(later)
    assert found is not None and 590 < found <= 600
    assert _railway._retry_after("Sun, 06 Nov 1994 08:49:37 GMT") == 0.0


@pytest.mark.parametrize("url", ["http://backboard.example.com/graphql", "http://10.0.0.1/"])
def test_a_token_is_sent_to_another_machine_by_tls_only(url: str) -> None:
    with pytest.raises(PlanError, match="without TLS. Give an https URL"):
        Client(Token("t0k3n-value", True, "option project_token"), api_url=url)


@pytest.mark.parametrize("name", ["railway_service_info", "railway_variables_info"])
def test_the_action_plugin_runs_the_module_of_its_name(name: str) -> None:
    module = importlib.import_module(f"{PACKAGE}.modules.{name}")
    action = importlib.import_module(f"{PACKAGE}.action.{name}").ActionModule
    assert action.argument_spec is module.argument_spec
    assert action.perform is module.run


def test_the_address_of_the_api_is_the_same_in_options_and_library() -> None:
    assert railway_argument_spec().argument_spec["api_url"]["default"] == _railway.API_URL
