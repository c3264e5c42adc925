# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate without a database: which record counts, waivers, attestations, what the operator reads."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import stat
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._criteria import CRITERIA, GO, MONITOR, SIGN_OFF
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, VerificationFailed
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record
from ansible_collections.surefoot.dbops.plugins.module_utils._gate import (
    Decision,
    decide,
    own_evidence,
    read_evidence,
    write_gate,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._go import (
    StaleGo,
    backup_age_problem,
    make_key,
    read_go,
    read_key,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._policy import parse_time, resolve_policy
from ansible_collections.surefoot.dbops.plugins.modules.postgresql_migration import _lock_budget

NOW = parse_time("2026-11-22T02:30:00Z", "now")
NO_INCIDENT = {
    "criterion": "attestation.no_incident",
    "by": "on-call",
    "at": "2026-11-22T02:00:00Z",
    "statement": "none",
    "until": "2026-11-22",
}
Record = dict[str, t.Any]


def proof(name: str, verdict: str = "pass", **more: t.Any) -> Record:
    entry = {"criterion": name, "phase": name.partition(".")[0], "verdict": verdict, "measured": 1, "required": 2}
    return {**entry, "source": "test", "time": "2026-11-22T02:20:00.000Z", "details": {}, **more}


def everything() -> list[Record]:
    """A pass for each criterion of the go stage that is required."""
    return [proof(name) for name, item in CRITERIA.items() if GO in item.stages and item.default == "required"]


def go(extra: t.Sequence[Record] = (), without: str = "", **more: t.Any) -> Decision:
    policy = resolve_policy(more.pop("policy", {}))
    records = [item for item in everything() if item["criterion"] != without]
    said = more.pop("attestations", [NO_INCIDENT])
    return decide(GO, [*records, *extra], policy, attestations=said, now=more.pop("now", NOW), **more)


# --- which record counts


def test_measuring_again_replaces_what_was_measured_before() -> None:
    failing, passing = proof("preflight.primary", "fail"), proof("preflight.primary")
    assert not go([passing, failing]).go
    assert go([failing, passing]).go


def test_another_subject_does_not_hide_a_failure() -> None:
    failing = proof("verify.x", "fail", phase="plan", details={"migration": "001", "name": "a"})
    passing = proof("verify.x", phase="plan", details={"migration": "001", "name": "b"})
    assert not go([failing, passing]).go
    assert go([failing, {**passing, "details": failing["details"]}]).go


def test_another_phase_does_not_hide_a_failure() -> None:
    failing = proof("ledger.no_drift", "fail", phase="plan")
    assert not go([failing, proof("ledger.no_drift", phase="backup")]).go


def test_what_no_table_knows_must_not_fail() -> None:
    assert go([proof("company.change_ticket", phase="plan")]).go
    decision = go([proof("company.change_ticket", "fail", phase="plan")])
    assert "company.change_ticket" in decision.summary()
    assert go([proof("company.change_ticket", "not_measured", phase="plan")]).go
    assert not go(
        [proof("company.change_ticket", "not_measured", phase="plan")],
        policy={"criteria": {"company.change_ticket": "required"}},
    ).go
    assert not go(policy={"criteria": {"company.change_ticket": "required"}}).go


def test_a_service_that_is_not_configured_is_recorded_as_that() -> None:
    (snapshot,) = [item for item in go().judgements if item.criterion == "rds.snapshot_available"]
    assert (snapshot.verdict, snapshot.status, snapshot.measured) == (
        "not_applicable",
        "not_applicable",
        "not configured",
    )
    assert len(go(configured=["railway"]).having("missing")) == 6
    decision = go(configured=["rds.snapshot_available"])
    assert [item.criterion for item in decision.having("missing")] == ["rds.snapshot_available"]
    demanded = go(policy={"criteria": {"rds.snapshot_available": "required"}})
    assert [item.criterion for item in demanded.having("missing")] == ["rds.snapshot_available"]


def signed(extra: t.Sequence[Record], **more: t.Any) -> Decision:
    applied = proof("migration.applied", measured=["001"], required=["001"])
    base = [*[proof(name) for name in ("gate.decision", "watch.connections", "watch.wal_rate")], applied]
    said = [
        {**NO_INCIDENT, "criterion": f"attestation.no_{what}"} for what in ("user_facing_errors", "support_tickets")
    ]
    policy = resolve_policy(more.pop("policy", None) or {"backup": "never"})
    return decide(SIGN_OFF, [*base, *extra], policy, attestations=said, now=NOW, **more)


def test_a_pass_on_the_copy_proves_nothing_of_the_target() -> None:
    declared = frozenset({"verify.001.rows", "platform.rls.enabled"})
    on_copy = [proof(name, phase="rehearsal") for name in declared]
    assert signed([]).go
    decision = signed(on_copy, declared=declared)
    assert sorted(item.criterion for item in decision.having("missing")) == ["platform.rls.enabled", "verify.001.rows"]
    assert signed([*on_copy, *[proof(name, phase="verify") for name in declared]], declared=declared).go


def test_a_clock_that_was_set_back_makes_no_before_an_after() -> None:
    ahead = proof("http.status", phase="probe", time="2026-11-22T02:20:00.001Z")
    applied = proof("migration.applied", measured=["001"], required=["001"])
    decision = signed([ahead, applied])
    assert [item.criterion for item in decision.having("missing")] == ["http.status"]
    assert signed([ahead, applied, {**ahead}]).go


def test_what_was_measured_before_the_apply_proves_nothing_of_the_time_after() -> None:
    before = proof("http.status", phase="probe", time="2026-11-22T02:19:59.999Z")
    assert [item.criterion for item in signed([before]).having("missing")] == ["http.status"]
    assert signed([before, {**before, "time": "2026-11-22T02:20:00.001Z"}]).go


def test_a_family_that_is_configured_must_be_measured() -> None:
    missing = signed([], configured=["http"]).having("missing")
    assert [item.criterion for item in missing] == [name for name in CRITERIA if name.startswith("http.")]
    assert [item.criterion for item in signed([], configured=["watch.disk"]).having("missing")] == []
    assert [item.criterion for item in signed([], configured=["serverlog.fatal"]).having("missing")] == [
        "serverlog.fatal"
    ]


def test_monitoring_asks_people_and_what_is_configured() -> None:
    decision = decide(MONITOR, [], resolve_policy(None), now=NOW)
    assert [item.criterion for item in decision.having("missing")] == ["attestation.no_user_reports"]


# --- the policy's switches


@pytest.mark.parametrize(
    ("policy", "family"),
    [({"backup": "never"}, "backup."), ({"backup": "never"}, "restore."), ({"backup": "never"}, "gate.backup")]
    + [({"restore_proof": False}, "restore."), ({"rehearsal": "optional"}, "rehearsal.")],
)
def test_what_the_policy_does_not_ask_for_is_not_missing(policy: dict[str, t.Any], family: str) -> None:
    records = [item for item in everything() if not item["criterion"].startswith(family)]
    if "backup" in policy:
        records = [item for item in records if not item["criterion"].startswith(("backup.", "restore.", "gate."))]
        records += [proof("gate.window"), proof("gate.approvals")]
    said = [NO_INCIDENT]
    assert not decide(GO, records, resolve_policy(None), attestations=said, now=NOW).go
    assert decide(GO, records, resolve_policy(policy), attestations=said, now=NOW).go


def test_a_backup_that_was_taken_is_proven_even_where_it_is_optional() -> None:
    assert not go(without="restore.content", policy={"backup": "optional"}).go
    assert not go(without="rehearsal.verify", policy={"rehearsal": "optional"}).go


def test_the_policy_makes_a_criterion_required_or_optional() -> None:
    assert go([proof("rehearsal.hazards", "not_measured")]).go
    assert not go(
        [proof("rehearsal.hazards", "not_measured")], policy={"criteria": {"rehearsal.hazards": "required"}}
    ).go
    decision = go([proof("preflight.primary", "fail")], policy={"criteria": {"preflight.primary": "optional"}})
    assert decision.go
    assert "  noted: preflight.primary: measured 1, required 2" in decision.lines()


@pytest.mark.parametrize("key", ["waivers", "criteria"])
def test_a_name_that_no_criterion_has_is_an_error(key: str) -> None:
    waiver = {"criterion": "backup.verifyed", "reason": "x", "by": "y", "expires": "2026-12-31"}
    policy = {"waivers": [waiver]} if key == "waivers" else {"criteria": {"backup.verifyed": "optional"}}
    with pytest.raises(PlanError, match=r"Did you mean backup\.verified\?"):
        go(policy=policy)


# --- waivers and attestations


def waived(name: str, expires: str = "2026-12-31") -> dict[str, t.Any]:
    return {"waivers": [{"criterion": name, "reason": "agreed", "by": "dba", "expires": expires}]}


def test_a_waiver_lets_pass_what_failed_or_is_missing_and_is_shown() -> None:
    decision = go([proof("preflight.primary", "fail")], policy=waived("preflight.primary"))
    assert decision.go
    assert decision.lines()[0].endswith(", 1 waived")
    assert decision.lines()[1].endswith("waived by dba until 2026-12-31: agreed")
    assert decision.to_dict()["waived"][0]["criterion"] == "preflight.primary"
    assert go(without="restore.content", policy=waived("restore.content")).go
    assert not go([proof("preflight.primary", "fail")], policy=waived("preflight.writable")).go


def test_a_waiver_that_is_not_needed_is_noted() -> None:
    assert go(policy=waived("preflight.primary")).notes == ("the waiver of preflight.primary was not needed",)


def test_an_expired_waiver_is_an_error() -> None:
    assert go(policy=waived("preflight.primary", "2026-11-22")).go
    with pytest.raises(PlanError, match="by dba expired"):
        go(policy=waived("preflight.primary", "2026-11-21"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"criterion": "backup.verified"}, "cannot be attested"),
        ({"criterion": "attestation.no_incidents"}, "Did you mean attestation.no_incident?"),
        ({"by": ""}, "has no by"),
        ({"statement": " "}, "has no statement"),
        ({"until": None}, "has no until"),
        ({"at": "2026-11-22T02:36:00Z"}, "from the future"),
        ({"until": "forever"}, "until is 'forever'"),
    ],
)
def test_an_attestation_that_is_none_is_an_error(change: dict[str, t.Any], says: str) -> None:
    with pytest.raises(PlanError) as caught:
        go(attestations=[{**NO_INCIDENT, **change}])
    assert says in str(caught.value)


