# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What people are told of a run: notification, alert, briefing and report, as Markdown and as plain text.

All four come from the report object. Before a run there is none yet: :func:`announce` makes one of the plan and of
what the inventory says of the time, the contact and the controls (``docs/messages.md``).
"""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._drawings import clean, duration
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._report import (
    Facts,
    brief,
    counted_kinds,
    facts,
    moment,
    planned_report,
    rows,
    write_text,
)

MESSAGES = "messages"
# Written before the run, and kept as they were sent.
BEFORE = ("pre-migration", "devops-alert", "ciso-briefing")
AFTER = ("post-migration",)
STATUS_WORDS = {
    "succeeded": "SUCCESS",
    "issues": "ISSUES",
    "rolled_back": "ROLLED BACK",
    "failed": "FAILED",
    "no_go": "NO-GO",
    "prepared": "PREPARED",
    "nothing_to_do": "NOTHING TO DO",
    "checked": "CHECKED ONLY",
    "incomplete": "INCOMPLETE",
}
_GROUP_WORDS = {
    "pass": "PASS",
    "fail": "FAIL",
    "missing": "NOT MEASURED",
    "waived": "WAIVED",
    "not_required": "NOT DEMANDED",
    "not_applicable": "DOES NOT APPLY",
}
_WIDTH = 100
# What the announcements may be told; docs/messages.md explains each.
NOTICE_KEYS = (
    "when",
    "until",
    "duration",
    "impact",
    "changes",
    "actions",
    "contact",
    "owner",
    "dashboard",
    "severity",
    "controls",
    "kpis",
    "phases",
)


class Message:
    """Headings, paragraphs, lists and tables, rendered twice. Every text in it is escaped for where it goes."""

    def __init__(self) -> None:
        self._blocks: list[tuple[str, t.Any]] = []

    def heading(self, words: t.Any, level: int = 2) -> Message:
        self._blocks.append(("heading", (level, words)))
        return self

    def paragraph(self, words: t.Any) -> Message:
        self._blocks.append(("paragraph", words))
        return self

    def facts(self, pairs: t.Iterable[tuple[str, t.Any]]) -> Message:
        """Lines of name and value; a value of nothing is left out."""
        self._blocks.append(("facts", [(key, value) for key, value in pairs if value not in (None, "")]))
        return self

    def bullets(self, items: t.Iterable[t.Any], *, numbered: bool = False) -> Message:
        self._blocks.append(("numbered" if numbered else "bullets", list(items)))
        return self

    def table(self, heads: t.Sequence[str], lines: t.Sequence[t.Sequence[t.Any]]) -> Message:
        self._blocks.append(("table", (heads, lines)))
        return self

    def code(self, words: t.Any) -> Message:
        self._blocks.append(("code", words))
        return self

    def markdown(self) -> str:
        return "\n\n".join(filter(None, (_MARKDOWN[kind](value) for kind, value in self._blocks))) + "\n"

    def text(self) -> str:
        return "\n\n".join(filter(None, (_TEXT[kind](value) for kind, value in self._blocks))) + "\n"


_SPECIAL = re.compile(r"([\\`*\[\]<>|~])")
_EDGE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_FIRST = re.compile(r"\A([#+=-]|\d+(?=[.)]))")


def one_line(value: t.Any) -> str:
    """A value in words on one line."""
    return " ".join(clean(brief(value)).split())


def markdown(value: t.Any) -> str:
    """Text that Markdown shows as it is, on one line."""
    words = _SPECIAL.sub(r"\\\1", one_line(value).replace("&", "&amp;"))
    words = _EDGE_UNDERSCORE.sub(r"\\_", words)
    return _FIRST.sub(
        lambda found: f"\\{found.group()}" if not found.group().isdigit() else f"{found.group()}\\", words
    )


def _fenced(value: t.Any) -> str:
    words = clean(value).strip()
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", words)), default=0))
    return f"{fence}text\n{words}\n{fence}"


def _markdown_table(value: tuple[t.Sequence[str], t.Sequence[t.Sequence[t.Any]]]) -> str:
    heads, lines = value
    body = [heads, *lines]
    cells = ["| " + " | ".join(markdown(cell) for cell in line) + " |" for line in body]
    return "\n".join([cells[0], "|" + " --- |" * len(heads), *cells[1:]])


_MARKDOWN: dict[str, t.Callable[[t.Any], str]] = {
    "heading": lambda value: f"{'#' * value[0]} {markdown(value[1])}",
    "paragraph": markdown,
    "facts": lambda pairs: "\n".join(f"- **{markdown(key)}:** {markdown(value)}" for key, value in pairs),
    "bullets": lambda items: "\n".join(f"- {markdown(item)}" for item in items),
    "numbered": lambda items: "\n".join(f"{count}. {markdown(item)}" for count, item in enumerate(items, 1)),
    "table": _markdown_table,
    "code": _fenced,
}


def _wrapped(words: str, first: str = "", rest: str = "") -> str:
    """Lines of at most 100 characters; a word that is longer stays whole."""
    lines, line = [], first
    for word in words.split():
        if len(line) + len(word) + 1 > _WIDTH and line.strip():
            lines.append(line.rstrip())
            line = rest
        line += ("" if not line or line.endswith(" ") else " ") + word
    return "\n".join([*lines, line.rstrip()])


def _text_heading(value: tuple[int, t.Any]) -> str:
    words = one_line(value[1])
    return f"{words}\n{('=' if value[0] == 1 else '-') * min(len(words), _WIDTH)}"


def _text_table(value: tuple[t.Sequence[str], t.Sequence[t.Sequence[t.Any]]]) -> str:
    """One paragraph a line: columns of free text do not fit beside each other."""
    heads, lines = value
    blocks = [
        "\n".join(_wrapped(f"{head}: {one_line(cell)}", "  ", "    ") for head, cell in zip(heads, line))
        for line in lines
    ]
    return "\n\n".join(blocks)


_TEXT: dict[str, t.Callable[[t.Any], str]] = {
    "heading": _text_heading,
    "paragraph": lambda words: _wrapped(one_line(words)),
    "facts": lambda pairs: "\n".join(_wrapped(f"{one_line(key)}: {one_line(value)}", "", "  ") for key, value in pairs),
    "bullets": lambda items: "\n".join(_wrapped(one_line(item), "- ", "  ") for item in items),
    "numbered": lambda items: "\n".join(
        _wrapped(one_line(item), f"{count}. ", "   ") for count, item in enumerate(items, 1)
    ),
    "table": _text_table,
    "code": lambda words: "\n".join(f"    {line}" for line in clean(words).strip().splitlines()),
}


# --- the four messages -----------------------------------------------------------------------------------------------


def notification(report: Facts) -> Message:
    """To the team and everybody concerned, 24 hours before."""
    notice, message = report["notice"], Message()
    message.heading(f"Database migration scheduled: {_subject(report)}", 1)
    message.facts(
        [
            ("When", _when(notice)),
            ("Duration", _length(report)),
            ("Risk", _highest_risk(report)),
            ("Impact", notice.get("impact") or "None expected; every migration is rehearsed on a copy first."),
            ("Rollback", _way_back(report)),
            ("Contact", notice.get("contact") or "not given"),
        ]
    )
    return message.heading("Changes").bullets(_changes(report))


def alert(report: Facts) -> Message:
    """To those who run the systems around the database: what they see, and what they have to do."""
    notice, message = report["notice"], Message()
    severity = one_line(notice.get("severity") or "scheduled").upper()
    message.heading(f"[{severity}] Database maintenance: {_when(notice)}", 1)
    message.facts(
        [("Database", report["run"]["host"]), ("Migration set", report["plan"]["name"]), ("Expected", _length(report))]
    )
    locks = report["locks"]
    impact = [notice.get("impact") or "None expected."]
    rehearsed = [row["held_seconds"] for row in locks["rehearsal"] if row["held_seconds"] is not None]
    budget = f" (budget {duration(locks['budget_seconds'])})" if locks["budget_seconds"] is not None else ""
    if rehearsed:
        impact.append(
            f"Longest lock that blocks readers or writers, in the rehearsal: {duration(max(rehearsed))}{budget}"
        )
    elif report["rehearsal"]:
        impact.append("The rehearsal took no lock on an existing table that blocks readers or writers.")
    elif budget:
        impact.append(f"A lock that blocks readers or writers is given up after {duration(locks['budget_seconds'])}.")
    message.heading("Impact").bullets(impact)
    actions = _list(notice.get("actions"))
    message.heading("Action required")
    message = message.bullets(actions, numbered=True) if actions else message.paragraph("None.")
    message.heading("While it runs").facts(
        [("Dashboard", notice.get("dashboard")), ("Contact", notice.get("contact") or "not given")]
    )
    if report["rollback"]["command"]:
        message.heading("To roll back").code(report["rollback"]["command"])
    return message


def briefing(report: Facts) -> Message:
    """To the security officer: control, compliance reference, risk, and what was measured of it."""
    notice, message = report["notice"], Message()
    message.heading(f"Security summary: {_subject(report)}", 1)
    lines = [
        (
            item.get("control") or "not named",
            item.get("reference") or "none given",
            item.get("risk") or "none given",
            _measured(report, item),
        )
        for item in rows(notice.get("controls"))
    ]
    if lines:
        message.heading("Controls").table(("Control", "Compliance reference", "Risk mitigated", "Measured"), lines)
    else:
        message.heading("Controls").paragraph("This migration names no control: it adds none, or none was declared.")
    if report["risks"]:
        message.heading("Risks of the change").table(
            ("Change", "Probability", "Impact", "Mitigation", "Owner"),
            [
                (
                    item["summary"] or item["migration"],
                    item["probability"] or "not given",
                    item["impact"] or "not given",
                    item["mitigation"] or "none given",
                    item["owner"] or "nobody named",
                )
                for item in report["risks"]
            ],
        )
    approvals = [f"{item['name']} ({item['role']})" for item in report["decision"]["approvals"] if item["name"]]
    message.heading("Safeguards").facts(
        [
            ("Way back", _way_back(report)),
            ("Backup", "proven by a restore" if _verdict_of(report, "restore.completed") == "pass" else None),
            ("Rehearsal", "passed on a copy" if _verdict_of(report, "rehearsal.deploy") == "pass" else None),
            ("Gate", report["decision"]["word"]),
            ("Approved", ", ".join(approvals)),
            (
                "Evidence",
                f"{report['chain']['records']} records, sha256 of the last: {report['chain']['head']}"
                if report["chain"]["head"]
                else None,
            ),
        ]
    )
    kpis = _list(notice.get("kpis"))
    return message.heading("Measured afterwards").bullets(kpis) if kpis else message


def execution_report(report: Facts) -> Message:
    """To the team and everybody concerned, within two hours of the end."""
    run, notes, message = report["run"], report["notes"], Message()
    message.heading(f"Execution report: {_subject(report)}", 1)
    left = any(item["state"] == "applied" for item in report["migrations"])
    created = counted_kinds((report["objects"] or {}).get("created", {})) if left else "none left"
    message.facts(
        [
            ("Status", STATUS_WORDS.get(report["status"]["word"], report["status"]["word"].upper())),
            ("Summary", report["status"]["why"]),
            ("Execution time", _took(report)),
            ("Finished", moment(run["finished"]) if run["finished"] else None),
            ("Migrations", ", ".join(f"{item['id']} ({item['state']})" for item in report["migrations"]) or "none"),
            ("Objects created", created or ("none" if report["objects"] else "not measured")),
        ]
    )
    message.heading("Verification results")
    groups = [f"{group['title']}: {_GROUP_WORDS[group['status']]}{_numbers(group)}" for group in report["groups"]]
    message.bullets(groups or ["Nothing was measured."])
    problems = [
        f"{item['criterion']}: measured {brief(item['measured'])}, required {brief(item['required'])}"
        f"{' (waived)' if item['waiver'] else ''}"
        for item in report["criteria"]
        if item["verdict"] == "fail"
    ]
    issues = [*(_note(item) for item in notes["issues"]), *((run["error"] or "").splitlines()), *problems]
    message.heading("Issues encountered").bullets(issues or ["None"])
    fixes = [_note(item) for item in notes["resolutions"]]
    if report["rescue"] and not fixes:
        fixes.append(f"The rollback matrix said: {one_line(report['rescue']['decision']).replace('_', ' ')}.")
    if report["status"]["word"] == "rolled_back" and not notes["resolutions"]:
        fixes.append("What had been applied was rolled back.")
    message.heading("Resolution").bullets(fixes or ["Open" if issues else "Not needed"])
    message.heading("Next steps").bullets(
        [_note(item) for item in notes["next_steps"]] or _usual_steps(report), numbered=True
    )
    return message.paragraph(f"Full details: {os.path.join(str(run['run_dir']), 'report.html')}")


_MAKERS: dict[str, t.Callable[[Facts], Message]] = {
    "pre-migration": notification,
    "devops-alert": alert,
    "ciso-briefing": briefing,
    "post-migration": execution_report,
}


def write_messages(run_dir: str, report: Facts) -> list[str]:
    """Write what is not written yet of the messages from before, and the execution report anew; returns their paths.

    :raises EnvironmentProblem: a file cannot be written
    """
    names = list(AFTER)
    for name in BEFORE:  # one that was sent stays as it was sent
        if report["migrations"] and not os.path.exists(os.path.join(run_dir, MESSAGES, f"{name}.md")):
            names.insert(0, name)
    return _write(run_dir, sorted(names, key=list(_MAKERS).index), report)


def announce(
    directory: str,
    plan: Facts,
    *,
    database: str,
    pending: t.Sequence[str],
    notice: Facts | None = None,
    rollback_command: str = "",
) -> list[str]:
    """Write the messages that go out before a run into ``<directory>/messages``; returns their paths.

    :param plan: of :func:`plan_facts`
    :param pending: the migrations that are to be applied
    :raises PlanError: the notice has a key nobody reads
    :raises EnvironmentProblem: a file cannot be written
    """
    check_notice(notice)
    report = planned_report(
        plan, database=database, pending=pending, notice=facts(notice), rollback_command=rollback_command
    )
    return _write(directory, BEFORE, report)


def check_notice(notice: t.Any) -> None:
    """:raises PlanError: the notice is no dictionary, or has a key nobody reads"""
    if notice is not None and not isinstance(notice, t.Mapping):
        raise PlanError("surefoot_notice is not a dictionary", remedy=f"Its keys are {', '.join(NOTICE_KEYS)}.")
    unknown = [str(key) for key in notice or () if key not in NOTICE_KEYS]
    if unknown:
        raise PlanError(f"surefoot_notice has the unknown key {unknown[0]}", remedy=f"Known: {', '.join(NOTICE_KEYS)}.")


def _write(directory: str, names: t.Iterable[str], report: Facts) -> list[str]:
    paths = []
    for name in names:
        message = _MAKERS[name](report)
        for suffix, content in ((".md", message.markdown()), (".txt", message.text())):
            paths.append(write_text(os.path.join(directory, MESSAGES, name + suffix), content))
    return paths


# --- words -----------------------------------------------------------------------------------------------------------


def _list(value: t.Any) -> list[t.Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value in (None, "") else [value]


def _subject(report: Facts) -> str:
    name, host = report["plan"]["name"] or "migrations", report["run"]["host"]
    return f"{name} on {host}" if host else str(name)


def _when(notice: Facts) -> str:
    begin, end = notice.get("when"), notice.get("until")
    if begin and end:
        return f"{one_line(begin)} to {one_line(end)}"
    return one_line(begin) if begin else "not scheduled yet"


def _length(report: Facts) -> str:
    given = report["notice"].get("duration")
    if given:
        return one_line(given)
    expected = sum(item["expected_seconds"] or 0 for item in report["migrations"])
    return f"about {duration(expected)} of work on the database" if expected else "not estimated"


_LEVELS = ("critical", "high", "medium", "low")


def _highest_risk(report: Facts) -> str:
    levels = [item["level"] for item in report["risks"]]
    return next((level for level in _LEVELS if level in levels), "not assessed")


def _way_back(report: Facts) -> str:
    without = [item["id"] for item in report["migrations"] if not item["rollback_files"]]
    if not report["migrations"]:
        return "nothing to roll back"
    return f"by restoring the backup for {', '.join(without)}" if without else "every migration has rollback files"


def _changes(report: Facts) -> list[str]:
    given = _list(report["notice"].get("changes"))
    return [one_line(item) for item in given] or [item["summary"] or item["id"] for item in report["migrations"]]


def _measured(report: Facts, control: Facts) -> str:
    prefix = str(control.get("criterion") or "")
    found = [item for item in report["criteria"] if f"{item['criterion']}.".startswith(f"{prefix}.")] if prefix else []
    if not found:
        return "not measured"
    passed = sum(item["verdict"] == "pass" for item in found)
    failed = any(item["verdict"] == "fail" for item in found)
    word = "pass" if passed == len(found) else "FAIL" if failed else "not all measured"
    return f"{word}: {passed} of {len(found)}"


def _verdict_of(report: Facts, criterion: str) -> str | None:
    return next((item["verdict"] for item in report["criteria"] if item["criterion"] == criterion), None)


def _took(report: Facts) -> str:
    seconds, planned = report["run"]["seconds"], report["timeline"]["planned_seconds"]
    if seconds is None:
        return "not recorded"
    return duration(seconds) + (f" (planned {duration(planned)})" if planned else "")


def _numbers(group: Facts) -> str:
    parts = [f"{group[key]} {words}" for key, words in _COUNTED if group[key]]
    return f" ({', '.join(parts)})" if parts else ""


_COUNTED = (("fail", "failed"), ("missing", "not measured"), ("pass", "passed"), ("waived", "waived"))


def _note(item: Facts) -> str:
    return f"{one_line(item['text'])} ({one_line(item['by'])})" if item["by"] else one_line(item["text"])


def _usual_steps(report: Facts) -> list[str]:
    """What follows from the outcome when the operators have not said otherwise."""
    word = report["status"]["word"]
    failed = [item["criterion"] for item in report["criteria"] if item["status"] == "fail"]
    if word in ("failed", "incomplete"):
        return ["Mend the cause, then run the same command again: it goes on where it stopped."]
    if word == "no_go":
        return ["Meet what the gate lists, or record a waiver, then run again."]
    if word == "rolled_back":
        return ["Find the cause before the next attempt.", "Keep the backup and this run directory until then."]
    if word == "prepared":
        return ["Approve, then apply before the GO expires."]
    if word == "issues" and failed:
        return [f"Decide about {', '.join(failed[:5])}.", "Watch error rates and response times for a week."]
    if word in ("succeeded", "issues"):
        return ["Watch error rates and response times for a week.", "Keep the backup until then."]
    return ["None."]
