# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What Railway says of services: which variables are set and can be used from here, and what is deployed and runs.

A value is in a result only where it was asked for; else there is its state, the class of its host, and a fingerprint
made with a key of the user's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import queue
import re
import socket
import threading
import time
import typing as t
import urllib.parse

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact, register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, SurefootError, VerificationFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._railway import (
    Client,
    Data,
    Named,
    RailwayError,
    Scope,
    pages_of_instances,
    resolve_scope,
)

PHASE = "preflight"
KINDS = ("redis", "mongodb", "other")
ENDPOINTS = ("auto", "private", "public")
# The names that Railway's templates give, and the one that the runbook expects, which exists only where somebody made
# it. The public ones exist only while the service has a TCP proxy.
DEFAULT_CANDIDATES: t.Mapping[str, tuple[str, ...]] = {
    "redis": ("REDIS_PUBLIC_URL", "REDIS_URL"),
    "mongodb": ("MONGO_PUBLIC_URL", "MONGO_URL", "MONGODB_URL"),
    "other": (),
}
_SCHEMES: t.Mapping[str, tuple[str, ...]] = {"redis": ("redis", "rediss"), "mongodb": ("mongodb", "mongodb+srv")}
_PRIVATE, _PROXY, _OTHER = "railway_private", "railway_proxy", "other"
_PRIVATE_DOMAIN, _PROXY_DOMAIN = "railway.internal", "proxy.rlwy.net"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)")
_REFERENCE = re.compile(r"\$\{\{")
_LOOK_UP_SECONDS = 3.0
_MIN_KEY = 16
IN_PROGRESS = ("BUILDING", "DEPLOYING", "INITIALIZING", "QUEUED", "WAITING")
_DEPLOYMENTS = 10  # how many of a service are looked at where its active ones cannot be asked for

_NOT_TRIED = "leads into Railway's private network; not tried, since another can be used"

Resolver = t.Callable[[str], bool]


# ---------------------------------------------------------------------------------------------------------------------
# Variables


@dataclasses.dataclass(frozen=True)
class Variable:
    """One variable. ``state``: value | sealed | empty | unresolved | missing; ``problem`` says the last two in words.
    ``host_class`` is that of a URL: railway_private | railway_proxy | other."""

    name: str
    state: str
    value: str = dataclasses.field(default="", repr=False)
    host_class: str | None = None
    scheme: str | None = None
    hosts: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    problem: str | None = None


def read_variable(name: str, value: t.Any) -> Variable:
    """What a variable of the map is. No message quotes a part of the value."""
    if value is None:
        return Variable(name, "sealed", problem="is sealed: Railway never hands its value out")
    text = value if isinstance(value, str) else str(value)
    if not text.strip():
        return Variable(name, "empty", problem="is empty")
    if _REFERENCE.search(text):
        return Variable(name, "unresolved", text, problem="holds a reference, ${{...}}, that Railway did not resolve")
    match = _URL.match(text.strip())
    if match is None:
        return Variable(name, "value", text)
    scheme, authority = match.group(1).lower(), match.group(2).rpartition("@")[2]
    hosts = []
    for part in authority.split(","):
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:[0-9]*)?", part)
        if found is None:
            return Variable(name, "value", text, _OTHER, scheme, problem="is a URL that cannot be parsed")
        if not found.group(1) or found.group(2) in (":", ":0"):
            # The template of a public URL, when domain and port of a TCP proxy are not there.
            problem = "has no host or no port: the service has no TCP proxy (Public Access is off)"
            return Variable(name, "unresolved", text, None, scheme, problem=problem)
        hosts.append(found.group(1).lower().rstrip("."))
    return Variable(name, "value", text, _host_class(hosts), scheme, tuple(hosts))


def _host_class(hosts: t.Sequence[str]) -> str:
    # By the parsed host, never by a search in the URL: a password may hold any text.
    if any(host == _PRIVATE_DOMAIN or host.endswith(f".{_PRIVATE_DOMAIN}") for host in hosts):
        return _PRIVATE
    proxied = all(host == _PROXY_DOMAIN or host.endswith(f".{_PROXY_DOMAIN}") for host in hosts)
    return _PROXY if proxied else _OTHER


