# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The run directory: made before the first phase, summed up after the last."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shlex
import tempfile
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import TIMELINE_FILE, append_lines
from ansible_collections.surefoot.dbops.plugins.module_utils._rescue import COMPARED
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration

SUMMARY_FILE = "run.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_VERBS = {
    "migrate": "applied",
    "rollback": "rolled back",
    "baseline": "recorded as applied, not run",
    "announce": "announced",
    "sign_off": "applied",
}
_NOTHING = {
    "migrate": "nothing is pending",
    "rollback": "nothing to roll back",
    "baseline": "nothing to record",
    "announce": "nothing is pending, so there is nothing to announce",
    "sign_off": "nothing was applied by that run",
}
_BACKUP_FACTS = (
    *("path", "name", "manifest_sha256", "size", "seconds", "reused"),
    *("method", "external_id", "location", "confirmed"),  # of one that another program took
)

Results = t.Mapping[str, t.Any]


def make_run_directory(base: str, run_id: str) -> str:
    """Make ``<base>/<run_id>`` with mode 0700 and return it.

    :raises PlanError: the run id cannot be a file name, or was used before
    :raises EnvironmentProblem: the directory cannot be made
    """
    if not _RUN_ID.fullmatch(run_id):
        raise PlanError(
            f"run id {run_id!r} cannot name a directory", remedy="Use letters, digits, dots, dashes and underscores."
        )
    path = os.path.join(base, run_id)
    try:
        os.makedirs(base, mode=0o700, exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError:
        raise PlanError(
            f"run directory {path} exists already", remedy="Give each run a surefoot_run_id of its own, or none."
        ) from None
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot make the run directory {path}: {exc.strerror}",
            remedy="Set surefoot_run_dir to a directory you may write to.",
        ) from exc
    return path


def cut_off_run(base: str) -> str | None:
    """The latest run below this directory, when it has no summary: it was killed, or is still at work."""
    try:
        runs = [name for name in os.listdir(base) if os.path.exists(os.path.join(base, name, TIMELINE_FILE))]
    except OSError:
        return None
    latest = max(runs, key=lambda name: os.stat(os.path.join(base, name, TIMELINE_FILE)).st_mtime, default=None)
    if latest is None or os.path.exists(os.path.join(base, latest, SUMMARY_FILE)):
        return None
    return os.path.join(base, latest)


def write_json(run_dir: str, name: str, value: Results) -> str:
    """Write an object as a file of the run directory, 0600, wholly or not at all; returns its path.

    :raises EnvironmentProblem: it cannot be written
    """
    path = os.path.join(run_dir, name)
    try:
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=run_dir, prefix=f".{name}-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=2, sort_keys=True)
            stream.write("\n")
        os.replace(temporary, path)
    except OSError as exc:
        remedy = "Make room on its disk." if exc.errno in _FULL else "Make the run directory writable."
        raise EnvironmentProblem(f"cannot write {path}: {exc.strerror}", remedy=remedy) from exc
    return path


MONITOR_FILE = "monitor.jsonl"
NOTES_FILE = "notes.jsonl"
NOTE_KINDS = ("note", "issue", "resolution", "next_step")


def check_notes(notes: t.Any) -> None:
    """:raises PlanError: a note without text, or of no known kind"""
    for number, note in enumerate(notes or [], start=1):
        where = f"surefoot_notes[{number}]"
        if not isinstance(note, t.Mapping) or not str(note.get("text") or "").strip():
            raise PlanError(f"{where} has no text", remedy="Give {text, kind, by}.")
        if note.get("kind", "note") not in NOTE_KINDS:
            raise PlanError(f"{where} is of the kind {note['kind']!r}", remedy=f"Kinds: {', '.join(NOTE_KINDS)}.")


