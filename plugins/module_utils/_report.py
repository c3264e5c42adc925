# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The report of a run as one object, from what its phases left in the run directory.

Every file may be missing, because a phase did not run, and may hold more than is known here. What cannot be read is
named in ``gaps``. ``docs/report.md`` documents the object; a change that takes away or renames a key of it raises
``SCHEMA``.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._catalog import KINDS
from ansible_collections.surefoot.dbops.plugins.module_utils._chain import read_chain
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import (
    EVIDENCE_FILE,
    TIMELINE_FILE,
    utc_now,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import BackfillStep, Plan, SqlStep
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import SUMMARY_FILE, write_json
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_size, parse_duration, parse_size

SCHEMA = "surefoot.report/1"
REPORT_FILE = "report.json"

_MAX_POINTS = 300
_MAX_STATEMENTS = 20
_NOTE_KINDS = {"issue": "issues", "resolution": "resolutions", "next_step": "next_steps"}

Facts = t.Mapping[str, t.Any]


class ReportError(SurefootError):
    """The report could not be made. What the run did stands: the caller warns, and does not fail."""

    code = "report"


# --- reading ---------------------------------------------------------------------------------------------------------


def facts(value: t.Any) -> dict[str, t.Any]:
    """An object; an empty one of what is none."""
    return dict(value) if isinstance(value, t.Mapping) else {}


def rows(value: t.Any) -> list[dict[str, t.Any]]:
    """The objects of a list; of an object of objects, each with its key as ``name``."""
    if isinstance(value, t.Mapping):
        return [{"name": key, **item} for key, item in value.items() if isinstance(item, t.Mapping)]
    return [dict(item) for item in value if isinstance(item, t.Mapping)] if isinstance(value, (list, tuple)) else []


def first(source: Facts, *names: str) -> t.Any:
    """The value of the first of these keys that has one."""
    return next((source[name] for name in names if source.get(name) is not None), None)


def number(value: t.Any) -> float | None:
    """A finite number; None for anything else, a duration with a unit included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def seconds_of(value: t.Any) -> float | None:
    """Seconds of a number or of a text such as ``500ms``."""
    try:
        return parse_duration(value) if value is not None else None
    except PlanError:
        return None


def text(value: t.Any) -> str | None:
    """A text that says something, or None."""
    return str(value) if value not in (None, "", [], {}) else None


def when(value: t.Any) -> datetime.datetime | None:
    """A moment from ISO 8601; UTC where it names no zone."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)


def moment(value: t.Any) -> str:
    """A time of ISO 8601 without its milliseconds."""
    words = str(value or "")
    return (
        words[:19].replace("T", " ") + " UTC" if words.endswith("Z") and len(words) >= 20 else words or "not recorded"
    )


def elapsed(begin: t.Any, end: t.Any) -> float | None:
    """Seconds between two moments as ISO 8601."""
    one, other = when(begin), when(end)
    return round((other - one).total_seconds(), 3) if one and other else None


class RunFiles:
    """The files of a run directory; ``gaps`` says what could not be read."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir
        self.gaps: list[str] = []

    def object(self, name: str) -> dict[str, t.Any]:
        """An object file; empty when it is missing or damaged."""
        content = self._bytes(name)
        if content is None:
            return {}
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self.gaps.append(f"{name} is not a JSON object")
            return {}
        return value

    def lines(self, name: str) -> list[dict[str, t.Any]]:
        """A JSON Lines file, without the lines that are no object, such as a last one that was cut off."""
        found = []
        for count, line in enumerate((self._bytes(name) or b"").splitlines(), 1):
            try:
                value = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                found += [value] if value else []
            else:
                self.gaps.append(f"line {count} of {name} is not a JSON object")
        return found

    def chain(self) -> dict[str, t.Any]:
        """The head of the evidence's chain of hashes, and where it is broken."""
        if not self.run_dir:
            return {"records": 0, "head": None, "breaks": []}
        try:
            chain = read_chain(self.run_dir)
            breaks = [str(finding) for finding in chain.breaks()]
        except SurefootError as exc:
            self.gaps.append(str(exc))
            return {"records": 0, "head": None, "breaks": []}
        return {"records": len(chain.digests), "head": chain.head, "breaks": breaks[:20]}

    def hashes(self) -> list[dict[str, t.Any]]:
        """Name, size and sha256 of the files that this report was made from."""
        found = []
        for name in sorted(os.listdir(self.run_dir) if os.path.isdir(self.run_dir) else ()):
            if name.endswith((".json", ".jsonl")) and not name.startswith((".", "report.")):
                content = self._bytes(name) or b""
                found.append({"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
        return found

    def _bytes(self, name: str) -> bytes | None:
        if not self.run_dir:
            return None
        try:
            with open(os.path.join(self.run_dir, name), "rb") as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as exc:
            gap = f"{name} cannot be read: {exc.strerror}"
            if gap not in self.gaps:
                self.gaps.append(gap)
            return None


# --- the plan --------------------------------------------------------------------------------------------------------


def plan_facts(plan: Plan) -> dict[str, t.Any]:
    """What a report tells of a plan: risks, owners, expected durations, files with their sha256, the way back."""
    return {
        "name": plan.name,
        "file": plan.file,
        "sha256": plan.sha256,
        "migrations": [
            {
                "id": migration.id,
                "summary": migration.summary,
                "expected_seconds": migration.expected,
                "manual": migration.manual,
                "risk": vars(migration.risk) if migration.risk else {},
                "files": _files(migration.steps),
                "rollback_files": _files(migration.rollback or ()),
                "rollback_loses": list(migration.rollback_loses),
                "checks": len(migration.verify),
            }
            for migration in plan.migrations
        ],
    }


def _files(steps: t.Iterable[t.Any]) -> list[dict[str, t.Any]]:
    found: list[dict[str, t.Any]] = []
    for step in steps:
        if isinstance(step, SqlStep) and step.text is not None:
            found.append({"file": step.file, "sha256": hashlib.sha256(step.text.encode("utf-8")).hexdigest()})
        elif isinstance(step, SqlStep):
            digest = hashlib.sha256()
            try:
                with open(step.path, "rb") as stream:
                    for block in iter(lambda: stream.read(1 << 20), b""):
                        digest.update(block)
            except OSError:
                found.append({"file": step.file, "sha256": None})
            else:
                found.append({"file": step.file, "sha256": digest.hexdigest()})
        else:
            kind = "backfill " if isinstance(step, BackfillStep) else ""
            found.append({"file": f"{kind}{step.name}", "sha256": None})
    return found


# --- the object ------------------------------------------------------------------------------------------------------


def build_report(
    run_dir: str, *, plan: Facts | None = None, notice: Facts | None = None, rollback_command: str = ""
) -> dict[str, t.Any]:
    """The report of a run.

    :param plan: of :func:`plan_facts`; None where the plan could not be read
    :param notice: what the announcements say and who owns which phase (``docs/messages.md``)
    :param rollback_command: the command that takes back what was applied, as typed
    :raises ReportError: the run directory cannot be read, or holds something no report can be made of
    """
    if not os.path.isdir(run_dir):
        raise ReportError(f"there is no run directory {run_dir}", remedy="Give the directory that holds run.json.")
    try:
        report = _build(RunFiles(run_dir), facts(plan), facts(notice), rollback_command)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as exc:
        raise ReportError(
            f"no report could be made of {run_dir}: {type(exc).__name__}",
            remedy="The files in it are as the phases wrote them; please report this with them.",
        ) from exc
    return t.cast("dict[str, t.Any]", _shown(report))


def planned_report(
    plan: Facts, *, database: str, pending: t.Sequence[str], notice: Facts, rollback_command: str = ""
) -> dict[str, t.Any]:
    """A report object of a run that is still to come, for the announcements.

    :param plan: of :func:`plan_facts`
    """
    summary = {"host": database, "pending": list(pending), "outcome": "planned", "action": "migrate"}
    report = _assemble(RunFiles(""), summary, plan, notice, rollback_command)
    return t.cast("dict[str, t.Any]", _shown(report))


def write_report_json(run_dir: str, report: Facts) -> str:
    """Write ``report.json``; returns its path.

    :raises EnvironmentProblem: it cannot be written
    """
    return write_json(run_dir, REPORT_FILE, report)


def write_text(path: str, content: str) -> str:
    """Write a private file, wholly or not at all; returns its path.

    :raises EnvironmentProblem: it cannot be written
    """
    temporary = f"{path}.{os.getpid()}.part"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(content)
        os.replace(temporary, path)
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot write {path}: {exc.strerror}", remedy="Make the run directory writable."
        ) from exc
    return path


def _shown(value: t.Any, depth: int = 0) -> t.Any:
    """Secrets masked once more on the last way out; numbers that JSON lacks as text."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, t.Mapping):
        return {redact(str(key)): _shown(item, depth + 1) for key, item in value.items()} if depth < 12 else "{...}"
    if isinstance(value, (list, tuple)):
        return [_shown(item, depth + 1) for item in value] if depth < 12 else "[...]"
    if isinstance(value, float) and number(value) is None:
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float)) else redact(str(value))


def _build(files: RunFiles, plan: Facts, notice: Facts, rollback_command: str) -> dict[str, t.Any]:
    return _assemble(files, files.object(SUMMARY_FILE), plan, notice, rollback_command)


def _assemble(files: RunFiles, summary: Facts, plan: Facts, notice: Facts, rollback_command: str) -> dict[str, t.Any]:
    gate, bound = files.object("gate.json"), files.object("go.json")
    rehearsal, restore = files.object("rehearsal.json"), files.object("restore.json")
    evidence, timeline = files.lines(EVIDENCE_FILE), files.lines(TIMELINE_FILE)
    decision = _decision(gate, bound, summary)
    criteria = _criteria(evidence, gate)
    counted = [item for item in criteria if not is_decision(item)]
    concerned = _concerned(summary, plan)
    migrations = [_migration(id_, summary, plan, bound) for id_ in concerned]
    notes = _notes(files.lines("notes.jsonl"))
    report: dict[str, t.Any] = {
        "schema": SCHEMA,
        "generated": utc_now(),
        "run": _run(summary, files.run_dir),
        "decision": decision,
        "criteria": criteria,
        "counts": {status: sum(item["status"] == status for item in counted) for status in STATUSES},
        "groups": _groups(counted),
        "rescue": _rescue(evidence),
        "migrations": migrations,
        "risks": _risks(migrations),
        "timeline": _timeline(timeline, summary, migrations, evidence, notice),
        "locks": _locks(rehearsal, summary, gate),
        "latency": _latency(files, facts(summary.get("policy"))),
        "watch": _watch(files.lines("watch.jsonl"), criteria, facts(summary.get("policy"))),
        "statements": sorted(files.lines("statements.jsonl"), key=lambda row: -(number(row.get("seconds")) or 0.0))[
            :_MAX_STATEMENTS
        ],
        "objects": _objects(rehearsal),
        "rehearsal": _rehearsal(rehearsal),
        "restore": _restore(restore),
        "backup": facts(summary.get("backup")) or None,
        "rollback": _rollback(summary, migrations, rollback_command),
        "notes": notes,
        "monitoring": [
            {key: item.get(key) for key in ("time", "decision", "failed", "missing", "counts")}
            for item in files.lines("monitor.jsonl")
        ],
        "plan": {key: plan.get(key) for key in ("name", "file", "sha256")},
        "notice": dict(notice),
        "chain": files.chain(),
        "files": files.hashes(),
        "gaps": [],
    }
    report["status"] = _status(report, summary)
    report["gaps"] = [*files.gaps, *_missing(report, summary)]
    return report


def _run(summary: Facts, run_dir: str) -> dict[str, t.Any]:
    keys: tuple[str, ...] = (
        "run_id",
        "host",
        "action",
        "outcome",
        "failed_phase",
        "error",
        "started",
        "finished",
        "actor",
        "policy",
    )
    keys += ("applied", "rolled_back", "pending", "manual", "lost_tables", "checks")
    error = summary.get("error")
    return {
        **{key: summary.get(key) for key in keys},
        "error": "\n".join(map(str, error)) if isinstance(error, list) else text(error),
        "run_id": summary.get("run_id") or (os.path.basename(os.path.normpath(run_dir)) if run_dir else None),
        "seconds": elapsed(summary.get("started"), summary.get("finished")),
        "run_dir": run_dir or None,
    }


def _decision(gate: Facts, bound: Facts, summary: Facts) -> dict[str, t.Any]:
    """The gate's word: GO, NO-GO or UNDECIDED with its reasons; None where no gate was asked."""
    word = text(gate.get("decision"))
    actor = facts(summary.get("actor"))
    approvals = first(bound, "approvals", "approved_by") or first(gate, "approvals", "approved_by")
    return {
        "word": word,
        "time": first(gate, "time", "decided", "decided_at"),
        "reasons": _texts(gate.get("failed")) + _texts(gate.get("missing")),
        "boxes": [
            {key: box.get(key) for key in ("id", "section", "text", "stage", "status", "criteria")}
            for box in rows(gate.get("boxes"))
        ],
        "stages": {key: facts(value) for key, value in facts(gate.get("stages")).items()},
        "approvals": _approvals(approvals, actor),
        "expires": first(bound, "expires", "expires_at") or first(gate, "expires", "expires_at"),
        "policy_sha256": text(bound.get("policy_sha256")),
        "bound": {
            key: value
            for key, value in bound.items()
            if isinstance(value, (str, int, float, bool)) and key not in ("hmac", "variables_hmac", "format")
        },
    }


def _texts(value: t.Any) -> list[str]:
    """Reasons as lines, whether they are texts or criteria."""
    found = []
    for item in [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else ():
        if isinstance(item, t.Mapping):
            reason = first(item, "reason", "message", "text")
            head = first(item, "criterion", "name") or "a criterion"
            if reason is None:
                measured, required = item.get("measured"), item.get("required")
                reason = f"measured {brief(measured)}, required {brief(required)}"
            found.append(f"{head}: {reason}")
        else:
            found.append(str(item))
    return found


def brief(value: t.Any) -> str:
    """A measured or required value in words, for one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, t.Mapping):
        return ", ".join(f"{key} {brief(item)}" for key, item in value.items()) or "nothing"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(brief, value)) or "none"
    return str(value)


def _approvals(value: t.Any, actor: Facts) -> list[dict[str, t.Any]]:
    if isinstance(value, t.Mapping):
        found = [
            {"role": key, "name": first(facts(item), "name", "by") if isinstance(item, t.Mapping) else item,
             "time": facts(item).get("time")}
            for key, item in value.items()
        ]  # fmt: skip
    elif isinstance(value, (list, tuple)):
        found = [
            {"role": first(facts(item), "role", "approval", "kind"), "name": first(facts(item), "name", "by", "who"),
             "time": first(facts(item), "time", "when")}
            if isinstance(item, t.Mapping) else {"role": None, "name": item, "time": None}
            for item in value
        ]  # fmt: skip
    else:
        found = [{"role": "approved", "name": value, "time": None}] if value else []
    if not found and actor.get("approved_by"):
        found = [{"role": "approved", "name": actor["approved_by"], "time": None}]
    return [item for item in found if item["name"] or item["role"]]


# --- criteria --------------------------------------------------------------------------------------------------------


# What the gate makes of a verdict, worst first; "missing" is not measured although demanded.
STATUSES = ("fail", "missing", "waived", "pass", "not_required", "not_applicable")
_STATUS_OF = {"pass": "pass", "fail": "fail", "not_measured": "missing", "not_applicable": "not_applicable"}


def _criteria(evidence: t.Sequence[Facts], gate: Facts) -> list[dict[str, t.Any]]:
    """The latest record of each criterion and phase; worst first, otherwise in the order they were measured."""
    latest: dict[tuple[str, str], dict[str, t.Any]] = {}
    for item in evidence:
        key = (str(item.get("criterion")), str(item.get("phase")))
        before = facts(latest.pop(key, None))
        details = facts(item.get("details"))
        latest[key] = {
            **_record(item, key),
            "name": text(details.get("name")),
            "reason": text(first(details, "reason", "why", "problem")),
            "migration": text(details.get("migration")),
            "times_measured": before.get("times_measured", 0) + 1,
            "failed_before": before.get("failed_before", 0) + (before.get("verdict") == "fail"),
        }
    judged = {str(item.get("criterion")): item for item in rows(gate.get("criteria"))}
    measured = {key[0] for key in latest}
    for name, item in judged.items():
        if name not in measured:  # nobody measured it: the gate alone knows that it is missing
            latest[name, "gate"] = _record({"source": item.get("how"), **item}, (name, "gate"))
    for record in latest.values():
        judgement = facts(judged.get(record["criterion"]))
        record["status"] = _status_of(record["verdict"], judgement, bool(gate))
        if record["status"] == "waived":
            record["waiver"] = {key: facts(judgement.get("waiver")).get(key) for key in ("reason", "by", "expires")}
    return sorted(latest.values(), key=lambda item: STATUSES.index(item["status"]))


def _record(item: Facts, key: tuple[str, str]) -> dict[str, t.Any]:
    return {
        "criterion": key[0],
        "phase": key[1],
        "name": None,
        "reason": None,
        "migration": None,
        "verdict": item.get("verdict") if item.get("verdict") in _STATUS_OF else "not_measured",
        "measured": item.get("measured"),
        "required": item.get("required"),
        "source": text(item.get("source")),
        "time": item.get("time"),
        "times_measured": 0,
        "failed_before": 0,
        "waiver": None,
    }


def _status_of(verdict: str, judgement: Facts, gate_asked: bool) -> str:
    """The gate's own word while the measurement is the one it judged; a later one counts by itself."""
    if judgement.get("verdict") == verdict and judgement.get("status") in STATUSES:
        return str(judgement["status"])
    if verdict in ("fail", "not_measured"):
        if judgement.get("waiver"):
            return "waived"
        if judgement.get("demand") == "optional" or (verdict == "not_measured" and gate_asked and not judgement):
            return "not_required"
    return _STATUS_OF[verdict]


def _rescue(evidence: t.Sequence[Facts]) -> dict[str, t.Any] | None:
    """What the rollback matrix made of a failure; None where it was not asked, or nothing had failed."""
    said = [item for item in evidence if item.get("criterion") == "rescue.decision"]
    failures = rows(facts(said[-1].get("details")).get("failures")) if said else []
    if not failures:
        return None
    measured = facts(said[-1].get("measured"))
    return {
        "decision": text(measured.get("decision")),
        "severity": text(measured.get("severity")),
        "failures": [{key: item.get(key) for key in ("kind", "reason")} for item in failures],
    }


_GROUP_TITLES = {
    "preflight": "Before the run",
    "backup": "Backup",
    "restore": "Restore proof",
    "rehearsal": "Rehearsal",
    "baseline": "Query performance",
    "http": "Application",
    "watch": "While it ran",
    "serverlog": "Server log",
    "gate": "Gate",
    "attestation": "Attestations",
    "migration": "Migration",
    "drift": "Drift",
    "rollback": "Rollback",
    "rescue": "Rollback",
    "verify": "Verification",
    "railway": "Railway",
    "rds": "RDS",
    "report": "Report and notices",
    "notify": "Report and notices",
    "sign_off": "Report and notices",
}


def group_of(criterion: str) -> str:
    """The heading a criterion stands under: its first part when that is one of ours, else the plan's own two."""
    parts = criterion.split(".")
    return _GROUP_TITLES.get(parts[0]) or "Verification: " + " ".join(parts[:2] if len(parts) > 2 else parts[:1])


def _groups(criteria: t.Sequence[Facts]) -> list[dict[str, t.Any]]:
    """Criteria by heading with the worst status that counts: what was not demanded does not."""
    found: dict[str, dict[str, t.Any]] = {}
    for item in criteria:
        title = group_of(item["criterion"])
        group = found.setdefault(title, {"title": title, **dict.fromkeys(STATUSES, 0)})
        group[item["status"]] += 1
    for group in found.values():
        group["status"] = next((status for status in ("fail", "missing", "pass", "waived") if group[status]), "")
        group["status"] = group["status"] or ("not_required" if group["not_required"] else "not_applicable")
    titles = list(dict.fromkeys(_GROUP_TITLES.values()))
    return sorted(
        found.values(),
        key=lambda group: titles.index(group["title"]) if group["title"] in titles else titles.index("Verification"),
    )


# --- migrations and risk ---------------------------------------------------------------------------------------------


def _concerned(summary: Facts, plan: Facts) -> list[str]:
    """The migrations this run is about, in the plan's order."""
    named = [str(item) for key in ("applied", "rolled_back", "pending") for item in summary.get(key) or ()]
    order = [str(item["id"]) for item in rows(plan.get("migrations"))]
    found = list(dict.fromkeys(named))
    return sorted(found, key=lambda id_: order.index(id_) if id_ in order else len(order))


def _migration(id_: str, summary: Facts, plan: Facts, bound: Facts) -> dict[str, t.Any]:
    planned = next((item for item in rows(plan.get("migrations")) if item.get("id") == id_), {})
    done = next((item for item in rows(summary.get("migrations")) if item.get("id") == id_), {})
    states = {"rolled_back": "rolled back", "applied": "applied"}  # a rescued run has both
    state = next((word for key, word in states.items() if id_ in (summary.get(key) or ())), "pending")
    hashes = facts(first(bound, "migrations", "migration_hashes", "files"))
    return {
        "id": id_,
        "state": state,
        "summary": planned.get("summary") or "",
        "risk": {key: facts(planned.get("risk")).get(key) for key in _RISK_KEYS},
        "expected_seconds": number(planned.get("expected_seconds")),
        "seconds": number(done.get("seconds")),
        "statements": done.get("statements"),
        "attempts": done.get("attempts"),
        "lock_held_seconds": number(done.get("lock_held_seconds")),
        "files": rows(planned.get("files")),
        "bound_sha256": text(hashes.get(id_)) if isinstance(hashes.get(id_), str) else None,
        "rollback_files": rows(planned.get("rollback_files")),
        "rollback_loses": list(planned.get("rollback_loses") or ()),
    }


_RISK_KEYS = ("level", "probability", "impact", "mitigation", "owner")


def _risks(migrations: t.Sequence[Facts]) -> list[dict[str, t.Any]]:
    with_risk = [item for item in migrations if any(item["risk"].values())]
    return [
        {"number": count, "migration": item["id"], "summary": item["summary"], **item["risk"]}
        for count, item in enumerate(with_risk, 1)
    ]


def _rollback(summary: Facts, migrations: t.Sequence[Facts], command: str) -> dict[str, t.Any]:
    applied = [item for item in migrations if item["state"] == "applied"]
    return {
        "command": text(command) or text(summary.get("rollback_command")),
        "needed": bool(applied),
        "without_way_back": [item["id"] for item in applied if not item["rollback_files"]],
        "loses": list(dict.fromkeys(table for item in applied for table in item["rollback_loses"])),
        "backup": _place_of(facts(summary.get("backup"))),
    }


def _place_of(backup: Facts) -> str | None:
    """Where the backup lies; of one that another program took here is but the record."""
    if not backup.get("location"):
        return text(backup.get("path"))
    return f"{backup.get('external_id')} in {backup['location']} (by {backup.get('method')})"


def _notes(lines: t.Sequence[Facts]) -> dict[str, list[dict[str, t.Any]]]:
    found: dict[str, list[dict[str, t.Any]]] = {"issues": [], "resolutions": [], "next_steps": [], "notes": []}
    for item in lines:
        entry = {key: item.get(key) for key in ("time", "by", "text")}
        found[_NOTE_KINDS.get(str(item.get("kind")), "notes")].append(entry)
    return found


# --- timeline --------------------------------------------------------------------------------------------------------

# Phase, heading, planned start in seconds from T, planned duration: the shape of the runbook this replaces. The
# migrations stand between, from T on.
_BEFORE = (
    ("backup", "Back up", -1800, 600),
    ("restore", "Restore the backup and compare", -1200, 300),
    ("checks", "Preflight, rehearsal, baseline", -900, 600),
    ("gate", "GO or NO-GO", -300, 300),
)
_AFTER = (
    ("suite", "Verify", 900, 600),
    ("application", "Test the application", 1500, 900),
    ("baseline", "Compare with the baseline", 2400, 600),
    ("document", "Report and notify", 3000, 600),
    ("complete", "Complete", 3600, 0),
)
_SLOT = 900  # seconds the migrations share
# Module and state of a task to its phase, before and after the apply.
_MODULE_PHASES = {
    ("postgresql_backup", "verified"): ("restore", "document"),
    ("postgresql_backup", None): ("backup", "document"),
    ("postgresql_external_backup", None): ("backup", "document"),
    ("postgresql_restore", "absent"): ("checks", "document"),
    ("postgresql_restore", "swapped"): ("rollback", "rollback"),
    ("postgresql_restore", None): ("restore", "restore"),
    ("postgresql_gate", None): ("gate", "document"),
    ("postgresql_losses", None): ("checks", "rollback"),
    ("postgresql_evidence", None): ("document", "document"),
    ("postgresql_baseline", None): ("checks", "baseline"),
    ("http_probe", None): ("checks", "application"),
    ("rds_maintenance_window", None): ("checks", "document"),
    ("rds_log_info", None): ("checks", "application"),
    ("database_health", None): ("checks", "application"),
    ("notify", None): ("checks", "document"),
    ("sign_off", None): ("document", "document"),
}


def _timeline(
    entries: t.Sequence[Facts],
    summary: Facts,
    migrations: t.Sequence[Facts],
    evidence: t.Sequence[Facts],
    notice: Facts,
) -> dict[str, t.Any]:
    """Planned against actual, in seconds from T: the moment the first migration began."""
    timed = [item for item in entries if when(item.get("started")) and when(item.get("finished"))]
    forward = "rolled_back" if summary.get("action") == "rollback" else None
    applies = [item for item in timed if item.get("module") == "postgresql_migration"]
    work = next((item for item in applies if forward is None or item.get("state") == forward), None)
    end = timed[-1]["finished"] if timed else summary.get("finished")
    zero = work["started"] if work else first({"end": end, "started": summary.get("started")}, "end", "started")
    actual: dict[str, list[dict[str, t.Any]]] = {}
    for item in timed:
        key = _phase_of(item, zero, work)
        if item is work and migrations:
            for id_, span in _migration_spans(item, summary, zero):
                actual.setdefault(f"apply:{id_}", []).append(span)
        else:
            actual.setdefault(key, []).append(_span(item, zero))
    for item in evidence:  # checks of one migration, where the plan gives them a line of their own
        moment, migration = elapsed(zero, item.get("time")), facts(item.get("details")).get("migration")
        if moment is not None and migration:
            actual.setdefault(f"verify:{migration}", []).append({"at": moment, "seconds": 0.0, "failed": False})
    phases = [_phase(*row, actual=actual, notice=notice) for row in _planned(migrations, notice)]
    known = {phase["id"] for phase in phases}
    for key, title in (("apply", "Apply"), ("rollback", "Roll back")):
        if key in actual and key not in known:
            phases.insert(_place(phases), _phase(key, title, None, None, None, actual=actual, notice=notice))
    spans = [span for phase in phases for span in phase["actual"]]
    planned = [phase["planned"] for phase in phases if phase["planned"]]
    return {
        "zero": zero,
        "begun": work is not None,
        "phases": phases,
        "planned_seconds": _extent(planned),
        "actual_seconds": _extent(spans),
    }


def _place(phases: t.Sequence[Facts]) -> int:
    """Where a phase nobody planned goes: after the last migration, before what follows."""
    return next((i for i, phase in enumerate(phases) if phase["id"] in ("suite", "application")), len(phases))


_PLURALS = {"policy": "policies", "index": "indexes", "statistics": "statistics", "other": "others"}


def counted_kinds(counts: t.Mapping[str, int]) -> str:
    """``26 policies, 1 table``."""
    words = [f"{n} {kind if n == 1 else _PLURALS.get(kind, kind + 's')}" for kind, n in counts.items()]
    return ", ".join(words)


def _extent(spans: t.Sequence[Facts]) -> float | None:
    if not spans:
        return None
    begin, end = min(span["at"] for span in spans), max(span["at"] + span["seconds"] for span in spans)
    return round(float(end - begin), 3)


def _planned(migrations: t.Sequence[Facts], notice: Facts) -> list[tuple[t.Any, ...]]:
    """Rows of phase, heading, start, duration and owner; the notice's own phases replace the usual ones."""
    own = rows(notice.get("phases"))
    if own:
        return [
            (text(item.get("phase")) or "", text(first(item, "title", "name", "phase")) or "",
             _start(item.get("at")), seconds_of(first(item, "duration", "seconds")) or 0.0, text(item.get("owner")))
            for item in own
        ]  # fmt: skip
    slot = _SLOT / max(len(migrations), 1)
    between = [
        (f"apply:{item['id']}", item["id"], round(slot * index), item["expected_seconds"] or 0.0, item["risk"]["owner"])
        for index, item in enumerate(migrations)
    ]
    return [(*row, None) for row in _BEFORE] + between + [(*row, None) for row in _AFTER]


def _start(value: t.Any) -> float:
    """Seconds from T of ``-30m``, ``T-30m``, ``+4m`` or a number."""
    given = number(value)
    if given is not None:
        return given
    words = str(value or "0").replace("\N{MINUS SIGN}", "-").replace(" ", "").lstrip("Tt").lstrip("+")
    amount = seconds_of(words.lstrip("-") or "0") or 0.0
    return -amount if words.startswith("-") else amount


def _phase(
    id_: str,
    title: str,
    at: float | None,
    length: float | None,
    owner: str | None,
    *,
    actual: t.Mapping[str, list[dict[str, t.Any]]],
    notice: Facts,
) -> dict[str, t.Any]:
    spans = actual.get(id_, [])
    if id_.startswith("verify:") and spans:
        begin, end = min(span["at"] for span in spans), max(span["at"] for span in spans)
        spans = [{"at": begin, "seconds": round(end - begin, 3), "failed": False}]
    return {
        "id": id_,
        "title": title,
        "owner": owner or text(notice.get("owner")),
        "planned": {"at": float(at), "seconds": float(length or 0)} if at is not None else None,
        "actual": spans,
        "actual_seconds": round(sum(span["seconds"] for span in spans), 3) if spans else None,
    }


def _phase_of(item: Facts, zero: t.Any, work: Facts | None) -> str:
    module, state = str(item.get("module")), item.get("state")
    after = work is not None and (elapsed(zero, item.get("started")) or 0.0) > 0
    if module == "postgresql_migration":
        return "apply" if item is work else "rollback" if state == "rolled_back" else "apply"
    pair = _MODULE_PHASES.get((module, t.cast("str | None", state))) or _MODULE_PHASES.get((module, None))
    return (pair or ("checks", "suite"))[1 if after else 0]


def _span(item: Facts, zero: t.Any) -> dict[str, t.Any]:
    return {
        "at": elapsed(zero, item["started"]) or 0.0,
        "seconds": max(elapsed(item["started"], item["finished"]) or 0.0, 0.0),
        "failed": bool(item.get("failed")),
    }


def _migration_spans(item: Facts, summary: Facts, zero: t.Any) -> t.Iterator[tuple[str, dict[str, t.Any]]]:
    """The migrations of one task, one after the other; what is left of a task that failed belongs to the next one."""
    whole = _span(item, zero)
    at, end = whole["at"], whole["at"] + whole["seconds"]
    for done in rows(summary.get("migrations")):
        length = min(number(done.get("seconds")) or 0.0, max(end - at, 0.0))
        yield str(done.get("id")), {"at": round(at, 3), "seconds": round(length, 3), "failed": False}
        at += length
    pending = summary.get("pending") or ()
    if whole["failed"] and pending:
        yield str(pending[0]), {"at": round(at, 3), "seconds": round(max(end - at, 0.001), 3), "failed": True}


# --- measurements ----------------------------------------------------------------------------------------------------


def _locks(rehearsal: Facts, summary: Facts, gate: Facts) -> dict[str, t.Any]:
    policy = facts(summary.get("policy")) or facts(gate.get("policy"))
    budget = seconds_of(first(rehearsal, "lock_budget", "lock_budget_seconds"))
    factor = number(rehearsal.get("shadow_factor")) or 1.0
    found = [_lock(item, factor) for item in rows(rehearsal.get("locks"))]
    found.sort(key=lambda item: -(item["held_seconds"] or 0.0))
    blocking = [item for item in found if item["blocks"] and item["phase"] in (None, "deploy")]
    longest: dict[str, float] = {}
    for item in blocking:
        key = item["migration"] or ""
        longest[key] = max(longest.get(key, 0.0), item["held_seconds"] or 0.0)
    target = [
        {
            "migration": item.get("id"),
            "held_seconds": number(item.get("lock_held_seconds")),
            "rehearsed_seconds": longest.get(str(item.get("id"))),
        }
        for item in rows(summary.get("migrations"))
    ]
    return {
        "budget_seconds": budget if budget is not None else seconds_of(policy.get("lock_budget")),
        "shadow_factor": factor,
        "rehearsal": blocking,
        "harmless": sum(not item["blocks"] for item in found),
        "target": target,
        "longest_seconds": max((item["held_seconds"] or 0.0 for item in target), default=None),
    }


def _lock(item: Facts, factor: float) -> dict[str, t.Any]:
    """One lock; its seconds as expected on the target."""
    held = number(item.get("seconds"))
    statement = facts(item.get("statement"))
    blocks = first(item, "blocks", "blocked", "conflicts") or ()
    if isinstance(blocks, t.Mapping):
        blocks = [key for key, value in blocks.items() if value]
    return {
        "phase": text(item.get("phase")),
        "relation": text(first(item, "relation", "table", "object")) or "",
        "mode": text(item.get("mode")) or "",
        "migration": text(item.get("migration")),
        "file": text(first(item, "file") or statement.get("file")),
        "line": first(item, "line") or statement.get("line"),
        "tag": text(first(item, "tag") or statement.get("tag")),
        "at": number(first(item, "from_seconds", "at")),
        "held_seconds": round(held * factor, 4) if held is not None else None,
        "rows": first(item, "rows", "row_count", "reltuples"),
        "bytes": first(item, "bytes", "size", "size_bytes"),
        "blocks": [str(word) for word in blocks] if isinstance(blocks, (list, tuple)) else [str(blocks)],
        "rewrite": bool(first(item, "rewrite", "rewritten")),
    }


def _rehearsal(rehearsal: Facts) -> dict[str, t.Any] | None:
    if not rehearsal:
        return None
    return {
        "seconds": number(rehearsal.get("seconds")),
        "statements": len(rehearsal.get("statements") or ()),
        "rewrites": rows(rehearsal.get("rewrites")),
        "rollback_proof": rehearsal.get("rollback_proof"),
        "hazards": rehearsal.get("hazards"),
    }


def _restore(restore: Facts) -> dict[str, t.Any] | None:
    """What the restored copy was compared in, without the list of tables."""
    if not restore:
        return None
    comparison = facts(restore.get("comparison")) or restore
    return {
        "database": text(first(restore, "database", "name") if isinstance(restore.get("database"), str) else None),
        "passed": comparison.get("passed"),
        "counts": facts(comparison.get("counts")),
        "not_measured": facts(comparison.get("not_measured")),
        "differences": rows(comparison.get("differences"))[:50],
    }


def _objects(rehearsal: Facts) -> dict[str, t.Any] | None:
    """What the migrations create, change and remove, by kind of object; None where no rehearsal compared catalogs."""
    diff = facts(rehearsal.get("catalog_diff"))
    diff = facts(diff.get("deploy")) or diff
    if not any(key in diff for key in ("added", "removed", "changed")):
        return None
    return {key: _kinds(diff.get(part)) for key, part in _DIFF_PARTS.items()}


_DIFF_PARTS = {"created": "added", "removed": "removed", "changed": "changed"}
_LONGEST_FIRST = sorted(KINDS, key=len, reverse=True)
_PLAIN_PARTS = ("owner of ", "grants on ", "comment on ", "security label ")


def _kinds(entries: t.Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    listed = entries if isinstance(entries, (list, tuple)) else list(facts(entries))
    identities = [str(item.get("object") if isinstance(item, t.Mapping) else item) for item in listed]
    known = frozenset(identities)
    for identity in identities:
        kind, _space, name = identity.partition(" ")
        of_listed_table = kind == "column" and f"table {name.rpartition('.')[0]}" in known
        if identity.startswith((*_PLAIN_PARTS, "column order ")) or of_listed_table:
            continue  # part of an object that is counted, or of one that stayed
        kind = next((kind for kind in _LONGEST_FIRST if identity.startswith(kind + " ")), "other")
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _latency(files: RunFiles, policy: Facts) -> list[dict[str, t.Any]]:
    """Before and after of every named query and endpoint; regressions first."""
    before, after = files.object("baseline-before.json"), files.object("baseline-after.json")
    threshold = _share(policy.get("baseline_regression"))
    found = _pairs(before, after, "query", "production", threshold)
    if shadow := files.object("baseline-shadow.json"):
        found += _pairs({} if facts(shadow.get("comparison")) else before, shadow, "query", "shadow", threshold)
    probes = files.object("probes-before.json"), files.object("probes-after.json")
    found += _pairs(*probes, "endpoint", "production", None)
    return sorted(found, key=lambda row: (not row["regression"], row["where"] == "shadow"))


def _pairs(before: Facts, after: Facts, kind: str, where: str, threshold: float | None) -> list[dict[str, t.Any]]:
    key = {"query": "queries", "endpoint": "endpoints"}[kind]
    sides = [{str(item.get("name")): item for item in rows(side.get(key))} for side in (before, after)]
    compared = {str(item.get("name")): item for item in rows(facts(after.get("comparison")).get(key))}
    ceiling = number(after.get("p95_max_ms"))
    found = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        said = facts(compared.get(name))
        earlier = {key[: -len("_before")]: value for key, value in said.items() if key.endswith("_before")}
        one, other = _timing({**facts(sides[0].get(name)), **earlier}), _timing(facts(sides[1].get(name)))
        change = number(said.get("ratio"))
        if change is None and one["median_ms"] and other["median_ms"] is not None:
            change = other["median_ms"] / one["median_ms"]
        if ceiling is not None and other["p95_ms"] is not None:
            judgement = "over the limit" if other["p95_ms"] > ceiling else "within the limit"
        else:
            judgement = _JUDGEMENTS.get(str(said.get("verdict")), "not judged")
        limit = ceiling
        if limit is None and threshold is not None and one["median_ms"] is not None:
            limit = round(one["median_ms"] * (1 + threshold), 4)
        found.append(
            {
                "name": name,
                "kind": kind,
                "where": where,
                "before": one,
                "after": other,
                "change": round(change - 1, 4) if change is not None else None,
                "limit_ms": limit,
                "judgement": judgement,
                "regression": judgement in _SLOWER,
            }
        )
    return found


_JUDGEMENTS = {
    "unchanged": "not slower",
    "regressed": "regression",
    "failed": "fails now",
    "no_rows": "no rows any more",
    "noisy": "too noisy to tell",
    "different": "another query than before",
}
_SLOWER = ("regression", "fails now", "no rows any more", "over the limit")


def _timing(item: Facts) -> dict[str, float | None]:
    return {
        "median_ms": number(first(item, "median_ms", "p50_ms")),
        "p95_ms": number(item.get("p95_ms")),
    }


def _share(value: t.Any) -> float | None:
    """0.1 of ``10%``."""
    try:
        return float(str(value).rstrip("% ")) / 100
    except ValueError:
        return None


# Key of a sample: title, unit, criterion, and the key of the policy that holds its limit.
_SERIES = {
    "connections_percent": ("Connections in use", "%", "watch.connections", "pool_saturation_max"),
    "wal_bytes_per_minute": ("WAL in a minute", "bytes", "watch.wal_rate", "wal_rate_max"),
    "waiters": ("Sessions waiting for the migration", "", "watch.waiters", None),
    "longest_wait": ("Longest wait", "s", "watch.waiters", None),
    "replica_lag": ("Replica lag", "s", "watch.replica_lag", "replica_lag_max"),
    "temp_bytes": ("Growth of temporary tables and files", "bytes", "watch.temp_tables", None),
    "quarantine_bytes": ("Growth of the quarantine", "bytes", "watch.quarantine", "quarantine_max"),
    "disk_free": ("Free disk", "bytes", "watch.disk", None),
    "endpoint_failures": ("Endpoint failures in a row", "", "watch.endpoints", None),
}
_FLOORS = ("disk_free",)  # where less is worse


def _watch(samples: t.Sequence[Facts], criteria: t.Sequence[Facts], policy: Facts) -> dict[str, t.Any]:
    """What the watch saw, one series a measure; thinned to 300 points, each the worst of those it stands for."""
    moments = [item for item in samples if when(item.get("time"))]
    start = moments[0]["time"] if moments else None
    series = []
    for key, (title, unit, criterion, limited_by) in _SERIES.items():
        points = [
            (elapsed(start, item["time"]) or 0.0, amount)
            for item in moments
            if (amount := number(item.get(key))) is not None
        ]
        if not points:
            continue
        worst = (min if key in _FLOORS else max)(value for _at, value in points)
        limit = _policy_limit(policy.get(limited_by)) if limited_by else None
        series.append(
            {
                "key": key,
                "title": title,
                "unit": unit,
                "points": _thinned(points, floor=key in _FLOORS),
                "worst": worst,
                "limit": limit,
                "shown_worst": ("lowest " if key in _FLOORS else "highest ") + _amount(worst, unit),
                "shown_limit": _amount(limit, unit) if limit is not None else None,
                "verdict": next((item["verdict"] for item in criteria if item["criterion"] == criterion), None),
            }
        )
    seconds = elapsed(start, moments[-1]["time"]) if moments else None
    return {"samples": len(moments), "seconds": seconds, "series": series}


def _policy_limit(value: t.Any) -> float | None:
    """The number of ``90%``, ``1GB/min`` or ``30s``."""
    words = str(value)
    if words.endswith("%"):
        share = _share(words)
        return share * 100 if share is not None else None
    for read in (parse_duration, parse_size):
        try:
            return float(read(words.partition("/")[0].strip()))
        except PlanError:
            continue
    return None


def _thinned(points: list[tuple[float, float]], *, floor: bool) -> list[tuple[float, float]]:
    step = -(-len(points) // _MAX_POINTS)
    worst = min if floor else max
    return [worst(points[at : at + step], key=lambda point: point[1]) for at in range(0, len(points), step)]


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return human_size(value)
    return f"{value:.3g}{unit}" if unit == "%" else f"{value:.3g} {unit}".strip()


# --- the verdict of the run ------------------------------------------------------------------------------------------


def _status(report: Facts, summary: Facts) -> dict[str, t.Any]:
    """One word for the run, and the sentence that says why.

    The words: succeeded, issues, rolled_back, failed, no_go, prepared, nothing_to_do, checked, incomplete.
    """
    run, decision = report["run"], report["decision"]
    back = list(run["rolled_back"] or ())
    done = [id_ for id_ in run["applied"] or () if id_ not in back]
    outcome = summary.get("outcome")
    open_failures = [item for item in report["criteria"] if item["status"] == "fail" and not is_decision(item)]
    sign_off = facts(decision["stages"].get("sign_off"))
    rescued = _rescued(report["criteria"], summary)
    error = text(run["error"])
    if not summary:
        word, why = "incomplete", "The run left no summary: it was killed, or has not ended."
    elif outcome == "checked":
        word, why = "checked", _counted(run["pending"] or (), "migration would be", "migrations would be") + " applied."
    elif outcome == "no_go" or (decision["word"] == "NO-GO" and not done):
        word, why = "no_go", "; ".join(decision["reasons"][:3]) or error or "The gate's demands are not met."
        why += "" if why.endswith(".") else "."
    elif summary.get("action") == "rollback" and outcome == "succeeded":
        word, why = "rolled_back", _counted(back, "migration was", "migrations were") + " rolled back."
    elif rescued:
        word, why = "rolled_back", " ".join(filter(None, ("What had been applied was taken back.", _sentence(error))))
    elif outcome == "failed":
        word, why = "failed", _sentence(error) or f"The run failed in phase {run['failed_phase']}."
    elif outcome == "stopped" or (not done and run["pending"]):
        said = f"; the gate said {decision['word']}" if decision["word"] else ""
        word, why = "prepared", _counted(run["pending"], "migration is", "migrations are") + f" pending{said}."
    elif outcome == "nothing_to_do":
        word, why = "nothing_to_do", "Everything the plan names is applied already."
    else:
        refused = sign_off.get("decision") == "NO-GO"
        word = "issues" if open_failures or refused or report["notes"]["issues"] else "succeeded"
        verb = "recorded as applied" if summary.get("action") == "baseline" else "applied"
        why = _counted(done, "migration was", "migrations were") + f" {verb}."
        if report["notes"]["issues"]:
            why += f" {_counted(report['notes']['issues'], 'issue was', 'issues were')} noted."
        if refused:
            missing = _texts(sign_off.get("missing"))
            why += " It is not signed off"
            why += f": {_counted(missing, 'criterion is', 'criteria are')} not measured." if missing else "."
        if open_failures:
            why += f" {_counted(open_failures, 'criterion', 'criteria')} failed: "
            why += ", ".join(item["criterion"] for item in open_failures[:3]) + "."
    if word == "nothing_to_do" and open_failures:
        word = "issues"
        why = f"Nothing was pending, and {open_failures[0]['criterion']} failed."
    return {"word": word, "title": STATUS_TITLES[word], "why": why, "touched": bool(done or back or rescued)}


STATUS_TITLES = {
    "succeeded": "Succeeded",
    "issues": "Succeeded with issues",
    "rolled_back": "Rolled back",
    "failed": "Failed",
    "no_go": "NO-GO: nothing was touched",
    "prepared": "Prepared: nothing is applied yet",
    "nothing_to_do": "Nothing to do",
    "checked": "Check mode: nothing was written",
    "incomplete": "Incomplete",
}


def is_decision(item: Facts) -> bool:
    """Whether a criterion is a decision about all others, which fails because one of them does."""
    return str(item["criterion"]) in ("gate.decision", "sign_off.decision", "monitor.decision", "rescue.decision")


def _sentence(words: str | None) -> str | None:
    return words[:1].upper() + words[1:] if words else None


def _rescued(criteria: t.Sequence[Facts], summary: Facts) -> bool:
    """Whether a run that was to apply something ended by taking it back."""
    if (
        summary.get("action") == "rollback"
        or summary.get("outcome") not in ("failed", "rescued")
        or summary.get("unproven")
    ):
        return False
    if summary["outcome"] == "rescued":
        return True
    proof = [item for item in criteria if item["criterion"] == "migration.rolled_back"]
    return bool(summary.get("rolled_back")) or any(item["verdict"] == "pass" for item in proof)


def _counted(items: t.Sized, one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"


def _missing(report: Facts, summary: Facts) -> list[str]:
    """What a reader would look for and not find, said in words."""
    found = []
    if not summary:
        found.append("run.json is missing: who ran it and how it ended is not known")
    found += [f"the chain of evidence is broken: {item}" for item in report["chain"]["breaks"]]
    if report["run"]["applied"] and report["decision"]["word"] is None:
        found.append("no decision of a gate was recorded")
    if report["migrations"] and not report["plan"]["name"]:
        found.append("the plan could not be read: risks, owners and expected durations are not known")
    return found