def read_variables(client: Client, scope: Scope, service: Named | None) -> dict[str, Variable]:
    """All variables of a service as its deployment gets them; without a service, the shared ones of the environment.

    :raises RailwayError: see :meth:`Client.ask`
    """
    where = {"projectId": scope.project.id, "environmentId": scope.environment.id}
    if service is None:
        found = client.ask("surefootSharedVariables", where)["variables"]
    else:
        answer = client.ask("surefootVariables", {**where, "serviceId": service.id})
        found = answer["variablesForServiceDeployment"]
    if not isinstance(found, dict):
        raise RailwayError(
            "Railway's answer has not the shape of its schema: the variables are no map",
            kind="malformed",
            remedy="Run again; if it stays, the API has changed.",
        )
    variables = {str(name): read_variable(str(name), value) for name, value in found.items()}
    for variable in variables.values():
        register_value(variable)
    return variables


def secrets_in(variable: Variable) -> list[str]:
    """The value where it may be a secret, and the password of a URL. Not every value: ``production`` or ``railway``
    would blank out ordinary text."""
    found = []
    match = _URL.match(variable.value.strip())
    userinfo = match.group(2).rpartition("@")[0] if match else ""
    if userinfo:
        password = userinfo.partition(":")[2]
        found += [variable.value.strip(), password, urllib.parse.unquote(password)]
    elif re.search(r"(?i)pass|secret|token|key|credential|private_?key|auth", variable.name) and not match:
        found.append(variable.value)
    return [item for item in dict.fromkeys(found) if len(item) >= 6]


def register_value(variable: Variable) -> None:
    """Mask what is secret of it in messages, evidence and whatever else goes through ``redact``."""
    for secret in secrets_in(variable):
        register_secret(secret)


def fingerprint(value: str, key: str) -> str:
    """Tells whether two values are the same to whoever has the key, and nothing to others."""
    return "hmac-sha256:" + hmac.new(key.encode("utf-8"), value.encode("utf-8"), hashlib.sha256).hexdigest()