def add_notes(run_dir: str, notes: t.Sequence[Results], *, by: str, time: str) -> None:
    """Add operators' notes to the run directory; one that is there already is not added again.

    :raises EnvironmentProblem: the file cannot be written
    """
    path = os.path.join(run_dir, NOTES_FILE)
    try:
        with open(path, encoding="utf-8") as stream:
            known = {(note.get("kind"), note.get("text")) for note in map(json.loads, stream)}
    except (OSError, ValueError):
        known = set()
    plain = [{"kind": str(note.get("kind", "note")), "text": str(note["text"]).strip()} for note in notes]
    new = [
        {**item, "by": str(note.get("by") or by), "time": time}
        for item, note in zip(plain, notes)
        if (item["kind"], item["text"]) not in known
    ]
    if new:
        append_lines(path, new)


@dataclasses.dataclass(frozen=True)
class Begun:
    """A run that lies in a run directory. ``backup`` is what its ``run.json`` says of the backup it took; ``used_up``
    whether it changed its database: its records are sealed then, and nothing may join them."""

    directory: str
    run_id: str
    decided: bool
    used_up: bool
    backup: Results
    applied: tuple[str, ...] = ()
    pauses_writes: bool = False


def begun_run(path: str, name: str) -> Begun:
    """The run of a run directory, or of the ``go.json`` in one.

    :param name: the database as the inventory calls it
    :raises PlanError: no run lies there, or it is of another database, whose evidence this one would spoil
    """
    directory = os.path.abspath(os.path.dirname(path) if path.endswith(".json") else path)
    summary = read_summary(directory)
    for mine, theirs in ((name, summary.get("host")), (os.path.basename(directory), summary.get("run_id"))):
        if theirs not in (None, mine):
            remedy = f"Give surefoot_go the directory of a run of {name}; --limit chooses one of several databases."
            raise PlanError(f"the run in {directory} is {theirs}, this is {mine}", remedy=remedy)
    decided = os.path.isfile(os.path.join(directory, "go.json"))
    used_up = bool(summary.get("applied") or summary.get("rolled_back"))
    applied = tuple(map(str, summary.get("applied") or ()))
    return Begun(
        directory,
        os.path.basename(directory),
        decided,
        used_up,
        summary.get("backup") or {},
        applied,
        bool(summary.get("pause_writes")),
    )


def check_monitored(begun: Begun) -> None:
    """:raises PlanError: this run has left nothing to look after"""
    if begun.applied and not read_summary(begun.directory).get("rolled_back"):
        return
    raise PlanError(
        f"the run in {begun.directory} applied nothing that is still there",
        remedy="Give surefoot_go the directory of a run that applied migrations.",
    )


def last_look(run_dir: str) -> dict[str, t.Any]:
    """Time of the latest look of the monitoring, and where the server log stood; those of the end of the run when there
    was none."""
    summary = read_summary(run_dir)
    look: dict[str, t.Any] = {"time": summary.get("finished"), "position": summary.get("log_position")}
    try:
        with open(os.path.join(run_dir, MONITOR_FILE), encoding="utf-8") as stream:
            for line in stream:
                item = json.loads(line)
                # A look that could not read the log does not end what the next one has to count.
                look = item if item.get("position") else look
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        raise PlanError(
            f"{MONITOR_FILE} in {run_dir} cannot be read", remedy="Restore it, or move it away to begin anew."
        ) from None
    return {"time": look.get("time"), "position": look.get("position")}


def look_of(gate: Results, log: Results, time: str) -> dict[str, t.Any]:
    """One line of the monitoring: what the gate said, and what the next look needs."""
    return {
        "time": time,
        "decision": gate.get("decision"),
        "failed": _names(gate.get("failures")),
        "missing": _names(gate.get("missing")),
        "counts": log.get("counts"),
        "position": log.get("position"),
    }


