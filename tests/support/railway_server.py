# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for Railway's API: an HTTP server that executes GraphQL against the part of Railway's schema that we use.

It is not Railway. The schema below is that part, named and typed as Railway publishes it; a query that asks for
anything else is refused as Railway would refuse it. What is enforced besides: who a token is, and what a project token
may not ask, as reported by users (``serviceInstance``, ``service``, ``environments``, and ``environment`` without its
project). Errors come as HTTP 200, with one code for all of them and a trace id.

What it leaves untested: whether Railway lets a project token ask ``environment`` with its project (a switch here, tried
both ways), real limits of requests, how Railway renders references (values are given as they come out), TLS, and
whatever Railway changes. ``private`` host names are not resolved by anything here.
"""

from __future__ import annotations

import contextlib
import copy
import email.message
import http.server
import json
import threading
import typing as t
import uuid

import graphql

SDL = """
scalar EnvironmentVariables
scalar DateTime
enum DeploymentStatus {
  BUILDING CRASHED DEPLOYING FAILED INITIALIZING NEEDS_APPROVAL QUEUED REMOVED REMOVING SKIPPED SLEEPING SUCCESS WAITING
}
enum DeploymentInstanceStatus {
  CRASHED CREATED EXITED INITIALIZING REMOVED REMOVING RESTARTING RUNNING SKIPPED STOPPED
}
input DeploymentStatusInput { in: [DeploymentStatus!] notIn: [DeploymentStatus!] }
input DeploymentListInput {
  projectId: String environmentId: String serviceId: String includeDeleted: Boolean status: DeploymentStatusInput
}
type PageInfo { hasNextPage: Boolean! endCursor: String }
type ApiTokenWorkspace { id: String! name: String! }
type ApiTokenContext { workspaces: [ApiTokenWorkspace!]! }
type Service { id: ID! name: String! }
type ProjectServicesConnectionEdge { node: Service! cursor: String! }
type ProjectServicesConnection { edges: [ProjectServicesConnectionEdge!]! pageInfo: PageInfo! }
type DeploymentDeploymentInstance { id: String! status: DeploymentInstanceStatus! }
type Deployment {
  id: ID! status: DeploymentStatus! deploymentStopped: Boolean! createdAt: DateTime!
  instances: [DeploymentDeploymentInstance!]!
}
type ServiceInstance {
  id: ID! serviceId: String! serviceName: String! environmentId: String! latestDeployment: Deployment
  activeDeployments: [Deployment!]!
}
type EnvironmentServiceInstancesConnectionEdge { node: ServiceInstance! cursor: String! }
type EnvironmentServiceInstancesConnection { edges: [EnvironmentServiceInstancesConnectionEdge!]! pageInfo: PageInfo! }
type Environment {
  id: ID! name: String! projectId: String!
  serviceInstances(after: String, before: String, first: Int, last: Int): EnvironmentServiceInstancesConnection!
}
type ProjectEnvironmentsConnectionEdge { node: Environment! cursor: String! }
type ProjectEnvironmentsConnection { edges: [ProjectEnvironmentsConnectionEdge!]! pageInfo: PageInfo! }
type Project {
  id: ID! name: String!
  environments(
    after: String, before: String, first: Int, isEphemeral: Boolean, last: Int
  ): ProjectEnvironmentsConnection!
  services(after: String, before: String, first: Int, last: Int): ProjectServicesConnection!
}
type QueryEnvironmentsConnectionEdge { node: Environment! cursor: String! }
type QueryEnvironmentsConnection { edges: [QueryEnvironmentsConnectionEdge!]! pageInfo: PageInfo! }
type QueryProjectsConnectionEdge { node: Project! cursor: String! }
type QueryProjectsConnection { edges: [QueryProjectsConnectionEdge!]! pageInfo: PageInfo! }
type QueryDeploymentsConnectionEdge { node: Deployment! cursor: String! }
type QueryDeploymentsConnection { edges: [QueryDeploymentsConnectionEdge!]! pageInfo: PageInfo! }
type ProjectToken { id: ID! projectId: String! environmentId: String! project: Project! environment: Environment! }
type Query {
  apiToken: ApiTokenContext!
  deployments(
    after: String, before: String, first: Int, input: DeploymentListInput!, last: Int
  ): QueryDeploymentsConnection!
  environment(id: String!, projectId: String): Environment!
  environments(
    after: String, before: String, first: Int, isEphemeral: Boolean, last: Int, projectId: String!
  ): QueryEnvironmentsConnection!
  project(id: String!): Project!
  projectToken: ProjectToken!
  projects(
    after: String, before: String, first: Int, includeDeleted: Boolean, last: Int, userId: String, workspaceId: String
  ): QueryProjectsConnection!
  service(id: String!): Service!
  serviceInstance(environmentId: String!, serviceId: String!): ServiceInstance!
  variables(
    environmentId: String!, projectId: String!, serviceId: String, unrendered: Boolean
  ): EnvironmentVariables!
  variablesForServiceDeployment(
    environmentId: String!, projectId: String!, serviceId: String!
  ): EnvironmentVariables!
}
"""
SCHEMA = graphql.build_schema(SDL)

# Project tokens are answered this with "Not Authorized".
NOT_FOR_PROJECT_TOKENS = ("serviceInstance", "service", "environments", "apiToken", "projects")

REDIS_SECRET = "r3dis-Pa55-0f7c21"
MONGO_SECRET = "m0ngo-Pa55-9b1e44"
PROJECT_TOKEN = "prj-7d0a51c2-token-4f6e"
ACCOUNT_TOKEN = "acc-91b3e7f0-token-2c8d"
WORKSPACE_TOKEN = "wsp-5e2f8a64-token-7b1c"
SECRETS = (REDIS_SECRET, MONGO_SECRET, PROJECT_TOKEN, ACCOUNT_TOKEN, WORKSPACE_TOKEN)
WORKSPACE = "ws-lancio"
MALFORMED_SECRET = "malf0rmed-Pa55-3d7e90"

Json = dict[str, t.Any]
Headers = t.Union[email.message.Message, t.Mapping[str, str]]


def new_id() -> str:
    return str(uuid.uuid4())


def deployment(status: str = "SUCCESS", *replicas: str, stopped: bool = False, created: int = 0) -> Json:
    """One deployment; the later ``created``, the newer."""
    return {
        "id": new_id(),
        "status": status,
        "deploymentStopped": stopped,
        "createdAt": f"2026-11-{20 + created:02d}T02:00:00Z",
        "instances": [{"id": new_id(), "status": replica} for replica in replicas],
    }


class World:
    """What the account has. Services are the project's; variables and deployments are an environment's."""

    def __init__(self) -> None:
        self.projects: dict[str, Json] = {}
        self.tokens: dict[str, Json] = {}
        self.variables: dict[tuple[str, str | None], dict[str, t.Any]] = {}
        # Of a service in an environment: the answers one after the other, the last for ever.
        self.deployments: dict[tuple[str, str], list[Json]] = {}

    def project(self, name: str, *environments: str, workspace: str = WORKSPACE) -> Json:
        found: Json = {
            "id": new_id(),
            "name": name,
            "workspace": workspace,
            "environments": [{"id": new_id(), "name": item} for item in environments],
            "services": [],
        }
        for item in found["environments"]:
            item["projectId"] = found["id"]
        self.projects[found["id"]] = found
        return found

    def service(
        self,
        project: Json,
        name: str,
        variables: dict[str, t.Any] | None = None,
        *,
        latest: Json | None = None,
        active: list[Json] | None = None,
        deployed: bool = True,
    ) -> Json:
        """A service, in the project's first environment. ``active``: its active deployments, by default the latest."""
        found = {"id": new_id(), "name": name}
        project["services"].append(found)
        place = project["environments"][0]["id"]
        self.variables[place, found["id"]] = variables or {}
        if deployed:
            self.then(found, project, latest, active)
        return found

    def then(self, service: Json, project: Json, latest: Json | None = None, active: list[Json] | None = None) -> None:
        """What is answered after what was answered before."""
        latest = latest or deployment("SUCCESS", "RUNNING")
        state = {"latest": latest, "active": [latest] if active is None else active}
        place = project["environments"][0]["id"], service["id"]
        self.deployments.setdefault(place, []).append(state)