def is_known_here(host: str) -> bool:
    """Whether the name has an address on this machine, which those of Railway's private network have only inside it.
    The resolver cannot be interrupted: it is left behind."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            answers.put(bool(socket.getaddrinfo(host, None)))
        except (OSError, UnicodeError):
            answers.put(False)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        return answers.get(timeout=_LOOK_UP_SECONDS)
    except queue.Empty:
        return False


@dataclasses.dataclass(frozen=True)
class Choice:
    """The candidates in their order, each with why it cannot be used (None where it can), and the first that can. After
    it, one of the private network is not tried: its name would have to be looked up."""

    candidates: tuple[tuple[Variable, str | None], ...]

    @property
    def selected(self) -> Variable | None:
        return next((variable for variable, problem in self.candidates if problem is None), None)

    @property
    def words(self) -> str:
        return "; ".join(f"{variable.name} {problem}" for variable, problem in self.candidates if problem)

    def shown(self, key: str | None) -> list[Data]:
        """Each candidate, whether it is usable (None: not tried), and why not."""
        return [
            {
                **_shown(variable, key),
                "usable": None if problem == _NOT_TRIED else problem is None,
                "reason": problem,
            }
            for variable, problem in self.candidates
        ]

    @property
    def remedy(self) -> str:
        states = {variable.state for variable, _problem in self.candidates}
        if any(variable.host_class == _PRIVATE for variable, _problem in self.candidates):
            return (
                "Turn on Public Access of the service, which makes the public URL (and bills its traffic), or run"
                " inside Railway's network, or say endpoint: private where the value is only handed on."
            )
        if "sealed" in states:
            return "Unseal it by setting it anew, or give the value from another place."
        return "Set one of them in Railway, or name the variable that holds the URL."


def choose(
    variables: t.Mapping[str, Variable],
    candidates: t.Sequence[str],
    *,
    kind: str = "other",
    endpoint: str = "auto",
    known_here: Resolver | None = None,
) -> Choice:
    """The first candidate that is usable from here wins; what the others are is said too."""
    known_here = known_here or is_known_here
    judged: list[tuple[Variable, str | None]] = []
    chosen = False
    for name in candidates:
        variable = variables.get(name) or Variable(name, "missing", problem="is not set")
        problem = variable.problem or _mismatch(variable, kind, endpoint)
        if problem is None and endpoint == "auto" and variable.host_class == _PRIVATE:
            private = [host for host in variable.hosts if host.endswith(_PRIVATE_DOMAIN)]
            if chosen:
                problem = _NOT_TRIED
            elif not all(known_here(host) for host in private):
                problem = "leads into Railway's private network, which cannot be reached from here"
        chosen = chosen or problem is None
        judged.append((variable, problem))
    return Choice(tuple(judged))


def _mismatch(variable: Variable, kind: str, endpoint: str) -> str | None:
    schemes = _SCHEMES.get(kind)
    if schemes and variable.scheme not in schemes:
        return f"is no {schemes[0]}:// URL"
    if endpoint == "public" and variable.host_class == _PRIVATE:
        return "leads into Railway's private network, and the endpoint asked for is public"
    if endpoint == "private" and variable.host_class in (_PROXY, _OTHER):
        return "is no address of Railway's private network, and the endpoint asked for is private"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Deployments


@dataclasses.dataclass(frozen=True)
class Deployment:
    """One deployment and the states of its replicas."""

    id: str
    status: str
    stopped: bool
    instances: tuple[str, ...]
    created: str

    @classmethod
    def read(cls, node: t.Any) -> Deployment | None:
        """From the API's object; None for null.

        :raises RailwayError: not of the schema's shape
        """
        if node is None:
            return None
        try:
            return cls(
                str(node["id"]),
                str(node["status"]),
                bool(node["deploymentStopped"]),
                tuple(str(item["status"]) for item in node["instances"]),
                str(node.get("createdAt") or ""),
            )
        except (KeyError, TypeError):
            raise RailwayError(
                "Railway's answer has not the shape of its schema: a deployment is incomplete",
                kind="malformed",
                remedy="Run again; if it stays, the API has changed.",
            ) from None

    @property
    def runs(self) -> bool:
        return "RUNNING" in self.instances


@dataclasses.dataclass(frozen=True)
class ServiceState:
    """What a service is. ``state``: running | degraded | sleeping | deploying | stopped | not_running | unconfirmed |
    not_deployed | not_found | unknown, or the status of the latest deployment in lower case (failed, crashed,
    needs_approval, removed, skipped). ``passed`` is None where it could not be measured."""

    state: str
    passed: bool | None
    words: str
    latest: Deployment | None = None
    active: tuple[Deployment, ...] = ()

    @property
    def serving(self) -> bool:
        return self.state in ("running", "degraded")

    @property
    def in_progress(self) -> bool:
        return self.latest is not None and self.latest.status in IN_PROGRESS

    @property
    def instances(self) -> dict[str, int]:
        """Number of replicas of the active deployments by state."""
        counts: dict[str, int] = {}
        for deployment in self.active:
            for status in deployment.instances:
                counts[status] = counts.get(status, 0) + 1
        return counts


def judge(latest: Deployment | None, active: t.Sequence[Deployment], *, allow_sleeping: bool = False) -> ServiceState:
    """Deployed and running? Never assumed: without a replica that is seen to run, the answer is not yes."""
    active = tuple(active)
    alive = [item for item in active if not item.stopped]
    successful = [item for item in alive if item.status == "SUCCESS"]

    def state(name: str, passed: bool | None, words: str) -> ServiceState:
        return ServiceState(name, passed, words, latest, active)

    if any(item.runs for item in successful):
        words = "is deployed and runs"
        if latest is not None and latest.status not in ("SUCCESS", *IN_PROGRESS):
            words += f"; its latest deployment is {latest.status}"
        return state("running", True, words)
    if any(item.status == "CRASHED" and item.runs for item in alive):
        return state("degraded", False, "runs with some of its replicas crashed")
    if latest is not None and latest.status in IN_PROGRESS:
        return state("deploying", False, f"is being deployed: {latest.status}")
    if any(item.status == "SLEEPING" for item in alive):
        return state("sleeping", allow_sleeping, "sleeps, and would not answer until it is woken")
    if successful and not any(item.instances for item in successful):
        return state("unconfirmed", None, "is deployed, and Railway names no replica of it, so none is seen to run")
    if successful:
        return state("not_running", False, "is deployed, and none of its replicas runs")
    if latest is None:
        return state("not_deployed", False, "was never deployed in this environment")
    if latest.stopped and latest.status == "SUCCESS":
        return state("stopped", False, "is stopped")
    if latest.status == "SUCCESS":
        return state("not_running", False, "has no active deployment")
    return state(latest.status.lower(), False, f"does not run: its latest deployment is {latest.status}")


class Deployments:
    """Asks what is deployed, by the way that the token may go."""

    def __init__(self, client: Client, scope: Scope, *, allow_sleeping: bool = False) -> None:
        self._client, self._scope, self._allow_sleeping = client, scope, allow_sleeping
        self.way = "service instances of the environment"
        self._listed = True

    def measure(self, services: t.Sequence[Named]) -> dict[str, ServiceState]:
        """The state of each service, by id.

        :raises RailwayError: see :meth:`Client.ask`; not being authorized is a state
        """
        if self._listed:
            try:
                return self._from_instances(services)
            except RailwayError as exc:
                if exc.kind != "not_authorized":
                    raise
            # A project token may be refused this; the deployments of one service it may be able to ask for.
            self._listed, self.way = False, "deployments of each service"
        return {service.id: self._from_deployments(service) for service in services}

    def _from_instances(self, services: t.Sequence[Named]) -> dict[str, ServiceState]:
        nodes = {str(node.get("serviceId")): node for node in pages_of_instances(self._client, self._scope)}
        found = {}
        for service in services:
            node = nodes.get(service.id)
            if node is None:
                found[service.id] = ServiceState("not_deployed", False, "has no instance in this environment")
                continue
            latest = Deployment.read(node.get("latestDeployment"))
            if not isinstance(node.get("activeDeployments"), list):
                raise RailwayError(
                    "Railway's answer has not the shape of its schema: activeDeployments is missing",
                    kind="malformed",
                    remedy="Run again; if it stays, the API has changed.",
                )
            active = [item for item in map(Deployment.read, node["activeDeployments"]) if item]
            found[service.id] = judge(latest, active, allow_sleeping=self._allow_sleeping)
        return found

    def _from_deployments(self, service: Named) -> ServiceState:
        where = {"projectId": self._scope.project.id, "environmentId": self._scope.environment.id}
        variables = {"input": {**where, "serviceId": service.id}, "first": _DEPLOYMENTS}
        try:
            connection = self._client.ask("surefootDeployments", variables)["deployments"]
        except RailwayError as exc:
            if exc.kind != "not_authorized":
                raise
            return ServiceState("unknown", None, f"cannot be confirmed: {exc.message}")
        edges = connection.get("edges") if isinstance(connection, dict) else None
        read = [Deployment.read((edge or {}).get("node")) for edge in edges or ()]
        deployments = sorted((item for item in read if item), key=lambda item: item.created, reverse=True)
        gone = ("REMOVED", "REMOVING", "SKIPPED")
        active = [item for item in deployments if item.status not in gone]
        return judge(deployments[0] if deployments else None, active, allow_sleeping=self._allow_sleeping)


# ---------------------------------------------------------------------------------------------------------------------
# What the modules and the lookup do


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A service as the user names it."""

    name: str
    kind: str
    candidates: tuple[str, ...]