_REASONS = 5  # of a NO-GO, in the closing lines
# The tasks of a run in their order. What the names mean, their registered results tell.
PHASES = (
    "plan",
    "preflight",
    "hold",
    "rds",
    "snapshot",
    "deployed",
    "variables",
    "health",
    "probes_before",
    "baseline_before",
    "backup",
    "shadow",
    "rehearsal",
    "baseline_shadow",
    "gate",
    "pause",
    "migration",
    "verification",
    "resume",
    "probes_after",
    "baseline_after",
    "server_log",
    "sign_off",
    "monitor",
)


@dataclasses.dataclass(frozen=True)
class Phases:
    """Results of the tasks of a run, by phase; a phase that did not run has none."""

    results: t.Mapping[str, Results] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, results: t.Mapping[str, t.Any]) -> Phases:
        """From registered results; what is not a dictionary, or was skipped, did not run."""
        ran: dict[str, Results] = {}
        for name in PHASES:
            value = results.get(name)
            if isinstance(value, dict) and value and not value.get("skipped"):
                ran[name] = value
                if value.get("failed"):
                    break  # what follows is left over from an earlier run in the same process
        return cls(ran)

    def __getitem__(self, name: str) -> Results:
        return self.results.get(name) or {}

    @property
    def failed(self) -> str | None:
        """The first phase that failed."""
        return next((name for name, result in self.results.items() if result.get("failed")), None)

    @property
    def done(self) -> list[str]:
        """Migrations applied or rolled back by this run, in order."""
        migration = self["migration"]
        return list(migration.get("applied") or []) + list(migration.get("rolled_back") or [])


def summarize(
    phases: Phases,
    *,
    name: str,
    action: str,
    finished: bool,
    check_mode: bool,
    run_dir: str | None,
    stop_after: str = "",
    judgement: Results | None = None,
    rescue: Results | None = None,
    pause_writes: Results | None = None,
) -> dict[str, t.Any]:
    """What the run did, as an object for ``run.json``.

    :param name: the database as the inventory calls it
    :param action: migrate | rollback | baseline | announce
    :param finished: whether the last phase came to its end
    :param stop_after: the phase the run was asked to end after
    :param judgement: what the rollback matrix said, as an object
    :param rescue: result of the rollback that it decided; of the count of its losses when it came no further
    :param pause_writes: the files of tasks that pause writes and resume them
    """
    migration, backup = phases["migration"], phases["backup"].get("backup") or {}
    checks = phases["verification"].get("checks") or []
    rescue = rescue or {}
    rescued = list(rescue.get("rolled_back") or [])
    unproven = str(rescue.get("unproven") or "") or None
    return {
        "host": name,
        "action": action,
        "outcome": _outcome(
            phases, action, finished, check_mode, stop_after, rescued and not rescue.get("failed") and not unproven
        ),
        "failed_phase": None if finished else phases.failed or _last(phases),
        "error": None if finished else _error(phases, judgement),
        "decision": phases["gate"].get("decision"),
        "go": phases["gate"].get("go"),
        "not_measured": _names(phases["gate"].get("missing")),
        "only_people": _only_people(phases["gate"]),
        "applied": list(migration.get("applied") or []),
        "rolled_back": list(migration.get("rolled_back") or []) + rescued,
        "pending": list((migration or phases["plan"]).get("pending") or []),
        "lost_tables": _lost_tables(phases, [*(migration.get("rolled_back") or []), *rescued]),
        "manual": list(phases["plan"].get("manual") or []),
        "migrations": list(migration.get("migrations") or []),
        "judgement": dict(judgement) if judgement and judgement.get("failures") else None,
        "not_rolled_back": _why_not_rolled_back(judgement or {}, rescue),
        "unproven": unproven,
        "sign_off": sign_off_of(phases["sign_off"]),
        "log_position": phases["server_log"].get("position"),
        "backup": {key: backup.get(key) for key in _BACKUP_FACTS} if backup else None,
        "pause_writes": dict(pause_writes or {}),
        "writes_paused": _writes_paused(phases, os.path.basename(run_dir or "")),
        "checks": {"run": len(checks), "failed": [check.get("name") for check in checks if not check.get("passed")]},
        "run_dir": run_dir,
    }