def test_an_attestation_counts_until_it_ends() -> None:
    assert go().go
    assert go(now=parse_time("2026-11-22T23:59:59Z", "now")).go
    decision = go(now=parse_time("2026-11-23", "now"))
    assert (
        decision.having("missing")[0]
        .line()
        .startswith("attestation.no_incident: not measured (what on-call said ended at 2026-11-22)")
    )
    renewed = {**NO_INCIDENT, "until": "2026-11-23"}
    assert go(now=parse_time("2026-11-23", "now"), attestations=[renewed, NO_INCIDENT]).go


# --- what the gate measures itself


def own(policy: dict[str, t.Any], records: t.Sequence[Record] = (), **more: t.Any) -> dict[str, Evidence]:
    found = own_evidence(
        records,
        resolve_policy(policy),
        approvals=more.get("approvals", {}),
        notified_at=more.get("notified_at"),
        now=more.get("now", NOW),
    )
    return {item.criterion: item for item in found}


WINDOW = {"start": "Sun 02:00", "end": "Sun 04:00", "reserve": "1h"}


@pytest.mark.parametrize(
    ("policy", "now", "verdict"),
    [
        ({"window": WINDOW}, "2026-11-22T02:30:00Z", "pass"),
        ({"window": WINDOW}, "2026-11-22T03:30:00Z", "fail"),
        ({"window": WINDOW}, "2026-11-22T01:30:00Z", "pass"),  # it opens before the GO expires
        ({"window": WINDOW}, "2026-11-22T00:59:00Z", "fail"),
        ({"window": WINDOW, "go_max_age": "12h"}, "2026-11-21T15:00:00Z", "pass"),
        ({"window": "any"}, "2026-11-24T12:00:00Z", "pass"),
        ({}, "2026-11-22T02:30:00Z", "fail"),
    ],
)
def test_the_window_must_be_open_before_the_go_expires(policy: dict[str, t.Any], now: str, verdict: str) -> None:
    assert own(policy, now=parse_time(now, "now"))["gate.window"].verdict == verdict


