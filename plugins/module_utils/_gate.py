# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The gate: evidence and policy -> GO or NO-GO, with the reason for each criterion.

Which record counts: of records about the same thing (criterion, phase, subject) the latest, because measuring again
is how a cause is shown to be gone; of different subjects and phases the worst. A pass on a copy says nothing of the
target, so that records of the rehearsal count for its own criteria only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import json
import os
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._chain import read_chain
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions, redact
from ansible_collections.surefoot.dbops.plugins.module_utils._criteria import (
    ATTESTATION,
    ATTESTATIONS,
    BOXES,
    CRITERIA,
    DONE_BY_RUN,
    GO,
    MONITOR,
    NOT_USED,
    OPTIONAL,
    PHASES_BEFORE,
    REQUIRED,
    SHADOW_PHASES,
    SIGN_OFF,
    WHEN_CONFIGURED,
    WHEN_MEASURABLE,
    Box,
    Criterion,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, VerificationFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record
from ansible_collections.surefoot.dbops.plugins.module_utils._external import not_proven
from ansible_collections.surefoot.dbops.plugins.module_utils._go import (
    Target,
    backup_evidence,
    bind_go,
    make_key,
    read_target,
    rehearsed_details,
    rehearsed_evidence,
    withdraw_go,
    write_go,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._ledger import Ledger
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import DUMP_METHOD, Manifest, read_manifest
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, Plan
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import parse_time, window_at
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import select_deploy
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_duration, parse_duration
from ansible_collections.surefoot.dbops.plugins.module_utils._worker import open_session

GATE_FILE = "gate.json"
NOTICE = 24 * 3600.0  # seconds between the notification and the apply, as the source document plans it

Record = t.Mapping[str, t.Any]

_DEMANDED = "demanded"  # required by name in the policy: not even "not applicable" will do
_DECISIONS = {GO: "gate.decision", SIGN_OFF: "sign_off.decision", MONITOR: "monitor.decision"}
# What tells apart two records of the same criterion and phase.
_SUBJECT_KEYS = ("subject", "migration", "name", "endpoint", "url", "query", "relation", "label", "key")
_WORST_FIRST = ("fail", "pass", "not_measured", "not_applicable")
# A box shows the first of these that one of its criteria has.
_BOX_ORDER = ("fail", "missing", "waived", "pass", "not_required", "not_applicable")


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One criterion. ``verdict`` is that of its evidence, ``status`` what the gate makes of it: pass | fail | missing
    (not measured, and demanded) | waived | not_required | not_applicable."""

    criterion: str
    stage: str
    demand: str
    verdict: str
    status: str
    measured: t.Any = None
    required: t.Any = None
    how: str = ""
    phase: str | None = None
    time: str | None = None
    waiver: t.Mapping[str, str] | None = None

    def line(self) -> str:
        """Measured against required, or that it was not measured and what would."""
        if self.verdict == "fail":
            return f"{self.criterion}: measured {_show(self.measured)}, required {_show(self.required)}"
        why = f" ({_show(self.measured)})" if self.measured not in (None, "", [], {}) else ""
        return f"{self.criterion}: not measured{why}; measured by: {self.how}"

    def to_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the gate says. ``decision``: GO | NO-GO | UNDECIDED (in check mode, when nothing failed and something is
    still to be measured)."""

    stage: str
    decision: str
    time: str
    judgements: tuple[Judgement, ...]
    boxes: tuple[tuple[Box, str], ...]
    notes: tuple[str, ...] = ()

    def having(self, status: str) -> list[Judgement]:
        """The judgements of this status."""
        return [item for item in self.judgements if item.status == status]

    @property
    def go(self) -> bool:
        return self.decision == "GO"

    @property
    def holds_until(self) -> datetime.datetime | None:
        """When the first attestation or waiver that it rests on ends; None when it rests on none."""
        ends = [item.waiver["expires"] for item in self.judgements if item.status == "waived" and item.waiver]
        ends += [item.measured["until"] for item in self.having("pass") if item.criterion in ATTESTATIONS]
        return min((parse_time(end, "until", end_of_day=True) for end in ends), default=None)

    def summary(self) -> str:
        """One line, all that stands in the way included."""
        word = self.decision if self.stage == GO else f"{self.decision} for {self.stage}"
        if not self.having("fail") and not self.having("missing"):
            waived = f", {len(self.having('waived'))} waived" if self.having("waived") else ""
            return f"{word}: {len(self.having('pass'))} criteria hold{waived}"
        parts = [item.line() for item in self.having("fail")]
        missing = ", ".join(item.criterion for item in self.having("missing"))
        return f"{word}: {' | '.join([*parts, *([f'not measured: {missing}'] if missing else [])])}"

    def lines(self) -> list[str]:
        """For an operator: the word, then one line for each criterion that is not simply met."""
        counts = {status: len(self.having(status)) for status in ("pass", "fail", "missing", "waived")}
        word = self.decision if self.stage == GO else f"{self.decision} for {self.stage}"
        shown = [f"{word}: {counts['pass']} hold, {counts['fail']} failed, {counts['missing']} not measured"]
        shown[0] += f", {counts['waived']} waived" if counts["waived"] else ""
        for status in ("fail", "missing"):
            shown += [f"  {'failed' if status == 'fail' else status}: {item.line()}" for item in self.having(status)]
        for item in self.having("waived"):
            waiver = item.waiver or {}
            who = f"waived by {waiver.get('by')} until {waiver.get('expires')}: {waiver.get('reason')}"
            shown.append(f"  {item.line()}; {who}")
        noted = [item for item in self.having("not_required") if item.verdict == "fail"]
        shown += [f"  noted: {item.line()}" for item in noted]
        return shown + [f"  note: {note}" for note in self.notes]

    def to_dict(self) -> dict[str, t.Any]:
        """For ``gate.json`` and the task's result."""
        return {
            "stage": self.stage,
            "decision": self.decision,
            "time": self.time,
            "criteria": [item.to_dict() for item in self.judgements],
            "failed": [item.line() for item in self.having("fail")],
            "missing": [item.line() for item in self.having("missing")],
            "waived": [{**(item.waiver or {}), "verdict": item.verdict} for item in self.having("waived")],
            "boxes": [
                {
                    "id": box.id,
                    "section": box.section,
                    "text": box.text,
                    "stage": box.stage,
                    "criteria": list(box.criteria),
                    "status": status,
                }
                for box, status in self.boxes
            ],
            "notes": list(self.notes),
        }

    def evidence(self) -> Evidence:
        """The decision as a record of its own."""
        return Evidence(
            criterion=_DECISIONS[self.stage],
            phase="gate",
            verdict="pass" if self.go else "fail",
            measured=self.decision,
            required="GO",
            source="every criterion against the policy",
            details={
                "failed": [item.criterion for item in self.having("fail")],
                "missing": [item.criterion for item in self.having("missing")],
                "waived": [item.criterion for item in self.having("waived")],
            },
        )


# --- what the gate reads ---------------------------------------------------------------------------------------------


def read_evidence(run_dir: str) -> list[Record]:
    """The records of a run directory, in order, after their chain was checked.

    :raises VerificationFailed: a line is not what was written
    :raises EnvironmentProblem: the directory cannot be read
    """
    chain = read_chain(run_dir)
    broken = [str(finding) for finding in chain.breaks()]
    loose = [
        number for number, item in enumerate(chain.records, start=1) if item is not None and "previous" not in item
    ]
    broken += [f"line {number} is not tied to the one before it" for number in loose]
    if broken:
        raise VerificationFailed(
            f"the evidence in {run_dir} was altered: {broken[0]}",
            remedy="Nothing can be decided on it: begin a new run.",
            code="evidence",
        )
    return [item for item in chain.records if item is not None]


def declared_checks(plan: Plan, ids: t.Container[str] | None = None) -> frozenset[str]:
    """The criteria that the checks of these migrations (None: of all) measure."""
    return frozenset(
        check.criterion or f"verify.{migration.id}.{check.slug}"
        for migration in plan.migrations
        if ids is None or migration.id in ids
        for check in migration.verify
    )


def applied_ids(records: t.Sequence[Record]) -> tuple[list[str], list[str]]:
    """What the latest apply had to do and what it did."""
    for item in reversed(records):
        if item.get("criterion") == "migration.applied":
            return _ids(item.get("required")), _ids(item.get("measured"))
    return [], []


def _ids(value: t.Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def check_statements(policy: t.Mapping[str, t.Any], attestations: t.Any, now: datetime.datetime) -> None:
    """What a policy waives and what persons say, held against the criteria before anything is measured.

    :raises PlanError: an expired waiver, an attestation that is none, or a name that no criterion has
    """
    _valid_waivers(policy, now)
    parse_attestations(attestations, now)


def parse_attestations(given: t.Any, now: datetime.datetime) -> dict[str, dict[str, t.Any]]:
    """Criterion -> its attestation, with ``valid`` and, when it is not, ``why``.

    :raises PlanError: a part is missing, the criterion is none that a person can attest, or it is from the future
    """
    found: dict[str, dict[str, t.Any]] = {}
    for number, item in enumerate(given or [], start=1):
        where = f"surefoot_attestations[{number}]"
        if not isinstance(item, t.Mapping):
            raise PlanError(f"{where} is not a dictionary", remedy="Give criterion, by, at, statement and until.")
        for key in ("criterion", "by", "at", "statement", "until"):
            if item.get(key) is None or not str(item[key]).strip():
                raise PlanError(f"{where} has no {key}", remedy="Give criterion, by, at, statement and until.")
        name = str(item["criterion"])
        if name not in ATTESTATIONS:
            near = difflib.get_close_matches(name, ATTESTATIONS, n=1)
            hint = f"Did you mean {near[0]}?" if near else "It must be measured, or waived in the policy."
            raise PlanError(f"{where}: {name} cannot be attested", remedy=hint)
        at = parse_time(item["at"], f"{where}.at")
        until = parse_time(item["until"], f"{where}.until", end_of_day=True)
        if at > now + datetime.timedelta(minutes=5):  # clocks differ
            raise PlanError(f"{where} of {name} is from the future ({item['at']})", remedy="Say when it was made.")
        said = {key: str(item[key]).strip() for key in ("criterion", "by", "at", "statement", "until")}
        valid = at <= until and now < until
        entry = {**said, "valid": valid, "why": "" if valid else f"what {said['by']} said ended at {said['until']}"}
        if valid or name not in found or not found[name]["valid"]:
            found[name] = entry
    return found


def own_evidence(
    records: t.Sequence[Record],
    policy: t.Mapping[str, t.Any],
    *,
    approvals: t.Mapping[str, t.Any],
    notified_at: str | None,
    now: datetime.datetime,
) -> list[Evidence]:
    """What the gate itself measures before the apply: window, approvals, notification."""
    window = window_at(policy["window"], now)
    lasts = parse_duration(policy["go_max_age"])
    opens = "" if window.open else f"; opens in {human_duration(window.opens_in)}" if policy["window"] else ""
    found = [
        Evidence(
            "gate.window",
            "gate",
            "pass" if window.opens_in < lasts else "fail",
            f"{_iso(now)}{opens}" if policy["window"] else "the policy names no window",
            window.text if policy["window"] else "a window, or window: any",
            "UTC clock",
            details={"open": window.open, "closes_in_seconds": window.closes_in},
        )
    ]
    required = list(policy["approvals"])
    named = {str(key): str(value).strip() for key, value in approvals.items() if value and str(value).strip()}
    unnamed = [role for role in required if role not in named]
    verdict = "not_applicable" if not required else "fail" if unnamed else "pass"
    measured = {role: named.get(role) for role in required}
    source = "option approvals"
    found.append(
        Evidence(
            "gate.approvals",
            "gate",
            verdict,
            measured,
            f"a name for each of {', '.join(required)}" if required else "nobody",
            source,
        )
    )
    sent = [notified_at] if notified_at else [str(item.get("time")) for item in records if _announces(item)]
    if sent:
        ahead = max((now - parse_time(moment, "notified_at")).total_seconds() for moment in sent)
        verdict = "pass" if ahead >= NOTICE else "fail"
        measured_notice = f"{human_duration(max(0.0, ahead))} ahead"
        found.append(Evidence("gate.notified_24h", "gate", verdict, measured_notice, "24 h ahead", "notify.sent"))
    return found


def _announces(item: Record) -> bool:
    """Whether the record is of a pre-migration notification that arrived."""
    measured = item.get("measured")
    name = str(measured.get("message", "")) if isinstance(measured, dict) else ""
    return item.get("criterion") == "notify.sent" and item.get("verdict") == "pass" and name.startswith("pre")


# --- the decision ----------------------------------------------------------------------------------------------------


def decide(
    stage: str,
    records: t.Sequence[Record],
    policy: t.Mapping[str, t.Any],
    *,
    attestations: t.Any = None,
    declared: frozenset[str] = frozenset(),
    configured: t.Sequence[str] = (),
    plan_checks: frozenset[str] = frozenset(),
    now: datetime.datetime,
    undecided: bool = False,
) -> Decision:
    """Judge every criterion of a stage.

    :param policy: resolved
    :param declared: criteria that checks of the migrations in question measure: they must hold after the apply
    :param configured: criteria, or first words of them such as ``http``, that the run is set up to measure
    :param plan_checks: criteria of every check of the plan, which waivers and the policy may name
    :param undecided: check mode: what is only missing makes no NO-GO
    :raises PlanError: an expired waiver, an attestation that is none, or a name that no criterion has
    """
    said = parse_attestations(attestations, now)
    by_name: dict[str, list[Record]] = {}
    for item in records:
        by_name.setdefault(str(item.get("criterion")), []).append(item)
    waivers = _valid_waivers(policy, now)
    known = {*CRITERIA, *plan_checks, *declared, *by_name}
    _refuse_unknown([*waivers, *(name for name, want in policy["criteria"].items() if want == "optional")], known)
    last_apply = max((n for n, item in enumerate(records) if item.get("criterion") == "migration.applied"), default=-1)
    before = frozenset(id(item) for item in records[: max(0, last_apply)])
    judge = _Judge(stage, by_name, policy, said, declared, plan_checks, tuple(configured), waivers, before)
    judged = {criterion.id: judge.judge(criterion) for criterion in judge.criteria()}
    stopping = {status: any(item.status == status for item in judged.values()) for status in ("fail", "missing")}
    decision = "NO-GO" if stopping["fail"] or (stopping["missing"] and not undecided) else "GO"
    if decision == "GO" and stopping["missing"]:
        decision = "UNDECIDED"
    todo, done = applied_ids(records)
    boxes = tuple((box, _box_status(box, judged, todo, done)) for box in BOXES if box.stage == stage)
    of_stage = {name for name in waivers if name in judged}
    unused = sorted(name for name in of_stage if judged[name].status != "waived")
    notes = tuple(f"the waiver of {name} was not needed" for name in unused)
    return Decision(stage, decision, _iso(now), tuple(judged.values()), boxes, notes)


def _valid_waivers(policy: t.Mapping[str, t.Any], now: datetime.datetime) -> dict[str, t.Mapping[str, str]]:
    for waiver in policy["waivers"]:
        if parse_time(waiver["expires"], "expires", end_of_day=True) <= now:
            raise PlanError(
                f"the waiver of {waiver['criterion']} by {waiver['by']} expired ({waiver['expires']})",
                remedy="Take it out of surefoot_policy, or have it renewed.",
            )
    return {waiver["criterion"]: waiver for waiver in policy["waivers"]}


def _refuse_unknown(names: t.Iterable[str], known: t.Collection[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"Did you mean {near[0]}?" if near else "docs/criteria.md lists them."
            raise PlanError(f"the policy names {name}, which is no criterion", remedy=hint)


@dataclasses.dataclass(frozen=True)
class _Judge:
    stage: str
    records: t.Mapping[str, t.Sequence[Record]]
    policy: t.Mapping[str, t.Any]
    said: t.Mapping[str, t.Mapping[str, t.Any]]
    declared: frozenset[str]
    plan_checks: frozenset[str]
    configured: tuple[str, ...]
    waivers: t.Mapping[str, t.Mapping[str, str]]
    before_apply: frozenset[int]  # identities of the records that were made before it

    def criteria(self) -> list[Criterion]:
        """Those of the table, then those that only the plan, the policy or a record names."""
        found = [item for item in CRITERIA.values() if self.stage in item.stages]
        others = [*self.records, *self.policy["criteria"], *(() if self.stage == GO else sorted(self.declared))]
        for name in dict.fromkeys(others):
            if name not in CRITERIA and name not in _DECISIONS.values() and self._is_of_stage(name):
                declared = name in self.declared and self.stage != GO
                default, how = (WHEN_CONFIGURED, "a check of the plan") if declared else (WHEN_MEASURABLE, "a check")
                found.append(Criterion(name, (self.stage,), default, how))
        return found

    def _is_of_stage(self, name: str) -> bool:
        """Whether a criterion that no table knows is judged here. One that nothing measured, and that no check of the
        plan will, is asked for before the apply."""
        phases = {str(item.get("phase")) for item in self.records.get(name, ())}
        later = bool(phases.difference(PHASES_BEFORE)) or (not phases and name in self.plan_checks)
        return not later if self.stage == GO else later or name in self.declared

    def demand(self, criterion: Criterion) -> str:
        """What the policy demands of it."""
        named = self.policy["criteria"].get(criterion.id)
        if named:
            return _DEMANDED if named == "required" else OPTIONAL
        if criterion.default == ATTESTATION:
            by = criterion.configured_by
            return REQUIRED if not by or self.declared.intersection(by) else OPTIONAL
        demand = REQUIRED if criterion.default == REQUIRED and self._switched_on(criterion) else criterion.default
        if criterion.default == REQUIRED and not self._switched_on(criterion):
            demand = WHEN_CONFIGURED
        return REQUIRED if demand == WHEN_CONFIGURED and self._is_configured(criterion) else demand

    def _switched_on(self, criterion: Criterion) -> bool:
        key = criterion.policy_key
        backed_up = self.policy["backup"] == "required" or bool(self.records.get("backup.created"))
        if key == "restore_proof":
            return bool(self.policy[key]) and backed_up
        return key is None or (backed_up if key == "backup" else self.policy[key] == "required")

    def _is_configured(self, criterion: Criterion) -> bool:
        name, family = criterion.id, criterion.id.partition(".")[0]
        measured = [item for item in self.records.get(name, ()) if item.get("verdict") != "not_applicable"]
        if criterion.policy_key == "rehearsal" and self.policy["rehearsal"] != "never":
            measured += self.records.get("rehearsal.deploy", ())
        return bool(measured) or name in self.declared or name in self.configured or family in self.configured

    def judge(self, criterion: Criterion) -> Judgement:
        demand = self.demand(criterion)
        if criterion.id in ATTESTATIONS:
            verdict, item = self._attested(criterion)
            by_run = DONE_BY_RUN.get(criterion.id)
            if verdict != "pass" and by_run in self.configured:
                demand, verdict, item = OPTIONAL, "not_applicable", {"measured": f"the run does it: {by_run}"}
        else:
            verdict, item = _weigh(criterion, self._counting(criterion))
            not_used = self.said.get(NOT_USED.get(criterion.id, ""), {})
            if verdict != "fail" and not_used.get("valid"):
                verdict, item = "not_applicable", {"measured": f"{not_used['by']}: {not_used['statement']}"}
            elif not item and demand == criterion.default == WHEN_CONFIGURED:
                verdict, item = "not_applicable", {"measured": NOT_CONFIGURED}
        status = _STATUS[verdict].get(demand, _STATUS[verdict]["else"])
        waiver = self.waivers.get(criterion.id) if status in ("fail", "missing") else None
        return Judgement(
            criterion=criterion.id,
            stage=self.stage,
            demand=demand,
            verdict=verdict,
            status="waived" if waiver else status,
            measured=item.get("measured"),
            required=item.get("required"),
            how=str(item.get("source") or criterion.how) if verdict in ("pass", "fail") else criterion.how,
            phase=item.get("phase"),
            time=item.get("time"),
            waiver=waiver,
        )

    def _attested(self, criterion: Criterion) -> tuple[str, Record]:
        said = self.said.get(criterion.id)
        if said is None:
            return "not_measured", {}
        if not said["valid"]:
            return "not_measured", {"measured": said["why"]}
        measured = {key: said[key] for key in ("by", "at", "statement", "until")}
        return "pass", {"measured": measured, "required": criterion.how, "source": "attestation", "time": said["at"]}

    def _counting(self, criterion: Criterion) -> list[Record]:
        """The records that say something of what is asked."""
        found = list(self.records.get(criterion.id, ()))
        if self.stage != GO:
            found = [item for item in found if item.get("phase") not in SHADOW_PHASES or GO in criterion.stages]
        if criterion.after_apply:
            applied = [str(item.get("time")) for item in self.records.get("migration.applied", ())]
            # Both: a clock that was set back must not make the time before look like the time after.
            found = [
                item
                for item in found
                if not applied or (str(item.get("time")) >= max(applied) and id(item) not in self.before_apply)
            ]
        return found


NOT_CONFIGURED = "not configured"
# Verdict of the evidence -> demand -> status.
_STATUS: dict[str, dict[str, str]] = {
    "pass": {"else": "pass"},
    "fail": {OPTIONAL: "not_required", "else": "fail"},
    "not_measured": {REQUIRED: "missing", _DEMANDED: "missing", "else": "not_required"},
    "not_applicable": {_DEMANDED: "missing", "else": "not_applicable"},
}


def _weigh(criterion: Criterion, records: t.Sequence[Record]) -> tuple[str, Record]:
    """Verdict of the records, and the record that stands for it."""
    latest: dict[tuple[t.Any, ...], Record] = {}
    for item in records:
        details = item.get("details") or {}
        subject = tuple(json.dumps(details.get(key), sort_keys=True, default=str) for key in _SUBJECT_KEYS)
        latest[(item.get("phase"), *subject)] = item
    for verdict in _WORST_FIRST:
        for item in reversed(list(latest.values())):
            if item.get("verdict") == verdict:
                return verdict, item
    return "not_measured", {}


def _box_status(box: Box, judged: t.Mapping[str, Judgement], todo: t.Sequence[str], done: t.Sequence[str]) -> str:
    if box.migration is not None and judged[box.criteria[0]].verdict in ("pass", "fail"):
        return "pass" if box.migration in done else "fail" if box.migration in todo else "not_applicable"
    statuses = {judged[name].status for name in box.criteria}
    return next(status for status in _BOX_ORDER if status in statuses)


# --- the whole of it -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GateRequest:
    """What the gate is asked. ``backup``: ``path`` and ``manifest_sha256``. ``records``: evidence that stands in no
    run directory; looked at in check mode only, which has none."""

    stage: str
    run_id: str
    run_dir: str | None
    policy: t.Mapping[str, t.Any]
    ledger_schema: str
    check_mode: bool = False
    to: str | None = None
    only: tuple[str, ...] = ()
    include_manual: tuple[str, ...] = ()
    variables: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    secrets: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict, repr=False)
    attestations: t.Sequence[t.Any] = ()
    approvals: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    backup: t.Mapping[str, t.Any] | None = None
    notified_at: str | None = None
    configured: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    go_key: str | None = dataclasses.field(default=None, repr=False)
    allow_session_pooler: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The decision, and the path of the bound GO when there is one."""

    decision: Decision
    evidence: tuple[dict[str, t.Any], ...]
    go_path: str | None
    expires: str | None

    def results(self) -> dict[str, t.Any]:
        """The task's results."""
        shown = self.decision.to_dict()
        shown.pop("stage")
        # Ansible takes a key "failed" that is not empty for the failure of the task.
        shown["failures"] = shown.pop("failed")
        return {
            "changed": False,
            **shown,
            "go": self.go_path,
            "expires": self.expires,
            "msg": self.decision.lines(),
            "evidence": list(self.evidence),
        }


def hold_gate(plan: Plan, options: ConnectionOptions, request: GateRequest) -> Outcome:
    """Read, measure what is the gate's own, decide, and write ``gate.json`` and, for a GO, ``go.json``.

    The database is only read. A later stage than the apply's does not connect.

    :raises PlanError: no run directory, or an attestation, a waiver or a name that cannot be
    :raises VerificationFailed: the evidence was altered
    :raises BackupError: the backup named is damaged
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    run_dir = None if request.check_mode else request.run_dir
    if run_dir is None and not request.check_mode:
        raise PlanError("the gate has no run directory", remedy="Give run_dir, where the evidence of the run lies.")
    if request.stage == GO and run_dir:
        withdraw_go(run_dir)  # whatever becomes of this decision, the earlier one is void
    records = read_evidence(run_dir) if run_dir else list(request.records)
    todo: tuple[Migration, ...] = ()
    target: Target | None = None
    manifest: Manifest | None = None
    own: list[Evidence] = []
    if request.stage == GO:
        own = own_evidence(
            records, request.policy, approvals=request.approvals, notified_at=request.notified_at, now=now
        )
        if request.backup and request.backup.get("path"):
            manifest = read_manifest(str(request.backup["path"]), request.backup.get("manifest_sha256"))
        with contextlib.closing(
            open_session(
                options,
                f"gate {request.run_id}",
                {"statement_timeout": "60s", "default_transaction_read_only": "on"},
                allow_session_pooler=request.allow_session_pooler,
            )
        ) as connection:
            state = Ledger(request.ledger_schema, plan.name, request.run_id).read(connection)
            todo = select_deploy(
                plan, state, to=request.to, only=request.only, include_manual=request.include_manual
            ).todo
            target = read_target(connection, plan, request.ledger_schema)
            if manifest:
                own += backup_evidence(
                    connection,
                    plan,
                    target,
                    manifest,
                    records,
                    request.policy,
                    ledger_schema=request.ledger_schema,
                    run_id=request.run_id,
                    now=now,
                )
        expected = rehearsed_details(
            plan,
            todo,
            backup_id=manifest.data["backup_id"] if manifest else None,
            key=make_key(run_dir, None) if run_dir else None,
            variables=request.variables,
            secrets=request.secrets,
        )
        own += rehearsed_evidence(todo, expected, records)
    required, done = applied_ids(records)
    ids = {migration.id for migration in todo} if request.stage == GO else {*required, *done}
    if request.stage == MONITOR and not ids:
        ids = {migration.id for migration in plan.migrations if not migration.manual}
    decision = decide(
        request.stage,
        [*records, *[item.to_dict() for item in own]],
        request.policy,
        attestations=request.attestations,
        declared=declared_checks(plan, ids),
        plan_checks=declared_checks(plan),
        configured=request.configured,
        now=now,
        undecided=request.check_mode,
    )
    if manifest is not None and manifest.method != DUMP_METHOD:
        decision = dataclasses.replace(decision, notes=(*decision.notes, _unproven(decision, manifest)))
    evidence = tuple(record(run_dir, [*own, decision.evidence()]))
    go_path = expires = None
    if run_dir:
        if decision.go and target is not None:
            go = bind_go(
                target,
                plan,
                todo,
                key=make_key(run_dir, request.go_key),
                variables=request.variables,
                secrets=request.secrets,
                policy=request.policy,
                manifest=manifest,
                approvals=request.approvals,
                run_id=request.run_id,
                now=now,
                holds_until=decision.holds_until,
            )
            go_path, expires = write_go(run_dir, go), str(go["expires"])
        write_gate(run_dir, decision, {**request.policy}, expires=expires)
    return Outcome(decision, evidence, go_path, expires)


_PROOF = ("backup.", "restore.")


def _unproven(decision: Decision, manifest: Manifest) -> str:
    """Which proof a backup that another program took lacks, and what accepts that. What was waived is in here too."""
    found = [item.criterion for item in decision.judgements if item.criterion.startswith(_PROOF)]
    by_status = {item.criterion: item for item in decision.judgements}
    missing = [name for name in found if by_status[name].status == "missing"]
    text = not_proven(manifest)
    if not missing:
        return text
    return (
        f"{text}. The proof that is missing is {', '.join(missing)}. A policy accepts that by a waiver of each, with"
        " reason, name and expiry, or by criteria: {name: optional}; restore_proof: false accepts it for restore.*"
    )


def no_go(outcome: Outcome) -> VerificationFailed:
    """The error of a NO-GO: one line that names each criterion, the results attached."""
    touched = "nothing in the database was touched" if outcome.decision.stage == GO else "the migration stays as it is"
    error = VerificationFailed(
        outcome.decision.summary(),
        remedy=" ".join([f"Mend what failed and measure what is missing; {touched}.", *_accepting(outcome.decision)]),
        code="no_go",
    )
    error.results = outcome.results()
    error.results.pop("msg")
    return error


def _accepting(decision: Decision) -> list[str]:
    return [f"{note[:1].upper()}{note[1:]}." for note in decision.notes if "restore_proof" in note]


# --- gate.json -------------------------------------------------------------------------------------------------------


def write_gate(run_dir: str, decision: Decision, policy: t.Mapping[str, t.Any], *, expires: str | None = None) -> str:
    """Write ``gate.json``; returns its path. The decision before the apply stands at its top and is kept there by the
    later stages, which add theirs under ``stages`` and their criteria and boxes to the lists.

    :raises EnvironmentProblem: it cannot be written
    """
    path = os.path.join(run_dir, GATE_FILE)
    before: dict[str, t.Any] = {}
    if decision.stage != GO and os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as stream:
                loaded = json.load(stream)
            before = loaded if isinstance(loaded, dict) else {}
        except (OSError, ValueError):
            before = {}  # the chained evidence has the decision; this file only shows it
    mine = decision.to_dict()
    merged = {**mine, "policy": dict(policy), "expires": expires}
    if before:
        merged = {**before, "policy": dict(policy)}
        for key in ("criteria", "boxes", "waived"):
            kept = [item for item in before.get(key, []) if item.get("stage", GO) != decision.stage]
            merged[key] = kept + [{**item, "stage": decision.stage} for item in mine[key]]
    stages = {**before.get("stages", {}), decision.stage: {key: mine[key] for key in _STAGE_FACTS}}
    return write_json(run_dir, GATE_FILE, {**merged, "stages": stages})


_STAGE_FACTS = ("decision", "time", "failed", "missing", "waived", "notes")


def _show(value: t.Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = redact(" ".join(text.split()))
    return text if len(text) <= 200 else text[:197] + "..."


def _iso(moment: datetime.datetime) -> str:
    utc = moment.astimezone(datetime.timezone.utc)
    return utc.isoformat(timespec="seconds").replace("+00:00", "Z")
