# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Railway's GraphQL API, read only: the token, one request, and which project, environment and services are meant.

An answer to a question about variables holds every secret of a service. So what such an answer says, errors included,
is never repeated; of other errors the server's own words are, redacted. Every error has Railway's trace id where there
is one, which its support asks for.
"""

from __future__ import annotations

import dataclasses
import email.utils
import json
import os
import random
import re
import threading
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact, register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    Interrupted,
    PlanError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._post import (
    LOOPBACK,
    Address,
    Delivery,
    Reply,
    exchange,
    placeholder,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration

API_URL = "https://backboard.railway.com/graphql/v2"
PROJECT_TOKEN_VARIABLE = "RAILWAY_TOKEN"
API_TOKEN_VARIABLE = "RAILWAY_API_TOKEN"
PROJECT_VARIABLE = "RAILWAY_PROJECT_ID"
ENVIRONMENT_VARIABLE = "RAILWAY_ENVIRONMENT_ID"
MAX_BODY = 8 * 2**20
PAGE_SIZE = 100
MAX_PAGES = 50
_ATTEMPTS = 4  # of one request that was not answered, or with a server error
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 15.0

_PAGE_INFO = "pageInfo { hasNextPage endCursor }"
_NAMED = "edges { node { id name } } " + _PAGE_INFO
_DEPLOYMENT = "id status deploymentStopped createdAt instances { id status }"

# Each is valid against the schema that Railway publishes; the tests check it.
QUERIES: t.Mapping[str, str] = {
    # What a project token may ask for is not documented. These fields are known to be answered.
    "surefootProjectToken": "query surefootProjectToken($first: Int!) { projectToken { projectId environmentId"
    f" project {{ id name environments(first: $first) {{ {_NAMED} }} services(first: $first) {{ {_NAMED} }} }} }} }}",
    "surefootWorkspaces": "query surefootWorkspaces { apiToken { workspaces { id name } } }",
    "surefootProjects": "query surefootProjects($workspaceId: String, $first: Int!, $after: String)"
    f" {{ projects(workspaceId: $workspaceId, first: $first, after: $after) {{ {_NAMED} }} }}",
    "surefootProject": "query surefootProject($id: String!, $first: Int!) { project(id: $id) { id name"
    f" environments(first: $first) {{ {_NAMED} }} services(first: $first) {{ {_NAMED} }} }} }}",
    "surefootEnvironments": "query surefootEnvironments($id: String!, $first: Int!, $after: String)"
    f" {{ project(id: $id) {{ environments(first: $first, after: $after) {{ {_NAMED} }} }} }}",
    "surefootServices": "query surefootServices($id: String!, $first: Int!, $after: String)"
    f" {{ project(id: $id) {{ services(first: $first, after: $after) {{ {_NAMED} }} }} }}",
    "surefootVariables": "query surefootVariables($projectId: String!, $environmentId: String!, $serviceId: String!)"
    " { variablesForServiceDeployment(projectId: $projectId, environmentId: $environmentId, serviceId: $serviceId) }",
    "surefootSharedVariables": "query surefootSharedVariables($projectId: String!, $environmentId: String!)"
    " { variables(projectId: $projectId, environmentId: $environmentId) }",
    "surefootServiceInstances": "query surefootServiceInstances($id: String!, $projectId: String!, $first: Int!,"
    " $after: String) { environment(id: $id, projectId: $projectId) {"
    " serviceInstances(first: $first, after: $after) { edges { node { serviceId serviceName"
    f" latestDeployment {{ {_DEPLOYMENT} }} activeDeployments {{ {_DEPLOYMENT} }} }} }} {_PAGE_INFO} }} }} }}",
    "surefootDeployments": "query surefootDeployments($input: DeploymentListInput!, $first: Int!)"
    f" {{ deployments(input: $input, first: $first) {{ edges {{ node {{ {_DEPLOYMENT} }} }} }} }}",
}
# Their answers, and errors about them, may hold values of variables.
_SECRET_ANSWERS = ("surefootVariables", "surefootSharedVariables")

Data = dict[str, t.Any]


class RailwayError(ConnectionFailed):
    """Railway was not reached, or refused. ``kind``: unreachable | rate_limited | not_authorized | invalid_token |
    two_factor | not_found | refused | malformed."""

    def __init__(self, message: str, *, kind: str, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.kind = kind


# ---------------------------------------------------------------------------------------------------------------------
# The token


@dataclasses.dataclass(frozen=True)
class Token:
    """A token and where it came from. ``project``: whether it is one of a project's environment."""

    value: str = dataclasses.field(repr=False)
    project: bool
    source: str

    @property
    def header(self) -> dict[str, str]:
        return {"Project-Access-Token": self.value} if self.project else {"Authorization": f"Bearer {self.value}"}

    @property
    def label(self) -> str:
        return f"{'project token' if self.project else 'account or workspace token'} ({self.source})"