def _writes_paused(phases: Phases, run_id: str) -> dict[str, t.Any] | None:
    """Since when, and for how many seconds once they go on. None when this run did not pause them."""
    paused, resumed = (phases[name].get("pause") or {} for name in ("pause", "resume"))
    if paused.get("run_id") != run_id:
        return None
    return {"since": paused["since"], "seconds": resumed.get("seconds")}


def _outcome(phases: Phases, action: str, finished: bool, check_mode: bool, stop_after: str, rescued: t.Any) -> str:
    if not finished:
        if phases["gate"].get("decision") == "NO-GO":
            return "no_go"
        return "rescued" if rescued else "failed"
    if check_mode:
        return "checked"
    if action == "announce" and phases["plan"].get("pending"):
        return "announced"
    if stop_after and phases["plan"].get("pending"):
        return "stopped"
    return "succeeded" if phases.done else "nothing_to_do"


def read_summary(run_dir: str) -> dict[str, t.Any]:
    """The ``run.json`` of a run that is over.

    :raises PlanError: there is none
    """
    try:
        with open(os.path.join(run_dir, SUMMARY_FILE), encoding="utf-8") as stream:
            return t.cast("dict[str, t.Any]", json.load(stream))
    except (OSError, ValueError) as exc:
        raise PlanError(
            f"no run lies in {run_dir}: {exc}", remedy="Give surefoot_go the run directory of a run that was stopped."
        ) from None


def sign_off_of(result: Results) -> dict[str, t.Any] | None:
    if not result:
        return None
    if not result.get("decision"):
        return {"decision": None, "open": [f"the criteria, which could not be judged ({result.get('msg')})"]}
    opened = _names(result.get("failures")) + _names(result.get("missing"))
    return {"decision": result.get("decision"), "open": opened}


def _first_line(error: t.Any) -> str:
    text = str(error[0] if isinstance(error, list) and error else error).strip().partition("\n")[0]
    return text if len(text) <= 500 else text[:497] + "..."


def _only_people(gate: Results) -> bool:
    """Whether all that stands in the way is for people to say or for the clock: no measurement would change it."""
    opened = _names(gate.get("failures")) + _names(gate.get("missing"))
    people = ("attestation.", "gate.approvals", "gate.window", "gate.notified_24h")
    return bool(opened) and all(name.startswith(people) for name in opened)


def _names(lines: t.Any) -> list[str]:
    """The criteria that lines of the gate begin with."""
    return [str(line).partition(":")[0] for line in lines or []]


def _last(phases: Phases) -> str:
    """Where a run stopped that no task of its own failed: at the gate, at what it compared, or before anything."""
    if phases["gate"].get("decision") == "NO-GO":
        return "gate"
    worse = (
        name
        for name in COMPARED
        if any(record.get("verdict") == "fail" for record in phases[name].get("evidence") or ())
    )
    return next(worse, None) or next(reversed(list(phases.results)), "setup")


def _why_not_rolled_back(judgement: Results, rescue: Results) -> t.Optional[str]:
    """Why what was to be rolled back was not; None when it was, or was not to be."""
    if judgement.get("decision") != "roll_back":
        return None
    if rescue.get("failed"):
        return str(rescue.get("msg") or "the rollback failed")
    if rescue.get("exceeded"):
        return f"{rescue.get('total')} rows would be lost, more than rollback_max_lost_rows. Decide"
    return None if rescue.get("rolled_back") else "the rollback did not come to its end"


def _error(phases: Phases, judgement: Results | None) -> t.Any:
    if phases.failed:
        return phases[phases.failed].get("msg")
    if phases["gate"].get("decision") == "NO-GO":
        return "\n".join(phases["gate"].get("msg") or [])
    line = (judgement or {}).get("line")
    if line or len(phases.results) > 1:
        return line
    # No task of its own fails for drift: a policy may accept it.
    drift = [item for item in phases["plan"].get("drift") or () if item.get("kind") != "spacing"]
    return "; ".join(str(item.get("message")) for item in drift) or None


