# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Messages of a run to webhooks, and its completion to the service that signs off.

An address is a secret here: the path of most webhooks is their password. Only the host is ever named, and nothing that
the other side answers but its status is repeated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http
import http.client
import json
import os
import random
import re
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._chain import read_chain, seal
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    EnvironmentProblem,
    PlanError,
    SurefootError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record
from ansible_collections.surefoot.dbops.plugins.module_utils._post import Address, Delivery, exchange, placeholder

KINDS = ("slack", "teams", "json")
SENT = "notify.sent"
POSTED = "sign_off.posted"
MESSAGES = "messages"

_LONGEST_DELAY = 10.0
# What each service takes, in characters: Slack cuts a text at 40000, Teams refuses messages above 28 kB.
_LIMITS = {"slack": 39_000, "teams": 20_000}
_CUT = "\n\n(cut here; the whole message is in the run directory)"


# --- one call --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Answer:
    """The end of a call. ``status`` is None when none was answered; ``problem`` is one clause without secrets."""

    status: int | None
    attempts: int
    problem: str | None = None
    remedy: str | None = None

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


_REMEDIES: t.Mapping[int, str] = {
    400: "Check the kind of the target: the service does not understand the message.",
    401: "Check the token.",
    403: "Check the token and what it may do.",
    404: "Check the address: there is nothing at it.",
    405: "Check the address: it does not take POST.",
    408: "Run again.",
    409: "The service has another request with this idempotency key: look there first.",
    410: "The webhook was removed: make a new one.",
    413: "Send a shorter message.",
    429: "The service asks for fewer calls: run again later.",
}


