# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""``report.html``: the report object as one page that needs nothing but a browser. No script, no request, no font.

The order is that of the questions: what was decided and why, what failed, how to go back, then the proof.
"""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._drawings import (
    Markup,
    clean,
    duration,
    element,
    join,
    latency,
    locks,
    risk_matrix,
    sparkline,
    timeline,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._messages import write_messages
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._report import (
    Facts,
    ReportError,
    brief,
    build_report,
    counted_kinds,
    is_decision,
    moment,
    plan_facts,
    write_report_json,
    write_text,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_size

PAGE_FILE = "report.html"
_DASH = "\N{EM DASH}"
_LONGEST = 300  # characters of one value
_MOST_FAILED = 30  # rows at the top; all of them stand under "Every criterion"
_TONES = {"succeeded": "good", "issues": "warn", "rolled_back": "warn", "failed": "bad", "no_go": "bad"}
_VERDICTS = {"pass": "pass", "fail": "FAIL", "not_measured": "not measured", "not_applicable": "does not apply"}
_STATUSES = {
    "fail": ("Failed", "FAIL"),
    "missing": ("Not measured, and demanded", "not measured"),
    "waived": ("Waived", "waived"),
    "pass": ("Passed", "pass"),
    "not_required": ("Not demanded", "not demanded"),
    "not_applicable": ("Does not apply", "does not apply"),
}

# Light and dark. Text on its ground has a contrast of 4.5 and more (WCAG AA); a test computes it.
PALETTE = {
    "ground": ("#ffffff", "#15181c"),
    "panel": ("#f5f6f8", "#1d2126"),
    "ink": ("#1b1f24", "#e7e9ec"),
    "muted": ("#59626e", "#a3abb6"),
    "line": ("#d9dde3", "#343a42"),
    "good": ("#17693f", "#6cc894"),
    "bad": ("#a8201a", "#ff8f85"),
    "warn": ("#7a5200", "#e3b860"),
    "accent": ("#1d5a9e", "#82b4ee"),
    "heat0": ("#eef1f4", "#23282e"),
    "heat1": ("#f6ecd0", "#3b331c"),
    "heat2": ("#f6dcc4", "#4a2f1b"),
    "heat3": ("#f3cac6", "#552523"),
}

_STYLE = """
:root{color-scheme:light dark;%(light)s}
@media (prefers-color-scheme:dark){:root{%(dark)s}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%%}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5
 -apple-system,BlinkMacSystemFont,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif;
 font-variant-numeric:tabular-nums}
main,header,footer{max-width:1080px;margin:0 auto;padding:0 28px}
header{padding-top:28px}
.origin{display:flex;flex-wrap:wrap;gap:2px 20px;color:var(--muted);font-size:13px;margin:0 0 22px}
.origin span{min-width:0;overflow-wrap:anywhere}
.origin b{color:var(--ink);font-weight:600}
.verdict{border-left:6px solid var(--tone);padding:2px 0 2px 20px;margin:0 0 24px}
.verdict h1{font-size:32px;line-height:1.2;margin:0 0 6px;font-weight:650;letter-spacing:-.01em;color:var(--tone)}
.verdict p{margin:0;font-size:17px;max-width:52em;overflow-wrap:anywhere}
.tone-good{--tone:var(--good)}
.tone-bad{--tone:var(--bad)}
.tone-warn{--tone:var(--warn)}
.tone-plain{--tone:var(--accent)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));border:1px solid var(--line);
 margin:0 0 22px}
.tiles div{padding:12px 16px;border-right:1px solid var(--line);margin-right:-1px}
.tiles dt{color:var(--muted);font-size:13px}
.tiles dd{margin:2px 0 0;font-size:20px;line-height:1.25;font-weight:600;overflow-wrap:anywhere}
.tiles small{display:block;font-size:13px;font-weight:400;color:var(--muted);margin-top:2px}
nav{font-size:14px;padding:0 0 4px}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:0;padding:0}
a{color:var(--accent);text-underline-offset:2px}
section{padding:26px 0 0;margin:26px 0 0;border-top:1px solid var(--line)}
h2{font-size:20px;line-height:1.3;margin:0 0 4px;font-weight:650}
h3{font-size:15px;margin:22px 0 6px;font-weight:650}
p{margin:0 0 12px;max-width:70em}
.lead,.none{color:var(--muted);font-size:14px}
ul.plain{margin:0 0 12px;padding-left:20px}
li{overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%%;font-size:14px;margin:6px 0 14px}
caption{text-align:left;color:var(--muted);font-size:13px;padding:0 0 6px}
th,td{text-align:left;vertical-align:top;padding:6px 14px 6px 0;border-bottom:1px solid var(--line);
 overflow-wrap:break-word}