def read_services(given: t.Sequence[t.Mapping[str, t.Any]]) -> list[Wanted]:
    """The option ``services``.

    :raises PlanError: a service twice, or an empty name
    """
    wanted: list[Wanted] = []
    for number, entry in enumerate(given):
        name, kind = str(entry.get("name") or "").strip(), str(entry.get("kind") or "other")
        if not name:
            raise PlanError(f"services[{number}] has no name", remedy="Give the service's name or id.")
        if any(other.name == name for other in wanted):
            raise PlanError(f"services names {name} twice", remedy="Give it once, with all its variables.")
        named = entry.get("variables")
        wanted.append(Wanted(name, kind, tuple(DEFAULT_CANDIDATES[kind] if named is None else map(str, named))))
    return wanted


class Inquiry:
    """One task's question about services: the records of what was measured, and the failure that follows."""

    def __init__(self, params: t.Mapping[str, t.Any], what: str) -> None:
        self.params = params
        self.what = what  # the last word of the criteria
        self.wanted = read_services(params.get("services") or ())
        self._evidence: list[Evidence] = []
        self._failed: list[tuple[str, str, str]] = []
        present = {item.kind for item in self.wanted}
        for kind in params.get("kinds") or ():
            if kind not in present:
                self._add(kind, "not_applicable", "not configured", None, "the services that were named", kind)

    def _add(self, kind: str, result: str, measured: t.Any, required: t.Any, source: str, subject: str) -> None:
        self._evidence.append(
            Evidence(
                f"railway.{kind}.{self.what}",
                PHASE,
                result,
                measured,
                required,
                source,
                details={"subject": subject},
            )
        )

    def note(
        self, wanted: Wanted, passed: bool | None, measured: Data, required: str, source: str, why: str, remedy: str
    ) -> None:
        """What was measured of a service; what did not pass fails the task later."""
        self._add(wanted.kind, verdict(passed), measured, required, source, wanted.name)
        if passed is not True:
            self._failed.append((f"{wanted.name} {why}", remedy, f"railway.{wanted.kind}.{self.what}"))

    def finish(self, results: Data) -> Data:
        """The task's result, with the evidence.

        :raises VerificationFailed: something did not pass and ``fail_on_error`` is set
        """
        plain = dict(results)
        plain["evidence"] = record(self.params.get("run_dir"), self._evidence)
        plain["failed_criteria"] = list(dict.fromkeys(criterion for _text, _remedy, criterion in self._failed))
        if self._failed and self.params.get("fail_on_error", True):
            failure = VerificationFailed(
                redact("; ".join(text for text, _remedy, _criterion in self._failed)), remedy=self._failed[0][1]
            )
            failure.results.update(plain)
            raise failure
        return plain

    def broken(self, error: SurefootError) -> SurefootError:
        """The error, with evidence that nothing was measured."""
        for wanted in self.wanted:
            self._add(wanted.kind, "not_measured", redact(error.message), None, "Railway's API", wanted.name)
        error.results["evidence"] = record(self.params.get("run_dir"), self._evidence)
        return error