def lancio_world() -> tuple[World, Json, Json, Json]:
    """Project lancio with Redis (public) and MongoDB (private only), and a token of each kind."""
    world = World()
    project = world.project("lancio", "production", "staging")
    redis = world.service(
        project,
        "Redis",
        {
            "REDIS_PUBLIC_URL": f"redis://default:{REDIS_SECRET}@monorail.proxy.rlwy.net:26137",
            "REDIS_URL": f"redis://default:{REDIS_SECRET}@redis.railway.internal:6379",
            "REDIS_PASSWORD": REDIS_SECRET,
            "REDISHOST": "redis.railway.internal",
        },
    )
    mongo = world.service(
        project,
        "MongoDB",
        {
            "MONGO_PUBLIC_URL": f"mongodb://mongo:{MONGO_SECRET}@:",
            "MONGO_URL": f"mongodb://mongo:{MONGO_SECRET}@mongodb.railway.internal:27017",
            "MONGOPASSWORD": MONGO_SECRET,
        },
    )
    production = project["environments"][0]["id"]
    world.variables[production, None] = {"SHARED_REGION": "eu", "SHARED_SECRET": None}
    world.tokens[PROJECT_TOKEN] = {"kind": "project", "project": project["id"], "environment": production}
    world.tokens[ACCOUNT_TOKEN] = {"kind": "api", "workspaces": None}
    world.tokens[WORKSPACE_TOKEN] = {"kind": "api", "workspaces": [WORKSPACE]}
    return world, project, redis, mongo