def resolve_token(params: t.Mapping[str, t.Any], environ: t.Mapping[str, str]) -> Token:
    """The one token of the options ``project_token`` and ``api_token``, else of the environment.

    :raises PlanError: none, both, or one that no header can carry
    """
    given = {name: params.get(name) for name in ("project_token", "api_token") if params.get(name) is not None}
    for value in given.values():
        register_secret(value)
    if len(given) == 2:
        raise PlanError(
            "project_token and api_token are both given",
            remedy="Give the token of a project's environment in project_token, or one of an account or workspace in"
            " api_token, never both.",
        )
    for name, value in given.items():
        return Token(_checked(str(value), f"the option {name}"), name == "project_token", f"option {name}")
    found = {name: environ.get(name) or "" for name in (PROJECT_TOKEN_VARIABLE, API_TOKEN_VARIABLE)}
    for value in found.values():
        register_secret(value)
    if all(found.values()):
        raise PlanError(
            f"the environment has {PROJECT_TOKEN_VARIABLE} (a project token) and {API_TOKEN_VARIABLE} (an account or"
            " workspace token)",
            remedy="Unset one, or give the option project_token or api_token, which is then used alone.",
        )
    for name, value in found.items():
        if value:
            return Token(_checked(value, name), name == PROJECT_TOKEN_VARIABLE, name)
    raise PlanError(
        "there is no token for Railway",
        remedy=f"Give project_token ({PROJECT_TOKEN_VARIABLE}) or api_token ({API_TOKEN_VARIABLE}).",
    )


def _checked(value: str, what: str) -> str:
    text = value.strip()
    if not text or placeholder(text) or not re.fullmatch(r"[\x21-\x7e]+", text):
        raise PlanError(
            f"{what} is empty, a placeholder, or holds characters that no token has",
            remedy="Give the token itself; check where the value comes from.",
        )
    register_secret(text)
    return text


# ---------------------------------------------------------------------------------------------------------------------
# One request


