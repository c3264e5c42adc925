# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two modules against a server that enforces the part of Railway's schema that we use: each way an answer can be
wrong, and each thing a token may not see. What that server leaves untested, its own file says."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import threading
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _railway, _railway_services
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation
from ansible_collections.surefoot.dbops.plugins.modules import railway_service_info, railway_variables_info
from ansible_collections.surefoot.dbops.tests.support.railway_server import (
    ACCOUNT_TOKEN,
    MONGO_SECRET,
    PROJECT_TOKEN,
    REDIS_SECRET,
    SECRETS,
    WORKSPACE_TOKEN,
    RailwayServer,
    deployment,
    lancio_world,
    railway_server,
)

Results = dict[str, t.Any]
REDIS = {"name": "Redis", "kind": "redis"}
MONGO = {"name": "MongoDB", "kind": "mongodb"}
TRACE = "trace id 7300112233445566778"


class Railway:
    """The stand-in, and the modules run against it."""

    def __init__(self, server: RailwayServer, project: Results, redis: Results, mongo: Results) -> None:
        self.server, self.project, self.redis, self.mongo = server, project, redis, mongo
        self.place = project["environments"][0]["id"]

    def run(self, module: t.Any, **options: t.Any) -> Results:
        spec = module.argument_spec().argument_spec
        params = {name: entry.get("default") for name, entry in spec.items()}
        given = {"project": "lancio", "environment": "production", "api_token": ACCOUNT_TOKEN, **options}
        if "project_token" in given:
            given["api_token"] = None
        params.update({"api_url": self.server.url, "retry_wait": "10s", **given})
        check_mode = params.pop("check_mode", False)
        results = Invocation(params, check_mode, False, name="railway").perform(module.run)
        # No result of any test holds a secret, but for the one place where it was asked for.
        shown = json.dumps({key: value for key, value in results.items() if key != "variable_values"})
        assert not [secret for secret in SECRETS if secret in shown]
        return results

    def variables(self, *services: Results, **options: t.Any) -> Results:
        return self.run(railway_variables_info, services=list(services), **options)

    def deployed(self, *services: Results, **options: t.Any) -> Results:
        return self.run(railway_service_info, services=list(services), **options)

    def set(self, service: Results, **values: t.Any) -> None:
        self.server.world.variables[self.place, service["id"]] = values