th:last-child,td:last-child{padding-right:0}
thead th{font-weight:600;color:var(--muted);font-size:13px;overflow-wrap:normal}
tbody th{font-weight:600}
td.n,th.n{text-align:right;white-space:nowrap}
.scroll{overflow-x:auto;max-width:100%%}
.wide{min-width:640px}.pair .wide{min-width:0}
.even{table-layout:fixed}
code,pre{font-family:ui-monospace,"SF Mono","Cascadia Mono",Menlo,Consolas,"Liberation Mono",monospace;
 font-size:.9em;overflow-wrap:anywhere}
pre{background:var(--panel);border:1px solid var(--line);padding:10px 14px;margin:8px 0 12px;white-space:pre-wrap}
.sub{display:block;color:var(--muted);font-size:13px;font-weight:400}
.tag{display:inline-block;white-space:nowrap;font-size:12.5px;line-height:1.2;padding:2px 7px;
 border:1px solid currentColor;border-radius:3px}
.tag.pass{color:var(--good)}
.tag.fail{background:var(--bad);border-color:var(--bad);color:var(--ground);font-weight:700}
.tag.missing{color:var(--warn);border-style:dashed}
.tag.not_applicable,.tag.not_required{color:var(--muted);border-style:dotted}
.tag.waived{color:var(--warn)}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:6px 0 14px;font-size:14px}
.facts dt{color:var(--muted)}
.facts dd{margin:0;overflow-wrap:anywhere}
.pair{display:grid;grid-template-columns:minmax(0,400px) minmax(0,1fr);gap:8px 28px;align-items:start}
.pair>*{min-width:0}
.sparks{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:18px 28px;margin:10px 0}
.sparks figure{margin:0}
.sparks figcaption{font-size:13px}
svg{display:block;width:100%%;height:auto;margin:12px 0}
svg text{font-size:12.5px;fill:var(--ink);font-family:inherit;unicode-bidi:isolate}
svg .muted{fill:var(--muted)}
svg .strong{font-weight:650}
svg .value{font-weight:500;paint-order:stroke;stroke:var(--ground);stroke-width:4px;stroke-linejoin:round}
.v{overflow-wrap:anywhere}summary{cursor:pointer;color:var(--accent);font-size:14px;margin:4px 0 10px}
svg .grid{stroke:var(--line);stroke-width:1}
svg .zero{stroke:var(--muted);stroke-width:1}
svg .limit{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 3}
svg .bar.actual{fill:var(--accent)}
svg .bar.planned{fill:none;stroke:var(--muted)}
svg .bar.actual.failed{fill:var(--bad)}
svg .bar.planned.failed{stroke:var(--bad);stroke-width:2}
svg .hatch{stroke:var(--muted);stroke-width:.7}
svg .mark{fill:var(--accent)}
svg .mark.planned{fill:none;stroke:var(--muted)}
svg .whisker{stroke:var(--ink);stroke-width:1.25}
svg .curve{fill:none;stroke:var(--accent);stroke-width:1.5}
svg .cell{stroke:none}
svg .heat0{fill:var(--heat0)}
svg .heat1{fill:var(--heat1)}
svg .heat2{fill:var(--heat2)}
svg .heat3{fill:var(--heat3)}
svg.small{margin:4px 0;max-width:416px}
svg.small text{font-size:13px}
footer{margin-top:34px;padding-top:14px;padding-bottom:34px;color:var(--muted);font-size:13px}
@media (max-width:720px){main,header,footer{padding-left:16px;padding-right:16px}
.pair{grid-template-columns:1fr}
.scroll svg.drawing:not(.small){min-width:760px}
.verdict h1{font-size:26px}
.facts{grid-template-columns:1fr;gap:0}
.facts dd{margin-bottom:8px}}
@media print{:root{color-scheme:light;%(light)s}
body{font-size:10.5pt;print-color-adjust:exact;-webkit-print-color-adjust:exact}
main,header,footer{max-width:none;padding-left:0;padding-right:0}
header{padding-top:0}
nav{display:none}
a{color:inherit;text-decoration:none}
section{margin-top:16px;padding-top:14px}
h2,h3,caption,.lead{break-after:avoid}
details:not([open]){display:none}.pair{grid-template-columns:1fr}svg .value{stroke:none}
tr,figure,svg,.tiles,pre{break-inside:avoid}
thead{display:table-header-group}th,td{overflow-wrap:anywhere}
.scroll{overflow:visible}
table{font-size:9pt}
@page{margin:15mm 14mm}}
"""


def write_report(
    run_dir: str,
    *,
    plan_path: str | None = None,
    notice: Facts | None = None,
    rollback_command: str = "",
) -> dict[str, t.Any]:
    """Write ``report.json``, ``report.html`` and the messages of a run.

    :param plan_path: the migration set; risks, owners and expected durations come from it
    :param notice: who announces what, see ``docs/messages.md``
    :param rollback_command: the command that takes back what was applied, as typed
    :return: ``report`` (the object), ``json``, ``html`` (paths), ``messages`` (paths)
    :raises ReportError: the report could not be made or written; what the run did stands
    """
    try:
        plan = plan_facts(load_plan(plan_path)) if plan_path else None
    except SurefootError:
        plan = None  # the report says that it is missing
    try:
        report = build_report(run_dir, plan=plan, notice=notice, rollback_command=rollback_command)
        return {
            "report": report,
            "json": write_report_json(run_dir, report),
            "html": write_text(os.path.join(run_dir, PAGE_FILE), render(report)),
            "messages": write_messages(run_dir, report),
        }
    except ReportError:
        raise
    except SurefootError as exc:
        raise ReportError(exc.message, remedy=exc.remedy) from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OSError) as exc:
        raise ReportError(
            f"the report of {run_dir} could not be written: {type(exc).__name__}",
            remedy="The files in it are as the phases wrote them; please report this with them.",
        ) from exc


def render(report: Facts) -> str:
    """The page of a report object."""
    sections = [(name, title, body) for name, title, make in _SECTIONS if (body := make(report)) is not None]
    links = [element("li", element("a", title, href=f"#{name}")) for name, title, _body in sections]
    blocks = [
        element("section", element("h2", title, id=f"{name}-title"), body, id=name, aria_labelledby=f"{name}-title")
        for name, title, body in sections
    ]
    head = join(
        [
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'),
            Markup('<meta name="robots" content="noindex"><meta name="referrer" content="no-referrer">'),
            # What evidence holds comes from outside: even if some of it got in as markup, nothing would run or load.
            Markup(
                "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';style-src 'unsafe-inline'\">"
            ),
            element("title", f"{report['status']['title']}: {report['run']['host'] or report['run']['run_id']}"),
            element("style", Markup(_style())),
        ]
    )
    made = f"Made by surefoot.dbops at {moment(report['generated'])}. The same facts for programs: report.json."
    navigation = element("nav", element("ul", *links), aria_label="Sections")
    body = join(
        [
            element("header", _origin(report), _verdict(report), _tiles(report), navigation),
            element("main", *blocks),
            element("footer", made),
        ]
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _style() -> str:
    colours = [";".join(f"--{name}:{pair[side]}" for name, pair in PALETTE.items()) for side in (0, 1)]
    return " ".join((_STYLE % {"light": colours[0], "dark": colours[1]}).split("\n"))


# --- pieces ----------------------------------------------------------------------------------------------------------


def _show(value: t.Any) -> Markup:
    """A value of the evidence, isolated in its own direction of writing and cut where it would flood the page."""
    words = clean(brief(value))
    rest = len(words) - _LONGEST
    if rest <= 20:
        return element("bdi", words, class_="v")
    cut = element("em", f"({rest} more characters in report.json)")
    return element("bdi", words[:_LONGEST], "\N{HORIZONTAL ELLIPSIS} ", cut, class_="v")


def _day(report: Facts) -> str:
    return str(report["run"]["started"] or "")[:10]


def _clock(value: t.Any, day: str) -> str:
    """The time alone on the day of the run."""
    words = moment(value)
    return words[11:] if day and words.startswith(day) else words


def _seconds(value: float | None) -> str:
    return _DASH if value is None else duration(value)


def _tag(status: str, words: str | None = None) -> Markup:
    return element("span", words or _STATUSES[status][1], class_=f"tag {status}")


def _judged(item: Facts) -> Markup:
    """The verdict of a criterion, and what the gate makes of it where that is something else."""
    kind = "missing" if item["verdict"] == "not_measured" else item["verdict"]
    if item["status"] in ("waived", "not_required"):
        muted = element("span", _VERDICTS[item["verdict"]], class_="tag not_required")
        return join([muted, " ", _tag(item["status"])])
    return _tag(kind, _VERDICTS[item["verdict"]])


def _table(
    caption: str,
    heads: t.Sequence[str],
    lines: t.Iterable[t.Sequence[t.Any]],
    *,
    numbers: t.Container[int] = (),
    widths: t.Sequence[int] = (),
) -> Markup:
    """A table whose first column heads its rows.

    :param numbers: columns that are set flush right
    :param widths: of the columns, in percent; without them the content decides
    """
    cells = []
    for line in lines:
        row = []
        for column, cell in enumerate(line):
            name, scope = ("th", "row") if column == 0 else ("td", None)
            row.append(element(name, cell, scope=scope, class_="n" if column in numbers else None))
        cells.append(element("tr", *row))
    top = [
        element("th", head, scope="col", class_="n" if column in numbers else None) for column, head in enumerate(heads)
    ]
    columns = [Markup(f'<col style="width:{width}%">') for width in widths]
    table = element(
        "table",
        element("caption", caption) if caption else "",
        element("colgroup", *columns) if columns else "",
        element("thead", element("tr", *top)),
        element("tbody", *cells),
        class_="wide even" if widths else "wide",
    )
    return element("div", table, class_="scroll")


def _details(summary: str, *content: t.Any) -> Markup:
    return element("details", element("summary", summary), *content)


def _facts(pairs: t.Iterable[tuple[str, t.Any]]) -> Markup:
    return element(
        "dl",
        *(join([element("dt", key), element("dd", value)]) for key, value in pairs if value not in (None, "")),
        class_="facts",
    )


def _drawing(picture: Markup) -> Markup:
    return element("div", picture, class_="scroll")


def _none(words: str) -> Markup:
    return element("p", words, class_="none")


def _code(value: t.Any) -> Markup:
    """A name or hash, which may be broken after a dot or underscore and nowhere else while there is room."""
    if isinstance(value, Markup):
        return element("code", value)
    return element("code", element("bdi", join(_BREAKS.split(clean(value)), Markup("<wbr>"))))


_BREAKS = re.compile(r"(?<=[._/:])(?=[^._/:])")


# --- the top of the page ---------------------------------------------------------------------------------------------


def _origin(report: Facts) -> Markup:
    run = report["run"]
    parts = [
        ("database", run["host"]),
        ("run", run["run_id"]),
        ("started", moment(run["started"])),
        ("by", _who(report)),
    ]
    return element(
        "p",
        *(element("span", f"{key} ", element("b", element("bdi", value))) for key, value in parts if value),
        class_="origin",
    )


def _who(report: Facts) -> str:
    actor = report["run"]["actor"] or {}
    names = [name for name in (actor.get("requested_by"),) if name]
    real = "@".join(str(part) for part in (actor.get("os_user"), actor.get("host")) if part)
    return f"{names[0]} ({real})" if names and real else names[0] if names else real


def _verdict(report: Facts) -> Markup:
    status = report["status"]
    tone = _TONES.get(status["word"], "plain")
    return element(
        "div",
        element("h1", status["title"]),
        element("p", element("bdi", _short(status["why"]))),
        class_=f"verdict tone-{tone}",
    )


def _short(words: str) -> str:
    return words if len(words) <= 600 else words[:600] + "\N{HORIZONTAL ELLIPSIS}"


def _tiles(report: Facts) -> Markup:
    counts, held, decision = report["counts"], report["locks"], report["decision"]
    judged = sum(counts[status] for status in ("pass", "fail", "missing", "waived"))
    beside = [f"{counts['fail']} failed", f"{counts['missing']} not measured"]
    beside += [f"{counts['waived']} waived"] if counts["waived"] else []
    tiles = [
        ("Gate", decision["word"] or "not asked", _approved(report)),
        ("Criteria passed", f"{counts['pass']} of {judged}", ", ".join(beside)),
        ("Took", _seconds(report["run"]["seconds"]), f"planned {_seconds(report['timeline']['planned_seconds'])}"),
    ]
    if held["longest_seconds"] is not None or report["run"]["applied"]:
        longest = _seconds(held["longest_seconds"]) if held["longest_seconds"] is not None else "none seen"
        tiles.insert(2, ("Longest blocking lock", longest, f"budget {_seconds(held['budget_seconds'])}"))
    changes = [
        row
        for row in report["latency"]
        if row["change"] is not None and row["kind"] == "query" and row["where"] == "production"
    ]
    if changes:
        worst = max(changes, key=lambda row: row["change"])
        bad = sum(row["regression"] for row in report["latency"])
        tiles.insert(
            3, ("Queries", f"{bad} slower" if bad else "none slower", f"largest change {worst['change']:+.0%}")
        )
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", beside)))
            for name, value, beside in tiles
        ),
        class_="tiles",
    )


def _approved(report: Facts) -> str:
    if report["decision"]["word"] == "NO-GO":
        against = len(report["decision"]["reasons"])
        return f"{against} {'criterion stands' if against == 1 else 'criteria stand'} against it"
    names = [str(item["name"]) for item in report["decision"]["approvals"] if item["name"]]
    return f"approved by {', '.join(dict.fromkeys(names))}" if names else "no approval recorded"


# --- the sections; None leaves one out -------------------------------------------------------------------------------


def _failed(report: Facts) -> Markup | None:
    judged = [item for item in report["criteria"] if not is_decision(item)]
    failed = [item for item in judged if item["status"] == "fail"]
    missing = [item["criterion"] for item in judged if item["status"] == "missing"]
    error = report["run"]["error"]
    if not (failed or missing or error or report["gaps"]):
        return None
    parts: list[t.Any] = []
    if error:
        parts.append(element("pre", element("bdi", error)))
    if report["rescue"]:
        lines = [(element("bdi", item["kind"]), _show(item["reason"])) for item in report["rescue"]["failures"]]
        decision = str(report["rescue"]["decision"] or "not decided").replace("_", " ")
        parts.append(element("p", f"The rollback matrix says: {decision}. Severity {report['rescue']['severity']}."))
        parts.append(_table("", ("Class of failure", "Why"), lines))
    if failed:
        parts.append(_criteria_table("Measured against required", failed[:_MOST_FAILED], _day(report)))
    if len(failed) > _MOST_FAILED:
        more = element("a", f"{len(failed) - _MOST_FAILED} more", href="#criteria")
        parts.append(element("p", "And ", more, "."))
    if missing:
        others = f", and {len(missing) - _MOST_FAILED} more" if len(missing) > _MOST_FAILED else ""
        why = element("a", "Why", href="#criteria")
        parts.append(element("p", "Demanded and not measured: ", _list(missing[:_MOST_FAILED]), others, ". ", why, "."))
    if report["gaps"]:
        parts += [
            element("h3", "What this report could not see"),
            element("ul", *(element("li", element("bdi", gap)) for gap in report["gaps"][:50]), class_="plain"),
        ]
    return join(parts)


def _decision(report: Facts) -> Markup | None:
    decision = report["decision"]
    parts: list[t.Any] = []
    if decision["word"]:
        counts = report["counts"]
        sums = [f"{counts[key]} {words}" for key, words in _COUNTED if counts[key]]
        at = f" at {moment(decision['time'])}" if decision["time"] else ""
        parts.append(element("p", f"The gate said {decision['word']}{at}. By now {', '.join(sums)}."))
    else:
        parts.append(_none("No gate decided about this run."))
    if decision["reasons"]:
        parts.append(element("ul", *(element("li", _show(reason)) for reason in decision["reasons"]), class_="plain"))
    if len(decision["stages"]) > 1:
        asked = [
            (_STAGES.get(name, name), stage.get("decision"), moment(stage.get("time")), _show(_against(stage)))
            for name, stage in decision["stages"].items()
        ]
        parts.append(_table("Each time it was asked", ("Before", "Decision", "When", "Against it"), asked))
    if decision["approvals"]:
        lines = [
            (element("bdi", item["name"] or "not given"), element("bdi", item["role"] or ""), moment(item["time"]))
            for item in decision["approvals"]
        ]
        parts.append(_table("Approvals", ("Name", "As", "When"), lines))
    waived = [item for item in report["criteria"] if item["waiver"]]
    if waived:
        told = [
            (_code(item["criterion"]), *(_show(item["waiver"][key]) for key in ("reason", "by", "expires")))
            for item in waived
        ]
        parts.append(_table("Waivers in use", ("Criterion", "Reason", "By", "Until"), told))
    return join(parts)


_STAGES = {"go": "the apply", "sign_off": "the sign-off", "monitor": "the end of monitoring"}


def _against(stage: Facts) -> list[str]:
    """The criteria that stand in the way, by name: the lines begin with it."""
    return [str(line).partition(":")[0] for key in ("failed", "missing") for line in stage.get(key) or ()]


_COUNTED = (
    ("pass", "criteria passed"),
    ("fail", "failed"),
    ("missing", "were not measured although demanded"),
    ("waived", "waived"),
)


def _rollback(report: Facts) -> Markup | None:
    way = report["rollback"]
    if not way["needed"]:
        return _none("This run left nothing applied that could be rolled back.")
    parts: list[t.Any] = []
    if way["command"]:
        parts += [element("p", "To take back what this run applied:"), element("pre", element("bdi", way["command"]))]
    else:
        parts.append(element("p", "Run the rollback playbook with the same inventory."))
    if way["loses"]:
        parts.append(element("p", "Rows of these tables go with it, and are dumped first: ", _list(way["loses"]), "."))
    if way["without_way_back"]:
        parts.append(
            element("p", "No SQL takes back ", _list(way["without_way_back"]), ": restore the backup instead.")
        )
    if way["backup"]:
        parts.append(
            element(
                "p",
                "Last resort, beside the database and never over it: restore the backup ",
                _code(way["backup"]),
                ".",
            )
        )
    return join(parts)


def _list(names: t.Iterable[t.Any]) -> Markup:
    return join([_code(name) for name in names], ", ")


def _timeline(report: Facts) -> Markup | None:
    line = report["timeline"]
    if not line["phases"]:
        return None
    begun = "the moment the first migration began" if line["begun"] else "the end of the run, which began no migration"
    lead = f"T is {begun}: {moment(line['zero'])}. The two halves have scales of their own."
    lines = [
        (
            element("bdi", phase["title"]),
            element("bdi", phase["owner"] or _DASH),
            _seconds(phase["planned"]["seconds"]) if phase["planned"] else _DASH,
            _seconds(phase["actual_seconds"]),
        )
        for phase in line["phases"]
    ]
    total = ("Whole run", "", _seconds(line["planned_seconds"]), _seconds(line["actual_seconds"]))
    return join(
        [
            element("p", lead, class_="lead"),
            _drawing(timeline(line["phases"])),
            _details(
                "The same in numbers",
                _table("", ("Phase", "Owner", "Planned", "Actual"), [*lines, total], numbers=(2, 3)),
            ),
        ]
    )


def _applied(report: Facts) -> Markup | None:
    if not report["migrations"]:
        return _none("No migration was concerned.")
    lines = []
    for item in report["migrations"]:
        files = [
            element("span", element("bdi", file["file"]), " ", _code(file["sha256"] or "no hash"), class_="sub")
            for file in item["files"]
        ]
        lines.append(
            (
                join(
                    [element("bdi", item["id"]), element("span", element("bdi", item["summary"]), class_="sub"), *files]
                ),
                item["state"],
                _seconds(item["expected_seconds"]),
                _seconds(item["seconds"]),
                _count(item["statements"]),
                _count(item["attempts"]),
                _seconds(item["lock_held_seconds"]),
            )
        )
    heads = ("Migration", "State", "Expected", "Took", "Statements", "Attempts", "Blocking lock")
    parts: list[t.Any] = [_table("Files with the sha256 they have now", heads, lines, numbers=(2, 3, 4, 5, 6))]
    for name, counts in (report["objects"] or {}).items():
        if counts:
            parts.append(element("p", element("b", f"{name.capitalize()}: "), counted_kinds(counts) + "."))
    slowest = [row for row in report["statements"] if row.get("seconds") is not None][:5]
    if slowest:
        rows_ = [
            (element("bdi", row.get("tag") or "statement"), element("bdi", _place(row)), _seconds(row["seconds"]))
            for row in slowest
        ]
        parts += [element("h3", "Slowest statements"), _table("", ("Statement", "Where", "Took"), rows_, numbers=(2,))]
    return join(parts)


def _place(row: Facts) -> str:
    return f"{row.get('file')}:{row['line']}" if row.get("line") else str(row.get("file") or "")


def _count(value: t.Any) -> str:
    return _DASH if value is None else str(value)


def _risk(report: Facts) -> Markup | None:
    if not report["risks"]:
        return None
    lines = [
        (
            str(risk["number"]),
            join([element("bdi", risk["migration"]), element("span", element("bdi", risk["summary"]), class_="sub")]),
            risk["level"] or _DASH,
            element("bdi", risk["mitigation"] or _DASH),
            element("bdi", risk["owner"] or _DASH),
        )
        for risk in report["risks"]
    ]
    table = _table("Numbers as in the drawing", ("No.", "Risk of", "Level", "Mitigation", "Owner"), lines)
    return element("div", _drawing(risk_matrix(report["risks"])), element("div", table), class_="pair")


def _locks(report: Facts) -> Markup | None:
    held = report["locks"]
    if not held["rehearsal"] and not any(row["held_seconds"] is not None for row in held["target"]):
        if not report["rehearsal"]:
            return None
        return _none("The rehearsal took no lock on an existing table that blocks readers or writers.")
    lead = (
        "How long a lock was held that blocks others on a table that existed before, from the statement to the commit."
    )
    if held["harmless"]:
        one = held["harmless"] == 1
        lead += f" {held['harmless']} that block{'s' if one else ''} nobody {'is' if one else 'are'} left out."
    factor = held["shadow_factor"]
    if factor and factor != 1:
        lead += f" Times of the shadow are multiplied by {factor:g}."
    lines = [
        (
            element("bdi", row["relation"]),
            join([element("bdi", row["mode"]), element("span", ", ".join(row["blocks"]), class_="sub")]),
            join([element("bdi", row["tag"] or ""), element("span", _code(_place(row)), class_="sub")]),
            _count(row["rows"]),
            human_size(row["bytes"]) if isinstance(row["bytes"], (int, float)) else _DASH,
            _seconds(row["held_seconds"]),
        )
        for row in held["rehearsal"][:100]
    ]
    heads = ("Relation", "Lock, and what waits for it", "Taken by", "Rows", "Size", "Held")
    return join(
        [
            element("p", lead, class_="lead"),
            _drawing(locks(held["rehearsal"], held["target"], held["budget_seconds"])),
            _details("Where each was taken", _table("", heads, lines, numbers=(3, 4, 5))) if lines else "",
        ]
    )


def _latency(report: Facts) -> Markup | None:
    if not report["latency"]:
        return None
    lead = "Medians and 95th percentiles before and after. The bars of one line share a scale; lines do not."
    return join([element("p", lead, class_="lead"), _drawing(latency(report["latency"]))])


def _watch(report: Facts) -> Markup | None:
    seen = report["watch"]
    if not seen["series"]:
        return None
    figures = []
    for count, series in enumerate(seen["series"]):
        beside = series["shown_worst"] + (f", limit {series['shown_limit']}" if series["shown_limit"] else "")
        caption = element(
            "figcaption", element("b", element("bdi", series["title"])), element("span", beside, class_="sub")
        )
        figures.append(element("figure", sparkline(series, name=f"watch-{count}"), caption))
    lead = f"{seen['samples']} samples in {_seconds(seen['seconds'])} of applying. A dashed line is a limit."
    return join([element("p", lead, class_="lead"), element("div", *figures, class_="sparks")])


def _criteria(report: Facts) -> Markup | None:
    if not report["criteria"]:
        return _none("Nothing was measured.")
    lines = [
        (group["title"], _tag(group["status"]), *(str(group[key] or _DASH) for key in _STATUSES))
        for group in report["groups"]
    ]
    heads = ("Group", "Verdict", "Failed", "Not measured", "Waived", "Passed", "Not demanded", "Does not apply")
    parts = [
        _table(
            "By group. Times below are of the day of the run where they name no other.",
            heads,
            lines,
            numbers=(2, 3, 4, 5, 6, 7),
        )
    ]
    for status, (title, _word) in _STATUSES.items():
        found = [item for item in report["criteria"] if item["status"] == status]
        if found:
            parts += [element("h3", f"{title}: {len(found)}"), _criteria_table("", found, _day(report))]
    return join(parts)


def _boxes(report: Facts) -> Markup | None:
    """The tick boxes of the runbooks, each answered by the criteria it maps to."""
    boxes = report["decision"]["boxes"]
    if not boxes:
        return None
    lines = [
        (
            join([element("bdi", box["text"]), element("span", element("bdi", box["section"] or ""), class_="sub")]),
            _tag(box["status"] if box["status"] in _STATUSES else "missing"),
            join([_code(name) for name in box["criteria"] or ()], " "),
        )
        for box in sorted(boxes, key=lambda box: box["status"] not in ("fail", "missing"))
    ]
    return _table("", ("Box", "Status", "Criteria"), lines)


def _criteria_table(caption: str, found: t.Iterable[Facts], day: str) -> Markup:
    lines = []
    for item in found:
        again = item["failed_before"]
        beside = [item["name"]] if item["name"] else []
        beside += (
            [f"failed {again} time{'s' if again != 1 else ''} before"] if again and item["verdict"] != "fail" else []
        )
        name = join(
            [
                _code(item["criterion"]),
                *(element("span", element("bdi", words), class_="sub") for words in beside),
            ]
        )
        clock = element("span", _clock(item["time"], day), class_="sub") if item["time"] else ""
        source = join([element("bdi", item["source"] or ""), clock])
        measured = _show(item["measured"]) if item["measured"] is not None else _DASH
        if item["reason"] and item["verdict"] != "pass":
            measured = join([measured, element("span", _show(item["reason"]), class_="sub")])
        required = _show(item["required"]) if item["required"] is not None else _DASH
        lines.append((name, _judged(item), measured, required, source))
    return _table(
        caption, ("Criterion", "Verdict", "Measured", "Required", "How, when"), lines, widths=(27, 12, 24, 20, 17)
    )


def _notes(report: Facts) -> Markup | None:
    titles = (("issues", "Issues"), ("resolutions", "Resolutions"), ("next_steps", "Next steps"), ("notes", "Notes"))
    parts = []
    for key, title in titles:
        entries = report["notes"][key]
        if entries:
            items = []
            for item in entries:
                who = element("bdi", f"{item['by'] or 'unknown'}, {moment(item['time'])}")
                items.append(element("li", _show(item["text"]), element("span", who, class_="sub")))
            parts += [element("h3", title), element("ul", *items, class_="plain")]
    return join(parts) if parts else None


def _monitoring(report: Facts) -> Markup | None:
    lines = []
    for look in report.get("monitoring") or []:
        counts = look["counts"] if isinstance(look.get("counts"), dict) else {}
        opened = [*(look.get("failed") or []), *(look.get("missing") or [])]
        lines.append(
            (
                element("bdi", moment(look.get("time"))),
                element("bdi", look.get("decision") or "not judged"),
                _show(", ".join(map(str, opened))) if opened else _DASH,
                _show(counts.get("errors")) if counts else _DASH,
                _show(counts.get("permission_denied")) if counts else _DASH,
            )
        )
    if not lines:
        return None
    return _table("Looks in the days after", ("When", "Decision", "Failed or missing", "Errors", "Denials"), lines)


def _taken_by(backup: Facts) -> str:
    """Of a backup that another program took: the one above is its record."""
    return f"{backup.get('method')}: {backup.get('external_id')} in {backup['location']}"


def _records(report: Facts) -> Markup | None:
    chain, backup, plan, actor = report["chain"], report["backup"] or {}, report["plan"], report["run"]["actor"] or {}
    pairs = [
        ("Evidence", f"{chain['records']} records" + ("" if not chain["breaks"] else ", chain BROKEN")),
        ("Head of the chain", _code(chain["head"]) if chain["head"] else None),
        ("Plan", join([element("bdi", plan["name"]), " ", _code(plan["sha256"] or "")]) if plan["name"] else None),
        ("Policy", _code(report["decision"]["policy_sha256"]) if report["decision"]["policy_sha256"] else None),
        ("Backup", element("bdi", backup.get("path")) if backup.get("path") else None),
        ("Taken by", element("bdi", _taken_by(backup)) if backup.get("location") else None),
        ("Its manifest", _code(backup["manifest_sha256"]) if backup.get("manifest_sha256") else None),
        ("Its size", human_size(backup["size"]) if isinstance(backup.get("size"), (int, float)) else None),
        ("Requested by", element("bdi", actor.get("requested_by")) if actor.get("requested_by") else None),
        ("Run by", element("bdi", "@".join(str(part) for part in (actor.get("os_user"), actor.get("host")) if part))),
        ("Run directory", element("bdi", report["run"]["run_dir"])),
    ]
    files = [
        (element("bdi", item["name"]), human_size(item["bytes"]), _code(item["sha256"])) for item in report["files"]
    ]
    parts = [_facts(pairs)]
    bound = [(key.replace("_", " "), _show(value)) for key, value in report["decision"]["bound"].items()]
    if bound:
        parts += [element("h3", "What the GO is bound to"), _facts(bound)]
    if files:
        parts.append(
            _table(
                "Files this report was made from, as they were then", ("File", "Size", "sha256"), files, numbers=(1,)
            )
        )
    return join(parts)


_SECTIONS: tuple[tuple[str, str, t.Callable[[Facts], Markup | None]], ...] = (
    ("failed", "What failed or is missing", _failed),
    ("decision", "Decision", _decision),
    ("rollback", "How to roll back", _rollback),
    ("timeline", "Planned and actual", _timeline),
    ("applied", "Migrations", _applied),
    ("risk", "Risk", _risk),
    ("locks", "Locks that block others", _locks),
    ("latency", "Latency before and after", _latency),
    ("watch", "While it ran", _watch),
    ("monitoring", "The days after", _monitoring),
    ("notes", "Issues and next steps", _notes),
    ("criteria", "Every criterion", _criteria),
    ("boxes", "The runbook's boxes", _boxes),
    ("records", "Records", _records),
)
