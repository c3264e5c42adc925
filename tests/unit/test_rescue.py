# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rollback matrix: results of tasks in, decision out."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._policy import ROLLBACK_MATRIX
from ansible_collections.surefoot.dbops.plugins.module_utils._rescue import REFUSED, SEVERITY, UNCLEAR, judge

DECRYPTION = "platform.registration.decryption"
APPLIED = {"applied": ["006_a"], "pending": []}


def _failed(code: str, sqlstate: str | None = None, **more: t.Any) -> dict[str, t.Any]:
    error = {"code": code, "message": "it broke", "sqlstate": sqlstate}
    return {"failed": True, "applied": ["006_a"], "error": error, **more}


def _evidence(criterion: str, verdict: str = "fail") -> dict[str, t.Any]:
    return {"evidence": [{"criterion": criterion, "verdict": verdict, "measured": 7, "required": 0}]}


def _check(criterion: str) -> dict[str, t.Any]:
    return {"failed": True, "checks": [{"name": "c", "criterion": criterion, "passed": False}]}


def test_every_class_of_the_policy_has_a_severity() -> None:
    assert set(SEVERITY) == {*ROLLBACK_MATRIX, UNCLEAR, REFUSED}


def test_nothing_failed() -> None:
    found = judge(
        migration=APPLIED, verification={"checks": [{"passed": True}]}, compared=[_evidence("http.status", "pass")]
    )
    assert (found.decision, found.severity, found.failures) == ("go_on", None, ())
    assert found.evidence().verdict == "pass"


@pytest.mark.parametrize(
    ("results", "kind", "severity", "decision"),
    [
        ({"migration": _failed("sql")}, "syntax_error", "CRITICAL", "roll_back"),
        ({"migration": _failed("sql_text")}, "syntax_error", "CRITICAL", "roll_back"),
        ({"migration": _failed("lock_budget")}, "lock_budget_exceeded", "HIGH", "roll_back"),
        ({"migration": _failed("watch_limit")}, "watch_limit", "HIGH", "roll_back"),
        ({"migration": _failed("verification")}, "verification_failed", "CRITICAL", "roll_back"),
        ({"migration": _failed("verification", **_check(DECRYPTION))}, "encryption_not_working", "HIGH", "roll_back"),
        ({"migration": _failed("sql", sqlstate="55P03")}, "lock_budget_exceeded", "HIGH", "roll_back"),
        ({"migration": _failed("stale_go")}, REFUSED, "MEDIUM", "fix_forward"),
        ({"migration": _failed("connection")}, UNCLEAR, "HIGH", "ask"),
        ({"migration": _failed("outcome_unknown")}, UNCLEAR, "HIGH", "ask"),
        ({"verification": _check("platform.rls.enabled")}, "verification_failed", "CRITICAL", "roll_back"),
        ({"verification": _check("platform.registration.encrypted")}, "encryption_not_working", "HIGH", "roll_back"),
        ({"compared": [_evidence("http.no_new_403")]}, "queries_denied", "CRITICAL", "roll_back"),
        ({"compared": [_evidence("serverlog.permission_denied")]}, "queries_denied", "CRITICAL", "roll_back"),
        ({"compared": [_evidence("http.status")]}, "endpoint_broken", "HIGH", "fix_forward"),
        ({"compared": [_evidence("http.latency_p95")]}, "slow_queries", "MEDIUM", "monitor"),
        ({"compared": [_evidence("baseline.regression")]}, "slow_queries", "MEDIUM", "monitor"),
    ],
)  # fmt: skip
def test_class_severity_and_decision(results: dict[str, t.Any], kind: str, severity: str, decision: str) -> None:
    found = judge(**{"migration": APPLIED, "verification": {}, **results})
    assert [(failure.kind, failure.severity) for failure in found.failures] == [(kind, severity)]
    assert found.decision == decision
    assert found.to_dict()["roll_back"] == ["006_a"]
    assert found.evidence().verdict == "fail"


def test_the_policy_decides() -> None:
    found = judge(
        migration=APPLIED, verification={}, compared=[_evidence("baseline.regression")], matrix={"slow_queries": "ask"}
    )
    assert found.decision == "ask" and "ask" in found.line


def test_the_worst_decision_wins_and_the_worst_failure_is_named() -> None:
    found = judge(
        migration=APPLIED, verification={}, compared=[_evidence("baseline.regression"), _evidence("http.no_new_403")]
    )
    assert found.decision == "roll_back" and found.severity == "CRITICAL"
    assert found.line.startswith("CRITICAL queries_denied: http.no_new_403 is 7, required 0 (and 1 more).")


def test_what_failed_and_left_nothing_behind_needs_no_rollback() -> None:
    found = judge(migration={**_failed("sql"), "applied": []}, verification={})
    assert found.decision == "fix_forward" and found.to_dict()["roll_back"] == []


def test_a_migration_of_which_a_part_is_committed_is_rolled_back_first() -> None:
    found = judge(migration=_failed("sql", unfinished="007_b"), verification={})
    assert found.decision == "roll_back" and found.to_dict()["roll_back"] == ["007_b", "006_a"]


def test_records_that_nobody_could_measure_are_no_failure_of_the_matrix() -> None:
    assert (
        judge(migration=APPLIED, verification={}, compared=[_evidence("http.status", "not_measured")]).decision
        == "go_on"
    )


def test_a_comparison_that_failed_to_run_is_judged() -> None:
    found = judge(migration=APPLIED, verification={}, compared=[{"failed": True, "msg": "no such file"}])
    assert found.failures[0].kind == "verification_failed"


def test_a_refusal_says_what_to_do_and_not_what_stays() -> None:
    migration = {**_failed("stale_go"), "applied": []}
    migration["error"]["remedy"] = "Let the gate decide again."
    line = judge(migration=migration, verification={}).line
    assert line == "Nothing was applied: it broke. Let the gate decide again."