class Client:
    """Asks, and asks again where that may help: without an answer or with a server error a few times, after 429 as
    long as waiting is allowed."""

    def __init__(
        self,
        token: Token,
        *,
        api_url: str | None = None,
        timeout: float = 30.0,
        retry_wait: float = 60.0,
        ca_cert: str | None = None,
    ) -> None:
        self.token = token
        self.requests = 0
        self._address = Address.parse(api_url or API_URL, what="api_url", allow_http=True)
        if not self._address.secure and self._address.host not in LOOPBACK:
            raise PlanError(
                f"api_url would send the token to {self._address.host} without TLS", remedy="Give an https URL."
            )
        self._delivery = Delivery(timeout=timeout, ca_cert=ca_cert)
        self._wait_left = retry_wait
        self._stopped = threading.Event()

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any], environ: t.Mapping[str, str] | None = None) -> Client:
        """From the options of ``railway_argument_spec``.

        :raises PlanError: see :func:`resolve_token`; a time or address that cannot be
        """
        return cls(
            resolve_token(params, os.environ if environ is None else environ),
            api_url=params.get("api_url"),
            timeout=parse_duration(params.get("timeout") or "30s"),
            retry_wait=parse_duration("60s" if params.get("retry_wait") is None else params["retry_wait"]),
            ca_cert=params.get("ca_cert"),
        )

    @property
    def host(self) -> str:
        return self._address.origin

    def stop(self, _reason: str = "") -> None:
        """Let a wait end; what is asked next is refused."""
        self._stopped.set()

    def sleep(self, seconds: float) -> None:
        """:raises Interrupted: told to stop"""
        if self._stopped.wait(seconds):
            raise Interrupted("waiting for Railway was interrupted", remedy="Run again.")

    def ask(self, name: str, variables: t.Mapping[str, t.Any] | None = None) -> Data:
        """The ``data`` of the answer to one of :data:`QUERIES`.

        :raises RailwayError: no answer, an error of whatever HTTP status, or an answer that is only partial
        """
        body = json.dumps({"query": QUERIES[name], "variables": dict(variables or {}), "operationName": name})
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "surefoot.dbops",
            "Connection": "close",
            **self.token.header,
        }
        for attempt in range(1, _ATTEMPTS + 1):
            reply = self._send(body.encode("utf-8"), headers)
            delay = min(_FIRST_DELAY * 2 ** (attempt - 1), _LONGEST_DELAY) * random.uniform(0.5, 1.0)
            last = attempt == _ATTEMPTS or delay > self._wait_left
            if reply.status is None:
                if last or not reply.again:
                    raise RailwayError(
                        f"Railway's API at {self.host} {reply.problem}",
                        kind="unreachable",
                        remedy="Check api_url, and the network and proxy between.",
                    )
            elif reply.status < 500:
                return self._data(name, reply)
            elif last:
                raise RailwayError(
                    f"Railway's API at {self.host} answered {reply.status}{_trace(_json(reply))}",
                    kind="unreachable",
                    remedy="Run again when it works: status.railway.com.",
                )
            self._pause(delay)
        raise AssertionError("not reached")

    def _send(self, body: bytes, headers: t.Mapping[str, str]) -> Reply:
        """One answer that is not 429."""
        delay = 1.0
        while True:
            self.sleep(0)
            self.requests += 1
            reply = exchange(self._address, body, headers, self._delivery, read=MAX_BODY)
            if reply.status != 429:
                return reply
            asked = _retry_after(reply.headers.get("retry-after"))
            # Never less than a second: a limit that is over at once would be asked for ever.
            wait = max(1.0, asked) if asked is not None else delay
            delay = min(2 * delay, _LONGEST_DELAY)
            if wait > self._wait_left:
                raise RailwayError(
                    f"Railway's API at {self.host} answers 429, too many requests, and is to be asked again in"
                    f" {wait:.0f} s; of retry_wait {self._wait_left:.0f} s are left",
                    kind="rate_limited",
                    remedy="Run again then, or raise retry_wait.",
                )
            self._pause(wait)

    def _pause(self, seconds: float) -> None:
        self._wait_left -= seconds
        self.sleep(seconds)

    def _data(self, name: str, reply: Reply) -> Data:
        answer = _json(reply)
        if not isinstance(answer, dict):
            kind = "HTML" if reply.body.lstrip()[:1] == b"<" else "nothing" if not reply.body.strip() else "text"
            raise RailwayError(
                f"Railway's API at {self.host} answered {reply.status} with {kind} instead of JSON",
                kind="malformed",
                remedy="Check api_url, and whether a proxy or a login page answers instead.",
            )
        errors = answer.get("errors")
        if errors:
            raise self._refusal(name, errors, answer)
        if reply.status in (401, 403):
            raise self._not_authorized(name, "")
        data = answer.get("data")
        if reply.status != 200 or not isinstance(data, dict) or any(value is None for value in data.values()):
            what = f"status {reply.status}" if reply.status != 200 else "no data, and no error either"
            raise RailwayError(
                f"Railway's API at {self.host} answered {_words(name)} with {what}{_trace(answer)}",
                kind="malformed",
                remedy="Run again; if it stays, the API has changed or something between answers for it.",
            )
        return data

    def _refusal(self, name: str, errors: t.Any, answer: Data) -> RailwayError:
        """Railway answers errors with HTTP 200 and one and the same code, so that only the message tells them apart."""
        first = errors[0] if isinstance(errors, list) and isinstance(errors[0], dict) else {}
        said = " ".join(str(first.get("message") or "").split())
        low, trace = said.lower(), _trace(answer)
        partial = ", with a part of the data, which is not used" if answer.get("data") else ""
        if "project token not found" in low or "invalid token" in low:
            return RailwayError(
                f"Railway does not know the {self.token.label}{trace}",
                kind="invalid_token",
                remedy="Check that it was not revoked. An account or workspace token goes into api_token"
                f" ({API_TOKEN_VARIABLE}), also where Terraform reads it from {PROJECT_TOKEN_VARIABLE}.",
            )
        if "two factor authentication" in low or "two-factor" in low:
            extensions = first.get("extensions") if isinstance(first.get("extensions"), dict) else {}
            workspace = redact(str((extensions or {}).get("workspaceName") or ""))[:80]
            return RailwayError(
                f"the workspace {workspace or 'of the project'} demands two-factor authentication of the owner of the"
                f" {self.token.label}{trace}",
                kind="two_factor",
                remedy="Turn it on for that account, or use a project token.",
            )
        if "not authorized" in low or "unauthorized" in low:
            return self._not_authorized(name, trace)
        if "not found" in low:
            return RailwayError(
                f"Railway does not find what {_words(name)} names{trace}{partial}",
                kind="not_found",
                remedy="Check project and environment, and that the token may see them.",
            )
        # An error about variables may quote one.
        quoted = "" if name in _SECRET_ANSWERS or not said else f": {redact(said)[:200]}"
        return RailwayError(
            f"Railway refused {_words(name)}{quoted}{trace}{partial}",
            kind="refused",
            remedy="Run again; if it stays, give the trace id to Railway's support.",
        )

    def _not_authorized(self, name: str, trace: str) -> RailwayError:
        other = (
            "A project token sees one environment of one project, and may not ask everything"
            if self.token.project
            else "A project token goes into project_token"
        )
        return RailwayError(
            f"Railway does not authorize {_words(name)} with the {self.token.label}{trace}",
            kind="not_authorized",
            remedy=f"The token is wrong, or lacks the right: Railway does not say which. {other}.",
        )