def describe(summary: Results, *, rollback_hint: str, report: str | None = None) -> list[str]:
    """The lines an operator reads at the end of a run.

    :param rollback_hint: the command that takes back what was applied
    :param report: the report's path, or why there is none
    """
    if summary.get("monitoring"):
        return _describe_look(summary, report)
    name, done = summary["host"], summary["applied"] or summary["rolled_back"]
    verb = _VERBS[summary["action"]]
    lines = [
        {
            "failed": f"{name}: FAILED in phase {summary['failed_phase']}; " + _extent(summary, verb),
            "no_go": f"{name}: NO-GO; nothing in the database was touched.",
            "rescued": f"{name}: ROLLED BACK what this run had applied: {', '.join(summary['rolled_back'])}.",
            "checked": f"{name}: check mode, nothing was written. " + _would(summary),
            "announced": f"{name}: announced: {', '.join(summary['pending'])}.",
            "stopped": f"{name}: {summary['decision'] or 'stopped'}; nothing was applied yet.",
            "nothing_to_do": f"{name}: {_NOTHING[summary['action']]}.",
            "succeeded": f"{name}: {len(done)} migration{'s' if len(done) != 1 else ''} {verb}.",
        }[summary["outcome"]]
    ]
    if summary["judgement"]:
        lines.append(f"  {summary['judgement']['line']}")
        if summary["unproven"]:
            lines.append(f"  ROLLED BACK: {', '.join(summary['rolled_back'])}.")
            lines.append(f"  BUT THAT IS NOT PROVEN: {_first_line(summary['unproven'])}")
        if summary["not_rolled_back"]:
            lines.append(f"  NOT ROLLED BACK: {summary['not_rolled_back'].rstrip('.')}.")
            swap = "the playbook swap with the backup below"
            if (summary["backup"] or {}).get("location"):  # which holds no dump
                swap = "restore the backup below with the program that took it"
            lines.append(f"  Run the rollback playbook, or as the last resort {swap}.")
    elif summary["outcome"] == "no_go":
        lines += _in_the_way(summary)
    elif summary["outcome"] == "checked" and summary["not_measured"]:
        lines.append(f"  A run would still have to measure: {', '.join(summary['not_measured'])}.")
    elif summary["outcome"] == "failed" and summary["error"]:
        lines.append(f"  {_first_line(summary['error'])}")
    elif summary["outcome"] == "stopped":
        go = shlex.quote(str(summary["run_dir"]))
        lines.append(f"  To go on: the same command without surefoot_stop_after, but with -e surefoot_go={go}")
    if summary["outcome"] == "checked" and summary["pending"] and summary["pause_writes"]:
        files = " and resumed by ".join(summary["pause_writes"][key] for key in ("pause", "resume"))
        lines.append(f"  Writes would be paused by {files}; neither was run.")
    elif summary["writes_paused"] and summary["writes_paused"]["seconds"] is not None:
        lines.append(f"Writes were paused for {human_duration(summary['writes_paused']['seconds'])}.")
    for item in summary["migrations"]:
        if item.get("id") in done:
            lines.append(f"  {item['id']}: {_measures(item)}")
    for item in summary["manual"]:
        lines.append(f"  {item['id']} is held back ({item['reason']}).")
    if summary["lost_tables"]:
        where = "; their rows are in the backup" if summary["backup"] else ""
        lines.append(f"Tables dropped with their rows: {', '.join(summary['lost_tables'])}{where}.")
    checks = summary["checks"]
    if checks["run"]:
        failed = f", failed: {'; '.join(map(str, checks['failed']))}" if checks["failed"] else ", all passed"
        lines.append(f"Verification: {checks['run']} check{'s' if checks['run'] != 1 else ''}{failed}.")
    if summary["sign_off"]:
        opened = summary["sign_off"]["open"]
        lines.append("Signed off." if not opened else f"Not signed off; open: {', '.join(opened)}.")
    if summary["backup"]:
        backup = summary["backup"]
        reused = " (taken before this run)" if backup.get("reused") else ""
        if backup.get("location"):
            lines.append(f"Backup{reused}, by {backup['method']}: {backup['external_id']} in {backup['location']}")
            lines.append(f"  its record: {backup['path']}")
        else:
            lines.append(f"Backup{reused}: {backup['path']}")
        lines.append(f"  sha256 of its manifest: {backup['manifest_sha256']} (keep it elsewhere)")
    if summary["run_dir"]:
        lines.append(f"Run directory: {summary['run_dir']}")
    if report:
        lines.append(f"Report: {report}")
    stands = summary["applied"] and summary["outcome"] != "rescued" and not summary["unproven"]
    if summary["action"] == "migrate" and stands and rollback_hint:
        lines.append(f"To roll back: {rollback_hint}")
    return lines