def test_every_approval_needs_a_name() -> None:
    names = {"prepared": "Ada", "reviewed": "Grace", "approved": "Katherine"}
    assert own({}, approvals=names)["gate.approvals"].verdict == "pass"
    assert own({}, approvals={**names, "reviewed": " "})["gate.approvals"].verdict == "fail"
    assert own({}, approvals={})["gate.approvals"].verdict == "fail"
    assert own({"approvals": []})["gate.approvals"].verdict == "not_applicable"


def test_the_notification_must_be_a_day_old() -> None:
    sent = proof("notify.sent", time="2026-11-21T02:29:00.000Z", measured={"message": "pre-migration-notification"})
    assert own({}, [sent])["gate.notified_24h"].verdict == "pass"
    assert own({}, [{**sent, "time": "2026-11-21T02:31:00.000Z"}])["gate.notified_24h"].verdict == "fail"
    assert "gate.notified_24h" not in own({}, [{**sent, "verdict": "fail"}])
    assert "gate.notified_24h" not in own({}, [{**sent, "measured": {"message": "devops-alert"}}])
    assert own({}, notified_at="2026-11-20")["gate.notified_24h"].verdict == "pass"


@pytest.mark.parametrize(
    ("max_age", "run_id", "age", "fits"),
    [("0s", "a", 10, True), ("0s", "b", 10, False), ("2h", "b", 7199, True), ("2h", "a", 7201, False)],
)
def test_the_age_of_a_backup(max_age: str, run_id: str, age: float, fits: bool) -> None:
    backup = {"created": (NOW - datetime.timedelta(seconds=age)).isoformat(), "run_id": "a"}
    problem = backup_age_problem(backup, resolve_policy({"backup_max_age": max_age}), run_id, NOW)
    assert (problem is None) is fits