def _not_found(scope: Scope) -> tuple[str, str]:
    names = ", ".join(sorted(item.name for item in scope.services)) or "none"
    return f"is no service of the project {scope.project.name}", f"It has: {names}."


def variables_info(params: t.Mapping[str, t.Any], client: t.Callable[[], Client]) -> Data:
    """What ``railway_variables_info`` returns. ``client`` is only called when there is something to ask.

    :raises PlanError, RailwayError: the question cannot be asked or answered
    :raises VerificationFailed: a service has no variable that can be used
    """
    inquiry = Inquiry(params, "variable")
    key = params.get("fingerprint_key")
    if key is not None and len(str(key)) < _MIN_KEY:
        raise PlanError(
            f"fingerprint_key has fewer than {_MIN_KEY} characters", remedy="Give a long random text, and keep it."
        )
    results: Data = {"project": None, "environment": None, "services": [], "shared": None, "requests": 0}
    values: dict[str, dict[str, str]] = {}
    if inquiry.wanted or params.get("shared"):
        try:
            asking = client()
            scope = resolve_scope(asking, params)
            for wanted in inquiry.wanted:
                entry, service = _variables_of(asking, scope, wanted, params, inquiry, values)
                results["services"].append(entry)
            if params.get("shared"):
                shared = read_variables(asking, scope, None)
                results["shared"] = [_shown(item, key) for _name, item in sorted(shared.items())]
            results.update(
                project=scope.project.to_dict(), environment=scope.environment.to_dict(), requests=asking.requests
            )
        except SurefootError as exc:
            raise inquiry.broken(exc) from None
    results = inquiry.finish(results)
    if params.get("values"):
        results["variable_values"] = values
    return results


def _variables_of(
    client: Client,
    scope: Scope,
    wanted: Wanted,
    params: t.Mapping[str, t.Any],
    inquiry: Inquiry,
    values: dict[str, dict[str, str]],
) -> tuple[Data, Named | None]:
    endpoint = params.get("endpoint") or "auto"
    required = f"one of {', '.join(wanted.candidates)} has a value that can be used (endpoint {endpoint})"
    source = f"Railway's API, {scope.label}"
    service = scope.service(wanted.name)
    entry: Data = {"name": wanted.name, "id": service.id if service else None, "kind": wanted.kind}
    if service is None:
        why, remedy = _not_found(scope)
        if wanted.candidates:
            inquiry.note(wanted, False, {"service": "not found"}, required, source, why, remedy)
        entry.update(found=False, variables=[], candidates=[], selected=None, host_class=None)
        return entry, None
    key = params.get("fingerprint_key")
    variables = read_variables(client, scope, service)
    choice = choose(variables, wanted.candidates, kind=wanted.kind, endpoint=endpoint)
    selected = choice.selected
    entry.update(
        found=True,
        variables=[_shown(item, key) for _name, item in sorted(variables.items())],
        candidates=choice.shown(key),
        selected=selected.name if selected else None,
        host_class=selected.host_class if selected else None,
    )
    values[wanted.name] = {item.name: item.value for item, _problem in choice.candidates if item.state == "value"}
    if wanted.candidates:
        sealed = any(item.state == "sealed" for item, _problem in choice.candidates)
        measured = {
            item.name: problem or f"can be used ({item.host_class or 'no URL'})" for item, problem in choice.candidates
        }
        inquiry.note(
            wanted,
            True if selected else None if sealed else False,
            {"selected": entry["selected"], **measured},
            required,
            source,
            f"has no variable that can be used: {choice.words}",
            choice.remedy,
        )
    return entry, service