def post(
    address: Address, payload: t.Mapping[str, t.Any], headers: t.Mapping[str, str], key: str, delivery: Delivery
) -> Answer:
    """POST a JSON object; 5xx and, with ``retry_lost``, lost connections are tried again. Redirects are not followed.

    :param key: the same for every repetition, so that the service can tell one message from two
    """
    body = json.dumps(payload, sort_keys=True).encode("utf-8")
    sent = {
        "Content-Type": "application/json; charset=utf-8",
        "Accept": "*/*",
        "User-Agent": "surefoot.dbops",
        "Idempotency-Key": key,
        **headers,
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    answer = Answer(None, 0, "was not called")
    for attempt in range(1, delivery.attempts + 1):
        if attempt > 1:
            delay = min(delivery.first_delay * 2 ** (attempt - 2), _LONGEST_DELAY)
            time.sleep(delay * random.uniform(0.5, 1.0))
        status, problem, again = _attempt(address, body, sent, delivery)
        if status is None:
            answer = Answer(None, attempt, problem, "Check the address, and the network and proxy between.")
        else:
            answer = Answer(status, attempt, *_judge(status))
            again = status >= 500
        if not again:
            break
    return answer


def _judge(status: int) -> tuple[str | None, str | None]:
    if 200 <= status < 300:
        return None, None
    try:
        phrase = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    if 300 <= status < 400:
        return f"answered {phrase}, and redirects are not followed", "Give the address it leads to, if you trust it."
    default = "Run again when the service works." if status >= 500 else "Check the address and the message."
    return f"answered {phrase}", _REMEDIES.get(status, default)


def _attempt(
    address: Address, body: bytes, headers: t.Mapping[str, str], delivery: Delivery
) -> tuple[int | None, str | None, bool]:
    """(status, problem, whether to try again when there is no status)."""
    reply = exchange(address, body, headers, delivery)
    return reply.status, reply.problem, reply.again


def check_headers(headers: t.Mapping[str, t.Any], *, what: str) -> dict[str, str]:
    """The headers as text; their values are secrets from here on.

    :raises PlanError: a name or a value that HTTP does not allow, or a placeholder
    """
    checked = {}
    for name, value in headers.items():
        register_secret(value)
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", str(name)):
            raise PlanError(f"{what} has a header whose name HTTP does not allow", remedy="Use letters, digits and -.")
        text = str(value)
        if placeholder(text):
            raise PlanError(f"the header {name} of {what} holds {placeholder(text)}", remedy="Give the value itself.")
        if not re.fullmatch(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?", text):
            raise PlanError(
                f"the header {name} of {what} is empty, or holds a line break or a letter outside ASCII",
                remedy="Check where the value comes from.",
            )
        checked[str(name)] = text
    return checked


# --- messages --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """One webhook. ``name`` tells it from the others in evidence and messages."""

    name: str
    kind: str
    address: Address
    headers: t.Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


@dataclasses.dataclass(frozen=True)
class Message:
    """One message in Markdown; ``name`` is its file's name without the ending."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


def read_targets(entries: t.Sequence[t.Mapping[str, t.Any]], *, allow_http: bool) -> list[Target]:
    """:raises PlanError: a target that cannot be, or two of the same name"""
    targets: list[Target] = []
    for number, entry in enumerate(entries, start=1):
        what = f"targets[{number}]"
        address = Address.parse(str(entry.get("url") or ""), what=f"{what}.url", allow_http=allow_http)
        headers = check_headers(entry.get("headers") or {}, what=what)
        name = str(entry.get("name") or address.host)
        if any(other.name == name for other in targets):
            raise PlanError(f"two targets are called {name}", remedy="Give each a name of its own (name).")
        targets.append(Target(name, str(entry.get("kind") or "slack"), address, headers))
    if not targets:
        raise PlanError("there is no target to send to", remedy="Give targets, or leave the task out.")
    return targets


def read_messages(names: t.Sequence[str], run_dir: str | None) -> list[Message]:
    """The messages of these files; a name without a directory is looked up in ``messages/`` of the run directory.

    :raises EnvironmentProblem: a file is missing, unreadable or empty
    """
    messages = []
    for given in names:
        inside = run_dir and not os.path.dirname(given)
        path = os.path.join(run_dir, MESSAGES, given) if inside and run_dir else os.path.expanduser(given)
        try:
            with open(path, encoding="utf-8") as stream:
                text = stream.read().strip()
        except (OSError, UnicodeDecodeError) as exc:
            reason = getattr(exc, "strerror", None) or "it is not UTF-8"
            raise EnvironmentProblem(f"cannot read the message {path}: {reason}", remedy="Write it first.") from None
        if not text:
            raise EnvironmentProblem(f"the message {path} is empty", remedy="Write it first.")
        messages.append(Message(os.path.splitext(os.path.basename(path))[0], text))
    return messages


def render(message: Message, kind: str, run_id: str) -> dict[str, t.Any]:
    """What the service takes."""
    if kind == "json":
        return {
            "run_id": run_id,
            "message": message.name,
            "format": "markdown",
            "text": message.text,
            "sha256": message.sha256,
        }
    text = message.text
    if len(text) > _LIMITS[kind]:
        text = text[: _LIMITS[kind]] + _CUT
    if kind == "slack":
        return {"text": _slack(text)}
    # Workflows, which replaced the connectors of Teams, take adaptive cards only; their text knows no headings.
    card = {
        "type": "AdaptiveCard",
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "version": "1.4",
        "body": [{"type": "TextBlock", "text": re.sub(r"(?m)^#{1,6} +(.+?) *$", r"**\1**", text), "wrap": True}],
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def _slack(text: str) -> str:
    """Markdown to Slack's own; escaped first, so that a text cannot call a whole channel."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"\*\*(.+?)\*\*", r"*\1*", text)
    text = re.sub(r"(?m)^#{1,6} +\**(.+?)\** *$", r"*\1*", text)
    return re.sub(r"\[([^\]\n]+)\]\((https?://[^)\s|]+)\)", r"<\2|\1>", text)


@dataclasses.dataclass
class Sent:
    """What became of each message at each target."""

    entries: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    evidence: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    changed: bool = False

    def results(self) -> dict[str, t.Any]:
        return {
            "changed": self.changed,
            "sent": self.entries,
            "evidence": self.evidence,
            "notes": list(self.warnings),
        }


def notify(
    targets: t.Sequence[Target],
    messages: t.Sequence[Message],
    delivery: Delivery,
    *,
    run_id: str,
    run_dir: str | None,
    required: bool,
    check_mode: bool = False,
) -> Sent:
    """Send every message to every target that does not have it yet, and record what became of it.

    :raises EnvironmentProblem: with ``required``, when one was not accepted; all others were sent before
    """
    done = _keys(run_dir, SENT)
    sent = Sent()
    first: EnvironmentProblem | None = None
    for message in messages:
        for target in targets:
            what = [run_id, target.name, target.kind, message.sha256]
            key = hashlib.sha256(json.dumps(what).encode("utf-8")).hexdigest()
            entry = {"message": message.name, "target": target.name, "host": target.address.host, "kind": target.kind}
            if key in done or check_mode:
                sent.changed = sent.changed or key not in done
                sent.entries.append(
                    {
                        **entry,
                        "outcome": "sent before" if key in done else "would be sent",
                        "status": None,
                        "attempts": 0,
                    }
                )
                continue
            answer = post(target.address, render(message, target.kind, run_id), target.headers, key, delivery)
            outcome = "sent" if answer.accepted else "failed"
            sent.entries.append({**entry, "outcome": outcome, "status": answer.status, "attempts": answer.attempts})
            sent.changed = sent.changed or answer.accepted
            sent.evidence += record(run_dir, [_sent_evidence(entry, message, answer, key)])
            if not answer.accepted:
                problem = EnvironmentProblem(
                    f"the message {message.name} did not reach {target.name}: {target.address.host} {answer.problem}",
                    remedy=answer.remedy,
                )
                first = first or problem
                sent.warnings.append(str(problem))
    if required and first is not None:
        first.results = {**sent.results(), "notes": []}
        raise first
    return sent


def _sent_evidence(entry: t.Mapping[str, t.Any], message: Message, answer: Answer, key: str) -> Evidence:
    return Evidence(
        criterion=SENT,
        phase="notify",
        verdict="pass" if answer.accepted else "fail",
        measured={**entry, "status": answer.status, "problem": answer.problem},
        required="accepted by the service (2xx)",
        source="HTTP status",
        details={"message_sha256": message.sha256, "key": key, "attempts": answer.attempts},
    )


def _keys(run_dir: str | None, criterion: str) -> set[str]:
    """Idempotency keys of what this run has sent already: its evidence is the record."""
    if not run_dir or not os.path.isdir(run_dir):
        return set()
    return {
        str((item.get("details") or {}).get("key"))
        for item in read_chain(run_dir).records
        if item is not None and item.get("criterion") == criterion and item.get("verdict") == "pass"
    }


# --- the sign-off ----------------------------------------------------------------------------------------------------

_EMPTY_TOKENS = frozenset(
    {"token", "secret", "password", "changeme", "todo", "none", "null", "undefined", "xxx", "bearer"}
)


def check_token(token: t.Any) -> str:
    """:raises PlanError: empty, a placeholder, or nothing a bearer token can be (RFC 6750, section 2.1)"""
    register_secret(token)
    text = str(token) if token is not None else ""
    remedy = "Give the token itself, by a lookup such as environment, ansible-vault or Vault."
    if not text.strip():
        raise PlanError("the token of the sign-off is empty", remedy=remedy)
    if placeholder(text):
        raise PlanError(f"the token of the sign-off holds {placeholder(text)}", remedy=remedy)
    if text.strip().lower() in _EMPTY_TOKENS:
        raise PlanError("the token of the sign-off is a word that stands for one", remedy=remedy)
    if not re.fullmatch(r"[A-Za-z0-9\-._~+/]+=*", text):
        problem = "the token of the sign-off holds white space or a character that no bearer token has"
        raise PlanError(problem, remedy="Check for a line break or quotes around it.")
    return text


def sign_off_body(run_dir: str, run_id: str, given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What is posted, of the run directory; what is given goes before. It is the same whenever the run is the same.

    :raises PlanError: there is no decision
    """
    summary = _object(run_dir, "run.json")
    gate = _object(run_dir, "gate.json")
    # The gate before the sign-off decides on more than the one before the apply, whose decision stands at the top.
    stages = gate.get("stages")
    last = stages.get("sign_off") if isinstance(stages, dict) else None
    values = {
        "decision": (last if isinstance(last, dict) else gate).get("decision"),
        "applied": summary.get("applied") or [],
        "actor": summary.get("actor") or {},
        **{name: value for name, value in given.items() if value is not None},
    }
    if not values["decision"]:
        raise PlanError("there is no decision to sign off", remedy="Give decision, or run the gate first.")
    return {"run_id": run_id, "outcome": summary.get("outcome"), **values}


def sign_off(
    address: Address,
    token: str,
    delivery: Delivery,
    *,
    run_dir: str,
    run_id: str,
    given: t.Mapping[str, t.Any],
    check_mode: bool = False,
) -> dict[str, t.Any]:
    """Seal the run directory and post its completion once; returns the module's results.

    The head that is sent vouches for everything recorded before; that it was sent is recorded after it.

    :raises VerificationFailed: the chain of evidence is broken
    :raises EnvironmentProblem: the service did not accept it
    """
    broken = read_chain(run_dir).breaks()
    if broken:
        raise VerificationFailed(f"the evidence of run {run_id} was altered: {broken[0]}", remedy="Do not sign it off.")
    body = sign_off_body(run_dir, run_id, given)
    results: dict[str, t.Any] = {
        "changed": True,
        "run_id": run_id,
        "host": address.host,
        "status": None,
        "evidence": [],
    }
    if run_id in _keys(run_dir, POSTED):
        return {**results, "changed": False, "head": None, "attempts": 0, "outcome": "posted before"}
    if check_mode:
        return {**results, "head": None, "attempts": 0, "outcome": "would be posted"}
    head = seal(run_dir)
    headers = {"Authorization": f"Bearer {token}"}
    answer = post(address, {**body, "evidence_head": head}, headers, run_id, delivery)
    evidence = Evidence(
        criterion=POSTED,
        phase="sign_off",
        verdict="pass" if answer.accepted else "fail",
        measured={"host": address.host, "status": answer.status, "problem": answer.problem},
        required="accepted by the service (2xx)",
        source="HTTP status",
        details={"key": run_id, "evidence_head": head, "attempts": answer.attempts, "decision": body["decision"]},
    )
    results.update(status=answer.status, head=head, attempts=answer.attempts, outcome="posted")
    results["evidence"] = record(run_dir, [evidence])
    if not answer.accepted:
        unsure = " It may have arrived: the idempotency key makes a second call safe." if answer.status is None else ""
        problem: SurefootError = EnvironmentProblem(
            f"the sign-off was not accepted: {address.host} {answer.problem}", remedy=f"{answer.remedy}{unsure}"
        )
        problem.results = {**results, "changed": False, "outcome": "failed"}
        raise problem
    return results


def _object(run_dir: str, name: str) -> dict[str, t.Any]:
    try:
        with open(os.path.join(run_dir, name), encoding="utf-8") as stream:
            value = json.load(stream)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise EnvironmentProblem(f"{name} of {run_dir} cannot be read", remedy="Do not sign off; look at it.") from None
    return value if isinstance(value, dict) else {}