def test_a_backup_of_tomorrow_is_no_young_one() -> None:
    backup = {"created": (NOW + datetime.timedelta(days=1)).isoformat(), "run_id": "a"}
    problem = backup_age_problem(backup, resolve_policy({"backup_max_age": "2h"}), "b", NOW)
    assert "from the future" in str(problem)


@pytest.mark.parametrize(
    ("go", "given", "holds"), [("go.json", "1h", 0.2), ("go.json", "100ms", 0.1), (None, "1h", 3600.0)]
)
def test_under_a_go_the_policy_bounds_the_lock_budget(go: str | None, given: str, holds: float) -> None:
    assert _lock_budget({"go": go, "lock_budget": given, "policy": {"lock_budget": "200ms"}}) == holds


# --- what is read and written


def test_evidence_that_was_altered_is_refused(tmp_path: pathlib.Path) -> None:
    run_dir = str(tmp_path)
    record(run_dir, [Evidence(name, "plan", "fail", 1, 2, "test") for name in ("a.a", "b.b", "c.c")])
    path = tmp_path / "evidence.jsonl"
    assert [item["criterion"] for item in read_evidence(run_dir)] == ["a.a", "b.b", "c.c"]
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for altered in (lines[1:], [lines[0], lines[2]], [lines[0].replace("fail", "pass"), *lines[1:]], [*lines, "{}\n"]):
        path.write_text("".join(altered), encoding="utf-8")
        with pytest.raises(VerificationFailed, match="was altered"):
            read_evidence(run_dir)


def test_the_gates_file_keeps_the_decision_before_the_apply(tmp_path: pathlib.Path) -> None:
    policy = resolve_policy({"window": "any"})
    write_gate(str(tmp_path), go(), policy, expires="2026-11-22T03:30:00Z")
    path = tmp_path / "gate.json"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    for _again in range(2):
        write_gate(str(tmp_path), signed([proof("watch.disk", "fail")]), policy)
    gate = json.loads(path.read_text(encoding="utf-8"))
    assert (gate["decision"], gate["expires"]) == ("GO", "2026-11-22T03:30:00Z")
    assert gate["stages"]["sign_off"]["decision"] == "NO-GO"
    assert gate["stages"]["sign_off"]["failed"] == ["watch.disk: measured 1, required 2"]
    found = [(item["stage"], item["criterion"]) for item in gate["criteria"]]
    assert len(found) == len(set(found))
    assert {stage for stage, _name in found} == {"go", "sign_off"}
    assert {box["stage"] for box in gate["boxes"]} == {"go", "sign_off"}


def test_what_the_operator_reads() -> None:
    decision = go([proof("preflight.primary", "fail", measured="a standby", required="a primary")], "restore.content")
    assert decision.summary() == (
        "NO-GO: preflight.primary: measured a standby, required a primary | not measured: restore.content"
    )
    lines = decision.lines()
    assert lines[0].startswith("NO-GO: ") and lines[0].endswith(" hold, 1 failed, 1 not measured")
    assert lines[1:] == [
        "  failed: preflight.primary: measured a standby, required a primary",
        "  missing: restore.content: not measured; measured by: postgresql_restore compares the restored copy with what"
        " the backup recorded in its own snapshot",
    ]
    assert go().summary().startswith("GO: ")


def test_in_check_mode_only_a_failure_is_a_no_go() -> None:
    assert go(without="restore.content", undecided=True).decision == "UNDECIDED"
    assert go(undecided=True).decision == "GO"
    assert go([proof("preflight.primary", "fail")], "restore.content", undecided=True).decision == "NO-GO"


# --- the key and the file of a GO


def test_a_key_is_made_once_and_only_for_its_owner(tmp_path: pathlib.Path) -> None:
    run_dir = str(tmp_path / "run")
    key = make_key(run_dir, None)
    path = tmp_path / "run" / "go.key"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert make_key(run_dir, None) == key == read_key(run_dir, None)
    path.chmod(0o640)
    with pytest.raises(StaleGo, match="others can read"):
        read_key(run_dir, None)
    path.unlink()
    with pytest.raises(StaleGo, match=r"cannot read .*go\.key"):
        read_key(run_dir, None)


def test_a_key_that_is_given_is_written_nowhere(tmp_path: pathlib.Path) -> None:
    given = "k" * 32
    assert make_key(str(tmp_path), given) == read_key(str(tmp_path), given) == given.encode()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"format": 1, "hmac": "00"}'])
def test_a_go_that_is_none_is_refused(tmp_path: pathlib.Path, content: str | None) -> None:
    path = tmp_path / "go.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(StaleGo) as caught:
        read_go(str(path), b"k" * 32)
    assert caught.value.changed == "go"