def _in_the_way(summary: Results) -> t.Iterator[str]:
    """What a NO-GO names, and how to decide again where no measurement would change it."""
    reasons = str(summary["error"] or "").splitlines()[1:]  # the first line only counts them
    for reason in reasons[:_REASONS]:
        yield f"  {_first_line(reason)}"
    if len(reasons) > _REASONS:
        yield f"  and {len(reasons) - _REASONS} more, in the report."
    if summary["run_dir"] and summary["only_people"]:
        go = shlex.quote(str(summary["run_dir"]))
        yield f"  To decide again on the same backup and rehearsal: the same command with -e surefoot_go={go}"


def _describe_look(summary: Results, report: str | None) -> list[str]:
    look = summary["monitoring"]
    applied = ", ".join(summary["applied"])
    lines = [f"{summary['host']}: {look['decision'] or 'NOT JUDGED'} in monitoring of {applied}."]
    for word, key in (("Failed", "failed"), ("Not measured or not said", "missing")):
        if look[key]:
            lines.append(f"{word}: {', '.join(look[key])}.")
    if look["counts"]:
        counts = look["counts"]
        lines.append(
            f"Server log since the look before: {counts['errors']} errors, {counts['permission_denied']} denials,"
            f" {counts['foreign_key_violation']} foreign key violations."
        )
    lines.append(f"Run directory: {summary['run_dir']}")
    return lines + ([f"Report: {report}"] if report else [])


def _lost_tables(phases: Phases, rolled_back: t.Sequence[str]) -> list[str]:
    plan = phases["plan"].get("migrations") or []
    lost = [table for item in plan if item.get("id") in rolled_back for table in item.get("loses") or []]
    return list(dict.fromkeys(lost))


def _extent(summary: Results, verb: str) -> str:
    done = summary["applied"] or summary["rolled_back"]
    if summary["unproven"]:
        return "what had been applied was rolled back."
    if not done:
        return f"no migration was {verb.partition(',')[0]} by this run."
    rest = f"; still pending: {', '.join(summary['pending'])}" if summary["pending"] else ""
    return f"{verb} before that, and recorded: {', '.join(done)}{rest}."


def _would(summary: Results) -> str:
    if not summary["pending"]:
        return "Nothing is to be done."
    verb = {"rollback": "roll back", "baseline": "record as applied"}.get(summary["action"], "apply")
    return f"A run would {verb}: {', '.join(summary['pending'])}."


def _measures(item: Results) -> str:
    parts = []
    if item.get("statements") is not None:
        parts.append(f"{item['statements']} statement{'s' if item['statements'] != 1 else ''}")
    if item.get("seconds") is not None:
        parts.append(human_duration(item["seconds"]))
    if item.get("lock_held_seconds") is not None:
        parts.append(f"longest blocking lock {human_duration(item['lock_held_seconds'])}")
    if (item.get("attempts") or 1) > 1:
        parts.append(f"{item['attempts']} attempts")
    return ", ".join(parts)