def _words(name: str) -> str:
    """``surefootServiceInstances`` as ``the query serviceInstances``."""
    rest = name[len("surefoot") :]
    return f"the query {rest[:1].lower()}{rest[1:]}"


def _json(reply: Reply) -> t.Any:
    try:
        return json.loads(reply.body.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _trace(answer: t.Any) -> str:
    """`` (trace id ...)``, or nothing."""
    errors = answer.get("errors") if isinstance(answer, dict) else None
    for error in errors if isinstance(errors, list) else []:
        extensions = error.get("extensions") if isinstance(error, dict) else None
        for holder in (error, extensions):
            trace = holder.get("traceId") if isinstance(holder, dict) else None
            if isinstance(trace, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", trace):
                return f" (trace id {trace})"
    return ""


def _retry_after(value: str | None) -> float | None:
    """Seconds of the header: a number, or a date; None when there is none that can be understood."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Which project, environment and services


@dataclasses.dataclass(frozen=True)
class Named:
    """A thing of Railway's."""

    id: str
    name: str

    def to_dict(self) -> dict[str, str]:
        return {"id": self.id, "name": self.name}


@dataclasses.dataclass(frozen=True)
class Scope:
    """One environment of one project, and the services of the project."""

    project: Named
    environment: Named
    services: tuple[Named, ...]

    def service(self, wanted: str) -> Named | None:
        """By id or exact name; None when there is none.

        :raises PlanError: two have the name
        """
        return pick(wanted, self.services, f"services of the project {self.project.name}")

    @property
    def label(self) -> str:
        return f"environment {self.environment.name} of project {self.project.name}"


def pick(wanted: str, found: t.Sequence[Named], what: str) -> Named | None:
    """The one with this id, or else with exactly this name.

    :raises PlanError: several have the name
    """
    matches = [item for item in found if item.id == wanted] or [item for item in found if item.name == wanted]
    if len(matches) > 1:
        ids = ", ".join(item.id for item in matches)
        raise PlanError(f"{len(matches)} {what} are called {wanted}: {ids}", remedy="Give the id instead of the name.")
    return matches[0] if matches else None


def resolve_scope(client: Client, params: t.Mapping[str, t.Any], environ: t.Mapping[str, str] | None = None) -> Scope:
    """Project and environment of the options, else of the environment; a project token brings its own, which the
    options must not contradict.

    :raises PlanError: not given, not there, or several
    :raises RailwayError: see :meth:`Client.ask`
    """
    environ = os.environ if environ is None else environ
    wanted_project = params.get("project") or environ.get(PROJECT_VARIABLE) or None
    wanted_environment = params.get("environment") or environ.get(ENVIRONMENT_VARIABLE) or None
    if client.token.project:
        return _scope_of_project_token(client, wanted_project, wanted_environment)
    if not wanted_project or not wanted_environment:
        missing = "project" if not wanted_project else "environment"
        raise PlanError(
            f"{missing} is not given, and an account or workspace token does not say which is meant",
            remedy=f"Give the option {missing}, an id or a name.",
        )
    project_id = str(wanted_project)
    if not _is_id(project_id):
        project_id = _project_by_name(client, project_id).id
    project = _object(client.ask("surefootProject", {"id": project_id, "first": PAGE_SIZE}), "project")
    owner = _named(project)
    environments, services = _children(client, project)
    environment = pick(str(wanted_environment), environments, f"environments of the project {owner.name}")
    if environment is None:
        raise PlanError(
            f"the project {owner.name} has no environment {wanted_environment}",
            remedy=f"It has: {_names(environments)}.",
        )
    return Scope(owner, environment, services)


def _scope_of_project_token(client: Client, wanted_project: str | None, wanted_environment: str | None) -> Scope:
    answer = _object(client.ask("surefootProjectToken", {"first": PAGE_SIZE}), "projectToken")
    project = _object(answer, "project")
    owner = _named(project)
    environments, services = _children(client, project)
    environment_id = str(answer.get("environmentId") or "")
    environment = next((item for item in environments if item.id == environment_id), None)
    if environment is None:
        raise _shape("the project token's environment is not among the project's")
    for wanted, own, what in (
        (wanted_project, owner, "project"),
        (wanted_environment, environment, "environment"),
    ):
        if wanted is not None and wanted not in (own.id, own.name):
            raise PlanError(
                f"the {client.token.label} belongs to the {what} {own.name} ({own.id}), not to {wanted}",
                remedy=f"Make a token for {wanted}, or correct {what}.",
            )
    return Scope(owner, environment, services)


def _project_by_name(client: Client, name: str) -> Named:
    workspaces: list[str | None]
    try:
        context = _object(client.ask("surefootWorkspaces"), "apiToken")
        workspaces = [str(item["id"]) for item in context.get("workspaces") or ()]
    except RailwayError as exc:
        if exc.kind != "not_authorized":
            raise
        workspaces = [None]  # a token that cannot say which workspaces it has may still list its projects
    found: dict[str, Named] = {}
    for workspace in workspaces:
        for item in _pages(client, "surefootProjects", {"workspaceId": workspace}, ("projects",)):
            found[item["id"]] = _named(item)
    project = pick(name, list(found.values()), "projects")
    if project is None:
        raise PlanError(
            f"the {client.token.label} sees no project {name}",
            remedy=f"It sees: {_names(list(found.values()))}. One that another workspace shares is given by its id.",
        )
    return project


def _children(client: Client, project: Data) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    """Environments and services, with the pages that follow the first."""
    result = []
    for key, query in (("environments", "surefootEnvironments"), ("services", "surefootServices")):
        items = _pages(client, query, {"id": project["id"]}, ("project", key), project.get(key))
        result.append(tuple(_named(item) for item in items))
    return result[0], result[1]


def _pages(client: Client, name: str, variables: Data, path: t.Sequence[str], first: t.Any = None) -> t.Iterator[Data]:
    """The nodes of a connection, page by page; ``first`` is a page that is there already."""
    connection: t.Any = first
    cursor: str | None = None
    for _page in range(MAX_PAGES):
        if connection is None:
            connection = client.ask(name, {**variables, "first": PAGE_SIZE, "after": cursor})
            for key in path:
                connection = _object(connection, key)
        edges, info = connection.get("edges"), connection.get("pageInfo") or {}
        if not isinstance(edges, list) or any(not isinstance((edge or {}).get("node"), dict) for edge in edges):
            raise _shape(f"{'.'.join(path)} is no list")
        for edge in edges:
            yield edge["node"]
        if not info.get("hasNextPage"):
            return
        following = info.get("endCursor")
        if not following or following == cursor:
            raise _shape(f"{'.'.join(path)} has a next page and does not say where")
        cursor, connection = str(following), None
    raise RailwayError(
        f"Railway lists more than {MAX_PAGES * PAGE_SIZE} {path[-1]}",
        kind="malformed",
        remedy="Give ids instead of names, and a token of a narrower scope.",
    )


def pages_of_instances(client: Client, scope: Scope) -> list[Data]:
    """The service instances of the environment.

    :raises RailwayError: see :meth:`Client.ask`; ``not_authorized`` for tokens that may not ask
    """
    variables = {"id": scope.environment.id, "projectId": scope.project.id}
    return list(_pages(client, "surefootServiceInstances", variables, ("environment", "serviceInstances")))


def _object(data: t.Any, key: str) -> Data:
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, dict):
        raise _shape(f"{key} is missing")
    return value


def _named(item: Data) -> Named:
    if not isinstance(item.get("id"), str) or not isinstance(item.get("name"), str):
        raise _shape("an id or a name is missing")
    return Named(item["id"], item["name"])


def _shape(what: str) -> SurefootError:
    return RailwayError(
        f"Railway's answer has not the shape of its schema: {what}",
        kind="malformed",
        remedy="Run again; if it stays, the API has changed.",
    )


def _is_id(text: str) -> bool:
    return re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text) is not None


def _names(found: t.Sequence[Named]) -> str:
    names = [item.name for item in found]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"