@pytest.fixture
def railway(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Railway]:
    for name in ("RAILWAY_TOKEN", "RAILWAY_API_TOKEN", "RAILWAY_PROJECT_ID", "RAILWAY_ENVIRONMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    # As it is outside Railway; the name is asked of no resolver.
    monkeypatch.setattr(_railway_services, "is_known_here", lambda _host: False)
    world, project, redis, mongo = lancio_world()
    with railway_server(world) as server:
        yield Railway(server, project, redis, mongo)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits take no time, and are noted."""
    waits: list[float] = []
    monkeypatch.setattr(_railway.Client, "sleep", lambda _self, seconds: waits.append(seconds) if seconds else None)
    return waits


def verdicts(results: Results) -> dict[str, str]:
    return {item["criterion"]: item["verdict"] for item in results["evidence"]}


def candidates(results: Results, service: int = 0) -> dict[str, tuple[str, t.Any]]:
    return {item["name"]: (item["state"], item["usable"]) for item in results["services"][service]["candidates"]}


# --- variables


@pytest.mark.parametrize(
    "token", [{"api_token": ACCOUNT_TOKEN}, {"api_token": WORKSPACE_TOKEN}, {"project_token": PROJECT_TOKEN}]
)
def test_the_public_url_is_chosen_and_the_runs_evidence_says_so(
    railway: Railway, tmp_path: pathlib.Path, token: Results
) -> None:
    results = railway.variables(REDIS, run_dir=str(tmp_path), **token)
    assert "failed" not in results and results["changed"] is False
    service = results["services"][0]
    assert (service["selected"], service["host_class"]) == ("REDIS_PUBLIC_URL", "railway_proxy")
    assert candidates(results) == {"REDIS_PUBLIC_URL": ("value", True), "REDIS_URL": ("value", None)}
    assert [item["name"] for item in service["variables"]] == [
        "REDISHOST",
        "REDIS_PASSWORD",
        "REDIS_PUBLIC_URL",
        "REDIS_URL",
    ]
    assert verdicts(results) == {"railway.redis.variable": "pass"}
    written = (tmp_path / "evidence.jsonl").read_text(encoding="utf-8")
    assert json.loads(written)["measured"]["selected"] == "REDIS_PUBLIC_URL"
    assert not [secret for secret in SECRETS if secret in written]


def test_check_mode_asks_and_writes_nothing(railway: Railway, tmp_path: pathlib.Path) -> None:
    for results in (
        railway.variables(REDIS, run_dir=str(tmp_path / "run"), check_mode=True),
        railway.deployed(REDIS, run_dir=str(tmp_path / "run"), check_mode=True),
    ):
        assert [item["verdict"] for item in results["evidence"]] == ["pass"]
    assert not (tmp_path / "run").exists()


def test_without_a_tcp_proxy_the_public_url_has_no_host_and_the_private_one_is_explained(railway: Railway) -> None:
    results = railway.variables(MONGO)
    assert results["failed"] and results["error"]["code"] == "verification"
    assert (
        "MONGO_PUBLIC_URL has no host or no port: the service has no TCP proxy (Public Access is off)" in results["msg"]
    )
    assert "MONGO_URL leads into Railway's private network, which cannot be reached from here" in results["msg"]
    assert "MONGODB_URL is not set" in results["msg"]
    assert "Turn on Public Access" in results["msg"] and "\n" not in results["msg"]
    assert candidates(results) == {
        "MONGO_PUBLIC_URL": ("unresolved", False),
        "MONGO_URL": ("value", False),
        "MONGODB_URL": ("missing", False),
    }
    assert verdicts(results) == {"railway.mongodb.variable": "fail"}
    private = railway.variables(MONGO, endpoint="private")
    assert private["services"][0]["selected"] == "MONGO_URL"
    assert verdicts(private) == {"railway.mongodb.variable": "pass"}


def test_sealed_missing_empty_and_unresolved_are_four_different_things(railway: Railway) -> None:
    railway.set(railway.redis, A=None, B="", C="${{shared.REDIS_URL}}", E="redis://default:pw-1@h.example.com:1")
    results = railway.variables({**REDIS, "variables": ["A", "B", "C", "D"]})
    assert results["msg"].startswith("Redis has no variable that can be used: ")
    for part in ("A is sealed", "B is empty", "C holds a reference, ${{...}}", "D is not set"):
        assert part in results["msg"]
    assert {name: state for name, (state, _usable) in candidates(results).items()} == {
        "A": "sealed",
        "B": "empty",
        "C": "unresolved",
        "D": "missing",
    }
    # Set, and nobody can read it: that is not a pass, and no failure either.
    assert verdicts(results) == {"railway.redis.variable": "not_measured"}
    assert verdicts(railway.variables({**REDIS, "variables": ["B", "D"]})) == {"railway.redis.variable": "fail"}
    found = railway.variables({**REDIS, "variables": ["A", "B", "C", "D", "E"]})
    assert found["services"][0]["selected"] == "E"


def test_names_of_shared_variables_are_listed_on_demand(railway: Railway) -> None:
    assert railway.variables(REDIS)["shared"] is None
    shared = railway.variables(REDIS, shared=True)["shared"]
    assert [(item["name"], item["state"]) for item in shared] == [
        ("SHARED_REGION", "value"),
        ("SHARED_SECRET", "sealed"),
    ]


def test_fingerprints_need_a_key_and_follow_the_value(railway: Railway) -> None:
    def prints(**options: t.Any) -> dict[str, str | None]:
        results = railway.variables({"name": "Redis"}, **options)
        return {item["name"]: item["fingerprint"] for item in results["services"][0]["variables"]}

    assert set(prints().values()) == {None}
    first = prints(fingerprint_key="a-key-of-sixteen")
    assert all(str(value).startswith("hmac-sha256:") for value in first.values())
    assert prints(fingerprint_key="a-key-of-sixteen") == first
    assert prints(fingerprint_key="another-key-of-16") != first
    railway.set(railway.redis, REDIS_PASSWORD="changed-" + REDIS_SECRET, REDISHOST="redis.railway.internal")
    second = prints(fingerprint_key="a-key-of-sixteen")
    assert second["REDISHOST"] == first["REDISHOST"] and second["REDIS_PASSWORD"] != first["REDIS_PASSWORD"]
    refused = railway.variables({"name": "Redis"}, fingerprint_key="short")
    assert refused["msg"].startswith("fingerprint_key has fewer than 16 characters")


def test_values_are_returned_when_asked_for_and_only_those_of_the_candidates(railway: Railway) -> None:
    assert "variable_values" not in railway.variables(REDIS)
    results = railway.variables(REDIS, MONGO, values=True, endpoint="private")
    assert results["variable_values"] == {
        "Redis": {
            "REDIS_PUBLIC_URL": f"redis://default:{REDIS_SECRET}@monorail.proxy.rlwy.net:26137",
            "REDIS_URL": f"redis://default:{REDIS_SECRET}@redis.railway.internal:6379",
        },
        "MongoDB": {"MONGO_URL": f"mongodb://mongo:{MONGO_SECRET}@mongodb.railway.internal:27017"},
    }


def test_a_service_without_candidates_demands_nothing(railway: Railway) -> None:
    results = railway.variables({"name": "Redis"})
    assert (results["evidence"], results["failed_criteria"]) == ([], [])


def test_a_service_that_is_not_there_fails_its_criteria_and_those_that_are_are_named(railway: Railway) -> None:
    results = railway.variables({"name": "Cache", "kind": "redis"})
    assert results["msg"] == "Cache is no service of the project lancio. It has: MongoDB, Redis."
    assert verdicts(results) == {"railway.redis.variable": "fail"}
    results = railway.deployed({"name": "Cache", "kind": "redis"}, fail_on_error=False)
    assert results["services"][0]["state"] == "not_found"
    assert verdicts(results) == {"railway.redis.deployed": "fail"}


def test_what_is_not_configured_is_recorded_as_that_and_nothing_is_asked(railway: Railway) -> None:
    nothing = railway.variables(kinds=["redis", "mongodb"], api_token=None)
    assert nothing["project"] is None and railway.server.seen == []
    assert {(item["criterion"], item["verdict"], item["measured"]) for item in nothing["evidence"]} == {
        ("railway.redis.variable", "not_applicable", "not configured"),
        ("railway.mongodb.variable", "not_applicable", "not configured"),
    }
    some = railway.deployed(REDIS, kinds=["redis", "mongodb"])
    assert verdicts(some) == {"railway.redis.deployed": "pass", "railway.mongodb.deployed": "not_applicable"}


# --- deployments


@pytest.mark.parametrize("token", [{"api_token": ACCOUNT_TOKEN}, {"project_token": PROJECT_TOKEN}])
def test_services_that_run_pass_with_one_request_for_all_of_them(railway: Railway, token: Results) -> None:
    results = railway.deployed(REDIS, MONGO, **token)
    assert verdicts(results) == {"railway.redis.deployed": "pass", "railway.mongodb.deployed": "pass"}
    assert [item["state"] for item in results["services"]] == ["running", "running"]
    assert railway.server.operations.count("surefootServiceInstances") == 1
    assert results["requests"] == len(railway.server.seen)


def test_a_failed_rollout_beside_one_that_serves_shows_in_both(railway: Railway) -> None:
    serving = deployment("SUCCESS", "RUNNING")
    railway.server.world.deployments.clear()
    railway.server.world.then(railway.redis, railway.project, deployment("FAILED", created=2), [serving])
    service = railway.deployed(REDIS)["services"][0]
    assert (service["serving"], service["healthy"], service["latest_status"]) == (True, True, "FAILED")


@pytest.mark.parametrize(
    ("latest", "state", "verdict"),
    [
        (deployment("SUCCESS", "EXITED"), "not_running", "fail"),
        (deployment("SUCCESS"), "unconfirmed", "not_measured"),
        (deployment("SUCCESS", "RUNNING", stopped=True), "stopped", "fail"),
        (deployment("CRASHED", "RUNNING", "CRASHED"), "degraded", "fail"),
        (deployment("CRASHED", "CRASHED"), "crashed", "fail"),
        (deployment("SLEEPING", "STOPPED"), "sleeping", "fail"),
        (deployment("BUILDING"), "deploying", "fail"),
        (deployment("NEEDS_APPROVAL"), "needs_approval", "fail"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("way", ["instances", "deployments"])
def test_what_does_not_run_does_not_pass(railway: Railway, latest: Results, state: str, verdict: str, way: str) -> None:
    railway.server.project_token_lists_instances = way == "instances"
    railway.server.world.deployments.clear()
    railway.server.world.then(railway.redis, railway.project, latest)
    results = railway.deployed(REDIS, project_token=PROJECT_TOKEN)
    assert results["failed"] and results["services"][0]["state"] == state
    assert verdicts(results) == {"railway.redis.deployed": verdict}
    assert results["failed_criteria"] == ["railway.redis.deployed"]


def test_a_sleeping_service_passes_when_that_is_allowed(railway: Railway) -> None:
    railway.server.world.deployments.clear()
    railway.server.world.then(railway.redis, railway.project, deployment("SLEEPING", "STOPPED"))
    assert verdicts(railway.deployed(REDIS, allow_sleeping=True)) == {"railway.redis.deployed": "pass"}


def test_a_service_of_another_environment_is_not_deployed_in_this_one(railway: Railway) -> None:
    results = railway.deployed(REDIS, environment="staging")
    assert results["services"][0]["state"] == "not_deployed"
    assert "has no instance in this environment" in results["msg"]


def test_a_token_that_may_not_list_instances_asks_for_the_deployments_of_each_service(railway: Railway) -> None:
    railway.server.project_token_lists_instances = False
    results = railway.deployed(REDIS, MONGO, project_token=PROJECT_TOKEN)
    assert verdicts(results) == {"railway.redis.deployed": "pass", "railway.mongodb.deployed": "pass"}
    assert railway.server.operations.count("surefootDeployments") == 2
    assert results["evidence"][0]["source"].endswith("deployments of each service")


def test_a_token_without_the_right_never_means_deployed(railway: Railway) -> None:
    railway.server.project_token_lists_instances = railway.server.project_token_lists_deployments = False
    results = railway.deployed(REDIS, project_token=PROJECT_TOKEN)
    assert results["failed"] and "Redis cannot be confirmed: Railway does not authorize" in results["msg"]
    assert TRACE in results["msg"] and "A deployment is never assumed" in results["msg"]
    assert results["services"][0]["healthy"] is None
    assert verdicts(results) == {"railway.redis.deployed": "not_measured"}


def test_a_deployment_in_progress_is_waited_for(railway: Railway, quick: list[float]) -> None:
    railway.server.world.deployments.clear()
    for status in ("QUEUED", "BUILDING", "DEPLOYING"):
        railway.server.world.then(railway.redis, railway.project, deployment(status), [])
    railway.server.world.then(railway.redis, railway.project)
    results = railway.deployed(REDIS, wait="1m", poll_interval="7s")
    assert verdicts(results) == {"railway.redis.deployed": "pass"}
    assert quick == [7.0, 7.0, 7.0]


def test_the_wait_ends(railway: Railway) -> None:
    railway.server.world.deployments.clear()
    railway.server.world.then(railway.redis, railway.project, deployment("DEPLOYING"), [])
    results = railway.deployed(REDIS, wait="1200ms", poll_interval="0s")
    assert results["failed"] and results["waited"] >= 1.2
    assert results["msg"].startswith("Redis is being deployed: DEPLOYING. Wait for it")
    assert railway.server.operations.count("surefootServiceInstances") == 3


def test_a_wait_can_be_interrupted(railway: Railway) -> None:
    client = _railway.Client(_railway.Token("t0k3n-value", False, "option api_token"), api_url=railway.server.url)
    threading.Timer(0.1, client.stop).start()
    with pytest.raises(_railway.Interrupted, match="interrupted"):
        client.sleep(60)


# --- which project, environment and service


def test_two_services_with_one_name_are_refused_with_their_ids_and_an_id_decides(railway: Railway) -> None:
    other = railway.server.world.service(railway.project, "Redis", {"REDIS_URL": "redis://:pw-other@h.example.com:1"})
    for results in (railway.variables(REDIS), railway.deployed(REDIS)):
        assert results["failed"] and results["error"]["code"] == "plan"
        assert (
            f"2 services of the project lancio are called Redis: {railway.redis['id']}, {other['id']}" in results["msg"]
        )
        assert "Give the id instead of the name" in results["msg"]
        assert [item["verdict"] for item in results["evidence"]] == ["not_measured"]
    assert railway.variables({"name": other["id"], "kind": "redis"})["services"][0]["selected"] == "REDIS_URL"


def test_two_projects_with_one_name_are_refused_with_their_ids_and_an_id_decides(railway: Railway) -> None:
    other = railway.server.world.project("lancio", "production", workspace="ws-other")
    results = railway.variables(REDIS)
    assert "2 projects are called lancio: " in results["msg"]
    assert railway.project["id"] in results["msg"] and other["id"] in results["msg"]
    assert not railway.variables(REDIS, project=railway.project["id"]).get("failed")
    # The workspace token sees one of them only.
    assert not railway.variables(REDIS, api_token=WORKSPACE_TOKEN).get("failed")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"project": "lanzio"}, "sees no project lanzio. It sees: lancio."),
        ({"project": "Lancio"}, "sees no project Lancio"),
        ({"environment": "prod"}, "the project lancio has no environment prod. It has: production, staging."),
        ({"project": None}, "project is not given"),
        ({"environment": None}, "environment is not given"),
        ({"project": "00000000-0000-0000-0000-000000000000"}, f"does not find what the query project names ({TRACE})"),
        ({"project_token": PROJECT_TOKEN, "environment": "staging"}, "belongs to the environment production ("),
        ({"project_token": PROJECT_TOKEN, "project": "other"}, "belongs to the project lancio ("),
    ],
)
def test_what_is_not_there_is_said_with_what_is(railway: Railway, options: Results, said: str) -> None:
    results = railway.variables(REDIS, **options)
    assert results["failed"] and said in results["msg"], results["msg"]
    assert "\n" not in results["msg"]


def test_a_project_token_brings_its_project_and_the_environment_variables_name_one(
    railway: Railway, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = railway.variables(REDIS, project_token=PROJECT_TOKEN, project=None, environment=None)
    assert (results["project"]["name"], results["environment"]["name"]) == ("lancio", "production")
    monkeypatch.setenv("RAILWAY_PROJECT_ID", railway.project["id"])
    monkeypatch.setenv("RAILWAY_ENVIRONMENT_ID", railway.place)
    assert railway.variables(REDIS, project=None, environment=None)["environment"]["id"] == railway.place


def test_pages_are_followed_to_the_last(railway: Railway) -> None:
    railway.server.max_page = 2
    for number in range(5):
        railway.server.world.project(f"more {number}", "production")
        railway.server.world.service(railway.project, f"more {number}")
    last = railway.server.world.service(railway.project, "Last", {"X": "a value of it"})
    results = railway.variables({"name": "Last", "variables": ["X"]})
    assert results["services"][0]["id"] == last["id"] and results["services"][0]["selected"] == "X"
    assert railway.server.operations.count("surefootProjects") == 3
    assert railway.server.operations.count("surefootServices") == 3
    results = railway.deployed({"name": "Last"})
    assert results["services"][0]["state"] == "running"


def test_pages_have_an_end(railway: Railway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_railway, "MAX_PAGES", 3)
    railway.server.max_page = 1
    for number in range(5):
        railway.server.world.service(railway.project, f"more {number}")
    results = railway.variables(REDIS)
    assert results["failed"] and "Railway lists more than" in results["msg"]


def test_a_page_that_leads_back_to_itself_is_no_endless_loop(railway: Railway) -> None:
    page = {"edges": [], "pageInfo": {"hasNextPage": True, "endCursor": "x"}}
    for _time in range(3):
        railway.server.can(200, {"data": {"projects": page}}, operation="surefootProjects")
    assert "has a next page and does not say where" in railway.variables(REDIS)["msg"]


# --- errors


def test_the_wrong_token_is_said_by_its_source(railway: Railway, monkeypatch: pytest.MonkeyPatch) -> None:
    results = railway.variables(REDIS, project_token="no-such-token-0815")
    assert results["error"]["code"] == "connection"
    assert f"Railway does not know the project token (option project_token) ({TRACE})" in results["msg"]
    assert "Terraform" in results["msg"] and "no-such-token-0815" not in json.dumps(results)
    # The confusion that the Terraform provider causes: an account token in RAILWAY_TOKEN.
    monkeypatch.setenv("RAILWAY_TOKEN", ACCOUNT_TOKEN)
    results = railway.variables(REDIS, api_token=None)
    assert "does not know the project token (RAILWAY_TOKEN)" in results["msg"]
    # And the other way round.
    results = railway.variables(REDIS, api_token=PROJECT_TOKEN)
    assert "does not authorize" in results["msg"] and "A project token goes into project_token" in results["msg"]


def test_both_tokens_are_refused_also_from_the_environment(railway: Railway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAILWAY_TOKEN", PROJECT_TOKEN)
    monkeypatch.setenv("RAILWAY_API_TOKEN", ACCOUNT_TOKEN)
    results = railway.variables(REDIS, api_token=None)
    assert "RAILWAY_TOKEN (a project token) and RAILWAY_API_TOKEN (an account or workspace token)" in results["msg"]
    assert railway.server.seen == []
    assert not railway.variables(REDIS, project_token=PROJECT_TOKEN).get("failed")


def test_two_factor_authentication_names_the_workspace(railway: Railway) -> None:
    railway.server.refuse("surefootVariables", "Two Factor Authentication Required", workspaceName="Lancio GmbH")
    results = railway.variables(REDIS)
    assert "the workspace Lancio GmbH demands two-factor authentication" in results["msg"] and TRACE in results["msg"]


def test_an_error_about_variables_is_not_quoted_and_another_one_is_redacted(railway: Railway) -> None:
    railway.server.refuse("surefootVariables", f"cannot render redis://default:{REDIS_SECRET}@h: {REDIS_SECRET}")
    results = railway.variables(REDIS)
    assert results["msg"].startswith(f"Railway refused the query variables ({TRACE})")
    railway.server.refuse("surefootProject", f"Problem processing request of {ACCOUNT_TOKEN}")
    results = railway.variables(REDIS)
    assert results["msg"].startswith(f"Railway refused the query project: Problem processing request of *** ({TRACE})")


def test_a_query_that_the_schema_does_not_know_is_a_problem_processing_the_request(
    railway: Railway, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "query surefootWorkspaces { apiToken { workspaces { id title } } }"
    monkeypatch.setattr(_railway, "QUERIES", {**_railway.QUERIES, "surefootWorkspaces": wrong})
    assert "refused the query workspaces: Problem processing request" in railway.variables(REDIS)["msg"]


@pytest.mark.parametrize("operation", ["surefootVariables", "surefootServiceInstances", "surefootProject"])
def test_partial_data_with_an_error_is_a_failure(railway: Railway, operation: str) -> None:
    railway.server.refuse(operation, "Service unavailable for one field", keep_data=True)
    results = (railway.deployed if "Instances" in operation else railway.variables)(REDIS)
    assert results["failed"] and "with a part of the data, which is not used" in results["msg"]
    assert [item["verdict"] for item in results["evidence"]] == ["not_measured"]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<!DOCTYPE html><title>Just a moment</title>", "answered 200 with HTML instead of JSON"),
        (403, b"<html>blocked</html>", "answered 403 with HTML instead of JSON"),
        (200, b"", "answered 200 with nothing instead of JSON"),
        (200, b"[" * 100000, "answered 200 with text instead of JSON"),
        (200, b"\xff\xfe", "answered 200 with text instead of JSON"),
        (200, {"data": None}, "with no data, and no error either"),
        (200, {}, "with no data, and no error either"),
        (200, {"data": {"projects": None}}, "with no data, and no error either"),
        (200, {"errors": ["odd"], "data": None}, "Railway refused the query projects"),
        (200, {"data": {"projects": {"edges": [None]}}}, "projects is no list"),
        (200, {"data": {"projects": {"edges": [{"node": {"id": 1}}]}}}, "an id or a name is missing"),
        (401, {"message": "no"}, "does not authorize the query projects"),
        (404, {"message": "no"}, "with status 404"),
        (302, b"", "answered 302 with nothing instead of JSON"),
    ],
)
def test_an_answer_that_is_none_is_said_and_not_taken_for_data(
    railway: Railway, status: int, body: t.Any, said: str
) -> None:
    railway.server.can(status, body, operation="surefootProjects", Location="http://127.0.0.1:1/elsewhere")
    results = railway.variables(REDIS)
    assert results["failed"] and said in results["msg"], results["msg"]
    assert "\n" not in results["msg"] and results["error"]["code"] == "connection"


def test_variables_that_are_no_map_are_refused(railway: Railway) -> None:
    answer = {"data": {"variablesForServiceDeployment": ["REDIS_URL"]}}
    railway.server.can(200, answer, operation="surefootVariables")
    assert "the variables are no map" in railway.variables(REDIS)["msg"]


def test_an_answer_without_end_is_cut_off(railway: Railway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_railway, "MAX_BODY", 1000)
    railway.server.can(200, b" " * 2000, operation="surefootVariables")
    assert "answers with more than 1000 bytes" in railway.variables(REDIS)["msg"]


# --- again


def test_429_is_asked_again_after_the_time_it_says(railway: Railway, quick: list[float]) -> None:
    railway.server.can(429, b"slow down", operation="surefootVariables", Retry_After="3")
    railway.server.can(429, b"slow down", operation="surefootVariables", Retry_After="0")
    results = railway.variables(REDIS)
    assert not results.get("failed")
    assert quick == [3.0, 1.0]
    assert railway.server.operations.count("surefootVariables") == 3


def test_429_without_retry_after_is_asked_again_at_growing_intervals(railway: Railway, quick: list[float]) -> None:
    for _time in range(3):
        railway.server.can(429, b"", operation="surefootVariables")
    assert not railway.variables(REDIS).get("failed")
    assert quick == [1.0, 2.0, 4.0]


def test_waiting_has_a_bound_for_the_task_as_a_whole(railway: Railway, quick: list[float]) -> None:
    railway.server.can(429, b"", operation="surefootProjects", Retry_After="6")
    railway.server.can(429, b"", operation="surefootVariables", Retry_After="3600")
    results = railway.variables(REDIS)
    assert "is to be asked again in 3600 s; of retry_wait 4 s are left. Run again then" in results["msg"]
    assert verdicts(results) == {"railway.redis.variable": "not_measured"}
    assert quick == [6.0]


def test_429_for_ever_ends(railway: Railway, quick: list[float]) -> None:
    for _time in range(50):
        railway.server.can(429, b"", operation="surefootVariables", Retry_After="0")
    assert "answers 429" in railway.variables(REDIS)["msg"]
    assert sum(quick) == 10.0


def test_a_server_error_is_tried_again_and_not_for_ever(railway: Railway, quick: list[float]) -> None:
    for _time in range(3):
        railway.server.can(503, b"<html>", operation="surefootVariables")
    assert not railway.variables(REDIS).get("failed")
    assert len(quick) == 3
    for _time in range(4):
        railway.server.can(502, {"errors": [{"message": "x", "traceId": "42"}]}, operation="surefootVariables")
    results = railway.variables(REDIS)
    assert "answered 502 (trace id 42). Run again when it works" in results["msg"]


def test_a_server_that_is_not_there_is_tried_again_and_named(railway: Railway, quick: list[float]) -> None:
    results = railway.variables(REDIS, api_url="http://127.0.0.1:9/graphql/v2")
    assert results["msg"].startswith("Railway's API at 127.0.0.1:9 cannot be reached: connection refused")
    assert len(quick) == 3
    assert verdicts(results) == {"railway.redis.variable": "not_measured"}


def test_the_log_of_the_server_has_no_secret(railway: Railway) -> None:
    railway.variables(REDIS, MONGO, fail_on_error=False)
    railway.deployed(REDIS, project_token=PROJECT_TOKEN)
    text = json.dumps([railway.server.log, railway.server.seen])
    assert "surefootVariables" in text
    assert not [secret for secret in SECRETS if secret in text]


class Raw:
    """A server that says what it is told to, and then goes away or falls silent."""

    def __init__(self, *pieces: bytes, silent: bool = False) -> None:
        self._pieces, self._silent = pieces, silent
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while not self._done.is_set():
                connection, _address = self._socket.accept()
                with connection:
                    connection.recv(65536)
                    for piece in self._pieces:
                        connection.sendall(piece)
                    while self._silent and not self._done.wait(0.05):
                        connection.sendall(b" ")  # never silent for as long as a socket's timeout

    def __enter__(self) -> Raw:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + b"Content-Length: 1000\r\n\r\n", b'{"data": {"projects"'],
        [HEAD + b"Content-Length: 1000\r\n\r\n"],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b'f\r\n{"data": {"proj'],
        [b"\x00\x01 no HTTP\r\n\r\n"],
        [],
    ],
    ids=["in the body", "before the body", "in a chunk", "no HTTP", "nothing"],
)
def test_an_answer_that_breaks_off_is_none(railway: Railway, quick: list[float], pieces: list[bytes]) -> None:
    with Raw(*pieces) as server:
        results = railway.variables(REDIS, api_url=server.url)
    assert "closed the connection or does not speak HTTP" in results["msg"], results["msg"]


def test_an_answer_that_drips_does_not_outlive_the_timeout(railway: Railway) -> None:
    with Raw(HEAD + b"Content-Length: 1000\r\n\r\n", silent=True) as server:
        results = railway.variables(REDIS, api_url=server.url, timeout="300ms", retry_wait="0s")
    assert "did not answer within 0.3 s" in results["msg"]
