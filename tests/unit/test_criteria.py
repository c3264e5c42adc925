# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every tick box of the source documents: evidence that makes it hold, and evidence, or its lack, that does not."""

from __future__ import annotations

import importlib.util
import pathlib
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._criteria import (
    ATTESTATION,
    ATTESTATIONS,
    BOXES,
    CRITERIA,
    DEFAULTS,
    DONE_BY_RUN,
    GO,
    NOT_USED,
    SIGN_OFF,
    STAGES,
    Box,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._gate import Decision, decide, declared_checks
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import parse_time, resolve_policy
from ansible_collections.surefoot.dbops.plugins.module_utils._preflight import CRITERIA as PREFLIGHT

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOW = parse_time("2026-11-22T02:30:00Z", "now")
PLAN = load_plan(str(ROOT / "playbooks" / "migrations" / "lancio_platform"))
DECLARED = declared_checks(PLAN)
MIGRATIONS = [migration.id for migration in PLAN.migrations if not migration.manual]
PHASES = {
    "railway": "preflight",
    "rds": "preflight",
    "platform": "verify",
    "rbac": "verify",
    "ledger": "plan",
    "gate": "gate",
}

# Where the boxes stand in the documents.
LINES = {
    "integrity": [206, 207, 208, 211, 212, 213, 216, 217, 218],
    "platform": [
        *[*range(89, 93), *range(135, 139), *range(153, 156), *range(212, 217), *range(270, 275), *range(351, 357)],
        *[*range(554, 558), *range(579, 583), *range(663, 668), *range(670, 675), *range(766, 773), *range(778, 784)],
        *range(904, 914),
    ],
}
# The list, and nothing beyond it.
ALLOWED = {
    "no_incident": "critical incident in progress",
    "no_user_reports": "user-reported issues",
    "no_user_facing_errors": "user-facing errors",
    "no_support_tickets": "support tickets",
    "team_available": "team available",
    "ciso_briefed": "CISO briefed",
    "frontends_scaled": "frontends scaled / jobs disabled when no hook does it",
    "jobs_disabled": "frontends scaled / jobs disabled when no hook does it",
    "mongodb_not_used": 'services "if applicable"',
    "redis_foundation": "foundation-ready (Redis, MongoDB)",
    "mongodb_foundation": "foundation-ready (Redis, MongoDB)",
    "final_sign_off": "final sign-off",
}

# Where a module makes the records of a family on a real server, a passing and a failing one.
MEASURED_IN = {
    "backup": "test_backup.py",
    "baseline": "test_baseline.py",
    "gate": "test_gate.py",
    "http": "test_http_probe.py",
    "ledger": "test_runner_review.py",
    "migration": "test_runner_basics.py",
    "notify": "test_webhooks.py",
    "platform": "test_lancio_platform.py",
    "preflight": "test_preflight.py",
    "railway": "../cloud/test_railway.py",
    "rbac": "test_rbac_integrity.py",
    "rds": "../cloud/test_rds_status_info.py",
    "rehearsal": "test_rehearsal.py",
    "restore": "test_restore.py",
    "serverlog": "test_serverlog.py",
    "watch": "test_vitals.py",
}

Record = dict[str, t.Any]


def record(name: str, verdict: str = "pass", **more: t.Any) -> Record:
    """Evidence as the piece that measures this criterion writes it."""
    family = name.partition(".")[0]
    measured: t.Any = "as required" if verdict == "pass" else "something else"
    required: t.Any = "as required"
    if name == "migration.applied":
        required, measured = MIGRATIONS, MIGRATIONS if verdict == "pass" else MIGRATIONS[:1]
    time = "2026-11-22T02:10:00.000Z" if name == "migration.applied" else "2026-11-22T02:20:00.000Z"
    return {
        "criterion": name,
        "phase": PHASES.get(family, family),
        "verdict": verdict,
        "measured": measured,
        "required": required,
        "source": "test",
        "time": time,
        "details": {},
        **more,
    }


def attestation(name: str, until: str = "2026-11-22T04:00:00Z") -> Record:
    return {
        "criterion": name,
        "by": "on-call",
        "at": "2026-11-22T02:00:00Z",
        "statement": "so it is",
        "until": until,
    }


def judge(box: Box, records: t.Sequence[Record], attestations: t.Sequence[Record] = (), **more: t.Any) -> Decision:
    # Everything is configured, so that what is not measured is missing.
    families = sorted({name.partition(".")[0] for name in box.criteria})
    policy = resolve_policy(more.pop("policy", None))
    return decide(
        box.stage,
        records,
        policy,
        attestations=attestations,
        declared=DECLARED,
        configured=[*families],
        now=more.pop("now", NOW),
        **more,
    )


def status(decision: Decision, box: Box) -> str:
    return next(found for other, found in decision.boxes if other.id == box.id)


def holding(box: Box) -> tuple[list[Record], list[Record]]:
    said = [attestation(name) for name in box.criteria if name in ATTESTATIONS]
    return [record(name) for name in box.criteria if name not in ATTESTATIONS], said


def test_the_boxes_are_those_of_the_documents() -> None:
    assert len(BOXES) == 77
    assert {name: [box.line for box in BOXES if box.document == name] for name in LINES} == LINES


def test_boxes_and_criteria_fit() -> None:
    assert {name for box in BOXES for name in box.criteria} <= set(CRITERIA)
    assert [box.id for box in BOXES if any(box.stage not in CRITERIA[name].stages for name in box.criteria)] == []
    assert {item.default for item in CRITERIA.values()} <= set(DEFAULTS)
    assert {stage for item in CRITERIA.values() for stage in item.stages} == set(STAGES)
    assert set(PREFLIGHT) <= set(CRITERIA)
    assert set(NOT_USED) <= set(CRITERIA)
    assert {box.migration for box in BOXES if box.migration} <= set(MIGRATIONS)


def test_criteria_of_the_platforms_checks_exist_in_its_plan() -> None:
    assert {name for name in CRITERIA if name.startswith("platform.")} <= DECLARED


def test_criteria_of_the_rbac_checks_exist_in_its_plan() -> None:
    declared = declared_checks(load_plan(str(ROOT / "playbooks" / "migrations" / "scrapersky_rbac")))
    assert {name for name in CRITERIA if name.startswith("rbac.")} <= declared


def test_no_more_can_be_attested_than_was_allowed() -> None:
    assert set(ATTESTATIONS) == {f"attestation.{name}" for name in ALLOWED}
    assert {name for name, item in CRITERIA.items() if item.default == ATTESTATION} <= set(ATTESTATIONS)
    attested = [box for box in BOXES if set(box.criteria) & set(ATTESTATIONS)]
    assert len(attested) == 6
    assert all(len(box.criteria) == 1 for box in attested)


@pytest.mark.parametrize("box", BOXES, ids=lambda box: box.id)
def test_a_box_holds_when_its_evidence_does(box: Box) -> None:
    records, said = holding(box)
    assert status(judge(box, records, said), box) == "pass"


FACETS = [(box, name) for box in BOXES for name in box.criteria]
MEASURED = [(box, name) for box, name in FACETS if name not in ATTESTATIONS]
ATTESTED = [(box, name) for box, name in FACETS if name in ATTESTATIONS]


def names(value: t.Any) -> str:
    return value.id if isinstance(value, Box) else str(value)


@pytest.mark.parametrize(("box", "name"), MEASURED, ids=names)
def test_a_box_fails_with_any_of_its_evidence(box: Box, name: str) -> None:
    records, said = holding(box)
    failing = [record(item["criterion"], "fail" if item["criterion"] == name else "pass") for item in records]
    decision = judge(box, failing, said)
    judged = {item.criterion: item for item in decision.judgements}[name]
    assert status(decision, box) == "fail"
    assert decision.decision == "NO-GO"
    assert name in decision.summary() and judged.status == "fail"


@pytest.mark.parametrize(("box", "name"), MEASURED, ids=names)
@pytest.mark.parametrize("how", ["never", "not_measured", "only demanded"])
def test_a_box_does_not_hold_without_any_of_its_evidence(box: Box, name: str, how: str) -> None:
    records, said = holding(box)
    left = [item for item in records if item["criterion"] != name]
    policy: dict[str, t.Any] = {}
    if how == "not_measured":
        left.append(record(name, "not_measured", measured=None))
    elif how == "only demanded":
        policy = {"criteria": {name: "required"}}
        left.append(record(name, "not_applicable"))
    decision = judge(box, left, said, policy=policy)
    judged = {item.criterion: item for item in decision.judgements}[name]
    assert (judged.status, status(decision, box)) == ("missing", "missing")
    assert decision.decision == "NO-GO"
    assert name in decision.summary()


@pytest.mark.parametrize(("box", "name"), ATTESTED, ids=names)
@pytest.mark.parametrize("until", [None, "2026-11-22T02:29:59Z", "2026-11-21"])
def test_a_box_that_is_attested_does_not_hold_without_the_word_of_a_person(
    box: Box, name: str, until: str | None
) -> None:
    said = [attestation(name, until)] if until else []
    # Evidence under its name is no person's word.
    decision = judge(box, [record(name)], said)
    assert status(decision, box) == "missing"
    assert name in decision.summary()


def test_a_service_that_is_not_used_needs_no_evidence_once_somebody_says_so() -> None:
    boxes = [box for box in BOXES if box.line in (136, 138)]
    for box in boxes:
        assert status(judge(box, []), box) == "missing"
        assert status(judge(box, [], [attestation("attestation.mongodb_not_used")]), box) == "not_applicable"
        failing = [record(box.criteria[0], "fail")]
        assert status(judge(box, failing, [attestation("attestation.mongodb_not_used")]), box) == "fail"


def test_a_migration_that_is_not_of_this_run_leaves_its_boxes_open() -> None:
    box = next(box for box in BOXES if box.line == 909)
    others = [name for name in MIGRATIONS if name != box.migration]
    applied = record("migration.applied", required=others, measured=others)
    assert status(judge(box, [applied]), box) == "not_applicable"


def test_every_family_is_measured_for_real_somewhere() -> None:
    families = {name.partition(".")[0] for box in BOXES for name in box.criteria if name not in ATTESTATIONS}
    assert families == set(MEASURED_IN)
    for family, file in MEASURED_IN.items():
        text = (ROOT / "tests" / "integration" / file).read_text(encoding="utf-8")
        names = [name for name in CRITERIA if name.partition(".")[0] == family]
        assert any(name in text or name.partition(".")[2] in text for name in names), file


def test_the_page_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("write_criteria", ROOT / "scripts" / "write_criteria.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run scripts/write_criteria.py"


def test_a_go_needs_every_criterion_of_its_stage() -> None:
    """With everything measured there is a GO; each required criterion taken away makes a NO-GO of it."""
    policy = resolve_policy({"window": "any"})
    said = [attestation(name) for name in ATTESTATIONS]
    everything = [record(name) for name in CRITERIA if name not in ATTESTATIONS and GO in CRITERIA[name].stages]
    assert decide(GO, everything, policy, attestations=said, now=NOW).go
    for item in everything:
        without = [other for other in everything if other is not item]
        decision = decide(GO, without, policy, attestations=said, now=NOW)
        required = CRITERIA[item["criterion"]].default == "required"
        assert decision.go is not required, item["criterion"]
        broken = [*without, record(item["criterion"], "fail")]
        decision = decide(GO, broken, policy, attestations=said, now=NOW)
        assert decision.go is (CRITERIA[item["criterion"]].default == "optional"), item["criterion"]


@pytest.mark.parametrize("name", sorted(DONE_BY_RUN))
def test_what_the_run_does_itself_nobody_has_to_say(name: str) -> None:
    """Its record takes the place of the attestation: asked for at the sign-off, since it is made after GO."""
    policy = resolve_policy({"criteria": {name: "required"}})
    done = DONE_BY_RUN[name]

    def status_of(stage: str, criterion: str, records: t.Sequence[Record], *configured: str) -> str:
        decision = decide(stage, records, policy, configured=configured, now=NOW)
        return next(item.status for item in decision.judgements if item.criterion == criterion)

    assert status_of(GO, name, []) == "missing"
    assert status_of(GO, name, [], done) == "not_applicable"
    assert status_of(SIGN_OFF, done, []) == "not_applicable"
    assert status_of(SIGN_OFF, done, [], done) == "missing"
    assert status_of(SIGN_OFF, done, [record(done, "fail")], done) == "fail"
    assert status_of(SIGN_OFF, done, [record(done)], done) == "pass"