def _shown(variable: Variable, key: str | None) -> Data:
    """Everything of a variable but its value."""
    with_value = variable.state == "value"
    return {
        "name": variable.name,
        "state": variable.state,
        "host_class": variable.host_class,
        "fingerprint": fingerprint(variable.value, str(key)) if key is not None and with_value else None,
    }


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long to wait for a deployment in progress, and how often to look, in seconds."""

    wait: float = 0.0
    interval: float = 5.0


def service_info(params: t.Mapping[str, t.Any], client: t.Callable[[], Client], patience: Patience) -> Data:
    """What ``railway_service_info`` returns. ``client`` is only called when there is something to ask.

    :raises PlanError, RailwayError: the question cannot be asked or answered
    :raises VerificationFailed: a service is not deployed or does not run
    """
    inquiry = Inquiry(params, "deployed")
    results: Data = {"project": None, "environment": None, "services": [], "waited": 0.0, "requests": 0}
    if inquiry.wanted:
        try:
            asking = client()
            scope = resolve_scope(asking, params)
            found = {wanted.name: scope.service(wanted.name) for wanted in inquiry.wanted}
            deployments = Deployments(asking, scope, allow_sleeping=bool(params.get("allow_sleeping")))
            states, waited = _measured(asking, deployments, [item for item in found.values() if item], patience)
        except SurefootError as exc:
            raise inquiry.broken(exc) from None
        for wanted in inquiry.wanted:
            service = found[wanted.name]
            state = states[service.id] if service else ServiceState("not_found", False, _not_found(scope)[0])
            results["services"].append(_noted(wanted, service, state, scope, deployments.way, inquiry))
        results.update(
            project=scope.project.to_dict(),
            environment=scope.environment.to_dict(),
            waited=round(waited, 1),
            requests=asking.requests,
        )
    return inquiry.finish(results)


def _measured(
    client: Client, deployments: Deployments, services: t.Sequence[Named], patience: Patience
) -> tuple[dict[str, ServiceState], float]:
    """The states once no deployment is in progress or patience is over, and the seconds that took."""
    started = time.monotonic()
    while True:
        states = deployments.measure(services) if services else {}
        waited = time.monotonic() - started
        if not any(state.in_progress for state in states.values()) or waited >= patience.wait:
            return states, waited if patience.wait else 0.0
        client.sleep(min(patience.interval, patience.wait - waited))


def _noted(
    wanted: Wanted, service: Named | None, state: ServiceState, scope: Scope, way: str, inquiry: Inquiry
) -> Data:
    latest = state.latest
    entry: Data = {
        "name": wanted.name,
        "id": service.id if service else None,
        "kind": wanted.kind,
        "state": state.state,
        "serving": state.serving,
        "healthy": state.passed,
        "latest_status": latest.status if latest else None,
        "deployment_id": latest.id if latest else None,
        "instances": state.instances,
        "reason": state.words,
    }
    measured = {name: entry[name] for name in ("state", "serving", "latest_status", "instances")}
    inquiry.note(
        wanted,
        state.passed,
        measured,
        "an active deployment with status SUCCESS, not stopped, and a replica RUNNING",
        f"Railway's API, {scope.label}, {way}",
        state.words,
        _remedy(state, scope),
    )
    return entry


def _remedy(state: ServiceState, scope: Scope) -> str:
    if state.state == "not_found":
        return _not_found(scope)[1]
    if state.state == "unknown":
        return "Use a token that may: an account or workspace token. A deployment is never assumed."
    if state.state == "deploying":
        return "Wait for it, here with wait: 5m, or look at its log in Railway."
    if state.state == "sleeping":
        return "Turn App Sleeping off, or accept it with allow_sleeping: true."
    return "Look at the service's deployments in Railway."


def variable_value(
    client: Client,
    scope: Scope,
    variables: t.Mapping[str, Variable],
    service: str,
    candidates: t.Sequence[str],
    *,
    kind: str,
    endpoint: str,
) -> str:
    """The value of the first candidate that can be used, for the lookup.

    :raises VerificationFailed: none can be
    """
    choice = choose(variables, candidates, kind=kind, endpoint=endpoint)
    if choice.selected is None:
        raise VerificationFailed(
            f"{service} in {scope.label} has no variable that can be used: {choice.words}", remedy=choice.remedy
        )
    return choice.selected.value