class NotAuthorized(Exception):
    def __init__(self) -> None:
        super().__init__("Not Authorized")


class _Resolvers:
    """The fields of the query type, for one caller."""

    def __init__(self, server: RailwayServer, caller: Json | None) -> None:
        self._server, self._world, self._caller = server, server.world, caller

    def _check(self, field: str) -> Json:
        if self._caller is None:
            raise NotAuthorized
        if self._caller["kind"] == "project" and field in NOT_FOR_PROJECT_TOKENS:
            raise NotAuthorized
        return self._caller

    def _project(self, project_id: str | None) -> Json:
        caller = self._caller or {}
        found = self._world.projects.get(str(project_id))
        if caller.get("kind") == "project" and project_id != caller["project"]:
            raise NotAuthorized
        if found is None:
            raise Exception("Project not found")
        workspaces = caller.get("workspaces")
        if caller.get("kind") == "api" and workspaces is not None and found["workspace"] not in workspaces:
            raise NotAuthorized
        return found

    def _environment(self, project: Json, environment_id: str | None) -> Json:
        caller = self._caller or {}
        if caller.get("kind") == "project" and environment_id != caller["environment"]:
            raise NotAuthorized
        found = next((item for item in project["environments"] if item["id"] == environment_id), None)
        if found is None:
            raise Exception("Environment not found")
        return t.cast("Json", found)

    def page(self, nodes: list[t.Any], arguments: Json) -> Json:
        size = min(arguments.get("first") or self._server.max_page, self._server.max_page)
        start = int(arguments.get("after") or 0)
        chosen = nodes[start : start + size]
        end = start + len(chosen)
        info = {"hasNextPage": end < len(nodes), "endCursor": str(end) if chosen else None}
        return {"edges": [{"node": node, "cursor": "x"} for node in chosen], "pageInfo": info}

    def _shown(self, project: Json) -> Json:
        """A project whose lists are paged."""
        return {
            **project,
            "environments": lambda _info, **arguments: self.page(project["environments"], arguments),
            "services": lambda _info, **arguments: self.page(project["services"], arguments),
        }

    def apiToken(self, _info: t.Any) -> Json:
        caller = self._check("apiToken")
        every = {project["workspace"] for project in self._world.projects.values()}
        mine = sorted(every if caller["workspaces"] is None else caller["workspaces"])
        return {"workspaces": [{"id": item, "name": item.title()} for item in mine]}

    def projects(self, _info: t.Any, **arguments: t.Any) -> Json:
        self._check("projects")
        wanted = arguments.get("workspaceId")
        found = [self._shown(item) for item in self._world.projects.values() if wanted in (None, item["workspace"])]
        return self.page(found, arguments)

    def project(self, _info: t.Any, id: str) -> Json:  # noqa: A002
        self._check("project")
        return self._shown(self._project(id))

    def projectToken(self, _info: t.Any) -> Json:
        caller = self._caller
        if caller is None or caller["kind"] != "project":
            raise Exception("Project Token not found")
        project = self._project(caller["project"])
        environment = next(item for item in project["environments"] if item["id"] == caller["environment"])
        return {
            "id": "t",
            "projectId": caller["project"],
            "environmentId": caller["environment"],
            "project": self._shown(project),
            "environment": environment,
        }

    def environment(self, _info: t.Any, id: str, projectId: str | None = None) -> Json:  # noqa: A002
        caller = self._check("environment")
        if caller["kind"] == "project" and (projectId is None or not self._server.project_token_lists_instances):
            raise NotAuthorized
        project = self._project(projectId) if projectId else self._of_environment(id)
        environment = self._environment(project, id)
        return {
            **environment,
            "serviceInstances": lambda _info, **arguments: self.page(self._instances(environment), arguments),
        }

    def _of_environment(self, environment_id: str) -> Json:
        for project in self._world.projects.values():
            if any(item["id"] == environment_id for item in project["environments"]):
                return project
        raise Exception("Environment not found")

    def _state(self, environment_id: str, service_id: str) -> Json:
        states = self._world.deployments[environment_id, service_id]
        return states.pop(0) if len(states) > 1 else states[0]

    def _instances(self, environment: Json) -> list[Json]:
        found = []
        for place, service_id in list(self._world.deployments):
            if place != environment["id"]:
                continue
            state = self._state(place, service_id)
            name = next(
                service["name"]
                for project in self._world.projects.values()
                for service in project["services"]
                if service["id"] == service_id
            )
            found.append(
                {
                    "id": new_id(),
                    "serviceId": service_id,
                    "serviceName": name,
                    "environmentId": place,
                    "latestDeployment": state["latest"],
                    "activeDeployments": state["active"],
                }
            )
        return found

    def environments(self, _info: t.Any, **arguments: t.Any) -> Json:
        self._check("environments")
        return self.page(self._project(arguments["projectId"])["environments"], arguments)

    def service(self, _info: t.Any, id: str) -> Json:  # noqa: A002
        self._check("service")
        return {"id": id, "name": "?"}

    def serviceInstance(self, _info: t.Any, environmentId: str, serviceId: str) -> Json:
        self._check("serviceInstance")
        state = self._state(environmentId, serviceId)
        return {"id": "i", "serviceId": serviceId, "latestDeployment": state["latest"]}

    def deployments(self, _info: t.Any, input: Json, **arguments: t.Any) -> Json:  # noqa: A002
        caller = self._check("deployments")
        if caller["kind"] == "project" and not self._server.project_token_lists_deployments:
            raise NotAuthorized
        project = self._project(input.get("projectId"))
        environment = self._environment(project, input.get("environmentId"))
        if (environment["id"], input.get("serviceId")) not in self._world.deployments:
            return self.page([], arguments)
        state = self._state(environment["id"], str(input.get("serviceId")))
        older = [item for item in state["active"] if item is not state["latest"]]
        return self.page([*([state["latest"]] if state["latest"] else []), *older], arguments)

    def variables(self, _info: t.Any, **arguments: t.Any) -> Json:
        self._check("variables")
        project = self._project(arguments["projectId"])
        environment = self._environment(project, arguments["environmentId"])
        return self._world.variables.get((environment["id"], arguments.get("serviceId")), {})

    def variablesForServiceDeployment(self, _info: t.Any, **arguments: t.Any) -> Json:
        return self.variables(_info, **arguments)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: RailwayServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: t.Any) -> None:  # noqa: A002
        self.server.log.append(format % args)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = json.loads(raw)
        name = request.get("operationName")
        self.server.seen.append({"operation": name, "variables": request.get("variables"), "path": self.path})
        canned = self.server.take(name)
        if canned is not None:
            self._answer(*canned)
            return
        content = json.dumps(self.server.execute(request, self.headers)).encode("utf-8")
        self._answer(200, {"Content-Type": "application/json"}, content)

    def _answer(self, status: int, headers: t.Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class RailwayServer(http.server.ThreadingHTTPServer):
    """The stand-in. ``seen``: the requests without their tokens; ``can``: answers to give instead of real ones."""

    daemon_threads = True

    def __init__(self, world: World) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.world = world
        self.seen: list[Json] = []
        self.log: list[str] = []
        self.max_page = 500
        self.project_token_lists_instances = True
        self.project_token_lists_deployments = True
        self._canned: list[tuple[str | None, int, dict[str, str], bytes]] = []
        self._refusals: dict[str, Json] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/graphql/v2"

    @property
    def operations(self) -> list[str]:
        return [str(item["operation"]) for item in self.seen]

    def can(self, status: int, body: t.Any = b"", *, operation: str | None = None, **headers: str) -> None:
        """Answer the next request (or the next of an operation) with this. Keys of headers: ``_`` for ``-``."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8")
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        self._canned.append((operation, status, named, content))

    def refuse(self, operation: str, message: str, *, keep_data: bool = False, **extensions: str) -> None:
        """Answer an operation with this error, each time; with ``keep_data``, beside its data."""
        self._refusals[operation] = {"message": message, "keep": keep_data, "extensions": extensions}

    def take(self, operation: str | None) -> tuple[int, dict[str, str], bytes] | None:
        for position, (wanted, status, headers, body) in enumerate(self._canned):
            if wanted in (None, operation):
                del self._canned[position]
                return status, headers, body
        return None

    def _caller(self, headers: Headers) -> Json | None:
        bearer = (headers.get("Authorization") or "").removeprefix("Bearer ")
        project = headers.get("Project-Access-Token")
        # A token in the other's header is none.
        found = self.world.tokens.get(project or bearer or "")
        return found if found is not None and (found["kind"] == "project") is (project is not None) else None

    def execute(self, request: Json, headers: Headers) -> Json:
        refusal = self._refusals.get(str(request.get("operationName")))
        if refusal and not refusal["keep"]:
            return {"errors": [self._error(refusal["message"], refusal["extensions"])], "data": None}
        result = graphql.graphql_sync(
            SCHEMA,
            request["query"],
            root_value=_Resolvers(self, self._caller(headers)),
            variable_values=request.get("variables"),
            operation_name=request.get("operationName"),
        )
        if result.errors:
            # Railway says no more of a query that its schema does not know.
            known = all(error.original_error is not None for error in result.errors)
            messages = [error.message if known else "Problem processing request" for error in result.errors]
            return {"errors": [self._error(message, {}) for message in messages], "data": None}
        answer: Json = {"data": copy.deepcopy(result.data)}
        if refusal:
            answer["errors"] = [self._error(refusal["message"], refusal["extensions"])]
        return answer

    @staticmethod
    def _error(message: str, extensions: Json) -> Json:
        return {
            "message": message,
            "locations": [{"line": 1, "column": 1}],
            "path": [],
            "extensions": {"code": "INTERNAL_SERVER_ERROR", **extensions},
            "traceId": "7300112233445566778",
        }

    def handle_error(self, *_args: t.Any) -> None:
        pass  # a client that goes away


@contextlib.contextmanager
def railway_server(world: World) -> t.Iterator[RailwayServer]:
    """The stand-in, serving."""
    server = RailwayServer(world)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def malformed_urls() -> list[str]:
    """URLs that no client of Redis or MongoDB can use, each with :data:`MALFORMED_SECRET` in it."""
    forms = [
        "{scheme}://default:{secret}@:",
        "{scheme}://default:{secret}@",
        "{scheme}://default:{secret}@:6379",
        "{scheme}://default:{secret}@host:",
        "{scheme}://default:{secret}@host:0",
        "{scheme}://default:{secret}@host:port",
        "{scheme}://default:{secret}@host:63x9",
        "{scheme}://default:{secret}@[::1",
        "{scheme}://default:{secret}@::1]:6379",
        "{scheme}://default:{secret}@host:1:2",
        "{scheme}://default:{secret}@a:1,:2",
        "{scheme}://default:{secret}",
        "{scheme}://default:{secret}/x@host:6379",
        "{scheme}://default:{secret}?x@host:6379",
        "{scheme}://default:{secret}#x@host:6379",
        "{scheme}://:{secret}",
        "{scheme}:/default:{secret}@host:6379",
        "{scheme}//default:{secret}@host:6379",
        "{scheme}:default:{secret}@host:6379",
        "://default:{secret}@host:6379",
        "default:{secret}@host:6379",
        "{secret}",
        "ftp://default:{secret}@host:6379",
        "{scheme}s{scheme}://default:{secret}@host:6379",
        "{scheme}://default:{secret}@${{{{RAILWAY_TCP_PROXY_DOMAIN}}}}:${{{{RAILWAY_TCP_PROXY_PORT}}}}",
        "{scheme}://default:{secret}${{{{shared.X}}}}@host:6379",
        "<{scheme}://default:{secret}@host:6379>",
    ]
    return [form.format(scheme=scheme, secret=MALFORMED_SECRET) for form in forms for scheme in ("redis", "mongodb")]
